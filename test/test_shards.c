/* Weights in several files: what an index may say, every way in which it may not fit, and how large
   weights are cut. The files are written here byte by byte, from the golden directory's tensors. */
#include "checkpoint_rig.h"
#include "../llmc/io/shards.h"

#define GOLDEN "test/golden/gpt2"

enum { SHARDS = 3, MOST = 64 };

/* What write_sharded writes: of each golden tensor the shards that hold it (bits), and the one that
   the index names (-1: none). */
static struct Safetensors golden;
static int held[MOST], said[MOST];
static const char *type;       /* of all elements */
static int turned;             /* the tensor whose shape is written the wrong way round; -1: none */
static bool has_unknown;       /* shard 1 and the index have a tensor that the model has not */

static void open_golden(void) {
    assert_null(safetensors_open(&golden, GOLDEN "/model.safetensors"));
    assert_in_range(golden.count, SHARDS, MOST);
    for (int e = 0; e < golden.count; e++) said[e] = e % SHARDS, held[e] = 1 << said[e];
    type = "F32", turned = -1, has_unknown = false;
}

static int tensor(const char *name) {
    for (int e = 0; e < golden.count; e++)
        if (strcmp(golden.entries[e].name, name) == 0) return e;
    fail_msg("no golden tensor %s", name);
    return -1;
}

static const char *shard_name(int shard) {
    static char names[SHARDS][64];
    snprintf(names[shard], 64, "model-%05d-of-%05d.safetensors", shard + 1, SHARDS);
    return names[shard];
}

/* What x is cut to in `type`, towards 0: BF16 has the upper 16 of its bits, F16 10 of the 23 of its
   mantissa (below 2^-14, where F16 has fewer, 0 is taken). */
static float kept(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (strcmp(type, "BF16") == 0) bits &= 0xFFFF0000;
    if (strcmp(type, "F16") == 0) bits &= fabsf(x) < 0x1p-14f ? 0x80000000 : 0xFFFFE000;
    memcpy(&x, &bits, 4);
    return x;
}

/* The F16 of a number that kept() gave: sign, exponent (bias 127 becomes 15), mantissa. */
static uint16_t half_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rest = bits << 1 == 0 ? 0 : (bits & 0x7FFFFFFF) - ((127u - 15) << 23);
    return (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)(rest >> 13);
}

/* One element in `type`; returns its bytes. */
static size_t put(unsigned char *out, float x) {
    uint32_t bits;
    double wide = x;
    x = kept(x);
    uint16_t half = half_of(x);
    memcpy(&bits, &x, 4);
    uint16_t upper = (uint16_t)(bits >> 16);
    if (strcmp(type, "F64") == 0) return memcpy(out, &wide, 8), 8;
    if (strcmp(type, "F16") == 0) return memcpy(out, &half, 2), 2;
    if (strcmp(type, "BF16") == 0) return memcpy(out, &upper, 2), 2;
    return memcpy(out, &x, 4), 4;
}

static void describe(char *header, size_t *length, const char *name, int64_t rows, int64_t columns,
                     size_t begin, size_t end) {
    *length += (size_t)sprintf(header + *length, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld",
                               *length > 1 ? "," : "", name, type, (long long)rows);
    if (columns) *length += (size_t)sprintf(header + *length, ",%lld", (long long)columns);
    *length += (size_t)sprintf(header + *length, "],\"data_offsets\":[%zu,%zu]}", begin, end);
}

static void write_shard(const char *directory, int shard) {
    unsigned char *data = malloc(1 << 20);
    char *header = malloc(1 << 16), path[PATH_SIZE];
    size_t length = (size_t)sprintf(header, "{"), bytes = 0;
    for (int e = 0; e < golden.count; e++) {
        const struct SafetensorsEntry *entry = &golden.entries[e];
        if (!(held[e] >> shard & 1)) continue;
        float *x = malloc(entry->count * sizeof *x);
        size_t begin = bytes;
        safetensors_read(&golden, entry, x, 0, entry->count);
        for (size_t i = 0; i < entry->count; i++) bytes += put(data + bytes, x[i]);
        int64_t rows = entry->shape[e == turned], columns = entry->shape[e != turned];
        describe(header, &length, entry->name, rows, entry->num_dims == 2 ? columns : 0, begin,
                 bytes);
        free(x);
    }
    if (has_unknown && shard == 1) {
        describe(header, &length, "transformer.h.7.attn.rotary", 1, 0, bytes, bytes + 4);
        memset(data + bytes, 0, 4), bytes += 4;
    }
    length += (size_t)sprintf(header + length, "}");
    memmove(header + 8, header, length);
    memcpy(header, &(uint64_t){length}, 8);
    header = realloc(header, 8 + length + bytes);
    memcpy(header + 8 + length, data, bytes);
    snprintf(path, sizeof path, "%s/%s", directory, shard_name(shard));
    write_whole(path, header, 8 + length + bytes);
    free(header), free(data);
}

