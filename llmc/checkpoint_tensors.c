#include "checkpoint_tensors.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "base/check.h"
#include "base/files.h"
#include "base/text.h"
#include "checkpoint.h"
#include "io/shards.h"

#define PATH_SIZE 4096
/* Elements on the host at a time; a matrix that is transposed in the file comes whole. */
#define SLICE ((size_t)1 << 20)
#define BLOCK 32

/* ---- pieces ---------------------------------------------------------------------------------- */

/* The shape in a file, turned round for a transposed one; returns the number of dimensions. */
static int tensor_file_shape(const struct Tensor *tensor, bool transposed, int64_t shape[2]) {
    shape[0] = transposed ? tensor->shape[1] : tensor->rows_saved;
    shape[1] = transposed ? tensor->rows_saved : tensor->shape[1];
    return tensor->shape[1] ? 2 : 1;
}

/* The smaller of two sizes. */
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* One block of a transposition, through a copy of it: rows of a matrix are often a multiple of 4 KB
   apart, and then the block's lines would drive each other out of the first-level cache. */
static void transpose_block(float *out, const float *in, size_t rows, size_t columns, size_t r0,
                            size_t c0) {
    float tile[BLOCK][BLOCK + 1];
    size_t height = smaller(BLOCK, rows - r0), width = smaller(BLOCK, columns - c0);
    for (size_t r = 0; r < height; r++)
        for (size_t c = 0; c < width; c++) tile[r][c] = in[(r0 + r) * columns + c0 + c];
    for (size_t c = 0; c < width; c++)
        for (size_t r = 0; r < height; r++) out[(c0 + c) * rows + r0 + r] = tile[r][c];
}

/* out [columns,rows] = in [rows,columns] transposed. */
static void transpose(float *out, const float *in, size_t rows, size_t columns) {
    #pragma omp parallel for schedule(static) if (rows * columns > SLICE / 16)
    for (size_t c0 = 0; c0 < columns; c0 += BLOCK)
        for (size_t r0 = 0; r0 < rows; r0 += BLOCK)
            transpose_block(out, in, rows, columns, r0, c0);
}

/* How many of the elements that remain are handled at once. */
static size_t piece_size(size_t remaining) { return smaller(remaining, SLICE); }

/* Host floats for the largest piece of any tensor that is handled at once. */
static float *new_piece(const struct Model *model) {
    size_t most = SLICE;
    for (int i = 0; i < model->num_tensors; i++)
        if (model->tensors[i].transposed && model->tensors[i].count > most)
            most = model->tensors[i].count;
    return check_alloc(most, sizeof(float), "a piece of a checkpoint");
}

/* ---- a directory's tensors ------------------------------------------------------------------- */

