/* A warp for each column of out, and up to eight rows of it at once: a lane loads 16 bytes of w,
   multiplies them with the same 16 bytes of eight rows of x, and the lanes' sums are added at the
   end.

             k      lane 0 | lane 1 | ..  | lane 31 | lane 0 | ..
       w row     --> 512 bytes of neighbours in one load
       x rows    --> the same places of 8 rows; from the first cache level, as every warp of a
                     multiprocessor reads them

       bytes   w once for eight rows, in whole lines; each 16 bytes of it cost 8 loads of x
       flop    2 for an element of w and row, by FMAs: at 8 rows 16 flop for 2 bytes, which a
               multiprocessor's FMAs outrun; at 64 rows they are the limit

   The sum of a row has the same order whatever rows are beside it. Weights are as what ships packs
   them. */
#include "../../llmc/kernels/tile_product.cuh"
#include "lab.cuh"

enum { COLUMNS = 8, ROWS = 8 }; /* of a block: warps, and rows that share a load of w */

/* sum [ROWS] of each lane, added over the lanes: lane i gets that of row i % ROWS. In each of three
   exchanges a lane gives away the half of its sums that is not for it: 9 shuffles for 8 rows. */
static __device__ __forceinline__ float sum_rows(float sum[ROWS], int lane) {
#pragma unroll
    for (int half = ROWS / 2; half > 0; half /= 2)
#pragma unroll
        for (int r = 0; r < half; r++) {
            const float low = sum[r], high = sum[r + half];
            const float other = __shfl_xor_sync(FULL_WARP, lane & half ? low : high, half);
            sum[r] = (lane & half ? high : low) + other;
        }
#pragma unroll
    for (int lanes = ROWS; lanes < WARP; lanes *= 2)
        sum[0] += __shfl_xor_sync(FULL_WARP, sum[0], lanes);
    return sum[0];
}

template <bool WHOLE> /* rows of both may be read 16 bytes at a time */
static __global__ void __launch_bounds__(COLUMNS * WARP)
    warp_kernel(floatX *out, const floatX *x, const floatX *w, const floatX *bias, int R, int C,
                int OC) {
    const int column = blockIdx.x * COLUMNS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first = blockIdx.y * ROWS;
    if (column >= OC) return; /* the whole warp */
    float sum[ROWS] = {};
    w += column * packed_stride(C), x += (size_t)first * C;
    for (int k = lane * VEC; k < C; k += WARP * VEC) {
        float of_w[VEC], of_x[VEC];
        load_some(of_w, w + k, C - k, WHOLE);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (first + r >= R) break;
            load_some(of_x, x + (size_t)r * C + k, C - k, WHOLE);
#pragma unroll
            for (int j = 0; j < VEC; j++) sum[r] = fmaf(of_x[j], of_w[j], sum[r]);
        }
    }
    const float total = sum_rows(sum, lane);
    if (lane < ROWS && first + lane < R)
        out[(size_t)(first + lane) * OC + column] =
            from_f<floatX>(bias ? total + to_f(bias[column]) : total);
}

static void matmul_decode(floatX *out, const floatX *x, const void *packed, const floatX *bias,
                          int R, int C, int OC) {
    const dim3 grid(ceil_div(OC, COLUMNS), ceil_div(R, ROWS));
    const floatX *w = (const floatX *)packed;
    if (R == 0) return;
    if (rows_aligned(x, (size_t)C, sizeof(floatX)) &&
        rows_aligned(w, packed_stride(C), sizeof(floatX)))
        warp_kernel<true><<<grid, COLUMNS * WARP, 0, cuda.stream>>>(out, x, w, bias, R, C, OC);
    else
        warp_kernel<false><<<grid, COLUMNS * WARP, 0, cuda.stream>>>(out, x, w, bias, R, C, OC);
    CUDA_CHECK_LAUNCH();
}

static void fill(struct Ops *ops) {
    lab_unused();
    ops->matmul_decode = matmul_decode;
}

extern const struct KernelFile PER_TYPE(decode_warp) = {"decode_warp", fill, no_workspace};
