/* The operations of a decode step but attention: the packed product, and drawing a token. Each
   against its definition in double; and bit by bit against itself in other batches, for a row's
   bits may not depend on its neighbours. */
#include "test_ops.h"
#include <omp.h>

static bool is_simulated(void) { return strncmp(ops->name, "sim", 3) == 0; }

/* ---- matmul_decode --------------------------------------------------------------------------- */

static const void *pack(const floatX *w, int C, int OC) {
    size_t bytes = ops->matmul_packed_size(C, OC);
    if (bytes == 0) return w;
    void *packed = new_poison(bytes);
    ops->matmul_pack(packed, w, C, OC);
    return packed;
}

static void check_matmul(int R, int C, int OC, bool biased) {
    float *x = new_normal((size_t)R * C, 1, 1), *w = new_normal((size_t)OC * C, 1, 2);
    float *bias = new_normal(OC, 2, 3);
    floatX *x_device = put_x(x, (size_t)R * C), *w_device = put_x(w, (size_t)OC * C);
    floatX *bias_device = put_x(bias, OC), *out = new_x((size_t)R * OC);
    ops->matmul_decode(out, x_device, pack(w_device, C, OC), biased ? bias_device : NULL, R, C, OC);
    float *got = get_x(out, (size_t)R * OC);
    for (int r = 0; r < R; r++)
        for (int o = 0; o < OC; o++) {
            double sum = biased ? bias[o] : 0, size = fabs(sum);
            for (int k = 0; k < C; k++) {
                double term = (double)x[(size_t)r * C + k] * w[(size_t)o * C + k];
                sum += term, size += fabs(term);
            }
            double bound = bound_of(1) * size;
            char name[96];
            snprintf(name, sizeof name, "R %d C %d OC %d, row %d column %d", R, C, OC, r, o);
            ASSERT_CLOSE(name, fabs(got[(size_t)r * OC + o] - sum), bound);
        }
    free(x), free(w), free(bias), free(got);
    release_all();
}

static void test_matmul(void **state) {
    (void)state;
    for (int R = 1; R <= 29; R++) /* every height of a row part */
        check_matmul(R, 37, 70, R % 2);
    check_matmul(64, 131, 97, true);
    check_matmul(200, 19, 33, true);
    check_matmul(3, 1031, 65, false);
    check_matmul(5, 48, 31, true);
    check_matmul(2, 1, 1, true);
    /* rows of whole vectors: few rows and a long sum, then tiles narrow and wide */
    check_matmul(8, 776, 24, true);
    check_matmul(70, 136, 40, true);
    check_matmul(131, 72, 328, false);
    /* long sums and few tiles: each is shared by several blocks of a GPU */
    check_matmul(20, 1544, 24, true);
    check_matmul(50, 1032, 40, false);
    check_matmul(is_slow() ? 70 : 150, 776, 24, true);
}

/* Rows that are multiplied alone and in batches. */
struct BitRows {
    int ROWS, C, OC;
    float *x;            /* [ROWS,C] */
    const void *packed;
    floatX *bias;
};

/* out [R,OC] = of rows order[0..R); the caller frees. */
static float *multiply_rows(const struct BitRows *b, const int *order, int R) {
    size_t C = b->C;
    float *batch = malloc(R * C * sizeof *batch);
    for (int i = 0; i < R; i++) memcpy(batch + i * C, b->x + order[i] * C, C * sizeof *batch);
    floatX *out = new_x((size_t)R * b->OC);
    ops->matmul_decode(out, put_x(batch, R * C), b->packed, b->bias, R, b->C, b->OC);
    free(batch);
    return get_x(out, (size_t)R * b->OC);
}

