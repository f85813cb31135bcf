/* Tensor cores by mma.sync: what A100 and later have. A block has a tile of 128 x 128 of out, eight
   warps 64 x 32 of it each (64 x 64 spill on an A100), and three stages of 64 elements of k on
   their way (tile_product.cuh); in float32 multiply-adds on the same tiles.

       flop     192 bytes from shared memory for an mma of 4096 flop
       bytes    64 flop for each that is copied, mostly from the L2 cache

   Blocks go down 8 tiles of rows before they go a tile across, so that those that run together
   read the same rows of x and of w. */
#include "../../llmc/kernels/tile_product.cuh"
#include "lab.cuh"

typedef Tile<128, 128, 64, 32, 1, 1, 3> Square;

enum { DOWN_FIRST = 8 };

static __global__ void __launch_bounds__(Square::THREADS)
    product_kernel(floatX *out, TileRows x, TileRows w, const floatX *bias, int C) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int down = ceil_div(x.end, Square::ROWS), across = ceil_div(w.end, Square::COLUMNS);
    const int group = blockIdx.x / (DOWN_FIRST * across), first = group * DOWN_FIRST;
    const int here = min_int(DOWN_FIRST, down - first), at = blockIdx.x % (DOWN_FIRST * across);
    const int row0 = (first + at % here) * Square::ROWS, column0 = at / here * Square::COLUMNS;
    TileProduct product = {x, w, NULL, row0, column0, C, shared};
    TileSums<Square> sum;
    tile_product_begin<Square>(product);
    tile_product(&sum, product);
#pragma unroll
    for (int r = 0; r < Square::LANE_ROWS; r++)
#pragma unroll
        for (int c = 0; c < Square::LANE_COLUMNS; c++) {
            const int row = row0 + lane_row<Square>(r), column = column0 + lane_column<Square>(c);
            if (row >= x.end || column >= w.end) continue;
            const float y = *lane_sum(&sum, r, c) + (bias ? to_f(bias[column]) : 0.0f);
            out[(size_t)row * w.end + column] = from_f<floatX>(y);
        }
}

static void matmul_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias, int N,
                           int C, int OC) {
    const TileRows rows = tile_rows(x, (size_t)C, N), weight = tile_rows(w, (size_t)C, OC);
    const int blocks = ceil_div(N, Square::ROWS) * ceil_div(OC, Square::COLUMNS);
    if (N == 0) return;
    ALLOW_SHARED(Square::SHARED, product_kernel);
    product_kernel<<<blocks, Square::THREADS, Square::SHARED, cuda.stream>>>(out, rows, weight,
                                                                            bias, C);
    CUDA_CHECK_LAUNCH();
}

static void fill(struct Ops *ops) {
    lab_unused();
    ops->matmul_forward = matmul_forward;
}

extern const struct KernelFile PER_TYPE(matmul_mma) = {"matmul_mma", fill, no_workspace};
