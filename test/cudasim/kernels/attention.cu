/* Causal attention forward in fp32: one block per 32 queries, head and sequence; 4 threads a
   query. */
#include <cuda_runtime.h>
#include "kernels.h"

enum { QUERIES = 32, KEYS = 32, LANES = 4 };

template <int HS>
__global__ void attention_kernel(float *__restrict__ out, float *__restrict__ lse,
                                 const float *__restrict__ qkv, int T, int NH, float scale) {
    extern __shared__ float shared[];
    const int pitch = HS + 1; /* rows one float longer: no bank conflicts down a column */
    float *K = shared, *V = K + KEYS * pitch, *Q = V + KEYS * pitch, *P = Q + QUERIES * pitch;
    int b = blockIdx.z, h = blockIdx.y, q0 = blockIdx.x * QUERIES;
    int row = threadIdx.x / LANES, sub = threadIdx.x % LANES, q = q0 + row;
    size_t stride = (size_t)3 * NH * HS;
    const float *base = qkv + (size_t)b * T * stride + h * HS;

    for (int i = threadIdx.x; i < QUERIES * HS; i += blockDim.x) {
        int r = i / HS, c = i % HS;
        Q[r * pitch + c] = q0 + r < T ? base[(size_t)(q0 + r) * stride + c] * scale : 0.0f;
    }
    float max = -INFINITY, sum = 0.0f, acc[HS / LANES];
    for (int c = 0; c < HS / LANES; c++) acc[c] = 0.0f;

    int num_tiles = (min(q0 + QUERIES, T) + KEYS - 1) / KEYS;
    for (int tile = 0; tile < num_tiles; tile++) {
        int k0 = tile * KEYS;
        if (!BUG(1)) __syncthreads(); /* BUG 1: tiles overwritten while the previous are read */
        for (int i = threadIdx.x; i < KEYS * HS; i += blockDim.x) {
            int r = i / HS, c = i % HS;
            bool inside = k0 + r < T || BUG(4); /* BUG 4: no guard for the last tile */
            size_t at = (size_t)(k0 + r) * stride + c;
            K[r * pitch + c] = inside ? base[at + NH * HS] : 0.0f;
            V[r * pitch + c] = inside ? base[at + 2 * NH * HS] : 0.0f;
        }
        if (!BUG(2) || tile == 0) __syncthreads(); /* BUG 2: a barrier for the first tile only */

        float tile_max = -INFINITY;
        for (int j = sub; j < KEYS; j += LANES) {
            float s = 0.0f;
            for (int c = 0; c < HS; c++) s += Q[row * pitch + c] * K[j * pitch + c];
            if (k0 + j > q || k0 + j >= T) s = -INFINITY;
            P[row * (KEYS + 1) + j] = s;
            tile_max = fmaxf(tile_max, s);
        }
        for (int offset = LANES / 2; offset > 0; offset >>= 1)
            tile_max = fmaxf(tile_max, __shfl_xor_sync(0xffffffffu, tile_max, offset));
        float new_max = fmaxf(max, tile_max), tile_sum = 0.0f;
        float correction = max == -INFINITY ? 0.0f : __expf(max - new_max);
        for (int j = sub; j < KEYS; j += LANES) {
            float s = P[row * (KEYS + 1) + j], p = s == -INFINITY ? 0.0f : __expf(s - new_max);
            P[row * (KEYS + 1) + j] = p;
            tile_sum += p;
        }
        for (int offset = LANES / 2; offset > 0; offset >>= 1)
            tile_sum += __shfl_xor_sync(0xffffffffu, tile_sum, offset);
        sum = sum * correction + tile_sum;
        max = new_max;
        if (!BUG(3)) __syncwarp(); /* BUG 3: the row's probabilities come from its 4 lanes */
        for (int c = 0; c < HS / LANES; c++) {
            float value = acc[c] * correction;
            for (int j = 0; j < KEYS; j++)
                value += P[row * (KEYS + 1) + j] * V[j * pitch + sub * (HS / LANES) + c];
            acc[c] = value;
        }
    }
    if (q >= T) return;
    float *to = out + ((size_t)(b * T + q) * NH + h) * HS + sub * (HS / LANES);
    for (int c = 0; c < HS / LANES; c++) to[c] = acc[c] / sum;
    if (sub == 0) lse[((size_t)b * NH + h) * T + q] = max + __logf(sum);
}

template <int HS>
static int launch(float *out, float *lse, const float *qkv, int B, int T, int NH) {
    size_t floats = (size_t)(2 * KEYS + QUERIES) * (HS + 1) + QUERIES * (KEYS + 1);
    int bytes = (int)(floats * sizeof(float)) - (BUG(5) ? 64 : 0); /* BUG 5: asks for too little */
    if (bytes > 48 * 1024 && !BUG(6)) /* BUG 6: more than 48 KB must be opted in to */
        cudaFuncSetAttribute(attention_kernel<HS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             bytes);
    dim3 grid((T + QUERIES - 1) / QUERIES, NH, B);
    attention_kernel<HS><<<grid, QUERIES * LANES, bytes>>>(out, lse, qkv, T, NH,
                                                           1.0f / sqrtf((float)HS));
    return (int)cudaGetLastError();
}

int attention_forward(float *out, float *lse, const float *qkv, int B, int T, int NH, int HS) {
    switch (HS) {
    case 16: return launch<16>(out, lse, qkv, B, T, NH);
    case 64: return launch<64>(out, lse, qkv, B, T, NH);
    case 128: return launch<128>(out, lse, qkv, B, T, NH);
    default: return -1;
    }
}
