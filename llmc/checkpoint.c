#include "checkpoint.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "base/checksums.h"
#include "base/console.h"
#include "base/files.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint_steps.h"
#include "io/safetensors.h"

#define PATH_SIZE 4096
#define MOST_JSON_BYTES ((size_t)16 << 20)
/* Elements on the host at a time; a matrix that is transposed in the file comes whole. */
#define SLICE ((size_t)1 << 20)
#define BLOCK 32

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

/* ---- tensors to and from files -------------------------------------------------------------- */

/* The shape in a file, turned round for a transposed one; returns the number of dimensions. */
static int tensor_file_shape(const struct Tensor *tensor, bool transposed, int64_t shape[2]) {
    shape[0] = transposed ? tensor->shape[1] : tensor->rows_saved;
    shape[1] = transposed ? tensor->rows_saved : tensor->shape[1];
    return tensor->shape[1] ? 2 : 1;
}

/* out [columns,rows] = in [rows,columns] transposed, in blocks that fit a first-level cache. */
static void transpose(float *out, const float *in, size_t rows, size_t columns) {
    for (size_t r0 = 0; r0 < rows; r0 += BLOCK)
        for (size_t c0 = 0; c0 < columns; c0 += BLOCK)
            for (size_t r = r0; r < rows && r < r0 + BLOCK; r++)
                for (size_t c = c0; c < columns && c < c0 + BLOCK; c++)
                    out[c * rows + r] = in[r * columns + c];
}

/* How many of the elements that remain are handled at once. */
static size_t piece_size(size_t remaining) { return remaining < SLICE ? remaining : SLICE; }

/* Host floats for the largest piece of any tensor that is handled at once. */
static float *new_piece(const struct Model *model) {
    size_t most = SLICE;
    for (int i = 0; i < model->num_tensors; i++)
        if (model->tensors[i].transposed && model->tensors[i].count > most)
            most = model->tensors[i].count;
    return check_alloc(most, sizeof(float), "a piece of a checkpoint");
}

static void print_shape(char *out, size_t capacity, int num_dims, const int64_t *shape) {
    size_t length = 0;
    for (int i = 0; i < num_dims && length < capacity; i++)
        length += (size_t)snprintf(out + length, capacity - length, "%s%lld", i ? ", " : "",
                                   (long long)shape[i]);
    if (num_dims == 0) snprintf(out, capacity, "%s", "");
}

static bool is_float(const struct SafetensorsEntry *entry) {
    return entry->type == ST_F32 || entry->type == ST_F16 || entry->type == ST_BF16 ||
           entry->type == ST_F64;
}

/* The entry `prefix + tensor name` (or the short name), checked; die_input if it does not fit. */
static const struct SafetensorsEntry *find_entry(const struct Safetensors *file, const char *prefix,
                                                 const struct Tensor *tensor, bool transposed) {
    char name[128];
    snprintf(name, sizeof name, "%s%s", prefix, tensor->name);
    const struct SafetensorsEntry *entry = safetensors_find(file, name);
    if (entry == NULL) {
        snprintf(name, sizeof name, "%s%s", prefix, tensor->short_name);
        entry = safetensors_find(file, name);
    }
    int64_t shape[2];
    char expected[64], found[128];
    int num_dims = tensor_file_shape(tensor, transposed, shape);
    print_shape(expected, sizeof expected, num_dims, shape);
    if (entry == NULL)
        die_input("%s: tensor %s%s is missing (expected shape [%s])", file->path, prefix,
                  tensor->name, expected);
    print_shape(found, sizeof found, entry->num_dims, entry->shape);
    if (entry->num_dims != num_dims || memcmp(entry->shape, shape, (size_t)num_dims * 8) != 0)
        die_input("%s: tensor %s has shape [%s], expected [%s]", file->path, name, found, expected);
    if (!is_float(entry))
        die_input("%s: tensor %s has elements of a type that is not read, "
                  "expected F32, F16, BF16 or F64", file->path, name);
    return entry;
}

/* Is it a tensor that is not loaded: none of the family's weights, or the head of a tied model? */
static bool is_ignored(const struct Model *model, const char *name) {
    return family_ignores(model->family, name) ||
           (model->config.tied && strcmp(name, family_head_name(model->family)) == 0);
}

/* A tensor with no place in the model means that config.json and the file do not belong together:
   more layers, or another head. */
