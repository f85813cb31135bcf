/* Entropy: monitors and controllers (doc/entropy.md). Knows only C and arrays.

   Once per rollout batch, before its updates, a controller sees the exact mean entropy H of the
   rollout and turns the variable of its control (struct ControlState in objectives.h) toward the
   target H*. */
#ifndef LLMC_ENTROPY_H
#define LLMC_ENTROPY_H

#include <stdbool.h>
#include <stdint.h>
#include "../base/fields.h"
#include "objectives.h"

enum ControllerRule { CONTROLLER_DOUBLE, CONTROLLER_PI };

/* Bounds and starting values. Scales: "llm" = the papers', "tiny" = for vocabularies of tens. */
struct EntropyOptions {
    enum EntropyControl control;
    enum ControllerRule rule;
    float target;             /* H* in nats; NaN = first rollout's entropy * target_ratio */
    float target_ratio;
    float zeta_start, zeta_min, zeta_max;
    float clip_high_start;    /* NaN = the objective's own clip_high */
    float clip_high_min, clip_high_max, clip_high_step;
    float coef_start, coef_max, coef_delta;
    bool repo_d_signed;
};
/* The preset of a scale ("tiny" or "llm") for a control; false: unknown scale. */
bool entropy_options_preset(struct EntropyOptions *options, enum EntropyControl control,
                            const char *scale);

struct EntropyState {
    struct EntropyOptions options;
    struct ControlState control;
    double initial, target, cumulative;    /* H of the first rollout, H*, running sum of H */
    double integral;                       /* pi; starts at zeta_start */
    double coef;                           /* adaptive_bonus: c, kept while the bonus is inactive */
    int64_t rollouts;                      /* seen so far */
    int steps_at_bound;                    /* consecutive, for the saturation warning */
    double error_at_bound;                 /* |H - H*| when it arrived there */
};
/* The state that a checkpoint holds, of struct EntropyState: everything but the options. */
extern const struct FieldTable entropy_fields;
void entropy_open(struct EntropyState *state, const struct EntropyOptions *options,
                  float objective_clip_high);
/* The first rollout fixes initial and target; every rollout moves the control. H in nats; a
   non-finite one is ignored. Returns NULL or a warning sentence (static storage) when the
   controller has been at a bound for 20 rollouts while |H - H*| > 10 % and not shrinking; again
   every 20. */
const char *entropy_update(struct EntropyState *state, double entropy);

/* REPO-D's D = sum r_t A_t [p_t L_t - (R_t + H_t Q_t)] / sum r_t over completion tokens of a
   rollout batch (raw A; r_t = 1 before the first update), then control.repo_d_beta = zeta |D|
   (or zeta D). Arrays [n] per token, q and r as the head gives them (Q = sum p^2, R = sum p^2
   log p); the sum leaves out non-finite tokens, and ranks add theirs before it is set. Call
   entropy_set_repo_d after entropy_update, which moves zeta. */
double entropy_repo_d_sum(int n, const float *advantage, const float *logp, const float *entropy,
                          const float *q, const float *r);
void entropy_set_repo_d(struct EntropyState *state, double sum, double tokens);

/* Attention entropy (2303.06296) per head: mean[h] = the mean over tokens of H / log(i + 1), where i is
   the token's position and log(i + 1) the largest entropy over its i + 1 keys, so 0 is one key and 1
   is all of them evenly. Tokens at position 0 have no choice and are left out; a head without any
   token is NaN. entropy [heads, n] in nats; position [n]; mean [heads]. */
void entropy_attention_means(double *mean, const float *entropy, const int *position, int heads,
                             int n);

/* Mean in double; NaN of nothing. */
double mean_of(const float *x, int n);

/* Unbiased pass@k = 1 - C(n-c, k) / C(n, k) for c right answers among n samples; without overflow;
   n - c < k gives 1; k > n is NaN. */
double pass_at_k(int n, int c, int k);

#endif
