/* OP=head: head_forward and head_forward_backward. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "bench.h"

/* N hidden states, n of them listed, in an order that 13 makes, which has no divisor with N. */
static const struct Shape {
    int N, n, C, V;
} ragged[] = {{70, 61, 40, 333}, {150, 149, 72, 517}, {33, 9, 136, 1031}},
  moderate[] = {{1024, 1024, 768, 50257}},
  large[] = {{8192, 8192, 4096, 131072}, {16384, 16384, 1024, 151936}, {8192, 8192, 768, 50257},
             {8192, 8192, 2304, 256000}};

struct About {
    struct Head head;
    int N, n;
    bool skips;   /* every seventh token has no coefficients; where the time is measured, none */
};

enum { E, W, ROW, TARGET, LOGP, ENTROPY, Q, QLOG, DE, DW };

/* J = sum of a_i logp_i + b_i H_i. */
static float of_logp(const struct About *a, int i) {
    return a->skips && i % 7 == 3 ? 0 : 0.5f - (float)(i * 37 % 64) / 64;
}
static float of_entropy(const struct About *a, int i) {
    return a->skips && (i % 7 == 3 || i % 7 == 5) ? 0 : (float)(i * 23 % 32) / 64 - 0.2f;
}

static void coefficients(void *context, int first, int rows, const struct HeadStats *stats,
                         float *dlogp, float *dentropy) {
    (void)stats;
    for (int i = 0; i < rows; i++)
        dlogp[i] = of_logp(context, first + i), dentropy[i] = of_entropy(context, first + i);
}

static void call(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    struct HeadStats stats = {b[LOGP].at, b[ENTROPY].at, b[Q].at, b[QLOG].at};
    struct HeadTokens tokens = {b[ROW].at, b[TARGET].at, a->n, a->N};
    if (c->buffers <= DE)
        ops->head_forward(&stats, b[E].at, b[W].at, &tokens, &a->head, workspace);
    else
        ops->head_forward_backward(&stats, b[DE].at, b[DW].at, b[E].at, b[W].at, &tokens, &a->head,
                                   coefficients, (void *)a, workspace);
}

/* Token i: statistics, then with gradients dz into both products. p: scratch [V]. */
static void expect_token(struct Case *c, int i, double *p) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    int C = a->head.C, V = a->head.V, r = b[ROW].ints[i], y = b[TARGET].ints[i];
    const float *e = b[E].host + (size_t)r * (size_t)C;
    double most = -INFINITY, sum = 0, H = 0, q = 0, qlog = 0, T = a->head.inv_temperature;
    for (int v = 0; v < V; v++) {
        const float *w = b[W].host + (size_t)v * (size_t)C;
        double z = 0;
        for (int k = 0; k < C; k++) z += (double)e[k] * w[k];
        p[v] = z * T, most = fmax(most, p[v]);
    }
    for (int v = 0; v < V; v++) sum += exp(p[v] - most);
    for (int v = 0; v < V; v++) {
        double log_p = p[v] = p[v] - most - log(sum);
        H -= exp(log_p) * log_p, q += exp(2 * log_p), qlog += exp(2 * log_p) * log_p;
    }
    b[LOGP].want[i] = p[y], b[ENTROPY].want[i] = H, b[Q].want[i] = q, b[QLOG].want[i] = qlog;
    if (c->buffers <= DE) return;
    double *dE = b[DE].want + (size_t)r * (size_t)C;
    for (int v = 0; v < V; v++) {
        const float *w = b[W].host + (size_t)v * (size_t)C;
        double *dW = b[DW].want + (size_t)v * (size_t)C;
        double dz = T * (of_logp(a, i) * ((v == y) - exp(p[v])) -
                         of_entropy(a, i) * exp(p[v]) * (p[v] + H));
        for (int k = 0; k < C; k++) dE[k] += dz * w[k], dW[k] += dz * e[k];
    }
}

static void expect(struct Case *c) {
    const struct About *a = c->about;
    double *p = check_alloc((size_t)a->head.V, sizeof *p, "the benchmark");
    for (size_t k = 0; c->buffers > DE && k < c->buffer[DW].n; k++)
        c->buffer[DW].want[k] = c->buffer[DW].host[k];
    for (int i = 0; i < a->n; i++) expect_token(c, i, p);
    free(p);
}

