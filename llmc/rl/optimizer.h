/* The optimizer's half of an update: the gradients of all ranks are summed, clipped and applied by
   AdamW, and the new weights come back to every rank. With several ranks it works bucket by bucket
   (model.h), while backward goes on:

       backward   | rest | layer L-1 | ... | layer 0 | embeddings |
       gradients         reduce-scatter of the rest, layer L-1, ...        norm, clip
       slice                                                          AdamW of bucket 0, 1, ...
       weights                                                           all-gather of 0, 1, ...
       next forward pass                                                   embeddings, layer 0, ...

   Each rank has the moments and master weights of its own slice of each bucket only (ZeRO-1,
   1910.02054), or without `zero` all of them: then the gradients are all-reduced, and every rank
   makes the whole update. */
#ifndef LLMC_OPTIMIZER_H
#define LLMC_OPTIMIZER_H

#include "../model.h"
#include "../world.h"

struct OptimizerOptions {
    float beta1, beta2, epsilon, weight_decay, grad_clip;  /* grad_clip 0 = off */
    bool zero;               /* of several ranks each has its share of moments and masters */
    bool narrow_gradients;   /* several ranks: gradients travel as bf16; with zero only */
};

/* What a checkpoint needs beside weights and moments: optimizer steps done, the loss scale, and the
   updates without overflow since the scale changed. With fp16 all gradients are computed times the
   loss scale, a power of two, so that small gradients of activations do not become 0 (below 6e-8).
   If a gradient overflows, the pass is made again with a smaller scale; after many updates without
   overflow a larger one is tried (1710.03740). With other types the scale is 1. */
struct TrainerProgress {
    int64_t step;
    double loss_scale;
    int64_t loss_scale_updates;
};

/* Zero-initialise, then optimizer_reserve; optimizer_free frees what it has of the host. Pointers
   are backend memory in the arena. */
struct Optimizer {
    const struct Model *model;
    const struct Ops *ops;
    const struct World *world;
    struct Weights *weights;     /* the caller's; its master and share are set here */
    struct OptimizerOptions options;
    struct TrainerProgress progress;
    uint64_t seed;
    float *grads;                /* [num_parameters], in the arena's training section; after an
                                    update with shared state only the own slices are sums */
    float *m, *v;                /* of `share` */
    struct Share share;
    void *narrow;                /* scratch of the largest bucket */
    double *sums;                /* [num_buckets] sums of squares */
    struct AdamwRange *ranges;
    int num_ranges;
    int *arrives;                /* [num_buckets] as in struct Weights; NULL with one rank */
    void **workspace;            /* the trainer's, reserved by it */
};

/* world NULL: one rank. The buckets of model are for the world's ranks (asserted). */
void optimizer_reserve(struct Optimizer *optimizer, const struct Model *model, struct Arena *arena,
                       struct Weights *weights, const struct OptimizerOptions *options,
                       const struct World *world, void **workspace, uint64_t seed);
void optimizer_free(struct Optimizer *optimizer);
/* Sets moments and the step to 0. */
void optimizer_reset(struct Optimizer *optimizer);
/* The first loss scale of a backend's type; 1: it needs none. */
double optimizer_first_loss_scale(const struct Ops *ops);

/* Sets the gradients to 0. */
void optimizer_begin(struct Optimizer *optimizer);
/* For the last backward pass of a minibatch on this rank: gives each bucket to be summed over the
   ranks when it is final. A rank that makes no backward pass calls optimizer_sum_all instead. Each
   rank does one of the two, once, after optimizer_begin. */
struct BucketDone optimizer_bucket_done(struct Optimizer *optimizer);
void optimizer_sum_all(struct Optimizer *optimizer);
/* The norm of the summed gradients, divided by the loss scale; the same on every rank. */
double optimizer_norm(struct Optimizer *optimizer);
/* Lowers the loss scale after an overflow. Returns false if it is the smallest already, 2, or if no
   scale is used (it is 1). */
bool optimizer_shrink_scale(struct Optimizer *optimizer);
/* Clips by the global norm (1211.5063), optimizer_norm's, and updates the weights. */
void optimizer_step(struct Optimizer *optimizer, double norm, float learning_rate);
/* After a norm that is not finite: the first tensor to blame; the same on every rank. */
const char *optimizer_bad_tensor(struct Optimizer *optimizer);
/* Waits, on the compute stream, for all weights of the last update. */
void optimizer_await(struct Optimizer *optimizer);
/* For a checkpoint. */
struct OptimizerState optimizer_state(const struct Optimizer *optimizer);

#endif
