#include "checkpoint_export.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "base/files.h"
#include "base/json.h"
#include "checkpoint_tensors.h"

#define PATH_SIZE 4096
#define MOST_JSON_BYTES ((size_t)16 << 20)

/* ---- element types --------------------------------------------------------------------------- */

/* The words of --save-dtype, which are the backends' too, and those of config.json. */
static const struct {
    const char *word, *torch;
    enum SafetensorsType type;
} dtypes[] = {
    {"fp32", "\"float32\"", ST_F32}, {"bf16", "\"bfloat16\"", ST_BF16},
    {"fp16", "\"float16\"", ST_F16},
};
enum { NUM_DTYPES = sizeof dtypes / sizeof *dtypes };

static enum SafetensorsType type_named(const char *word) {
    int i = 0;
    while (i < NUM_DTYPES && strcmp(dtypes[i].word, word) != 0) i++;
    return i < NUM_DTYPES ? dtypes[i].type : ST_OTHER;
}

static const char *torch_name(enum SafetensorsType type) {
    int i = 0;
    while (dtypes[i].type != type) i++;
    return dtypes[i].torch;
}

enum SafetensorsType export_type(const struct Export *export, int tensor) {
    return export && export->types ? export->types[tensor] : ST_F32;
}

bool export_is_exact(const struct Export *export, const struct Model *model) {
    enum SafetensorsType computed = type_named(model->ops->dtype);
    for (int i = 0; i < model->num_tensors; i++) {
        enum SafetensorsType type = export_type(export, i);
        if (type != ST_F32 && type != computed) return false;
    }
    return true;
}

void export_open(struct Export *export, const char *directory, const struct Model *model,
                 const char *dtype, size_t shard_bytes) {
    enum SafetensorsType wanted = type_named(dtype);
    size_t n = (size_t)model->num_tensors;
    *export = (struct Export){.shard_bytes = shard_bytes};
    export->types = check_alloc(n, sizeof *export->types, "the types of tensors");
    for (size_t i = 0; i < n; i++) export->types[i] = ST_F32;
    if (directory[0]) {
        assets_read(&export->assets, directory);
        tensors_types(directory, model, export->types);
    }
    for (size_t i = 0; i < n; i++) {
        enum SafetensorsType type = wanted != ST_OTHER              ? wanted
                                    : export->types[i] == ST_F64 ? ST_F32
                                                                    : export->types[i];
        if (type != export->types[i]) export->retyped = true;
        export->types[i] = type;
    }
}

void export_close(struct Export *export) {
    assets_free(&export->assets);
    free(export->types);
    *export = (struct Export){.types = NULL};
}

size_t export_shard_bytes(const char *text) {
    char *end;
    double number = strtod(text, &end);
    double unit = strcmp(end, "KB") == 0   ? 1e3
                  : strcmp(end, "MB") == 0 ? 1e6
                  : strcmp(end, "GB") == 0 ? 1e9
                                           : 0;
    double bytes = number * unit;
    return bytes >= 1 && bytes <= 1e15 ? (size_t)bytes : 0;
}

/* ---- config.json ----------------------------------------------------------------------------- */

/* The family's own. */
static void fresh_config(struct Text *out, const struct ModelConfig *config, int end_of_text) {
    cJSON *json = cJSON_CreateObject();
    model_config_write(json, config, end_of_text);
    char *text = cJSON_Print(json);
    if (text == NULL) die_machine("out of memory: config.json");
    text_format(out, "%s\n", text);
    cJSON_free(text);
    cJSON_Delete(json);
}

static void set_key(struct Text *text, const char *key, const char *value) {
    struct Text changed = {0};
    json_set(&changed, text->bytes, key, value);
    text_free(text);
    *text = changed;
}

/* The type under the key that the file has: `dtype` since transformers 5, `torch_dtype` before,
   which every version reads. */
static void set_dtype(struct Text *text, const cJSON *json, enum SafetensorsType type) {
    bool is_new = cJSON_GetObjectItemCaseSensitive(json, "dtype") != NULL;
    bool is_old = cJSON_GetObjectItemCaseSensitive(json, "torch_dtype") != NULL;
    if (is_new) set_key(text, "dtype", torch_name(type));
    if (is_old || !is_new) set_key(text, "torch_dtype", torch_name(type));
}

void export_config(struct Text *out, const struct Export *export, const struct ModelConfig *config,
                   int end_of_text) {
    const char *source = export ? assets_find(&export->assets, "config.json") : NULL;
    struct Text text = {0};
    struct ModelConfig read;
    if (source) text_append(&text, source, strlen(source));
    else fresh_config(&text, config, end_of_text);
    cJSON *json = cJSON_Parse(text.bytes);
    if (export && export->retyped) set_dtype(&text, json, export_type(export, 0));
    if (json && model_config_read(&read, json) == NULL && read.tied != config->tied)
        set_key(&text, "tie_word_embeddings", config->tied ? "true" : "false");
    cJSON_Delete(json);
    text_append(out, text.bytes, text.length);
    text_free(&text);
}

/* ---- the tokens that end a text -------------------------------------------------------------- */

/* Ids outside the vocabulary are never drawn (a small model may still name its family's). */
static const char *add_end(struct Ends *ends, const char *name, const cJSON *item, int V) {
    if (!cJSON_IsNumber(item))
        return family_sentence("%s: \"eos_token_id\" must be a number or a list of numbers", name);
    double id = item->valuedouble;
    if (!(id >= 0 && id < V) || ends_add(ends, (int)id)) return NULL;
    return family_sentence("%s: \"eos_token_id\": more than %d tokens end a text", name, MOST_ENDS);
}

const char *checkpoint_ends(const char *directory, int V, struct Ends *ends) {
    static const char *const names[] = {"config.json", "generation_config.json"};
    const char *problem = NULL;
    for (int i = 0; i < 2 && problem == NULL; i++) {
        char path[PATH_SIZE];
        check_path(path, sizeof path, "%s/%s", directory, names[i]);
        if (!path_exists(path)) continue;
        problem = file_problem(path);
        cJSON *json = problem ? NULL : json_read(path, MOST_JSON_BYTES, &problem);
        if (problem) return family_sentence("%s: %s", names[i], problem);
        const cJSON *ids = cJSON_GetObjectItemCaseSensitive(json, "eos_token_id");
        if (cJSON_IsArray(ids))
            for (ids = ids->child; ids && problem == NULL; ids = ids->next)
                problem = add_end(ends, names[i], ids, V);
        else if (ids && !cJSON_IsNull(ids))
            problem = add_end(ends, names[i], ids, V);
        cJSON_Delete(json);
    }
    return problem;
}

const char *checkpoint_end_of_text(struct Tokenizer *tokenizer, const char *directory) {
    struct Ends ends = {.count = 0};
    if (tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT) >= 0) return NULL;
    const char *problem = checkpoint_ends(directory, tokenizer_vocab_size(tokenizer), &ends);
    if (problem) return problem;
    if (ends.count == 0)
        return "no token ends a text: name one as eos_token in tokenizer_config.json, or as "
               "eos_token_id in config.json or generation_config.json";
    tokenizer_set_role(tokenizer, TOKENIZER_ENDS_TEXT, ends.id[0]);
    return NULL;
}
