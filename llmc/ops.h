/* THE CONTRACT. Every operation the engine needs from a machine is one slot of struct Ops.

   A backend fills all slots: llmc/kernels/X.c is the readable CPU definition, llmc/kernels/X.cu
   the CUDA version; both define static functions named like their slot, and one struct KernelFile.
   ops.c lists the slots by name, so that a forgotten one is named at start. This header knows no
   kernel: which backends there are is in kernels/backends.h.

   Rules that hold for every slot
     order        outputs, inputs, weights, sizes; a dx is the gradient of the loss by x
     shapes       in brackets, row-major, the last index contiguous. B rows (sequences), T
                  positions, C channels, OC output channels, L layers, NH query heads, NKV
                  key-value heads, HS head size, F hidden width of the MLP, V vocabulary, Vp padded
                  vocabulary, N tokens of a packed batch, n of them listed, R rows of a decode step,
                  QKV = (NH + 2*NKV) * HS. A letter has this one meaning in all slots
     elements     floatX is the backend's storage type (precision.h); float is float32 everywhere
     memory       pointers are the backend's (ops->alloc) unless the comment says "host".
                  Nothing is owned: a slot reads and writes what it is given and keeps no pointer
     execution    every slot enqueues on the backend's one compute stream and returns. Only
                  download, sync, and the head slots (they fill host arrays) wait; asynchronous
                  errors surface there. A linear layer waits where it times a product
     errors       a failing device ends the program (die_machine); numbers are never errors
     gradients    "=" overwrites, "+=" accumulates; weight gradients are float32 and always "+="
     workspace    scratch of at least workspace_size() bytes; contents undefined before and after
     padding      rows [V, Vp) of an embedding or head weight are finite: zero, or what a file had
                  beyond its words; and stay as they are. So a product may run over all Vp rows;
                  but logits of padding rows enter no statistics and no draw, and their gradient
                  is never added to
     absent       a tensor that a model does not have is NULL, never an address
     repeatable   the same call on the same machine gives the same bits: within a process always,
                  across processes as long as both time no products (matmul_choices_load), or one
                  loads what the other saved

   Sources: GPT-2 (Radford et al. 2019), layer norm 1607.06450, AdamW 1711.05101,
   online softmax 1805.02867, FlashAttention 2205.14135, Cut Cross-Entropy 2411.09009. */
#ifndef LLMC_OPS_H
#define LLMC_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "base/precision.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The largest sizes a workspace must serve. */
struct OpsShape {
    int N, C, F, NH, NKV, HS, V, Vp;
    int max_T;      /* longest row of a packed batch */
    int R;          /* rows of a decode step, prefill included */
    int max_length; /* longest prompt + completion a decode row attends to */
};

/* How channels are heads: query head h reads key-value head h / (NH / NKV). */
struct Heads {
    int NH, NKV, HS;
};

static inline int heads_qkv(const struct Heads *heads) {
    return (heads->NH + 2 * heads->NKV) * heads->HS;
}

/* Attention's share of work: queries [first, first + attention_block) of a row, as far as it has
   them. */
struct QueryBlock {
    int row, first;
};

/* How N tokens are B rows (sequences), one after another without padding. */
struct Rows {
    int N, B, max_T;                /* max_T >= the longest row */
    int *start;                     /* [B+1]: row b is [start[b], start[b+1]) */
    struct QueryBlock *block;       /* [blocks] every block of every row, the ones with most keys
                                       first (rows_cut_blocks); where attention_block is 0: NULL */
    int blocks;
};

/* out [C] = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(variance + epsilon), over the C
   channels of a token (1607.06450). */
enum NormKind { NORM_LAYER };
struct Norm {
    enum NormKind kind;
    float epsilon;
    const floatX *weight, *bias; /* [C] */
};

/* What a norm's backward pass needs of its forward pass. */
struct NormStats {
    float *mean, *rstd; /* [N] */
};

/* The feed-forward block: pre = x w1^T + b1, act = gelu(pre), out = act w2^T + b2, with GPT-2's
   tanh form of GELU (1606.08415). */
struct Mlp {
    const floatX *w1, *b1; /* [F,C], [F] */
    const floatX *w2, *b2; /* [C,F], [C] */
    int C, F;
};

