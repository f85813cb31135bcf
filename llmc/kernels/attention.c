/* Causal softmax attention inside each row of a packed batch, and to its prompt, and in the decode
   cache.

       s_ij = q_i k_j / sqrt(HS), j <= i,    lse_i = log sum_j exp s_ij,   p_ij = exp(s_ij - lse_i)
       out_i = sum_j p_ij v_j,               H_i = lse_i - sum_j p_ij s_ij

   Training, as in FlashAttention (2205.14135), keeps lse and forms p again in backward:
       dp_ij = dout_i v_j,     delta_i = sum_j p_ij dp_ij = dout_i out_i
       ds_ij = p_ij (dp_ij - delta_i)
       dq_i = sum_j ds_ij k_j / sqrt(HS),    dk_j = sum_i ds_ij q_i / sqrt(HS)
       dv_j = sum_i p_ij dout_i

   64 queries at a time against every key they may see, so that a block is a few matrix products and
   its scores stay in the second cache level:

       queries  0..63   [##]
               64..127  [####]        only the last 64 x 64 square of a block has a masked half
              128..191  [######]

   Scores lie with the queries side by side, [keys][64], so that maxima and sums over keys are taken
   for 16 queries at once, and a short row costs no more than its numbers. Short rows need no code
   of their own: OpenBLAS has kernels for small products (0.1 us for 10 x 10).

   Where a row has a prompt, its queries have two pieces of keys: the prompt's, all of them, and the
   row's own. Their scores lie under each other as if they were one row. */
#include <float.h>
#include "cpu.h"

#define BLOCK 64 /* queries of a block */
#define MASKED (-FLT_MAX / 4) /* the score of a later key: e^MASKED is 0, and 0 * MASKED is 0 */

/* One head of one row: where its vectors lie in qkv, from the row's first token on. */
struct HeadPlace {
    size_t q, k, v;
};

static struct HeadPlace head_of(int start, int h, const struct Heads *heads) {
    const int NH = heads->NH, NKV = heads->NKV, HS = heads->HS;
    size_t row = (size_t)start * (size_t)((NH + 2 * NKV) * HS);
    size_t group = (size_t)(h / (NH / NKV));
    return (struct HeadPlace){row + (size_t)h * HS, row + (NH + group) * HS,
                              row + (NH + NKV + group) * HS};
}

/* Keys that lie one behind the other. */
struct Piece {
    int start, count;   /* the first one's token; how many */
};

/* What the queries of a row see: pieces[0] is the prompt, empty where there is none, and pieces[1]
   the row itself. */
static void row_pieces(struct Piece pieces[2], const struct Rows *rows, int b) {
    int prompt = rows->prompt ? rows->prompt[b] : -1;
    pieces[0] = (struct Piece){0, 0};
    if (prompt >= 0)
        pieces[0] = (struct Piece){rows->start[prompt],
                                   rows->start[prompt + 1] - rows->start[prompt]};
    pieces[1] = (struct Piece){rows->start[b], rows->start[b + 1] - rows->start[b]};
}

/* The scores s [keys][BLOCK] of queries t, t + 1, .. become exp(s - max of the query); scale
   [BLOCK] makes probabilities of them. Columns beyond `queries` are garbage and stay so. */
static void softmax_block(float *s, float *scale, float *lse, float *entropy, int t, int queries) {
    float max[BLOCK], sum[BLOCK] = {0}, moment[BLOCK] = {0};
    const int keys = t + queries, lanes = (queries + 15) / 16 * 16;
    for (int i = 0; i < BLOCK; i++) max[i] = MASKED;
    for (int j = 0; j < keys; j++) {
        const float *row = s + (size_t)j * BLOCK;
        #pragma omp simd
        for (int i = 0; i < lanes; i++) {
            float score = t + i < j ? MASKED : row[i];
            max[i] = score > max[i] ? score : max[i];
        }
    }
    for (int j = 0; j < keys; j++) {
        float *row = s + (size_t)j * BLOCK;
        #pragma omp simd
        for (int i = 0; i < lanes; i++) {
            float centred = (t + i < j ? MASKED : row[i]) - max[i], e = vm_exp(centred);
            sum[i] += e;
            moment[i] += e * centred;
            row[i] = e;
        }
    }
    #pragma omp simd
    for (int i = 0; i < lanes; i++) {
        float log_sum = vm_log(sum[i]);
        scale[i] = 1.0f / sum[i];
        max[i] += log_sum;
        moment[i] = log_sum - moment[i] * scale[i];
    }
    memcpy(lse, max, (size_t)queries * sizeof *lse);
    if (entropy) memcpy(entropy, moment, (size_t)queries * sizeof *entropy);
}