/* The rows of some batches, in shuffled order, have the bits they have alone; even beside NaN. */
static void check_matmul_bits(int ROWS, int C, int OC) {
    float *x = new_normal((size_t)ROWS * C, 1, 1), *w = new_normal((size_t)OC * C, 1, 2);
    float *bias = new_normal(OC, 1, 3), **alone = malloc(ROWS * sizeof *alone);
    struct BitRows rows = {ROWS, C, OC, x, pack(put_x(w, (size_t)OC * C), C, OC), put_x(bias, OC)};
    int batches[] = {1, 7, 13, 14, 17, ROWS}, *order = malloc(ROWS * sizeof *order);
    x[(size_t)(ROWS - 1) * C] = NAN;
    for (int r = 0; r < ROWS; r++) {
        order[r] = r;
        alone[r] = multiply_rows(&rows, order + r, 1);
    }
    struct Rng rng;
    rng_open(&rng, 5, RNG_TEST, 0);
    int threads = omp_get_max_threads();
    for (int b = 0; b < 12; b++) {
        if (b % 2 && !is_cpu()) continue;
        rng_shuffle(&rng, order, ROWS);
        omp_set_num_threads(b % 2 ? 1 : threads);
        float *got = multiply_rows(&rows, order, batches[b / 2]);
        for (int i = 0; i < batches[b / 2]; i++)
            if (order[i] != ROWS - 1)
                assert_memory_equal(got + (size_t)i * OC, alone[order[i]], OC * sizeof *got);
        free(got);
    }
    omp_set_num_threads(threads);
    for (int r = 0; r < ROWS; r++) free(alone[r]);
    free(x), free(w), free(bias), free(alone), free(order);
    release_all();
}

/* A GPU has tiles for few rows and for more, which it takes by how many of them fill it (a
   simulated one has 4 multiprocessors); blocks share a tile in the second case. */
static void test_matmul_bits(void **state) {
    (void)state;
    check_matmul_bits(64, 131, 97);
    check_matmul_bits(is_slow() ? 18 : 66, 776, 24);
    check_matmul_bits(is_slow() ? 30 : 64, 72, 264);
    if (!is_simulated()) check_matmul_bits(70, 264, 9000);
}

/* ---- head_sample ----------------------------------------------------------------------------- */

/* R rows about to be drawn. Inputs are multiples of 1/16, so logits are exact in float32. */
struct Batch {
    int R, C, V, Vp;
    float inv_temperature;
    float *E, *W; /* [R,C] [Vp,C] */
    int *position;
    uint32_t *sample, *ordinal, key[2];
    floatX *E_device, *W_device;
    const void *packed;
    void *workspace;
};

struct Drawn {
    int *token;
    float *logp, *entropy;
};

static struct Batch batch_open(int R, int C, int V, int Vp, float inv_temperature) {
    struct Batch b = {R, C, V, Vp, inv_temperature, .key = {77, 1u << 31}};
    size_t NW = (size_t)Vp * C, real = (size_t)V * C;
    b.E = new_normal((size_t)R * C, 1, 1), b.W = new_normal(NW, 0.7f, 2);
    for (size_t i = 0; i < (size_t)R * C; i++) b.E[i] = roundf(fminf(b.E[i], 7) * 16) / 16;
    for (size_t i = 0; i < NW; i++) b.W[i] = roundf(fminf(b.W[i], 7) * 16) / 16;
    b.position = malloc(R * sizeof(int));
    b.sample = malloc(R * sizeof(uint32_t)), b.ordinal = malloc(R * sizeof(uint32_t));
    for (int i = 0; i < R; i++) {
        b.position[i] = 3 * i % 11;
        b.sample[i] = i % 16, b.ordinal[i] = 4000000000u + i / 16;
    }
    /* padding must not be drawn, nor counted: its logits are larger than any other */
    for (size_t i = real; i < NW; i++) b.W[i] = i % 2 ? 3e4f : -3e4f;
    b.W_device = put_x(b.W, NW);
    b.packed = pack(b.W_device, C, Vp);
    b.workspace =
        new_workspace_of("sample", &(struct OpsShape){.N = R, .C = C, .V = V, .Vp = Vp, .R = R});
    return b;
}

static void batch_close(struct Batch *b) {
    free(b->E), free(b->W), free(b->position), free(b->sample), free(b->ordinal);
    release_all();
}

/* Draws for rows order[0..R) of the batch (NULL: all, in order). */
static struct Drawn draw(struct Batch *b, const int *order, int R) {
    float *E = malloc((size_t)R * b->C * sizeof *E);
    int *position = malloc(R * sizeof *position);
    uint32_t *sample = malloc(R * sizeof *sample), *ordinal = malloc(R * sizeof *ordinal);
    for (int i = 0; i < R; i++) {
        int from = order ? order[i] : i;
        memcpy(E + (size_t)i * b->C, b->E + (size_t)from * b->C, b->C * sizeof *E);
        position[i] = b->position[from];
        sample[i] = b->sample[from], ordinal[i] = b->ordinal[from];
    }
    struct DecodeRows rows = {.position = put_ints(position, R),
                              .sample = put_bytes(sample, R * sizeof *sample),
                              .ordinal = put_bytes(ordinal, R * sizeof *ordinal)};
    b->E_device = put_x(E, (size_t)R * b->C);
    int *token = new_poison(R * sizeof *token);
    float *logp = new_floats(R), *entropy = new_floats(R);
    const struct Head head = {b->C, b->V, b->Vp, b->inv_temperature};
    ops->head_sample(token, logp, entropy, b->E_device, b->packed, &rows, b->key, &head, R,
                     b->workspace);
    struct Drawn drawn = {malloc(R * sizeof(int)), get_floats(logp, R), get_floats(entropy, R)};
    ops->download(drawn.token, token, R * sizeof *token);
    free(E), free(position), free(sample), free(ordinal);
    return drawn;
}

