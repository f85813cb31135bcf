/* One block per row: online log-sum-exp, entropy of the softmax, log-probability of a target. */
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include "kernels.h"

/* Of some elements x of a row: their maximum, sum exp(x - max), sum exp(x - max) x. */
struct Moments {
    float max, sum, weighted;
};

__device__ __forceinline__ Moments merge(Moments a, Moments b) {
    float max = fmaxf(a.max, b.max);
    if (max == -INFINITY) return Moments{max, 0.0f, 0.0f};
    float ea = __expf(a.max - max), eb = __expf(b.max - max);
    return Moments{max, a.sum * ea + b.sum * eb, a.weighted * ea + b.weighted * eb};
}

__device__ __forceinline__ Moments warp_merge(Moments v) {
    for (int offset = 16; offset > 0; offset >>= 1) {
        Moments other{__shfl_down_sync(0xffffffffu, v.max, offset),
                      __shfl_down_sync(0xffffffffu, v.sum, offset),
                      __shfl_down_sync(0xffffffffu, v.weighted, offset)};
        v = merge(v, other);
    }
    return v;
}

/* 8 bf16 elements, loaded as 16 bytes. */
__device__ __forceinline__ Moments merge_8(Moments a, const __nv_bfloat16 *x) {
    union {
        uint4 all;
        __nv_bfloat162 pair[4];
    } packed;
    packed.all = *(const uint4 *)x;
    for (int k = 0; k < 4; k++) {
        float2 f = __bfloat1622float2(packed.pair[k]);
        a = merge(a, Moments{f.x, 1.0f, f.x});
        a = merge(a, Moments{f.y, 1.0f, f.y});
    }
    return a;
}

__global__ void row_lse_entropy_kernel(float *lse, float *entropy, float *logp,
                                       const __nv_bfloat16 *__restrict__ logits,
                                       const int *__restrict__ target, int V, int Vp) {
    __shared__ Moments part[32];
    const __nv_bfloat16 *x = logits + (size_t)blockIdx.x * Vp;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
    Moments a{-INFINITY, 0.0f, 0.0f};

    int whole = BUG(1) ? (V + 7) / 8 * 8 : V / 8 * 8; /* BUG 1: the tail reads padding columns */
    for (int i = threadIdx.x * 8; i < whole; i += blockDim.x * 8) a = merge_8(a, x + i);
    for (int i = whole + threadIdx.x; i < V; i += blockDim.x) {
        float f = __bfloat162float(x[i]);
        a = merge(a, Moments{f, 1.0f, f});
    }

    a = warp_merge(a);
    if (lane == 0) part[warp] = a;
    __syncthreads();
    if (warp != 0) return;
    a = lane < num_warps ? part[lane] : Moments{-INFINITY, 0.0f, 0.0f};
    if (!BUG(2) || lane < num_warps) a = warp_merge(a); /* BUG 2: a full mask, but few lanes come */
    if (lane != 0) return;
    float total = a.max + __logf(a.sum);
    lse[blockIdx.x] = total;
    entropy[blockIdx.x] = total - a.weighted / a.sum;
    logp[blockIdx.x] = __bfloat162float(x[target[blockIdx.x]]) - total;
}

void row_lse_entropy(float *lse, float *entropy, float *logp, const unsigned short *logits,
                     const int *target, int rows, int V, int Vp) {
    row_lse_entropy_kernel<<<rows, 512>>>(lse, entropy, logp, (const __nv_bfloat16 *)logits, target,
                                          V, Vp);
}
