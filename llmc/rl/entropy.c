/* Entropy controls and controllers, and two measures of evaluation. Theory: doc/objectives.md. */
#include "entropy.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define PI_INTEGRAL_GAIN 0.02     /* per rollout, times zeta_max and the relative error */
#define STEPS_AT_BOUND 20
#define TARGET_TOLERANCE 0.1      /* H is on target if |H - H*| is within this share of H* */
#define SHRINKING 0.9             /* |H - H*| is shrinking if it fell to this share or below */

static double clamp(double x, double low, double high) { return fmin(fmax(x, low), high); }

/* ---- functions of the rows of entropy_controls ---------------------------------------------- */

/* REPO's rule (2603.11682). A positive zeta raises entropy, a negative one lowers it. If zeta
   pushes the right way, its size doubles, up to max; if the wrong way, it halves, and below min it
   changes its sign. */
static double zeta_double(const struct ControlRange *range, double zeta, double entropy,
                          double target) {
    double low = range->min, high = range->max;
    if (entropy > target) {
        if (zeta < 0) return fmax(-high, 2 * zeta);
        return zeta / 2 < low ? -low : zeta / 2;
    }
    if (entropy < target) {
        if (zeta > 0) return fmin(high, 2 * zeta);
        return zeta / 2 > -low ? low : zeta / 2;   /* 0 becomes +low too */
    }
    return zeta;
}

/* A PI controller: the output is a proportional part plus an integral of the error. The integral is
   not changed while the output is at the bound that the error pushes it toward. */
static double zeta_pi(struct EntropyState *state, double entropy) {
    double high = state->options.range.max;
    double error = state->target > 0 ? (state->target - entropy) / state->target : 0;
    double output = high * error + state->integral;
    bool saturated = (output >= high && error > 0) || (output <= -high && error < 0);
    if (!saturated) state->integral += PI_INTEGRAL_GAIN * high * error;
    return clamp(output, -high, high);
}

static void move_zeta(struct EntropyState *state, double entropy) {
    const struct EntropyOptions *options = &state->options;
    float *zeta = &state->control.zeta;
    *zeta = (float)(options->rule == CONTROLLER_PI
                        ? zeta_pi(state, entropy)
                        : zeta_double(&options->range, *zeta, entropy, state->target));
}

static bool zeta_is_at_bound(const struct EntropyState *state) {
    return fabsf(state->control.zeta) >= state->options.range.max;
}

/* Why zeta could never move as it should with these options, or NULL. */
static const char *zeta_problem(const struct EntropyOptions *options) {
    const struct ControlRange *range = &options->range;
    bool doubles = options->rule == CONTROLLER_DOUBLE;
    if (range->max <= 0) return "--zeta-max 0 leaves zeta nothing to move in";
    if (doubles && range->min > range->max) return "--zeta-min is larger than --zeta-max";
    if (doubles && range->min <= 0)
        return "--zeta-min 0 never lets --controller double step over zero; set it above 0";
    if (fabsf(range->start) > range->max) return "--zeta-start is beyond --zeta-max";
    if (doubles && range->start != 0 && fabsf(range->start) < range->min)
        return "--zeta-start is smaller than --zeta-min";
    bool aims_at_zero = isnan(options->target) ? options->target_ratio <= 0 : options->target <= 0;
    if (!doubles && aims_at_zero)
        return "--controller pi measures errors as a share of the target, which is 0";
    return NULL;
}

static void move_clip_high(struct EntropyState *state, double entropy) {
    const struct ControlRange *range = &state->options.range;
    int toward = (state->target > entropy) - (state->target < entropy);
    float *clip_high = &state->control.clip_high;
    *clip_high = (float)clamp(*clip_high * pow(range->step, toward), range->min, range->max);
}

static bool clip_high_is_at_bound(const struct EntropyState *state) {
    const struct ControlRange *range = &state->options.range;
    return state->control.clip_high <= range->min || state->control.clip_high >= range->max;
}

static const char *clip_high_problem(const struct EntropyOptions *options) {
    const struct ControlRange *range = &options->range;
    if (range->min > range->max) return "--clip-high-min is larger than --clip-high-max";
    if (range->start < range->min || range->start > range->max)
        return "--clip-high, where adapo starts, is outside --clip-high-min and --clip-high-max";
    if (range->step <= 1) return "--clip-high-step 1 never moves the bound; set it above 1";
    return NULL;
}

/* Skywork-OR1's rule (2505.22312): the updates on this rollout use the coefficient c if entropy is
   not above the target, else 0. Then c moves by one step. */
