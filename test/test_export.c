/* What checkpoints look like to other programs: files carried byte for byte, element types, the
   edits of config.json, and that nothing of it changes the bits of a resumed run. */
#include "checkpoint_rig.h"
#include "../llmc/io/safetensors.h"
#include "../llmc/checkpoint_tensors.h"
#include "../llmc/io/shards.h"

#define GOLDEN "test/golden/gpt2"

/* ---- 16-bit numbers ------------------------------------------------------------------------- */

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* The value of a 16-bit pattern, by the formats' definition. */
static double value_of(enum SafetensorsType type, uint16_t bits) {
    int exponent_bits = type == ST_F16 ? 5 : 8, mantissa_bits = 15 - exponent_bits;
    int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1);
    int mantissa = bits & ((1 << mantissa_bits) - 1), bias = (1 << (exponent_bits - 1)) - 1;
    double value = exponent == 0 ? ldexp(mantissa, 1 - bias - mantissa_bits)
                                 : ldexp((1 << mantissa_bits) + mantissa,
                                         exponent - bias - mantissa_bits);
    return bits & 0x8000 ? -value : value;
}

/* `got` is the nearest to x of all numbers of the type, and of two equally near ones the even one;
   beyond the largest, the largest. */
static void check_nearest(enum SafetensorsType type, float x, uint16_t got) {
    uint16_t largest = type == ST_F16 ? 0x7BFF : 0x7F7F, size = got & 0x7FFF;
    double error = fabs(value_of(type, got) - (double)x);
    if (size > largest || (got >> 15) != (signbit(x) != 0)) fail_msg("%a became %04x", x, got);
    for (int step = -1; step <= 1; step += 2) {
        int other = size + step;
        if (other < 0 || other > largest) continue;
        double farther = fabs(value_of(type, (uint16_t)((got & 0x8000) | other)) - (double)x);
        if (farther < error || (farther == error && size & 1))
            fail_msg("%a became %04x, and %04x is nearer", x, got, (got & 0x8000) | other);
    }
}

static void test_rounding_to_16_bits(void **state) {
    (void)state;
    static const enum SafetensorsType types[] = {ST_F16, ST_BF16};
    for (int t = 0; t < 2; t++) {
        uint16_t got;
        /* every number of the type is itself; its neighbours and the middles between two */
        for (uint32_t bits = 0; bits < 65536; bits++) {
            uint16_t largest = types[t] == ST_F16 ? 0x7BFF : 0x7F7F;
            if ((bits & 0x7FFF) > largest) continue;
            float x = (float)value_of(types[t], (uint16_t)bits);
            assert_int_equal(safetensors_narrow(&got, &x, types[t], 1), 0);
            assert_int_equal(got, bits);
            uint32_t above = (bits & 0x7FFF) == largest ? bits : bits + 1;
            float next = (float)value_of(types[t], (uint16_t)above);
            float middle = (float)(((double)x + (double)next) / 2);
            float tries[3] = {middle, nextafterf(middle, x), nextafterf(middle, next)};
            for (int i = 0; i < 3; i++) {
                safetensors_narrow(&got, &tries[i], types[t], 1);
                check_nearest(types[t], tries[i], got);
            }
        }
    }
}

/* What is finite stays so, counted; what is not stays what it is. */
static void test_beyond_the_largest(void **state) {
    (void)state;
    const float x[8] = {65504, 65519.996f, 65520, -1e6f, 0x1.fffffep127f, INFINITY, -INFINITY, NAN};
    uint16_t got[8];
    assert_int_equal(safetensors_narrow(got, x, ST_F16, 8), 3);
    static const uint16_t halves[7] = {0x7BFF, 0x7BFF, 0x7BFF, 0xFBFF, 0x7BFF, 0x7C00, 0xFC00};
    assert_memory_equal(got, halves, sizeof halves);
    assert_true((got[7] & 0x7C00) == 0x7C00 && got[7] & 0x3FF);
    assert_int_equal(safetensors_narrow(got, x + 4, ST_BF16, 4), 1);
    assert_int_equal(got[0], 0x7F7F);
    assert_int_equal(got[1], 0x7F80);
    assert_true((got[3] & 0x7F80) == 0x7F80 && got[3] & 0x7F);
    float damaged = float_of(0x7F800001);   /* a NaN whose upper half alone would be infinity */
    safetensors_narrow(got, &damaged, ST_BF16, 1);
    assert_true((got[0] & 0x7F80) == 0x7F80 && got[0] & 0x7F);
}

