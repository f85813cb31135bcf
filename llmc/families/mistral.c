/* Mistral (2310.06825), as Hugging Face's MistralForCausalLM has it: Llama without biases. The
   first versions attend through a sliding window and are refused; later ones have none. */
#include "decoder.h"
#include <cjson/cJSON.h>
#include <string.h>

static bool named_size(struct ModelConfig *config, const char *name) {
    if (strcmp(name, "tiny-mistral") != 0) return false;
    decoder_tiny(config);
    return true;
}

static const char *read_config(struct ModelConfig *config, const cJSON *json) {
    static const struct DecoderDefaults defaults = {.NKV = 0};
    const char *problem = decoder_read_config(config, json, &defaults);
    if (problem != NULL) return problem;
    /* transformers takes a window of 4096 where the key is absent */
    if (cJSON_GetObjectItemCaseSensitive(json, "sliding_window") == NULL && config->max_T > 4096)
        return "without \"sliding_window\": null, attention through a sliding window is meant, "
               "which is not run here";
    return decoder_check_window(config, json, true);
}

static void write_config(cJSON *json, const struct ModelConfig *config, int end_of_text) {
    decoder_write_config(json, config, "MistralForCausalLM", end_of_text);
    cJSON_AddNullToObject(json, "sliding_window");
}

const struct Family family_mistral = {
    .name = "mistral",
    .read_config = read_config,
    .write_config = write_config,
    .problem = decoder_problem,
    .named_size = named_size,
    .size_names = "tiny-mistral",
    .rows = decoder_rows,
    .num_rows = DECODER_ROWS,
    .init_std = 0.02f,
    .inv_freq = rotary_frequencies,
    .prefix = "model.",
    .ignored_suffixes = decoder_ignored,
};
