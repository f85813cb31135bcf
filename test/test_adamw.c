/* The update against AdamW in double, and the sum of squares. */
#include "test_ops.h"
#include <omp.h>

/* One step in double of element i of the reference arrays. */
static void reference_step(double *w, double *m, double *v, double g, double decay,
                           const struct AdamwStep *s) {
    g *= (double)s->grad_scale;
    *m = s->beta1 * *m + (1 - (double)s->beta1) * g;
    *v = s->beta2 * *v + (1 - (double)s->beta2) * g * g;
    double first = *m / (1 - pow(s->beta1, (double)s->step));
    double second = *v / (1 - pow(s->beta2, (double)s->step));
    *w -= s->learning_rate * (first / (sqrt(second) + s->epsilon) + decay * *w);
}

static double *widen(const float *x, size_t n) {
    double *out = new_doubles(n);
    for (size_t i = 0; i < n; i++) out[i] = x[i];
    return out;
}

/* The bound for weights that are rounded once per step. In a narrow floatX each becomes one of its
   two neighbours at random: an error below one ulp, which is at most 2 units of rounding times |w|.
   With p the place between them its variance is p (1 - p) ulp^2, averaged over p 1/6 ulp^2. So the
   relative L2 error is at most 2 / sqrt(6) = 0.82 units; and after several steps, whose errors are
   independent, sqrt(steps) times that. */
static double bound_of_weights(int steps) { return bound_of(0.82 * sqrt(steps)); }

/* Three steps over ragged ranges and a shard [begin, end) that cuts two of them; gaps, and what
   lies outside the shard, must keep their bits. shift: all buffers begin so many elements after an
   aligned address. */
static void check_adamw(bool with_master, size_t shift) {
    enum { n = 70001 };
    const struct AdamwRange ranges[] = {{0, 5, 0.1f}, {5, 40000, 0}, {40003, 70000, 0.3f}};
    const size_t begin = 3, end = 60001, all = n + shift;
    float *w0 = new_normal(all, 1, 1), *g0 = new_normal(all, 1, 2), *m0 = new_normal(all, 0.1f, 3);
    float *v0 = new_normal(all, 0.1f, 4);
    for (size_t i = 0; i < all; i++) v0[i] *= v0[i];
    g0[7 + shift] = m0[7 + shift] = v0[7 + shift] = 0; /* 0 / (0 + epsilon) */
    floatX *w = ops_at(ops, put_x(w0, all), shift);
    float *master = with_master ? put_floats(w0, all) + shift : NULL;
    float *m = put_floats(m0, all) + shift, *v = put_floats(v0, all) + shift;
    float *g = put_floats(g0, all) + shift;
    double *wd = widen(w0 + shift, n), *md = widen(m0 + shift, n), *vd = widen(v0 + shift, n);
    for (int t = 1; t <= 3; t++) {
        struct AdamwStep step = {0.02f, 0.9f, 0.95f, 1e-8f, 0.5f, t, 42};
        ops->adamw(ops_at(ops, w, begin), master ? master + begin : NULL, m + begin, v + begin,
                   g + begin, ranges, 3, begin, end, &step);
        for (int r = 0; r < 3; r++)
            for (size_t i = ranges[r].begin; i < ranges[r].end; i++)
                if (i >= begin && i < end)
                    reference_step(&wd[i], &md[i], &vd[i], g0[i + shift], ranges[r].weight_decay,
                                   &step);
    }
    check_x("w", w, wd, n, bound_of_weights(with_master ? 1 : 3));
    if (with_master) check_floats("master", master, wd, n, 1e-6);
    check_floats("m", m, md, n, 1e-6);
    check_floats("v", v, vd, n, 1e-6);
    float *w1 = get_x(w, n), *m1 = get_floats(m, n);
    const int kept[] = {0, 2, 40000, 40002, 60001, 70000};
    for (int i = 0; i < 6; i++) {
        assert_true(w1[kept[i]] == w0[kept[i] + shift]);
        assert_true(m1[kept[i]] == m0[kept[i] + shift]);
    }
    free(w0), free(g0), free(m0), free(v0), free(wd), free(md), free(vd), free(w1), free(m1);
    release_all();
}

static void test_adamw(void **state) {
    (void)state;
    check_adamw(false, 0);
    check_adamw(false, 1);
}
static void test_adamw_master(void **state) {
    (void)state;
    check_adamw(true, 0);
    check_adamw(true, 2);
}

