/* A block's tile of a product of two matrices whose rows are contiguous, summed in float32:

       sum[r][c] = sum_k x[r][k] y[c][k]          x [ROWS,K], y [COLUMNS,K]

   The decode products, the sampler and the scoring head share it; each has its own epilogue, the
   code that uses the sums. The layout of the sums in registers is that of mma.m16n8k16 for every
   element type, so an epilogue is written once.

   Memory. K is cut into stages, and STAGES of them are in shared memory: one is multiplied while
   the copies of the others are on their way. A stage holds, of each row, DEPTH segments of 128
   bytes, and a segment is 8 chunks of 16 bytes. Chunk c of row r lies at c ^ (r % 8), so that the
   equal chunks of 8 rows, which ldmatrix reads together, lie in 8 different groups of banks:

             stage n                                        a segment of 8 rows, 128 bytes each
       x     | segment 0: ROWS | segment 1: ROWS | ..       row 0   0 1 2 3 4 5 6 7
       y     | segment 0: COLUMNS | segment 1 .. |          row 1   1 0 3 2 5 4 7 6
                                                            row 2   2 3 0 1 6 7 4 5   ..

   Work. Warps tile the block, and SPLIT groups of them share one tile: K is cut into SPLIT parts
   of equal length, and each group has a part. A stage then holds one segment of each part, so a
   split needs DEPTH == SPLIT. That shortens the chain of dependent sums, and puts more loads on
   their way, where a tile is small; the caller adds the SPLIT partial sums, in order.

             | warp 0 | warp 1 |      ROWS    = WARPS_DOWN * WARP_ROWS
             | warp 2 | warp 3 |      COLUMNS = WARPS_ACROSS * WARP_COLUMNS

       A warp's tile is made of 16 x 8 pieces; lane 4 g + t owns rows g, g + 8 and columns 2t,
       2t + 1 of each.

   Order. An element's terms are added in order of K, within its part: neither the tile's size nor
   its place nor other rows have a part in it, so an element's bits depend on its own two rows and
   on where parts begin.

   Edges. Nothing outside the matrices is read. Elements beyond K and rows beyond the last are
   zeros, written by copies that read nothing. Where rows are not aligned to 16 bytes, elements are
   copied one at a time.

   Traffic. (ROWS + COLUMNS) K elements are copied for 2 ROWS COLUMNS K flop: 64 flop per byte for
   128 x 128 tiles of 16-bit elements, mostly from L2. A warp with 64 x 64 sums reads 128 bytes of
   shared memory per mma (4096 flop), one with 64 x 32 sums 192. */
#pragma once
#include "dependent.cuh"
#include "ptx.cuh"

enum {
    CHUNK_BYTES = 16,
    SEGMENT_CHUNKS = 8,                          /* 128 bytes of a row: all banks, once */
    SEGMENT_BYTES = SEGMENT_CHUNKS * CHUNK_BYTES,
    STEP_CHUNKS = 2,                             /* 16 narrow elements or 8 floats */
    SEGMENT_STEPS = SEGMENT_CHUNKS / STEP_CHUNKS,
    SEGMENT_K = SEGMENT_CHUNKS * VEC             /* elements */
};

/* The shape of a block's tile; below, T stands for one of these. */
template <int ROWS_, int COLUMNS_, int WARP_ROWS_, int WARP_COLUMNS_, int SPLIT_, int DEPTH_,
          int STAGES_>
