/* Configurations, the tensor table, the optimizer's ranges and initial weights. The forward and
   backward passes are in transformer.c. */
#include "model.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "base/rng.h"
#include "base/text.h"

/* Every tensor begins at a multiple of this many elements of the flat buffer, so that vector loads
   are aligned whatever C is. The gaps between tensors are zero and stay zero. */
#define TENSOR_ALIGN 32
/* Elements that cross between host and backend at a time. */
#define SLICE ((size_t)1 << 20)
/* How many initial weights a thread draws at a time. */
#define DRAWS ((size_t)4096)

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* ---- configurations ------------------------------------------------------------------------- */

bool model_config_named(struct ModelConfig *config, const char *name) {
    const struct Family *family;
    for (int i = 0; (family = family_at(i)) != NULL; i++) {
        struct ModelConfig named = {.V = config->V, .V_saved = config->V_saved, .Vp = config->Vp};
        if (!family->named_size(&named, name)) continue;
        *config = named;
        snprintf(config->family, sizeof config->family, "%s", family->name);
        return true;
    }
    return false;
}

const char *model_config_names(void) {
    static char names[512];
    const struct Family *family;
    size_t length = 0;
    for (int i = 0; (family = family_at(i)) != NULL && length < sizeof names; i++)
        length += (size_t)snprintf(names + length, sizeof names - length, "%s%s", i ? " " : "",
                                   family->size_names);
    return names;
}

/* With these upper bounds the product of any two sizes fits into 63 bits and 4 times any size fits
   into an int, so that no size in a damaged or hostile file makes arithmetic overflow. */
const char *model_config_problem(const struct ModelConfig *config) {
    const struct {
        const char *name;
        int value, high;
    } ranges[] = {
        {"the number of layers", config->L, 1024},
        {"the number of heads", config->NH, 1 << 16},
        {"the number of key-value heads", config->NKV, 1 << 16},
        {"the size of a head", config->HS, 1 << 16},
        {"the number of channels", config->C, 1 << 16},
        {"the width of the feed-forward block", config->F, 1 << 20},
        {"the vocabulary", config->V, 1 << 24},
        {"the vocabulary of the file", config->V_saved, 1 << 24},
        {"the padded vocabulary", config->Vp, 1 << 24},
        {"the context length", config->max_T, 1 << 24},
    };
    const struct Family *family = family_find(config->family);
    if (family == NULL)
        return family_sentence("unknown model family '%.15s' (known: %s)", config->family,
                               family_names());
    for (int i = 0; i < COUNT(ranges); i++)
        if (ranges[i].value < 1 || ranges[i].value > ranges[i].high)
            return family_sentence("%s is %d, not in [1, %d]", ranges[i].name, ranges[i].value,
                            ranges[i].high);
    if (config->NH % config->NKV != 0)
        return family_sentence("%d heads do not share %d key-value heads evenly", config->NH,
                               config->NKV);
    if (!((float)config->norm_epsilon > 0 && config->norm_epsilon < 1))
        return family_sentence("the norm's epsilon is %g, not in (0, 1)", config->norm_epsilon);
    if (config->V > config->V_saved || config->V_saved > config->Vp)
        return family_sentence("of the vocabularies %d (in use), %d (in the file) and %d (padded) "
                               "one is smaller than the one before", config->V, config->V_saved,
                               config->Vp);
    return family->problem(config);
}

const char *model_config_read(struct ModelConfig *config, const struct cJSON *json) {
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(json, "model_type");
    if (!cJSON_IsString(type)) return "there is no \"model_type\"";
    const struct Family *family = family_find(type->valuestring);
    if (family == NULL)
        return family_sentence("model_type is \"%s\"; known are: %s", quote(type->valuestring),
                               family_names());
    memset(config, 0, sizeof *config);
    snprintf(config->family, sizeof config->family, "%s", family->name);
    const char *problem = family->read_config(config, json);
    config->Vp = config->V_saved;
    return problem != NULL ? problem : model_config_problem(config);
}

void model_config_write(struct cJSON *json, const struct ModelConfig *config, int end_of_text) {
    family_find(config->family)->write_config(json, config, end_of_text);
}

/* ---- the tensor table ----------------------------------------------------------------------- */

static int dimension_size(enum Dimension dimension, const struct ModelConfig *config) {
    switch (dimension) {
        case DIM_C: return config->C;
        case DIM_QKV: return (config->NH + 2 * config->NKV) * config->HS;
        case DIM_HEADS: return config->NH * config->HS;
        case DIM_KV: return config->NKV * config->HS;
        case DIM_HS: return config->HS;
        case DIM_F: return config->F;
        case DIM_T: return config->max_T;
        case DIM_VP: return config->Vp;
        default: return 0;
    }
}

