/* Communication over ranks that are processes of this machine: they meet in POSIX shared memory.
   With one rank each operation is the identity, and the two with separate buffers copy.

       seats     [ranks]              where each rank is: how many meetings it has come to, and the
                                      operation that it is in
       windows   [ranks][2][WINDOW]   what each rank shows to the others

   Data moves a window at a time: every rank fills its own, all meet, and every rank reads the
   others'. Sums are formed by every rank for itself, in the order of the ranks, so they have the
   same bits everywhere. The two windows of a rank take turns. One meeting for each turn is enough:
   who fills a window for the second time has been at the meeting in between, to which nobody came
   who was still reading it.

   A rank that waits looks whether the others are alive and in the same operation, and for how long
   it has waited; where something is wrong it ends (die_machine), saying which rank and where. One
   that ends by itself, by an error too, says so in its seat.

   The id is the name of the shared memory, which the process that started the ranks has made; or
   "meet HOST:PORT", where rank 0 makes it and the others wait for it. The name is removed as soon
   as all have come; the memory goes with the last of them. What stays behind is the name of a run
   all of whose processes were killed before they had met. */
#include "cpu.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "../base/time.h"

enum { MAX_RANKS = 64, WINDOW = 1 << 18, ID_BYTES = 128 };

/* What a rank does at a meeting. */
struct Call {
    char name[20];
    int root;
    size_t bytes;   /* of the whole operation */
};

struct Seat {
    _Atomic uint64_t meetings;   /* it has come to so many */
    _Atomic int process;         /* 0: not here so far */
    _Atomic int ended;           /* by itself */
    struct Call call[2];         /* at meetings with an even and an odd number: a rank may be one
                                    meeting ahead of a slow reader, but not two */
};

struct Room {
    _Atomic int maker;           /* the process that made it: for those who wait for rank 0 */
    struct Seat seat[MAX_RANKS];
    char window[][2][WINDOW];
};

static struct {
    struct Room *room;     /* NULL: one rank */
    int rank, ranks;
    double patience;       /* seconds */
    long long step;
    struct CommCounts counts;
    char name[256];        /* of the shared memory that this process has made, until all came */
    int owner;             /* the process that is this rank, or made the name; 0: not so far */
    uint64_t meetings, operations;
} world;

