/* Attention on packed rows and in the decode cache, against the definition in double. The double
   backward is itself checked by finite differences of the double forward. */
#include "test_ops.h"
#include <omp.h>

/* A packed batch. */
struct Shape {
    int NH, NKV, HS, B, N, QKV;
    int start[600];
};

static void set_lengths(struct Shape *s, const int *length, int B) {
    s->B = B;
    s->start[0] = 0;
    for (int b = 0; b < B; b++) s->start[b + 1] = s->start[b] + length[b];
    s->N = s->start[B];
    s->QKV = (s->NH + 2 * s->NKV) * s->HS;
}

static int longest(const struct Shape *s) {
    int max = 0;
    for (int b = 0; b < s->B; b++)
        if (s->start[b + 1] - s->start[b] > max) max = s->start[b + 1] - s->start[b];
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

/* p [n - first + 1] of query n, head h, whose row starts at token `first`; returns lse. */
static double probabilities(double *p, const double *qkv, const struct Shape *s, int first, int n,
                            int h) {
    double max = -INFINITY, sum = 0;
    for (int j = first; j <= n; j++) {
        p[j - first] = dot(query(qkv, s, n, h), key(qkv, s, j, h), s->HS) / sqrt(s->HS);
        max = fmax(max, p[j - first]);
    }
    for (int j = first; j <= n; j++) sum += exp(p[j - first] - max);
    for (int j = first; j <= n; j++) p[j - first] = exp(p[j - first] - max) / sum;
    return max + log(sum);
}

/* lse and entropy [NH,N] may be NULL. */
static void reference_forward(double *out, double *lse, double *entropy, const double *qkv,
                              const struct Shape *s) {
    double *p = new_doubles(s->N);
    memset(out, 0, (size_t)s->N * s->NH * s->HS * sizeof *out);
    for (int b = 0; b < s->B; b++)
        for (int n = s->start[b]; n < s->start[b + 1]; n++)
            for (int h = 0; h < s->NH; h++) {
                double l = probabilities(p, qkv, s, s->start[b], n, h), H = 0;
                for (int j = s->start[b]; j <= n; j++) {
                    double pj = p[j - s->start[b]];
                    for (int i = 0; i < s->HS; i++)
                        out[((size_t)n * s->NH + h) * s->HS + i] += pj * value(qkv, s, j, h)[i];
                    if (pj > 0) H -= pj * log(pj);
                }
                if (lse) lse[(size_t)h * s->N + n] = l;
                if (entropy) entropy[(size_t)h * s->N + n] = H;
            }
    free(p);
}

static void reference_backward(double *dqkv, const double *dout, const double *qkv,
                               const struct Shape *s) {
    double *p = new_doubles(s->N), *dp = new_doubles(s->N);
    memset(dqkv, 0, (size_t)s->N * s->QKV * sizeof *dqkv);
    for (int b = 0; b < s->B; b++)
        for (int n = s->start[b]; n < s->start[b + 1]; n++)
            for (int h = 0; h < s->NH; h++) {
                const double *d = dout + ((size_t)n * s->NH + h) * s->HS;
                int first = s->start[b];
                double mean = 0;
                probabilities(p, qkv, s, first, n, h);
                for (int j = first; j <= n; j++) {
                    dp[j - first] = dot(d, value(qkv, s, j, h), s->HS);
                    mean += p[j - first] * dp[j - first];
                }
                for (int j = first; j <= n; j++) {
                    double ds = p[j - first] * (dp[j - first] - mean) / sqrt(s->HS);
                    double *dq = dqkv + (query(qkv, s, n, h) - qkv);
                    double *dk = dqkv + (key(qkv, s, j, h) - qkv);
                    double *dv = dqkv + (value(qkv, s, j, h) - qkv);
                    for (int i = 0; i < s->HS; i++) {
                        dq[i] += ds * key(qkv, s, j, h)[i];
                        dk[i] += ds * query(qkv, s, n, h)[i];
                        dv[i] += p[j - first] * d[i];
                    }
                }
            }
    free(p), free(dp);
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
    set_lengths(&s, (const int[]){1, 5, 9}, 3);
    size_t nq = (size_t)s.N * s.QKV, no = (size_t)s.N * s.NH * s.HS;
    float *x = new_normal(nq, 1, 1), *d = new_normal(no, 1, 2);
    double *qkv = widen(x, nq), *dout = widen(d, no), *out = new_doubles(no);
    double *dqkv = new_doubles(nq);
    struct Loss loss = {&s, dout, qkv, out};
    reference_backward(dqkv, dout, qkv, &s);
    for (size_t i = 0; i < nq; i++) {
        double one = 1;
        double slope = slope_along(&qkv[i], &one, 1, loss_of, &loss);
        ASSERT_CLOSE("d loss / d qkv", fabs(slope - dqkv[i]), 1e-8);
    }
    free(x), free(d), free(qkv), free(dout), free(out), free(dqkv);
}

/* ---- training -------------------------------------------------------------------------------- */

struct Case {
    int NH, NKV, HS, B, length[8]; /* B = 0: 512 rows of 1 to 16 tokens */
    float scale;                   /* of the inputs */
    double slack;                  /* times the bound: large scores lose digits before exp */
};

static const struct Case cases[] = {
    {1, 1, 16, 1, {1}, 1, 1},
    {2, 1, 8, 2, {2, 1}, 1, 1},
    {4, 2, 64, 7, {1, 2, 63, 64, 65, 130, 257}, 1, 1},
    {3, 3, 80, 3, {129, 31, 128}, 1, 1},
    {6, 2, 32, 2, {100, 193}, 1, 1},
    {2, 2, 96, 2, {70, 64}, 1, 1},
    {3, 1, 20, 2, {15, 66}, 1, 1},
    {4, 4, 16, 0, {0}, 1, 1},
    {2, 2, 64, 3, {200, 3, 77}, 4, 100}, /* scores of +-128: nearly one-hot */
};

static void shape_of(struct Shape *s, const struct Case *c) {
    int length[512];
    *s = (struct Shape){.NH = c->NH, .NKV = c->NKV, .HS = c->HS};
    for (int b = 0; b < 512; b++) length[b] = 1 + (b * 7 + b / 16) % 16;
    if (c->B) set_lengths(s, c->length, c->B);
    else set_lengths(s, length, 512);
}

static void *workspace_of(const struct Shape *s) {
    struct OpsShape shape = {.N = s->N, .C = s->NH * s->HS, .F = 1, .NH = s->NH, .NKV = s->NKV,
                             .HS = s->HS, .V = 1, .Vp = 1, .max_T = longest(s), .R = 1,
                             .max_length = longest(s)};
    return new_workspace(&shape);
}

/* out and dqkv are made twice (the second time without entropy) and must have the same bits. */
static void check_case(const struct Case *c) {
    struct Shape s;
    shape_of(&s, c);
    size_t nq = (size_t)s.N * s.QKV, no = (size_t)s.N * s.NH * s.HS, nl = (size_t)s.NH * s.N;
    float *x = new_normal(nq, c->scale, 3), *d = new_normal(no, 1, 4);
    floatX *qkv = put_x(x, nq), *dout = put_x(d, no);
    floatX *out = new_x(no), *out2 = new_x(no), *dqkv = new_x(nq), *dqkv2 = new_x(nq);
    float *lse = new_floats(nl), *entropy = new_floats(nl);
    int *start = put_ints(s.start, s.B + 1), T = longest(&s);
    void *ws = workspace_of(&s);
    ops->attention_forward(out, lse, entropy, qkv, start, s.B, s.N, T, s.NH, s.NKV, s.HS, ws);
    ops->attention_backward(dqkv, dout, out, qkv, lse, start, s.B, s.N, T, s.NH, s.NKV, s.HS, ws);
    ops->attention_forward(out2, lse, NULL, qkv, start, s.B, s.N, T, s.NH, s.NKV, s.HS, ws);
    ops->attention_backward(dqkv2, dout, out2, qkv, lse, start, s.B, s.N, T, s.NH, s.NKV, s.HS, ws);

    double *qkv_d = widen(x, nq), *dout_d = widen(d, no), *out_d = new_doubles(no);
    double *lse_d = new_doubles(nl), *entropy_d = new_doubles(nl), *dqkv_d = new_doubles(nq);
    reference_forward(out_d, lse_d, entropy_d, qkv_d, &s);
    reference_backward(dqkv_d, dout_d, qkv_d, &s);
    check_x("out", out, out_d, no, c->slack * bound_of(4));
    check_floats("lse", lse, lse_d, nl, bound_of(1));
    check_floats("entropy", entropy, entropy_d, nl, c->slack * bound_of(1));
    check_x("dqkv", dqkv, dqkv_d, nq, c->slack * bound_of(8));
    float *a = get_x(out, no), *b = get_x(out2, no), *e = get_x(dqkv, nq), *f = get_x(dqkv2, nq);
    assert_memory_equal(a, b, no * sizeof *a);
    assert_memory_equal(e, f, nq * sizeof *e);
    free(a), free(b), free(e), free(f), free(x), free(d);
    free(qkv_d), free(dout_d), free(out_d), free(lse_d), free(entropy_d), free(dqkv_d);
    release_all();
}

static void test_training(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) check_case(&cases[i]);
}

