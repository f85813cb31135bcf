/* What the attention kernels of training are made of: the packed batch cut into tiles, tiles in
   shared memory, and the two matrix products of a warp.

       a row of a tile [PITCH]    | HS elements | zeroes up to HSP | 16 bytes of padding |

   HSP, the head size that an instance is made for, is a multiple of 32; HS is at most that. The
   padding makes the pitch an odd multiple of 16 bytes, so that 8 rows under each other, which
   ldmatrix and float4 loads read at once, lie in different banks. */
#pragma once
#include "cuda_common.cuh"
#include "ptx.cuh"

enum { WARPS = 4, THREADS = WARPS * WARP };

#define NARROW (sizeof(floatX) == 2)

/* ---- the packed batch ----------------------------------------------------------------------- */

struct Packed {
    const int *row_start;           /* [B+1], device memory, as all three */
    const int *prompt, *seen;       /* [B], or both NULL */
    const struct QueryBlock *block; /* [blocks] the list of work, device memory */
    int blocks, N, NH, NKV, HS;
    float scale;  /* 1 / sqrt(HS) */
    bool aligned; /* every head's vectors may be moved 16 bytes at a time */
};

/* Positions [first, first + OWN) of a row of T tokens, whose first is token `start`; nothing where
   first >= T.

   For queries, a row's prompt counts as its first positions, P of them. Their tokens are `away`
   from where the row would have them, which is 0 or less:

       prompt   a row of its length   this row          position  0 1 2 3 4
       x y      ... ...               a b c             token     x y a b c      */
struct Tile {
    int start, T, first;
    int P, away;
    int queries;   /* for keys: positions from the row's first on whose tokens attend to the row */
};

/* Queries of an entry of the list; every kernel's tile divides it. */
enum { LIST_QUERIES = NARROW ? 128 : 64 };

/* An entry's tiles come one after another, the last one first, because it has the most keys. Only
   where an entry is several tiles can one of them be empty. */
template <int OWN>
static __device__ __forceinline__ struct Tile query_tile(const struct Packed batch, int number) {
    enum { TILES = LIST_QUERIES / OWN };
    if (number >= batch.blocks * TILES) return Tile{};
    const struct QueryBlock entry = batch.block[number / TILES];
    struct Tile tile = {};
    tile.start = batch.row_start[entry.row];
    tile.T = batch.row_start[entry.row + 1] - tile.start;
    tile.first = entry.first + (TILES - 1 - number % TILES) * OWN;
    const int prompt = batch.prompt ? batch.prompt[entry.row] : -1;
    if (prompt < 0 || tile.first >= tile.T) return tile;
    tile.P = batch.row_start[prompt + 1] - batch.row_start[prompt];
    tile.start -= tile.P, tile.T += tile.P, tile.first += tile.P;
    tile.away = batch.row_start[prompt] - tile.start;
    return tile;
}

/* The same list for tiles of keys: a tile as far from the row's first as that one is from its last.
   The first keys have the most queries, so these too begin with the most work. */
template <int OWN>
static __device__ __forceinline__ struct Tile key_tile(const struct Packed batch, int number) {
    enum { TILES = LIST_QUERIES / OWN };
    if (number >= batch.blocks * TILES) return Tile{};
    const struct QueryBlock entry = batch.block[number / TILES];
    struct Tile tile = {};
    tile.start = batch.row_start[entry.row];
    tile.T = batch.row_start[entry.row + 1] - tile.start;
    tile.queries = batch.seen ? batch.seen[entry.row] - tile.start : tile.T;
    tile.first = entry.first + (TILES - 1 - number % TILES) * OWN;
    if (tile.first < tile.T) tile.first = (tile.T - 1) / OWN * OWN - tile.first;
    return tile;
}

/* What a block and a warp of it do: `rows` positions (none, if it is not positive) from `own` on,
   which is token `token` and `offset` rows into the tile. */
struct Share {
    struct Tile tile;
    int head;    /* of those that the grid has */
    int offset, own, rows, token;
};

/* The grid is [tiles][heads], and blocks start in that order, so that the tiles with most work
   start first whatever their head. Tiles are cut in two because every dimension but the first ends
   at 65535; heads come first because their number is then no register. */
template <int OWN, int M, bool KEYS>
static __device__ __forceinline__ struct Share block_share(const struct Packed batch) {
    const int number = blockIdx.z * gridDim.y + blockIdx.y;
    struct Share x;
    x.tile = KEYS ? key_tile<OWN>(batch, number) : query_tile<OWN>(batch, number);
    x.head = blockIdx.x;
    x.offset = threadIdx.x / WARP * 16 * M;
    x.own = x.tile.first + x.offset;
    x.rows = x.tile.T - x.own;
    x.token = x.tile.start + x.own;
    return x;
}
template <int OWN> static dim3 grid_of(const struct Packed batch, int heads) {
    const int tiles = batch.blocks * (LIST_QUERIES / OWN), most = 32768;
    return dim3(heads, min_int(tiles, most), ceil_div(tiles, most));
}

