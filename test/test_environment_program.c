/* ./train with an environment, as a user runs it: the built-in tasks of several turns, and a scorer
   that answers between turns. This program is also that scorer: `serve MODE`. */
#include <sys/stat.h>
#include "program_rig.h"

#define TOOLS "--quiet --warm-start 40 --warm-batch 64 --warm-lr 3e-3 --prompts 4 --group 4 " \
              "--minibatches 2 --eval-every 2 --eval-prompts 6 --eval-samples 4 --save-every 2 " \
              "--threads 2 --rollouts-every 1 "
/* A step is 3 prompts x 4 completions. */
#define CHAT "--data lines.jsonl --context 90 --max-tokens 60 --prompts 3 --group 4 " \
             "--minibatches 2 --eval-every 2 --eval-samples 4 --save-every 2 --threads 2 " \
             "--rollouts-every 1 --max-turns 3 "

/* ---- the scorer ------------------------------------------------------------------------------ */

static bool is_first(long id) {
    char name[32];
    snprintf(name, sizeof name, "item-%ld", id);
    return mkdir(name, 0700) == 0;
}

/* How many turns the environment has answered, by what the line says of them. */
static int answered(const cJSON *turns) {
    int tools = 0;
    const cJSON *turn;
    cJSON_ArrayForEach(turn, turns)
        tools += strcmp(cJSON_GetStringValue(cJSON_GetObjectItem(turn, "role")), "tool") == 0;
    return tools;
}

/* Answers by the sum of the completion's bytes: goes on twice in three times where it may. */
static void answer(const char *mode, const char *line) {
    cJSON *item = cJSON_Parse(line);
    const char *completion = cJSON_GetStringValue(cJSON_GetObjectItem(item, "completion"));
    const cJSON *turns = cJSON_GetObjectItem(item, "turns");
    int id = cJSON_GetObjectItem(item, "id")->valueint;
    bool final = cJSON_IsTrue(cJSON_GetObjectItem(item, "final"));
    unsigned sum = 7;
    if (!completion) exit(9);
    for (const char *c = completion; *c; c++) sum = sum * 31 + (unsigned char)*c;
    if (turns && cJSON_GetObjectItem(item, "turn")->valueint != answered(turns)) exit(10);
    if (turns && cJSON_GetArraySize(turns) != 2 * answered(turns) + 1) exit(11);
    bool goes_on = turns && !final && sum % 3 > 0;
    if (strcmp(mode, "stubborn") == 0) goes_on = true;
    if (strcmp(mode, "deaf") == 0 && goes_on) for (;;) pause();
    if (strcmp(mode, "trap") == 0 && goes_on && access("trap", F_OK) == 0) for (;;) pause();
    if (strcmp(mode, "trap") == 0) usleep(5000);   /* a run that is not over too soon */
    if (strcmp(mode, "die") == 0 && id % 5 == 4 && is_first(id)) exit(3);
    if (strcmp(mode, "long") == 0 && goes_on)
        printf("{\"id\": %d, \"continue\": \"%080d\", \"role\": \"tool\"}\n", id, 0);
    else if (strcmp(mode, "garbage") == 0 && goes_on && sum % 2)
        printf("{\"id\": %d, \"continue\": [\"what\"]}\n", id);
    else if (goes_on)
        printf("{\"id\": %d, \"continue\": \"is %u\", \"role\": \"tool\"}\n", id, sum % 10);
    else
        printf("{\"id\": %d, \"reward\": %g}\n", id, sum % 7 / 8.0);
    fflush(stdout);
    cJSON_Delete(item);
}

static int serve(const char *mode) {
    char *line = NULL;
    size_t capacity = 0;
    while (getline(&line, &capacity, stdin) >= 0) answer(mode, line);
    return 0;
}

static const char *scorer(const char *mode) {
    static char option[4600];
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = 0;
    snprintf(option, sizeof option, "--scorer '\"%s\" serve %s' ", self, mode);
    return option;
}

