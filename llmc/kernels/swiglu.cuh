/* The exponentials of the activations, and SwiGLU's forward pass, which training (mlp.cu) and
   decoding (matmul_decode.cu) share, so that both compute the same bits. */
#pragma once
#include "dependent.cuh"

enum { ACTIVATION_THREADS = 256 };

/* e^x and a / b, as exact as the element type needs. */
static __device__ __forceinline__ float exp_x(float x) {
    return sizeof(floatX) < sizeof(float) ? __expf(x) : expf(x);
}
static __device__ __forceinline__ float divide_x(float a, float b) {
    return sizeof(floatX) < sizeof(float) ? __fdividef(a, b) : a / b;
}

/* silu x = x sigmoid(x) (1702.03118), and its derivative s (1 + x (1 - s)). Far below 0 both are 0,
   because e^-x is infinite there. */
static __device__ __forceinline__ float silu(float x) {
    return divide_x(x, 1.0f + exp_x(-x));
}
static __device__ __forceinline__ float silu_gradient(float x) {
    float s = divide_x(1.0f, 1.0f + exp_x(-x));
    return s * (1.0f + x * (1.0f - s));
}

/* act [N,F] = silu(gate) up; `whole`: rows of F may be read 16 bytes at a time. */
static __global__ void __launch_bounds__(ACTIVATION_THREADS)
swiglu_kernel(floatX *act, const floatX *pre, int N, int F, bool whole) {
    await_previous();
    const int chunks = ceil_div(F, VEC);
    size_t index = (size_t)blockIdx.x * ACTIVATION_THREADS + threadIdx.x, n = index / chunks;
    if (n >= (size_t)N) return;
    int f = (int)(index % chunks) * VEC, left = F - f;
    const floatX *gate = pre + n * 2 * F + f;
    float x[VEC], up[VEC];
    load_some(x, gate, left, whole);
    load_some(up, gate + F, left, whole);
#pragma unroll
    for (int j = 0; j < VEC; j++) x[j] = silu(x[j]) * up[j];
    store_some(act + n * F + f, x, left, whole);
}

/* Blocks for `rows` rows of n elements, each in vectors of its own. */
static unsigned blocks_for(size_t rows, size_t n) {
    size_t vectors = rows * ((n + VEC - 1) / VEC);
    return (unsigned)((vectors + ACTIVATION_THREADS - 1) / ACTIVATION_THREADS);
}

static bool both_aligned(const void *a, const void *b, size_t stride) {
    return rows_aligned(a, stride, sizeof(floatX)) && rows_aligned(b, stride, sizeof(floatX));
}

static void swiglu_forward(floatX *act, const floatX *pre, int N, int F) {
    if (N == 0 || F == 0) return;
    LAUNCH_DEPENDENT(blocks_for(N, F), ACTIVATION_THREADS, 0, swiglu_kernel, act, pre, N, F,
                     both_aligned(act, pre, F));
}
