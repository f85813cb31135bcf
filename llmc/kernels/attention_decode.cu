/* Attention of a decode step: one query per row and head, keys and values from the cache.

       s_j = q k_j / sqrt(HS),    m = max s,    p_j = exp(s_j - m),    out = sum p_j v_j / sum p_j

   over prompt[0 .. prompt_length) and tail[0 ..], the row's own key included. Pieces
   of it merge: with M the largest m, out = sum e^(m-M) out_piece / sum e^(m-M) s_piece (online
   softmax 1805.02867; FlashAttention 2205.14135 cut along the keys, "flash decoding").

   A piece is 128 keys, counted from its segment's start, in two pages of the cache. A block has one
   piece of one row and one key-value head, and each of its four warps 32 keys, all of one page:

       prompt |  piece 0  |  piece 1  | p 2|         tail |  piece 0  | p 1|
                  |
                  +--> warp 0: keys 0..31 | warp 1: 32..63 | warp 2: 64..95 | warp 3: 96..127
                            m, s, out          m, s, out        m, s, out        m, s, out
                       \________________________ in warp order ____________________________/
                                                    |
       the row's pieces, in order: prompt, then tail, make out [HS]       (merge_kernel)

   In a warp a key is HS elements = LANES lanes times 16 bytes, and one load of all lanes is
   32 / LANES keys; with HS 64 in bf16 (LANES 8):

       lane      0  1  2 ..  7 |  8 .. 15 | 16 .. 23 | 24 .. 31
       load 0    key 0         |  key 1   |  key 2   |  key 3      keys, then values, are copied to
       load 1    key 4         |  key 5   |  key 6   |  key 7      shared memory by cp.async, each
        ..                                                         lane for itself: all 32 KB of a
       load 7    key 28        |  key 29  |  key 30  |  key 31     block are on their way at once

   Tokens of prompts go another way, in tiles of queries (attention_prefill.cuh says why they can
   and tails cannot). All that follows is about the other rows.

   The tokens of a tail that is stored again enter in one step and share their keys. Up to 16 such
   rows that are neighbours make a run; its first row's block copies a piece once and computes the
   rows one after the other from the copy, each as it would compute it alone: keys beyond a row's
   own have the weight 0. (Only a later value that is inf or NaN would show, because 0 times it is
   NaN.)

   Where every row is the only one of its tail, which the host promises (tails_apart), nobody else
   reads a row's new key in the step: the lanes that copy it take it from qkv and store it as well.
   Else store_kernel comes first.

   What a row computes depends on its own position only: not on other rows, on R, on capacities, on
   pages or on the grid. The grid is made for the longest row that the host promises
   (longest_prompt, longest_tail of struct DecodeRows), and blocks past a row's end leave at once:
   lengths are read on the device, so a recorded launch stays true while positions grow up to that
   bound.

   Cost of a row and layer: 2 * length * NKV * HS elements are read once, and each takes part in 2
   flop for every query head that shares it: 1 flop per byte in bf16 where NH = NKV, so memory is
   the limit. Partial results are 4 (HS + 2) bytes for 128 keys and a query head, 0.8 % of bf16 keys
   and values at HS 64. Rows that share a prompt should be neighbours: x of the grid is the row, so
   they read a piece at about the same time, all but one from the second cache level. */
#include "attention_prefill.cuh"

enum {
    PIECE = THREADS,      /* keys of a block: a warp has as many as lanes, each lane one score */
    RUN = 16,             /* the most rows that share a copy; a run lies between multiples of it */
    BATCH = 8,            /* loads whose products are summed over the lanes together */
    MAX_HS = 128
};

/* How many keys of piece `piece` row r attends to; 0 or less: none. */
static __device__ int keys_of(const struct Decode *d, int r, int piece) {
    const int at = d->rows.position[r];
    if (at < 0 || by_prefill(d, r)) return 0;
    const int P = d->rows.prompt_length[r];
    const bool tail = piece >= d->prompt_pieces;
    int keys = tail ? at + 1 - P : min_int(at + 1, P);
    return min_int(PIECE, keys - (tail ? piece - d->prompt_pieces : piece) * PIECE);
}

/* The row after the run that begins with row r; r itself if r is not the first of its run. */
static __device__ int end_of_run(const struct Decode *d, int r) {
    if (r % RUN > 0 && same_segment(d, r - 1, r)) return r;
    const int most = min_int(d->R, r - r % RUN + RUN);
    int end = r + 1;
    while (end < most && same_segment(d, r, end)) end++;
    return end;
}

/* ---- a warp's 32 keys ------------------------------------------------------------------------ */

