/* Linear layers, for the files that have some (matmul.cu, mlp.cu).

       out = x w^T + bias          out [N,OC], x [N,C], w [OC,C]
       dx  = dout w                dw += dout^T x,   dbias += sum_n dout_n

   The three products are cuBLASLt's (gemm.cuh). A bias is added to the float32 sums before they are
   rounded; where the library cannot, the bias is written to out first, exactly, and the product
   added onto it: one rounding in either case.

   dbias is a sum down the columns of dout, in two steps and always in the same order:

             256 columns of a block (128 in float32): a lane reads 16 bytes of a row
            +--------+--------+----        slice of 64 rows or more (128 slices at most):
       rows |  block |  block |              warp w adds rows w, w + 8, ...; then the 8 warps' sums
            |  0,0   |  1,0   |              are added in order -> partial [slices, OC]
            +--------+--------+----
            |  0,1   |  1,1   |            second kernel: dbias += the slices, in the same manner
            +--------+--------+----

   It reads dout once, N * OC elements, and writes and reads 1/64 as many floats: 3 % (float32) to
   6 % (narrow) above the floor. */
#pragma once
#include "cuda_common.cuh"
#include "gemm.cuh"

enum { SUM_WARPS = 8, SLICE_ROWS = 64, MOST_SLICES = 128, FILL_THREADS = 256 };

static inline int slice_rows(int N) { return max_int(SLICE_ROWS, ceil_div(N, MOST_SLICES)); }

/* Bytes of scratch that linear_backward needs; grows with both arguments. */
static inline size_t linear_workspace(int N, int OC) {
    return (size_t)min_int(MOST_SLICES, ceil_div(N, SLICE_ROWS)) * OC * sizeof(float);
}

/* ---- bias ------------------------------------------------------------------------------------ */

static __global__ void fill_rows_kernel(floatX *out, const floatX *bias, int OC) {
    for (int o = threadIdx.x; o < OC; o += FILL_THREADS)
        out[(size_t)blockIdx.x * OC + o] = bias[o];
}

static inline void fill_rows(floatX *out, const floatX *bias, int N, int OC) {
    if (N == 0) return;
    fill_rows_kernel<<<N, FILL_THREADS, 0, cuda.stream>>>(out, bias, OC);
    CUDA_CHECK_LAUNCH();
}

/* partial [slices,OC] = the column sums of each slice of `rows` rows. */
static __global__ void __launch_bounds__(SUM_WARPS * WARP)
column_sums_kernel(float *partial, const floatX *dout, int N, int OC, int rows, bool whole) {
    __shared__ float sums[SUM_WARPS][VEC][WARP + 1]; /* + 1: read across, see below */
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int column = (blockIdx.x * WARP + lane) * VEC, end = min_int(N, (blockIdx.y + 1) * rows);
    float sum[VEC] = {0};
#pragma unroll 4
    for (int n = blockIdx.y * rows + warp; n < end; n += SUM_WARPS) {
        float x[VEC];
        load_some(x, dout + (size_t)n * OC + column, OC - column, whole);
#pragma unroll
        for (int i = 0; i < VEC; i++) sum[i] += x[i];
    }
#pragma unroll
    for (int i = 0; i < VEC; i++) sums[warp][i][lane] = sum[i];
    __syncthreads();
    for (int c = threadIdx.x; c < WARP * VEC; c += SUM_WARPS * WARP) {
        int o = blockIdx.x * WARP * VEC + c;
        if (o >= OC) continue;
        float total = 0;
        for (int w = 0; w < SUM_WARPS; w++) total += sums[w][c % VEC][c / VEC];
        partial[(size_t)blockIdx.y * OC + o] = total;
    }
}

/* out [OC] += the sum of partial [slices,OC] over slices. A lane has a column, a warp each eighth
   slice. */
static __global__ void __launch_bounds__(SUM_WARPS * WARP)
add_slices_kernel(float *out, const float *partial, int slices, int OC) {
    __shared__ float sums[SUM_WARPS][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, o = blockIdx.x * WARP + lane;
    float sum = 0;
#pragma unroll 8
    for (int s = warp; s < slices; s += SUM_WARPS)
        if (o < OC) sum += partial[(size_t)s * OC + o];
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || o >= OC) return;
    for (int w = 1; w < SUM_WARPS; w++) sum += sums[w][lane];
    out[o] += sum;
}

static inline void add_column_sums(float *dbias, const floatX *dout, int N, int OC,
                                   void *workspace) {
    if (N == 0) return;
    float *partial = (float *)workspace;
    int rows = slice_rows(N), slices = ceil_div(N, rows);
    dim3 grid(ceil_div(OC, WARP * VEC), slices);
    column_sums_kernel<<<grid, SUM_WARPS * WARP, 0, cuda.stream>>>(
        partial, dout, N, OC, rows, rows_aligned(dout, OC, sizeof *dout));
    CUDA_CHECK_LAUNCH();
    add_slices_kernel<<<ceil_div(OC, WARP), SUM_WARPS * WARP, 0, cuda.stream>>>(dbias, partial,
                                                                               slices, OC);
    CUDA_CHECK_LAUNCH();
}

/* ---- the layer ------------------------------------------------------------------------------- */

/* bias may be NULL. */
static inline void linear_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias,
                                  int N, int C, int OC) {
    struct Matrix to = matrix(out, OC), a = matrix(x, C), b = matrix(w, C);
    if (bias && gemm_with(GEMM_BIAS, bias, GEMM_NT, to, a, b, N, OC, C)) return;
    if (bias) fill_rows(out, bias, N, OC);
    gemm(GEMM_NT, to, a, b, N, OC, C, 1.0f, bias ? 1.0f : 0.0f);
}

/* dx, dbias may be NULL; workspace: linear_workspace(N, OC). */
static inline void linear_backward(floatX *dx, float *dw, float *dbias, const floatX *dout,
                                   const floatX *x, const floatX *w, int N, int C, int OC,
                                   void *workspace) {
    struct Matrix slope = matrix(dout, OC);
    if (dx) gemm(GEMM_NN, matrix(dx, C), slope, matrix(w, C), N, C, OC, 1.0f, 0.0f);
    gemm(GEMM_TN, matrix(dw, C), slope, matrix(x, C), OC, C, N, 1.0f, 1.0f);
    if (dbias) add_column_sums(dbias, dout, N, OC, workspace);
}