struct MlpGradients {
    float *dw1, *db1, *dw2, *db2; /* shaped like what they are the gradients of */
};

/* The head: logits z [n,V] = E W^T * inv_temperature, of hidden states E [N,C] and the head weight
   W [Vp,C], over its V real rows. */
struct Head {
    int C, V, Vp;
    float inv_temperature;
};

/* The n tokens that the head looks at, of the N of E; backend arrays. No row is listed twice. */
struct HeadTokens {
    int *row;    /* [n] hidden state E[row[i]] ... */
    int *target; /* [n] ... is to predict this token */
    int n, N;
};

/* Per-token results of the head, HOST arrays [n]. Any pointer but logp may be NULL. p is the
   softmax over the V real columns at the given temperature; logs are natural, entropies in nats. */
struct HeadStats {
    float *logp;     /* log p_y */
    float *entropy;  /* H = -sum_j p_j log p_j, from the centred moment (doc/head.md) */
    float *q;        /* Q = sum_j p_j^2 */
    float *qlog;     /* QL = sum_j p_j^2 log p_j */
};

/* The objective's word in the middle of the head: given the statistics of rows
   [first_row, first_row + rows) (host arrays, indexed from 0 at first_row), write
   dlogp[i] = dJ/dlogp and dentropy[i] = dJ/dH of the minimised J. Signed. Called in row order,
   exactly once per row, on the calling thread. */
typedef void (*HeadUpstream)(void *context, int first_row, int rows, const struct HeadStats *stats,
                             float *dlogp, float *dentropy);

/* What a decode step knows of each of its R rows; device arrays [R]. A row is one token that enters
   the network. Prompt tokens and completion tokens follow one rule: with k = position,
       k <  prompt_length   its key and value go to the prompt segment at k, and it attends to
                            prompt[0..k]
       k >= prompt_length   they go to the row's tail at k - prompt_length, and it attends to
                            prompt[0..prompt_length) and tail[0..k - prompt_length]
   Rows of one step may belong to one prompt (prefill): all keys are written before any is read.
   A row with position < 0 is empty: it only fills the step up to a size that recurs. Its slots are
   not read or written, its outputs are undefined (finite or not), and it stays empty. */
struct DecodeRows {
    int *token;          /* input token */
    int *position;       /* absolute position k, counted from the first prompt token */
    int *prompt_slot;    /* which prompt segment of the cache */
    int *prompt_length;
    int *tail_slot;      /* which tail of the cache (unused while k < prompt_length) */
    uint32_t *ordinal;   /* RNG counter words: global draw ordinal of the group ... */
    uint32_t *sample;    /* ... and the sample's index within the group */
};

/* The decode cache in two segments, shared by all rows of a group, and each row's own tail:

       prompt [L][prompt_slots][2][NKV][prompt_capacity][HS]     0 = key, 1 = value
       tail   [L][tail_slots  ][2][NKV][tail_capacity  ][HS]                                  */
struct KvCache {
    floatX *prompt, *tail;
    struct Heads heads;
    int L, prompt_slots, prompt_capacity, tail_slots, tail_capacity;
};

/* Bytes that matmul_choices_save writes at most. */
enum { MATMUL_CHOICES_TEXT = 1 << 16 };

/* A contiguous range of the flat parameter buffer with one weight decay. */
struct AdamwRange {
    size_t begin, end;
    float weight_decay;
};

struct AdamwStep {
    float learning_rate, beta1, beta2, epsilon;
    float grad_scale;   /* multiplies every gradient: clipping, and 1 / loss scale */
    int64_t step;       /* counted from 1, for bias correction */
    uint64_t seed;      /* stochastic rounding, where floatX is narrower than float */
};

struct Ops;

/* One kernel file, as its backend's list of files has it: what fills its slots, and what scratch
   they need. A backend's workspace_size is the most that a file of its list says. */
struct KernelFile {
    const char *name;                                   /* "norm" */
    void (*fill)(struct Ops *ops);                      /* puts its functions into their slots */
    size_t (*workspace)(const struct OpsShape *shape);  /* bytes that serve them at every size up to
                                                           shape; or no_workspace */
};

