/* Objectives: advantages, surrogates, presets. The mathematics is doc/objectives.md.

   A policy-gradient loss J needs two numbers per sampled token from the network: its
   log-probability l_t and the entropy H_t of the distribution it was drawn from. It gives back two:
   a_t = dJ/dl_t and b_t = dJ/dH_t. So an objective is host code over flat arrays. This file and
   entropy.h know nothing of models, devices and files.

   An objective (a preset) has one value on each of several axes: advantage rule, ratio, surrogate,
   and so on. Presets, surrogates and entropy controls are rows of tables; to add one, add a row to
   presets[] (objectives.c), surrogates[] (surrogates.c) or entropy_controls[] (entropy.c). */
#ifndef LLMC_OBJECTIVES_H
#define LLMC_OBJECTIVES_H

#include <stdbool.h>
#include <stdint.h>
#include "entropy.h"

enum AdvantageRule { ADVANTAGE_NONE, ADVANTAGE_MEAN, ADVANTAGE_ZSCORE, ADVANTAGE_LOO };
enum RatioLevel { RATIO_NONE, RATIO_TOKEN, RATIO_SEQUENCE };
enum Surrogate { SURROGATE_CE, SURROGATE_REINFORCE, SURROGATE_CLIP, SURROGATE_CISPO };
enum Aggregation { AGGREGATE_TOKEN_MEAN, AGGREGATE_SEQUENCE_MEAN, AGGREGATE_CONSTANT };
enum KlEstimator { KL_K1, KL_K2, KL_K3 };
enum Overlong { OVERLONG_NONE, OVERLONG_MASK, OVERLONG_SOFT };
/* What a token's coefficients depend on: the token alone, its whole sequence, or the whole
   minibatch. In the last two cases a scoring pass over the minibatch comes first. */
enum Scope { SCOPE_TOKEN, SCOPE_SEQUENCE, SCOPE_BATCH };

struct Objective {
    const char *name;
    enum AdvantageRule advantage;
    double std_epsilon;             /* zscore divides by the standard deviation plus std_epsilon */
    enum RatioLevel ratio;
    enum Surrogate surrogate;
    float clip_low, clip_high;      /* the ratio's bounds are 1 - clip_low and 1 + clip_high */
    float dual_clip;                /* bound c > 1 on the ratio where A < 0; 0 = off */
    enum Aggregation aggregation;
    enum EntropyControl control;
    bool filter;                    /* drop groups of equal task rewards, and refill */
    enum Overlong overlong;
    enum KlEstimator kl;
    float kl_coef;                  /* 0 = off: no reference model */
};

/* One surrogate: its properties, and its formula (surrogates.c). */
struct Token;
struct Term { double value, slope; };   /* one token's loss f, before the weight w_t, and df/dl */
struct SurrogateRow {
    const char *name;
    const char *reads;                  /* names of options it reads, space-separated */
    bool has_advantage;                 /* f depends on A; false: supervised learning */
    bool has_ratio;                     /* f depends on the ratio r and its clip range */
    bool silences;                      /* a token beyond the clip range has no gradient */
    struct Term (*term)(const struct Objective *objective, const struct Token *token);
};
extern const struct SurrogateRow surrogates[];   /* index: enum Surrogate; last row: name NULL */

const struct Objective *objective_find(const char *name);  /* NULL: unknown */
const struct Objective *objective_row(int i);              /* NULL past the end */
const char *objective_names(void);                         /* space-separated */
enum Scope objective_scope(const struct Objective *objective);
/* "grpo: zscore advantage, token ratio, clip 0.8..1.2, ...": one line for the log. */
void objective_describe(const struct Objective *objective, char *out, int capacity);

/* Axes by name, for options: "advantage", "ratio", "surrogate", "aggregation", "entropy-control",
   "kl", "overlong".
     value   the enum of the value called `name`, or -1
     names   the names of all values, space-separated, for messages; NULL for an unknown axis
     word    the name of a value
     choose  sets the axis of an objective to the value called `name`; false: there is none */
int objective_axis_value(const char *axis, const char *name);
const char *objective_axis_names(const char *axis);
const char *objective_axis_word(const char *axis, int value);
bool objective_choose(struct Objective *objective, const char *axis, const char *name);
/* True if the option belongs to a value of an axis that this objective does not have, so that it
   would have no effect. False for options that no axis reads. */
bool objective_ignores(const struct Objective *objective, const char *option);

/* The checks return NULL or one sentence in static storage.
   group: an error about the group size; every advantage rule but `none` needs at least two. */
const char *objective_check_group(const struct Objective *objective, int group_size);
/* axes: an error about a combination of values and numbers that has no effect, no meaning, or
   another effect than its names say. */
const char *objective_check_axes(const struct Objective *objective);
/* updates: a warning for the start of a run, about this many updates per rollout. */
const char *objective_check_updates(const struct Objective *objective, int updates_per_rollout);

/* ---- per rollout batch: rewards to advantages ----------------------------------------------- */

/* One rollout batch. Completion i belongs to group i / group_size. Host arrays [count], owned by
   the caller. */
struct RewardBatch {
    int count, group_size, max_tokens;
    const float *reward;            /* from the task; NaN: the completion could not be scored */
    const int *length;              /* tokens with loss */
    const unsigned char *ended;     /* 0 = truncated */
};

