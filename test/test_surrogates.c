/* Every objective's a_t and b_t against finite differences of an independent J, in double precision
   and with what the papers hold constant (stop-gradient) frozen: every preset x entropy control x
   KL x overlong rule, every combination of axes; ratios inside, at and outside the clip range and
   beyond the clamps; both signs of the advantage; equal, unscored and truncated completions. */
#include "objective_fixture.h"

/* The numbers that J treats as constants, and on which side of the clip's edge a token is to be
   differentiated. */
static struct {
    double advantage[MAX_TOKENS];     /* A_t after entropy control */
    double mean[MAX_SEQUENCES];       /* of l - l_old */
    int side[MAX_TOKENS];
} frozen;

/* Where a completion's log-ratio is put, relative to the range (low, high) of its objective. */
enum Place { AT_ONE, MID_HIGH, MID_LOW, EDGE_HIGH, EDGE_LOW, OUT_HIGH, OUT_LOW, BEYOND_DUAL,
             CLAMP_UP, CLAMP_DOWN, NUM_PLACES };

static double effective_high(const struct Fixture *f) {
    bool moved = f->objective.control == CONTROL_ADAPO && f->batch.control.clip_high >= 0;
    return 1 + (double)(moved ? f->batch.control.clip_high : f->objective.clip_high);
}

static double effective_low(const struct Fixture *f) { return 1 - (double)f->objective.clip_low; }

static double place_log_ratio(const struct Fixture *f, enum Place place) {
    double high = log(effective_high(f));
    double low = effective_low(f) > 0 ? log(effective_low(f)) : -4;   /* cispo has none */
    switch (place) {
    case MID_HIGH: return high / 2;
    case MID_LOW: return low / 2;
    case EDGE_HIGH: return high;
    case EDGE_LOW: return low;
    case OUT_HIGH: return 1.5 * high + 1e-3;
    case OUT_LOW: return 1.5 * low - 1e-3;
    case BEYOND_DUAL: return log(6);
    case CLAMP_UP: return 25;
    case CLAMP_DOWN: return -25;
    default: return 0;
    }
}

/* Old log-probabilities of one completion, three tokens or one. At an edge the float32 values are
   nudged to the inside, and differences are taken on that side only. */
static void place_completion(struct Fixture *f, int i, enum Place place) {
    static const double jitter[3] = {.25, -.125, -.125};
    bool whole = f->objective.ratio == RATIO_SEQUENCE && f->length[i] == 3;
    double target = place_log_ratio(f, place);
    int inward = place == EDGE_HIGH ? -1 : place == EDGE_LOW ? 1 : 0;
    for (int k = 0; k < f->length[i]; k++) {
        int t = f->start[i] + k;
        f->old[t] = (float)(f->logp[t] - target - (whole ? jitter[k] : 0));
        frozen.side[t] = inward;
    }
    for (int k = 0; k < f->length[i] && inward != 0; k++) {
        int t = f->start[i] + k;
        for (;;) {
            double ratio = 0;
            for (int j = f->start[i]; j < f->start[i + 1]; j++)
                ratio += (f->logp[j] - (double)f->old[j]) / f->length[i];
            if (!whole) ratio = f->logp[t] - (double)f->old[t];
            if (inward * (ratio - target) >= 1e-10) break;
            f->old[t] = nextafterf(f->old[t], inward > 0 ? -INFINITY : INFINITY);
        }
    }
}

/* Groups of two: each place with rewards (1, -1/2), then equal rewards, an unscored completion, and
   a truncated one. Lengths 3, now and then 1. */
