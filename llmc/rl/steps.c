#include "steps.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"

/* ---- reserve and free ----------------------------------------------------------------------- */

int steps_size(const struct Ops *ops, int rows) {
    int unit = ops->decode_multiple;
    if (unit == 1) return rows;
    while (rows >= 16 * unit) unit *= 2;
    return (rows + unit - 1) / unit * unit;
}

void steps_reserve(struct Steps *steps, const struct Model *model, struct Arena *arena, int most,
                   const struct CacheSize *cache) {
    static uint64_t samplers;
    size_t all = (size_t)most;
    *steps = (struct Steps){.model = model, .serial = ++samplers, .most = most, .cache = *cache};
    arena_reserve(arena, &steps->device_rows, NUM_ROW_FIELDS * all * sizeof(int), "decode rows",
                  "rows [%d, %d]", NUM_ROW_FIELDS, most);
    arena_reserve(arena, &steps->device_drawn, 3 * all * sizeof(int), "decode rows",
                  "drawn [3, %d]", most);
    steps->packed = check_alloc(NUM_ROW_FIELDS * all, sizeof(int), "the sampler");
#define ALLOC_FIELD(field) \
    steps->host.field = check_alloc(all, sizeof *steps->host.field, "the sampler");
    ROW_FIELDS(ALLOC_FIELD)
#undef ALLOC_FIELD
    steps->decode = decode_reserve(model, arena, most, cache);
}

void steps_free(struct Steps *steps) {
    decode_free(steps->decode);
    free(steps->packed);
#define FREE_FIELD(field) free(steps->host.field);
    ROW_FIELDS(FREE_FIELD)
#undef FREE_FIELD
}

/* ---- the rows of a step --------------------------------------------------------------------- */

/* Makes host rows [from, to) empty. */
static void clear_rows(struct DecodeRows *host, int from, int to) {
    for (int row = from; row < to; row++) {
#define CLEAR_FIELD(field) host->field[row] = 0;
        ROW_FIELDS(CLEAR_FIELD)
#undef CLEAR_FIELD
        host->position[row] = -1;
    }
}

/* All fields of the step's R rows in one upload, one after the other. Where nothing has changed, R
   has not either, and what is there stays true. */
static void upload_rows(struct Steps *steps) {
    if (!steps->changed) return;
    size_t R = (size_t)steps->R, at = 0;
#define PACK_FIELD(field)                                                      \
    memcpy(steps->packed + at, steps->host.field, R * sizeof(int));            \
    steps->device.field = (void *)(steps->device_rows + at);                   \
    at += R;
    ROW_FIELDS(PACK_FIELD)
#undef PACK_FIELD
    steps->model->ops->upload(steps->device_rows, steps->packed, at * sizeof(int));
    steps->changed = false;
}

/* A bound of a number of entries that recurs: a power of two, at least two pages, at most as many
   entries as `width` pages have. */
static int recurring_length(int entries, int width) {
    int bound = 2 * KV_PAGE;
    while (bound < entries) bound *= 2;
    return bound < width * KV_PAGE ? bound : width * KV_PAGE;
}

/* How far the rows look back, for a backend whose work follows the longest. later: steps since
   host's positions. */
static void bound_lengths(struct Steps *steps, int rows, int later) {
    const struct DecodeRows *host = &steps->host;
    int prompt = 0, tail = 0;
    for (int row = 0; row < rows; row++) {
        int P = host->prompt_length[row], own = host->position[row] + later - P + 1;
        if (own <= 0) continue;
        if (P > prompt) prompt = P;
        if (own > tail) tail = own;
    }
    steps->device.longest_prompt = recurring_length(prompt, steps->cache.prompt_width);
    steps->device.longest_tail = recurring_length(tail, steps->cache.tail_width);
}

/* ---- a step --------------------------------------------------------------------------------- */

/* The key of a recorded step: all arguments of its slots that may differ. */
struct StepKey {
    uint64_t sampler;
    const void *weights, *workspace;
    int R, longest_prompt, longest_tail;
    float inv_temperature;
    uint32_t key[2];
};

/* The network, the draws, and the update of the backend's rows for the next step. */
static void enqueue_slots(struct Steps *steps, const struct StepKey *step,
                          const struct Weights *weights, void *workspace) {
    const struct Model *model = steps->model;
    const struct Ops *ops = model->ops;
    struct Head head = model_head(model, 1);
    head.inv_temperature = step->inv_temperature;
    const floatX *E = model_decode(model, weights, steps->decode, &steps->device, step->R,
                                   workspace);
    int sampled = steps->sampled;
    float *logp = (float *)steps->device_drawn + sampled, *entropy = logp + sampled;
    if (sampled == 0) return;   /* the step only stores a part of a long prompt */
    ops->head_sample(steps->device_drawn, logp, entropy, E, decode_head_weight(steps->decode),
                     &steps->device, step->key, &head, sampled, workspace);
    ops->decode_advance(&steps->device, steps->device_drawn, sampled);
}

/* Steps that only draw are recorded; others have odd sizes. What was drawn is copied to the host in
   one piece, because it must see which completions have ended. */
static void enqueue(struct Steps *steps, const struct RolloutRequest *request,
                    const struct Weights *weights, void *workspace) {
    const struct Ops *ops = steps->model->ops;
    struct StepKey step;
    memset(&step, 0, sizeof step); /* keys are compared as bytes, so padding must be zero */
    step.sampler = steps->serial, step.weights = weights->data, step.workspace = workspace;
    step.R = steps->R;
    step.longest_prompt = steps->device.longest_prompt;
    step.longest_tail = steps->device.longest_tail;
    step.inv_temperature = request->temperature > 0 ? 1 / request->temperature : 0;
    rng_key(step.key, request->seed, request->purpose);
    steps->device.tails_only = steps->device.tails_apart = !steps->stores;
    if (steps->stores) {
        enqueue_slots(steps, &step, weights, workspace);
    } else if (ops->graph_begin(&step, sizeof step)) {
        enqueue_slots(steps, &step, weights, workspace);
        ops->graph_end();
    }
    ops->fetch(steps->next, steps->device_drawn, 3 * (size_t)steps->sampled * sizeof(int));
    steps->next = !steps->next;
    steps->in_flight++;
}

void steps_draw(struct Steps *steps, const struct RolloutRequest *request,
                const struct Weights *weights, int live, int stored, void *workspace) {
    assert(steps->in_flight == 0 && live + stored > 0);
    steps->R = live + stored, steps->sampled = live;
    steps->stores = stored > 0;
    if (!steps->stores) {
        steps->R = steps->sampled = steps_size(steps->model->ops, live);
        clear_rows(&steps->host, live, steps->R);
    }
    upload_rows(steps);
    bound_lengths(steps, live + stored, 0);
    enqueue(steps, request, weights, workspace);
}

void steps_draw_ahead(struct Steps *steps, const struct RolloutRequest *request,
                      const struct Weights *weights, int live, void *workspace) {
    assert(steps->in_flight == 1 && !steps->changed && !steps->stores);
    bound_lengths(steps, live, 1);
    enqueue(steps, request, weights, workspace);
}

struct Drawn steps_read(struct Steps *steps) {
    assert(steps->in_flight > 0);
    size_t sampled = (size_t)steps->sampled;
    const int *drawn = steps->model->ops->fetched(steps->next ^ (steps->in_flight & 1));
    steps->in_flight--;
    const float *logp = (const float *)(drawn + sampled);
    return (struct Drawn){drawn, logp, logp + sampled};
}
