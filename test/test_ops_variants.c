/* What model families differ in: RMS norm, absent biases, no position table, SwiGLU, and what is
   done to query and key heads. Each against its definition in double; the definitions of backward
   passes against finite differences. (What GPT-2 has of these is in test_ops_dense.c.) */
#include "test_ops.h"

static double *widen(const float *x, size_t n) {
    double *out = new_doubles(n);
    for (size_t i = 0; i < n; i++) out[i] = x[i];
    return out;
}

/* n normal numbers as the backend has them: on the host (*host), and in double. */
static floatX *put_normal(double **wide, size_t n, float scale, uint64_t seed) {
    float *host = new_normal(n, scale, seed);
    floatX *x = put_x(host, n);
    *wide = widen(host, n);
    free(host);
    return x;
}

static float *put_normal_floats(double **wide, size_t n, uint64_t seed) {
    float *host = new_normal(n, 1, seed), *x = put_floats(host, n);
    *wide = widen(host, n);
    free(host);
    return x;
}

static void check_same(const floatX *x, const floatX *y, size_t n) {
    float *a = get_x(x, n), *b = get_x(y, n);
    assert_memory_equal(a, b, n * sizeof *a);
    free(a), free(b);
}

static void check_same_floats(const float *x, const float *y, size_t n) {
    float *a = get_floats(x, n), *b = get_floats(y, n);
    assert_memory_equal(a, b, n * sizeof *a);
    free(a), free(b);
}

/* ---- norms without a mean, or without a bias ------------------------------------------------- */

struct NormCase {
    enum NormKind kind;
    double epsilon;
    int N, C;
    double *x, *w, *dout, *out, *rstd, *dx, *dw;
};

static double norm_of(const struct NormCase *c, int n, int i) {
    const double *x = c->x + (size_t)n * c->C;
    double mean = 0, square = 0;
    for (int k = 0; k < c->C && c->kind == NORM_LAYER; k++) mean += x[k] / c->C;
    for (int k = 0; k < c->C; k++) square += (x[k] - mean) * (x[k] - mean) / c->C;
    c->rstd[n] = 1 / sqrt(square + c->epsilon);
    return (x[i] - mean) * c->rstd[n];
}

static double norm_loss(void *context) {
    const struct NormCase *c = context;
    double sum = 0;
    for (int n = 0; n < c->N; n++)
        for (int i = 0; i < c->C; i++) {
            size_t at = (size_t)n * c->C + i;
            c->out[at] = norm_of(c, n, i) * c->w[i];
            sum += c->out[at] * c->dout[at];
        }
    return sum;
}

/* dx, dw += */
static void norm_gradient(const struct NormCase *c) {
    for (int n = 0; n < c->N; n++) {
        const double *dout = c->dout + (size_t)n * c->C;
        double g = 0, gh = 0, *h = new_doubles(c->C);
        for (int i = 0; i < c->C; i++) {
            h[i] = norm_of(c, n, i);
            g += c->kind == NORM_LAYER ? dout[i] * c->w[i] / c->C : 0;
            gh += dout[i] * c->w[i] * h[i] / c->C;
            c->dw[i] += dout[i] * h[i];
        }
        for (int i = 0; i < c->C; i++)
            c->dx[(size_t)n * c->C + i] += c->rstd[n] * (dout[i] * c->w[i] - g - h[i] * gh);
        free(h);
    }
}