static void write_sharded(const char *directory) {
    char path[PATH_SIZE], command[2 * PATH_SIZE];
    char *index = malloc(1 << 16);
    mkdir(directory, 0777);
    snprintf(command, sizeof command, "cp " GOLDEN "/config.json '%s'", directory);
    assert_int_equal(system(command), 0);
    for (int shard = 0; shard < SHARDS; shard++) write_shard(directory, shard);
    size_t length = (size_t)sprintf(index, "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {");
    if (has_unknown)
        length += (size_t)sprintf(index + length, "\"transformer.h.7.attn.rotary\": \"%s\",",
                                  shard_name(1));
    for (int e = golden.count - 1, any = 0; e >= 0; e--) {
        if (said[e] < 0) continue;
        length += (size_t)sprintf(index + length, "%s\"%s\": \"%s\"", any++ ? ", " : "",
                                  golden.entries[e].name, shard_name(said[e]));
    }
    length += (size_t)sprintf(index + length, "}}\n");
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", directory);
    write_whole(path, index, length);
    free(index);
}

/* ---- reading -------------------------------------------------------------------------------- */

/* Shards give the same weights as one file, in each type that is read. */
static void test_shards_are_one_model(void **state) {
    (void)state;
    static const char *const types[] = {"F32", "F16", "BF16", "F64"};
    struct ModelConfig config;
    struct Run one, many;
    for (int t = 0; t < 4; t++) {
        open_golden();
        type = types[t];
        write_sharded(path_of("many"));
        assert_null(checkpoint_config(path_of("many"), &config));
        config.Vp = 64;
        run_open(&one, &config);
        run_open(&many, &config);
        checkpoint_load_weights(GOLDEN, one.model, &one.weights);
        checkpoint_load_weights(path_of("many"), many.model, &many.weights);
        float *a = (float *)one.weights.data, *b = (float *)many.weights.data;
        for (size_t i = 0; i < one.n; i++)
            if (b[i] != kept(a[i])) fail_msg("%s: element %zu is %g, not %g", type, i, b[i], a[i]);
        run_close(&one), run_close(&many);
        safetensors_close(&golden);
    }
}

/* Where one file lies beside an index, it is the one that is read. */
static void test_one_file_goes_first(void **state) {
    (void)state;
    struct Shards shards;
    open_golden();
    write_sharded(path_of("both"));
    size_t length;
    char *bytes = read_whole(GOLDEN "/model.safetensors", &length);
    write_whole(path_of("both/model.safetensors"), bytes, length);
    assert_null(shards_open(&shards, path_of("both"), "model", true));
    assert_int_equal(shards.count, 1);
    shards_close(&shards);
    free(bytes);
    safetensors_close(&golden);
}

/* Writes the directory as the arrays above say, and expects it to be refused with these words. */
static void check_directory(struct Run *run, const char *name, const char *const *words) {
    write_sharded(path_of("%s", name));
    struct LoadCase c = {path_of("%s", name), run, .weights = true};
    check_refused(&c, words);
    c = (struct LoadCase){path_of("%s", name), run, .config = true, .weights = true};
    check_refused(&c, words);   /* the same words where config.json is read first */
    safetensors_close(&golden);
    open_golden();
}

