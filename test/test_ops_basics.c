/* The slot table, memory, conversion, and vector mathematics: each against its definition. */
#include "test_ops.h"
#include "../llmc/kernels/vmath.h"
#include "child.h"

/* ---- the table --------------------------------------------------------------------------- */

static void open_unknown(void *context) { ops_open(context, "auto", 0); }

static void test_slots(void **state) {
    (void)state;
    char names[2048], few[12], output[512];
    struct Ops broken = {0};
    int slots = ops_missing(&broken, names, sizeof names);
    assert_int_equal((size_t)slots, (sizeof broken - offsetof(struct Ops, alloc)) / sizeof(void *));
    assert_ptr_equal(strstr(names, "alloc, free, memory_available"), names);
    assert_string_equal(strrchr(names, ' '), " broadcast");
    assert_int_equal(ops_missing(&broken, few, sizeof few), slots);
    assert_string_equal(few, "alloc, free");
    assert_int_equal(ops_missing(ops, names, sizeof names), 0);
    assert_string_equal(names, "");
    broken = *ops;
    broken.mlp_backward = NULL;
    assert_int_equal(ops_missing(&broken, names, sizeof names), 1);
    assert_string_equal(names, "mlp_backward");
    assert_ptr_equal(ops_at(ops, (floatX *)(uintptr_t)4096, 3),
                     (floatX *)(uintptr_t)(4096 + 3 * ops->element_size));
    if (strcmp(ops->name, "cuda") == 0) return; /* CUDA does not survive the fork */
    assert_int_equal(run_in_child(open_unknown, "abacus", output, sizeof output), 2);
    assert_non_null(strstr(output, "\"abacus\""));
    assert_non_null(strstr(output, "cpu"));
}

/* ---- memory and communication ------------------------------------------------------------ */

static void alloc_too_much(void *context) {
    (void)context;
    ops->alloc((size_t)1 << 56);
}

static void test_memory(void **state) {
    (void)state;
    char output[512];
    const size_t sizes[] = {1, 255, 257, ((size_t)1 << 20) + 3, ((size_t)5 << 20) + 7};
    for (int i = 0; i < 5; i++) {
        unsigned char *host = malloc(sizes[i] + 1), *back = calloc(1, sizes[i] + 1);
        for (size_t j = 0; j < sizes[i]; j++) host[j] = (unsigned char)(j * 31 + (j >> 12) + 1);
        char *a = put_bytes(host, sizes[i]), *b = new_poison(sizes[i]);
        assert_int_equal((uintptr_t)a % 256, 0);
        ops->copy(b, a, sizes[i]);
        ops->event_record(EVENTS - 1);
        ops->event_wait(EVENTS - 1);
        ops->sync();
        ops->download(back, b, sizes[i]);
        assert_memory_equal(back, host, sizes[i]);
        ops->fill_zero(b, sizes[i] - 1); /* and not a byte more */
        ops->download(back, b, sizes[i]);
        for (size_t j = 0; j + 1 < sizes[i]; j++) assert_int_equal(back[j], 0);
        assert_int_equal(back[sizes[i] - 1], host[sizes[i] - 1]);
        free(host), free(back);
        release_all();
    }
    ops->free(ops->alloc(0));
    if (strcmp(ops->name, "cuda") == 0) return; /* CUDA does not survive the fork */
    assert_int_equal(run_in_child(alloc_too_much, NULL, output, sizeof output), 1);
    assert_non_null(strstr(output, "out of memory"));
}

/* What is fetched is what stood there then, whatever is enqueued before it is read; two at a time,
   of growing sizes. */
static void test_fetch(void **state) {
    (void)state;
    enum { MOST = 300000 };
    unsigned char *host = calloc(MOST, 1);
    ops->fetch(0, host, 0); /* nothing, before there is memory for anything */
    ops->fetched(0);
    for (size_t bytes = 1, round = 0; bytes < MOST; bytes = bytes * 5 + 3, round++) {
        for (size_t i = 0; i < bytes; i++) host[i] = (unsigned char)(i * 31 + (i >> 12) + round);
        char *a = put_bytes(host, bytes);
        int first = round % 2;
        ops->fetch(first, a, bytes);
        ops->fill_zero(a, bytes);
        ops->fetch(!first, a, bytes);
        ops->copy(a, new_poison(bytes), bytes);
        assert_memory_equal(ops->fetched(first), host, bytes);
        const unsigned char *zeros = ops->fetched(!first);
        for (size_t i = 0; i < bytes; i++) assert_int_equal(zeros[i], 0);
        release_all();
    }
    free(host);
}