/* Load u of a lane is elements [chunk, chunk + VEC) of key u * KEYS + sub: KEYS = WARP / LANES,
   sub = lane / LANES, chunk = lane % LANES * VEC. The score it keeps is that of its own key, the
   one of its load lane % LANES. */
template <int LANES> static __device__ __forceinline__ int own_key(int lane) {
    return lane % LANES * (WARP / LANES) + lane / LANES;
}

static __device__ __forceinline__ void widen(float out[VEC], uint4 bits) {
    floatX element[VEC];
    memcpy(element, &bits, sizeof bits);
#pragma unroll
    for (int i = 0; i < VEC; i++) out[i] = to_f(element[i]);
}

/* Elements in[0 .. count), count <= VEC, as 16 bytes; the others are 0. */
static __device__ uint4 gather_bits(const floatX *in, int count) {
    floatX element[VEC];
    for (int i = 0; i < VEC; i++) element[i] = i < count ? in[i] : from_f<floatX>(0);
    uint4 bits;
    memcpy(&bits, element, sizeof bits);
    return bits;
}

/* A warp's keys, or their values: [count,HS] in the cache. The last one may not be there yet: then
   it is read from `last` [HS], and stored; NULL: it is there. */
struct Source {
    floatX *x;
    const floatX *last;
    int count;
};

/* Starts to copy this lane's part of a source to its places tile [u * WARP]. Keys from `count` on
   and elements from HS on are not read and become 0. */
template <int LANES>
static __device__ __forceinline__ void copy_tile(uint4 *tile, const Source &source, int HS,
                                                 bool whole, int lane) {
    const int KEYS = WARP / LANES, sub = lane / LANES, chunk = lane % LANES * VEC;
    const int left = chunk < HS ? source.count - sub : 0; /* load u is there if u * KEYS < left */
    floatX *in = left > 0 ? source.x + sub * HS + chunk : source.x;
    const bool has_last = source.last && left > 0 && (source.count - 1) % KEYS == sub;
    const int last = has_last ? (source.count - 1) / KEYS : -1; /* the load of it, of this lane */
    if (whole) {
#pragma unroll BATCH
        for (int u = 0; u < LANES; u++) {
            const floatX *from = u == last ? source.last + chunk : in + u * KEYS * HS;
            bool there = u * KEYS < left;
            cp_async16(&tile[u * WARP], there ? from : source.x, there ? 16 : 0);
        }
        if (has_last) *(uint4 *)(in + last * KEYS * HS) = *(const uint4 *)(source.last + chunk);
    } else {
#pragma unroll 1
        for (int u = 0; u < LANES; u++) {
            const floatX *from = u == last ? source.last + chunk : in + u * KEYS * HS;
            tile[u * WARP] = gather_bits(from, u * KEYS < left ? HS - chunk : 0);
        }
        for (int i = 0; has_last && i < VEC && chunk + i < HS; i++)
            in[last * KEYS * HS + i] = source.last[chunk + i];
    }
    cp_async_commit();
}

/* sum [8]: this lane's part of eight sums over LANES lanes. Lane i gets the sum i % 8: in each of
   three exchanges it gives away that half of the sums which is not for it. 7 shuffles, and one more
   for each doubling of LANES, where eight sums one by one would take 8 log2(LANES). */
template <int LANES>
static __device__ __forceinline__ float sum_eight(float sum[BATCH], int lane) {
#pragma unroll
    for (int lanes = BATCH / 2; lanes > 0; lanes /= 2)
#pragma unroll
        for (int u = 0; u < lanes; u++) {
            float low = sum[u], high = sum[u + lanes];
            float other = __shfl_xor_sync(FULL_WARP, lane & lanes ? low : high, lanes);
            sum[u] = (lane & lanes ? high : low) + other;
        }
#pragma unroll
    for (int lanes = BATCH; lanes < LANES; lanes *= 2)
        sum[0] += __shfl_xor_sync(FULL_WARP, sum[0], lanes);
    return sum[0];
}

