/* One optimizer step on one minibatch: pack sequences into micro-batches, forward, the head with
   the objective in its middle, backward, sum over ranks, clip, AdamW. Warm start, language-model
   loss and every RL objective take this one path. */
#ifndef LLMC_TRAINER_H
#define LLMC_TRAINER_H

#include "../model.h"
#include "objectives.h"

/* Sequences to learn from. Host arrays. A sequence is prompt + completion; loss_mask[t] = 1 where
   token t is predicted with loss (t >= 1 within its sequence). logp_old etc. are per token with
   loss of the WHOLE set, in order; per-sequence arrays are [count]. */
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

struct OptimizerOptions {
    float beta1, beta2, epsilon, weight_decay, grad_clip;  /* grad_clip 0 = off */
};

struct Trainer;   /* weights, gradients, moments, activations, batch arrays; opaque, trainer.c */

/* Reserves everything the update needs. shape->N is the micro-batch in tokens (at least one longest
   sequence), shape->max_T the longest input row; the workspace serves the whole of `shape`, so the
   sampler may share it. optimizer NULL: for scoring only, no gradients or moments, and nothing is
   kept for backward. Rows shorter than two tokens cannot be learnt from. What a pass needs lies in
   the arena's training section: it does not outlive a rollout, nor a rollout it. */
struct Trainer *trainer_reserve(const struct Model *model, struct Arena *arena,
                                const struct OpsShape *shape, enum Recompute recompute,
                                const struct OptimizerOptions *optimizer, uint64_t seed);
void trainer_free(struct Trainer *trainer);
struct Weights *trainer_weights(struct Trainer *trainer);
/* For the checkpoint. */
struct OptimizerState trainer_optimizer(const struct Trainer *trainer);
/* Backend memory [num_parameters]: of the last update, times the loss scale; gone with the next
   rollout. */
float *trainer_gradients(struct Trainer *trainer);
/* What else a resume needs: optimizer steps done, and the loss scale with the good updates since it
   changed. The gradients of fp16 activations are formed times a power of two, so that small ones do
   not vanish below 6e-8; one that overflows is formed again with a smaller scale, and after many
   good updates a larger one is tried (1710.03740). Elsewhere the scale is 1. */
struct TrainerProgress {
    int64_t step;
    double loss_scale;
    int64_t loss_scale_updates;
};
struct TrainerProgress trainer_progress(const struct Trainer *trainer);
void trainer_set_progress(struct Trainer *trainer, struct TrainerProgress progress);
void *trainer_workspace(struct Trainer *trainer);
/* Moments to zero, step 0: after loading weights, and at the switch from warm start to RL. */
void trainer_reset_optimizer(struct Trainer *trainer);

struct UpdateResult {
    bool made;                /* false: no sequence was active, so there was nothing to do */
    double grad_norm;         /* before clipping, over all ranks */
    bool skipped;             /* a non-finite loss or gradient: nothing was updated */
    const char *bad_tensor;   /* first tensor with a non-finite gradient, when skipped */
    int micro_batches;
    int overflows;            /* passes made again with a smaller loss scale */
    long tokens;              /* that entered the network, once */
};

/* The minibatch is the sequences of `set` listed in pick[0..num_pick). `batch_template` carries
   what does not depend on the pick (control, logp_dtype, seed, ordinal); max_tokens is for the
   aggregation `constant`. stats are added to. */
struct UpdateResult trainer_update(struct Trainer *trainer, const struct Objective *objective,
                                   const struct TrainingSet *set, const int *pick, int num_pick,
                                   const struct ObjectiveBatch *batch_template, int max_tokens,
                                   float temperature, float learning_rate,
                                   struct ObjectiveStats *stats);

/* Scores every token with loss of the listed sequences, in order: arrays over those tokens, any but
   logp may be NULL. Uses `weights` (the policy's or a reference's). */
void trainer_score(struct Trainer *trainer, const struct Weights *weights,
                   const struct TrainingSet *set, const int *pick, int num_pick, float temperature,
                   const struct HeadStats *out);

/* Attention entropy (2303.06296) of the next micro-batch that is learnt from, out of attention's
   own forward pass. Reserve before arena_commit; watch arms it for the next update; then the means
   over that micro-batch's tokens, normalised as entropy.h says, are host memory [L*NH] of the
   trainer (NULL: that update had nothing to learn from). */
void trainer_reserve_attention(struct Trainer *trainer, struct Arena *arena);
void trainer_watch_attention(struct Trainer *trainer);
const double *trainer_attention_entropy(const struct Trainer *trainer);

#endif