static void test_tensors_that_do_not_fit_their_shards(void **state) {
    (void)state;
    struct ModelConfig config;
    struct Run run;
    assert_null(checkpoint_config(GOLDEN, &config));
    run_open(&run, &config);
    open_golden();
    int wpe = tensor("transformer.wpe.weight");

    held[wpe] = 0;
    check_directory(&run, "nowhere", (const char *[]){
        shard_name(wpe % SHARDS), "transformer.wpe.weight is missing", "index.json", NULL});
    held[wpe] = 1 << (wpe + 1) % SHARDS;
    check_directory(&run, "elsewhere", (const char *[]){
        shard_name((wpe + 1) % SHARDS), "transformer.wpe.weight is in this file",
        shard_name(wpe % SHARDS), NULL});
    held[wpe] = 7 - (1 << (wpe + 1) % SHARDS);
    check_directory(&run, "twice", (const char *[]){
        shard_name((wpe + 2) % SHARDS), "transformer.wpe.weight is in this file and in",
        shard_name(wpe % SHARDS), NULL});
    said[wpe] = -1;
    check_directory(&run, "unlisted", (const char *[]){
        shard_name(wpe % SHARDS), "transformer.wpe.weight is in this file and not in",
        "index.json", NULL});
    said[wpe] = -1, held[wpe] = 0;
    struct LoadCase absent = {path_of("absent"), &run, .weights = true};
    write_sharded(path_of("absent"));
    check_refused(&absent, (const char *[]){
        "index.json", "transformer.wpe.weight is missing", "[24, 36]", NULL});
    safetensors_close(&golden);
    run_close(&run);
}

/* What is wrong with a tensor itself is said of the shard that has it. */
static void test_tensors_that_do_not_fit_the_model(void **state) {
    (void)state;
    struct ModelConfig config;
    struct Run run;
    assert_null(checkpoint_config(GOLDEN, &config));
    run_open(&run, &config);
    open_golden();
    int wpe = tensor("transformer.wpe.weight");
    struct LoadCase c = {path_of("misfit"), &run, .weights = true};
    turned = wpe;
    write_sharded(c.directory);
    check_refused(&c, (const char *[]){
        shard_name(wpe % SHARDS), "transformer.wpe.weight", "[36, 24]", "[24, 36]", NULL});
    turned = -1, has_unknown = true;
    write_sharded(c.directory);
    check_refused(&c, (const char *[]){
        shard_name(1), "transformer.h.7.attn.rotary", "no place", NULL});
    has_unknown = false;
    write_sharded(c.directory);   /* two tensors on the same bytes, in the second shard */
    size_t length;
    char path[PATH_SIZE], *bytes;
    snprintf(path, sizeof path, "%s/%s", c.directory, shard_name(1));
    bytes = read_whole(path, &length);
    char *second = strchr(strstr(bytes + 8, "data_offsets") + 1, '}');
    char *begin = strstr(second, "data_offsets\":[") + strlen("data_offsets\":[");
    assert_int_not_equal(*begin, '0');
    for (*begin++ = '0'; *begin != ','; begin++) *begin = ' ';
    write_whole(path, bytes, length);
    check_refused(&c, (const char *[]){shard_name(1), "tensor transformer.h.", NULL});
    free(bytes);
    safetensors_close(&golden);
    run_close(&run);
}

static void test_files_of_an_index(void **state) {
    (void)state;
    struct ModelConfig config;
    struct Run run;
    assert_null(checkpoint_config(GOLDEN, &config));
    run_open(&run, &config);
    open_golden();
    struct LoadCase c = {path_of("index"), &run, .weights = true};
    write_sharded(c.directory);
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/%s", c.directory, shard_name(1));
    unlink(path);
    check_refused(&c, (const char *[]){shard_name(1), "is missing", "fetch", NULL});
    mkdir(path, 0777);
    check_refused(&c, (const char *[]){shard_name(1), "not a regular file", NULL});
    rmdir(path);
    write_whole(path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 5\n", 64);
    check_refused(&c, (const char *[]){shard_name(1), "git lfs pull", NULL});

    static const struct { const char *text, *words[4]; } rows[] = {
        {"", {"index.json"}},
        {"[]", {"index.json", "not one JSON object"}},
        {"{\"weight_map\": ", {"index.json", "is not JSON"}},
        {"{\"metadata\": {}}", {"index.json", "weight_map"}},
        {"{\"weight_map\": {}}", {"index.json", "weight_map"}},
        {"{\"weight_map\": [\"a\"]}", {"index.json", "weight_map"}},
        {"{\"weight_map\": {\"a\": 3}}", {"index.json", "tensor a", "no file's name"}},
        {"{\"weight_map\": {\"a\": \"../x.safetensors\"}}", {"tensor a", "../x", "beside"}},
        {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", {"tensor a", "/etc/passwd", "beside"}},
        {"{\"weight_map\": {\"a\": \"..\"}}", {"tensor a", "\"..\"", "beside"}},
        {"{\"weight_map\": {\"a\": \"\"}}", {"tensor a", "beside"}},
        {"{\"weight_map\": {\"a\": \"sub/x.safetensors\"}}", {"tensor a", "sub/x", "beside"}},
        {"{\"weight_map\": {\"a\": \"x\", \"a\": \"y\"}}", {"tensor a", "there twice"}},
        {"{\"weight_map\": {\"a\": \"config.json\"}}", {"index/config.json", "header"}},
    };
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", c.directory);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *words[5] = {rows[i].words[0], rows[i].words[1], rows[i].words[2],
                                rows[i].words[3], NULL};
        write_whole(path, rows[i].text, strlen(rows[i].text));
        check_refused(&c, words);
    }
    char *many = malloc(1 << 16);
    size_t length = (size_t)sprintf(many, "{\"weight_map\": {\"t\": \"f\"");
    for (int i = 0; i < MOST_SHARDS; i++)
        length += (size_t)sprintf(many + length, ", \"t%d\": \"f%d\"", i, i);
    length += (size_t)sprintf(many + length, "}}");
    write_whole(path, many, length);
    check_refused(&c, (const char *[]){"index.json", "more than 500 files", NULL});
    free(many);
    safetensors_close(&golden);
    run_close(&run);
}