static bool pick(struct Shape *shape, const struct Setting *s) {
    const struct Shape *of = s->size == RAGGED ? ragged : s->size == MODERATE ? moderate : large;
    int count = s->size == RAGGED ? 3 : s->size == MODERATE ? 1 : 4;
    if (s->which >= count) return false;
    *shape = of[s->which];
    if (s->data != HIDDEN) return true;
    shape->C = hidden_channels();
    if (s->size != RAGGED || hidden_vocabulary() < shape->V) shape->V = hidden_vocabulary();
    return true;
}

/* Logits of standard deviation 2; peaked: one word of each row has about 25 more, which is the
   target for every second. */
static void make_inputs(struct Case *c, const struct Setting *s, const struct Shape *h, int Vp) {
    size_t C = (size_t)h->C, NC = (size_t)h->N * C, VC = (size_t)Vp * C;
    bool real = s->data == HIDDEN;
    int *row = case_new_ints((size_t)h->n), *target = case_new_ints((size_t)h->n);
    for (int i = 0; i < h->n; i++) {
        row[i] = h->N == h->n ? i : (int)((int64_t)(i + 1) * 13 % h->N);
        target[i] = (int)((real ? hidden_target(row[i]) : (int64_t)i * 7919) % h->V);
    }
    float *e = real ? hidden_numbers(s, false, (size_t)h->N, C) : case_noise(s, NC, 1, 1);
    float *w = real ? hidden_numbers(s, true, (size_t)Vp, C)
                    : case_noise(s, VC, 2 / sqrt((double)C), 2);
    for (int i = 0; s->data == PEAKED && i < h->n; i++) {
        int v = i % 2 ? target[i] : (target[i] + 1) % h->V;
        float *x = e + (size_t)row[i] * C;
        for (size_t k = 0; k < C; k++) x[k] += 6.25f * w[(size_t)v * C + k];
        case_round(s->ops, x, C);
    }
    case_in(c, "E", IN_X, e, NC), case_in(c, "W", IN_X, w, VC);
    case_ints(c, "row", row, (size_t)h->n), case_ints(c, "target", target, (size_t)h->n);
}

/* dE is rounded once, and dz before it enters the products; +1 for what rounding dz costs where
   p (log p + H) cancels. dW stays float32 but for dz. */
static void add_gradients(struct Case *c, const struct Setting *s, const struct Shape *h, int Vp) {
    size_t C = (size_t)h->C, size = s->ops->element_size;
    case_out(c, "dE", OUT_X, (size_t)h->N * C, bound_of(s->ops, 3));
    case_out(c, "dW", OUT_FLOAT, (size_t)Vp * C, bound_of(s->ops, 2))->host =
        case_noise(s, (size_t)Vp * C, 0.01, 3);
    c->flop *= 3;
    c->bytes += (double)h->N * (double)(C * size) + 8. * (double)h->V * (double)C;
}

/* Logits are float32 whatever elements are. A sum of C products of float32 numbers loses at most C
   units of 2^-24 of the sum of their absolute values; it is some 100 here, and about sqrt(C) of the
   C roundings remain. */
static bool open(struct Case *c, const char *slot, const struct Setting *s) {
    static const char *const names[] = {"logp", "H", "Q", "QL"};
    struct Shape h;
    if (!pick(&h, s)) return false;
    int multiple = s->ops->vocabulary_multiple, Vp = (h.V + multiple - 1) / multiple * multiple;
    bool learns = strcmp(slot, "head_forward_backward") == 0;
    struct About *a = check_alloc(1, sizeof *a, "the benchmark");
    *a = (struct About){{h.C, h.V, Vp, s->size == RAGGED && s->which == 1 ? 1 / 0.7f : 1}, h.N,
                        h.n, s->size == RAGGED};
    c->slot = slot, c->about = a, c->call = call, c->expect = expect;
    c->sizes = (struct OpsShape){.N = h.N, .C = h.C, .F = h.C, .NH = 1, .NKV = 1, .HS = 64,
                                 .V = h.V, .Vp = Vp, .max_T = 1, .R = 1, .max_length = 1};
    snprintf(c->shape, sizeof c->shape, "%d x %d x %d", h.n, h.C, h.V);
    make_inputs(c, s, &h, Vp);
    for (int k = 0; k < 4; k++)
        case_out(c, names[k], OUT_HOST, (size_t)h.n, 5e-5)->absolute = true;
    c->flop = 2. * h.n * h.V * h.C;
    c->bytes = ((double)h.N + h.V) * h.C * (double)s->ops->element_size;
    c->products = (struct Products){h.n, h.C, h.V, true, learns};
    if (learns) add_gradients(c, s, &h, Vp);
    return true;
}

const struct Operation op_head = {"head", {"head_forward", "head_forward_backward", NULL}, open};