static size_t room_bytes(int ranks) {
    return sizeof(struct Room) + (size_t)ranks * 2 * WINDOW;
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* ---- meetings ------------------------------------------------------------------------------- */

static void forget_name(void) {
    if (world.name[0]) shm_unlink(world.name);
    world.name[0] = '\0';
}

static void at_end(void) {
    if (world.owner != (int)getpid()) return;
    if (world.room) atomic_store(&world.room->seat[world.rank].ended, 1);
    forget_name();
}

static void tell_at_end(void) {
    if (!world.owner) atexit(at_end);
    world.owner = (int)getpid();
}

/* Nobody may have waited for it so far: then Linux lists it as a zombie (proc(5), stat). */
static bool has_died(int process) {
    char path[48], line[512];
    if (!process) return false;
    if (kill(process, 0) != 0) return errno == ESRCH;
    snprintf(path, sizeof path, "/proc/%d/stat", process);
    FILE *file = fopen(path, "r");
    if (!file) return false;
    const char *end = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
    fclose(file);
    return end && (end[2] == 'Z' || end[2] == 'X');
}

/* Ends the program if rank r will not come to the meeting that this rank waits in. */
static void check_alive(int r, uint64_t meeting, double since, const struct Call *mine) {
    struct Seat *seat = &world.room->seat[r];
    int process = atomic_load(&seat->process);
    bool dead = atomic_load(&seat->ended) || has_died(process);
    if (!dead && seconds() - since <= world.patience) return;
    if (atomic_load(&seat->meetings) >= meeting) return;   /* it came, and ended after that */
    char what[160];
    snprintf(what, sizeof what, "step %lld: rank %d of %d waits in %s number %llu (%zu bytes)",
             world.step, world.rank, world.ranks, mine->name, (unsigned long long)world.operations,
             mine->bytes);
    if (dead) check_others_first();
    if (dead) die_machine("%s: rank %d, process %d, has ended", what, r, process);
    if (process == 0)
        die_machine("rank %d of %d: rank %d did not start within %.0f s", world.rank, world.ranks,
                    r, world.patience);
    die_machine("%s for more than %.0f s: rank %d, process %d, did not come", what, world.patience,
                r, process);
}

/* The first turns cost nothing but a look; then it sleeps in between, and looks now and then
   whether the other one lives. */
static void await(int r, uint64_t meeting, const struct Call *mine) {
    const struct timespec pause = {0, 50000};
    double since = seconds();
    for (int turns = 0; atomic_load(&world.room->seat[r].meetings) < meeting; turns++) {
        if (turns < 200) {
            sched_yield();
            continue;
        }
        if (turns % 100 == 0) check_alive(r, meeting, since, mine);
        nanosleep(&pause, NULL);
    }
}

/* Returns when every rank is at this meeting, and all are there for the same operation. */
static void meet(const char *name, int root, size_t bytes) {
    struct Call mine = {.root = root, .bytes = bytes};
    struct Seat *seat = &world.room->seat[world.rank];
    uint64_t meeting = ++world.meetings;
    snprintf(mine.name, sizeof mine.name, "%s", name);
    seat->call[meeting % 2] = mine;
    atomic_store(&seat->meetings, meeting);
    for (int r = 0; r < world.ranks; r++) {
        await(r, meeting, &mine);
        const struct Call *its = &world.room->seat[r].call[meeting % 2];
        if (strcmp(its->name, name) == 0 && its->root == root && its->bytes == bytes) continue;
        die_machine("step %lld: rank %d of %d is in %s of %zu bytes (root %d) and rank %d in %s of "
                    "%zu bytes (root %d): the ranks do not do the same", world.step, world.rank,
                    world.ranks, name, bytes, root, r, its->name, its->bytes, its->root);
    }
}

/* Rank r's window of the present turn: until this rank's next meeting, or, for its own, from its
   last. */
static char *window_of(int r, uint64_t meeting) { return world.room->window[r][meeting % 2]; }
static char *own_window(void) { return window_of(world.rank, world.meetings + 1); }
static char *shown_window(int r) { return window_of(r, world.meetings); }

/* ---- opening -------------------------------------------------------------------------------- */

static const char by_address[] = "meet ";   /* how an id begins that is not a name */

/* Makes the shared memory called `name`; -1 with errno. */
static int make_room(const char *name, int ranks) {
    int file = shm_open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, (off_t)room_bytes(ranks)) == 0) return file;
    int error = errno;
    close(file), shm_unlink(name);
    errno = error;
    return -1;
}

