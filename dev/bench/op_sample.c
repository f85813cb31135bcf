/* OP=sample: head_sample. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "../../llmc/base/rng.h"
#include "bench.h"

static const struct Shape {
    int R, C, V;
    float inv_temperature;
} ragged[] = {{5, 40, 333, 1}, {70, 72, 1031, 1 / 0.7f}, {19, 136, 517, 0}},
  moderate[] = {{32, 768, 50257, 1}},
  large[] = {{64, 1024, 151936, 1}, {256, 1024, 151936, 1}, {64, 768, 50257, 1}};

struct About {
    struct Head head;
    int R;
    uint32_t key[2];
    double *z, *score;   /* [R,V] logits, and with the noise of the draw; owned */
};

enum { E, W, POSITION, ORDINAL, SAMPLE, PACKED, TOKEN, LOGP, ENTROPY };

static void prepare(struct Case *c, const struct Ops *ops) {
    const struct Head *head = &((const struct About *)c->about)->head;
    size_t bytes = ops->matmul_packed_size(head->C, head->Vp);
    if (bytes == 0) return;
    c->buffer[PACKED].at = ops->alloc(bytes);
    ops->matmul_pack(c->buffer[PACKED].at, c->buffer[W].at, head->C, head->Vp);
}

static void call(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    const void *packed = b[PACKED].at ? b[PACKED].at : b[W].at;
    struct DecodeRows rows = {.position = b[POSITION].at, .ordinal = b[ORDINAL].at,
                              .sample = b[SAMPLE].at};
    ops->head_sample(b[TOKEN].at, b[LOGP].at, b[ENTROPY].at, b[E].at, packed, &rows, a->key,
                     &a->head, a->R, workspace);
}

/* Logits and scores of row r, and the row's entropy. */
static void expect_row(struct Case *c, int r) {
    const struct About *a = c->about;
    const struct Buffer *b = c->buffer;
    int C = a->head.C, V = a->head.V;
    double *z = a->z + (size_t)r * (size_t)V, *score = a->score + (size_t)r * (size_t)V;
    double most = -INFINITY, sum = 0, T = a->head.inv_temperature, H = 0;
    for (int v = 0; v < V; v++) {
        uint32_t bits[4], counter[4] = {(uint32_t)v / 4, (uint32_t)b[POSITION].ints[r] + 1,
                                        (uint32_t)b[SAMPLE].ints[r], (uint32_t)b[ORDINAL].ints[r]};
        z[v] = 0;
        for (int k = 0; k < C; k++)
            z[v] += (double)b[E].host[(size_t)r * (size_t)C + (size_t)k] *
                    b[W].host[(size_t)v * (size_t)C + (size_t)k];
        z[v] *= T > 0 ? T : 1;
        philox(bits, counter, a->key);
        score[v] = z[v] - (T > 0 ? log(-log((double)rng_uniform(bits[v % 4]))) : 0);
        most = fmax(most, z[v]);
    }
    for (int v = 0; v < V; v++) sum += exp(z[v] - most);
    for (int v = 0; v < V; v++) {
        z[v] -= most + log(sum);
        H -= exp(z[v]) * z[v];
    }
    b[ENTROPY].want[r] = H;
}

static void expect(struct Case *c) {
    for (int r = 0; r < ((const struct About *)c->about)->R; r++) expect_row(c, r);
}

/* A draw is right if no other word's score is larger by more than float32's errors; its logp must
   be that word's. */
static void settle(struct Case *c, double *const *got) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    for (int r = 0; r < a->R; r++) {
        const double *score = a->score + (size_t)r * (size_t)a->head.V;
        int best = 0, token = (int)got[TOKEN][r];
        for (int v = 0; v < a->head.V; v++)
            if (score[v] > score[best]) best = v;
        bool right = token >= 0 && token < a->head.V && score[token] > score[best] - 5e-5;
        b[TOKEN].want[r] = right ? token : best;
        b[LOGP].want[r] = a->z[(size_t)r * (size_t)a->head.V + (size_t)(right ? token : best)];
    }
}

static int *some_ints(int n, int step, int modulo) {
    int *x = case_new_ints((size_t)n);
    for (int i = 0; i < n; i++) x[i] = (int)((int64_t)(i + 1) * step % modulo);
    return x;
}

static bool open(struct Case *c, const char *slot, const struct Setting *s) {
    int count = s->size == MODERATE ? 1 : 3;
    if (s->which >= count) return false;
    struct Shape h =
        (s->size == RAGGED ? ragged : s->size == MODERATE ? moderate : large)[s->which];
    bool real = s->data == HIDDEN;
    if (real) h.C = hidden_channels();
    if (real && (s->size != RAGGED || hidden_vocabulary() < h.V)) h.V = hidden_vocabulary();
    int multiple = s->ops->vocabulary_multiple, Vp = (h.V + multiple - 1) / multiple * multiple;
    size_t R = (size_t)h.R, C = (size_t)h.C, logits = c->wanted ? R * (size_t)h.V : 0;
    struct About *a = check_alloc(1, sizeof *a + 2 * logits * sizeof(double), "the benchmark");
    *a = (struct About){{h.C, h.V, Vp, h.inv_temperature}, h.R, {77, 1u << 31}, NULL, NULL};
    a->z = (double *)(a + 1), a->score = a->z + logits;
    c->slot = slot, c->about = a, c->prepare = prepare, c->call = call, c->expect = expect;
    c->settle = settle;
    c->sizes = (struct OpsShape){.N = 1, .C = h.C, .F = h.C, .NH = 1, .NKV = 1, .HS = 64,
                                 .V = h.V, .Vp = Vp, .max_T = 1, .R = h.R, .max_length = 1};
    snprintf(c->shape, sizeof c->shape, "%d x %d x %d", h.R, h.C, h.V);
    case_in(c, "E", IN_X, case_numbers(s, R * C, 1, 1), R * C);
    case_in(c, "W", IN_X, real ? hidden_numbers(s, true, (size_t)Vp, C)
                               : case_noise(s, (size_t)Vp * C, 2 / sqrt((double)h.C), 2),
            (size_t)Vp * C);
    case_ints(c, "position", some_ints(h.R, 37, 400), R);
    case_ints(c, "ordinal", some_ints(h.R, 7919, 100003), R);
    case_ints(c, "sample", some_ints(h.R, 5, 64), R);
    case_made(c, "packed");
    struct Buffer *token = case_out(c, "token", OUT_INT, R, 1e-9);
    struct Buffer *logp = case_out(c, "logp", OUT_FLOAT, R, 1e-4);
    token->absolute = logp->absolute = true;
    token->apart = logp->apart = INFINITY;   /* the CPU may draw the other of two equals */
    case_out(c, "H", OUT_FLOAT, R, 1e-4)->absolute = true;
    c->flop = 2. * h.R * h.C * h.V;
    c->bytes = (double)C * ((double)R + h.V) * (double)s->ops->element_size;
    return true;
}

const struct Operation op_sample = {"sample", {"head_sample", NULL}, open};
