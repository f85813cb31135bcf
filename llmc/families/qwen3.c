/* Qwen3 (2505.09388), as Hugging Face's Qwen3ForCausalLM has it: Llama with an RMS norm of each
   query and key head, whose size is a number of its own. */
#include "decoder.h"
#include <cjson/cJSON.h>
#include <string.h>

static bool named_size(struct ModelConfig *config, const char *name) {
    if (strcmp(name, "tiny-qwen3") != 0) return false;
    decoder_tiny(config);
    config->optional = QK_NORM;
    config->HS = 24;
    return true;
}

static const char *read_config(struct ModelConfig *config, const cJSON *json) {
    static const struct DecoderDefaults defaults = {.NKV = 0, .HS = 128};
    const char *problem = decoder_read_config(config, json, &defaults);
    bool attention_bias;
    if (problem == NULL)
        problem = decoder_read_bool(&attention_bias, json, "attention_bias", false);
    if (problem != NULL) return problem;
    config->optional |= QK_NORM | (attention_bias ? QKV_BIAS | PROJ_BIAS : 0);
    return decoder_check_window(config, json, false);
}

static void write_config(cJSON *json, const struct ModelConfig *config, int end_of_text) {
    decoder_write_config(json, config, "Qwen3ForCausalLM", end_of_text);
    cJSON_AddBoolToObject(json, "attention_bias", (config->optional & QKV_BIAS) != 0);
    cJSON_AddBoolToObject(json, "use_sliding_window", false);
}

const struct Family family_qwen3 = {
    .name = "qwen3",
    .read_config = read_config,
    .write_config = write_config,
    .problem = decoder_problem,
    .named_size = named_size,
    .size_names = "tiny-qwen3",
    .rows = decoder_rows,
    .num_rows = DECODER_ROWS,
    .init_std = 0.02f,
    .inv_freq = rotary_frequencies,
    .prefix = "model.",
    .ignored_suffixes = decoder_ignored,
};
