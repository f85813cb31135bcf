/* Qwen2 and Qwen2.5 (2407.10671), as Hugging Face's Qwen2ForCausalLM has it: Llama with biases of
   queries, keys and values. */
#include "decoder.h"
#include <cjson/cJSON.h>
#include <string.h>

static bool named_size(struct ModelConfig *config, const char *name) {
    if (strcmp(name, "tiny-qwen2") != 0) return false;
    decoder_tiny(config);
    config->optional = QKV_BIAS;
    return true;
}

static const char *read_config(struct ModelConfig *config, const cJSON *json) {
    static const struct DecoderDefaults defaults = {.NKV = 0};
    const char *problem = decoder_read_config(config, json, &defaults);
    if (problem != NULL) return problem;
    config->optional |= QKV_BIAS;
    return decoder_check_window(config, json, false);
}

static void write_config(cJSON *json, const struct ModelConfig *config, int end_of_text) {
    decoder_write_config(json, config, "Qwen2ForCausalLM", end_of_text);
    cJSON_AddBoolToObject(json, "use_sliding_window", false);
}

const struct Family family_qwen2 = {
    .name = "qwen2",
    .read_config = read_config,
    .write_config = write_config,
    .problem = decoder_problem,
    .named_size = named_size,
    .size_names = "tiny-qwen2",
    .rows = decoder_rows,
    .num_rows = DECODER_ROWS,
    .init_std = 0.02f,
    .inv_freq = rotary_frequencies,
    .prefix = "model.",
    .ignored_suffixes = decoder_ignored,
};
