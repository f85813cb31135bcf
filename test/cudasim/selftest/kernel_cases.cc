/* The sample kernels against float64 references, sound and with each of their planted bugs. Shapes
   are larger than one block and ragged. */
#include "selftest.h"
#include "../kernels/kernels.h"

static void layernorm_once(int N, int C) {
    size_t n = (size_t)N * (size_t)C;
    std::vector<float> x(n), weight((size_t)C), bias((size_t)C);
    std::vector<uint16_t> x16(n), weight16((size_t)C), bias16((size_t)C);
    for (size_t i = 0; i < n; i++) x16[i] = encode_bf16(x[i] = next_number());
    for (int i = 0; i < C; i++) {
        weight16[i] = encode_bf16(weight[i] = 1 + next_number());
        bias16[i] = encode_bf16(bias[i] = next_number());
    }
    float *out = new_device<float>(n), *mean = new_device<float>(N), *rstd = new_device<float>(N);
    uint16_t *out16 = new_device<uint16_t>(n);
    layernorm_forward(out, mean, rstd, to_device(x), to_device(weight), to_device(bias), N, C);
    layernorm_forward_bf16(out16, to_device(x16), to_device(weight16), to_device(bias16), N, C);

    std::vector<float> y = to_host(out, n), m = to_host(mean, N), r = to_host(rstd, N);
    std::vector<uint16_t> y16 = to_host(out16, n);
    double error = 0, error16 = 0;
    for (int row = 0; row < N; row++) {
        const float *xr = &x[(size_t)row * C];
        double average = 0, variance = 0;
        for (int i = 0; i < C; i++) average += xr[i];
        average /= C;
        for (int i = 0; i < C; i++) variance += (xr[i] - average) * (xr[i] - average);
        double scale = 1 / sqrt(variance / C + 1e-5);
        error = worse(error, m[row], average);
        error = worse(error, r[row], scale);
        for (int i = 0; i < C; i++) {
            size_t at = (size_t)row * C + i;
            double reference = (xr[i] - average) * scale * weight[i] + bias[i];
            error = worse(error, y[at], reference);
            /* weight and bias are rounded to bf16 (1/256 of up to 2), and so is the result */
            error16 = worse(error16, decode_bf16(y16[at]), reference);
        }
    }
    expect_close(error, 2e-5, "layernorm, float");
    expect_close(error16, 0.06, "layernorm, bf16");
}

static void test_layernorm() {
    layernorm_once(8, 768);
    layernorm_once(5, 100);
}

static void lse_once(int rows, int V, int Vp) {
    std::vector<uint16_t> logits((size_t)rows * Vp, encode_bf16(50)); /* padding that would show */
    std::vector<int> target(rows);
    for (int r = 0; r < rows; r++) {
        target[r] = r * 7919 % V;
        for (int i = 0; i < V; i++) logits[(size_t)r * Vp + i] = encode_bf16(8 * next_number());
    }
    float *lse = new_device<float>(rows), *entropy = new_device<float>(rows),
          *logp = new_device<float>(rows);
    row_lse_entropy(lse, entropy, logp, to_device(logits), to_device(target), rows, V, Vp);
    std::vector<float> l = to_host(lse, rows), h = to_host(entropy, rows), p = to_host(logp, rows);
    double error = 0;
    for (int r = 0; r < rows; r++) {
        const uint16_t *x = &logits[(size_t)r * Vp];
        double sum = 0, weighted = 0;
        for (int i = 0; i < V; i++) {
            double f = decode_bf16(x[i]);
            sum += exp(f);
            weighted += exp(f) * f;
        }
        error = worse(error, l[r], log(sum));
        error = worse(error, h[r], log(sum) - weighted / sum);
        error = worse(error, p[r], decode_bf16(x[target[r]]) - log(sum));
    }
    expect_close(error, 2e-4, "lse, entropy, logp"); /* 1003 floats summed one by one */
}

static void test_lse() {
    lse_once(3, 1003, 1024);
    lse_once(2, 7, 8);
}

typedef void (*Gemm)(unsigned short *, const unsigned short *, const unsigned short *, int, int,
                     int);

static void gemm_once(Gemm gemm, bool half, int M, int N, int K) {
    std::vector<uint16_t> a((size_t)M * K), b((size_t)N * K);
    for (uint16_t &x : a) x = half ? encode_half(next_number()) : encode_bf16(next_number());
    for (uint16_t &x : b) x = half ? encode_half(next_number()) : encode_bf16(next_number());
    uint16_t *out = new_device<uint16_t>((size_t)M * N);
    gemm(out, to_device(a), to_device(b), M, N, K);
    std::vector<uint16_t> c = to_host(out, (size_t)M * N);
    double error = 0;
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++) {
                uint16_t x = a[(size_t)i * K + k], y = b[(size_t)j * K + k];
                sum += half ? decode_half(x) * decode_half(y) : decode_bf16(x) * decode_bf16(y);
            }
            uint16_t got = c[(size_t)i * N + j];
            double value = half ? decode_half(got) : decode_bf16(got), scale = 1 + fabs(sum);
            error = worse(error, value / scale, sum / scale);
        }
    }
    /* the products are exact in float, the sums nearly; half a unit in the last place remains */
    expect_close(error, half ? 0x1p-11 : 0x1p-8, half ? "gemm, fp16" : "gemm, bf16");
}

