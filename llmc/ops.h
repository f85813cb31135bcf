/* The contract between the program and a machine. Every operation that the program needs from a
   machine is one slot (a function pointer) of struct Ops.

   A backend (CPU, CUDA) fills all slots. llmc/kernels/X.c is the CPU's version, written to be read;
   llmc/kernels/X.cu is the CUDA version. Both define static functions named like their slot, and
   one struct KernelFile. ops.c lists the slots by name, so that the program names an empty slot
   when it starts. This header includes no kernel; kernels/backends.h lists the backends.

   Rules that hold for every slot
     order        outputs, inputs, weights, sizes; a dx is the gradient of the loss by x
     shapes       in brackets, row-major, the last index contiguous. B rows (sequences), T
                  positions, C channels, OC output channels, L layers, NH query heads, NKV
                  key-value heads, HS head size, F hidden width of the MLP, V vocabulary, Vp padded
                  vocabulary, N tokens of a packed batch, n of them listed, R rows of a decode step,
                  QKV = (NH + 2*NKV) * HS. A letter means the same in all slots
     elements     floatX is the backend's storage type (precision.h); float is float32 everywhere
     memory       pointers are the backend's (ops->alloc) unless the comment says "host".
                  The caller owns all memory: a slot reads and writes what it is given, and keeps
                  no pointer after it returned
     execution    every slot enqueues its work on the backend's one compute stream and returns. Only
                  download, sync and the head slots (which fill host arrays) wait for the work, so
                  asynchronous errors are reported by those. The linear layers also wait while they
                  time a product (matmul_choices_load)
     errors       a failing device ends the program (die_machine). NaN and infinity are never errors
     gradients    "=" overwrites, "+=" accumulates; weight gradients are float32 and always "+="
     workspace    scratch of at least workspace_size() bytes; contents undefined before and after
     padding      rows [V, Vp) of an embedding or head weight are finite: zero, or what a file held
                  beyond the vocabulary. No slot changes them. So a product may run over all Vp
                  rows; but no statistic and no draw uses the logits of padding rows, and nothing is
                  added to their gradient
     absent       the pointer of a tensor that a model does not have is NULL
     repeatable   the same call on the same machine gives the same bits. Within a process always;
                  in two processes if neither times products, or if one loads the choices that the
                  other saved (matmul_choices_load)

   Sources: GPT-2 (Radford et al. 2019), layer norm 1607.06450, RMS norm 1910.07467, rotary
   position 2104.09864, SwiGLU 2002.05202, AdamW 1711.05101, online softmax 1805.02867,
   FlashAttention 2205.14135, Cut Cross-Entropy 2411.09009. */
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

/* How channels are divided into attention heads. Query head h reads key-value head
   h / (NH / NKV). */
struct Heads {
    int NH, NKV, HS;
};

static inline int heads_qkv(const struct Heads *heads) {
    return (heads->NH + 2 * heads->NKV) * heads->HS;
}

/* A piece of attention's work: queries [first, first + attention_block) of a row, or up to the
   row's end. */
struct QueryBlock {
    int row, first;
};

/* A packed batch: N tokens in B rows (sequences), one row after another without padding. A row may
   be the prompt of those directly behind it: their tokens attend to all of it, then to their own
   row. So what several sequences begin with is in the batch once:

       start    0     3 5   8            a b c | d e | f g h | i j
       prompt  -1     0 0  -1            two sequences, a b c d e and a b c f g h, and a third
       seen     8     5 8  10            tokens [start, seen) attend to tokens of the row */
struct Rows {
    int N, B, max_T;                /* max_T >= the longest row, its prompt included */
    int *start;                     /* [B+1]: row b is [start[b], start[b+1]) */
    int *prompt;                    /* [B] the row that is row b's prompt, or -1; a prompt has none
                                       itself. NULL: no row has one */
    int *seen;                      /* [B] (rows_seen); NULL with prompt */
    struct QueryBlock *block;       /* [blocks] every block of every row, those with most keys first
                                       (rows_cut_blocks); NULL if ops->attention_block is 0 */
    int blocks;
};