static void drawn_free(struct Drawn d) { free(d.token), free(d.logp), free(d.entropy); }

/* z [V] of row i in double, before the temperature. */
static void reference_logits(double *z, const struct Batch *b, int i) {
    for (int v = 0; v < b->V; v++) {
        z[v] = 0;
        for (int d = 0; d < b->C; d++)
            z[v] += (double)b->E[(size_t)i * b->C + d] * b->W[(size_t)v * b->C + d];
    }
}

/* z becomes log p; returns the entropy. */
static double log_softmax(double *z, int V) {
    double m = -INFINITY, sum = 0, entropy = 0;
    for (int v = 0; v < V; v++) m = fmax(m, z[v]);
    for (int v = 0; v < V; v++) sum += exp(z[v] - m);
    for (int v = 0; v < V; v++) {
        z[v] -= m + log(sum);
        entropy -= exp(z[v]) * z[v];
    }
    return entropy;
}

/* The Gumbel noise of word v: -log(-log u). */
static double reference_noise(const struct Batch *b, int i, int v) {
    uint32_t out[4], counter[4] = {(uint32_t)v / 4, (uint32_t)b->position[i] + 1, b->sample[i],
                                   b->ordinal[i]};
    philox(out, counter, b->key);
    return -log(-log((double)rng_uniform(out[v % 4])));
}

/* The token is the reference's, or one whose score is as good within the logits' error. */
static void check_draws(struct Batch *b) {
    struct Drawn drawn = draw(b, NULL, b->R);
    double *z = new_doubles(b->V), *score = new_doubles(b->V);
    bool greedy = b->inv_temperature == 0;
    for (int i = 0; i < b->R; i++) {
        double best = -INFINITY, largest = 0;
        reference_logits(z, b, i);
        for (int v = 0; v < b->V; v++) {
            z[v] *= greedy ? 1 : b->inv_temperature;
            score[v] = z[v] + (greedy ? 0 : reference_noise(b, i, v));
            best = fmax(best, score[v]), largest = fmax(largest, fabs(z[v]));
        }
        int token = drawn.token[i];
        assert_in_range(token, 0, b->V - 1);
        /* logits are exact, whatever the dtype: what errs is exp, log and their sums, and a score
           near z is rounded to 2^-24 of it, in the winner and in the best */
        double slack = 4e-6 + 0x1p-23 * largest;
        ASSERT_CLOSE("score", best - score[token], slack);
        double H = log_softmax(z, b->V);
        ASSERT_CLOSE("logp", fabs(drawn.logp[i] - z[token]), slack);
        ASSERT_CLOSE("entropy", fabs(drawn.entropy[i] - H), slack);
    }
    free(z), free(score);
    drawn_free(drawn);
}

static void test_draws_against_definition(void **state) {
    (void)state;
    /* R, C, V, Vp: larger than every block, ragged; single tiles, rows and words; rows of whole
       vectors, with each height of a GPU's tiles; more of these to merge than a block has threads.
       The first two are not for slow builds. */
    const int sizes[][4] = {{70, 29, 4133, 4160}, {300, 16, 24, 32},  {13, 37, 512, 512},
                            {14, 37, 513, 520},   {1, 5, 1537, 1544}, {3, 5, 1, 8},
                            {53, 7, 2, 2},        {16, 264, 131, 136}, {40, 72, 259, 264},
                            {131, 136, 150, 152}, {2, 8, 32900, 32904}};
    const float inv_temperatures[] = {1, 0.5f, 2, 0};
    for (size_t k = is_slow() ? 2 : 0; k < sizeof sizes / sizeof *sizes; k++)
        for (int t = 0; t < (sizes[k][2] > 10000 ? 1 : 4); t++) {
            const int *s = sizes[k];
            struct Batch b = batch_open(s[0], s[1], s[2], s[3], inv_temperatures[t]);
            check_draws(&b);
            batch_close(&b);
        }
}