/* Opens DIRECTORY/NAME.safetensors or its shards; die_input. */
static void open_tensors(struct Shards *shards, const char *directory, const char *name,
                         bool verify) {
    const char *problem = shards_open(shards, directory, name, verify);
    if (problem) die_input("%s", problem);
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

/* A tensor in its file. */
struct Found {
    const struct Safetensors *file;
    const struct SafetensorsEntry *entry;
};

/* `prefix + tensor name`, or the short name, checked; die_input if it does not fit. */
static struct Found find_tensor(const struct Shards *shards, const char *prefix,
                                const struct Tensor *tensor, bool transposed) {
    char name[128], expected[64], shape_found[128];
    struct Found found;
    snprintf(name, sizeof name, "%s%s", prefix, tensor->name);
    found.entry = shards_find(shards, name, &found.file);
    if (found.entry == NULL) {
        snprintf(name, sizeof name, "%s%s", prefix, tensor->short_name);
        found.entry = shards_find(shards, name, &found.file);
    }
    int64_t shape[2];
    int num_dims = tensor_file_shape(tensor, transposed, shape);
    const struct SafetensorsEntry *entry = found.entry;
    print_shape(expected, sizeof expected, num_dims, shape);
    if (entry == NULL)
        die_input("%s: tensor %s%s is missing (expected shape [%s])", shards->path, prefix,
                  tensor->name, expected);
    print_shape(shape_found, sizeof shape_found, entry->num_dims, entry->shape);
    if (entry->num_dims != num_dims || memcmp(entry->shape, shape, (size_t)num_dims * 8) != 0)
        die_input("%s: tensor %s has shape [%s], expected [%s]", found.file->path, name,
                  shape_found, expected);
    if (!is_float(entry))
        die_input("%s: tensor %s has elements of a type that is not read, "
                  "expected F32, F16, BF16 or F64", found.file->path, name);
    return found;
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

/* Opens a directory's weights, and checks that each tensor is there and fits, and no other is. */
static void open_weights(struct Shards *shards, const char *directory, const struct Model *model,
                         bool verify) {
    open_tensors(shards, directory, "model", verify);
    for (int i = 0; i < model->num_tensors; i++)
        find_tensor(shards, "", &model->tensors[i], model->tensors[i].transposed);
    for (int f = 0; f < shards->count; f++) refuse_unknown(&shards->files[f], model);
}

void tensors_types(const char *directory, const struct Model *model, enum SafetensorsType *types) {
    struct Shards shards;
    open_weights(&shards, directory, model, false);
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        types[i] = find_tensor(&shards, "", tensor, tensor->transposed).entry->type;
    }
    shards_close(&shards);
}

void tensors_refuse_unreadable(const char *directory) {
    struct Shards shards;
    bool there = shards_exist(directory, "model");
    const char *problem = there ? shards_open(&shards, directory, "model", false)
                                : shards_other_weights(directory);
    if (problem) die_input("%s", problem);
    if (there) shards_close(&shards);
}

/* Do the elements of two tensors of one shape differ? */
static bool tensors_differ(const struct Found *a, const struct Found *b) {
    float *x = check_alloc(2 * SLICE, sizeof *x, "a piece of a checkpoint"), *y = x + SLICE;
    bool differ = false;
    for (size_t begin = 0; begin < a->entry->count && !differ; begin += SLICE) {
        size_t part = piece_size(a->entry->count - begin);
        safetensors_read(a->file, a->entry, x, begin, part);
        safetensors_read(b->file, b->entry, y, begin, part);
        differ = memcmp(x, y, part * sizeof *x) != 0;
    }
    free(x);
    return differ;
}

/* A file that cannot be read, or a head of another shape, is refused when weights are loaded. */
bool tensors_have_own_head(const char *directory, const struct Family *family) {
    const char *name = family->rows[0].name;   /* the embedding, in every family's table */
    struct Shards shards;
    struct Found head, embedding;
    if (shards_open(&shards, directory, "model", false) != NULL) return false;
    head.entry = shards_find(&shards, family_head_name(family), &head.file);
    embedding.entry = shards_find(&shards, name, &embedding.file);
    if (embedding.entry == NULL)
        embedding.entry = shards_find(&shards, family_short_name(family, name), &embedding.file);
    const struct SafetensorsEntry *h = head.entry, *e = embedding.entry;
    bool same_shape = h && e && h->num_dims == e->num_dims &&
                      memcmp(h->shape, e->shape, sizeof h->shape) == 0;
    bool own = h && e && is_float(h) && is_float(e) &&
               (!same_shape || tensors_differ(&head, &embedding));
    shards_close(&shards);
    return own;
}

/* ---- weights --------------------------------------------------------------------------------- */

/* Elements [first, first + n), every one of them a number. */
static void read_finite(const struct Found *found, float *out, size_t first, size_t n) {
    size_t finite = safetensors_read(found->file, found->entry, out, first, n);
    if (finite < n)
        die_input("%s: tensor %s is damaged: its element %zu is %g", found->file->path,
                  quote(found->entry->name), first + finite, (double)out[finite]);
}

/* Sets to 0 what no file has: padding rows and the gaps behind tensors. (All of the masters, where
   there are any: what of those gaps is in a share is not worth finding.) */
static void clear_between(const struct Model *model, struct Weights *weights) {
    if (weights->master)
        model->ops->fill_zero(weights->master, share_of(&weights->share, model->num_parameters) *
                                                   sizeof(float));
    for (int i = 0; i < model->num_tensors; i++) {
        size_t begin = model->tensors[i].offset + model->tensors[i].saved;
        size_t end = i + 1 < model->num_tensors ? model->tensors[i + 1].offset
                                                : model->num_parameters;
        if (begin == end) continue;
        model->ops->fill_zero(ops_at(model->ops, weights->data, begin),
                              (end - begin) * model->ops->element_size);
    }
}

/* Where elements may be read to without a copy: the CPU's are floats in this process' memory. NULL:
   they go through weights_upload. */
static float *place_of_floats(const struct Model *model, struct Weights *weights, size_t offset) {
    bool in_host_memory = strcmp(model->ops->name, "cpu") == 0 && weights->master == NULL;
    return in_host_memory ? (float *)ops_at(model->ops, weights->data, offset) : NULL;
}

/* piece, turned: as new_piece makes them. */
static void load_tensor(const struct Found *found, const struct Model *model,
                        struct Weights *weights, const struct Tensor *tensor, float *piece,
                        float *turned) {
    float *place = place_of_floats(model, weights, tensor->offset);
    if (tensor->transposed) {
        float *out = place ? place : turned;
        read_finite(found, piece, 0, tensor->count);
        transpose(out, piece, (size_t)tensor->shape[1], (size_t)tensor->shape[0]);
        if (!place) weights_upload(model, weights, tensor->offset, out, tensor->count);
        return;
    }
    if (place) {
        read_finite(found, place, 0, tensor->saved);
        return;
    }
    for (size_t begin = 0; begin < tensor->saved; begin += SLICE) {
        size_t part = piece_size(tensor->saved - begin);
        read_finite(found, piece, begin, part);
        weights_upload(model, weights, tensor->offset + begin, piece, part);
    }
}

void checkpoint_load_weights(const char *directory, const struct Model *model,
                             struct Weights *weights) {
    struct Shards shards;
    open_weights(&shards, directory, model, true);   /* checked before anything is written */
    float *piece = new_piece(model), *turned = new_piece(model);
    clear_between(model, weights);
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        struct Found found = find_tensor(&shards, "", tensor, tensor->transposed);
        load_tensor(&found, model, weights, tensor, piece, turned);
    }
    free(piece);
    free(turned);
    shards_close(&shards);
}

