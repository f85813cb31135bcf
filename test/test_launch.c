/* Threads and standard descriptors at the program's start, and signals while it runs. Runs ./train
   as a child. */
#include <fcntl.h>
#include <sys/stat.h>
#include "program_rig.h"

#define TINY "--warm-start 2 --warm-batch 8 --prompts 2 --group 2 --minibatches 1 --eval-every 0 "

/* Long enough that it cannot be over before the signal. */
#define LONG TINY "--quiet --threads 1 --save-every 0 --steps 100000 "

/* ---- threads --------------------------------------------------------------------------------- */

/* The plan prints the number of threads that OpenMP really gives, and the program ends: OpenBLAS
   once waited for ever for a thread that OpenMP had not started. */
static void test_threads_as_given(void **state) {
    (void)state;
    static const struct { const char *environment, *options, *says; } cases[] = {
        {"OMP_THREAD_LIMIT=1", "", "1 threads"},
        {"OMP_THREAD_LIMIT=1", "--threads 2", "1 threads"},
        {"OMP_THREAD_LIMIT=2", "--threads 3", "2 threads"},
        {"OMP_NUM_THREADS=1", "", "1 threads"},
        {"OMP_NUM_THREADS=3", "", "3 threads"},
        {"OMP_NUM_THREADS=1", "--threads 2", "2 threads"},
        {"OMP_DYNAMIC=true", "--threads 2", "2 threads"},
        {"OMP_MAX_ACTIVE_LEVELS=0", "--threads 2", "1 threads"},
        {"taskset -c $(taskset -cp $$ | sed 's/.*: //; s/[-,].*//')", "", "1 threads"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = run("env %s timeout -s KILL 60 $T " TINY "--steps 1 --run threads-%d %s",
                       cases[i].environment, (int)i, cases[i].options);
        if (code != 0 || !strstr(output, cases[i].says))
            fail_msg("%s %s: exit code %d, no \"%s\" in: %s", cases[i].environment,
                     cases[i].options, code, cases[i].says, output);
    }
    RUN_OK("OMP_THREAD_LIMIT=1 $T --dry-run --threads 2 2>&1 >plan | grep -q 'OpenMP gives 1'");
}

/* ---- descriptors ----------------------------------------------------------------------------- */

/* With closed standard descriptors nothing that is said ends up in the run's files. */
static void test_closed_descriptors(void **state) {
    (void)state;
    static const char *const closed[] = {">&-", "2>&-", "<&-", "<&- >&- 2>&-"};
    for (size_t i = 0; i < sizeof closed / sizeof *closed; i++) {
        RUN_OK("rm -rf closed && $T " TINY "--steps 2 --threads 1 --run closed %s", closed[i]);
        cJSON *log = read_log("closed/metrics.jsonl");
        assert_int_equal(cJSON_GetArraySize(log), 2);
        cJSON_Delete(log);
        RUN_OK("! grep -rlE 'held-out|machine  |files: |micro-batch ' closed");
        RUN_OK("$T --quiet --resume closed --steps 3");
    }
    RUN_OK("echo '{\"tokens\":[1,2]}' > ids.jsonl");
    assert_int_equal(run("$T --model closed --score ids.jsonl >&-"), 1);   /* said, not lost */
}

/* ---- signals --------------------------------------------------------------------------------- */

static void assert_goes_on(const char *name) {
    RUN_OK("test -s %s/checkpoints/latest && n=$(ls %s/checkpoints | grep step_ | sort | tail -n 1 "
           "| sed s/step_0*//) && $T --quiet --resume %s --steps $((n + 1))", name, name, name);
}

/* A signal that asks a run to stop: it saves, says so and ends with 0. */
static void test_signals_save(void **state) {
    (void)state;
    static const struct { int number; const char *name; } signals[] = {
        {SIGTERM, "term"}, {SIGINT, "int"}, {SIGHUP, "hup"}};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        char line[512], file[64];
        snprintf(line, sizeof line, TINY "--threads 1 --save-every 0 --steps 100000 --run %s",
                 signals[i].name);
        snprintf(file, sizeof file, "%s/metrics.jsonl", signals[i].name);
        pid_t child = start(line);
        wait_for_file(file);
        kill(child, signals[i].number);
        int status = wait_for_end(child);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            fail_msg("%s: status %d", signals[i].name, status);
        RUN_OK("grep -q 'stopped after step .* --resume %s' signalled.log", signals[i].name);
        assert_goes_on(signals[i].name);
    }
}

/* A signal that the caller had ignored, as nohup does, stays ignored. */
static void test_nohup(void **state) {
    (void)state;
    RUN_OK("trap '' HUP; $T " TINY "--quiet --threads 1 --steps 200 --run nohup & "
           "while ! test -s nohup/metrics.jsonl; do sleep 0.01; done; kill -HUP $!; wait $! && "
           "test $(wc -l < nohup/metrics.jsonl) = 200");
}

/* The reader of its output ends (`| head -n 1`): the run saves. */
static void test_lost_reader(void **state) {
    (void)state;
    RUN_OK("{ $T " TINY "--threads 1 --save-every 0 --steps 1000 --run piped; echo $? > code; } | "
           "head -n 1 && test $(cat code) = 0");
    assert_goes_on("piped");
}

/* The second signal of a kind always ends the program, in the middle of a step. */
static void test_second_signal_ends(void **state) {
    (void)state;
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        pid_t child = start("--quiet --warm-start 1 --prompts 8192 --group 64 --eval-every 0 "
                            "--run twice --overwrite");   /* one step is minutes */
        RUN_OK("while ! test -s twice/warm_start.jsonl; do sleep 0.01; done");
        RUN_OK("begun() { cut -d ' ' -f 14 /proc/%d/stat; }; first=$(begun); "
               "while test $(($(begun) - first)) -lt 100; do sleep 0.01; done",
               (int)child);   /* a second of work later it is in the step */
        kill(child, numbers[i]);
        pause_for(300000);
        assert_int_equal(waitpid(child, NULL, WNOHANG), 0);   /* the first waits for the step */
        kill(child, numbers[i]);
        int status = wait_for_end(child);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), numbers[i]);
        RUN_OK("rm -r twice");
    }
}

/* --eval-only and --score have nothing to save: signals end them at once. */
static void test_signals_while_measuring(void **state) {
    (void)state;
    static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    char path[128];
    RUN_OK("$T " TINY "--quiet --threads 1 --steps 1 --run measured && mkfifo silent");
    snprintf(path, sizeof path, "%s/silent", place);
    int writer = open(path, O_RDWR);   /* that never writes */
    assert_true(writer >= 0);
    for (size_t i = 0; i < 2 * sizeof numbers / sizeof *numbers; i++) {
        pid_t child = start(i % 2 ? "--model measured --score silent"
                                  : "--model measured --eval-only --eval-prompts 9999");
        pause_for(200000);   /* it reads, or computes, or has just begun: the same */
        kill(child, numbers[i / 2]);
        int status = wait_for_end(child);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), numbers[i / 2]);
    }
    close(writer);
}

int main(void) {
    always = "--backend cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads_as_given),
        cmocka_unit_test(test_closed_descriptors),
        cmocka_unit_test(test_signals_save),
        cmocka_unit_test(test_nohup),
        cmocka_unit_test(test_lost_reader),
        cmocka_unit_test(test_second_signal_ends),
        cmocka_unit_test(test_signals_while_measuring),
    };
    return cmocka_run_group_tests(tests, make_place, remove_place);
}
