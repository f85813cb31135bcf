/* What a run logs and prints, from numbers made by hand: the keys and values of metrics.jsonl,
   TensorBoard's file beside it, the console's cells and summary, the warning about attention. */
#include <cjson/cJSON.h>
#include <glob.h>
#include "test.h"
#include "../llmc/base/console.h"
#include "../llmc/run/report.h"
#include "child.h"

static char folder[] = "/tmp/test_report_XXXXXX", output[1 << 14];

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char line[64];
    snprintf(line, sizeof line, "rm -r %s", folder);
    return system(line);
}

/* A rollout of 4 completions of 5, 5, 6, 8 tokens, one of them right, all groups different. */
static struct Experience experience_by_hand(void) {
    return (struct Experience){.count = 4, .generated = 4, .scored = 4, .generated_tokens = 24,
                               .sum_reward = 1, .reward_std = .5, .sum_entropy = 12,
                               .sum_length = 24, .truncated = 1, .seconds_generate = 2,
                               .pages_peak = 9, .preempted = 3};
}

static struct Evaluation evaluation_by_hand(void) {
    return (struct Evaluation){.num_prompts = 3, .samples = 4, .loss = NAN,
                               .pass_at = {.25, .75, NAN, NAN},
                               .distinct_correct = 1.5, .reward = .25, .entropy = .4,
                               .mean_length = 6, .truncated = .125};
}

/* Three logged steps; attention of layer 1 head 0 falls from .8 to .3 at the second. */
static void logs_three_steps(void *quiet) {
    static double attention[3][4] = {{.5, .6, .8, .7}, {.5, .6, .3, .7}, {.5, .6, .2, .7}};
    struct Progress progress = {0};
    struct Report report;
    struct EntropyState entropy = {.initial = 1, .cumulative = .5};
    struct Experience experience = experience_by_hand(), unscored = experience;
    struct Evaluation evaluation = evaluation_by_hand();
    unscored.scored = 3;   /* one of the four has no reward */
    unscored.pages_peak = unscored.preempted = 0;   /* nothing was sampled: a replay */
    console_open(quiet != NULL);
    report_open(&report, folder, 0, &progress);
    report_evaluation(&report, "countdown", 0, "phase_start", 0, &evaluation);
    for (int i = 0; i < 3; i++) {
        struct StepReport step = {
            .step = i + 1, .total_steps = 3, .task = "countdown", .updates = 2, .loss_scale = 1,
            .stats = {.tokens = 10, .loss = 4, .policy_loss = 3, .ratio = 11, .clipped_low = 1,
                      .clipped_high = 2, .adv = 5, .logp = -20, .adv_logp = -4},
            .grad_norm = .5, .learning_rate = 1e-4, .num_tokens = 100,
            .experience = i == 2 ? &unscored : &experience,
            .entropy = &entropy, .seconds_step = 4, .seconds_update = 2, .train_tokens = 50,
            .train_flops = 3e9, .host_memory_gb = 1.5, .device_memory_gb = i == 2 ? 8 : NAN,
            .push_measured = NAN, .attention_entropy = attention[i], .layers = 2, .heads = 2,
            .evaluation = i == 1 ? &evaluation : NULL};
        if (i == 2)
            step.ranks = 4, step.comm = (struct CommCounts){14, 3e6, 2, .5}, step.slowest = 1.25;
        report_step(&report, &step);
    }
    report_summary(&report, 3);
    report_close(&report);
}

static char *read_text(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *text = calloc(1, 1 << 16);
    *size = fread(text, 1, (1 << 16) - 1, file);
    fclose(file);
    return text;
}

