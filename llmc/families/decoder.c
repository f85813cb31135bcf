/* The tensors and config.json of Llama and of the families that are built like it (decoder.h). */
#include "decoder.h"
#include <cjson/cJSON.h>
#include <string.h>
#include "../base/text.h"

/* ---- tensors -------------------------------------------------------------------------------- */

#define GLOBAL(name) offsetof(struct GlobalOffsets, name)
#define LAYER(name) offsetof(struct LayerOffsets, name)
#define H "model.layers.%d."
#define ATTENTION H "self_attn."
#define MATRIX (PER_LAYER | DECAY)

/* q, k and v, and gate and up, are tensors of their own in a file and one matrix here. */
const struct TensorRow decoder_rows[DECODER_ROWS] = {
    {"model.embed_tokens.weight", GLOBAL(wte), DIM_VP, DIM_C, INIT_NORMAL, DECAY},
    {H "input_layernorm.weight", LAYER(ln_1_weight), DIM_C, DIM_NONE, INIT_ONE, PER_LAYER},
    {ATTENTION "q_proj.weight", LAYER(qkv_weight), DIM_HEADS, DIM_C, INIT_NORMAL, MATRIX},
    {ATTENTION "k_proj.weight", LAYER(qkv_weight), DIM_KV, DIM_C, INIT_NORMAL, MATRIX | JOINED},
    {ATTENTION "v_proj.weight", LAYER(qkv_weight), DIM_KV, DIM_C, INIT_NORMAL, MATRIX | JOINED},
    {ATTENTION "q_proj.bias", LAYER(qkv_bias), DIM_HEADS, DIM_NONE, INIT_ZERO,
     PER_LAYER | QKV_BIAS},
    {ATTENTION "k_proj.bias", LAYER(qkv_bias), DIM_KV, DIM_NONE, INIT_ZERO,
     PER_LAYER | QKV_BIAS | JOINED},
    {ATTENTION "v_proj.bias", LAYER(qkv_bias), DIM_KV, DIM_NONE, INIT_ZERO,
     PER_LAYER | QKV_BIAS | JOINED},
    {ATTENTION "q_norm.weight", LAYER(q_norm_weight), DIM_HS, DIM_NONE, INIT_ONE,
     PER_LAYER | QK_NORM},
    {ATTENTION "k_norm.weight", LAYER(k_norm_weight), DIM_HS, DIM_NONE, INIT_ONE,
     PER_LAYER | QK_NORM},
    {ATTENTION "o_proj.weight", LAYER(proj_weight), DIM_C, DIM_HEADS, INIT_NORMAL, MATRIX},
    {ATTENTION "o_proj.bias", LAYER(proj_bias), DIM_C, DIM_NONE, INIT_ZERO, PER_LAYER | PROJ_BIAS},
    {H "post_attention_layernorm.weight", LAYER(ln_2_weight), DIM_C, DIM_NONE, INIT_ONE, PER_LAYER},
    {H "mlp.gate_proj.weight", LAYER(fc_weight), DIM_F, DIM_C, INIT_NORMAL, MATRIX},
    {H "mlp.up_proj.weight", LAYER(fc_weight), DIM_F, DIM_C, INIT_NORMAL, MATRIX | JOINED},
    {H "mlp.gate_proj.bias", LAYER(fc_bias), DIM_F, DIM_NONE, INIT_ZERO, PER_LAYER | MLP_BIAS},
    {H "mlp.up_proj.bias", LAYER(fc_bias), DIM_F, DIM_NONE, INIT_ZERO,
     PER_LAYER | MLP_BIAS | JOINED},
    {H "mlp.down_proj.weight", LAYER(fc_proj_weight), DIM_C, DIM_F, INIT_NORMAL, MATRIX},
    {H "mlp.down_proj.bias", LAYER(fc_proj_bias), DIM_C, DIM_NONE, INIT_ZERO, PER_LAYER | MLP_BIAS},
    {"model.norm.weight", GLOBAL(ln_f_weight), DIM_C, DIM_NONE, INIT_ONE, 0},
    {"lm_head.weight", GLOBAL(head), DIM_VP, DIM_C, INIT_NORMAL, DECAY | UNTIED},
};

