/* Which options may be combined: axes of an objective, numbers of a clip, options of an entropy
   control. A combination does what its options say, or it is refused, or the program warns at the
   start. The tables hold what is expected of each, written by hand. */
#include "test.h"
#include "../llmc/rl/entropy.h"
#include "../llmc/rl/objectives.h"

static void test_checks(void **state) {
    (void)state;
    assert_non_null(objective_check_group(objective_find("grpo"), 1));
    assert_null(objective_check_group(objective_find("grpo"), 2));
    assert_null(objective_check_group(objective_find("reinforce"), 1));
    assert_null(objective_check_group(objective_find("ce"), 1));
    assert_non_null(objective_check_updates(objective_find("adapo"), 1));
    assert_null(objective_check_updates(objective_find("adapo"), 2));
    assert_null(objective_check_updates(objective_find("rloo"), 1));
}

/* Every combination of axes and numbers that is legal on the line does what it says, is refused, or
   is warned of: what the checks find in one change to a preset. 'e': refused; 'u': a warning with
   four updates, '1': with one; '-': nothing to say. */
static const struct {
    const char *objective, *axis, *value;   /* the axis, or a number by its name */
    double number;
    char verdict;
} combinations[] = {
    {"grpo", NULL, NULL, 0, '1'},
    {"grpo", "dual-clip", NULL, .5, 'e'}, {"grpo", "dual-clip", NULL, 1, 'e'},
    {"grpo", "dual-clip", NULL, 1.1, '1'}, {"grpo", "dual-clip", NULL, 3, '1'},
    {"gspo", "dual-clip", NULL, 3, '1'}, {"gspo", "dual-clip", NULL, 1, 'e'},
    {"cispo", "dual-clip", NULL, 1, 'e'},      /* and at 3 it is idle: objective_ignores */
    {"grpo", "clip-low", NULL, 0, 'e'}, {"grpo", "clip-high", NULL, 0, 'e'},
    {"grpo", "clip-low", NULL, 1, '1'}, {"gspo", "clip-low", NULL, 0, 'e'},
    {"cispo", "clip-low", NULL, 0, '1'}, {"cispo", "clip-high", NULL, 0, '1'},
    {"rloo", "surrogate", "clip", 0, 'e'}, {"rloo", "surrogate", "cispo", 0, 'e'},
    {"grpo", "ratio", "none", 0, 'e'}, {"cispo", "ratio", "none", 0, 'e'},
    {"grpo", "surrogate", "reinforce", 0, 'u'}, {"rloo", NULL, NULL, 0, 'u'},
    {"reinforce", NULL, NULL, 0, 'u'}, {"rloo", "kl", "k1", 0, 'u'},
    {"ce", NULL, NULL, 0, 'b'}, {"grpo", "surrogate", "ce", 0, 'b'},
    {"ce", "kl-coef", NULL, .1, 'e'}, {"ce", "entropy-control", "repo_r", 0, 'e'},
    {"ce", "entropy-control", "clip_cov", 0, 'e'}, {"ce", "entropy-control", "bonus", 0, 'b'},
    {"ce", "entropy-control", "adapo", 0, 'e'}, {"rloo", "entropy-control", "adapo", 0, 'e'},
    {"rloo", "entropy-control", "kl_cov", 0, 'b'}, {"gspo", "entropy-control", "kl_cov", 0, 'e'},
    {"gspo", "entropy-control", "clip_cov", 0, '1'}, {"cispo", "entropy-control", "adapo", 0, '1'},
    {"dapo", "advantage", "none", 0, 'e'}, {"grpo", "advantage", "none", 0, '1'},
};

