/* The head against its definition in double: logp, H, Q, R, and the gradients of
   J = sum_i a_i logp_i + b_i H_i, which are themselves checked by central differences.

   "Exact" cases have inputs that are multiples of 1/16 (and of 1 where they are large), which every
   dtype holds, so every logit is exact in float32 in any order of summation: what errs is the head,
   not the product. Logits are float32 in all backends, whatever E and W are. */
#include "test_ops.h"
#include <omp.h>

enum { NORMAL, EXACT };

static const struct Case {
    const char *name;
    int N, n, C, V, Vp, data;
    float inv_temperature;
    int live_every;    /* only every so-many-th token has coefficients; 0: most have */
} cases[] = {
    /* larger than every block in every dimension, and ragged: rows, vocabulary, parts */
    {"many chunks", 1937, 1549, 29, 4133, 4160, EXACT, 1, 0},
    {"wide vocabulary", 300, 277, 13, 12993, 13056, EXACT, 1, 0},
    {"long chunks", 6600, 6407, 11, 27, 32, EXACT, 1, 0},
    {"two tiles", 1801, 1801, 21, 601, 601, EXACT, 0.5f, 0},
    {"long sums", 80, 71, 1031, 535, 536, NORMAL, 1, 0},
    {"temperature", 333, 301, 67, 1111, 1112, NORMAL, 1 / 0.7f, 0},
    {"whole vectors", 170, 150, 72, 1301, 1304, EXACT, 1, 0}, /* rows of 16 bytes: copied whole */
    {"few live rows", 420, 390, 16, 27, 32, EXACT, 1, 5},
    {"few live rows, many words", 500, 450, 13, 3001, 3008, EXACT, 1, 5},
    {"one row", 1, 1, 5, 1029, 1032, EXACT, 1, 0},
    {"one of many rows", 50, 1, 5, 77, 80, EXACT, 1, 0},
    {"no row", 9, 0, 5, 33, 40, EXACT, 1, 0},
    {"two words", 40, 33, 5, 2, 8, EXACT, 1, 0},
    {"one word", 12, 11, 5, 1, 1, EXACT, 1, 0},
};
enum { NUM_CASES = sizeof cases / sizeof *cases };

/* A simulated GPU is slow by the row: it takes fewer, but still more than the 2048 of a chunk where
   there are few words. */
static struct Case case_here(struct Case c) {
    if (strncmp(ops->name, "sim", 3) != 0 && !is_slow()) return c;
    int others = c.N - c.n, most = c.V < 100 ? 2085 : is_slow() ? 37 : 150;
    if (c.n > most) c.n = most, c.N = most + others;
    return c;
}

/* A case with its data, on the host and in the backend, and what must come out. */
struct Problem {
    struct Case size;
    float *E, *W, *a, *b, *dW;    /* [N,C] [Vp,C] [n] [n] [Vp,C]; dW: what is there before */
    int *row, *target;            /* [n] */
    floatX *E_device, *W_device;
    int *row_device, *target_device;
    void *workspace;
    double *Ed, *Wt;              /* [N,C] [C,V]: E and W transposed, in double */
    double *logp, *H, *Q, *QL;    /* [n] */
    double *dE, *dWt;             /* [N,C] [C,V] */
    double *dE_size, *dWt_size;   /* sums of the terms' absolute values: the scale of roundings */
    double largest_logit;
};

/* The word of the peaked rows: not in the first tile. */
static int peak_word(int V) { return V * 5 / 8; }

/* Rows with which heads of other programs have given wrong results. The last two columns of E steer
   them: W has 100 in column C-1 and, in column C-2, 1 for the peak word and 0 for all others. */
static void make_exact_rows(struct Problem *p) {
    int N = p->size.N, C = p->size.C, V = p->size.V;
    for (int v = 0; v < V; v++) {
        p->W[(size_t)v * C + C - 1] = 100;
        p->W[(size_t)v * C + C - 2] = v == peak_word(V);
    }
    const float offset[] = {0, -100, 3, -3, 0, 0}, peak[] = {0, 0, 0, 0, 240, 0};
    for (int i = 0; i < N; i++) {
        float *e = p->E + (size_t)i * C;
        e[C - 1] = offset[i % 6]; /* z about -1e4, +300, -300 */
        e[C - 2] = peak[i % 6];
        if (i % 6 == 5) memset(e, 0, C * sizeof *e); /* uniform */
    }
}

