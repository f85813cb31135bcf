/* Model families. A family is one file of this folder, and its line in families.c: how it reads and
   writes config.json, which tensors it has, and what files call them. Nothing else in the program
   knows a family by name.  Everything that computes goes by struct ModelConfig and by the tensors'
   fields below: a field that a family has no row for is absent, and the passes see NULL there. */
#ifndef LLMC_FAMILIES_FAMILY_H
#define LLMC_FAMILIES_FAMILY_H

#include <stdbool.h>
#include <stddef.h>

struct cJSON;

struct ModelConfig {
    char family[16];   /* a name of the list: "gpt2" */
    int L, NH, NKV, C, HS, F, max_T;
    int V;             /* words: what the softmax runs over, and no token is V or more */
    int V_saved;       /* rows of an embedding in a file (vocab_size): V, and more where the file
                          was padded beyond its tokenizer's words: kept and never trained */
    int Vp;            /* rows of an embedding in memory: V_saved, rounded up for the backend */
    bool tied;         /* the head is wte */
    double norm_epsilon;
};

/* A sentence in static storage, valid until the next one. */
const char *family_sentence(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A whole number in [1, 2^24]; `missing` (0: required) where the key is absent or null. Returns
   NULL or one sentence saying what is wrong. */
const char *family_read_int(int *out, const struct cJSON *json, const char *key, int missing);

/* The tensors by the names the passes use. One list serves three structs: offsets in elements of
   the flat buffers (here), pointers to weights and pointers to gradients (model.h). */
#define LAYER_TENSORS(X)                                                                      \
    X(ln_1_weight) X(ln_1_bias) X(qkv_weight) X(qkv_bias) X(proj_weight) X(proj_bias)         \
    X(ln_2_weight) X(ln_2_bias) X(fc_weight) X(fc_bias) X(fc_proj_weight) X(fc_proj_bias)
#define GLOBAL_TENSORS(X) X(wte) X(wpe) X(ln_f_weight) X(ln_f_bias) X(head)

#define X(name) size_t name;
struct LayerOffsets { LAYER_TENSORS(X) };
struct GlobalOffsets { GLOBAL_TENSORS(X) };   /* head is wte where they are tied */
#undef X

/* How a row of the table says what a tensor is. */
enum Dimension { DIM_NONE, DIM_C, DIM_QKV, DIM_HEADS, DIM_F, DIM_T, DIM_VP };
enum Initialiser { INIT_ZERO, INIT_ONE, INIT_NORMAL, INIT_RESIDUAL };
enum TensorFlags {
    DECAY = 1,     /* weight decay applies: matrices and embeddings, as in nanoGPT */
    CONV1D = 2,    /* the file holds the transpose */
    UNTIED = 4,    /* exists only where the head is not wte */
    PER_LAYER = 8,
};

struct TensorRow {
    const char *name;               /* Hugging Face; %d is the layer */
    size_t field;                   /* its offset in struct LayerOffsets or GlobalOffsets */
    enum Dimension rows, columns;
    enum Initialiser init;
    int flags;
};

struct Family {
    const char *name;               /* model_type of config.json */
    /* Fills config but for family and Vp; NULL or one sentence saying what is wrong. */
    const char *(*read_config)(struct ModelConfig *config, const struct cJSON *json);
    /* Adds all that from_pretrained needs. end_of_text: the token that ends a text. */
    void (*write_config)(struct cJSON *json, const struct ModelConfig *config, int end_of_text);
    /* NULL, or what about config this family does not have. Sizes are in range already. */
    const char *(*problem)(const struct ModelConfig *config);
    /* Fills config but for family, V, V_saved and Vp; false: no size of that name. */
    bool (*named_size)(struct ModelConfig *config, const char *name);
    const char *size_names;         /* separated by spaces */
    const struct TensorRow *rows;   /* in the order of the flat buffers */
    int num_rows;
    float init_std;
    /* What files may do differently: leave a prefix of all names out; carry tensors that are none
       of the weights, known by the ends of their names (a list that ends with NULL). */
    const char *prefix;
    const char *const *ignored_suffixes;
};

/* The families; family_find: NULL for an unknown name. family_names: for messages. */
const struct Family *family_find(const char *name);
const struct Family *family_at(int i);   /* NULL past the last */
const char *family_names(void);

/* The tensor's name without the prefix that some files leave out. */
const char *family_short_name(const struct Family *family, const char *name);
/* The name of the head's tensor, where it is one of its own. */
const char *family_head_name(const struct Family *family);
/* A tensor of a file that is none of the weights. */
bool family_ignores(const struct Family *family, const char *name);

#endif