static double value_of(const cJSON *line, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(line, key);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

/* The values that the numbers above mean, worked out by hand. */
static void test_metrics(void **state) {
    (void)state;
    static const struct { const char *key; double value; } wanted[] = {
        {"loss", 2}, {"policy_loss", 1.5}, {"grad_norm", .5}, {"learning_rate", 1e-4},
        {"num_tokens", 100}, {"reward", .25}, {"reward_std", .5}, {"entropy", .5},
        {"entropy_ratio", .5}, {"entropy_cumulative", .5}, {"completions/mean_length", 6},
        {"completions/clipped_ratio", .25}, {"ratio_mean", 1.1}, {"clip_ratio/low_mean", .1},
        {"clip_ratio/high_mean", .2}, {"adv_logp_cov", -.4 + .5 * 2}, {"updates", 2},
        {"attention_entropy/min", .3}, {"attention_entropy/mean", .525}, {"eval/pass@1", .25},
        {"eval/pass@4", .75}, {"eval/distinct_correct", 1.5}, {"eval/entropy", .4},
        {"step_time", 4}, {"perf/gen_tok_s", 12}, {"perf/train_tok_s", 25},
        {"cache/pages_peak", 9}, {"cache/preempted", 3}, {"perf/train_gflop_s", 1.5},
        {"perf/peak_mem_gb", 1.5}};
    char path[128];
    size_t size;
    assert_int_equal(run_in_child(logs_three_steps, NULL, output, sizeof output), 0);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    char *text = read_text(path, &size), *rest = text;
    cJSON *lines[4];
    for (int i = 0; i < 4; i++) {
        lines[i] = cJSON_Parse(strsep(&rest, "\n"));
        assert_non_null(lines[i]);
        assert_true(value_of(lines[i], "step") == i);
    }
    assert_string_equal(rest, "");
    assert_true(value_of(lines[0], "phase_start") == 0);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        double value = value_of(lines[2], wanted[i].key);
        if (!(fabs(value - wanted[i].value) <= 1e-8 * fmax(1, fabs(wanted[i].value))))
            fail_msg("%s is %.9g, not %.9g", wanted[i].key, value, wanted[i].value);
    }
    /* what was not measured is not there; not even as null */
    assert_false(cJSON_HasObjectItem(lines[2], "eval/pass@16"));
    assert_false(cJSON_HasObjectItem(lines[1], "eval/pass@1"));
    assert_false(cJSON_HasObjectItem(lines[1], "entropy_push_measured"));
    assert_false(cJSON_HasObjectItem(lines[1], "perf/peak_host_mem_gb"));
    assert_false(cJSON_HasObjectItem(lines[3], "cache/pages_peak"));
    /* a completion without a reward is counted, and is in no mean of rewards */
    assert_false(cJSON_HasObjectItem(lines[2], "completions/unscored"));
    assert_true(value_of(lines[3], "completions/unscored") == 1);
    ASSERT_CLOSE("mean of three rewards", fabs(value_of(lines[3], "reward") - 1. / 3), 1e-7);
    assert_true(value_of(lines[3], "completions/mean_length") == 6);
    /* on a device its memory has the key, and the host's another */
    assert_true(value_of(lines[3], "perf/peak_mem_gb") == 8);
    assert_true(value_of(lines[3], "perf/peak_host_mem_gb") == 1.5);
    /* several ranks */
    static const struct { const char *key; double value; } of_ranks[] = {
        {"ranks", 4}, {"comm/calls", 14}, {"comm/bytes", 3e6}, {"timing/comm", 2},
        {"timing/comm_exposed", .5}, {"perf/slowest_rank", 1.25}};
    for (size_t i = 0; i < sizeof of_ranks / sizeof *of_ranks; i++) {
        assert_false(cJSON_HasObjectItem(lines[2], of_ranks[i].key));   /* one rank */
        assert_true(value_of(lines[3], of_ranks[i].key) == of_ranks[i].value);
    }
    for (int i = 0; i < 4; i++) cJSON_Delete(lines[i]);
    free(text);
}

/* Every number of a line is a scalar of TensorBoard's file too, under its own name. */
static void test_tensorboard_beside_it(void **state) {
    (void)state;
    char pattern[128];
    glob_t found;
    size_t size;
    snprintf(pattern, sizeof pattern, "%s/events.out.tfevents.*", folder);
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    char *events = read_text(found.gl_pathv[0], &size);
    static const char *const tags[] = {"loss", "reward", "entropy", "attention_entropy/min",
                                       "perf/peak_mem_gb", "learning_rate"};
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
        if (!memmem(events, size, tags[i], strlen(tags[i]))) fail_msg("no scalar %s", tags[i]);
    free(events);
    globfree(&found);
}

