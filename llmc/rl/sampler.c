#include "sampler.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"

/* The rows of a step: those that draw a token come first, then the prompt tokens that are only
   written to the cache:

       | row 0 | row 1 | ... | row live-1 | prompt a: t0 t1 .. | prompt b: t0 t1 .. |

   A prompt of P tokens has P - 1 entries in its segment. Its last token is the first input of every
   row of the group, stored in the row's own tail, so a row's first step is like all its others. A
   prompt and its rows may enter in one step, because a step writes all keys before it reads any. */
struct Sampler {
    const struct Model *model;
    uint64_t serial;                  /* tells samplers apart in the keys of recorded steps; unlike
                                         an address it is not used again after free */
    int rows, slots, max_prompt, max_tokens, step_rows;
    struct DecodeState *decode;
    struct DecodeRows device, host;   /* [step_rows], the same on both sides */
    int *device_drawn, *drawn;        /* what a step of R rows drew, on backend and host: [R]
                                         tokens, then, as floats, [R] log-probabilities and [R]
                                         entropies */
    int *completion;                  /* [rows] the number of the completion that the row draws */
    int *free_tails, num_free_tails;  /* [rows] stack of free tails of the cache */
    int *free_slots, num_free_slots;  /* [slots] stack of free prompt slots */
    int *slot_users;                  /* [slots] unfinished completions of the slot's group */
    int *loaded;                      /* [slots] the slots of the prompts that enter in this step */
};

/* The members of struct DecodeRows: arrays of 4 bytes per row. */
#define ROW_FIELDS(X) \
    X(token) X(position) X(prompt_slot) X(prompt_length) X(tail_slot) X(ordinal) X(sample)

/* One call of sampler_generate. */
struct Generation {
    struct Sampler *sampler;
    const struct RolloutRequest *request;
    struct Rollout *out;
    int next;         /* the first completion that has not entered */
    int slot;         /* the prompt slot of that completion's group, if some of the group entered */
    int live;         /* rows that draw a token */
    int prefill;      /* rows that only write a prompt token */
    int num_loaded;   /* prompts that enter in this step */
    int R;            /* rows of the step: live, prefill and empty ones */
    bool changed;     /* the backend's rows are not up to date and must be uploaded */
    const int *token; /* [live] what the step drew for each row */
    const float *logp, *entropy;   /* [live] likewise */
};

/* ---- reserve and free ----------------------------------------------------------------------- */

/* Rounds the number of rows up, by at most 1/8 or one unit of the backend (ops->decode_multiple),
   so that steps have few different sizes: each is recorded once (ops->graph_begin). For example,
   512 rows that finish one by one give 32 sizes. */
static int recurring_size(const struct Ops *ops, int rows) {
    int unit = ops->decode_multiple;
    if (unit == 1) return rows;
    while (rows >= 16 * unit) unit *= 2;
    return (rows + unit - 1) / unit * unit;
}

/* A step may have up to `rows` prompt tokens, or one whole prompt where that is longer. */
int sampler_step_rows(const struct Ops *ops, int rows, int max_prompt) {
    int filled = recurring_size(ops, rows), most = rows;
    if (max_prompt > 1) most += rows > max_prompt - 1 ? rows : max_prompt - 1;
    return most > filled ? most : filled;
}

/* How many prompts the cache holds: for the groups that fill the rows, for as many earlier groups
   of which a few rows are not finished, and for the one that is entering. If more would be needed,
   a group waits, which changes no result. */
static int prompt_slots(int rows, int group) {
    int most = 2 * ((rows + group - 1) / group) + 1;
    return most < rows ? most : rows;
}

