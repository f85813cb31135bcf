/* Checkpoints: bitwise round trips, files that others wrote (Hugging Face's save_pretrained, older
   names, half precision), hostile and truncated files, and what kills at any moment leave. */
#include "checkpoint_rig.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include "child.h"
#include "../llmc/base/check.h"
#include "../llmc/base/json.h"
#include "../llmc/io/safetensors.h"

#define GOLDEN "test/golden/gpt2"

/* ---- a process that can die before any change to a directory -------------------------------- */

/* These stand before the C library's. fsync only counts: nothing here outlives the machine. */
static int calls_left = -1;   /* until the process ends; -1: it lives on */

static void count_call(void) {
    if (calls_left >= 0 && calls_left-- == 0) _exit(99);
}

int rename(const char *from, const char *to) {
    count_call();
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int mkdir(const char *path, mode_t mode) {
    count_call();
    return mkdirat(AT_FDCWD, path, mode);
}

int remove(const char *path) {
    count_call();
    int result = unlinkat(AT_FDCWD, path, 0);
    return result != 0 && errno == EISDIR ? unlinkat(AT_FDCWD, path, AT_REMOVEDIR) : result;
}

int fsync(int descriptor) {
    count_call();
    return fcntl(descriptor, F_GETFD) < 0 ? -1 : 0;
}

/* ---- round trips ---------------------------------------------------------------------------- */

static void test_round_trip_is_bitwise(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        struct ModelConfig config = small_config(tied), found;
        struct Run run, back;
        run_open(&run, &config);
        run_fill(&run, 1);
        const char *directory = path_of("round%d", tied);
        save_step(&run, directory, 1234567, 0);

        char latest[PATH_SIZE];
        assert_true(checkpoint_latest(directory, latest, sizeof latest));
        assert_string_equal(latest, path_of("round%d/checkpoints/step_1234567", tied));
        assert_null(checkpoint_config(latest, &found));
        found.Vp = config.Vp;
        assert_memory_equal(&found, &config, sizeof config);
        run_open(&back, &found);
        checkpoint_load_weights(latest, back.model, &back.weights);
        checkpoint_load_optimizer(latest, back.model, &back.optimizer);
        assert_memory_equal(back.weights.data, run.weights.data, run.n * run.ops->element_size);
        assert_memory_equal(back.optimizer.m, run.optimizer.m, run.n * sizeof(float));
        assert_memory_equal(back.optimizer.v, run.optimizer.v, run.n * sizeof(float));
        struct Progress expected = awkward_state(1234567), loaded;
        struct Other other = {0};
        checkpoint_load_state(latest, &loaded,
                              (struct FieldSection[]){{&other_table, &other}, {NULL, NULL}});
        assert_memory_equal(&loaded, &expected, sizeof loaded);
        assert_memory_equal(&other, &awkward_other, sizeof other);
        struct Tokenizer tokenizer;
        assert_null(tokenizer_load(&tokenizer, latest));
        assert_int_equal(tokenizer.vocab_size, 24);
        run_close(&run);
        run_close(&back);
    }
}

/* Master weights go with the moments; a file without them leaves the reader's as they are. */
static void test_master_weights(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run, back;
    run_open(&run, &config);
    run_open(&back, &config);
    run_fill(&run, 1);
    size_t bytes = run.n * sizeof(float);
    float *kept = malloc(bytes);
    back.optimizer.master = memset(malloc(bytes), 0x7f, bytes);
    memcpy(kept, back.optimizer.master, bytes);
    save_step(&run, path_of("master"), 1, 0);
    checkpoint_load_optimizer(path_of("master/checkpoints/step_000001"), back.model,
                              &back.optimizer);
    assert_memory_equal(back.optimizer.master, kept, bytes);
    assert_memory_equal(back.optimizer.m, run.optimizer.m, bytes);
    run.optimizer.master = run.optimizer.v, run.optimizer.v = run.optimizer.m;
    save_step(&run, path_of("master"), 2, 0);
    checkpoint_load_optimizer(path_of("master/checkpoints/step_000002"), back.model,
                              &back.optimizer);
    assert_memory_equal(back.optimizer.master, run.optimizer.master, bytes);
    assert_memory_equal(back.optimizer.v, run.optimizer.m, bytes);
    run.optimizer.v = run.optimizer.master;
    free(kept), free(back.optimizer.master);
    run_close(&run);
    run_close(&back);
}

/* A bigger matrix than the pieces in which everything else is handled. */
static void test_round_trip_of_large_tensors(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    config.L = 1, config.F = 15000, config.V = config.V_saved = 14600, config.Vp = 14720;
    struct Run run, back;
    run_open(&run, &config);
    run_open(&back, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("large"), 1, 0);
    const char *latest = path_of("large/checkpoints/step_000001");
    checkpoint_load_weights(latest, back.model, &back.weights);
    checkpoint_load_optimizer(latest, back.model, &back.optimizer);
    assert_memory_equal(back.weights.data, run.weights.data, run.n * run.ops->element_size);
    assert_memory_equal(back.optimizer.v, run.optimizer.v, run.n * sizeof(float));
    run_close(&run);
    run_close(&back);
    remove_scratch("large");
}

/* ---- files of others ------------------------------------------------------------------------ */

