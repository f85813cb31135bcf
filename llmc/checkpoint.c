#include "checkpoint.h"

#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "base/checksums.h"
#include "base/console.h"
#include "base/files.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint_steps.h"
#include "checkpoint_tensors.h"

#define PATH_SIZE 4096
#define MOST_JSON_BYTES ((size_t)16 << 20)

/* ---- the run's state ------------------------------------------------------------------------ */

#define COUNT(name, most) {FIELD(FIELD_INTEGER, struct Progress, name, #name), .high = most}
#define TEXT(name) {FIELD(FIELD_TEXT, struct Progress, name, #name)}
#define MANY 1e15   /* sums and products of a few such counters do not overflow */

static const struct Field progress_fields[] = {
    COUNT(step, 1e12), COUNT(warm_step, 1e12), COUNT(optimizer_step, MANY),
    COUNT(group_ordinal, MANY), COUNT(demonstration_ordinal, MANY), COUNT(update_ordinal, MANY),
    COUNT(num_tokens, MANY), COUNT(skipped_in_a_row, 1000), COUNT(phases_begun, 1000),
    COUNT(phase_begin, 1e12), TEXT(control),
    /* optional: checkpoints older than fp16 have neither */
    {FIELD(FIELD_REAL, struct Progress, loss_scale, "loss_scale"), 0x1p-30, 0x1p60,
     .optional = true},
    {FIELD(FIELD_INTEGER, struct Progress, loss_scale_updates, "loss_scale_updates"), 0, MANY,
     .optional = true},
    {FIELD(FIELD_INTEGER, struct Progress, ranks, "ranks"), 0, 1e6, .optional = true},
    COUNT(seed, FIELD_EXACT), COUNT(threads, 1e6), COUNT(micro_tokens, 1e9), TEXT(dtype),
    TEXT(backend), TEXT(blas), TEXT(task),
};
static const struct FieldTable progress_table = {
    progress_fields, sizeof progress_fields / sizeof *progress_fields};

static void state_save(const struct Progress *progress, const struct FieldSection *sections,
                       const char *path, struct Checksums *sums) {
    cJSON *json = cJSON_CreateObject();
    json_add_fields(json, &progress_table, progress);
    for (; sections && sections->table; sections++)
        json_add_fields(json, sections->table, sections->object);
    json_write(json, path, sums);
}

static void state_get(const cJSON *json, const char *path, const struct FieldTable *table,
                      void *object) {
    const struct Field *wrong = json_get_fields(json, table, object);
    if (wrong) die_input("%s: \"%s\" must be %s", path, wrong->name, field_wants(wrong));
}

/* json_read of a file that must be a regular one. */
static cJSON *read_json_file(const char *path, const char **problem) {
    *problem = file_problem(path);
    return *problem ? NULL : json_read(path, MOST_JSON_BYTES, problem);
}

bool checkpoint_has_state(const char *directory) {
    char path[PATH_SIZE];
    const char *problem;
    check_path(path, sizeof path, "%s/trainer_state.json", directory);
    if (!path_exists(path)) return false;
    cJSON *json = read_json_file(path, &problem);
    /* one that cannot be read may be ours, damaged: whoever loads it says so */
    bool ours = json == NULL || cJSON_GetObjectItemCaseSensitive(json, "log_history") == NULL;
    cJSON_Delete(json);
    return ours;
}

void checkpoint_load_state(const char *directory, struct Progress *progress,
                           const struct FieldSection *sections) {
    char path[PATH_SIZE];
    const char *problem;
    check_path(path, sizeof path, "%s/trainer_state.json", directory);
    checksums_verify(directory, "trainer_state.json");
    cJSON *json = read_json_file(path, &problem);
    if (json == NULL) die_input("%s: %s", path, problem);
    *progress = (struct Progress){.loss_scale = 1};
    state_get(json, path, &progress_table, progress);
    for (; sections && sections->table; sections++)
        state_get(json, path, sections->table, sections->object);
    cJSON_Delete(json);
}

/* ---- the model that a directory holds ------------------------------------------------------- */

const char *checkpoint_config(const char *directory, struct ModelConfig *config) {
    char path[PATH_SIZE];
    const char *problem;
    check_path(path, sizeof path, "%s/config.json", directory);
    checksums_verify(directory, NULL);
    cJSON *json = read_json_file(path, &problem);
    if (json != NULL) problem = model_config_read(config, json);
    cJSON_Delete(json);
    if (problem == NULL) tensors_refuse_unreadable(directory);
    if (problem == NULL && config->tied &&
        tensors_have_own_head(directory, family_find(config->family))) {
        say("model     %s: its head differs from the embedding: a head of its own, as in "
            "transformers", directory);
        config->tied = false;
    }
    return problem;
}

/* ---- a whole checkpoint --------------------------------------------------------------------- */

/* What other programs read beside the weights: config.json, and the source's files or else the
   tokenizer's. */
static void save_description(const char *directory, const struct Model *model,
                             const struct Tokenizer *tokenizer, const struct Export *export,
                             struct Checksums *sums) {
    struct Text config = {0};
    /* Where nothing says which token ends a text: the last word, as in most vocabularies. */
    int end_of_text = tokenizer ? tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT) : -1;
    if (end_of_text < 0) end_of_text = model->config.V - 1;
    export_config(&config, export, &model->config, end_of_text);
    assets_write_file(directory, "config.json", config.bytes, config.length, sums);
    text_free(&config);
    if (export && export->assets.names.count > 0)
        assets_write(&export->assets, directory, "config.json", sums);
    else if (tokenizer)
        tokenizer_save(tokenizer, directory, model->config.max_T, sums);
}

static void write_checkpoint(const char *run_directory, const struct Model *model,
                             const struct Weights *weights, const struct OptimizerState *optimizer,
                             const struct Tokenizer *tokenizer, const struct Progress *progress,
                             const struct FieldSection *sections, const struct Export *export,
                             int keep) {
    char writing[PATH_SIZE], path[PATH_SIZE], name[32];
    struct Checksums sums = {0};
    snprintf(name, sizeof name, "step_%06lld", (long long)progress->step);
    steps_begin(run_directory, name, writing, sizeof writing);
    weights_save(model, weights, export, writing, &sums);
    save_description(writing, model, tokenizer, export, &sums);
    if (optimizer) optimizer_save(model, weights, optimizer, export, writing, &sums);
    check_path(path, sizeof path, "%s/trainer_state.json", writing);
    state_save(progress, sections, path, &sums);
    checksums_save(&sums, writing);
    steps_finish(run_directory, name, writing, keep);
}

/* Weights, moments, masters in float32. */
double checkpoint_seconds(const struct Model *model) {
    const double bytes_per_second = 20e6;
    return (double)model->num_parameters * 4 * sizeof(float) / bytes_per_second;
}

void checkpoint_save(const char *run_directory, const struct Model *model,
                     const struct Weights *weights, const struct OptimizerState *optimizer,
                     const struct Tokenizer *tokenizer, const struct Progress *progress,
                     const struct FieldSection *sections, const struct Export *export, int keep,
                     const struct World *world) {
    world_patience(world, checkpoint_seconds(model));
    if (world_rank(world) == 0)
        write_checkpoint(run_directory, model, weights, optimizer, tokenizer, progress, sections,
                         export, keep);
    else if (optimizer)
        optimizer_attend(model, optimizer);
    world_any(world, false);   /* nobody goes on before it is written */
    world_patience(world, 0);
}
