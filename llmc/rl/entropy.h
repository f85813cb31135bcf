/* Entropy controls (ways to keep the policy's entropy from falling), the controllers that adjust
   them, and two measures of evaluation. Formulas and sources: doc/objectives.md. This file knows
   nothing of models and devices.

   Once per rollout batch, before its updates, the controller is given the exact mean entropy H of
   the rollout. It changes the control's variable so that H moves toward the target H*. */
#ifndef LLMC_ENTROPY_H
#define LLMC_ENTROPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "../base/fields.h"

/* ---- controls ------------------------------------------------------------------------------- */

/* Indices of entropy_controls. */
enum EntropyControl {
    CONTROL_NONE, CONTROL_BONUS, CONTROL_ADAPTIVE_BONUS, CONTROL_REPO_R, CONTROL_REPO_D,
    CONTROL_REPO_BETA, CONTROL_ADAPO, CONTROL_CLIP_COV, CONTROL_KL_COV
};

/* The controls' variables. This file changes them, the objective reads them. */
struct ControlState {
    float zeta;             /* repo_r, repo_d, repo_beta */
    float clip_high;        /* adapo: replaces the objective's clip_high; negative: not used */
    float entropy_coef;     /* bonus, adaptive_bonus */
    float repo_d_beta;      /* repo_d: zeta |D| or zeta D, set once per rollout batch */
};

/* A control's variable: its first value, its bounds, and the size of one step. */
struct ControlRange { float start, min, max, step; };

/* What the objective does with selected tokens of high covariance between advantage and
   log-probability: clip_cov gives them no gradient, kl_cov adds a penalty on |l - l_old|. */
enum Selection { SELECT_NOTHING, SELECT_SILENCED, SELECT_PENALISED };

struct EntropyState;
struct EntropyOptions;

/* One entropy control: everything the program knows of it. To add one: its name in enum
   EntropyControl, its row in entropy_controls (entropy.c), and functions for what no other row
   does. A member that a row leaves out is 0, NULL or false: the control does not have it. */
struct Control {
    const char *name;
    const char *reads;                /* names of options it reads, space-separated, apart from: */
    struct { const char *start, *min, *max, *step; } option;   /* options that set its range */
    struct ControlRange llm, tiny;    /* defaults of the range, for --scale llm and tiny */
    const char *variable;             /* the variable's name in messages; NULL: it has none */
    size_t value;                     /* offsetof the variable, a float of struct ControlState */
    struct { const char *key; size_t value; } logged[2];   /* key in metrics.jsonl, offsetof */
    bool has_target;                  /* it has a target H* */
    bool has_rule;                    /* enum ControllerRule chooses how it moves */
    /* move: changes the variable, once per rollout; entropy is H. is_at_bound: true if the variable
       has reached a bound of its range. */
    void (*move)(struct EntropyState *state, double entropy);
    bool (*is_at_bound)(const struct EntropyState *state);
    /* NULL, or a message that names the options with which the variable could never move. */
    const char *(*problem)(const struct EntropyOptions *options);
    /* The advantage that the surrogate uses in place of `advantage`; logp and entropy are the
       token's l and H. */
    double (*advantage)(const struct ControlState *control, double advantage, double logp,
                        double entropy);
    bool moves_clip_high, has_bonus;  /* clip_high replaces the upper clip bound; entropy_coef times
                                         H is subtracted from the loss */
    bool measures_change;             /* needs entropy_set_repo_d before a rollout's first update */
    enum Selection selects;
};
extern const struct Control entropy_controls[];   /* ends with a row without a name */

/* ---- controllers ---------------------------------------------------------------------------- */

enum ControllerRule { CONTROLLER_DOUBLE, CONTROLLER_PI };