static struct Room *map_room(int file, int ranks) {
    void *memory = MAP_FAILED;
    struct stat found;
    if (file < 0) return NULL;
    if (fstat(file, &found) == 0 && found.st_size >= (off_t)room_bytes(ranks))
        memory = mmap(NULL, room_bytes(ranks), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return memory == MAP_FAILED ? NULL : memory;
}

/* A meeting point that has no name yet is made here, and whoever makes it is its owner. */
static void comm_id(void *id, const char *meeting) {
    memset(id, 0, ID_BYTES);
    if (meeting) {
        if (snprintf(id, ID_BYTES, "%s%s", by_address, meeting) >= ID_BYTES)
            die_input("the ranks' meeting point %s is too long", meeting);
        return;
    }
    snprintf(world.name, sizeof world.name, "/policyc-%d-%llx", (int)getpid(),
             (unsigned long long)(seconds() * 1e9));
    int file = make_room(world.name, MAX_RANKS);
    if (file < 0)
        die_machine("ranks on the CPU meet in shared memory, which cannot be had: %s",
                    strerror(errno));
    close(file);
    tell_at_end();
    memcpy(id, world.name, ID_BYTES);
}

/* The others' part of a meeting by address: the room of a rank 0 that lives. */
static struct Room *find_room(const char *name, int ranks) {
    struct Room *room = map_room(shm_open(name, O_RDWR, 0600), ranks);
    int maker = room ? atomic_load(&room->maker) : 0;
    if (maker && !has_died(maker) && !atomic_load(&room->seat[0].ended)) return room;
    if (room) munmap(room, room_bytes(ranks));
    return NULL;
}

/* Rank 0 makes the room anew, whatever an earlier run that was killed has left under its name; the
   others wait for it. */
static struct Room *meet_by_address(const char *address, int rank, int ranks, double patience) {
    const struct timespec pause = {0, 10000000};
    char name[sizeof world.name];
    double since = seconds();
    struct Room *room = NULL;
    snprintf(name, sizeof name, "/policyc-%ld-%s", (long)getuid(), address);
    for (char *c = name + 1; *c; c++)
        if (*c == '/') *c = '_';
    if (rank == 0) {
        shm_unlink(name);
        room = map_room(make_room(name, ranks), ranks);
        if (!room)
            die_machine("ranks on the CPU meet in shared memory, which cannot be had: %s",
                        strerror(errno));
        memcpy(world.name, name, sizeof name);
        atomic_store(&room->maker, (int)getpid());
        return room;
    }
    while (!(room = find_room(name, ranks))) {
        if (seconds() - since > patience)
            die_machine("rank %d of %d: rank 0 did not come to %s on this machine within %.0f s",
                        rank, ranks, address, patience);
        nanosleep(&pause, NULL);
    }
    return room;
}

static void comm_open(int rank, int ranks, const void *id, double patience) {
    char name[ID_BYTES + 1] = {0};
    if (ranks == 1) return;
    if (ranks > MAX_RANKS)
        die_machine("%d ranks: the CPU backend has at most %d", ranks, MAX_RANKS);
    memcpy(name, id, ID_BYTES);
    size_t prefix = strlen(by_address);
    struct Room *room = strncmp(name, by_address, prefix) == 0
                            ? meet_by_address(name + prefix, rank, ranks, patience)
                            : map_room(shm_open(name, O_RDWR, 0600), ranks);
    if (!room)
        die_machine("rank %d of %d: no shared memory called %s on this machine: %s", rank, ranks,
                    name, strerror(errno));
    int nobody = 0;
    if (!atomic_compare_exchange_strong(&room->seat[rank].process, &nobody, (int)getpid()))
        die_machine("rank %d of %d is taken by process %d", rank, ranks, nobody);
    world.room = room, world.rank = rank, world.ranks = ranks, world.patience = patience;
    tell_at_end();
    meet("comm_open", 0, (size_t)ranks);
    if (rank == 0 && name[0] == '/') shm_unlink(name);
    forget_name();   /* the memory itself stays until the last rank ends */
}

static void comm_expect(int64_t step, double patience) {
    world.step = step, world.patience = patience;
}

static void comm_counts(struct CommCounts *counts) { *counts = world.counts; }

/* Counts an operation that began at `since` and is over now. `bytes` were sent (struct CommCounts).
   Nothing else is computed meanwhile. */
static void count(double since, double bytes) {
    double took = seconds() - since;
    world.counts.calls++;
    world.counts.bytes += bytes;
    world.counts.seconds += took, world.counts.exposed += took;
}

/* The part of a whole that belongs to the other ranks. */
static double others(double whole) { return whole * (world.ranks - 1) / world.ranks; }

/* ---- the slots ------------------------------------------------------------------------------ */

/* out [n] = the sum over ranks of what each shows from float `first` of its window on. */
static void sum_windows(float *out, size_t first, size_t n) {
    memcpy(out, (float *)(void *)shown_window(0) + first, n * sizeof *out);
    for (int r = 1; r < world.ranks; r++) {
        const float *theirs = (float *)(void *)shown_window(r) + first;
        for (size_t i = 0; i < n; i++) out[i] += theirs[i];
    }
}

static void all_reduce(float *x, size_t n, int after, int done) {
    const size_t most = WINDOW / sizeof *x;
    double since = seconds();
    (void)after, (void)done;
    if (!world.room) return;
    world.operations++;
    for (size_t at = 0; at < n; at += most) {
        size_t part = smaller(n - at, most);
        memcpy(own_window(), x + at, part * sizeof *x);
        meet("all_reduce", 0, n * sizeof *x);
        sum_windows(x + at, 0, part);
    }
    count(since, 2 * others((double)n * sizeof *x));
}

static float rounded_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isfinite(x)) bits += 0x7fff + (bits >> 16 & 1);   /* to the nearest, ties to even */
    bits &= 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* sum_windows as a ring of ranks forms it that sends bf16: each partial sum is rounded again. */