/* A model of many layers has hundreds of ranges; here of 1 to 13 elements, every third after a
   gap, each with a decay of its own. Weights alone: m = v = g = 0. */
static void test_many_ranges(void **state) {
    (void)state;
    enum { RANGES = 301, n = RANGES * 8 };
    struct AdamwRange ranges[RANGES];
    float *w0 = new_normal(n, 1, 6), *zero = calloc(n, sizeof *zero);
    double *wd = widen(w0, n);
    const struct AdamwStep step = {0.1f, 0.9f, 0.95f, 1e-8f, 1, 1, 42};
    size_t at = 1;
    for (int i = 0; i < RANGES; i++) {
        size_t begin = at + (i % 3 == 0), end = begin + 1 + (size_t)(i * 5) % 13;
        ranges[i] = (struct AdamwRange){begin, end, 0.01f * (float)i};
        for (at = begin; at < end; at++) wd[at] -= 0.1f * ranges[i].weight_decay * wd[at];
    }
    assert_true(at < n);
    floatX *w = put_x(zero, n);
    float *master = put_floats(w0, n), *m = put_floats(zero, n), *v = put_floats(zero, n);
    ops->adamw(w, master, m, v, put_floats(zero, n), ranges, RANGES, 0, n, &step);
    check_floats("master", master, wd, n, 1e-6);
    float *end = get_floats(master, n), *w1 = get_x(w, n);
    assert_true(end[0] == w0[0] && end[at] == w0[at] && w1[0] == 0 && w1[at] == 0);
    assert_true(end[1] == w0[1] && w1[1] == 0); /* range 0 begins after a gap */
    assert_true(w1[2] != 0 && w1[at - 1] != 0);
    free(w0), free(zero), free(wd), free(end), free(w1);
    release_all();
}

/* ---- stochastic rounding ------------------------------------------------------------------- */

static bool is_narrow(void) { return strcmp(ops->dtype, "fp32") != 0; }

/* The distance of x's neighbours in a narrow floatX: 2^(e - digits) for 2^e <= |x| < 2^(e+1), and
   the same for all subnormals. */
static double spacing_at(double x) {
    bool bf16 = strcmp(ops->dtype, "bf16") == 0;
    int e = x == 0 ? -1000 : ilogb(x), smallest = bf16 ? -126 : -14;
    return ldexp(1, (e > smallest ? e : smallest) - (bf16 ? 7 : 10));
}

/* Steps at rate 0 leave the masters as they are, and round each anew with every step number. */
struct Rounding {
    size_t n;
    floatX *w;
    float *master, *m, *v, *g;
};

static struct Rounding rounding_open(const float *master, size_t n) {
    float *zero = calloc(n, sizeof *zero);
    struct Rounding r = {n, new_x(n), put_floats(master, n), put_floats(zero, n),
                         put_floats(zero, n), put_floats(zero, n)};
    free(zero);
    return r;
}

/* The weights of [begin, end) as `step` and `seed` round them; the caller frees. */
static float *round_at(struct Rounding *r, int64_t step, uint64_t seed, size_t begin, size_t end) {
    const struct AdamwRange range = {0, r->n, 0.1f};
    const struct AdamwStep s = {0, 0.9f, 0.95f, 1e-8f, 1, step, seed};
    ops->adamw(ops_at(ops, r->w, begin), r->master + begin, r->m + begin, r->v + begin,
               r->g + begin, &range, 1, begin, end, &s);
    return get_x(r->w, r->n);
}

/* Every weight is one of the two neighbours of its master; and in each eighth of the way from the
   lower to the upper one the sum of the errors is 0 within 5 standard deviations, which are known:
   p (1 - p) per draw. (Over all p together, rounding up with 1 - p would look unbiased too.) */
