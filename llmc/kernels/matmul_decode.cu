/* The matrix product of a decode step, for a weight that is the same for thousands of steps:

       out = gelu(x w^T + bias)          out [R,OC], x [R,C], w [OC,C]

   With few rows every weight is read for two flop per row: the bound is memory. Then what counts is
   how many bytes are on their way, from as many multiprocessors as possible. With more rows the
   second cache level is next: a tile of rows x columns reads rows + columns numbers for each k.

   Order. K is cut into four equal parts (of whole segments of 128 bytes). An element is the sum of
   its parts, in order, and each part a sum in order of K: whatever R and the tile. Who computes the
   parts is free:

             packed w [OC,C], row by row                up to 16 rows: a block has four groups of
             |  16 .. 64 columns  | .. |                warps, one for each part, and adds their
       x     +--------------------+                     sums from shared memory
       16 .. | a tile of out      |                     more rows, many tiles: a block computes part
       128   |                    |                     after part and adds in registers
       rows  +--------------------+                     more rows, few tiles: four blocks compute a
                                                        part each and leave it in scratch; the last
             K  | part 0 | 1 | 2 | 3 |                  to finish adds all four, in order

   So an OC of 1024 with 64 rows is 128 blocks on 132 multiprocessors instead of 32, and a row has
   the same bits in every batch. The scratch is cuBLASLt's: both work on the one compute stream.

   Packing only makes rows a multiple of 16 bytes, with zeros: then every weight can be read 16
   bytes at a time. Rows that are one already are not packed: w itself is read.

   Bytes: w once from memory, again from L2 for each further row tile; x once per column tile, from
   L2; where blocks share a tile, 4 bytes written and read for each element and part. Flop: 2 R C
   OC. The floor of one GPT-2 layer's four products (12 * 768^2 weights, 14 MB in bf16) at 3.0 TB/s
   is 4.7 us at any R up to about 260. */
#include "swiglu.cuh"
#include "tile_product.cuh"

enum { PARTS = 4, PACK_THREADS = 256, MOST_SHARED_TILES = 1024 };

/* rows, columns, a warp's rows and columns, split, depth, stages. For its full rate an H100 wants
   3.0 TB/s * 0.7 us = 2.1 MB on their way; FewRows has 40 KB of w in each block, and OC = 768 gives
   48 blocks. All take at most 96 KB: two blocks on a multiprocessor with 227 KB, one with 99. */
typedef Tile<16, 16, 16, 16, PARTS, PARTS, 6> FewRows;
typedef Tile<32, 32, 16, 16, 1, 1, 8> Small;
typedef Tile<64, 32, 32, 16, 1, 1, 8> Narrow;
typedef Tile<64, 64, 32, 32, 1, 1, 6> Square;
typedef Tile<128, 64, 64, 32, 1, 1, 4> Tall;

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

/* Elements of a part. */
static __host__ __device__ __forceinline__ int part_length(int C) {
    return ceil_div(ceil_div(C, PARTS), SEGMENT_K) * SEGMENT_K;
}

struct Epilogue {
    floatX *out;
    const floatX *bias;  /* or NULL */
    int R, OC, gelu;
    bool out_aligned, bias_aligned;
};

/* Writes VEC columns of a row: sum + bias, then GELU. */
static __device__ __forceinline__ void finish(const Epilogue &e, float *sum, int row, int column) {
    const int count = e.OC - column;
    float bias[VEC] = {};
    if (e.bias) load_some(bias, e.bias + column, count, e.bias_aligned);
#pragma unroll
    for (int k = 0; k < VEC; k++) sum[k] = e.gelu ? gelu(sum[k] + bias[k]) : sum[k] + bias[k];
    store_some(e.out + (size_t)row * e.OC + column, sum, count, e.out_aligned);
}

/* ---- a block alone --------------------------------------------------------------------------- */

/* Sums in shared memory [SPLIT][ROWS][STRIDE]. 8 floats more than a tile has columns: then the
   pairs that half a warp stores lie in 32 banks. */
template <class T> struct SplitSums {
    enum { STRIDE = T::COLUMNS + 8, BYTES = T::SPLIT * T::ROWS * STRIDE * 4,
           SHARED = (int)BYTES > (int)T::SHARED ? BYTES : T::SHARED };
};

/* to [ROWS][stride] = a lane's sums in the first `rows` rows, in pairs. */
template <class T>
static __device__ __forceinline__ void store_sums(float *to, int stride, TileSums<T> *sum,
                                                  int rows) {
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r++)
#pragma unroll
        for (int c = 0; c < T::LANE_COLUMNS; c += 2)
            if (lane_row<T>(r) < rows)
                *(float2 *)(to + lane_row<T>(r) * stride + lane_column<T>(c)) =
                    make_float2(*lane_sum(sum, r, c), *lane_sum(sum, r, c + 1));
}