/* Appends one tensor to the table and to the flat buffer, and notes its offset in model->globals or
   model->layers, from which transformer.c reads it. */
static void model_add_tensor(struct Model *model, const struct TensorRow *row, int layer) {
    const struct ModelConfig *config = &model->config;
    struct Tensor *tensor = &model->tensors[model->num_tensors++];
    snprintf(tensor->name, sizeof tensor->name, row->name, layer);
    tensor->short_name = family_short_name(model->family, tensor->name);
    tensor->shape[0] = dimension_size(row->rows, config);
    tensor->shape[1] = dimension_size(row->columns, config);
    tensor->rows_saved = row->rows == DIM_VP ? config->V_saved : tensor->shape[0];
    tensor->rows_trained = row->rows == DIM_VP ? config->V : tensor->shape[0];
    tensor->transposed = row->flags & CONV1D;
    tensor->decay = row->flags & DECAY;
    tensor->trainable = true;
    tensor->init_value = row->init == INIT_ONE ? 1 : 0;
    if (row->init == INIT_NORMAL) tensor->init_std = model->family->init_std;
    /* Each layer adds to the residual stream twice, 2 L additions in all. Dividing by the root of
       that number keeps the variance of the sum from growing with depth (GPT-2). */
    if (row->init == INIT_RESIDUAL)
        tensor->init_std = model->family->init_std / sqrtf(2.0f * (float)config->L);

    size_t columns = tensor->shape[1] ? (size_t)tensor->shape[1] : 1;
    if (row->flags & JOINED) model->num_parameters = tensor[-1].offset + tensor[-1].count;
    tensor->offset = model->num_parameters;
    tensor->count = (size_t)tensor->shape[0] * columns;
    tensor->saved = (size_t)tensor->rows_saved * columns;
    model->num_parameters += (tensor->count + TENSOR_ALIGN - 1) / TENSOR_ALIGN * TENSOR_ALIGN;
    model->num_real_parameters += tensor->saved;

    if (row->flags & JOINED) return;
    void *offsets = &model->globals;
    if (row->flags & PER_LAYER) offsets = &model->layers[layer];
    *(size_t *)((char *)offsets + row->field) = tensor->offset;
}

static bool row_exists(const struct TensorRow *row, const struct ModelConfig *config) {
    int missing = row->flags & OPTIONAL & ~config->optional;
    return missing == 0 && !(row->flags & UNTIED && config->tied);
}

/* The frequencies go to the backend once. */
static void model_upload_frequencies(struct Model *model) {
    const struct ModelConfig *config = &model->config;
    size_t half = (size_t)config->HS / 2;
    if (model->family->inv_freq == NULL) return;
    float *host = check_alloc(half, sizeof *host, "the rotation's frequencies");
    model->family->inv_freq(host, config);
    model->inv_freq = model->ops->alloc(half * sizeof *host);
    model->ops->upload(model->inv_freq, host, half * sizeof *host);
    free(host);
}

/* Sets every offset to NO_TENSOR, the value for a tensor that the family does not have. */
static void model_forget_offsets(struct Model *model) {
#define X(name) model->globals.name = NO_TENSOR;
    GLOBAL_TENSORS(X)
#undef X
#define X(name) model->layers[l].name = NO_TENSOR;
    for (int l = 0; l < model->config.L; l++) { LAYER_TENSORS(X) }
#undef X
}

/* All tensors since the last bucket are one. */
static void model_end_bucket(struct Model *model) {
    size_t multiple = TENSOR_ALIGN * (size_t)model->ranks;
    size_t begin = model->num_buckets ? model->buckets[model->num_buckets - 1].end : 0;
    model->num_parameters = (model->num_parameters + multiple - 1) / multiple * multiple;
    model->buckets[model->num_buckets++] = (struct Bucket){begin, model->num_parameters};
}

struct Model *model_build(const struct ModelConfig *config, const struct Ops *ops) {
    return model_build_ranks(config, ops, 1);
}

struct Model *model_build_ranks(const struct ModelConfig *config, const struct Ops *ops,
                                int ranks) {
    return model_build_as(family_find(config->family), config, ops, ranks);
}

