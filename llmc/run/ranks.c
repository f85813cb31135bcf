/* Which rank this process is: by the environment, or by the options. */
#include "ranks.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "../base/check.h"
#include "../base/text.h"
#include "../kernels/backends.h"
#include "directory.h"

/* ---- the environment ------------------------------------------------------------------------- */

/* What starts programs, and how it tells them who they are. mpirun may use srun to start its own
   helpers, so its variables are looked for first. `size` of 1 is no world. */
static const struct Launcher {
    const char *name, *rank, *size, *local, *on_node;
} launchers[] = {
    {"torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
    {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
     "OMPI_COMM_WORLD_LOCAL_SIZE"},
    {"mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
    /* a batch script outside srun has a SLURM_PROCID too, but is no step of several tasks */
    {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL},
};

/* A variable as a number of [0, limit); -1: it is not there. */
static int number_of(const char *name, int limit) {
    const char *text = name ? getenv(name) : NULL;
    char *end;
    if (!text || !*text) return -1;
    long number = strtol(text, &end, 10);
    if (*end || number < 0 || number >= limit)
        die_input("%s=%s in the environment is no number from 0 to %d; unset it to train in one "
                  "process", name, quote(text), limit - 1);
    return (int)number;
}

static const struct Launcher *find_launcher(void) {
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) {
        const struct Launcher *l = &launchers[i];
        const char *rank = getenv(l->rank), *size = getenv(l->size);
        if (!rank || !*rank || !size || number_of(l->size, 1 << 20) < 2) continue;
        if (strcmp(l->rank, "PMI_RANK") != 0 || getenv(l->local)) return l;
    }
    return NULL;
}

/* Does a machine have all of them? */
static bool on_one_machine(const struct Launcher *l, int size) {
    if (l->on_node) return number_of(l->on_node, 1 << 20) == size;
    return number_of("SLURM_STEP_NUM_NODES", 1 << 20) == 1;
}

/* A port that two jobs on a machine do not both take: MASTER_PORT + 1, since MASTER_PORT is in use
   by torchrun itself; else by the job's number. */
static int meeting_port(const struct Options *o) {
    int port = number_of("MASTER_PORT", 65535), job = number_of("SLURM_JOB_ID", INT_MAX);
    int step = number_of("SLURM_STEP_ID", INT_MAX);
    if (o->comm_port) return (int)o->comm_port;
    if (port > 0) return port + 1;
    return job < 0 ? 29501 : 15000 + (int)((7LL * job + (step > 0 ? step : 0)) % 15000);
}

static void find_meeting(struct Ranks *ranks, const struct Launcher *l, const struct Options *o) {
    const char *host = getenv("MASTER_ADDR");
    if (!host || !*host) {
        if (!on_one_machine(l, ranks->size))
            die_input("rank %d of %d, started by %s: MASTER_ADDR is not in the environment; set it "
                      "to the name of rank 0's machine", ranks->rank, ranks->size, l->name);
        host = "127.0.0.1";
    }
    if (snprintf(ranks->meeting, sizeof ranks->meeting, "%s:%d", host, meeting_port(o)) >=
        (int)sizeof ranks->meeting)
        die_input("MASTER_ADDR=%s in the environment is too long", quote(host));
}

/* The user's scorer may be a program that looks for them too, and is no rank. */
static void forget_launcher(const struct Launcher *l) {
    unsetenv(l->rank), unsetenv(l->size), unsetenv(l->local);
    unsetenv("POLICYC_MEETING");
}

static struct Ranks of_launcher(const struct Launcher *l, const struct Options *o) {
    int size = number_of(l->size, 1 << 20), rank = number_of(l->rank, size);
    int local = number_of(l->local, size);
    if (local < 0)
        die_input("rank %d of %d, started by %s: %s is not in the environment; set it to the "
                  "process' number on its machine", rank, size, l->name, l->local);
    struct Ranks ranks = {.rank = rank, .size = size, .local = local, .launcher = l->name};
    if (o->gpus[0])
        die_input("--gpus %s: %s has started %d ranks already; leave --gpus out", o->gpus, l->name,
                  size);
    if (o->ranks && o->ranks != size)
        die_input("--ranks %lld: %s has started %d; leave --ranks out", (long long)o->ranks,
                  l->name, size);
    find_meeting(&ranks, l, o);
    forget_launcher(l);
    return ranks;
}

/* One that ranks_launch has started. */
static struct Ranks of_parent(const char *id, const struct Options *o) {
    int size = number_of("WORLD_SIZE", RANKS_MOST + 1), rank = number_of("RANK", RANKS_MOST);
    struct Ranks ranks = {.rank = rank, .size = size, .local = rank,
                          .launcher = o->gpus[0] ? "--gpus" : "--ranks"};
    bool whole = strlen(id) == 2 * RANKS_ID && rank >= 0 && size > rank;
    for (int i = 0; i < RANKS_ID && whole; i++) {
        unsigned byte = 0;
        whole = sscanf(id + 2 * i, "%2x", &byte) == 1;
        ranks.id[i] = (unsigned char)byte;
    }
    if (!whole) die_input("POLICYC_MEETING is in the environment and is not for you to set");
    forget_launcher(&launchers[0]);
    return ranks;
}

/* ---- the options ----------------------------------------------------------------------------- */

struct Devices {
    int count, number[RANKS_MOST];
};

static _Noreturn void die_gpus(const char *word, const char *why) {
    die_input("--gpus %s: %s; it is all, how many, or their numbers as 0,2,3", quote(word), why);
}

/* --gpus N and all: the first ones. all gives `present`, those that are there. */
static struct Devices parse_gpus(const char *word, int present) {
    struct Devices d = {0};
    char *end;
    bool listed = strchr(word, ',') != NULL;
    if (strcmp(word, "all") == 0) {
        d.count = present < RANKS_MOST ? present : RANKS_MOST;
        for (int i = 0; i < d.count; i++) d.number[i] = i;
        return d;
    }
    for (const char *at = word;; at = end + 1) {
        long number = *at >= '0' && *at <= '9' ? strtol(at, &end, 10) : -1;
        if (number < 0 || number > 1023 || (*end && *end != ','))
            die_gpus(word, "that is no list of numbers");
        for (int i = 0; i < d.count; i++)
            if (d.number[i] == number) die_gpus(word, "a GPU is there twice");
        if (d.count == RANKS_MOST) die_gpus(word, "at most 64");
        d.number[d.count++] = (int)number;
        if (!*end) break;
    }
    if (listed) return d;
    int count = d.number[0];
    if (count == 0) die_gpus(word, "from 1 on (--device 0 is the first one alone)");
    if (count > RANKS_MOST) die_gpus(word, "at most 64");
    d.count = count;
    for (int i = 0; i < count; i++) d.number[i] = i;
    return d;
}

const char *ranks_backend(const struct Options *o) {
    if (strcmp(o->backend, "auto") != 0) return o->backend;
    return o->gpus[0] ? "cuda" : o->ranks > 1 ? "cpu" : "auto";
}

int ranks_device(const struct Ranks *ranks, const struct Options *o) {
    if (o->device >= 0) return (int)o->device;
    if (o->gpus[0] && strcmp(o->gpus, "all") != 0 && !o->dry_run)   /* a plan may be of more */
        return parse_gpus(o->gpus, 0).number[ranks->local];
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");   /* each may be shown its own only */
    return visible && *visible && !strchr(visible, ',') ? 0 : ranks->local;
}

/* What cannot be meant, with several ranks or with the options of several. */
static void refuse(const struct Options *o, bool several) {
    bool one = o->score[0] || o->tokenize[0] || o->detokenize[0];
    const char *what = o->score[0] ? "score" : o->tokenize[0] ? "tokenize" : "detokenize";
    if (!o->zero && strcmp(o->grad_comm, "bf16") == 0)
        die_input("--grad-comm bf16 is for gradients that are scattered: leave out --zero 0");
    if (o->gpus[0] && strcmp(o->backend, "cpu") == 0)
        die_input("--gpus %s with --backend cpu: on the CPU it is --ranks N", o->gpus);
    if (o->ranks > 1 && strcmp(o->backend, "cuda") == 0)
        die_input("--ranks %lld with --backend cuda: on GPUs it is --gpus N", (long long)o->ranks);
    if (o->gpus[0] && o->ranks)
        die_input("--gpus %s and --ranks %lld: there is one rank for each GPU; leave --ranks out",
                  o->gpus, (long long)o->ranks);
    if (several && one)
        die_input("--%s is work for one process, and here are several ranks; leave out --gpus and "
                  "--ranks, or start it without a launcher", what);
}

/* How many ranks this process is to start; 1: it works itself. */
static int wanted(const struct Options *o) {
    const char *backend = ranks_backend(o);
    int size = (int)o->ranks;
    if (o->gpus[0]) {
        struct Devices d = parse_gpus(o->gpus, 0);   /* before a device is asked */
        int present = backend_devices(backend);
        if (present == 0)
            die_input("--gpus %s: backend %s finds no device here", o->gpus, backend);
        if (strcmp(o->gpus, "all") == 0) d = parse_gpus(o->gpus, present);
        for (int i = 0; i < d.count; i++)
            if (d.number[i] >= present)
                die_input("--gpus %s: there %s only %d here, numbered from 0", o->gpus,
                          present == 1 ? "is" : "are", present);
        size = d.count;
    }
    if (size > 1 && o->device >= 0)
        die_input("--device %lld is for one process; --gpus takes a list", (long long)o->device);
    return size > 1 ? size : 1;
}

/* Might the line ask for several ranks? Most lines do not, and are then read once only: a config
   file may be a pipe. */
static bool may_ask(char **argv) {
    for (int i = 1; argv[i]; i++) {
        const char *word = argv[i], *file;
        struct stat status;
        if (strncmp(word, "--gpus", 6) == 0 || strncmp(word, "--ranks", 7) == 0 ||
            strncmp(word, "--grad-comm", 11) == 0) return true;
        if (strncmp(word, "--config", 8) != 0) continue;
        file = word[8] == '=' ? word + 9 : argv[i + 1];
        if (file && stat(file, &status) == 0 && S_ISREG(status.st_mode)) return true;
    }
    return false;
}

struct Ranks ranks_begin(int argc, char **argv) {
    struct Options o, before;
    struct Ranks ranks = {.size = 1};
    const char *id = getenv("POLICYC_MEETING");
    const struct Launcher *launcher = id ? NULL : find_launcher();
    if (!id && !launcher) {
        int local = getenv("RANK") ? number_of("LOCAL_RANK", 1 << 20) : 0;
        ranks.local = local > 0 ? local : 0;
        if (!may_ask(argv)) return ranks;
    }
    o = directory_options(argc, argv, &before, false);
    if (id) ranks = of_parent(id, &o);
    else if (launcher) ranks = of_launcher(launcher, &o);
    if (ranks.size > 1) check_rank(ranks.rank);
    refuse(&o, ranks.size > 1 || o.ranks > 1 || (o.gpus[0] && strcmp(o.gpus, "1") != 0));
    if (ranks.size > 1 || o.dry_run) return ranks;
    int size = wanted(&o);
    if (size == 1) return ranks;
    unsigned char meeting[RANKS_ID] = {0};
    backend_meeting(ranks_backend(&o), meeting);
    ranks_launch(argv, size, meeting, ranks_backend(&o));
}

void ranks_open(struct World *world, const struct Ranks *ranks, const struct Options *o,
                const struct Ops *ops) {
    unsigned char id[RANKS_ID];
    memcpy(id, ranks->id, sizeof id);
    if (ranks->meeting[0]) ops->comm_id(id, ranks->meeting);
    if (ranks->size == 1 && strcmp(o->comm, "nccl") == 0) {
        ops->comm_id(id, NULL);
        ops->comm_open(0, 1, id, o->comm_timeout);
    }
    world_open(world, ops, ranks->rank, ranks->size, id, o->comm_timeout);
}
