/* ./train with --scorer, as a user runs it. This program is also the scorer: `serve MODE FILE`. */
#include <sys/stat.h>
#include "program_rig.h"

/* A step is 3 prompts x 4 completions, an evaluation 4. */
#define SMALL "--data lines.jsonl --context 48 --max-tokens 8 --prompts 3 --group 4 " \
              "--minibatches 2 --eval-every 2 --eval-samples 4 --save-every 2 --threads 2 " \
              "--rollouts-every 1 "
enum { PER_STEP = 12, PER_EVALUATION = 4 };

/* ---- the scorer ------------------------------------------------------------------------------ */

/* A reward that is a function of the completion. */
static double reward_of(const char *line) {
    const char *at = strstr(line, "\"completion\": \"");
    unsigned sum = 0;
    if (!at) exit(9);
    for (at += 15; *at && *at != '"'; at++) sum = sum * 31 + (unsigned char)*at;
    return sum % 7 / 8.0;
}

/* The first time that it is asked for the item, by whichever process. */
static bool is_first(long id) {
    char name[32];
    snprintf(name, sizeof name, "item-%ld", id);
    return mkdir(name, 0700) == 0;
}

static int serve(const char *mode, const char *file) {
    char *line = NULL;
    size_t capacity = 0;
    long id;
    while (getline(&line, &capacity, stdin) >= 0) {
        if (sscanf(line, "{\"id\": %ld", &id) != 1) return 8;
        if (strcmp(mode, "die") == 0 && id % 5 == 4 && is_first(id)) return 3;
        if (strcmp(mode, "trap") == 0 && access(file, F_OK) == 0) for (;;) pause();
        if (strcmp(mode, "trap") == 0) usleep(10000);   /* a run that is not over too soon */
        if (strcmp(mode, "useless") == 0 && reward_of(line) > 0) for (;;) pause();
        if (strcmp(mode, "garbage") == 0) puts("reward: 1\n{}\n{\"id\": -3}");
        if (strcmp(mode, "stderr") == 0) fprintf(stderr, "judging %ld\n", id);
        bool some = strcmp(mode, "some") == 0 && reward_of(line) < 0.3;
        if (strcmp(mode, "null") == 0 || some) printf("{\"id\": %ld, \"reward\": null}\n", id);
        else printf("{\"id\": %ld, \"reward\": %g}\n", id, reward_of(line));
        fflush(stdout);
    }
    return 0;
}

/* --scorer with this program. */
static const char *scorer(const char *mode, const char *file) {
    static char option[2][4600];
    static int next;
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = 0;
    char *out = option[next++ % 2];
    snprintf(out, sizeof option[0], "--scorer '\"%s\" serve %s %s' ", self, mode, file);
    return out;
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* The rewards and so the weights do not depend on the number of processes, nor on when some of them
   die, nor on what else they print; and a resumed run is the run that was never stopped. */
static void test_same_run(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--quiet --steps 4 --run one --scorer-workers 1 %s", scorer("good", ""));
    RUN_OK("$T " SMALL "--quiet --steps 4 --run three --scorer-workers 3 %s", scorer("good", ""));
    assert_same_log("one/metrics.jsonl", "three/metrics.jsonl");
    assert_same_end("one", "three", 4);
    RUN_OK("$T " SMALL "--quiet --steps 4 --run dies --scorer-workers 2 %s", scorer("die", ""));
    assert_same_log("one/rollouts.jsonl", "dies/rollouts.jsonl");
    assert_same_end("one", "dies", 4);
    RUN_OK("$T " SMALL "--quiet --steps 4 --run prints %s", scorer("garbage", ""));
    assert_same_end("one", "prints", 4);
    RUN_OK("$T " SMALL "--quiet --steps 2 --run again %s", scorer("good", ""));
    RUN_OK("$T --quiet --resume again --steps 4 --scorer-workers 3");
    assert_same_log("one/metrics.jsonl", "again/metrics.jsonl");
    assert_same_end("one", "again", 4);

    cJSON *log = read_log("dies/metrics.jsonl"), *good = read_log("one/metrics.jsonl");
    double restarts = 0, lines = 0;
    for (int step = 1; step <= 4; step++) restarts += logged(log, step, "scorer/restarts");
    assert_true(restarts >= 2);
    assert_float_equal(logged(good, 4, "scorer/restarts"), 0, 0);
    assert_float_equal(logged(good, 4, "scorer/unscored"), 0, 0);
    assert_float_equal(logged(good, 4, "scorer/failed"), 0, 0);
    cJSON_Delete(log);
    log = read_log("prints/metrics.jsonl");
    for (int step = 1; step <= 4; step++) lines += logged(log, step, "scorer/bad_lines");
    assert_float_equal(lines, 3 * (4 * PER_STEP + 2 * PER_EVALUATION), 3 * PER_EVALUATION);
    cJSON_Delete(log), cJSON_Delete(good);
}

/* Beside verifiers, by weights: the mean reward is that of each, weighed. */
static void test_weights(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--quiet --steps 1 --run a %s", scorer("good", ""));
    RUN_OK("$T " SMALL "--quiet --steps 1 --run b --reward length");
    RUN_OK("$T " SMALL "--quiet --steps 1 --run c --reward scorer:2,length:0.5 %s",
           scorer("good", ""));
    double reward[3];
    for (int i = 0; i < 3; i++) {
        cJSON *log = read_log((const char *[]){"a/metrics.jsonl", "b/metrics.jsonl",
                                               "c/metrics.jsonl"}[i]);
        reward[i] = logged(log, 1, "reward");
        cJSON_Delete(log);
    }
    assert_true(reward[0] > 0 && reward[1] > 0);
    assert_float_equal(reward[2], 2 * reward[0] + 0.5 * reward[1], 1e-6);
}

/* Completions without a reward are counted and not learnt from; the run goes on. */
static void test_unscored(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 3 --lr 0.01 --run none %s", scorer("null", ""));
    assert_non_null(strstr(output, ", 12 unscored"));
    cJSON *log = read_log("none/metrics.jsonl");
    assert_float_equal(logged(log, 1, "scorer/unscored"), PER_STEP, 0);
    assert_float_equal(logged(log, 2, "scorer/unscored"), PER_STEP + PER_EVALUATION, 0);
    assert_float_equal(logged(log, 2, "scorer/failed"), 0, 0);
    assert_float_equal(logged(log, 2, "completions/unscored"), PER_STEP, 0);
    assert_float_equal(logged(log, 2, "eval/unscored"), PER_EVALUATION, 0);
    assert_true(isnan(logged(log, 2, "reward")));
    cJSON_Delete(log);
    RUN_OK("$T " SMALL "--quiet --steps 0 --run start %s", scorer("null", ""));
    assert_same_file("none/checkpoints/step_000002/model.safetensors",
                     "start/checkpoints/step_000000/model.safetensors");
    RUN_OK("$T " SMALL "--steps 2 --run some %s", scorer("some", ""));
    log = read_log("some/metrics.jsonl");
    double unscored = logged(log, 1, "scorer/unscored");
    assert_true(unscored > 0 && unscored < PER_STEP);
    assert_float_equal(logged(log, 1, "completions/unscored"), unscored, 0);
    assert_true(logged(log, 1, "reward") > 0.3);
    cJSON_Delete(log);
}

/* A scorer that is of no use does not stop a run that has begun. */
static void test_hopeless(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--eval-every 0 --steps 2 --scorer-timeout 0.1 --run lost %s",
           scorer("useless", ""));
    assert_non_null(strstr(output, "the scorer was lost"));
    assert_non_null(strstr(output, "completions have no reward: the scorer said null for 0"));
    cJSON *log = read_log("lost/metrics.jsonl");
    assert_true(logged(log, 2, "scorer/failed") > 0);
    cJSON_Delete(log);
}

