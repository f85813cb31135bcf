/* Objectives: advantages, surrogates, presets. The mathematics is doc/objectives.md.

   Everything a policy-gradient loss needs from the network is two numbers per sampled token, its
   log-probability l_t and the exact entropy H_t; everything it gives back is two, a_t = dJ/dl_t and
   b_t = dJ/dH_t. So an objective is host C over flat arrays and never knows the network. This file
   and entropy.h know only C and arrays: no model, no device, no file.

   An objective is a row that picks one value on each axis, and each value is a row too. Adding one:
   a row of presets[], of surrogates[] or of another axis, of entropy_controls[] (entropy.c). */
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
/* What the coefficients of one token depend on: the token alone (one pass of the head), its whole
   sequence, or the whole minibatch (a scoring pass of the head comes first). */
enum Scope { SCOPE_TOKEN, SCOPE_SEQUENCE, SCOPE_BATCH };

struct Objective {
    const char *name;
    enum AdvantageRule advantage;
    double std_epsilon;             /* zscore divides by the standard deviation plus this */
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

/* One surrogate: what the program must know of it, and its formula (surrogates.c). */
struct Token;
struct Term { double value, slope; };   /* f of one token, before w_t, and df/dl */
struct SurrogateRow {
    const char *name;
    const char *reads;                  /* options, space-separated */
    bool has_advantage;                 /* A enters it; else it is supervised */
    bool has_ratio;                     /* r enters it, with the bounds of the clip range */
    bool silences;                      /* beyond them there is no gradient */
    struct Term (*term)(const struct Objective *objective, const struct Token *token);
};
extern const struct SurrogateRow surrogates[];   /* by enum Surrogate; ends without a name */

const struct Objective *objective_find(const char *name);  /* NULL: unknown */
const struct Objective *objective_row(int i);              /* NULL past the end */
const char *objective_names(void);                         /* space-separated */
enum Scope objective_scope(const struct Objective *objective);
/* "grpo: zscore advantage, token ratio, clip 0.8..1.2, ...": one line for the log. */
void objective_describe(const struct Objective *objective, char *out, int capacity);

/* Values of an axis by name, for options. axis: "advantage", "ratio", "surrogate", "aggregation",
   "entropy-control", "kl", "overlong". value: its enum, or -1. names: space-separated, for
   messages; NULL for an unknown axis. word: the name of a value. choose: sets that axis; false:
   unknown. */
int objective_axis_value(const char *axis, const char *name);
const char *objective_axis_names(const char *axis);
const char *objective_axis_word(const char *axis, int value);
bool objective_choose(struct Objective *objective, const char *axis, const char *name);
/* Is this an option that some value of some axis reads, but none that this objective has? */
bool objective_ignores(const struct Objective *objective, const char *option);

/* NULL, or what is wrong with this group size (an error: every advantage but `none` needs two). */
const char *objective_check_group(const struct Objective *objective, int group_size);
/* NULL, or why this combination of axes and numbers would do nothing, make no sense, or do
   something else than it says (an error). */
const char *objective_check_axes(const struct Objective *objective);
/* NULL, or what to know about learning with this many updates per rollout (a warning at start). */
const char *objective_check_updates(const struct Objective *objective, int updates_per_rollout);

/* ---- per rollout batch: rewards to advantages ----------------------------------------------- */

/* One rollout batch; completion i belongs to group i / group_size. Host arrays [count]. */
struct RewardBatch {
    int count, group_size, max_tokens;
    const float *reward;            /* the task's; NaN = unscored */
    const int *length;              /* tokens with loss */
    const unsigned char *ended;     /* 0 = truncated */
};

/* keep[g] = 0 for groups whose task rewards are all exactly equal (or with fewer than two scored
   completions); returns how many are kept. [count / group_size] */
int objective_filter_groups(const struct RewardBatch *batch, unsigned char *keep);
/* advantage[i] and active[i]: 0 = the completion gives no gradient and leaves the denominators
   (unscored, a group with fewer than two scored, or truncated under overlong mask). A masked
   completion still counts in its group's mean. Rule `none` compares nothing: one scored is enough,
   and equal rewards keep their value. The overlong penalty is applied here, after the filter. */
void objective_advantages(const struct Objective *objective, const struct RewardBatch *batch,
                          float *advantage, unsigned char *active);

/* ---- per minibatch: weights and coefficients ------------------------------------------------ */

/* w_t of one minibatch (an optimizer step over all ranks), equal for all tokens of a sequence.
   length[i] counts tokens with loss; active[i] as above; max_tokens is for `constant`.
   weight[i] [num_sequences] is 0 where inactive. Over ranks: *_all are sums over all ranks of what
   objective_weight_sums returned, so that the sum of gradients is right. */
struct WeightSums { double tokens, sequences, all_sequences; };
struct WeightSums objective_weight_sums(int num_sequences, const int *length,
                                        const unsigned char *active);
void objective_weights(const struct Objective *objective, struct WeightSums all, int max_tokens,
                       int num_sequences, const int *length, const unsigned char *active,
                       float *weight);

/* One minibatch: the tokens with loss of its sequences, one after another. Host arrays; tokens are
   [num_tokens], sequences are [num_sequences]. */
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
    float noise;                    /* kl_cov: |l - l_old| up to this is rounding and counts as 0 */
    const char *logp_dtype;         /* "fp32", "bf16", "fp16": rounding of l and l_old, section 6 */
    uint64_t seed, ordinal;         /* clip_cov's draw: RNG_COVARIANCE, update number */
    /* filled by objective_prepare, caller allocates: */
    float *sequence_ratio;          /* [num_sequences] mean of l - l_old; scope sequence */
    unsigned char *selected;        /* [num_tokens] clip_cov / kl_cov; scope batch */
};
/* Fills sequence_ratio (ratio level sequence) and selected (clip_cov, kl_cov) where the scope is
   not token; else does nothing. Over ranks the covariance is that of the rank's own share. */
