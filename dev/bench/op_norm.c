/* OP=norm: norm_forward, norm_residual_forward and norm_backward. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "bench.h"

static const struct Shape {
    int N, C;
    enum NormKind kind;
} ragged[] = {{131, 72, NORM_LAYER}, {67, 1032, NORM_RMS}, {300, 520, NORM_LAYER}},
  moderate[] = {{8192, 768, NORM_LAYER}},
  large[] = {{65536, 768, NORM_LAYER}, {16384, 4096, NORM_RMS}};

struct About {
    int N, C;
    struct Norm norm;
};

/* Inputs first; DELTA is dout in the backward pass. Then the outputs of each slot. */
enum { X, WEIGHT, BIAS, DELTA, MEAN, RSTD, OUT, SUM };
enum { DX = OUT, DWEIGHT, DBIAS };

static void forward(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    bool layer = a->norm.kind == NORM_LAYER;
    struct Norm norm = {a->norm.kind, a->norm.epsilon, b[WEIGHT].at, layer ? b[BIAS].at : NULL};
    struct NormStats stats = {layer ? b[MEAN].at : NULL, b[RSTD].at};
    (void)workspace;
    if (c->buffers > SUM)
        ops->norm_residual_forward(b[SUM].at, b[OUT].at, &stats, b[X].at, b[DELTA].at, &norm, a->N,
                                   a->C);
    else ops->norm_forward(b[OUT].at, &stats, b[X].at, &norm, a->N, a->C);
}

static void backward(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    bool layer = a->norm.kind == NORM_LAYER;
    struct Norm norm = {a->norm.kind, a->norm.epsilon, b[WEIGHT].at, layer ? b[BIAS].at : NULL};
    struct NormStats stats = {layer ? b[MEAN].at : NULL, b[RSTD].at};
    ops->norm_backward(b[DX].at, b[DWEIGHT].at, layer ? b[DBIAS].at : NULL, b[DELTA].at, b[X].at,
                       &norm, &stats, a->N, a->C, workspace);
}

/* Mean and rstd of x [C], or mean 0. */
static void statistics(const struct About *a, const double *x, double *mean, double *rstd) {
    double sum = 0, squares = 0;
    for (int i = 0; i < a->C; i++) sum += x[i];
    *mean = a->norm.kind == NORM_LAYER ? sum / a->C : 0;
    for (int i = 0; i < a->C; i++) squares += (x[i] - *mean) * (x[i] - *mean);
    *rstd = 1 / sqrt(squares / a->C + a->norm.epsilon);
}

/* x [N,C]: what the norm is taken of. */
static void expect_norm(struct Case *c, const double *x) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    bool layer = a->norm.kind == NORM_LAYER;
    for (int n = 0; n < a->N; n++) {
        const double *row = x + (size_t)n * (size_t)a->C;
        double *out = b[OUT].want + (size_t)n * (size_t)a->C, mean, rstd;
        statistics(a, row, &mean, &rstd);
        b[RSTD].want[n] = rstd;
        if (layer) b[MEAN].want[n] = mean;
        for (int i = 0; i < a->C; i++)
            out[i] = (row[i] - mean) * rstd * b[WEIGHT].host[i] +
                     (layer ? (double)b[BIAS].host[i] : 0);
    }
}

static void expect_forward(struct Case *c) {
    struct Buffer *b = c->buffer;
    bool adds = c->buffers > SUM;
    double *x = check_alloc(b[X].n, sizeof *x, "the benchmark");
    for (size_t k = 0; k < b[X].n; k++) {
        x[k] = b[X].host[k] + (adds ? (double)b[DELTA].host[k] : 0);
        if (adds) b[SUM].want[k] = x[k];
    }
    expect_norm(c, x);
    free(x);
}

/* The norm is taken of the sum as it was stored: rounded. */
static void settle(struct Case *c, double *const *got) {
    if (c->buffers > SUM) expect_norm(c, got[SUM]);
}

/* With y = (x - mean) rstd and d = dout weight: dx += rstd (d - <d> - y <d y>), without <d> where
   there is no mean. */
static void expect_backward(struct Case *c) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    bool layer = a->norm.kind == NORM_LAYER;
    for (int o = DX; o < c->buffers; o++)
        for (size_t k = 0; k < b[o].n; k++) b[o].want[k] = b[o].host[k];
    for (int n = 0; n < a->N; n++) {
        const float *x = b[X].host + (size_t)n * (size_t)a->C;
        const float *dout = b[DELTA].host + (size_t)n * (size_t)a->C;
        double *dx = b[DX].want + (size_t)n * (size_t)a->C, mean = 0, product = 0;
        double middle = layer ? b[MEAN].host[n] : 0, rstd = b[RSTD].host[n];
        for (int i = 0; i < a->C; i++) {
            double y = (x[i] - middle) * rstd, d = (double)dout[i] * b[WEIGHT].host[i];
            mean += d / a->C, product += d * y / a->C;
            b[DWEIGHT].want[i] += dout[i] * y;
            if (layer) b[DBIAS].want[i] += dout[i];
        }
        for (int i = 0; i < a->C; i++) {
            double y = (x[i] - middle) * rstd, d = (double)dout[i] * b[WEIGHT].host[i];
            dx[i] += rstd * (d - (layer ? mean : 0) - y * product);
        }
    }
}