struct Tile {
    enum {
        ROWS = ROWS_, COLUMNS = COLUMNS_, WARP_ROWS = WARP_ROWS_, WARP_COLUMNS = WARP_COLUMNS_,
        SPLIT = SPLIT_, DEPTH = DEPTH_, STAGES = STAGES_,
        WARPS_DOWN = ROWS / WARP_ROWS,
        WARPS_ACROSS = COLUMNS / WARP_COLUMNS,
        WARPS = WARPS_DOWN * WARPS_ACROSS,       /* of one split */
        THREADS = WARPS * SPLIT * WARP,
        DOWN = WARP_ROWS / 16,                   /* pieces of a warp */
        ACROSS = WARP_COLUMNS / 8,
        LANE_ROWS = 2 * DOWN,                    /* rows and columns of a lane */
        LANE_COLUMNS = 2 * ACROSS,
        STAGE_K = DEPTH / SPLIT * SEGMENT_K,     /* elements of a part in a stage */
        X_BYTES = DEPTH * ROWS * SEGMENT_BYTES,
        Y_BYTES = DEPTH * COLUMNS * SEGMENT_BYTES,
        STAGE_BYTES = X_BYTES + Y_BYTES,
        SHARED = STAGES * STAGE_BYTES            /* bytes of shared memory */
    };
    static_assert((int)SPLIT == 1 || (int)SPLIT == (int)DEPTH, "a segment of each part");
};

/* A lane's sums, piece by piece; lane_sum() has them by the lane's rows and columns. */
template <class T> struct TileSums {
    float piece[T::DOWN][T::ACROSS][4];
};

/* One of the two matrices. */
struct TileRows {
    const floatX *data;
    unsigned stride_bytes; /* from row to row */
    int end;               /* number of rows; a tile that goes further has zeros there */
    bool aligned;          /* rows may be read 16 bytes at a time */
};

struct TileProduct {
    TileRows x, y;
    const int *x_index;    /* [ROWS], shared memory (tile_index): the tile's row i is row x_index[i]
                              of the data, or zeros if that is negative; NULL: it is row
                              x_first + i */
    int x_first, y_first;  /* the tile's first row of x and of y */
    int K;                 /* elements [k_first, K) of each row are summed */
    unsigned char *shared; /* [SHARED], aligned to 128 */
    int k_first = 0;
    int part = 0;          /* with SPLIT > 1: elements of a part, a multiple of SEGMENT_K */
};

static TileRows tile_rows(const floatX *data, size_t stride, int end) {
    return TileRows{data, (unsigned)(stride * sizeof(floatX)), end,
                    rows_aligned(data, stride, sizeof(floatX))};
}

/* Elements from row to row of a packed weight: C, and zeros up to a multiple of 16 bytes. */
static __host__ __device__ __forceinline__ size_t packed_stride(int C) {
    return align_up((size_t)C, VEC);
}

/* ---- a thread's place in the tile ------------------------------------------------------------ */

template <class T> static __device__ __forceinline__ int tile_split() {
    return threadIdx.x / WARP / T::WARPS;
}
template <class T> static __device__ __forceinline__ int tile_warp_across() {
    return threadIdx.x / WARP % T::WARPS_ACROSS;
}
template <class T> static __device__ __forceinline__ int tile_warp_row() {
    return threadIdx.x / WARP % T::WARPS / T::WARPS_ACROSS * T::WARP_ROWS;
}
template <class T> static __device__ __forceinline__ int tile_warp_column() {
    return tile_warp_across<T>() * T::WARP_COLUMNS;
}

/* In the tile: a lane's r-th row and c-th column. Columns come in pairs, 8 apart. */
template <class T> static __device__ __forceinline__ int lane_row(int r) {
    return tile_warp_row<T>() + r * 8 + threadIdx.x % WARP / 4;
}
static __device__ __forceinline__ int lane_column_step(int c) { return c / 2 * 8 + c % 2; }
template <class T> static __device__ __forceinline__ int lane_column(int c) {
    return tile_warp_column<T>() + threadIdx.x % 4 * 2 + lane_column_step(c);
}
template <class T>
static __device__ __forceinline__ float *lane_sum(TileSums<T> *sum, int r, int c) {
    return &sum->piece[r / 2][c / 2][r % 2 * 2 + c % 2];
}

/* ---- copies ---------------------------------------------------------------------------------- */

