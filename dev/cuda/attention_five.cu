/* Attention backward with 5 products where what ships has 7 (llmc/kernels/attention.cu): s and dp
   are formed once, by the blocks that own keys, and what a block's keys give to dq is written to
   memory in float32 and added up afterwards, in order.

       a block owns OWN keys of a key-value head; STREAM queries at a time stream past it
           s  = k q^T       dp = v dout^T                        [keys x queries], in registers
           dv += p dout     dk += ds q                           left operands from registers
           ds -> shared memory, where all of the block's keys meet
           part [tile of keys][query] = ds^T k                   float32, to memory
       dq = (part of tile 0 + part of tile 1 + ..) / sqrt(HS)    a second kernel

   The tiles of a query's keys are those of its prompt, then those of its row up to its own. Every
   part has one writer, and the sum one order: the same bits every time.

   What it saves: 2 of 7 products, 4 HS flop a pair. What it costs: 8 HS bytes for each query and
   tile of keys, once written and once read, and memory for them: with tiles of 128 keys 64 flop
   saved a byte, with 64 keys 32. An H100 has 490 TFLOP/s by mma.sync for 3 TB/s, 163 flop a byte,
   so that this pays only as long as the parts stay in the second cache level
   (doc/kernels/attention.md has the sums). */
#include "../../llmc/kernels/attention_backward.cuh"

template <int HSP> struct FiveTiles : BackwardTiles<HSP> {
    enum {
        OWN = BackwardTiles<HSP>::OWN,
        STREAM = BackwardTiles<HSP>::STREAM,
        DS_PITCH = STREAM + VEC,
        BYTES = BackwardTiles<HSP>::BYTES + OWN * DS_PITCH * sizeof(floatX)
    };
};

/* part [M * 16][8 N] of a warp = ds^T k: ds [keys][STREAM + VEC] and k [keys][HSP + VEC], both in
   shared memory, from the warp's first column on. `keys` is a multiple of 16. */
template <int M, int N, int HSP, class T>
static __device__ __forceinline__ void multiply_parts(float part[M][N][4], const T *ds, const T *k,
                                                      int keys) {
    enum { PITCH = HSP + Vector<T>::size, DS_PITCH = 16 * M + Vector<T>::size };
    int lane = threadIdx.x % WARP;
    ds += (lane / 16 * 8 + lane % 8) * DS_PITCH + lane / 8 % 2 * 8;
    k += lane % 16 * PITCH;
#pragma unroll 1
    for (int j = 0; j < keys; j += 16) {
        uint32_t x[M][4], y[2];
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix_x4_trans(x[m], ds + j * DS_PITCH + 16 * m);
#pragma unroll
        for (int n = 0; n < N; n++) {
            ldmatrix_x2_trans(y, k + j * PITCH + 8 * n);
#pragma unroll
            for (int m = 0; m < M; m++) mma_m16n8k16<T>(part[m][n], x[m], y, part[m][n]);
        }
    }
}
template <int M, int N, int HSP>
static __device__ __forceinline__ void multiply_parts(float part[M][N][4], const float *ds,
                                                      const float *k, int keys) {
    enum { PITCH = HSP + Vector<float>::size, DS_PITCH = 16 * M + Vector<float>::size };
#pragma unroll 1
    for (int j = 0; j < keys; j++)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    part[m][n][i] = fmaf(ds[j * DS_PITCH + row_of(m, i)],
                                         k[j * PITCH + column_of(n, i)], part[m][n][i]);
}

/* A warp's ds goes to its rows of the tile; those of keys beyond the row's end become 0, for the
   product goes over all the rows of a warp. */
template <int M, int N>
static __device__ __forceinline__ void store_ds(floatX *own, const float ds[M][N][4], int rows) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                bool inside = row_of(m, i) < rows;
                *(Pair *)(own + row_of(m, i) * (8 * N + VEC) + column_of(n, i)) =
                    Pair{from_f<floatX>(inside ? ds[m][n][i] : 0.0f),
                         from_f<floatX>(inside ? ds[m][n][i + 1] : 0.0f)};
            }
}

/* The first `count` queries' parts of one head, to part [queries][NH][HSP]. Each warp has a quarter
   of the columns. */
template <int STREAM, int HSP>
static __device__ __forceinline__ void write_parts(float *part, const floatX *ds, const floatX *k,
                                                   int keys, int count, int NH) {
    enum { M = STREAM / 16, N = HSP / 8 / WARPS };
    const int column = threadIdx.x / WARP * 8 * N;
    float sum[M][N][4] = {};
    multiply_parts<M, N, HSP>(sum, ds, k + column, keys);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2)
                if (row_of(m, i) < count)
                    *(float2 *)(part + (size_t)row_of(m, i) * NH * HSP + column +
                                column_of(n, i)) = float2{sum[m][n][i], sum[m][n][i + 1]};
}

