/* Objectives: advantages, surrogates, presets. Every formula: doc/objectives.md.

   Presets and axes | rewards to advantages | weights | one token | scope batch | coefficients.
   Arithmetic is double inside and float32 at the borders: a token costs an exponential or two
   here and a product over the whole vocabulary in the head. */
#include "objectives.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "../base/rng.h"

#define LOG_RATIO_LIMIT 20.0   /* on l - l_old and l_ref - l; beyond it the gradient is 0 */
#define K3_LIMIT 10.0          /* on the k3 estimate, likewise */
#define ZSCORE_EPSILON 1e-4
#define OVERLONG_SHARE 0.2     /* the soft penalty starts this share of max_tokens before its end */
#define CLIP_COV_SHARE 2e-4
#define CLIP_COV_LOW 1.0
#define CLIP_COV_HIGH 5.0
#define KL_COV_SHARE 2e-3

/* ---- presets and axes ----------------------------------------------------------------------- */

/* One row per preset; the last two columns are the group filter and the overlong rule. Not named in
   a row: no dual clip, and reference KL k3 with coefficient 0. */
#define ROW(name_, advantage_, ratio_, surrogate_, low_, high_, aggregation_, control_, filter_, \
            overlong_)                                                                           \
    {.name = name_, .advantage = ADVANTAGE_##advantage_, .ratio = RATIO_##ratio_,                \
     .surrogate = SURROGATE_##surrogate_, .clip_low = low_, .clip_high = high_,                  \
     .aggregation = AGGREGATE_##aggregation_, .control = CONTROL_##control_, .filter = filter_,  \
     .overlong = OVERLONG_##overlong_, .kl = KL_K3}

static const struct Objective presets[] = {
    /*  name         advant. ratio     surrogate  low     high   aggregation    control filt long */
    ROW("reinforce", NONE,   NONE,     REINFORCE, 0,      0,     TOKEN_MEAN,    NONE,   0,   NONE),
    ROW("rloo",      LOO,    NONE,     REINFORCE, 0,      0,     TOKEN_MEAN,    NONE,   0,   NONE),
    ROW("loop",      LOO,    TOKEN,    CLIP,      .0909f, .1f,   SEQUENCE_MEAN, NONE,   0,   NONE),
    ROW("grpo",      ZSCORE, TOKEN,    CLIP,      .2f,    .2f,   SEQUENCE_MEAN, NONE,   0,   NONE),
    ROW("dr_grpo",   MEAN,   TOKEN,    CLIP,      .2f,    .2f,   CONSTANT,      NONE,   0,   NONE),
    ROW("dapo",      ZSCORE, TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    NONE,   1,   SOFT),
    ROW("gspo",      ZSCORE, SEQUENCE, CLIP,      3e-4f,  4e-4f, SEQUENCE_MEAN, NONE,   0,   NONE),
    ROW("cispo",     ZSCORE, TOKEN,    CISPO,     1,      4,     TOKEN_MEAN,    NONE,   0,   NONE),
    ROW("repo",      LOO,    TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    REPO_R, 0,   NONE),
    ROW("repo_r",    LOO,    TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    REPO_R, 0,   NONE),
    ROW("repo_d",    LOO,    TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    REPO_D, 0,   NONE),
    ROW("adapo",     LOO,    TOKEN,    CLIP,      .2f,    .28f,  TOKEN_MEAN,    ADAPO,  0,   NONE),
    ROW("ce",        NONE,   NONE,     CE,        0,      0,     TOKEN_MEAN,    NONE,   0,   NONE),
};
enum { NUM_PRESETS = sizeof presets / sizeof *presets };

/* Values in the order of their enum: a word's index is its value. */
static const struct { const char *axis, *names; } axes[] = {
    {"advantage", "none mean zscore loo"},
    {"ratio", "none token sequence"},
    {"surrogate", "ce reinforce clip cispo"},
    {"aggregation", "token_mean sequence_mean constant"},
    {"entropy-control",
     "none bonus adaptive_bonus repo_r repo_d repo_beta adapo clip_cov kl_cov"},
    {"kl", "k1 k2 k3"},
    {"overlong", "none mask soft"},
};
enum { NUM_AXES = sizeof axes / sizeof *axes };

const struct Objective *objective_row(int i) {
    return i >= 0 && i < NUM_PRESETS ? &presets[i] : NULL;
}

const struct Objective *objective_find(const char *name) {
    for (int i = 0; i < NUM_PRESETS; i++)
        if (strcmp(presets[i].name, name) == 0) return &presets[i];
    return NULL;
}

const char *objective_names(void) {
    static char names[32 * NUM_PRESETS];
    int length = 0;
    for (int i = 0; i < NUM_PRESETS; i++)
        length += snprintf(names + length, sizeof names - (size_t)length, "%s%s",
                           i > 0 ? " " : "", presets[i].name);
    return names;
}

const char *objective_axis_names(const char *axis) {
    for (int i = 0; i < NUM_AXES; i++)
        if (strcmp(axes[i].axis, axis) == 0) return axes[i].names;
    return NULL;
}

int objective_axis_value(const char *axis, const char *name) {
    const char *word = objective_axis_names(axis);
    size_t length = strlen(name);
    for (int value = 0; word != NULL && length > 0; value++) {
        size_t span = strcspn(word, " ");
        if (span == length && strncmp(word, name, span) == 0) return value;
        if (word[span] == '\0') break;
        word += span + 1;
    }
    return -1;
}

const char *objective_axis_word(const char *axis, int value, char out[32]) {
    const char *word = objective_axis_names(axis);
    while (value-- > 0) word += strcspn(word, " ") + 1;
    snprintf(out, 32, "%.*s", (int)strcspn(word, " "), word);
    return out;
}

enum Scope objective_scope(const struct Objective *objective) {
    bool by_covariance = objective->control == CONTROL_CLIP_COV ||
                         objective->control == CONTROL_KL_COV;
    bool has_ratio = objective->surrogate == SURROGATE_CLIP ||
                     objective->surrogate == SURROGATE_CISPO;
    if (objective->surrogate == SURROGATE_CE) return SCOPE_TOKEN;   /* no ratio, no advantage */
    if (by_covariance) return SCOPE_BATCH;
    return has_ratio && objective->ratio == RATIO_SEQUENCE ? SCOPE_SEQUENCE : SCOPE_TOKEN;
}

void objective_describe(const struct Objective *objective, char *out, int capacity) {
    char advantage[32], ratio[32], surrogate[32], aggregation[32], control[32], kl[32];
    char overlong[32], range[96] = "", reference[64] = "";
    objective_axis_word("advantage", objective->advantage, advantage);
    objective_axis_word("ratio", objective->ratio, ratio);
    objective_axis_word("surrogate", objective->surrogate, surrogate);
    objective_axis_word("aggregation", objective->aggregation, aggregation);
    objective_axis_word("entropy-control", objective->control, control);
    objective_axis_word("kl", objective->kl, kl);
    objective_axis_word("overlong", objective->overlong, overlong);
    if (objective->surrogate == SURROGATE_CLIP || objective->surrogate == SURROGATE_CISPO)
        snprintf(range, sizeof range, " %g..%g of the %s ratio", 1 - objective->clip_low,
                 1 + objective->clip_high, ratio);
    if (objective->kl_coef != 0)
        snprintf(reference, sizeof reference, ", KL %s times %g", kl, objective->kl_coef);
    snprintf(out, (size_t)capacity,
             "%s: advantage %s, %s%s, %s, entropy control %s, group filter %s, overlong %s%s",
             objective->name, advantage, surrogate, range, aggregation, control,
             objective->filter ? "on" : "off", overlong, reference);
}

const char *objective_check_group(const struct Objective *objective, int group_size) {
    bool compares = objective->surrogate != SURROGATE_CE &&
                    objective->advantage != ADVANTAGE_NONE;
    if (!compares || group_size >= 2) return NULL;
    return "this advantage compares the completions of one prompt, so --group must be at least 2 "
           "(only --advantage none takes 1)";
}

const char *objective_check_axes(const struct Objective *objective) {
    bool ce = objective->surrogate == SURROGATE_CE;
    bool clips = objective->surrogate == SURROGATE_CLIP ||
                 objective->surrogate == SURROGATE_CISPO;
    bool repo = objective->control == CONTROL_REPO_R || objective->control == CONTROL_REPO_D ||
                objective->control == CONTROL_REPO_BETA;
    if (ce && (repo || objective->control == CONTROL_CLIP_COV ||
               objective->control == CONTROL_KL_COV))
        return "cross-entropy has no advantage for this entropy control to act on";
    if (objective->control == CONTROL_ADAPO && !clips)
        return "entropy control adapo moves the upper clip bound, and this surrogate has none";
    if (ce && objective->kl_coef > 0)
        return "cross-entropy has no KL term; set --kl-coef 0";
    if (objective->control == CONTROL_KL_COV && objective->ratio == RATIO_SEQUENCE)
        return "kl_cov penalises single tokens' ratios; use --ratio token";
    if (clips && objective->ratio == RATIO_NONE)
        return "this surrogate clips a ratio; use --ratio token or sequence";
    if (objective->filter && objective->advantage == ADVANTAGE_NONE)
        return "the group filter drops groups of equal rewards, which without a group baseline "
               "still carry signal; use --group-filter off";
    return NULL;
}

const char *objective_check_updates(const struct Objective *objective, int updates_per_rollout) {
    bool has_ratio = objective->surrogate == SURROGATE_CLIP ||
                     objective->surrogate == SURROGATE_CISPO;
    bool penalises = objective->control == CONTROL_KL_COV &&
                     objective->surrogate != SURROGATE_CE;
    if (updates_per_rollout > 1 || !(has_ratio || penalises)) return NULL;
    return "with one update per rollout every ratio is 1 when its gradient is taken: the clip "
           "range (and adapo, which moves it) and kl_cov are inert; use --minibatches or --epochs";
}

/* ---- rewards to advantages ------------------------------------------------------------------ */

int objective_filter_groups(const struct RewardBatch *batch, unsigned char *keep) {
    int groups = batch->count / batch->group_size, kept = 0;
    for (int g = 0; g < groups; g++) {
        const float *reward = batch->reward + (size_t)g * batch->group_size;
        int first = -1;
        keep[g] = 0;
        for (int i = 0; i < batch->group_size; i++) {
            if (!isfinite(reward[i])) continue;
            if (first < 0) first = i;
            if (reward[i] != reward[first]) keep[g] = 1;
        }
        kept += keep[g];
    }
    return kept;
}

/* 0 up to max_tokens - c, then linear to -1 at max_tokens, with c a fifth of it (DAPO, eq. 13). */
static double overlong_penalty(int length, int max_tokens) {
    double window = OVERLONG_SHARE * max_tokens;
    double excess = length - (max_tokens - window);
    if (excess <= 0 || window <= 0) return 0;
    return -fmin(excess / window, 1);
}

/* The reward the advantage is made from; NaN where the completion is unscored. */
static double final_reward(const struct Objective *objective, const struct RewardBatch *batch,
                           int i) {
    if (!isfinite(batch->reward[i])) return NAN;
    double penalty = objective->overlong == OVERLONG_SOFT
                         ? overlong_penalty(batch->length[i], batch->max_tokens) : 0;
    return batch->reward[i] + penalty;
}

struct GroupStats { int scored; bool equal; double mean, std; };

static struct GroupStats group_measure(const struct Objective *objective,
                                       const struct RewardBatch *batch, int first) {
    struct GroupStats group = {.equal = true};
    double reference = NAN, sum = 0, squares = 0;
    for (int i = first; i < first + batch->group_size; i++) {
        double reward = final_reward(objective, batch, i);
        if (isnan(reward)) continue;
        if (group.scored++ == 0) reference = reward;
        if (reward != reference) group.equal = false;
        sum += reward;
    }
    group.mean = sum / fmax(group.scored, 1);
    for (int i = first; i < first + batch->group_size; i++) {
        double reward = final_reward(objective, batch, i);
        if (!isnan(reward)) squares += (reward - group.mean) * (reward - group.mean);
    }
    group.std = sqrt(squares / fmax(group.scored - 1, 1));
    return group;
}

/* Equal rewards give exactly 0 by `equal`, not by subtraction: the mean of three .1 is not .1. */
static double advantage_of(enum AdvantageRule rule, double reward, const struct GroupStats *group) {
    double n = group->scored, centred = group->equal ? 0 : reward - group->mean;
    switch (rule) {
    case ADVANTAGE_NONE: return reward;
    case ADVANTAGE_MEAN: return centred;
    case ADVANTAGE_ZSCORE: return centred / (group->std + ZSCORE_EPSILON);
    case ADVANTAGE_LOO: return n / (n - 1) * centred;   /* = reward - mean of the others */
    }
    return 0;
}

void objective_advantages(const struct Objective *objective, const struct RewardBatch *batch,
                          float *advantage, unsigned char *active) {
    int enough = objective->advantage == ADVANTAGE_NONE ? 1 : 2;
    for (int first = 0; first + batch->group_size <= batch->count; first += batch->group_size) {
        struct GroupStats group = group_measure(objective, batch, first);
        for (int i = first; i < first + batch->group_size; i++) {
            double reward = final_reward(objective, batch, i);
            bool scored = !isnan(reward) && group.scored >= enough;
            bool masked = objective->overlong == OVERLONG_MASK && !batch->ended[i];
            double value = scored ? advantage_of(objective->advantage, reward, &group) : 0;
            advantage[i] = (float)fmin(fmax(value, -FLT_MAX), FLT_MAX);
            active[i] = scored && !masked;
        }
    }
}

/* ---- weights -------------------------------------------------------------------------------- */

struct WeightSums objective_weight_sums(int num_sequences, const int *length,
                                        const unsigned char *active) {
    struct WeightSums sums = {.all_sequences = num_sequences};
    for (int i = 0; i < num_sequences; i++) {
        if (!active[i] || length[i] <= 0) continue;
        sums.tokens += length[i];
        sums.sequences += 1;
    }
    return sums;
}

void objective_weights(const struct Objective *objective, struct WeightSums all, int max_tokens,
                       int num_sequences, const int *length, const unsigned char *active,
                       float *weight) {
    for (int i = 0; i < num_sequences; i++) {
        weight[i] = 0;
        if (!active[i] || length[i] <= 0) continue;
        switch (objective->aggregation) {
        case AGGREGATE_TOKEN_MEAN: weight[i] = (float)(1 / all.tokens); break;
        case AGGREGATE_SEQUENCE_MEAN: weight[i] = (float)(1 / (all.sequences * length[i])); break;
        case AGGREGATE_CONSTANT: weight[i] = (float)(1 / (all.all_sequences * max_tokens)); break;
        }
    }
}

/* ---- precision of log-probabilities --------------------------------------------------------- */

/* Round to nearest even, keeping `kept` of float32's 23 mantissa bits. */
static float round_mantissa(float x, int kept) {
    uint32_t bits, step = 1u << (23 - kept);
    memcpy(&bits, &x, sizeof bits);
    bits += step / 2 - 1 + ((bits / step) & 1);
    bits &= ~(step - 1);
    memcpy(&x, &bits, sizeof bits);
    return x;
}

float round_to_dtype(float x, const char *dtype) {
    if (dtype == NULL || !isfinite(x)) return x;
    if (strcmp(dtype, "bf16") == 0) return round_mantissa(x, 7);
    if (strcmp(dtype, "fp16") != 0) return x;
    if (fabsf(x) < 0x1p-14f) return rintf(x * 0x1p24f) * 0x1p-24f;   /* fp16's subnormals */
    float rounded = round_mantissa(x, 10);
    return fabsf(rounded) > 65504.0f ? copysignf(INFINITY, x) : rounded;
}

/* ---- one token ------------------------------------------------------------------------------ */

/* A term of the loss at one token, before w_t: its value f and its derivative df/dl. */
struct Term { double value, slope; };

struct Token {
    double logp, old_logp;     /* l, and the old policy's (l itself where there is none) */
    double difference;         /* l - l_old as the ratio sees it: rounded, not clamped */
    double ratio;              /* r, or the sequence's s */
    double lower, upper;       /* bounds of the ratio */
    bool clamped;              /* the log-ratio is beyond +-20 */
    double advantage;          /* after entropy control */
    struct Term policy;        /* the surrogate */
    struct Term penalty;       /* reference KL in the loss, and kl_cov's */
};

static double clamp(double x, double low, double high) { return fmin(fmax(x, low), high); }

static double log_difference(const struct ObjectiveBatch *batch, int t, float logp) {
    if (batch->logp_old == NULL) return 0;
    return (double)round_to_dtype(logp, batch->logp_dtype) -
           round_to_dtype(batch->logp_old[t], batch->logp_dtype);
}

/* A_t before entropy control: the sequence's, less the k1 penalty of this token. */
static double token_advantage(const struct Objective *objective,
                              const struct ObjectiveBatch *batch, int t, double logp) {
    double advantage = batch->advantage ? batch->advantage[batch->sequence_of[t]] : 0;
    if (objective->kl == KL_K1 && objective->kl_coef != 0 && batch->logp_ref != NULL)
        advantage -= objective->kl_coef *
                     clamp(logp - batch->logp_ref[t], -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
    return advantage;
}

/* REPO: the advantage the surrogate sees. A' = A - beta L in general; repo_r is beta = zeta |A|
   with the raw log-probability and the sign of A kept. l and H are constants here. */
static double controlled_advantage(enum EntropyControl control, const struct ControlState *state,
                                   double advantage, double logp, double entropy) {
    double centred = logp + entropy;   /* L = l + H */
    switch (control) {
    case CONTROL_REPO_R:
        if (advantage > 0) return fmax(0, advantage * (1 - state->zeta * logp));
        return advantage < 0 ? fmin(0, advantage * (1 + state->zeta * logp)) : 0;
    case CONTROL_REPO_D: return advantage - state->repo_d_beta * centred;
    case CONTROL_REPO_BETA: return advantage - state->zeta * centred;
    default: return advantage;
    }
}

/* Fills everything up to the advantage: what the surrogate reads. */
static struct Token token_read(const struct Objective *objective,
                               const struct ObjectiveBatch *batch, int t, float logp,
                               float entropy) {
    struct Token token = {.logp = logp};
    token.old_logp = batch->logp_old ? batch->logp_old[t] : logp;
    token.difference = log_difference(batch, t, logp);
    bool whole = objective->ratio == RATIO_SEQUENCE && objective_scope(objective) != SCOPE_TOKEN;
    double log_ratio = whole ? batch->sequence_ratio[batch->sequence_of[t]] : token.difference;
    token.clamped = fabs(log_ratio) > LOG_RATIO_LIMIT;
    token.ratio = exp(clamp(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT));
    bool moved = objective->control == CONTROL_ADAPO && batch->control.clip_high >= 0;
    token.lower = 1 - (double)objective->clip_low;
    token.upper = 1 + (double)(moved ? batch->control.clip_high : objective->clip_high);
    token.advantage = controlled_advantage(objective->control, &batch->control,
                                           token_advantage(objective, batch, t, logp), logp,
                                           entropy);
    return token;
}

static bool clipped_low(const struct Token *token) {
    return token->ratio < token->lower && token->advantage < 0;
}

static bool clipped_high(const struct Token *token) {
    return token->ratio > token->upper && token->advantage > 0;
}

static bool clipped_dual(const struct Objective *objective, const struct Token *token) {
    return objective->dual_clip > 0 && token->advantage < 0 && token->ratio > objective->dual_clip;
}

/* Does the surrogate give no gradient because of where the ratio is? The bound itself is inside. */
static bool ratio_stops(const struct Objective *objective, const struct Token *token) {
    if (objective->surrogate == SURROGATE_CISPO) return token->clamped;
    if (objective->surrogate != SURROGATE_CLIP) return false;
    return token->clamped || clipped_low(token) || clipped_high(token) ||
           clipped_dual(objective, token);
}

/* f and df/dl. clip: -min(r A, clip(r) A), where dr/dl = r at either ratio level (for the
   sequence's, GSPO-token: s_t = sg(s) e^(l - sg(l))). cispo: the bounded ratio is a constant. */
static struct Term surrogate_term(const struct Objective *objective, const struct Token *token) {
    double A = token->advantage, r = token->ratio;
    double bounded = clamp(r, token->lower, token->upper);
    bool stopped = ratio_stops(objective, token);
    switch (objective->surrogate) {
    case SURROGATE_CE: return (struct Term){-token->logp, -1};
    case SURROGATE_REINFORCE: return (struct Term){-A * token->logp, -A};
    case SURROGATE_CISPO:
        return (struct Term){-bounded * A * token->logp, stopped ? 0 : -bounded * A};
    case SURROGATE_CLIP:
        if (clipped_dual(objective, token)) return (struct Term){-objective->dual_clip * A, 0};
        return (struct Term){-fmin(r * A, bounded * A), stopped ? 0 : -r * A};
    }
    return (struct Term){0, 0};
}

/* KL to the reference as a loss term, without its coefficient; d = l_ref - l. k1 is in the
   advantage instead: as a loss term its expected gradient would be 0. */
static struct Term kl_term(enum KlEstimator estimator, double logp, double ref) {
    double d = clamp(ref - logp, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
    bool stopped = fabs(ref - logp) > LOG_RATIO_LIMIT;
    double k3 = expm1(d) - d;
    switch (estimator) {
    case KL_K1: return (struct Term){0, 0};
    case KL_K2: return (struct Term){d * d / 2, stopped ? 0 : -d};
    case KL_K3: return (struct Term){fmin(k3, K3_LIMIT), stopped || k3 > K3_LIMIT ? 0 : -expm1(d)};
    }
    return (struct Term){0, 0};
}

/* Loss terms beside the surrogate that act through l: reference KL, and kl_cov's |l - l_old|. */
static struct Term penalty_term(const struct Objective *objective,
                                const struct ObjectiveBatch *batch, int t,
                                const struct Token *token) {
    struct Term sum = {0, 0};
    if (objective->kl_coef != 0 && batch->logp_ref != NULL) {
        struct Term kl = kl_term(objective->kl, token->logp, batch->logp_ref[t]);
        sum.value += objective->kl_coef * kl.value;
        sum.slope += objective->kl_coef * kl.slope;
    }
    if (objective->control == CONTROL_KL_COV && objective_scope(objective) == SCOPE_BATCH &&
        batch->selected[t]) {
        double distance = fabs(token->difference);
        sum.value += fmin(distance, LOG_RATIO_LIMIT);
        if (distance <= LOG_RATIO_LIMIT)
            sum.slope += (token->difference > 0) - (token->difference < 0);
    }
    return sum;
}

/* ---- scope sequence and scope batch: what a scoring pass is for ----------------------------- */

static void prepare_sequence_ratio(struct ObjectiveBatch *batch) {
    for (int i = 0; i < batch->num_sequences; i++) {
        double sum = 0;
        int n = 0;
        for (int t = batch->sequence_start[i]; t < batch->sequence_start[i + 1]; t++) {
            double difference = log_difference(batch, t, batch->logp_now[t]);
            if (isfinite(difference)) sum += difference, n++;
        }
        batch->sequence_ratio[i] = n > 0 ? (float)(sum / n) : 0;
    }
}

/* Tokens that count for the covariance, with their mean advantage and log-probability. */
struct CovarianceMeans { double advantage, logp; int tokens; };

static bool token_counts(const struct ObjectiveBatch *batch, int t) {
    return batch->weight[batch->sequence_of[t]] != 0 && isfinite(batch->logp_now[t]);
}

static struct CovarianceMeans covariance_means(const struct Objective *objective,
                                               const struct ObjectiveBatch *batch) {
    struct CovarianceMeans means = {0};
    for (int t = 0; t < batch->num_tokens; t++) {
        if (!token_counts(batch, t)) continue;
        means.advantage += token_advantage(objective, batch, t, batch->logp_now[t]);
        means.logp += batch->logp_now[t];
        means.tokens++;
    }
    if (means.tokens > 0) means.advantage /= means.tokens, means.logp /= means.tokens;
    return means;
}

/* cov_t = (A_t - mean A)(l_t - mean l); -inf for a token that does not count. */
static float token_covariance(const struct Objective *objective,
                              const struct ObjectiveBatch *batch,
                              const struct CovarianceMeans *means, int t) {
    if (!token_counts(batch, t)) return -INFINITY;
    double logp = batch->logp_now[t];
    double covariance = (token_advantage(objective, batch, t, logp) - means->advantage) *
                        (logp - means->logp);
    return isfinite(covariance) ? (float)covariance + 0.0f : -INFINITY;   /* -0 ties with 0 */
}

static int share_of(int tokens, double share) {
    int k = (int)(share * tokens);
    return k > 1 ? k : 1;
}

/* clip_cov draws only among tokens of high covariance that still have a gradient to lose. */
static bool clip_cov_candidate(const struct Objective *objective,
                               const struct ObjectiveBatch *batch,
                               const struct CovarianceMeans *means, int t) {
    float covariance = token_covariance(objective, batch, means, t);
    if (!(covariance > CLIP_COV_LOW && covariance < CLIP_COV_HIGH)) return false;
    struct Token token = token_read(objective, batch, t, batch->logp_now[t], 0);
    return !ratio_stops(objective, &token);
}

/* Selection sampling (Knuth, volume 2, algorithm S): every subset of `wanted` candidates is equally
   likely, in one pass and without a list of them. */
static void prepare_clip_cov(const struct Objective *objective, struct ObjectiveBatch *batch) {
    struct CovarianceMeans means = covariance_means(objective, batch);
    uint32_t wanted = (uint32_t)share_of(means.tokens, CLIP_COV_SHARE), left = 0;
    for (int t = 0; t < batch->num_tokens; t++)
        left += clip_cov_candidate(objective, batch, &means, t);
    struct Rng rng;
    rng_open(&rng, batch->seed, RNG_COVARIANCE, batch->ordinal);
    for (int t = 0; t < batch->num_tokens; t++) {
        batch->selected[t] = 0;
        if (!clip_cov_candidate(objective, batch, &means, t)) continue;
        if (rng_below(&rng, left--) < wanted) batch->selected[t] = 1, wanted--;
    }
}

/* A float's bits as an integer that orders like the float. */
static uint32_t ordered_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* The top k by covariance, ties by index: bisects for the k-th largest value, so it needs neither a
   sort nor memory. */
static void prepare_kl_cov(const struct Objective *objective, struct ObjectiveBatch *batch) {
    struct CovarianceMeans means = covariance_means(objective, batch);
    int wanted = means.tokens > 0 ? share_of(means.tokens, KL_COV_SHARE) : 0;
    uint32_t threshold = ordered_bits(-INFINITY) + 1;
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
        uint32_t trial = threshold + bit;
        int above = 0;
        if (trial < threshold) continue;   /* past the largest key */
        for (int t = 0; t < batch->num_tokens; t++)
            above += ordered_bits(token_covariance(objective, batch, &means, t)) >= trial;
        if (above >= wanted) threshold = trial;
    }
    int ties = wanted;
    for (int t = 0; t < batch->num_tokens; t++) {
        float covariance = token_covariance(objective, batch, &means, t);
        batch->selected[t] = ordered_bits(covariance) > threshold;
        ties -= batch->selected[t];
    }
    for (int t = 0; t < batch->num_tokens && ties > 0; t++) {
        if (ordered_bits(token_covariance(objective, batch, &means, t)) != threshold) continue;
        batch->selected[t] = 1;
        ties--;
    }
}

void objective_prepare(const struct Objective *objective, struct ObjectiveBatch *batch) {
    if (objective_scope(objective) == SCOPE_TOKEN) return;
    if (objective->ratio == RATIO_SEQUENCE) prepare_sequence_ratio(batch);
    if (objective_scope(objective) != SCOPE_BATCH) return;
    if (objective->control == CONTROL_CLIP_COV) prepare_clip_cov(objective, batch);
    else prepare_kl_cov(objective, batch);
}

/* ---- coefficients and statistics ------------------------------------------------------------ */

/* Is everything that the token's terms read finite? */
static bool token_is_finite(const struct ObjectiveBatch *batch, int t, const struct Token *token,
                            double entropy) {
    return isfinite(token->logp) && isfinite(entropy) && isfinite(token->old_logp) &&
           isfinite(token->difference) && isfinite(token->advantage) &&
           (batch->logp_ref == NULL || isfinite(batch->logp_ref[t]));
}

static void stats_add_clips(struct ObjectiveStats *stats, const struct Objective *objective,
                            const struct Token *token) {
    static const double bound[CLIP_BUCKETS - 1] = {1e-3, 1e-2, .1, .5, .9};
    int bucket = 0;
    double old_probability = exp(token->old_logp);
    while (bucket < CLIP_BUCKETS - 1 && old_probability >= bound[bucket]) bucket++;
    stats->bucket_tokens[bucket]++;
    if (objective->surrogate != SURROGATE_CLIP && objective->surrogate != SURROGATE_CISPO) return;
    stats->clipped_low += clipped_low(token);
    stats->clipped_high += clipped_high(token);
    stats->bucket_clipped_low[bucket] += clipped_low(token);
    stats->bucket_clipped_high[bucket] += clipped_high(token);
}

static void stats_add_token(struct ObjectiveStats *stats, const struct Objective *objective,
                            const struct ObjectiveBatch *batch, int t, const struct Token *token,
                            double entropy) {
    int sequence = batch->sequence_of[t];
    double advantage = batch->advantage ? batch->advantage[sequence] : 0;
    stats->tokens++;
    stats->ratio += token->ratio;
    stats->logp += token->logp;
    stats->entropy += entropy;
    stats->policy_loss += batch->weight[sequence] * token->policy.value;
    if (batch->logp_ref != NULL) stats->kl += kl_term(KL_K3, token->logp, batch->logp_ref[t]).value;
    stats->adv += advantage;
    stats->adv_sq += advantage * advantage;
    stats->adv_logp += advantage * token->logp;
    stats->logp_sq += token->logp * token->logp;
    stats->old_difference += fabs(token->difference);
    stats->old_difference_max = fmax(stats->old_difference_max, fabs(token->difference));
    stats_add_clips(stats, objective, token);
}

/* The predicted entropy push of a unit logit step: -A [p L - (R + H Q)], once with the raw A and
   once with the A that the gradient amounts to, -a_t / w_t. */
static void stats_add_push(struct ObjectiveStats *stats, double advantage, double slope,
                           double logp, double entropy, double q, double r) {
    double lever = exp(logp) * (logp + entropy) - (r + entropy * q);
    stats->push_raw -= advantage * lever;
    stats->push_effective += slope * lever;
}

void objective_coefficients(const struct Objective *objective, const struct ObjectiveBatch *batch,
                            int first, int count, const float *logp, const float *entropy,
                            const float *q, const float *r, float *dlogp, float *dentropy,
                            struct ObjectiveStats *stats) {
    bool bonus = objective->control == CONTROL_BONUS ||
                 objective->control == CONTROL_ADAPTIVE_BONUS;
    double bonus_coef = bonus ? batch->control.entropy_coef : 0;
    bool drops_selected = objective->control == CONTROL_CLIP_COV &&
                          objective_scope(objective) == SCOPE_BATCH;
    for (int i = 0; i < count; i++) {
        int t = first + i, sequence = batch->sequence_of[t];
        double weight = batch->weight[sequence];
        dlogp[i] = dentropy[i] = 0;
        if (weight == 0) continue;
        struct Token token = token_read(objective, batch, t, logp[i], entropy[i]);
        if (!(drops_selected && batch->selected[t]))
            token.policy = surrogate_term(objective, &token);
        token.penalty = penalty_term(objective, batch, t, &token);
        double slope = token.policy.slope + token.penalty.slope;
        if (!token_is_finite(batch, t, &token, entropy[i]) || !(fabs(weight * slope) <= FLT_MAX)) {
            stats->non_finite++;
            continue;
        }
        dlogp[i] = (float)(weight * slope);
        dentropy[i] = (float)(-weight * bonus_coef);
        stats->loss += weight * (token.policy.value + token.penalty.value -
                                 bonus_coef * entropy[i]);
        stats_add_token(stats, objective, batch, t, &token, entropy[i]);
        if (q != NULL && r != NULL)
            stats_add_push(stats, batch->advantage ? batch->advantage[sequence] : 0, slope, logp[i],
                           entropy[i], q[i], r[i]);
    }
}

void objective_stats_add(struct ObjectiveStats *sum, const struct ObjectiveStats *more) {
    double old_difference_max = fmax(sum->old_difference_max, more->old_difference_max);
    double *into = (double *)sum;
    const double *from = (const double *)more;
    for (size_t i = 0; i < sizeof *sum / sizeof *into; i++) into[i] += from[i];
    sum->old_difference_max = old_difference_max;
}