/* ---- writing -------------------------------------------------------------------------------- */

/* Floats that are their own numbers. */
static void write_counted(struct ShardsWriter *writer, const size_t *counts) {
    for (int i; (i = shards_next(writer)) >= 0;)
        for (size_t j = 0; j < counts[i]; j++) shards_write(writer, &(float){(float)j}, 1);
}

/* Cut as transformers does: a tensor that does not fit any more begins the next shard, one that is
   too large for any has its own and the shard in hand goes on. */
static void test_where_shards_are_cut(void **state) {
    (void)state;
    static const size_t counts[] = {10, 10, 100, 5, 10, 1, 25};
    static const int expected[] = {2, 2, 1, 2, 3, 3, 4};   /* at most 100 bytes of float32 */
    struct Shards shards;
    mkdir(path_of("cut"), 0777);
    const char *directory = path_of("cut");
    struct ShardsWriter *writer = shards_create(directory, "model", 100, NULL);
    for (int i = 0; i < 7; i++)
        shards_describe(writer, (char[]){'a' + (char)i, 0}, ST_F32, 1,
                        (int64_t[]){(int64_t)counts[i]});
    write_counted(writer, counts);
    assert_int_equal(shards_commit(writer), 0);
    assert_null(shards_open(&shards, directory, "model", false));
    assert_int_equal(shards.count, 4);
    for (int i = 0; i < 7; i++) {
        const struct Safetensors *file;
        char name[64];
        float x[100];
        const struct SafetensorsEntry *entry =
            shards_find(&shards, (char[]){'a' + (char)i, 0}, &file);
        assert_non_null(entry);
        snprintf(name, sizeof name, "/model-%05d-of-00004.safetensors", expected[i]);
        if (!strstr(file->path, name)) fail_msg("tensor %d is in %s", i, file->path);
        assert_int_equal(safetensors_read(file, entry, x, 0, counts[i]), counts[i]);
        for (size_t j = 0; j < counts[i]; j++) assert_true(x[j] == (float)j);
    }
    shards_close(&shards);
    const char *problem;
    cJSON *index = json_read(path_of("cut/model.safetensors.index.json"), 1 << 20, &problem);
    cJSON *metadata = cJSON_GetObjectItem(index, "metadata");
    assert_int_equal(cJSON_GetObjectItem(metadata, "total_size")->valueint, 161 * 4);
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(index, "weight_map")), 7);
    cJSON_Delete(index);
}