static float round_to_lattice(float x) {
    x = x > 7 ? 7 : x < -7 ? -7 : x;
    return roundf(x * 16) / 16;
}

static void make_data(struct Problem *p) {
    struct Case c = p->size;
    size_t NE = (size_t)c.N * c.C, NW = (size_t)c.Vp * c.C;
    bool exact = c.data == EXACT;
    p->E = new_normal(NE + 1, 1, 1);
    p->W = new_normal(NW, exact ? 0.7f : 2 / sqrtf((float)c.C), 2);
    p->dW = new_normal(NW, 0.1f, 3);
    p->a = new_normal(c.n + 1, 1, 4), p->b = new_normal(c.n + 1, 0.3f, 5);
    p->row = malloc((c.n + 1) * sizeof *p->row), p->target = malloc((c.n + 1) * sizeof *p->target);
    for (size_t i = 0; exact && i < NE; i++) p->E[i] = round_to_lattice(p->E[i]);
    for (size_t i = 0; exact && i < NW; i++) p->W[i] = round_to_lattice(p->W[i]);
    if (exact) make_exact_rows(p);
    struct Rng rng;
    rng_open(&rng, 1, RNG_TEST, 6);
    int *all = malloc((c.N + 1) * sizeof *all);
    for (int i = 0; i < c.N; i++) all[i] = i;
    rng_shuffle(&rng, all, c.N);
    for (int i = 0; i < c.n; i++) {
        p->row[i] = all[i];
        p->target[i] = i % 4 == 1 ? peak_word(c.V) : (int)rng_below(&rng, c.V);
        if (i % 7 == 3) p->a[i] = p->b[i] = 0;
        if (i % 7 == 4) p->b[i] = 0;
        if (i % 7 == 5) p->a[i] = 0;
        if (c.live_every && i % c.live_every != c.live_every - 1) p->a[i] = p->b[i] = 0;
    }
    free(all);
/* Padding is finite, but so large that one of its logits, if it were counted, would outweigh all
       others. */
    for (size_t i = (size_t)c.V * c.C; i < NW; i++) p->W[i] = i % 2 ? 3e4f : -3e4f;
    p->E_device = put_x(p->E, NE);
    p->W_device = put_x(p->W, NW);
    p->row_device = put_ints(p->row, c.n), p->target_device = put_ints(p->target, c.n);
    struct OpsShape shape = {.N = c.N, .C = c.C, .V = c.V, .Vp = c.Vp};
    p->workspace = new_workspace_of("head", &shape);
}

/* Of the version that takes log p from the rounded e^(z-m) again, by an instruction that errs by
   2^-22 even where the logarithm is 0: what that adds to the size of a term. */
static double of_logarithm(void) {
    const struct KernelFile *last = ops->num_files ? ops->files[ops->num_files - 1] : NULL;
    return last && strcmp(last->name, "head_hopper_gradient") == 0 ? 1e-4 : 0;
}