static void check_norm(enum NormKind kind, int N, int C) {
    size_t nc = (size_t)N * C;
    double *delta_d;
    struct NormCase c = {.kind = kind, .epsilon = 0.125, .N = N, .C = C};
    c.out = new_doubles(nc), c.rstd = new_doubles(N);
    floatX *x = put_normal(&c.x, nc, 2, 1), *w = put_normal(&c.w, C, 1, 2);
    floatX *dout = put_normal(&c.dout, nc, 1, 3), *dx = put_normal(&c.dx, nc, 1, 4);
    floatX *delta = put_normal(&delta_d, nc, 1, 6), *out = new_x(nc), *sum = new_x(nc);
    float *dw = put_normal_floats(&c.dw, C, 5), *mean = kind == NORM_RMS ? NULL : new_floats(N);
    struct NormStats stats = {mean, new_floats(N)};
    const struct Norm norm = {kind, (float)c.epsilon, w, NULL};
    struct OpsShape shape = {.N = N, .C = C, .F = C, .NH = 1, .NKV = 1, .HS = C, .V = 1, .Vp = 1,
                             .max_T = N, .R = 1, .max_length = N};
    ops->norm_forward(out, &stats, x, &norm, N, C);
    norm_loss(&c);
    check_x("norm out", out, c.out, nc, bound_of(1));
    check_floats("rstd", stats.rstd, c.rstd, N, 1e-6);
    ops->norm_backward(dx, dw, NULL, dout, x, &norm, &stats, N, C,
                       new_workspace_of("norm", &shape));
    norm_gradient(&c);
    check_x("norm dx", dx, c.dx, nc, bound_of(1));
    check_floats("norm dw", dw, c.dw, C, 1e-6);
    ops->norm_residual_forward(sum, out, &stats, x, delta, &norm, N, C);
    for (size_t i = 0; i < nc; i++) c.x[i] += delta_d[i];
    norm_loss(&c);
    check_x("sum", sum, c.x, nc, bound_of(1));
    check_x("residual norm out", out, c.out, nc, bound_of(2));
    floatX *again = new_x(nc), *one = new_x(C); /* recomputed, and one row alone: the same bits */
    ops->norm_forward(again, &stats, sum, &norm, N, C);
    check_same(out, again, nc);
    ops->norm_forward(one, &stats, ops_at(ops, sum, (size_t)(N - 1) * C), &norm, 1, C);
    check_same(one, ops_at(ops, out, (size_t)(N - 1) * C), C);
    free(c.x), free(c.w), free(c.dout), free(c.dx), free(c.dw), free(c.out), free(c.rstd);
    free(delta_d);
    release_all();
}

static void test_norm(void **state) {
    (void)state;
    for (enum NormKind kind = NORM_LAYER; kind <= NORM_RMS; kind++) {
        check_norm(kind, 1, 16);
        check_norm(kind, 7, 5);
        check_norm(kind, 13, 512);
        check_norm(kind, is_slow() ? 50 : 130, 771);
        check_norm(kind, is_slow() ? 300 : 1100, 96);
        check_norm(kind, is_slow() ? 3 : 37, 2051);
        check_norm(kind, is_slow() ? 3 : 37, 4104);
    }
}

/* ---- an embedding without a table of positions ----------------------------------------------- */

static void test_embedding(void **state) {
    (void)state;
    enum { N = 301, C = 24, V = 37 };
    int token[N], position[N];
    double *wte_d, *dx_d, *dwte_d, *x_d = new_doubles(N * C);
    floatX *wte = put_normal(&wte_d, V * C, 1, 1), *dx = put_normal(&dx_d, N * C, 1, 2);
    float *dwte = put_normal_floats(&dwte_d, V * C, 3);
    for (int n = 0; n < N; n++) {
        token[n] = n % 3 ? n * 7 % V : 5;
        position[n] = n % 10 == 9 ? -1 : 100000 + n;
        for (int i = 0; i < C && position[n] >= 0; i++) {
            x_d[n * C + i] = wte_d[token[n] * C + i];
            dwte_d[token[n] * C + i] += dx_d[n * C + i];
        }
    }
    struct OpsShape shape = {.N = N, .C = C, .F = C, .NH = 1, .NKV = 1, .HS = C, .V = V, .Vp = V,
                             .max_T = N, .R = 1, .max_length = N};
    int *tokens = put_ints(token, N), *positions = put_ints(position, N);
    floatX *x = new_x(N * C);
    ops->embedding_forward(x, tokens, positions, wte, NULL, N, C);
    ops->embedding_backward(dwte, NULL, dx, tokens, positions, N, C,
                            new_workspace_of("embedding", &shape));
    check_x("x", x, x_d, N * C, 0);
    check_floats("dwte", dwte, dwte_d, V * C, 1e-6);
    free(wte_d), free(dx_d), free(dwte_d), free(x_d);
    release_all();
}