static void move_coef(struct EntropyState *state, double entropy) {
    const struct ControlRange *range = &state->options.range;
    state->control.entropy_coef = entropy <= state->target ? (float)state->coef : 0;
    double step = entropy < state->target ? range->step : -range->step;
    state->coef = clamp(state->coef + step, range->min, range->max);
}

static bool coef_is_at_bound(const struct EntropyState *state) {
    return state->coef <= state->options.range.min || state->coef >= state->options.range.max;
}

static const char *coef_problem(const struct EntropyOptions *options) {
    const struct ControlRange *range = &options->range;
    if (range->step <= 0) return "--entropy-coef-step 0 never moves the coefficient";
    if (range->max <= 0) return "--entropy-coef-max 0 leaves no bonus";
    if (range->start < 0 || range->start > range->max)
        return "--entropy-coef, where adaptive_bonus starts, is outside 0 and --entropy-coef-max";
    return NULL;
}

/* REPO (2603.11682): the advantage that the surrogate uses. In general A' = A - beta L, L = l + H.
   repo_r has beta = zeta |A|, uses l in place of L, and never changes the sign of A. */
static double repo_r(const struct ControlState *control, double advantage, double logp,
                     double entropy) {
    (void)entropy;
    if (advantage > 0) return fmax(0, advantage * (1 - control->zeta * logp));
    return advantage < 0 ? fmin(0, advantage * (1 + control->zeta * logp)) : 0;
}

static double repo_d(const struct ControlState *control, double advantage, double logp,
                     double entropy) {
    return advantage - control->repo_d_beta * (logp + entropy);
}

static double repo_beta(const struct ControlState *control, double advantage, double logp,
                        double entropy) {
    return advantage - control->zeta * (logp + entropy);
}

/* ---- the controls --------------------------------------------------------------------------- */

#define TARGET "scale entropy-target entropy-target-ratio"
#define VALUE(member) offsetof(struct ControlState, member)
#define ZETA                                                                                     \
    .option = {"zeta-start", "zeta-min", "zeta-max", NULL}, .variable = "|zeta|",                \
    .value = VALUE(zeta), .has_target = true, .has_rule = true, .move = move_zeta,               \
    .is_at_bound = zeta_is_at_bound, .problem = zeta_problem

/* Ranges are start, min, max, step. The values under llm are the papers', except those of repo_beta
   and adapo, which are ours; all under tiny are ours. */
const struct Control entropy_controls[] = {
    [CONTROL_NONE] = {.name = "none"},
    [CONTROL_BONUS] = {
        .name = "bonus", .reads = "scale", .option.start = "entropy-coef",
        .llm = {.start = 1e-3f}, .tiny = {.start = 1e-2f}, .variable = "coefficient",
        .value = VALUE(entropy_coef), .logged = {{"entropy_coef", VALUE(entropy_coef)}},
        .has_bonus = true},
    [CONTROL_ADAPTIVE_BONUS] = {
        .name = "adaptive_bonus", .reads = TARGET,
        .option = {"entropy-coef", NULL, "entropy-coef-max", "entropy-coef-step"},
        .llm = {0, 0, .005f, 1e-4f}, .tiny = {0, 0, .005f, 1e-4f}, .variable = "coefficient",
        .value = VALUE(entropy_coef), .logged = {{"entropy_coef", VALUE(entropy_coef)}},
        .has_target = true, .move = move_coef, .is_at_bound = coef_is_at_bound,
        .problem = coef_problem, .has_bonus = true},
    [CONTROL_REPO_R] = {
        .name = "repo_r", ZETA, .reads = TARGET " controller", .llm = {1e-3f, 1e-4f, .05f, 0},
        .tiny = {1e-3f, 1e-4f, 4, 0}, .logged = {{"repo_zeta", VALUE(zeta)}}, .advantage = repo_r},
    [CONTROL_REPO_D] = {
        .name = "repo_d", ZETA, .reads = TARGET " controller repo-d-signed",
        .llm = {1, 1e-3f, 10, 0}, .tiny = {1, 1e-3f, 100, 0},
        .logged = {{"repo_zeta", VALUE(zeta)}, {"repo_d_beta", VALUE(repo_d_beta)}},
        .advantage = repo_d, .measures_change = true},
    [CONTROL_REPO_BETA] = {
        .name = "repo_beta", ZETA, .reads = TARGET " controller", .llm = {1e-3f, 1e-4f, .1f, 0},
        .tiny = {1e-3f, 1e-4f, 1, 0}, .logged = {{"repo_zeta", VALUE(zeta)}},
        .advantage = repo_beta},
    [CONTROL_ADAPO] = {
        .name = "adapo", .reads = TARGET,
        .option = {"clip-high", "clip-high-min", "clip-high-max", "clip-high-step"},
        .llm = {.28f, .05f, 1, 1.1f}, .tiny = {.28f, .05f, 1, 1.1f}, .variable = "clip_high",
        .value = VALUE(clip_high), .logged = {{"clip_high", VALUE(clip_high)}},
        .has_target = true, .move = move_clip_high, .is_at_bound = clip_high_is_at_bound,
        .problem = clip_high_problem, .moves_clip_high = true},
    [CONTROL_CLIP_COV] = {.name = "clip_cov", .selects = SELECT_SILENCED},
    [CONTROL_KL_COV] = {.name = "kl_cov", .selects = SELECT_PENALISED},
    {.name = NULL},
};