/* score [HEADS] = q_h k_j of this lane's own key j; q [HEADS][VEC] is its chunk of the queries. */
template <int LANES, int HEADS>
static __device__ __forceinline__ void score_keys(float score[HEADS], const float q[HEADS][VEC],
                                                  const uint4 *tile, int lane) {
#pragma unroll 1
    for (int first = 0; first < LANES; first += BATCH) {
        float sum[HEADS][BATCH];
#pragma unroll
        for (int u = 0; u < BATCH; u++) {
            float k[VEC];
            widen(k, tile[(first + u) * WARP]);
#pragma unroll
            for (int h = 0; h < HEADS; h++) {
                sum[h][u] = 0;
#pragma unroll
                for (int i = 0; i < VEC; i++) sum[h][u] += q[h][i] * k[i];
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float total = sum_eight<LANES>(sum[h], lane);
            if (lane % LANES / BATCH * BATCH == first) score[h] = total;
        }
    }
}

/* out [HEADS][VEC] = sum_j p_j v_j, this lane's chunk of it; p [HEADS] is that of its own key. */
template <int LANES, int HEADS>
static __device__ __forceinline__ void add_values(float out[HEADS][VEC], const float p[HEADS],
                                                  const uint4 *tile) {
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < VEC; i++) out[h][i] = 0;
#pragma unroll BATCH
    for (int u = 0; u < LANES; u++) {
        float v[VEC];
        widen(v, tile[u * WARP]);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
            float weight = __shfl_sync(FULL_WARP, p[h], u, LANES);
#pragma unroll
            for (int i = 0; i < VEC; i++) out[h][i] += weight * v[i];
        }
    }
#pragma unroll
    for (int lanes = LANES; lanes < WARP; lanes *= 2)
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
            for (int i = 0; i < VEC; i++)
                out[h][i] += __shfl_xor_sync(FULL_WARP, out[h][i], lanes);
}

/* ---- a block: one row, one key-value head, one piece ----------------------------------------- */

/* What the warps of a block say of HEADS query heads. */
template <int HEADS> struct Shared {
    float m[HEADS][WARPS], s[HEADS][WARPS], out[HEADS][WARPS][MAX_HS];
};

/* Dynamic shared memory: 16 bytes a lane for each load of keys and of values. Where both are more
   than 64 KB (float32 and HS > 64) they take turns: not every GPU has 128 KB. */
template <int LANES> struct Tiles {
    enum {
        TOGETHER = LANES <= 16,
        PER_WARP = LANES * WARP * (TOGETHER ? 2 : 1),
        BYTES = WARPS * PER_WARP * (int)sizeof(uint4)
    };
};

/* This lane's chunk of `heads` queries [heads,HS], scaled; 0 beyond. */
template <int HEADS>
static __device__ __forceinline__ void load_queries(float q[HEADS][VEC], const floatX *query,
                                                    int heads, int HS, int chunk, bool whole) {
    const float scale = 1.0f / sqrtf((float)HS);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        load_some(q[h], query + h * HS + chunk, h < heads ? HS - chunk : 0, whole);
#pragma unroll
        for (int i = 0; i < VEC; i++) q[h][i] *= scale;
    }
}

/* `heads` <= HEADS queries [heads,HS] against this warp's keys and values, of which there are
   `count` > 0. Where the two have room together, they, and perhaps some beyond `count`, are on
   their way to its tile already. */
template <int LANES, int HEADS>
static __device__ __forceinline__ void attend(struct Shared<HEADS> *shared, uint4 *tile,
                                              const floatX *query, const Source &k,
                                              const Source &v, int HS, int heads, bool whole) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const bool together = Tiles<LANES>::TOGETHER;
    const int chunk = lane % LANES * VEC, own = own_key<LANES>(lane), count = k.count;
    float q[HEADS][VEC], p[HEADS], out[HEADS][VEC];
    if (!together) copy_tile<LANES>(tile, k, HS, whole, lane);
    load_queries<HEADS>(q, query, heads, HS, chunk, whole);
    cp_async_wait<Tiles<LANES>::TOGETHER ? 1 : 0>(); /* the values may still be on their way */
    score_keys<LANES, HEADS>(p, q, tile, lane);
    if (!together) copy_tile<LANES>(tile, v, HS, whole, lane);
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
        bool known = own < count;
        float m = warp_max(known ? p[h] : -INFINITY);
        p[h] = known ? expf(p[h] - m) : 0.0f;
        float s = warp_sum(p[h]);
        if (lane == 0) shared->m[h][warp] = m, shared->s[h][warp] = s;
    }
    cp_async_wait<0>();
    add_values<LANES, HEADS>(out, p, tile + (together ? LANES * WARP : 0));
#pragma unroll
    for (int h = 0; h < HEADS; h++)
#pragma unroll
        for (int i = 0; i < VEC; i++)
            if (lane < LANES && chunk + i < HS) shared->out[h][warp][chunk + i] = out[h][i];
}