/* The log-probability recorded when sampling must equal the one that training computes, so that the
   first update's ratio is 1. */
static void test_sample_agrees_with_head(void **state) {
    (void)state;
    struct Batch b = is_slow() ? batch_open(20, 67, 389, 392, 1 / 0.7f)
                               : batch_open(64, 67, 4133, 4160, 1 / 0.7f);
    int *rows = malloc(b.R * sizeof *rows);
    for (int i = 0; i < b.R; i++) rows[i] = i;
    struct Drawn drawn = draw(&b, NULL, b.R);
    float *logp = malloc(b.R * sizeof *logp), *entropy = malloc(b.R * sizeof *entropy);
    struct HeadStats stats = {.logp = logp, .entropy = entropy};
    const struct Head head = {b.C, b.V, b.Vp, b.inv_temperature};
    const struct HeadTokens tokens = {put_ints(rows, b.R), put_ints(drawn.token, b.R), b.R, b.R};
    const struct OpsShape shape = {.N = b.R, .C = b.C, .V = b.V, .Vp = b.Vp};
    ops->head_forward(&stats, b.E_device, b.W_device, &tokens, &head,
                      new_workspace_of("head", &shape));
    for (int i = 0; i < b.R; i++) { /* the logits are exact in both */
        ASSERT_CLOSE("logp", fabs(logp[i] - drawn.logp[i]), 1e-5);
        ASSERT_CLOSE("entropy", fabs(entropy[i] - drawn.entropy[i]), 1e-5);
    }
    free(rows), free(logp), free(entropy);
    drawn_free(drawn);
    batch_close(&b);
}

/* 100 000 draws of one row (8000 where a GPU is simulated) against its softmax: Pearson's statistic
   over words that are expected at least 20 times, the rest in one bin. Its mean is the degrees of
   freedom k, its variance 2 k. */
static void test_draws_distribution(void **state) {
    (void)state;
    enum { R = 500, V = 600 };
    if (is_slow()) return; /* about numbers only, and the other builds have the same */
    const int CALLS = is_simulated() ? 16 : 200;
    struct Batch b = batch_open(R, 4, V, V, 1 / 0.7f);
    for (int i = 0; i < R; i++) {
        memcpy(b.E + i * 4, b.E, 4 * sizeof *b.E);
        b.position[i] = 5, b.sample[i] = i;
    }
    int counts[V] = {0};
    for (int call = 0; call < CALLS; call++) {
        for (int i = 0; i < R; i++) b.ordinal[i] = call;
        struct Drawn drawn = draw(&b, NULL, R);
        for (int i = 0; i < R; i++) counts[drawn.token[i]]++;
        drawn_free(drawn);
    }
    double z[V], rest = 0, rest_expected = 0, statistic = 0;
    reference_logits(z, &b, 0);
    for (int v = 0; v < V; v++) z[v] *= b.inv_temperature;
    log_softmax(z, V);
    int bins = 0;
    for (int v = 0; v < V; v++) {
        double expected = exp(z[v]) * R * CALLS, d = counts[v] - expected;
        if (expected >= 20) bins++, statistic += d * d / expected;
        else rest += counts[v], rest_expected += expected;
    }
    assert_in_range(bins, is_simulated() ? 50 : 100, V);
    statistic += (rest - rest_expected) * (rest - rest_expected) / rest_expected;
    ASSERT_CLOSE("chi square", fabs(statistic - bins), 4 * sqrt(2.0 * bins));
    batch_close(&b);
}

