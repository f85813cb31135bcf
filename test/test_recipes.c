/* Options of learning, tried with the whole program: each has an effect, or the program says that
   it has none. Which may be combined is tested in test_choices.c. */
#include "program_rig.h"

#define SMALL "--quiet --warm-start 6 --warm-batch 32 --prompts 4 --group 4 --minibatches 2 " \
              "--eval-every 0 --save-every 2 --threads 2 --rollouts-every 0 "

/* With one update per rollout there is nothing to penalise: the run is that without a control,
   though sampling and learning round l differently. With more updates it is not. */
static void test_kl_cov_waits_for_a_second_update(void **state) {
    (void)state;
    static const char *const old[] = {"sampled", "scored"};
    RUN_OK("$T " SMALL "--warm-start 100 --warm-batch 64 --steps 0 --run warm");
    for (int i = 0; i < 2; i++)
        for (int minibatches = 1; minibatches <= 4; minibatches += 3) {
            char options[256];
            snprintf(options, sizeof options, "--model warm --warm-start 0 --steps 4 --prompts 16 "
                     "--old-logp %s --minibatches %d --overwrite", old[i], minibatches);
            RUN_OK("$T " SMALL "%s --run plain", options);
            RUN_OK("$T " SMALL "%s --run kl --entropy-control kl_cov", options);
            if (minibatches == 1) {
                assert_same_log("plain/metrics.jsonl", "kl/metrics.jsonl");
                assert_same_end("plain", "kl", 4);
            } else {
                cJSON *plain = read_log("plain/metrics.jsonl"), *kl = read_log("kl/metrics.jsonl");
                assert_true(logged(plain, 4, "loss") != logged(kl, 4, "loss"));
                cJSON_Delete(plain), cJSON_Delete(kl);
            }
        }
}

/* The column by hand; a run cut in the middle, and one of two tasks, have the same. */
static void test_learning_rate(void **state) {
    (void)state;
    /* .001 after one step of warm-up, then down to .0004 at step 5, which is not made */
    static const double linear[] = {0, 1e-3, 8e-4, 6e-4};
    const char *line = "--lr 1e-3 --lr-warmup 1 --lr-schedule linear --lr-min-ratio 0.4 --keep 0";
    RUN_OK("$T " SMALL "%s --steps 4 --run whole", line);
    RUN_OK("cp -r whole cut && echo step_000002 > cut/checkpoints/latest");
    RUN_OK("$T --quiet --resume cut");
    RUN_OK("$T " SMALL "%s --tasks countdown:2,countdown_sorted:2 --run tasks", line);
    static const char *const logs[] = {"whole/metrics.jsonl", "cut/metrics.jsonl",
                                       "tasks/metrics.jsonl"};
    for (int i = 0; i < 3; i++) {
        cJSON *log = read_log(logs[i]);
        for (int step = 1; step <= 4; step++) {
            double rate = logged(log, step, "learning_rate");
            if (!(fabs(rate - linear[step - 1]) <= 1e-10))
                fail_msg("%s, step %d: %.9g", logs[i], step, rate);
        }
        cJSON_Delete(log);
    }
    assert_same_log("whole/metrics.jsonl", "cut/metrics.jsonl");
    assert_same_end("whole", "cut", 4);
}

/* --entropy-coef-step and --entropy-coef-max of the adaptive bonus have an effect. */
static void test_adaptive_bonus(void **state) {
    (void)state;
    RUN_OK("$T " SMALL "--steps 4 --entropy-control adaptive_bonus --entropy-target 3.2 "
           "--entropy-coef 0.01 --entropy-coef-max 0.025 --entropy-coef-step 0.01 --run bonus");
    /* log 24 = 3.18: always below the target */
    static const double coef[] = {.01, .02, .025, .025};   /* c is used, then moves */
    cJSON *log = read_log("bonus/metrics.jsonl");
    for (int step = 1; step <= 4; step++)
        assert_true(fabs(logged(log, step, "entropy_coef") - coef[step - 1]) < 1e-8);
    cJSON_Delete(log);
}

/* One line of options: refused with these words, or begun with these words in a warning (once). */
static const struct { const char *options; int code; const char *says; } lines[] = {
    {"--dual-clip 0.5", 2, "--dual-clip"},
    {"--dual-clip 1", 2, "--dual-clip"},
    {"--objective cispo --dual-clip 3", 0, "--dual-clip does nothing"},
    {"--clip-low 0", 2, "rounding"},
    {"--objective rloo --surrogate clip --ratio token", 2, "--clip-low"},
    {"--objective rloo", 0, "older policy"},
    {"--objective rloo --ratio token", 0, "--ratio does nothing"},
    {"--objective grpo --minibatches 1", 0, "are inert"},
    {"--objective ce", 0, "every completion alike"},
    {"--entropy-control adaptive_bonus --entropy-coef 0.01", 2, "--entropy-coef-max"},
    {"--entropy-coef-max 0.01", 0, "--entropy-coef-max does nothing"},
    {"--objective repo --zeta-start 9", 2, "--zeta-start"},
    {"--objective repo --zeta-min 0", 2, "--zeta-min"},
    {"--objective repo --controller pi --zeta-min 0.01", 0, "--zeta-min does nothing"},
    {"--objective repo --controller pi --entropy-target 0", 2, "target"},
    {"--objective repo --entropy-target 1 --entropy-target-ratio 2", 0,
     "--entropy-target-ratio does nothing"},
    {"--objective adapo --clip-high 2", 2, "--clip-high"},
    {"--objective adapo --clip-high-step 1", 2, "--clip-high-step"},
    {"--minibatches 600", 0, "512 completions"},
    {"--scale llm", 0, "--scale does nothing"},
    {"--objective reinforce --group 1", 0, "older policy"},
    {"--group 1", 2, "--group"},
    {"--kl k1", 0, "--kl does nothing"},
    {"--objective rloo --logp-dtype bf16", 0, "--logp-dtype does nothing"},
    {"--lr-min-ratio 0.5", 0, "--lr-min-ratio does nothing"},
    {"--lr-schedule exponential", 2, "cosine"},
    {"--logp-dtype bf16", 0, "precision study"},
    {"--lr-warmup 600", 0, "never reaches --lr"},
    {"--objective repo --entropy-target 3.2", 0, "at most 3.18"},
};

static void test_lines(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        int code = run("$T --dry-run %s", lines[i].options);
        const char *said = strstr(output, lines[i].says);
        if (code != lines[i].code || !said || (code == 0 && strstr(said + 1, lines[i].says)))
            fail_msg("%s: exit code %d, said: %s", lines[i].options, code, output);
    }
    assert_int_equal(run("$T --dry-run --objective adapo --clip-high 0.5"), 0);
    assert_non_null(strstr(output, "clip 0.8..1.5 of the token ratio"));
    assert_non_null(strstr(output, "clip_high from 0.5 in [0.05, 1], step 1.1"));
}

int main(void) {
    always = "--backend cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kl_cov_waits_for_a_second_update),
        cmocka_unit_test(test_learning_rate),
        cmocka_unit_test(test_adaptive_bonus),
        cmocka_unit_test(test_lines),
    };
    return cmocka_run_group_tests(tests, make_place, remove_place);
}
