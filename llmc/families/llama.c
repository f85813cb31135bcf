/* Llama 1 to 3 (Touvron et al. 2023, 2302.13971), as Hugging Face's LlamaForCausalLM has it; SmolLM
   and SmolLM2, Yi and many more are of this model_type. */
#include "decoder.h"
#include <cjson/cJSON.h>
#include <string.h>

static bool named_size(struct ModelConfig *config, const char *name) {
    if (strcmp(name, "tiny-llama") != 0) return false;
    decoder_tiny(config);
    return true;
}

static const char *read_config(struct ModelConfig *config, const cJSON *json) {
    static const struct DecoderDefaults defaults = {.NKV = SAME_AS_HEADS};
    const char *problem = decoder_read_config(config, json, &defaults);
    bool attention_bias, mlp_bias;
    if (problem == NULL)
        problem = decoder_read_bool(&attention_bias, json, "attention_bias", false);
    if (problem == NULL) problem = decoder_read_bool(&mlp_bias, json, "mlp_bias", false);
    if (problem == NULL) problem = decoder_check_window(config, json, false);
    if (problem != NULL) return problem;
    if (attention_bias) config->optional |= QKV_BIAS | PROJ_BIAS;
    if (mlp_bias) config->optional |= MLP_BIAS;
    return NULL;
}

static void write_config(cJSON *json, const struct ModelConfig *config, int end_of_text) {
    decoder_write_config(json, config, "LlamaForCausalLM", end_of_text);
    cJSON_AddBoolToObject(json, "attention_bias", (config->optional & QKV_BIAS) != 0);
    cJSON_AddBoolToObject(json, "mlp_bias", (config->optional & MLP_BIAS) != 0);
}

const struct Family family_llama = {
    .name = "llama",
    .read_config = read_config,
    .write_config = write_config,
    .problem = decoder_problem,
    .named_size = named_size,
    .size_names = "tiny-llama",
    .rows = decoder_rows,
    .num_rows = DECODER_ROWS,
    .init_std = 0.02f,
    .inv_freq = rotary_frequencies,
    .prefix = "model.",
    .ignored_suffixes = decoder_ignored,
};