static double sum_of(const char *name, int steps, const char *key) {
    cJSON *log = read_log(name);
    double sum = 0;
    for (int step = 1; step <= steps; step++) sum += logged(log, step, key);
    cJSON_Delete(log);
    return sum;
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* The run goes on bit for bit; the training pass gives each sampled token, on the whole transcript,
   the log-probability that it was sampled with; replayed, it is the same run. */
static void check_tool_task(const char *task) {
    char name[6][128];   /* runs, then their logs */
    for (int i = 0; i < 3; i++) {
        snprintf(name[i], sizeof name[i], "%s-%c", task, 'a' + i);
        snprintf(name[3 + i], sizeof name[i], "%s-%c/%s", task, 'a' + i,
                 i < 2 ? "metrics.jsonl" : "rollouts.jsonl");
    }
    RUN_OK("$T " TOOLS "--task %s --steps 4 --old-logp scored --run %s", task, name[0]);
    cJSON *log = read_log(name[3]);
    for (int step = 1; step <= 4; step++) {
        assert_true(logged(log, step, "env/turns") > 1.5);
        assert_true(logged(log, step, "env/text_tokens") > 0.5);
        assert_true(logged(log, step, "sampling/sampling_logp_difference/max") < 1e-4);
        assert_true(logged(log, step, "completions/mean_length") > 2);
    }
    cJSON_Delete(log);
    RUN_OK("$T " TOOLS "--task %s --steps 2 --old-logp scored --run %s --decode-rows 3", task,
           name[1]);
    RUN_OK("$T --quiet --resume %s --steps 4 --decode-rows 5", name[1]);
    assert_same_log(name[3], name[4]);
    assert_same_end(name[0], name[1], 4);
    RUN_OK("$T " TOOLS "--task %s --steps 4 --old-logp scored --run %s --replay "
           "%s/rollouts.jsonl", task, name[2], name[0]);
    assert_same_end(name[0], name[2], 4);
}

static void test_calculator(void **state) {
    (void)state;
    check_tool_task("calculator");
}

static void test_address_book(void **state) {
    (void)state;
    check_tool_task("address_book");
}

/* With a scorer that continues: the same run with any number of processes, when they die, after a
   resume, and with as few pages as there may be. */
static void test_same_run(void **state) {
    (void)state;
    RUN_OK("$T " CHAT "--quiet --steps 4 --run one --scorer-workers 1 %s", scorer("good"));
    assert_true(sum_of("one/metrics.jsonl", 4, "env/turns") > 4.2);
    assert_true(sum_of("one/metrics.jsonl", 4, "scorer/failed") == 0);
    RUN_OK("$T " CHAT "--quiet --steps 4 --run three --scorer-workers 3 --decode-rows 5 %s",
           scorer("good"));
    assert_same_log("one/metrics.jsonl", "three/metrics.jsonl");
    assert_same_end("one", "three", 4);
    RUN_OK("$T " CHAT "--quiet --steps 4 --run dies --scorer-workers 2 %s", scorer("die"));
    assert_same_log("one/rollouts.jsonl", "dies/rollouts.jsonl");
    assert_same_end("one", "dies", 4);
    assert_true(sum_of("dies/metrics.jsonl", 4, "scorer/restarts") >= 2);
    RUN_OK("$T " CHAT "--quiet --steps 2 --run again %s", scorer("good"));
    RUN_OK("$T --quiet --resume again --steps 4 --scorer-workers 3");
    assert_same_log("one/metrics.jsonl", "again/metrics.jsonl");
    assert_same_end("one", "again", 4);
}

/* Texts without room end the completion as cut; one that is in nobody's hands is unscored. Nothing
   stops the run. */
static void test_limits(void **state) {
    (void)state;
    RUN_OK("$T " CHAT "--quiet --steps 2 --run long %s", scorer("long"));
    assert_true(sum_of("long/metrics.jsonl", 2, "env/cut") > 0);
    assert_true(sum_of("long/metrics.jsonl", 2, "env/text_tokens") == 0);
    assert_true(sum_of("long/metrics.jsonl", 2, "completions/clipped_ratio") > 0);
    RUN_OK("$T " CHAT "--quiet --steps 2 --run garbage %s", scorer("garbage"));
    assert_true(sum_of("garbage/metrics.jsonl", 2, "scorer/failed") > 0);
    assert_true(sum_of("garbage/metrics.jsonl", 2, "env/turns") > 2);
    RUN_OK("$T " CHAT "--quiet --steps 1 --run stubborn %s", scorer("stubborn"));
    assert_true(sum_of("stubborn/metrics.jsonl", 1, "scorer/failed") > 0);
    RUN_OK("$T " CHAT "--quiet --steps 1 --eval-every 0 --run deaf --scorer-timeout 0.2 %s",
           scorer("deaf"));
    assert_true(sum_of("deaf/metrics.jsonl", 1, "scorer/failed") > 0);
}

/* Asked to stop while the environment is asked, the program ends soon without that step; a run that
   goes on makes it, and is the run that was never stopped. */
static void test_stopped_while_asking(void **state) {
    (void)state;
    char line[8192];
    RUN_OK("$T " CHAT "--eval-every 0 --quiet --steps 30 --run whole %s", scorer("good"));
    snprintf(line, sizeof line, CHAT "--eval-every 0 --steps 30 --scorer-timeout 1000 --run cut %s",
             scorer("trap"));
    pid_t child = start(line);
    wait_for_file("cut/checkpoints/latest");
    RUN_OK("touch trap");
    pause_for(300000);
    kill(child, SIGTERM);
    int status = wait_for_end(child);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        run("cat signalled.log");
        fail_msg("status %d: %s", status, output);
    }
    RUN_OK("grep -q 'stopped after step' signalled.log && ! test -e "
           "cut/checkpoints/step_000030");
    RUN_OK("rm trap; $T --quiet --resume cut");
    assert_same_log("whole/metrics.jsonl", "cut/metrics.jsonl");
    assert_same_end("whole", "cut", 30);
}

/* Without --max-turns a text is a mistake of the scorer's; without a scorer the option is one of
   the user's. */
static void test_without(void **state) {
    (void)state;
    RUN_OK("$T " CHAT "--max-turns 1 --steps 1 --run plain %s", scorer("stubborn"));
    assert_non_null(strstr(output, "a text to continue with where a reward is wanted"));
    assert_int_equal(run("$T " CHAT "--steps 1 --run none"), 2);
    assert_non_null(strstr(output, "--max-turns is for --scorer COMMAND"));
}

static int make_lines(void **state) {
    if (make_place(state)) return -1;
    return run("for i in 1 2 3 4 5 6 7 8 9; do echo \"{\\\"prompt\\\": \\\"$i+$i=\\\", "
               "\\\"answer\\\": $((i + i))}\"; done > lines.jsonl");
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "serve") == 0) return serve(argv[2]);
    always = "--backend cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calculator),
        cmocka_unit_test(test_address_book),
        cmocka_unit_test(test_same_run),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_stopped_while_asking),
        cmocka_unit_test(test_without),
    };
    return cmocka_run_group_tests(tests, make_lines, remove_place);
}