/* ---- decoding -------------------------------------------------------------------------------- */

enum { LAYERS = 2, LAYER = 1, PROMPTS = 3, PROMPT_CAPACITY = 301, TAILS = 6, TAIL_CAPACITY = 141 };

/* Completions: which prompt each continues, and how far. Prompt 1 is nobody's; prompt lengths cross
   every internal block. */
static const int prompt_length[PROMPTS] = {129, 1, 300};
static const int completion_prompt[TAILS] = {0, 0, 2, 2, 2, 0};
static const int completion_length[TAILS] = {1, 140, 7, 129, 64, 33};

/* One row of a decode step: its sequence in the packed reference, and its position there. */
struct Item {
    int sequence, position;
};

struct Decode {
    struct Shape shape;      /* the reference's rows: the prompts, then prompt + completion */
    float *x;                /* [N,QKV] */
    struct Item item[2048];  /* every token to decode, in an order that can be run one by one */
    int count;
};

static int prompt_of(int sequence) {
    return sequence < PROMPTS ? sequence : completion_prompt[sequence - PROMPTS];
}

static void build_decode(struct Decode *d, int NH, int NKV, int HS) {
    int length[PROMPTS + TAILS];
    for (int s = 0; s < PROMPTS + TAILS; s++)
        length[s] =
            prompt_length[prompt_of(s)] + (s < PROMPTS ? 0 : completion_length[s - PROMPTS]);
    d->shape = (struct Shape){.NH = NH, .NKV = NKV, .HS = HS};
    set_lengths(&d->shape, length, PROMPTS + TAILS);
    d->x = new_normal((size_t)d->shape.N * d->shape.QKV, 1, 7);
    d->count = 0;
    for (int s = 0; s < PROMPTS + TAILS; s++) {
        int P = prompt_length[prompt_of(s)], first = d->shape.start[s];
        if (s >= PROMPTS) /* a completion repeats its prompt's numbers */
            memcpy(d->x + (size_t)first * d->shape.QKV,
                   d->x + (size_t)d->shape.start[prompt_of(s)] * d->shape.QKV,
                   (size_t)P * d->shape.QKV * sizeof *d->x);
        for (int k = s < PROMPTS ? 0 : P; k < length[s]; k++)
            d->item[d->count++] = (struct Item){s, k};
    }
    put_x(d->x, (size_t)d->shape.N * d->shape.QKV); /* rounded, where floatX is narrow */
    release_all();
}