const char *const decoder_ignored[] = {".rotary_emb.inv_freq", NULL};

/* ---- sizes ---------------------------------------------------------------------------------- */

void decoder_tiny(struct ModelConfig *config) {
    config->L = 3, config->NH = 4, config->NKV = 2, config->C = 64, config->HS = 16;
    config->F = 176, config->max_T = 256;
    config->tied = true;
    config->norm = NORM_RMS, config->norm_epsilon = 1e-6;
    config->activation = SWIGLU;
    config->rope = (struct Rope){.kind = ROPE_PLAIN, .theta = 10000};
}

const char *decoder_problem(const struct ModelConfig *config) {
    if (config->norm != NORM_RMS || config->activation != SWIGLU)
        return "this family has RMS norms and SwiGLU";
    return rotary_problem(config);
}

/* ---- config.json ---------------------------------------------------------------------------- */

static const cJSON *find(const cJSON *json, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, key);
    return cJSON_IsNull(item) ? NULL : item;
}

const char *decoder_read_bool(bool *out, const cJSON *json, const char *key, bool missing) {
    const cJSON *item = find(json, key);
    if (item != NULL && !cJSON_IsBool(item))
        return family_sentence("\"%s\" must be true or false", key);
    *out = item == NULL ? missing : cJSON_IsTrue(item);
    return NULL;
}

/* What would be computed wrongly if the key were passed over. Dropout (attention_dropout) is for
   training elsewhere, and pretraining_tp only cuts a product into parts that are added up. */
static const char *check_variant(const cJSON *json) {
    static const char *const experts[] = {"num_experts", "num_local_experts", "n_routed_experts",
                                          "moe_num_experts"};
    const cJSON *item = find(json, "hidden_act");
    if (item != NULL && !(cJSON_IsString(item) && (strcmp(item->valuestring, "silu") == 0 ||
                                                   strcmp(item->valuestring, "swish") == 0)))
        return "\"hidden_act\" must be \"silu\"";
    if (find(json, "quantization_config") != NULL)
        return "the weights are quantised (\"quantization_config\"), which is not run here; take "
               "the model's F32, F16 or BF16 files";
    for (size_t i = 0; i < sizeof experts / sizeof *experts; i++)
        if (find(json, experts[i]) != NULL)
            return family_sentence("a mixture of experts (\"%s\") is not run here", experts[i]);
    return NULL;
}

const char *decoder_check_window(const struct ModelConfig *config, const cJSON *json,
                                 bool everywhere) {
    const cJSON *types = find(json, "layer_types"), *type;
    int window, first;
    bool use = false;
    const char *problem = family_read_int(&window, json, "sliding_window", 1 << 24);
    const cJSON *layers = find(json, "max_window_layers");
    bool all = cJSON_IsNumber(layers) && layers->valuedouble == 0;
    if (problem == NULL && !all)
        problem = family_read_int(&first, json, "max_window_layers", 1 << 24);
    if (problem == NULL) problem = decoder_read_bool(&use, json, "use_sliding_window", false);
    if (problem != NULL) return problem;
    bool sliding = everywhere || (use && (all || first < config->L));
    if (types != NULL && !everywhere) sliding = false;
    cJSON_ArrayForEach(type, types) {
        if (cJSON_IsString(type) && strcmp(type->valuestring, "full_attention") == 0) continue;
        if (!cJSON_IsString(type) || strcmp(type->valuestring, "sliding_attention") != 0)
            return family_sentence("\"layer_types\" has %s, which is not run here",
                                   cJSON_IsString(type) ? quote(type->valuestring) : "no text");
        sliding = true;
    }
    if (sliding && window < config->max_T)
        return family_sentence("attention through a sliding window (of %d tokens, with a context "
                               "of %d) is not run here", window, config->max_T);
    return NULL;
}