static void fixture_build(struct Fixture *f) {
    static const float ref_offset[] = {0, .3f, -.7f, 2.4f, 3.1f, 25, -25, -9, -12};
    static const float levels[] = {-.05f, -.7f, -2, -5, -8};
    int pairs = NUM_PLACES + 4, n = 0;
    struct ControlState control = f->batch.control;
    const float *ref = f->batch.logp_ref;
    for (int i = 0; i < 2 * pairs; i++) {
        f->reward[i] = i % 2 == 0 ? 1 : -.5f;
        f->length[i] = i % 7 == 6 ? 1 : 3;
        f->ended[i] = 1;
    }
    f->reward[2 * NUM_PLACES] = f->reward[2 * NUM_PLACES + 1] = .1f;
    f->reward[2 * NUM_PLACES + 2] = NAN;
    f->ended[2 * NUM_PLACES + 5] = 0;
    fixture_link(f, 2 * pairs, 2, 3);
    f->batch.control = control;
    f->batch.logp_ref = ref;
    n = f->batch.num_tokens;
    for (int t = 0; t < n; t++) {
        f->logp[t] = levels[t % 5] - .01f * (float)(t % 13);
        f->entropy[t] = .1f + .3f * (float)(t % 8);
        f->ref[t] = f->logp[t] + ref_offset[t % 9];
    }
    for (int i = 0; i < 2 * pairs; i++) place_completion(f, i, i / 2 % NUM_PLACES);
}

/* The advantage after entropy control, in double, straight from the reward pairs. */
static double reference_advantage(const struct Fixture *f, int t) {
    const struct Objective *o = &f->objective;
    const struct ControlState *control = &f->batch.control;
    int i = f->sequence_of[t], pair = i & ~1;
    double x[2], A;
    for (int k = 0; k < 2; k++) {
        bool full = f->length[pair + k] == 3;   /* of max_tokens 3: the whole penalty */
        x[k] = f->reward[pair + k] - (o->overlong == OVERLONG_SOFT && full ? 1 : 0);
    }
    double mine = x[i & 1], other = x[!(i & 1)];
    switch (o->advantage) {
    case ADVANTAGE_NONE: A = mine; break;
    case ADVANTAGE_MEAN: A = (mine - other) / 2; break;
    case ADVANTAGE_LOO: A = mine - other; break;
    default: A = (mine - other) / 2 / (fabs(mine - other) / sqrt(2) + o->std_epsilon); break;
    }
    double l = f->logp[t], L = l + f->entropy[t], zeta = control->zeta;
    if (f->batch.logp_ref && o->kl == KL_K1) {
        double gap = l - f->ref[t];
        A -= o->kl_coef * (gap > 20 ? 20 : gap < -20 ? -20 : gap);
    }
    if (o->control == CONTROL_REPO_R && A != 0) {
        double boosted = A - zeta * fabs(A) * l;
        A = boosted * A > 0 ? boosted : 0;
    }
    if (o->control == CONTROL_REPO_D) A -= control->repo_d_beta * L;
    if (o->control == CONTROL_REPO_BETA) A -= zeta * L;
    return A;
}

static double limited(double x) { return x > 20 ? 20 : x < -20 ? -20 : x; }

/* The surrogate's f_t(l): what the papers minimise at one token; all other state is constant. */
static double reference_policy(const struct Fixture *f, int t, double l, double H) {
    (void)H;
    const struct Objective *o = &f->objective;
    double A = frozen.advantage[t], l0 = f->logp[t];
    double low = effective_low(f), high = effective_high(f);
    double mean = frozen.mean[f->sequence_of[t]];
    bool whole = o->ratio == RATIO_SEQUENCE;
    bool stuck = fabs(whole ? mean : l0 - f->old[t]) > 20;
    double fixed = exp(limited(whole ? mean : l0 - f->old[t]));
    double ratio = whole ? fixed * (stuck ? 1 : exp(l - l0)) : exp(limited(l - f->old[t]));
    if (o->control == CONTROL_CLIP_COV && objective_scope(o) == SCOPE_BATCH && f->selected[t])
        return 0;
    if (o->surrogate == SURROGATE_CE) return -l;
    if (o->surrogate == SURROGATE_REINFORCE) return -A * l;
    if (o->surrogate == SURROGATE_CISPO) {
        double bounded = fixed < low ? low : fixed > high ? high : fixed;
        return -bounded * A * (stuck ? l0 : l);
    }
    double bounded = ratio < low ? low : ratio > high ? high : ratio;
    double smaller = ratio * A < bounded * A ? ratio * A : bounded * A;
    if (o->dual_clip > 0 && A < 0 && smaller < o->dual_clip * A) smaller = o->dual_clip * A;
    return -smaller;
}