/* ---- controllers ---------------------------------------------------------------------------- */

bool entropy_options_preset(struct EntropyOptions *options, enum EntropyControl control,
                            const char *scale) {
    bool tiny = strcmp(scale, "tiny") == 0;
    if (!tiny && strcmp(scale, "llm") != 0) return false;
    const struct Control *row = &entropy_controls[control];
    *options = (struct EntropyOptions){.control = control, .rule = CONTROLLER_DOUBLE,
                                       .target = NAN, .target_ratio = tiny ? .5f : 1,
                                       .range = tiny ? row->tiny : row->llm};
    return true;
}

const char *entropy_options_problem(const struct EntropyOptions *options) {
    const struct Control *row = &entropy_controls[options->control];
    return row->problem ? row->problem(options) : NULL;
}

bool entropy_describe(const struct EntropyOptions *options, char *out, size_t capacity) {
    const struct Control *row = &entropy_controls[options->control];
    const struct ControlRange *range = &options->range;
    char target[64] = "", bounds[64] = "", step[32] = "";
    if (!row->variable) return false;
    if (row->has_target && isnan(options->target))
        snprintf(target, sizeof target, "target %g x the first rollout's entropy; ",
                 options->target_ratio);
    else if (row->has_target)
        snprintf(target, sizeof target, "target %g nats; ", options->target);
    if (row->move) snprintf(bounds, sizeof bounds, " in [%g, %g]", range->min, range->max);
    if (row->option.step) snprintf(step, sizeof step, ", step %g", range->step);
    snprintf(out, capacity, "%s%s from %g%s%s%s", target, row->variable, range->start, bounds, step,
             !row->has_rule ? "" : options->rule == CONTROLLER_PI ? ", controller pi"
                                                                  : ", controller double");
    return true;
}

void entropy_open(struct EntropyState *state, const struct EntropyOptions *options) {
    const struct Control *row = &entropy_controls[options->control];
    float start = options->range.start;
    *state = (struct EntropyState){.options = *options, .initial = NAN, .target = NAN,
                                   .integral = start, .coef = start, .control.clip_high = -1};
    if (row->variable) *(float *)((char *)&state->control + row->value) = start;
}

bool entropy_describe_state(const struct EntropyState *state, char *out, size_t capacity) {
    const struct Control *row = &entropy_controls[state->options.control];
    char target[64] = "";
    if (!row->move) return false;
    /* adaptive_bonus: control.entropy_coef is 0 after a rollout above the target; coef is what the
       controller keeps. */
    double value = row->move == move_coef ? state->coef
                                          : *(const float *)((const char *)&state->control +
                                                             row->value);
    if (row->has_target && !isnan(state->target))
        snprintf(target, sizeof target, ", target %.4g nats", state->target);
    snprintf(out, capacity, "%s stands at %.4g%s", row->has_rule ? "zeta" : row->variable, value,
             target);
    return true;
}

/* Names in trainer_state.json, which stay as they are although members were renamed, so that older
   checkpoints can be read. Bounds: what the options' ranges can lead to; a value outside means a
   damaged file. */