/* The definition, for one row: statistics, dz, and both gradients added. z, p: scratch [V]. */
static void reference_row(struct Problem *q, int i, double *z, double *p) {
    int C = q->size.C, V = q->size.V, y = q->target[i];
    const double *e = q->Ed + (size_t)q->row[i] * C;
    double *dE = q->dE + (size_t)q->row[i] * C, sum = 0, H = 0, Q = 0, R = 0;
    for (int v = 0; v < V; v++) z[v] = 0;
    for (int d = 0; d < C; d++)
        for (int v = 0; v < V; v++) z[v] += e[d] * q->Wt[(size_t)d * V + v];
    double m = -INFINITY;
    for (int v = 0; v < V; v++) {
        z[v] *= q->size.inv_temperature;
        m = fmax(m, z[v]);
        q->largest_logit = fmax(q->largest_logit, fabs(z[v]));
    }
    for (int v = 0; v < V; v++) sum += exp(z[v] - m);
    for (int v = 0; v < V; v++) {
        z[v] = (z[v] - m) - log(sum); /* log p from here on */
        p[v] = exp(z[v]);
        H -= p[v] * z[v], Q += p[v] * p[v], R += p[v] * p[v] * z[v];
    }
    q->logp[i] = z[y], q->H[i] = H, q->Q[i] = Q, q->QL[i] = R;
    double *size = z;
    for (int v = 0; v < V; v++) { /* d logp = 1[y] - p, dH = -p (log p + H) */
        double a = q->size.inv_temperature * q->a[i], b = q->size.inv_temperature * q->b[i];
        double share = p[v], log_p = z[v];
        p[v] = a * ((v == y) - share) - b * share * (log_p + H);
        size[v] = fabs(a) * ((v == y) + share) + fabs(b) * share * (H - log_p + of_logarithm());
    }
    double *dE_size = q->dE_size + (size_t)q->row[i] * C;
    for (int d = 0; d < C; d++) {
        const double *w = q->Wt + (size_t)d * V;
        double *dw = q->dWt + (size_t)d * V, *dw_size = q->dWt_size + (size_t)d * V;
        double slope = 0, slope_size = 0;
        for (int v = 0; v < V; v++) {
            slope += p[v] * w[v], slope_size += size[v] * fabs(w[v]);
            dw[v] += p[v] * e[d], dw_size[v] += size[v] * fabs(e[d]);
        }
        dE[d] = slope, dE_size[d] = slope_size;
    }
}

static void compute_reference(struct Problem *p) {
    struct Case c = p->size;
    double *z = new_doubles(c.V), *probability = new_doubles(c.V);
    memset(p->dWt, 0, (size_t)c.C * c.V * sizeof *p->dWt);
    memset(p->dWt_size, 0, (size_t)c.C * c.V * sizeof *p->dWt_size);
    for (int i = 0; i < c.n; i++) reference_row(p, i, z, probability);
    free(z), free(probability);
}

static struct Problem *problem_open(struct Case size) {
    struct Problem *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->size = size;
    make_data(p);
    size_t rows = size.n + 1;
    p->logp = new_doubles(4 * rows);
    p->H = p->logp + rows, p->Q = p->H + rows, p->QL = p->Q + rows;
    size_t NE = (size_t)size.N * size.C, NW = (size_t)size.V * size.C;
    p->Ed = new_doubles(3 * NE), p->dE = p->Ed + NE, p->dE_size = p->dE + NE;
    p->Wt = new_doubles(3 * NW), p->dWt = p->Wt + NW, p->dWt_size = p->dWt + NW;
    for (size_t i = 0; i < NE; i++) p->Ed[i] = p->E[i];
    for (int v = 0; v < size.V; v++)
        for (int d = 0; d < size.C; d++)
            p->Wt[(size_t)d * size.V + v] = p->W[(size_t)v * size.C + d];
    compute_reference(p);
    return p;
}

static void problem_close(struct Problem *p) {
    free(p->E), free(p->W), free(p->a), free(p->b), free(p->dW), free(p->row), free(p->target);
    free(p->Ed), free(p->Wt), free(p->logp), free(p);
    release_all();
}

/* ---- calling the operations ------------------------------------------------------------------ */

struct Output {
    float *stats;      /* host [4][n]: logp, entropy, q, qlog */
    float *dE, *dW;    /* host copies */
};

/* What upstream checks: rows come in order, once each, on the calling thread, with statistics. */
struct Calls {
    const struct Problem *problem;
    float *seen; /* [4][n] */
    int next;
};

static struct HeadStats stats_at(float *four, int n) {
    return (struct HeadStats){four, four + n, four + 2 * n, four + 3 * n};
}

