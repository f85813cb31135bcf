/* Configurations, families, the tensor table and what follows from it. The passes are in
   transformer.c. */
#include "model.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "base/rng.h"

/* Every tensor begins on a multiple of this many elements, so that vector loads of a whole flat
   buffer's tensors are aligned whatever C is. The gaps are zero and stay zero. */
#define TENSOR_ALIGN 32
/* Elements that cross between host and backend at a time. */
#define SLICE ((size_t)1 << 20)
/* Initial weights that one thread draws in a row. */
#define DRAWS ((size_t)4096)
#define GPT2_INIT_STD 0.02f

/* ---- families: one table row per tensor ----------------------------------------------------- */

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
    const char *(*read_config)(struct ModelConfig *config, const cJSON *json);
    void (*write_config)(cJSON *json, const struct ModelConfig *config, int end_of_text);
    const struct TensorRow *rows;
    int num_rows;
};

#define GLOBAL(name) offsetof(struct GlobalOffsets, name)
#define LAYER(name) offsetof(struct LayerOffsets, name)
#define H "transformer.h.%d."

static const struct TensorRow gpt2_rows[] = {
    {"transformer.wte.weight", GLOBAL(wte), DIM_VP, DIM_C, INIT_NORMAL, DECAY},
    {"transformer.wpe.weight", GLOBAL(wpe), DIM_T, DIM_C, INIT_NORMAL, DECAY},
    {H "ln_1.weight", LAYER(ln_1_weight), DIM_C, DIM_NONE, INIT_ONE, PER_LAYER},
    {H "ln_1.bias", LAYER(ln_1_bias), DIM_C, DIM_NONE, INIT_ZERO, PER_LAYER},
    {H "attn.c_attn.weight", LAYER(qkv_weight), DIM_QKV, DIM_C, INIT_NORMAL,
     PER_LAYER | DECAY | CONV1D},
    {H "attn.c_attn.bias", LAYER(qkv_bias), DIM_QKV, DIM_NONE, INIT_ZERO, PER_LAYER},
    {H "attn.c_proj.weight", LAYER(proj_weight), DIM_C, DIM_HEADS, INIT_RESIDUAL,
     PER_LAYER | DECAY | CONV1D},
    {H "attn.c_proj.bias", LAYER(proj_bias), DIM_C, DIM_NONE, INIT_ZERO, PER_LAYER},
    {H "ln_2.weight", LAYER(ln_2_weight), DIM_C, DIM_NONE, INIT_ONE, PER_LAYER},
    {H "ln_2.bias", LAYER(ln_2_bias), DIM_C, DIM_NONE, INIT_ZERO, PER_LAYER},
    {H "mlp.c_fc.weight", LAYER(fc_weight), DIM_F, DIM_C, INIT_NORMAL, PER_LAYER | DECAY | CONV1D},
    {H "mlp.c_fc.bias", LAYER(fc_bias), DIM_F, DIM_NONE, INIT_ZERO, PER_LAYER},
    {H "mlp.c_proj.weight", LAYER(fc_proj_weight), DIM_C, DIM_F, INIT_RESIDUAL,
     PER_LAYER | DECAY | CONV1D},
    {H "mlp.c_proj.bias", LAYER(fc_proj_bias), DIM_C, DIM_NONE, INIT_ZERO, PER_LAYER},
    {"transformer.ln_f.weight", GLOBAL(ln_f_weight), DIM_C, DIM_NONE, INIT_ONE, 0},
    {"transformer.ln_f.bias", GLOBAL(ln_f_bias), DIM_C, DIM_NONE, INIT_ZERO, 0},
    {"lm_head.weight", GLOBAL(head), DIM_VP, DIM_C, INIT_NORMAL, DECAY | UNTIED},
};

static const char *gpt2_read_config(struct ModelConfig *config, const cJSON *json);
static void gpt2_write_config(cJSON *json, const struct ModelConfig *config, int end_of_text);

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

static const struct Family families[] = {
    {"gpt2", gpt2_read_config, gpt2_write_config, gpt2_rows, COUNT(gpt2_rows)},
};

static const struct Family *family_find(const char *name) {
    for (int i = 0; i < COUNT(families); i++)
        if (strcmp(families[i].name, name) == 0) return &families[i];
    return NULL;
}

/* ---- configurations ------------------------------------------------------------------------- */

static const struct NamedSize {
    const char *name;
    int L, C, NH, max_T;
} sizes[] = {
    {"tiny", 3, 64, 4, 16},           {"gpt2", 12, 768, 12, 1024},
    {"gpt2-medium", 24, 1024, 16, 1024}, {"gpt2-large", 36, 1280, 20, 1024},
    {"gpt2-xl", 48, 1600, 25, 1024},
};