static void test_conversion(void **state) {
    (void)state;
    const size_t n = 300001;
    float *host = new_normal(n, 3, 1), *kept = malloc(n * sizeof *kept);
    host[0] = INFINITY, host[1] = -0.0f, host[2] = 1 + 0x1p-8f, host[3] = NAN;
    memcpy(kept, host, n * sizeof *kept);
    put_x(kept, n);
    assert_true(kept[0] == INFINITY && kept[1] == 0 && signbit(kept[1]) && isnan(kept[3]));
    /* half-way in bf16: to even; a number of fp16 and fp32 */
    assert_true(kept[2] == (strcmp(ops->products, "bf16") == 0 ? 1 : 1 + 0x1p-8f));
    for (size_t i = 4; i < n; i++) {
        double limit = strcmp(ops->products, "fp32") == 0 ? 0 : rounding_unit() * fabs(host[i]);
        assert_true(fabs((double)kept[i] - host[i]) <= limit + 1e-7);
    }
    free(host), free(kept);
    release_all();
}

/* One rank: each is the identity. */
static void test_communication(void **state) {
    (void)state;
    float *host = new_normal(1000, 1, 2), *x = put_floats(host, 1000), *y = new_floats(1000);
    float *z = new_floats(1000);
    ops->all_reduce(x, 1000, -1, -1);
    ops->broadcast(x, 4000, 0, -1, -1);
    ops->reduce_scatter(y, x, 1000, NULL, -1, -1);
    ops->all_gather(z, y, 4000, -1, -1);
    ops->all_gather(z, z, 4000, -1, -1); /* in place, too */
    float *back = get_floats(z, 1000);
    assert_memory_equal(back, host, 4000);
    free(host), free(back);
    release_all();
}

/* ---- vector mathematics ------------------------------------------------------------------ */

/* The error in units of the last place of the correctly rounded result. */
static double ulps(float got, double exact) {
    float rounded = (float)exact;
    if (isnan(exact)) return isnan(got) ? 0 : INFINITY;
    if (isinf(rounded) || got == rounded) return got == rounded ? 0 : INFINITY;
    return fabs(got - exact) / (nextafterf(fabsf(rounded), INFINITY) - fabsf(rounded));
}

static void test_exp_and_log(void **state) {
    (void)state;
    double exp_worst = 0, log_worst = 0;
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += 1999) { /* every exponent and sign */
        float x = vm_from_bits((uint32_t)bits);
        double e = exp((double)x);
        if (e < 1.7e-38) assert_true(vm_exp(x) >= 0 && vm_exp(x) < 1.71e-38f);
        else exp_worst = fmax(exp_worst, ulps(vm_exp(x), e));
        log_worst = fmax(log_worst, ulps(vm_log(x), log((double)x)));
    }
    ASSERT_CLOSE("exp, ulp", exp_worst, 1.1);
    ASSERT_CLOSE("log, ulp", log_worst, 1.1);
    assert_true(vm_exp(-INFINITY) == 0 && vm_exp(-1e30f) == 0 && vm_exp(0) == 1);
    assert_true(vm_exp(INFINITY) == INFINITY && vm_exp(88.8f) == INFINITY && isnan(vm_exp(NAN)));
    assert_true(vm_exp(88.72f) < INFINITY);
    assert_true(vm_log(0) == -INFINITY && vm_log(1) == 0 && vm_log(INFINITY) == INFINITY);
    assert_true(isnan(vm_log(-1)) && isnan(vm_log(NAN)) && isfinite(vm_log(0x1p-149f)));
}

static void test_gelu(void **state) {
    (void)state;
    for (float x = -12; x < 12; x += 0.001f) {
        double difference = (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5;
        ASSERT_CLOSE("slope in double", fabs(gelu_slope(x) - difference), 1e-8);
        ASSERT_CLOSE("gelu", fabs(vm_gelu(x) - gelu(x)), 2e-7 * fabs(x) + 1e-12);
        ASSERT_CLOSE("gelu'", fabs(vm_gelu_gradient(x) - gelu_slope(x)), 4e-7);
    }
    assert_true(vm_gelu(-1e30f) == 0 && vm_gelu(1e30f) == 1e30f && vm_gelu(INFINITY) == INFINITY);
    assert_true(fabsf(vm_gelu_gradient(-1e30f)) < 1e-30f && vm_gelu_gradient(1e30f) == 1);
    assert_true(isnan(vm_gelu(NAN)) && isnan(vm_gelu_gradient(NAN)));
}

static void test_sums(void **state) {
    (void)state;
    float *a = new_normal(1000, 1, 3), *b = new_normal(1000, 1, 4);
    for (int n = 0; n < 1000; n += n < 40 ? 1 : 61) {
        double dot = 0, sum = 0, max = -INFINITY;
        for (int i = 0; i < n; i++) dot += (double)a[i] * b[i], sum += a[i], max = fmax(max, a[i]);
        ASSERT_CLOSE("dot", fabs(vm_dot(a, b, n) - dot), 1e-5);
        ASSERT_CLOSE("sum", fabs(vm_sum(a, n) - sum), 1e-5);
        assert_true(vm_max(a, n) == max);
    }
    free(a), free(b);
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_fetch),
        cmocka_unit_test(test_conversion),
        cmocka_unit_test(test_communication),
        cmocka_unit_test(test_exp_and_log),
        cmocka_unit_test(test_gelu),
        cmocka_unit_test(test_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