/* out [HS][BLOCK] = alpha x^T, x being `queries` rows of HS numbers. OpenBLAS is slow at small
   products whose second operand has to be transposed, so this is done here, once for all keys. */
static void transpose_block(float *out, const float *x, float alpha, int stride, int queries,
                            int HS) {
    cblas_somatcopy(CblasRowMajor, CblasTrans, queries, HS, alpha, x, stride, out, BLOCK);
}

/* A thread's scratch: two blocks of scores [max_T][BLOCK], and transposed queries [HS][BLOCK]. */
static size_t scratch_size(int max_T, int HS) { return (size_t)BLOCK * (2 * (size_t)max_T + HS); }

static float *thread_scratch(void *workspace, int max_T, int HS) {
    return (float *)workspace + (size_t)omp_get_thread_num() * scratch_size(max_T, HS);
}

/* Queries [t, t + queries) of a row, one head of them. */
static void forward_block(floatX *out, float *lse, float *entropy, const floatX *qkv,
                          const struct Piece pieces[2], int h, int t, int queries,
                          const struct Heads *heads, float *s, float *transposed) {
    const int HS = heads->HS, QKV = heads_qkv(heads), C = heads->NH * HS, P = pieces[0].count;
    const int count[2] = {P, t + queries};
    struct HeadPlace head[2] = {head_of(pieces[0].start, h, heads),
                                head_of(pieces[1].start, h, heads)};
    float scale[BLOCK];
    transpose_block(transposed, qkv + head[1].q + (size_t)t * QKV, 1.0f / sqrtf((float)HS), QKV,
                    queries, HS);
    for (int i = P ? 0 : 1; i < 2; i++)
        gemm_nn(s + (size_t)i * P * BLOCK, BLOCK, qkv + head[i].k, QKV, transposed, BLOCK, count[i],
                queries, HS, 1.0f, 0.0f);
    softmax_block(s, scale, lse, entropy, P + t, queries);
    for (int i = P ? 0 : 1; i < 2; i++)
        gemm_tn(out, C, s + (size_t)i * P * BLOCK, BLOCK, qkv + head[i].v, QKV, queries, HS,
                count[i], 1.0f, P && i ? 1.0f : 0.0f);
    for (int i = 0; i < queries; i++)
        for (int c = 0; c < HS; c++) out[(size_t)i * C + c] *= scale[i];
}

static void attention_forward(floatX *out, float *lse, float *entropy, const floatX *qkv,
                              const struct Rows *rows, const struct Heads *heads,
                              void *workspace) {
    const int N = rows->N, max_T = rows->max_T, NH = heads->NH, HS = heads->HS, C = NH * HS;
    #pragma omp parallel for collapse(2) schedule(dynamic)
    for (int b = 0; b < rows->B; b++) {
        for (int h = 0; h < NH; h++) {
            float *s = thread_scratch(workspace, max_T, HS);
            struct Piece pieces[2];
            row_pieces(pieces, rows, b);
            for (int t = 0; t < pieces[1].count; t += BLOCK) {
                size_t first = (size_t)pieces[1].start + t, index = (size_t)h * N + first;
                forward_block(out + first * C + (size_t)h * HS, lse + index,
                              entropy ? entropy + index : NULL, qkv, pieces, h, t,
                              min_int(BLOCK, pieces[1].count - t), heads, s,
                              s + (size_t)BLOCK * 2 * max_T);
            }
        }
    }
}

/* Scores s become p, and dp becomes ds; both [keys][BLOCK]. */
static void softmax_backward_block(float *s, float *dp, const float *lse, const float *delta,
                                   int t, int queries) {
    const int keys = t + queries, lanes = (queries + 15) / 16 * 16;
    for (int j = 0; j < keys; j++) {
        float *row = s + (size_t)j * BLOCK, *drow = dp + (size_t)j * BLOCK;
        #pragma omp simd
        for (int i = 0; i < lanes; i++) {
            float p = vm_exp((t + i < j ? MASKED : row[i]) - lse[i]);
            row[i] = p;
            drow[i] = p * (drow[i] - delta[i]);
        }
    }
}

/* Queries [t, t + queries) of a row, one head of them: dq is written, dk and dv are added to.
   scratch [2 * keys + HS][BLOCK]. */
