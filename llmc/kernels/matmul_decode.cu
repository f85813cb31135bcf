/* The matrix product of a decode step, for a weight that is the same for thousands of steps:

       out = gelu(x w^T + bias)          out [R,OC], x [R,C], w [OC,C]

   With few rows every weight is read for two flop per row: the bound is memory. Then what counts is
   how many bytes are on their way, from as many multiprocessors as possible, so a block takes only
   16 columns and long stages. With more rows, wider tiles read x and w less often. K is split over
   four warps at every size (tile_product.cuh), so that an element has the same bits in all:

             packed w [OC,C], row by row                a block, after the product
             | 16, 32 or 64 columns | .. |
       x     +----------------------+                   sums of split 0, 1, 2, 3 in shared memory
       16    | a block's            |                   -> 0 + 1 + 2 + 3 + bias, GELU
       or 64 | tile of out          |                   -> out, 16 bytes per thread
       rows  +----------------------+

   Packing only makes rows a multiple of 16 bytes, with zeros: then every weight can be read 16
   bytes at a time. Rows that are one already are not packed: w itself is read.

   Bytes: w once from memory, again from L2 for each further row tile; x once per column tile, from
   L2. Flop: 2 R C OC. The floor of one GPT-2 layer's four products (12 * 768^2 weights, 14 MB in
   bf16) at 3.0 TB/s is 4.7 us at any R up to about 260. */
#include "swiglu.cuh"
#include "tile_product.cuh"

enum { SPLIT = 4, PACK_THREADS = 256 };

/* rows, columns, a warp's rows and columns, split, depth, stages. For its full rate an H100 wants
   3.0 TB/s * 0.7 us = 2.1 MB on their way; FewRows has 40 KB of w in each block, and OC = 768 gives
   48 blocks. */
typedef Tile<16, 16, 16, 16, SPLIT, 4, 6> FewRows;
typedef Tile<64, 32, 64, 32, SPLIT, 1, 5> Narrow;
typedef Tile<64, 64, 64, 64, SPLIT, 1, 4> Wide;

static size_t matmul_packed_size(int C, int OC) {
    size_t stride = packed_stride(C);
    return stride == (size_t)C ? 0 : (size_t)OC * stride * sizeof(floatX);
}

/* A thread writes 16 bytes. */
static __global__ void pack_kernel(floatX *packed, const floatX *w, int C, size_t n, bool whole) {
    size_t i = (size_t)blockIdx.x * PACK_THREADS + threadIdx.x;
    if (i >= n) return;
    int vectors = ceil_div(C, VEC), k = (int)(i % vectors) * VEC;
    float x[VEC];
    load_some(x, w + i / vectors * C + k, C - k, whole);
    store_vector(packed + i * VEC, x);
}

static void matmul_pack(void *packed, const floatX *w, int C, int OC) {
    size_t n = (size_t)OC * ceil_div(C, VEC);
    unsigned blocks = (unsigned)((n + PACK_THREADS - 1) / PACK_THREADS);
    pack_kernel<<<blocks, PACK_THREADS, 0, cuda.stream>>>(
        (floatX *)packed, w, C, n, rows_aligned(w, (size_t)C, sizeof(floatX)));
    CUDA_CHECK_LAUNCH();
}

static __device__ __forceinline__ float gelu(float x) {
    const float scale = 0.7978845608028654f; /* sqrt(2 / pi) */
    return 0.5f * x * (1.0f + tanhf(scale * (x + 0.044715f * x * x * x)));
}

/* Sums in shared memory [SPLIT][ROWS][STRIDE]. 8 floats more than a tile has columns: then the
   pairs that half a warp stores lie in 32 banks. */
template <class T> struct SplitSums {
    enum { STRIDE = T::COLUMNS + 8, BYTES = T::SPLIT * T::ROWS * STRIDE * 4,
           SHARED = (int)BYTES > (int)T::SHARED ? BYTES : T::SHARED };
};

template <class T>
static __device__ __forceinline__ void store_split_sums(float *shared, TileSums<T> *sum) {
    float *split = shared + tile_split<T>() * T::ROWS * SplitSums<T>::STRIDE;
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r++)
#pragma unroll
        for (int c = 0; c < T::LANE_COLUMNS; c += 2) {
            float *to = split + lane_row<T>(r) * SplitSums<T>::STRIDE + lane_column<T>(c);
            *(float2 *)to = make_float2(*lane_sum(sum, r, c), *lane_sum(sum, r, c + 1));
        }
}

/* The sum of the splits in order, from 0 on: then -0 and 0, which may differ by how many zeros a
   stage was filled up with, become one. */