static void test_gemm() {
    gemm_once(gemm_bf16, false, 64, 64, 64);
    gemm_once(gemm_bf16, false, 70, 100, 104);
    gemm_once(gemm_half, true, 66, 99, 72);
}

static void test_hopper() {
    gemm_once(gemm_hopper, false, 64, 64, 64);
    gemm_once(gemm_hopper, false, 70, 100, 200);
}

static void attention_once(int B, int T, int NH, int HS) {
    size_t stride = (size_t)3 * NH * HS, outputs = (size_t)B * T * NH * HS;
    std::vector<float> x((size_t)B * T * stride);
    for (float &f : x) f = next_number();
    float *out = new_device<float>(outputs), *lse = new_device<float>((size_t)B * NH * T);
    int status = attention_forward(out, lse, to_device(x), B, T, NH, HS);
    expect(status == 0, "attention: launch error");
    std::vector<float> y = to_host(out, outputs), l = to_host(lse, (size_t)B * NH * T);
    std::vector<double> p(T);
    double error = 0;
    for (int b = 0; b < B; b++) {
        for (int h = 0; h < NH; h++) {
            for (int q = 0; q < T; q++) {
                const float *at = &x[(size_t)b * T * stride + h * HS], *query = at + q * stride;
                double sum = 0;
                for (int k = 0; k <= q; k++) {
                    double score = 0;
                    const float *key = at + k * stride + NH * HS;
                    for (int c = 0; c < HS; c++) score += (double)query[c] * key[c];
                    sum += p[k] = exp(score / sqrt(HS));
                }
                error = worse(error, l[((size_t)b * NH + h) * T + q], log(sum));
                for (int c = 0; c < HS; c++) {
                    double value = 0;
                    for (int k = 0; k <= q; k++)
                        value += p[k] / sum * at[k * stride + 2 * NH * HS + c];
                    error = worse(error, y[((size_t)(b * T + q) * NH + h) * HS + c], value);
                }
            }
        }
    }
    expect_close(error, 2e-5, "attention");
}

static void test_attention() {
    attention_once(1, 64, 2, 16);
    attention_once(2, 50, 1, 64);
    if (planted_bug == 0 || planted_bug == 6) attention_once(1, 40, 1, 128);
}

const Case kernel_cases[] = {
    {"layernorm", 0, "two sizes, two types", "", nullptr, "", test_layernorm},
    {"layernorm", 1, "missing barrier: read too early", "sar", "UNINITIALISED READ", "",
     test_layernorm},
    {"layernorm", 2, "out of bounds in static shared memory", "sar", "OUT-OF-BOUNDS WRITE", "",
     test_layernorm},
    {"layernorm", 3, "wrong shuffle mask", "sar", "not in its own mask", "order=descending",
     test_layernorm},
    {"layernorm", 4, "reads a slot nobody wrote", "sar", "UNINITIALISED READ", "", test_layernorm},
    {"layernorm", 5, "missing barrier: write after read", "r", "RACE write-after-read", "",
     test_layernorm},
    {"layernorm", 6, "one element past a global buffer", "sar", "OUT-OF-BOUNDS READ", "",
     test_layernorm},
    {"layernorm", 7, "barrier and shuffle in divergent code", "sar", "takes no part", "",
     test_layernorm},
    {"layernorm", 8, "blocks race on one global place", "r", "RACE", "", test_layernorm},
    {"lse", 0, "ragged vocabularies", "", nullptr, "", test_lse},
    {"lse", 1, "tail reads padding columns", "sar", "WRONG", "", test_lse},
    {"lse", 2, "full-mask shuffle by a few lanes", "sar", "takes no part", "", test_lse},
    {"gemm", 0, "cp.async, ldmatrix, mma; bf16 and fp16", "", nullptr, "", test_gemm},
    {"gemm", 1, "waits for one copy group too few", "sar", "UNINITIALISED READ", "", test_gemm},
    {"gemm", 2, "no barrier after the copies", "sar", "UNINITIALISED READ", "", test_gemm},
    {"gemm", 3, "next copies overwrite what is read", "r", "RACE write-after-read", "", test_gemm},
    {"attention", 0, "three head sizes", "", nullptr, "", test_attention},
    {"attention", 1, "tiles overwritten while read", "sar", "RACE write-after-read", "",
     test_attention},
    {"attention", 2, "barrier for the first tile only", "sar", "RACE", "", test_attention},
    {"attention", 3, "missing __syncwarp", "r", "RACE read-after-write", "", test_attention},
    {"attention", 4, "no guard for the last tile", "ar", "OUT-OF-BOUNDS READ", "", test_attention},
    {"attention", 5, "dynamic shared memory too small", "ar", "OUT-OF-BOUNDS", "", test_attention},
    {"attention", 6, "no opt-in above 48 KB", "sar", "bad launch", "", test_attention},
    {"hopper", 0, "TMA, mbarriers, wgmma", "", nullptr, "", test_hopper},
    {"hopper", 1, "empty slot not awaited", "sar", "more arrivals", "", test_hopper},
    {"hopper", 2, "full slot not awaited", "sar", "UNINITIALISED READ", "", test_hopper},
    {"hopper", 3, "wgmma waits for one group too few", "sar", nullptr, "", test_hopper},
    {"hopper", 4, "missing wgmma.fence", "sar", "wgmma.fence", "", test_hopper},
    {nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr},
};
