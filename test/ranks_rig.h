/* Tests of several ranks: a function runs in each of N processes, which meet over the backend's
   communication, and every rank's result comes back to the test.

   The processes are forked before any backend is opened in them: neither CUDA nor OpenMP survives a
   fork. So a test that uses this must not open a backend itself. */
#ifndef RANKS_RIG_H
#define RANKS_RIG_H

#include <errno.h>
#include <omp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "child.h"
#include "test.h"
#include "../llmc/kernels/backends.h"
#include "../llmc/world.h"

enum { RIG_RANKS = 8, RIG_SECONDS = 300 };

/* In a rank, where cmocka's assertions would not end the process. */
#define RANK_CHECK(condition)                                                                 \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: rank %d of %d: %s\n", __FILE__, __LINE__,                 \
                    rig_world.rank, rig_world.size, #condition);                              \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

/* In a rank: its world, and the backend it has opened. */
static struct World rig_world;
static const struct Ops *rig_ops;

/* The bytes that a rank returned; the test frees them. */
struct RankResult {
    char *bytes;
    size_t length;
};

/* What a rank gives back. Its memory is copied when the function returns. */
static struct RankResult rig_result;

static inline void rig_return(const void *bytes, size_t length) {
    rig_result.bytes = malloc(length + 1);
    memcpy(rig_result.bytes, bytes, length);
    rig_result.length = length;
}

static inline void rig_write(int file, const void *bytes, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t n = write(file, (const char *)bytes + done, length - done);
        if (n <= 0) _exit(1);
        done += (size_t)n;
    }
}

/* The body of a rank's process. id_pipe: rank 0 hands the meeting point to the others. */
static inline void rig_rank(int rank, int ranks, const char *backend, const char *dtype,
                            double timeout, int (*id_pipe)[2], int out,
                            void (*body)(void *context), void *context) {
    char id[128] = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    __lsan_disable();   /* a rank frees nothing before it ends */
    alarm(RIG_SECONDS);
    omp_set_num_threads(1);   /* OMP_NUM_THREADS was read when the program was loaded */
    rig_world.rank = rank, rig_world.size = ranks;
    rig_ops = ops_open(backend, dtype, strcmp(backend, "cuda") == 0 ? rank : 0);
    if (rank == 0 && ranks > 1) {
        rig_ops->comm_id(id, NULL);
        for (int r = 1; r < ranks; r++) rig_write(id_pipe[r][1], id, sizeof id);
    } else if (ranks > 1) {
        RANK_CHECK(read(id_pipe[rank][0], id, sizeof id) == sizeof id);
    }
    world_open(&rig_world, rig_ops, rank, ranks, id, timeout);
    body(context);
    rig_write(out, rig_result.bytes ? rig_result.bytes : "", rig_result.length);
    close(out);
    world_close(&rig_world);
    exit(0);
}

/* Reads a pipe to its end. */
static inline struct RankResult rig_read(int file) {
    struct RankResult result = {malloc(1 << 16), 0};
    size_t capacity = 1 << 16;
    for (ssize_t n; (n = read(file, result.bytes + result.length, capacity - result.length)) > 0;) {
        result.length += (size_t)n;
        if (result.length == capacity) result.bytes = realloc(result.bytes, capacity *= 2);
    }
    close(file);
    return result;
}

/* Runs body in each of `ranks` processes. codes [ranks]: their exit codes, 128 + a signal's number;
   NULL: all must end well. result [ranks]: what each returned, or NULL. When one rank fails and no
   codes are asked for, the others are ended, who would wait for it. */
static inline void run_ranks(struct RankResult *result, int *codes, int ranks, const char *backend,
                             const char *dtype, double timeout, void (*body)(void *context),
                             void *context) {
    int id_pipe[RIG_RANKS][2], out[RIG_RANKS][2], failed = 0;
    pid_t child[RIG_RANKS];
    assert_true(ranks <= RIG_RANKS);
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(pipe(id_pipe[r]), 0);
        assert_int_equal(pipe(out[r]), 0);
    }
    fflush(NULL);
    for (int r = 0; r < ranks; r++) {
        child[r] = fork();
        assert_true(child[r] >= 0);
        if (child[r] > 0) continue;
        for (int i = 0; i < ranks; i++) {
            close(out[i][0]);
            if (i != r) close(out[i][1]);
        }
        rig_rank(r, ranks, backend, dtype, timeout, id_pipe, out[r][1], body, context);
    }
    for (int r = 0; r < ranks; r++) close(out[r][1]);
    for (int r = 0; r < ranks; r++) {
        struct RankResult read = rig_read(out[r][0]);
        if (result) result[r] = read;
        else free(read.bytes);
    }
    for (int ended = 0; ended < ranks; ended++) {
        int status, code;
        pid_t pid = wait(&status);
        code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        for (int r = 0; r < ranks; r++) {
            if (child[r] != pid) continue;
            child[r] = 0;
            if (codes) codes[r] = code;
        }
        failed += code != 0;
        for (int r = 0; code != 0 && !codes && r < ranks; r++)
            if (child[r]) kill(child[r], SIGKILL);
    }
    for (int r = 0; r < ranks; r++) close(id_pipe[r][0]), close(id_pipe[r][1]);
    if (failed && !codes) fail_msg("%d of %d ranks failed", failed, ranks);
}

#endif