/* ---- config.json ---------------------------------------------------------------------------- */

static void test_one_key_of_a_text(void **state) {
    (void)state;
    static const struct { const char *text, *key, *value, *expected; } rows[] = {
        {"{\"a\": 1e-05, \"b\": 10000.0}", "b", "2", "{\"a\": 1e-05, \"b\": 2}"},
        {"{\n  \"a\" :  [1, {\"b\": 2}] ,\n  \"b\": 3\n}\n", "a", "true",
         "{\n  \"a\" :  true ,\n  \"b\": 3\n}\n"},
        {"{\"c\": {\"b\": 1}, \"x\": \"b\"}", "b", "7",
         "{\"c\": {\"b\": 1}, \"x\": \"b\",\n  \"b\": 7\n}"},
        {"{\n  \"a\": \"q\\\"}, \\\\\"\n}\n", "b", "7",
         "{\n  \"a\": \"q\\\"}, \\\\\",\n  \"b\": 7\n}\n"},
        {"{\"b\":1,\"b\":2}", "b", "3", "{\"b\":3,\"b\":3}"},
        /* readers differ in the one they take */
        {"{}", "b", "1", "{\n  \"b\": 1\n}"},
        {" { } ", "b", "1", " {\n  \"b\": 1 } "},
        {"\xEF\xBB\xBF{\"b\":0}", "b", "1", "\xEF\xBB\xBF{\"b\":1}"},
        {"{\"bb\": 1, \"a\": -2.5}", "b", "1", "{\"bb\": 1, \"a\": -2.5,\n  \"b\": 1\n}"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct Text out = {0};
        json_set(&out, rows[i].text, rows[i].key, rows[i].value);
        assert_string_equal(out.bytes, rows[i].expected);
        text_free(&out);
    }
}

/* ---- directories ---------------------------------------------------------------------------- */

#define FIRST "{\n \"model_type\" : \"gpt2\", \"x\": [1e-05, 10000.0, \"\xC3\xA9\"],\n"
#define SHAPE "\"n_layer\":2,\"n_head\":2,\"n_embd\":72,\"n_inner\":100,\"n_positions\":16," \
              "\"vocab_size\":24 }\r\n\n"

/* The files of a source, some of them nothing that this program reads. */
static const struct { const char *name, *bytes; size_t length; } source_files[] = {
    {"config.json", FIRST "\"torch_dtype\": \"bfloat16\"," SHAPE, 0},
    {"generation_config.json", "{\"eos_token_id\": [1, 2]} \n", 0},
    {"tokenizer.json", "not json \0 with a zero\n", 23},
    {"tokenizer_config.json", "{\"a\": 1e5}", 0},
    {"special_tokens_map.json", "", 0},
    {"added_tokens.json", "{}", 0},
    {"vocab.json", "{\"a\": 0}", 0},
    {"merges.txt", "#version\r\n", 0},
    {"chat_template.jinja", "{% for m in messages %}\xE2\x82\xAC{% endfor %}", 0},
    {"chat_template.json", "{\"chat_template\": \"\"}", 0},
    {"LICENSE", "as you like\n", 0},
};
enum { NUM_FILES = sizeof source_files / sizeof *source_files };
/* These stay behind. */
static const char *const not_carried[] = {"README.md", "pytorch_model.bin", "training_args.bin"};

static void write_source_files(const char *directory) {
    char path[PATH_SIZE];
    mkdir(directory, 0777);
    for (int i = 0; i < NUM_FILES; i++) {
        size_t length = source_files[i].length;
        snprintf(path, sizeof path, "%s/%s", directory, source_files[i].name);
        write_whole(path, source_files[i].bytes, length ? length : strlen(source_files[i].bytes));
    }
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, not_carried[i]);
        write_whole(path, "x", 1);
    }
}

/* A source with weights: `run`'s, the even tensors in one type and the odd ones in another. */
static void write_source(const char *directory, struct Run *run, enum SafetensorsType even,
                         enum SafetensorsType odd) {
    struct Export export = {.types = malloc((size_t)run->model->num_tensors * sizeof even)};
    for (int i = 0; i < run->model->num_tensors; i++) export.types[i] = i % 2 ? odd : even;
    write_source_files(directory);
    weights_save(run->model, &run->weights, &export, directory, NULL);
    free(export.types);
}