struct EntropyOptions {
    enum EntropyControl control;
    enum ControllerRule rule;
    float target;             /* H* in nats; NaN = first rollout's entropy * target_ratio */
    float target_ratio;
    struct ControlRange range;
    bool repo_d_signed;
};
/* The defaults of a control for a scale: "llm" has the papers' values, "tiny" values for
   vocabularies of a few dozen words. Returns false for an unknown scale. */
bool entropy_options_preset(struct EntropyOptions *options, enum EntropyControl control,
                            const char *scale);
/* NULL, or one sentence saying what is wrong with these options (static storage). */
const char *entropy_options_problem(const struct EntropyOptions *options);
/* Writes the line that is printed at the start of a run, "target 0.5 x the first rollout's entropy;
   ...". Returns false, writing nothing, if the control has no variable. */
bool entropy_describe(const struct EntropyOptions *options, char *out, size_t capacity);

struct EntropyState {
    struct EntropyOptions options;
    struct ControlState control;
    double initial, target, cumulative;    /* H of the first rollout, H*, sum of H over rollouts */
    double integral;                       /* controller pi: its integral part */
    double coef;                           /* adaptive_bonus: c. The loss uses c, or 0 while H is
                                              above H*: control.entropy_coef */
    int64_t rollouts;                      /* how many entropy_update has seen */
    int steps_at_bound;                    /* consecutive rollouts at a bound and off target */
    double error_at_bound;                 /* |H - H*| at the first of them */
};
/* The members of struct EntropyState that a checkpoint holds: all but the options. */
extern const struct FieldTable entropy_fields;
/* Sets the state before the first rollout. */
void entropy_open(struct EntropyState *state, const struct EntropyOptions *options);
/* Writes the line for a run that is resumed, "zeta stands at -0.004, target 1.2 nats". Returns
   false, writing nothing, if the control has no controller. */
bool entropy_describe_state(const struct EntropyState *state, char *out, size_t capacity);
/* Called once per rollout with its mean entropy H in nats; a non-finite H is ignored. The first
   call sets initial and target; every call changes the control's variable. Returns NULL, or a
   warning (static storage) if for 20 rollouts in a row the variable was at a bound, |H - H*| was
   above 10 % of H*, and it has not shrunk. The warning is repeated every 20 such rollouts. */
const char *entropy_update(struct EntropyState *state, double entropy);

/* REPO-D's D = sum r_t A_t [p_t L_t - (R_t + H_t Q_t)] / sum r_t over completion tokens of a
   rollout batch (raw A; r_t = 1 before the first update), then control.repo_d_beta = zeta |D|
   (or zeta D). Letters as in the paper (2603.11682): L = l + H, Q = sum p^2, R = sum p^2 log p,
   which is qlog in ops.h. Arrays [n] per token, as the head gives them. The sum leaves out tokens
   whose term is not finite; with several ranks, their sums and token counts are added before
   entropy_set_repo_d. That is called after entropy_update, which changes zeta. */
double entropy_repo_d_sum(int n, const float *advantage, const float *logp, const float *entropy,
                          const float *q, const float *qlog);
void entropy_set_repo_d(struct EntropyState *state, double sum, double tokens);

/* Attention entropy (2303.06296) per head: mean[h] = the mean over tokens of H / log(i + 1), where
   i is the token's position. log(i + 1) is the largest possible entropy over the token's i + 1
   keys, so 0 means that one key has all the weight and 1 that all keys have the same (dividing by
   it is ours, not the paper's). Tokens at position 0 have one key only and are left out; NaN for a
   head without tokens. entropy [heads, n] in nats; position [n]; mean [heads]. */
void entropy_attention_means(double *mean, const float *entropy, const int *position, int heads,
                             int n);

/* The mean of x [n], summed in double; NaN if n is 0. */
double mean_of(const float *x, int n);

/* Unbiased pass@k = 1 - C(n-c, k) / C(n, k) for c right answers among n samples (2107.03374). Does
   not overflow; 1 if n - c < k; NaN unless 0 <= c <= n and 0 <= k <= n. */
double pass_at_k(int n, int c, int k);

#endif
