/* A round of generation: completions of a list of prompts, and their rewards.

   With several ranks each samples and judges those of one contiguous piece of the prompts, and then
   gets the others' from the other ranks. Which tokens are drawn does not depend on the completions
   beside them (sampler.h), so all ranks end with what one process would have, bit for bit:

       prompts      0 1 2 | 3 4 | 5 6 7         each rank: sample, judge
                     \      |      /
       gathered     0 1 2   3 4   5 6 7         on every rank, in the order of the prompts */
#ifndef LLMC_ROUND_H
#define LLMC_ROUND_H

#include "replay.h"
#include "sampler.h"
#include "../world.h"

struct RoundOptions {
    const struct Examples *prompts;
    int group, max_tokens;         /* as in struct RolloutRequest */
    uint64_t seed;
    enum RngPurpose purpose;
    float temperature;
    struct Ends ends;
    bool turns;                    /* the turns as JSON are wanted too */
    struct Replay *replay;         /* NULL, or where the completions of `step` are read from */
    int64_t step;
    const struct World *world;     /* NULL: this process alone */
};

/* What the completions are worth; completion i is that of the rollout. The struct owns its memory;
   round_free. */
struct Round {
    struct Reward *reward;
    struct TextList completion, turns;   /* texts; turns is empty if it is not wanted */
    double seconds_generate, seconds_reward;   /* of the slowest rank; the exchange is in neither */
};

/* Fills *rollout (its memory is reused) and *out (which is only written). Counters of the rollout
   are sums over the ranks, pages_peak is the largest. Called by all ranks with equal options, but
   for the sampler's memory. Returns false, on all ranks, if on any of them the replayed file does
   not have the step or the judge was interrupted; *out and *rollout then have no meaning, but *out
   is to be freed all the same.

   A rank waits for the others for the world's timeout and, more, four times what it would have
   needed itself, had each of its completions been of the longest length, and what judging may take
   (Task.judges_within); one that has no prompts waits an hour. */
bool round_play(struct Round *out, struct Rollout *rollout, struct Sampler *sampler,
                const struct Weights *weights, const struct RoundOptions *options,
                void *workspace);
void round_free(struct Round *round);

#endif
