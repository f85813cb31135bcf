/* GPT-2 (Radford et al. 2019), as Hugging Face's GPT2LMHeadModel has it. */
#include "family.h"
#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>

#define EPSILON 1e-5 /* the layer norm's epsilon in the published models */
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* ---- tensors -------------------------------------------------------------------------------- */

#define GLOBAL(name) offsetof(struct GlobalOffsets, name)
#define LAYER(name) offsetof(struct LayerOffsets, name)
#define H "transformer.h.%d."

static const struct TensorRow rows[] = {
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

/* Older files also hold attention's masks, which are not weights. */
static const char *const ignored[] = {".attn.bias", ".attn.masked_bias", NULL};

/* ---- sizes ---------------------------------------------------------------------------------- */

static const struct NamedSize {
    const char *name;
    int L, C, NH, max_T;
} sizes[] = {
    {"tiny", 3, 64, 4, 16},           {"gpt2", 12, 768, 12, 1024},
    {"gpt2-medium", 24, 1024, 16, 1024}, {"gpt2-large", 36, 1280, 20, 1024},
    {"gpt2-xl", 48, 1600, 25, 1024},
};

static bool named_size(struct ModelConfig *config, const char *name) {
    for (int i = 0; i < COUNT(sizes); i++) {
        if (strcmp(sizes[i].name, name) != 0) continue;
        config->L = sizes[i].L;
        config->C = sizes[i].C;
        config->NH = config->NKV = sizes[i].NH;
        config->HS = config->C / config->NH;
        config->F = 4 * config->C;
        config->max_T = sizes[i].max_T;
        config->tied = true;
        config->norm_epsilon = EPSILON;
        return true;
    }
    return false;
}

static const char *problem(const struct ModelConfig *config) {
    if (config->C % config->NH != 0 || config->HS != config->C / config->NH)
        return family_sentence("%d channels do not divide into %d heads", config->C, config->NH);
    if (config->NKV != config->NH)
        return family_sentence("GPT-2 has as many key-value heads as heads, not %d and %d",
                               config->NKV, config->NH);
    return NULL;
}

/* ---- config.json ---------------------------------------------------------------------------- */

/* This program computes GPT-2 as published. A file whose config asks for a variant is refused, as
   its results would be wrong. An absent key has its published value. */
static const char *check_variant(const cJSON *json) {
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
            return family_sentence("\"%s\" must be %s", booleans[i].key,
                            booleans[i].value ? "true" : "false");
    }
    const cJSON *gelu = cJSON_GetObjectItemCaseSensitive(json, "activation_function");
    if (gelu != NULL && (!cJSON_IsString(gelu) || (strcmp(gelu->valuestring, "gelu_new") != 0 &&
                         strcmp(gelu->valuestring, "gelu_pytorch_tanh") != 0)))
        return "\"activation_function\" must be \"gelu_new\"";
    return NULL;
}

static const char *read_config(struct ModelConfig *config, const cJSON *json) {
    const char *problem = check_variant(json);
    if (problem == NULL) problem = family_read_int(&config->L, json, "n_layer", 0);
    if (problem == NULL) problem = family_read_int(&config->NH, json, "n_head", 0);
    if (problem == NULL) problem = family_read_int(&config->C, json, "n_embd", 0);
    if (problem == NULL) problem = family_read_int(&config->V_saved, json, "vocab_size", 0);
    if (problem == NULL) problem = family_read_int(&config->max_T, json, "n_positions", 0);
    if (problem == NULL) problem = family_read_int(&config->F, json, "n_inner", 4 * config->C);
    if (problem != NULL) return problem;
    const cJSON *tied = cJSON_GetObjectItemCaseSensitive(json, "tie_word_embeddings");
    if (tied != NULL && !cJSON_IsBool(tied)) return "\"tie_word_embeddings\" must be true or false";
    config->tied = tied == NULL || cJSON_IsTrue(tied);
    const cJSON *epsilon = cJSON_GetObjectItemCaseSensitive(json, "layer_norm_epsilon");
    config->norm_epsilon = EPSILON;
    if (epsilon != NULL) config->norm_epsilon = cJSON_IsNumber(epsilon) ? epsilon->valuedouble : 0;
    if (!(config->norm_epsilon > 0 && (float)config->norm_epsilon > 0 && config->norm_epsilon < 1))
        return "\"layer_norm_epsilon\" must be a number in (0, 1)";
    config->NKV = config->NH;
    config->HS = config->C / config->NH;
    config->V = config->V_saved;
    return NULL;
}

static void write_config(cJSON *json, const struct ModelConfig *config, int end_of_text) {
    cJSON *architectures = cJSON_AddArrayToObject(json, "architectures");
    cJSON_AddItemToArray(architectures, cJSON_CreateString("GPT2LMHeadModel"));
    cJSON_AddStringToObject(json, "model_type", "gpt2");
    cJSON_AddStringToObject(json, "activation_function", "gelu_new");
    cJSON_AddNumberToObject(json, "vocab_size", config->V_saved);
    cJSON_AddNumberToObject(json, "n_positions", config->max_T);
    cJSON_AddNumberToObject(json, "n_ctx", config->max_T);
    cJSON_AddNumberToObject(json, "n_embd", config->C);
    cJSON_AddNumberToObject(json, "n_layer", config->L);
    cJSON_AddNumberToObject(json, "n_head", config->NH);
    if (config->F == 4 * config->C) cJSON_AddNullToObject(json, "n_inner");
    else cJSON_AddNumberToObject(json, "n_inner", config->F);
    cJSON_AddNumberToObject(json, "layer_norm_epsilon", config->norm_epsilon);
    cJSON_AddNumberToObject(json, "initializer_range", 0.02);
    /* This program trains without dropout. It writes so, so that another program that goes on
       training the model does not use its own default. */
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

const struct Family family_gpt2 = {
    .name = "gpt2",
    .read_config = read_config,
    .write_config = write_config,
    .problem = problem,
    .named_size = named_size,
    .size_names = "tiny gpt2 gpt2-medium gpt2-large gpt2-xl",
    .rows = rows,
    .num_rows = COUNT(rows),
    .init_std = 0.02f,
    .prefix = "transformer.",
    .ignored_suffixes = ignored,
};
