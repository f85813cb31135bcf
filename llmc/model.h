/* The transformer. A family (families/family.h) gives a table of tensors with one row per tensor
   (Hugging Face name, shape, initialiser, decay), from which the flat buffers, the initialisation,
   the checkpoint and the optimizer's ranges all follow.

   Weights, gradients and moments are flat buffers in the same layer-major table order:

       | wte | wpe | layer 0: ln_1 w b, attn w b, proj w b, ln_2 w b, fc w b, proj w b |
       | layer 1 ... | ln_f w b | (head) |

   Weights are separate from activations, so a reference model is a second struct Weights. */
#ifndef LLMC_MODEL_H
#define LLMC_MODEL_H

#include <stdbool.h>
#include <stdint.h>
#include "arena.h"
#include "families/family.h"
#include "ops.h"

static inline struct Heads model_heads(const struct ModelConfig *config) {
    return (struct Heads){config->NH, config->NKV, config->HS};
}

/* One row of the tensor table. Offsets and counts are in elements of the flat buffers. */
struct Tensor {
    char name[80];     /* Hugging Face name, e.g. transformer.h.0.attn.c_attn.weight */
    const char *short_name;   /* points into name: the name in files that leave out the prefix */
    int shape[2];      /* as the kernels read it: [rows, columns], or [n, 0] */
    int rows_saved;    /* rows in a file: V_saved where shape[0] is Vp, else shape[0] */
    int rows_trained;  /* rows that training changes: V where shape[0] is Vp, else shape[0] */
    bool transposed;   /* the file holds [columns, rows] (GPT-2's Conv1D) */
    bool decay;        /* weight decay applies */
    bool trainable;
    float init_std;    /* initial values are normal(0, init_std); if 0, all are init_value */
    float init_value;
    size_t offset, count, saved;   /* saved: elements of the rows_saved rows that a file has */
};

/* The offset of a tensor that the family does not have. */
#define NO_TENSOR SIZE_MAX

/* A part of the flat buffers whose gradients become final, and are communicated, together: the
   embeddings; each layer; what comes after the layers. Together they are the whole buffer. Each
   begins at, and has, a multiple of 32 * ranks elements, so that every rank has an equal slice of
   it: rank r the r-th. */
struct Bucket {
    size_t begin, end;
};

struct Model {
    struct ModelConfig config;
    const struct Family *family;
    struct Tensor *tensors;
    struct LayerOffsets *layers;   /* [L] */
    struct GlobalOffsets globals;
    int num_tensors;
    struct Bucket *buckets;  /* [num_buckets = L + 2] the embeddings, layers 0 to L - 1, the rest */
    int num_buckets, ranks;
    size_t num_parameters;   /* elements of a flat buffer, with gaps and padding rows */
    size_t num_real_parameters;   /* elements that a file has */
    float *inv_freq;         /* [HS/2] the rotation's frequencies, backend memory; NULL: none */
    const struct Ops *ops;
};

/* Which elements of the flat buffers an array has: of each bucket the slice of one of `ranks`
   ranks, one after another (ZeRO, 1910.02054). {0, 1}, or all zero: every element. Since buckets
   are multiples of the ranks and follow each other, the slice of a bucket that begins at b is at
   b / ranks of the array. */
struct Share {
    int rank, ranks;
};

static inline size_t share_of(const struct Share *share, size_t elements) {
    return share->ranks > 1 ? elements / (size_t)share->ranks : elements;
}
static inline struct Bucket share_slice(const struct Share *share, const struct Bucket *bucket) {
    size_t each = share_of(share, bucket->end - bucket->begin);
    size_t begin = bucket->begin + (size_t)share->rank * each;
    return (struct Bucket){begin, begin + each};
}

struct Weights {
    floatX *data;            /* [num_parameters] */
    float *master;           /* the float32 weights that data is rounded from, of `share`; NULL
                                where data is float32 itself, or the weights are only read */
    struct Share share;
    const int *arrives;      /* [num_buckets] the event with which a bucket of data is there, which
                                model_forward waits for, or -1; NULL: all are there */
};

/* The optimizer's buffers, of `share`: backend memory [share_size] each. master: as in struct
   Weights. */
struct OptimizerState {
    float *m, *v, *master;
    struct Share share;
    float *whole;   /* where share is not all: backend memory [num_parameters] in which one of these
                       may be gathered; else NULL */
};