/* ---- the feed-forward block ------------------------------------------------------------------ */

struct MlpCase {
    enum Activation activation;
    int N, C, F, P;
    double *x, *w1, *b1, *w2, *b2, *dout;             /* b1, b2: NULL without */
    double *pre, *act, *out, *dx, *dw1, *db1, *dw2, *db2;
};

static double silu(double x) { return x / (1 + exp(-x)); }
static double silu_slope(double x) {
    double s = 1 / (1 + exp(-x));
    return s * (1 + x * (1 - s));
}

static void linear(double *out, const double *x, const double *w, const double *b, int N, int C,
                   int OC) {
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            double sum = b ? b[o] : 0;
            for (int c = 0; c < C; c++) sum += x[(size_t)n * C + c] * w[(size_t)o * C + c];
            out[(size_t)n * OC + o] = sum;
        }
}

static void linear_gradient(double *dx, double *dw, double *db, const double *dout,
                            const double *x, const double *w, int N, int C, int OC) {
    memset(dx, 0, (size_t)N * C * sizeof *dx);
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            double d = dout[(size_t)n * OC + o];
            if (db) db[o] += d;
            for (int c = 0; c < C; c++) {
                dx[(size_t)n * C + c] += d * w[(size_t)o * C + c];
                dw[(size_t)o * C + c] += d * x[(size_t)n * C + c];
            }
        }
}

static double mlp_loss(void *context) {
    struct MlpCase *m = context;
    double sum = 0;
    linear(m->pre, m->x, m->w1, m->b1, m->N, m->C, m->P);
    for (int n = 0; n < m->N; n++)
        for (int f = 0; f < m->F; f++) {
            const double *pre = m->pre + (size_t)n * m->P;
            m->act[(size_t)n * m->F + f] =
                m->activation == SWIGLU ? silu(pre[f]) * pre[m->F + f] : gelu(pre[f]);
        }
    linear(m->out, m->act, m->w2, m->b2, m->N, m->F, m->C);
    for (size_t i = 0; i < (size_t)m->N * m->C; i++) sum += m->out[i] * m->dout[i];
    return sum;
}

static void mlp_gradient(struct MlpCase *m) {
    double *dact = new_doubles((size_t)m->N * m->F), *dpre = new_doubles((size_t)m->N * m->P);
    linear_gradient(dact, m->dw2, m->db2, m->dout, m->act, m->w2, m->N, m->F, m->C);
    for (int n = 0; n < m->N; n++)
        for (int f = 0; f < m->F; f++) {
            const double *pre = m->pre + (size_t)n * m->P, d = dact[(size_t)n * m->F + f];
            double *to = dpre + (size_t)n * m->P;
            if (m->activation == SWIGLU) to[m->F + f] = d * silu(pre[f]);
            to[f] = m->activation == SWIGLU ? d * pre[m->F + f] * silu_slope(pre[f])
                                            : d * gelu_slope(pre[f]);
        }
    linear_gradient(m->dx, m->dw1, m->db1, dpre, m->x, m->w1, m->N, m->C, m->P);
    free(dact), free(dpre);
}

/* The backend's part of a case. */
struct MlpBackend {
    struct Mlp mlp;
    struct MlpGradients d;
    floatX *x, *dout, *pre, *act, *out, *dx, *dpre;
};