/* Where a row's chunk lies in one matrix's part of a stage; `chunk` counts through the segments. */
template <int COUNT>
static __device__ __forceinline__ unsigned chunk_offset(unsigned row, unsigned chunk) {
    unsigned place = chunk % SEGMENT_CHUNKS ^ row % SEGMENT_CHUNKS;
    return ((chunk / SEGMENT_CHUNKS * COUNT + row) * SEGMENT_CHUNKS + place) * CHUNK_BYTES;
}

/* Where segment `segment` of the stage that begins at k begins. */
template <class T> static __device__ __forceinline__ int segment_k(int segment, int k, int part) {
    return k + segment * (T::SPLIT > 1 ? part : (int)SEGMENT_K);
}

/* Copies COUNT rows from `first` on, a stage of each from element k, of which those before K exist.
   Eight threads copy a segment of a row; a thread's chunk has the same place in all its rows.
   index [COUNT]: which row of the data each is, in shared memory; NULL: in order. */
template <class T, int COUNT>
static __device__ __forceinline__ void copy_rows(unsigned char *to, const TileRows &rows,
                                                 const int *index, int first, int k, int part,
                                                 int K) {
    const int together = T::THREADS / SEGMENT_CHUNKS; /* rows */
    int own = threadIdx.x / SEGMENT_CHUNKS, chunk = threadIdx.x % SEGMENT_CHUNKS;
    to += chunk_offset<COUNT>(own, chunk);
    first += own;
    if (index) index += own;
    for (int segment = 0; segment < T::DEPTH; segment++) {
        int at = segment_k<T>(segment, k, part) + chunk * VEC;
        int bytes = max_int(0, min_int(VEC, K - at)) * (int)sizeof(floatX);
        const unsigned char *data = (const unsigned char *)(rows.data + (bytes > 0 ? at : 0));
#pragma unroll 2
        for (int n = 0; n < COUNT / together; n++) {
            int ahead = n * together;
            int row = index ? index[ahead] : first + ahead;
            bool exists = index ? row >= 0 : row < rows.end;
            cp_async16(to + (segment * COUNT + ahead) * SEGMENT_BYTES,
                       data + (uint64_t)(unsigned)(exists ? row : 0) * rows.stride_bytes,
                       exists ? bytes : 0);
        }
    }
}

/* The same for rows at any address, element by element. */
template <class T, int COUNT>
static __device__ __forceinline__ void copy_unaligned_rows(unsigned char *to, const TileRows &rows,
                                                           const int *index, int first, int k,
                                                           int part, int K) {
    const int chunks = T::DEPTH * SEGMENT_CHUNKS;
#pragma unroll 1
    for (int i = threadIdx.x; i < COUNT * chunks; i += T::THREADS) {
        int row = index ? index[i / chunks] : first + i / chunks;
        bool exists = index ? row >= 0 : row < rows.end;
        int chunk = i % chunks;
        int at = segment_k<T>(chunk / SEGMENT_CHUNKS, k, part) + chunk % SEGMENT_CHUNKS * VEC;
        int count = exists ? K - at : 0;
        const floatX *from =
            rows.data + (size_t)(exists ? row : 0) * (rows.stride_bytes / sizeof(floatX)) + at;
        floatX element[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) element[j] = j < count ? from[j] : from_f<floatX>(0);
        uint4 bits;
        memcpy(&bits, element, sizeof bits);
        *(uint4 *)(to + chunk_offset<COUNT>(i / chunks, i % chunks)) = bits;
    }
}

/* How many stages there are. */
template <class T> static __device__ __forceinline__ int count_stages(const TileProduct &p) {
    return max_int(0, ceil_div(T::SPLIT > 1 ? p.part : p.K - p.k_first, T::STAGE_K));
}

