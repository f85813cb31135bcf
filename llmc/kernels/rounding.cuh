/* Stochastic rounding of a float to a narrow type: with a <= x <= b the neighbours of x in T,

       round_random<T>(x, random) = b with probability (x - a) / (b - a), else a

   so that the expected result is x. `random` is uniform over 32 bits. */
#pragma once
#include "cuda_common.cuh"

template <class T> static __device__ __forceinline__ T round_random(float x, uint32_t random);

template <> __device__ __forceinline__ float round_random<float>(float x, uint32_t) { return x; }

/* bf16 is the upper half of a float: 16 random bits added to the lower half carry into the upper
   one with just the probability wanted, also in the subnormals. The largest numbers may carry into
   infinity, their neighbour above. Infinity and NaN are not changed. */
template <>
__device__ __forceinline__ __nv_bfloat16 round_random<__nv_bfloat16>(float x, uint32_t random) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return __float2bfloat16_rn(x);
    bits += random & 0xffffu;
    return __ushort_as_bfloat16((unsigned short)(bits >> 16));
}

/* fp16: |x| in units of its neighbours' distance, which is 2^-10 of the power of two at or below
   |x|, and 2^-24 among the subnormals. Every step is exact, except that a fraction counts to 32
   bits. From 65536 on the only neighbour is infinity. */
template <> __device__ __forceinline__ __half round_random<__half>(float x, uint32_t random) {
    float size = fabsf(x);
    if (!(size < 65536.0f)) return __float2half_rn(x); /* or NaN */
    uint32_t power = __float_as_uint(fmaxf(size, 0x1p-14f)) & 0x7f800000u;
    float unit = __uint_as_float(power) * 0x1p-10f, units = size / unit, below = floorf(units);
    float up = random < (uint32_t)((units - below) * 0x1p32f) ? 1.0f : 0.0f;
    return __float2half_rn(copysignf((below + up) * unit, x));
}