/* One tensor's elements, as the file has them. */
static void weights_save_tensor(const struct Model *model, const struct Weights *weights,
                                struct ShardsWriter *writer, const struct Tensor *tensor,
                                float *piece, float *turned) {
    const struct Ops *ops = model->ops;
    const floatX *data = ops_at(ops, weights->data, tensor->offset);
    if (tensor->transposed) {
        elements_download(ops, piece, data, tensor->count);
        transpose(turned, piece, (size_t)tensor->shape[0], (size_t)tensor->shape[1]);
        shards_write(writer, turned, tensor->count);
        return;
    }
    for (size_t begin = 0; begin < tensor->saved; begin += SLICE) {
        size_t part = piece_size(tensor->saved - begin);
        elements_download(ops, piece, ops_at(ops, data, begin), part);
        shards_write(writer, piece, part);
    }
}

void weights_save(const struct Model *model, const struct Weights *weights,
                  const struct Export *export, const char *directory, struct Checksums *sums) {
    size_t most = export && export->shard_bytes ? export->shard_bytes : SIZE_MAX;
    struct ShardsWriter *writer = shards_create(directory, "model", most, sums);
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        int64_t shape[2];
        int num_dims = tensor_file_shape(tensor, tensor->transposed, shape);
        shards_describe(writer, tensor->name, export_type(export, i), num_dims, shape);
    }
    float *piece = new_piece(model), *turned = new_piece(model);
    for (int i; (i = shards_next(writer)) >= 0;)
        weights_save_tensor(model, weights, writer, &model->tensors[i], piece, turned);
    free(piece);
    free(turned);
    size_t beyond = shards_commit(writer);
    if (beyond)
        warn("%s: %zu weights were beyond the largest number of the type they are saved in, and "
             "became that; --save-dtype fp32 keeps them", directory, beyond);
}

/* ---- the optimizer's file -------------------------------------------------------------------- */