/* The nearest smaller number that bf16 or fp16 has (subnormals become 0), and its bits. */
static float truncate_to(enum SafetensorsType type, float x, uint16_t *half) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits &= type == ST_BF16 ? 0xffff0000u : 0xffffe000u;
    int exponent = (int)(bits >> 23 & 255) - 127;
    if (type == ST_F16 && exponent < -14) bits &= 0x80000000u;
    uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffffu;
    *half = (uint16_t)(bits >> 16);
    if (type == ST_F16) *half = (uint16_t)(sign | (rest ? (rest >> 13) - (112 << 10) : 0));
    memcpy(&x, &bits, 4);
    return x;
}

/* Writes the golden weights again: names without "transformer.", the buffers of old files, and
   elements of another type. */
static void rewrite_golden(const char *path, enum SafetensorsType type) {
    struct Safetensors file;
    assert_null(safetensors_open(&file, GOLDEN "/model.safetensors"));
    struct SafetensorsWriter *writer = safetensors_create(path);
    for (int i = 0; i < file.count; i++)
        safetensors_describe(writer, file.entries[i].name + strlen("transformer."), type,
                             file.entries[i].num_dims, file.entries[i].shape);
    safetensors_describe(writer, "h.0.attn.bias", ST_F32, 2, (int64_t[]){2, 2});
    safetensors_describe(writer, "h.0.attn.masked_bias", ST_F32, 0, NULL);
    safetensors_describe(writer, "lm_head.weight", ST_F32, 1, (int64_t[]){1});
    for (int i = 0; i < file.count; i++) {
        size_t n = file.entries[i].count;
        float *x = malloc(n * sizeof *x);
        uint16_t *half = malloc(n * sizeof *half);
        safetensors_read(&file, &file.entries[i], x, 0, n);
        for (size_t j = 0; j < n; j++) truncate_to(type, x[j], &half[j]);
        if (type == ST_F32) safetensors_write(writer, x, n * sizeof *x);
        else safetensors_write(writer, half, n * sizeof *half);
        free(x), free(half);
    }
    safetensors_write(writer, (float[6]){0}, 6 * sizeof(float));
    safetensors_commit(writer, NULL);
    safetensors_close(&file);
}

static void test_names_and_types_of_other_writers(void **state) {
    (void)state;
    struct ModelConfig config;
    assert_null(checkpoint_config(GOLDEN, &config));
    assert_true(config.L == 2 && config.NH == 3 && config.C == 36 && config.F == 100);
    assert_true(config.V == 61 && config.max_T == 24 && config.tied);
    config.Vp = 64;
    struct Run golden, other;
    run_open(&golden, &config);
    run_open(&other, &config);
    checkpoint_load_weights(GOLDEN, golden.model, &golden.weights);
    float *expected = malloc(golden.n * sizeof *expected);
    float *found = malloc(golden.n * sizeof *found);
    elements_download(golden.ops, expected, golden.weights.data, golden.n);
    mkdir(path_of("other"), 0777);
    const enum SafetensorsType types[] = {ST_F32, ST_BF16, ST_F16};
    for (int i = 0; i < 3; i++) {
        rewrite_golden(path_of("other/model.safetensors"), types[i]);
        checkpoint_load_weights(path_of("other"), other.model, &other.weights);
        elements_download(other.ops, found, other.weights.data, other.n);
        for (size_t j = 0; j < golden.n; j++) {
            uint16_t half;
            float x = truncate_to(types[i], expected[j], &half);
            assert_true(found[j] == (types[i] == ST_F32 ? expected[j] : x));
        }
    }
    free(expected), free(found);
    run_close(&golden);
    run_close(&other);
}

/* ---- what does not fit ---------------------------------------------------------------------- */

struct LoadCase {
    const char *directory;
    struct Run *run;
    bool weights, optimizer, state, config;
};

static void load_body(void *argument) {
    const struct LoadCase *c = argument;
    struct Progress loaded;
    struct ModelConfig config;
    if (c->config) checkpoint_config(c->directory, &config);
    if (c->weights) checkpoint_load_weights(c->directory, c->run->model, &c->run->weights);
    if (c->optimizer) checkpoint_load_optimizer(c->directory, c->run->model, &c->run->optimizer);
    if (c->state) checkpoint_load_state(c->directory, &loaded, NULL);
}

/* So that a damaged file comes to its reader, as those of other programs do. */
static void forget_checksums(const char *directory) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/checksums", directory);
    assert_int_equal(unlink(path), 0);
}

/* The load ends with exit code 2 and one line that has every one of the words. */
static void check_refused(const struct LoadCase *c, const char *const *words) {
    char output[8192];
    int code = run_in_child(load_body, (void *)c, output, sizeof output);
    if (code != 2) fail_msg("exit code %d, output: %s", code, output);
    const char *newline = strchr(output, '\n');
    if (newline == NULL || newline[1] != '\0') fail_msg("not one line: %s", output);
    for (; words && *words; words++)
        if (strstr(output, *words) == NULL) fail_msg("\"%s\" is not in: %s", *words, output);
}

/* A model.safetensors with one tensor, of a given header text and 64 bytes of data. */
static void write_header(const char *path, const char *header) {
    char file[1024] = {0};
    uint64_t length = strlen(header);
    memcpy(file, &length, 8);
    memcpy(file + 8, header, length);
    write_whole(path, file, 8 + length + 64);
}

