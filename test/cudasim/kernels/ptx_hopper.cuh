/* Hopper's asynchronous instructions, wrapped once as asm and once as a CPU body, in the manner of
   llmc/kernels/ptx.cuh: mbarriers, TMA loads of 2-D tiles with the 128-byte swizzle, and the
   product wgmma m64n64k16 of two K-contiguous tiles in shared memory. Needs sm_90a. */
#pragma once
#include <stdint.h>
#include <cuda.h>
#include <cuda_runtime.h>

#ifdef CUDASIM
#include "ptx_hopper_cpu.h"
#else

__device__ __forceinline__ uint32_t hopper_shared_address(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* ---- mbarriers: a phase ends when all arrivals and all announced bytes have come ---- */

__device__ __forceinline__ void mbarrier_init(uint64_t *barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(hopper_shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

/* Makes the initialisation visible to TMA. */
__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(hopper_shared_address(barrier))
                 : "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     hopper_shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

/* Returns when the phase of this parity has ended. */
__device__ __forceinline__ void mbarrier_wait(uint64_t *barrier, unsigned parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "WAIT:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra DONE;\n"
                 "bra WAIT;\n"
                 "DONE:\n"
                 "}" ::"r"(hopper_shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* ---- TMA ---- */

__device__ __forceinline__ void tma_load_2d(void *shared, const CUtensorMap *map, int column,
                                                   int row, uint64_t *barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(hopper_shared_address(shared)),
                 "l"(map), "r"(hopper_shared_address(barrier)), "r"(column), "r"(row)
                 : "memory");
}

/* Host: a row-major bf16 matrix, loaded in tiles with the 128-byte swizzle, zeroes outside. */
inline CUtensorMap tensor_map_2d(const void *base, int rows, int columns, int tile_rows,
                                        int tile_columns) {
    CUtensorMap map;
    cuuint64_t extent[2] = {(cuuint64_t)columns, (cuuint64_t)rows};
    cuuint64_t pitch[1] = {(cuuint64_t)columns * 2};
    cuuint32_t tile[2] = {(cuuint32_t)tile_columns, (cuuint32_t)tile_rows};
    cuuint32_t step[2] = {1, 1};
    cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)base, extent, pitch,
                           tile, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                           CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return map;
}

/* ---- wgmma ---- */

/* A tile of 8-row groups, 128 bytes a row, 128-byte swizzle: start / 16, leading offset 1 (unused),
   1024 bytes from group to group, swizzle mode 1. */
__device__ __forceinline__ uint64_t wgmma_descriptor(const void *shared) {
    uint64_t start = (hopper_shared_address(shared) & 0x3ffff) >> 4;
    return start | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int groups_left> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups_left) : "memory");
}

/* d += a b^T for a 64 x 16 and a 64 x 16 tile; d is the warpgroup's 64 x 64 in 32 registers
   each. */
__device__ __forceinline__ void wgmma_m64n64k16_bf16(float d[32], uint64_t a, uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
          "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
          "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]),
          "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
        : "l"(a), "l"(b));
}

#endif
