/* Tensor cores: a block has a tile of 16 x 32 elements of out, or of 64 x 32 where there are more
   than 16 rows, and goes along all of K, with eight stages of cp.async on their way
   (tile_product.cuh).

       bytes    w once for 64 rows, and 28 KB of it on its way in each block
       blocks   OC / 32 of them up to 64 rows: OC = 1024 is 32 blocks on 132 multiprocessors, and
                the others wait. That is what the next version mends.

   Sums have the order of K in both tiles, so a row's bits do not depend on the number of rows.
   Weights are as what ships packs them. */
#include "../../llmc/kernels/tile_product.cuh"
#include "lab.cuh"

typedef Tile<16, 32, 16, 16, 1, 1, 8> FewRows;
typedef Tile<64, 32, 32, 16, 1, 1, 8> ManyRows;

template <class T>
static __global__ void __launch_bounds__(T::THREADS)
    tile_kernel(floatX *out, TileRows x, TileRows w, const floatX *bias, int C, int row_tiles) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int first_row = blockIdx.x % row_tiles * T::ROWS;
    const int first = blockIdx.x / row_tiles * T::COLUMNS, R = x.end, OC = w.end;
    TileProduct product = {x, w, NULL, first_row, first, C, shared};
    TileSums<T> sum;
    tile_product_begin<T>(product);
    tile_product(&sum, product);
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r++)
#pragma unroll
        for (int c = 0; c < T::LANE_COLUMNS; c++) {
            const int row = first_row + lane_row<T>(r), column = first + lane_column<T>(c);
            if (row >= R || column >= OC) continue;
            const float y = *lane_sum(&sum, r, c) + (bias ? to_f(bias[column]) : 0.0f);
            out[(size_t)row * OC + column] = from_f<floatX>(y);
        }
}

template <class T>
static void launch(floatX *out, const TileRows &x, const TileRows &w, const floatX *bias, int C) {
    const int row_tiles = ceil_div(x.end, T::ROWS);
    ALLOW_SHARED(T::SHARED, tile_kernel<T>);
    tile_kernel<T><<<row_tiles * ceil_div(w.end, T::COLUMNS), T::THREADS, T::SHARED, cuda.stream>>>(
        out, x, w, bias, C, row_tiles);
    CUDA_CHECK_LAUNCH();
}

static void matmul_decode(floatX *out, const floatX *x, const void *packed, const floatX *bias,
                          int R, int C, int OC) {
    const TileRows rows = tile_rows(x, (size_t)C, R);
    const TileRows weight = tile_rows((const floatX *)packed, packed_stride(C), OC);
    if (R == 0) return;
    if (R <= FewRows::ROWS) launch<FewRows>(out, rows, weight, bias, C);
    else launch<ManyRows>(out, rows, weight, bias, C);
}

static void fill(struct Ops *ops) {
    lab_unused();
    ops->matmul_decode = matmul_decode;
}

extern const struct KernelFile PER_TYPE(decode_tiles) = {"decode_tiles", fill, no_workspace};