/* Decodes items [first, first + R) in one step; outputs go to host out, by reference token. */
static void decode_step(float *out, const struct Decode *d, const struct KvCache *cache, int first,
                        int R, void *workspace) {
    const struct Shape *s = &d->shape;
    size_t C = (size_t)s->NH * s->HS;
    int *fields = malloc(4 * (size_t)R * sizeof *fields);
    float *x = malloc((size_t)R * s->QKV * sizeof *x);
    for (int r = 0; r < R; r++) {
        struct Item item = d->item[first + r];
        fields[r] = item.position;
        fields[R + r] = (prompt_of(item.sequence) + 1) % PROMPTS; /* any bijection */
        fields[2 * R + r] = prompt_length[prompt_of(item.sequence)];
        fields[3 * R + r] = item.sequence < PROMPTS ? -12345 : TAILS + PROMPTS - 1 - item.sequence;
        memcpy(x + (size_t)r * s->QKV,
               d->x + (size_t)(s->start[item.sequence] + item.position) * s->QKV,
               (size_t)s->QKV * sizeof *x);
    }
    int before = num_allocated, *placed = put_ints(fields, 4 * (size_t)R);
    struct DecodeRows rows = {.position = placed, .prompt_slot = placed + R,
                              .prompt_length = placed + 2 * R, .tail_slot = placed + 3 * R};
    floatX *qkv = put_x(x, (size_t)R * s->QKV), *got = new_x(R * C);
    ops->attention_decode(got, qkv, cache, &rows, LAYER, R, s->NH, workspace);
    float *host = get_x(got, R * C);
    for (int r = 0; r < R; r++) {
        struct Item item = d->item[first + r];
        memcpy(out + (s->start[item.sequence] + item.position) * C, host + r * C, C * sizeof *out);
    }
    free(host), free(fields), free(x);
    while (num_allocated > before) ops->free(allocated[--num_allocated]);
}

