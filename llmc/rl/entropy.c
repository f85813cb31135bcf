/* Entropy controllers and two measures of evaluation. Theory: doc/objectives.md. */
#include "entropy.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define PI_INTEGRAL_GAIN 0.02     /* of zeta_max, per rollout and unit of relative error */
#define STEPS_AT_BOUND 20
#define TARGET_TOLERANCE 0.1      /* |H - H*| within this share of H* is on target */
#define SHRINKING 0.9             /* an error that fell to this share of itself is falling */

/* Starting value and bounds of zeta (repo_*) or starting coefficient (bonus), per scale. llm: the
   papers' values. repo_beta and everything of `tiny` are ours. */
static const struct {
    enum EntropyControl control;
    struct ControlRange { float start, min, max; } llm, tiny;
} ranges[] = {
    {CONTROL_REPO_R,    {1e-3f, 1e-4f, .05f}, {1e-3f, 1e-4f, 4}},
    {CONTROL_REPO_D,    {1, 1e-3f, 10},       {1, 1e-3f, 100}},
    {CONTROL_REPO_BETA, {1e-3f, 1e-4f, .1f},  {1e-3f, 1e-4f, 1}},
    {CONTROL_BONUS,     {1e-3f, 0, 0},        {1e-2f, 0, 0}},
};

bool entropy_options_preset(struct EntropyOptions *options, enum EntropyControl control,
                            const char *scale) {
    bool tiny = strcmp(scale, "tiny") == 0;
    if (!tiny && strcmp(scale, "llm") != 0) return false;
    *options = (struct EntropyOptions){
        .control = control, .rule = CONTROLLER_DOUBLE,
        .target = NAN, .target_ratio = tiny ? .5f : 1,
        .clip_high_start = .28f, .clip_high_min = .05f, .clip_high_max = 1, .clip_high_step = 1.1f,
        .coef_start = 0, .coef_max = .005f, .coef_delta = 1e-4f,
    };
    for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        if (ranges[i].control != control) continue;
        struct ControlRange range = tiny ? ranges[i].tiny : ranges[i].llm;
        if (control == CONTROL_BONUS) options->coef_start = range.start;
        else options->zeta_start = range.start, options->zeta_min = range.min,
             options->zeta_max = range.max;
    }
    return true;
}

void entropy_open(struct EntropyState *state, const struct EntropyOptions *options,
                  float objective_clip_high) {
    bool adapo = options->control == CONTROL_ADAPO;
    float clip_high = isnan(options->clip_high_start) ? objective_clip_high
                                                      : options->clip_high_start;
    *state = (struct EntropyState){
        .options = *options, .initial = NAN, .target = NAN,
        .integral = options->zeta_start, .coef = options->coef_start,
        .control = {.zeta = options->zeta_start, .clip_high = adapo ? clip_high : -1},
    };
    if (options->control == CONTROL_BONUS) state->control.entropy_coef = options->coef_start;
}

/* Names in trainer_state.json are older than the struct's. Bounds: no option can lead further out. */
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

static double clamp(double x, double low, double high) { return fmin(fmax(x, low), high); }

/* The paper's rule: double toward the target, halve away from it, and step over zero. */
static double zeta_double(const struct EntropyOptions *options, double zeta, double entropy,
                          double target) {
    double low = options->zeta_min, high = options->zeta_max;
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

/* Proportional and integral; the integral waits while the output is saturated the same way. */
static double zeta_pi(struct EntropyState *state, double entropy) {
    double high = state->options.zeta_max;
    double error = state->target > 0 ? (state->target - entropy) / state->target : 0;
    double output = high * error + state->integral;
    bool saturated = (output >= high && error > 0) || (output <= -high && error < 0);
    if (!saturated) state->integral += PI_INTEGRAL_GAIN * high * error;
    return clamp(output, -high, high);
}

/* Skywork-OR1: this rollout's updates use c if entropy is not above the target; then c moves. */
static void move_bonus(struct EntropyState *state, double entropy) {
    const struct EntropyOptions *options = &state->options;
    state->control.entropy_coef = entropy <= state->target ? (float)state->coef : 0;
    double delta = entropy < state->target ? options->coef_delta : -options->coef_delta;
    state->coef = clamp(state->coef + delta, 0, options->coef_max);
}

static void move_control(struct EntropyState *state, double entropy) {
    const struct EntropyOptions *options = &state->options;
    struct ControlState *control = &state->control;
    int toward = (state->target > entropy) - (state->target < entropy);
    switch (options->control) {
    case CONTROL_REPO_R: case CONTROL_REPO_D: case CONTROL_REPO_BETA:
        control->zeta = (float)(options->rule == CONTROLLER_PI
                                    ? zeta_pi(state, entropy)
                                    : zeta_double(options, control->zeta, entropy, state->target));
        break;
    case CONTROL_ADAPO:
        control->clip_high = (float)clamp(control->clip_high * pow(options->clip_high_step, toward),
                                          options->clip_high_min, options->clip_high_max);
        break;
    case CONTROL_ADAPTIVE_BONUS: move_bonus(state, entropy); break;
    default: break;   /* nothing to turn */
    }
}

static bool is_at_bound(const struct EntropyState *state) {
    const struct EntropyOptions *options = &state->options;
    const struct ControlState *control = &state->control;
    switch (options->control) {
    case CONTROL_REPO_R: case CONTROL_REPO_D: case CONTROL_REPO_BETA:
        return fabsf(control->zeta) >= options->zeta_max;
    case CONTROL_ADAPO:
        return control->clip_high <= options->clip_high_min ||
               control->clip_high >= options->clip_high_max;
    case CONTROL_ADAPTIVE_BONUS: return state->coef <= 0 || state->coef >= options->coef_max;
    default: return false;
    }
}

/* Counts rollouts at a bound and off target; after 20 of them compares the error with the one at
   their beginning, and starts over. */
static const char *watch_saturation(struct EntropyState *state, double entropy) {
    double error = fabs(entropy - state->target);
    if (!is_at_bound(state) || error <= TARGET_TOLERANCE * state->target) {
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
    if (!isfinite(entropy)) return NULL;   /* an empty rollout says nothing */
    if (state->rollouts++ == 0) {
        state->initial = entropy;
        state->target = isnan(state->options.target) ? entropy * state->options.target_ratio
                                                     : state->options.target;
    }
    state->cumulative += entropy;
    move_control(state, entropy);
    return watch_saturation(state, entropy);
}

double entropy_repo_d_sum(int n, const float *advantage, const float *logp, const float *entropy,
                          const float *q, const float *r) {
    double sum = 0;
    for (int t = 0; t < n; t++) {
        double l = logp[t], H = entropy[t];
        double term = advantage[t] * (exp(l) * (l + H) - (r[t] + H * q[t]));
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

/* 1 - prod_{i = n-c+1}^{n} (1 - k/i): no binomial coefficient is ever formed. With n - c < k the
   product contains i = k, whose factor is exactly 0. */
double pass_at_k(int n, int c, int k) {
    if (k > n) return NAN;
    double all_wrong = 1;
    for (int i = n - c + 1; i <= n; i++) all_wrong *= 1 - (double)k / i;
    return 1 - all_wrong;
}
