/* Attention forward on Hopper, in the manner of FlashAttention-3 (2407.08608): TMA, wgmma, warps
   with different jobs. Head sizes 64 and 128 in bf16 and fp16; the others are what ships.

       producer, 1 warp     q once, then keys and values, 128 at a time, through 2 stages of each
       2 consumers          a warpgroup each: 64 queries, their softmax, their sums

   A consumer's softmax of tile t runs while the tensor cores add tile t - 1 to its sums, and while
   they work for the other consumer:

       tensor cores   s0 | s1  o += p0 v0 | s2  o += p1 v1 | ..        s = q k^T, 64 x 128
       consumer          p0            p1               p2            p = e^(s - max)

   s is in registers as mma leaves it, so the softmax, its entropy and the masks are those of
   llmc/kernels/attention_softmax.cuh, and p is the left operand of the second product without
   passing through memory. Values are read as they lie, keys side by side with k of the product
   (wgmma_descriptor_mn).

   Tiles in shared memory are [HS / 64][128 rows][64], 128-byte swizzle. TMA knows nothing of the
   rows of the batch: a tile that goes past the end of the row or of its prompt brings the next
   row's numbers. Their scores are masked, but 0 * NaN is NaN; so the producer overwrites those
   values with zeroes before it lets the consumers have them. */
#include "../../llmc/kernels/attention_softmax.cuh"
#include "../../llmc/kernels/ptx_hopper.cuh"

enum { GROUP = 128, QUERIES = 128, KEYS = 128, STAGES = 2, HOPPER_THREADS = 3 * GROUP };

template <int HS> struct HopperShared {
    floatX q[QUERIES * HS]; /* afterwards out */
    floatX k[STAGES][KEYS * HS], v[STAGES][KEYS * HS];
    uint64_t q_full, k_full[STAGES], k_empty[STAGES], v_full[STAGES], v_empty[STAGES], v_landed;
};

#ifdef HOPPER_CODE

/* In float32 no kernel is made of what follows, which is why some of it is said to be unused. */

/* The keys of a block's queries, in tiles: first the prompt's, then the row's own. */
struct Keys {
    int prompt, own, prompt_tiles, tiles; /* first tokens; how many tiles */
    int P, T;                             /* keys of the prompt, of the row */
};

[[maybe_unused]] static __device__ __forceinline__ struct Keys keys_of(const struct Tile tile) {
    struct Keys x;
    x.P = tile.P, x.T = tile.T - tile.P;
    x.prompt = tile.start + tile.away, x.own = tile.start + tile.P;
    x.prompt_tiles = ceil_div(x.P, KEYS);
    x.tiles = x.prompt_tiles + (tile.first - tile.P) / KEYS + 1;
    return x;
}

[[maybe_unused]] static __device__ __forceinline__ int keys_token(const struct Keys x, int t) {
    return t < x.prompt_tiles ? x.prompt + t * KEYS : x.own + (t - x.prompt_tiles) * KEYS;
}

/* Of the KEYS rows of tile t, those that are keys of the block's queries. */
static __device__ __forceinline__ int keys_count(const struct Keys x, int t) {
    return min_int(KEYS, t < x.prompt_tiles ? x.P - t * KEYS : x.T - (t - x.prompt_tiles) * KEYS);
}

/* ---- the producer --------------------------------------------------------------------------- */

template <int HS>
static __device__ __forceinline__ void load_head(floatX *to, const CUtensorMap *map, int column,
                                                 int token, uint64_t *full) {
    mbarrier_arrive_expect(full, KEYS * HS * sizeof(floatX));
#pragma unroll
    for (int block = 0; block < HS / 64; block++)
        tma_load_2d(to + block * KEYS * 64, map, column + block * 64, token, full);
}

/* Values from row `count` on become 0. A warp. */
template <int HS> static __device__ __forceinline__ void clear_values(floatX *v, int count) {
    for (int i = count * 8 + threadIdx.x % WARP; i < KEYS * 8; i += WARP)
#pragma unroll
        for (int block = 0; block < HS / 64; block++)
            *(uint4 *)(v + (block * KEYS * 8 + i) * 8) = uint4{0, 0, 0, 0};
    fence_async_shared();
    __syncwarp();
}