static void check_files(const char *checkpoint) {
    char path[PATH_SIZE];
    for (int i = 0; i < NUM_FILES; i++) {
        size_t length, expected = source_files[i].length;
        if (!expected) expected = strlen(source_files[i].bytes);
        snprintf(path, sizeof path, "%s/%s", checkpoint, source_files[i].name);
        char *bytes = read_whole(path, &length);
        if (length != expected || memcmp(bytes, source_files[i].bytes, length) != 0)
            fail_msg("%s differs from the source's", path);
        free(bytes);
    }
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", checkpoint, not_carried[i]);
        assert_false(exists(path));
    }
}

/* The types in a checkpoint: even tensors, odd tensors. */
static void check_types(const char *checkpoint, const struct Model *model,
                        enum SafetensorsType even, enum SafetensorsType odd) {
    struct Shards shards;
    const struct Safetensors *file;
    assert_null(shards_open(&shards, checkpoint, "model", true));
    for (int i = 0; i < model->num_tensors; i++)
        assert_int_equal(shards_find(&shards, model->tensors[i].name, &file)->type,
                         i % 2 ? odd : even);
    shards_close(&shards);
}

/* A source that is gone after it was read: its files are in every checkpoint, and in those of a run
   that goes on from one; each tensor has the source's type. */
static void test_files_are_carried(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    struct Export export;
    run_open(&run, &config);
    run_fill(&run, 1);
    write_source(path_of("source"), &run, ST_BF16, ST_F32);
    export_open(&export, path_of("source"), run.model, "auto", 0);
    remove_scratch("source");
    mkdir(path_of("run"), 0777);
    for (int i = 1; i <= 2; i++) {
        save_as(&run, &export, path_of("run"), i, 0);
        export_close(&export);
        const char *checkpoint = path_of("run/checkpoints/step_00000%d", i);
        check_files(checkpoint);
        check_types(checkpoint, run.model, ST_BF16, ST_F32);
        export_open(&export, checkpoint, run.model, "auto", 0);
    }
    export_close(&export);
    run_close(&run);
}

/* What is missing is left out, and what cannot be read is named. */
static void open_export(void *directory) {
    struct ModelConfig config = small_config(true);
    struct Run run;
    struct Export export;
    run_open(&run, &config);
    export_open(&export, directory, run.model, "auto", 0);
}

static void test_files_that_are_not_there(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    struct Export export;
    char said[4096];
    run_open(&run, &config);
    run_fill(&run, 1);
    write_source(path_of("few"), &run, ST_F32, ST_F32);
    for (int i = 1; i < NUM_FILES; i++) unlink(path_of("few/%s", source_files[i].name));
    export_open(&export, path_of("few"), run.model, "auto", 0);
    mkdir(path_of("fewer"), 0777);
    save_as(&run, &export, path_of("fewer"), 1, 0);
    assert_true(exists(path_of("fewer/checkpoints/step_000001/config.json")));
    for (int i = 1; i < NUM_FILES; i++)
        assert_false(exists(path_of("fewer/checkpoints/step_000001/%s", source_files[i].name)));
    export_close(&export);
    mkdir(path_of("few/tokenizer.json"), 0777);
    assert_int_equal(run_in_child(open_export, (void *)(uintptr_t)path_of("few"), said,
                                  sizeof said), 2);
    assert_non_null(strstr(said, "few/tokenizer.json: it is not a regular file"));
    run_close(&run);
}

/* --save-dtype: config.json is the source's but for the type's name; a tie that the file's head
   undid is undone there too. */
static void test_config_names_the_type(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true), untied = small_config(false);
    static const struct {
        const char *dtype, *key, *expected;
        enum SafetensorsType type;
    } rows[] = {
        {"auto", "\"dtype\": \"float32\",", "\"dtype\": \"float32\",", ST_BF16},
        {"bf16", "\"dtype\": \"float32\",", "\"dtype\": \"float32\",", ST_BF16},   /* as it was */
        {"fp32", "\"dtype\": \"bfloat16\",", "\"dtype\": \"float32\",", ST_F32},
        {"fp16", "\"torch_dtype\" :null,", "\"torch_dtype\" :\"float16\",", ST_F16},
    };
    struct Run run;
    run_open(&run, &config);
    run_fill(&run, 1);
    write_source(path_of("typed"), &run, ST_BF16, ST_BF16);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[1024], expected[1024];
        struct Export export;
        struct Text out = {0};
        snprintf(text, sizeof text, FIRST "%s" SHAPE, rows[i].key);
        snprintf(expected, sizeof expected, FIRST "%s" SHAPE, rows[i].expected);
        write_whole(path_of("typed/config.json"), text, strlen(text));
        export_open(&export, path_of("typed"), run.model, rows[i].dtype, 0);
        assert_int_equal(export_type(&export, 3), rows[i].type);
        export_config(&out, &export, &config, 0);
        assert_string_equal(out.bytes, expected);
        text_free(&out);
        if (i == 0) {
            export_config(&out, &export, &untied, 0);
            assert_non_null(strstr(out.bytes, "\"vocab_size\":24,\n"
                                              "  \"tie_word_embeddings\": false"));
            text_free(&out);
        }
        export_close(&export);
    }
    /* float64 comes back as float32, and says so; fresh weights have the type that is asked for */
    struct Export export = {.types = NULL};
    struct Text out = {0};
    export_open(&export, "", run.model, "bf16", 0);
    export_config(&out, &export, &config, 23);
    assert_non_null(strstr(out.bytes, "\"torch_dtype\":\t\"bfloat16\""));
    assert_int_equal(export_type(&export, 0), ST_BF16);
    export_close(&export);
    text_free(&out);
    run_close(&run);
}