static void test_misfits_are_named(void **state) {
    (void)state;
    struct ModelConfig config;
    assert_null(checkpoint_config(GOLDEN, &config));
    const struct {
        int L, V, max_T;
        bool tied;
        const char *words[5];
    } rows[] = {
        {2, 62, 24, true, {"model.safetensors", "transformer.wte.weight", "[61, 36]", "[62, 36]"}},
        {2, 61, 25, true, {"model.safetensors", "transformer.wpe.weight", "[24, 36]", "[25, 36]"}},
        {3, 61, 24, true, {"model.safetensors", "transformer.h.2.ln_1.weight", "missing", "[36]"}},
        {1, 61, 24, true, {"model.safetensors", "transformer.h.1.", "no place"}},
        {2, 61, 24, false, {"model.safetensors", "lm_head.weight", "missing", "[61, 36]"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct ModelConfig wrong = config;
        wrong.L = rows[i].L, wrong.V = wrong.V_saved = wrong.Vp = rows[i].V;
        wrong.max_T = rows[i].max_T;
        wrong.tied = rows[i].tied;
        struct Run run;
        run_open(&run, &wrong);
        struct LoadCase c = {GOLDEN, &run, .weights = true};
        check_refused(&c, rows[i].words);
        run_close(&run);
    }
    struct Run run;
    run_open(&run, &config);
    mkdir(path_of("misfit"), 0777);
    struct LoadCase c = {path_of("misfit"), &run, .weights = true};
    check_refused(&c, (const char *[]){"misfit/model.safetensors", NULL});
    struct LoadCase no_moments = {GOLDEN, &run, .optimizer = true};
    check_refused(&no_moments, (const char *[]){"optimizer.safetensors", NULL});
    struct LoadCase no_state = {GOLDEN, &run, .state = true};
    check_refused(&no_state, (const char *[]){"trainer_state.json", NULL});
    const char *headers[] = {
        "", "{}", "[]", "{\"transformer.wte.weight\":{\"dtype\":\"I64\",\"shape\":[1,8],"
        "\"data_offsets\":[0,64]}}",
        "{\"transformer.wte.weight\":{\"dtype\":\"F32\",\"shape\":[61,36],"
        "\"data_offsets\":[0,8784]}}",
        "{\"transformer.wte.weight\":{\"dtype\":\"F32\",\"shape\":[-61,-36],"
        "\"data_offsets\":[0,64]}}",
    };
    for (size_t i = 0; i < sizeof headers / sizeof headers[0]; i++) {
        write_header(path_of("misfit/model.safetensors"), headers[i]);
        check_refused(&c, (const char *[]){"model.safetensors", NULL});
    }
    run_close(&run);
}

/* A type that is not read, in a file that fits otherwise. */
static void test_integer_weights_are_refused(void **state) {
    (void)state;
    size_t length;
    char *data = read_whole(GOLDEN "/model.safetensors", &length);
    char *end = memmem(data, length, "transformer.wte.weight", 22);
    char *type = memmem(end, 100, "F32", 3);
    assert_non_null(type);
    memcpy(type, "I32", 3);
    mkdir(path_of("integers"), 0777);
    write_whole(path_of("integers/model.safetensors"), data, length);
    struct ModelConfig config;
    assert_null(checkpoint_config(GOLDEN, &config));
    struct Run run;
    run_open(&run, &config);
    struct LoadCase c = {path_of("integers"), &run, .weights = true};
    check_refused(&c, (const char *[]){"transformer.wte.weight", "F32", "BF16", NULL});
    free(data);
    run_close(&run);
}

static void test_truncated_files_are_refused(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("cut"), 1, 0);
    const char *directory = path_of("cut/checkpoints/step_000001");
    forget_checksums(directory);
    const struct {
        const char *name;
        struct LoadCase load;
    } rows[] = {
        {"model.safetensors", {directory, &run, .weights = true}},
        {"optimizer.safetensors", {directory, &run, .optimizer = true}},
        {"trainer_state.json", {directory, &run, .state = true}},
    };
    for (int i = 0; i < 3; i++) {
        char path[PATH_SIZE];
        snprintf(path, sizeof path, "%s/%s", directory, rows[i].name);
        size_t length;
        char *data = read_whole(path, &length);
        /* Dense near the ends, some in between; a JSON file may lose its last newline. */
        for (size_t cut = 0; cut + 2 < length;
             cut += cut < 20 ? 3 : cut + 40 < length ? length / 23 : 7) {
            write_whole(path, data, cut);
            check_refused(&rows[i].load, (const char *[]){rows[i].name, NULL});
        }
        write_whole(path, data, length);
        load_body((void *)&rows[i].load);
        free(data);
    }
    run_close(&run);
}

/* A byte changed anywhere gives a checkpoint that is read or refused, and never a crash. */
static void test_damaged_files_never_crash(void **state) {
    (void)state;
    static const char *const names[] = {"model.safetensors", "optimizer.safetensors",
                                        "trainer_state.json"};
    struct ModelConfig config = small_config(true);
    struct Run run;
    struct Rng rng;
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("damaged"), 1, 0);
    const char *directory = path_of("damaged/checkpoints/step_000001");
    forget_checksums(directory);
    struct LoadCase all = {directory, &run, .weights = true, .optimizer = true, .state = true};
    rng_open(&rng, 1, RNG_TEST, 77);
    int refused = 0;
    for (int i = 0; i < 3; i++) {
        char path[PATH_SIZE], output[8192];
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        size_t length;
        char *data = read_whole(path, &length);
        for (int round = 0; round < 60; round++) {
            uint32_t where = rng_below(&rng, length < 3000 ? (uint32_t)length : 3000);
            char before = data[where];
            data[where] = (char)rng_next(&rng);
            write_whole(path, data, length);
            data[where] = before;
            int code = run_in_child(load_body, &all, output, sizeof output);
            if (code != 0 && code != 2)
                fail_msg("%s, byte %u: %d %s", names[i], where, code, output);
            refused += code == 2;
        }
        write_whole(path, data, length);
        free(data);
    }
    assert_true(refused > 60);
    run_close(&run);
}

