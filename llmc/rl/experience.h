/* Experience: what a policy learns from. Prompts, completions and rewards as the flat arrays that
   objectives and trainer read. A rollout batch and a batch of demonstrations have the same form.

       token      3 5 7 : 2 2 = 3 * 5 + 7 EOT | 3 5 7 : 2 2 = 5 + ...       start       0   13 ...
       loss_mask  0 0 0 0 0 0 0 1 1 1 1 1 1   | 0 ...                       loss_start  0   6  ...
       logp, entropy, one per token with loss */
#ifndef LLMC_EXPERIENCE_H
#define LLMC_EXPERIENCE_H

#include "objectives.h"
#include "replay.h"
#include "sampler.h"
#include "../tasks/examples.h"
#include "trainer.h"

/* Host memory, owned, reused by the next batch. Zero-initialise before first use. */
struct Experience {
    int count, group_size;           /* completions; group g is [g * group_size, ...) */
    int *start, *loss_start;         /* [count + 1] */
    int *token;                      /* prompt and completion */
    unsigned char *loss_mask;        /* per token */
    float *logp, *entropy;           /* per token with loss, as sampled */
    float *logp_ref;                 /* per token with loss; filled where there is a reference */
    float *logp_scored;              /* likewise; filled where --old-logp scores */
    float *reward, *advantage;       /* [count]; a reward of NaN: unscored */
    unsigned char *ended, *active;   /* [count] */
    int *length;                     /* [count] tokens with loss */
    struct TextList prompt, completion;   /* [count] of a rollout batch, whole, for the log */
    int capacity_count;
    size_t capacity_tokens;
    /* over everything generated for this batch, groups that the filter dropped included */
    double sum_entropy, sum_length, truncated;
    double sum_reward;               /* over the `scored` of the `generated` completions */
    double reward_std;               /* mean over groups with a scored completion; NaN if none */
    double frac_reward_zero_std;     /* groups whose scored rewards are all equal */
    long generated, scored, generated_tokens;
    double seconds_generate, seconds_reward;
    struct Rollout rollout;          /* the last round's, for its memory */
};

/* What to collect. */
struct CollectOptions {
    const struct Task *task;
    const struct Tokenizer *tokenizer;
    uint64_t seed;
    int prompts, group, max_tokens;
    float temperature;
    bool filter;                     /* drop groups of equal rewards and refill ... */
    int filter_rounds;               /* ... with at most this many rounds of generation */
    struct Replay *replay;           /* completions in place of sampled ones, or NULL ... */
    int64_t step;                    /* ... and which step's; no filter then */
};

/* Rollouts of prompts number *ordinal, *ordinal + 1, ... (advanced) with their rewards. With the
   filter the batch may hold fewer groups than asked for, when the rounds are used up. False: the
   replayed file does not give this step (replay.h says why); *ordinal stands where it did. */
bool experience_collect(struct Experience *out, struct Sampler *sampler,
                        const struct Weights *weights, const struct CollectOptions *options,
                        int64_t *ordinal, void *workspace);
/* `count` prompts with a random right answer each, for the supervised warm start. The task must
   have demonstrations. */
void experience_demonstrate(struct Experience *out, const struct CollectOptions *options, int count,
                            int64_t *ordinal);
/* Rewards and lengths as objectives.h reads them; pointers into `experience`. */
struct RewardBatch experience_rewards(const struct Experience *experience, int max_tokens);
/* The same arrays as trainer.h reads them. */
struct TrainingSet experience_training_set(const struct Experience *experience);
void experience_free(struct Experience *experience);

#endif