/* The group filter. keep [count / group_size]: 0 for groups whose task rewards are all exactly
   equal and groups with fewer than two scored completions, else 1. Returns how many are kept. */
int objective_filter_groups(const struct RewardBatch *batch, unsigned char *keep);
/* advantage, active [count]. active[i] = 0: the completion gives no gradient and is not counted
   when losses are averaged (only the aggregation `constant` counts it). That is so for unscored
   completions, for groups with fewer than two scored ones (with the rule `none`: fewer than one),
   and with overlong mask for truncated ones, which still count in their group's mean. The soft
   overlong penalty is subtracted here, after the filter has compared the task's rewards. */
void objective_advantages(const struct Objective *objective, const struct RewardBatch *batch,
                          float *advantage, unsigned char *active);

/* ---- per minibatch: weights and coefficients ------------------------------------------------ */

/* The weights w_t of one minibatch (one optimizer step), the same for all tokens of a sequence.
   length [num_sequences]: tokens with loss; active: as above; weight [num_sequences]: 0 where not
   active. max_tokens is used by `constant` only. `all` is what objective_weight_sums returned for
   the whole minibatch, also where ranks or micro-batches compute the gradients of its parts: those
   then add up to the gradient of the whole. */
struct WeightSums { double tokens, sequences, all_sequences; };
struct WeightSums objective_weight_sums(int num_sequences, const int *length,
                                        const unsigned char *active);
void objective_weights(const struct Objective *objective, struct WeightSums all, int max_tokens,
                       int num_sequences, const int *length, const unsigned char *active,
                       float *weight);

/* One minibatch: the tokens with loss of its sequences, one sequence after another. Host arrays,
   owned by the caller; "per token" is [num_tokens], "per sequence" [num_sequences]. */
struct ObjectiveBatch {
    int num_tokens, num_sequences;
    const int *sequence_start;      /* [num_sequences + 1] */
    const int *sequence_of;         /* [num_tokens] */
    const float *advantage;         /* per sequence */
    const float *weight;            /* per sequence: w_t of its tokens */
    const float *logp_old;          /* per token; NULL for ce and reinforce */
    const float *logp_ref;          /* per token, or NULL: no reference */
    const float *logp_now;          /* scope sequence or batch: from a scoring pass; else NULL */
    struct ControlState control;
    float noise;                    /* kl_cov: |l - l_old| up to noise is rounding, counted as 0 */
    const char *logp_dtype;         /* "fp32", "bf16", "fp16": l and l_old are rounded to it
                                       (doc/objectives.md, chapter 10) */
    uint64_t seed, ordinal;         /* clip_cov draws with RNG_COVARIANCE; ordinal: of the update */
    /* filled by objective_prepare, in memory of the caller: */
    float *sequence_ratio;          /* [num_sequences] mean of l - l_old; scope sequence */
    unsigned char *selected;        /* [num_tokens] clip_cov / kl_cov; scope batch */
};
/* Fills sequence_ratio (with the sequence ratio) and selected (with clip_cov and kl_cov). Does
   nothing where the scope is token. */
void objective_prepare(const struct Objective *objective, struct ObjectiveBatch *batch);

/* Clipped tokens are counted by their probability under the old policy, in these intervals:
   [0,1e-3) [1e-3,1e-2) [1e-2,.1) [.1,.5) [.5,.9) [.9,1]. */
#define CLIP_BUCKETS 6

/* Sums over tokens with w_t != 0. Divided by `tokens` for the log, except loss and policy_loss,
   whose weights w_t already average. Micro-batches and ranks can be added (objective_stats_add). To
   be zero-initialised. */
struct ObjectiveStats {
    double tokens;
    double loss;                    /* sum w_t f_t: the minimised J, KL and entropy included */
    double policy_loss;             /* the same without KL and entropy */
    double kl;                      /* k3 estimates of the KL to the reference, not clamped */
    double ratio, logp, entropy;    /* sums */
    double clipped_low, clipped_high;                /* r < 1-low & A < 0; r > 1+high & A > 0 */
    double bucket_tokens[CLIP_BUCKETS], bucket_clipped_low[CLIP_BUCKETS],
           bucket_clipped_high[CLIP_BUCKETS];
    double adv, adv_logp, logp_sq, adv_sq;           /* for Cov(A, l) */
    double push_raw, push_effective;                 /* predicted entropy push, chapter 6 */
    double old_difference, old_difference_max;       /* |l - l_old|, rounded to logp_dtype */
    double non_finite;       /* tokens left out because l, H or a coefficient is not finite */
};
void objective_stats_add(struct ObjectiveStats *sum, const struct ObjectiveStats *more);

/* Coefficients of tokens [first, first + count) of the minibatch: dlogp[i] = a_t and dentropy[i] =
   b_t of the loss J that is minimised. logp, entropy, q, qlog [count] are the head's statistics of
   these tokens. q and qlog may be NULL; then the entropy push is not summed. stats are added to. */
void objective_coefficients(const struct Objective *objective, const struct ObjectiveBatch *batch,
                            int first, int count, const float *logp, const float *entropy,
                            const float *q, const float *qlog, float *dlogp, float *dentropy,
                            struct ObjectiveStats *stats);

/* Rounds x to the nearest number of the named type, "bf16" or "fp16"; other names and NULL leave it
   as it is. For --logp-dtype (doc/objectives.md, chapter 10). */
float round_to_dtype(float x, const char *dtype);

#endif