static void mlp_open(struct MlpCase *m, struct MlpBackend *b, bool biases) {
    size_t nc = (size_t)m->N * m->C, np = (size_t)m->N * m->P, nf = (size_t)m->N * m->F;
    size_t pc = (size_t)m->P * m->C, cf = (size_t)m->C * m->F;
    m->pre = new_doubles(np), m->act = new_doubles(nf), m->out = new_doubles(nc);
    m->dx = new_doubles(nc);
    b->x = put_normal(&m->x, nc, 1, 10), b->dout = put_normal(&m->dout, nc, 1, 11);
    b->mlp = (struct Mlp){.activation = m->activation, .C = m->C, .F = m->F};
    b->mlp.w1 = put_normal(&m->w1, pc, 0.3f, 12), b->mlp.w2 = put_normal(&m->w2, cf, 0.3f, 13);
    b->d = (struct MlpGradients){.dw1 = put_normal_floats(&m->dw1, pc, 16),
                                 .dw2 = put_normal_floats(&m->dw2, cf, 17)};
    if (biases) {
        b->mlp.b1 = put_normal(&m->b1, m->P, 1, 14), b->mlp.b2 = put_normal(&m->b2, m->C, 1, 15);
        b->d.db1 = put_normal_floats(&m->db1, m->P, 18);
        b->d.db2 = put_normal_floats(&m->db2, m->C, 19);
    }
    b->pre = new_x(np), b->act = new_x(nf), b->out = new_x(nc), b->dx = new_x(nc);
    b->dpre = new_x(np);
}

static void mlp_close(struct MlpCase *m) {
    free(m->x), free(m->w1), free(m->b1), free(m->w2), free(m->b2), free(m->dout), free(m->pre);
    free(m->act), free(m->out), free(m->dx), free(m->dw1), free(m->db1), free(m->dw2), free(m->db2);
    release_all();
}

static struct MlpCase mlp_case(enum Activation activation, int N, int C, int F) {
    return (struct MlpCase){.activation = activation, .N = N, .C = C, .F = F,
                            .P = F * activation_inputs(activation)};
}

static void check_mlp(enum Activation activation, int N, int C, int F, bool biases) {
    struct MlpCase m = mlp_case(activation, N, C, F);
    struct MlpBackend b;
    mlp_open(&m, &b, biases);
    size_t np = (size_t)N * m.P, nf = (size_t)N * F, nc = (size_t)N * C;
    struct OpsShape shape = {.N = N, .C = C, .F = F, .NH = 1, .NKV = 1, .HS = C, .V = 1, .Vp = 1,
                             .max_T = N, .R = 1, .max_length = N};
    ops->mlp_forward(b.out, b.pre, b.act, b.x, &b.mlp, N);
    ops->mlp_backward(b.dx, &b.d, b.dpre, b.dout, b.x, b.pre, b.act, &b.mlp, N,
                      new_workspace_of("mlp", &shape));
    mlp_loss(&m);
    mlp_gradient(&m);
    floatX *pre = new_x(np), *act = new_x(nf); /* what recomputation finds */
    ops->matmul_forward(pre, b.x, b.mlp.w1, b.mlp.b1, N, C, m.P);
    ops->activation_forward(act, pre, N, F, activation);
    check_same(b.pre, pre, np);
    check_same(b.act, act, nf);
    check_x("pre", b.pre, m.pre, np, bound_of(1));
    check_x("act", b.act, m.act, nf, bound_of(3));
    check_x("out", b.out, m.out, nc, bound_of(5));
    check_x("dx", b.dx, m.dx, nc, bound_of(6));
    check_floats("dw1", b.d.dw1, m.dw1, (size_t)m.P * C, bound_of(5));
    check_floats("dw2", b.d.dw2, m.dw2, (size_t)C * F, bound_of(5));
    if (biases) check_floats("db1", b.d.db1, m.db1, m.P, bound_of(5));
    if (biases) check_floats("db2", b.d.db2, m.db2, C, bound_of(5));
    mlp_close(&m);
}