/* Over the C channels of a token, out [C] =
       NORM_LAYER   (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(variance + epsilon)
       NORM_RMS     x * rstd * weight,                 rstd = 1 / sqrt(<x^2> + epsilon)         */
enum NormKind { NORM_LAYER, NORM_RMS };
struct Norm {
    enum NormKind kind;
    float epsilon;
    const floatX *weight, *bias; /* [C]; bias NULL: none, as always with NORM_RMS */
};

/* What a norm's forward pass keeps for its backward pass. */
struct NormStats {
    float *mean, *rstd; /* [N]; mean NULL with NORM_RMS */
};

/* What stands between the two linear layers of a feed-forward block: act [F] of pre
       GELU_TANH   pre [F]    act = gelu(pre), GPT-2's tanh form (1606.08415)
       SWIGLU      pre [2F]   act = silu(gate) * up, gate the first F and up the others, with
                              silu(x) = x / (1 + e^-x)                                         */
enum Activation { GELU_TANH, SWIGLU };

/* Numbers of pre for each number of act. */
static inline int activation_inputs(enum Activation activation) {
    return activation == SWIGLU ? 2 : 1;
}

/* The feed-forward block: pre = x w1^T + b1, act = activation(pre), out = act w2^T + b2. P is F
   times activation_inputs. */
struct Mlp {
    enum Activation activation;
    const floatX *w1, *b1; /* [P,C], [P] */
    const floatX *w2, *b2; /* [C,F], [C]; a bias is NULL where there is none */
    int C, F;
};

struct MlpGradients {
    float *dw1, *db1, *dw2, *db2; /* shapes of w1, b1, w2, b2; NULL likewise */
};

/* What is done to the query and key heads x [HS] of a token before attention, both or either:
       norm       x * rstd * weight, rstd = 1 / sqrt(<x^2> + epsilon), the weight one for all query
                  heads and one for all key heads
       rotation   of the pairs (x_i, x_(i+HS/2)), i < HS/2, by the angle a = position * inv_freq_i,
                  that product rounded to float32: x_i cos a - x_(i+HS/2) sin a and
                  x_(i+HS/2) cos a + x_i sin a                                                 */
struct Position {
    float epsilon;
    const floatX *q_weight, *k_weight; /* [HS], or both NULL: no norm */
    const float *inv_freq;             /* [HS/2], or NULL: no rotation; HS is even if there is */
};

/* What the norm's backward pass needs; each NULL where there is no norm, or no backward pass. */
struct PositionSaved {
    floatX *x;     /* [N,NH+NKV,HS] query and key heads as they were */
    float *rstd;   /* [N,NH+NKV] */
};

struct PositionGradients {
    float *dq_weight, *dk_weight;   /* [HS], or both NULL: no norm */
};

/* The head: logits z [n,V] = E W^T * inv_temperature, from hidden states E [N,C] and the first V
   rows of the head weight W [Vp,C]. */
struct Head {
    int C, V, Vp;
    float inv_temperature;
};

/* Which n of the N hidden states the head computes logits for; backend arrays. No hidden state is
   listed twice. */
struct HeadTokens {
    int *row;    /* [n] in [0, N): number of the hidden state in E */
    int *target; /* [n] in [0, V): the token that E[row[i]] is to predict */
    int n, N;
};

/* Per-token results of the head, HOST arrays [n]. Any pointer but logp may be NULL. p is the
   softmax of the V logits; logs are natural, entropies in nats. */
struct HeadStats {
    float *logp;     /* log p_y, y the target */
    float *entropy;  /* H = -sum_j p_j log p_j, from the centred moment (doc/head.md) */
    float *q;        /* Q = sum_j p_j^2 */
    float *qlog;     /* QL = sum_j p_j^2 log p_j */
};

/* What head_forward_backward calls to get the loss coefficients, when it has the statistics of
   listed tokens [first_row, first_row + rows). stats, dlogp and dentropy are host arrays whose
   element 0 is token first_row. The callback writes dlogp[i] = dJ/dlogp and dentropy[i] = dJ/dH,
   where J is the loss that is minimised. It is called on the calling thread, in the order of the
   list, exactly once for each token. */
