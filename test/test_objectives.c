/* Objectives: the presets table against the published settings, advantages and weights by hand,
   losses and gradients of the published objectives against numpy (golden/objectives.h), statistics,
   selections and rounding against naive versions. Gradients of every combination of axes:
   test_surrogates.c. */
#include "objective_fixture.h"
#include "golden/objectives.h"

#include <float.h>

/* cmocka's comparison is in float32 and lets NaN pass. */
#define ASSERT_NEAR(x, want, bound) ASSERT_CLOSE(#x, fabs((x) - (double)(want)), bound)

/* ---- tables --------------------------------------------------------------------------------- */

static const struct {
    const char *name, *advantage, *ratio, *surrogate;
    double low, high;
    const char *aggregation, *control;
    bool filter;
    const char *overlong;
    enum Scope scope;
} published[] = {
    {"reinforce", "none", "none", "reinforce", 0, 0, "token_mean", "none", 0, "none", SCOPE_TOKEN},
    {"rloo", "loo", "none", "reinforce", 0, 0, "token_mean", "none", 0, "none", SCOPE_TOKEN},
    {"loop", "loo", "token", "clip", .0909, .1, "sequence_mean", "none", 0, "none", SCOPE_TOKEN},
    {"grpo", "zscore", "token", "clip", .2, .2, "sequence_mean", "none", 0, "none", SCOPE_TOKEN},
    {"dr_grpo", "mean", "token", "clip", .2, .2, "constant", "none", 0, "none", SCOPE_TOKEN},
    {"dapo", "zscore", "token", "clip", .2, .28, "token_mean", "none", 1, "soft", SCOPE_TOKEN},
    {"gspo", "zscore", "sequence", "clip", 3e-4, 4e-4, "sequence_mean", "none", 0, "none",
     SCOPE_SEQUENCE},
    {"cispo", "zscore", "token", "cispo", 1, 4, "token_mean", "none", 0, "none", SCOPE_TOKEN},
    {"repo", "loo", "token", "clip", .2, .28, "token_mean", "repo_r", 0, "none", SCOPE_TOKEN},
    {"repo_r", "loo", "token", "clip", .2, .28, "token_mean", "repo_r", 0, "none", SCOPE_TOKEN},
    {"repo_d", "loo", "token", "clip", .2, .28, "token_mean", "repo_d", 0, "none", SCOPE_TOKEN},
    {"adapo", "loo", "token", "clip", .2, .28, "token_mean", "adapo", 0, "none", SCOPE_TOKEN},
    {"verl_grpo", "zscore", "token", "clip", .2, .2, "token_mean", "none", 0, "none", SCOPE_TOKEN},
    {"ce", "none", "none", "ce", 0, 0, "token_mean", "none", 0, "none", SCOPE_TOKEN},
};

static void test_presets(void **state) {
    (void)state;
    int rows = (int)(sizeof published / sizeof *published);
    char line[256];
    assert_null(objective_row(rows));
    assert_null(objective_row(-1));
    assert_null(objective_find("ppo"));
    assert_null(objective_find(""));
    for (int i = 0; i < rows; i++) {
        const struct Objective *row = objective_find(published[i].name);
        assert_ptr_equal(row, objective_row(i));
        assert_int_equal(row->advantage, objective_axis_value("advantage", published[i].advantage));
        assert_int_equal(row->ratio, objective_axis_value("ratio", published[i].ratio));
        assert_int_equal(row->surrogate, objective_axis_value("surrogate", published[i].surrogate));
        assert_int_equal(row->aggregation,
                         objective_axis_value("aggregation", published[i].aggregation));
        assert_int_equal(row->control,
                         objective_axis_value("entropy-control", published[i].control));
        assert_int_equal(row->overlong, objective_axis_value("overlong", published[i].overlong));
        assert_int_equal(row->filter, published[i].filter);
        assert_int_equal(objective_scope(row), published[i].scope);
        ASSERT_NEAR(row->clip_low, published[i].low, 1e-7);
        ASSERT_NEAR(row->clip_high, published[i].high, 1e-7);
        bool verl = strcmp(row->name, "verl_grpo") == 0;
        assert_true(row->kl_coef == 0 && row->dual_clip == (verl ? 3 : 0));
        assert_true(row->std_epsilon == (verl ? 1e-6 : 1e-4));
        assert_non_null(strstr(objective_names(), published[i].name));
        objective_describe(row, line, sizeof line);
        assert_non_null(strstr(line, published[i].name));
        assert_non_null(strstr(line, published[i].aggregation));
    }
    objective_describe(objective_find("dapo"), line, sizeof line);
    assert_string_equal(line, "dapo: advantage zscore, clip 0.8..1.28 of the token ratio, "
                              "token_mean, entropy control none, group filter on, overlong soft");
}