static void test_mlp(void **state) {
    (void)state;
    for (int biases = 0; biases < 2; biases++) {
        check_mlp(SWIGLU, 1, 8, 32, biases);
        check_mlp(SWIGLU, 259, 33, 131, biases);
        check_mlp(SWIGLU, 67, 40, 160, biases);
        check_mlp(SWIGLU, 19, 70, is_slow() ? 77 : 517, biases);
    }
    check_mlp(GELU_TANH, 259, 33, 131, false);
    check_mlp(GELU_TANH, 67, 40, 160, false);
}

/* To the ends of the range: far below 0 SiLU is 0, and NaN stays NaN. */
static void test_swiglu(void **state) {
    (void)state;
    enum { N = 3, F = 2001 };
    float *pre = malloc(2 * N * F * sizeof *pre);
    for (int n = 0; n < N; n++)
        for (int f = 0; f < F; f++) {
            pre[n * 2 * F + f] = (float)(f - F / 2) * (n ? 0.01f : 0.2f);
            pre[n * 2 * F + F + f] = n == 2 ? -1.5f : 1;
        }
    pre[0] = -6e4f, pre[1] = 6e4f, pre[2] = NAN;
    floatX *x = put_x(pre, 2 * N * F), *act = new_x(N * F);
    ops->activation_forward(act, x, N, F, SWIGLU);
    float *got = get_x(act, N * F);
    double least = strcmp(ops->dtype, "fp16") == 0 ? 0x1p-25 : 1e-36;
    for (int i = 0; i < N * F; i++) {
        double gate = pre[i / F * 2 * F + i % F], up = pre[i / F * 2 * F + F + i % F];
        double exact = gate < -700 ? 0 : silu(gate) * up;
        if (i == 2) assert_true(isnan(got[i]));
        else ASSERT_CLOSE("swiglu", fabs(got[i] - exact),
                          (rounding_unit() + 1e-6 + fabs(gate) * 0x1p-22) * fabs(exact) + least);
    }
    ops->activation_forward(act, x, 0, F, SWIGLU); /* nothing */
    free(pre), free(got);
    release_all();
}

static const void *packed(const floatX *w, int C, int OC) {
    size_t bytes = ops->matmul_packed_size(C, OC);
    if (bytes == 0) return w;
    void *to = new_poison(bytes);
    ops->matmul_pack(to, w, C, OC);
    return to;
}

/* A row alone has the bits that it has among others. */
static void check_mlp_decode(enum Activation activation, int R, int C, int F, bool biases) {
    struct MlpCase m = mlp_case(activation, R, C, F);
    struct MlpBackend b;
    mlp_open(&m, &b, biases);
    const void *w1 = packed(b.mlp.w1, C, m.P), *w2 = packed(b.mlp.w2, F, C);
    b.mlp.w1 = b.mlp.w2 = NULL;
    floatX *pre = m.P > F ? b.pre : NULL, *one = new_x(C), *act = new_x(F), *pre1 = new_x(m.P);
    ops->mlp_decode(b.out, pre, b.act, b.x, w1, w2, &b.mlp, R);
    mlp_loss(&m);
    check_x("decode out", b.out, m.out, (size_t)R * C, bound_of(5));
    for (int r = 0; r < R; r += R / 3 + 1) {
        ops->mlp_decode(one, m.P > F ? pre1 : NULL, act, ops_at(ops, b.x, (size_t)r * C), w1, w2,
                        &b.mlp, 1);
        check_same(one, ops_at(ops, b.out, (size_t)r * C), C);
    }
    mlp_close(&m);
}

static void test_mlp_decode(void **state) {
    (void)state;
    for (enum Activation a = GELU_TANH; a <= SWIGLU; a++) {
        check_mlp_decode(a, 1, 8, 24, true);
        check_mlp_decode(a, 5, 37, 70, false);
        check_mlp_decode(a, 29, 131, 97, true);
        check_mlp_decode(a, is_slow() ? 20 : 70, 72, 264, false);
    }
}

/* ---- query and key heads --------------------------------------------------------------------- */