static void test_messages(void **state) {
    (void)state;
    static const struct { const char *options, *says; } cases[] = {
        {SMALL "--scorer nosuchprogram", "is not found (exit code 127): sh: 1: nosuchprogram"},
        {SMALL "--scorer 'exit 5'", "ends (exit code 5) before it answers a first item"},
        {"--scorer true", "--scorer is for --data FILE"},
        {SMALL "--scorer-workers 2", "--scorer-workers is for --scorer COMMAND"},
        {SMALL "--scorer-timeout 2", "--scorer-timeout is for --scorer COMMAND"},
        {SMALL "--reward scorer", "--reward scorer: scorer needs --scorer COMMAND"},
        {SMALL "--reward exact --scorer cat", "has no part in it; add scorer:1"},
        {SMALL "--scorer cat --scorer-workers 257", "--scorer-workers"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = run("$T %s --quiet --steps 1 --run messages --overwrite", cases[i].options);
        if (code != 2 || !strstr(output, cases[i].says))
            fail_msg("%s: exit code %d: %s", cases[i].options, code, output);
        assert_ptr_equal(strchr(strstr(output, "train: error"), '\n') + 1, strchr(output, 0));
    }
    /* nothing is started for a plan */
    RUN_OK("$T " SMALL "--dry-run --scorer 'touch started; cat'");
    RUN_OK("! test -e started");
    RUN_OK("$T " SMALL "--steps 1 --run shown %s 2>&1 >/dev/null | grep -q '^scorer 1: judging 0$'",
           scorer("stderr", ""));
}

/* Asked to stop while the scorer is at work, the program ends soon without that step; a run that
   goes on makes it, and is the run that was never stopped. */
static void test_stopped_while_scoring(void **state) {
    (void)state;
    char line[8192];
    RUN_OK("$T " SMALL "--eval-every 0 --quiet --steps 40 --run whole %s", scorer("good", ""));
    snprintf(line, sizeof line, SMALL "--eval-every 0 --steps 40 --scorer-timeout 1000 --run cut "
             "%s",
             scorer("trap", "trap"));
    RUN_OK("rm -f trap");
    /* stop it in a step: the scorer hangs as soon as a checkpoint is there */
    pid_t child = start(line);
    wait_for_file("cut/checkpoints/latest");
    RUN_OK("touch trap");
    pause_for(300000);
    kill(child, SIGTERM);
    time_t begin = time(NULL);
    int status = wait_for_end(child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        run("cat signalled.log");
        fail_msg("status %d: %s", status, output);
    }
    assert_true(time(NULL) - begin < 20);
    RUN_OK("grep -q 'stopped after step' signalled.log && ! test -e "
           "cut/checkpoints/step_000040");
    RUN_OK("rm trap; $T --quiet --resume cut");
    assert_same_log("whole/metrics.jsonl", "cut/metrics.jsonl");
    assert_same_end("whole", "cut", 40);
}

static int make_lines(void **state) {
    if (make_place(state) != 0) return -1;
    return run("for i in 1 2 3 4 5 6 7 8; do "
               "echo \"{\\\"prompt\\\": \\\"$i+$i=\\\", \\\"answer\\\": $((i + i))}\"; "
               "done > lines.jsonl");
}

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "serve") == 0) return serve(argv[2], argc > 3 ? argv[3] : "");
    always = "--backend cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_run),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_unscored),
        cmocka_unit_test(test_hopeless),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_stopped_while_scoring),
    };
    return cmocka_run_group_tests(tests, make_lines, remove_place);
}