static void check_unbiased(float scale) {
    enum { n = 5003, DRAWS = 20, PARTS = 8 };
    float *x = new_normal(n, scale, 7);
    double error[PARTS] = {0}, variance[PARTS] = {0};
    x[0] = 0, x[1] = scale, x[2] = -2 * scale;
    struct Rounding r = rounding_open(x, n);
    for (int t = 1; t <= DRAWS; t++) {
        float *w = round_at(&r, t, 42, 0, n);
        for (int i = 0; i < n; i++) {
            double unit = spacing_at(x[i]), units = fabs(x[i] / unit), p = units - floor(units);
            double above = fabs(w[i] / unit) - floor(units);
            assert_true(above == 0 || (above == 1 && p > 0));
            assert_true(w[i] == 0 || signbit(w[i]) == signbit(x[i]));
            error[(int)(p * PARTS)] += above - p;
            variance[(int)(p * PARTS)] += p * (1 - p);
        }
        free(w);
    }
    for (int k = 0; k < PARTS; k++) {
        if (scale == 1) assert_true(variance[k] > 100); /* every eighth has its share */
        ASSERT_CLOSE("bias", fabs(error[k]), 5 * sqrt(variance[k]) + 1e-9);
    }
    free(x);
    release_all();
}

static void test_rounding_is_unbiased(void **state) {
    (void)state;
    if (!is_narrow()) return;
    check_unbiased(1);
    check_unbiased(0x1p-13f); /* fp16: about the smallest normal number, 2^-14 */
    check_unbiased(0x1p-20f); /* fp16: subnormals */
    check_unbiased(0x1p-26f); /* fp16: between 0 and the smallest of them, 2^-24 */
    check_unbiased(0x1p-128f); /* bf16: subnormals */
}

/* The same seed and step draw the same, however the elements are split over calls; another step or
   seed draws otherwise, and so do neighbours. */
static void test_rounding_is_a_function(void **state) {
    (void)state;
    enum { n = 4099 };
    if (!is_narrow()) return;
    float x[n];
    for (int i = 0; i < n; i++) x[i] = 1 + (float)rounding_unit(); /* half-way */
    struct Rounding r = rounding_open(x, n);
    const int64_t steps[] = {5, 5, 6, ((int64_t)1 << 32) + 5, 5};
    const uint64_t seeds[] = {1, 1, 1, 1, ((uint64_t)1 << 32) + 1};
    float *w[5];
    for (int k = 0; k < 5; k++) w[k] = round_at(&r, steps[k], seeds[k], 0, n);
    assert_memory_equal(w[0], w[1], sizeof x);
    for (int k = 2; k < 5; k++) assert_memory_not_equal(w[0], w[k], sizeof x);
    for (int lag = 1; lag <= 4; lag++) { /* of two independent draws half agree */
        int same = 0;
        for (int i = lag; i < n; i++) same += w[0][i] == w[0][i - lag];
        ASSERT_CLOSE("neighbours agree", fabs(same - n / 2.0), 5 * sqrt(n / 4.0));
    }
    free(round_at(&r, 5, 1, 2050, n));
    free(round_at(&r, 7, 1, 0, 2050));
    float *parts = round_at(&r, 5, 1, 0, 2050);
    assert_memory_equal(w[0], parts, sizeof x);
    for (int k = 0; k < 5; k++) free(w[k]);
    free(parts);
    release_all();
}

/* Numbers at the edge: the largest stays itself, NaN stays NaN whatever is added to its bits, and
   a step out of the range of floats ends at infinity. */
static void test_extremes(void **state) {
    (void)state;
    enum { n = 64 };
    float largest = strcmp(ops->dtype, "bf16") == 0   ? 0x1.fep127f
                    : strcmp(ops->dtype, "fp16") == 0 ? 65504
                                                      : 0x1.fffffep127f;
    float x[n], zero[n] = {0}, one[n], nan;
    memcpy(&nan, &(uint32_t){0x7fffffff}, sizeof nan); /* as GPUs make it: adding 1 gives -0 */
    for (int i = 0; i < n; i++) x[i] = i % 2 ? nan : i % 4 ? largest : -largest, one[i] = 1;
    struct Rounding r = rounding_open(x, n);
    float *w = round_at(&r, 1, 42, 0, n);
    for (int i = 0; i < n; i++) assert_true(i % 2 ? isnan(w[i]) : w[i] == x[i]);
    free(w);
    const struct AdamwRange range = {0, n, 0};
    const struct AdamwStep step = {3e38f, 0.9f, 0.95f, 1e-8f, 1, 1, 42}; /* 3e38 / (1 - beta1) */
    floatX *to = put_x(zero, n);
    ops->adamw(to, put_floats(zero, n), put_floats(zero, n), put_floats(zero, n),
               put_floats(one, n), &range, 1, 0, n, &step);
    w = get_x(to, n);
    for (int i = 0; i < n; i++) assert_true(w[i] == -INFINITY);
    free(w);
    release_all();
}