typedef void (*HeadUpstream)(void *context, int first_row, int rows, const struct HeadStats *stats,
                             float *dlogp, float *dentropy);

/* The R rows of a decode step; backend arrays [R]. A row is one token that enters the network.
   Where its key and value are stored, and what it attends to, follows from its position k:
       k <  prompt_length   stored in the prompt segment at k; attends to prompt[0..k]
       k >= prompt_length   stored in the row's tail at k - prompt_length; attends to
                            prompt[0..prompt_length) and tail[0..k - prompt_length]
   Several rows of a step may be tokens of the same prompt (prefill): all keys are written before
   any is read. A row with position < 0 is empty: it only brings the step to a number of rows that
   was recorded before (graph_begin). No slot reads or writes the cache for it, its outputs are
   undefined (NaN is possible), and it stays empty. */
struct DecodeRows {
    int *token;          /* input token */
    int *position;       /* absolute position k, counted from the first prompt token */
    int *prompt_slot;    /* which prompt segment of the cache */
    int *prompt_length;
    int *tail_slot;      /* which tail of the cache (unused while k < prompt_length) */
    uint32_t *ordinal;   /* RNG counter word: the number of the group among all groups drawn */
    uint32_t *sample;    /* RNG counter word: the sample's index within the group */
    bool tails_only;     /* host: promises that no row has 0 <= k < prompt_length, so that a backend
                            may leave out what it has for prompts. False is always right */
    bool tails_apart;    /* host: promises that no two rows are tokens of one tail, so that no row
                            needs the key that another one brings. False is always right */
    int longest_prompt, longest_tail; /* host: promises that no row attends to more entries of a
                            prompt, or of its tail, so that a backend can size its work. 0: not
                            known, up to the cache's capacity */
};

/* The decode cache. A prompt's keys and values are shared by all rows of its group; each row has a
   tail for the keys and values of its completion. Both are kept in pages of KV_PAGE positions, all
   from one pool: entry [slot][i] of a table is the page with positions [i * KV_PAGE, (i + 1) *
   KV_PAGE) of the slot's segment.

       pool   [L][pages][2][NKV][KV_PAGE][HS]     0 = key, 1 = value
       prompt [prompt_slots][prompt_width]        tail [tail_slots][tail_width]

   The tables lie on the backend, so that a recorded step stays valid while segments grow. Entries
   beyond a segment's present end are not read. */
enum { KV_PAGE = 64 };

struct KvCache {
    floatX *pool;
    int *prompt, *tail;   /* page numbers */
    struct Heads heads;
    int L, pages, prompt_slots, prompt_width, tail_slots, tail_width;
};

/* Pages that hold so many positions. */
static inline int kv_pages(int positions) { return (positions + KV_PAGE - 1) / KV_PAGE; }

/* The most bytes that matmul_choices_save writes. */
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
    uint64_t seed;      /* for stochastic rounding, used where floatX is narrower than float */
};

/* What this rank has communicated. A collective of R ranks over n bytes (of the whole buffer) sends
   2 (R-1)/R n from each of them for all_reduce, (R-1)/R n for reduce_scatter and all_gather, n from
   the root for broadcast; these are counted, whatever the transport makes of them. */
struct CommCounts {
    int64_t calls;
    double bytes;       /* sent by this rank */
    double seconds;     /* in collectives, from the beginning of each to its end */
    double exposed;     /* seconds of these in which the compute stream waited */
};

struct Ops;

/* One kernel file, as listed by its backend: the function that fills its slots, and the scratch
   memory they need. A backend's workspace_size is the largest of its files'. */
struct KernelFile {
    const char *name;                                   /* "norm" */
    void (*fill)(struct Ops *ops);                      /* sets its slots to its functions */
    size_t (*workspace)(const struct OpsShape *shape);  /* bytes that are enough at every size up to
                                                           shape; or no_workspace */
};

static inline size_t no_workspace(const struct OpsShape *shape) {
    (void)shape;
    return 0;
}