/* One warp; its first lane asks for the tiles. The grid's list gives a block at most two tiles that
   need zeroes: the prompt's last and the row's last. */
template <int HS>
static __device__ void produce(struct HopperShared<HS> &x, const CUtensorMap *map,
                               const struct Keys keys, int q_token, int h, int g,
                               const struct Packed batch) {
    const bool asks = threadIdx.x % WARP == 0;
    const int k_column = (batch.NH + g) * HS, v_column = k_column + batch.NKV * HS;
    if (asks) load_head<HS>(x.q, map, h * HS, q_token, &x.q_full);
    for (int t = 0, cleared = 0; t < keys.tiles; t++) {
        const int stage = t % STAGES, parity = (t / STAGES & 1) ^ 1;
        const int token = keys_token(keys, t), count = keys_count(keys, t);
        if (asks) {
            if (t >= STAGES) mbarrier_wait(&x.k_empty[stage], parity);
            load_head<HS>(x.k[stage], map, k_column, token, &x.k_full[stage]);
            if (t >= STAGES) mbarrier_wait(&x.v_empty[stage], parity);
            load_head<HS>(x.v[stage], map, v_column, token,
                          count < KEYS ? &x.v_landed : &x.v_full[stage]);
        }
        if (count == KEYS) continue;
        __syncwarp();
        mbarrier_wait(&x.v_landed, cleared++ & 1);
        clear_values<HS>(x.v[stage], count);
        if (asks) mbarrier_arrive(&x.v_full[stage]);
    }
}

/* ---- the consumers -------------------------------------------------------------------------- */

/* s [64 x KEYS] = q k^T, started. */
template <class T, int HS>
static __device__ __forceinline__ void start_scores(float s[1][KEYS / 8][4], const T *q,
                                                    const T *k) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < HS; i += 16) {
        const int at = i / 64 * KEYS * 64 + i % 64;
        wgmma_ss<T, KEYS>(s[0][0], wgmma_descriptor(q + at), wgmma_descriptor(k + at), i > 0);
    }
    wgmma_commit();
}

/* out [64 x HS] += p v, started. */
template <class T, int HS>
static __device__ __forceinline__ void start_sums(float out[1][HS / 8][4],
                                                  const uint32_t p[KEYS / 16][4], const T *v) {
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        wgmma_rs<T, HS, 1>(out[0][0], p[i],
                           wgmma_descriptor_mn(v + i * 16 * 64, KEYS * 64 * sizeof(T)), 1);
    wgmma_commit();
}

/* Lanes of a warp have all read what lies in a stage. */
[[maybe_unused]] static __device__ __forceinline__ void release(uint64_t *empty) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) mbarrier_arrive(empty);
}

template <class T>
static __device__ __forceinline__ void pack_scores(uint32_t p[KEYS / 16][4],
                                                   const float s[1][KEYS / 8][4]) {
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[k][i] = pack_pair<T>(s[0][2 * k + i / 2][i % 2 * 2],
                                   s[0][2 * k + i / 2][i % 2 * 2 + 1]);
}

/* Masks what the warp's queries, from position `own` of the row on, do not see of tile t. */
[[maybe_unused]] static __device__ __forceinline__ void mask_tile(float s[1][KEYS / 8][4],
                                                                  const struct Keys keys, int t,
                                                                  int own) {
    if (t >= keys.prompt_tiles) {
        const int first = (t - keys.prompt_tiles) * KEYS;
        if (first + KEYS - 1 > own) mask_later<1, KEYS / 8, false>(s, own - first);
        return;
    }
    const int count = keys_count(keys, t);
    if (count == KEYS) return;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (column_of(n, i) >= count) s[0][n][i] = MASKED;
}

