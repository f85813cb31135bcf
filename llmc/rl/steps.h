/* The steps of a decode, on the backend: the sampler says which rows a step has, this part uploads
   them, enqueues the step, and reads what it drew.

       rows on the host       | row 0 | .. | row live-1 | tokens that are only stored |
           | one upload, of what has changed; nothing where each row goes on with its token
       rows on the backend    | row 0 | .. | row live-1 |   | - | - |    filled up: a size that was
           | enqueue: network, draws, next input of each row             recorded before
       what was drawn         0 1                    two steps may be on their way

   Where the backend works while the host goes on (ops->asynchronous), a step is enqueued before the
   draws of the one before are read, so that it has work while the host reads and decides: the rows
   of the next step are on the backend already, because decode_advance made them. A completion that
   has ended meanwhile has drawn one token too many, which nobody reads. */
#ifndef LLMC_STEPS_H
#define LLMC_STEPS_H

#include "../model.h"
#include "sampler.h"

/* The members of struct DecodeRows: arrays of 4 bytes per row. */
#define ROW_FIELDS(X) \
    X(token) X(position) X(prompt_slot) X(prompt_length) X(tail_slot) X(ordinal) X(sample)
enum { NUM_ROW_FIELDS = 7 };

struct Steps {
    const struct Model *model;
    struct DecodeState *decode;
    uint64_t serial;                 /* tells samplers apart in the keys of recorded steps; unlike
                                        an address it is not used again after free */
    int most;                        /* rows of a step */
    struct CacheSize cache;
    struct DecodeRows host;          /* [most] the rows as they shall be; position, token: of the
                                        oldest step whose draws were not read, or of the next */
    bool changed;                    /* host: otherwise than by the token that each row drew */
    struct DecodeRows device;        /* parts of device_rows, for steps of R rows */
    int *device_rows, *packed;       /* [most * NUM_ROW_FIELDS] on backend and host */
    int *device_drawn;               /* [3 * most] what a step drew for its `sampled` rows: tokens,
                                        then, as floats, log-probabilities and entropies */
    int R, sampled;                  /* of the newest step, and of both that are in flight */
    bool stores;                     /* the newest step stores tokens that are not drawn from */
    int in_flight;                   /* steps whose draws were not read: 0, 1, 2 */
    int next;                        /* where the next step's draws go: 0, 1 */
};

/* What a step drew; valid until the next step is enqueued. */
struct Drawn {
    const int *token;
    const float *logp, *entropy;
};

/* Reserves, in arena's present section, what steps of up to `most` rows need, cache and packed
   weights included. */
void steps_reserve(struct Steps *steps, const struct Model *model, struct Arena *arena, int most,
                   const struct CacheSize *cache);
void steps_free(struct Steps *steps);
/* Rounds a number of rows up, by at most 1/8 or one unit of the backend (ops->decode_multiple), so
   that steps have few different sizes: each is recorded once (ops->graph_begin). For example, 512
   rows that finish one by one give 32 sizes. */
int steps_size(const struct Ops *ops, int rows);
/* Enqueues a step of host rows [0, live), each of which draws a token, and [live, live + stored).
   None is in flight (asserted). */
void steps_draw(struct Steps *steps, const struct RolloutRequest *request,
                const struct Weights *weights, int live, int stored, void *workspace);
/* Enqueues another step of the same rows, each with the token that the step in flight draws for it.
   One is in flight, which stores nothing else; the pages of the next position are there. */
void steps_draw_ahead(struct Steps *steps, const struct RolloutRequest *request,
                      const struct Weights *weights, int live, void *workspace);
/* Waits for the oldest step in flight. */
struct Drawn steps_read(struct Steps *steps);

#endif