/* Events that order the two streams of a backend. */
enum { EVENTS = 4096 };

struct Ops {
    const char *name;     /* "cpu", "cuda", ... */
    const char *device;   /* the GPU's name, for messages; "" on the CPU */
    const char *dtype;    /* "fp32", "bf16", "fp16": what floatX is */
    const char *products; /* what the operands of matrix products are: the same, but on the CPU it
                             may be bf16 where floatX is float (set by ops_open) */
    size_t element_size;  /* sizeof(floatX) */
    int vocabulary_multiple;  /* Vp must be a multiple of this */
    int decode_multiple;  /* decode steps are filled up with empty rows to a multiple of this, so
                             that there are few different sizes, each recorded once (graph_begin) */
    bool asynchronous;    /* slots return before their work is done: it pays to enqueue work before
                             the results of earlier work are read */
    int attention_block;  /* queries in a struct QueryBlock; 0: the backend uses no blocks */
    const struct KernelFile *const *files; /* [num_files] the backend's kernel files */
    int num_files;

    /* ---- memory, order and conversion ---------------------------------------------------- */

    /* Allocates bytes of backend memory, aligned to 256, contents undefined. If there is not enough
       it ends the program, saying how much was asked for (die_machine). */
    void *(*alloc)(size_t bytes);
    void (*free)(void *memory);
    /* How many bytes alloc can still give. */
    size_t (*memory_available)(void);
    /* `host` may be changed as soon as upload has returned. */
    void (*upload)(void *out, const void *host, size_t bytes);
    void (*download)(void *host, const void *in, size_t bytes);  /* waits */
    /* A download in two parts, behind which more can be enqueued. fetch begins to copy to memory of
       the backend's own, number 0 or 1; fetched waits for that copy, not for what was enqueued
       after it, and returns where it is, valid until the next fetch of the number. */
    void (*fetch)(int number, const void *in, size_t bytes);
    const void *(*fetched)(int number);
    void (*copy)(void *out, const void *in, size_t bytes);     /* backend to backend, no overlap */
    void (*fill_zero)(void *out, size_t bytes);
    void (*sync)(void);                                          /* waits for everything enqueued */
    /* Order between the compute stream and the communication stream; event is in [0, EVENTS). */
    void (*event_record)(int event);
    void (*event_wait)(int event);
    void (*to_float)(float *out, const floatX *in, size_t n);    /* both backend memory */
    void (*from_float)(floatX *out, const float *in, size_t n);  /* rounds to nearest even */
    /* Bytes of scratch that are enough for every slot below at every size up to `shape`. */
    size_t (*workspace_size)(const struct OpsShape *shape);

    /* Records a sequence of slot calls and replays it as one launch (a CUDA graph). key [bytes, at
       most 64]: all arguments that differ between sequences; keys are compared byte by byte.
       Returns false if a recording with this key exists: then it was launched, and the caller has
       nothing to do. Returns true if there is none: then the caller makes the calls, and graph_end
       after them. In between, no alloc, free, upload, download, fetch, fetched, sync,
       matmul_choices_load or second graph_begin: a backend that records ends the program there. */
    bool (*graph_begin)(const void *key, size_t bytes);
    void (*graph_end)(void);

    /* ---- the transformer, on packed rows --------------------------------------------------- */

    /* x[n] = wte[token[n]] + wpe[position[n]], or 0 where position[n] < 0
       x [N,C] = ; token, position [N]; wte [Vp,C]; wpe [max_T,C] or NULL: nothing is added */
    void (*embedding_forward)(floatX *x, const int *token, const int *position, const floatX *wte,
                              const floatX *wpe, int N, int C);
    /* dwte [Vp,C] +=, dwpe [max_T,C] += (NULL: no wpe); dx [N,C]. Where a token occurs more than
       once, its gradients are added in the order of n, so that the sum has the same bits every
       time. */
    void (*embedding_backward)(float *dwte, float *dwpe, const floatX *dx, const int *token,
                               const int *position, int N, int C, void *workspace);

