/* OP=matmul: matmul_forward and matmul_backward. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "bench.h"

static const struct Shape {
    int N, C, OC;
} ragged[] = {{70, 72, 200}, {131, 264, 136}, {3, 40, 24}},
  moderate[] = {{1024, 768, 3072}},
  large[] = {{8192, 768, 3072}, {8192, 4096, 4096}, {16384, 1024, 6144}};

enum { A, W, BIAS, OUT };               /* forward; A: x */
enum { DOUT = BIAS, DX, DW, DBIAS };    /* backward */

static void forward(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct Shape *h = c->about;
    struct Buffer *b = c->buffer;
    (void)workspace;
    ops->matmul_forward(b[OUT].at, b[A].at, b[W].at, b[BIAS].at, h->N, h->C, h->OC);
}

static void backward(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct Shape *h = c->about;
    struct Buffer *b = c->buffer;
    ops->matmul_backward(b[DX].at, b[DW].at, b[DBIAS].at, b[DOUT].at, b[A].at, b[W].at, h->N, h->C,
                         h->OC, workspace);
}

static void expect_forward(struct Case *c) {
    const struct Shape *h = c->about;
    struct Buffer *b = c->buffer;
    for (int n = 0; n < h->N; n++)
        for (int o = 0; o < h->OC; o++) {
            const float *x = b[A].host + (size_t)n * (size_t)h->C;
            const float *w = b[W].host + (size_t)o * (size_t)h->C;
            double sum = b[BIAS].host[o];
            for (int k = 0; k < h->C; k++) sum += (double)x[k] * w[k];
            b[OUT].want[(size_t)n * (size_t)h->OC + (size_t)o] = sum;
        }
}

static void expect_backward(struct Case *c) {
    const struct Shape *h = c->about;
    struct Buffer *b = c->buffer;
    for (size_t k = 0; k < b[DW].n; k++) b[DW].want[k] = b[DW].host[k];
    for (size_t k = 0; k < b[DBIAS].n; k++) b[DBIAS].want[k] = b[DBIAS].host[k];
    for (int n = 0; n < h->N; n++)
        for (int o = 0; o < h->OC; o++) {
            double d = b[DOUT].host[(size_t)n * (size_t)h->OC + (size_t)o];
            const float *x = b[A].host + (size_t)n * (size_t)h->C;
            const float *w = b[W].host + (size_t)o * (size_t)h->C;
            b[DBIAS].want[o] += d;
            for (int k = 0; k < h->C; k++) {
                b[DX].want[(size_t)n * (size_t)h->C + (size_t)k] += d * w[k];
                b[DW].want[(size_t)o * (size_t)h->C + (size_t)k] += d * x[k];
            }
        }
}

static bool open(struct Case *c, const char *slot, const struct Setting *s) {
    int count = s->size == RAGGED ? 3 : s->size == MODERATE ? 1 : 3;
    if (s->which >= count) return false;
    struct Shape *h = check_alloc(1, sizeof *h, "the benchmark");
    *h = (s->size == RAGGED ? ragged : s->size == MODERATE ? moderate : large)[s->which];
    size_t N = (size_t)h->N, C = (size_t)h->C, OC = (size_t)h->OC;
    double size = (double)s->ops->element_size;
    bool learns = strcmp(slot, "matmul_backward") == 0;
    c->slot = slot, c->about = h;
    c->sizes = (struct OpsShape){.N = h->N, .C = h->C, .F = h->OC, .NH = 1, .NKV = 1, .HS = 64,
                                 .V = 1, .Vp = 1, .max_T = 1, .R = 1, .max_length = 1};
    snprintf(c->shape, sizeof c->shape, "%d x %d x %d", h->N, h->C, h->OC);
    case_in(c, "x", IN_X, case_numbers(s, N * C, 1, 1), N * C);
    case_in(c, "w", IN_X, case_noise(s, OC * C, 1 / sqrt((double)h->C), 2), OC * C);
    c->flop = (learns ? 4. : 2.) * h->N * h->C * h->OC;
    c->products = (struct Products){h->N, h->C, h->OC, !learns, learns};
    c->bytes = (double)(N * C + OC * C + N * OC) * size;
    if (!learns) {
        c->call = forward, c->expect = expect_forward;
        case_in(c, "bias", IN_X, case_noise(s, OC, 1, 3), OC);
        case_out(c, "out", OUT_X, N * OC, bound_of(s->ops, 1));
        return true;
    }
    c->call = backward, c->expect = expect_backward;
    c->bytes += (double)(N * C) * size + 8. * (double)(OC * C);
    case_in(c, "dout", IN_X, case_noise(s, N * OC, 1, 4), N * OC);
    case_out(c, "dx", OUT_X, N * C, bound_of(s->ops, 1));
    case_out(c, "dw", OUT_FLOAT, OC * C, 1e-5)->host = case_noise(s, OC * C, 1, 5);
    case_out(c, "dbias", OUT_FLOAT, OC, 1e-5)->host = case_noise(s, OC, 1, 6);
    return true;
}

const struct Operation op_matmul = {"matmul", {"matmul_forward", "matmul_backward", NULL}, open};
