/* The ranks of a run: processes that train one policy together, each on a device of its own. What
   they compute on devices is summed by the slots of ops.h; here are the host's numbers, which are
   few.

   The host's state is replicated, not sent: every rank has the whole experience of a step, forms
   the same advantages and controllers from it, and knows every other rank's share of the work. So
   what is exchanged here is what the ranks have sampled, sums of statistics, and decisions; and a
   decision that one rank can make for itself (a signal, a failure) is agreed before anyone
   branches.

   Every function is called by all ranks, in the same order. World NULL, or of one rank: each is the
   identity, nothing is opened and nothing allocated. */
#ifndef LLMC_WORLD_H
#define LLMC_WORLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "ops.h"

struct World {
    int rank, size;             /* of [0, size); zero-initialised is one rank, and so is size 1 */
    const struct Ops *ops;      /* NULL with one rank */
    double timeout;             /* seconds that a rank waits for another (--comm-timeout) */
    int64_t step;
    char *window;               /* backend memory [size + 1][bytes] through which bytes pass */
    size_t bytes;
};

static inline int world_size(const struct World *world) {
    return world && world->size > 1 ? world->size : 1;
}
static inline int world_rank(const struct World *world) {
    return world_size(world) > 1 ? world->rank : 0;
}

/* Meets the other ranks: all of them call this, with the id that one of them made (ops->comm_id).
   Ends the program if they are not there within `timeout` seconds. */
void world_open(struct World *world, const struct Ops *ops, int rank, int size, const void *id,
                double timeout);
void world_close(struct World *world);

/* Step `step` begins: for what a rank says when another one fails. */
void world_step(struct World *world, int64_t step);
/* The next waits for other ranks may take so many seconds more than the timeout, because these have
   other work (a scorer, a file); 0: no more. */
void world_patience(const struct World *world, double extra);

/* x [n] = the sum over ranks, added in their order: the same bits on every rank. */
void world_sum(const struct World *world, double *x, int n);
/* Does any rank say so? */
bool world_any(const struct World *world, bool mine);
/* The least of the ranks' x. */
double world_least(const struct World *world, double x);
/* bytes [n] = rank root's. */
void world_broadcast(const struct World *world, void *bytes, size_t n, int root);

/* What world_gather brought: rank r's bytes are [start[r], start[r + 1]). Zero-initialise before
   first use; the memory is used again by the next call, and freed by gathered_free. */
struct Gathered {
    char *bytes;
    size_t *start;              /* [size + 1] */
    size_t capacity;
};
/* Every rank's bytes, of any number each, to every rank. With one rank: its own, copied. */
void world_gather(const struct World *world, struct Gathered *out, const void *bytes, size_t n);
void gathered_free(struct Gathered *gathered);

/* The work of a list of items [n] is shared in one piece for each rank: rank `rank` does items
   [first, last). weight [n]: what each costs, of which every rank gets about the same; NULL: all
   cost the same. The same on every rank, by arithmetic alone. */
struct Piece {
    int first, last;
};
struct Piece world_piece(const struct World *world, int rank, int n, const int *weight);

#endif
