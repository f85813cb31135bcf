/* Ranks that fail, at the level of the slots: one that does something else, that dies, stands still
   or never comes. All others end with exit code 1, saying where they waited, and leave no shared
   memory. One whose end can be seen is not waited for: there the patience is longer than the test
   may last.

   The processes are forked before any backend is opened. */
#include <glob.h>
#include <signal.h>
#include <sys/prctl.h>
#include "test.h"
#include "../llmc/base/check.h"
#include "../llmc/kernels/backends.h"
#include "child.h"

enum { RANKS = 3, WRONG = 1, ID_BYTES = 128, TEST_SECONDS = 200, LONG = 1000 };
static const char *backend = "cpu", *dtype = "auto";

static const struct Ops *ops;
static float *x;
static const size_t n = 1000;

static struct {
    pid_t process[RANKS];
    int code[RANKS];        /* 128 + the signal's number */
    char said[RANKS][8192];
} run;

/* What a rank does. `patience` is that of comm_open and of step 12, which follows. */
struct Case {
    void (*body)(int rank);
    double patience;
    bool comes;             /* false: rank WRONG never meets the others */
    bool stays;             /* rank WRONG does not end by itself */
    const char *address;
};

static void run_rank(int rank, const struct Case *test, int (*pipes)[2]) {
    char id[ID_BYTES] = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    alarm(TEST_SECONDS);
    __lsan_disable();
    ops = ops_open(backend, dtype, 0);
    if (test->address) {
        ops->comm_id(id, test->address);
    } else if (rank == 0) {
        ops->comm_id(id, NULL);
        for (int r = 1; r < RANKS; r++)
            if (write(pipes[r][1], id, sizeof id) != sizeof id) _exit(99);
    } else if (read(pipes[rank][0], id, sizeof id) != sizeof id) {
        _exit(99);
    }
    if (rank == WRONG && !test->comes) {
        pause();
        _exit(99);
    }
    ops->comm_open(rank, RANKS, id, test->patience);
    ops->comm_expect(12, test->patience);
    x = ops->alloc(RANKS * n * sizeof *x);
    ops->fill_zero(x, RANKS * n * sizeof *x);
    ops->all_reduce(x, n, -1, -1);
    ops->sync();
    test->body(rank);
    ops->sync();
    exit(0);
}

static void start_rank(int r, const struct Case *test, int (*pipes)[2], int out) {
    fflush(NULL);
    run.process[r] = fork();
    assert_true(run.process[r] >= 0);
    if (run.process[r] > 0) return;
    dup2(out, STDOUT_FILENO), dup2(out, STDERR_FILENO);
    run_rank(r, test, pipes);
}