/* out and statistics of a warpgroup's 64 queries; own: this warp's first, in the row. */
template <class T, int HS>
static __device__ __forceinline__ void attend(float out[1][HS / 8][4], struct Softmax state[1][2],
                                              struct HopperShared<HS> &x, const struct Keys keys,
                                              int own, float scale) {
    float s[1][KEYS / 8][4], factor[1][2];
    uint32_t p[KEYS / 16][4];
    const T *q = x.q + threadIdx.x / GROUP * 64 * 64;
    mbarrier_wait(&x.q_full, 0);
    mbarrier_wait(&x.k_full[0], 0);
    start_scores<T, HS>(s, q, x.k[0]);
    wgmma_wait<0>();
    wgmma_registers<KEYS / 2>(s[0][0]);
    release(&x.k_empty[0]);
    mask_tile(s, keys, 0, own);
    softmax_tile<1, KEYS / 8>(s, state, factor, scale);
    pack_scores<T>(p, s);
#pragma unroll 1
    for (int t = 1; t < keys.tiles; t++) {
        const int now = t % STAGES, before = (t - 1) % STAGES;
        mbarrier_wait(&x.k_full[now], t / STAGES & 1);
        start_scores<T, HS>(s, q, x.k[now]);
        mbarrier_wait(&x.v_full[before], (t - 1) / STAGES & 1);
        start_sums<T, HS>(out, p, x.v[before]);
        wgmma_wait<1>();
        wgmma_registers<KEYS / 2>(s[0][0]);
        release(&x.k_empty[now]);
        mask_tile(s, keys, t, own);
        softmax_tile<1, KEYS / 8>(s, state, factor, scale);
        wgmma_wait<0>();
        wgmma_registers<HS / 2>(out[0][0]);
        release(&x.v_empty[before]);
        scale_rows<1, HS / 8>(out, factor);
        pack_scores<T>(p, s);
    }
    const int last = keys.tiles - 1;
    mbarrier_wait(&x.v_full[last % STAGES], last / STAGES & 1);
    start_sums<T, HS>(out, p, x.v[last % STAGES]);
    wgmma_wait<0>();
    wgmma_registers<HS / 2>(out[0][0]);
}

/* Writes a warp's 16 queries, through its rows of the tile that q was in, swizzled as that. */
template <int HS>
static __device__ __forceinline__ void store_out(floatX *out, int stride, int rows, floatX *own,
                                                 const float sum[1][HS / 8][4]) {
#pragma unroll
    for (int n = 0; n < HS / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const int row = row_of(0, i), chunk = n % 8 ^ row % 8;
            *(Pair *)(own + n / 8 * QUERIES * 64 + row * 64 + chunk * 8 + column_of(0, i)) =
                Pair{from_f<floatX>(sum[0][n][i]), from_f<floatX>(sum[0][n][i + 1])};
        }
    __syncwarp();
    for (int i = threadIdx.x % WARP; i < min_int(rows, 16) * (HS / 8); i += WARP) {
        const int row = i / (HS / 8), n = i % (HS / 8);
        *(uint4 *)(out + (int64_t)row * stride + n * 8) =
            *(const uint4 *)(own + n / 8 * QUERIES * 64 + row * 64 + (n % 8 ^ row % 8) * 8);
    }
}

template <class T, int HS>
static __device__ void consume(floatX *out, float *lse, float *entropy, struct HopperShared<HS> &x,
                               const struct Tile tile, const struct Keys keys, int h,
                               const struct Packed batch) {
    const int offset = threadIdx.x / WARP * 16, first = tile.first + offset;
    const int rows = tile.T - first, token = tile.start + first;
    const size_t index = (size_t)h * batch.N + token;
    float sum[1][HS / 8][4] = {}, factor[1][2];
    struct Softmax state[1][2] = {{{MASKED, 0, 0}, {MASKED, 0, 0}}};
    attend<T, HS>(sum, state, x, keys, first - tile.P, batch.scale * PER_UNIT);
    store_statistics<1>(lse + index, entropy ? entropy + index : NULL, rows, state, factor);
    scale_rows<1, HS / 8>(sum, factor);
    barrier_sync(1 + threadIdx.x / GROUP, GROUP); /* the warpgroup reads q no more */
    store_out<HS>(out + vector_at(token, batch.NH, h, HS), batch.NH * HS, rows, x.q + offset * 64,
                  sum);
}