/* trainer_state.json with one value replaced by `value` (JSON). */
static void write_state(const char *path, const char *text, const char *key, const char *value) {
    char quoted[64], out[4096];
    snprintf(quoted, sizeof quoted, "\"%s\":\t", key);
    const char *at = strstr(text, quoted);
    if (at == NULL) fail_msg("no %s in %s", key, text);
    int before = (int)(at - text) + (int)strlen(quoted);
    int length = snprintf(out, sizeof out, "%.*s%s%s", before, text, value,
                          text + before + strcspn(text + before, ",\n"));
    write_whole(path, out, (size_t)length);
}

/* A counter below or above its bounds indexes out of an array or overflows: refused by name. */
static void test_state_has_bounds(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("bounds"), 1, 0);
    const char *directory = path_of("bounds/checkpoints/step_000001");
    forget_checksums(directory);
    struct LoadCase c = {directory, &run, .state = true};
    char path[PATH_SIZE];
    size_t length;
    snprintf(path, sizeof path, "%s/trainer_state.json", directory);
    char *text = read_whole(path, &length);
    text[length] = 0;
    static const char *const counters[] = {
        "step", "warm_step", "optimizer_step", "group_ordinal", "demonstration_ordinal",
        "update_ordinal", "num_tokens", "skipped_in_a_row", "phases_begun", "phase_begin",
        "loss_scale_updates", "seed", "threads", "micro_tokens"};
    static const char *const wrong[] = {"-1", "-1099511627776", "9007199254740992", "1e300", "0.5",
                                        "null", "true", "\"-1\"", "\"9223372036854775807\"", "\"\"",
                                        "\"nan\"", "[]"};
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++) {
        const char *words[] = {"trainer_state.json", counters[i], "a whole number from 0 to", NULL};
        for (size_t k = 0; k < sizeof wrong / sizeof *wrong; k++) {
            write_state(path, text, counters[i], wrong[k]);
            check_refused(&c, words);
        }
    }
    write_state(path, text, "loss_scale", "0");
    check_refused(&c, (const char *[]){"\"loss_scale\"", NULL});
    write_state(path, text, "dtype", "\"float32x\"");
    check_refused(&c, (const char *[]){"\"dtype\" must be a text of at most 7 bytes", NULL});
    write_state(path, text, "phases_begun", "\"2\"");
    load_body(&c);
    free(text);
    run_close(&run);
}

/* Bits that rot: one changed bit, or a lost end, in any file of a checkpoint, anywhere. All are
   found, and the message names the file. */
static void test_rot_is_found(void **state) {
    (void)state;
    static const char *const names[] = {"model.safetensors", "optimizer.safetensors",
                                        "trainer_state.json", "config.json", "vocab.json",
                                        "merges.txt", "tokenizer_config.json", "checksums"};
    enum { ROUNDS = 16 };
    struct ModelConfig config = small_config(true);
    struct Run run;
    struct Rng rng;
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("rot"), 1, 0);
    const char *directory = path_of("rot/checkpoints/step_000001");
    struct LoadCase all = {directory, &run, true, true, true, true};
    rng_open(&rng, 1, RNG_TEST, 79);
    load_body(&all);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[PATH_SIZE];
        size_t length;
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        char *data = read_whole(path, &length);
        for (int round = 0; round < ROUNDS; round++) {
            uint32_t where = rng_below(&rng, (uint32_t)length);
            char bit = (char)(1 << rng_below(&rng, 8));
            data[where] ^= bit;
            write_whole(path, data, length);
            check_refused(&all, (const char *[]){names[i], NULL});
            data[where] ^= bit;
            write_whole(path, data, where);
            check_refused(&all, (const char *[]){names[i], NULL});
        }
        write_whole(path, data, length);
        load_body(&all);
        free(data);
    }
    run_close(&run);
}

/* A weight or a moment that is no number, in a file that fits otherwise and has no checksum. */
static void test_elements_that_are_not_finite(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    run_open(&run, &config);
    const float wrong[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++)
        for (int which = 0; which < 3; which++) {
            const struct Tensor *tensor = &run.model->tensors[i * 5];
            run_fill(&run, 1);
            float *buffers[] = {(float *)run.weights.data, run.optimizer.m, run.optimizer.v};
            buffers[which][tensor->offset + tensor->saved - 1] = wrong[i];
            save_step(&run, path_of("infinite"), 1, 0);
            struct LoadCase c = {path_of("infinite/checkpoints/step_000001"), &run, .weights = true,
                                 .optimizer = true};
            const char *name = which ? "optimizer.safetensors" : "model.safetensors";
            check_refused(&c, (const char *[]){name, tensor->name, i ? "inf" : "nan", NULL});
        }
    run_close(&run);
}