static void sum_windows_narrow(float *out, size_t first, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float sum = rounded_to_bf16(((float *)(void *)shown_window(0))[first + i]);
        for (int r = 1; r < world.ranks; r++)
            sum = rounded_to_bf16(
                sum + rounded_to_bf16(((float *)(void *)shown_window(r))[first + i]));
        out[i] = sum;
    }
}

static void reduce_scatter(float *out, const float *in, size_t each, void *narrow, int after,
                           int done) {
    double since = seconds();
    (void)after, (void)done;
    if (!world.room) {
        memmove(out, in, each * sizeof *out);
        return;
    }
    const char *name = narrow ? "reduce_scatter bf16" : "reduce_scatter";
    const size_t most = WINDOW / sizeof *out / (size_t)world.ranks;
    world.operations++;
    for (size_t at = 0; at < each; at += most) {
        size_t part = smaller(each - at, most);
        for (size_t r = 0; r < (size_t)world.ranks; r++)
            memcpy(own_window() + r * part * sizeof *in, in + r * each + at, part * sizeof *in);
        meet(name, 0, each * sizeof *in);
        if (narrow) sum_windows_narrow(out + at, (size_t)world.rank * part, part);
        else sum_windows(out + at, (size_t)world.rank * part, part);
    }
    count(since, others((double)world.ranks * (double)each * (narrow ? 2 : 4)));
}

static void all_gather(void *out, const void *in, size_t bytes_each, int after, int done) {
    double since = seconds();
    (void)after, (void)done;
    if (!world.room) {
        memmove(out, in, bytes_each);
        return;
    }
    world.operations++;
    for (size_t at = 0; at < bytes_each; at += WINDOW) {
        size_t part = smaller(bytes_each - at, WINDOW);
        memcpy(own_window(), (const char *)in + at, part);
        meet("all_gather", 0, bytes_each);
        for (int r = 0; r < world.ranks; r++)
            memcpy((char *)out + (size_t)r * bytes_each + at, shown_window(r), part);
    }
    count(since, others((double)world.ranks * (double)bytes_each));
}

static void broadcast(void *x, size_t bytes, int root, int after, int done) {
    double since = seconds();
    (void)after, (void)done;
    if (!world.room) return;
    world.operations++;
    for (size_t at = 0; at < bytes; at += WINDOW) {
        size_t part = smaller(bytes - at, WINDOW);
        if (world.rank == root) memcpy(own_window(), (char *)x + at, part);
        meet("broadcast", root, bytes);
        if (world.rank != root) memcpy((char *)x + at, shown_window(root), part);
    }
    count(since, world.rank == root ? (double)bytes : 0);
}

static void fill(struct Ops *ops) {
    ops->comm_id = comm_id;
    ops->comm_open = comm_open;
    ops->comm_expect = comm_expect;
    ops->comm_counts = comm_counts;
    ops->all_reduce = all_reduce;
    ops->reduce_scatter = reduce_scatter;
    ops->all_gather = all_gather;
    ops->broadcast = broadcast;
}

const struct KernelFile cpu_comm = {"comm", fill, no_workspace};