static void test_dual_clip_is_said(void **state) {
    (void)state;
    char line[256];
    objective_describe(objective_find("verl_grpo"), line, sizeof line);
    assert_string_equal(line, "verl_grpo: advantage zscore, clip 0.8..1.2 of the token ratio, dual "
                              "clip 3, token_mean, entropy control none, group filter off, "
                              "overlong none");
}

static void test_axes(void **state) {
    (void)state;
    const char *controls =
        "none bonus adaptive_bonus repo_r repo_d repo_beta adapo clip_cov kl_cov";
    assert_memory_equal(objective_axis_names("entropy-control"), controls, strlen(controls));
    assert_string_equal(objective_axis_word("surrogate", SURROGATE_CISPO), "cispo");
    assert_int_equal(objective_axis_value("entropy-control", "none"), CONTROL_NONE);
    assert_int_equal(objective_axis_value("entropy-control", "repo_beta"), CONTROL_REPO_BETA);
    assert_int_equal(objective_axis_value("entropy-control", "kl_cov"), CONTROL_KL_COV);
    assert_int_equal(objective_axis_value("kl", "k3"), KL_K3);
    assert_int_equal(objective_axis_value("kl", "k"), -1);
    assert_int_equal(objective_axis_value("kl", ""), -1);
    assert_int_equal(objective_axis_value("kl", "k1 k2"), -1);
    assert_int_equal(objective_axis_value("temper", "none"), -1);
    assert_string_equal(objective_axis_names("kl"), "k1 k2 k3");
    assert_null(objective_axis_names("temper"));
    struct Objective objective = *objective_find("gspo");
    objective.control = CONTROL_CLIP_COV;
    assert_int_equal(objective_scope(&objective), SCOPE_BATCH);
    objective.control = CONTROL_REPO_R;
    assert_int_equal(objective_scope(&objective), SCOPE_SEQUENCE);
    objective = *objective_find("ce");
    objective.control = CONTROL_KL_COV;
    assert_int_equal(objective_scope(&objective), SCOPE_TOKEN);
}

/* ---- advantages ----------------------------------------------------------------------------- */

#define U NAN   /* unscored */
static const struct {
    const char *what, *objective, *overlong;
    int group, max_tokens;
    float reward[4];
    int length[4];
    unsigned char ended[4];
    double advantage[4];
    unsigned char active[4];
    int kept;   /* groups the filter keeps */
} advantage_cases[] = {
    {"mean", "dr_grpo", "none", 4, 10, {1, 0, 0, 0}, {3, 3, 3, 3}, {1, 1, 1, 1},
     {.75, -.25, -.25, -.25}, {1, 1, 1, 1}, 1},
    {"loo", "rloo", "none", 4, 10, {1, 0, 0, 0}, {3, 3, 3, 3}, {1, 1, 1, 1},
     {1, -1. / 3, -1. / 3, -1. / 3}, {1, 1, 1, 1}, 1},
    {"zscore", "grpo", "none", 4, 10, {1, 0, 0, 0}, {3, 3, 3, 3}, {1, 1, 1, 1},
     {.75 / .5001, -.25 / .5001, -.25 / .5001, -.25 / .5001}, {1, 1, 1, 1}, 1},
    {"no rule", "reinforce", "none", 1, 10, {1, .5f, -2, U}, {3, 3, 3, 3}, {1, 1, 1, 1},
     {1, .5, -2, 0}, {1, 1, 1, 0}, 0},
    {"no rule keeps equal rewards", "reinforce", "none", 4, 10, {1, 1, 1, 1}, {3, 3, 3, 3},
     {1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1, 1}, 0},
    {"groups of two", "rloo", "none", 2, 10, {1, 0, .5f, .25f}, {3, 3, 3, 3}, {1, 1, 1, 1},
     {1, -1, .25, -.25}, {1, 1, 1, 1}, 2},
    {"equal is exactly zero", "grpo", "none", 4, 10, {.1f, .1f, .1f, U}, {3, 3, 3, 3},
     {1, 1, 1, 1}, {0, 0, 0, 0}, {1, 1, 1, 0}, 0},
    {"unscored leaves mean and G", "rloo", "none", 4, 10, {1, U, 0, INFINITY}, {3, 3, 3, 3},
     {1, 1, 1, 1}, {1, 0, -1, 0}, {1, 0, 1, 0}, 1},
    {"one scored is too few", "grpo", "none", 2, 10, {1, U, 1, 0}, {3, 3, 3, 3}, {1, 1, 1, 1},
     {0, 0, .5 / (M_SQRT1_2 + 1e-4), -.5 / (M_SQRT1_2 + 1e-4)}, {0, 0, 1, 1}, 1},
    {"mask: no gradient, still in the mean", "rloo", "mask", 4, 10, {1, 0, 0, 0}, {3, 10, 3, 3},
     {1, 0, 1, 1}, {1, -1. / 3, -1. / 3, -1. / 3}, {1, 0, 1, 1}, 1},
    /* max 10, window 2: 0 at 8, -1/2 at 9, -1 at 10 and beyond */
    {"soft overlong", "dr_grpo", "soft", 4, 10, {1, 1, 1, 1}, {8, 9, 10, 12}, {1, 1, 0, 0},
     {.625, .125, -.375, -.375}, {1, 1, 1, 1}, 0},
    {"huge rewards stay finite", "rloo", "none", 2, 10, {FLT_MAX, -FLT_MAX, 0, 0}, {3, 3, 3, 3},
     {1, 1, 1, 1}, {FLT_MAX, -FLT_MAX, 0, 0}, {1, 1, 1, 1}, 1},
};
#undef U