/* Copies the rows of x, or of y, of stage n, if there is such a stage. */
template <class T>
static __device__ __forceinline__ void stage_copy_x(const TileProduct &p, int n) {
    unsigned char *to = p.shared + n % T::STAGES * T::STAGE_BYTES;
    int k = p.k_first + n * T::STAGE_K;
    if (n >= count_stages<T>(p)) return;
    if (p.x.aligned) copy_rows<T, T::ROWS>(to, p.x, p.x_index, p.x_first, k, p.part, p.K);
    else copy_unaligned_rows<T, T::ROWS>(to, p.x, p.x_index, p.x_first, k, p.part, p.K);
}
template <class T>
static __device__ __forceinline__ void stage_copy_y(const TileProduct &p, int n) {
    unsigned char *to = p.shared + n % T::STAGES * T::STAGE_BYTES + T::X_BYTES;
    int k = p.k_first + n * T::STAGE_K;
    if (n >= count_stages<T>(p)) return;
    if (p.y.aligned) copy_rows<T, T::COLUMNS>(to, p.y, NULL, p.y_first, k, p.part, p.K);
    else copy_unaligned_rows<T, T::COLUMNS>(to, p.y, NULL, p.y_first, k, p.part, p.K);
}

/* Starts the copies of stage n. Every call is one group of copies. */
template <class T>
static __device__ __forceinline__ void stage_copy(const TileProduct &p, int n) {
    stage_copy_x<T>(p, n);
    stage_copy_y<T>(p, n);
    cp_async_commit();
}

/* Brings the tile's rows of y, or as much of their beginnings as is worth it, to the second cache
   level, for a kernel that must wait before it may read x. One lane of each warp: the instruction
   takes uniform registers, so lanes would take turns. */
template <class T> static __device__ __forceinline__ void tile_prefetch_y(const TileProduct &p) {
    enum { MOST = 65536 / T::COLUMNS }; /* bytes of a row */
    int bytes = min_int(MOST, (p.K - p.k_first) * (int)sizeof(floatX)) / CHUNK_BYTES * CHUNK_BYTES;
    if (!p.y.aligned || bytes <= 0 || threadIdx.x % WARP > 0) return;
    const unsigned char *data = (const unsigned char *)(p.y.data + p.k_first);
    const int end = min_int(p.y.end - p.y_first, T::COLUMNS);
    for (int i = threadIdx.x / WARP; i < end; i += T::THREADS / WARP)
        l2_prefetch(data + (uint64_t)(unsigned)(p.y_first + i) * p.y.stride_bytes, (unsigned)bytes);
}

/* ---- products -------------------------------------------------------------------------------- */

/* This warp's steps of a stage, narrow elements: a fragment of x is 16 rows, two of y are read
   together. Lane l brings the address of the l % 8-th row of 8 x 8 matrix l / 8. */
template <class T, class Element>
static __device__ __forceinline__ void stage_multiply(TileSums<T> *sum, const Element *x_stage,
                                                      const Element *y_stage) {
    const unsigned char *x = (const unsigned char *)x_stage, *y = (const unsigned char *)y_stage;
    int lane = threadIdx.x % WARP;
    int x_row = tile_warp_row<T>() + lane % 16, x_chunk = lane / 16;
    int y_row = tile_warp_column<T>() + lane / 16 * 8 + lane % 8, y_chunk = lane / 8 % 2;
#pragma unroll
    for (int n = 0; n < T::DEPTH * SEGMENT_STEPS / T::SPLIT; n++) {
        int chunk = (T::SPLIT > 1 ? tile_split<T>() * SEGMENT_CHUNKS : 0) + n * STEP_CHUNKS;
        uint32_t a[T::DOWN][4], b[T::ACROSS / 2][4];
#pragma unroll
        for (int i = 0; i < T::DOWN; i++)
            ldmatrix_x4(a[i], x + chunk_offset<T::ROWS>(x_row + i * 16, chunk + x_chunk));
#pragma unroll
        for (int j = 0; j < T::ACROSS / 2; j++)
            ldmatrix_x4(b[j], y + chunk_offset<T::COLUMNS>(y_row + j * 16, chunk + y_chunk));
#pragma unroll
        for (int i = 0; i < T::DOWN; i++)
#pragma unroll
            for (int j = 0; j < T::ACROSS; j++)
                mma_m16n8k16<Element>(sum->piece[i][j], a[i], &b[j / 2][j % 2 * 2],
                                      sum->piece[i][j]);
    }
}