static void write_text(const char *path, const char *text) {
    write_whole(path, text, strlen(text));
}

/* What others leave where model.safetensors should be: the message says what it is and what to
   do. */
static void test_weights_that_are_not_read(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    run_open(&run, &config);
    mkdir(path_of("others"), 0777);
    struct LoadCase c = {path_of("others"), &run, .weights = true};
    const char *path = path_of("others/model.safetensors");
    write_text(path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105\n");
    check_refused(&c, (const char *[]){"model.safetensors", "Git LFS", "git lfs pull", NULL});
    unlink(path);
    check_refused(&c, (const char *[]){"model.safetensors", "No such file", NULL});
    write_text(path_of("others/pytorch_model.bin"), "x");
    check_refused(&c, (const char *[]){"pytorch_model.bin", "save_pretrained", NULL});
    write_text(path_of("others/model.safetensors.index.json"), "{}");
    check_refused(&c, (const char *[]){"model.safetensors.index.json", "max_shard_size", NULL});
    run_close(&run);
}

/* The golden model with a head of its own: `factor` times the embedding. */
static void write_headed(const char *directory, float factor) {
    struct Safetensors file;
    char path[PATH_SIZE];
    mkdir(directory, 0777);
    snprintf(path, sizeof path, "cp " GOLDEN "/config.json '%s'", directory);
    assert_int_equal(system(path), 0);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_null(safetensors_open(&file, GOLDEN "/model.safetensors"));
    const struct SafetensorsEntry *wte = safetensors_find(&file, "transformer.wte.weight");
    struct SafetensorsWriter *writer = safetensors_create(path);
    for (int i = 0; i < file.count; i++)
        safetensors_describe(writer, file.entries[i].name, ST_F32, file.entries[i].num_dims,
                             file.entries[i].shape);
    safetensors_describe(writer, "lm_head.weight", ST_F32, 2, wte->shape);
    for (int i = 0; i <= file.count; i++) {
        const struct SafetensorsEntry *entry = i < file.count ? &file.entries[i] : wte;
        float *x = malloc(entry->count * sizeof *x);
        safetensors_read(&file, entry, x, 0, entry->count);
        if (i == file.count) x[entry->count - 1] *= factor;
        safetensors_write(writer, x, entry->count * sizeof *x);
        free(x);
    }
    safetensors_commit(writer, NULL);
    safetensors_close(&file);
}

/* config.json says tied and the file holds both: equal, it is tied; unequal, it is not, and the
   head is the file's. */
static void test_a_tied_model_with_another_head(void **state) {
    (void)state;
    for (int own = 0; own < 2; own++) {
        struct ModelConfig config;
        struct Run run;
        write_headed(path_of("headed"), own ? 2 : 1);
        assert_null(checkpoint_config(path_of("headed"), &config));
        assert_int_equal(config.tied, !own);
        config.Vp = 64;
        run_open(&run, &config);
        checkpoint_load_weights(path_of("headed"), run.model, &run.weights);
        const float *wte = (const float *)model_head_weight(run.model, &run.weights);
        const float *head = wte + 61 * 36 - 1;
        const struct Tensor *embedding = &run.model->tensors[0];
        const float *data = (const float *)run.weights.data + embedding->offset + 61 * 36 - 1;
        assert_true(*head == *data * (own ? 2 : 1) && *head != 0);
        run_close(&run);
    }
}

static void test_configs(void **state) {
    (void)state;
    size_t length;
    char *text = read_whole(GOLDEN "/config.json", &length);
    struct ModelConfig config;
    mkdir(path_of("config"), 0777);
    const char *path = path_of("config/config.json"), *directory = path_of("config");
    for (size_t cut = 0; cut + 2 < length; cut++) {
        write_whole(path, text, cut);
        if (checkpoint_config(directory, &config) == NULL) fail_msg("%zu bytes accepted", cut);
    }
    free(text);
#define START \
    "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":36,\"n_positions\":24,\"vocab_size\":61"
    const struct {
        const char *text, *problem;   /* NULL: accepted */
    } rows[] = {
        {START ",\"n_head\":3}", NULL},
        {START ",\"n_head\":3,\"n_inner\":null,\"tie_word_embeddings\":false}\n", NULL},
        {START ",\"n_head\":3,\"activation_function\":\"gelu_pytorch_tanh\"}", NULL},
        {START ",\"n_head\":3} x", "not JSON"},
        {"[]", "one JSON object"},
        {"{}", "model_type"},
        {"{\"model_type\":\"llama\"}", "llama"},
        {START "}", "n_head"},
        {START ",\"n_head\":\"3\"}", "n_head"},
        {START ",\"n_head\":2.5}", "n_head"},
        {START ",\"n_head\":1e300}", "n_head"},
        {START ",\"n_head\":-1}", "n_head"},
        {START ",\"n_head\":5}", "5 heads"},
        {START ",\"n_head\":3,\"n_inner\":1e7}", "feed-forward"},
        {START ",\"n_head\":3,\"activation_function\":\"relu\"}", "activation_function"},
        {START ",\"n_head\":3,\"layer_norm_epsilon\":1e-6}", NULL},
        {START ",\"n_head\":3,\"layer_norm_epsilon\":0}", "layer_norm_epsilon"},
        {START ",\"n_head\":3,\"layer_norm_epsilon\":1e-60}", "layer_norm_epsilon"},
        {START ",\"n_head\":3,\"layer_norm_epsilon\":1}", "layer_norm_epsilon"},
        {START ",\"n_head\":3,\"layer_norm_epsilon\":\"1e-5\"}", "layer_norm_epsilon"},
        {START ",\"n_head\":3,\"scale_attn_by_inverse_layer_idx\":true}", "inverse_layer_idx"},
        {START ",\"n_head\":3,\"tie_word_embeddings\":1}", "tie_word_embeddings"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        write_whole(path, rows[i].text, strlen(rows[i].text));
        const char *problem = checkpoint_config(directory, &config);
        if ((problem == NULL) != (rows[i].problem == NULL))
            fail_msg("%s: %s", rows[i].text, problem ? problem : "accepted");
        if (problem == NULL) {
            assert_true(config.norm_epsilon == (strstr(rows[i].text, "1e-6") ? 1e-6 : 1e-5));
            continue;
        }
        if (strstr(problem, rows[i].problem) == NULL) fail_msg("%s: %s", rows[i].text, problem);
    }
    assert_non_null(strstr(checkpoint_config(path_of("nowhere"), &config), "No such file"));
}

/* ---- saving --------------------------------------------------------------------------------- */

static void test_keep_and_left_overs(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    run_open(&run, &config);
    run_fill(&run, 1);
    for (int step = 8; step <= 11; step++) save_step(&run, path_of("keep"), step, 2);
    assert_false(exists(path_of("keep/checkpoints/step_000009")));
    assert_true(exists(path_of("keep/checkpoints/step_000010")));
    assert_true(exists(path_of("keep/checkpoints/step_000011")));

    /* What killed saves leave, and what is not ours. */
    mkdir(path_of("keep/checkpoints/.writing_step_000012"), 0777);
    write_whole(path_of("keep/checkpoints/.writing_step_000012/model.safetensors"), "x", 1);
    mkdir(path_of("keep/checkpoints/.removing_step_000009"), 0777);
    mkdir(path_of("keep/checkpoints/step_best"), 0777);
    save_step(&run, path_of("keep"), 12, 0);
    assert_false(exists(path_of("keep/checkpoints/.writing_step_000012")));
    assert_false(exists(path_of("keep/checkpoints/.removing_step_000009")));
    assert_true(exists(path_of("keep/checkpoints/step_best")));
    assert_true(exists(path_of("keep/checkpoints/step_000010")));

    /* Going on from an older step: the one just saved stays, however many are newer. */
    save_step(&run, path_of("keep"), 3, 1);
    char latest[PATH_SIZE];
    assert_true(checkpoint_latest(path_of("keep"), latest, sizeof latest));
    assert_string_equal(latest, path_of("keep/checkpoints/step_000003"));
    assert_false(exists(path_of("keep/checkpoints/step_000012")));
    assert_true(exists(path_of("keep/checkpoints/step_best")));
    run_close(&run);
}

static void test_saving_over_a_step(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run, back;
    char latest[PATH_SIZE];
    run_open(&run, &config);
    run_open(&back, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("over"), 5, 0);
    run_fill(&run, 2);
    save_step(&run, path_of("over"), 5, 0);
    assert_false(exists(path_of("over/checkpoints/.replaced_step_000005")));
    assert_true(checkpoint_latest(path_of("over"), latest, sizeof latest));
    checkpoint_load_weights(latest, back.model, &back.weights);
    assert_memory_equal(back.weights.data, run.weights.data, run.n * run.ops->element_size);

    /* Killed between its two renames: the older one is found again, and left where it is: the one
       who looks may stand beside a save. */
    rename(path_of("over/checkpoints/step_000005"),
           path_of("over/checkpoints/.replaced_step_000005"));
    assert_true(checkpoint_latest(path_of("over"), latest, sizeof latest));
    checkpoint_load_weights(latest, back.model, &back.weights);
    assert_false(exists(path_of("over/checkpoints/step_000005")));
    /* The same, put back by the next save. */
    save_step(&run, path_of("over"), 6, 0);
    assert_true(exists(path_of("over/checkpoints/step_000005/model.safetensors")));
    assert_false(exists(path_of("over/checkpoints/.replaced_step_000005")));
    run_close(&run);
    run_close(&back);
}

static void test_removing_all_and_the_newest_run(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    char newest[PATH_SIZE];
    run_open(&run, &config);
    run_fill(&run, 1);
    assert_false(checkpoint_newest_run(path_of("runs"), newest, sizeof newest));
    mkdir(path_of("runs"), 0777);
    mkdir(path_of("runs/empty"), 0777);
    assert_false(checkpoint_newest_run(path_of("runs"), newest, sizeof newest));
    save_step(&run, path_of("runs/a"), 1, 0);
    save_step(&run, path_of("runs/b"), 1, 0);
    const struct timespec past[2] = {{1000, 0}, {1000, 0}};
    assert_int_equal(utimensat(AT_FDCWD, path_of("runs/b/checkpoints/latest"), past, 0), 0);
    assert_true(checkpoint_newest_run(path_of("runs"), newest, sizeof newest));
    assert_string_equal(newest, path_of("runs/a"));

    mkdir(path_of("runs/a/checkpoints/.writing_step_000002"), 0777);
    mkdir(path_of("runs/a/checkpoints/notes"), 0777);
    checkpoint_remove_all(path_of("runs/a"));
    checkpoint_remove_all(path_of("runs/empty"));
    assert_false(exists(path_of("runs/a/checkpoints/step_000001")));
    assert_false(exists(path_of("runs/a/checkpoints/.writing_step_000002")));
    assert_true(exists(path_of("runs/a/checkpoints/notes")));
    assert_false(checkpoint_latest(path_of("runs/a"), newest, sizeof newest));
    assert_true(checkpoint_newest_run(path_of("runs"), newest, sizeof newest));
    assert_string_equal(newest, path_of("runs/b"));
    run_close(&run);
}

static void latest_body(void *argument) {
    char latest[PATH_SIZE];
    checkpoint_latest(argument, latest, sizeof latest);
}

static void test_latest(void **state) {
    (void)state;
    char latest[PATH_SIZE], output[8192];
    assert_false(checkpoint_latest(path_of("none"), latest, sizeof latest));
    mkdir(path_of("damage"), 0777);
    mkdir(path_of("damage/checkpoints"), 0777);
    const char *contents[] = {"", "step_", "../../etc", "step_000001/..", "step_000001",
                              "step_000000000000000000000000000000000000000000000000000000000001"};
    for (size_t i = 0; i < sizeof contents / sizeof contents[0]; i++) {
        write_whole(path_of("damage/checkpoints/latest"), contents[i], strlen(contents[i]));
        assert_int_equal(run_in_child(latest_body, (void *)path_of("damage"), output,
                                      sizeof output), 2);
        assert_non_null(strstr(output, "damage/checkpoints/"));
    }
    /* a disk that fails is not a file that says the wrong thing */
    unlink(path_of("damage/checkpoints/latest"));
    assert_int_equal(symlink("/proc/self/mem", path_of("damage/checkpoints/latest")), 0);
    assert_int_equal(run_in_child(latest_body, (void *)path_of("damage"), output, sizeof output),
                     1);
    assert_non_null(strstr(output, "Input/output error"));
}

struct SaveCase {
    struct Run *run;
    const char *directory;
    rlim_t limit;     /* bytes a file may have; 0 = any */
    int value;        /* of every weight and first moment */
    int64_t step;
    int keep;
};

static void save_body(void *argument) {
    const struct SaveCase *c = argument;
    if (c->limit) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){c->limit, c->limit});
    }
    for (size_t i = 0; i < c->run->n; i++) c->run->optimizer.m[i] = (float)c->value;
    elements_upload(c->run->ops, c->run->weights.data, c->run->optimizer.m, c->run->n);
    save_step(c->run, c->directory, c->step, c->keep);
}