/* Where a head's vector of a token begins in x [N,heads,HS]. Heads of qkv: NH queries, NKV keys,
   NKV values. */
static __device__ __forceinline__ int64_t vector_at(int token, int heads, int head, int HS) {
    return (int64_t)token * (heads * HS) + head * HS;
}

/* ---- tiles in shared memory ----------------------------------------------------------------- */

/* Starts bringing `rows` vectors of HS elements, `stride` apart, to a tile [ROWS][PITCH]; what is
   beyond them becomes 0. The first `before` of them are `away` vectors from where they would be.
   All threads together; done after cp_async_wait and a barrier. */
template <int ROWS, int HSP>
static __device__ __forceinline__ void load_tile(floatX *tile, const floatX *from, int stride,
                                                 int rows, const struct Packed batch,
                                                 int before = 0, int away = 0) {
    enum { CHUNKS = HSP / VEC, AT_ONCE = THREADS / CHUNKS, PITCH = HSP + VEC };
    int first = threadIdx.x / CHUNKS, column = threadIdx.x % CHUNKS * VEC;
    int count = batch.HS - column;
    floatX *to = tile + first * PITCH + column;
    if (first >= AT_ONCE) return;
    if (batch.aligned) {
        const floatX *source = from + (count > 0 ? column : 0);
        const int64_t jump = (int64_t)away * stride;
#pragma unroll
        for (int i = 0; i < ROWS; i += AT_ONCE) {
            if (ROWS % AT_ONCE && first + i >= ROWS) return;
            int row = min_int(first + i, rows - 1); /* the address is valid for 0 bytes too */
            cp_async16(to + i * PITCH, source + row * stride + (row < before ? jump : 0),
                       first + i < rows && count > 0 ? 16 : 0);
        }
        return;
    }
#pragma unroll 1
    for (int i = 0; first + i < ROWS; i += AT_ONCE) {
        float x[VEC];
        const int row = first + i;
        const int64_t jump = row < before ? (int64_t)away * stride : 0;
        load_some(x, from + row * stride + jump + column, row < rows ? count : 0, false);
        store_vector(to + i * PITCH, x);
    }
}

/* A float of each row of a tile, in the row's padding. */
template <int HSP> static __device__ __forceinline__ float *row_float(floatX *tile, int row) {
    return (float *)(tile + row * (HSP + VEC) + HSP);
}

/* Starts bringing x [rows] there; 0 beyond. */
template <int ROWS, int HSP>
static __device__ __forceinline__ void load_row_floats(floatX *tile, const float *x, int rows) {
    int row = threadIdx.x;
    if (row < ROWS)
        cp_async4(row_float<HSP>(tile, row), row < rows ? x + row : x, row < rows ? 4 : 0);
}

/* ---- fragments ---------------------------------------------------------------------------------

   A warp's product is [16 M][8 N] numbers in registers, x[M][N][4] of each lane, laid out as
   mma.m16n8k16 says: element i of fragment (m, n) is at row_of(m, i), column_of(n, i). */
static __device__ __forceinline__ int row_of(int m, int i) {
    return 16 * m + threadIdx.x % WARP / 4 + i / 2 * 8;
}
static __device__ __forceinline__ int column_of(int n, int i) {
    return 8 * n + threadIdx.x % 4 * 2 + i % 2;
}

/* Over the 4 lanes that share a row. */
static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}
static __device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}

/* Rows of x times factor [m][upper or lower half]. */
template <int M, int N>
static __device__ __forceinline__ void scale_rows(float x[M][N][4], const float factor[M][2]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][n][i] *= factor[m][i / 2];
}

/* ---- the two products, for 16-bit elements -------------------------------------------------- */

/* s += a b^T: a [16 M][PITCH] and b [8 N][PITCH] in shared memory, HSP columns. Fragments of 64
   columns are in flight at a time: more would cost registers that the sums need. */
