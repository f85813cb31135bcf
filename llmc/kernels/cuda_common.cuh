/* What the CUDA kernels share: the element type, 16-byte loads and stores, sums over a warp and a
   block, device randomness.

   Each X.cu is compiled once per element type, with
       -DBACKEND_FLOATX=float|__nv_bfloat16|__half  -DBACKEND_DTYPE=fp32|bf16|fp16
   and all of them are linked into one plug-in. So everything in an X.cu is static (templates too),
   but the file's entry in the list of cuda_backend.cu, whose name carries the type:

       extern const struct KernelFile PER_TYPE(cuda_norm)      ->  cuda_norm_bf16

   Sums have a fixed order everywhere: no float atomics, so every result repeats bit for bit. */
#pragma once

#if !defined(BACKEND_FLOATX) || !defined(BACKEND_DTYPE)
#error "compile with -DBACKEND_FLOATX=... -DBACKEND_DTYPE=..."
#endif

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#define RNG_INLINE static __host__ __device__ __forceinline__
#include "../base/rng.h"
#include "cuda_device.h"

#define PER_TYPE_JOIN(name, dtype) name##_##dtype
#define PER_TYPE_EXPAND(name, dtype) PER_TYPE_JOIN(name, dtype)
#define PER_TYPE(name) PER_TYPE_EXPAND(name, BACKEND_DTYPE)

#define WARP 32
#define FULL_WARP 0xffffffffu

/* For host and device code; the toolkit's min and max are for device code only. */
static __host__ __device__ __forceinline__ int ceil_div(int a, int b) { return (a + b - 1) / b; }
static __host__ __device__ __forceinline__ int min_int(int a, int b) { return a < b ? a : b; }
static __host__ __device__ __forceinline__ int max_int(int a, int b) { return a > b ? a : b; }
static __host__ __device__ __forceinline__ size_t align_up(size_t bytes, size_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

/* ---- elements -------------------------------------------------------------------------------- */

static __device__ __forceinline__ float to_f(float x) { return x; }
static __device__ __forceinline__ float to_f(__nv_bfloat16 x) { return __bfloat162float(x); }
static __device__ __forceinline__ float to_f(__half x) { return __half2float(x); }

/* To the nearest T, ties to even. */
template <class T> static __device__ __forceinline__ T from_f(float x);
template <> __device__ __forceinline__ float from_f<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_f<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> __device__ __forceinline__ __half from_f<__half>(float x) { return __float2half_rn(x); }

/* ---- 16 bytes at a time ---------------------------------------------------------------------- */

/* Elements in 16 bytes: 4 floats, 8 narrow ones. */
template <class T> struct Vector { enum { size = 16 / sizeof(T) }; };
#define VEC (Vector<floatX>::size)

/* out [16 / sizeof(T)] = the elements at `in`, which is aligned to 16 bytes. */
template <class T> static __device__ __forceinline__ void load_vector(float *out, const T *in) {
    uint4 bits = *(const uint4 *)in;
    T element[Vector<T>::size];
    memcpy(element, &bits, sizeof bits);
#pragma unroll
    for (int i = 0; i < Vector<T>::size; i++) out[i] = to_f(element[i]);
}

template <class T> static __device__ __forceinline__ void store_vector(T *out, const float *in) {
    T element[Vector<T>::size];
#pragma unroll
    for (int i = 0; i < Vector<T>::size; i++) element[i] = from_f<T>(in[i]);
    uint4 bits;
    memcpy(&bits, element, sizeof bits);
    *(uint4 *)out = bits;
}

/* The same where fewer than a vector may be left, or addresses are not aligned (`whole` is false):
   element by element; what lies beyond `count` reads as 0 and is not written. */
template <class T>
static __device__ __forceinline__ void load_some(float *out, const T *in, int count, bool whole) {
    if (whole && count >= Vector<T>::size) {
        load_vector(out, in);
        return;
    }
#pragma unroll
    for (int i = 0; i < Vector<T>::size; i++) out[i] = i < count ? to_f(in[i]) : 0.0f;
}

template <class T>
static __device__ __forceinline__ void store_some(T *out, const float *in, int count, bool whole) {
    if (whole && count >= Vector<T>::size) {
        store_vector(out, in);
        return;
    }
#pragma unroll
    for (int i = 0; i < Vector<T>::size; i++)
        if (i < count) out[i] = from_f<T>(in[i]);
}

/* May rows of `stride` elements at `base` be read 16 bytes at a time? */
static __host__ __device__ __forceinline__ bool rows_aligned(const void *base, size_t stride,
                                                             size_t element_size) {
    return (uintptr_t)base % 16 == 0 && stride * element_size % 16 == 0;
}

/* ---- reductions: every thread gets the result ------------------------------------------------ */

static __device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(FULL_WARP, x, lanes);
    return x;
}

static __device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(FULL_WARP, x, lanes);
    return x;
}

static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2)
        x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, lanes));
    return x;
}

/* The sum over a block of THREADS threads (a multiple of 32). scratch: shared, THREADS / 32
   elements; free for reuse after the next barrier. */
template <int THREADS, class T>
static __device__ __forceinline__ T block_sum(T x, T *scratch) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    T sum = 0;
#pragma unroll
    for (int w = 0; w < THREADS / WARP; w++) sum += scratch[w];
    return sum;
}

/* More than 48 KB of dynamic shared memory must be asked for, once per kernel and size. The kernel
   is written as in its launch (the simulator goes by the text). */
#define ALLOW_SHARED(bytes, ...)                                                        \
    do {                                                                                \
        if ((bytes) > 48 * 1024)                                                        \
            CUDA_CHECK(cudaFuncSetAttribute(                                            \
                __VA_ARGS__, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes))); \
    } while (0)