/* The others are waited for first: until then, rank WRONG is a zombie if it has ended. */
static void end_ranks(const struct Case *test) {
    for (int turn = 0; turn < RANKS; turn++) {
        int r = turn < WRONG ? turn : turn + 1 < RANKS ? turn + 1 : WRONG, status;
        if (r == WRONG && test->stays) kill(run.process[r], SIGKILL);
        assert_int_equal(waitpid(run.process[r], &status, 0), run.process[r]);
        run.code[r] = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
}

/* No shared memory of rank 0's is left. */
static void check_nothing_left(void) {
    static const char *const names[] = {"/dev/shm/policyc-%d-*", "/dev/shm/cudasim.%d.*"};
    char pattern[64];
    glob_t found;
    for (int i = 0; i < 2; i++) {
        snprintf(pattern, sizeof pattern, names[i], (int)run.process[0]);
        assert_int_equal(glob(pattern, 0, NULL, &found), GLOB_NOMATCH);
    }
}

static void run_case(struct Case test) {
    int pipes[RANKS][2], out[RANKS][2];
    for (int r = 0; r < RANKS; r++) {
        assert_int_equal(pipe(pipes[r]), 0);
        assert_int_equal(pipe(out[r]), 0);
    }
    for (int r = 0; r < RANKS; r++) start_rank(r, &test, pipes, out[r][1]);
    end_ranks(&test);
    for (int r = 0; r < RANKS; r++) {
        close(out[r][1]), close(pipes[r][0]), close(pipes[r][1]);
        size_t length = 0, most = sizeof run.said[r] - 1;
        for (ssize_t got; (got = read(out[r][0], run.said[r] + length, most - length)) > 0;)
            length += (size_t)got;
        run.said[r][length] = '\0';
        close(out[r][0]);
    }
    check_nothing_left();
}

static bool on_cpu(void) { return strcmp(backend, "cpu") == 0; }

static void expect(int rank, int code, const char *words) {
    if (run.code[rank] == code && strstr(run.said[rank], words)) return;
    fail_msg("rank %d ended with %d and not %d, or did not say \"%s\", but: %s", rank,
             run.code[rank], code, words, run.said[rank]);
}

static void expect_of_others(const char *words) {
    for (int r = 0; r < RANKS; r++)
        if (r != WRONG) expect(r, 1, words);
}

/* Who finds it out first ends, which the others may see before they find out themselves. */
static void expect_of_one(const char *words) {
    for (int r = 0; r < RANKS; r++)
        if (r != WRONG && strstr(run.said[r], words)) return;
    fail_msg("no rank said \"%s\", but: %s%s", words, run.said[0], run.said[2]);
}

/* ---- the cases ------------------------------------------------------------------------------- */

static void go_on(int rank) { (void)rank, ops->all_reduce(x, n, -1, -1); }

static void do_something_else(int rank) {
    if (rank == WRONG) ops->reduce_scatter(x + WRONG * n, x, n, NULL, -1, -1);
    else ops->all_reduce(x, n, -1, -1);
}

static void test_mismatch(void **state) {
    (void)state;
    run_case((struct Case){do_something_else, LONG, .comes = true});
    for (int r = 0; r < RANKS; r++) {
        expect(r, 1, "step 12");
        if (on_cpu()) expect(r, 1, "the ranks do not do the same");
    }
    if (!on_cpu()) expect_of_one("different collectives");
}

static void be_killed(int rank) {
    if (rank == WRONG) raise(SIGKILL);
    go_on(rank);
}

static void test_killed(void **state) {
    (void)state;
    run_case((struct Case){be_killed, LONG, .comes = true});
    assert_int_equal(run.code[WRONG], 128 + SIGKILL);
    expect_of_others("waits in all_reduce number 2 (4000 bytes)");
    expect_of_one("rank 1");
    expect_of_one("has ended");
}

static void die(int rank) {
    if (rank == WRONG) die_machine("this rank has no luck");
    go_on(rank);
}

static void test_dies(void **state) {
    (void)state;
    run_case((struct Case){die, LONG, .comes = true});
    expect(WRONG, 1, "this rank has no luck");
    expect_of_others("step 12");
    assert_null(strstr(run.said[0], "no luck"));
}

static void stand_still(int rank) {
    if (rank == WRONG) raise(SIGSTOP);
    go_on(rank);
}

static void test_stalled(void **state) {
    (void)state;
    run_case((struct Case){stand_still, 2, .comes = true, .stays = true});
    expect_of_others("step 12: rank ");
    expect_of_others("of 3 waits in all_reduce number 2 (4000 bytes)");
    expect_of_one("for more than 2 s");
}

static void test_never_comes(void **state) {
    (void)state;
    run_case((struct Case){go_on, 2, .stays = true});
    expect_of_others("within 2 s");
}

/* At an address: the ranks need no common parent, and what a killed run has left is not joined. */
static void be_killed_early(int rank) { (void)rank, raise(SIGKILL); }

static void test_address(void **state) {
    char address[64];
    (void)state;
    snprintf(address, sizeof address, "test-%d:29500", (int)getpid());
    run_case((struct Case){go_on, 2, .stays = true, .address = address});
    expect_of_others("within 2 s");
    run_case((struct Case){be_killed_early, LONG, .comes = true, .address = address});
    for (int again = 0; again < 2; again++) {
        run_case((struct Case){go_on, LONG, .comes = true, .address = address});
        for (int r = 0; r < RANKS; r++) expect(r, 0, "");
    }
    char pattern[128];
    glob_t found;
    snprintf(pattern, sizeof pattern, "/dev/shm/*%s*", address);
    assert_int_equal(glob(pattern, 0, NULL, &found), GLOB_NOMATCH);
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) dtype = argv[2];
    if (argc > 3) cmocka_set_test_filter(argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mismatch),    cmocka_unit_test(test_killed),
        cmocka_unit_test(test_dies),        cmocka_unit_test(test_stalled),
        cmocka_unit_test(test_never_comes), cmocka_unit_test(test_address),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