template <int M, int N, int HSP, class T>
static __device__ __forceinline__ void multiply_rows(float s[M][N][4], const T *a, const T *b) {
    enum { PITCH = HSP + Vector<T>::size };
    int lane = threadIdx.x % WARP; /* brings ldmatrix the address of a row */
    a += lane % 16 * PITCH + lane / 16 * 8;
    b += (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 8;
#pragma unroll 4
    for (int k = 0; k < HSP; k += 16) {
        uint32_t x[M][4], y[4];
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix_x4(x[m], a + 16 * m * PITCH + k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            ldmatrix_x4(y, b + 8 * n * PITCH + k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16<T>(s[m][n], x[m], y, s[m][n]);
                mma_m16n8k16<T>(s[m][n + 1], x[m], y + 2, s[m][n + 1]);
            }
        }
    }
}

/* out += p b: p in registers, rounded to T; b [8 N][PITCH] in shared memory, 8 H columns. Two
   fragments of p side by side are one left operand, register for register. */
template <int M, int N, int H, class T>
static __device__ __forceinline__ void multiply_columns(float out[M][H][4],
                                                        const float p[M][N][4], const T *b) {
    enum { PITCH = 8 * H + Vector<T>::size };
    int lane = threadIdx.x % WARP;
    b += lane % 16 * PITCH + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        uint32_t x[M][4], y[4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                x[m][i] = pack_pair<T>(p[m][k + i / 2][i % 2 * 2], p[m][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < H; n += 2) {
            ldmatrix_x4_trans(y, b + 8 * k * PITCH + 8 * n);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16<T>(out[m][n], x[m], y, out[m][n]);
                mma_m16n8k16<T>(out[m][n + 1], x[m], y + 2, out[m][n + 1]);
            }
        }
    }
}

/* ---- the same for float: the same numbers in the same lanes, by FMAs ------------------------ */

template <int M, int N, int HSP>
static __device__ __forceinline__ void multiply_rows(float s[M][N][4], const float *a,
                                                     const float *b) {
    enum { PITCH = HSP + Vector<float>::size };
    a += row_of(0, 0) * PITCH;
    b += column_of(0, 0) * PITCH;
#pragma unroll 2
    for (int k = 0; k < HSP; k += 4) {
        float4 x[M][2];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                x[m][half] = *(const float4 *)(a + (16 * m + 8 * half) * PITCH + k);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float4 y = *(const float4 *)(b + (8 * n + i % 2) * PITCH + k);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    float sum = fmaf(x[m][i / 2].x, y.x, s[m][n][i]);
                    sum = fmaf(x[m][i / 2].y, y.y, sum);
                    sum = fmaf(x[m][i / 2].z, y.z, sum);
                    s[m][n][i] = fmaf(x[m][i / 2].w, y.w, sum);
                }
            }
    }
}

/* Column k of p is in lane k / 2 % 4 of each quad. */
template <int M, int N, int H>
static __device__ __forceinline__ void multiply_columns(float out[M][H][4],
                                                        const float p[M][N][4], const float *b) {
    enum { PITCH = 8 * H + Vector<float>::size };
    b += column_of(0, 0);
#pragma unroll
    for (int k = 0; k < 8 * N; k++) {
        float x[M][2];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                x[m][half] = __shfl_sync(FULL_WARP, p[m][k / 8][2 * half + k % 2], k / 2 % 4, 4);
#pragma unroll
        for (int n = 0; n < H; n++) {
            float2 y = *(const float2 *)(b + k * PITCH + 8 * n);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    out[m][n][i] = fmaf(x[m][i / 2], i % 2 ? y.y : y.x, out[m][n][i]);
        }
    }
}

/* ---- results -------------------------------------------------------------------------------- */

struct alignas(2 * sizeof(floatX)) Pair {
    floatX low, high;
};

/* Writes a warp's sums to `rows` vectors in device memory, `stride` apart. The sums are put into
   `own` first, 16 M rows of a tile in shared memory that no other warp uses any more, so that
   device memory is written 16 bytes at a time. */
template <int M, int HSP>
static __device__ __forceinline__ void store_rows(floatX *out, int stride, int rows,
                                                  const float sum[M][HSP / 8][4], floatX *own,
                                                  const struct Packed batch) {
    enum { CHUNKS = HSP / VEC, PITCH = HSP + VEC };
    __syncwarp(); /* other lanes may still read what lay there */
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < HSP / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2)
                *(Pair *)(own + row_of(m, i) * PITCH + column_of(n, i)) =
                    Pair{from_f<floatX>(sum[m][n][i]), from_f<floatX>(sum[m][n][i + 1])};
    __syncwarp();
    for (int i = threadIdx.x % WARP; i < min_int(rows, 16 * M) * CHUNKS; i += WARP) {
        int row = i / CHUNKS, column = i % CHUNKS * VEC;
        float x[VEC];
        load_vector(x, own + row * PITCH + column);
        store_some(out + row * stride + column, x, batch.HS - column, batch.aligned);
    }
}
