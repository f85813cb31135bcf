/* Evaluation on held-out prompts fixed by the seed: pass@k, distinct correct answers, entropy. */
#ifndef LLMC_EVALUATE_H
#define LLMC_EVALUATE_H

#include "sampler.h"
#include "../tasks/task.h"
#include "../io/tokenizer.h"

struct Evaluation {
    int num_prompts, samples;
    double pass_at[4];          /* k = 1, 4, 16, 64; NaN where k > samples */
    double distinct_correct;    /* different right answers per prompt; depends on `samples` */
    double reward, entropy, mean_length, truncated;
};
extern const int evaluation_k[4];

/* samples completions for each of num_prompts held-out prompts. */
struct Evaluation evaluate(struct Sampler *sampler, const struct Weights *weights,
                           const struct Task *task, const struct Tokenizer *tokenizer,
                           uint64_t seed, int num_prompts, int samples, float temperature,
                           int max_tokens, void *workspace);

#endif
