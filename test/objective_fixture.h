/* A minibatch for objectives, shared by test_objectives.c and test_surrogates.c: fill objective,
   length, reward and ended, link, fill the per-token arrays, run. */
#ifndef OBJECTIVE_FIXTURE_H
#define OBJECTIVE_FIXTURE_H

#include "test.h"
#include "../llmc/rl/objectives.h"

enum { MAX_TOKENS = 24000, MAX_SEQUENCES = 8000 };

struct Fixture {
    struct Objective objective;
    struct ObjectiveBatch batch;
    int length[MAX_SEQUENCES], start[MAX_SEQUENCES + 1], sequence_of[MAX_TOKENS];
    float reward[MAX_SEQUENCES], advantage[MAX_SEQUENCES], weight[MAX_SEQUENCES];
    unsigned char ended[MAX_SEQUENCES], active[MAX_SEQUENCES], selected[MAX_TOKENS];
    float sequence_ratio[MAX_SEQUENCES];
    float logp[MAX_TOKENS], entropy[MAX_TOKENS], old[MAX_TOKENS], ref[MAX_TOKENS];
    float q[MAX_TOKENS], r[MAX_TOKENS], dlogp[MAX_TOKENS], dentropy[MAX_TOKENS];
    struct ObjectiveStats stats;
};
static struct Fixture fixture;

/* Offsets and pointers once lengths are set; group 0 = leave advantages and weights alone. */
static inline void fixture_link(struct Fixture *f, int sequences, int group, int max_tokens) {
    int n = 0;
    for (int i = 0; i < sequences; i++) {
        f->start[i] = n;
        for (int t = 0; t < f->length[i]; t++) f->sequence_of[n++] = i;
    }
    f->start[sequences] = n;
    f->batch = (struct ObjectiveBatch){
        .num_tokens = n, .num_sequences = sequences, .sequence_start = f->start,
        .sequence_of = f->sequence_of, .advantage = f->advantage, .weight = f->weight,
        .logp_old = f->old, .logp_now = f->logp, .logp_dtype = "fp32", .seed = 5, .ordinal = 9,
        .control = {.clip_high = -1}, .sequence_ratio = f->sequence_ratio,
        .selected = f->selected};
    memset(&f->stats, 0, sizeof f->stats);
    if (group == 0) return;
    struct RewardBatch rewards = {sequences, group, max_tokens, f->reward, f->length, f->ended};
    objective_advantages(&f->objective, &rewards, f->advantage, f->active);
    objective_weights(&f->objective, objective_weight_sums(sequences, f->length, f->active),
                      max_tokens, sequences, f->length, f->active, f->weight);
}

static inline void fixture_run(struct Fixture *f) {
    objective_prepare(&f->objective, &f->batch);
    objective_coefficients(&f->objective, &f->batch, 0, f->batch.num_tokens, f->logp, f->entropy,
                           f->q, f->r, f->dlogp, f->dentropy, &f->stats);
}

#endif
