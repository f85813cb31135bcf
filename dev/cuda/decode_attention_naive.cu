/* Attention of a decode step as its definition is written: new keys and values are stored, then a
   thread for each row and query head goes along all keys that the row sees, one after another, and
   keeps the maximum, the sum of e^(s - m) and the output under it (online softmax, 1805.02867).

       blocks  R NH / 64: 64 rows of 16 heads are 16 blocks on 132 multiprocessors
       bytes   32 lanes read keys of 32 heads: 2 bytes at a time, 2 HS apart; heads that share a key
               each read it
       time    that of the longest row, however short the others are

   Head sizes up to 128. */
#include "../../llmc/kernels/attention_cache.cuh"
#include "lab.cuh"

enum { HEAD_MOST = 128, HEADS = 64 }; /* of a block */

/* Adds one key and its value, of HS elements. q [HS] is scaled. */
static __device__ void add_key(float *m, float *s, float *out, const float *q, const floatX *key,
                               const floatX *value, int HS) {
    float score = 0;
    for (int i = 0; i < HS; i++) score = fmaf(q[i], to_f(key[i]), score);
    const float maximum = fmaxf(*m, score);
    const float kept = expf(*m - maximum), weight = expf(score - maximum); /* at first e^-inf = 0 */
    *s = *s * kept + weight;
    for (int i = 0; i < HS; i++) out[i] = out[i] * kept + weight * to_f(value[i]);
    *m = maximum;
}

static __global__ void __launch_bounds__(HEADS) naive_kernel(struct Decode d) {
    const int NH = d.cache.heads.NH, NKV = d.cache.heads.NKV, HS = d.cache.heads.HS;
    const int item = blockIdx.x * HEADS + threadIdx.x, r = item / NH, h = item % NH;
    if (r >= d.R || d.rows.position[r] < 0) return;
    const int at = d.rows.position[r], P = d.rows.prompt_length[r], g = h / (NH / NKV);
    const floatX *query = d.qkv + ((size_t)r * (NH + 2 * NKV) + h) * HS;
    const float scale = 1 / sqrtf((float)HS);
    float q[HEAD_MOST], out[HEAD_MOST], m = -INFINITY, s = 0;
    for (int i = 0; i < HS; i++) q[i] = to_f(query[i]) * scale, out[i] = 0;
    for (int k = 0; k <= at; k++) {
        const bool tail = k >= P;
        const int slot = tail ? d.rows.tail_slot[r] : d.rows.prompt_slot[r], j = tail ? k - P : k;
        add_key(&m, &s, out, q, cache_head(&d, tail, slot, j, 0, g),
                cache_head(&d, tail, slot, j, 1, g), HS);
    }
    for (int i = 0; i < HS; i++) d.out[(size_t)item * HS + i] = from_f<floatX>(out[i] / s);
}

static void attention_decode(floatX *out, const floatX *qkv, const struct KvCache *cache,
                             const struct DecodeRows *rows, int layer, int R, void *workspace) {
    const int NH = cache->heads.NH, NKV = cache->heads.NKV, HS = cache->heads.HS;
    (void)workspace;
    if (R == 0) return;
    if (HS > HEAD_MOST) cuda_die("attention: head size %d; the version stops at 128", HS);
    struct Decode d = {};
    d.out = out, d.qkv = qkv, d.cache = *cache, d.rows = *rows, d.layer = layer, d.R = R;
    const int stores = ceil_div(R * 2 * NKV * ceil_div(HS, VEC), THREADS);
    store_kernel<<<stores, THREADS, 0, cuda.stream>>>(d);
    CUDA_CHECK_LAUNCH();
    naive_kernel<<<ceil_div(R * NH, HEADS), HEADS, 0, cuda.stream>>>(d);
    CUDA_CHECK_LAUNCH();
}

static void fill(struct Ops *ops) {
    lab_unused();
    ops->attention_decode = attention_decode;
}

extern const struct KernelFile PER_TYPE(decode_attention_naive) = {"decode_attention_naive", fill,
                                                                   no_workspace};
