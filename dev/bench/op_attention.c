/* OP=attention: attention_forward and attention_backward, on packed rows with and without
   prompts. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "bench.h"

enum { MOST_ROWS = 64 };

/* B rows; a length 0: as long as the one before. prompt: of each row, 1 + the number of its
   prompt. */
static const struct Shape {
    int NH, NKV, HS, B;
    int length[4], prompt[4];
} ragged[] = {{4, 2, 64, 4, {133, 37, 1, 70}, {0, 1, 1, 0}},
              {2, 2, 128, 2, {131, 66}, {0}},
              {3, 1, 40, 3, {65, 129, 3}, {0, 1, 0}}},
  moderate[] = {{12, 12, 64, 4, {256}, {0}}},
  large[] = {{12, 12, 64, 8, {1024}, {0}}, {32, 8, 128, 4, {4096}, {0}},
             {12, 12, 64, 64, {128}, {0}}};

struct About {
    struct Heads heads;
    int B, N, max_T;
    int start[MOST_ROWS + 1], prompt[MOST_ROWS], seen[MOST_ROWS];
    bool prompts;
    struct Rows rows;   /* as the present backend has them */
};

/* Inputs, with the two made by attention's forward pass; then each slot's outputs. */
enum { QKV, START, PROMPT, SEEN, BLOCKS, OUT, LSE, ENTROPY };
enum { DOUT = ENTROPY, DQKV };

static void prepare(struct Case *c, const struct Ops *ops) {
    struct About *a = c->about;
    struct Buffer *b = c->buffer;
    a->rows = (struct Rows){.N = a->N, .B = a->B, .max_T = a->max_T, .start = b[START].at};
    if (a->prompts) a->rows.prompt = b[PROMPT].at, a->rows.seen = b[SEEN].at;
    if (ops->attention_block == 0) return;
    size_t most = (size_t)(a->N / ops->attention_block + a->B);
    struct QueryBlock *block = check_alloc(most, sizeof *block, "the benchmark");
    a->rows.blocks = rows_cut_blocks(block, a->start, a->prompts ? a->prompt : NULL, a->B,
                                     ops->attention_block);
    a->rows.block = b[BLOCKS].at = ops->alloc(most * sizeof *block);
    ops->upload(a->rows.block, block, (size_t)a->rows.blocks * sizeof *block);
    free(block);
}

static void forward(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    ops->attention_forward(b[OUT].at, b[LSE].at, b[ENTROPY].at, b[QKV].at, &a->rows, &a->heads,
                           workspace);
}

static void backward(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    ops->attention_backward(b[DQKV].at, b[DOUT].at, b[OUT].at, b[QKV].at, b[LSE].at, &a->rows,
                            &a->heads, workspace);
}

/* ---- the definition, one query at a time ----------------------------------------------------- */

/* A query: head h of token n, and the tokens it attends to. */
struct Query {
    const struct About *a;
    const float *qkv;
    int n, h, count, *key;
    double *p;          /* [count] */
    double lse, H;
};

/* Where in qkv the head's query (0), key (1) or value (2) of token n begins. */
static size_t place(const struct Heads *heads, int n, int h, int which) {
    int group = h / (heads->NH / heads->NKV);
    int head = which == 0 ? h : heads->NH + (which - 1) * heads->NKV + group;
    return ((size_t)n * (size_t)(heads->NH + 2 * heads->NKV) + (size_t)head) * (size_t)heads->HS;
}

static double dot(const float *x, const float *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * y[i];
    return sum;
}

static void attend(struct Query *q, int row) {
    const struct About *a = q->a;
    const struct Heads *heads = &a->heads;
    double most = -INFINITY, sum = 0;
    int prompt = a->prompt[row];
    q->count = 0, q->H = 0;
    for (int j = prompt < 0 ? 0 : a->start[prompt]; prompt >= 0 && j < a->start[prompt + 1]; j++)
        q->key[q->count++] = j;
    for (int j = a->start[row]; j <= q->n; j++) q->key[q->count++] = j;
    for (int j = 0; j < q->count; j++) {
        q->p[j] = dot(q->qkv + place(heads, q->n, q->h, 0),
                      q->qkv + place(heads, q->key[j], q->h, 1), heads->HS) / sqrt(heads->HS);
        most = fmax(most, q->p[j]);
    }
    for (int j = 0; j < q->count; j++) sum += exp(q->p[j] - most);
    q->lse = most + log(sum);
    for (int j = 0; j < q->count; j++) {
        double log_p = q->p[j] - q->lse;
        q->p[j] = exp(log_p), q->H -= q->p[j] * log_p;
    }
}