struct Model *model_build_as(const struct Family *family, const struct ModelConfig *config,
                             const struct Ops *ops, int ranks) {
    assert(model_config_problem(config) == NULL);
    size_t most = (size_t)family->num_rows * (size_t)config->L;
    struct Model *model = check_alloc(1, sizeof *model, "the model");
    model->config = *config;
    model->family = family;
    model->ops = ops;
    model->tensors = check_alloc(most, sizeof *model->tensors, "the tensor table");
    model->layers = check_alloc((size_t)config->L, sizeof *model->layers, "the tensor table");
    model->ranks = ranks;
    model->buckets = check_alloc((size_t)config->L + 2, sizeof *model->buckets, "the model");
    model_forget_offsets(model);

    for (int i = 0; i < family->num_rows;) {
        const struct TensorRow *row = &family->rows[i];
        if (!(row->flags & PER_LAYER)) {
            if (row_exists(row, config)) model_add_tensor(model, row, 0);
            i++;
            continue;
        }
        /* Consecutive per-layer rows describe one layer: all of them are added for layer 0, then
           all for layer 1, and so on. */
        int end = i;
        while (end < family->num_rows && family->rows[end].flags & PER_LAYER) end++;
        for (int l = 0; l < config->L; l++) {
            model_end_bucket(model);
            for (int j = i; j < end; j++)
                if (row_exists(&family->rows[j], config))
                    model_add_tensor(model, &family->rows[j], l);
        }
        model_end_bucket(model);
        i = end;
    }
    model_end_bucket(model);
    assert(model->num_buckets == config->L + 2);
    if (config->tied) model->globals.head = model->globals.wte;
    if (ops != NULL) model_upload_frequencies(model);
    return model;
}

void model_free(struct Model *model) {
    if (model == NULL) return;
    if (model->inv_freq) model->ops->free(model->inv_freq);
    free(model->tensors);
    free(model->layers);
    free(model->buckets);
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
        size_t columns = tensor->shape[1] ? (size_t)tensor->shape[1] : 1;
        size_t begin = tensor->offset, end = begin + (size_t)tensor->rows_trained * columns;
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
    double mlp = C * config->F * (1 + activation_inputs(config->activation));
    double products = config->L * (C * qkv + heads * C + mlp) + C * config->V;
    /* Attention: two products (scores, weighted values), T/2 keys each, 2 operations per key and
       channel, 3 passes (forward, and backward twice): 2 * T/2 * 2 * 3 = 6 T. */
    return 6 * products + 6.0 * config->L * heads * T;
}

/* ---- weights -------------------------------------------------------------------------------- */

/* Float32 elements need no conversion. */
static bool are_floats(const struct Ops *ops) { return ops->element_size == sizeof(float); }

void elements_upload(const struct Ops *ops, floatX *out, const float *host, size_t n) {
    if (are_floats(ops)) {
        ops->upload(out, host, n * sizeof *host);
        return;
    }
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
    if (are_floats(ops)) {
        ops->download(host, in, n * sizeof *host);
        return;
    }
    float *slice = ops->alloc((n < SLICE ? n : SLICE) * sizeof *slice);
    for (size_t i = 0; i < n; i += SLICE) {
        size_t part = n - i < SLICE ? n - i : SLICE;
        ops->to_float(slice, ops_at(ops, in, i), part);
        ops->download(host + i, slice, part * sizeof *slice);
    }
    ops->free(slice);
}

void share_upload(const struct Model *model, float *out, const struct Share *share, size_t offset,
                  const float *host, size_t n) {
    for (int b = 0; b < model->num_buckets; b++) {
        struct Bucket slice = share_slice(share, &model->buckets[b]);
        size_t first = slice.begin > offset ? slice.begin : offset;
        size_t last = slice.end < offset + n ? slice.end : offset + n;
        if (first >= last) continue;
        model->ops->upload(out + share_of(share, model->buckets[b].begin) + (first - slice.begin),
                           host + (first - offset), (last - first) * sizeof *host);
    }
}

void weights_upload(const struct Model *model, struct Weights *weights, size_t offset,
                    const float *host, size_t n) {
    elements_upload(model->ops, ops_at(model->ops, weights->data, offset), host, n);
    if (weights->master) share_upload(model, weights->master, &weights->share, offset, host, n);
}

void weights_clear(const struct Model *model, struct Weights *weights) {
    const struct Ops *ops = model->ops;
    ops->fill_zero(weights->data, model->num_parameters * ops->element_size);
    if (weights->master)
        ops->fill_zero(weights->master,
                       share_of(&weights->share, model->num_parameters) * sizeof(float));
}

/* Elements [begin, begin + n) of a tensor's initial values, in parallel, with the same result as
   drawing them one after another. A normal draw uses two 32-bit words and a block of the generator
   has four, so draw i starts in block i / 2; begin and DRAWS are even, so every thread starts at
   the beginning of a block. */
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