/* Pointers to the tensors of a layer, and to those that belong to no layer; NULL for a tensor that
   the family does not have. */
#define X(name) const floatX *name;
struct LayerWeights { LAYER_TENSORS(X) };
struct GlobalWeights { GLOBAL_TENSORS(X) };
#undef X
#define X(name) float *name;
struct LayerGradients { LAYER_TENSORS(X) };
struct GlobalGradients { GLOBAL_TENSORS(X) };
#undef X
struct LayerWeights model_layer_weights(const struct Model *model, const struct Weights *weights,
                                        int l);
struct GlobalWeights model_global_weights(const struct Model *model,
                                          const struct Weights *weights);
struct LayerGradients model_layer_gradients(const struct Model *model, float *grads, int l);
struct GlobalGradients model_global_gradients(const struct Model *model, float *grads);

/* A packed batch; all arrays are the backend's. */
struct Batch {
    struct Rows rows;
    struct HeadTokens loss;   /* which tokens' predictions of the next token have a loss */
    int *token, *position;    /* [N]; position restarts at 0 in each row */
};

struct Activations;      /* forward's memory for N tokens; opaque, in transformer.c */
struct DecodeState;      /* decode's memory for R rows and its cache; opaque, in transformer.c */
struct cJSON;

/* Sizes by name: "tiny" (L3 C64 NH4 T16), "gpt2" (124M), "gpt2-medium" (355M), "gpt2-large"
   (774M), "gpt2-xl" (1558M); "tiny-llama" and the like, one of each family. Returns false for an
   unknown name. The vocabulary (V, V_saved, Vp) is left to the caller. */
bool model_config_named(struct ModelConfig *config, const char *name);
/* Space-separated names, for messages. */
const char *model_config_names(void);
/* NULL if the config can be run, else one sentence saying what is wrong (static storage). */
const char *model_config_problem(const struct ModelConfig *config);
/* Reads a Hugging Face config.json, whose model_type chooses the family. V and Vp are set to
   V_saved; the caller lowers V to the tokenizer's words and rounds Vp up for the backend. Returns
   NULL or one sentence saying what is wrong (static storage). */
const char *model_config_read(struct ModelConfig *config, const struct cJSON *json);
/* Adds to json every key that from_pretrained needs. */
void model_config_write(struct cJSON *json, const struct ModelConfig *config, int end_of_text);

/* Builds the tensor table of the config's family, or (for tests) of a given one, with buckets for
   so many ranks (model_build: 1). Owned by the caller; model_free. model_config_problem(config)
   must be NULL (asserted). */
struct Model *model_build(const struct ModelConfig *config, const struct Ops *ops);
struct Model *model_build_ranks(const struct ModelConfig *config, const struct Ops *ops,
                                int ranks);
struct Model *model_build_as(const struct Family *family, const struct ModelConfig *config,
                             const struct Ops *ops, int ranks);
void model_free(struct Model *model);
/* The table, one line per tensor. */
void model_print(const struct Model *model, FILE *out);

/* Converts n host floats to backend elements and back: directly where those are float32, else in
   slices through a small backend buffer that is allocated for the call. */
void elements_upload(const struct Ops *ops, floatX *out, const float *host, size_t n);
void elements_download(const struct Ops *ops, float *host, const floatX *in, size_t n);

/* Copies n host floats, elements [offset, offset + n) of the flat buffer, to where they are in an
   array of a share; those that it does not have are left out. */
void share_upload(const struct Model *model, float *out, const struct Share *share, size_t offset,
                  const float *host, size_t n);
/* Copies n host floats to elements [offset, offset + n) of weights->data, and of weights->master
   unless it is NULL. */
void weights_upload(const struct Model *model, struct Weights *weights, size_t offset,
                    const float *host, size_t n);
/* Sets all weights to 0, gaps and padding rows included. */
void weights_clear(const struct Model *model, struct Weights *weights);

/* Sets the initial weights, drawn on the host from the seed (RNG_INIT, index of the tensor), so
   that every backend gets the same numbers, rounded to its element type. Rows from V_saved on are
   zero. */
void model_initialise(const struct Model *model, struct Weights *weights, uint64_t seed);
/* Ranges for ops->adamw over all trainable tensors; host array, caller frees. */
struct AdamwRange *model_adamw_ranges(const struct Model *model, float weight_decay, int *count);

