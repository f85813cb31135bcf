/* Communication over ranks by NCCL: one rank per GPU, sums in float32, on a stream of its own. With
   one rank every sum has one term: each operation is the identity, and the two with separate
   buffers copy; unless a communicator of one rank was asked for (comm_open).

   NCCL is the one library that may be missing, for a single process never asks for it. So neither
   its header nor the library is needed to build or to load this plug-in: what is used of its
   interface is declared here, weakly. Where the functions are linked in (the simulator's stand-in,
   test/cudasim/runtime/nccl.cc) they are called; elsewhere they are NULL, and the first one needed
   opens libnccl.so.2. Values and types are those of nccl.h since NCCL 2.14, the first version with
   communicators that do not block.

   A thread watches: the communication stream writes the number of each operation to host memory
   when it begins and when it has ended, and the thread, which needs nothing of CUDA for that, ends
   the program when one takes longer than the patience or when NCCL reports an error. */
#include "cuda_device.h"
#include <cuda_bf16.h>
#include <dlfcn.h>
#include <glob.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- NCCL's interface ---------------------------------------------------------------------- */

typedef struct ncclComm *ncclComm_t;
typedef struct {
    char internal[128];
} ncclUniqueId;
enum { ncclSuccess = 0, ncclInvalidUsage = 5, ncclInProgress = 7 };
enum { ncclInt8 = 0, ncclFloat32 = 7, ncclBfloat16 = 9 };
enum { ncclSum = 0 };

/* The configuration as NCCL 2.14 had it (nccl.h, ncclConfig_t): later versions have more fields,
   and take those that `version` does not have as not given. */
typedef struct {
    size_t size;
    unsigned magic, version;
    int blocking, unused;
} ncclConfig_t;
enum : unsigned { NCCL_MAGIC = 0xcafebeef, NCCL_VERSION = 21400 };

#define WEAK __attribute__((weak))
extern "C" {
WEAK const char *ncclGetErrorString(int result);
WEAK const char *ncclGetLastError(ncclComm_t comm);
WEAK int ncclGetUniqueId(ncclUniqueId *id);
WEAK int ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank,
                                ncclConfig_t *config);
WEAK int ncclCommGetAsyncError(ncclComm_t comm, int *error);
WEAK int ncclCommAbort(ncclComm_t comm);
WEAK int ncclAllReduce(const void *send, void *receive, size_t count, int type, int operation,
                       ncclComm_t comm, cudaStream_t stream);
WEAK int ncclReduceScatter(const void *send, void *receive, size_t receive_count, int type,
                           int operation, ncclComm_t comm, cudaStream_t stream);
WEAK int ncclAllGather(const void *send, void *receive, size_t send_count, int type,
                       ncclComm_t comm, cudaStream_t stream);
WEAK int ncclBroadcast(const void *send, void *receive, size_t count, int type, int root,
                       ncclComm_t comm, cudaStream_t stream);
}