static void upstream(void *context, int first_row, int rows, const struct HeadStats *stats,
                     float *dlogp, float *dentropy) {
    struct Calls *calls = context;
    const struct Problem *p = calls->problem;
    int n = p->size.n;
    assert_int_equal(first_row, calls->next);
    assert_true(rows > 0 && first_row + rows <= n);
    assert_false(omp_in_parallel());
    calls->next += rows;
    struct HeadStats seen = stats_at(calls->seen, n);
    memcpy(seen.logp + first_row, stats->logp, rows * sizeof(float));
    memcpy(seen.entropy + first_row, stats->entropy, rows * sizeof(float));
    memcpy(seen.q + first_row, stats->q, rows * sizeof(float));
    memcpy(seen.qlog + first_row, stats->qlog, rows * sizeof(float));
    memcpy(dlogp, p->a + first_row, rows * sizeof *dlogp);
    memcpy(dentropy, p->b + first_row, rows * sizeof *dentropy);
}

static struct Head head_of(const struct Problem *p) {
    const struct Case *c = &p->size;
    return (struct Head){c->C, c->V, c->Vp, c->inv_temperature};
}

/* n of the problem's tokens from `first` on. */
static struct HeadTokens tokens_of(const struct Problem *p, int first, int n) {
    return (struct HeadTokens){p->row_device + first, p->target_device + first, n, p->size.N};
}

static float *score(const struct Problem *p) {
    struct Case c = p->size;
    float *four = calloc(4 * c.n + 1, sizeof *four);
    struct HeadStats stats = stats_at(four, c.n);
    const struct HeadTokens tokens = tokens_of(p, 0, c.n);
    const struct Head head = head_of(p);
    ops->head_forward(&stats, p->E_device, p->W_device, &tokens, &head, p->workspace);
    return four;
}

/* frozen: the weight's gradient is not wanted, and what comes out is what was there. */
static struct Output differentiate_with(const struct Problem *p, bool frozen) {
    struct Case c = p->size;
    struct Output out = {.stats = calloc(4 * c.n + 1, sizeof(float))};
    struct HeadStats stats = stats_at(out.stats, c.n);
    const struct HeadTokens tokens = tokens_of(p, 0, c.n);
    const struct Head head = head_of(p);
    struct Calls calls = {p, calloc(4 * c.n + 1, sizeof(float)), 0};
    floatX *dE = new_x((size_t)c.N * c.C);
    float *dW = put_floats(p->dW, (size_t)c.Vp * c.C);
    ops->head_forward_backward(&stats, dE, frozen ? NULL : dW, p->E_device, p->W_device, &tokens,
                               &head, upstream, &calls, p->workspace);
    assert_int_equal(calls.next, c.n);
    assert_memory_equal(calls.seen, out.stats, 4 * c.n * sizeof(float));
    free(calls.seen);
    out.dE = get_x(dE, (size_t)c.N * c.C);
    out.dW = get_floats(dW, (size_t)c.Vp * c.C);
    return out;
}

static struct Output differentiate(const struct Problem *p) { return differentiate_with(p, false); }

static void output_free(struct Output out) { free(out.stats), free(out.dE), free(out.dW); }

/* ---- the tests ------------------------------------------------------------------------------- */

/* In the exact cases only exp, log and the sums err, by about 1e-6 in all where they are vector
   code and by 3e-6 where a tile's 512 terms are added one after another (-O1). Otherwise a logit of
   size z errs by a few roundings of its terms; or, where tensor cores cut off the sum of each 8
   products instead of rounding it, by up to C/8 such errors of 2^-23. */
static double stats_bound(const struct Problem *p) {
    bool narrow = strcmp(ops->products, "fp32") != 0;
    double logit = narrow ? fmax(4 * 0x1p-24, p->size.C * 0x1p-26) : 4 * 0x1p-24;
    return 5e-6 + (p->size.data == EXACT ? 0 : logit * p->largest_logit);
}

static void check_stats(const struct Problem *p, const float *four) {
    struct HeadStats got = stats_at((float *)four, p->size.n);
    double bound = stats_bound(p);
    for (int i = 0; i < p->size.n; i++) {
        const char *name = p->size.name;
        /* a log-probability of -240 has ulps of 1.5e-5 */
        ASSERT_CLOSE(name, fabs(got.logp[i] - p->logp[i]), bound - 1e-7 * p->logp[i]);
        ASSERT_CLOSE(name, fabs(got.entropy[i] - p->H[i]), bound);
        /* relative, and of three sums: q (or r), s and s */
        ASSERT_CLOSE(name, fabs(got.q[i] - p->Q[i]), 3 * bound * p->Q[i]);
        ASSERT_CLOSE(name, fabs(got.qlog[i] - p->QL[i]), 3 * bound * (p->Q[i] - p->QL[i]));
    }
}

