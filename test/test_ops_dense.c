/* The dense operations of the transformer: embedding, norm, linear layers, feed-forward block. Each
   against its definition in double; each backward's definition against finite differences. */
#include "test_ops.h"
#include <omp.h>
#include "../llmc/kernels/vmath.h"
#include "child.h"

/* ---- references in double ---------------------------------------------------------------- */

static double *widen(const float *x, size_t n) {
    double *out = new_doubles(n);
    for (size_t i = 0; i < n; i++) out[i] = x[i];
    return out;
}

static void add(double *x, const double *y, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

/* out = x w^T + b */
static void linear(double *out, const double *x, const double *w, const double *b, int N, int C,
                   int OC) {
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            double sum = b ? b[o] : 0;
            for (int c = 0; c < C; c++) sum += x[(size_t)n * C + c] * w[(size_t)o * C + c];
            out[(size_t)n * OC + o] = sum;
        }
}

/* dx =, dw +=, db += (any may be NULL) */
static void linear_backward(double *dx, double *dw, double *db, const double *dout,
                            const double *x, const double *w, int N, int C, int OC) {
    if (dx) memset(dx, 0, (size_t)N * C * sizeof *dx);
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            double d = dout[(size_t)n * OC + o];
            if (db) db[o] += d;
            for (int c = 0; c < C; c++) {
                if (dx) dx[(size_t)n * C + c] += d * w[(size_t)o * C + c];
                dw[(size_t)o * C + c] += d * x[(size_t)n * C + c];
            }
        }
}

static double epsilon = 1e-5;

static void norm(double *out, double *mean, double *rstd, const double *x, const double *w,
                 const double *b, int N, int C) {
    for (int n = 0; n < N; n++, x += C, out += C) {
        double m = 0, v = 0;
        for (int c = 0; c < C; c++) m += x[c] / C;
        for (int c = 0; c < C; c++) v += (x[c] - m) * (x[c] - m) / C;
        mean[n] = m;
        rstd[n] = 1 / sqrt(v + epsilon);
        for (int c = 0; c < C; c++) out[c] = (x[c] - m) * rstd[n] * w[c] + b[c];
    }
}

/* all += */
static void norm_backward(double *dx, double *dw, double *db, const double *dout, const double *x,
                          const double *w, const double *mean, const double *rstd, int N, int C) {
    for (int n = 0; n < N; n++, dx += C, dout += C, x += C) {
        double g = 0, gh = 0;
        for (int c = 0; c < C; c++) {
            double h = (x[c] - mean[n]) * rstd[n];
            g += dout[c] * w[c] / C;
            gh += dout[c] * w[c] * h / C;
            dw[c] += dout[c] * h;
            db[c] += dout[c];
        }
        for (int c = 0; c < C; c++)
            dx[c] += rstd[n] * (dout[c] * w[c] - g - (x[c] - mean[n]) * rstd[n] * gh);
    }
}

/* Everything a feed-forward block or a norm has, for the check of their references. */
struct Dense {
    int N, C, F;
    double *x, *w1, *b1, *w2, *b2, *dout;      /* inputs */
    double *pre, *act, *out, *mean, *rstd;     /* forward */
    double *dx, *dw1, *db1, *dw2, *db2, *dpre; /* backward */
};

static void mlp(struct Dense *d) {
    linear(d->pre, d->x, d->w1, d->b1, d->N, d->C, d->F);
    for (int i = 0; i < d->N * d->F; i++) d->act[i] = gelu(d->pre[i]);
    linear(d->out, d->act, d->w2, d->b2, d->N, d->F, d->C);
}

static void mlp_backward(struct Dense *d) {
    linear_backward(d->dpre, d->dw2, d->db2, d->dout, d->act, d->w2, d->N, d->F, d->C);
    for (int i = 0; i < d->N * d->F; i++) d->dpre[i] *= gelu_slope(d->pre[i]);
    linear_backward(d->dx, d->dw1, d->db1, d->dpre, d->x, d->w1, d->N, d->C, d->F);
}