/* Opens the first file that matches a pattern. */
static void *open_matching(const char *pattern) {
    glob_t found;
    void *library = NULL;
    if (glob(pattern, 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc && !library; i++)
            library = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
    globfree(&found);
    return library;
}

/* libnccl.so.2: by name, as the system knows it; beside cuBLASLt, which is loaded; where pip puts
   it beside pip's cuBLASLt; in the packages of the active Python environment and of the system's
   Python. NULL: nowhere. */
static void *nccl_open(void) {
    static void *library;
    static const char name[] = "libnccl.so.2", pip[] = "python3*/*-packages/nvidia/nccl/lib";
    char path[4096];
    Dl_info loaded;
    if (library || (library = dlopen(name, RTLD_NOW | RTLD_LOCAL))) return library;
    if (dladdr((void *)&cublasLtCreate, &loaded) && strrchr(loaded.dli_fname, '/')) {
        int folder = (int)(strrchr(loaded.dli_fname, '/') - loaded.dli_fname);
        snprintf(path, sizeof path, "%.*s/%s", folder, loaded.dli_fname, name);
        if ((library = open_matching(path))) return library;
        snprintf(path, sizeof path, "%.*s/../../nccl/lib/%s", folder, loaded.dli_fname, name);
        if ((library = open_matching(path))) return library;
    }
    const char *roots[] = {getenv("VIRTUAL_ENV"), getenv("CONDA_PREFIX"), "/usr/local", "/usr"};
    for (const char *root : roots) {
        snprintf(path, sizeof path, "%s/lib/%s/%s", root ? root : "", pip, name);
        if (root && (library = open_matching(path))) return library;
    }
    return NULL;
}

/* The function called `name`: `linked`, or that of the library, which stays open; NULL with one
   sentence in `why`. */
static void *nccl_look(void *linked, const char *name, char *why, size_t capacity) {
    if (linked) return linked;
    void *library = nccl_open();
    void *function = library ? dlsym(library, name) : NULL;
    if (!library)
        snprintf(why, capacity, "several ranks need NCCL, and there is no libnccl.so.2 here: "
                 "install libnccl2 or pip's nvidia-nccl, or use one GPU");
    else if (!function)
        snprintf(why, capacity, "libnccl.so.2 has no %s: it is too old", name);
    return function;
}

static void *nccl_find(void *linked, const char *name) {
    char why[256];
    void *function = nccl_look(linked, name, why, sizeof why);
    if (!function) cuda_die("%s", why);
    return function;
}
#define NCCL_FIND(function) ((decltype(&function))nccl_find((void *)function, #function))

/* ---- the communicator ------------------------------------------------------------------------ */

/* An operation whose times are not read so far. Its place is used again only when it has ended. */
enum { PENDING = 256 };
struct Pending {
    const char *kind;
    size_t bytes;
    long long step;
    double patience;
    bool waited;                /* the compute stream has waited for it */
    cudaEvent_t begin, end;     /* on the communication stream */
    cudaEvent_t from, to;       /* on the compute stream, round its wait */
};

/* Written by the communication stream, read by the thread that watches. */
struct Progress {
    unsigned long long begun, ended; /* numbers of operations, from 1 */
};

static struct {
    ncclComm_t comm;            /* NULL: one rank, no communicator */
    int rank, ranks;
    long long step;
    double patience;
    cudaEvent_t reached;
    unsigned long long operations, read; /* begun by the host; times of so many are in counts */
    struct Pending pending[PENDING];     /* number n is at n % PENDING */
    unsigned long long number_of[EVENTS]; /* the operation that records an event; 0: none */
    struct CommCounts counts;
    volatile struct Progress *progress;
} world;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void pause_for(long nanoseconds) {
    const struct timespec pause = {0, nanoseconds};
    nanosleep(&pause, NULL);
}

/* What a person can do about an error. */
static const char *hint_for(int error) {
    return error == ncclInvalidUsage ? "; each rank needs a GPU of its own (--device)" : "";
}

/* "step 12: rank 1 of 4 waits in reduce_scatter number 77 (4096 bytes)". */
static void describe(char *text, size_t capacity, unsigned long long number) {
    const struct Pending *p = &world.pending[number % PENDING];
    if (number)
        snprintf(text, capacity, "step %lld: rank %d of %d waits in %s number %llu (%zu bytes)",
                 p->step, world.rank, world.ranks, p->kind, number, p->bytes);
    else
        snprintf(text, capacity, "step %lld: rank %d of %d", world.step, world.rank, world.ranks);
}

/* NCCL's own text says more. */
__attribute__((noreturn)) static void die_of(int error, const char *where) {
    const char *detail = NCCL_FIND(ncclGetLastError)(world.comm);
    cuda_die("%s: %s%s%s%s", where, NCCL_FIND(ncclGetErrorString)(error),
             detail && detail[0] ? ": " : "", detail ? detail : "", hint_for(error));
}

/* A call to a communicator that does not block has returned `error`: waits until it is done. */
static void settle(int error, const char *function) {
    char where[256];
    double since = now();
    while (error == ncclInProgress) {
        int asked = NCCL_FIND(ncclCommGetAsyncError)(world.comm, &error);
        if (asked != ncclSuccess) error = asked;
        if (error != ncclInProgress) break;
        if (now() - since > world.patience) {
            describe(where, sizeof where, world.operations);
            if (world.operations)
                cuda_die("%s for more than %.0f s: another rank did not come", where,
                         world.patience);
            cuda_die("rank %d of %d: the other ranks did not come within %.0f s", world.rank,
                     world.ranks, world.patience);
        }
        pause_for(200000);
    }
    if (error == ncclSuccess) return;
    snprintf(where, sizeof where, "rank %d of %d: %s", world.rank, world.ranks, function);
    die_of(error, where);
}
#define NCCL_CALL(function, ...) settle(NCCL_FIND(function)(__VA_ARGS__), #function)

/* ---- the thread that watches ----------------------------------------------------------------- */

static struct {
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool running, stop;
} watchdog = {0, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, false};

static void end_now(int) { _exit(1); }

/* Ends the program from the watching thread, while the main one waits for a device: what exit()
   calls may wait for that too, so it has some seconds. */
__attribute__((noreturn)) static void end_from_here(int error, double patience,
                                                    unsigned long long number) {
    char where[256];
    describe(where, sizeof where, number);
    signal(SIGALRM, end_now);
    alarm(5);
    if (error) die_of(error, where);
    cuda_die("%s for more than %.0f s: another rank did not come", where, patience);
}

static bool watch_again(void) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50000000;
    if (until.tv_nsec >= 1000000000) until.tv_nsec -= 1000000000, until.tv_sec++;
    pthread_mutex_lock(&watchdog.mutex);
    if (!watchdog.stop) pthread_cond_timedwait(&watchdog.wake, &watchdog.mutex, &until);
    bool stop = watchdog.stop;
    pthread_mutex_unlock(&watchdog.mutex);
    return !stop;
}