#define SAVED(type, member, name) FIELD(type, struct EntropyState, member, name)
static const struct Field saved_fields[] = {
    {SAVED(FIELD_REAL, initial, "entropy_initial"), 0, 1e6, .or_nan = true},
    {SAVED(FIELD_REAL, target, "entropy_target"), -1e9, 1e9, .or_nan = true},
    {SAVED(FIELD_REAL, cumulative, "entropy_cumulative"), -1e18, 1e18},
    {SAVED(FIELD_REAL, integral, "entropy_integral"), -1e18, 1e18},
    {SAVED(FIELD_INTEGER, rollouts, "entropy_rollouts"), 0, 1e12},
    {SAVED(FIELD_INTEGER, steps_at_bound, "entropy_steps_at_bound"), 0, 1000},
    {SAVED(FIELD_REAL, error_at_bound, "entropy_error_at_bound"), 0, 1e9},
    {SAVED(FIELD_REAL, coef, "entropy_bonus"), -1000, 1000},
    {SAVED(FIELD_REAL, control.zeta, "zeta"), -1000, 1000},
    {SAVED(FIELD_REAL, control.clip_high, "clip_high"), -1, 1000},
    {SAVED(FIELD_REAL, control.entropy_coef, "entropy_coef"), -1000, 1000},
    {SAVED(FIELD_REAL, control.repo_d_beta, "repo_d_beta"), -3e38, 3e38},
};
const struct FieldTable entropy_fields = {saved_fields,
                                          sizeof saved_fields / sizeof *saved_fields};

/* The warning of entropy_update. Counts consecutive rollouts at a bound and off target. After 20 it
   compares |H - H*| with that of the first of them, and starts to count again. */
static const char *watch_saturation(struct EntropyState *state, double entropy) {
    const struct Control *row = &entropy_controls[state->options.control];
    double error = fabs(entropy - state->target);
    bool off_target = error > TARGET_TOLERANCE * state->target;
    if (!row->is_at_bound || !row->is_at_bound(state) || !off_target) {
        state->steps_at_bound = 0;
        return NULL;
    }
    if (state->steps_at_bound++ == 0) state->error_at_bound = error;
    if (state->steps_at_bound < STEPS_AT_BOUND) return NULL;
    state->steps_at_bound = 0;
    if (error <= SHRINKING * state->error_at_bound) return NULL;
    return entropy < state->target
        ? "the entropy controller has been at its bound for 20 rollouts with entropy more than "
          "10 % below its target and not rising: widen its bounds, change the control, or lower "
          "the target, which may be unattainable (right answers allow at most the log of their "
          "number)"
        : "the entropy controller has been at its bound for 20 rollouts with entropy more than "
          "10 % above its target and not falling: widen its bounds, change the control, or raise "
          "the target, which may be unattainable";
}

const char *entropy_update(struct EntropyState *state, double entropy) {
    if (!isfinite(entropy)) return NULL;   /* a rollout without tokens has no mean entropy */
    if (state->rollouts++ == 0) {
        state->initial = entropy;
        state->target = isnan(state->options.target) ? entropy * state->options.target_ratio
                                                     : state->options.target;
    }
    state->cumulative += entropy;
    const struct Control *row = &entropy_controls[state->options.control];
    if (row->move) row->move(state, entropy);
    return watch_saturation(state, entropy);
}

double entropy_repo_d_sum(int n, const float *advantage, const float *logp, const float *entropy,
                          const float *q, const float *qlog) {
    double sum = 0;
    for (int t = 0; t < n; t++) {
        double l = logp[t], H = entropy[t];
        double term = advantage[t] * (exp(l) * (l + H) - (qlog[t] + H * q[t]));
        if (isfinite(term)) sum += term;
    }
    return sum;
}

void entropy_set_repo_d(struct EntropyState *state, double sum, double tokens) {
    double change = tokens > 0 ? sum / tokens : 0;
    if (!state->options.repo_d_signed) change = fabs(change);
    state->control.repo_d_beta = (float)(state->control.zeta * change);
}

void entropy_attention_means(double *mean, const float *entropy, const int *position, int heads,
                             int n) {
    for (int h = 0; h < heads; h++) {
        double sum = 0;
        int tokens = 0;
        for (int t = 0; t < n; t++) {
            if (position[t] == 0) continue;
            sum += (double)entropy[(size_t)h * (size_t)n + (size_t)t] / log(position[t] + 1.0);
            tokens++;
        }
        mean[h] = sum / tokens;
    }
}

double mean_of(const float *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    return n > 0 ? sum / n : NAN;
}

/* 1 - prod_{i = n-c+1}^{n} (1 - k/i), the same number without binomial coefficients, which would
   overflow. With n - c >= k every factor is within [0, 1]; the other case returns before. */
double pass_at_k(int n, int c, int k) {
    if (k > n || c > n || k < 0 || c < 0) return NAN;
    if (n - c < k) return 1;
    double all_wrong = 1;
    for (int i = n - c + 1; i <= n; i++) all_wrong *= 1 - (double)k / i;
    return 1 - all_wrong;
}
