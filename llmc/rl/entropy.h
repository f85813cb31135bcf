/* Entropy: what can be done about it, a row per control, and its monitors (doc/objectives.md).
   Knows only C and arrays.

   Once per rollout batch, before its updates, a controller sees the exact mean entropy H of the
   rollout and turns the variable of its control toward the target H*. */
#ifndef LLMC_ENTROPY_H
#define LLMC_ENTROPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "../base/fields.h"

/* ---- controls ------------------------------------------------------------------------------- */

/* Rows of entropy_controls that others name. */
enum EntropyControl {
    CONTROL_NONE, CONTROL_BONUS, CONTROL_ADAPTIVE_BONUS, CONTROL_REPO_R, CONTROL_REPO_D,
    CONTROL_REPO_BETA, CONTROL_ADAPO, CONTROL_CLIP_COV, CONTROL_KL_COV
};

/* The variables that controls turn; this file moves them, the objective reads them. */
struct ControlState {
    float zeta;             /* repo_r, repo_d, repo_beta */
    float clip_high;        /* adapo: replaces the objective's; else negative = not moved */
    float entropy_coef;     /* bonus, adaptive_bonus */
    float repo_d_beta;      /* repo_d: zeta |D|, set once per rollout batch */
};

/* A control's variable: where it starts, its bounds, and how far it goes at once. */
struct ControlRange { float start, min, max, step; };

/* What the objective does with the few tokens of largest covariance of advantage and l. */
enum Selection { SELECT_NOTHING, SELECT_SILENCED, SELECT_PENALISED };

struct EntropyState;
struct EntropyOptions;

/* One entropy control: everything the program knows of it. Adding one: a row of entropy_controls,
   and a function for what no other row does. What a row leaves out it does not have. */
struct Control {
    const char *name;
    const char *reads;                /* options, space-separated, beside the four of its range: */
    struct { const char *start, *min, *max, *step; } option;
    struct ControlRange llm, tiny;    /* defaults of them, per scale */
    const char *variable;             /* its name when the program starts; NULL: none */
    size_t value;                     /* the variable: a float of struct ControlState */
    struct { const char *key; size_t value; } logged[2];   /* metrics.jsonl; likewise */
    bool has_target;                  /* H is held at H* */
    bool has_rule;                    /* by one of enum ControllerRule */
    /* Once per rollout: turns the variable; and is it at a bound of its range? */
    void (*move)(struct EntropyState *state, double entropy);
    bool (*is_at_bound)(const struct EntropyState *state);
    /* NULL, or why the variable could never move as it should (options by their names). */
    const char *(*problem)(const struct EntropyOptions *options);
    /* What the objective does: another advantage for the surrogate; a moved upper clip bound; an
       entropy bonus in the loss; selected tokens. */
    double (*advantage)(const struct ControlState *control, double advantage, double logp,
                        double entropy);
    bool moves_clip_high, has_bonus;
    bool measures_change;             /* wants entropy_set_repo_d before the first update */
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
/* The preset of a scale for a control: "llm" = the papers', "tiny" = for vocabularies of tens;
   false: unknown scale. */
bool entropy_options_preset(struct EntropyOptions *options, enum EntropyControl control,
                            const char *scale);
/* NULL, or what is wrong with these options (an error; static storage). */
const char *entropy_options_problem(const struct EntropyOptions *options);
/* One line for the start, "target 0.5 x the first rollout's entropy; ..."; false: none. */
bool entropy_describe(const struct EntropyOptions *options, char *out, size_t capacity);

struct EntropyState {
    struct EntropyOptions options;
    struct ControlState control;
    double initial, target, cumulative;    /* H of the first rollout, H*, running sum of H */
    double integral;                       /* pi; starts where the variable does */
    double coef;                           /* adaptive_bonus: c, kept while the bonus is inactive */
    int64_t rollouts;                      /* seen so far */
    int steps_at_bound;                    /* consecutive, for the saturation warning */
    double error_at_bound;                 /* |H - H*| when it arrived there */
};
/* The state that a checkpoint holds, of struct EntropyState: everything but the options. */
extern const struct FieldTable entropy_fields;
void entropy_open(struct EntropyState *state, const struct EntropyOptions *options);
/* One line for a run that goes on, "zeta stands at -0.004, target 1.2 nats"; false: none. */
bool entropy_describe_state(const struct EntropyState *state, char *out, size_t capacity);
/* The first rollout fixes initial and target; every rollout moves the control. H in nats; a
   non-finite one is ignored. Returns NULL or a warning sentence (static storage) when the
   controller has been at a bound for 20 rollouts while |H - H*| > 10 % and not shrinking; again
   every 20. */
const char *entropy_update(struct EntropyState *state, double entropy);

/* REPO-D's D = sum r_t A_t [p_t L_t - (R_t + H_t Q_t)] / sum r_t over completion tokens of a
   rollout batch (raw A; r_t = 1 before the first update), then control.repo_d_beta = zeta |D|
   (or zeta D). Letters are the paper's: L = l + H, Q = sum p^2, and R = sum p^2 log p, which ops.h
   calls qlog. Arrays [n] per token, as the head gives them; the sum leaves out non-finite tokens,
   and ranks add theirs before it is set. Call entropy_set_repo_d after entropy_update, which moves
   zeta. */
double entropy_repo_d_sum(int n, const float *advantage, const float *logp, const float *entropy,
                          const float *q, const float *qlog);
void entropy_set_repo_d(struct EntropyState *state, double sum, double tokens);

/* Attention entropy (2303.06296) per head: mean[h] = the mean over tokens of H / log(i + 1), where
   i is the token's position and log(i + 1) the largest entropy over its i + 1 keys, so 0 is one key
   and 1 is all of them evenly (dividing by it is ours, not the paper's). Tokens at position 0 have
   no choice and are left out; a head without any token is NaN. entropy [heads, n] in nats;
   position [n]; mean [heads]. */
void entropy_attention_means(double *mean, const float *entropy, const int *position, int heads,
                             int n);

/* Mean in double; NaN of nothing. */
double mean_of(const float *x, int n);

/* Unbiased pass@k = 1 - C(n-c, k) / C(n, k) for c right answers among n samples; without overflow;
   n - c < k gives 1; NaN unless 0 <= c, k <= n. */
double pass_at_k(int n, int c, int k);

#endif