/* Calls `visit` for every query. */
static void each_query(struct Case *c, void (*visit)(struct Case *c, const struct Query *q)) {
    const struct About *a = c->about;
    struct Query q = {.a = a, .qkv = c->buffer[QKV].host};
    q.key = case_new_ints((size_t)a->N);
    q.p = check_alloc((size_t)a->N, sizeof *q.p, "the benchmark");
    for (int b = 0; b < a->B; b++)
        for (q.n = a->start[b]; q.n < a->start[b + 1]; q.n++)
            for (q.h = 0; q.h < a->heads.NH; q.h++) {
                attend(&q, b);
                visit(c, &q);
            }
    free(q.key), free(q.p);
}

static size_t out_of(const struct Query *q) {
    return ((size_t)q->n * (size_t)q->a->heads.NH + (size_t)q->h) * (size_t)q->a->heads.HS;
}

static void visit_forward(struct Case *c, const struct Query *q) {
    const struct Heads *heads = &q->a->heads;
    size_t stat = (size_t)q->h * (size_t)q->a->N + (size_t)q->n;
    double *out = c->buffer[OUT].want + out_of(q);
    for (int j = 0; j < q->count; j++) {
        const float *value = q->qkv + place(heads, q->key[j], q->h, 2);
        for (int i = 0; i < heads->HS; i++) out[i] += q->p[j] * value[i];
    }
    c->buffer[LSE].want[stat] = q->lse, c->buffer[ENTROPY].want[stat] = q->H;
}

/* With D = <dout, out>: ds = p (<dout, v> - D) / sqrt(HS). */
static void visit_backward(struct Case *c, const struct Query *q) {
    const struct Heads *heads = &q->a->heads;
    const float *dout = c->buffer[DOUT].host + out_of(q), *qkv = q->qkv;
    double *d = c->buffer[DQKV].want;
    double D = dot(dout, c->buffer[OUT].host + out_of(q), heads->HS);
    size_t query = place(heads, q->n, q->h, 0);
    for (int j = 0; j < q->count; j++) {
        size_t key = place(heads, q->key[j], q->h, 1), value = place(heads, q->key[j], q->h, 2);
        double ds = q->p[j] * (dot(dout, qkv + value, heads->HS) - D) / sqrt(heads->HS);
        for (int i = 0; i < heads->HS; i++) {
            d[query + (size_t)i] += ds * qkv[key + (size_t)i];
            d[key + (size_t)i] += ds * qkv[query + (size_t)i];
            d[value + (size_t)i] += q->p[j] * dout[i];
        }
    }
}

static void expect_forward(struct Case *c) { each_query(c, visit_forward); }
static void expect_backward(struct Case *c) { each_query(c, visit_backward); }

/* What the forward pass leaves for the backward pass. */
static void visit_saved(struct Case *c, const struct Query *q) {
    const struct Heads *heads = &q->a->heads;
    float *out = c->buffer[OUT].host + out_of(q);
    for (int i = 0; i < heads->HS; i++) {
        double sum = 0;
        for (int j = 0; j < q->count; j++)
            sum += q->p[j] * q->qkv[place(heads, q->key[j], q->h, 2) + (size_t)i];
        out[i] = (float)sum;
    }
    c->buffer[LSE].host[(size_t)q->h * (size_t)q->a->N + (size_t)q->n] = (float)q->lse;
}

/* ---- cases ----------------------------------------------------------------------------------- */

static void set_rows(struct About *a, const struct Shape *h) {
    for (int b = 0; b < h->B; b++) {
        int length = h->length[b % 4] && b < 4 ? h->length[b] : a->start[b] - a->start[b - 1];
        a->start[b + 1] = a->start[b] + length;
        a->prompt[b] = b < 4 ? h->prompt[b] - 1 : -1;
        a->prompts |= a->prompt[b] >= 0;
        int keys = length;
        if (a->prompt[b] >= 0)
            keys += a->start[a->prompt[b] + 1] - a->start[a->prompt[b]];
        if (keys > a->max_T) a->max_T = keys;
    }
    a->heads = (struct Heads){h->NH, h->NKV, h->HS};
    a->B = h->B, a->N = a->start[h->B];
    rows_seen(a->seen, a->start, a->prompt, a->B);
}