/* The numbers of heads, and their size. */
static const char *read_heads(struct ModelConfig *config, const cJSON *json,
                              const struct DecoderDefaults *defaults) {
    const char *problem = family_read_int(&config->NH, json, "num_attention_heads", 0);
    if (problem != NULL) return problem;
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(json, "num_key_value_heads");
    int missing = cJSON_IsNull(item) || defaults->NKV == SAME_AS_HEADS ? config->NH : 0;
    problem = family_read_int(&config->NKV, json, "num_key_value_heads", missing);
    if (problem != NULL) return problem;
    bool own = find(json, "head_dim") != NULL || defaults->HS > 0;
    if (!own && config->C % config->NH != 0)
        return family_sentence("%d channels do not divide into %d heads, and there is no "
                               "\"head_dim\"", config->C, config->NH);
    missing = defaults->HS > 0 ? defaults->HS : config->C / config->NH;
    return family_read_int(&config->HS, json, "head_dim", missing);
}

const char *decoder_read_config(struct ModelConfig *config, const cJSON *json,
                                const struct DecoderDefaults *defaults) {
    const char *problem = check_variant(json);
    if (problem == NULL) problem = family_read_int(&config->L, json, "num_hidden_layers", 0);
    if (problem == NULL) problem = family_read_int(&config->C, json, "hidden_size", 0);
    if (problem == NULL) problem = family_read_int(&config->F, json, "intermediate_size", 0);
    if (problem == NULL) problem = family_read_int(&config->V_saved, json, "vocab_size", 0);
    if (problem == NULL)
        problem = family_read_int(&config->max_T, json, "max_position_embeddings", 0);
    if (problem == NULL) problem = read_heads(config, json, defaults);
    if (problem == NULL)
        problem = decoder_read_bool(&config->tied, json, "tie_word_embeddings", false);
    if (problem == NULL) problem = rotary_read(&config->rope, json, config->max_T);
    if (problem != NULL) return problem;
    const cJSON *epsilon = find(json, "rms_norm_eps");
    config->norm_epsilon = epsilon == NULL            ? 1e-6
                           : cJSON_IsNumber(epsilon) ? epsilon->valuedouble
                                                     : 0;
    if (!(config->norm_epsilon > 0 && (float)config->norm_epsilon > 0 && config->norm_epsilon < 1))
        return "\"rms_norm_eps\" must be a number in (0, 1)";
    config->V = config->V_saved;
    config->norm = NORM_RMS;
    config->activation = SWIGLU;
    return NULL;
}

void decoder_write_config(cJSON *json, const struct ModelConfig *config, const char *architecture,
                          int end_of_text) {
    cJSON *architectures = cJSON_AddArrayToObject(json, "architectures");
    cJSON_AddItemToArray(architectures, cJSON_CreateString(architecture));
    cJSON_AddStringToObject(json, "model_type", config->family);
    cJSON_AddStringToObject(json, "hidden_act", "silu");
    cJSON_AddNumberToObject(json, "vocab_size", config->V_saved);
    cJSON_AddNumberToObject(json, "max_position_embeddings", config->max_T);
    cJSON_AddNumberToObject(json, "hidden_size", config->C);
    cJSON_AddNumberToObject(json, "num_hidden_layers", config->L);
    cJSON_AddNumberToObject(json, "num_attention_heads", config->NH);
    cJSON_AddNumberToObject(json, "num_key_value_heads", config->NKV);
    cJSON_AddNumberToObject(json, "head_dim", config->HS);
    cJSON_AddNumberToObject(json, "intermediate_size", config->F);
    cJSON_AddNumberToObject(json, "rms_norm_eps", config->norm_epsilon);
    cJSON_AddNumberToObject(json, "initializer_range", 0.02);
    cJSON_AddNumberToObject(json, "attention_dropout", 0);
    rotary_write(json, &config->rope);
    cJSON_AddBoolToObject(json, "tie_word_embeddings", config->tied);
    cJSON_AddBoolToObject(json, "use_cache", true);
    cJSON_AddNumberToObject(json, "bos_token_id", end_of_text);
    cJSON_AddNumberToObject(json, "eos_token_id", end_of_text);
    cJSON_AddStringToObject(json, "torch_dtype", "float32");
}