/* Not a terminal: an evaluated step is one plain line; the summary has first and last values. */
static void test_what_is_said(void **state) {
    (void)state;
    assert_int_equal(run_in_child(logs_three_steps, NULL, output, sizeof output), 0);
    static const char *const said[] = {
        ("step=2 reward=0.2500 entropy=0.5000 pass@1=0.2500 pass@4=0.7500 distinct=1.500 "
         "grad_norm=0.5000 step_time=4.000 loss=2.00000\n"),
        "held-out pass@1             0.250     0.250\n",
        "held-out pass@4             0.750     0.750\n",
        (" step_time=4.000 loss=2.00000 ranks=4 comm_mb=3 comm=2.000 exposed=0.500 slowest=1.25, "
         "1 unscored\n"),
        "reward                     0.250     0.333\n",
        "distinct correct            1.50      1.50   of 4 samples\n"};
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        if (!strstr(output, said[i])) fail_msg("\"%s\" is not in: %s", said[i], output);
    assert_null(strstr(output, "pass@16"));   /* of more samples than there are */
    /* once, with the worst head */
    const char *warning = strstr(output, "step 2: the attention entropy of layer 1 head 0 fell "
                                         "from 0.800 to 0.300");
    assert_non_null(warning);
    assert_null(strstr(warning + 40, "attention entropy of layer"));
    assert_int_equal(run_in_child(logs_three_steps, "quiet", output, sizeof output), 0);
    assert_string_equal(output, "");
    struct Evaluation evaluation = evaluation_by_hand();
    char text[256];
    report_describe_evaluation(&evaluation, text, sizeof text);
    assert_string_equal(text, "pass@1 0.250  pass@4 0.750  distinct 1.50  entropy 0.400  (3 "
                              "prompts x 4 samples)");
}

/* A run that goes on logs no step twice: the lines past its checkpoint are cut. */
static void reopens_at_one(void *unused) {
    (void)unused;
    struct Progress progress = {.step = 1, .phases_begun = 1};
    struct Report report;
    console_open(true);
    report_open(&report, folder, 0, &progress);
    report_close(&report);
}

static void test_reopening(void **state) {
    (void)state;
    char path[128];
    size_t size;
    assert_int_equal(run_in_child(reopens_at_one, NULL, output, sizeof output), 0);
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    char *text = read_text(path, &size);
    assert_non_null(strstr(text, "\"phase_start\": 0"));
    assert_non_null(strstr(text, "\"step\": 1,"));
    assert_null(strstr(text, "\"step\": 2,"));
    free(text);
}

/* Logs that are deleted, or replaced, between two saves. */
static void loses_its_logs(void *unused) {
    (void)unused;
    struct Progress progress = {0};
    struct Report report;
    struct Evaluation evaluation = evaluation_by_hand();
    char line[512];
    console_open(false);
    report_open(&report, folder, 1, &progress);
    report_evaluation(&report, "countdown", 0, "phase_start", 0, &evaluation);
    report_sync(&report);
    snprintf(line, sizeof line, "cd %s && rm metrics.jsonl events.* && mv rollouts.jsonl old && "
             "echo mine > rollouts.jsonl", folder);
    if (system(line) != 0) abort();
    report_sync(&report);
    report_evaluation(&report, "countdown", 7, "phase_start", 1, &evaluation);
    report_sync(&report);
    report_close(&report);
}

/* One warning for each. What is logged from then on is in a file of the old name. */
static void test_deleted_logs(void **state) {
    (void)state;
    static const char *const names[] = {"metrics.jsonl", "rollouts.jsonl", "events.out.tfevents"};
    char path[128];
    size_t size;
    assert_int_equal(run_in_child(loses_its_logs, NULL, output, sizeof output), 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *said = strstr(output, names[i]);
        if (!said || !strstr(output, "removed or replaced")) fail_msg("%s: %s", names[i], output);
        assert_null(strstr(said + 1, names[i]));
    }
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    char *text = read_text(path, &size);
    assert_non_null(strstr(text, "\"step\": 7,"));
    free(text);
    snprintf(path, sizeof path, "%s/rollouts.jsonl", folder);
    text = read_text(path, &size);
    assert_string_equal(text, "mine\n");
    free(text);
    glob_t found;
    snprintf(path, sizeof path, "%s/events.out.tfevents.*", folder);
    assert_int_equal(glob(path, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    text = read_text(found.gl_pathv[0], &size);
    assert_non_null(memmem(text, size, "eval/countdown/pass@1", 21));
    free(text);
    globfree(&found);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_metrics),
        cmocka_unit_test(test_tensorboard_beside_it),
        cmocka_unit_test(test_what_is_said),
        cmocka_unit_test(test_reopening),
        cmocka_unit_test(test_deleted_logs),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