struct Sampler *sampler_reserve(const struct Model *model, struct Arena *arena, int rows, int group,
                                int max_prompt, int max_tokens) {
    assert(rows >= 1 && group >= 1 && max_prompt >= 1 && max_tokens >= 1);
    assert(max_prompt + max_tokens - 1 <= model->config.max_T);
    struct Sampler *s = check_alloc(1, sizeof *s, "the sampler");
    static uint64_t samplers;
    s->model = model, s->serial = ++samplers;
    s->rows = rows, s->slots = prompt_slots(rows, group);
    s->max_prompt = max_prompt, s->max_tokens = max_tokens;
    s->step_rows = sampler_step_rows(model->ops, rows, max_prompt);
    size_t n = (size_t)rows, all = (size_t)s->step_rows;
    arena->section = ARENA_DECODING;
#define RESERVE_FIELD(field)                                                                    \
    arena_reserve(arena, &s->device.field, all * sizeof *s->device.field, "decode rows",        \
                  #field " [R=%d]", s->step_rows);                                              \
    s->host.field = check_alloc(all, sizeof *s->host.field, "the sampler");
    ROW_FIELDS(RESERVE_FIELD)
#undef RESERVE_FIELD
    arena_reserve(arena, &s->device_drawn, 3 * all * sizeof(int), "decode rows", "drawn [3, %d]",
                  s->step_rows);
    s->drawn = check_alloc(3 * all, sizeof(int), "the sampler");
    int **arrays[] = {&s->completion, &s->free_tails, &s->free_slots, &s->slot_users, &s->loaded};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        *arrays[i] = check_alloc(n, sizeof(int), "the sampler");
    int segment = max_prompt > 1 ? max_prompt - 1 : 1;
    s->decode = decode_reserve(model, arena, s->step_rows, s->slots, segment, rows, max_tokens);
    arena->section = ARENA_ALWAYS;
    return s;
}

void sampler_free(struct Sampler *s) {
    if (!s) return;
    decode_free(s->decode);
#define FREE_FIELD(field) free(s->host.field);
    ROW_FIELDS(FREE_FIELD)
#undef FREE_FIELD
    int *arrays[] = {s->drawn,      s->completion, s->free_tails,
                     s->free_slots, s->slot_users, s->loaded};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    free(s);
}

void sampler_load_weights(struct Sampler *s, const struct Weights *weights) {
    decode_load_weights(s->model, s->decode, weights);
}

/* ---- the rollout's memory ------------------------------------------------------------------- */

void rollout_clear(struct Rollout *out, const struct RolloutRequest *request) {
    size_t count = (size_t)request->num_prompts * (size_t)request->group;
    size_t tokens = count * (size_t)request->max_tokens;
    assert(tokens <= INT_MAX);
    if (out->capacity_count < (int)count || !out->start) {
        out->start = check_realloc(out->start, count + 1, sizeof(int), "rollouts");
        out->ended = check_realloc(out->ended, count + 1, 1, "rollouts");
        out->capacity_count = (int)count;
    }
    if (out->capacity_tokens < tokens) {
        out->token = check_realloc(out->token, tokens, sizeof(int), "rollouts");
        out->logp = check_realloc(out->logp, tokens, sizeof(float), "rollouts");
        out->entropy = check_realloc(out->entropy, tokens, sizeof(float), "rollouts");
        out->capacity_tokens = tokens;
    }
    memset(out->start, 0, (count + 1) * sizeof(int));
    out->count = (int)count;
    out->steps = out->prefill_tokens = out->decoded_tokens = 0;
}

/* In place: no completion moves to a later address, so earlier ones are never overwritten. */
void rollout_pack(struct Rollout *out, int max_tokens) {
    for (int i = 0; i < out->count; i++) {
        size_t from = (size_t)i * (size_t)max_tokens, to = (size_t)out->start[i];
        size_t length = (size_t)out->start[i + 1];
        memmove(out->token + to, out->token + from, length * sizeof(int));
        memmove(out->logp + to, out->logp + from, length * sizeof(float));
        memmove(out->entropy + to, out->entropy + from, length * sizeof(float));
        out->start[i + 1] += out->start[i];
    }
    out->decoded_tokens = out->start[out->count];
}

void rollout_free(struct Rollout *out) {
    free(out->start);
    free(out->token);
    free(out->logp);
    free(out->entropy);
    free(out->ended);
    *out = (struct Rollout){0};
}

/* ---- rows enter ----------------------------------------------------------------------------- */

/* How many tokens of prompt p are stored in its segment: all but the last. */
static int segment_length(const struct RolloutRequest *request, int p) {
    return request->prompt_start[p + 1] - request->prompt_start[p] - 1;
}

/* Takes a prompt slot for the group of completion `next`. Returns false if no slot is free or the
   prompt does not fit into this step. Then rows are live and will free some: while no row is live,
   all slots are free and the step is empty. */
static bool enter_group(struct Generation *g) {
    struct Sampler *s = g->sampler;
    int length = segment_length(g->request, g->next / g->request->group);
    assert(length >= 0 && length < s->max_prompt);
    if (s->num_free_slots == 0 || g->prefill + length > s->step_rows - s->rows) return false;
    g->slot = s->free_slots[--s->num_free_slots];
    g->prefill += length;
    s->slot_users[g->slot] = g->request->group;
    s->loaded[g->num_loaded++] = g->slot;
    return true;
}

/* Gives completion `next` a row, whose first input is the prompt's last token, and a free tail. */
static void enter_completion(struct Generation *g) {
    struct Sampler *s = g->sampler;
    const struct RolloutRequest *request = g->request;
    int p = g->next / request->group, row = g->live++;
    s->host.token[row] = request->prompt_token[request->prompt_start[p + 1] - 1];
    s->host.position[row] = s->host.prompt_length[row] = segment_length(request, p);
    s->host.prompt_slot[row] = g->slot;
    s->host.tail_slot[row] = s->free_tails[--s->num_free_tails];
    s->host.ordinal[row] = request->ordinal[p];
    s->host.sample[row] = (uint32_t)(g->next % request->group);
    s->completion[row] = g->next++;
}

/* Makes rows from `row` on of prompt p's tokens, to be stored in segment `slot`. Returns the row
   after them. */
static int enter_prompt(struct Generation *g, int row, int p, int slot) {
    struct DecodeRows *host = &g->sampler->host;
    int length = segment_length(g->request, p);
    for (int k = 0; k < length; k++, row++) {
        host->token[row] = g->request->prompt_token[g->request->prompt_start[p] + k];
        host->position[row] = k;
        host->prompt_slot[row] = slot;
        host->prompt_length[row] = length;
        host->tail_slot[row] = 0;
        host->ordinal[row] = host->sample[row] = 0;
    }
    return row;
}

/* Gives the free rows to waiting completions, and appends the tokens of prompts that are new. */
static void enter_rows(struct Generation *g) {
    struct Sampler *s = g->sampler;
    int group = g->request->group;
    int first = (g->next + group - 1) / group;   /* the next group to enter */
    g->prefill = g->num_loaded = 0;
    while (g->live < s->rows && g->next < g->out->count) {
        if (g->next % group == 0 && !enter_group(g)) break;
        enter_completion(g);
        g->changed = true;
    }
    for (int i = 0, row = g->live; i < g->num_loaded; i++)
        row = enter_prompt(g, row, first + i, s->loaded[i]);
    g->out->prefill_tokens += g->prefill;
}

/* ---- a step --------------------------------------------------------------------------------- */

/* Makes rows [g->R, R) empty. */
static void fill_up(struct Generation *g, int R) {
    struct DecodeRows *host = &g->sampler->host;
    for (; g->R < R; g->R++) {
#define CLEAR_FIELD(field) host->field[g->R] = 0;
        ROW_FIELDS(CLEAR_FIELD)
#undef CLEAR_FIELD
        host->position[g->R] = -1;
    }
}

static void upload_rows(struct Generation *g) {
    struct Sampler *s = g->sampler;
#define UPLOAD_FIELD(field) \
    s->model->ops->upload(s->device.field, s->host.field, (size_t)g->R * sizeof *s->host.field);
    ROW_FIELDS(UPLOAD_FIELD)
#undef UPLOAD_FIELD
}

/* The key of a recorded step: all arguments of its slots that may differ. */
struct StepKey {
    uint64_t sampler;
    const void *weights, *workspace;
    int R;
    float inv_temperature;
    uint32_t key[2];
};

/* Enqueues one step: the network, the draws, and the update of the backend's rows for the next
   step. `sampled`: how many rows draw a token. */
static void enqueue_step(struct Generation *g, const struct StepKey *step,
                         const struct Weights *weights, int sampled, void *workspace) {
    struct Sampler *s = g->sampler;
    const struct Ops *ops = s->model->ops;
    struct Head head = model_head(s->model, 1);
    head.inv_temperature = step->inv_temperature;
    const floatX *E = model_decode(s->model, weights, s->decode, &s->device, step->R, workspace);
    float *logp = (float *)s->device_drawn + sampled, *entropy = logp + sampled;
    ops->head_sample(s->device_drawn, logp, entropy, E, decode_head_weight(s->decode), &s->device,
                     step->key, &head, sampled, workspace);
    ops->decode_advance(&s->device, s->device_drawn, sampled);
}

/* Draws one token for every live row. The rows are uploaded only if they changed otherwise than by
   one token each. What was drawn is downloaded, in one piece, because the host must see which
   completions have ended. A step without prompts is rounded up to one of a few sizes, and replayed
   as one launch where that size was recorded. */
static void draw_tokens(struct Generation *g, const struct Weights *weights, void *workspace) {
    struct Sampler *s = g->sampler;
    const struct Ops *ops = s->model->ops;
    float temperature = g->request->temperature;
    int sampled = g->live;
    g->R = g->live + g->prefill;
    if (g->prefill == 0) {
        fill_up(g, recurring_size(ops, g->live));
        sampled = g->R;
    }
    if (g->changed) upload_rows(g);
    struct StepKey step;
    memset(&step, 0, sizeof step); /* keys are compared as bytes, so padding must be zero */
    step.sampler = s->serial, step.weights = weights->data, step.workspace = workspace;
    step.R = g->R;
    step.inv_temperature = temperature > 0 ? 1 / temperature : 0;
    rng_key(step.key, g->request->seed, g->request->purpose);
    if (g->prefill > 0) {
        enqueue_step(g, &step, weights, sampled, workspace);
    } else if (ops->graph_begin(&step, sizeof step)) {
        enqueue_step(g, &step, weights, sampled, workspace);
        ops->graph_end();
    }
    size_t n = (size_t)sampled;
    ops->download(s->drawn, s->device_drawn, 3 * n * sizeof(int));
    g->token = s->drawn;
    g->logp = (const float *)(s->drawn + n), g->entropy = g->logp + n;
    g->out->steps++;
}

/* Frees the tail of a row that is finished, and the prompt slot if it was the last of its group. */
static void leave_row(struct Sampler *s, int row) {
    int slot = s->host.prompt_slot[row];
    s->free_tails[s->num_free_tails++] = s->host.tail_slot[row];
    if (--s->slot_users[slot] == 0) s->free_slots[s->num_free_slots++] = slot;
}

/* Moves row `row` to row `to` and makes `token` its next input. */
static void keep_row(struct Sampler *s, int to, int row, int token) {
#define MOVE_FIELD(field) s->host.field[to] = s->host.field[row];
    ROW_FIELDS(MOVE_FIELD)
#undef MOVE_FIELD
    s->completion[to] = s->completion[row];
    s->host.token[to] = token;
    s->host.position[to]++;
}

/* Stores the drawn tokens and removes finished rows. The others move up and keep their order, so
   that the rows of a group stay next to each other and share their prompt's keys in the machine's
   cache. */
static void store_tokens(struct Generation *g) {
    struct Sampler *s = g->sampler;
    struct Rollout *out = g->out;
    int max_tokens = g->request->max_tokens, kept = 0;
    for (int row = 0; row < g->live; row++) {
        int i = s->completion[row], length = out->start[i + 1]++;
        size_t at = (size_t)i * (size_t)max_tokens + (size_t)length;
        out->token[at] = g->token[row];
        out->logp[at] = g->logp[row];
        out->entropy[at] = g->entropy[row];
        out->ended[i] = ends_has(&g->request->ends, g->token[row]);
        if (out->ended[i] || length + 1 == max_tokens)
            leave_row(s, row);
        else
            keep_row(s, kept++, row, g->token[row]);
    }
    g->changed = kept < g->live || g->prefill > 0; /* else decode_advance brought them up to date */
    g->live = kept;
}

void sampler_generate(struct Sampler *s, const struct Weights *weights,
                      const struct RolloutRequest *request, struct Rollout *out, void *workspace) {
    assert(request->group >= 1);
    assert(request->max_tokens >= 1 && request->max_tokens <= s->max_tokens);
    rollout_clear(out, request);
    s->num_free_tails = s->rows, s->num_free_slots = s->slots;
    for (int i = 0; i < s->rows; i++) s->free_tails[i] = i;
    for (int i = 0; i < s->slots; i++) s->free_slots[i] = i;
    struct Generation g = {.sampler = s, .request = request, .out = out};
    while (g.live > 0 || g.next < out->count) {
        enter_rows(&g);
        draw_tokens(&g, weights, workspace);
        store_tokens(&g);
    }
    rollout_pack(out, request->max_tokens);
}