/* The optimizer's file is read by this program only: tensors keep the kernels' layout there. */
enum { PARTS = 4, MASTER = 2, ELEMENTS = 3 };
#define SECOND_MOMENT "exp_avg_sq."
static const char *const prefixes[PARTS] = {"exp_avg.", SECOND_MOMENT, "master.", "weight."};

/* Some floats, of the optimizer's share, or all [num_parameters] of the backend's elements; NULL
   both: it is not there. */
struct Part {
    float *floats;
    floatX *elements;
};

static bool is_fp32(const struct Model *model) { return strcmp(model->ops->dtype, "fp32") == 0; }

/* What is saved. Float32 weights are their own masters, saved where the file of the weights has
   them rounded; 16-bit ones that it cannot hold are saved beside their masters. */
static void parts_to_save(struct Part parts[PARTS], const struct Model *model,
                          const struct Weights *weights, const struct OptimizerState *optimizer,
                          bool exact) {
    memset(parts, 0, PARTS * sizeof *parts);
    parts[0].floats = optimizer->m;
    parts[1].floats = optimizer->v;
    parts[MASTER].floats = optimizer->master;
    if (exact) return;
    if (is_fp32(model)) parts[MASTER].elements = weights->data;
    else parts[ELEMENTS].elements = weights->data;
}

static bool is_there(const struct Part *part) { return part->floats || part->elements; }

static void describe_part(struct ShardsWriter *writer, const struct Model *model,
                          const char *prefix) {
    for (int i = 0; i < model->num_tensors; i++) {
        char name[128];
        int64_t shape[2];
        int num_dims = tensor_file_shape(&model->tensors[i], false, shape);
        snprintf(name, sizeof name, "%s%s", prefix, model->tensors[i].name);
        shards_describe(writer, name, ST_F32, num_dims, shape);
    }
}

/* All ranks' shares of a part; what is not shared is whole already. */
static void gather_part(const struct Model *model, struct Part *part,
                        const struct OptimizerState *optimizer) {
    const struct Share *share = &optimizer->share;
    if (share->ranks <= 1 || !part->floats) return;
    for (int b = 0; b < model->num_buckets; b++) {
        const struct Bucket *bucket = &model->buckets[b];
        size_t each = share_of(share, bucket->end - bucket->begin);
        if (each == 0) continue;
        model->ops->all_gather(optimizer->whole + bucket->begin,
                               part->floats + share_of(share, bucket->begin),
                               each * sizeof(float), -1, -1);
    }
    part->floats = optimizer->whole;
}

/* In the order in which optimizer_save needs the parts. */
void optimizer_attend(const struct Model *model, const struct OptimizerState *optimizer) {
    struct Part parts[PARTS];
    const struct Weights none = {.data = NULL};
    parts_to_save(parts, model, &none, optimizer, true);
    for (int p = 0; p < PARTS; p++) gather_part(model, &parts[p], optimizer);
}

static void save_part(struct ShardsWriter *writer, const struct Model *model,
                      const struct Part *part, const struct Tensor *tensor, float *piece) {
    for (size_t begin = 0; begin < tensor->saved; begin += SLICE) {
        size_t n = piece_size(tensor->saved - begin), at = tensor->offset + begin;
        if (part->floats) model->ops->download(piece, part->floats + at, n * sizeof *piece);
        else elements_download(model->ops, piece, ops_at(model->ops, part->elements, at), n);
        shards_write(writer, piece, n);
    }
}

void optimizer_save(const struct Model *model, const struct Weights *weights,
                    const struct OptimizerState *optimizer, const struct Export *export,
                    const char *directory, struct Checksums *sums) {
    struct Part parts[PARTS];
    int which[PARTS], n = model->num_tensors, count = 0, gathered = -1;
    struct ShardsWriter *writer = shards_create(directory, "optimizer", SIZE_MAX, sums);
    parts_to_save(parts, model, weights, optimizer, export_is_exact(export, model));
    for (int p = 0; p < PARTS; p++) {
        if (!is_there(&parts[p])) continue;
        describe_part(writer, model, prefixes[p]);
        which[count++] = p;
    }
    float *piece = check_alloc(SLICE, sizeof *piece, "a piece of a checkpoint");
    for (int i; (i = shards_next(writer)) >= 0;) {
        assert(i / n >= gathered);   /* one part after another, as the other ranks give them */
        while (gathered < i / n) gather_part(model, &parts[which[++gathered]], optimizer);
        save_part(writer, model, &parts[which[i / n]], &model->tensors[i % n], piece);
    }
    free(piece);
    shards_commit(writer);
}