static void test_combinations(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof combinations / sizeof *combinations; i++) {
        struct Objective o = *objective_find(combinations[i].objective);
        const char *axis = combinations[i].axis ? combinations[i].axis : "";
        float number = (float)combinations[i].number;
        if (combinations[i].value) assert_true(objective_choose(&o, axis, combinations[i].value));
        else if (strcmp(axis, "dual-clip") == 0) o.dual_clip = number;
        else if (strcmp(axis, "clip-low") == 0) o.clip_low = number;
        else if (strcmp(axis, "clip-high") == 0) o.clip_high = number;
        else if (strcmp(axis, "kl-coef") == 0) o.kl_coef = number;
        bool refused = objective_check_axes(&o) != NULL;
        bool one = objective_check_updates(&o, 1) != NULL, four = objective_check_updates(&o, 4);
        char verdict = refused ? 'e' : one && four ? 'b' : one ? '1' : four ? 'u' : '-';
        if (verdict != combinations[i].verdict)
            fail_msg("%s with %s %s %g: %c, not %c", combinations[i].objective, axis,
                     combinations[i].value ? combinations[i].value : "", number, verdict,
                     combinations[i].verdict);
    }
}

/* Options that act only with another choice. */
static const struct { const char *objective, *control, *option; bool ignored; } idle[] = {
    {"grpo", "none", "clip-low", false}, {"grpo", "none", "dual-clip", false},
    {"cispo", "none", "dual-clip", true}, {"cispo", "none", "clip-low", false},
    {"rloo", "none", "clip-high", true}, {"rloo", "none", "ratio", true},
    {"rloo", "none", "logp-dtype", true}, {"rloo", "kl_cov", "logp-dtype", false},
    {"grpo", "none", "logp-dtype", false}, {"ce", "none", "advantage", true},
    {"rloo", "none", "advantage", false}, {"grpo", "none", "scale", true},
    {"grpo", "clip_cov", "scale", true}, {"grpo", "bonus", "scale", false},
    {"grpo", "bonus", "entropy-target", true}, {"grpo", "bonus", "entropy-coef-max", true},
    {"grpo", "adaptive_bonus", "entropy-coef-max", false},
    {"grpo", "adaptive_bonus", "entropy-target-ratio", false},
    {"grpo", "adaptive_bonus", "controller", true}, {"grpo", "repo_r", "controller", false},
    {"grpo", "repo_r", "repo-d-signed", true}, {"grpo", "repo_d", "repo-d-signed", false},
    {"grpo", "adapo", "zeta-max", true}, {"grpo", "adapo", "clip-high-step", false},
    {"grpo", "none", "kl", true}, {"grpo", "none", "filter-rounds", true},
    {"dapo", "none", "filter-rounds", false}, {"grpo", "none", "lr", false},
    {"grpo", "none", "no-such-option", false},
};

static void test_idle_options(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof idle / sizeof *idle; i++) {
        struct Objective objective = *objective_find(idle[i].objective);
        assert_true(objective_choose(&objective, "entropy-control", idle[i].control));
        if (objective_ignores(&objective, idle[i].option) != idle[i].ignored)
            fail_msg("%s, %s: --%s", idle[i].objective, idle[i].control, idle[i].option);
    }
    struct Objective objective = *objective_find("ce");
    objective.overlong = OVERLONG_SOFT;   /* a penalty of rewards that nothing reads */
    assert_true(objective_ignores(&objective, "overlong"));
    objective.overlong = OVERLONG_MASK;
    assert_false(objective_ignores(&objective, "overlong"));
}