static void gone_body(void *argument) { save_into(argument, path_of("gone"), 2, 0); }

/* The run's directory was removed under it: a save makes nothing in its place. */
static void test_a_save_does_not_make_the_run(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    char output[8192];
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("gone"), 1, 0);
    remove_scratch("gone");
    assert_int_equal(run_in_child(gone_body, &run, output, sizeof output), 1);
    assert_non_null(strstr(output, "gone is gone"));
    assert_false(exists(path_of("gone")));
    run_close(&run);
}

static long allocations_left = -1;   /* until one fails; -1: none does */

static void *allocate_some(size_t bytes) {
    if (allocations_left >= 0 && allocations_left-- == 0) return NULL;
    return malloc(bytes);
}

struct MemoryCase {
    struct SaveCase save;
    long allocations;
};

static void memory_body(void *argument) {
    const struct MemoryCase *c = argument;
    allocations_left = c->allocations;
    save_body((void *)&c->save);
}

/* Every allocation of the JSON library fails in its turn: the save ends the program before `latest`
   moves, and never leaves a field out. */
static void test_saves_without_memory(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    char output[8192], latest[PATH_SIZE], directory[PATH_SIZE];
    snprintf(directory, sizeof directory, "%s", path_of("memory"));
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, directory, 1, 0);
    struct MemoryCase c = {.save = {&run, directory, .step = 2, .value = 1}};
    json_memory(allocate_some);
    int code = 1;
    for (c.allocations = 0; code != 0; c.allocations += c.allocations < 20 ? 1 : 7) {
        code = run_in_child(memory_body, &c, output, sizeof output);
        assert_true(checkpoint_latest(directory, latest, sizeof latest));
        if (code == 0) break;
        assert_int_equal(code, 1);
        assert_non_null(strstr(output, "out of memory"));
        assert_string_equal(latest, path_of("memory/checkpoints/step_000001"));
    }
    assert_true(c.allocations > 200);
    assert_string_equal(latest, path_of("memory/checkpoints/step_000002"));
    json_memory(malloc);
    run_close(&run);
}