/* KL, kl_cov's penalty and the bonus. Differentiated apart from the surrogate, which may be 1e8
   times larger and would hide them in its rounding. */
static double reference_extra(const struct Fixture *f, int t, double l, double H) {
    const struct Objective *o = &f->objective;
    double value = 0;
    if (o->control == CONTROL_KL_COV && objective_scope(o) == SCOPE_BATCH && f->selected[t])
        value += fabs(limited(l - f->old[t]));
    if (f->batch.logp_ref && o->kl_coef != 0) {
        double d = limited(f->ref[t] - l), k3 = exp(d) - d - 1;
        if (o->kl == KL_K2) value += o->kl_coef * d * d / 2;
        if (o->kl == KL_K3) value += o->kl_coef * (k3 > 10 ? 10 : k3);
    }
    if (o->control == CONTROL_BONUS || o->control == CONTROL_ADAPTIVE_BONUS)
        value -= f->batch.control.entropy_coef * H;
    return value;
}

/* Central where f is smooth; second order from the inner side at an edge. */
static double slope_of(double (*term)(const struct Fixture *, int, double, double),
                       const struct Fixture *f, int t) {
    double l = f->logp[t], H = f->entropy[t], h = 1e-5, step = h * frozen.side[t];
    if (frozen.side[t] == 0) return (term(f, t, l + h, H) - term(f, t, l - h, H)) / (2 * h);
    return (4 * term(f, t, l + step, H) - term(f, t, l + 2 * step, H) - 3 * term(f, t, l, H)) /
           (2 * step);
}

static double reference_weight(const struct Fixture *f, int i) {
    const struct Objective *o = &f->objective;
    double tokens = 0, sequences = 0;
    int mine = 0;
    for (int j = 0; j < f->batch.num_sequences; j++) {
        bool pair = !isnan(f->reward[j & ~1]) && !isnan(f->reward[j | 1]);
        bool scored = o->advantage == ADVANTAGE_NONE ? !isnan(f->reward[j]) : pair;
        if (!scored || (o->overlong == OVERLONG_MASK && !f->ended[j])) continue;
        tokens += f->length[j], sequences++;
        if (j == i) mine = 1;
    }
    if (o->aggregation == AGGREGATE_TOKEN_MEAN) return mine / tokens;
    if (o->aggregation == AGGREGATE_SEQUENCE_MEAN) return mine / sequences / f->length[i];
    return mine / (3. * f->batch.num_sequences);
}

