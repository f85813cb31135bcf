#include "sampler.h"

#include <assert.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"

/* The rows of a step: those that draw a token come first, then the prompt tokens that are only
   written to the cache:

       | row 0 | row 1 | ... | row live-1 | prompt a: t0 t1 .. | prompt b: t0 t1 .. |

   A prompt of P tokens has a segment of P - 1. Its last token is the first input of every row of
   the group, in the row's own tail: so all rows are alike from their first step on, and prompt and
   rows may enter in one step, as every key is written before any is read. */
struct Sampler {
    const struct Model *model;
    uint64_t serial;                  /* which sampler: addresses come back, numbers do not */
    int rows, slots, max_prompt, max_tokens, step_rows;
    struct DecodeState *decode;
    struct DecodeRows device, host;   /* [step_rows], the same on both sides */
    int *device_drawn, *drawn;        /* what a step of R rows drew, on both sides: [R] tokens, then
                                         [R] log-probabilities and [R] entropies, as floats */
    int *completion;                  /* [rows] whose token the row draws */
    int *free_tails, num_free_tails;  /* stacks of slots: [rows] tails, */
    int *free_slots, num_free_slots;  /* [slots] */
    int *slot_users;                  /* [slots] completions of a prompt slot's group to come */
    int *loaded;                      /* [slots] groups that enter in this step, by slot */
};

/* The fields of struct DecodeRows, each of four bytes a row. */
#define ROW_FIELDS(X) \
    X(token) X(position) X(prompt_slot) X(prompt_length) X(tail_slot) X(ordinal) X(sample)

/* One call of sampler_generate. */
struct Generation {
    struct Sampler *sampler;
    const struct RolloutRequest *request;
    struct Rollout *out;
    int next;         /* the first completion that has not entered */
    int slot;         /* prompt slot of its group, once that has begun to enter */
    int live;         /* rows that draw a token */
    int prefill;      /* rows that only write a prompt token */
    int num_loaded;   /* groups whose prompt comes with this step */
    int R;            /* rows of the step: live, prefill and empty ones */
    bool changed;     /* the rows are not those of the last step, each one token on */
    const int *token; /* what the step drew, by row, and its numbers */
    const float *logp, *entropy;
};

/* ---- reserve and free ----------------------------------------------------------------------- */

/* A number of rows that recurs, at least `rows` and at most 1/8 or one unit more: multiples of the
   backend's unit, and of 1/8 of the power of two below. So 512 rows that finish one by one pass
   through 32 sizes, each of which is recorded once. */
static int recurring_size(const struct Ops *ops, int rows) {
    int unit = ops->decode_multiple;
    if (unit == 1) return rows;
    while (rows >= 16 * unit) unit *= 2;
    return (rows + unit - 1) / unit * unit;
}

/* As many prompt tokens as rows may enter in one step, and at least one whole prompt. */
int sampler_step_rows(const struct Ops *ops, int rows, int max_prompt) {
    int filled = recurring_size(ops, rows), most = rows;
    if (max_prompt > 1) most += rows > max_prompt - 1 ? rows : max_prompt - 1;
    return most > filled ? most : filled;
}

/* Prompt slots: of as many groups as the rows hold whole, and as many again whose last rows are not
   done, and the one that enters. Where more are wanted a group waits; no result depends on when. */
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

/* Each completion goes to the left or stays. */
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

/* Tokens of prompt p that go to its segment: all but the last. */
static int segment_length(const struct RolloutRequest *request, int p) {
    return request->prompt_start[p + 1] - request->prompt_start[p] - 1;
}

/* Takes a prompt slot for the group of completion `next`, if there is one and the prompt still fits
   into this step. A slot in use has a row, so that with no row at work every slot is free. */
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

/* Completion `next` becomes a row: the prompt's last token, at the head of a free tail. */
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

/* Appends prompt p's tokens for segment `slot` from row `row` on; returns the row after them. */
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

/* Fills the free rows with waiting completions, and appends the prompts they bring. */
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

/* Rows [g->R, R) become empty ones. */
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

/* What may differ between two steps of as many rows: a step's key among the recorded ones. */
struct StepKey {
    uint64_t sampler;
    const void *weights, *workspace;
    int R;
    float inv_temperature;
    uint32_t key[2];
};

/* The network, the draw, and each row one token on, ready for the next step. */
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

/* Draws one token for every live row. Rows are uploaded only where they are not the last step's,
   and what was drawn comes back in one piece: stopping needs it. A step without prompts has one of
   few sizes and is replayed as one launch. */
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
    memset(&step, 0, sizeof step); /* padding included: keys are compared as bytes */
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

/* Gives back the slots of a row that is done. */
static void leave_row(struct Sampler *s, int row) {
    int slot = s->host.prompt_slot[row];
    s->free_tails[s->num_free_tails++] = s->host.tail_slot[row];
    if (--s->slot_users[slot] == 0) s->free_slots[s->num_free_slots++] = slot;
}

/* The row becomes row `to`, one token on. */
static void keep_row(struct Sampler *s, int to, int row, int token) {
#define MOVE_FIELD(field) s->host.field[to] = s->host.field[row];
    ROW_FIELDS(MOVE_FIELD)
#undef MOVE_FIELD
    s->completion[to] = s->completion[row];
    s->host.token[to] = token;
    s->host.position[to]++;
}

/* Stores the drawn tokens. Finished rows leave; the others close up in order, so that the rows of a
   group stay beside each other and find their prompt in the machine's cache. */
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
        out->ended[i] = g->token[row] == g->request->end_of_text;
        if (out->ended[i] || length + 1 == max_tokens)
            leave_row(s, row);
        else
            keep_row(s, kept++, row, g->token[row]);
    }
    g->changed = kept < g->live || g->prefill > 0; /* else all that stand are one token on */
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