static double loss_of_out(const struct Dense *d) {
    double sum = 0;
    for (int i = 0; i < d->N * d->C; i++) sum += d->out[i] * d->dout[i];
    return sum;
}
static double mlp_loss(void *context) {
    mlp(context);
    return loss_of_out(context);
}
static double norm_loss(void *context) {
    struct Dense *d = context;
    norm(d->out, d->mean, d->rstd, d->x, d->w1, d->b1, d->N, d->C);
    return loss_of_out(d);
}

static void check_slopes(const char *name, double *x, const double *dx, size_t n,
                         double (*loss)(void *), struct Dense *d) {
    double one = 1;
    for (size_t i = 0; i < n; i++)
        ASSERT_CLOSE(name, fabs(slope_along(&x[i], &one, 1, loss, d) - dx[i]), 1e-8);
}

static void test_references_by_differences(void **state) {
    (void)state;
    enum { N = 3, C = 5, F = 7 };
    double memory[17][N * C * F] = {{0}};
    float host[C * F];
    for (int i = 0; i < 6; i++) {
        fill_normal(host, C * F, 1, 10 + (uint64_t)i);
        for (int j = 0; j < C * F; j++) memory[i][j] = host[j];
    }
    struct Dense d = {N, C, F, memory[0], memory[1], memory[2], memory[3], memory[4], memory[5],
                      memory[6], memory[7], memory[8], memory[9], memory[10], memory[11],
                      memory[12], memory[13], memory[14], memory[15], memory[16]};
    mlp(&d);
    mlp_backward(&d);
    check_slopes("mlp dx", d.x, d.dx, N * C, mlp_loss, &d);
    check_slopes("mlp dw1", d.w1, d.dw1, F * C, mlp_loss, &d);
    check_slopes("mlp db1", d.b1, d.db1, F, mlp_loss, &d);
    check_slopes("mlp dw2", d.w2, d.dw2, C * F, mlp_loss, &d);
    check_slopes("mlp db2", d.b2, d.db2, C, mlp_loss, &d);
    memset(memory[11], 0, 4 * sizeof memory[0]);
    norm_loss(&d);
    norm_backward(d.dx, d.dw1, d.db1, d.dout, d.x, d.w1, d.mean, d.rstd, N, C);
    check_slopes("norm dx", d.x, d.dx, N * C, norm_loss, &d);
    check_slopes("norm dw", d.w1, d.dw1, C, norm_loss, &d);
    check_slopes("norm db", d.b1, d.db1, C, norm_loss, &d);
}

/* ---- embedding --------------------------------------------------------------------------- */

/* Tokens of a batch: `often` of ten are token 3, the others spread over V; every `hole`-th has no
   position (0: none has none). */
struct Embedding {
    int N, C, V, T, often, hole;
};

static void fill_tokens(int *token, int *position, const struct Embedding *e) {
    for (int n = 0; n < e->N; n++) {
        int spread = n % 3 ? (int)((n * 7919L + n / 5) % e->V) : e->V - 1;
        if (n % 4 && e->V > 1 << 17) spread = (n % 3) << 16; /* differ above 16 bits only */
        token[n] = n * 7 % 10 < e->often ? 3 : spread;
        position[n] = n % e->T;
        if (e->hole && n % e->hole == e->hole - 1) token[n] = -123456789, position[n] = -1 - n;
    }
}

/* The relative error of a float32 sum of n terms: partial sums grow as sqrt(n), and each is
   rounded, so the roundings add up to a random walk of n steps, against a sum of sqrt(n): 2^-24
   sqrt(n). */
static double sum_bound(const int *key, int N) {
    int most = 0;
    for (int n = 0; n < N; n++) {
        int count = 0;
        for (int m = 0; m < N; m++) count += key[m] == key[n];
        if (key[n] >= 0 && count > most) most = count;
    }
    return fmax(1e-6, 0x1p-24 * sqrt(most));
}