/* Each element against the absolute values of its own terms: a product is a sum that may cancel.
   Uniform rows are its worst case: hundreds of equal terms, each addition rounded the same way, err
   by up to 512 * 2^-25 = 1.5e-5; on a GPU, whose library may add all K terms in a chain, K * 2^-25.
   dz and dE are rounded to floatX, once each; where that is fp16 a small one is rounded to a
   multiple of 2^-24, so each dz may err by 2^-25 of what it multiplies. (1e-35: float32 ends.) */
static void check_gradients(const struct Problem *p, struct Output out) {
    size_t N = p->size.N, n = p->size.n, C = p->size.C, V = p->size.V, Vp = p->size.Vp;
    double chain = strcmp(ops->name, "cuda") == 0 ? (double)(V > n ? V : n) * 0x1p-25 : 0;
    double bound = stats_bound(p) + fmax(1.5e-5, chain) + 2 * rounding_unit();
    double least = strcmp(ops->dtype, "fp16") == 0 ? 0x1p-25 : 0;
    double *W_sum = new_doubles(2 * C), *E_sum = W_sum + C; /* of the absolute values, by column */
    for (size_t v = 0; v < V; v++)
        for (size_t d = 0; d < C; d++) W_sum[d] += fabs((double)p->W[v * C + d]);
    for (size_t i = 0; i < n; i++)
        for (size_t d = 0; d < C; d++) E_sum[d] += fabs((double)p->E[(size_t)p->row[i] * C + d]);
    for (size_t i = 0; i < N * C; i++)
        ASSERT_CLOSE(p->size.name, fabs(out.dE[i] - p->dE[i]),
                     bound * p->dE_size[i] + least * (1 + W_sum[i % C]) + 1e-35);
    for (size_t v = 0; v < V; v++)
        for (size_t d = 0; d < C; d++) {
            double before = p->dW[v * C + d], error = out.dW[v * C + d] - before;
            error -= p->dWt[d * V + v];
            double size = fabs(before) + p->dWt_size[d * V + v];
            ASSERT_CLOSE(p->size.name, fabs(error), bound * size + least * E_sum[d]);
        }
    free(W_sum);
    assert_memory_equal(out.dW + V * C, p->dW + V * C, (Vp - V) * C * sizeof(float));
}

static void test_against_definition(void **state) {
    (void)state;
    for (int k = 0; k < NUM_CASES; k++) {
        struct Problem *p = problem_open(case_here(cases[k]));
        float *four = score(p);
        check_stats(p, four);
        struct Output out = differentiate(p);
        check_stats(p, out.stats);
        check_gradients(p, out);
        output_free(out);
        free(four);
        problem_close(p);
    }
}

/* Rows without coefficients, and rows that are not listed, have gradient 0: not small, 0. */
static void test_zero_rows(void **state) {
    (void)state;
    struct Case size = {"zero rows", 700, 531, 11, 4200, 4224, EXACT, 1, 0};
    struct Problem *p = problem_open(case_here(size));
    struct Case c = p->size;
    struct Output out = differentiate(p);
    bool *listed = calloc(c.N, sizeof *listed);
    for (int i = 0; i < c.n; i++) listed[p->row[i]] = p->a[i] != 0 || p->b[i] != 0;
    for (int i = 0; i < c.N; i++)
        for (int d = 0; d < c.C && !listed[i]; d++) assert_true(out.dE[(size_t)i * c.C + d] == 0);
    output_free(out);
    free(listed);
    memset(p->a, 0, c.n * sizeof *p->a), memset(p->b, 0, c.n * sizeof *p->b);
    /* finite hidden states whose logits overflow: still 0 (fp16 has no such numbers) */
    if (strcmp(ops->dtype, "fp16") != 0)
        for (int d = 0; d < c.C; d++) p->E[(size_t)p->row[5] * c.C + d] = 3e38f;
    p->E_device = put_x(p->E, (size_t)c.N * c.C);
    out = differentiate(p);
    for (size_t i = 0; i < (size_t)c.N * c.C; i++) assert_true(out.dE[i] == 0);
    assert_memory_equal(out.dW, p->dW, (size_t)c.Vp * c.C * sizeof(float));
    output_free(out);
    problem_close(p);
}