static void test_failing_saves_leave_the_last_one(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    char output[8192], latest[PATH_SIZE];
    run_open(&run, &config);
    run_fill(&run, 1);
    write_whole(path_of("a_file"), "", 0);
    struct SaveCase in_a_file = {&run, path_of("a_file"), .step = 1};
    assert_int_equal(run_in_child(save_body, &in_a_file, output, sizeof output), 2);
    save_step(&run, path_of("full"), 1, 0);
    struct SaveCase full = {&run, path_of("full"), .limit = 100000, .step = 3};
    assert_int_equal(run_in_child(save_body, &full, output, sizeof output), 1);
    assert_non_null(strstr(output, "model.safetensors"));
    assert_true(checkpoint_latest(path_of("full"), latest, sizeof latest));
    assert_string_equal(latest, path_of("full/checkpoints/step_000001"));
    checkpoint_load_weights(latest, run.model, &run.weights);
    run_close(&run);
}

/* No directory has a checkpoint's name and not all of its files. */
static void check_no_halves(const char *directory, int64_t newest) {
    static const char *const names[] = {"model.safetensors", "optimizer.safetensors",
                                        "trainer_state.json", "config.json", "vocab.json"};
    for (int64_t step = newest - 2; step <= newest; step++) {
        char path[PATH_SIZE + 64];
        snprintf(path, sizeof path, "%s/checkpoints/step_%06d", directory, (int)step);
        size_t length = strlen(path);
        if (!exists(path)) continue;
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
            snprintf(path + length, sizeof path - length, "/%s", names[i]);
            if (!exists(path)) fail_msg("%s is missing", path);
        }
    }
}

