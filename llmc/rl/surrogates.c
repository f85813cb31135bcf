/* Surrogates: the loss of a token and its coefficients a_t and b_t, from its log-probability and
   entropy. All formulas are in doc/objectives.md.

   Inputs and outputs are float32, the arithmetic between them is double. That costs little: per
   token this file computes one or two exponentials, the head a product over the vocabulary. */
#include "objectives.h"

#include <float.h>
#include <math.h>
#include <string.h>
#include "../base/rng.h"

/* Limits beyond which a value is clamped and its gradient is 0: LOG_RATIO_LIMIT on |l - l_old| and
   |l_ref - l|, K3_LIMIT on the k3 estimate. The values are verl's (its core_algos.py:
   compute_policy_loss, kl_penalty). */
#define LOG_RATIO_LIMIT 20.0
#define K3_LIMIT 10.0
/* clip_cov and kl_cov (2505.22617): the share of tokens that is selected, and the range of
   covariances from which clip_cov draws. */
#define CLIP_COV_SHARE 2e-4
#define CLIP_COV_LOW 1.0
#define CLIP_COV_HIGH 5.0
#define KL_COV_SHARE 2e-3

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

struct Token {
    double logp, old_logp;     /* l, and the old policy's (l itself where there is none) */
    double difference;         /* l - l_old, rounded to logp_dtype, not clamped */
    double ratio;              /* r, or the ratio s of the whole sequence */
    double lower, upper;       /* bounds of the ratio */
    bool clamped;              /* the log-ratio is beyond +-20 */
    double advantage;          /* as changed by the entropy control */
    struct Term policy;        /* the surrogate's loss */
    struct Term penalty;       /* KL to the reference, and kl_cov's penalty */
};

static double clamp(double x, double low, double high) { return fmin(fmax(x, low), high); }

static double log_difference(const struct ObjectiveBatch *batch, int t, float logp) {
    if (batch->logp_old == NULL) return 0;
    return (double)round_to_dtype(logp, batch->logp_dtype) -
           round_to_dtype(batch->logp_old[t], batch->logp_dtype);
}

