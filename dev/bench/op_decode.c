/* OP=decode: matmul_decode, mlp_decode and attention_decode, one token a row. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "bench.h"

static void set_sizes(struct Case *c, int R, int C, int F) {
    c->sizes = (struct OpsShape){.N = 1, .C = C, .F = F, .NH = 1, .NKV = 1, .HS = 64, .V = 1,
                                 .Vp = 1, .max_T = 1, .R = R, .max_length = 1};
}

/* Packs w [OC,C] of buffer `from` into the buffer `to` where the backend wants that; returns what
   the slot is to read. */
static const void *packed(const struct Buffer *from, const struct Buffer *to) {
    return to->at ? to->at : from->at;
}
static void pack(const struct Buffer *from, struct Buffer *to, const struct Ops *ops, int C,
                 int OC) {
    size_t bytes = ops->matmul_packed_size(C, OC);
    if (bytes == 0) return;
    to->at = ops->alloc(bytes);
    ops->matmul_pack(to->at, from->at, C, OC);
}

/* ---- matmul_decode --------------------------------------------------------------------------- */

static const struct Linear {
    int R, C, OC;
} linear_ragged[] = {{5, 72, 200}, {37, 264, 136}, {131, 520, 72}},
  linear_moderate[] = {{1, 768, 3072}, {8, 768, 3072}, {32, 768, 3072}},
  linear_large[] = {{1, 1024, 4096}, {8, 1024, 4096}, {32, 1024, 4096}, {64, 1024, 4096},
                    {128, 1024, 4096}, {256, 1024, 4096}};

enum { X, LINEAR_W, LINEAR_BIAS, LINEAR_PACKED, LINEAR_OUT };

static void linear_prepare(struct Case *c, const struct Ops *ops) {
    const struct Linear *h = c->about;
    pack(&c->buffer[LINEAR_W], &c->buffer[LINEAR_PACKED], ops, h->C, h->OC);
}

static void linear_call(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct Linear *h = c->about;
    struct Buffer *b = c->buffer;
    (void)workspace;
    ops->matmul_decode(b[LINEAR_OUT].at, b[X].at, packed(&b[LINEAR_W], &b[LINEAR_PACKED]),
                       b[LINEAR_BIAS].at, h->R, h->C, h->OC);
}

static double product(const float *x, const float *w, int n) {
    double sum = 0;
    for (int k = 0; k < n; k++) sum += (double)x[k] * w[k];
    return sum;
}

static void linear_expect(struct Case *c) {
    const struct Linear *h = c->about;
    struct Buffer *b = c->buffer;
    for (size_t r = 0; r < (size_t)h->R; r++)
        for (size_t o = 0; o < (size_t)h->OC; o++)
            b[LINEAR_OUT].want[r * (size_t)h->OC + o] =
                b[LINEAR_BIAS].host[o] + product(b[X].host + r * (size_t)h->C,
                                                 b[LINEAR_W].host + o * (size_t)h->C, h->C);
}

static bool open_linear(struct Case *c, const struct Setting *s) {
    int count = s->size == LARGE ? 6 : 3;
    if (s->which >= count) return false;
    struct Linear *h = check_alloc(1, sizeof *h, "the benchmark");
    *h = (s->size == RAGGED     ? linear_ragged
          : s->size == MODERATE ? linear_moderate
                                : linear_large)[s->which];
    size_t R = (size_t)h->R, C = (size_t)h->C, OC = (size_t)h->OC;
    c->about = h, c->prepare = linear_prepare, c->call = linear_call, c->expect = linear_expect;
    set_sizes(c, h->R, h->C, h->OC);
    snprintf(c->shape, sizeof c->shape, "%d x %d x %d", h->R, h->C, h->OC);
    case_in(c, "x", IN_X, case_numbers(s, R * C, 1, 1), R * C);
    case_in(c, "w", IN_X, case_noise(s, OC * C, 1 / sqrt((double)h->C), 2), OC * C);
    case_in(c, "bias", IN_X, case_noise(s, OC, 1, 3), OC);
    case_made(c, "packed");
    case_out(c, "out", OUT_X, R * OC, bound_of(s->ops, 1));
    c->flop = 2. * h->R * h->C * h->OC;
    c->bytes = (double)(R * C + OC * C + R * OC) * (double)s->ops->element_size;
    return true;
}

/* ---- mlp_decode ------------------------------------------------------------------------------ */

static const struct Block {
    int R, C, F;
    enum Activation activation;
} block_ragged[] = {{5, 72, 200, GELU_TANH}, {66, 136, 264, SWIGLU}},
  block_moderate[] = {{1, 768, 3072, GELU_TANH}, {32, 768, 3072, GELU_TANH}},
  block_large[] = {{1, 1024, 3072, SWIGLU}, {64, 1024, 3072, SWIGLU}, {256, 1024, 3072, SWIGLU}};