static void test_sizes_of_shards(void **state) {
    (void)state;
    assert_int_equal(export_shard_bytes("5GB"), 5000000000);
    assert_int_equal(export_shard_bytes("1.5MB"), 1500000);
    assert_int_equal(export_shard_bytes("20KB"), 20000);
    static const char *const wrong[] = {"", "5", "GB", "-1GB", "5 GB", "5gb", "5GiB", "0MB",
                                        "nanGB", "infGB", "1e30GB", "5GBx"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(export_shard_bytes(wrong[i]), 0);
}

/* ---- the tokens that end a text ------------------------------------------------------------- */

static void test_ends(void **state) {
    (void)state;
    static const struct { const char *config, *generation; int ids[4], count; } rows[] = {
        {"{\"eos_token_id\": 5}", NULL, {5}, 1},
        {"{\"eos_token_id\": [5, 7]}", NULL, {5, 7}, 2},
        {"{\"eos_token_id\": 5}", "{\"eos_token_id\": [7, 5, 3]}", {5, 7, 3}, 3},
        {"{\"eos_token_id\": null}", "{\"eos_token_id\": 2}", {2}, 1},
        {"{}", "{}", {0}, 0},
        {"{\"eos_token_id\": 50256}", "{\"eos_token_id\": [-1, 9, 10]}", {9}, 1},
    };
    mkdir(path_of("ends"), 0777);   /* the vocabulary has 10 words */
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct Ends ends = {.count = 0};
        write_whole(path_of("ends/config.json"), rows[i].config, strlen(rows[i].config));
        unlink(path_of("ends/generation_config.json"));
        if (rows[i].generation)
            write_whole(path_of("ends/generation_config.json"), rows[i].generation,
                        strlen(rows[i].generation));
        assert_null(checkpoint_ends(path_of("ends"), 10, &ends));
        assert_int_equal(ends.count, rows[i].count);
        for (int k = 0; k < ends.count; k++) assert_int_equal(ends.id[k], rows[i].ids[k]);
    }
    static const struct { const char *text, *words; } wrong[] = {
        {"{\"eos_token_id\": \"5\"}", "number"}, {"{\"eos_token_id\": [5, true]}", "number"},
        {"{\"eos_token_id\": {}}", "number"}, {"[]", "object"}, {"", "JSON"},
        {"{\"eos_token_id\": [0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16]}", "16"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct Ends ends = {.count = 0};
        write_whole(path_of("ends/generation_config.json"), wrong[i].text, strlen(wrong[i].text));
        const char *problem = checkpoint_ends(path_of("ends"), 100, &ends);
        assert_non_null(problem);
        if (!strstr(problem, "generation_config.json") || !strstr(problem, wrong[i].words))
            fail_msg("%s", problem);
    }
}

/* ---- bits ----------------------------------------------------------------------------------- */

/* A backend that computes in `dtype`, in all else the CPU's. */
static void compute_in(struct Run *run, struct Ops *ops, const char *dtype) {
    *ops = *run->ops;
    ops->dtype = dtype;
    run->ops = run->model->ops = ops;
}

/* Everything training goes on with comes back bit for bit, whatever the weights are saved in. */
static void test_resume_is_bitwise_in_every_type(void **state) {
    (void)state;
    static const struct { const char *computes, *saves; bool masters, weights; } rows[] = {
        {"fp32", "fp32", false, false}, {"fp32", "bf16", true, false},
        {"fp32", "fp16", true, false}, {"bf16", "fp32", true, false},
        {"bf16", "fp16", true, true}, {"fp16", "bf16", true, true},
    };
    struct ModelConfig config = small_config(true);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct Run run, back;
        struct Ops ops[2];
        struct Export export;
        run_open(&run, &config), run_open(&back, &config);
        run_fill(&run, 1);
        compute_in(&run, &ops[0], rows[i].computes), compute_in(&back, &ops[1], rows[i].computes);
        size_t bytes = run.n * sizeof(float);
        bool has_masters = strcmp(rows[i].computes, "fp32") != 0;
        if (has_masters) {
            run.optimizer.master = calloc(run.n, sizeof(float));
            for (int t = 0; t < run.model->num_tensors; t++)
                fill_normal(run.optimizer.master + run.model->tensors[t].offset,
                            run.model->tensors[t].saved, 1, (uint64_t)t + 9000);
            back.optimizer.master = back.weights.master = malloc(bytes);
        }
        export_open(&export, "", run.model, rows[i].saves, 0);
        const char *directory = path_of("%s-%s", rows[i].computes, rows[i].saves);
        mkdir(directory, 0777);
        save_as(&run, &export, directory, 1, 0);
        char latest[PATH_SIZE];
        assert_true(checkpoint_latest(directory, latest, sizeof latest));
        checkpoint_load_weights(latest, back.model, &back.weights);
        run_load_optimizer(&back, latest);
        assert_memory_equal(back.weights.data, run.weights.data, bytes);
        assert_memory_equal(back.optimizer.m, run.optimizer.m, bytes);
        assert_memory_equal(back.optimizer.v, run.optimizer.v, bytes);
        if (has_masters) assert_memory_equal(back.optimizer.master, run.optimizer.master, bytes);
        struct Shards shards;
        const struct Safetensors *file;
        assert_null(shards_open(&shards, latest, "optimizer", true));
        const char *name = "transformer.wte.weight";
        char full[128];
        snprintf(full, sizeof full, "master.%s", name);
        assert_int_equal(shards_find(&shards, full, &file) != NULL, rows[i].masters);
        snprintf(full, sizeof full, "weight.%s", name);
        assert_int_equal(shards_find(&shards, full, &file) != NULL, rows[i].weights);
        shards_close(&shards);
        if (has_masters) free(run.optimizer.master), free(back.optimizer.master);
        export_close(&export);
        run_close(&run), run_close(&back);
    }
}