/* The forward pass' statistics of the inputs, for the backward pass. */
static void make_statistics(struct Case *c) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    double *x = check_alloc((size_t)a->C, sizeof *x, "the benchmark"), mean, rstd;
    b[MEAN].host = check_alloc((size_t)a->N, sizeof(float), "the benchmark");
    b[RSTD].host = check_alloc((size_t)a->N, sizeof(float), "the benchmark");
    for (int n = 0; n < a->N; n++) {
        for (int i = 0; i < a->C; i++) x[i] = b[X].host[(size_t)n * (size_t)a->C + (size_t)i];
        statistics(a, x, &mean, &rstd);
        b[MEAN].host[n] = (float)mean, b[RSTD].host[n] = (float)rstd;
    }
    free(x);
}

/* Columns of other sizes and a middle that is not 0. */
static void make_inputs(struct Case *c, const struct Setting *s, size_t N, size_t C) {
    float *x = case_numbers(s, N * C, 1, 1), *weight = case_noise(s, C, 0.2, 2);
    for (size_t k = 0; k < N * C; k++) x[k] = (x[k] + 0.5f) * (1 + (float)(k % C % 5));
    for (size_t k = 0; k < C; k++) weight[k] += 1;
    case_round(s->ops, x, N * C), case_round(s->ops, weight, C);
    case_in(c, "x", IN_X, x, N * C), case_in(c, "weight", IN_X, weight, C);
    case_in(c, "bias", IN_X, case_noise(s, C, 0.5, 3), C);
    case_in(c, "delta", IN_X, case_noise(s, N * C, 1, 4), N * C);
}

/* A sum of N rows for each of the weights' gradients. */
static void add_gradients(struct Case *c, const struct Setting *s, size_t N, size_t C, bool layer) {
    case_in(c, "mean", IN_FLOAT, NULL, N), case_in(c, "rstd", IN_FLOAT, NULL, N);
    make_statistics(c);
    case_out(c, "dx", OUT_X, N * C, bound_of(s->ops, 1))->host = case_noise(s, N * C, 1, 5);
    case_out(c, "dweight", OUT_FLOAT, C, 1e-5)->host = case_noise(s, C, 1, 6);
    if (layer) case_out(c, "dbias", OUT_FLOAT, C, 1e-5)->host = case_noise(s, C, 1, 7);
}

static bool open(struct Case *c, const char *slot, const struct Setting *s) {
    int count = s->size == RAGGED ? 3 : s->size == MODERATE ? 1 : 2;
    if (s->which >= count) return false;
    const struct Shape h = (s->size == RAGGED ? ragged : s->size == MODERATE ? moderate
                                                                             : large)[s->which];
    size_t N = (size_t)h.N, C = (size_t)h.C;
    bool adds = strcmp(slot, "norm_residual_forward") == 0, layer = h.kind == NORM_LAYER;
    struct About *a = check_alloc(1, sizeof *a, "the benchmark");
    *a = (struct About){h.N, h.C, {h.kind, 1e-5f, NULL, NULL}};
    c->slot = slot, c->about = a;
    c->sizes = (struct OpsShape){.N = h.N, .C = h.C, .F = h.C, .NH = 1, .NKV = 1, .HS = 64, .V = 1,
                                 .Vp = 1, .max_T = 1, .R = 1, .max_length = 1};
    snprintf(c->shape, sizeof c->shape, "%d x %d %s", h.N, h.C, layer ? "layer" : "RMS");
    make_inputs(c, s, N, C);
    double arrays = strcmp(slot, "norm_forward") == 0 ? 2 : 4;
    c->bytes = arrays * h.N * h.C * (double)s->ops->element_size;
    if (strcmp(slot, "norm_backward") == 0) {
        c->call = backward, c->expect = expect_backward;
        add_gradients(c, s, N, C, layer);
        return true;
    }
    c->call = forward, c->expect = expect_forward, c->settle = settle;
    /* the CPU's are of a sum that was not rounded: of numbers of size 1 to 100 */
    struct Buffer *mean = case_out(c, "mean", OUT_FLOAT, layer ? N : 0, 1e-5);
    mean->absolute = true, mean->apart = adds ? bound_of(s->ops, 10) : 0;
    case_out(c, "rstd", OUT_FLOAT, N, 2e-6)->apart = adds ? bound_of(s->ops, 2) : 0;
    case_out(c, "out", OUT_X, N * C, bound_of(s->ops, 1))->apart = bound_of(s->ops, adds ? 4 : 2);
    if (adds) case_out(c, "sum", OUT_X, N * C, bound_of(s->ops, 1));
    return true;
}

const struct Operation op_norm = {
    "norm", {"norm_forward", "norm_residual_forward", "norm_backward", NULL}, open};