static void test_advantages(void **state) {
    (void)state;
    for (size_t c = 0; c < sizeof advantage_cases / sizeof *advantage_cases; c++) {
        const char *what = advantage_cases[c].what;
        struct Objective objective = *objective_find(advantage_cases[c].objective);
        objective.overlong = objective_axis_value("overlong", advantage_cases[c].overlong);
        struct RewardBatch batch = {
            .count = 4, .group_size = advantage_cases[c].group,
            .max_tokens = advantage_cases[c].max_tokens, .reward = advantage_cases[c].reward,
            .length = advantage_cases[c].length, .ended = advantage_cases[c].ended};
        float advantage[4];
        unsigned char active[4], keep[4];
        objective_advantages(&objective, &batch, advantage, active);
        for (int i = 0; i < 4; i++) {
            double want = advantage_cases[c].advantage[i];
            ASSERT_CLOSE(what, fabs(advantage[i] - want), 1e-7 * fabs(want));
            if (active[i] != advantage_cases[c].active[i]) fail_msg("%s: active[%d]", what, i);
        }
        if (objective_filter_groups(&batch, keep) != advantage_cases[c].kept)
            fail_msg("%s: filter", what);
    }
}

/* Seven equal rewards whose mean in double is not the reward: still exactly 0. */
static void test_equal_is_exact(void **state) {
    (void)state;
    float reward[7], advantage[7];
    int length[7];
    unsigned char ended[7], active[7];
    double sum = 0, final = .1f - 1. / 6;   /* max 6, window 1.2, length 5 */
    for (int i = 0; i < 7; i++) reward[i] = .1f, length[i] = 5, ended[i] = 1, sum += final;
    assert_true(sum / 7 != final);
    struct RewardBatch batch = {7, 7, 6, reward, length, ended};
    struct Objective objective = *objective_find("dapo");
    for (int rule = ADVANTAGE_MEAN; rule <= ADVANTAGE_LOO; rule++) {
        objective.advantage = rule;
        objective_advantages(&objective, &batch, advantage, active);
        for (int i = 0; i < 7; i++) assert_true(advantage[i] == 0 && active[i]);
    }
}

/* ---- weights -------------------------------------------------------------------------------- */

enum { WEIGHTED = 7 };
static const int weighted_length[WEIGHTED] = {3, 1, 8, 5, 2, 6, 4};
static const unsigned char weighted_active[WEIGHTED] = {1, 1, 0, 1, 1, 1, 0};