/* What backward computes again instead of keeping it from the forward pass (1604.06174). Elements
   kept per token and layer of GPT-2, with F = 4 C and as many key-value heads as heads:
       NONE   16 C: everything
       MLP    12 C: all but the activation's output, which is computed again from its input
       LAYER   1 C: the layer's input only, from which the whole layer is computed again: about a
               third more arithmetic in all
   The gradients are the same, bit for bit. */
enum Recompute { RECOMPUTE_NONE, RECOMPUTE_MLP, RECOMPUTE_LAYER };

/* Reserves, in arena's present section, the memory of forward and backward for batches of up to N
   tokens in up to B rows of up to max_T tokens. Owned by the caller; activations_free. */
struct Activations *activations_reserve(const struct Model *model, struct Arena *arena, int N,
                                        int B, int max_T, enum Recompute recompute);
void activations_free(struct Activations *activations);

/* Returns the hidden states E [N,C] after the last norm, valid until the next forward pass.
   attention_entropy: filled if it is not NULL, backend [L,NH,N], with the batch's N. */
floatX *model_forward(const struct Model *model, const struct Weights *weights,
                      struct Activations *activations, const struct Batch *batch,
                      float *attention_entropy, void *workspace);
/* Backend memory [N,C] for dE: the head writes it, and model_backward reads it. */
floatX *model_hidden_gradient(struct Activations *activations);
/* Called when no later operation of the backward pass changes the gradients of a bucket. */
struct BucketDone {
    void (*call)(void *context, int bucket);   /* NULL: nobody asks */
    void *context;
};
/* grads [num_parameters] +=, backend memory. Uses, and with recomputation overwrites, the
   activations of the last forward pass, which must have been on the same batch. done: called for
   the buckets from the last to the first, when the work is enqueued. */
void model_backward(const struct Model *model, const struct Weights *weights,
                    struct Activations *activations, const struct Batch *batch, float *grads,
                    struct BucketDone done, void *workspace);

/* The head's sizes at a temperature (0: greedy, only for sampling), and its weight [Vp,C] and
   gradient: those of the token embedding where the two are tied. */
struct Head model_head(const struct Model *model, float temperature);
const floatX *model_head_weight(const struct Model *model, const struct Weights *weights);
float *model_head_gradient(const struct Model *model, float *grads);

/* How large the cache of decoding is (struct KvCache): its pages, how many prompts and tails have
   some at once, and how many each may have at most. */
struct CacheSize {
    int pages, prompt_slots, prompt_width, tail_slots, tail_width;
};

/* Bytes of a page: the keys and values of KV_PAGE positions in all layers. */
size_t decode_page_bytes(const struct Model *model);
/* Reserves, in arena's present section, the memory of decoding: steps of up to R rows (prefill
   included), the cache and the packed weights. Owned by the caller; decode_free. */
struct DecodeState *decode_reserve(const struct Model *model, struct Arena *arena, int R,
                                   const struct CacheSize *cache);
/* Uploads the page tables, host arrays of the shapes that struct KvCache gives; NULL: not this one.
   To be called before the first step, and with a table in which a segment got a page. */
void decode_set_pages(const struct Model *model, struct DecodeState *state, const int *prompt,
                      const int *tail);
void decode_free(struct DecodeState *state);
/* Packs the weights for model_decode. To be called after every update of the weights, and after
   anything that overwrote the decoding section (arena.h). */
void decode_load_weights(const struct Model *model, struct DecodeState *state,
                         const struct Weights *weights);
/* One decode step of R rows, at most as many as reserved. Returns the hidden states [R,C] after the
   last norm, valid until the next step. */
floatX *model_decode(const struct Model *model, const struct Weights *weights,
                     struct DecodeState *state, const struct DecodeRows *rows, int R,
                     void *workspace);
/* The `packed` argument of ops->head_sample. */
const void *decode_head_weight(const struct DecodeState *state);

/* Floating-point operations of one training token: forward and backward, head included, attention
   at a mean context of T/2. Counts 6 per weight of a matrix product, as is usual for MFU (model
   FLOPs utilisation; PaLM 2204.02311, appendix B). */
double model_flops_per_token(const struct Model *model, int T);

#endif