bool model_config_named(struct ModelConfig *config, const char *name) {
    for (int i = 0; i < COUNT(sizes); i++) {
        if (strcmp(sizes[i].name, name) != 0) continue;
        snprintf(config->family, sizeof config->family, "gpt2");
        config->L = sizes[i].L;
        config->C = sizes[i].C;
        config->NH = config->NKV = sizes[i].NH;
        config->HS = config->C / config->NH;
        config->F = 4 * config->C;
        config->max_T = sizes[i].max_T;
        config->tied = true;
        config->norm_epsilon = 1e-5;
        return true;
    }
    return false;
}

const char *model_config_names(void) { return "tiny gpt2 gpt2-medium gpt2-large gpt2-xl"; }

/* A sentence in static storage, valid until the next one. */
__attribute__((format(printf, 1, 2))) static const char *sentence(const char *format, ...) {
    static char text[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return text;
}

/* As a float it is still a number above 0. */
static bool norm_epsilon_is_good(const struct ModelConfig *config) {
    return (float)config->norm_epsilon > 0 && config->norm_epsilon < 1;
}

/* The upper bounds keep every product of two sizes inside 63 bits and every size times 4 inside an
   int, whatever a file claims. */
const char *model_config_problem(const struct ModelConfig *config) {
    const struct {
        const char *name;
        int value, high;
    } ranges[] = {
        {"the number of layers", config->L, 1024},
        {"the number of heads", config->NH, 1 << 16},
        {"the number of channels", config->C, 1 << 16},
        {"the width of the feed-forward block", config->F, 1 << 20},
        {"the vocabulary", config->V, 1 << 24},
        {"the padded vocabulary", config->Vp, 1 << 24},
        {"the context length", config->max_T, 1 << 24},
    };
    if (family_find(config->family) == NULL)
        return sentence("unknown model family '%.15s' (known: gpt2)", config->family);
    for (int i = 0; i < COUNT(ranges); i++)
        if (ranges[i].value < 1 || ranges[i].value > ranges[i].high)
            return sentence("%s is %d, not in [1, %d]", ranges[i].name, ranges[i].value,
                            ranges[i].high);
    if (config->C % config->NH != 0 || config->HS != config->C / config->NH)
        return sentence("%d channels do not divide into %d heads", config->C, config->NH);
    if (config->NKV != config->NH)
        return sentence("GPT-2 has as many key-value heads as heads, not %d and %d", config->NKV,
                        config->NH);
    if (!norm_epsilon_is_good(config))
        return sentence("the norm's epsilon is %g, not in (0, 1)", config->norm_epsilon);
    if (config->Vp < config->V)
        return sentence("the padded vocabulary %d is smaller than the vocabulary %d", config->Vp,
                        config->V);
    return NULL;
}

const char *model_config_read(struct ModelConfig *config, const struct cJSON *json) {
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(json, "model_type");
    if (!cJSON_IsString(type)) return "there is no \"model_type\"";
    const struct Family *family = family_find(type->valuestring);
    if (family == NULL)
        return sentence("model_type is \"%.40s\", and the one known is \"gpt2\"",
                        type->valuestring);
    memset(config, 0, sizeof *config);
    snprintf(config->family, sizeof config->family, "%s", family->name);
    const char *problem = family->read_config(config, json);
    return problem != NULL ? problem : model_config_problem(config);
}

void model_config_write(struct cJSON *json, const struct ModelConfig *config, int end_of_text) {
    family_find(config->family)->write_config(json, config, end_of_text);
}

/* A whole number in [1, 2^24]; `missing` (0: required) where the key is absent or null. */
static const char *read_int(int *out, const cJSON *json, const char *key, int missing) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    if (item == NULL || cJSON_IsNull(item)) {
        *out = missing;
        return missing > 0 ? NULL : sentence("there is no \"%s\"", key);
    }
    double value = cJSON_IsNumber(item) ? item->valuedouble : 0;
    if (!(value >= 1 && value <= 1 << 24) || value != floor(value))
        return sentence("\"%s\" must be a whole number in [1, %d]", key, 1 << 24);
    *out = (int)value;
    return NULL;
}

/* What this program computes is GPT-2 as published; a file that asks for a variant is refused
   rather than run as something else. Keys that are absent have their published value. */