/* w_t from the definitions; and two ranks with summed WeightSums get the whole's weights. */
static void test_weights(void **state) {
    (void)state;
    const char *rules[] = {"token_mean", "sequence_mean", "constant"};
    for (int rule = 0; rule < 3; rule++) {
        struct Objective objective = *objective_find("grpo");
        objective.aggregation = objective_axis_value("aggregation", rules[rule]);
        float whole[WEIGHTED], shares[WEIGHTED];
        struct WeightSums all = objective_weight_sums(WEIGHTED, weighted_length, weighted_active);
        objective_weights(&objective, all, 9, WEIGHTED, weighted_length, weighted_active, whole);
        for (int cut = 0; cut <= WEIGHTED; cut++) {
            const int *rest = weighted_length + cut;
            const unsigned char *rest_active = weighted_active + cut;
            struct WeightSums a = objective_weight_sums(cut, weighted_length, weighted_active);
            struct WeightSums b = objective_weight_sums(WEIGHTED - cut, rest, rest_active);
            struct WeightSums sum = {a.tokens + b.tokens, a.sequences + b.sequences,
                                     a.all_sequences + b.all_sequences};
            objective_weights(&objective, sum, 9, cut, weighted_length, weighted_active, shares);
            objective_weights(&objective, sum, 9, WEIGHTED - cut, rest, rest_active, shares + cut);
            assert_memory_equal(whole, shares, sizeof whole);
        }
        double total = 0;
        for (int i = 0; i < WEIGHTED; i++) {
            int n = weighted_length[i];
            double want = rule == 0 ? 1. / 17 : rule == 1 ? 1. / (5 * n) : 1. / (7 * 9);
            if (!weighted_active[i]) want = 0;   /* masked: out of 17 and 5, but not out of 7 */
            ASSERT_NEAR(whole[i], want, 1e-8);
            total += n * (double)whole[i];
        }
        ASSERT_NEAR(total, rule == 2 ? 17. / 63 : 1, 1e-6);
    }
    /* nothing active, or an empty completion: zero, never a division by zero */
    const int empty[2] = {0, 4};
    const unsigned char on[2] = {1, 1}, off[2] = {0, 0};
    float weight[2];
    struct Objective objective = *objective_find("grpo");
    objective_weights(&objective, objective_weight_sums(2, empty, on), 9, 2, empty, on, weight);
    assert_true(weight[0] == 0 && weight[1] == .25f);
    objective_weights(&objective, objective_weight_sums(2, empty, off), 9, 2, empty, off, weight);
    assert_true(weight[0] == 0 && weight[1] == 0);
}

/* ---- golden values -------------------------------------------------------------------------- */

static void test_golden(void **state) {
    (void)state;
    struct Fixture *f = &fixture;
    for (size_t c = 0; c < sizeof golden / sizeof *golden; c++) {
        f->objective = *objective_find(golden[c].objective);
        f->objective.kl_coef = golden[c].kl_coef;
        memcpy(f->reward, golden_reward, sizeof golden_reward);
        memcpy(f->length, golden_length, sizeof golden_length);
        memset(f->ended, 1, sizeof f->ended);
        fixture_link(f, GOLDEN_COUNT, GOLDEN_GROUP, GOLDEN_LONGEST);
        assert_int_equal(f->batch.num_tokens, GOLDEN_TOKENS);
        memcpy(f->logp, golden_now, sizeof golden_now);
        memcpy(f->old, golden_old, sizeof golden_old);
        memcpy(f->ref, golden_ref, sizeof golden_ref);
        for (int t = 0; t < GOLDEN_TOKENS; t++) f->entropy[t] = 1;
        f->batch.logp_ref = golden[c].kl_coef > 0 ? f->ref : NULL;
        fixture_run(f);
        /* advantages, weights and coefficients are each rounded to float32 once: 3 x 6e-8 */
        ASSERT_CLOSE(golden[c].objective,
                     relative_l2(f->dlogp, golden[c].dlogp, GOLDEN_TOKENS), 2e-7);
        ASSERT_NEAR(f->stats.loss, golden[c].loss, 2e-7);
        for (int t = 0; t < GOLDEN_TOKENS; t++) assert_true(f->dentropy[t] == 0);
    }
}

/* ---- coefficients that are exactly zero, tokens that are left out --------------------------- */

static void test_zero_and_non_finite(void **state) {
    (void)state;
    struct Fixture *f = &fixture;
    static const float poison[] = {NAN, INFINITY, -INFINITY};
    for (int p = 0; objective_row(p) != NULL; p++) {
        for (int where = 0; where < 4; where++) {
            f->objective = *objective_row(p);
            for (int i = 0; i < 4; i++) f->length[i] = 3, f->reward[i] = i == 0, f->ended[i] = 1;
            fixture_link(f, 4, 2, 8);   /* the second pair has equal rewards: A = 0 */
            for (int t = 0; t < 12; t++)
                f->logp[t] = -1, f->old[t] = -1.1f, f->ref[t] = -1.2f, f->entropy[t] = .5f;
            f->old[6] = -3e38f;         /* ratio at its clamp, A = 0: 0, not NaN */
            f->batch.logp_ref = f->ref;
            float *place[] = {f->logp, f->entropy, f->old, f->ref};
            for (int k = 0; k < 3; k++) place[where][k] = poison[k];
            fixture_run(f);
            assert_true(f->stats.non_finite == 3 && f->stats.tokens == 9);
            assert_true(isfinite(f->stats.loss) && isfinite(f->stats.ratio));
            bool repo = f->objective.control == CONTROL_REPO_D;   /* zeta = 0 here */
            for (int t = 0; t < 12; t++) {
                bool none = t < 3 || (t >= 6 && p != 0 && !repo);
                assert_true(isfinite(f->dlogp[t]) && isfinite(f->dentropy[t]));
                if (none && f->objective.surrogate != SURROGATE_CE)
                    assert_true(f->dlogp[t] == 0 && f->dentropy[t] == 0);
            }
            if (f->objective.surrogate != SURROGATE_CE) assert_true(p == 0 || f->dlogp[4] != 0);
        }
    }
}