static void check_fixture(struct Fixture *f) {
    double loss = 0;
    for (int i = 0; i < f->batch.num_sequences; i++) {
        frozen.mean[i] = 0;
        for (int t = f->start[i]; t < f->start[i + 1]; t++)
            frozen.mean[i] += (f->logp[t] - (double)f->old[t]) / f->length[i];
    }
    for (int t = 0; t < f->batch.num_tokens; t++) {
        double w = reference_weight(f, f->sequence_of[t]);
        frozen.advantage[t] = w == 0 ? 0 : reference_advantage(f, t);
        double a = 0, b = 0, l = f->logp[t], H = f->entropy[t];
        if (w != 0) {
            a = w * (slope_of(reference_policy, f, t) + slope_of(reference_extra, f, t));
            b = w * (reference_extra(f, t, l, H + .5) - reference_extra(f, t, l, H - .5));
            loss += w * (reference_policy(f, t, l, H) + reference_extra(f, t, l, H));
        }
        /* advantage and weight are float32: 6e-8 each, of a difference of terms of order w */
        double bound = 1e-6 * fabs(a) + 2e-7 * w * (1 + fabs(frozen.advantage[t]));
        if (!(fabs(f->dlogp[t] - a) <= bound) || !(fabs(f->dentropy[t] - b) <= 1e-7 * w))
            fail_msg("%s control %d kl %d overlong %d, token %d (place %d): a %.9g not %.9g, "
                     "b %.9g not %.9g", f->objective.name, f->objective.control, f->objective.kl,
                     f->objective.overlong, t, f->sequence_of[t] / 2, f->dlogp[t], a,
                     f->dentropy[t], b);
    }
    ASSERT_CLOSE(f->objective.name, fabs(f->stats.loss - loss), 1e-6 * fabs(loss) + 1e-7);
}

/* One objective on the fixture; kl < 0 = no reference. The sign of zeta goes with kl. */
static void check_objective(struct Fixture *f, struct Objective objective, int kl) {
    objective.kl = kl < 0 ? KL_K3 : (enum KlEstimator)kl;
    objective.kl_coef = kl < 0 ? 0 : .04f;
    f->objective = objective;
    f->batch.logp_ref = kl < 0 ? NULL : f->ref;
    f->batch.control = (struct ControlState){.zeta = kl % 2 == 0 ? .3f : -.2f, .clip_high = .5f,
                                             .entropy_coef = .01f, .repo_d_beta = .15f};
    fixture_build(f);
    fixture_run(f);
    check_fixture(f);
}

/* Every preset x entropy control x KL (off, k1, k2, k3) x overlong, half of them with dual clip. */
static void test_differences_presets(void **state) {
    (void)state;
    for (int p = 0; objective_row(p) != NULL; p++)
        for (int c = 0; entropy_controls[c].name; c++)
            for (int kl = -1; kl <= KL_K3; kl++)
                for (int over = OVERLONG_NONE; over <= OVERLONG_SOFT; over++) {
                    struct Objective objective = *objective_row(p);
                    objective.control = c, objective.overlong = over;
                    objective.dual_clip = (p + c) % 2 == 0 ? 3 : 0;
                    check_objective(&fixture, objective, kl);
                }
}

/* Every combination of advantage, ratio, surrogate, aggregation and control, preset or not. */
static void test_differences_axes(void **state) {
    (void)state;
    struct Objective objective = *objective_find("grpo");
    for (int i = 0; entropy_controls[i / 144].name; i++) {
        objective.advantage = i % 4;
        objective.ratio = i / 4 % 3;
        objective.surrogate = i / 12 % 4;
        objective.aggregation = i / 48 % 3;
        objective.control = i / 144;
        check_objective(&fixture, objective, i % 5 - 1 > KL_K3 ? -1 : i % 5 - 1);
    }
}

/* A ratio exactly at the bound has the gradient of ratios inside. In float32 that can be tested
   only with a bound and a ratio of 1. */
static void test_bound_is_inside(void **state) {
    (void)state;
    struct Fixture *f = &fixture;
    f->objective = *objective_find("rloo");
    f->objective.surrogate = SURROGATE_CLIP;
    f->length[0] = f->length[1] = 1;
    f->reward[0] = 1, f->reward[1] = 0;
    fixture_link(f, 2, 2, 1);
    for (int t = 0; t < 2; t++) f->logp[t] = f->old[t] = -1.5f, f->entropy[t] = 1;
    fixture_run(f);
    assert_true(f->dlogp[0] == -.5f && f->dlogp[1] == .5f);
    assert_true(f->stats.clipped_low == 0 && f->stats.clipped_high == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_differences_presets),
        cmocka_unit_test(test_differences_axes),
        cmocka_unit_test(test_bound_is_inside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