/* Rows of dw that no token names keep their bits. */
static void check_unnamed(const float *dw, const float *before, const int *key, int N, int rows,
                          int C) {
    bool *named = calloc((size_t)rows, sizeof *named);
    for (int n = 0; n < N; n++)
        if (key[n] >= 0) named[key[n]] = true;
    for (int v = 0; v < rows; v++)
        if (!named[v])
            assert_memory_equal(dw + (size_t)v * C, before + (size_t)v * C, C * sizeof *dw);
    free(named);
}

/* Gradients are made twice, from equal starts, and must have the same bits. */
static void check_embedding(const struct Embedding *e) {
    const int N = e->N, C = e->C, V = e->V, T = e->T;
    int *token = malloc((size_t)N * sizeof *token);
    int *position = malloc((size_t)N * sizeof *position);
    fill_tokens(token, position, e);
    size_t nc = (size_t)N * C, vc = V * (size_t)C, tc = T * (size_t)C;
    float *wte0 = new_normal(vc, 1, 20), *wpe0 = new_normal(tc, 1, 21);
    float *dx0 = new_normal(nc, 1, 22), *dwte0 = new_normal(vc, 1, 23);
    float *dwpe0 = new_normal(tc, 1, 24);
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++)
            if (position[n] < 0) dx0[(size_t)n * C + c] = NAN; /* has no gradient to give */
    floatX *wte = put_x(wte0, vc), *wpe = put_x(wpe0, tc), *x = new_x(nc), *dx = put_x(dx0, nc);
    float *dwte[2] = {put_floats(dwte0, vc), put_floats(dwte0, vc)};
    float *dwpe[2] = {put_floats(dwpe0, tc), put_floats(dwpe0, tc)};
    int *tokens = put_ints(token, N), *positions = put_ints(position, N);
    double *x_d = new_doubles(nc), *dwte_d = widen(dwte0, vc), *dwpe_d = widen(dwpe0, tc);
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C && position[n] >= 0; c++) {
            size_t v = (size_t)token[n] * C + c, t = (size_t)position[n] * C + c;
            x_d[(size_t)n * C + c] = (double)wte0[v] + wpe0[t];
            dwte_d[v] += dx0[(size_t)n * C + c];
            dwpe_d[t] += dx0[(size_t)n * C + c];
        }
    struct OpsShape shape = {.N = N, .C = C, .F = C, .NH = 1, .NKV = 1, .HS = C, .V = V, .Vp = V,
                             .max_T = T, .R = 1, .max_length = T};
    ops->embedding_forward(x, tokens, positions, wte, wpe, N, C);
    for (int i = 0; i < 2; i++)
        ops->embedding_backward(dwte[i], dwpe[i], dx, tokens, positions, N, C,
                                new_workspace_of("embedding", &shape));
    check_x("x", x, x_d, nc, bound_of(1));
    check_floats("dwte", dwte[0], dwte_d, vc, sum_bound(token, N));
    check_floats("dwpe", dwpe[0], dwpe_d, tc, sum_bound(position, N));
    float *te = get_floats(dwte[0], vc), *te2 = get_floats(dwte[1], vc);
    float *pe = get_floats(dwpe[0], tc), *pe2 = get_floats(dwpe[1], tc);
    assert_memory_equal(te, te2, vc * sizeof *te);
    assert_memory_equal(pe, pe2, tc * sizeof *pe);
    check_unnamed(te, dwte0, token, N, V, C);
    check_unnamed(pe, dwpe0, position, N, T, C);
    free(te), free(te2), free(pe), free(pe2);
    free(token), free(position), free(wte0), free(wpe0), free(dx0), free(dwte0), free(dwpe0);
    free(x_d), free(dwte_d), free(dwpe_d);
    release_all();
}

/* One token, rows longer than a block, a token in most places (its sum is made in pieces), a
   vocabulary of more than 16 bits, and tokens without a position: some, all. */