/* A float32 run that goes on in another type starts from its float32 weights, not from the file's
   rounded ones: one rounding. One that computed in 16 bits starts from the file's. */
static void test_resume_in_another_type(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run, back;
    struct Export export;
    struct Ops ops;
    run_open(&run, &config), run_open(&back, &config);
    run_fill(&run, 1);
    size_t bytes = run.n * sizeof(float);
    export_open(&export, "", run.model, "bf16", 0);
    mkdir(path_of("another"), 0777);
    save_as(&run, &export, path_of("another"), 1, 0);
    const char *checkpoint = path_of("another/checkpoints/step_000001");
    compute_in(&back, &ops, "bf16");   /* its elements are floats, so its rounding is none */
    back.optimizer.master = back.weights.master = malloc(bytes);
    checkpoint_load_weights(checkpoint, back.model, &back.weights);
    assert_memory_not_equal(back.weights.master, run.weights.data, bytes);
    float *rounded = memcpy(malloc(bytes), back.weights.master, bytes);
    checkpoint_load_optimizer(checkpoint, back.model, &back.weights, &back.optimizer, "fp16");
    assert_memory_equal(back.weights.master, rounded, bytes);
    assert_memory_equal(back.weights.data, rounded, bytes);
    checkpoint_load_optimizer(checkpoint, back.model, &back.weights, &back.optimizer, "fp32");
    assert_memory_equal(back.weights.master, run.weights.data, bytes);
    assert_memory_equal(back.weights.data, run.weights.data, bytes);
    free(rounded), free(back.optimizer.master);
    export_close(&export);
    run_close(&run), run_close(&back);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounding_to_16_bits),
        cmocka_unit_test(test_beyond_the_largest),
        cmocka_unit_test(test_one_key_of_a_text),
        cmocka_unit_test(test_files_are_carried),
        cmocka_unit_test(test_files_that_are_not_there),
        cmocka_unit_test(test_config_names_the_type),
        cmocka_unit_test(test_sizes_of_shards),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_resume_is_bitwise_in_every_type),
        cmocka_unit_test(test_resume_in_another_type),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
