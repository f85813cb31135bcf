/* OP=adamw: adamw and sum_of_squares. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "bench.h"

static const int ragged[] = {5003, 70001, 131072}, moderate[] = {1 << 24}, large[] = {123 << 20};

struct About {
    struct AdamwRange range[2];
    struct AdamwStep step;
    size_t begin, end;
};

enum { G, W, M, V, MASTER };   /* the last only where elements are narrow */

/* Where the elements are narrow, w is drawn from its two neighbours (stochastic rounding). */
static void update(struct Case *c, const struct Ops *ops, void *workspace) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    (void)workspace;
    float *master = c->buffers > MASTER ? b[MASTER].at : NULL;
    ops->adamw(b[W].at, master, b[M].at, b[V].at, b[G].at, a->range, 2, a->begin, a->end,
               &a->step);
}

/* The numbers of a step are float32, and so is what is made of them. */
static void expect_update(struct Case *c) {
    const struct About *a = c->about;
    struct Buffer *b = c->buffer;
    const struct AdamwStep *s = &a->step;
    double first = 1 - pow(s->beta1, (double)s->step), second = 1 - pow(s->beta2, (double)s->step);
    for (size_t k = 0; k < b[W].n; k++) {
        b[W].want[k] = b[W].host[k];
        b[M].want[k] = b[M].host[k], b[V].want[k] = b[V].host[k];
    }
    for (int r = 0; r < 2; r++)
        for (size_t at = a->range[r].begin; at < a->range[r].end; at++) {
            if (at < a->begin || at >= a->end) continue;
            size_t k = at - a->begin;
            double g = (double)b[G].host[k] * s->grad_scale, *m = b[M].want, *v = b[V].want;
            m[k] = s->beta1 * m[k] + (1 - (double)s->beta1) * g;
            v[k] = s->beta2 * v[k] + (1 - (double)s->beta2) * g * g;
            double change = m[k] / first / (sqrt(v[k] / second) + s->epsilon);
            b[W].want[k] -= s->learning_rate * (change + a->range[r].weight_decay * b[W].want[k]);
        }
    if (c->buffers > MASTER) memcpy(b[MASTER].want, b[W].want, b[W].n * sizeof *b[W].want);
}

static void squares(struct Case *c, const struct Ops *ops, void *workspace) {
    ops->sum_of_squares(c->buffer[1].at, c->buffer[0].at, c->buffer[0].n, workspace);
}

static void expect_squares(struct Case *c) {
    const struct Buffer *x = &c->buffer[0];
    long double sum = 0;
    for (size_t k = 0; k < x->n; k++) sum += (long double)x->host[k] * x->host[k];
    c->buffer[1].want[0] = (double)sum;
}

/* Second moments are squares of what the first ones are of. */
static void make_update(struct Case *c, const struct Setting *s, size_t n) {
    struct About *a = check_alloc(1, sizeof *a, "the benchmark");
    size_t begin = s->size == RAGGED ? 1000 : 0;
    *a = (struct About){{{0, begin + n / 3, 0.1f}, {begin + n / 3 + (begin ? 5 : 0), begin + n, 0}},
                        {1e-2f, 0.9f, 0.95f, 1e-8f, 0.5f, 3, 77}, begin, begin + n};
    float *v = case_noise(s, n, 0.1, 4);
    for (size_t k = 0; k < n; k++) v[k] *= v[k];
    float *w = case_noise(s, n, 1, 2);
    bool narrow = s->ops->element_size < sizeof(float);
    c->about = a, c->call = update, c->expect = expect_update;
    case_in(c, "g", IN_FLOAT, case_numbers(s, n, 0.1, 1), n);
    case_out(c, "w", OUT_X, n, bound_of(s->ops, 2))->host = w;
    case_out(c, "m", OUT_FLOAT, n, 1e-6)->host = case_noise(s, n, 0.1, 3);
    case_out(c, "v", OUT_FLOAT, n, 1e-6)->host = v;
    if (narrow) {
        float *master = case_out(c, "master", OUT_FLOAT, n, 1e-6)->host = case_new_floats(n);
        memcpy(master, w, n * sizeof *w);
    }
    /* the weights that count, m and v are read and written, g is read; a narrow copy is written */
    c->bytes = (double)n * (28 + (narrow ? (double)s->ops->element_size : 0));
}

static bool open(struct Case *c, const char *slot, const struct Setting *s) {
    int count = s->size == RAGGED ? 3 : 1;
    if (s->which >= count) return false;
    size_t n = (size_t)(s->size == RAGGED ? ragged : s->size == MODERATE ? moderate
                                                                         : large)[s->which];
    c->slot = slot;
    c->sizes = (struct OpsShape){.N = 1, .C = 8, .F = 8, .NH = 1, .NKV = 1, .HS = 8, .V = 1,
                                 .Vp = 1, .max_T = 1, .R = 1, .max_length = 1};
    snprintf(c->shape, sizeof c->shape, "%zu", n);
    if (strcmp(slot, "adamw") == 0) {
        make_update(c, s, n);
        return true;
    }
    c->call = squares, c->expect = expect_squares;
    case_in(c, "x", IN_FLOAT, case_numbers(s, n, 1, 1), n);
    case_out(c, "sum", OUT_DOUBLE, 1, 1e-12);
    c->bytes = 4. * (double)n;
    return true;
}

const struct Operation op_adamw = {"adamw", {"adamw", "sum_of_squares", NULL}, open};