template <class T>
static __device__ __forceinline__ void add_split_sums(float out[VEC], const float *shared, int row,
                                                      int column) {
#pragma unroll
    for (int k = 0; k < VEC; k++) out[k] = 0;
#pragma unroll
    for (int s = 0; s < T::SPLIT; s++) {
        const float *from = shared + (s * T::ROWS + row) * SplitSums<T>::STRIDE + column;
#pragma unroll
        for (int k = 0; k < VEC; k += 4) {
            float4 four = *(const float4 *)(from + k);
            out[k] += four.x, out[k + 1] += four.y, out[k + 2] += four.z, out[k + 3] += four.w;
        }
    }
}

struct Epilogue {
    floatX *out;
    const floatX *bias;  /* or NULL */
    int R, OC, gelu;
    bool out_aligned, bias_aligned;
};

template <class T>
static __global__ void __launch_bounds__(T::THREADS)
    matmul_decode_kernel(Epilogue e, TileRows x, TileRows w, int C, int row_tiles) {
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x % row_tiles * T::ROWS, first = blockIdx.x / row_tiles * T::COLUMNS;
    TileProduct product = {x, w, NULL, first_row, first, C, shared};
    TileSums<T> sum;
    tile_product_begin<T>(product);
    tile_product(&sum, product);
    __syncthreads();
    store_split_sums<T>((float *)shared, &sum);
    __syncthreads();
    const int vectors = T::COLUMNS / VEC;
    for (int i = threadIdx.x; i < T::ROWS * vectors; i += T::THREADS) {
        int row = first_row + i / vectors, column = first + i % vectors * VEC;
        int count = e.OC - column;
        if (row >= e.R || count <= 0) continue;
        float y[VEC], bias[VEC] = {};
        add_split_sums<T>(y, (const float *)shared, i / vectors, i % vectors * VEC);
        if (e.bias) load_some(bias, e.bias + column, count, e.bias_aligned);
#pragma unroll
        for (int k = 0; k < VEC; k++) y[k] = e.gelu ? gelu(y[k] + bias[k]) : y[k] + bias[k];
        store_some(e.out + (size_t)row * e.OC + column, y, count, e.out_aligned);
    }
}

template <class T>
static void launch(const Epilogue &e, const TileRows &x, const TileRows &w, int C) {
    int row_tiles = ceil_div(e.R, T::ROWS), blocks = row_tiles * ceil_div(e.OC, T::COLUMNS);
    ALLOW_SHARED(SplitSums<T>::SHARED, matmul_decode_kernel<T>);
    matmul_decode_kernel<T><<<blocks, T::THREADS, SplitSums<T>::SHARED, cuda.stream>>>(
        e, x, w, C, row_tiles);
    CUDA_CHECK_LAUNCH();
}

/* The widest tile that still gives every multiprocessor a block. */
static void multiply(floatX *out, const floatX *x, const void *packed, const floatX *bias, int R,
                     int C, int OC, int gelu) {
    if (R == 0) return;
    Epilogue e = {out, bias, R, OC, gelu, rows_aligned(out, (size_t)OC, sizeof(floatX)),
                  rows_aligned(bias, 0, sizeof(floatX))};
    TileRows rows = tile_rows(x, (size_t)C, R);
    TileRows weight = tile_rows((const floatX *)packed, packed_stride(C), OC);
    int wide = ceil_div(R, Wide::ROWS) * ceil_div(OC, Wide::COLUMNS);
    if (R <= FewRows::ROWS) launch<FewRows>(e, rows, weight, C);
    else if (wide < cuda.multiprocessors) launch<Narrow>(e, rows, weight, C);
    else launch<Wide>(e, rows, weight, C);
}

static void matmul_decode(floatX *out, const floatX *x, const void *packed, const floatX *bias,
                          int R, int C, int OC) {
    multiply(out, x, packed, bias, R, C, OC, 0);
}

static void mlp_decode(floatX *out, floatX *pre, floatX *act, const floatX *x,
                       const void *packed_w1, const void *packed_w2, const struct Mlp *mlp, int R) {
    int C = mlp->C, F = mlp->F;
    if (mlp->activation == SWIGLU) {
        multiply(pre, x, packed_w1, mlp->b1, R, C, 2 * F, 0);
        swiglu_forward(act, pre, R, F);
    } else {
        multiply(act, x, packed_w1, mlp->b1, R, C, F, 1);
    }
    multiply(out, act, packed_w2, mlp->b2, R, F, C, 0);
}

static void fill(struct Ops *ops) {
    ops->matmul_packed_size = matmul_packed_size;
    ops->matmul_pack = matmul_pack;
    ops->matmul_decode = matmul_decode;
    ops->mlp_decode = mlp_decode;
}

extern const struct KernelFile PER_TYPE(cuda_matmul_decode) = {"matmul_decode", fill, no_workspace};