/* Starts, bounds and steps of entropy controls: NAN = the preset's ("tiny"). */
#define P NAN
static const struct {
    const char *control;
    enum ControllerRule rule;
    struct ControlRange range;
    double target, ratio;
    bool refused;
} ranges[] = {
    {"repo_r", CONTROLLER_DOUBLE, {P, P, P, P}, P, P, false},
    {"repo_r", CONTROLLER_DOUBLE, {5, P, P, P}, P, P, true},       /* beyond the cap of 4 */
    {"repo_r", CONTROLLER_DOUBLE, {-5, P, P, P}, P, P, true},
    {"repo_r", CONTROLLER_DOUBLE, {-4, P, P, P}, P, P, false},
    {"repo_r", CONTROLLER_DOUBLE, {0, P, P, P}, P, P, false},      /* steps to zeta_min at once */
    {"repo_r", CONTROLLER_DOUBLE, {1e-5f, P, P, P}, P, P, true},   /* below zeta_min */
    {"repo_r", CONTROLLER_DOUBLE, {P, 0, P, P}, P, P, true},       /* never steps over zero */
    {"repo_r", CONTROLLER_DOUBLE, {P, 5, P, P}, P, P, true},
    {"repo_r", CONTROLLER_DOUBLE, {0, P, 0, P}, P, P, true},
    {"repo_r", CONTROLLER_PI, {1e-5f, 0, P, P}, P, P, false},      /* pi has no smallest size */
    {"repo_r", CONTROLLER_PI, {5, P, P, P}, P, P, true},
    {"repo_r", CONTROLLER_PI, {P, P, P, P}, 0, P, true},           /* errors are shares of 0 */
    {"repo_r", CONTROLLER_PI, {P, P, P, P}, P, 0, true},
    {"repo_r", CONTROLLER_DOUBLE, {P, P, P, P}, 0, P, false},      /* as low as it goes */
    {"repo_r", CONTROLLER_PI, {P, P, P, P}, .5, 0, false},         /* the ratio is not read */
    {"adapo", CONTROLLER_DOUBLE, {.28f, P, P, P}, P, P, false},
    {"adapo", CONTROLLER_DOUBLE, {1.5f, P, P, P}, P, P, true},
    {"adapo", CONTROLLER_DOUBLE, {.01f, P, P, P}, P, P, true},
    {"adapo", CONTROLLER_DOUBLE, {P, 2, P, P}, P, P, true},
    {"adapo", CONTROLLER_DOUBLE, {P, P, P, 1}, P, P, true},        /* a factor of 1 */
    {"adaptive_bonus", CONTROLLER_DOUBLE, {.004f, P, P, P}, P, P, false},
    {"adaptive_bonus", CONTROLLER_DOUBLE, {.01f, P, P, P}, P, P, true},
    {"adaptive_bonus", CONTROLLER_DOUBLE, {.01f, P, .02f, P}, P, P, false},
    {"adaptive_bonus", CONTROLLER_DOUBLE, {-.001f, P, P, P}, P, P, true},
    {"adaptive_bonus", CONTROLLER_DOUBLE, {P, P, P, 0}, P, P, true},
    {"adaptive_bonus", CONTROLLER_DOUBLE, {P, P, 0, P}, P, P, true},
    {"bonus", CONTROLLER_DOUBLE, {.5f, P, P, P}, P, P, false},
    {"bonus", CONTROLLER_DOUBLE, {-.5f, P, P, P}, P, P, false},    /* entropy as a cost */
};
#undef P

static void take(float *value, double given) {
    if (!isnan(given)) *value = (float)given;
}

static void test_ranges(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        struct EntropyOptions o;
        int control = objective_axis_value("entropy-control", ranges[i].control);
        entropy_options_preset(&o, control, "tiny");
        o.rule = ranges[i].rule;
        take(&o.range.start, ranges[i].range.start), take(&o.range.min, ranges[i].range.min);
        take(&o.range.max, ranges[i].range.max), take(&o.range.step, ranges[i].range.step);
        take(&o.target, ranges[i].target), take(&o.target_ratio, ranges[i].ratio);
        const char *problem = entropy_options_problem(&o);
        if ((problem != NULL) != ranges[i].refused)
            fail_msg("row %zu, %s: %s", i, ranges[i].control, problem ? problem : "not refused");
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checks),
        cmocka_unit_test(test_combinations),
        cmocka_unit_test(test_idle_options),
        cmocka_unit_test(test_ranges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