/* A case of position_forward: qkv as it goes in, and the gradient that comes out of attention. */
struct HeadCase {
    struct Heads heads;
    int N, *position;
    bool norm, rotation;
    float epsilon, *inv_freq;
    double *qkv, *w, *out, *dout, *dqkv, *dw;   /* w, dw: [2][HS], queries' and keys' */
};

static double heads_loss(void *context) {
    const struct HeadCase *c = context;
    const int HS = c->heads.HS, QKV = heads_qkv(&c->heads), half = HS / 2;
    double sum = 0;
    memcpy(c->out, c->qkv, (size_t)c->N * QKV * sizeof *c->out);
    for (int n = 0; n < c->N; n++)
        for (int h = 0; h < c->heads.NH + c->heads.NKV && c->position[n] >= 0; h++) {
            double *x = c->out + (size_t)n * QKV + (size_t)h * HS, square = 0;
            const double *w = c->w + (h < c->heads.NH ? 0 : HS);
            for (int i = 0; i < HS; i++) square += x[i] * x[i] / HS;
            for (int i = 0; i < HS && c->norm; i++) x[i] *= w[i] / sqrt(square + c->epsilon);
            for (int i = 0; i < half && c->rotation; i++) {
                double angle = (float)c->position[n] * c->inv_freq[i], x1 = x[i], x2 = x[half + i];
                x[i] = x1 * cos(angle) - x2 * sin(angle);
                x[half + i] = x2 * cos(angle) + x1 * sin(angle);
            }
        }
    for (size_t i = 0; i < (size_t)c->N * QKV; i++) sum += c->out[i] * c->dout[i];
    return sum;
}

/* dqkv =, dw += */
static void heads_gradient(const struct HeadCase *c) {
    const int HS = c->heads.HS, QKV = heads_qkv(&c->heads), half = HS / 2;
    memcpy(c->dqkv, c->dout, (size_t)c->N * QKV * sizeof *c->dqkv);
    for (int n = 0; n < c->N; n++)
        for (int h = 0; h < c->heads.NH + c->heads.NKV && c->position[n] >= 0; h++) {
            size_t at = (size_t)n * QKV + (size_t)h * HS;
            double *d = c->dqkv + at, square = 0, mean = 0;
            const double *x = c->qkv + at, *w = c->w + (h < c->heads.NH ? 0 : HS);
            double *dw = c->dw + (h < c->heads.NH ? 0 : HS);
            for (int i = 0; i < half && c->rotation; i++) {
                double angle = (float)c->position[n] * c->inv_freq[i], d1 = d[i], d2 = d[half + i];
                d[i] = d1 * cos(angle) + d2 * sin(angle);
                d[half + i] = d2 * cos(angle) - d1 * sin(angle);
            }
            if (!c->norm) continue;
            for (int i = 0; i < HS; i++) square += x[i] * x[i] / HS;
            double r = 1 / sqrt(square + c->epsilon);
            for (int i = 0; i < HS; i++) {
                dw[i] += d[i] * x[i] * r;
                mean += d[i] * w[i] * x[i] * r / HS;
            }
            for (int i = 0; i < HS; i++) d[i] = r * (d[i] * w[i] - x[i] * r * mean);
        }
}

/* Positions of a packed batch, far ones, and tokens that have none. */
static void heads_positions(struct HeadCase *c) {
    c->position = malloc((size_t)c->N * sizeof *c->position);
    c->inv_freq = malloc((size_t)c->heads.HS * sizeof *c->inv_freq);
    for (int n = 0; n < c->N; n++)
        c->position[n] = n % 11 == 10 ? -1 - n : n % 5 == 4 ? 131071 - n : n % 37;
    for (int i = 0; i < c->heads.HS / 2; i++)
        c->inv_freq[i] = (float)pow(10000, -2.0 * i / c->heads.HS);
}

static void heads_close(struct HeadCase *c) {
    free(c->position), free(c->inv_freq), free(c->qkv), free(c->w), free(c->out), free(c->dout);
    free(c->dqkv), free(c->dw);
    release_all();
}