/* Torch reads a tensor only from a multiple of its elements' size. */
static void test_wide_types_come_first(void **state) {
    (void)state;
    static const size_t counts[] = {3, 2, 2, 2};
    static const enum SafetensorsType types[] = {ST_BF16, ST_F32, ST_F16, ST_F32};
    struct Shards shards;
    const struct Safetensors *file;
    mkdir(path_of("mixed"), 0777);
    const char *directory = path_of("mixed");
    struct ShardsWriter *writer = shards_create(directory, "model", SIZE_MAX, NULL);
    for (int i = 0; i < 4; i++)
        shards_describe(writer, (char[]){'a' + (char)i, 0}, types[i], 1,
                        (int64_t[]){(int64_t)counts[i]});
    write_counted(writer, counts);
    shards_commit(writer);
    assert_true(exists(path_of("mixed/model.safetensors")));
    assert_null(shards_open(&shards, directory, "model", false));
    for (int i = 0; i < 4; i++) {
        float x[3];
        const struct SafetensorsEntry *entry =
            shards_find(&shards, (char[]){'a' + (char)i, 0}, &file);
        assert_int_equal(entry->type, types[i]);
        assert_int_equal(entry->begin % safetensors_size(types[i]), 0);
        safetensors_read(file, entry, x, 0, counts[i]);
        for (size_t j = 0; j < counts[i]; j++) assert_true(x[j] == (float)j);
    }
    assert_int_equal(file->data_begin % 8, 0);
    shards_close(&shards);
}

/* A checkpoint in shards is whole: it is found, verified file by file, and loads bit for bit. */
static void test_a_checkpoint_in_shards(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Export export = {.shard_bytes = 20000};
    struct Run run, back;
    char latest[PATH_SIZE], shard[PATH_SIZE];
    run_open(&run, &config), run_open(&back, &config);
    run_fill(&run, 1);
    mkdir(path_of("run"), 0777);
    save_as(&run, &export, path_of("run"), 3, 0);
    assert_true(checkpoint_latest(path_of("run"), latest, sizeof latest));
    assert_false(exists(path_of("run/checkpoints/step_000003/model.safetensors")));
    assert_null(checkpoint_config(latest, &config));
    checkpoint_load_weights(latest, back.model, &back.weights);
    assert_memory_equal(back.weights.data, run.weights.data, run.n * sizeof(float));
    struct Shards shards;
    assert_null(shards_open(&shards, latest, "model", true));
    assert_true(shards.count > 5);
    for (int f = 0; f < shards.count; f++)
        assert_true(shards.files[f].bytes < 20000 + 4096 || shards.files[f].count == 1);
    snprintf(shard, sizeof shard, "%s", shards.files[1].path);
    shards_close(&shards);

    struct LoadCase c = {latest, &run, .weights = true};
    size_t length;
    char *bytes = read_whole(shard, &length);
    bytes[length - 1] ^= 1;   /* one bit of one element */
    write_whole(shard, bytes, length);
    check_refused(&c, (const char *[]){strrchr(shard, '/'), "is damaged", "checksum", NULL});
    unlink(shard);
    check_refused(&c, (const char *[]){strrchr(shard, '/'), "saved with the others", NULL});
    check_path(shard, sizeof shard, "%s/model.safetensors.index.json", latest);
    free(bytes);
    bytes = read_whole(shard, &length);
    bytes[length - 2] = ' ';
    write_whole(shard, bytes, length);
    struct LoadCase config_too = {latest, &run, .config = true};
    check_refused(&config_too, (const char *[]){"index.json", "is damaged", NULL});
    free(bytes);
    run_close(&run), run_close(&back);
}

static void save_in_too_many(void *argument) {
    struct Export export = {.shard_bytes = 1};
    struct ShardsWriter *writer = shards_create(argument, "model", export.shard_bytes, NULL);
    for (int i = 0; i <= MOST_SHARDS; i++) {
        char name[16];
        snprintf(name, sizeof name, "t%d", i);
        shards_describe(writer, name, ST_F32, 1, (int64_t[]){1});
    }
    shards_next(writer);
}

static void test_too_many_shards(void **state) {
    (void)state;
    char said_then[4096];
    mkdir(path_of("crowd"), 0777);
    assert_int_equal(run_in_child(save_in_too_many, (void *)(uintptr_t)path_of("crowd"), said_then,
                                  sizeof said_then), 2);
    assert_non_null(strstr(said_then, "501 shards"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shards_are_one_model),
        cmocka_unit_test(test_one_file_goes_first),
        cmocka_unit_test(test_tensors_that_do_not_fit_their_shards),
        cmocka_unit_test(test_tensors_that_do_not_fit_the_model),
        cmocka_unit_test(test_files_of_an_index),
        cmocka_unit_test(test_where_shards_are_cut),
        cmocka_unit_test(test_wide_types_come_first),
        cmocka_unit_test(test_a_checkpoint_in_shards),
        cmocka_unit_test(test_too_many_shards),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