static void assert_same_gradients(const struct Problem *p, struct Output x, struct Output y) {
    struct Case c = p->size;
    assert_memory_equal(x.dE, y.dE, (size_t)c.N * c.C * sizeof(float));
    assert_memory_equal(x.dW, y.dW, (size_t)c.Vp * c.C * sizeof(float));
}

/* Hidden states of tokens without coefficients change no bit of a gradient, finite or not. */
static void test_dead_rows_not_finite(void **state) {
    (void)state;
    const struct Case sizes[] = {{"dead rows", 700, 531, 11, 4200, 4224, EXACT, 1, 0},
                                 {"dead rows, few words", 700, 531, 11, 27, 32, EXACT, 1, 3}};
    for (int k = 0; k < 2; k++) {
        struct Problem *p = problem_open(case_here(sizes[k]));
        struct Case c = p->size;
        struct Output finite = differentiate(p);
        float *E = get_x(p->E_device, (size_t)c.N * c.C);
        for (int i = 0; i < c.n; i++)
            if (p->a[i] == 0 && p->b[i] == 0)
                for (int d = 0; d < c.C; d++) E[(size_t)p->row[i] * c.C + d] = d ? NAN : INFINITY;
        p->E_device = put_x(E, (size_t)c.N * c.C);
        struct Output out = differentiate(p);
        assert_same_gradients(p, finite, out);
        output_free(finite), output_free(out);
        free(E);
        problem_close(p);
    }
}

/* A frozen head: the gradient of the hidden states keeps its bits, the weight's is not touched. */
static void test_frozen_weight(void **state) {
    (void)state;
    struct Case size = {"frozen", 400, 333, 21, 1111, 1112, NORMAL, 1, 0};
    struct Problem *p = problem_open(case_here(size));
    struct Case c = p->size;
    struct Output both = differentiate(p), one = differentiate_with(p, true);
    assert_memory_equal(both.dE, one.dE, (size_t)c.N * c.C * sizeof(float));
    assert_memory_equal(both.stats, one.stats, 4 * c.n * sizeof(float));
    assert_memory_equal(one.dW, p->dW, (size_t)c.Vp * c.C * sizeof(float));
    output_free(both), output_free(one);
    problem_close(p);
}

/* The same bits from every call, with one thread and with many, and whichever statistics are asked
   for. */
static void test_repeatable(void **state) {
    (void)state;
    struct Case size = {"repeatable", 600, 555, 67, 5003, 5008, NORMAL, 1, 0};
    struct Problem *p = problem_open(case_here(size));
    struct Case c = p->size;
    int threads = omp_get_max_threads();
    struct Output first = differentiate(p);
    float *scored = score(p);
    omp_set_num_threads(1);
    struct Output again = differentiate(p);
    float *scored_again = score(p);
    omp_set_num_threads(threads);
    assert_memory_equal(first.stats, again.stats, 4 * c.n * sizeof(float));
    assert_memory_equal(first.dE, again.dE, (size_t)c.N * c.C * sizeof(float));
    assert_memory_equal(first.dW, again.dW, (size_t)c.Vp * c.C * sizeof(float));
    assert_memory_equal(scored, scored_again, 4 * c.n * sizeof(float));

    const struct HeadTokens tokens = tokens_of(p, 0, c.n);
    const struct Head head = head_of(p);
    float *logp = calloc(c.n, sizeof *logp), *H = calloc(c.n, sizeof *H);
    struct HeadStats some = {.logp = logp}, other = {.logp = logp, .entropy = H};
    ops->head_forward(&some, p->E_device, p->W_device, &tokens, &head, p->workspace);
    assert_memory_equal(logp, scored, c.n * sizeof *logp);
    ops->head_forward(&other, p->E_device, p->W_device, &tokens, &head, p->workspace);
    assert_memory_equal(H, scored + c.n, c.n * sizeof *H);
    struct HeadStats none = {0};
    struct Calls calls = {p, calloc(4 * c.n, sizeof(float)), 0};
    floatX *dE = new_x((size_t)c.N * c.C);
    float *dW = put_floats(p->dW, (size_t)c.Vp * c.C);
    ops->head_forward_backward(&none, dE, dW, p->E_device, p->W_device, &tokens, &head,
                               upstream, &calls, p->workspace);
    assert_memory_equal(calls.seen, first.stats, 4 * c.n * sizeof(float));
    free(calls.seen), free(logp), free(H), free(scored), free(scored_again);
    output_free(first), output_free(again);
    problem_close(p);
}