static void test_embedding(void **state) {
    (void)state;
    static const struct Embedding cases[] = {
        {1, 5, 37, 11, 0, 0},       {70, 64, 37, 11, 0, 0},     {1001, 131, 37, 11, 0, 0},
        {33, 1032, 5, 33, 0, 0},    {31, 2053, 200, 7, 5, 4},   {5003, 24, 50, 5003, 9, 0},
        {4997, 7, 4, 1, 10, 0},     {900, 16, 200003, 64, 2, 3}, {200, 20, 131080, 200, 0, 2},
        {65, 8, 9, 9, 0, 1},        {1, 8, 4, 1, 10, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Embedding e = cases[i];
        if (is_slow() && e.V > 65536) e.V = 65600, e.C = 3; /* a check costs 40 accesses */
        check_embedding(&e);
    }
}

/* ---- norm -------------------------------------------------------------------------------- */

static void check_same_floats(const float *x, const float *y, size_t n) {
    float *a = get_floats(x, n), *b = get_floats(y, n);
    assert_memory_equal(a, b, n * sizeof *a);
    free(a), free(b);
}
static void check_same(const floatX *x, const floatX *y, size_t n) {
    float *a = get_x(x, n), *b = get_x(y, n);
    assert_memory_equal(a, b, n * sizeof *a);
    free(a), free(b);
}

/* offset: the mean is far from 0, where a variance formed as <x^2> - <x>^2 loses its digits. */
static void check_norm(int N, int C, float offset) {
    size_t nc = (size_t)N * C;
    float *x0 = new_normal(nc, 2, 30), *delta0 = new_normal(nc, 1, 31), *w0 = new_normal(C, 1, 32);
    float *b0 = new_normal(C, 1, 33), *dout0 = new_normal(nc, 1, 34), *dx0 = new_normal(nc, 1, 35);
    float *dw0 = new_normal(C, 1, 36), *db0 = new_normal(C, 1, 37);
    for (size_t i = 0; i < nc; i++) x0[i] += offset;
    floatX *x = put_x(x0, nc), *delta = put_x(delta0, nc), *w = put_x(w0, C), *b = put_x(b0, C);
    floatX *dout = put_x(dout0, nc), *dx = put_x(dx0, nc), *out = new_x(nc), *sum = new_x(nc);
    struct NormStats stats = {new_floats(N), new_floats(N)};
    struct NormStats stats2 = {new_floats(N), new_floats(N)};
    struct Norm norm_of = {NORM_LAYER, (float)epsilon, w, b};
    float *dw = put_floats(dw0, C);
    float *db = put_floats(db0, C), *dw2 = put_floats(dw0, C), *db2 = put_floats(db0, C);
    floatX *dx2 = put_x(dx0, nc), *out2 = new_x(nc);
    double *x_d = widen(x0, nc), *delta_d = widen(delta0, nc), *w_d = widen(w0, C);
    double *b_d = widen(b0, C), *dout_d = widen(dout0, nc), *dx_d = widen(dx0, nc);
    double *dw_d = widen(dw0, C), *db_d = widen(db0, C), *out_d = new_doubles(nc);
    double *mean_d = new_doubles(N), *rstd_d = new_doubles(N);
    struct OpsShape shape = {.N = N, .C = C, .F = C, .NH = 1, .NKV = 1, .HS = C, .V = 1, .Vp = 1,
                             .max_T = N, .R = 1, .max_length = N};
    double wide = offset ? 1e-4 : 0; /* x - mean loses the digits of offset / deviation */

    ops->norm_forward(out, &stats, x, &norm_of, N, C);
    norm(out_d, mean_d, rstd_d, x_d, w_d, b_d, N, C);
    check_x("norm out", out, out_d, nc, bound_of(1) + wide);
    check_floats("mean", stats.mean, mean_d, N, 1e-6);
    check_floats("rstd", stats.rstd, rstd_d, N, 1e-6 + wide);
    norm_backward(dx_d, dw_d, db_d, dout_d, x_d, w_d, mean_d, rstd_d, N, C);
    ops->norm_backward(dx, dw, db, dout, x, &norm_of, &stats, N, C,
                       new_workspace_of("norm", &shape));
    check_x("norm dx", dx, dx_d, nc, bound_of(1) + wide);
    check_floats("norm dw", dw, dw_d, C, 1e-6 + wide);
    check_floats("norm db", db, db_d, C, 1e-6);
    ops->norm_backward(dx2, dw2, db2, dout, x, &norm_of, &stats, N, C,
                       new_workspace_of("norm", &shape));
    check_same(dx, dx2, nc), check_same_floats(dw, dw2, C), check_same_floats(db, db2, C);

    add(x_d, delta_d, nc);
    ops->norm_residual_forward(sum, out, &stats, x, delta, &norm_of, N, C);
    ops->norm_residual_forward(x, out2, &stats2, x, delta, &norm_of, N, C); /* in place */
    check_x("sum", sum, x_d, nc, bound_of(1));
    check_x("sum in place", x, x_d, nc, bound_of(1));
    norm(out_d, mean_d, rstd_d, x_d, w_d, b_d, N, C);
    check_x("residual norm out", out, out_d, nc, bound_of(2) + wide);
    check_same(sum, x, nc), check_same(out, out2, nc);
    check_same_floats(stats.mean, stats2.mean, N);
    check_same_floats(stats.rstd, stats2.rstd, N);
    /* Activations that were not kept are recomputed by norm_forward, and must be the same. */
    ops->norm_forward(out2, &stats2, sum, &norm_of, N, C);
    check_same(out, out2, nc);
    check_same_floats(stats.mean, stats2.mean, N);
    check_same_floats(stats.rstd, stats2.rstd, N);
    free(x0), free(delta0), free(w0), free(b0), free(dout0), free(dx0), free(dw0), free(db0);
    free(x_d), free(delta_d), free(w_d), free(b_d), free(dout_d), free(dx_d), free(dw_d);
    free(db_d), free(out_d), free(mean_d), free(rstd_d);
    release_all();
}

static void test_norm(void **state) {
    (void)state;
    check_norm(1, 16, 0);
    check_norm(7, 5, 0);
    check_norm(13, 512, 0);
    check_norm(9, 1000, 0);
    check_norm(is_slow() ? 50 : 130, 771, 0);
    check_norm(is_slow() ? 300 : 1100, 96, 0); /* more rows than one part of the reduction has */
    check_norm(5, 1600, 0);
    check_norm(is_slow() ? 3 : 37, 2051, 0); /* wider than what CUDA threads hold: of float32, */
    check_norm(is_slow() ? 3 : 37, 4104, 0); /* of 16-bit elements */
    if (strcmp(ops->dtype, "fp32") == 0) check_norm(9, 300, 1000);
    epsilon = 0.25; /* a model's own */
    check_norm(7, 48, 0);
    check_norm(3, 4104, 0);
    epsilon = 1e-5;
}

/* A decode step uses the norm, so a row's bits must not depend on its neighbours, nor on its
   place: each row alone, and once more one element off any alignment. */
static void check_row_by_row(int N, int C) {
    size_t nc = (size_t)N * C, bytes = C * ops->element_size;
    float *x0 = new_normal(nc, 1, 38), *w0 = new_normal(C, 1, 39);
    floatX *x = put_x(x0, nc), *w = put_x(w0, C), *out = new_x(nc), *one = new_x(C);
    floatX *moved = ops_at(ops, new_x(C + 1), 1), *moved_out = ops_at(ops, new_x(C + 1), 1);
    struct NormStats stats = {new_floats(N), new_floats(N)};
    struct Norm norm_of = {NORM_LAYER, 1e-5f, w, w};
    ops->norm_forward(out, &stats, x, &norm_of, N, C);
    for (int n = 0; n < N; n++) {
        const floatX *row = ops_at(ops, x, (size_t)n * C);
        ops->norm_forward(one, &stats, row, &norm_of, 1, C);
        ops->copy(moved, row, bytes);
        ops->norm_forward(moved_out, &stats, moved, &norm_of, 1, C);
        check_same(one, ops_at(ops, out, (size_t)n * C), C);
        check_same(moved_out, one, C);
    }
    free(x0), free(w0);
    release_all();
}

static void test_norm_row_by_row(void **state) {
    (void)state;
    check_row_by_row(65, 77);
    check_row_by_row(9, 64);
    check_row_by_row(3, 776);
    check_row_by_row(3, 2056);
}

/* ---- linear layers ----------------------------------------------------------------------- */

/* x again, `shift` elements into a buffer of its own: a tensor of a flat parameter buffer begins
   where the one before it ends. */
static floatX *shifted(const floatX *x, size_t n, int shift) {
    floatX *to = ops_at(ops, new_x(n + (size_t)shift), (size_t)shift);
    if (x) ops->copy(to, x, n * ops->element_size);
    return to;
}

static void check_matmul(int N, int C, int OC, bool with_bias, bool with_dx, int shift) {
    size_t nx = (size_t)N * C, no = (size_t)N * OC, nw = (size_t)OC * C;
    float *x0 = new_normal(nx, 1, 40), *w0 = new_normal(nw, 1, 41), *b0 = new_normal(OC, 3, 42);
    float *dout0 = new_normal(no, 1, 43), *dw0 = new_normal(nw, 5, 44);
    float *db0 = new_normal(OC, 5, 45);
    floatX *x = shifted(put_x(x0, nx), nx, shift), *w = shifted(put_x(w0, nw), nw, shift);
    floatX *b = shifted(put_x(b0, OC), OC, shift), *dout = shifted(put_x(dout0, no), no, shift);
    floatX *out = shifted(NULL, no, shift), *out2 = shifted(NULL, no, shift);
    floatX *dx = shifted(NULL, nx, shift);
    float *dw = put_floats(dw0, nw), *db = put_floats(db0, OC), *dw2 = put_floats(dw0, nw);
    double *x_d = widen(x0, nx), *w_d = widen(w0, nw), *b_d = widen(b0, OC);
    double *dout_d = widen(dout0, no), *dw_d = widen(dw0, nw), *db_d = widen(db0, OC);
    double *out_d = new_doubles(no), *dx_d = new_doubles(nx);
    struct OpsShape shape = {.N = N, .C = C > OC ? C : OC, .F = C > OC ? C : OC, .NH = 1, .NKV = 1,
                             .HS = 1, .V = 1, .Vp = 1, .max_T = N, .R = 1, .max_length = N};
    void *workspace = new_workspace_of("matmul", &shape);

    ops->matmul_forward(out, x, w, with_bias ? b : NULL, N, C, OC);
    ops->matmul_forward(out2, x, w, with_bias ? b : NULL, N, C, OC);
    ops->matmul_backward(with_dx ? dx : NULL, dw, with_bias ? db : NULL, dout, x, w, N, C, OC,
                         workspace);
    ops->matmul_backward(NULL, dw2, NULL, dout, x, w, N, C, OC, workspace);
    linear(out_d, x_d, w_d, with_bias ? b_d : NULL, N, C, OC);
    linear_backward(with_dx ? dx_d : NULL, dw_d, with_bias ? db_d : NULL, dout_d, x_d, w_d, N, C,
                    OC);
    check_x("out", out, out_d, no, bound_of(1));
    if (with_dx) check_x("dx", dx, dx_d, nx, bound_of(1));
    /* A chain of N additions of random terms errs by about 2^-25 sqrt(N). A tensor core, which
       takes 8 narrow products at a time, cuts off instead of rounding: up to N/8 errors of one
       sign, 2^-23. */
    double chain = fmax(1e-6, 0x1p-25 * sqrt(N));
    double cut = strcmp(ops->dtype, "fp32") == 0 ? 0 : 0x1p-26 * N;
    check_floats("dw", dw, dw_d, nw, chain + cut);
    check_floats("db", db, db_d, OC, chain);
    float *first = get_x(out, no), *second = get_x(out2, no);
    assert_memory_equal(first, second, no * sizeof *first);
    float *once = get_floats(dw, nw), *twice = get_floats(dw2, nw);
    assert_memory_equal(once, twice, nw * sizeof *once);
    free(first), free(second), free(once), free(twice);
    free(x0), free(w0), free(b0), free(dout0), free(dw0), free(db0);
    free(x_d), free(w_d), free(b_d), free(dout_d), free(dw_d), free(db_d), free(out_d), free(dx_d);
    release_all();
}

/* Tall, wide and ragged, aligned and not; with and without bias and dx; and on the CPU every way
   threads can divide a result. */
static void test_matmul(void **state) {
    (void)state;
    const int sizes[][3] = {{1, 1, 1}, {1, 33, 70}, {2, 64, 3}, {37, 21, 600}, {601, 48, 17},
                            {133, 259, 197}};
    int threads = omp_get_max_threads();
    for (int t = 1; t <= 6; t++) {
        if (is_cpu()) omp_set_num_threads(t);
        for (int i = 0; i < 6; i++)
            check_matmul(sizes[i][0], sizes[i][1], sizes[i][2], (i + t) % 3 > 0, (i + t) % 4 > 0,
                         0);
    }
    omp_set_num_threads(threads);
    check_matmul(9001, 8, 24, true, true, 0); /* more rows than slices of the least height */
    /* one shape, differently aligned: what was chosen for one must not be taken for another */
    for (int shift = 0; shift < 6; shift++) check_matmul(70, 40, 264, true, true, shift);
    /* more shapes than are remembered, the first one again at the end */
    for (int N = 1; N <= 50; N++) check_matmul(N, 3, 5, true, true, 0);
    check_matmul(1, 3, 5, true, true, 0);
}

/* ---- the feed-forward block -------------------------------------------------------------- */

static void check_mlp(int N, int C, int F, int shift) {
    size_t nc = (size_t)N * C, nf = (size_t)N * F, cf = (size_t)C * F;
    float *x0 = new_normal(nc, 1, 50), *w10 = new_normal(cf, 0.3f, 51), *b10 = new_normal(F, 1, 52);
    float *w20 = new_normal(cf, 0.3f, 53), *b20 = new_normal(C, 1, 54);
    float *dout0 = new_normal(nc, 1, 55), *g0 = new_normal(2 * cf + F + C, 2, 56);
    floatX *x = put_x(x0, nc), *w1 = shifted(put_x(w10, cf), cf, shift), *b1 = put_x(b10, F);
    floatX *w2 = shifted(put_x(w20, cf), cf, shift), *b2 = shifted(put_x(b20, C), C, shift);
    floatX *dout = put_x(dout0, nc), *out = new_x(nc), *pre = shifted(NULL, nf, shift);
    floatX *act = shifted(NULL, nf, shift), *dx = new_x(nc), *dpre = new_x(nf);
    floatX *again = new_x(nf), *linear_out = shifted(NULL, nf, shift);
    float *dw1 = put_floats(g0, cf), *dw2 = put_floats(g0 + cf, cf);
    float *db1 = put_floats(g0 + 2 * cf, F), *db2 = put_floats(g0 + 2 * cf + F, C);
    double *g = widen(g0, 2 * cf + F + C);
    struct Dense d = {N, C, F, widen(x0, nc), widen(w10, cf), widen(b10, F), widen(w20, cf),
                      widen(b20, C), widen(dout0, nc), new_doubles(nf), new_doubles(nf),
                      new_doubles(nc), NULL, NULL, new_doubles(nc), g, g + 2 * cf, g + cf,
                      g + 2 * cf + F, new_doubles(nf)};
    struct OpsShape shape = {.N = N, .C = C, .F = F, .NH = 1, .NKV = 1, .HS = C, .V = 1, .Vp = 1,
                             .max_T = N, .R = 1, .max_length = N};
    const struct Mlp block = {GELU_TANH, w1, b1, w2, b2, C, F};
    const struct MlpGradients gradients = {dw1, db1, dw2, db2};
    ops->mlp_forward(out, pre, act, x, &block, N);
    ops->mlp_backward(dx, &gradients, dpre, dout, x, pre, act, &block, N,
                      new_workspace_of("mlp", &shape));
    mlp(&d);
    mlp_backward(&d);
    /* what the contract says of recomputing: pre and act have the bits of the slots for them */
    ops->matmul_forward(linear_out, x, w1, b1, N, C, F);
    ops->activation_forward(again, pre, N, F, GELU_TANH);
    check_same(pre, linear_out, nf);
    check_same(act, again, nf);
    check_x("pre", pre, d.pre, nf, bound_of(1));
    check_x("act", act, d.act, nf, bound_of(2));
    check_x("mlp out", out, d.out, nc, bound_of(4));
    check_x("mlp dx", dx, d.dx, nc, bound_of(5));
    check_floats("dw1", dw1, d.dw1, cf, bound_of(4));
    check_floats("db1", db1, d.db1, F, bound_of(4));
    check_floats("dw2", dw2, d.dw2, cf, bound_of(4));
    check_floats("db2", db2, d.db2, C, bound_of(4));
    free(x0), free(w10), free(b10), free(w20), free(b20), free(dout0), free(g0), free(g);
    free(d.x), free(d.w1), free(d.b1), free(d.w2), free(d.b2), free(d.dout), free(d.pre);
    free(d.act), free(d.out), free(d.dx), free(d.dpre);
    release_all();
}

static void test_mlp(void **state) {
    (void)state;
    int threads = omp_get_max_threads();
    for (int t = 1; t <= (is_cpu() ? 4 : 1); t++) {
        if (is_cpu()) omp_set_num_threads(t);
        check_mlp(1, 8, 32, 0);
        check_mlp(259, 33, 131, 0);
        check_mlp(19, 70, 517, 0);
        check_mlp(67, 40, 160, 0); /* aligned: bias and gelu' may be the products' own */
        check_mlp(67, 40, 160, 4);
    }
    omp_set_num_threads(threads);
}

/* Element by element, to the ends of the range: one rounding, and an exponential whose argument,
   2u, errs by a few units of 2^-24 of itself. (2^-25: half the smallest fp16; 1e-37: where e^2u
   leaves float32.) */
static void test_gelu_forward(void **state) {
    (void)state;
    enum { n = 6003 };
    float *x0 = malloc(n * sizeof *x0);
    for (int i = 0; i < n - 3; i++) x0[i] = (float)(i - n / 2) * 0.0045f;
    x0[n - 3] = -6e4f, x0[n - 2] = 6e4f, x0[n - 1] = NAN;
    floatX *x = put_x(x0, n), *y = new_x(n);
    ops->activation_forward(y, x, 1, n, GELU_TANH);
    float *got = get_x(y, n);
    double least = strcmp(ops->dtype, "fp16") == 0 ? 0x1p-25 : 1e-37;
    for (int i = 0; i < n - 1; i++) {
        /* without the cancellation of 1 + tanh, which costs the tail its digits in double too */
        double v = x0[i], u2 = 2 * sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
        double exact = v / (1 + exp(-u2));
        double bound = (rounding_unit() + 1e-6 + fabs(u2) * 0x1p-22) * fabs(exact) + least;
        ASSERT_CLOSE("gelu", fabs(got[i] - exact), bound);
    }
    assert_true(isnan(got[n - 1]));
    ops->activation_forward(x, y, 0, n, GELU_TANH); /* nothing */
    free(x0), free(got);
    release_all();
}


int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_references_by_differences),
        cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_norm_row_by_row),
        cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_mlp),
        cmocka_unit_test(test_gelu_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
