/* One optimizer step on one minibatch: sequences are packed into micro-batches; each goes through
   the forward pass, the head (which calls the objective) and the backward pass; the gradients are
   summed over ranks and clipped; AdamW updates the weights. The warm start and every objective use
   this path. Tokens that neighbours of a set begin with, and that have no loss (the prompt of a
   group), go through the network once a micro-batch. */
#ifndef LLMC_TRAINER_H
#define LLMC_TRAINER_H

#include "../model.h"
#include "../world.h"
#include "objectives.h"
#include "optimizer.h"

/* Sequences to learn from: prompt and completion. Host arrays, owned by the caller. loss_mask[t] =
   1 if the prediction of token t has a loss; never for the first token of a sequence. logp_old and
   logp_ref have one number for each such token of the whole set, in order. advantage and active are
   [count]. */
struct TrainingSet {
    int count;
    const int *start;               /* [count + 1] into token, loss_mask */
    const int *token;
    const unsigned char *loss_mask;
    const int *loss_start;          /* [count + 1] into logp_old, logp_ref */
    const float *logp_old, *logp_ref;   /* or NULL */
    const float *advantage;         /* or NULL (ce) */
    const unsigned char *active;    /* or NULL: all */
};

struct Trainer;   /* weights, gradients, moments, activations, batch arrays; opaque, trainer.c */

/* Reserves everything that an update needs. shape->N: tokens of a micro-batch, at least those of
   the longest sequence; shape->max_T: longest input row. The workspace is large enough for all of
   `shape`, so that the sampler can use it too. optimizer NULL: only for scoring; no gradients and
   moments, and nothing is kept for a backward pass. Sequences of fewer than two tokens are skipped.
   Activations, gradients and batch arrays are in the arena's training section: a rollout overwrites
   them, and a pass here overwrites the sampler's buffers. world: the ranks that share the work
   (NULL: one); the model is built for as many. Owned by the caller; trainer_free.

   With several ranks every one of them makes the calls below with the same arguments. A set's
   sequences are cut into one piece for each rank, of about as many tokens; what comes of it is
   given to all, so that every rank returns the same results. */
struct Trainer *trainer_reserve(const struct Model *model, struct Arena *arena,
                                const struct OpsShape *shape, enum Recompute recompute,
                                const struct OptimizerOptions *optimizer,
                                const struct World *world, uint64_t seed);
void trainer_free(struct Trainer *trainer);
/* All of them: on a device its next work waits for those that an update still gathers. */
struct Weights *trainer_weights(struct Trainer *trainer);
/* For the checkpoint. */
struct OptimizerState trainer_optimizer(const struct Trainer *trainer);
/* The gradients of the last update, times the loss scale; backend memory [num_parameters], which
   the next rollout overwrites. With several ranks that share the optimizer, only the own slices of
   its buckets are sums. */
float *trainer_gradients(struct Trainer *trainer);
struct TrainerProgress trainer_progress(const struct Trainer *trainer);
void trainer_set_progress(struct Trainer *trainer, struct TrainerProgress progress);
void *trainer_workspace(struct Trainer *trainer);
/* Sets moments and the optimizer's step to zero: after loading weights, and when the warm start is
   over or a new task begins. */
void trainer_reset_optimizer(struct Trainer *trainer);

struct UpdateResult {
    bool made;                /* false: no sequence was active, and nothing was done */
    double grad_norm;         /* before clipping, over all ranks */
    bool skipped;             /* a non-finite loss or gradient: nothing was updated */
    const char *bad_tensor;   /* if skipped: the first tensor with a non-finite gradient, or "the
                                 loss" */
    int micro_batches;        /* of this rank */
    int overflows;            /* how often the pass was made again with a smaller loss scale */
    long tokens;              /* tokens that went through the network: inputs of the minibatch,
                                 shared prompts once a micro-batch, without repeated passes; over
                                 all ranks */
    double slowest;           /* the largest of the ranks' numbers of tokens over their mean */
};

/* Makes one update on the sequences of `set` listed in pick [num_pick]. batch_template: the members
   control, noise, logp_dtype, seed and ordinal; the others are filled here. max_tokens is for the
   aggregation `constant`. stats are added to. A loss or gradient that is not finite changes no
   weight (UpdateResult.skipped). */
struct UpdateResult trainer_update(struct Trainer *trainer, const struct Objective *objective,
                                   const struct TrainingSet *set, const int *pick, int num_pick,
                                   const struct ObjectiveBatch *batch_template, int max_tokens,
                                   float temperature, float learning_rate,
                                   struct ObjectiveStats *stats);

/* The head's statistics of every token with loss of the listed sequences, in order, under `weights`
   (the policy's or a reference's). out: arrays over those tokens; any but logp may be NULL. */
void trainer_score(struct Trainer *trainer, const struct Weights *weights,
                   const struct TrainingSet *set, const int *pick, int num_pick, float temperature,
                   const struct HeadStats *out);

/* The hidden states that trainer_score takes its statistics of, in the same order: calls `take` for
   some of them after the other, hidden [n,C] in host memory, which is valid during the call. All by
   this process: no other rank takes part. */
void trainer_hidden_states(struct Trainer *trainer, const struct Weights *weights,
                           const struct TrainingSet *set, const int *pick, int num_pick,
                           void (*take)(void *context, const float *hidden, int n),
                           void *context);

/* Attention entropy (2303.06296), which attention's forward pass computes on request.
     reserve_attention   reserves the memory; before arena_commit
     watch_attention     requests it for the first micro-batch of the next update, on rank 0
     attention_entropy   the means over that micro-batch's tokens (entropy_attention_means), host
                         memory [L*NH] of the trainer; NULL if no update was made since, or on
                         another rank */
void trainer_reserve_attention(struct Trainer *trainer, struct Arena *arena);
void trainer_watch_attention(struct Trainer *trainer);
const double *trainer_attention_entropy(const struct Trainer *trainer);

#endif