/* A coefficient past float32's range is dropped and counted, like a non-finite statistic. */
static void test_overflow(void **state) {
    (void)state;
    struct Fixture *f = &fixture;
    f->objective = *objective_find("dr_grpo");
    f->length[0] = f->length[1] = 1;
    f->reward[0] = FLT_MAX, f->reward[1] = -FLT_MAX;
    fixture_link(f, 2, 2, 1);
    for (int t = 0; t < 2; t++) f->logp[t] = -1, f->old[t] = -16, f->entropy[t] = 1;
    fixture_run(f);
    assert_true(f->dlogp[1] == 0 && f->stats.non_finite == 1);
}

/* ---- micro-batches, statistics -------------------------------------------------------------- */

/* 60 completions of 1..11 tokens in groups of 4, ratios all over the range. */
static void fixture_random(struct Fixture *f, const char *objective, bool on_policy, int length) {
    struct Rng rng;
    rng_open(&rng, 3, RNG_TEST, 77);
    f->objective = *objective_find(objective);
    for (int i = 0; i < 60; i++) {
        f->length[i] = length > 0 ? length : 1 + (int)rng_below(&rng, 11);
        f->reward[i] = .5f * (float)rng_below(&rng, 3);
        f->ended[i] = rng_below(&rng, 5) > 0;
    }
    if (!on_policy) f->reward[17] = NAN;   /* its tokens have no weight and are not counted */
    fixture_link(f, 60, 4, 11);
    for (int t = 0; t < f->batch.num_tokens; t++) {
        f->logp[t] = -fabsf(3 * rng_normal(&rng)) * (t % 4 == 0 ? .02f : 1);
        f->old[t] = on_policy ? f->logp[t] : f->logp[t] + .4f * rng_normal(&rng);
        f->ref[t] = f->logp[t] + .5f * rng_normal(&rng);
        f->entropy[t] = fabsf(rng_normal(&rng));
        f->q[t] = rng_uniform(rng_next(&rng));
        f->r[t] = -rng_uniform(rng_next(&rng));
    }
    f->batch.logp_ref = f->ref;
}

static void test_micro_batches(void **state) {
    (void)state;
    static float dlogp[MAX_TOKENS], dentropy[MAX_TOKENS];
    struct Fixture *f = &fixture;
    for (int p = 0; objective_row(p) != NULL; p++) {
        fixture_random(f, objective_row(p)->name, false, 0);
        f->objective.kl_coef = .1f;
        fixture_run(f);
        struct ObjectiveStats sum = {0};
        for (int first = 0; first < f->batch.num_tokens; first += 13) {
            int left = f->batch.num_tokens - first, count = left < 13 ? left : 13;
            struct ObjectiveStats part = {0};
            objective_coefficients(&f->objective, &f->batch, first, count, f->logp + first,
                                   f->entropy + first, f->q + first, f->r + first, dlogp + first,
                                   dentropy + first, &part);
            objective_stats_add(&sum, &part);
        }
        size_t bytes = (size_t)f->batch.num_tokens * sizeof(float);
        assert_memory_equal(dlogp, f->dlogp, bytes);
        assert_memory_equal(dentropy, f->dentropy, bytes);
        const double *a = (const double *)&sum, *b = (const double *)&f->stats;
        for (size_t i = 0; i < sizeof sum / sizeof(double); i++)
            ASSERT_CLOSE("stats", fabs(a[i] - b[i]), 1e-12 * fabs(b[i]) + 1e-12);
    }
}

/* "Why is my loss 0?": at ratio 1 the surrogate's value is the mean advantage, which is 0 by
   construction; its gradient is not. */
static void test_value_at_ratio_one(void **state) {
    (void)state;
    static const char *names[] = {"loop", "grpo", "dr_grpo", "dapo", "gspo"};
    for (int i = 0; i < 5; i++) {
        struct Fixture *f = &fixture;
        fixture_random(f, names[i], true, 5);
        fixture_run(f);
        double gradient = 0;
        for (int t = 0; t < f->batch.num_tokens; t++) gradient += fabs(f->dlogp[t]);
        ASSERT_CLOSE(names[i], fabs(f->stats.policy_loss), 1e-7);
        assert_true(gradient > .1);
        assert_true(f->stats.ratio == f->stats.tokens && f->stats.old_difference_max == 0);
    }
}