/* A_t before the entropy control: the sequence's advantage, minus the token's k1 penalty. */
static double token_advantage(const struct Objective *objective,
                              const struct ObjectiveBatch *batch, int t, double logp) {
    double advantage = batch->advantage ? batch->advantage[batch->sequence_of[t]] : 0;
    if (objective->kl == KL_K1 && objective->kl_coef != 0 && batch->logp_ref != NULL)
        advantage -= objective->kl_coef *
                     clamp(logp - batch->logp_ref[t], -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
    return advantage;
}

/* Fills the members that the surrogate reads: all but policy and penalty. */
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
    const struct Control *control = &entropy_controls[objective->control];
    bool moved = control->moves_clip_high && batch->control.clip_high >= 0;
    token.lower = 1 - (double)objective->clip_low;
    token.upper = 1 + (double)(moved ? batch->control.clip_high : objective->clip_high);
    token.advantage = token_advantage(objective, batch, t, logp);
    if (control->advantage)   /* REPO; no gradient goes through l and H here */
        token.advantage = control->advantage(&batch->control, token.advantage, logp, entropy);
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

/* True if the token has no gradient because of its ratio. A ratio at a bound still has one. */
static bool ratio_stops(const struct Objective *objective, const struct Token *token) {
    const struct SurrogateRow *row = &surrogates[objective->surrogate];
    if (!row->has_ratio) return false;
    if (token->clamped) return true;
    return row->silences && (clipped_low(token) || clipped_high(token) ||
                             clipped_dual(objective, token));
}

static struct Term term_ce(const struct Objective *objective, const struct Token *token) {
    (void)objective;
    return (struct Term){-token->logp, -1};
}

static struct Term term_reinforce(const struct Objective *objective, const struct Token *token) {
    (void)objective;
    return (struct Term){-token->advantage * token->logp, -token->advantage};
}

/* -min(r A, clip(r) A). dr/dl = r for the token ratio and for the sequence ratio too, as GSPO-token
   (2507.18071) has it: s_t = sg(s) e^(l - sg(l)), where sg stops the gradient. */
static struct Term term_clip(const struct Objective *objective, const struct Token *token) {
    double A = token->advantage, r = token->ratio, bounded = clamp(r, token->lower, token->upper);
    if (clipped_dual(objective, token)) return (struct Term){-objective->dual_clip * A, 0};
    return (struct Term){-fmin(r * A, bounded * A), ratio_stops(objective, token) ? 0 : -r * A};
}

/* -sg(clip(r)) A l: no gradient goes through the clipped ratio (CISPO, 2506.13585). */
static struct Term term_cispo(const struct Objective *objective, const struct Token *token) {
    double factor = clamp(token->ratio, token->lower, token->upper) * token->advantage;
    return (struct Term){-factor * token->logp, ratio_stops(objective, token) ? 0 : -factor};
}

#define RATIO_OPTIONS "advantage ratio clip-low clip-high logp-dtype"
const struct SurrogateRow surrogates[] = {
    [SURROGATE_CE] = {.name = "ce", .term = term_ce},
    [SURROGATE_REINFORCE] = {.name = "reinforce", .reads = "advantage", .has_advantage = true,
                             .term = term_reinforce},
    [SURROGATE_CLIP] = {.name = "clip", .reads = RATIO_OPTIONS " dual-clip", .has_advantage = true,
                        .has_ratio = true, .silences = true, .term = term_clip},
    [SURROGATE_CISPO] = {.name = "cispo", .reads = RATIO_OPTIONS, .has_advantage = true,
                         .has_ratio = true, .term = term_cispo},
    {.name = NULL},
};

/* The KL estimate as a loss term, without its coefficient; d = l_ref - l. k1 is subtracted from the
   advantage instead (token_advantage): as a loss term its expected gradient would be 0. */
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

/* What the objective does with tokens of high covariance. Nothing with ce, whose scope is token. */
static enum Selection selection(const struct Objective *objective) {
    return objective_scope(objective) == SCOPE_BATCH ? entropy_controls[objective->control].selects
                                                     : SELECT_NOTHING;
}

/* The loss terms that depend on l, apart from the surrogate: the KL to the reference, and for
   tokens that kl_cov selected |l - l_old|. */
static struct Term penalty_term(const struct Objective *objective,
                                const struct ObjectiveBatch *batch, int t,
                                const struct Token *token) {
    struct Term sum = {0, 0};
    if (objective->kl_coef != 0 && batch->logp_ref != NULL) {
        struct Term kl = kl_term(objective->kl, token->logp, batch->logp_ref[t]);
        sum.value += objective->kl_coef * kl.value;
        sum.slope += objective->kl_coef * kl.slope;
    }
    double distance = fabs(token->difference);
    if (selection(objective) == SELECT_PENALISED && batch->selected[t] && distance > batch->noise) {
        sum.value += fmin(distance, LOG_RATIO_LIMIT);
        if (distance <= LOG_RATIO_LIMIT)
            sum.slope += (token->difference > 0) - (token->difference < 0);
    }
    return sum;
}

/* ---- scope sequence and scope batch: what needs the scoring pass before --------------------- */

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

/* Over the tokens that count for the covariance (token_counts): their number, and the means of
   their advantages and log-probabilities. */
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

/* clip_cov draws among tokens of high covariance, without those that have no gradient anyway. */
static bool clip_cov_candidate(const struct Objective *objective,
                               const struct ObjectiveBatch *batch,
                               const struct CovarianceMeans *means, int t) {
    float covariance = token_covariance(objective, batch, means, t);
    if (!(covariance > CLIP_COV_LOW && covariance < CLIP_COV_HIGH)) return false;
    struct Token token = token_read(objective, batch, t, batch->logp_now[t], 0);
    return !ratio_stops(objective, &token);
}

/* Draws `wanted` of the candidates, every subset with the same probability, in one pass and without
   a list of the candidates: selection sampling (Knuth, volume 2, algorithm S). */
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

/* An integer that is larger than that of another float exactly if the float is larger. */
static uint32_t ordered_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Selects the k tokens of largest covariance; of equal ones, those that come first. Bisection over
   the bits of the k-th largest value needs no sorting and no memory. */
static void prepare_kl_cov(const struct Objective *objective, struct ObjectiveBatch *batch) {
    struct CovarianceMeans means = covariance_means(objective, batch);
    int wanted = means.tokens > 0 ? share_of(means.tokens, KL_COV_SHARE) : 0;
    uint32_t threshold = ordered_bits(-INFINITY) + 1;
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
        uint32_t trial = threshold + bit;
        int above = 0;
        if (trial < threshold) continue;   /* the sum wrapped around */
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
    if (selection(objective) == SELECT_SILENCED) prepare_clip_cov(objective, batch);
    if (selection(objective) == SELECT_PENALISED) prepare_kl_cov(objective, batch);
}

/* ---- coefficients and statistics ------------------------------------------------------------ */

/* True if all numbers that the token's loss is computed from are finite. */
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
    if (!surrogates[objective->surrogate].has_ratio) return;
    stats->clipped_low += clipped_low(token);
    stats->clipped_high += clipped_high(token);
    stats->bucket_clipped_low[bucket] += clipped_low(token);
    stats->bucket_clipped_high[bucket] += clipped_high(token);
}