static void backward_block(floatX *dqkv, const floatX *dout, const floatX *out, const floatX *qkv,
                           const float *lse, const struct Piece pieces[2], int h, int t,
                           int queries, const struct Heads *heads, float *scratch) {
    const int HS = heads->HS, QKV = heads_qkv(heads), C = heads->NH * HS, P = pieces[0].count;
    const int count[2] = {P, t + queries};
    const float root = 1.0f / sqrtf((float)HS);
    struct HeadPlace head[2] = {head_of(pieces[0].start, h, heads),
                                head_of(pieces[1].start, h, heads)};
    const size_t q = head[1].q + (size_t)t * QKV, keys = (size_t)P + t + queries;
    float *s = scratch, *dp = s + BLOCK * keys, *transposed = dp + BLOCK * keys;
    float delta[BLOCK] = {0}, lse_t[BLOCK] = {0};
    transpose_block(transposed, qkv + q, root, QKV, queries, HS);
    for (int i = P ? 0 : 1; i < 2; i++)
        gemm_nn(s + (size_t)i * P * BLOCK, BLOCK, qkv + head[i].k, QKV, transposed, BLOCK, count[i],
                queries, HS, 1.0f, 0.0f);
    transpose_block(transposed, dout, 1.0f, C, queries, HS);
    for (int i = P ? 0 : 1; i < 2; i++)
        gemm_nn(dp + (size_t)i * P * BLOCK, BLOCK, qkv + head[i].v, QKV, transposed, BLOCK,
                count[i], queries, HS, 1.0f, 0.0f);
    for (int i = 0; i < queries; i++)
        delta[i] = vm_dot(dout + (size_t)i * C, out + (size_t)i * C, HS);
    memcpy(lse_t, lse, (size_t)queries * sizeof *lse);
    softmax_backward_block(s, dp, lse_t, delta, P + t, queries);
    for (int i = P ? 0 : 1; i < 2; i++) {
        const float *s_i = s + (size_t)i * P * BLOCK, *ds_i = dp + (size_t)i * P * BLOCK;
        gemm_tn(dqkv + q, QKV, ds_i, BLOCK, qkv + head[i].k, QKV, queries, HS, count[i], root,
                P && i ? 1.0f : 0.0f);
        gemm_nn(dqkv + head[i].k, QKV, ds_i, BLOCK, qkv + q, QKV, count[i], HS, queries, root,
                1.0f);
        gemm_nn(dqkv + head[i].v, QKV, s_i, BLOCK, dout, C, count[i], HS, queries, 1.0f, 1.0f);
    }
}

/* The query heads of key-value head g, in all of row b. */
static void backward_row(floatX *dqkv, const floatX *dout, const floatX *out, const floatX *qkv,
                         const float *lse, const struct Rows *rows, int b, int g,
                         const struct Heads *heads, float *scratch) {
    const int group = heads->NH / heads->NKV, HS = heads->HS, C = heads->NH * HS;
    struct Piece pieces[2];
    row_pieces(pieces, rows, b);
    for (int h = g * group; h < (g + 1) * group; h++)
        for (int t = 0; t < pieces[1].count; t += BLOCK) {
            size_t token = (size_t)pieces[1].start + t, at = token * C + (size_t)h * HS;
            backward_block(dqkv, dout + at, out + at, qkv, lse + (size_t)h * rows->N + token,
                           pieces, h, t, min_int(BLOCK, pieces[1].count - t), heads, scratch);
        }
}

/* One turn of the loop owns a key-value head of a row and of those that it is the prompt of, and
   takes their query heads in order. */
static void attention_backward(floatX *dqkv, const floatX *dout, const floatX *out,
                               const floatX *qkv, const float *lse, const struct Rows *rows,
                               const struct Heads *heads, void *workspace) {
    const int NKV = heads->NKV, HS = heads->HS, QKV = heads_qkv(heads), *prompt = rows->prompt;
    #pragma omp parallel for collapse(2) schedule(dynamic)
    for (int b = 0; b < rows->B; b++) {
        for (int g = 0; g < NKV; g++) {
            if (prompt && prompt[b] >= 0) continue;   /* its prompt's turn */
            int end = b + 1;
            while (prompt && end < rows->B && prompt[end] == b) end++;
            struct HeadPlace head = head_of(rows->start[b], g * (heads->NH / NKV), heads);
            for (int n = 0; n < rows->start[end] - rows->start[b]; n++) {
                memset(dqkv + head.k + (size_t)n * QKV, 0, (size_t)HS * sizeof *dqkv);
                memset(dqkv + head.v + (size_t)n * QKV, 0, (size_t)HS * sizeof *dqkv);
            }
            float *scratch = thread_scratch(workspace, rows->max_T, HS);
            for (int r = b; r < end; r++)
                backward_row(dqkv, dout, out, qkv, lse, rows, r, g, heads, scratch);
        }
    }
}

