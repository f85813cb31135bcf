/* Shared declarations in an included file: cu2cpp has to see these too. */
#pragma once
#include <cuda_runtime.h>

__device__ inline int block_total(int value) {
    __shared__ int total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    atomicAdd(&total, value);
    __syncthreads();
    int result = total;
    __syncthreads();
    return result;
}
