/* C [M,N] = A [M,K] B [N,K]^T on Hopper: one thread starts TMA loads into two stages, one warpgroup
   multiplies with wgmma; mbarriers say when a stage is full and when it is empty again. */
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include "kernels.h"
#include "../../../llmc/kernels/ptx_hopper.cuh"

enum { TILE = 64, STAGES = 2, CONSUMERS = 128, TILE_BYTES = TILE * TILE * 2 };

struct Pipeline {
    unsigned char *a, *b; /* STAGES tiles each */
    uint64_t *full, *empty;
};

__device__ void produce(const Pipeline &p, const CUtensorMap *map_a, const CUtensorMap *map_b,
                        int m0, int n0, int num_tiles) {
    for (int t = 0; t < num_tiles; t++) {
        int s = t % STAGES;
        if (t >= STAGES && !BUG(1)) /* BUG 1: does not wait until the stage is empty */
            mbarrier_wait(&p.empty[s], (t / STAGES & 1) ^ 1);
        mbarrier_arrive_expect(&p.full[s], 2 * TILE_BYTES);
        tma_load_2d(p.a + s * TILE_BYTES, map_a, t * TILE, m0, &p.full[s]);
        tma_load_2d(p.b + s * TILE_BYTES, map_b, t * TILE, n0, &p.full[s]);
    }
}

__device__ void consume(float d[32], const Pipeline &p, int num_tiles) {
    for (int t = 0; t < num_tiles; t++) {
        int s = t % STAGES;
        if (!BUG(2)) mbarrier_wait(&p.full[s], t / STAGES & 1); /* BUG 2: stage not yet full */
        if (!BUG(4)) wgmma_fence(); /* BUG 4: registers not handed over */
        for (int k = 0; k < TILE; k += 16)
            wgmma_ss<__nv_bfloat16, TILE>(d, wgmma_descriptor(p.a + s * TILE_BYTES + k * 2),
                                          wgmma_descriptor(p.b + s * TILE_BYTES + k * 2), 1);
        wgmma_commit();
        if (BUG(3)) wgmma_wait<1>(); /* BUG 3: releases a stage that is still being read */
        else wgmma_wait<0>();
        mbarrier_arrive(&p.empty[s]);
    }
}

__global__ void __launch_bounds__(CONSUMERS + 32)
    gemm_hopper_kernel(__nv_bfloat16 *__restrict__ C, const __grid_constant__ CUtensorMap map_a,
                       const __grid_constant__ CUtensorMap map_b, int M, int N, int K) {
    extern __shared__ __align__(1024) unsigned char shared[];
    uint64_t *barriers = (uint64_t *)(shared + 2 * STAGES * TILE_BYTES);
    Pipeline p = {shared, shared + STAGES * TILE_BYTES, barriers, barriers + STAGES};
    int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE, num_tiles = (K + TILE - 1) / TILE;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&p.full[s], 1);
            mbarrier_init(&p.empty[s], CONSUMERS);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        if (threadIdx.x == CONSUMERS) produce(p, &map_a, &map_b, m0, n0, num_tiles);
        return;
    }
    float d[32] = {};
    consume(d, p, num_tiles);
    int lane = threadIdx.x % 32, row0 = m0 + threadIdx.x / 32 * 16 + lane / 4;
    for (int i = 0; i < 32; i++) {
        int row = row0 + 8 * (i / 2 % 2), column = n0 + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (row < M && column < N) C[(size_t)row * N + column] = __float2bfloat16(d[i]);
    }
}

void gemm_hopper(unsigned short *C, const unsigned short *A, const unsigned short *B, int M, int N,
                 int K) {
    CUtensorMap map_a = tensor_map_2d((const __nv_bfloat16 *)A, M, K, (size_t)K, TILE, TILE);
    CUtensorMap map_b = tensor_map_2d((const __nv_bfloat16 *)B, N, K, (size_t)K, TILE, TILE);
    int bytes = 2 * STAGES * TILE_BYTES + 2 * STAGES * (int)sizeof(uint64_t);
    cudaFuncSetAttribute(gemm_hopper_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    dim3 grid((N + TILE - 1) / TILE, (M + TILE - 1) / TILE);
    gemm_hopper_kernel<<<grid, CONSUMERS + 32, bytes>>>((__nv_bfloat16 *)C, map_a, map_b, M, N, K);
}
