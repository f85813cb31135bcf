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

/* Three steps over ragged ranges and a shard [begin, end) that cuts two of them; gaps, and what
   lies outside the shard, must keep their bits. */
static void check_adamw(bool with_master) {
    enum { n = 70001 };
    const struct AdamwRange ranges[] = {{0, 5, 0.1f}, {5, 40000, 0}, {40003, 70000, 0.3f}};
    const size_t begin = 3, end = 60001;
    float *w0 = new_normal(n, 1, 1), *g0 = new_normal(n, 1, 2), *m0 = new_normal(n, 0.1f, 3);
    float *v0 = new_normal(n, 0.1f, 4);
    for (int i = 0; i < n; i++) v0[i] *= v0[i];
    g0[7] = m0[7] = v0[7] = 0; /* 0 / (0 + epsilon) */
    floatX *w = put_x(w0, n);
    float *master = with_master ? put_floats(w0, n) : NULL;
    float *m = put_floats(m0, n), *v = put_floats(v0, n), *g = put_floats(g0, n);
    double *wd = widen(w0, n), *md = widen(m0, n), *vd = widen(v0, n);
    for (int t = 1; t <= 3; t++) {
        struct AdamwStep step = {0.02f, 0.9f, 0.95f, 1e-8f, 0.5f, t, 42};
        ops->adamw(w, master, m, v, g, ranges, 3, begin, end, &step);
        for (int r = 0; r < 3; r++)
            for (size_t i = ranges[r].begin; i < ranges[r].end; i++)
                if (i >= begin && i < end)
                    reference_step(&wd[i], &md[i], &vd[i], g0[i], ranges[r].weight_decay, &step);
    }
    /* Without a master copy w itself is rounded (stochastically where narrow) at each step. */
    check_x("w", w, wd, n, bound_of(with_master ? 1 : 6));
    if (with_master) check_floats("master", master, wd, n, 1e-6);
    check_floats("m", m, md, n, 1e-6);
    check_floats("v", v, vd, n, 1e-6);
    float *w1 = get_x(w, n), *m1 = get_floats(m, n);
    const int kept[] = {0, 2, 40000, 40002, 60001, 70000};
    for (int i = 0; i < 6; i++) {
        assert_true(w1[kept[i]] == w0[kept[i]]);
        assert_true(m1[kept[i]] == m0[kept[i]]);
    }
    free(w0), free(g0), free(m0), free(v0), free(wd), free(md), free(vd), free(w1), free(m1);
    release_all();
}

static void test_adamw(void **state) { (void)state, check_adamw(false); }
static void test_adamw_master(void **state) { (void)state, check_adamw(true); }

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
    const size_t sizes[] = {0, 1, 15, 16, 17, 1023, 1024, 1025, 16383, 16385, 1000003};
    struct OpsShape shape = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    void *workspace = new_workspace(&shape);
    double *out = new_poison(sizeof *out);
    float *host = new_normal(1000003, 1, 5);
    host[1000002] = 3e15f; /* the last element alone is most of the sum; its square is 9e30 */
    float *x = put_floats(host, 1000003);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        double reference = 0, got, again;
        for (size_t i = 0; i < sizes[s]; i++) reference += (double)host[i] * host[i];
        ops->sum_of_squares(out, x, sizes[s], workspace);
        ops->download(&got, out, sizeof got);
        ASSERT_CLOSE("sum of squares", fabs(got - reference), 1e-12 * reference);
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
        host[777777] = bad[i];
        ops->upload(x, host, 1000003 * sizeof *host);
        ops->sum_of_squares(out, x, 1000003, workspace);
        ops->download(&got, out, sizeof got);
        assert_false(isfinite(got));
    }
    free(host);
    release_all();
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_adamw_master),
        cmocka_unit_test(test_decay_alone),
        cmocka_unit_test(test_sum_of_squares),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