/* ---- decoding ---------------------------------------------------------------------------- */

/* The arithmetic of a row does not depend on other rows: no product is shared with another row, and
   every sum has an order that depends on the row's position only. Rows of one prompt share the
   cache: up to ROWS of them go through it together, chunk by chunk, so that a chunk is read once
   from memory. */
#define CHUNK KV_PAGE /* keys: with their values 32 KB at HS 64, what the first cache level holds */
#define ROWS 8

/* Online softmax (1805.02867): the maximum and the sum so far; out is the sum of exp(s - max) v. */
struct Running {
    float max, sum;
};

/* s [count] = q . k_j; four keys at a time, because adding up the lanes of a vector takes
   longer than the products. */
static void score_keys(float *s, const float *q, const float *k, int count, int HS) {
    int j = 0, whole = HS / 16 * 16;
    for (; j + 4 <= count; j += 4) {
        const float *key = k + (size_t)j * HS;
        struct Lanes sum[4] = {0};
        for (int i = 0; i < whole; i += VM_LANES) {
            #pragma GCC unroll 4
            for (int u = 0; u < 4; u++) lanes_add_products(&sum[u], q + i, key + u * HS + i);
        }
        #pragma GCC unroll 4
        for (int u = 0; u < 4; u++) s[j + u] = lanes_sum(&sum[u]);
        for (int i = whole; i < HS; i++)
            for (int u = 0; u < 4; u++) s[j + u] += q[i] * key[u * HS + i];
    }
    for (; j < count; j++) s[j] = vm_dot(q, k + (size_t)j * HS, HS);
}

/* out [HS] += sum_j p_j v_j, four values to a pass over out. */
static void add_values(float *restrict out, const float *restrict p, const float *restrict v,
                       int count, int HS) {
    int j = 0;
    for (; j + 4 <= count; j += 4) {
        const float *a = v + (size_t)j * HS, *b = a + HS, *c = b + HS, *d = c + HS;
        for (int i = 0; i < HS; i++)
            out[i] += p[j] * a[i] + p[j + 1] * b[i] + p[j + 2] * c[i] + p[j + 3] * d[i];
    }
    for (; j < count; j++)
        for (int i = 0; i < HS; i++) out[i] += p[j] * v[(size_t)j * HS + i];
}

/* One query attends to `count` <= CHUNK more keys and values [count,HS]. */
static void attend(float *out, struct Running *running, const float *q, const float *k,
                   const float *v, int count, int HS) {
    const float scale = 1.0f / sqrtf((float)HS);
    float s[CHUNK], max = running->max;
    score_keys(s, q, k, count, HS);
    for (int j = 0; j < count; j++) s[j] *= scale;
    max = fmaxf(max, vm_max(s, count));
    for (int j = 0; j < count; j++) s[j] = vm_exp(s[j] - max);
    float shrink = vm_exp(running->max - max);
    running->sum = running->sum * shrink + vm_sum(s, count);
    running->max = max;
    for (int i = 0; i < HS; i++) out[i] *= shrink;
    add_values(out, s, v, count, HS);
}

/* One head's keys and values in a page of the cache, [KV_PAGE,HS] each. */
struct Page {
    floatX *k, *v;
};

static struct Page cache_page(const struct KvCache *c, int layer, int page, int g) {
    size_t head = (size_t)KV_PAGE * c->heads.HS;
    floatX *k = c->pool + (((size_t)layer * c->pages + page) * 2 * c->heads.NKV + g) * head;
    return (struct Page){k, k + c->heads.NKV * head};
}

/* The page that has position `at` of a segment. */
static struct Page prompt_page(const struct KvCache *c, int layer, int slot, int at, int g) {
    return cache_page(c, layer, c->prompt[(size_t)slot * c->prompt_width + at / KV_PAGE], g);
}

static struct Page tail_page(const struct KvCache *c, int layer, int slot, int at, int g) {
    return cache_page(c, layer, c->tail[(size_t)slot * c->tail_width + at / KV_PAGE], g);
}

