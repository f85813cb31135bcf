#include "shards.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/json.h"
#include "../base/text.h"

#define PATH_SIZE 4096
#define MOST_INDEX_BYTES ((size_t)64 << 20)   /* the largest models' are below 10 MB */

/* ---- the index ------------------------------------------------------------------------------- */

struct ShardPlace {
    char *name;   /* of the tensor, owned */
    int file;
};

static char problem_text[3 * PATH_SIZE];

__attribute__((format(printf, 1, 2)))
static const char *sentence(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(problem_text, sizeof problem_text, format, arguments);
    va_end(arguments);
    return problem_text;
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* A shard lies beside its index; a name that leads elsewhere could make any file be read, and one
   with a newline would break a message. */
static bool is_plain_name(const char *name) {
    for (const char *c = name; *c; c++)
        if ((unsigned char)*c < 32 || *c == 127) return false;
    return name[0] != '\0' && name[0] != '.' && strchr(name, '/') == NULL &&
           strlen(name) < 256;
}

static int compare_places(const void *a, const void *b) {
    const struct ShardPlace *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : x->file - y->file;
}

/* The number of the file that an item of the weight map names, added to `names` if it is new. */
static const char *read_place(struct Shards *shards, struct TextList *names, const cJSON *item) {
    if (!cJSON_IsString(item))
        return sentence("%s: tensor %s has no file's name", shards->path, quote(item->string));
    const char *name = item->valuestring;
    if (!is_plain_name(name))
        return sentence("%s: tensor %s is said to be in \"%s\", which is not the name of a file "
                        "beside the index", shards->path, quote(item->string), quote(name));
    int file = 0;
    while (file < names->count && strcmp(text_list_at(names, file), name) != 0) file++;
    if (file == MOST_SHARDS)
        return sentence("%s: it names more than %d files", shards->path, MOST_SHARDS);
    if (file == names->count) text_list_add(names, name, strlen(name));
    shards->places[shards->num_places++] = (struct ShardPlace){check_strdup(item->string), file};
    return NULL;
}

/* shards->places and the files' names, from the weight map. */
static const char *read_map(struct Shards *shards, struct TextList *names, const cJSON *map) {
    if (!cJSON_IsObject(map) || map->child == NULL)
        return sentence("%s: it has no \"weight_map\" that says which tensor is in which file",
                        shards->path);
    shards->places = check_alloc((size_t)cJSON_GetArraySize(map), sizeof *shards->places,
                                 "an index of tensors");
    for (const cJSON *item = map->child; item; item = item->next) {
        const char *wrong = read_place(shards, names, item);
        if (wrong) return wrong;
    }
    qsort(shards->places, (size_t)shards->num_places, sizeof *shards->places, compare_places);
    for (int i = 1; i < shards->num_places; i++)
        if (strcmp(shards->places[i - 1].name, shards->places[i].name) == 0)
            return sentence("%s: tensor %s is there twice", shards->path,
                            quote(shards->places[i].name));
    return NULL;
}

static const struct ShardPlace *find_place(const struct Shards *shards, const char *name) {
    int low = 0, high = shards->num_places;
    while (low < high) {
        int middle = low + (high - low) / 2;
        int order = strcmp(name, shards->places[middle].name);
        if (order == 0) return &shards->places[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

/* ---- reading --------------------------------------------------------------------------------- */

bool shards_exist(const char *directory, const char *name) {
    char path[PATH_SIZE];
    check_path(path, sizeof path, "%s/%s.safetensors", directory, name);
    if (path_exists(path)) return true;
    check_path(path, sizeof path, "%s/%s.safetensors.index.json", directory, name);
    return path_exists(path);
}

const char *shards_other_weights(const char *directory) {
    static const struct { const char *name, *advice; } others[] = {
        {"pytorch_model.bin",
         "only safetensors are read; save it again: from_pretrained(...).save_pretrained(...)"},
        {"pytorch_model.bin.index.json",
         "only safetensors are read; save it again: from_pretrained(...).save_pretrained(...)"},
        {"adapter_model.safetensors",
         "an adapter is no model; put it into its model first: merge_and_unload()"},
        {"consolidated.safetensors",
         "those have other names; take the same model's files for transformers"},
    };
    char path[PATH_SIZE];
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        check_path(path, sizeof path, "%s/%s", directory, others[i].name);
        if (path_exists(path))
            return sentence("%s has no model.safetensors but %s: %s", directory, others[i].name,
                            others[i].advice);
    }
    return NULL;
}

/* Opens one file as number shards->count. */
static const char *open_file(struct Shards *shards, const char *directory, const char *file_name,
                             bool verify) {
    char path[PATH_SIZE];
    check_path(path, sizeof path, "%s/%s", directory, file_name);
    if (verify) checksums_verify(directory, file_name);
    const char *wrong = safetensors_open(&shards->files[shards->count], path);
    /* A file that rotted is best called so, whatever the reader stumbled over. */
    if (wrong && !verify) checksums_verify(directory, file_name);
    if (wrong) return sentence("%s: %s", path, wrong);
    shards->count++;
    return NULL;
}

/* Opens the files that the index names. */
static const char *open_files(struct Shards *shards, const char *directory,
                              const struct TextList *names, bool verify) {
    shards->files = check_alloc((size_t)names->count, sizeof *shards->files, "a list of files");
    for (int i = 0; i < names->count; i++) {
        char path[PATH_SIZE];
        check_path(path, sizeof path, "%s/%s", directory, text_list_at(names, i));
        if (!path_exists(path)) {
            checksums_verify(directory, text_list_at(names, i));
            return sentence("%s is missing, and %s names it; fetch the directory again", path,
                            base_name(shards->path));
        }
        const char *wrong = open_file(shards, directory, text_list_at(names, i), verify);
        if (wrong) return wrong;
    }
    return NULL;
}

/* Every tensor of the index is in its file. */
static const char *check_places(const struct Shards *shards) {
    for (int i = 0; i < shards->num_places; i++) {
        const struct ShardPlace *place = &shards->places[i];
        const struct Safetensors *file = &shards->files[place->file];
        if (safetensors_find(file, place->name)) continue;
        for (int f = 0; f < shards->count; f++)
            if (safetensors_find(&shards->files[f], place->name))
                return sentence("%s: tensor %s is in this file, and %s says that it is in %s; "
                                "fetch both again", shards->files[f].path, quote(place->name),
                                base_name(shards->path), base_name(file->path));
        return sentence("%s: tensor %s is missing, and %s says that it is in this file; fetch both "
                        "again", file->path, quote(place->name), base_name(shards->path));
    }
    return NULL;
}

/* No file has a tensor that is not its own. */
static const char *check_files(const struct Shards *shards) {
    for (int f = 0; f < shards->count; f++)
        for (int e = 0; e < shards->files[f].count; e++) {
            const char *name = shards->files[f].entries[e].name;
            const struct ShardPlace *place = find_place(shards, name);
            if (place && place->file == f) continue;
            if (place)
                return sentence("%s: tensor %s is in this file and in %s; remove one of them",
                                shards->files[f].path, quote(name),
                                base_name(shards->files[place->file].path));
            return sentence("%s: tensor %s is in this file and not in %s; fetch both again",
                            shards->files[f].path, quote(name), base_name(shards->path));
        }
    return NULL;
}

/* shards->path is that of the index, which is there. */
static const char *open_sharded(struct Shards *shards, const char *directory, bool verify) {
    struct TextList names = {0};
    const char *wrong = file_problem(shards->path);
    cJSON *json = wrong ? NULL : json_read(shards->path, MOST_INDEX_BYTES, &wrong);
    if (wrong) wrong = sentence("%s: %s", shards->path, wrong);
    if (!wrong)
        wrong = read_map(shards, &names, cJSON_GetObjectItemCaseSensitive(json, "weight_map"));
    cJSON_Delete(json);
    if (!wrong) wrong = open_files(shards, directory, &names, verify);
    if (!wrong) wrong = check_places(shards);
    if (!wrong) wrong = check_files(shards);
    text_list_free(&names);
    return wrong;
}

const char *shards_open(struct Shards *shards, const char *directory, const char *name,
                        bool verify) {
    char file_name[256], index[PATH_SIZE];
    *shards = (struct Shards){.count = 0};
    snprintf(file_name, sizeof file_name, "%s.safetensors", name);
    check_path(shards->path, sizeof shards->path, "%s/%s", directory, file_name);
    check_path(index, sizeof index, "%s/%s.index.json", directory, file_name);
    const char *wrong = NULL;
    bool single = path_exists(shards->path);
    if (!single && path_exists(index)) {
        check_path(shards->path, sizeof shards->path, "%s", index);
        wrong = open_sharded(shards, directory, verify);
    } else {
        if (!single && strcmp(name, "model") == 0) wrong = shards_other_weights(directory);
        shards->files = check_alloc(1, sizeof *shards->files, "a file of tensors");
        if (!wrong) wrong = open_file(shards, directory, file_name, verify);
    }
    if (wrong) shards_close(shards);
    return wrong;
}

void shards_close(struct Shards *shards) {
    for (int f = 0; f < shards->count; f++) safetensors_close(&shards->files[f]);
    for (int i = 0; i < shards->num_places; i++) free(shards->places[i].name);
    free(shards->files);
    free(shards->places);
    *shards = (struct Shards){.count = 0};
}

const struct SafetensorsEntry *shards_find(const struct Shards *shards, const char *name,
                                           const struct Safetensors **file) {
    *file = &shards->files[0];
    if (shards->num_places > 0) {
        const struct ShardPlace *place = find_place(shards, name);
        if (place == NULL) return NULL;
        *file = &shards->files[place->file];
    }
    return safetensors_find(*file, name);
}

/* ---- writing --------------------------------------------------------------------------------- */

struct Described {
    char name[128];
    enum SafetensorsType type;
    int num_dims;
    int64_t shape[4];
    size_t bytes;
    int shard;   /* -1: not known yet */
};

struct ShardsWriter {
    const char *directory, *name;
    size_t shard_bytes;
    struct Checksums *sums;
    struct Described *tensors;
    int count, capacity;
    int num_shards;            /* 0: not cut yet */
    int *order;                /* [count] in which tensors are written */
    int given;                 /* how many of them shards_next has asked for */
    struct SafetensorsWriter *file;   /* of the tensor in hand */
    size_t beyond;
};

struct ShardsWriter *shards_create(const char *directory, const char *name, size_t shard_bytes,
                                   struct Checksums *sums) {
    struct ShardsWriter *writer = check_alloc(1, sizeof *writer, "a writer of tensors");
    writer->directory = directory;
    writer->name = name;
    writer->shard_bytes = shard_bytes;
    writer->sums = sums;
    return writer;
}

void shards_describe(struct ShardsWriter *writer, const char *name, enum SafetensorsType type,
                     int num_dims, const int64_t *shape) {
    if (writer->count == writer->capacity) {
        writer->capacity = 2 * writer->capacity + 64;
        writer->tensors = check_realloc(writer->tensors, (size_t)writer->capacity,
                                        sizeof *writer->tensors, "a list of tensors");
    }
    struct Described *tensor = &writer->tensors[writer->count++];
    *tensor = (struct Described){.type = type, .num_dims = num_dims, .shard = -1};
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    tensor->bytes = safetensors_size(type);
    for (int i = 0; i < num_dims; i++) {
        tensor->shape[i] = shape[i];
        tensor->bytes *= (size_t)shape[i];
    }
}

/* Those of the first `before` tensors that are in no shard yet become the next one. */
static void close_shard(struct ShardsWriter *writer, int before) {
    bool any = false;
    for (int i = 0; i < before; i++) {
        if (writer->tensors[i].shard >= 0) continue;
        writer->tensors[i].shard = writer->num_shards;
        any = true;
    }
    if (any) writer->num_shards++;
}

/* In the order of description, a tensor that is too large for the shard in hand begins the next;
   one that is too large for any has its own. */
static void cut(struct ShardsWriter *writer) {
    size_t in_hand = 0;
    for (int i = 0; i < writer->count; i++) {
        struct Described *tensor = &writer->tensors[i];
        if (tensor->bytes > writer->shard_bytes) {
            tensor->shard = writer->num_shards++;
            continue;
        }
        if (tensor->bytes > writer->shard_bytes - in_hand) {
            close_shard(writer, i);
            in_hand = 0;
        }
        in_hand += tensor->bytes;
    }
    close_shard(writer, writer->count);
    if (writer->num_shards > MOST_SHARDS)
        die_input("%d shards of at most %zu bytes: more than %d files; choose larger ones",
                  writer->num_shards, writer->shard_bytes, MOST_SHARDS);
}

/* Shard by shard, and in each the wide types first, so that every tensor begins at a multiple of
   its elements' size: torch cannot read others. */
static void put_in_order(struct ShardsWriter *writer) {
    int n = 0;
    writer->order = check_alloc((size_t)writer->count + 1, sizeof *writer->order,
                                "an order of tensors");
    for (int shard = 0; shard < writer->num_shards; shard++)
        for (size_t size = 8; size > 0; size /= 2)
            for (int i = 0; i < writer->count; i++)
                if (writer->tensors[i].shard == shard &&
                    safetensors_size(writer->tensors[i].type) == size)
                    writer->order[n++] = i;
}

static void shard_name(const struct ShardsWriter *writer, int shard, char *out, size_t capacity) {
    if (writer->num_shards == 1)
        snprintf(out, capacity, "%s.safetensors", writer->name);
    else
        snprintf(out, capacity, "%s-%05d-of-%05d.safetensors", writer->name, shard + 1,
                 writer->num_shards);
}

/* Opens the file of a shard and describes its tensors there, in the order of writing. */
static void begin_file(struct ShardsWriter *writer, int shard) {
    char path[PATH_SIZE], name[256];
    shard_name(writer, shard, name, sizeof name);
    check_path(path, sizeof path, "%s/%s", writer->directory, name);
    writer->file = safetensors_create(path);
    for (int n = writer->given; n < writer->count; n++) {
        const struct Described *tensor = &writer->tensors[writer->order[n]];
        if (tensor->shard != shard) break;
        safetensors_describe(writer->file, tensor->name, tensor->type, tensor->num_dims,
                             tensor->shape);
    }
}

static void end_file(struct ShardsWriter *writer) {
    if (writer->file) safetensors_commit(writer->file, writer->sums);
    writer->file = NULL;
}

int shards_next(struct ShardsWriter *writer) {
    if (writer->num_shards == 0) {
        cut(writer);
        put_in_order(writer);
    }
    if (writer->given == writer->count) return -1;
    int i = writer->order[writer->given], shard = writer->tensors[i].shard;
    bool is_first = writer->given == 0 ||
                    writer->tensors[writer->order[writer->given - 1]].shard != shard;
    if (is_first) {
        end_file(writer);
        begin_file(writer, shard);
    }
    writer->given++;
    return i;
}

void shards_write(struct ShardsWriter *writer, const float *x, size_t n) {
    enum { PIECE = 1 << 14 };
    uint16_t piece[PIECE];
    enum SafetensorsType type = writer->tensors[writer->order[writer->given - 1]].type;
    if (type == ST_F32) safetensors_write(writer->file, x, n * sizeof *x);
    for (size_t done = 0; done < n && type != ST_F32; done += PIECE) {
        size_t part = n - done < PIECE ? n - done : PIECE;
        writer->beyond += safetensors_narrow(piece, x + done, type, part);
        safetensors_write(writer->file, piece, part * sizeof *piece);
    }
}

static void write_index(const struct ShardsWriter *writer) {
    char path[PATH_SIZE], name[256];
    size_t total = 0;
    cJSON *json = cJSON_CreateObject(), *metadata = cJSON_AddObjectToObject(json, "metadata");
    cJSON *map = cJSON_AddObjectToObject(json, "weight_map");
    for (int i = 0; i < writer->count; i++) {
        shard_name(writer, writer->tensors[i].shard, name, sizeof name);
        cJSON_AddStringToObject(map, writer->tensors[i].name, name);
        total += writer->tensors[i].bytes;
    }
    cJSON_AddNumberToObject(metadata, "total_size", (double)total);
    check_path(path, sizeof path, "%s/%s.safetensors.index.json", writer->directory, writer->name);
    json_write(json, path, writer->sums);
}

size_t shards_commit(struct ShardsWriter *writer) {
    size_t beyond = writer->beyond;
    end_file(writer);
    if (writer->num_shards > 1) write_index(writer);
    free(writer->tensors);
    free(writer->order);
    free(writer);
    return beyond;
}