static __device__ __forceinline__ void add_products(float *sum, float4 a, float4 b) {
    *sum = fmaf(a.x, b.x, *sum);
    *sum = fmaf(a.y, b.y, *sum);
    *sum = fmaf(a.z, b.z, *sum);
    *sum = fmaf(a.w, b.w, *sum);
}

/* The same for float, by multiply-adds: four k of all the lane's rows meet four k of one column
   after the other. */
template <class T>
static __device__ __forceinline__ void stage_multiply(TileSums<T> *sum, const float *x_stage,
                                                      const float *y_stage) {
    const unsigned char *x = (const unsigned char *)x_stage, *y = (const unsigned char *)y_stage;
    for (int n = 0; n < T::DEPTH * SEGMENT_CHUNKS / T::SPLIT; n++) {
        int chunk = (T::SPLIT > 1 ? tile_split<T>() * SEGMENT_CHUNKS : 0) + n;
        float4 a[T::LANE_ROWS];
#pragma unroll
        for (int r = 0; r < T::LANE_ROWS; r++)
            a[r] = *(const float4 *)(x + chunk_offset<T::ROWS>(lane_row<T>(r), chunk));
#pragma unroll
        for (int c = 0; c < T::LANE_COLUMNS; c++) {
            float4 b = *(const float4 *)(y + chunk_offset<T::COLUMNS>(lane_column<T>(c), chunk));
#pragma unroll
            for (int r = 0; r < T::LANE_ROWS; r++) add_products(lane_sum(sum, r, c), a[r], b);
        }
    }
}

/* ---- the tile -------------------------------------------------------------------------------- */

/* Starts the first copies, after a barrier: other warps may still read shared memory. Between this
   and tile_product the block may do other work. */
template <class T>
static __device__ __forceinline__ void tile_product_begin(const TileProduct &p) {
    __syncthreads();
#pragma unroll 1
    for (int n = 0; n < T::STAGES - 1; n++) stage_copy<T>(p, n);
}

/* Writes x_index [ROWS] for a product whose row i is row `row[i]` of the data, i < end. Once,
   before the first tile_product_begin, whose barrier publishes it: a copy then waits for shared
   memory to know its address, and not for the second cache level in every stage. */
template <class T>
static __device__ __forceinline__ void tile_index(int *x_index, const int *row, int first,
                                                  int end) {
    for (int i = threadIdx.x; i < T::ROWS; i += T::THREADS)
        x_index[i] = first + i < end ? row[first + i] : -1;
}

template <class T> static __device__ __forceinline__ void sums_clear(TileSums<T> *sum) {
#pragma unroll
    for (int r = 0; r < T::LANE_ROWS; r++)
#pragma unroll
        for (int c = 0; c < T::LANE_COLUMNS; c++) *lane_sum(sum, r, c) = 0;
}

/* Adds stages [n, end) of a tile that was begun; the stages before n were added already. When a
   stage's copies have landed for all, its predecessor has been multiplied by all: the memory of
   that one takes the copies of the stage furthest ahead. Shared memory is still read when this
   returns. */
template <class T>
static __device__ __forceinline__ void tile_product_stages(TileSums<T> *sum, const TileProduct &p,
                                                           int n, int end) {
    for (; n < end; n++) {
        cp_async_wait<T::STAGES - 2>();
        __syncthreads();
        stage_copy<T>(p, n + T::STAGES - 1);
        unsigned char *stage = p.shared + n % T::STAGES * T::STAGE_BYTES;
        stage_multiply<T>(sum, (const floatX *)stage, (const floatX *)(stage + T::X_BYTES));
    }
}

/* The sums of a tile that was begun. */
template <class T>
static __device__ __forceinline__ void tile_product(TileSums<T> *sum, const TileProduct &p) {
    sums_clear(sum);
    tile_product_stages<T>(sum, p, 0, count_stages<T>(p));
}
