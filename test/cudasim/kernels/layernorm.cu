/* Layer norm forward, one block per row. */
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include "kernels.h"

__device__ __forceinline__ float warp_sum(float v) {
    unsigned mask = BUG(3) ? 0x0000ffffu : 0xffffffffu; /* BUG 3: half the warp is left out */
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(mask, v, offset);
    return v;
}

__device__ float block_sum(float v) {
    __shared__ float part[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, num_warps = blockDim.x / 32;
    v = warp_sum(v);
    int slot = BUG(2) ? warp * 16 : warp; /* BUG 2: past the end from warp 2 on */
    if (lane == 0) part[slot] = v;
    if (!BUG(1)) __syncthreads();         /* BUG 1: reads before the others have written */
    int count = BUG(4) ? num_warps + 1 : num_warps; /* BUG 4: one slot that nobody wrote */
    v = lane < count ? part[lane] : 0.0f;
    v = warp_sum(v);
    if (!BUG(5)) __syncthreads(); /* BUG 5: the next call overwrites what is still being read */
    return v;
}

template <class T>
__global__ void __launch_bounds__(1024)
    layernorm_kernel(T *__restrict__ out, float *__restrict__ mean, float *__restrict__ rstd,
                     const T *__restrict__ input, const T *__restrict__ weight,
                     const T *__restrict__ bias, int C) {
    const T *x = input + (size_t)blockIdx.x * C;
    T *y = out + (size_t)blockIdx.x * C;
    int end = BUG(6) ? C + 1 : C; /* BUG 6: one element of the next row, or past the buffer */

    float sum = 0.0f;
    for (int i = threadIdx.x; i < end; i += blockDim.x) sum += (float)x[i];
    float m = block_sum(sum) / C;

    float squares = 0.0f;
    for (int i = threadIdx.x; i < C; i += blockDim.x) {
        float d = (float)x[i] - m;
        squares += d * d;
    }
    if (!BUG(7) || threadIdx.x < 40) squares = block_sum(squares); /* BUG 7: divergent barrier */
    float r = rsqrtf(squares / C + 1e-5f);

    if (threadIdx.x == 0 && mean) {
        mean[blockIdx.x] = m;
        rstd[blockIdx.x] = r;
        if (BUG(8)) mean[0] += 0.0f * r; /* BUG 8: every block updates one place, not atomically */
    }
    for (int i = threadIdx.x; i < C; i += blockDim.x)
        y[i] = (T)(((float)x[i] - m) * r * (float)weight[i] + (float)bias[i]);
}

void layernorm_forward(float *out, float *mean, float *rstd, const float *x, const float *weight,
                       const float *bias, int N, int C) {
    int threads = C >= 512 ? 256 : 128;
    layernorm_kernel<float><<<N, threads>>>(out, mean, rstd, x, weight, bias, C);
}

void layernorm_forward_bf16(unsigned short *out, const unsigned short *x,
                            const unsigned short *weight, const unsigned short *bias, int N,
                            int C) {
    typedef __nv_bfloat16 bf16;
    layernorm_kernel<bf16><<<dim3(N), 128, 0, 0>>>((bf16 *)out, nullptr, nullptr, (const bf16 *)x,
                                                   (const bf16 *)weight, (const bf16 *)bias, C);
}
