/* config.json, and behind its first zero byte a generation_config.json. What is accepted has sizes
   that the model's table can be built with, comes back from what is written of it, and is still
   itself in the copy that a checkpoint keeps. */
#include <math.h>
#include "fuzz.h"
#include "../../llmc/checkpoint_export.h"

/* Written by the family and read again it is the same. */
static void check_written(const struct ModelConfig *config) {
    struct ModelConfig again;
    cJSON *json = cJSON_CreateObject();
    model_config_write(json, config, 0);
    MUST(model_config_read(&again, json) == NULL);
    MUST(memcmp(config, &again, sizeof again) == 0);
    cJSON_Delete(json);
}

/* The copy in a checkpoint of another element type. */
static void check_copy(const char *text, size_t length, const struct ModelConfig *config) {
    enum SafetensorsType type = ST_BF16;
    struct Export export = {.types = &type, .retyped = true};
    struct Text copy = {0};
    struct ModelConfig again;
    const char *problem;
    text_list_add(&export.assets.names, "config.json", 11);
    text_list_add(&export.assets.contents, text, length);
    export_config(&copy, &export, config, 0);
    cJSON *json = json_parse(copy.bytes, copy.length, &problem);
    MUST(json != NULL && model_config_read(&again, json) == NULL);
    MUST(memcmp(config, &again, sizeof again) == 0);
    cJSON_Delete(json);
    text_free(&copy);
    assets_free(&export.assets);
}

static void check_config(const struct ModelConfig *config) {
    const struct Family *family = family_find(config->family);
    MUST(model_config_problem(config) == NULL);
    struct Model *model = model_build(config, NULL);
    MUST(model->num_tensors > 0 && model->num_real_parameters > 0);
    model_free(model);
    if (!family->inv_freq) return;
    float *frequency = malloc((size_t)config->HS / 2 * sizeof *frequency);
    family->inv_freq(frequency, config);
    for (int i = 0; i < config->HS / 2; i++) MUST(isfinite(frequency[i]) && frequency[i] >= 0);
    free(frequency);
}

/* The tokens that end a text, of both files. */
static void check_ends(const char *config, size_t length, const uint8_t *rest, size_t size) {
    static const char *directory;
    static int first = -1, second = -1;
    struct Ends ends = {0};
    fuzz_file(&first, config, length);
    fuzz_file(&second, rest, size);
    if (!directory) {
        directory = fuzz_directory();
        fuzz_link(directory, "config.json", first);
        fuzz_link(directory, "generation_config.json", second);
    }
    const char *problem = checkpoint_ends(directory, 100, &ends);
    if (problem) must_be_a_line(problem);
    MUST(ends.count >= 0 && ends.count <= MOST_ENDS);
    for (int i = 0; i < ends.count; i++) MUST(ends.id[i] >= 0 && ends.id[i] < 100);
}

static void fuzz_config(const uint8_t *data, size_t size) {
    struct ModelConfig config;
    const char *problem;
    size_t length;
    char *text = fuzz_part(&data, &size, &length);
    cJSON *json = json_parse(text, length, &problem);
    if (json) problem = model_config_read(&config, json);
    cJSON_Delete(json);
    if (problem) {
        must_be_a_line(problem);
    } else {
        check_config(&config);
        check_written(&config);
        check_copy(text, length, &config);
    }
    check_ends(text, length, data, size);
    free(text);
}

FUZZ_TARGET(fuzz_config)
