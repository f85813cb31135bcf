/* Attention on packed rows and in the decode cache, against the definition in double. The double
   backward is itself checked by finite differences of the double forward. */
#include "test_ops.h"
#include <omp.h>

/* A packed batch. */
struct Shape {
    int NH, NKV, HS, B, N, QKV;
    int start[2048];
    int prompt[2048];   /* the row that is row b's prompt; -1: none */
};

static void set_lengths(struct Shape *s, const int *length, int B) {
    s->B = B;
    s->start[0] = 0;
    for (int b = 0; b < B; b++) s->start[b + 1] = s->start[b] + length[b], s->prompt[b] = -1;
    s->N = s->start[B];
    s->QKV = (s->NH + 2 * s->NKV) * s->HS;
}

static int row_length(const struct Shape *s, int b) { return s->start[b + 1] - s->start[b]; }

/* Of a row and its prompt. */
static int longest(const struct Shape *s) {
    int max = 0;
    for (int b = 0; b < s->B; b++) {
        int keys = row_length(s, b) + (s->prompt[b] < 0 ? 0 : row_length(s, s->prompt[b]));
        if (keys > max) max = keys;
    }
    return max;
}

/* ---- the definition, in double --------------------------------------------------------------- */

static const double *query(const double *qkv, const struct Shape *s, int n, int h) {
    return qkv + (size_t)n * s->QKV + (size_t)h * s->HS;
}
static const double *key(const double *qkv, const struct Shape *s, int n, int h) {
    return query(qkv, s, n, s->NH + h / (s->NH / s->NKV));
}
static const double *value(const double *qkv, const struct Shape *s, int n, int h) {
    return key(qkv, s, n, h) + s->NKV * s->HS;
}