/* Keys that each query sees, of all queries of a head. */
static double pairs_of(const struct About *a) {
    double pairs = 0;
    for (int b = 0; b < a->B; b++) {
        double T = a->start[b + 1] - a->start[b], p = a->prompt[b];
        pairs += T * (T + 1) / 2;
        if (p >= 0) pairs += T * (a->start[(int)p + 1] - a->start[(int)p]);
    }
    return pairs;
}

static int *copy_of(const int *x, int n) {
    int *out = case_new_ints((size_t)n);
    memcpy(out, x, (size_t)n * sizeof *out);
    return out;
}

/* A score's float32 error is about its size times some 2^-24, and p's relative error is that.
   Normal scores are of size 1; the largest of peaked ones, and of real ones maybe, of size 100. */
static double of_scores(const struct Setting *s) { return s->data == NORMAL ? 0 : 1e-4; }

/* p and ds are rounded before they enter a product, and results once more; ds is a difference. */
static void add_backward(struct Case *c, const struct Setting *s, size_t out, size_t qkv,
                         size_t stats) {
    case_in(c, "out", IN_X, case_new_floats(out), out);
    case_in(c, "lse", IN_FLOAT, case_new_floats(stats), stats);
    if (s->size != LARGE) each_query(c, visit_saved);
    else memset(c->buffer[LSE].host, 0, stats * sizeof(float));   /* as large as any */
    case_round(s->ops, c->buffer[OUT].host, out);
    case_in(c, "dout", IN_X, case_noise(s, out, 1, 4), out);
    case_out(c, "dqkv", OUT_X, qkv, bound_of(s->ops, 4) + of_scores(s));
    c->call = backward, c->expect = expect_backward;
}

static bool open(struct Case *c, const char *slot, const struct Setting *s) {
    int count = s->size == MODERATE ? 1 : 3;
    if (s->which >= count) return false;
    const struct Shape *h =
        &(s->size == RAGGED ? ragged : s->size == MODERATE ? moderate : large)[s->which];
    struct About *a = check_alloc(1, sizeof *a, "the benchmark");
    set_rows(a, h);
    size_t N = (size_t)a->N, out = N * (size_t)(h->NH * h->HS), stats = N * (size_t)h->NH;
    size_t qkv = N * (size_t)heads_qkv(&a->heads);
    c->slot = slot, c->about = a, c->prepare = prepare;
    c->sizes = (struct OpsShape){.N = a->N, .C = h->NH * h->HS, .F = 8, .NH = h->NH, .NKV = h->NKV,
                                 .HS = h->HS, .V = 1, .Vp = 1, .max_T = a->max_T, .R = 1,
                                 .max_length = 1};
    snprintf(c->shape, sizeof c->shape, "B %d T %d NH %d/%d HS %d", h->B, a->max_T, h->NH, h->NKV,
             h->HS);
    case_in(c, "qkv", IN_X, case_numbers(s, qkv, 1, 1), qkv);
    case_ints(c, "start", copy_of(a->start, a->B + 1), (size_t)a->B + 1);
    case_ints(c, "prompt", copy_of(a->prompt, a->B), (size_t)a->B);
    case_ints(c, "seen", copy_of(a->seen, a->B), (size_t)a->B);
    case_made(c, "blocks");
    bool learns = strcmp(slot, "attention_backward") == 0;
    c->flop = (learns ? 5 : 2) * 2. * pairs_of(a) * h->NH * h->HS;
    c->bytes = (double)(learns ? 2 * out + 2 * qkv : out + qkv) * (double)s->ops->element_size;
    if (learns) {
        add_backward(c, s, out, qkv, stats);
        return true;
    }
    c->call = forward, c->expect = expect_forward;
    case_out(c, "out", OUT_X, out, bound_of(s->ops, 2) + of_scores(s));
    case_out(c, "lse", OUT_FLOAT, stats, 2e-6 + of_scores(s));
    case_out(c, "entropy", OUT_FLOAT, stats, 2e-5 + of_scores(s))->absolute = true;
    return true;
}

const struct Operation op_attention = {
    "attention", {"attention_forward", "attention_backward", NULL}, open};