    /* out [N,C] =; stats =; x [N,C] */
    void (*norm_forward)(floatX *out, const struct NormStats *stats, const floatX *x,
                         const struct Norm *norm, int N, int C);
    /* sum = x + delta, then out = the norm of sum. sum [N,C] = (sum may be x); out [N,C] =; stats
       =; x, delta [N,C] */
    void (*norm_residual_forward)(floatX *sum, floatX *out, const struct NormStats *stats,
                                  const floatX *x, const floatX *delta, const struct Norm *norm,
                                  int N, int C);
    /* dx [N,C] += ; dweight, dbias [C] += (dbias NULL: no bias); dout, x [N,C]. dx accumulates
       because the residual stream goes on beside the norm. */
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

    /* A library (cuBLASLt) may offer several algorithms for a product, which round differently.
       Until matmul_choices_load is called, and after load(NULL), the library's first offer is used.
       After load(""), the first product of each kind and number of tokens (rounded up to an eighth)
       runs every algorithm on memory of its own, times it, and keeps the fastest. After load of a
       text that matmul_choices_save wrote in an earlier process, those choices are used and nothing
       is timed. Returns NULL, or why the text cannot be used (static storage); then it was as
       load(""). */
    const char *(*matmul_choices_load)(const char *text);
    /* Writes the choices as text; "" if there are none. */
    void (*matmul_choices_save)(char *out, size_t capacity); /* MATMUL_CHOICES_TEXT suffices */
    /* Makes the choices final, as they are after load of a text that save wrote: from then on
       nothing is timed, and a product of a new kind or size uses the choice of the nearest one. To
       be called before what save writes is kept, so that this process and one that loads the text
       compute the same bits. Without effect if nothing has been chosen yet. */
    void (*matmul_choices_freeze)(void);

    /* out [N,C] =; pre [N,P], act [N,F] =; x [N,C]. pre has the same bits as matmul_forward gives,
       and act as activation_forward, because recomputation uses those. */
    void (*mlp_forward)(floatX *out, floatX *pre, floatX *act, const floatX *x,
                        const struct Mlp *mlp, int N);
    /* act [N,F] = activation(pre [N,P]). Used in backward where the forward pass did not keep
       act. */
    void (*activation_forward)(floatX *act, const floatX *pre, int N, int F,
                               enum Activation activation);
    /* dx [N,C] =; gradients +=; dpre [N,P] is scratch. mlp's biases are not read. */
    void (*mlp_backward)(floatX *dx, const struct MlpGradients *gradients, floatX *dpre,
                         const floatX *dout, const floatX *x, const floatX *pre, const floatX *act,
                         const struct Mlp *mlp, int N, void *workspace);

    /* Query and key heads of qkv [N,QKV] (as attention takes it) change in place; values stay. A
       token with position < 0 is left as it is. saved =; position [N]. With neither norm nor
       rotation nothing happens. */
    void (*position_forward)(floatX *qkv, const struct PositionSaved *saved, const int *position,
                             const struct Position *how, const struct Heads *heads, int N);
    /* dqkv [N,QKV], the gradient after position_forward, becomes the one before it; gradients +=.
       saved: what forward left there. */
    void (*position_backward)(floatX *dqkv, const struct PositionGradients *gradients,
                              const struct PositionSaved *saved, const int *position,
                              const struct Position *how, const struct Heads *heads, int N,
                              void *workspace);

    /* Causal softmax attention inside each row and to its prompt, scale 1/sqrt(HS). qkv [N,QKV]
       holds, per token, the NH query heads, then the NKV key heads, then the NKV value heads.
       out [N,NH*HS] =; lse [NH,N] = log-sum-exp of the scaled scores; entropy [NH,N] = the entropy
       (nats) of each attention row (2303.06296), or NULL */
    void (*attention_forward)(floatX *out, float *lse, float *entropy, const floatX *qkv,
                              const struct Rows *rows, const struct Heads *heads, void *workspace);
    /* dqkv [N,QKV] =; dout, out [N,NH*HS]; lse [NH,N] from the forward pass, from which the
       probabilities are computed again */
    void (*attention_backward)(floatX *dqkv, const floatX *dout, const floatX *out,
                               const floatX *qkv, const float *lse, const struct Rows *rows,
                               const struct Heads *heads, void *workspace);