static inline size_t no_workspace(const struct OpsShape *shape) {
    (void)shape;
    return 0;
}

struct Ops {
    const char *name;     /* "cpu", "cuda", ... */
    const char *device;   /* what computes, for people: the GPU's name; "" on the CPU */
    const char *dtype;    /* "fp32", "bf16", "fp16": what floatX is */
    size_t element_size;  /* sizeof(floatX) */
    int vocabulary_multiple;  /* the head wants Vp to be a multiple of this */
    int decode_multiple;  /* decode steps are filled up with empty rows to a multiple of this, so
                             that few sizes recur and each is recorded once (graph_begin) */
    int attention_block;  /* queries of a struct QueryBlock; 0: the backend wants none */
    const struct KernelFile *const *files; /* [num_files] what the backend is made of */
    int num_files;

    /* ---- memory, order and conversion ---------------------------------------------------- */

    /* bytes of backend memory, aligned to 256, contents undefined; ends the program when there are
       none left, saying how much was asked for. */
    void *(*alloc)(size_t bytes);
    void (*free)(void *memory);
    /* Bytes that alloc can still be asked for. */
    size_t (*memory_available)(void);
    void (*upload)(void *out, const void *host, size_t bytes); /* then `host` may change */
    void (*download)(void *host, const void *in, size_t bytes);  /* waits */
    void (*copy)(void *out, const void *in, size_t bytes);     /* backend to backend, no overlap */
    void (*fill_zero)(void *out, size_t bytes);
    void (*sync)(void);                                          /* waits for everything enqueued */
    /* Order between the compute stream and the communication stream; event is in [0, 64). */
    void (*event_record)(int event);
    void (*event_wait)(int event);
    void (*to_float)(float *out, const floatX *in, size_t n);    /* both backend memory */
    void (*from_float)(floatX *out, const float *in, size_t n);  /* rounds to nearest even */
    /* Scratch bytes that serve every slot below at every size up to `shape`. */
    size_t (*workspace_size)(const struct OpsShape *shape);

    /* A sequence of slots that recurs with the same arguments, recorded once and replayed as one
       launch (a CUDA graph). key [bytes <= 64]: whatever of the arguments may differ between
       sequences, compared byte by byte. Returns true if the caller must call the slots now and
       then graph_end; false if a recording was launched, and there is nothing to do. Between the
       two only slots that do not wait, and no alloc, free or upload. */
    bool (*graph_begin)(const void *key, size_t bytes);
    void (*graph_end)(void);

    /* ---- the transformer, on packed rows --------------------------------------------------- */

    /* x[n] = wte[token[n]] + wpe[position[n]], or 0 where position[n] < 0
       x [N,C] = ; token, position [N]; wte [Vp,C]; wpe [max_T,C] */
    void (*embedding_forward)(floatX *x, const int *token, const int *position, const floatX *wte,
                              const floatX *wpe, int N, int C);
    /* dwte [Vp,C] +=, dwpe [max_T,C] +=; dx [N,C]. The order of the sum is fixed by n. */
    void (*embedding_backward)(float *dwte, float *dwpe, const floatX *dx, const int *token,
                               const int *position, int N, int C, void *workspace);

    /* out [N,C] =; stats =; x [N,C] */
    void (*norm_forward)(floatX *out, const struct NormStats *stats, const floatX *x,
                         const struct Norm *norm, int N, int C);
    /* The residual stream: sum = x + delta, then the norm of sum. sum [N,C] = (may be x). */
    void (*norm_residual_forward)(floatX *sum, floatX *out, const struct NormStats *stats,
                                  const floatX *x, const floatX *delta, const struct Norm *norm,
                                  int N, int C);
    /* dx [N,C] += ; dweight, dbias [C] +=; dout, x [N,C]. dx accumulates because the residual
       stream goes on beside the norm. */
    void (*norm_backward)(floatX *dx, float *dweight, float *dbias, const floatX *dout,
                          const floatX *x, const struct Norm *norm, const struct NormStats *stats,
                          int N, int C, void *workspace);