/* Every field of the statistics, computed a second time in the simplest way. */
static void test_statistics(void **state) {
    (void)state;
    struct Fixture *f = &fixture;
    static const double edge[] = {0, 1e-3, 1e-2, .1, .5, .9, 1e9};
    fixture_random(f, "dapo", false, 0);
    f->objective.control = CONTROL_BONUS, f->objective.kl_coef = .2f;
    f->batch.control.entropy_coef = .03f;
    fixture_run(f);
    struct ObjectiveStats want = {0};
    for (int t = 0; t < f->batch.num_tokens; t++) {
        int i = f->sequence_of[t], bucket = 0;
        double l = f->logp[t], H = f->entropy[t], A = f->advantage[i], w = f->weight[i];
        double ratio = exp(l - f->old[t]), d = f->ref[t] - l, k3 = fmin(exp(d) - d - 1, 10);
        double bounded = fmin(fmax(ratio, 1 - .2f), 1 + (double).28f);
        double lever = exp(l) * (l + H) - f->r[t] - H * f->q[t];
        if (w == 0) continue;
        want.tokens++, want.ratio += ratio, want.logp += l, want.entropy += H;
        want.kl += exp(d) - d - 1;
        want.policy_loss -= w * fmin(ratio * A, bounded * A);
        want.loss += w * (.2f * k3 - .03f * H);
        want.adv += A, want.adv_sq += A * A, want.adv_logp += A * l, want.logp_sq += l * l;
        want.old_difference += fabs(l - f->old[t]);
        want.old_difference_max = fmax(want.old_difference_max, fabs(l - f->old[t]));
        want.push_raw += -A * lever;
        want.push_effective += f->dlogp[t] / w * lever;
        while (exp(f->old[t]) >= edge[bucket + 1]) bucket++;
        bool low = A < 0 && ratio < 1 - .2f, high = A > 0 && ratio > 1 + (double).28f;
        want.clipped_low += low, want.clipped_high += high, want.bucket_tokens[bucket]++;
        want.bucket_clipped_low[bucket] += low, want.bucket_clipped_high[bucket] += high;
    }
    want.loss += want.policy_loss;
    assert_true(want.clipped_low > 10 && want.clipped_high > 10);
    const double *a = (const double *)&f->stats, *b = (const double *)&want;
    for (size_t i = 0; i < sizeof want / sizeof(double); i++)
        if (!(fabs(a[i] - b[i]) <= 1e-6 * fabs(b[i]) + 1e-9))
            fail_msg("statistic %zu: %.12g not %.12g", i, a[i], b[i]);
}

/* The loss holds the KL estimate within 10; what is logged is the estimate, and finite at any d. */
static void test_logged_kl_is_not_clamped(void **state) {
    (void)state;
    struct Fixture *f = &fixture;
    static const float apart[] = {0, 1, 5, 25, -3, -30};
    double kl = 0, loss = 0;
    f->objective = *objective_find("reinforce");
    f->objective.kl_coef = 1;
    f->length[0] = 6, f->advantage[0] = 0, f->weight[0] = 1;
    fixture_link(f, 1, 0, 6);
    f->batch.logp_ref = f->ref;
    for (int t = 0; t < 6; t++) {
        double d = apart[t], inside = fmin(fmax(d, -20), 20);
        f->logp[t] = f->old[t] = -40, f->entropy[t] = 1, f->ref[t] = -40 + apart[t];
        kl += exp(d) - d - 1;
        loss += fmin(exp(inside) - inside - 1, 10);
    }
    fixture_run(f);
    ASSERT_CLOSE("kl", fabs(f->stats.kl - kl), 1e-9 * kl);
    ASSERT_CLOSE("loss", fabs(f->stats.loss - loss), 1e-6);
    f->ref[0] = f->ref[1] = 3e4f;
    memset(&f->stats, 0, sizeof f->stats);
    fixture_run(f);
    assert_true(isfinite(f->stats.kl) && f->stats.kl > 1e30 && f->stats.kl < 1e31);
}

/* ---- selection by covariance ---------------------------------------------------------------- */

static double naive_covariance[MAX_TOKENS];

static int by_covariance(const void *x, const void *y) {
    int i = *(const int *)x, j = *(const int *)y;
    double a = naive_covariance[i], b = naive_covariance[j];
    return a > b ? -1 : a < b ? 1 : i - j;
}

/* 8000 completions of 3 tokens; log-probabilities on a grid, so that ties abound. Every seventh
   completion has no weight. Returns the number of tokens that count. */
