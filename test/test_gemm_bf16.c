/* Products of bf16 operands (llmc/kernels/gemm_bf16.h) against double, in every order of the
   operands, on shapes larger than each block and ragged in all three directions. And that the slots
   with products use them when --dtype bf16 is asked for. (That those slots are right in it, the
   tests of operations say, which run with it too; head_sample multiplies by matmul_decode's
   function.) */
#include "test.h"
#include "../llmc/kernels/backends.h"
#include "../llmc/kernels/gemm_bf16.h"

/* The nearest number with 8 bits, ties to even: by its exponent, not by its bits. */
static double bf16(float x) {
    int exponent;
    if (!isfinite(x) || x == 0) return x;
    frexp(x, &exponent);
    return ldexp(nearbyint(ldexp(x, 8 - exponent)), exponent - 8);
}

/* x [items][K] as it lies, with two numbers of another matrix at the end of each row. */
struct Matrix {
    struct Operand operand;
    float *numbers;
};

static struct Matrix new_matrix(int items, int K, bool along, uint64_t stream) {
    int rows = along ? items : K, stride = (along ? K : items) + 2;
    struct Matrix m = {.numbers = new_normal((size_t)rows * (size_t)stride, 1, stream)};
    m.operand = (struct Operand){m.numbers, stride, along};
    return m;
}

static double at(const struct Matrix *m, int i, int k) {
    int stride = m->operand.stride;
    return bf16(m->numbers[m->operand.along ? i * stride + k : k * stride + i]);
}

/* out [M][ldo] begins as `before`; NaN before it was written, and always behind the N columns. */
static float *new_output(int M, int N, int ldo, const float *before) {
    float *out = malloc((size_t)M * (size_t)ldo * sizeof *out);
    assert_non_null(out);
    for (int i = 0; i < M * ldo; i++) out[i] = i % ldo < N && before ? before[i] : NAN;
    return out;
}

/* K products are exact in float32, and each sum rounds; alpha and what was there round once more.
   (First order, and as much again.) */
static void check_product(const char *name, const float *out, const float *before,
                          const struct Matrix *a, const struct Matrix *b, int M, int N, int K,
                          int ldo, float alpha) {
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0, size = 0, first = before ? before[i * ldo + j] : 0;
            for (int k = 0; k < K; k++) {
                double product = at(a, i, k) * at(b, j, k);
                sum += product, size += fabs(product);
            }
            double error = fabs(out[i * ldo + j] - (alpha * sum + first));
            double bound = ldexp((K + 4) * (fabs(alpha) * size + fabs(first)), -23);
            if (!(error <= bound))
                fail_msg("%s %dx%dx%d at %d, %d: error %g > %g", name, M, N, K, i, j, error,
                         bound);
        }
    for (int i = 0; i < M; i++)
        for (int j = N; j < ldo; j++) assert_true(isnan(out[i * ldo + j]));
}

static void check_shape(int M, int N, int K, bool a_along, bool b_along, bool add) {
    struct Matrix a = new_matrix(M, K, a_along, 1), b = new_matrix(N, K, b_along, 2);
    int ldo = N + 3;
    float alpha = add ? 1 : 0.75f, *before = add ? new_normal((size_t)(M * ldo), 1, 3) : NULL;
    float *out = new_output(M, N, ldo, before);
    gemm_bf16(out, ldo, a.operand, b.operand, M, N, K, alpha, add);
    check_product(add ? "added" : "alone", out, before, &a, &b, M, N, K, ldo, alpha);
    free(a.numbers), free(b.numbers), free(before), free(out);
}

static void test_products(void **state) {
    (void)state;
    static const int shapes[][3] = {{1, 1, 1},     {13, 32, 32},  {14, 33, 31},  {12, 31, 64},
                                    {275, 70, 37}, {29, 1067, 5}, {27, 45, 553}, {262, 1025, 258}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int form = 0; form < 8; form++)
            if (s < 7 || form % 3 == 0)
                check_shape(shapes[s][0], shapes[s][1], shapes[s][2], form & 1, form & 2, form & 4);
}

