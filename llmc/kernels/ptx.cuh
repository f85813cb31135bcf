/* Every inline-PTX instruction of the project, wrapped once: as asm here, and as a CPU body in the
   emulator (test/cudasim). The wrappers' contract is the same in both:

       cp_async16(shared, global, n)   starts a copy of n <= 16 bytes and zeroes the rest of the 16;
                                       both addresses aligned to 16. For n = 0 global is not read,
                                       but must still be a valid address
       cp_async4                       the same for n <= 4 bytes, aligned to 4
       cp_async_commit, _wait<n>       groups of copies: wait<n> returns when all but the n youngest
                                       groups have landed, for the calling thread only: other
                                       threads see them after a barrier
       ldmatrix_x2, _x4 [_trans]       2 or 4 matrices of 8 x 8 16-bit elements from shared memory;
                                       lane 8 m + i brings the address of row i of matrix m
       mma_m16n8k16<T>                 d = a b^T + c on 16x16, 8x16 (T, both K-contiguous) and 16x8
                                       (float) fragments; d may be c
       barrier_sync, barrier_arrive    named barriers 1 to 15 of `threads` threads, which is a
                                       multiple of 32
       exp2_approx                     2^x in one instruction, relative error 2^-22; results below
                                       2^-126 become 0
       log2_approx                     log2 x in one instruction, for x of at least 2^-126: error
                                       2^-22, absolute in (1/2, 2), elsewhere relative
       reciprocal_approx               1 / x in one instruction, to an ulp; results below 2^-126
                                       become 0

   ldmatrix and mma are .aligned: all 32 lanes execute them together. PTX ISA 8.x, sections
   "cp.async", "ldmatrix", "mma.m16n8k16". */
#pragma once
#include <stdint.h>
#include <string.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifdef CUDASIM
#include "ptx_cpu.h"
#else

__device__ __forceinline__ uint32_t ptx_shared_address(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* ---- asynchronous copies, sm_80 ---- */

__device__ __forceinline__ void cp_async16(void *shared, const void *global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_shared_address(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async4(void *shared, const void *global, int bytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(ptx_shared_address(shared)),
                 "l"(global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int groups_left> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups_left) : "memory");
}

/* ---- matrix loads ---- */

__device__ __forceinline__ void ldmatrix_x2(uint32_t out[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(ptx_shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t out[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out[0]), "=r"(out[1])
                 : "r"(ptx_shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t out[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(ptx_shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t out[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(ptx_shared_address(row))
                 : "memory");
}

/* ---- products ---- */

template <class T>
__device__ __forceinline__ void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2],
                                             const float c[4]);

template <>
__device__ __forceinline__ void mma_m16n8k16<__nv_bfloat16>(float d[4], const uint32_t a[4],
                                                            const uint32_t b[2],
                                                            const float c[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]),
                   "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<__half>(float d[4], const uint32_t a[4],
                                                     const uint32_t b[2], const float c[4]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]),
                   "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

/* ---- arithmetic ---- */

__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_approx(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* ---- named barriers ---- */

__device__ __forceinline__ void barrier_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#endif

/* ---- pairs of 16-bit elements in a register, as mma fragments and 32-bit loads hold them: the
   lower half is the element with the lower index. These compile to one cvt (or prmt) each. ---- */

template <class T> __device__ __forceinline__ uint32_t pack_pair(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

template <> __device__ __forceinline__ uint32_t pack_pair<__half>(float low, float high) {
    __half2 pair = __floats2half2_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

template <class T> __device__ __forceinline__ float2 unpack_pair(uint32_t bits);

template <> __device__ __forceinline__ float2 unpack_pair<__nv_bfloat16>(uint32_t bits) {
    __nv_bfloat162 pair;
    memcpy(&pair, &bits, sizeof pair);
    return __bfloat1622float2(pair);
}

template <> __device__ __forceinline__ float2 unpack_pair<__half>(uint32_t bits) {
    __half2 pair;
    memcpy(&pair, &bits, sizeof pair);
    return __half22float2(pair);
}