static int covariance_fixture(struct Fixture *f, enum EntropyControl control, int sequences) {
    struct Rng rng;
    rng_open(&rng, 11, RNG_TEST, 5);
    f->objective = *objective_find("rloo");
    f->objective.surrogate = SURROGATE_CLIP, f->objective.ratio = RATIO_TOKEN;
    f->objective.clip_low = .2f, f->objective.clip_high = .28f, f->objective.control = control;
    for (int i = 0; i < sequences; i++) {
        f->length[i] = 3;
        f->advantage[i] = (float)(int)rng_below(&rng, 3) - .75f;
        f->weight[i] = i % 7 == 3 ? 0 : 1e-4f;
    }
    fixture_link(f, sequences, 0, 3);
    double mean_a = 0, mean_l = 0;
    int counted = 0;
    for (int t = 0; t < f->batch.num_tokens; t++) {
        int i = f->sequence_of[t];
        f->logp[t] = -.25f * (float)rng_below(&rng, 24), f->entropy[t] = 1;
        f->old[t] = f->logp[t] + (t % 5 == 0 ? -.5f : t % 5 == 1 ? .4f : .01f);
        if (f->weight[i] == 0) continue;
        mean_a += f->advantage[i], mean_l += f->logp[t], counted++;
    }
    mean_a /= counted, mean_l /= counted;
    for (int t = 0; t < f->batch.num_tokens; t++) {
        int i = f->sequence_of[t];
        double covariance = (f->advantage[i] - mean_a) * (f->logp[t] - mean_l);
        naive_covariance[t] = f->weight[i] == 0 ? -1e30 : (float)covariance;
    }
    return counted;
}

static void test_kl_cov_selection(void **state) {
    (void)state;
    static const int sizes[] = {MAX_SEQUENCES, 333, 4, 1};
    static int order[MAX_TOKENS];
    for (int c = 0; c < 4; c++) {
        struct Fixture *f = &fixture;
        int counted = covariance_fixture(f, CONTROL_KL_COV, sizes[c]), n = f->batch.num_tokens;
        int k = counted * 2e-3 < 1 ? 1 : (int)(counted * 2e-3), selected = 0;
        fixture_run(f);
        for (int t = 0; t < n; t++) order[t] = t, selected += f->selected[t];
        qsort(order, (size_t)n, sizeof *order, by_covariance);
        assert_int_equal(selected, k);
        for (int i = 0; i < k; i++) assert_true(f->selected[order[i]]);
    }
    assert_true(objective_scope(&fixture.objective) == SCOPE_BATCH);
}

/* Which tokens clip_cov may take: 1 < cov < 5, weight, and not stopped by the clip. */
static bool naive_candidate(const struct Fixture *f, int t) {
    double ratio = exp((double)f->logp[t] - f->old[t]), A = f->advantage[f->sequence_of[t]];
    bool alive = !(A > 0 && ratio > 1.28) && !(A < 0 && ratio < .8);
    return naive_covariance[t] > 1 && naive_covariance[t] < 5 && alive;
}

/* kl_cov: where |l - l_old| is no larger than the noise, the gradient is bit for bit that without
   the control; where it is larger, the penalty acts. */
static void test_kl_cov_noise(void **state) {
    (void)state;
    static float plain[MAX_TOKENS];
    struct Fixture *f = &fixture;
    static const enum EntropyControl controls[] = {CONTROL_NONE, CONTROL_KL_COV};
    for (int c = 0; c < 2; c++) {
        covariance_fixture(f, controls[c], 3000);
        for (int t = 0; t < f->batch.num_tokens; t++)   /* -4, -3, .. 4 ulp of numbers up to 8 */
            f->old[t] = f->logp[t] + (float)(t % 9 - 4) * 0x1p-22f;
        f->batch.noise = 0x1p-20f;
        fixture_run(f);
        if (c == 0) memcpy(plain, f->dlogp, sizeof plain);
    }
    assert_memory_equal(plain, f->dlogp, (size_t)f->batch.num_tokens * sizeof(float));
    assert_true(f->stats.loss == f->stats.policy_loss);
    f->batch.noise = 0x1p-21f;
    fixture_run(f);
    int other = 0, wanted = 0;
    for (int t = 0; t < f->batch.num_tokens; t++) {
        other += plain[t] != f->dlogp[t];
        wanted += f->selected[t] && abs(t % 9 - 4) > 2;
    }
    assert_true(wanted > 3);
    assert_int_equal(other, wanted);
}