/* Stores row r's new key and value in the cache, head by head. */
static void store_row(const struct KvCache *cache, const floatX *qkv,
                      const struct DecodeRows *rows, int layer, int r) {
    const int HS = cache->heads.HS, NKV = cache->heads.NKV, P = rows->prompt_length[r];
    const floatX *k = qkv + (size_t)r * heads_qkv(&cache->heads) + cache->heads.NH * HS;
    const floatX *v = k + NKV * HS;
    const int position = rows->position[r], at = position < P ? position : position - P;
    if (position < 0) return; /* an empty row */
    for (int g = 0; g < NKV; g++) {
        struct Page page = position < P ? prompt_page(cache, layer, rows->prompt_slot[r], at, g)
                                        : tail_page(cache, layer, rows->tail_slot[r], at, g);
        size_t offset = (size_t)(at % KV_PAGE) * HS;
        memcpy(page.k + offset, k + (size_t)g * HS, (size_t)HS * sizeof *k);
        memcpy(page.v + offset, v + (size_t)g * HS, (size_t)HS * sizeof *v);
    }
}

/* Query head h of rows [first, last), at most ROWS, which share a prompt segment. None is empty. */
static void decode_rows(floatX *out, const floatX *qkv, const struct KvCache *cache,
                        const struct DecodeRows *rows, int layer, int first, int last, int h) {
    const int HS = cache->heads.HS, NH = cache->heads.NH, g = h / (NH / cache->heads.NKV);
    const int rest = last - first;
    const size_t stride = heads_qkv(&cache->heads), C = (size_t)NH * HS;
    const int *position = rows->position + first, *P = rows->prompt_length + first;
    struct Running running[ROWS];
    int longest = 0;
    qkv += first * stride + (size_t)h * HS;
    out += first * C + (size_t)h * HS;
    for (int r = 0; r < rest; r++) {
        running[r] = (struct Running){-INFINITY, 0};
        memset(out + r * C, 0, (size_t)HS * sizeof *out);
        longest = max_int(longest, min_int(position[r] + 1, P[r]));
    }
    for (int j = 0; j < longest; j += CHUNK) {
        struct Page page = prompt_page(cache, layer, rows->prompt_slot[first], j, g);
        for (int r = 0; r < rest; r++) {
            int count = min_int(CHUNK, min_int(position[r] + 1, P[r]) - j);
            if (count > 0)
                attend(out + r * C, &running[r], qkv + r * stride, page.k, page.v, count, HS);
        }
    }
    for (int r = 0; r < rest; r++) {
        for (int j = 0; j <= position[r] - P[r]; j += CHUNK) {
            struct Page page = tail_page(cache, layer, rows->tail_slot[first + r], j, g);
            int count = min_int(CHUNK, position[r] - P[r] + 1 - j);
            attend(out + r * C, &running[r], qkv + r * stride, page.k, page.v, count, HS);
        }
        float scale = 1.0f / running[r].sum;
        for (int i = 0; i < HS; i++) out[r * C + i] *= scale;
    }
}

/* True if rows a and b are taken through a prompt segment together. */
static bool same_prompt(const struct DecodeRows *rows, int a, int b) {
    return rows->position[b] >= 0 && rows->prompt_slot[a] == rows->prompt_slot[b];
}

static void attention_decode(floatX *out, const floatX *qkv, const struct KvCache *cache,
                             const struct DecodeRows *rows, int layer, int R, void *workspace) {
    (void)workspace;
    #pragma omp parallel
    {
        #pragma omp for schedule(static)
        for (int r = 0; r < R; r++) store_row(cache, qkv, rows, layer, r);
        #pragma omp for collapse(2) schedule(dynamic)
        for (int h = 0; h < cache->heads.NH; h++) {
            for (int r = 0; r < R; r += ROWS) {
                int end = min_int(r + ROWS, R);
                for (int first = r, last; first < end; first = last) {
                    last = first + 1;
                    if (rows->position[first] < 0) continue; /* an empty row */
                    while (last < end && same_prompt(rows, first, last)) last++;
                    decode_rows(out, qkv, cache, rows, layer, first, last, h);
                }
            }
        }
    }
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return (size_t)omp_get_max_threads() * scratch_size(shape->max_T, shape->HS) * sizeof(float);
}

static void fill(struct Ops *ops) {
    ops->attention_forward = attention_forward;
    ops->attention_backward = attention_backward;
    ops->attention_decode = attention_decode;
}

const struct KernelFile cpu_attention = {"attention", fill, workspace_bytes};