static void test_nothing_to_sum(void **state) {
    (void)state;
    float out[6] = {1, 2, 3, 4, 5, 6}, none = 0;
    struct Operand x = {&none, 0, true};
    gemm_bf16(out, 3, x, x, 2, 2, 0, 1, true);
    assert_true(out[0] == 1 && out[4] == 5);
    gemm_bf16(out, 3, x, x, 2, 2, 0, 1, false);
    for (int i = 0; i < 6; i++) assert_true(out[i] == (i % 3 < 2 ? 0 : i + 1));
}

/* As decoding promises: a row has the same bits whoever it is computed with. */
static void test_rows_alone(void **state) {
    (void)state;
    enum { M = 40, N = 70, K = 601 };
    struct Matrix a = new_matrix(M, K, true, 1), b = new_matrix(N, K, true, 2);
    static float together[M * N], alone[N];
    gemm_bf16(together, N, a.operand, b.operand, M, N, K, 1, false);
    for (int i = 0; i < M; i++) {
        struct Operand row = {a.numbers + i * a.operand.stride, a.operand.stride, true};
        gemm_bf16(alone, N, row, b.operand, 1, N, K, 1, false);
        assert_memory_equal(alone, together + i * N, sizeof alone);
    }
    free(a.numbers), free(b.numbers);
}

/* What is not finite stays in its row and its column, also beside what was filled up with 0. */
static void test_not_finite(void **state) {
    (void)state;
    enum { M = 15, N = 37, K = 33 };
    for (int form = 0; form < 4; form++) {
        struct Matrix a = new_matrix(M, K, form & 1, 1), b = new_matrix(N, K, form & 2, 2);
        int i = M - 1, j = N - 1, k = K - 1;
        a.numbers[a.operand.along ? i * a.operand.stride + k : k * a.operand.stride + i] = NAN;
        b.numbers[b.operand.along ? j * b.operand.stride + k : k * b.operand.stride + j] = INFINITY;
        float out[M * N];
        gemm_bf16(out, N, a.operand, b.operand, M, N, K, 1, false);
        for (int n = 0; n < M * N; n++) {
            if (n / N == i) assert_true(isnan(out[n]));
            else if (n % N == j) assert_true(isinf(out[n]));
            else assert_true(isfinite(out[n]));
        }
        free(a.numbers), free(b.numbers);
    }
}

/* Ties, a NaN whose bits would be rounded away, and the largest number. */
static void test_rounding(void **state) {
    (void)state;
    uint32_t lowest_nan = 0x7f800001;
    float x[] = {1 + 0x1p-8f, 1 + 0x3p-8f, 1 + 0x1.01p-8f, -1 - 0x3p-8f, 0x1.fffffep127f, -0.0f, 0};
    memcpy(&x[6], &lowest_nan, sizeof lowest_nan);
    static const uint32_t want[] = {0x3f80, 0x3f82, 0x3f81, 0xbf82, 0x7f80, 0x8000};
    uint32_t pairs[4];
    pairs_of_rows(pairs, 4, x, 7, 1, 7);
    for (int i = 0; i < 6; i++) assert_int_equal(pairs[i / 2] >> 16 * (i % 2) & 0xffff, want[i]);
    assert_true((pairs[3] & 0x7fff) > 0x7f80 && pairs[3] >> 16 == 0);
}

/* ---- the slots ------------------------------------------------------------------------------- */

enum { N = 20, C = 50, F = 45, V = 70 };

/* What is multiplied; w1 [2F,C], w2 [C,F], W [V,C]. */
struct Inputs {
    float x[N * C], act[N * F], dout[N * C], w1[2 * F * C], w2[C * F], W[V * C];
};

/* What comes of it. */
struct Results {
    float out[N * C], dx[N * F], dw[C * F], decoded[N * C];         /* of act and w2 */
    float mlp[N * C], mlp_dx[N * C], dw1[2 * F * C], dw2[C * F];    /* of the feed-forward block */
    float mlp_decoded[N * C];
    float logp[N], scored[N], entropy[N], dE[N * C], dW[V * C];     /* of x and W */
};

static void coefficients(void *context, int first, int rows, const struct HeadStats *stats,
                         float *dlogp, float *dentropy) {
    (void)context, (void)stats;
    for (int i = 0; i < rows; i++) dlogp[i] = -1, dentropy[i] = 0.1f * (float)(first + i);
}

