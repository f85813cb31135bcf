/* Experience: prompts, completions and rewards as the flat arrays that objectives.h and trainer.h
   read. A rollout batch and a batch of demonstrations have the same form.

       token      3 5 7 : 2 2 = 3 * 5 + 7 EOT | 3 5 7 : 2 2 = 5 + ...       start       0   13 ...
       loss_mask  0 0 0 0 0 0 0 1 1 1 1 1 1   | 0 ...                       loss_start  0   6  ...
       logp and entropy have one number per token with loss: those of sequence i begin at
       loss_start[i]

   What an environment says in a completion (environment.h) has no loss. */
#ifndef LLMC_EXPERIENCE_H
#define LLMC_EXPERIENCE_H

#include "objectives.h"
#include "replay.h"
#include "sampler.h"
#include "../tasks/examples.h"
#include "trainer.h"
#include "../world.h"

/* Host memory that the struct owns, reused by the next batch; experience_free. Zero-initialise
   before first use. */
struct Experience {
    int count, group_size;           /* completions; group g is [g * group_size, ...) */
    int *start, *loss_start;         /* [count + 1] */
    int *token;                      /* prompt and completion */
    unsigned char *loss_mask;        /* per token */
    float *logp, *entropy;           /* per token with loss, as sampled */
    float *logp_ref;                 /* per token with loss, under the reference model if any */
    float *logp_scored;              /* per token with loss, by the training pass (--old-logp) */
    float *reward, *advantage;       /* [count]; reward NaN: the completion could not be scored */
    unsigned char *ended, *active;   /* [count] */
    int *length;                     /* [count] tokens with loss */
    int *completion_start;           /* [count] where in token the completion begins */
    struct TextList prompt, completion;   /* [count] texts of a rollout batch, for the log */
    struct TextList turns;           /* [count] likewise the turns as JSON, or "" (environment.h) */
    int capacity_count;
    size_t capacity_tokens;
    /* Statistics of all completions generated for this batch, also those of groups that the filter
       dropped. */
    double sum_entropy, sum_length, truncated;   /* sums over tokens, completions, completions */
    double sum_reward;               /* over the scored completions */
    double reward_std;               /* standard deviation of a group's rewards: mean over groups
                                        with a scored completion; NaN if there is none */
    double frac_reward_zero_std;     /* share of groups whose scored rewards are all equal */
    long generated, scored, generated_tokens;   /* completions, scored ones, tokens */
    long texts, text_tokens, texts_cut;   /* what an environment said, as in struct Rollout */
    long pages_peak, preempted;      /* the sampler's, of the round with the most, and of all */
    double seconds_generate, seconds_reward;
    struct Rollout rollout;          /* of the last round; kept so that its memory is reused */
};

/* What to collect. */
struct CollectOptions {
    const struct Task *task;
    const struct Tokenizer *tokenizer;
    struct Ends ends;                /* what a completion ends with */
    uint64_t seed;
    int prompts, group, max_tokens;
    float temperature;
    bool filter;                     /* drop groups of equal rewards and generate others instead */
    int filter_rounds;               /* with the filter: at most this many rounds of generation */
    struct Replay *replay;           /* NULL, or where completions are read from; no filter then */
    int64_t step;                    /* with replay: the step whose completions are read */
    const struct World *world;       /* the ranks that collect together; NULL: this process alone */
};

/* Collects completions of the prompts number *ordinal, *ordinal + 1, ..., with their rewards, and
   adds the number of prompts used to *ordinal. With the filter the batch has fewer groups than
   asked for if filter_rounds rounds were not enough. Returns false, with *ordinal unchanged, if the
   replayed file does not have this step (replay_problem says why), or if the program is asked to
   stop and so the task's judge was interrupted. */
bool experience_collect(struct Experience *out, struct Sampler *sampler,
                        const struct Weights *weights, const struct CollectOptions *options,
                        int64_t *ordinal, void *workspace);
/* `count` prompts with a random right answer each, or `count` lessons of a task that has those, for
   supervised steps; *ordinal as above. The task must have either (task_demonstrates). */
void experience_demonstrate(struct Experience *out, const struct CollectOptions *options, int count,
                            int64_t *ordinal);
/* The same arrays as objectives.h and as trainer.h read them. The pointers are those of
   `experience` and valid until it is filled again. */
struct RewardBatch experience_rewards(const struct Experience *experience, int max_tokens);
struct TrainingSet experience_training_set(const struct Experience *experience);
void experience_free(struct Experience *experience);

#endif