void objective_prepare(const struct Objective *objective, struct ObjectiveBatch *batch);

/* Old probability in [0,1e-3) [1e-3,1e-2) [1e-2,.1) [.1,.5) [.5,.9) [.9,1]. */
#define CLIP_BUCKETS 6

/* Sums over tokens with w_t != 0, in double; divide by `tokens` (or weights) to log. Add-only, so
   micro-batches and ranks may be summed. Zero-initialise. */
struct ObjectiveStats {
    double tokens;
    double loss;                    /* sum w_t f_t: the minimised J, KL and entropy included */
    double policy_loss;             /* without them */
    double kl;                      /* sum of the k3 estimate, not clamped, of a reference */
    double ratio, logp, entropy;    /* sums */
    double clipped_low, clipped_high;                /* r < 1-low & A < 0; r > 1+high & A > 0 */
    double bucket_tokens[CLIP_BUCKETS], bucket_clipped_low[CLIP_BUCKETS],
           bucket_clipped_high[CLIP_BUCKETS];
    double adv, adv_logp, logp_sq, adv_sq;           /* for Cov(A, l) */
    double push_raw, push_effective;                 /* predicted entropy push, section 2 */
    double old_difference, old_difference_max;       /* |l - l_old|, rounded to logp_dtype */
    double non_finite;                               /* dropped: l, H or a coefficient not finite */
};
void objective_stats_add(struct ObjectiveStats *sum, const struct ObjectiveStats *more);

/* Coefficients of tokens [first, first + count) of the minibatch, from this pass's head statistics
   (arrays indexed from 0 at `first`): dlogp[i] = a_t, dentropy[i] = b_t of the minimised J.
   A token with a = b = 0 stays exactly 0. q, qlog may be NULL (no push is summed then). */
void objective_coefficients(const struct Objective *objective, const struct ObjectiveBatch *batch,
                            int first, int count, const float *logp, const float *entropy,
                            const float *q, const float *qlog, float *dlogp, float *dentropy,
                            struct ObjectiveStats *stats);

/* Rounds a float to the named type's nearest value and back: the precision study of section 6. */
float round_to_dtype(float x, const char *dtype);

#endif