static double dot(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* The tokens that token n of row b attends to; returns how many. */
static int keys_of(int *keys, const struct Shape *s, int b, int n) {
    int count = 0, prompt = s->prompt[b];
    for (int j = 0; prompt >= 0 && j < row_length(s, prompt); j++)
        keys[count++] = s->start[prompt] + j;
    for (int j = s->start[b]; j <= n; j++) keys[count++] = j;
    return count;
}

/* p [count] of query n, head h, over the tokens `keys`; returns lse. */
static double probabilities(double *p, const double *qkv, const struct Shape *s, const int *keys,
                            int count, int n, int h) {
    double max = -INFINITY, sum = 0;
    for (int j = 0; j < count; j++) {
        p[j] = dot(query(qkv, s, n, h), key(qkv, s, keys[j], h), s->HS) / sqrt(s->HS);
        max = fmax(max, p[j]);
    }
    for (int j = 0; j < count; j++) sum += exp(p[j] - max);
    for (int j = 0; j < count; j++) p[j] = exp(p[j] - max) / sum;
    return max + log(sum);
}

/* While `rounding` is set, the reference rounds to floatX what a backend rounds: what enters a
   product (e^(s - max) in forward, p and ds in backward), and results. Its distance from the exact
   one is then what the element type alone costs. */
static bool rounding;

static double rounded(double x) {
    if (!rounding) return x;
    int exponent, digits = -ilogb(rounding_unit());
    double fraction = frexp(x, &exponent);
    if (strcmp(ops->dtype, "fp16") == 0 && exponent < -13) digits += exponent + 13; /* denormal */
    return ldexp(nearbyint(ldexp(fraction, digits)), exponent - digits);
}

static void round_all(double *x, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = rounded(x[i]);
}

/* lse and entropy [NH,N] may be NULL. */
static void reference_forward(double *out, double *lse, double *entropy, const double *qkv,
                              const struct Shape *s) {
    double *p = new_doubles(s->N);
    int *keys = malloc((size_t)s->N * sizeof *keys);
    memset(out, 0, (size_t)s->N * s->NH * s->HS * sizeof *out);
    for (int b = 0; b < s->B; b++)
        for (int n = s->start[b]; n < s->start[b + 1]; n++)
            for (int h = 0; h < s->NH; h++) {
                int count = keys_of(keys, s, b, n);
                double l = probabilities(p, qkv, s, keys, count, n, h), H = 0, top = 0;
                for (int j = 0; j < count; j++) top = fmax(top, p[j]);
                for (int j = 0; j < count; j++) {
                    double weight = rounded(p[j] / top) * top;
                    for (int i = 0; i < s->HS; i++)
                        out[((size_t)n * s->NH + h) * s->HS + i] +=
                            weight * value(qkv, s, keys[j], h)[i];
                    if (p[j] > 0) H -= p[j] * log(p[j]);
                }
                if (lse) lse[(size_t)h * s->N + n] = l;
                if (entropy) entropy[(size_t)h * s->N + n] = H;
            }
    round_all(out, (size_t)s->N * s->NH * s->HS);
    free(p), free(keys);
}

static void reference_backward(double *dqkv, const double *dout, const double *out,
                               const double *qkv, const struct Shape *s) {
    double *p = new_doubles(s->N), *dp = new_doubles(s->N);
    int *keys = malloc((size_t)s->N * sizeof *keys);
    memset(dqkv, 0, (size_t)s->N * s->QKV * sizeof *dqkv);
    for (int b = 0; b < s->B; b++)
        for (int n = s->start[b]; n < s->start[b + 1]; n++)
            for (int h = 0; h < s->NH; h++) {
                size_t at = ((size_t)n * s->NH + h) * s->HS;
                const double *d = dout + at;
                int count = keys_of(keys, s, b, n);
                double delta = dot(d, out + at, s->HS);
                probabilities(p, qkv, s, keys, count, n, h);
                for (int j = 0; j < count; j++) dp[j] = dot(d, value(qkv, s, keys[j], h), s->HS);
                for (int j = 0; j < count; j++) {
                    double ds = rounded(p[j] * (dp[j] - delta)) / sqrt(s->HS);
                    double weight = rounded(p[j]);
                    double *dq = dqkv + (query(qkv, s, n, h) - qkv);
                    double *dk = dqkv + (key(qkv, s, keys[j], h) - qkv);
                    double *dv = dqkv + (value(qkv, s, keys[j], h) - qkv);
                    for (int i = 0; i < s->HS; i++) {
                        dq[i] += ds * key(qkv, s, keys[j], h)[i];
                        dk[i] += ds * query(qkv, s, n, h)[i];
                        dv[i] += weight * d[i];
                    }
                }
            }
    round_all(dqkv, (size_t)s->N * s->QKV);
    free(p), free(dp), free(keys);
}

struct Loss {
    const struct Shape *shape;
    const double *dout;
    double *qkv, *out;
};

static double loss_of(void *context) {
    struct Loss *l = context;
    reference_forward(l->out, NULL, NULL, l->qkv, l->shape);
    return dot(l->out, l->dout, l->shape->N * l->shape->NH * l->shape->HS);
}

static double *widen(const float *x, size_t n) {
    double *out = new_doubles(n);
    for (size_t i = 0; i < n; i++) out[i] = x[i];
    return out;
}

static void test_reference_by_differences(void **state) {
    (void)state;
    struct Shape s = {.NH = 4, .NKV = 2, .HS = 6};
    set_lengths(&s, (const int[]){1, 5, 9, 2}, 4);
    s.prompt[2] = s.prompt[3] = 1;
    size_t nq = (size_t)s.N * s.QKV, no = (size_t)s.N * s.NH * s.HS;
    float *x = new_normal(nq, 1, 1), *d = new_normal(no, 1, 2);
    double *qkv = widen(x, nq), *dout = widen(d, no), *out = new_doubles(no);
    double *dqkv = new_doubles(nq);
    struct Loss loss = {&s, dout, qkv, out};
    reference_forward(out, NULL, NULL, qkv, &s);
    reference_backward(dqkv, dout, out, qkv, &s);
    for (size_t i = 0; i < nq; i++) {
        double one = 1;
        double slope = slope_along(&qkv[i], &one, 1, loss_of, &loss);
        ASSERT_CLOSE("d loss / d qkv", fabs(slope - dqkv[i]), 1e-8);
    }
    free(x), free(d), free(qkv), free(dout), free(out), free(dqkv);
}

/* ---- training -------------------------------------------------------------------------------- */

/* Which builds run a case: the simulator is slow, and its checking builds are slower still. */
enum Where { EVERYWHERE, NOT_SLOW, CPU_ONLY };

struct Case {
    enum Where where;
    int NH, NKV, HS, B, length[8]; /* B < 0: -B rows of 1 to 16 tokens */
    float scale;                   /* of the inputs; 0: 1 */
    char prompts[9];               /* a letter for each row: P of a prompt, - of a row that the
                                      last prompt is of; else the row stands alone */
};

/* Rows end one before, at and one after 32, 64 and 128, the sizes of tiles; head sizes are the
   multiples of 16 and 32 that have code of their own, and odd ones whose rows are not aligned. */
static const struct Case cases[] = {
    {EVERYWHERE, 1, 1, 16, 1, {1}, 0, ""},
    {EVERYWHERE, 2, 1, 8, 3, {2, 1, 5}, 0, ""},
    {EVERYWHERE, 2, 1, 64, 2, {31, 129}, 0, ""},
    {EVERYWHERE, 3, 1, 20, 2, {15, 66}, 0, ""},
    {EVERYWHERE, 2, 2, 21, 1, {33}, 0, ""},
    {EVERYWHERE, 1, 1, 128, 2, {67, 1}, 0, ""},
    {EVERYWHERE, 1, 1, 6, -70, {0}, 0, ""},
    {EVERYWHERE, 3, 3, 80, 3, {32, 31, 128}, 0, ""},
    {EVERYWHERE, 2, 1, 32, 2, {127, 65}, 0, ""},
    {EVERYWHERE, 1, 1, 96, 2, {97, 64}, 0, ""},
    {NOT_SLOW, 2, 1, 128, 2, {129, 63}, 0, ""},
    {NOT_SLOW, 1, 1, 16, -1100, {0}, 0, ""},
    {NOT_SLOW, 1, 1, 64, 2, {200, 3}, 4, ""}, /* scores of +-128: nearly one-hot */
    {EVERYWHERE, 2, 1, 16, 4, {3, 2, 1, 5}, 0, "P--."},
    {EVERYWHERE, 2, 1, 64, 3, {31, 34, 1}, 0, "P--"},
    {EVERYWHERE, 2, 2, 20, 4, {1, 33, 64, 3}, 0, "P--."},
    {EVERYWHERE, 1, 1, 128, 3, {65, 2, 31}, 0, ".P-"},
    {NOT_SLOW, 3, 1, 32, 8, {7, 129, 66, 1, 64, 33, 65, 130}, 0, ".P--P---"},
    {NOT_SLOW, 4, 2, 21, 5, {150, 130, 3, 1, 20}, 2, "P---."},
    {NOT_SLOW, 2, 1, 96, 5, {32, 96, 64, 128, 17}, 0, "P--P-"},
    {NOT_SLOW, 2, 1, 64, 3, {270, 130, 1}, 0, "P--"}, /* several tiles of prompt and of row */
    {CPU_ONLY, 4, 2, 64, 7, {1, 2, 63, 64, 65, 130, 257}, 0, ""},
    {CPU_ONLY, 6, 6, 64, 8, {128, 64, 1, 257, 63, 300, 90, 2}, 0, "P---P---"},
    {CPU_ONLY, 6, 2, 32, 2, {100, 193}, 0, ""},
    {CPU_ONLY, 4, 4, 16, -512, {0}, 0, ""},
};

static bool runs_here(enum Where where) {
    return where == EVERYWHERE || is_cpu() || (where == NOT_SLOW && !is_slow());
}

static void shape_of(struct Shape *s, const struct Case *c) {
    static int length[2048];
    *s = (struct Shape){.NH = c->NH, .NKV = c->NKV, .HS = c->HS};
    for (int b = 0; b < 2048; b++) length[b] = 1 + (b * 7 + b / 16) % 16;
    if (c->B > 0) set_lengths(s, c->length, c->B);
    else set_lengths(s, length, -c->B);
    for (int b = 0, prompt = 0; c->prompts[0] && b < c->B; b++) {
        if (c->prompts[b] == 'P') prompt = b;
        if (c->prompts[b] == '-') s->prompt[b] = prompt;
    }
}

static void *workspace_of(const struct Shape *s) {
    struct OpsShape shape = {.N = s->N, .C = s->NH * s->HS, .F = 1, .NH = s->NH, .NKV = s->NKV,
                             .HS = s->HS, .V = 1, .Vp = 1, .max_T = longest(s), .R = 1,
                             .max_length = longest(s)};
    return new_workspace_of("attention", &shape);
}

/* What a training step makes of a batch; host arrays, by the backend or by the definition. */
struct Got {
    float *out, *lse, *entropy, *dqkv;
};
struct Expected {
    double *out, *lse, *entropy, *dqkv;
};

/* Everything is made twice, the second time without entropy, and must have the same bits. */
static struct Got run_backend(const struct Shape *s, const floatX *qkv, const floatX *dout) {
    size_t nq = (size_t)s->N * s->QKV, no = (size_t)s->N * s->NH * s->HS, nl = (size_t)s->NH * s->N;
    const struct Rows rows = put_rows(s->start, s->prompt, s->B);
    const struct Heads heads = {s->NH, s->NKV, s->HS};
    float *entropy = new_floats(nl);
    void *ws = workspace_of(s);
    struct Got got[2];
    for (int i = 0; i < 2; i++) {
        floatX *out = new_x(no), *dqkv = new_x(nq);
        float *lse = new_floats(nl);
        ops->attention_forward(out, lse, i ? NULL : entropy, qkv, &rows, &heads, ws);
        ops->attention_backward(dqkv, dout, out, qkv, lse, &rows, &heads, ws);
        got[i] = (struct Got){get_x(out, no), get_floats(lse, nl), NULL, get_x(dqkv, nq)};
    }
    assert_memory_equal(got[0].out, got[1].out, no * sizeof(float));
    assert_memory_equal(got[0].lse, got[1].lse, nl * sizeof(float));
    assert_memory_equal(got[0].dqkv, got[1].dqkv, nq * sizeof(float));
    free(got[1].out), free(got[1].lse), free(got[1].dqkv);
    got[0].entropy = get_floats(entropy, nl);
    return got[0];
}

static struct Expected run_reference(const struct Shape *s, const float *x, const float *d,
                                     bool round) {
    size_t nq = (size_t)s->N * s->QKV, no = (size_t)s->N * s->NH * s->HS, nl = (size_t)s->NH * s->N;
    struct Expected e = {new_doubles(no), new_doubles(nl), new_doubles(nl), new_doubles(nq)};
    double *qkv = widen(x, nq), *dout = widen(d, no);
    rounding = round;
    reference_forward(e.out, e.lse, e.entropy, qkv, s);
    reference_backward(e.dqkv, dout, e.out, qkv, s);
    rounding = false;
    free(qkv), free(dout);
    return e;
}

/* Columns [first, first + count) of x [N,stride]. `model` rounds where a backend does, so that both
   errors are of one size. They differ where a number is rounded to the other side of a tie, which
   hardly changes the sum of squares: the bound allows a quarter more. (One more rounding would add
   two fifths.) The error of the float32 arithmetic is compared with the size of all columns,
   because dq and dk are differences of terms of that size: 0 in the first token of a row. */
static void check_part(const char *name, const float *x, const double *exact, const double *model,
                       int N, int stride, int first, int count, double arithmetic) {
    double error = 0, cost = 0, norm = 0;
    for (size_t i = 0; i < (size_t)N * stride; i++) {
        int column = (int)(i % stride);
        norm += exact[i] * exact[i];
        if (column < first || column >= first + count) continue;
        error += (x[i] - exact[i]) * (x[i] - exact[i]);
        cost += (model[i] - exact[i]) * (model[i] - exact[i]);
    }
    ASSERT_CLOSE(name, sqrt(error), 1.25 * sqrt(cost) + arithmetic * sqrt(norm));
}

/* lse and entropy are float32 results of float32 arithmetic, whatever the element type. Scores of
   size S have absolute errors in proportion, and so have the logarithms of probabilities: 1e-6 is
   float32's share for scores of size 1 (bound_of); these are of size scale^2 + apart^2. Queries are
   lower and keys higher by `apart`: scores are about -apart^2 sqrt(HS). */
static void check_case(const struct Case *c, float apart) {
    struct Shape s;
    shape_of(&s, c);
    float scale = c->scale > 0 ? c->scale : 1;
    size_t nq = (size_t)s.N * s.QKV, no = (size_t)s.N * s.NH * s.HS, nl = (size_t)s.NH * s.N;
    int q = s.NH * s.HS, k = s.NKV * s.HS;
    float *x = new_normal(nq, scale, 3), *d = new_normal(no, 1, 4);
    for (size_t i = 0; i < nq; i++)
        x[i] += (int)(i % s.QKV) < q ? -apart : (int)(i % s.QKV) < q + k ? apart : 0;
    floatX *qkv = put_x(x, nq), *dout = put_x(d, no);
    struct Got got = run_backend(&s, qkv, dout);
    struct Expected exact = run_reference(&s, x, d, false), model = run_reference(&s, x, d, true);
    double arithmetic = 1e-6 * (scale * scale + apart * apart);

    ASSERT_CLOSE("lse", relative_l2(got.lse, exact.lse, nl), arithmetic);
    ASSERT_CLOSE("entropy", relative_l2(got.entropy, exact.entropy, nl), arithmetic);
    check_part("out", got.out, exact.out, model.out, s.N, q, 0, q, arithmetic);
    check_part("dq", got.dqkv, exact.dqkv, model.dqkv, s.N, s.QKV, 0, q, arithmetic);
    check_part("dk", got.dqkv, exact.dqkv, model.dqkv, s.N, s.QKV, q, k, arithmetic);
    check_part("dv", got.dqkv, exact.dqkv, model.dqkv, s.N, s.QKV, q + k, k, arithmetic);
    free(got.out), free(got.lse), free(got.entropy), free(got.dqkv), free(x), free(d);
    free(exact.out), free(exact.lse), free(exact.entropy), free(exact.dqkv);
    free(model.out), free(model.lse), free(model.entropy), free(model.dqkv);
    release_all();
}

static void test_training(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (runs_here(cases[i].where)) check_case(&cases[i], 0);
    /* Scores about -128: e^-lse is infinite, and a tile has zeroes behind a short prompt's keys. */
    check_case(&(struct Case){EVERYWHERE, 4, 2, 64, 4, {1, 9, 13, 6}, 0, "P---"}, 4);
}

/* A row's results depend on no other row: they keep their bits when both neighbours are NaN. */
static void check_apart(int HS) {
    struct Shape s = {.NH = 2, .NKV = 1, .HS = HS};
    set_lengths(&s, (const int[]){33, 70, 40}, 3);
    int first = s.start[1], end = s.start[2], count = end - first, C = s.NH * s.HS;
    float *x = new_normal((size_t)s.N * s.QKV, 1, 5), *d = new_normal((size_t)s.N * C, 1, 6);
    struct Got got[2];
    for (int i = 0; i < 2; i++) {
        got[i] = run_backend(&s, put_x(x, (size_t)s.N * s.QKV), put_x(d, (size_t)s.N * C));
        for (int n = 0; n < s.N; n++) {
            if (n >= first && n < end) continue;
            for (int j = 0; j < s.QKV; j++) x[(size_t)n * s.QKV + j] = NAN;
            for (int j = 0; j < C; j++) d[(size_t)n * C + j] = NAN;
        }
    }
    size_t row = (size_t)count * sizeof(float), q = (size_t)first * s.QKV, o = (size_t)first * C;
    assert_memory_equal(got[0].out + o, got[1].out + o, row * C);
    assert_memory_equal(got[0].dqkv + q, got[1].dqkv + q, row * s.QKV);
    for (int h = 0; h < s.NH; h++) {
        int at = h * s.N + first;
        assert_memory_equal(got[0].lse + at, got[1].lse + at, row);
        assert_memory_equal(got[0].entropy + at, got[1].entropy + at, row);
    }
    assert_false(isnan(got[1].dqkv[q]));
    assert_true(isnan(got[1].out[0]));
    for (int i = 0; i < 2; i++)
        free(got[i].out), free(got[i].lse), free(got[i].entropy), free(got[i].dqkv);
    free(x), free(d);
    release_all();
}

static void test_training_rows_apart(void **state) {
    (void)state;
    check_apart(20); /* rows that are not aligned */
    check_apart(64);
}

/* ---- decoding -------------------------------------------------------------------------------- */

enum { LAYERS = 2, LAYER = 1, PROMPTS = 3, TAILS = 6 };

/* Prompts, and completions each of which continues one. Lengths cross every internal block; prompt
   1 has no tokens of its own: its completions are all tail. */
struct Plan {
    int prompt_length[PROMPTS], prompt_capacity;
    int completion_prompt[TAILS], completion_length[TAILS], tail_capacity;
};
static const struct Plan plan_full = {
    {129, 0, 300}, 301, {0, 0, 2, 2, 2, 1}, {1, 140, 7, 129, 64, 33}, 141};
static const struct Plan plan_brief = {
    {129, 0, 9}, 131, {0, 2, 1, 2, 0, 1}, {1, 2, 130, 0, 2, 1}, 130};
static const struct Plan plan_tiny = {{5, 0, 1}, 5, {0, 0, 1, 2, 2, 2}, {3, 1, 2, 0, 1, 4}, 4};

/* One row of a decode step: its sequence in the packed reference, and its position there. */
struct Item {
    int sequence, position;
};

struct Decode {
    const struct Plan *plan;
    struct Shape shape;      /* the reference's rows: the prompts, then prompt + completion */
    float *x;                /* [N,QKV] */
    struct Item item[2048];  /* every token to decode, in an order that can be run one by one */
    int count;
};

/* How a step is laid out; none of it may show in a row's bits. */
struct Layout {
    int R;         /* items of a step */
    bool holes;    /* empty rows between the others, and a step of nothing else */
    bool shifted;  /* qkv begins at an odd address */
    bool promised; /* the backend is told what is true of the rows */
};

static int prompt_of(const struct Decode *d, int sequence) {
    return sequence < PROMPTS ? sequence : d->plan->completion_prompt[sequence - PROMPTS];
}

static void build_decode(struct Decode *d, const struct Plan *plan, int NH, int NKV, int HS) {
    int length[PROMPTS + TAILS];
    d->plan = plan;
    for (int s = 0; s < PROMPTS + TAILS; s++)
        length[s] = plan->prompt_length[prompt_of(d, s)] +
                    (s < PROMPTS ? 0 : plan->completion_length[s - PROMPTS]);
    d->shape = (struct Shape){.NH = NH, .NKV = NKV, .HS = HS};
    set_lengths(&d->shape, length, PROMPTS + TAILS);
    d->x = new_normal((size_t)d->shape.N * d->shape.QKV, 1, 7);
    d->count = 0;
    for (int s = 0; s < PROMPTS + TAILS; s++) {
        int P = plan->prompt_length[prompt_of(d, s)], first = d->shape.start[s];
        if (s >= PROMPTS) /* a completion repeats its prompt's numbers */
            memcpy(d->x + (size_t)first * d->shape.QKV,
                   d->x + (size_t)d->shape.start[prompt_of(d, s)] * d->shape.QKV,
                   (size_t)P * d->shape.QKV * sizeof *d->x);
        for (int k = s < PROMPTS ? 0 : P; k < length[s]; k++)
            d->item[d->count++] = (struct Item){s, k};
    }
    put_x(d->x, (size_t)d->shape.N * d->shape.QKV); /* rounded, where floatX is narrow */
    release_all();
}

/* Any bijections of prompts and completions to slots. */
static int prompt_slot_of(const struct Decode *d, int sequence) {
    return (prompt_of(d, sequence) + 1) % PROMPTS;
}
static int tail_slot_of(int sequence) { return TAILS + PROMPTS - 1 - sequence; }

/* row_of: the row of item i in its step. rows_of: the rows of a step of so many items. With holes,
   every third row and the last one are empty. */
static int row_of(int i, bool holes) { return holes ? i + i / 2 : i; }
static int rows_of(int items, bool holes) { return holes ? row_of(items, true) + 1 : items; }

/* The longest that any of the items attends to, and what else is true of all of them. */
static void promise_rows(struct DecodeRows *rows, const struct Decode *d, int first, int items) {
    int of_tail[TAILS] = {0};
    rows->tails_only = rows->tails_apart = true;
    for (int i = first; i < first + items; i++) {
        int P = d->plan->prompt_length[prompt_of(d, d->item[i].sequence)];
        int tail = d->item[i].position - P + 1, prompt = tail > 0 ? P : d->item[i].position + 1;
        if (prompt > rows->longest_prompt) rows->longest_prompt = prompt;
        if (tail > rows->longest_tail) rows->longest_tail = tail;
        if (tail <= 0) rows->tails_only = false;
        else if (of_tail[d->item[i].sequence - PROMPTS]++) rows->tails_apart = false;
    }
}

/* Decodes items [first, first + items) in one step; outputs go to host out, by reference token. */
static void decode_step(float *out, const struct Decode *d, const struct KvCache *cache, int first,
                        int items, const struct Layout *layout, void *workspace) {
    const struct Shape *s = &d->shape;
    int R = rows_of(items, layout->holes);
    size_t C = (size_t)s->NH * s->HS, n = (size_t)R * s->QKV, shift = layout->shifted;
    int *fields = malloc(4 * (size_t)R * sizeof *fields);
    float *x = malloc((n + shift) * sizeof *x);
    for (int r = 0; r < R; r++) { /* an empty row's other fields are nonsense */
        fields[r] = -1 - r;
        fields[R + r] = fields[3 * R + r] = -12345678;
        fields[2 * R + r] = r % 2 ? 12345678 : -12345678;
    }
    for (size_t i = 0; i < n + shift; i++) x[i] = NAN;
    for (int i = 0; i < items; i++) {
        struct Item item = d->item[first + i];
        int r = row_of(i, layout->holes);
        fields[r] = item.position;
        fields[R + r] = prompt_slot_of(d, item.sequence);
        fields[2 * R + r] = d->plan->prompt_length[prompt_of(d, item.sequence)];
        if (item.sequence >= PROMPTS) fields[3 * R + r] = tail_slot_of(item.sequence);
        memcpy(x + shift + (size_t)r * s->QKV,
               d->x + (size_t)(s->start[item.sequence] + item.position) * s->QKV,
               (size_t)s->QKV * sizeof *x);
    }
    int before = num_allocated, *placed = put_ints(fields, 4 * (size_t)R);
    struct DecodeRows rows = {.position = placed, .prompt_slot = placed + R,
                              .prompt_length = placed + 2 * R, .tail_slot = placed + 3 * R};
    if (layout->promised) promise_rows(&rows, d, first, items);
    floatX *qkv = ops_at(ops, put_x(x, n + shift), shift), *got = new_x(R * C);
    ops->attention_decode(got, qkv, cache, &rows, LAYER, R, workspace);
    float *host = get_x(got, R * C);
    for (int i = 0; i < items; i++) {
        struct Item item = d->item[first + i];
        memcpy(out + (s->start[item.sequence] + item.position) * C,
               host + row_of(i, layout->holes) * C, C * sizeof *out);
    }
    free(host), free(fields), free(x);
    while (num_allocated > before) ops->free(allocated[--num_allocated]);
}

/* The pool of the test: some pages are nobody's. Slots' pages are scattered: slot s, page i of its
   segment, prompts first, is page (7 n + 3) % pages of the pool, n = s * width + i. */
struct Pool {
    int *table, prompts, pages;   /* prompts: entries of the prompts' table, the tails' come next */
};

static struct Pool new_pool(const struct Plan *plan) {
    struct Pool pool = {.prompts = PROMPTS * kv_pages(plan->prompt_capacity)};
    int entries = pool.prompts + TAILS * kv_pages(plan->tail_capacity);
    pool.pages = entries + 2;
    while (pool.pages % 7 == 0) pool.pages++;
    pool.table = malloc((size_t)entries * sizeof *pool.table);
    for (int n = 0; n < entries; n++) pool.table[n] = (7 * n + 3) % pool.pages;
    return pool;
}

/* The pool [LAYERS][pages][2][NKV][KV_PAGE][HS] holds the keys and values of the decoded tokens of
   layer LAYER at their places, and NaN everywhere else. */
static void check_pool(const struct Decode *d, const floatX *elements, const struct Pool *pool) {
    const struct Shape *s = &d->shape;
    size_t head = (size_t)KV_PAGE * s->HS, n = (size_t)LAYERS * pool->pages * 2 * s->NKV * head;
    float *got = get_x(elements, n), *want = malloc(n * sizeof *want);
    int widths[] = {kv_pages(d->plan->prompt_capacity), kv_pages(d->plan->tail_capacity)};
    for (size_t i = 0; i < n; i++) want[i] = NAN;
    for (int i = 0; i < d->count; i++) {
        struct Item item = d->item[i];
        bool tail = item.sequence >= PROMPTS;
        int slot = tail ? tail_slot_of(item.sequence) : prompt_slot_of(d, item.sequence);
        int k = item.position - (tail ? d->plan->prompt_length[prompt_of(d, item.sequence)] : 0);
        int page = pool->table[(tail ? pool->prompts : 0) + slot * widths[tail] + k / KV_PAGE];
        const float *x = d->x + (size_t)(s->start[item.sequence] + item.position) * s->QKV;
        for (int j = 0; j < 2 * s->NKV; j++) /* keys, then values */
            memcpy(want + ((size_t)(LAYER * pool->pages + page) * 2 * s->NKV + j) * head +
                       (size_t)(k % KV_PAGE) * s->HS,
                   x + (s->NH + j) * s->HS, (size_t)s->HS * sizeof *x);
    }
    for (size_t i = 0; i < n; i++)
        assert_true(isnan(want[i]) ? isnan(got[i]) : got[i] == want[i]);
    free(got), free(want);
}

/* Everything decoded in steps of at most layout->R items, from a cache full of NaN. */
static float *decode_all(const struct Decode *d, const struct Layout *layout) {
    const struct Shape *s = &d->shape;
    int R = layout->R, prompts = d->plan->prompt_capacity, tails = d->plan->tail_capacity;
    size_t page = (size_t)LAYERS * 2 * s->NKV * KV_PAGE * s->HS;
    struct Pool pool = new_pool(d->plan);
    int widths[] = {kv_pages(prompts), kv_pages(tails)};
    int *table = put_ints(pool.table, (size_t)(pool.prompts + TAILS * widths[1]));
    struct KvCache cache = {new_x((size_t)pool.pages * page), table, table + pool.prompts,
                            {s->NH, s->NKV, s->HS}, LAYERS, pool.pages, PROMPTS, widths[0],
                            TAILS, widths[1]};
    struct OpsShape shape = {.N = 1, .C = s->NH * s->HS, .F = 1, .NH = s->NH, .NKV = s->NKV,
                             .HS = s->HS, .V = 1, .Vp = 1, .max_T = 1,
                             .R = rows_of(R, layout->holes), .max_length = prompts + tails};
    void *workspace = new_workspace_of("attention", &shape);
    float *out = calloc((size_t)s->N * s->NH * s->HS, sizeof *out);
    if (layout->holes) decode_step(out, d, &cache, 0, 0, layout, workspace);
    for (int first = 0; first < d->count; first += R)
        decode_step(out, d, &cache, first, first + R < d->count ? R : d->count - first, layout,
                    workspace);
    check_pool(d, cache.pool, &pool);
    free(pool.table);
    release_all();
    return out;
}

/* Against training's definition on whole sequences: prompts twice, once for themselves. */
static void check_decode(struct Decode *d, const float *out) {
    const struct Shape *s = &d->shape;
    size_t C = (size_t)s->NH * s->HS;
    double *qkv = widen(d->x, (size_t)s->N * s->QKV), *reference = new_doubles(s->N * C);
    reference_forward(reference, NULL, NULL, qkv, s);
    for (int i = 0; i < d->count; i++) {
        size_t at = (size_t)(s->start[d->item[i].sequence] + d->item[i].position) * C;
        ASSERT_CLOSE("decoded", relative_l2(out + at, reference + at, C), bound_of(4));
    }
    free(qkv), free(reference);
}

static void shuffle_items(struct Decode *d) {
    struct Rng rng;
    int *order = malloc((size_t)d->count * sizeof *order);
    struct Item *copy = malloc((size_t)d->count * sizeof *copy);
    for (int i = 0; i < d->count; i++) order[i] = i;
    rng_open(&rng, 1, RNG_TEST, 99);
    rng_shuffle(&rng, order, d->count);
    memcpy(copy, d->item, (size_t)d->count * sizeof *copy);
    for (int i = 0; i < d->count; i++) d->item[i] = copy[order[i]];
    free(order), free(copy);
}

/* A row's bits do not depend on how the steps are laid out: everything in one shuffled step, steps
   of few and many rows, empty rows between them, another alignment, and another number of threads
   give the same. */
static void check_layouts(const struct Plan *plan, int NH, int NKV, int HS) {
    struct Decode d;
    build_decode(&d, plan, NH, NKV, HS);
    const struct Layout layouts[] = {{7, true, false, true}, {1, false, false, true},
                                     {64, false, true, false}, {1, true, true, true}};
    const struct Layout whole = {d.count, true, true, false};
    const int num_layouts = plan == &plan_brief ? 1 : 4;
    size_t bytes = (size_t)d.shape.N * NH * HS * sizeof(float);
    float *reference = decode_all(&d, &layouts[0]);
    check_decode(&d, reference);
    for (int i = 1; i < num_layouts; i++) {
        float *out = decode_all(&d, &layouts[i]);
        assert_memory_equal(reference, out, bytes);
        free(out);
    }
    shuffle_items(&d);
    int threads = omp_get_max_threads();
    if (is_cpu()) omp_set_num_threads(threads + 1);
    float *shuffled = decode_all(&d, &whole);
    omp_set_num_threads(threads);
    assert_memory_equal(reference, shuffled, bytes);
    free(reference), free(shuffled), free(d.x);
}

/* Groups of 1 to 6 query heads; head sizes of every kind, from less than 16 bytes to 128. */
static void test_decode(void **state) {
    (void)state;
    static const int heads[][3] = {{2, 1, 64}, {5, 1, 21}, {3, 1, 80}, {6, 1, 128}, {2, 2, 3},
                                   {3, 3, 16}};
    for (int i = 0; i < 6; i++) {
        const int NH = heads[i][0], NKV = heads[i][1], HS = heads[i][2];
        check_layouts(&plan_tiny, 2 * NH, 2 * NKV, HS);
        if (is_cpu()) check_layouts(&plan_full, NH, NKV, HS);
        else if (i < (is_slow() ? 2 : 3)) check_layouts(&plan_brief, NH, NKV, HS);
    }
}

/* A recorded step stays right while positions grow, here beyond a block of keys. Row 1 is empty. */
static void test_decode_recorded(void **state) {
    (void)state;
    enum { R = 2, NH = 1, HS = 8, STEPS = 131, N = R * 3 * HS };
    float *all[2];
    struct OpsShape shape = {.N = 1, .C = HS, .F = 1, .NH = NH, .NKV = 1, .HS = HS, .V = 1,
                             .Vp = 1, .max_T = 1, .R = R, .max_length = STEPS + 1};
    for (int recorded = 0; recorded < 2; recorded++) {
        const int table[] = {0, 3, 1, 2};   /* the prompt's page; the tail's three */
        int *pages = put_ints(table, 4);
        struct KvCache cache = {new_x(4 * 2 * KV_PAGE * HS), pages, pages + 1, {NH, 1, HS}, 1, 4,
                                1, 1, 1, 3};
        int fields[4 * R] = {0}, *placed = put_ints(fields, 4 * R);
        struct DecodeRows rows = {.position = placed, .prompt_slot = placed + R,
                                  .prompt_length = placed + 2 * R, .tail_slot = placed + 3 * R};
        floatX *qkv = new_x(N), *out = new_x(R * HS);
        void *workspace = new_workspace_of("attention", &shape);
        all[recorded] = malloc(STEPS * HS * sizeof(float));
        for (int k = 0; k < STEPS; k++) {
            int positions[R] = {k, -1}, before = num_allocated;
            float *x = new_normal(N, 1, 100 + (uint64_t)k);
            ops->upload(placed, positions, sizeof positions);
            ops->copy(qkv, put_x(x, N), N * ops->element_size);
            if (!recorded || ops->graph_begin("decode", 6)) {
                ops->attention_decode(out, qkv, &cache, &rows, 0, R, workspace);
                if (recorded) ops->graph_end();
            }
            float *row = get_x(out, HS);
            memcpy(all[recorded] + k * HS, row, HS * sizeof *row);
            free(row), free(x);
            while (num_allocated > before) ops->free(allocated[--num_allocated]);
        }
        release_all();
    }
    assert_memory_equal(all[0], all[1], STEPS * HS * sizeof(float));
    free(all[0]), free(all[1]);
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_by_differences),
        cmocka_unit_test(test_training),
        cmocka_unit_test(test_training_rows_apart),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_decode_recorded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