static const char *gpt2_check_variant(const cJSON *json) {
    static const struct {
        const char *key;
        bool value;
    } booleans[] = {
        {"scale_attn_weights", true},
        {"scale_attn_by_inverse_layer_idx", false},
        {"add_cross_attention", false},
    };
    for (int i = 0; i < COUNT(booleans); i++) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, booleans[i].key);
        if (item != NULL && (!cJSON_IsBool(item) || cJSON_IsTrue(item) != booleans[i].value))
            return sentence("\"%s\" must be %s", booleans[i].key,
                            booleans[i].value ? "true" : "false");
    }
    const cJSON *gelu = cJSON_GetObjectItemCaseSensitive(json, "activation_function");
    if (gelu != NULL && (!cJSON_IsString(gelu) || (strcmp(gelu->valuestring, "gelu_new") != 0 &&
                         strcmp(gelu->valuestring, "gelu_pytorch_tanh") != 0)))
        return "\"activation_function\" must be \"gelu_new\"";
    return NULL;
}

static const char *gpt2_read_config(struct ModelConfig *config, const cJSON *json) {
    const char *problem = gpt2_check_variant(json);
    if (problem == NULL) problem = read_int(&config->L, json, "n_layer", 0);
    if (problem == NULL) problem = read_int(&config->NH, json, "n_head", 0);
    if (problem == NULL) problem = read_int(&config->C, json, "n_embd", 0);
    if (problem == NULL) problem = read_int(&config->V, json, "vocab_size", 0);
    if (problem == NULL) problem = read_int(&config->max_T, json, "n_positions", 0);
    if (problem == NULL) problem = read_int(&config->F, json, "n_inner", 4 * config->C);
    if (problem != NULL) return problem;
    const cJSON *tied = cJSON_GetObjectItemCaseSensitive(json, "tie_word_embeddings");
    if (tied != NULL && !cJSON_IsBool(tied)) return "\"tie_word_embeddings\" must be true or false";
    config->tied = tied == NULL || cJSON_IsTrue(tied);
    const cJSON *epsilon = cJSON_GetObjectItemCaseSensitive(json, "layer_norm_epsilon");
    config->norm_epsilon = 1e-5;
    if (epsilon != NULL) config->norm_epsilon = cJSON_IsNumber(epsilon) ? epsilon->valuedouble : 0;
    if (!norm_epsilon_is_good(config)) return "\"layer_norm_epsilon\" must be a number in (0, 1)";
    config->NKV = config->NH;
    config->HS = config->C / config->NH;
    config->Vp = config->V;
    return NULL;
}

static void gpt2_write_config(cJSON *json, const struct ModelConfig *config, int end_of_text) {
    cJSON *architectures = cJSON_AddArrayToObject(json, "architectures");
    cJSON_AddItemToArray(architectures, cJSON_CreateString("GPT2LMHeadModel"));
    cJSON_AddStringToObject(json, "model_type", "gpt2");
    cJSON_AddStringToObject(json, "activation_function", "gelu_new");
    cJSON_AddNumberToObject(json, "vocab_size", config->V);
    cJSON_AddNumberToObject(json, "n_positions", config->max_T);
    cJSON_AddNumberToObject(json, "n_ctx", config->max_T);
    cJSON_AddNumberToObject(json, "n_embd", config->C);
    cJSON_AddNumberToObject(json, "n_layer", config->L);
    cJSON_AddNumberToObject(json, "n_head", config->NH);
    if (config->F == 4 * config->C) cJSON_AddNullToObject(json, "n_inner");
    else cJSON_AddNumberToObject(json, "n_inner", config->F);
    cJSON_AddNumberToObject(json, "layer_norm_epsilon", config->norm_epsilon);
    cJSON_AddNumberToObject(json, "initializer_range", 0.02);
    /* Nothing is ever dropped here, so a model that is trained on elsewhere starts the same way. */
    cJSON_AddNumberToObject(json, "attn_pdrop", 0);
    cJSON_AddNumberToObject(json, "embd_pdrop", 0);
    cJSON_AddNumberToObject(json, "resid_pdrop", 0);
    cJSON_AddBoolToObject(json, "scale_attn_weights", true);
    cJSON_AddBoolToObject(json, "scale_attn_by_inverse_layer_idx", false);
    cJSON_AddBoolToObject(json, "reorder_and_upcast_attn", false);
    cJSON_AddBoolToObject(json, "tie_word_embeddings", config->tied);
    cJSON_AddBoolToObject(json, "use_cache", true);
    cJSON_AddNumberToObject(json, "bos_token_id", end_of_text);
    cJSON_AddNumberToObject(json, "eos_token_id", end_of_text);
    cJSON_AddStringToObject(json, "torch_dtype", "float32");
}