/* Heights of a GPU's tiles end at 16 and 64 rows. Some rows are empty; they may hold anything. */
static void test_sample_bits(void **state) {
    (void)state;
    enum { ROWS = 80 };
    const int V = is_cpu() ? 1301 : is_slow() ? 133 : 389;
    struct Batch b = batch_open(ROWS, 37, V, V + 3, 1);
    int order[ROWS], threads = omp_get_max_threads();
    struct Drawn alone[ROWS];
    for (int i = 0; i < ROWS; i++) {
        order[i] = i;
        if (i % 9 == 4) b.position[i] = -1;
        if (i % 18 == 4) b.E[(size_t)i * b.C] = NAN;
        alone[i] = draw(&b, order + i, 1);
    }
    struct Rng rng;
    rng_open(&rng, 6, RNG_TEST, 0);
    const int batches[] = {1, 7, 13, 14, 16, 17, 64, 65, ROWS};
    for (int k = 0; k < 18; k++) {
        if (k % 2 && !is_cpu()) continue;
        int R = batches[k / 2];
        rng_shuffle(&rng, order, ROWS);
        omp_set_num_threads(k % 2 ? 1 : threads);
        struct Drawn drawn = draw(&b, order, R);
        for (int i = 0; i < R; i++) {
            if (b.position[order[i]] < 0) continue;
            assert_int_equal(drawn.token[i], alone[order[i]].token[0]);
            assert_memory_equal(drawn.logp + i, alone[order[i]].logp, sizeof(float));
            assert_memory_equal(drawn.entropy + i, alone[order[i]].entropy, sizeof(float));
        }
        drawn_free(drawn);
    }
    omp_set_num_threads(threads);
    for (int i = 0; i < ROWS; i++) drawn_free(alone[i]);
    batch_close(&b);
}

/* Equal logits: greedy takes the smallest word, within a tile and across tiles. */
static void test_sample_ties(void **state) {
    (void)state;
    struct Batch b = batch_open(3, 2, 1600, 1600, 0);
    for (int v = 0; v < 1600; v++) {
        b.W[2 * v] = v == 700 || v == 701 || v == 1599 ? 5 : 1;
        b.W[2 * v + 1] = v == 3 || v == 1030 ? 1 : 0;
    }
    const float E[] = {0, 0, 1, 0, 0, 1};
    memcpy(b.E, E, sizeof E);
    b.packed = pack(put_x(b.W, 3200), 2, 1600);
    struct Drawn drawn = draw(&b, NULL, 3);
    assert_int_equal(drawn.token[0], 0);
    assert_int_equal(drawn.token[1], 700);
    assert_int_equal(drawn.token[2], 3);
    drawn_free(drawn);
    batch_close(&b);
}

/* The largest uniform: the noise must be 16.6 then and not infinite, or one token in 2^23 / V would
   be drawn at random. */
static void test_sample_largest_noise(void **state) {
    (void)state;
    struct Batch b = batch_open(1, 2, 1024, 1024, 1);
    uint32_t counter[4] = {0, 8, 2, 0}, out[4];
    int lucky = -1;
    while (lucky < 0) {
        philox(out, counter, b.key);
        for (int w = 0; w < 4; w++)
            if (out[w] >> 9 == 0x7fffff) lucky = (int)counter[0] * 4 + w;
        if (lucky < 0 && ++counter[0] == 256) counter[0] = 0, counter[3]++;
    }
    b.position[0] = 7, b.sample[0] = 2, b.ordinal[0] = counter[3];
    b.E[0] = 1, b.E[1] = 0;
    for (int v = 0; v < 1024; v++) b.W[2 * v] = v == lucky ? -40 : 0;
    b.packed = pack(put_x(b.W, 2048), 2, 1024);
    check_draws(&b);
    struct Drawn drawn = draw(&b, NULL, 1);
    assert_int_not_equal(drawn.token[0], lucky);
    drawn_free(drawn);
    batch_close(&b);
}

/* Rows of 8 words that test the noise of one of them, word[i] of row i, in pairs with one counter:
   in each of the 24 octaves of 1 - u, from 1/2 down to its smallest value 2^-24. */
enum { NOISE_WORDS = 8, NOISE_DIGITS = 3, NOISE_ROWS = 48 };

static void find_noise(struct Batch *b, int word[NOISE_ROWS]) {
    uint32_t ordinal = 0;
    for (int i = 0; i < NOISE_ROWS; i++) word[i] = -1;
    for (int found = 0; found < NOISE_ROWS / 2; ordinal++)
        for (int v = 0; v < NOISE_WORDS; v++) {
            uint32_t counter[4] = {(uint32_t)v / 4, 8, 2, ordinal}, out[4];
            philox(out, counter, b->key);
            int exponent;
            frexp(1 - (double)rng_uniform(out[v % 4]), &exponent);
            int i = -2 * exponent; /* 1 - u in [2^(exponent - 1), 2^exponent) */
            if (word[i] >= 0) continue;
            word[i] = word[i + 1] = v, found++;
            for (int k = i; k < i + 2; k++)
                b->position[k] = 7, b->sample[k] = 2, b->ordinal[k] = ordinal;
        }
}