static void run_head(const struct Ops *ops, struct Results *r, const struct Inputs *in,
                     void *workspace) {
    int row[N], target[N];
    for (int i = 0; i < N; i++) row[i] = i, target[i] = i * 3;
    struct HeadTokens tokens = {row, target, N, N};
    struct Head head = {C, V, V, 1};
    struct HeadStats stats = {.logp = r->logp, .entropy = r->entropy};
    struct HeadStats scored = {.logp = r->scored};
    ops->head_forward(&scored, (const void *)in->x, (const void *)in->W, &tokens, &head, workspace);
    ops->head_forward_backward(&stats, (void *)r->dE, r->dW, (const void *)in->x,
                               (const void *)in->W, &tokens, &head, coefficients, NULL, workspace);
}

static void run_slots(const struct Ops *ops, struct Results *r, const struct Inputs *in) {
    static float dpre[2 * N * F], pre[2 * N * F], scratch[3 * N * F];
    const struct OpsShape shape = {.N = N, .C = C, .F = F, .NH = 1, .NKV = 1, .HS = C, .V = V,
                                   .Vp = V, .max_T = N, .R = N, .max_length = N};
    const struct Mlp mlp = {.activation = SWIGLU, .w1 = (const void *)in->w1,
                            .w2 = (const void *)in->w2, .C = C, .F = F};
    const struct MlpGradients gradients = {.dw1 = r->dw1, .dw2 = r->dw2};
    void *workspace = ops->alloc(ops->workspace_size(&shape));
    void *packed = ops->alloc(ops->matmul_packed_size(F, C));
    void *packed_w1 = ops->alloc(ops->matmul_packed_size(C, 2 * F));
    memset(r, 0, sizeof *r);
    fill_normal(pre, 2 * N * F, 1, 9);
    const void *act = in->act, *w2 = in->w2, *dout = in->dout;
    ops->matmul_forward((void *)r->out, act, w2, NULL, N, F, C);
    ops->matmul_backward((void *)r->dx, r->dw, NULL, dout, act, w2, N, F, C, workspace);
    ops->matmul_pack(packed, w2, F, C);
    ops->matmul_decode((void *)r->decoded, act, packed, NULL, N, F, C);
    ops->mlp_backward((void *)r->mlp_dx, &gradients, (void *)dpre, dout, (const void *)in->x,
                      (const void *)pre, act, &mlp, N, workspace);
    ops->mlp_forward((void *)r->mlp, (void *)scratch, (void *)(scratch + 2 * N * F),
                     (const void *)in->x, &mlp, N);
    ops->matmul_pack(packed_w1, mlp.w1, C, 2 * F);
    ops->mlp_decode((void *)r->mlp_decoded, (void *)scratch, (void *)(scratch + 2 * N * F),
                    (const void *)in->x, packed_w1, packed, &mlp, N);
    run_head(ops, r, in, workspace);
    ops->free(packed_w1), ops->free(packed), ops->free(workspace);
}

/* Rounding an operand beforehand changes no bit of what comes out of any slot, but would if one
   took it as it is. */
static void test_slots_round(void **state) {
    (void)state;
    const struct Ops *ops = ops_open("cpu", "bf16", 0);
    static struct Inputs in, rounded;
    static struct Results plain, again;
    float *const numbers = (float *)&in, *const kept = (float *)&rounded;
    size_t begin = 0, sizes[] = {N * C, N * F, N * C, 2 * F * C, C * F, V * C};
    fill_normal(numbers, sizeof in / sizeof(float), 0.5f, 8);
    run_slots(ops, &plain, &in);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; begin += sizes[s++]) {
        rounded = in;
        for (size_t i = begin; i < begin + sizes[s]; i++) kept[i] = (float)bf16(numbers[i]);
        run_slots(ops, &again, &rounded);
        assert_memory_equal(&plain, &again, sizeof plain);
    }
    assert_memory_equal(plain.logp, plain.scored, sizeof plain.logp);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),   cmocka_unit_test(test_nothing_to_sum),
        cmocka_unit_test(test_rows_alone), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_rounding),   cmocka_unit_test(test_slots_round),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
