/* C [M,N] = A [M,K] B [N,K]^T on tensor cores: 64 x 64 x 32 tiles, 4 warps, two stages of
   cp.async. */
#include <cuda_runtime.h>
#include "../../../llmc/kernels/ptx.cuh"
#include "kernels.h"

enum { TILE_M = 64, TILE_N = 64, TILE_K = 32, THREADS = 128 };

/* Where the 16-byte chunk (0 to 3) of a row lies: exchanged so that ldmatrix meets no bank
   twice. */
__device__ __forceinline__ int swizzled(int row, int chunk) {
    return row * TILE_K + (chunk ^ (row / 2 % 4)) * 8;
}

/* Starts the copy of one tile: rows [row0, row0 + 64) of X [rows,K], columns [k0, k0 + 32). */
template <class T>
__device__ __forceinline__ void load_tile(T *tile, const T *X, int row0, int rows, int k0, int K) {
    for (int i = threadIdx.x; i < TILE_M * 4; i += THREADS) {
        int row = row0 + i / 4, chunk = i % 4, k = k0 + chunk * 8;
        int bytes = row < rows && k < K ? min(16, (K - k) * 2) : 0;
        const T *from = bytes ? X + (size_t)row * K + k : X;
        cp_async16(&tile[swizzled(i / 4, chunk)], from, bytes);
    }
}

/* This warp's 32 x 32 part of the product of two tiles. */
template <class T>
__device__ __forceinline__ void multiply_tiles(float sum[2][4][4], const T *A, const T *B) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int warp_m = warp % 2 * 32, warp_n = warp / 2 * 32;
    for (int step = 0; step < TILE_K / 16; step++) {
        uint32_t a[2][4], b[2][4];
        for (int i = 0; i < 2; i++) {
            int row = warp_m + i * 16 + lane % 16, chunk = step * 2 + lane / 16;
            ldmatrix_x4(a[i], &A[swizzled(row, chunk)]);
        }
        for (int j = 0; j < 2; j++) {
            int row = warp_n + j * 16 + lane % 8 + lane / 16 * 8, chunk = step * 2 + lane / 8 % 2;
            ldmatrix_x4(b[j], &B[swizzled(row, chunk)]);
        }
        for (int i = 0; i < 2; i++)
            for (int j = 0; j < 4; j++)
                mma_m16n8k16<T>(sum[i][j], a[i], &b[j / 2][j % 2 * 2], sum[i][j]);
    }
}

template <class T>
__device__ __forceinline__ void store_tile(T *C, const float sum[2][4][4], int m0, int n0, int M,
                                           int N) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 4; j++) {
            for (int half_tile = 0; half_tile < 2; half_tile++) {
                int row = m0 + warp % 2 * 32 + i * 16 + lane / 4 + half_tile * 8;
                int column = n0 + warp / 2 * 32 + j * 8 + lane % 4 * 2;
                const float *pair = &sum[i][j][half_tile * 2];
                T *out = C + (size_t)row * N + column;
                if (row >= M || column >= N) continue;
                if (N % 2 == 0) {
                    *(uint32_t *)out = pack_pair<T>(pair[0], pair[1]);
                } else {
                    out[0] = (T)pair[0];
                    if (column + 1 < N) out[1] = (T)pair[1];
                }
            }
        }
    }
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    gemm_kernel(T *__restrict__ C, const T *__restrict__ A, const T *__restrict__ B, int M, int N,
                int K) {
    __shared__ __align__(128) T tile_a[2][TILE_M * TILE_K], tile_b[2][TILE_N * TILE_K];
    int m0 = blockIdx.y * TILE_M, n0 = blockIdx.x * TILE_N, num_tiles = (K + TILE_K - 1) / TILE_K;
    float sum[2][4][4] = {};

    load_tile(tile_a[0], A, m0, M, 0, K);
    load_tile(tile_b[0], B, n0, N, 0, K);
    cp_async_commit();
    for (int t = 0; t < num_tiles; t++) {
        if (t + 1 < num_tiles) {
            load_tile(tile_a[(t + 1) % 2], A, m0, M, (t + 1) * TILE_K, K);
            load_tile(tile_b[(t + 1) % 2], B, n0, N, (t + 1) * TILE_K, K);
        }
        cp_async_commit();
        if (BUG(1)) cp_async_wait<2>(); /* BUG 1: one group too few */
        else cp_async_wait<1>();
        if (!BUG(2)) __syncthreads();   /* BUG 2: the other threads' copies may not have landed */
        multiply_tiles(sum, tile_a[t % 2], tile_b[t % 2]);
        if (!BUG(3)) __syncthreads();   /* BUG 3: the next load overwrites what is still read */
    }
    store_tile(C, sum, m0, n0, M, N);
}

template <class T>
static void gemm(unsigned short *C, const unsigned short *A, const unsigned short *B, int M, int N,
                 int K) {
    dim3 grid((N + TILE_N - 1) / TILE_N, (M + TILE_M - 1) / TILE_M);
    gemm_kernel<T><<<grid, THREADS>>>((T *)C, (const T *)A, (const T *)B, M, N, K);
}

void gemm_bf16(unsigned short *C, const unsigned short *A, const unsigned short *B, int M, int N,
               int K) {
    gemm<__nv_bfloat16>(C, A, B, M, N, K);
}

void gemm_half(unsigned short *C, const unsigned short *A, const unsigned short *B, int M, int N,
               int K) {
    gemm<__half>(C, A, B, M, N, K);
}