static void refuse_unknown(const struct Safetensors *file, const struct Model *model) {
    for (int e = 0; e < file->count; e++) {
        const char *name = file->entries[e].name;
        bool known = is_ignored(model, name);
        for (int i = 0; i < model->num_tensors && !known; i++)
            known = strcmp(model->tensors[i].short_name,
                           family_short_name(model->family, name)) == 0;
        if (!known)
            die_input("%s: tensor %s has no place in the model that config.json describes "
                      "(expected %d layers)", file->path, quote(name), model->config.L);
    }
}

/* A directory without model.safetensors that has the weights in a way which is not read. */
static void refuse_other_weights(const char *directory) {
    static const struct { const char *name, *advice; } others[] = {
        {"model.safetensors.index.json",
         "weights in several files are not read; save them as one: "
         "model.save_pretrained(..., max_shard_size=\"1TB\")"},
        {"pytorch_model.bin",
         "only safetensors are read; save it again: from_pretrained(...).save_pretrained(...)"},
        {"pytorch_model.bin.index.json",
         "only safetensors in one file are read; save it again: from_pretrained(...)"
         ".save_pretrained(..., max_shard_size=\"1TB\")"},
    };
    char path[PATH_SIZE];
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        check_path(path, sizeof path, "%s/%s", directory, others[i].name);
        if (path_exists(path))
            die_input("%s has no model.safetensors but %s: %s", directory, others[i].name,
                      others[i].advice);
    }
}

static void open_tensors(struct Safetensors *file, const char *directory, const char *name) {
    char path[PATH_SIZE];
    check_path(path, sizeof path, "%s/%s", directory, name);
    if (!path_exists(path)) refuse_other_weights(directory);
    checksums_verify(directory, name);
    const char *problem = safetensors_open(file, path);
    if (problem != NULL) die_input("%s: %s", path, problem);
}

/* Ends the program if the weights are there in a way which is not read: that is what is wrong with
   a directory, whatever else it lacks. Only the file's header is read here. */
static void refuse_unreadable_weights(const char *directory) {
    char path[PATH_SIZE];
    struct Safetensors file;
    check_path(path, sizeof path, "%s/model.safetensors", directory);
    if (!path_exists(path)) refuse_other_weights(directory);
    else if (safetensors_open(&file, path) == NULL) safetensors_close(&file);
    else open_tensors(&file, directory, "model.safetensors");   /* ends it, in the right words */
}

/* Elements [first, first + n), every one of them a number. */
static void read_finite(const struct Safetensors *file, const struct SafetensorsEntry *entry,
                        float *out, size_t first, size_t n) {
    safetensors_read(file, entry, out, first, n);
    for (size_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            die_input("%s: tensor %s is damaged: its element %zu is %g", file->path,
                      quote(entry->name), first + i, (double)out[i]);
}

void checkpoint_load_weights(const char *directory, const struct Model *model,
                             struct Weights *weights) {
    struct Safetensors file;
    open_tensors(&file, directory, "model.safetensors");
    /* Everything is checked before anything is written. */
    for (int i = 0; i < model->num_tensors; i++)
        find_entry(&file, "", &model->tensors[i], model->tensors[i].transposed);
    refuse_unknown(&file, model);

    float *piece = new_piece(model), *turned = new_piece(model);
    weights_clear(model, weights);
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        const struct SafetensorsEntry *entry = find_entry(&file, "", tensor, tensor->transposed);
        if (tensor->transposed) {
            read_finite(&file, entry, piece, 0, tensor->count);
            transpose(turned, piece, (size_t)tensor->shape[1], (size_t)tensor->shape[0]);
            weights_upload(model, weights, tensor->offset, turned, tensor->count);
            continue;
        }
        for (size_t begin = 0; begin < tensor->saved; begin += SLICE) {
            size_t part = piece_size(tensor->saved - begin);
            read_finite(&file, entry, piece, begin, part);
            weights_upload(model, weights, tensor->offset + begin, piece, part);
        }
    }
    free(piece);
    free(turned);
    safetensors_close(&file);
}

static void weights_save(const struct Model *model, const struct Weights *weights,
                         const char *path, struct Checksums *sums) {
    const struct Ops *ops = model->ops;
    struct SafetensorsWriter *writer = safetensors_create(path);
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        int64_t shape[2];
        int num_dims = tensor_file_shape(tensor, tensor->transposed, shape);
        safetensors_describe(writer, tensor->name, ST_F32, num_dims, shape);
    }
    float *piece = new_piece(model), *turned = new_piece(model);
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        const floatX *data = ops_at(ops, weights->data, tensor->offset);
        if (tensor->transposed) {
            elements_download(ops, piece, data, tensor->count);
            transpose(turned, piece, (size_t)tensor->shape[0], (size_t)tensor->shape[1]);
            safetensors_write(writer, turned, tensor->count * sizeof *turned);
            continue;
        }
        for (size_t begin = 0; begin < tensor->saved; begin += SLICE) {
            size_t part = piece_size(tensor->saved - begin);
            elements_download(ops, piece, ops_at(ops, data, begin), part);
            safetensors_write(writer, piece, part * sizeof *piece);
        }
    }
    free(piece);
    free(turned);
    safetensors_commit(writer, sums);
}