/* Twice, from equal starts: the same bits, and without what is kept for a backward pass as well.
   Values are never touched. */
static void check_heads(int N, int NH, int NKV, int HS, bool norm, bool rotation) {
    struct HeadCase c = {.heads = {NH, NKV, HS}, .N = N, .norm = norm, .rotation = rotation,
                         .epsilon = 0.25f};
    const int QKV = heads_qkv(&c.heads), count = NH + NKV;
    size_t nq = (size_t)N * QKV, saved_size = (size_t)N * count;
    heads_positions(&c);
    c.out = new_doubles(nq), c.dqkv = new_doubles(nq);
    floatX *w = put_normal(&c.w, 2 * (size_t)HS, 1, 30), *qkv = put_normal(&c.qkv, nq, 2, 31);
    floatX *bare = put_normal(&c.dout, nq, 2, 31);
    free(c.dout);
    floatX *dqkv[2] = {put_normal(&c.dout, nq, 1, 32), new_x(nq)};
    ops->copy(dqkv[1], dqkv[0], nq * ops->element_size);
    float *dw[2] = {put_normal_floats(&c.dw, 2 * (size_t)HS, 33), new_floats(2 * (size_t)HS)};
    ops->copy(dw[1], dw[0], 2 * (size_t)HS * sizeof(float));
    const struct Position how = {c.epsilon, norm ? w : NULL,
                                 norm ? ops_at(ops, w, (size_t)HS) : NULL,
                                 rotation ? put_floats(c.inv_freq, (size_t)HS / 2) : NULL};
    const struct PositionSaved none = {NULL, NULL};
    struct PositionSaved saved = none;
    if (norm) saved = (struct PositionSaved){new_x(saved_size * HS), new_floats(saved_size)};
    struct OpsShape shape = {.N = N, .C = HS, .F = 1, .NH = NH, .NKV = NKV, .HS = HS, .V = 1,
                             .Vp = 1, .max_T = N, .R = 1, .max_length = N};
    int *position = put_ints(c.position, (size_t)N);
    ops->position_forward(qkv, &saved, position, &how, &c.heads, N);
    ops->position_forward(bare, &none, position, &how, &c.heads, N);
    heads_loss(&c);
    heads_gradient(&c);
    check_x("qkv", qkv, c.out, nq, norm || rotation ? bound_of(1) : 0);
    check_same(qkv, bare, nq);
    for (int i = 0; i < 2; i++) {
        const struct PositionGradients d = {norm ? dw[i] : NULL, norm ? dw[i] + HS : NULL};
        ops->position_backward(dqkv[i], &d, &saved, position, &how, &c.heads, N,
                               new_workspace_of("position", &shape));
    }
    check_x("dqkv", dqkv[0], c.dqkv, nq, norm || rotation ? bound_of(1) : 0);
    check_floats("dw", dw[0], c.dw, 2 * (size_t)HS, norm ? 2e-6 : 0);
    check_same(dqkv[0], dqkv[1], nq);
    check_same_floats(dw[0], dw[1], 2 * (size_t)HS);
    heads_close(&c);
}

static void test_heads(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        bool norm = kind & 1, rotation = kind & 2;
        check_heads(1, 1, 1, 2, norm, rotation);
        check_heads(70, 3, 1, 6, norm, rotation);
        check_heads(259, 4, 4, 16, norm, rotation);
        check_heads(37, 6, 2, 64, norm, rotation);
        check_heads(is_slow() ? 19 : 600, 2, 1, 128, norm, rotation);
        if (is_cpu()) check_heads(9, 2, 1, 322, norm, rotation);
    }
    check_heads(33, 3, 3, 7, true, false); /* without a rotation a head's size may be odd */
}