/* Decay alone, small against 1: 1000 steps of 1e-5. Formed as w (1 - rate * decay) in float32, the
   factor would be off by up to 6e-8, always to the same side: 6e-5 after 1000 steps. */
static void test_decay_alone(void **state) {
    (void)state;
    float one[2] = {1e-3f, 1e-3f}, start[2] = {1e-3f, 1e-3f}, zero[2] = {0, 0};
    const struct AdamwRange range = {0, 1, 0.01f};
    floatX *w = put_x(one, 2);
    float *master = put_floats(start, 2), *m = put_floats(zero, 2), *v = put_floats(zero, 2);
    float *g = put_floats(zero, 2);
    for (int t = 1; t <= 1000; t++) {
        struct AdamwStep step = {1e-3f, 0.9f, 0.999f, 1e-8f, 1, t, 0};
        ops->adamw(w, master, m, v, g, &range, 1, 0, 2, &step);
    }
    float *end = get_floats(master, 2);
    /* each step is rounded to 6e-8 of the weight, to either side: about 2e-6 after 1000 */
    ASSERT_CLOSE("decayed", fabs(end[0] / (double)start[0] - pow(1 - 1e-5, 1000)), 8e-6);
    assert_true(end[1] == start[1]);
    free(end);
    release_all();
}

static void test_sum_of_squares(void **state) {
    (void)state;
    const size_t most = is_slow() ? 60003 : 1100003; /* hundreds of blocks of CUDA's, and ragged */
    const size_t sizes[] = {0, 1, 15, 16, 17, 1023, 1024, 1025, 16383, 16385, most};
    struct OpsShape shape = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    void *workspace = new_workspace_of("adamw", &shape);
    double *out = new_poison(sizeof *out);
    float *host = new_normal(most, 1, 5);
    host[most - 1] = 3e15f; /* the last element alone is most of the sum; its square is 9e30 */
    float *x = put_floats(host, most);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        double reference = 0, got, again;
        for (size_t i = 0; i < sizes[s]; i++) reference += (double)host[i] * host[i];
        ops->sum_of_squares(out, x, sizes[s], workspace);
        ops->download(&got, out, sizeof got);
        ASSERT_CLOSE("sum of squares", fabs(got - reference), 1e-12 * reference);
        if (sizes[s] > 0) { /* from an address that is not aligned */
            double first = (double)host[0] * host[0];
            ops->sum_of_squares(out, x + 1, sizes[s] - 1, workspace);
            ops->download(&again, out, sizeof again);
            ASSERT_CLOSE("shifted", fabs(again + first - reference), 1e-12 * reference);
        }
        int threads = omp_get_max_threads();
        omp_set_num_threads(threads + 1);
        ops->sum_of_squares(out, x, sizes[s], workspace);
        omp_set_num_threads(threads);
        ops->download(&again, out, sizeof again);
        assert_memory_equal(&got, &again, sizeof got); /* whatever the number of threads */
    }
    const float bad[] = {INFINITY, -INFINITY, NAN};
    for (int i = 0; i < 3; i++) {
        double got;
        host[most / 9 * 7] = bad[i];
        ops->upload(x, host, most * sizeof *host);
        ops->sum_of_squares(out, x, most, workspace);
        ops->download(&got, out, sizeof got);
        assert_false(isfinite(got));
    }
    free(host);
    release_all();
}

/* More than CUDA's blocks read in one round. All terms are 1/4, so that the sum is exact. */
static void test_long_sum(void **state) {
    (void)state;
    const size_t n = ((size_t)1 << 24) + 12345;
    if (is_slow()) return;
    struct OpsShape shape = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    void *workspace = new_workspace_of("adamw", &shape);
    double *out = new_poison(sizeof *out), got;
    float *host = malloc(n * sizeof *host);
    assert_non_null(host);
    for (size_t i = 0; i < n; i++) host[i] = i % 2 ? 0.5f : -0.5f;
    ops->sum_of_squares(out, put_floats(host, n), n, workspace);
    ops->download(&got, out, sizeof got);
    assert_true(got == (double)n / 4);
    free(host);
    release_all();
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_adamw_master),
        cmocka_unit_test(test_many_ranges),
        cmocka_unit_test(test_rounding_is_unbiased),
        cmocka_unit_test(test_rounding_is_a_function),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_decay_alone),
        cmocka_unit_test(test_sum_of_squares),
        cmocka_unit_test(test_long_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