/* Which of a query's tiles of keys this one is: those of the prompt come first. */
template <int OWN>
static __device__ __forceinline__ int tile_number(const struct Packed batch,
                                                  const struct Tile tile) {
    enum { TILES = LIST_QUERIES / OWN };
    const int number = blockIdx.z * gridDim.y + blockIdx.y;
    const int prompt = batch.prompt ? batch.prompt[batch.block[number / TILES].row] : -1;
    const int P = prompt < 0 ? 0 : batch.row_start[prompt + 1] - batch.row_start[prompt];
    return ceil_div(P, OWN) + tile.first / OWN;
}

/* As backward_keys_kernel of attention.cu, and parts [tiles][N][NH][HSP] of dq. */
template <int HSP>
static __global__ void __launch_bounds__(THREADS, 2)
five_kernel(floatX *dqkv, float *parts, const floatX *dout, const floatX *qkv, const float *lse,
            const float *delta, const struct Packed batch) {
    typedef FiveTiles<HSP> Tiles;
    enum { M = Tiles::M, OWN = Tiles::OWN, STREAM = Tiles::STREAM, N = STREAM / 8,
           PITCH = Tiles::PITCH };
    extern __shared__ uint4 shared[];
    const struct Share x = block_share<OWN, M, true>(batch);
    const struct Tile tile = x.tile;
    if (tile.first >= tile.T) return;
    const int g = x.head, group = batch.NH / batch.NKV, heads = batch.NH + 2 * batch.NKV;
    const floatX *key = qkv + vector_at(tile.start, heads, batch.NH + g, batch.HS);
    floatX *k = (floatX *)shared, *v = k + OWN * PITCH, *stages = v + OWN * PITCH;
    floatX *ds = stages + 4 * STREAM * PITCH;
    const size_t before = (size_t)tile_number<OWN>(batch, tile) * batch.N + tile.start;

    load_keys<OWN, HSP>(k, key, tile.first, tile, batch);
    load_queries<STREAM, HSP>(stages, qkv, dout, lse, delta, batch, tile, g * group, tile.first);
    cp_async_commit();
    float dk[M][HSP / 8][4] = {}, dv[M][HSP / 8][4] = {}, factor[M][2];
    for (int m = 0; m < M; m++) factor[m][0] = factor[m][1] = batch.scale;
    for (int h = g * group, first = tile.first, stage = 0, next_h, next; h < (g + 1) * group;
         h = next_h, first = next, stage ^= 1) {
        floatX *q = stages + stage * 2 * STREAM * PITCH, *d = q + STREAM * PITCH;
        next_h = h, next = first + STREAM;
        if (next >= tile.queries) next_h = h + 1, next = tile.first;
        cp_async_wait<0>();
        __syncthreads();
        if (next_h < (g + 1) * group)
            load_queries<STREAM, HSP>(stages + (stage ^ 1) * 2 * STREAM * PITCH, qkv, dout, lse,
                                      delta, batch, tile, next_h, next);
        cp_async_commit();
        if (x.rows > 0 && first + STREAM > x.own) { /* a query here sees these keys */
            float s[M][N][4] = {}, dp[M][N][4] = {};
            multiply_rows<M, N, HSP>(s, k + x.offset * PITCH, q);
            if (x.own + 16 * M - 1 > first) mask_later<M, N, true>(s, first - x.own);
            multiply_rows<M, N, HSP>(dp, v + x.offset * PITCH, d);
            softmax_backward<M, N, HSP>(s, dp, q, d, batch.scale * PER_UNIT);
            store_ds<M, N>(ds + x.offset * Tiles::DS_PITCH, dp, x.rows);
            multiply_columns<M, N, HSP / 8>(dv, s, d);
            multiply_columns<M, N, HSP / 8>(dk, dp, q);
        }
        __syncthreads();
        /* Keys of the warps that have stored their ds. */
        int keys = min_int(min_int(tile.T, first + STREAM) - tile.first, OWN);
        write_parts<STREAM, HSP>(parts + ((before + first) * batch.NH + h) * HSP, ds, k,
                                 ceil_div(keys, 16 * M) * 16 * M, tile.queries - first, batch.NH);
    }
    __syncthreads(); /* the results go where other warps read keys */
    if (x.rows <= 0) return;
    floatX *out = dqkv + vector_at(x.token, heads, batch.NH + g, batch.HS);
    scale_rows<M, HSP / 8>(dk, factor);
    store_rows<M, HSP>(out, heads * batch.HS, x.rows, dk, k + x.offset * PITCH, batch);
    store_rows<M, HSP>(out + batch.NKV * batch.HS, heads * batch.HS, x.rows, dv,
                       v + x.offset * PITCH, batch);
}