/* sum [VEC] += four floats at a time. */
static __device__ __forceinline__ void add_four(float *sum, float4 x) {
    sum[0] += x.x, sum[1] += x.y, sum[2] += x.z, sum[3] += x.w;
}

/* The tile's elements from the sums of its SPLIT parts, which are added from 0 on: then -0 and 0,
   which may differ by how many zeros a stage was filled up with, become one. */
template <class T>
static __device__ __forceinline__ void finish_tile(const Epilogue &e, float *shared,
                                                   TileSums<T> *sum, int first_row, int first) {
    const int vectors = T::COLUMNS / VEC, stride = SplitSums<T>::STRIDE;
    __syncthreads();
    store_sums<T>(shared + tile_split<T>() * T::ROWS * stride, stride, sum, e.R - first_row);
    __syncthreads();
    for (int i = threadIdx.x; i < T::ROWS * vectors; i += T::THREADS) {
        int row = i / vectors, column = i % vectors * VEC;
        if (first_row + row >= e.R || first + column >= e.OC) continue;
        float y[VEC] = {};
#pragma unroll
        for (int s = 0; s < T::SPLIT; s++)
#pragma unroll
            for (int k = 0; k < VEC; k += 4)
                add_four(y + k, *(float4 *)(shared + (s * T::ROWS + row) * stride + column + k));
        finish(e, y, first_row + row, first + column);
    }
}

/* Few rows: the parts side by side in one block. */
template <class T>
static __global__ void __launch_bounds__(T::THREADS)
    few_rows_kernel(Epilogue e, TileRows x, TileRows w, int C, int row_tiles) {
    extern __shared__ __align__(128) unsigned char shared[];
    int first_row = blockIdx.x % row_tiles * T::ROWS, first = blockIdx.x / row_tiles * T::COLUMNS;
    TileProduct product = {x, w, NULL, first_row, first, C, shared, 0, part_length(C)};
    TileSums<T> sum;
    if (first_row == 0) tile_prefetch_y<T>(product);
    await_previous();
    tile_product_begin<T>(product);
    tile_product(&sum, product);
    finish_tile(e, (float *)shared, &sum, first_row, first);
}

/* ---- a block of four, or alone --------------------------------------------------------------- */

/* How many of the blocks that share a tile have left their part. atomicInc makes the last one's
   count 0 again. */
static __device__ unsigned arrived[MOST_SHARED_TILES];

/* Leaves this block's part of a tile in scratch [PARTS][ROWS][COLUMNS]; the last of the tile's
   blocks adds them and writes the elements. */
template <class T>
static __device__ __forceinline__ void share_tile(const Epilogue &e, float *scratch,
                                                  TileSums<T> *sum, int first_row, int first) {
    __shared__ bool last;
    const int size = T::ROWS * T::COLUMNS, vectors = T::COLUMNS / VEC;
    const int rows = min_int(T::ROWS, e.R - first_row);
    scratch += (size_t)blockIdx.x * PARTS * size;
    store_sums<T>(scratch + blockIdx.y * size, T::COLUMNS, sum, rows);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(&arrived[blockIdx.x], PARTS - 1) == PARTS - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int i = threadIdx.x; i < rows * vectors; i += T::THREADS) {
        int row = i / vectors, column = i % vectors * VEC;
        if (first + column >= e.OC) continue;
        const float *from = scratch + row * T::COLUMNS + column;
        float4 part[PARTS][VEC / 4];
        float y[VEC] = {};
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int k = 0; k < VEC / 4; k++) /* not from the first cache level: see others' */
                part[p][k] = __ldcg((const float4 *)(from + p * size) + k);
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int k = 0; k < VEC / 4; k++) add_four(y + 4 * k, part[p][k]);
        finish(e, y, first_row + row, first + column);
    }
}

/* total += sum */
template <class T>
static __device__ __forceinline__ void sums_add(TileSums<T> *total, TileSums<T> *sum) {
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r++)
#pragma unroll
        for (int c = 0; c < T::LANE_COLUMNS; c++)
            *lane_sum(total, r, c) += *lane_sum(sum, r, c);
}

/* gridDim.y = 4: this block has part blockIdx.y; 1: it has all, one after the other. */
template <class T>
static __global__ void __launch_bounds__(T::THREADS, 2)
    parts_kernel(Epilogue e, TileRows x, TileRows w, int C, int row_tiles, float *scratch) {
    extern __shared__ __align__(128) unsigned char shared[];
    const int first_row = blockIdx.x % row_tiles * T::ROWS;
    const int first = blockIdx.x / row_tiles * T::COLUMNS, length = part_length(C);
    const int begin = blockIdx.y * length, end = gridDim.y > 1 ? min_int(C, begin + length) : C;
    TileProduct product = {x, w, NULL, first_row, first, end, shared, begin};
    TileSums<T> total, sum;
    if (first_row == 0) tile_prefetch_y<T>(product);
    await_previous();
    tile_product_begin<T>(product);
    sums_clear(&total);
    for (int n = 0, stages = count_stages<T>(product), next; n < stages; n = next) {
        next = min_int(stages, n + length / T::STAGE_K);
        sums_clear(&sum);
        tile_product_stages(&sum, product, n, next);
        sums_add(&total, &sum);
    }
    if (gridDim.y > 1) share_tile(e, scratch, &total, first_row, first);
    else finish_tile(e, (float *)shared, &total, first_row, first);
}

