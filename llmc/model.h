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

/* One tensor. Offsets and counts are in elements of the flat buffers. */
struct Tensor {
    char name[80];     /* Hugging Face name, e.g. transformer.h.0.attn.c_attn.weight */
    const char *short_name;   /* within it: what a file calls it that leaves the prefix out */
    int shape[2];      /* as the kernels read it: [rows, columns], or [n, 0] */
    int rows_saved;    /* rows in a file: V_saved where shape[0] is Vp, else shape[0] */
    int rows_trained;  /* rows that learn: V where shape[0] is Vp, else shape[0] */
    bool transposed;   /* the file holds [columns, rows] (GPT-2's Conv1D) */
    bool decay;        /* weight decay applies */
    bool trainable;
    float init_std;    /* normal(0, init_std); 0 with init_value */
    float init_value;  /* constant */
    size_t offset, count, saved;   /* saved: count without the rows that no file has */
};

/* Offsets of tensors in the flat buffers; of one that the family does not have: */
#define NO_TENSOR SIZE_MAX

struct Model {
    struct ModelConfig config;
    const struct Family *family;
    struct Tensor *tensors;
    struct LayerOffsets *layers;   /* [L] */
    struct GlobalOffsets globals;
    int num_tensors;
    size_t num_parameters;   /* elements of a flat buffer, padding included (it is always zero) */
    size_t num_real_parameters;
    const struct Ops *ops;
};

struct Weights {
    floatX *data;            /* [num_parameters] */
    float *master;           /* [num_parameters] what data is the rounding of; NULL: not kept */
};

/* The optimizer's buffers: backend memory [num_parameters] each. master is that of the weights. */
struct OptimizerState {
    float *m, *v, *master;
};

/* Pointers to the tensors of a layer, and to those of no layer; NULL where the family has none. */
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
    struct HeadTokens loss;   /* the tokens with a loss, each predicting its next one */
    int *token, *position;    /* [N]; position restarts at 0 in each row */
};

struct Activations;      /* forward's memory for N tokens; opaque, in transformer.c */
struct DecodeState;      /* decode's memory for R rows and its cache; opaque, in transformer.c */
struct cJSON;

/* Sizes by name: "tiny" (L3 C64 NH4 T16), "gpt2" (124M), "gpt2-medium" (355M), "gpt2-large" (774M),
   "gpt2-xl" (1558M). Returns false for an unknown name. The vocabulary (V, V_saved, Vp) is left to
   the caller. */
bool model_config_named(struct ModelConfig *config, const char *name);
/* Space-separated names, for messages. */
const char *model_config_names(void);
/* NULL if the config can be run, else one sentence saying what is wrong (static storage). */
const char *model_config_problem(const struct ModelConfig *config);
/* A Hugging Face config.json. Reading chooses the family by its model_type; V and Vp become
   V_saved, for the caller to cut and to pad; NULL or one sentence saying what is wrong. Writing
   adds all that from_pretrained needs. */
const char *model_config_read(struct ModelConfig *config, const struct cJSON *json);
void model_config_write(struct cJSON *json, const struct ModelConfig *config, int end_of_text);

/* Builds the tensor table: that of the config's family, or of another. The config must have no
   problem. */
struct Model *model_build(const struct ModelConfig *config, const struct Ops *ops);
struct Model *model_build_as(const struct Family *family, const struct ModelConfig *config,
                             const struct Ops *ops);
void model_free(struct Model *model);
/* The table, one line per tensor. */
void model_print(const struct Model *model, FILE *out);

/* Host floats to elements of the backend and back, in slices through a small backend buffer. */
void elements_upload(const struct Ops *ops, floatX *out, const float *host, size_t n);
void elements_download(const struct Ops *ops, float *host, const floatX *in, size_t n);

/* Host floats [n] to elements [offset, offset + n) of data, and of master where it is kept. */
void weights_upload(const struct Model *model, struct Weights *weights, size_t offset,
                    const float *host, size_t n);
/* All of them, padding included, become 0. */
void weights_clear(const struct Model *model, struct Weights *weights);

/* Initial weights, drawn on the host (RNG_INIT, tensor index): the same on every backend up to
   rounding. Padding rows are zero. */
void model_initialise(const struct Model *model, struct Weights *weights, uint64_t seed);
/* Ranges for ops->adamw over all trainable tensors; host array, caller frees. */
struct AdamwRange *model_adamw_ranges(const struct Model *model, float weight_decay, int *count);

/* What backward computes again instead of keeping (1604.06174). Per token and layer, in elements,
   for F = 4C and as many key-value heads as heads:
       NONE   16 C kept
       MLP    12 C: the feed-forward block's activation anew from what went into GELU, one
              elementwise pass
       LAYER   1 C: the layer anew from its input, about a third more arithmetic in all
   The results are the same, bit for bit. */
enum Recompute { RECOMPUTE_NONE, RECOMPUTE_MLP, RECOMPUTE_LAYER };

/* Reserves forward and backward memory for up to N tokens in up to B rows. */
struct Activations *activations_reserve(const struct Model *model, struct Arena *arena, int N,
                                        int B, int max_T, enum Recompute recompute);
void activations_free(struct Activations *activations);

/* Returns the final hidden states E [N,C] (after the last norm), valid until the next forward.
   attention_entropy: backend [L,NH,N] or NULL. */
floatX *model_forward(const struct Model *model, const struct Weights *weights,
                      struct Activations *activations, const struct Batch *batch,
                      float *attention_entropy, void *workspace);
/* Where the head writes dE [N,C] before model_backward. */
floatX *model_hidden_gradient(struct Activations *activations);
/* grads [num_parameters] float, +=. Uses the activations of the last forward. */
void model_backward(const struct Model *model, const struct Weights *weights,
                    struct Activations *activations, const struct Batch *batch, float *grads,
                    void *workspace);

/* The head at a temperature (0: greedy, for sampling only); its weight [Vp,C] and gradient, tied or
   not. */
struct Head model_head(const struct Model *model, float temperature);
const floatX *model_head_weight(const struct Model *model, const struct Weights *weights);
float *model_head_gradient(const struct Model *model, float *grads);

/* Decode memory: R rows a step (prefill included), caches as given. Packed weights included. */
struct DecodeState *decode_reserve(const struct Model *model, struct Arena *arena, int R,
                                   int prompt_slots, int prompt_capacity, int tail_slots,
                                   int tail_capacity);
void decode_free(struct DecodeState *state);
/* Packs the weights; call after every update, before the first step. */
void decode_load_weights(const struct Model *model, struct DecodeState *state,
                         const struct Weights *weights);
/* One step of R rows (R <= the reserved): returns the final hidden states [R,C]. */
floatX *model_decode(const struct Model *model, const struct Weights *weights,
                     struct DecodeState *state, const struct DecodeRows *rows, int R,
                     void *workspace);
/* The packed head weight for ops->head_sample. */
const void *decode_head_weight(const struct DecodeState *state);

/* Floating-point operations of one training token (forward and backward, head included, attention
   at mean context T/2): 6 per weight of a product, as the field counts for MFU. */
double model_flops_per_token(const struct Model *model, int T);

#endif
