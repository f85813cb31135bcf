/* Tensor files. An input that begins with a brace is the index of two fixed shards; any other is a
   file. What opens is sound: names differ and are found, data lie within the file. */
#include "fuzz.h"
#include "../../llmc/io/shards.h"

/* Reads some elements of each tensor from each end. */
static void read_elements(const struct Safetensors *file, const struct SafetensorsEntry *entry) {
    enum { SOME = 300 };
    float *x = malloc(SOME * sizeof *x);
    size_t n = entry->count < SOME ? entry->count : SOME;
    if (entry->type <= ST_F64) {
        MUST(safetensors_read(file, entry, x, 0, n) <= n);
        MUST(safetensors_read(file, entry, x, entry->count - n, n) <= n);
    }
    free(x);
}

static void check_tensors(const struct Safetensors *file) {
    size_t covered = 0;
    for (int i = 0; i < file->count; i++) {
        const struct SafetensorsEntry *entry = &file->entries[i];
        MUST(safetensors_find(file, entry->name) == entry);
        MUST(entry->begin <= entry->end && entry->end <= file->bytes - file->data_begin);
        MUST(entry->num_dims >= 0 && entry->num_dims <= 4);
        if (entry->type != ST_OTHER)
            MUST(entry->count * safetensors_size(entry->type) == entry->end - entry->begin);
        covered += entry->end - entry->begin;
        read_elements(file, entry);
    }
    MUST(file->data_begin + covered == file->bytes);
}

/* One float called `name`. */
static void write_shard(const char *directory, const char *file, const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", directory, file);
    struct SafetensorsWriter *writer = safetensors_create(path);
    safetensors_describe(writer, name, ST_F32, 1, &(int64_t){1});
    safetensors_write(writer, &(float){1}, sizeof(float));
    safetensors_commit(writer, NULL);
}

static void fuzz_index(const uint8_t *data, size_t size) {
    static const char *directory;
    static int index = -1;
    struct Shards shards;
    const struct Safetensors *file;
    fuzz_file(&index, data, size);
    if (!directory) {
        directory = fuzz_directory();
        write_shard(directory, "a.safetensors", "x");
        write_shard(directory, "b.safetensors", "y");
        fuzz_link(directory, "model.safetensors.index.json", index);
    }
    const char *problem = shards_open(&shards, directory, "model", false);
    if (problem) {
        must_be_a_line(problem);
        return;
    }
    for (int f = 0; f < shards.count; f++)
        for (int i = 0; i < shards.files[f].count; i++)
            MUST(shards_find(&shards, shards.files[f].entries[i].name, &file) ==
                 &shards.files[f].entries[i] && file == &shards.files[f]);
    shards_close(&shards);
}

static void fuzz_safetensors(const uint8_t *data, size_t size) {
    static int memory = -1;
    struct Safetensors file;
    char path[64];
    if (size > 0 && data[0] == '{') {
        fuzz_index(data, size);
        return;
    }
    fuzz_file(&memory, data, size);
    fuzz_path(path, memory);
    const char *problem = safetensors_open(&file, path);
    if (problem) {
        must_be_a_line(problem);
        return;
    }
    check_tensors(&file);
    safetensors_close(&file);
}

FUZZ_TARGET(fuzz_safetensors)