/* ---- which tile ------------------------------------------------------------------------------ */

typedef void Launch(const Epilogue &e, const TileRows &x, const TileRows &w, int C, int parts);

template <class T>
static void launch_few(const Epilogue &e, const TileRows &x, const TileRows &w, int C) {
    int row_tiles = ceil_div(e.R, T::ROWS), blocks = row_tiles * ceil_div(e.OC, T::COLUMNS);
    ALLOW_SHARED(SplitSums<T>::SHARED, few_rows_kernel<T>);
    LAUNCH_DEPENDENT(blocks, T::THREADS, SplitSums<T>::SHARED, few_rows_kernel<T>, e, x, w, C,
                     row_tiles);
}

template <class T>
static void launch(const Epilogue &e, const TileRows &x, const TileRows &w, int C, int parts) {
    int row_tiles = ceil_div(e.R, T::ROWS), blocks = row_tiles * ceil_div(e.OC, T::COLUMNS);
    ALLOW_SHARED(SplitSums<T>::SHARED, parts_kernel<T>);
    LAUNCH_DEPENDENT(dim3(blocks, parts), T::THREADS, SplitSums<T>::SHARED, parts_kernel<T>, e, x,
                     w, C, row_tiles, (float *)cuda.lt_workspace);
}

/* The tiles for more than `above` rows, and the blocks that share one. */
static const struct Way {
    int above, rows, columns, parts;
    Launch *launch;
} ways[] = {
    {0, Small::ROWS, Small::COLUMNS, 1, launch<Small>},
    {0, Small::ROWS, Small::COLUMNS, PARTS, launch<Small>},
    {32, Narrow::ROWS, Narrow::COLUMNS, 1, launch<Narrow>},
    {32, Narrow::ROWS, Narrow::COLUMNS, PARTS, launch<Narrow>},
    {32, Square::ROWS, Square::COLUMNS, 1, launch<Square>},
    {32, Square::ROWS, Square::COLUMNS, PARTS, launch<Square>},
    {64, Tall::ROWS, Tall::COLUMNS, 1, launch<Tall>},
    {64, Tall::ROWS, Tall::COLUMNS, PARTS, launch<Tall>},
};

/* What a way brings from the second cache level, in bytes. Handing over parts waits about twice for
   that level, in which time each multiprocessor could have brought so much more (by calculation: a
   microsecond). Where fewer than three of four multiprocessors would have a block, each has more to
   bring. */
static double way_cost(const struct Way *way, int R, int C, int OC) {
    const double HAND_OVER = 3e4 * cuda.multiprocessors;
    double tiles = (double)ceil_div(R, way->rows) * ceil_div(OC, way->columns);
    double cost = tiles * (min_int(R, way->rows) + way->columns) * C * sizeof(floatX);
    double idle = 0.75 * cuda.multiprocessors / (tiles * way->parts);
    if (way->parts > 1) cost += HAND_OVER + 2.0 * sizeof(float) * way->parts * R * OC;
    return idle > 1 ? cost * idle : cost;
}

static bool way_fits(const struct Way *way, int R, int OC) {
    size_t tiles = (size_t)ceil_div(R, way->rows) * ceil_div(OC, way->columns);
    size_t bytes = tiles * way->rows * way->columns * way->parts * sizeof(float);
    bool enough = tiles <= MOST_SHARED_TILES && bytes <= cuda.lt_workspace_bytes;
    return R > way->above && (way->parts == 1 || enough);
}

/* The cheapest way. They all give the same bits. */
static void multiply(floatX *out, const floatX *x, const void *packed, const floatX *bias, int R,
                     int C, int OC, int gelu) {
    if (R == 0) return;
    Epilogue e = {out, bias, R, OC, gelu, rows_aligned(out, (size_t)OC, sizeof(floatX)),
                  rows_aligned(bias, 0, sizeof(floatX))};
    TileRows rows = tile_rows(x, (size_t)C, R);
    TileRows weight = tile_rows((const floatX *)packed, packed_stride(C), OC);
    if (R <= FewRows::ROWS) {
        launch_few<FewRows>(e, rows, weight, C);
        return;
    }
    const struct Way *best = &ways[0];
    for (const struct Way *way = ways; way < ways + sizeof ways / sizeof *ways; way++)
        if (way_fits(way, R, OC) && way_cost(way, R, C, OC) < way_cost(best, R, C, OC)) best = way;
    best->launch(e, rows, weight, C, best->parts);
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