    /* out = x w^T + bias.   out [N,OC] =; x [N,C]; w [OC,C]; bias [OC] or NULL */
    void (*matmul_forward)(floatX *out, const floatX *x, const floatX *w, const floatX *bias, int N,
                           int C, int OC);
    /* dx [N,C] = dout w (NULL: not wanted); dw [OC,C] += dout^T x; dbias [OC] += (NULL: no bias) */
    void (*matmul_backward)(floatX *dx, float *dw, float *dbias, const floatX *dout,
                            const floatX *x, const floatX *w, int N, int C, int OC,
                            void *workspace);

    /* A machine's library may know several algorithms for a product, which round differently. At
       first the one that it proposes first is taken. After load, for a kind of product and a number
       of tokens (rounded up to an eighth) that is new, each is run on memory of its own, timed, and
       the fastest remembered. text: "", what save wrote in an earlier process, or NULL: back to
       the first. Returns NULL, or why the text was not used (static; then as after ""). */
    const char *(*matmul_choices_load)(const char *text);
    /* The choices as text; "" if there are none. */
    void (*matmul_choices_save)(char *out, size_t capacity); /* MATMUL_CHOICES_TEXT suffices */
    /* Makes the choices final, as they are after load of a text that save wrote: nothing is timed
       any more, a kind that has none takes the nearest choice. To be called before what save writes
       is kept, so that this process and one that loads the text compute the same bits. Without
       effect while nothing has been chosen. */
    void (*matmul_choices_freeze)(void);

    /* pre has the bits of matmul_forward, act those of gelu_forward.
       out [N,C] =; pre, act [N,F] =; x [N,C] */
    void (*mlp_forward)(floatX *out, floatX *pre, floatX *act, const floatX *x,
                        const struct Mlp *mlp, int N);
    /* act [n] = gelu(pre [n]), for a backward pass whose forward pass did not keep act */
    void (*gelu_forward)(floatX *act, const floatX *pre, size_t n);
    /* dx [N,C] =; gradients +=; dpre [N,F] is scratch. mlp's biases are not read. */
    void (*mlp_backward)(floatX *dx, const struct MlpGradients *gradients, floatX *dpre,
                         const floatX *dout, const floatX *x, const floatX *pre, const floatX *act,
                         const struct Mlp *mlp, int N, void *workspace);

    /* Causal softmax attention inside each row, scale 1/sqrt(HS). qkv [N,QKV] holds, per token, the
       NH query heads, then the NKV key heads, then the NKV value heads.
       out [N,NH*HS] =; lse [NH,N] = log-sum-exp of the scaled scores; entropy [NH,N] = the entropy
       (nats) of each attention row (2303.06296), or NULL */
    void (*attention_forward)(floatX *out, float *lse, float *entropy, const floatX *qkv,
                              const struct Rows *rows, const struct Heads *heads, void *workspace);
    /* dqkv [N,QKV] =; dout, out [N,NH*HS]; probabilities are formed again from lse */
    void (*attention_backward)(floatX *dqkv, const floatX *dout, const floatX *out,
                               const floatX *qkv, const float *lse, const struct Rows *rows,
                               const struct Heads *heads, void *workspace);

    /* ---- the head: E [N,C] hidden states, W [Vp,C] head weight ------------------------------- */

    /* Statistics of the listed tokens. stats: host arrays [n]. Scoring only: never more than a tile
       of logits exists. n <= N of the workspace's shape. */
    void (*head_forward)(const struct HeadStats *stats, const floatX *E, const floatX *W,
                         const struct HeadTokens *tokens, const struct Head *head,
                         void *workspace);
    /* The one-pass gradient, 6 NVC: forms the logits of a chunk of rows once, asks `upstream` for
       the coefficients, and adds both gradient products. stats as above, may be all NULL but then
       upstream still sees logp, entropy, q and qlog of the chunk.
       dE [N,C] = (rows not listed become 0); dW [Vp,C] += (padding untouched). A row whose two
       coefficients are 0 contributes exactly 0. */
    void (*head_forward_backward)(const struct HeadStats *stats, floatX *dE, float *dW,
                                  const floatX *E, const floatX *W,
                                  const struct HeadTokens *tokens, const struct Head *head,
                                  HeadUpstream upstream, void *context, void *workspace);