enum { W1 = 1, B1, W2, B2, PACKED1, PACKED2, PRE, ACT, BLOCK_OUT };

static void block_prepare(struct Case *c, const struct Ops *ops) {
    const struct Block *h = c->about;
    struct Buffer *b = c->buffer;
    pack(&b[W1], &b[PACKED1], ops, h->C, h->F * activation_inputs(h->activation));
    pack(&b[W2], &b[PACKED2], ops, h->F, h->C);
}

static void block_call(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct Block *h = c->about;
    struct Buffer *b = c->buffer;
    struct Mlp mlp = {h->activation, b[W1].at, b[B1].at, b[W2].at, b[B2].at, h->C, h->F};
    (void)workspace;
    ops->mlp_decode(b[BLOCK_OUT].at, b[PRE].at, b[ACT].at, b[X].at, packed(&b[W1], &b[PACKED1]),
                    packed(&b[W2], &b[PACKED2]), &mlp, h->R);
}

static double activate(const struct Block *h, const double *pre, int f) {
    double x = pre[f];
    if (h->activation == SWIGLU) return x / (1 + exp(-x)) * pre[h->F + f];
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

static void block_expect(struct Case *c) {
    const struct Block *h = c->about;
    struct Buffer *b = c->buffer;
    int P = h->F * activation_inputs(h->activation), C = h->C, F = h->F;
    double *pre = check_alloc((size_t)(P + F), sizeof *pre, "the benchmark"), *act = pre + P;
    for (int r = 0; r < h->R; r++) {
        for (int p = 0; p < P; p++)
            pre[p] = b[B1].host[p] + product(b[X].host + (size_t)r * (size_t)C,
                                             b[W1].host + (size_t)p * (size_t)C, C);
        for (int f = 0; f < F; f++) act[f] = activate(h, pre, f);
        for (int k = 0; k < C; k++) {
            double sum = b[B2].host[k];
            for (int f = 0; f < F; f++)
                sum += act[f] * b[W2].host[(size_t)k * (size_t)F + (size_t)f];
            b[BLOCK_OUT].want[(size_t)r * (size_t)C + (size_t)k] = sum;
        }
    }
    free(pre);
}

/* pre and act are rounded, then the result. pre and act are scratch: not compared. */
static bool open_block(struct Case *c, const struct Setting *s) {
    int count = s->size == LARGE ? 3 : 2;
    if (s->which >= count) return false;
    struct Block *h = check_alloc(1, sizeof *h, "the benchmark");
    *h = (s->size == RAGGED     ? block_ragged
          : s->size == MODERATE ? block_moderate
                                : block_large)[s->which];
    size_t R = (size_t)h->R, C = (size_t)h->C, F = (size_t)h->F;
    size_t P = F * (size_t)activation_inputs(h->activation);
    c->about = h, c->prepare = block_prepare, c->call = block_call, c->expect = block_expect;
    set_sizes(c, h->R, h->C, h->F);
    snprintf(c->shape, sizeof c->shape, "%d x %d x %d %s", h->R, h->C, h->F,
             h->activation == SWIGLU ? "SwiGLU" : "GELU");
    case_in(c, "x", IN_X, case_numbers(s, R * C, 1, 1), R * C);
    case_in(c, "w1", IN_X, case_noise(s, P * C, 1 / sqrt((double)h->C), 2), P * C);
    case_in(c, "b1", IN_X, case_noise(s, P, 0.3, 3), P);
    case_in(c, "w2", IN_X, case_noise(s, C * F, 1 / sqrt((double)h->F), 4), C * F);
    case_in(c, "b2", IN_X, case_noise(s, C, 0.3, 5), C);
    case_made(c, "packed1"), case_made(c, "packed2");
    case_in(c, "pre", IN_X, case_noise(s, R * P, 1, 6), R * P);
    case_in(c, "act", IN_X, case_noise(s, R * F, 1, 7), R * F);
    case_out(c, "out", OUT_X, R * C, bound_of(s->ops, 4));
    c->flop = 2. * h->R * h->C * (double)(P + F);
    c->bytes = (double)(2 * R * C + (P + F) * C) * (double)s->ops->element_size;
    return true;
}

/* ---- attention_decode ------------------------------------------------------------------------ */

/* R rows, in groups of `group` with one prompt; row r has drawn r % tail tokens before. */
static const struct Cached {
    int R, group, prompt, tail, NH, NKV, HS;
} cached_ragged[] = {{7, 3, 70, 90, 4, 2, 64}, {5, 5, 3, 150, 3, 1, 40}, {9, 2, 131, 5, 2, 2, 128}},
  cached_moderate[] = {{32, 8, 128, 128, 12, 12, 64}},
  cached_large[] = {{64, 8, 512, 512, 16, 8, 128}, {256, 16, 256, 256, 16, 8, 128},
                    {1, 1, 512, 3584, 16, 8, 128}};

struct AboutCached {
    struct Cached h;
    struct KvCache cache;   /* as the present backend has it */
    int L, layer;
};

enum { NEW_QKV, PROMPT_TABLE, TAIL_TABLE, POSITION, PROMPT_SLOT, PROMPT_LENGTH, TAIL_SLOT, ATTENDED,
       POOL };

static void cached_prepare(struct Case *c, const struct Ops *ops) {
    struct AboutCached *a = c->about;
    (void)ops;
    a->cache.pool = c->buffer[POOL].at;
    a->cache.prompt = c->buffer[PROMPT_TABLE].at, a->cache.tail = c->buffer[TAIL_TABLE].at;
}

static void cached_call(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct AboutCached *a = c->about;
    struct Buffer *b = c->buffer;
    struct DecodeRows rows = {.position = b[POSITION].at, .prompt_slot = b[PROMPT_SLOT].at,
                              .prompt_length = b[PROMPT_LENGTH].at, .tail_slot = b[TAIL_SLOT].at,
                              .tails_only = true, .tails_apart = true};
    ops->attention_decode(b[ATTENDED].at, b[NEW_QKV].at, &a->cache, &rows, a->layer, a->h.R,
                          workspace);
}

/* Where the key (0) or value (1) of position k of row r is in the pool. */
static size_t cached_place(const struct Case *c, int r, int k, int g, int which) {
    const struct AboutCached *a = c->about;
    const struct Buffer *b = c->buffer;
    int prompt = b[PROMPT_LENGTH].ints[r], at = k < prompt ? k : k - prompt;
    int page = k < prompt ? b[PROMPT_TABLE].ints[b[PROMPT_SLOT].ints[r] * a->cache.prompt_width +
                                                 at / KV_PAGE]
                          : b[TAIL_TABLE].ints[b[TAIL_SLOT].ints[r] * a->cache.tail_width +
                                               at / KV_PAGE];
    size_t head = ((size_t)a->layer * (size_t)a->cache.pages + (size_t)page) * 2 + (size_t)which;
    head = head * (size_t)a->h.NKV + (size_t)g;
    return (head * KV_PAGE + (size_t)(at % KV_PAGE)) * (size_t)a->h.HS;
}

/* Query head h of row r over the pool that holds its new key and value. */
static void cached_attend(struct Case *c, int r, int h, double *p) {
    const struct AboutCached *a = c->about;
    struct Buffer *b = c->buffer;
    int HS = a->h.HS, last = b[POSITION].ints[r], g = h / (a->h.NH / a->h.NKV);
    size_t QKV = (size_t)heads_qkv(&a->cache.heads);
    const float *q = b[NEW_QKV].host + (size_t)r * QKV + (size_t)(h * HS);
    double *out = b[ATTENDED].want + ((size_t)r * (size_t)a->h.NH + (size_t)h) * (size_t)HS;
    double most = -INFINITY, sum = 0;
    for (int k = 0; k <= last; k++) {
        const double *key = b[POOL].want + cached_place(c, r, k, g, 0);
        p[k] = 0;
        for (int i = 0; i < HS; i++) p[k] += q[i] * key[i] / sqrt(HS);
        most = fmax(most, p[k]);
    }
    for (int k = 0; k <= last; k++) sum += exp(p[k] - most);
    for (int k = 0; k <= last; k++) {
        const double *value = b[POOL].want + cached_place(c, r, k, g, 1);
        for (int i = 0; i < HS; i++) out[i] += exp(p[k] - most) / sum * value[i];
    }
}

static void cached_expect(struct Case *c) {
    const struct AboutCached *a = c->about;
    struct Buffer *b = c->buffer;
    size_t QKV = (size_t)heads_qkv(&a->cache.heads), HS = (size_t)a->h.HS;
    double *p = check_alloc((size_t)(a->h.prompt + a->h.tail + 1), sizeof *p, "the benchmark");
    for (size_t k = 0; k < b[POOL].n; k++) b[POOL].want[k] = b[POOL].host[k];
    for (int r = 0; r < a->h.R; r++)
        for (int g = 0; g < 2 * a->h.NKV; g++) {
            int which = g / a->h.NKV, head = g % a->h.NKV;
            size_t to = cached_place(c, r, b[POSITION].ints[r], head, which);
            const float *from = b[NEW_QKV].host + (size_t)r * QKV + (size_t)(a->h.NH + g) * HS;
            for (size_t i = 0; i < HS; i++) b[POOL].want[to + i] = from[i];
        }
    for (int r = 0; r < a->h.R; r++)
        for (int h = 0; h < a->h.NH; h++) cached_attend(c, r, h, p);
    free(p);
}

/* The rows' places. Entry n of both tables, the prompts' first, is page (7 n + 3) % pages. */
static void add_rows(struct Case *c, struct AboutCached *a) {
    const struct Cached *h = &a->h;
    int groups = (h->R + h->group - 1) / h->group, R = h->R;
    int widths[] = {kv_pages(h->prompt), kv_pages(h->tail)}, slots[] = {groups, R};
    int entries = groups * widths[0] + R * widths[1], pages = entries + 2, n = 0;
    while (pages % 7 == 0) pages++;
    for (int table = 0; table < 2; table++) {
        int *x = case_new_ints((size_t)(slots[table] * widths[table]));
        for (int i = 0; i < slots[table] * widths[table]; i++, n++) x[i] = (7 * n + 3) % pages;
        case_ints(c, table ? "tails" : "prompts", x, (size_t)(slots[table] * widths[table]));
    }
    a->cache = (struct KvCache){.heads = {h->NH, h->NKV, h->HS}, .L = a->L, .pages = pages,
                                .prompt_slots = groups, .prompt_width = widths[0],
                                .tail_slots = R, .tail_width = widths[1]};
    int *fields[4];
    for (int f = 0; f < 4; f++) fields[f] = case_new_ints((size_t)R);
    for (int r = 0; r < R; r++) {
        fields[0][r] = h->prompt + h->tail - 1 - r % h->tail;
        fields[1][r] = r / h->group, fields[2][r] = h->prompt, fields[3][r] = R - 1 - r;
    }
    static const char *const names[] = {"position", "prompt slot", "prompt length", "tail slot"};
    for (int f = 0; f < 4; f++) case_ints(c, names[f], fields[f], (size_t)R);
}

static bool open_cached(struct Case *c, const struct Setting *s) {
    int count = s->size == MODERATE ? 1 : 3;
    if (s->which >= count) return false;
    struct AboutCached *a = check_alloc(1, sizeof *a, "the benchmark");
    *a = (struct AboutCached){.h = (s->size == RAGGED     ? cached_ragged
                                    : s->size == MODERATE ? cached_moderate
                                                          : cached_large)[s->which],
                              .L = s->size == RAGGED ? 2 : 1, .layer = s->size == RAGGED};
    const struct Cached *h = &a->h;
    c->about = a, c->prepare = cached_prepare, c->call = cached_call, c->expect = cached_expect;
    size_t R = (size_t)h->R, C = (size_t)(h->NH * h->HS), KV = (size_t)(h->NKV * h->HS);
    double keys = 0, extra = s->data == NORMAL ? 0 : 1e-4;   /* of_scores in op_attention.c */
    case_in(c, "qkv", IN_X, case_numbers(s, R * (C + 2 * KV), 1, 1), R * (C + 2 * KV));
    add_rows(c, a);
    size_t pool = (size_t)a->L * (size_t)a->cache.pages * 2 * KV * KV_PAGE;
    for (int r = 0; r < h->R; r++) keys += c->buffer[POSITION].ints[r] + 1;
    case_out(c, "out", OUT_X, R * C, bound_of(s->ops, 3) + extra);
    case_out(c, "pool", OUT_X, pool, 1e-9)->host = case_numbers(s, pool, 1, 2);
    c->sizes = (struct OpsShape){.N = 1, .C = h->NH * h->HS, .F = 8, .NH = h->NH, .NKV = h->NKV,
                                 .HS = h->HS, .V = 1, .Vp = 1, .max_T = 1, .R = h->R,
                                 .max_length = h->prompt + h->tail};
    snprintf(c->shape, sizeof c->shape, "R %d of %d+%d NH %d/%d HS %d", h->R, h->prompt, h->tail,
             h->NH, h->NKV, h->HS);
    c->flop = 4 * keys * (double)C;
    /* a prompt's keys are read once for its group */
    keys -= (double)(h->R - a->cache.prompt_slots) * h->prompt;
    c->bytes = 2 * keys * (double)KV * (double)s->ops->element_size;
    return true;
}

/* ---------------------------------------------------------------------------------------------- */

static bool open(struct Case *c, const char *slot, const struct Setting *s) {
    c->slot = slot;
    return strcmp(slot, "matmul_decode") == 0 ? open_linear(c, s)
           : strcmp(slot, "mlp_decode") == 0  ? open_block(c, s)
                                              : open_cached(c, s);
}

const struct Operation op_decode = {
    "decode", {"matmul_decode", "mlp_decode", "attention_decode", NULL}, open};