/* Everything decoded in steps of at most R rows, from a cache full of NaN. */
static float *decode_all(const struct Decode *d, int R) {
    const struct Shape *s = &d->shape;
    size_t segment = (size_t)2 * s->NKV * s->HS;
    size_t np = LAYERS * PROMPTS * segment * PROMPT_CAPACITY;
    size_t nt = LAYERS * TAILS * segment * TAIL_CAPACITY;
    struct KvCache cache = {new_x(np), new_x(nt), LAYERS, s->NKV, s->HS, PROMPTS, PROMPT_CAPACITY,
                            TAILS, TAIL_CAPACITY};
    struct OpsShape shape = {.N = 1, .C = s->NH * s->HS, .F = 1, .NH = s->NH, .NKV = s->NKV,
                             .HS = s->HS, .V = 1, .Vp = 1, .max_T = 1, .R = R,
                             .max_length = PROMPT_CAPACITY + TAIL_CAPACITY};
    void *workspace = new_workspace(&shape);
    float *out = calloc((size_t)s->N * s->NH * s->HS, sizeof *out);
    for (int first = 0; first < d->count; first += R)
        decode_step(out, d, &cache, first, first + R < d->count ? R : d->count - first, workspace);
    float *prompt = get_x(cache.prompt, np / LAYERS * LAYER); /* the layer before is untouched */
    float *tail = get_x(cache.tail, nt / LAYERS * LAYER);
    for (size_t i = 0; i < np / LAYERS; i++) assert_true(isnan(prompt[i]));
    for (size_t i = 0; i < nt / LAYERS; i++) assert_true(isnan(tail[i]));
    free(prompt), free(tail);
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

/* A row's bits are its own: steps of 1, 7, 64 rows, everything in one shuffled step, and another
   number of threads give the same. */
static void test_decode(void **state) {
    (void)state;
    const int heads[][3] = {{4, 2, 64}, {3, 3, 16}, {2, 1, 80}, {2, 2, 21}};
    for (int i = 0; i < 4; i++) {
        struct Decode d;
        build_decode(&d, heads[i][0], heads[i][1], heads[i][2]);
        size_t bytes = (size_t)d.shape.N * d.shape.NH * d.shape.HS * sizeof(float);
        float *single = decode_all(&d, 1), *seven = decode_all(&d, 7), *many = decode_all(&d, 64);
        check_decode(&d, single);
        assert_memory_equal(single, seven, bytes);
        assert_memory_equal(single, many, bytes);
        shuffle_items(&d);
        int threads = omp_get_max_threads();
        omp_set_num_threads(threads + 1);
        float *shuffled = decode_all(&d, d.count);
        omp_set_num_threads(threads);
        assert_memory_equal(single, shuffled, bytes);
        free(single), free(seven), free(many), free(shuffled), free(d.x);
    }
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_by_differences),
        cmocka_unit_test(test_training),
        cmocka_unit_test(test_decode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