/* A second moment is a mean of squares; the square root of one below zero would be a NaN. */
static void check_not_negative(const struct Found *found, const float *piece, size_t first,
                               size_t n) {
    for (size_t i = 0; i < n; i++)
        if (piece[i] < 0)
            die_input("%s: tensor %s is damaged: its element %zu is %g, and a second moment is "
                      "never below 0", found->file->path, quote(found->entry->name), first + i,
                      (double)piece[i]);
}

/* Some elements [n] of part p, from number `at` of the flat buffers on. Weights as masters go where
   weights_upload puts them. */
static void load_piece(const struct Model *model, const struct Part *part,
                       const struct Share *share, struct Weights *weights, const float *piece,
                       size_t at, size_t n) {
    const struct Ops *ops = model->ops;
    if (part->floats) share_upload(model, part->floats, share, at, piece, n);
    else if (weights) weights_upload(model, weights, at, piece, n);
    else elements_upload(ops, ops_at(ops, part->elements, at), piece, n);
}

/* Part p from its tensors in the file. */
static void load_part(const struct Shards *shards, const struct Model *model, int p,
                      const struct Part *part, const struct Share *share, struct Weights *weights,
                      float *piece) {
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *tensor = &model->tensors[i];
        struct Found found = find_tensor(shards, prefixes[p], tensor, false);
        for (size_t begin = 0; begin < tensor->saved; begin += SLICE) {
            size_t n = piece_size(tensor->saved - begin);
            read_finite(&found, piece, begin, n);
            if (strcmp(prefixes[p], SECOND_MOMENT) == 0)
                check_not_negative(&found, piece, begin, n);
            load_piece(model, part, share, weights, piece, tensor->offset + begin, n);
        }
    }
}

/* What is loaded of a run that computed in `dtype`: see checkpoint.h. */
static void parts_to_load(struct Part parts[PARTS], const struct Model *model,
                          const struct Weights *weights, const struct OptimizerState *optimizer,
                          const char *dtype) {
    memset(parts, 0, PARTS * sizeof *parts);
    parts[0].floats = optimizer->m;
    parts[1].floats = optimizer->v;
    if (strcmp(dtype, "fp32") == 0) {
        parts[MASTER].elements = weights->data;
    } else if (strcmp(dtype, model->ops->dtype) == 0) {
        parts[MASTER].floats = optimizer->master;
        parts[ELEMENTS].elements = weights->data;
    }
}

void checkpoint_load_optimizer(const char *directory, const struct Model *model,
                               struct Weights *weights, const struct OptimizerState *optimizer,
                               const char *dtype) {
    struct Part parts[PARTS];
    struct Shards shards;
    open_tensors(&shards, directory, "optimizer", true);
    parts_to_load(parts, model, weights, optimizer, dtype);
    for (int p = 0; p < PARTS; p++) {   /* checked before anything is written */
        char first[128];
        const struct Safetensors *file;
        snprintf(first, sizeof first, "%s%s", prefixes[p], model->tensors[0].name);
        bool optional = p == MASTER || p == ELEMENTS;
        if (optional && !shards_find(&shards, first, &file)) parts[p] = (struct Part){NULL, NULL};
        for (int i = 0; i < model->num_tensors && is_there(&parts[p]); i++)
            find_tensor(&shards, prefixes[p], &model->tensors[i], false);
    }
    float *piece = check_alloc(SLICE, sizeof *piece, "a piece of a checkpoint");
    for (int p = 0; p < PARTS; p++) {
        if (!is_there(&parts[p])) continue;
        if (parts[p].floats)
            model->ops->fill_zero(parts[p].floats,
                                  share_of(&optimizer->share, model->num_parameters) *
                                      sizeof(float));
        load_part(&shards, model, p, &parts[p], &optimizer->share, p == MASTER ? weights : NULL,
                  piece);
    }
    free(piece);
    shards_close(&shards);
}
