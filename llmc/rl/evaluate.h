/* Evaluation on held-out prompts, which depend on the run's seed only: pass@k, the number of
   different right answers, entropy. */
#ifndef LLMC_EVALUATE_H
#define LLMC_EVALUATE_H

#include "sampler.h"
#include "trainer.h"
#include "../tasks/examples.h"
#include "../world.h"

struct Evaluation {
    int num_prompts, samples;   /* no prompts: the next four lines have no meaning */
    double pass_at[4];          /* k = 1, 4, 16, 64; NaN where k > samples */
    double distinct_correct;    /* mean number of different right answers per prompt, among
                                   `samples` completions */
    double reward, entropy, mean_length, truncated;   /* means; truncated: share without
                                                         end-of-text; entropy in nats */
    double loss;                /* of held-out lessons: nats per token; NaN: there are none */
    bool interrupted;           /* the program is asked to stop: it is not to be used */
    int unscored;               /* completions without a reward; pass_at, distinct_correct and
                                   reward leave them out */
};
extern const int evaluation_k[4];

/* Evaluates completions that exist already: `rollout` holds `samples` of each held-out prompt. A
   prompt counts in pass@k if at least k of its completions are scored, in distinct_correct and
   reward if at least one is. A completion is right if its reward is 1. */
struct Evaluation evaluation_of(const struct Examples *held_out, const struct Rollout *rollout,
                                int samples);

/* Samples `samples` completions for each of num_prompts held-out prompts and evaluates them. The
   sampler must have the weights (sampler_load_weights). */
struct Evaluation evaluate(struct Sampler *sampler, const struct Weights *weights,
                           const struct Task *task, const struct Tokenizer *tokenizer,
                           const struct Ends *ends, uint64_t seed, int num_prompts, int samples,
                           float temperature, int max_tokens, const struct World *world,
                           void *workspace);

/* Mean of -log p over the learnt tokens of a lesson's rows, at temperature 1: what a supervised
   step minimises. The trainer's batches hold the longest row. */
double evaluate_lesson(struct Trainer *trainer, const struct Lesson *lesson);

#endif