/* Query head h of the block's HEADS: its warps' results become one partial result. */
template <int HEADS>
static __device__ __forceinline__ void merge_warps(float2 *state, float *partial,
                                                   const struct Shared<HEADS> *shared, int h,
                                                   int warps, int HS) {
    const int i = threadIdx.x;
    float M = -INFINITY, s = 0, out = 0;
    for (int w = 0; w < warps; w++) M = fmaxf(M, shared->m[h][w]);
    for (int w = 0; w < warps; w++) {
        float weight = expf(shared->m[h][w] - M);
        s += weight * shared->s[h][w];
        if (i < HS) out += weight * shared->out[h][w][i];
    }
    if (i < HS) partial[i] = out;
    if (i == 0) *state = make_float2(M, s);
}

/* Row r, with `count` keys in this block's piece. k, v, tile: this warp's. */
template <int LANES, int HEADS>
static __device__ __forceinline__ void attend_row(const struct Decode *d,
                                                  struct Shared<HEADS> *shared, uint4 *tile,
                                                  Source k, Source v, int r, int count) {
    const int NH = d->cache.heads.NH, NKV = d->cache.heads.NKV, HS = d->cache.heads.HS;
    const int warp = threadIdx.x / WARP, warps = ceil_div(count, WARP), group = NH / NKV;
    const int h_first = blockIdx.y * group;
    const floatX *query = d->qkv + ((size_t)r * (NH + 2 * NKV) + h_first) * HS;
    k.count = v.count = count - warp * WARP;
    for (int h0 = 0; h0 < group; h0 += HEADS) {
        const int heads = min_int(HEADS, group - h0);
        if (warp < warps)
            attend<LANES, HEADS>(shared, tile, query + (size_t)h0 * HS, k, v, HS, heads,
                                 d->whole);
        __syncthreads();
        for (int h = 0; h < heads; h++) {
            size_t index = ((size_t)r * NH + h_first + h0 + h) * d->pieces + blockIdx.z;
            merge_warps<HEADS>(d->state + index, d->partial + index * HS, shared, h, warps, HS);
        }
        __syncthreads();
    }
}

/* True if row r's own key is among the 32 keys of a warp in a piece of its tail. */
static __device__ bool has_new_key(const struct Decode *d, int r, int piece, int warp) {
    const int at = d->rows.position[r] - d->rows.prompt_length[r];
    return at / WARP == piece * WARPS + warp;
}

/* (4: so many blocks on a multiprocessor keep memory busy; ptxas need not spill to fit in more.) */
template <int LANES, int HEADS>
static __global__ void __launch_bounds__(THREADS, 4) attend_kernel(struct Decode d) {
    extern __shared__ uint4 tiles[];
    __shared__ struct Shared<HEADS> shared;
    await_previous();
    const int r = blockIdx.x, g = blockIdx.y, z = blockIdx.z, HS = d.cache.heads.HS;
    const int end = end_of_run(&d, r);
    int most = 0;
    for (int i = r; i < end; i++) most = max_int(most, keys_of(&d, i, z));
    if (most <= 0) return;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const bool tail = z >= d.prompt_pieces;
    const int piece = tail ? z - d.prompt_pieces : z;
    const int slot = tail ? d.rows.tail_slot[r] : d.rows.prompt_slot[r];
    const int first = warp * WARP, at = piece * PIECE + first;
    Source k = {NULL, NULL, most - first}, v = k;
    uint4 *tile = tiles + warp * Tiles<LANES>::PER_WARP + lane;
    if (first < most) { /* a page beyond may not exist */
        k.x = cache_head(&d, tail, slot, at, 0, g), v.x = cache_head(&d, tail, slot, at, 1, g);
        if (d.fused && tail && has_new_key(&d, r, piece, warp))
            k.last = new_head(&d, r, 0, g), v.last = new_head(&d, r, 1, g);
        if (Tiles<LANES>::TOGETHER) {
            copy_tile<LANES>(tile, k, HS, d.whole, lane);
            copy_tile<LANES>(tile + LANES * WARP, v, HS, d.whole, lane);
        }
    }
    for (int i = r; i < end; i++) {
        const int count = keys_of(&d, i, z);
        if (count > 0) attend_row<LANES, HEADS>(&d, &shared, tile, k, v, i, count);
    }
}

/* ---- all pieces ------------------------------------------------------------------------------ */

