/* What several ranks hold and send, computed from the model's buckets alone: printed at start and
   by --dry-run, and what a test compares the counted bytes with. The formulas are explained in
   doc/scaling.md. */
#ifndef LLMC_WORLD_PLAN_H
#define LLMC_WORLD_PLAN_H

#include "../model.h"

/* All in bytes. What is sent is what struct CommCounts counts: by one rank. */
struct WorldPlan {
    int ranks, buckets;
    bool zero, narrow;             /* --zero 1; --grad-comm bf16 */
    size_t parameters;             /* elements of a flat buffer, with gaps and padding */
    double weights, gradients;     /* memory of each rank: all of them */
    double optimizer;              /* moments and, with a narrower element type, masters: its share
                                      of them, or with --zero 0 all */
    double optimizer_alone;        /* what one rank would have for itself */
    double send_gradients;         /* in an update; again for every pass that fp16's loss scale has
                                      repeated */
    double send_weights;           /* in an update that changes weights */
    int collectives;               /* of both */
    double send_checkpoint;        /* when one is saved: the optimizer, gathered part by part */
};

/* model: built for the ranks that it is for (model_build_ranks). */
struct WorldPlan world_plan(const struct Model *model, bool zero, bool narrow);

/* Prints it. groups: of `group` completions, in a round of a step; 0: nothing is sampled.
   minibatches: of what was sampled. */
void describe_world(const struct WorldPlan *plan, int64_t groups, int64_t group,
                    int64_t minibatches);

#endif