/* The k3 estimate for the log, without the limits that the loss has: a mean of clamped values would
   hide the tokens that moved most. At most 1e30 (d = 69), so that the mean stays finite. */
static double kl_estimate(double d) {
    return fmin(expm1(d) - d, 1e30);
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
    if (batch->logp_ref != NULL) stats->kl += kl_estimate(batch->logp_ref[t] - token->logp);
    stats->adv += advantage;
    stats->adv_sq += advantage * advantage;
    stats->adv_logp += advantage * token->logp;
    stats->logp_sq += token->logp * token->logp;
    stats->old_difference += fabs(token->difference);
    stats->old_difference_max = fmax(stats->old_difference_max, fabs(token->difference));
    stats_add_clips(stats, objective, token);
}

/* The predicted change of entropy by a step of size one on the token's logits, -A [p L - (R + H
   Q)]. push_raw takes the task's advantage as A, push_effective the advantage that the gradient
   really has, -a_t / w_t (doc/objectives.md, chapter 6). */
static void stats_add_push(struct ObjectiveStats *stats, double advantage, double slope,
                           double logp, double entropy, double q, double qlog) {
    double lever = exp(logp) * (logp + entropy) - (qlog + entropy * q);
    stats->push_raw -= advantage * lever;
    stats->push_effective += slope * lever;
}

void objective_coefficients(const struct Objective *objective, const struct ObjectiveBatch *batch,
                            int first, int count, const float *logp, const float *entropy,
                            const float *q, const float *qlog, float *dlogp, float *dentropy,
                            struct ObjectiveStats *stats) {
    bool has_bonus = entropy_controls[objective->control].has_bonus;
    double bonus_coef = has_bonus ? batch->control.entropy_coef : 0;
    bool drops_selected = selection(objective) == SELECT_SILENCED;
    for (int i = 0; i < count; i++) {
        int t = first + i, sequence = batch->sequence_of[t];
        double weight = batch->weight[sequence];
        dlogp[i] = dentropy[i] = 0;
        if (weight == 0) continue;
        struct Token token = token_read(objective, batch, t, logp[i], entropy[i]);
        if (!(drops_selected && batch->selected[t]))
            token.policy = surrogates[objective->surrogate].term(objective, &token);
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
        if (q != NULL && qlog != NULL)
            stats_add_push(stats, batch->advantage ? batch->advantage[sequence] : 0, slope, logp[i],
                           entropy[i], q[i], qlog[i]);
    }
}

void objective_stats_add(struct ObjectiveStats *sum, const struct ObjectiveStats *more) {
    double old_difference_max = fmax(sum->old_difference_max, more->old_difference_max);
    double *into = (double *)sum;
    const double *from = (const double *)more;
    for (size_t i = 0; i < sizeof *sum / sizeof *into; i++) into[i] += from[i];
    sum->old_difference_max = old_difference_max;
}
