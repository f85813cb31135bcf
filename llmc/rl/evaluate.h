/* Evaluation on held-out prompts fixed by the seed: pass@k, distinct correct answers, entropy. */
#ifndef LLMC_EVALUATE_H
#define LLMC_EVALUATE_H

#include "sampler.h"
#include "../tasks/examples.h"

struct Evaluation {
    int num_prompts, samples;
    double pass_at[4];          /* k = 1, 4, 16, 64; NaN where k > samples */
    double distinct_correct;    /* different right answers per prompt; depends on `samples` */
    double reward, entropy, mean_length, truncated;
    int unscored;               /* completions without a reward, left out of the first three */
};
extern const int evaluation_k[4];

/* The numbers of completions that are there: `samples` of each held-out prompt, in `rollout`. A
   prompt counts in pass@k when k of its completions are scored, in distinct_correct when one is. */
struct Evaluation evaluation_of(const struct Examples *held_out, const struct Rollout *rollout,
                                int samples);

/* samples completions for each of num_prompts held-out prompts. */
struct Evaluation evaluate(struct Sampler *sampler, const struct Weights *weights,
                           const struct Task *task, const struct Tokenizer *tokenizer,
                           uint64_t seed, int num_prompts, int samples, float temperature,
                           int max_tokens, void *workspace);

#endif