/* ---- the model that a directory holds ------------------------------------------------------- */

/* Do the elements of two tensors of one shape differ? */
static bool tensors_differ(const struct Safetensors *file, const struct SafetensorsEntry *a,
                           const struct SafetensorsEntry *b) {
    float *x = check_alloc(2 * SLICE, sizeof *x, "a piece of a checkpoint"), *y = x + SLICE;
    bool differ = false;
    for (size_t begin = 0; begin < a->count && !differ; begin += SLICE) {
        size_t part = piece_size(a->count - begin);
        safetensors_read(file, a, x, begin, part);
        safetensors_read(file, b, y, begin, part);
        differ = memcmp(x, y, part * sizeof *x) != 0;
    }
    free(x);
    return differ;
}

/* Does the file hold a head that is not the embedding? A file that cannot be read, or a head of
   another shape, is refused when the weights are loaded. */
static bool has_own_head(const char *directory, const struct Family *family) {
    char path[PATH_SIZE];
    const char *name = family->rows[0].name;   /* the embedding, in every family's table */
    struct Safetensors file;
    check_path(path, sizeof path, "%s/model.safetensors", directory);
    if (safetensors_open(&file, path) != NULL) return false;
    const struct SafetensorsEntry *head = safetensors_find(&file, family_head_name(family));
    const struct SafetensorsEntry *embedding = safetensors_find(&file, name);
    if (embedding == NULL) embedding = safetensors_find(&file, family_short_name(family, name));
    bool same_shape = head && embedding && head->num_dims == embedding->num_dims &&
                      memcmp(head->shape, embedding->shape, sizeof head->shape) == 0;
    bool own = head && embedding && is_float(head) && is_float(embedding) &&
               (!same_shape || tensors_differ(&file, head, embedding));
    safetensors_close(&file);
    return own;
}

const char *checkpoint_config(const char *directory, struct ModelConfig *config) {
    char path[PATH_SIZE];
    const char *problem;
    check_path(path, sizeof path, "%s/config.json", directory);
    checksums_verify(directory, NULL);
    cJSON *json = read_json_file(path, &problem);
    if (json != NULL) problem = model_config_read(config, json);
    cJSON_Delete(json);
    if (problem == NULL) refuse_unreadable_weights(directory);
    if (problem == NULL && config->tied && has_own_head(directory, family_find(config->family))) {
        say("model     %s: its head differs from the embedding: a head of its own, as in "
            "transformers", directory);
        config->tied = false;
    }
    return problem;
}

/* ---- the optimizer's file ------------------------------------------------------------------- */

/* The optimizer's file is read by this program only: tensors keep the kernels' layout there. */
enum { OPTIMIZER_BUFFERS = 3 };
#define SECOND_MOMENT "exp_avg_sq."
static const char *const optimizer_prefixes[OPTIMIZER_BUFFERS] = {"exp_avg.", SECOND_MOMENT,
                                                                  "master."};

static void optimizer_buffers(float *buffers[OPTIMIZER_BUFFERS], const struct OptimizerState *o) {
    buffers[0] = o->m, buffers[1] = o->v, buffers[2] = o->master;
}

static void optimizer_describe(struct SafetensorsWriter *writer, const struct Model *model,
                               const char *prefix) {
    for (int i = 0; i < model->num_tensors; i++) {
        char name[128];
        int64_t shape[2];
        int num_dims = tensor_file_shape(&model->tensors[i], false, shape);
        snprintf(name, sizeof name, "%s%s", prefix, model->tensors[i].name);
        safetensors_describe(writer, name, ST_F32, num_dims, shape);
    }
}