/* A GPU scores a row with the same bits whatever the other rows are and wherever the row is. */
static void test_row_alone(void **state) {
    (void)state;
    if (is_cpu()) return; /* BLAS does not promise it */
    struct Problem *p = problem_open((struct Case){"alone", 170, 150, 72, 301, 304, NORMAL, 1, 0});
    struct Case c = p->size;
    const struct Head head = head_of(p);
    float *all = score(p), alone[4];
    const int some[] = {0, 1, 63, 127, 128, 149};
    for (size_t k = 0; k < sizeof some / sizeof *some; k++) {
        struct HeadStats one = stats_at(alone, 1);
        const struct HeadTokens token = tokens_of(p, some[k], 1);
        ops->head_forward(&one, p->E_device, p->W_device, &token, &head, p->workspace);
        for (int stat = 0; stat < 4; stat++)
            assert_memory_equal(alone + stat, all + stat * c.n + some[k], sizeof *alone);
    }
    free(all);
    problem_close(p);
}

/* A NaN in one row of hidden states: the row's statistics are NaN, other rows keep their bits, and
   nothing crashes. */
static void test_not_finite(void **state) {
    (void)state;
    struct Problem *p = problem_open((struct Case){"not finite", 9, 9, 5, 700, 704, NORMAL, 1, 0});
    float *before = score(p), *E = get_x(p->E_device, 9 * 5);
    E[(size_t)p->row[4] * 5] = NAN;
    p->E_device = put_x(E, 9 * 5);
    float *after = score(p);
    for (int i = 0; i < 9; i++) {
        if (i == 4) assert_true(isnan(after[i]) && isnan(after[9 + i]));
        else assert_true(after[i] == before[i] && after[9 + i] == before[9 + i]);
    }
    free(before), free(after), free(E);
    problem_close(p);
}

/* The reference itself: its gradients are the slopes of J along random directions. */
static double objective_in_double(void *context) {
    struct Problem *p = context;
    compute_reference(p);
    double J = 0;
    for (int i = 0; i < p->size.n; i++) J += p->a[i] * p->logp[i] + p->b[i] * p->H[i];
    return J;
}

static void check_slope(const char *name, struct Problem *p, double *x, const double *gradient,
                        size_t n) {
    float *random = new_normal(n, 1, 9);
    double *direction = new_doubles(n), analytic = 0;
    for (size_t i = 0; i < n; i++) {
        direction[i] = random[i];
        analytic += gradient[i] * direction[i];
    }
    double slope = slope_along(x, direction, n, objective_in_double, p);
    compute_reference(p);
    ASSERT_CLOSE(name, fabs(slope - analytic), 1e-7 * fabs(analytic));
    free(random), free(direction);
}

static void test_reference(void **state) {
    (void)state;
    struct Problem *p = problem_open((struct Case){"reference", 7, 6, 5, 23, 24, NORMAL, 1.25f, 0});
    check_slope("dE", p, p->Ed, p->dE, (size_t)p->size.N * p->size.C);
    check_slope("dW", p, p->Wt, p->dWt, (size_t)p->size.V * p->size.C);
    problem_close(p);
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference),
        cmocka_unit_test(test_against_definition),
        cmocka_unit_test(test_zero_rows),
        cmocka_unit_test(test_dead_rows_not_finite),
        cmocka_unit_test(test_frozen_weight),
        cmocka_unit_test(test_repeatable),
        cmocka_unit_test(test_row_alone),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