    /* ---- decoding: R rows, one token each; a row's bits never depend on the other rows ------- */

    /* Bytes of w [OC,C] in the layout matmul_decode reads, and the packing, once per update. 0:
       that layout is w's own; then w itself is `packed` below, and nothing is to be packed. */
    size_t (*matmul_packed_size)(int C, int OC);
    void (*matmul_pack)(void *packed, const floatX *w, int C, int OC);
    /* out [R,OC] = x w^T + bias, then GELU if gelu is not 0; x [R,C]; bias [OC] or NULL */
    void (*matmul_decode)(floatX *out, const floatX *x, const void *packed, const floatX *bias,
                          int R, int C, int OC, int gelu);
    /* Writes each row's key and value into its segment of layer `layer`, then attends.
       out [R,NH*HS] =; qkv [R,QKV] */
    void (*attention_decode)(floatX *out, const floatX *qkv, const struct KvCache *cache,
                             const struct DecodeRows *rows, int layer, int R, void *workspace);
    /* Draws token[i] ~ softmax(E W^T * inv_temperature) by the Gumbel-max rule: the largest
       z_v - log(-log u_v), u_v from rng.h with purpose-key `key` and the row's counter words,
       where the position word is position[i] + 1 (the drawn token's own). Ties take the smaller v.
       inv_temperature 0 means greedy: the largest logit, with statistics at temperature 1.
       token, logp, entropy [R] = backend memory; E [R,C]; packed = W through matmul_pack(C, Vp). */
    void (*head_sample)(int *token, float *logp, float *entropy, const floatX *E,
                        const void *packed, const struct DecodeRows *rows, const uint32_t key[2],
                        const struct Head *head, int R, void *workspace);
    /* The drawn token becomes the next input: rows->token = token, rows->position += 1; empty rows
       stay as they are. */
    void (*decode_advance)(const struct DecodeRows *rows, const int *token, int R);

    /* ---- the update -------------------------------------------------------------------------- */

    /* out[0] = sum of squares of x [n], accumulated in double or better; out: backend memory. Inf
       or NaN in x makes it non-finite. */
    void (*sum_of_squares)(double *out, const float *x, size_t n, void *workspace);
    /* One AdamW step on elements [begin, end) of the flat buffers (decoupled decay; ranges: host
       array, sorted, disjoint; elements outside every range are left alone). master: float32
       weights kept beside a narrower floatX, or NULL. w, master, m, v updated; g read. */
    void (*adamw)(floatX *w, float *master, float *m, float *v, const float *g,
                  const struct AdamwRange *ranges, int num_ranges, size_t begin, size_t end,
                  const struct AdamwStep *step);

    /* ---- communication over ranks; float32; with one rank each is the identity --------------- */

    /* Meeting: rank 0 makes an id of 128 bytes, hands it to the others by whatever means it has,
       and all call comm_open, before any of the four below. A single process need not. */
    void (*comm_id)(void *id);
    void (*comm_open)(int rank, int ranks, const void *id);
    void (*all_reduce)(float *x, size_t n);                           /* sum, in place */
    void (*reduce_scatter)(float *out, const float *in, size_t each); /* in [ranks*each] */
    void (*all_gather)(void *out, const void *in, size_t bytes_each); /* out [ranks*bytes_each] */
    void (*broadcast)(void *x, size_t bytes, int root);
};

/* Names every empty slot in `out` (comma separated), and every kernel file that says nothing of its
   workspace; returns how many there are. */
int ops_missing(const struct Ops *ops, char *out, size_t capacity);

/* Every block of `block` queries of B rows, for struct Rows: writes at most N / block + B of them
   to out, those with more keys before them first, and returns how many. start [B+1]: host. */
int rows_cut_blocks(struct QueryBlock *out, const int *start, int B, int block);

/* The address of element `index` of x: the only host arithmetic on backend pointers. */
static inline floatX *ops_at(const struct Ops *ops, const floatX *x, size_t index) {
    return (floatX *)((char *)(uintptr_t)x + index * ops->element_size);
}

#ifdef __cplusplus
}
#endif
#endif