/* ---- the tensor table ----------------------------------------------------------------------- */

static int dimension_size(enum Dimension dimension, const struct ModelConfig *config) {
    switch (dimension) {
        case DIM_C: return config->C;
        case DIM_QKV: return (config->NH + 2 * config->NKV) * config->HS;
        case DIM_HEADS: return config->NH * config->HS;
        case DIM_F: return config->F;
        case DIM_T: return config->max_T;
        case DIM_VP: return config->Vp;
        default: return 0;
    }
}

/* Appends one tensor at the end of the flat buffer and tells the passes where it is. */
static void model_add_tensor(struct Model *model, const struct TensorRow *row, int layer) {
    const struct ModelConfig *config = &model->config;
    struct Tensor *tensor = &model->tensors[model->num_tensors++];
    snprintf(tensor->name, sizeof tensor->name, row->name, layer);
    tensor->shape[0] = dimension_size(row->rows, config);
    tensor->shape[1] = dimension_size(row->columns, config);
    tensor->rows_saved = row->rows == DIM_VP ? config->V : tensor->shape[0];
    tensor->transposed = row->flags & CONV1D;
    tensor->decay = row->flags & DECAY;
    tensor->trainable = true;
    tensor->init_value = row->init == INIT_ONE ? 1 : 0;
    if (row->init == INIT_NORMAL) tensor->init_std = GPT2_INIT_STD;
    /* Each layer adds to the residual stream twice; this keeps the sum's variance (GPT-2). */
    if (row->init == INIT_RESIDUAL)
        tensor->init_std = GPT2_INIT_STD / sqrtf(2.0f * (float)config->L);

    size_t columns = tensor->shape[1] ? (size_t)tensor->shape[1] : 1;
    tensor->offset = model->num_parameters;
    tensor->count = (size_t)tensor->shape[0] * columns;
    tensor->saved = (size_t)tensor->rows_saved * columns;
    model->num_parameters += (tensor->count + TENSOR_ALIGN - 1) / TENSOR_ALIGN * TENSOR_ALIGN;
    model->num_real_parameters += tensor->saved;

    void *offsets = &model->globals;
    if (row->flags & PER_LAYER) offsets = &model->layers[layer];
    *(size_t *)((char *)offsets + row->field) = tensor->offset;
}

struct Model *model_build(const struct ModelConfig *config, const struct Ops *ops) {
    assert(model_config_problem(config) == NULL);
    const struct Family *family = family_find(config->family);
    size_t most = (size_t)family->num_rows * (size_t)config->L;
    struct Model *model = check_alloc(1, sizeof *model, "the model");
    model->config = *config;
    model->ops = ops;
    model->tensors = check_alloc(most, sizeof *model->tensors, "the tensor table");
    model->layers = check_alloc((size_t)config->L, sizeof *model->layers, "the tensor table");

    for (int i = 0; i < family->num_rows;) {
        const struct TensorRow *row = &family->rows[i];
        if (!(row->flags & PER_LAYER)) {
            if (!(row->flags & UNTIED) || !config->tied) model_add_tensor(model, row, 0);
            i++;
            continue;
        }
        /* A run of per-layer rows is a layer: the whole run for layer 0, then for layer 1, ... */
        int end = i;
        while (end < family->num_rows && family->rows[end].flags & PER_LAYER) end++;
        for (int l = 0; l < config->L; l++)
            for (int j = i; j < end; j++) model_add_tensor(model, &family->rows[j], l);
        i = end;
    }
    if (config->tied) model->globals.head = model->globals.wte;
    return model;
}

void model_free(struct Model *model) {
    if (model == NULL) return;
    free(model->tensors);
    free(model->layers);
    free(model);
}

void model_print(const struct Model *model, FILE *out) {
    fprintf(out, "%-40s %16s %12s %12s  %s\n", "tensor", "shape", "offset", "elements", "decay");
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        char shape[32];
        if (tensor->shape[1])
            snprintf(shape, sizeof shape, "[%d, %d]", tensor->shape[0], tensor->shape[1]);
        else
            snprintf(shape, sizeof shape, "[%d]", tensor->shape[0]);
        fprintf(out, "%-40s %16s %12zu %12zu  %s\n", tensor->name, shape, tensor->offset,
                tensor->count, tensor->decay ? "yes" : "no");
    }
    fprintf(out, "%zu parameters (%zu with padding)\n", model->num_real_parameters,
            model->num_parameters);
}