/* z of word v in row i, a multiple of 2^-18 below 32: three digits of 8 bits, exact in any type. */
static void set_logit(struct Batch *b, int i, int v, double z) {
    int digits = (int)fabs(ldexp(z, 18));
    for (int k = 0; k < NOISE_DIGITS; k++, digits /= 256)
        b->E[(size_t)i * b->C + v * NOISE_DIGITS + k] = (float)copysign(digits % 256, z);
}

/* Two words whose scores differ by 4e-6 to 8e-6, this way and that, and six that cannot win: the
   better one is drawn. So noise is right to that, near u = 1 too, where it is largest and a
   careless logarithm of u is 0. */
static void test_sample_noise(void **state) {
    (void)state;
    const int C = NOISE_WORDS * NOISE_DIGITS;
    struct Batch b = batch_open(NOISE_ROWS, C, NOISE_WORDS, NOISE_WORDS, 1);
    int word[NOISE_ROWS];
    find_noise(&b, word);
    memset(b.W, 0, (size_t)NOISE_WORDS * C * sizeof *b.W);
    for (int k = 0; k < C; k++)
        b.W[k / NOISE_DIGITS * C + k] = ldexpf(1, 8 * (k % NOISE_DIGITS) - 18);
    b.packed = pack(put_x(b.W, (size_t)NOISE_WORDS * C), C, NOISE_WORDS);
    for (int i = 0; i < NOISE_ROWS; i++) {
        int rival = (word[i] + 3) % NOISE_WORDS;
        double equal = reference_noise(&b, i, rival) - reference_noise(&b, i, word[i]);
        for (int v = 0; v < NOISE_WORDS; v++) set_logit(&b, i, v, v == rival ? 0 : -31);
        set_logit(&b, i, word[i], i % 2 ? ldexp(floor(ldexp(equal - 4e-6, 18)), -18)
                                        : ldexp(ceil(ldexp(equal + 4e-6, 18)), -18));
    }
    struct Drawn drawn = draw(&b, NULL, NOISE_ROWS);
    for (int i = 0; i < NOISE_ROWS; i++)
        assert_int_equal(drawn.token[i], i % 2 ? (word[i] + 3) % NOISE_WORDS : word[i]);
    drawn_free(drawn);
    batch_close(&b);
}

/* A diverged model still draws a token in range; its log-probability is not finite. */
static void test_sample_not_finite(void **state) {
    (void)state;
    struct Batch b = batch_open(5, 3, 700, 704, 1);
    struct Drawn before = draw(&b, NULL, 5);
    b.E[2 * 3] = NAN;
    for (int greedy = 0; greedy < 2; greedy++) {
        b.inv_temperature = !greedy;
        struct Drawn after = draw(&b, NULL, 5);
        assert_in_range(after.token[2], 0, b.V - 1);
        assert_true(isnan(after.logp[2]) && isnan(after.entropy[2]));
        for (int i = 0; i < 5 && !greedy; i++)
            if (i != 2) assert_int_equal(after.token[i], before.token[i]);
        drawn_free(after);
    }
    drawn_free(before);
    batch_close(&b);
}

static void test_advance(void **state) {
    (void)state;
    const int drawn[] = {4, 9, 0, 50256}, old[] = {1, 5, 2, 3}, position[] = {0, -1, 7, 1022};
    const int expected[] = {4, 5, 0, 50256}; /* the second row is empty, and stays as it is */
    struct DecodeRows rows = {.token = put_ints(old, 4), .position = put_ints(position, 4)};
    ops->decode_advance(&rows, put_ints(drawn, 4), 4);
    int token[4], next[4];
    ops->download(token, rows.token, sizeof token);
    ops->download(next, rows.position, sizeof next);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(token[i], expected[i]);
        assert_int_equal(next[i], position[i] + (i != 1));
    }
    release_all();
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_matmul_bits),
        cmocka_unit_test(test_draws_against_definition),
        cmocka_unit_test(test_sample_agrees_with_head),
        cmocka_unit_test(test_draws_distribution),
        cmocka_unit_test(test_sample_bits),
        cmocka_unit_test(test_sample_ties),
        cmocka_unit_test(test_sample_largest_noise),
        cmocka_unit_test(test_sample_noise),
        cmocka_unit_test(test_sample_not_finite),
        cmocka_unit_test(test_advance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