/* A warp makes out [HS] of one row and head; lane i has elements i, i + 32, .. */
static __global__ void merge_kernel(struct Decode d) {
    await_previous();
    const int lane = threadIdx.x % WARP, HS = d.cache.heads.HS;
    size_t index = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP, r = index / d.cache.heads.NH;
    if (r >= (size_t)d.R || by_prefill(&d, r)) return;
    int keys = d.rows.position[r] + 1, P = keys > 0 ? d.rows.prompt_length[r] : 0;
    /* pieces of the prompt, then, at prompt_pieces, of the tail; none in an empty row */
    int prompt = ceil_div(min_int(keys, P), PIECE), tail = ceil_div(max_int(keys - P, 0), PIECE);
    const float2 *state = d.state + index * d.pieces;
    const float *partial = d.partial + index * d.pieces * HS;
    float M = -INFINITY;
    for (int i = 0; i < prompt + tail; i++)
        M = fmaxf(M, state[i < prompt ? i : i - prompt + d.prompt_pieces].x);
    for (int c = lane; c < HS; c += WARP) {
        float s = 0, out = 0;
        for (int i = 0; i < prompt + tail; i++) {
            int piece = i < prompt ? i : i - prompt + d.prompt_pieces;
            float weight = expf(state[piece].x - M);
            s += weight * state[piece].y;
            out += weight * partial[(size_t)piece * HS + c];
        }
        d.out[index * HS + c] = from_f<floatX>(keys > 0 ? out / s : 0.0f);
    }
}

/* ---- the slot -------------------------------------------------------------------------------- */

template <int LANES, int HEADS> static void launch(const struct Decode *d) {
    const struct Decode arguments = *d;
    const int bytes = Tiles<LANES>::BYTES;
    dim3 grid(arguments.R, arguments.cache.heads.NKV, arguments.pieces);
    ALLOW_SHARED(bytes, attend_kernel<LANES, HEADS>);
    LAUNCH_DEPENDENT(grid, THREADS, bytes, attend_kernel<LANES, HEADS>, arguments);
}

/* Query heads side by side as in the group; more than four take turns. */
template <int LANES> static void launch_heads(const struct Decode *d) {
    const int group = d->cache.heads.NH / d->cache.heads.NKV;
    if (group == 1) launch<LANES, 1>(d);
    else if (group == 2) launch<LANES, 2>(d);
    else launch<LANES, 4>(d);
}

static unsigned blocks_for(size_t n, size_t each) { return (unsigned)((n + each - 1) / each); }

/* How many pieces a segment of `width` pages can have, of which no row sees more than `longest`
   entries; 0: not known. */
static int pieces_of(int width, int longest) {
    const int capacity = width * KV_PAGE;
    return ceil_div(longest > 0 ? min_int(longest, capacity) : capacity, PIECE);
}

static void attention_decode(floatX *out, const floatX *qkv, const struct KvCache *cache,
                             const struct DecodeRows *rows, int layer, int R, void *workspace) {
    const int NH = cache->heads.NH, NKV = cache->heads.NKV, HS = cache->heads.HS;
    const int chunks = ceil_div(HS, VEC);
    if (R == 0) return;
    if (HS > MAX_HS) cuda_die("attention: head size %d; the kernels stop at %d", HS, MAX_HS);
    const int prompt_pieces = pieces_of(cache->prompt_width, rows->longest_prompt);
    const int pieces = prompt_pieces + pieces_of(cache->tail_width, rows->longest_tail);
    const bool whole = rows_aligned(qkv, HS, sizeof(floatX)) &&
                       rows_aligned(cache->pool, HS, sizeof(floatX));
    float2 *state = (float2 *)workspace;
    float *partial = (float *)(state + (size_t)R * NH * pieces);
    struct Decode d = {out, qkv, *cache, *rows, layer, R, prompt_pieces, pieces, state, partial,
                       whole, rows->tails_only && rows->tails_apart};
    if (!d.fused) {
        unsigned stores = blocks_for((size_t)R * 2 * NKV * chunks, THREADS);
        LAUNCH_DEPENDENT(stores, THREADS, 0, store_kernel, d);
    }
    if (!rows->tails_only) attend_prompts(&d);
    if (chunks <= 8) launch_heads<8>(&d);
    else if (chunks <= 16) launch_heads<16>(&d);
    else launch_heads<MAX_HS / VEC>(&d);
    LAUNCH_DEPENDENT(blocks_for((size_t)R * NH, WARPS), THREADS, 0, merge_kernel, d);
}

/* Prompt and tail are cut separately: up to two pieces more than max_length / PIECE. */
static size_t workspace_bytes(const struct OpsShape *shape) {
    size_t pieces = (size_t)shape->max_length / PIECE + 2;
    return (size_t)shape->R * shape->NH * pieces * (sizeof(float2) + shape->HS * sizeof(float));
}

static void fill(struct Ops *ops) { ops->attention_decode = attention_decode; }

extern const struct KernelFile PER_TYPE(cuda_attention_decode) = {"attention_decode", fill,
                                                                  workspace_bytes};