    /* ---- the head: E [N,C] hidden states, W [Vp,C] head weight ------------------------------- */

    /* Statistics of the listed tokens, without gradients. stats: host arrays [n]. Never holds more
       than a tile of the logits. tokens->n <= N of the workspace's shape. */
    void (*head_forward)(const struct HeadStats *stats, const floatX *E, const floatX *W,
                         const struct HeadTokens *tokens, const struct Head *head,
                         void *workspace);
    /* Gradients in one pass over the logits, 6 NVC operations: for each chunk of tokens forms the
       logits once, asks `upstream` for the loss coefficients, and adds both gradient products.
       stats as above; here every pointer may be NULL. upstream is always given all four.
       dE [N,C] = (0 for tokens not listed); dW [Vp,C] += (padding rows untouched), or NULL: not
       wanted, 4 NVC. A token whose two coefficients are 0 contributes exactly 0, even where its
       hidden state is not finite, and need not cost more than its logits. */
    void (*head_forward_backward)(const struct HeadStats *stats, floatX *dE, float *dW,
                                  const floatX *E, const floatX *W,
                                  const struct HeadTokens *tokens, const struct Head *head,
                                  HeadUpstream upstream, void *context, void *workspace);

    /* ---- decoding: R rows, one token each; a row's bits never depend on the other rows ------- */

    /* The layout of a weight w [OC,C] that matmul_decode reads. packed_size: its bytes; 0 if it is
       the layout of w itself, and then w is given to matmul_decode as `packed`. Otherwise
       matmul_pack converts w, once after every update of the weights. */
    size_t (*matmul_packed_size)(int C, int OC);
    void (*matmul_pack)(void *packed, const floatX *w, int C, int OC);
    /* out [R,OC] = x w^T + bias; x [R,C]; bias [OC] or NULL */
    void (*matmul_decode)(floatX *out, const floatX *x, const void *packed, const floatX *bias,
                          int R, int C, int OC);
    /* The feed-forward block; w1 and w2 through matmul_pack(C, P) and matmul_pack(F, C), mlp's own
       are not read. out [R,C] =; pre [R,P] (where P > F, else not used) and act [R,F] are scratch;
       x [R,C] */
    void (*mlp_decode)(floatX *out, floatX *pre, floatX *act, const floatX *x,
                       const void *packed_w1, const void *packed_w2, const struct Mlp *mlp, int R);
    /* Writes each row's key and value into its segment of layer `layer`, then attends. A row's bits
       do not depend on which pages its segments have. out [R,NH*HS] =; qkv [R,QKV] */
    void (*attention_decode)(floatX *out, const floatX *qkv, const struct KvCache *cache,
                             const struct DecodeRows *rows, int layer, int R, void *workspace);
    /* Draws token[i] ~ softmax(E W^T * inv_temperature) by the Gumbel-max rule: the largest
       z_v - log(-log u_v), u_v from rng.h with purpose-key `key` and the row's counter words,
       where the position word is position[i] + 1 (the drawn token's own). Ties take the smaller v.
       inv_temperature 0 means greedy: the largest logit, with statistics at temperature 1.
       token, logp, entropy [R] =, backend memory; E [R,C]; packed: W [Vp,C] as matmul_decode reads
       it. */
    void (*head_sample)(int *token, float *logp, float *entropy, const floatX *E,
                        const void *packed, const struct DecodeRows *rows, const uint32_t key[2],
                        const struct Head *head, int R, void *workspace);
    /* Makes the drawn token the next input: rows->token = token, rows->position += 1. Empty rows
       stay empty. */
    void (*decode_advance)(const struct DecodeRows *rows, const int *token, int R);

    /* ---- the update -------------------------------------------------------------------------- */