struct AdamwRange *model_adamw_ranges(const struct Model *model, float weight_decay, int *count) {
    struct AdamwRange *ranges =
        check_alloc((size_t)model->num_tensors, sizeof *ranges, "the optimizer's ranges");
    int n = 0;
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        if (!tensor->trainable) continue;
        float decay = tensor->decay ? weight_decay : 0;
        size_t begin = tensor->offset, end = begin + tensor->count;
        if (n > 0 && ranges[n - 1].end == begin && ranges[n - 1].weight_decay == decay)
            ranges[n - 1].end = end;
        else
            ranges[n++] = (struct AdamwRange){begin, end, decay};
    }
    *count = n;
    return ranges;
}

double model_flops_per_token(const struct Model *model, int T) {
    const struct ModelConfig *config = &model->config;
    double C = config->C, heads = (double)config->NH * config->HS;
    double qkv = (config->NH + 2.0 * config->NKV) * config->HS;
    double products = config->L * (C * qkv + heads * C + 2 * C * config->F) + C * config->V;
    /* Scores and weighted values: two products with T/2 keys each, 2 operations, 3 passes. */
    return 6 * products + 6.0 * config->L * heads * T;
}

/* ---- weights -------------------------------------------------------------------------------- */

void elements_upload(const struct Ops *ops, floatX *out, const float *host, size_t n) {
    float *slice = ops->alloc((n < SLICE ? n : SLICE) * sizeof *slice);
    for (size_t i = 0; i < n; i += SLICE) {
        size_t part = n - i < SLICE ? n - i : SLICE;
        ops->upload(slice, host + i, part * sizeof *slice);
        ops->from_float(ops_at(ops, out, i), slice, part);
    }
    ops->sync();
    ops->free(slice);
}

void elements_download(const struct Ops *ops, float *host, const floatX *in, size_t n) {
    float *slice = ops->alloc((n < SLICE ? n : SLICE) * sizeof *slice);
    for (size_t i = 0; i < n; i += SLICE) {
        size_t part = n - i < SLICE ? n - i : SLICE;
        ops->to_float(slice, ops_at(ops, in, i), part);
        ops->download(host + i, slice, part * sizeof *slice);
    }
    ops->free(slice);
}

void weights_upload(const struct Model *model, struct Weights *weights, size_t offset,
                    const float *host, size_t n) {
    elements_upload(model->ops, ops_at(model->ops, weights->data, offset), host, n);
    if (weights->master) model->ops->upload(weights->master + offset, host, n * sizeof *host);
}

void weights_clear(const struct Model *model, struct Weights *weights) {
    const struct Ops *ops = model->ops;
    ops->fill_zero(weights->data, model->num_parameters * ops->element_size);
    if (weights->master) ops->fill_zero(weights->master, model->num_parameters * sizeof(float));
}

/* Elements [begin, begin + n) of a tensor's draws. A draw takes two words and a block of the
   generator has four, so element i begins block i / 2 (begin and DRAWS are even) and threads may
   share the work: the numbers are those of one sequence. */
static void draw_normals(float *out, uint64_t seed, int tensor, float std, size_t begin, size_t n) {
    #pragma omp parallel for schedule(static)
    for (size_t first = 0; first < n; first += DRAWS) {
        uint64_t block = (begin + first) / 2;
        struct Rng rng;
        rng_open(&rng, seed, RNG_INIT, (uint64_t)tensor);
        rng.counter[0] = (uint32_t)block;
        rng.counter[1] = (uint32_t)(block >> 32);
        for (size_t j = first; j < n && j < first + DRAWS; j++) out[j] = std * rng_normal(&rng);
    }
}

void model_initialise(const struct Model *model, struct Weights *weights, uint64_t seed) {
    float *host = check_alloc(SLICE, sizeof *host, "a slice of initial weights");
    weights_clear(model, weights);
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        for (size_t begin = 0; begin < tensor->saved; begin += SLICE) {
            size_t part = tensor->saved - begin < SLICE ? tensor->saved - begin : SLICE;
            for (size_t j = 0; j < part; j++) host[j] = tensor->init_value;
            if (tensor->init_std > 0)
                draw_normals(host, seed, i, tensor->init_std, begin, part);
            weights_upload(model, weights, tensor->offset + begin, host, part);
        }
    }
    free(host);
}

struct Head model_head(const struct Model *model, float temperature) {
    const struct ModelConfig *config = &model->config;
    return (struct Head){config->C, config->V, config->Vp, temperature > 0 ? 1 / temperature : 0};
}

const floatX *model_head_weight(const struct Model *model, const struct Weights *weights) {
    return ops_at(model->ops, weights->data, model->globals.head);
}

float *model_head_gradient(const struct Model *model, float *grads) {
    return grads + model->globals.head;
}
