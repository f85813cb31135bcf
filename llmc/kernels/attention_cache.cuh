/* What the kernels of attention over the decode cache share: their arguments, the way to a key of
   the cache, and which rows belong together. */
#pragma once
#include "attention_tile.cuh"
#include "dependent.cuh"

/* The slot's arguments, its scratch, and whether rows may be read 16 bytes at a time. */
struct Decode {
    floatX *out;
    const floatX *qkv;
    struct KvCache cache;
    struct DecodeRows rows;
    int layer, R;
    int prompt_pieces, pieces; /* of the longest row: the prompt's, all */
    float2 *state;             /* [R,NH,pieces] m and s */
    float *partial;            /* [R,NH,pieces,HS] */
    bool whole;
    bool fused;                /* attend_kernel stores each row's key and value */
};

/* Head g of the keys (0) or values (1) at position `at` of a segment: [.,HS], up to the end of the
   page. */
static __device__ floatX *cache_head(const struct Decode *d, bool tail, int slot, int at,
                                     int key_value, int g) {
    const struct KvCache *c = &d->cache;
    const int *table = tail ? c->tail + (size_t)slot * c->tail_width
                            : c->prompt + (size_t)slot * c->prompt_width;
    size_t page = (size_t)d->layer * c->pages + table[at / KV_PAGE];
    return c->pool + (((page * 2 + key_value) * c->heads.NKV + g) * KV_PAGE + at % KV_PAGE) *
                         c->heads.HS;
}

/* Key or value head g of row r as it has just been computed: [HS]. */
static __device__ __forceinline__ const floatX *new_head(const struct Decode *d, int r,
                                                         int key_value, int g) {
    const int NH = d->cache.heads.NH, NKV = d->cache.heads.NKV;
    return d->qkv + ((size_t)r * (NH + 2 * NKV) + NH + key_value * NKV + g) * d->cache.heads.HS;
}

/* A thread moves 16 bytes of a row's new key or value to their place. All rows are stored before
   any is read: the rows of a prefill see each other. */
static __global__ void store_kernel(struct Decode d) {
    await_previous();
    const int NKV = d.cache.heads.NKV, HS = d.cache.heads.HS;
    const int chunks = ceil_div(HS, VEC);
    size_t index = (size_t)blockIdx.x * THREADS + threadIdx.x, r = index / chunks / (2 * NKV);
    if (r >= (size_t)d.R) return;
    int chunk = (int)(index % chunks) * VEC, head = (int)(index / chunks % (2 * NKV));
    int at = d.rows.position[r];
    if (at < 0) return;
    int P = d.rows.prompt_length[r], key_value = head / NKV, g = head % NKV;
    const bool tail = at >= P;
    const int slot = tail ? d.rows.tail_slot[r] : d.rows.prompt_slot[r];
    floatX *out = cache_head(&d, tail, slot, tail ? at - P : at, key_value, g);
    const floatX *in = new_head(&d, (int)r, key_value, g);
    if (d.whole) *(uint4 *)(out + chunk) = *(const uint4 *)(in + chunk);
    else
        for (int i = chunk; i < HS && i < chunk + VEC; i++) out[i] = in[i];
}

/* True if row r is computed by prefill_kernel. */
static __device__ bool by_prefill(const struct Decode *d, int r) {
    const int at = d->rows.position[r];
    return !d->rows.tails_only && at >= 0 && at < d->rows.prompt_length[r];
}

/* True if rows a and b are tokens of one prompt, or of one tail. */
static __device__ bool same_segment(const struct Decode *d, int a, int b) {
    const int at_a = d->rows.position[a], at_b = d->rows.position[b];
    if (at_a < 0 || at_b < 0 || d->rows.prompt_slot[a] != d->rows.prompt_slot[b]) return false;
    const int P = d->rows.prompt_length[a];
    if (at_a < P || at_b < P) return at_a < P && at_b < P;
    return d->rows.tail_slot[a] == d->rows.tail_slot[b];
}