static void *watch(void *) {
    unsigned long long seen = 0;
    double since = 0;
    while (watch_again()) {
        unsigned long long ended = world.progress->ended, begun = world.progress->begun;
        unsigned long long running = begun > ended ? begun : 0;
        int error = ncclSuccess, asked = NCCL_FIND(ncclCommGetAsyncError)(world.comm, &error);
        if (asked != ncclSuccess) error = asked;
        if (error != ncclSuccess && error != ncclInProgress) end_from_here(error, 0, running);
        if (running != seen) seen = running, since = now();
        double patience = world.pending[running % PENDING].patience;
        if (running && now() - since > patience) end_from_here(0, patience, running);
    }
    return NULL;
}

/* At exit: the thread ends, and the others are told where this is no good end. */
static void at_end(int status, void *) {
    if (!world.comm) return;
    if (watchdog.running && !pthread_equal(watchdog.thread, pthread_self())) {
        pthread_mutex_lock(&watchdog.mutex);
        watchdog.stop = true;
        pthread_cond_signal(&watchdog.wake);
        pthread_mutex_unlock(&watchdog.mutex);
        pthread_join(watchdog.thread, NULL);
    }
    if (status == 0) return;
    signal(SIGALRM, end_now);
    alarm(5);
    NCCL_FIND(ncclCommAbort)(world.comm);
}

static void start_watchdog(void) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the main thread's */
    if (pthread_create(&watchdog.thread, NULL, watch, NULL) != 0)
        cuda_die("cannot start the thread that watches the communication");
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    watchdog.running = true;
}

/* ---- opening --------------------------------------------------------------------------------- */

static void comm_id(void *id, const char *meeting) {
    ncclUniqueId made;
    if (meeting) setenv("NCCL_COMM_ID", meeting, 1); /* NCCL's way to meet at an address */
    int error = NCCL_FIND(ncclGetUniqueId)(&made);
    if (error != ncclSuccess)
        cuda_die("ncclGetUniqueId: %s", NCCL_FIND(ncclGetErrorString)(error));
    memcpy(id, &made, sizeof made);
}

/* For the process that starts the ranks (backends.h): id [128] is a new meeting point, and no
   device is opened. */
extern "C" __attribute__((visibility("default"))) const char *backend_meeting(void *id) {
    static char why[256];
    ncclUniqueId made;
    void *make = nccl_look((void *)ncclGetUniqueId, "ncclGetUniqueId", why, sizeof why);
    void *name = nccl_look((void *)ncclGetErrorString, "ncclGetErrorString", why, sizeof why);
    if (!make || !name) return why;
    int error = ((decltype(&ncclGetUniqueId))make)(&made);
    if (error == ncclSuccess) return memcpy(id, &made, sizeof made), (const char *)NULL;
    snprintf(why, sizeof why, "ncclGetUniqueId: %s",
             ((decltype(&ncclGetErrorString))name)(error));
    return why;
}

static bool is_given(const void *id) {
    static const ncclUniqueId none = {{0}};
    return id && memcmp(id, &none, sizeof none) != 0;
}

