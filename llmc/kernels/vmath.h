/* exp, log, GELU and SiLU in float32 as straight-line code without branches, so that a loop that
   calls them becomes vector code in gcc and clang (the C library's are scalar calls: 1.4 times a
   head).
   Errors against double (test/test_ops_basics.c): exp and log below 1.1 ulp on the whole range.

   And sums whose order is written down here rather than chosen by the compiler: their bits depend
   on the n numbers only, not on their addresses, as decoding requires (ops.h). */
#ifndef LLMC_KERNELS_VMATH_H
#define LLMC_KERNELS_VMATH_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t vm_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float vm_from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* e^x. Results below 1.7e-38 are 0 (so exp(-inf) = 0 and no slow subnormals); above FLT_MAX +inf;
   NaN stays NaN. x = n ln 2 + r, |r| <= ln 2 / 2; polynomial in r (Cephes), then times 2^n. */
static inline float vm_exp(float x) {
    const float shift = 0x1.8p23f; /* adding it rounds to an integer, kept in the lowest bits */
    float c = x < -87.0f ? -87.0f : x;
    c = c > 89.0f ? 89.0f : c;
    float shifted = c * 0x1.715476p+0f + shift;
    float n = shifted - shift;
    float r = c - n * 0x1.62e4p-1f;
    r = r - n * 0x1.7f7d1cp-20f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    /* 2^(n-1), not 2^n: 128 is not a float's exponent. n = -126 gives 0: the end of the range. */
    float half_scale = vm_from_bits((vm_bits(shifted) << 23) + (126u << 23));
    return (p + p) * half_scale;
}

/* Natural log. log 0 = -inf, log inf = inf, negative and NaN give NaN; subnormals are exact too.
   x = m 2^e, m in [sqrt(1/2), sqrt 2); polynomial in m - 1 (Cephes), so that log near 1 keeps its
   relative accuracy. */
static inline float vm_log(float x) {
    const uint32_t sqrt_half = 0x3f3504f3u;
    float scale = x < FLT_MIN ? 0x1p23f : 1.0f;
    float bias = x < FLT_MIN ? -23.0f : 0.0f;
    uint32_t bits = vm_bits(x * scale) - sqrt_half;
    float e = (float)((int32_t)bits >> 23) + bias;
    float f = vm_from_bits((bits & 0x007fffffu) + sqrt_half) - 1.0f;
    float p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    float ff = f * f;
    float y = p * f * ff + e * -2.12194440e-4f;
    y = y - 0.5f * ff + f + e * 0.693359375f;
    y = x == INFINITY ? INFINITY : y;
    y = x == 0.0f ? -INFINITY : y;
    return x >= 0.0f ? y : NAN;
}

/* GPT-2's GELU, x/2 (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), written x sigmoid(2u):
   the same number, without the cancellation of 1 + tanh for negative x. */
static inline float vm_gelu(float x) {
    float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return x / (1.0f + vm_exp(-2.0f * u));
}

/* d gelu / dx = s + x s (1 - s) 2 u', s = sigmoid(2u), 1 - s formed as e^-2u s. Beyond |x| = 10 it
   is 0 or 1 to float32, and holding x there keeps x^3 from overflowing. */
static inline float vm_gelu_gradient(float x) {
    float c = x < -10.0f ? -10.0f : x;
    c = c > 10.0f ? 10.0f : c;
    float e = vm_exp(-1.5957691216057308f * (c + 0.044715f * c * c * c));
    float s = 1.0f / (1.0f + e);
    float slope = 1.5957691216057308f * (1.0f + 0.134145f * c * c);
    return s + c * slope * (e * s) * s;
}

/* silu x = x sigmoid(x) (1702.03118), and its derivative s (1 + x (1 - s)). Far below 0 both are 0:
   e^-x is infinite there. */
static inline float vm_silu(float x) { return x / (1.0f + vm_exp(-x)); }

static inline float vm_silu_gradient(float x) {
    float s = 1.0f / (1.0f + vm_exp(-x));
    return s * (1.0f + x * (1.0f - s));
}

/* 16 partial sums side by side, in vectors as long as the machine has them: gcc takes longer ones
   apart, and one number at a time is ten times slower. */
#if defined(__AVX512F__)
#define LANE_BYTES 64
#elif defined(__AVX__)
#define LANE_BYTES 32
#else
#define LANE_BYTES 16
#endif
typedef float LaneVector __attribute__((vector_size(LANE_BYTES)));
enum { VM_LANES = 16, LANE_FLOATS = LANE_BYTES / 4, LANE_PARTS = VM_LANES / LANE_FLOATS };

struct Lanes {
    LaneVector part[LANE_PARTS];
};

/* a tree: 16 lanes to 8, to 4, to 1 */
static inline float lanes_sum(const struct Lanes *lanes) {
    float sum[VM_LANES];
    memcpy(sum, lanes, sizeof sum);
    for (int width = VM_LANES / 2; width > 2; width /= 2)
        for (int l = 0; l < width; l++) sum[l] += sum[l + width];
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* Each lane += its product of a [16] and b [16]. */
static inline void lanes_add_products(struct Lanes *lanes, const float *a, const float *b) {
    LaneVector x, y;
    for (int p = 0; p < LANE_PARTS; p++) {
        memcpy(&x, a + p * LANE_FLOATS, sizeof x);
        memcpy(&y, b + p * LANE_FLOATS, sizeof y);
        lanes->part[p] += x * y;
    }
}

/* sum_i a_i b_i */
static inline float vm_dot(const float *a, const float *b, int n) {
    struct Lanes lanes = {0};
    int i = 0;
    for (; i + VM_LANES <= n; i += VM_LANES) lanes_add_products(&lanes, a + i, b + i);
    float tail = 0;
    for (; i < n; i++) tail += a[i] * b[i];
    return lanes_sum(&lanes) + tail;
}

/* sum_i a_i */
static inline float vm_sum(const float *a, int n) {
    struct Lanes lanes = {0};
    LaneVector x;
    int i = 0;
    for (; i + VM_LANES <= n; i += VM_LANES)
        for (int p = 0; p < LANE_PARTS; p++) {
            memcpy(&x, a + i + p * LANE_FLOATS, sizeof x);
            lanes.part[p] += x;
        }
    float tail = 0;
    for (; i < n; i++) tail += a[i];
    return lanes_sum(&lanes) + tail;
}

/* max_i a_i, -inf if n is 0; NaN are ignored. (A plain maximum stays scalar in clang.) */
static inline float vm_max(const float *a, int n) {
    typedef int32_t Mask __attribute__((vector_size(LANE_BYTES)));
    LaneVector best[LANE_PARTS], x;
    int i = 0;
    for (int p = 0; p < LANE_PARTS; p++) best[p] = (LaneVector){0} - INFINITY;
    for (; i + VM_LANES <= n; i += VM_LANES)
        for (int p = 0; p < LANE_PARTS; p++) {
            memcpy(&x, a + i + p * LANE_FLOATS, sizeof x);
            Mask larger = x > best[p];
            best[p] = (LaneVector)(((Mask)x & larger) | ((Mask)best[p] & ~larger));
        }
    float max = -INFINITY, lane[VM_LANES];
    memcpy(lane, best, sizeof lane);
    for (int l = 0; l < VM_LANES; l++) max = lane[l] > max ? lane[l] : max;
    for (; i < n; i++) max = a[i] > max ? a[i] : max;
    return max;
}

#endif