/* dq = the sum of its parts / sqrt(HS). A block: an entry of the list of queries, one head. */
template <int HSP>
static __global__ void __launch_bounds__(THREADS)
sum_parts_kernel(floatX *dqkv, const float *parts, const struct Packed batch) {
    enum { OWN = FiveTiles<HSP>::OWN, CHUNKS = HSP / VEC };
    const struct Tile tile = query_tile<LIST_QUERIES>(batch, blockIdx.z * gridDim.y + blockIdx.y);
    const int h = blockIdx.x, heads = batch.NH + 2 * batch.NKV, before = ceil_div(tile.P, OWN);
    const size_t step = (size_t)batch.N * batch.NH * HSP;
    const int rows = min_int(LIST_QUERIES, tile.T - tile.first);
    for (int i = threadIdx.x; i < rows * CHUNKS; i += THREADS) {
        const int position = tile.first + i / CHUNKS, column = i % CHUNKS * VEC;
        const int token = tile.start + position, count = before + (position - tile.P) / OWN + 1;
        const float *part = parts + ((size_t)token * batch.NH + h) * HSP + column;
        float sum[VEC] = {};
        for (int t = 0; t < count; t++, part += step)
#pragma unroll
            for (int j = 0; j < VEC; j += 4) {
                float4 x = *(const float4 *)(part + j);
                sum[j] += x.x, sum[j + 1] += x.y, sum[j + 2] += x.z, sum[j + 3] += x.w;
            }
#pragma unroll
        for (int j = 0; j < VEC; j++) sum[j] *= batch.scale;
        store_some(dqkv + vector_at(token, heads, h, batch.HS) + column, sum, batch.HS - column,
                   batch.aligned);
    }
}

/* ---- the slot ------------------------------------------------------------------------------- */

static size_t delta_bytes(int N, int NH) { return align_up((size_t)N * NH * sizeof(float), 256); }

template <int HSP>
static void launch_five(floatX *dqkv, float *parts, const floatX *dout, const floatX *qkv,
                        const float *lse, const float *delta, const struct Packed batch) {
    typedef FiveTiles<HSP> Tiles;
    dim3 keys = grid_of<Tiles::OWN>(batch, batch.NKV);
    dim3 queries = grid_of<LIST_QUERIES>(batch, batch.NH);
    ALLOW_SHARED(Tiles::BYTES, five_kernel<HSP>);
    five_kernel<HSP><<<keys, THREADS, Tiles::BYTES, cuda.stream>>>(dqkv, parts, dout, qkv, lse,
                                                                   delta, batch);
    CUDA_CHECK_LAUNCH();
    sum_parts_kernel<HSP><<<queries, THREADS, 0, cuda.stream>>>(dqkv, parts, batch);
    CUDA_CHECK_LAUNCH();
}

static void attention_backward(floatX *dqkv, const floatX *dout, const floatX *out,
                               const floatX *qkv, const float *lse, const struct Rows *rows,
                               const struct Heads *heads, void *workspace) {
    float *delta = (float *)workspace;
    float *parts = (float *)((char *)workspace + delta_bytes(rows->N, heads->NH));
    const void *const pointers[] = {dqkv, dout, out, qkv};
    const struct Packed batch = packed_batch(rows, heads, pointers, 4);
    if (rows->N == 0) return;
    launch_delta(delta, dout, out, batch);
    BY_HEAD_SIZE(heads->HS, launch_five, dqkv, parts, dout, qkv, lse, delta, batch);
}

/* A query's tiles of keys: both its prompt's and its row's may end with part of one. Half of this
   is never touched where rows are long: later keys give nothing to a query. */
static size_t workspace_bytes(const struct OpsShape *shape) {
    const int HSP = (int)align_up((size_t)shape->HS, 32);
    int own = FiveTiles<64>::OWN;
    if (HSP > 64) own = FiveTiles<128>::OWN;
    const size_t tiles = (size_t)ceil_div(shape->max_T, own) + 1;
    return delta_bytes(shape->N, shape->NH) +
           tiles * shape->N * shape->NH * HSP * sizeof(float);
}

static void fill(struct Ops *ops) {
    ops->attention_block = LIST_QUERIES;
    ops->attention_backward = attention_backward;
}

extern const struct KernelFile PER_TYPE(attention_five) = {"attention_five", fill,
                                                           workspace_bytes};