static void comm_open(int rank, int ranks, const void *id, double patience) {
    ncclUniqueId given;
    ncclConfig_t config = {sizeof config, NCCL_MAGIC, NCCL_VERSION, 0, 0};
    if (ranks == 1 && !is_given(id)) return;
    memcpy(&given, id, sizeof given);
    world.rank = rank, world.ranks = ranks, world.patience = patience;
    CUDA_CHECK(cudaStreamCreateWithFlags(&cuda.comm_stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&world.reached, cudaEventDisableTiming));
    for (struct Pending &p : world.pending)
        for (cudaEvent_t *event : {&p.begin, &p.end, &p.from, &p.to})
            CUDA_CHECK(cudaEventCreate(event));
    CUDA_CHECK(cudaMallocHost((void **)&world.progress, sizeof *world.progress));
    memset((void *)world.progress, 0, sizeof *world.progress);
    on_exit(at_end, NULL);
    NCCL_CALL(ncclCommInitRankConfig, &world.comm, ranks, given, rank, &config);
    start_watchdog();
}

static void comm_expect(int64_t step, double patience) {
    world.step = step, world.patience = patience;
}

/* ---- one operation --------------------------------------------------------------------------- */

static double elapsed(cudaEvent_t from, cudaEvent_t to) {
    float milliseconds = 0;
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, from, to));
    return milliseconds * 1e-3;
}

/* Takes the times of the oldest operation whose times were not read; waits for it. */
static void read_times(void) {
    struct Pending *p = &world.pending[++world.read % PENDING];
    CUDA_CHECK(cudaEventSynchronize(p->end));
    world.counts.seconds += elapsed(p->begin, p->end);
    if (!p->waited) return;
    CUDA_CHECK(cudaEventSynchronize(p->to));
    world.counts.exposed += elapsed(p->from, p->to);
}

static void comm_counts(struct CommCounts *counts) {
    while (world.read < world.operations) read_times();
    *counts = world.counts;
}

__global__ void progress_kernel(volatile unsigned long long *out, unsigned long long number) {
    *out = number;
    __threadfence_system();
}

static void note_progress(volatile unsigned long long *out) {
    progress_kernel<<<1, 1, 0, cuda.comm_stream>>>(out, world.operations);
    CUDA_CHECK_LAUNCH();
}

static void copy_unless_there(void *out, const void *in, size_t bytes) {
    if (out == in) return;
    CUDA_CHECK(cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToDevice, cuda.stream));
}

/* The communication stream goes on when event `after` is there, with an operation over `bytes` in
   all of which this rank sends `sent`. */
static void begin(const char *kind, size_t bytes, double sent, int after) {
    if (world.operations - world.read == PENDING - 1) read_times();
    struct Pending *p = &world.pending[++world.operations % PENDING];
    p->kind = kind, p->bytes = bytes, p->step = world.step, p->patience = world.patience;
    p->waited = false;
    world.counts.calls++;
    world.counts.bytes += sent;
    cudaEvent_t event = after < 0 ? world.reached : cuda_event(after);
    if (after < 0) CUDA_CHECK(cudaEventRecord(event, cuda.stream));
    CUDA_CHECK(cudaStreamWaitEvent(cuda.comm_stream, event, 0));
    note_progress(&world.progress->begun);
    CUDA_CHECK(cudaEventRecord(p->begin, cuda.comm_stream));
}

/* The compute stream waits for `event`, which operation `number` records. */
static void wait_for(cudaEvent_t event, unsigned long long number) {
    struct Pending *p = &world.pending[number % PENDING];
    bool timed = number > world.read && !p->waited && !cuda.recording;
    if (timed) CUDA_CHECK(cudaEventRecord(p->from, cuda.stream));
    CUDA_CHECK(cudaStreamWaitEvent(cuda.stream, event, 0));
    if (timed) CUDA_CHECK(cudaEventRecord(p->to, cuda.stream));
    if (timed) p->waited = true;
}

static void end(int done) {
    struct Pending *p = &world.pending[world.operations % PENDING];
    CUDA_CHECK(cudaEventRecord(p->end, cuda.comm_stream));
    note_progress(&world.progress->ended);
    cudaEvent_t event = done < 0 ? world.reached : cuda_event(done);
    CUDA_CHECK(cudaEventRecord(event, cuda.comm_stream));
    if (done < 0) wait_for(event, world.operations);
    else world.number_of[done] = world.operations;
}