/* A decode row's bits are its own: alone, and elsewhere in memory. */
static void test_heads_row_by_row(void **state) {
    (void)state;
    enum { N = 29, NH = 3, NKV = 1, HS = 12, QKV = (NH + 2 * NKV) * HS };
    struct HeadCase c = {.heads = {NH, NKV, HS}, .N = N};
    heads_positions(&c);
    floatX *w = put_normal(&c.w, 2 * HS, 1, 30), *x = put_normal(&c.qkv, N * QKV, 2, 31);
    floatX *all = new_x(N * QKV), *one = ops_at(ops, new_x(QKV + 1), 1);
    const struct Position how = {1e-6f, w, ops_at(ops, w, HS), put_floats(c.inv_freq, HS / 2)};
    const struct PositionSaved none = {NULL, NULL};
    int *position = put_ints(c.position, N);
    ops->copy(all, x, N * QKV * ops->element_size);
    ops->position_forward(all, &none, position, &how, &c.heads, N);
    for (int n = 0; n < N; n++) {
        size_t at = (size_t)n * QKV;
        ops->copy(one, ops_at(ops, x, at), QKV * ops->element_size);
        ops->position_forward(one, &none, position + n, &how, &c.heads, 1);
        check_same(one, ops_at(ops, all, at), QKV);
    }
    heads_close(&c);
}

/* ---- the references of backward passes ------------------------------------------------------- */

static void check_slopes(const char *name, double *x, const double *dx, size_t n,
                         double (*loss)(void *), void *context) {
    double one = 1;
    for (size_t i = 0; i < n; i++)
        ASSERT_CLOSE(name, fabs(slope_along(&x[i], &one, 1, loss, context) - dx[i]), 1e-8);
}

static void test_references_by_differences(void **state) {
    (void)state;
    enum { N = 3, C = 5, F = 4 };
    for (enum NormKind kind = NORM_LAYER; kind <= NORM_RMS; kind++) {
        struct NormCase c = {.kind = kind, .epsilon = 0.125, .N = N, .C = C};
        put_normal(&c.x, N * C, 1, 1), put_normal(&c.w, C, 1, 2), put_normal(&c.dout, N * C, 1, 3);
        c.out = new_doubles(N * C), c.rstd = new_doubles(N);
        c.dx = new_doubles(N * C), c.dw = new_doubles(C);
        norm_gradient(&c);
        check_slopes("norm dx", c.x, c.dx, N * C, norm_loss, &c);
        check_slopes("norm dw", c.w, c.dw, C, norm_loss, &c);
        free(c.x), free(c.w), free(c.dout), free(c.out), free(c.rstd), free(c.dx), free(c.dw);
    }
    struct MlpCase m = mlp_case(SWIGLU, N, C, F);
    struct MlpBackend b;
    mlp_open(&m, &b, true);
    memset(m.dw1, 0, 2 * F * C * sizeof(double)), memset(m.db1, 0, 2 * F * sizeof(double));
    mlp_loss(&m);
    mlp_gradient(&m);
    check_slopes("mlp dx", m.x, m.dx, N * C, mlp_loss, &m);
    check_slopes("mlp dw1", m.w1, m.dw1, 2 * F * C, mlp_loss, &m);
    check_slopes("mlp db1", m.b1, m.db1, 2 * F, mlp_loss, &m);
    mlp_close(&m);
    struct HeadCase h = {.heads = {2, 1, 6}, .N = 12, .norm = true, .rotation = true,
                         .epsilon = 0.25f};
    size_t nq = 12 * 4 * 6;
    heads_positions(&h);
    put_normal(&h.qkv, nq, 1, 1), put_normal(&h.w, 12, 1, 2), put_normal(&h.dout, nq, 1, 3);
    h.out = new_doubles(nq), h.dqkv = new_doubles(nq), h.dw = new_doubles(12);
    heads_gradient(&h);
    check_slopes("heads dqkv", h.qkv, h.dqkv, nq, heads_loss, &h);
    check_slopes("heads dw", h.w, h.dw, 12, heads_loss, &h);
    heads_close(&h);
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_references_by_differences),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_mlp),
        cmocka_unit_test(test_swiglu),
        cmocka_unit_test(test_mlp_decode),
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_heads_row_by_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
