/* Model families. A family is one file in this folder and its line in families.c. The file says how
   the family reads and writes config.json, which tensors it has, and their names in files. No other
   code knows a family by name: it uses struct ModelConfig and the tensors' fields below. For a
   field that a family has no tensor for, the forward and backward passes see NULL. */
#ifndef LLMC_FAMILIES_FAMILY_H
#define LLMC_FAMILIES_FAMILY_H

#include <stdbool.h>
#include <stddef.h>
#include "../ops.h"

struct cJSON;

/* How the rotation's frequencies follow from theta (rotary.c). Scaling stretches a model that was
   trained on original_max_T positions to longer texts. */
enum RopeKind { ROPE_PLAIN, ROPE_LINEAR, ROPE_LLAMA3 };
struct Rope {
    enum RopeKind kind;
    double theta;                    /* 0: the model has no rotation */
    double factor;                   /* LINEAR, LLAMA3 */
    double low_freq_factor, high_freq_factor;   /* LLAMA3 */
    int original_max_T;              /* LLAMA3 */
};

struct ModelConfig {
    char family[16];   /* a name of the list: "gpt2" */
    int L, NH, NKV, C, HS, F, max_T;
    int V;             /* words of the vocabulary: the softmax runs over V logits, and token ids are
                          below V */
    int V_saved;       /* rows of an embedding in a file (vocab_size); larger than V where the file
                          was padded beyond its tokenizer's words. Rows from V on are kept, never
                          trained */
    int Vp;            /* rows of an embedding in memory: V_saved, rounded up for the backend */
    bool tied;         /* the head is wte */
    int optional;      /* which of the optional tensors it has: QKV_BIAS, ... (TensorFlags) */
    enum NormKind norm;
    double norm_epsilon;
    enum Activation activation;
    struct Rope rope;
};

/* For messages: formats a sentence into static storage, valid until the next call. */
const char *family_sentence(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Reads a whole number in [1, 2^24]. Where the key is absent or null: `missing`, or an error if
   that is 0. Returns NULL or one sentence saying what is wrong. */
const char *family_read_int(int *out, const struct cJSON *json, const char *key, int missing);

/* The tensors, by the names that transformer.c uses. From this list come three structs each for a
   layer and for the whole model: offsets in elements of the flat buffers (below), pointers to
   weights, and pointers to gradients (model.h). */
#define LAYER_TENSORS(X)                                                                      \
    X(ln_1_weight) X(ln_1_bias) X(qkv_weight) X(qkv_bias) X(q_norm_weight) X(k_norm_weight)   \
    X(proj_weight) X(proj_bias)                                                               \
    X(ln_2_weight) X(ln_2_bias) X(fc_weight) X(fc_bias) X(fc_proj_weight) X(fc_proj_bias)
#define GLOBAL_TENSORS(X) X(wte) X(wpe) X(ln_f_weight) X(ln_f_bias) X(head)

#define X(name) size_t name;
struct LayerOffsets { LAYER_TENSORS(X) };
struct GlobalOffsets { GLOBAL_TENSORS(X) };   /* if tied, head has the offset of wte */
#undef X

/* What a row of the tensor table says of its tensor: sizes, initial values, properties. */
enum Dimension {
    DIM_NONE, DIM_C, DIM_QKV, DIM_HEADS, DIM_KV, DIM_HS, DIM_F, DIM_T, DIM_VP
};
enum Initialiser { INIT_ZERO, INIT_ONE, INIT_NORMAL, INIT_RESIDUAL };
enum TensorFlags {
    DECAY = 1,     /* weight decay applies: matrices and embeddings, as in nanoGPT */
    CONV1D = 2,    /* the file holds the transpose */
    UNTIED = 4,    /* exists only in models whose head is not tied to wte */
    PER_LAYER = 8, /* exists once per layer */
    JOINED = 16,   /* follows the tensor of the row before without a gap, and both are one matrix to
                      the kernels: the row before, of the same field, has its offset */
    /* exists only where config->optional has the flag */
    QKV_BIAS = 32, PROJ_BIAS = 64, MLP_BIAS = 128, QK_NORM = 256,
    OPTIONAL = QKV_BIAS | PROJ_BIAS | MLP_BIAS | QK_NORM,
};

struct TensorRow {
    const char *name;               /* Hugging Face name; %d stands for the layer */
    size_t field;                   /* offsetof its field in struct LayerOffsets or GlobalOffsets */
    enum Dimension rows, columns;
    enum Initialiser init;
    int flags;
};

struct Family {
    const char *name;               /* model_type of config.json */
    /* Fills all of config but family and Vp. Returns NULL or one sentence saying what is wrong. */
    const char *(*read_config)(struct ModelConfig *config, const struct cJSON *json);
    /* Adds all that from_pretrained needs. end_of_text: the token that ends a text. */
    void (*write_config)(struct cJSON *json, const struct ModelConfig *config, int end_of_text);
    /* NULL, or one sentence saying what in config this family cannot run. Called after every size
       was found to be in its range. */
    const char *(*problem)(const struct ModelConfig *config);
    /* Fills all of config but family, V, V_saved and Vp. Returns false if the family has no size of
       that name. */
    bool (*named_size)(struct ModelConfig *config, const char *name);
    const char *size_names;         /* separated by spaces */
    const struct TensorRow *rows;   /* in the order of the flat buffers */
    int num_rows;
    float init_std;
    /* The rotation's frequencies [HS/2], in turns of 2 pi per position; NULL: no rotation. */
    void (*inv_freq)(float *out, const struct ModelConfig *config);
    /* How files may differ: some leave out this prefix of all names; some hold tensors that are not
       weights and are ignored, known by the ends of their names (a list that ends with NULL). */
    const char *prefix;
    const char *const *ignored_suffixes;
};

/* family_find: NULL for an unknown name. family_at: NULL for i past the last family. family_names:
   all names, for messages. */
const struct Family *family_find(const char *name);
const struct Family *family_at(int i);
const char *family_names(void);

/* The part of `name` behind the prefix that some files leave out. */
const char *family_short_name(const struct Family *family, const char *name);
/* The name of the head's tensor in files of models that are not tied. */
const char *family_head_name(const struct Family *family);
/* True if a file's tensor of this name is not a weight, and is to be ignored. */
bool family_ignores(const struct Family *family, const char *name);

#endif