static void test_clip_cov_selection(void **state) {
    (void)state;
    struct Fixture *f = &fixture;
    int counted = covariance_fixture(f, CONTROL_CLIP_COV, MAX_SEQUENCES), selected = 0;
    static unsigned char again[MAX_TOKENS];
    fixture_run(f);
    for (int t = 0; t < f->batch.num_tokens; t++) {
        selected += f->selected[t];
        if (!f->selected[t]) continue;
        assert_true(naive_candidate(f, t));
        assert_true(f->dlogp[t] == 0);
    }
    assert_int_equal(selected, (int)(counted * 2e-4));
    memcpy(again, f->selected, sizeof again);
    objective_prepare(&f->objective, &f->batch);
    assert_memory_equal(again, f->selected, (size_t)f->batch.num_tokens);
    f->batch.ordinal++;
    objective_prepare(&f->objective, &f->batch);
    assert_memory_not_equal(again, f->selected, (size_t)f->batch.num_tokens);
    /* one of few candidates: all equally often, within five standard deviations */
    covariance_fixture(f, CONTROL_CLIP_COV, 60);
    int hits[180] = {0}, candidates = 0, draws = 4000;
    for (int i = 0; i < draws; i++) {
        f->batch.ordinal = (uint64_t)i;
        objective_prepare(&f->objective, &f->batch);
        for (int t = 0; t < 180; t++) hits[t] += f->selected[t];
    }
    for (int t = 0; t < 180; t++) candidates += naive_candidate(f, t);
    assert_true(candidates > 5);
    double mean = (double)draws / candidates;
    for (int t = 0; t < 180; t++)
        assert_true(fabs(hits[t] - (naive_candidate(f, t) ? mean : 0)) <= 5 * sqrt(mean));
}

/* ---- precision ------------------------------------------------------------------------------ */

/* The nearest number with `bits` significant bits, or multiple of `tiny` below it; ties to even. */
static double naive_round(double x, int bits, double tiny) {
    int exponent;
    frexp(x, &exponent);
    double unit = ldexp(1, exponent - bits);
    if (unit < tiny) unit = tiny;
    return nearbyint(x / unit) * unit;
}

static void test_rounding(void **state) {
    (void)state;
    struct Rng rng;
    rng_open(&rng, 1, RNG_TEST, 2);
    for (int i = 0; i < 200000; i++) {
        float x = rng_normal(&rng) * exp2f((float)(int)rng_below(&rng, 40) - 28);
        if (i % 3 == 0) x = (float)naive_round(x, 12, 0);   /* half of fp16's unit: ties */
        if (fabsf(x) > 60000) continue;
        assert_true(round_to_dtype(x, "bf16") == naive_round(x, 8, 0));
        assert_true(round_to_dtype(x, "fp16") == naive_round(x, 11, 0x1p-24));
        assert_true(round_to_dtype(x, "fp32") == x);
    }
    assert_true(isnan(round_to_dtype(NAN, "bf16")) && isnan(round_to_dtype(NAN, "fp16")));
    assert_true(round_to_dtype(-INFINITY, "bf16") == -INFINITY);
    assert_true(round_to_dtype(65519, "fp16") == 65504);
    assert_true(round_to_dtype(-65520, "fp16") == -INFINITY);
    /* half an ulp for |l| in 8..16 is .03 nats in bf16: the figure of the precision study */
    assert_true(fabsf(round_to_dtype(-8.03f, "bf16") + 8.03f) > .029f);
    struct Fixture *f = &fixture;
    f->objective = *objective_find("rloo"), f->objective.surrogate = SURROGATE_CLIP;
    f->objective.clip_low = f->objective.clip_high = 1;
    f->length[0] = f->length[1] = 1, f->reward[0] = 1, f->reward[1] = 0;
    fixture_link(f, 2, 2, 1);
    for (int t = 0; t < 2; t++) f->logp[t] = -8.03f, f->old[t] = -8.02f, f->entropy[t] = 1;
    f->batch.logp_dtype = "bf16";
    fixture_run(f);
    ASSERT_NEAR(f->dlogp[0], -.5, 1e-7);   /* both round to -8: the ratio is 1 */
    f->batch.logp_dtype = "fp16";
    fixture_run(f);                        /* the step is 1/128: 1028 and 1027 of them */
    ASSERT_NEAR(f->dlogp[0], -.5 * exp(-1. / 128), 1e-7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_presets),
        cmocka_unit_test(test_dual_clip_is_said),
        cmocka_unit_test(test_axes),
        cmocka_unit_test(test_advantages),
        cmocka_unit_test(test_equal_is_exact),
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_zero_and_non_finite),
        cmocka_unit_test(test_overflow),
        cmocka_unit_test(test_micro_batches),
        cmocka_unit_test(test_value_at_ratio_one),
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_logged_kl_is_not_clamped),
        cmocka_unit_test(test_kl_cov_selection),
        cmocka_unit_test(test_kl_cov_noise),
        cmocka_unit_test(test_clip_cov_selection),
        cmocka_unit_test(test_rounding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