/* Loads what `latest` names; every number of it must be the same. Returns that number. */
static float loaded_value(struct Run *back, const char *directory) {
    char latest[PATH_SIZE];
    struct Progress loaded;
    assert_true(checkpoint_latest(directory, latest, sizeof latest));
    checkpoint_load_weights(latest, back->model, &back->weights);
    checkpoint_load_optimizer(latest, back->model, &back->optimizer);
    checkpoint_load_state(latest, &loaded, NULL);
    float *host = malloc(back->n * sizeof *host);
    elements_download(back->ops, host, back->weights.data, back->n);
    float value = host[0];
    for (int i = 0; i < back->model->num_tensors; i++) {
        const struct Tensor *t = &back->model->tensors[i];
        for (size_t j = t->offset; j < t->offset + t->saved; j++)
            assert_true(host[j] == value && back->optimizer.m[j] == value);
    }
    free(host);
    return value;
}

struct KillCase {
    struct SaveCase save;
    int calls;   /* until the process dies */
};

static void kill_body(void *argument) {
    const struct KillCase *c = argument;
    calls_left = c->calls;
    save_body((void *)&c->save);
}

/* A process that dies before its first, second, ... step of a save: `latest` names the whole save
   before or the whole new one, and the next save finds its way through what was left. Once for new
   steps, once for saves over one and the same step. */
static void test_kills_leave_a_complete_checkpoint(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run, back;
    char output[8192];
    run_open(&run, &config);
    run_open(&back, &config);
    for (int over = 0; over < 2; over++) {
        const char *directory = path_of("killed%d", over);
        struct KillCase c = {{&run, directory, 0, .value = 1, .step = 1, .keep = 1}, -1};
        save_body(&c.save);
        int before = 1, code = 99;
        for (c.calls = 0; code == 99; c.calls++) {
            c.save.value++;
            if (!over) c.save.step++;
            code = run_in_child(kill_body, &c, output, sizeof output);
            assert_true(code == 99 || code == 0);
            check_no_halves(directory, c.save.step);
            int after = (int)loaded_value(&back, directory);
            assert_true(after == before || after == c.save.value);
            before = after;
        }
        assert_true(c.calls > 20);
        assert_int_equal(before, c.save.value);
    }
    run_close(&run);
    run_close(&back);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_is_bitwise),
        cmocka_unit_test(test_round_trip_of_large_tensors),
        cmocka_unit_test(test_master_weights),
        cmocka_unit_test(test_names_and_types_of_other_writers),
        cmocka_unit_test(test_misfits_are_named),
        cmocka_unit_test(test_integer_weights_are_refused),
        cmocka_unit_test(test_truncated_files_are_refused),
        cmocka_unit_test(test_damaged_files_never_crash),
        cmocka_unit_test(test_rot_is_found),
        cmocka_unit_test(test_elements_that_are_not_finite),
        cmocka_unit_test(test_weights_that_are_not_read),
        cmocka_unit_test(test_a_tied_model_with_another_head),
        cmocka_unit_test(test_state_has_bounds),
        cmocka_unit_test(test_configs),
        cmocka_unit_test(test_keep_and_left_overs),
        cmocka_unit_test(test_saving_over_a_step),
        cmocka_unit_test(test_removing_all_and_the_newest_run),
        cmocka_unit_test(test_latest),
        cmocka_unit_test(test_a_save_does_not_make_the_run),
        cmocka_unit_test(test_saves_without_memory),
        cmocka_unit_test(test_failing_saves_leave_the_last_one),
        cmocka_unit_test(test_kills_leave_a_complete_checkpoint),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