#endif

/* A block: QUERIES queries of one head. */
template <class T, int HS>
static __global__ void __launch_bounds__(HOPPER_THREADS, 1)
hopper_kernel(floatX *out, float *lse, float *entropy, const __grid_constant__ CUtensorMap map,
              const struct Packed batch) {
#ifdef HOPPER_CODE
    extern __shared__ __align__(1024) unsigned char shared[];
    struct HopperShared<HS> &x = *(struct HopperShared<HS> *)shared;
    const struct Tile tile = query_tile<QUERIES>(batch, blockIdx.z * gridDim.y + blockIdx.y);
    if (tile.first >= tile.T) return;
    const struct Keys keys = keys_of(tile);
    const int h = blockIdx.x;
    if (threadIdx.x == 0) {
        mbarrier_init(&x.q_full, 1);
        mbarrier_init(&x.v_landed, 1);
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&x.k_full[s], 1);
            mbarrier_init(&x.v_full[s], 1);
            mbarrier_init(&x.k_empty[s], 2 * GROUP / WARP);
            mbarrier_init(&x.v_empty[s], 2 * GROUP / WARP);
        }
        mbarrier_init_fence();
    }
    __syncthreads();
    if (threadIdx.x >= 2 * GROUP) {
        registers_release<24>();
        if (threadIdx.x < 2 * GROUP + WARP)
            produce<HS>(x, &map, keys, tile.start + tile.first, h, h / (batch.NH / batch.NKV),
                        batch);
    } else {
        registers_take<240>();
        consume<T, HS>(out, lse, entropy, x, tile, keys, h, batch);
    }
#else
    (void)out, (void)lse, (void)entropy, (void)map, (void)batch;
#endif
}

/* ---- the slot ------------------------------------------------------------------------------- */

template <class T, int HS>
static void launch_hopper(floatX *out, float *lse, float *entropy, const floatX *qkv,
                          const struct Packed batch) {
    if constexpr (sizeof(T) == 2) {
        const int columns = (batch.NH + 2 * batch.NKV) * HS, bytes = sizeof(HopperShared<HS>);
        const CUtensorMap map = tensor_map_2d(qkv, batch.N, columns, columns, KEYS, 64);
        dim3 grid = grid_of<QUERIES>(batch, batch.NH);
        ALLOW_SHARED(bytes, hopper_kernel<T, HS>);
        hopper_kernel<T, HS><<<grid, HOPPER_THREADS, bytes, cuda.stream>>>(out, lse, entropy, map,
                                                                           batch);
        CUDA_CHECK_LAUNCH();
    }
}

extern const struct KernelFile PER_TYPE(cuda_attention);

static void attention_forward(floatX *out, float *lse, float *entropy, const floatX *qkv,
                              const struct Rows *rows, const struct Heads *heads,
                              void *workspace) {
    const void *const pointers[] = {out, qkv};
    const struct Packed batch = packed_batch(rows, heads, pointers, 2);
    if (rows->N == 0) return;
    if (batch.aligned && heads->HS == 64) {
        launch_hopper<floatX, 64>(out, lse, entropy, qkv, batch);
    } else if (batch.aligned && heads->HS == 128) {
        launch_hopper<floatX, 128>(out, lse, entropy, qkv, batch);
    } else {
        struct Ops ships;
        PER_TYPE(cuda_attention).fill(&ships);
        ships.attention_forward(out, lse, entropy, qkv, rows, heads, workspace);
    }
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return PER_TYPE(cuda_attention).workspace(shape);
}

static void fill(struct Ops *ops) {
    ops->attention_block = LIST_QUERIES;
    if (NARROW) ops->attention_forward = attention_forward;
}

extern const struct KernelFile PER_TYPE(attention_hopper) = {"attention_hopper", fill,
                                                             workspace_bytes};