static void event_record(int event) {
    world.number_of[event] = 0;
    CUDA_CHECK(cudaEventRecord(cuda_event(event), cuda.stream));
}

static void event_wait(int event) { wait_for(cuda_event(event), world.number_of[event]); }

/* The part of a whole that belongs to the other ranks. */
static double others(double whole) { return whole * (world.ranks - 1) / world.ranks; }

/* ---- the slots ------------------------------------------------------------------------------- */

static void all_reduce(float *x, size_t n, int after, int done) {
    if (!world.comm) return;
    begin("all_reduce", n * sizeof *x, 2 * others((double)n * sizeof *x), after);
    NCCL_CALL(ncclAllReduce, x, x, n, ncclFloat32, ncclSum, world.comm, cuda.comm_stream);
    end(done);
}

enum { THREADS = 256 };

__global__ void narrow_kernel(__nv_bfloat16 *out, const float *in, size_t n) {
    size_t stride = (size_t)gridDim.x * THREADS;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += stride)
        out[i] = __float2bfloat16(in[i]);
}

__global__ void widen_kernel(float *out, const __nv_bfloat16 *in, size_t n) {
    size_t stride = (size_t)gridDim.x * THREADS;
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += stride)
        out[i] = __bfloat162float(in[i]);
}

static unsigned blocks_for(size_t n) {
    size_t blocks = (n + THREADS - 1) / THREADS, most = (size_t)cuda.multiprocessors * 4;
    return (unsigned)(blocks < most ? blocks : most);
}

static void reduce_scatter_narrow(float *out, const float *in, size_t each, __nv_bfloat16 *narrow) {
    __nv_bfloat16 *mine = narrow + (size_t)world.rank * each;
    size_t all = (size_t)world.ranks * each;
    narrow_kernel<<<blocks_for(all), THREADS, 0, cuda.comm_stream>>>(narrow, in, all);
    CUDA_CHECK_LAUNCH();
    NCCL_CALL(ncclReduceScatter, narrow, mine, each, ncclBfloat16, ncclSum, world.comm,
              cuda.comm_stream);
    widen_kernel<<<blocks_for(each), THREADS, 0, cuda.comm_stream>>>(out, mine, each);
    CUDA_CHECK_LAUNCH();
}

static void reduce_scatter(float *out, const float *in, size_t each, void *narrow, int after,
                           int done) {
    if (!world.comm) {
        copy_unless_there(out, in, each * sizeof *out);
        return;
    }
    size_t bytes = (size_t)world.ranks * each * (narrow ? 2 : 4);
    begin(narrow ? "reduce_scatter bf16" : "reduce_scatter", bytes, others((double)bytes), after);
    if (narrow)
        reduce_scatter_narrow(out, in, each, (__nv_bfloat16 *)narrow);
    else
        NCCL_CALL(ncclReduceScatter, in, out, each, ncclFloat32, ncclSum, world.comm,
                  cuda.comm_stream);
    end(done);
}

static void all_gather(void *out, const void *in, size_t bytes_each, int after, int done) {
    if (!world.comm) {
        copy_unless_there(out, in, bytes_each);
        return;
    }
    size_t bytes = (size_t)world.ranks * bytes_each;
    begin("all_gather", bytes, others((double)bytes), after);
    NCCL_CALL(ncclAllGather, in, out, bytes_each, ncclInt8, world.comm, cuda.comm_stream);
    end(done);
}

static void broadcast(void *x, size_t bytes, int root, int after, int done) {
    if (!world.comm) return;
    begin("broadcast", bytes, world.rank == root ? (double)bytes : 0, after);
    NCCL_CALL(ncclBroadcast, x, x, bytes, ncclInt8, root, world.comm, cuda.comm_stream);
    end(done);
}

static void fill(struct Ops *ops) {
    ops->event_record = event_record;
    ops->event_wait = event_wait;
    ops->comm_id = comm_id;
    ops->comm_open = comm_open;
    ops->comm_expect = comm_expect;
    ops->comm_counts = comm_counts;
    ops->all_reduce = all_reduce;
    ops->reduce_scatter = reduce_scatter;
    ops->all_gather = all_gather;
    ops->broadcast = broadcast;
}

extern const struct KernelFile cuda_comm = {"comm", fill, no_workspace};
