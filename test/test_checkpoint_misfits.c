/* Checkpoints that do not fit or are damaged: what is refused, and by which words. */
#include "checkpoint_rig.h"
#include <errno.h>
#include "../llmc/base/check.h"
#include "../llmc/io/safetensors.h"

#define GOLDEN "test/golden/gpt2"

/* ---- what does not fit ---------------------------------------------------------------------- */

/* Removes the checksums, so that a damaged file is read, as files of other programs are. */
static void forget_checksums(const char *directory) {
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/checksums", directory);
    assert_int_equal(unlink(path), 0);
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

/* One changed bit, or a lost end, anywhere in any file of a checkpoint: all are found, and the
   message names the file. */
static void test_rot_is_found(void **state) {
    (void)state;
    static const char *const names[] = {"model.safetensors", "optimizer.safetensors",
                                        "trainer_state.json", "config.json", "vocab.json",
                                        "merges.txt", "tokenizer.json", "tokenizer_config.json",
                                        "checksums"};
    enum { ROUNDS = 16 };
    struct ModelConfig config = small_config(true);
    struct Run run;
    struct Rng rng;
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("rot"), 1, 0);
    const char *directory = path_of("rot/checkpoints/step_000001");
    struct LoadCase all = {directory, &run, true, true, true, true, true};
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

static void load_within_seconds(void *argument) {
    alarm(5);   /* a reader that waits for a pipe's writer would wait for ever */
    load_body(argument);
}

/* Files of a checkpoint that are not there, or are a directory or a named pipe: refused by name,
   where the checksums list them and where nothing does. */
static void test_files_that_are_no_files(void **state) {
    (void)state;
    static const char *const names[] = {"merges.txt", "tokenizer_config.json", "vocab.json",
                                        "tokenizer.json", "config.json", "trainer_state.json",
                                        "model.safetensors", "optimizer.safetensors", "checksums"};
    struct ModelConfig config = small_config(true);
    struct Run run;
    run_open(&run, &config);
    run_fill(&run, 1);
    for (int listed = 1; listed >= 0; listed--) {
        save_step(&run, path_of("odd"), 1, 0);
        char directory[PATH_SIZE - 64];   /* path_of's own are used again in the loop */
        snprintf(directory, sizeof directory, "%.1000s", path_of("odd/checkpoints/step_000001"));
        if (!listed) forget_checksums(directory);
        struct LoadCase all = {directory, &run, true, true, true, true, true};
        for (size_t i = 0; i < sizeof names / sizeof *names; i++)
            for (int instead = 0; instead < 3; instead++) {   /* nothing, a directory, a pipe */
                const char *path = path_of("odd/checkpoints/step_000001/%s", names[i]);
                if (!listed && i < 4 && !instead) continue;   /* none of these is needed */
                if (i == 8 && !(listed && instead)) continue;   /* without it: not listed */
                char output[8192];
                rename(path, path_of("aside"));
                if (instead == 1) mkdir(path, 0777);
                if (instead == 2) mkfifo(path, 0666);
                int code = run_in_child(load_within_seconds, &all, output, sizeof output);
                if (code != 2 || !strstr(output, names[i]))
                    fail_msg("%s, %d, listed %d: %d %s", names[i], instead, listed, code, output);
                remove(path);
                rename(path_of("aside"), path);
            }
        load_body(&all);
        remove_scratch("odd");
    }
    run_close(&run);
}

/* A second moment is a mean of squares: one below zero would make a NaN of its weight. */
static void test_negative_second_moment(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    run_open(&run, &config);
    run_fill(&run, 1);
    const struct Tensor *tensor = &run.model->tensors[3];
    run.optimizer.v[tensor->offset + 1] = -0.25f;
    save_step(&run, path_of("negative"), 1, 0);
    struct LoadCase c = {path_of("negative/checkpoints/step_000001"), &run, .optimizer = true};
    check_refused(&c, (const char *[]){"optimizer.safetensors", "exp_avg_sq.", tensor->name,
                                       "element 1 is -0.25", NULL});
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
    check_refused(&c, (const char *[]){"model.safetensors.index.json", "weight_map", NULL});
    /* and before anything that the directory lacks too, such as a tokenizer */
    struct LoadCase whole = {path_of("others"), &run, .config = true, .tokenizer = true};
    size_t length;
    char *text = read_whole(GOLDEN "/config.json", &length);
    write_whole(path_of("others/config.json"), text, length);
    free(text);
    check_refused(&whole, (const char *[]){"model.safetensors.index.json", "weight_map", NULL});
    unlink(path_of("others/model.safetensors.index.json"));
    check_refused(&whole, (const char *[]){"pytorch_model.bin", "save_pretrained", NULL});
    write_text(path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105\n");
    check_refused(&whole, (const char *[]){"model.safetensors", "git lfs pull", NULL});
    run_close(&run);
}

/* The golden model with a head of its own: `factor` times the embedding, or its shape turned. */
static void write_headed(const char *directory, float factor, bool turned) {
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
    const int64_t shape[2] = {wte->shape[turned], wte->shape[!turned]};
    safetensors_describe(writer, "lm_head.weight", ST_F32, 2, shape);
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
        write_headed(path_of("headed"), own ? 2 : 1, false);
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
    /* one of another shape is no embedding either: it is not dropped, so loading refuses it */
    struct ModelConfig config;
    struct Run run;
    write_headed(path_of("headed"), 1, true);
    assert_null(checkpoint_config(path_of("headed"), &config));
    config.Vp = 64;
    run_open(&run, &config);
    struct LoadCase c = {path_of("headed"), &run, .weights = true};
    check_refused(&c, (const char *[]){"lm_head.weight", "[36, 61]", "[61, 36]", NULL});
    run_close(&run);
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
        {"{\"model_type\":\"bert\"}", "bert"},
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_misfits_are_named),
        cmocka_unit_test(test_integer_weights_are_refused),
        cmocka_unit_test(test_truncated_files_are_refused),
        cmocka_unit_test(test_damaged_files_never_crash),
        cmocka_unit_test(test_rot_is_found),
        cmocka_unit_test(test_files_that_are_no_files),
        cmocka_unit_test(test_negative_second_moment),
        cmocka_unit_test(test_elements_that_are_not_finite),
        cmocka_unit_test(test_weights_that_are_not_read),
        cmocka_unit_test(test_a_tied_model_with_another_head),
        cmocka_unit_test(test_state_has_bounds),
        cmocka_unit_test(test_configs),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