static void optimizer_save(const struct Model *model, const struct OptimizerState *optimizer,
                           const char *path, struct Checksums *sums) {
    float *buffers[OPTIMIZER_BUFFERS];
    struct SafetensorsWriter *writer = safetensors_create(path);
    optimizer_buffers(buffers, optimizer);
    for (int which = 0; which < OPTIMIZER_BUFFERS; which++)
        if (buffers[which]) optimizer_describe(writer, model, optimizer_prefixes[which]);
    float *piece = check_alloc(SLICE, sizeof *piece, "a piece of a checkpoint");
    for (int which = 0; which < OPTIMIZER_BUFFERS; which++)
        for (int i = 0; i < model->num_tensors && buffers[which]; i++) {
            const struct Tensor *tensor = &model->tensors[i];
            const float *data = buffers[which] + tensor->offset;
            for (size_t begin = 0; begin < tensor->saved; begin += SLICE) {
                size_t part = piece_size(tensor->saved - begin);
                model->ops->download(piece, data + begin, part * sizeof *piece);
                safetensors_write(writer, piece, part * sizeof *piece);
            }
        }
    free(piece);
    safetensors_commit(writer, sums);
}

/* A second moment is a mean of squares; the square root of one below zero would be a NaN. */
static void check_not_negative(const struct Safetensors *file, const struct SafetensorsEntry *entry,
                               const float *piece, size_t first, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (piece[i] < 0)
            die_input("%s: tensor %s is damaged: its element %zu is %g, and a second moment is "
                      "never below 0", file->path, quote(entry->name), first + i,
                      (double)piece[i]);
}

/* One buffer from its tensors in the file, zero in the padding. */
static void optimizer_load_buffer(const struct Safetensors *file, const struct Model *model,
                                  const char *prefix, float *buffer, float *piece) {
    model->ops->fill_zero(buffer, model->num_parameters * sizeof(float));
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        const struct SafetensorsEntry *entry = find_entry(file, prefix, tensor, false);
        for (size_t begin = 0; begin < tensor->saved; begin += SLICE) {
            size_t part = piece_size(tensor->saved - begin);
            read_finite(file, entry, piece, begin, part);
            if (strcmp(prefix, SECOND_MOMENT) == 0)
                check_not_negative(file, entry, piece, begin, part);
            model->ops->upload(buffer + tensor->offset + begin, piece, part * sizeof *piece);
        }
    }
}

void checkpoint_load_optimizer(const char *directory, const struct Model *model,
                               const struct OptimizerState *optimizer) {
    float *buffers[OPTIMIZER_BUFFERS];
    char first_master[128];
    struct Safetensors file;
    open_tensors(&file, directory, "optimizer.safetensors");
    optimizer_buffers(buffers, optimizer);
    snprintf(first_master, sizeof first_master, "master.%s", model->tensors[0].name);
    if (!safetensors_find(&file, first_master)) buffers[2] = NULL;
    for (int which = 0; which < OPTIMIZER_BUFFERS; which++) /* checked before anything is written */
        for (int i = 0; i < model->num_tensors && buffers[which]; i++)
            find_entry(&file, optimizer_prefixes[which], &model->tensors[i], false);
    float *piece = check_alloc(SLICE, sizeof *piece, "a piece of a checkpoint");
    for (int which = 0; which < OPTIMIZER_BUFFERS; which++)
        if (buffers[which])
            optimizer_load_buffer(&file, model, optimizer_prefixes[which], buffers[which], piece);
    free(piece);
    safetensors_close(&file);
}

/* ---- a whole checkpoint --------------------------------------------------------------------- */

void checkpoint_save(const char *run_directory, const struct Model *model,
                     const struct Weights *weights, const struct OptimizerState *optimizer,
                     const struct Tokenizer *tokenizer, const struct Progress *progress,
                     const struct FieldSection *sections, int keep) {
    char writing[PATH_SIZE], path[PATH_SIZE], name[32];
    snprintf(name, sizeof name, "step_%06lld", (long long)progress->step);
    steps_begin(run_directory, name, writing, sizeof writing);

    struct Checksums sums = {0};
    check_path(path, sizeof path, "%s/model.safetensors", writing);
    weights_save(model, weights, path, &sums);
    cJSON *json = cJSON_CreateObject();
    /* Where nothing says which token ends a text: the last word, as in most vocabularies. */
    int end_of_text = tokenizer ? tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT) : -1;
    model_config_write(json, &model->config, end_of_text < 0 ? model->config.V - 1 : end_of_text);
    check_path(path, sizeof path, "%s/config.json", writing);
    json_write(json, path, &sums);
    if (tokenizer != NULL) tokenizer_save(tokenizer, writing, model->config.max_T, &sums);
    if (optimizer != NULL) {
        check_path(path, sizeof path, "%s/optimizer.safetensors", writing);
        optimizer_save(model, optimizer, path, &sums);
    }
    check_path(path, sizeof path, "%s/trainer_state.json", writing);
    state_save(progress, sections, path, &sums);

    checksums_save(&sums, writing);
    steps_finish(run_directory, name, writing, keep);
}