    /* out[0] = sum of squares of x [n], accumulated in double or better; out: backend memory. Inf
       or NaN in x makes it non-finite. */
    void (*sum_of_squares)(double *out, const float *x, size_t n, void *workspace);
    /* One AdamW step (decoupled weight decay) on elements [begin, end) of the flat parameter
       buffer: w, master, m, v point to element `begin` of theirs, and so does g, which is only
       read. ranges: host array, sorted, disjoint, counted from the buffer's start; elements outside
       all ranges are not changed. master: float32 weights beside a narrower floatX, or NULL. */
    void (*adamw)(floatX *w, float *master, float *m, float *v, const float *g,
                  const struct AdamwRange *ranges, int num_ranges, size_t begin, size_t end,
                  const struct AdamwStep *step);

    /* ---- communication over ranks ------------------------------------------------------------

       All ranks make the same calls, in the same order, with the same sizes. With one rank each is
       the identity (copies, where there are two buffers), and nothing need be opened.

       The four collective slots work on a stream of their own, in the order of the calls. Such a
       piece of work begins when event `after` has been reached, which event_record set on the
       compute stream (-1: when all that is enqueued there so far is done). When it is done it
       records event `done`, for which the compute stream waits where the result is needed, with
       event_wait (-1: right away). On the CPU it is done when the call returns. Sums have the same
       bits on every rank and in every run.

       Where a rank waits for another one longer than its patience, or finds that one has ended or
       is in another operation, the program ends (die_machine), saying in which operation of which
       step, and which rank it is where that is known: on CUDA from a thread that watches, for the
       host may be waiting itself. There an operation's time counts from when it could begin. */

    /* The meeting point, 128 bytes. meeting NULL: a new one; whoever makes it gives it to all
       ranks. Else "HOST:PORT", from which every rank makes the same. */
    void (*comm_id)(void *id, const char *meeting);
    /* Returns when all ranks are there. patience: seconds. With one rank: nothing, or, where id is
       neither NULL nor all zero, on CUDA a communicator of one rank. */
    void (*comm_open)(int rank, int ranks, const void *id, double patience);
    /* From now on this is step `step`, and so is the patience. */
    void (*comm_expect)(int64_t step, double patience);
    /* What was communicated since the start. Waits for what is enqueued. */
    void (*comm_counts)(struct CommCounts *counts);
    /* x [n] = its sum over the ranks */
    void (*all_reduce)(float *x, size_t n, int after, int done);
    /* out [each] = this rank's part, the rank-th, of the sum of in [ranks*each] over the ranks. out
       may be where that part is in `in`; nothing else of `in` changes. narrow: NULL, or scratch of
       2*ranks*each bytes: then the elements are rounded to bf16 before they are sent, and so may
       partial sums be */
    void (*reduce_scatter)(float *out, const float *in, size_t each, void *narrow, int after,
                           int done);
    /* out [ranks*bytes_each] = every rank's in [bytes_each]; in may be its place in out */
    void (*all_gather)(void *out, const void *in, size_t bytes_each, int after, int done);
    /* x [bytes] = rank root's */
    void (*broadcast)(void *x, size_t bytes, int root, int after, int done);
};

/* Writes to `out`, separated by commas, the name of every empty slot and of every kernel file whose
   `workspace` is NULL; returns how many there are. */
int ops_missing(const struct Ops *ops, char *out, size_t capacity);

/* Cuts B rows into blocks of `block` queries, for struct Rows: writes at most N / block + B blocks
   to out, those whose queries have the most keys first, and returns how many. start [B+1], prompt
   [B] or NULL: host. */
int rows_cut_blocks(struct QueryBlock *out, const int *start, const int *prompt, int B, int block);
/* What struct Rows says of `seen` [B]; host arrays likewise. */
void rows_seen(int *seen, const int *start, const int *prompt, int B);

/* The address of element `index` of x. Host code computes addresses of backend elements with this
   function only, because only the backend knows the size of floatX. */
static inline floatX *ops_at(const struct Ops *ops, const floatX *x, size_t index) {
    return (floatX *)((char *)(uintptr_t)x + index * ops->element_size);
}

#ifdef __cplusplus
}
#endif
#endif
