/* io: lines in, JSON lines out, the tokenizer's files. safetensors: test_safetensors.c */
#include "io_rig.h"
#include <cjson/cJSON.h>
#include "../llmc/base/check.h"
#include "../llmc/io/jsonl.h"
#include "../llmc/io/lines.h"
#include "../llmc/io/tokenizer.h"

/* ---- lines ----------------------------------------------------------------------------------- */

/* Every line of the file, its number and length, and whether it has a zero byte. */
static void reads_lines(void *path) {
    struct Lines lines;
    lines_open(&lines, path, "--score");
    while (lines_next(&lines))
        printf("%ld:%zu%s ", lines.number, lines.length, lines_has_zero(&lines) ? "z" : "");
    lines_close(&lines);
}

static void test_lines(void **state) {
    (void)state;
    static const struct { const char *bytes; size_t length; const char *said; } cases[] = {
        {"", 0, ""}, {"\n", 1, "1:1 "}, {"ab\n\nc", 5, "1:3 2:1 3:1 "},
        {"\0ab\nc\0\n", 7, "1:4z 2:3z "}, {"a\r\nb\0", 5, "1:3 2:2z "},
    };
    char path[128];
    snprintf(path, sizeof path, "%s", in_folder("lines"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_bytes(path, cases[i].bytes, cases[i].length);
        assert_int_equal(run_in_child(reads_lines, path, output, sizeof output), 0);
        assert_string_equal(output, cases[i].said);
    }
    assert_int_equal(run_in_child(reads_lines, folder, output, sizeof output), 2);
    assert_non_null(strstr(output, "cannot read --score"));
    assert_non_null(strstr(output, "Is a directory"));
    assert_int_equal(run_in_child(reads_lines, "/no/such", output, sizeof output), 2);
    assert_non_null(strstr(output, "No such file"));
    assert_int_equal(run_in_child(reads_lines, "/proc/self/mem", output, sizeof output), 1);
    assert_non_null(strstr(output, "Input/output error"));
}

/* Wherever the disk fails, the lines before are given and then the program ends. */
static void test_lines_of_a_failing_disk(void **state) {
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s", in_folder("failing"));
    write_bytes(path, "one\ntwo\nthree\n", 14);
    bad_path = path;
    for (bad_after = 0; bad_after <= 14; bad_after++)
        for (int once = 0; once < 2; once++) {
            bad_once = once;
            assert_int_equal(run_in_child(reads_lines, path, output, sizeof output), 1);
            assert_non_null(strstr(output, "Input/output error"));
            assert_int_equal(strstr(output, "1:4 ") != NULL, bad_after >= 4);
            assert_int_equal(strstr(output, "2:4 ") != NULL, bad_after >= 8);
        }
    bad_path = NULL;
}

/* ---- jsonl ----------------------------------------------------------------------------------- */

static void test_jsonl_line(void **state) {
    (void)state;
    struct Jsonl out;
    const char *path = in_folder("log");
    int integers[] = {1, -2, 3};
    float numbers[] = {0.5f, NAN, -INFINITY, 1e-30f};
    jsonl_open(&out, path);
    jsonl_begin(&out);
    jsonl_integer(&out, "step", INT64_MIN);
    jsonl_number(&out, "clip_ratio/low_mean", 0.1f);
    jsonl_double(&out, "double", 0.1);
    jsonl_number(&out, "nan", NAN);
    jsonl_boolean(&out, "yes", true);
    jsonl_string(&out, "text", "a\"\\\n\t\0b", 7);
    jsonl_integers(&out, "i", integers, 3);
    jsonl_numbers(&out, "f", numbers, 4);
    jsonl_numbers(&out, "none", numbers, 0);
    jsonl_end(&out);
    char *text = read_bytes(path, NULL);   /* there before the file is closed */
    assert_string_equal(text,
        "{\"step\": -9223372036854775808, \"clip_ratio/low_mean\": 0.100000001, "
        "\"double\": 0.10000000000000001, \"nan\": null, \"yes\": true, "
        "\"text\": \"a\\\"\\\\\\n\\u0009\\u0000b\", \"i\": [1, -2, 3], "
        "\"f\": [0.5, null, null, 1e-30], \"none\": []}\n");
    jsonl_close(&out);
}


/* Numbers come back to the bit, whatever they are. */
static void test_jsonl_numbers_come_back(void **state) {
    (void)state;
    enum { N = 2000 };
    struct Rng rng;
    rng_open(&rng, 1, RNG_TEST, 0);
    static float x[N];
    struct Jsonl out;
    const char *path = in_folder("numbers");
    remove(path);
    jsonl_open(&out, path);
    jsonl_begin(&out);
    for (int i = 0; i < N; i++) {
        uint32_t bits = rng_next(&rng);
        memcpy(&x[i], &bits, sizeof bits);
        if (!isfinite(x[i])) x[i] = 0;
    }
    jsonl_numbers(&out, "x", x, N);
    jsonl_double(&out, "d", 1.0 / 3);
    jsonl_end(&out);
    jsonl_close(&out);
    cJSON *root = cJSON_Parse(read_bytes(path, NULL));
    assert_non_null(root);
    int i = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(root, "x")) {
        float back = (float)item->valuedouble;
        assert_memory_equal(&back, &x[i], sizeof back);
        i++;
    }
    assert_int_equal(i, N);
    assert_true(cJSON_GetObjectItem(root, "d")->valuedouble == 1.0 / 3);
    cJSON_Delete(root);
}

/* Logs the string; its text in the file must be `text`. */
static void check_string(const char *bytes, size_t length, const char *text) {
    struct Jsonl out;
    char expected[128];
    const char *path = in_folder("utf8");
    remove(path);
    jsonl_open(&out, path);
    jsonl_begin(&out);
    jsonl_string(&out, "s", bytes, length);
    jsonl_end(&out);
    jsonl_close(&out);
    snprintf(expected, sizeof expected, "{\"s\": \"%s\"}\n", text);
    assert_string_equal(read_bytes(path, NULL), expected);
}

/* Strings of any bytes: valid UTF-8 stays, the rest becomes U+FFFD, one for each byte. */
static void test_jsonl_utf8(void **state) {
    (void)state;
    static const struct { const char *bytes, *text; } cases[] = {
        {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"},
        {"\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF", "\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF"},
        {"a\x80z", "a\\ufffdz"},                          /* continuation alone */
        {"\xC0\xAF", "\\ufffd\\ufffd"},                   /* overlong */
        {"\xE0\x9F\xBF", "\\ufffd\\ufffd\\ufffd"},
        {"\xF0\x8F\xBF\xBF", "\\ufffd\\ufffd\\ufffd\\ufffd"},
        {"\xED\xA0\x80", "\\ufffd\\ufffd\\ufffd"},        /* surrogate */
        {"\xF4\x90\x80\x80", "\\ufffd\\ufffd\\ufffd\\ufffd"},
        {"\xF5\xFF", "\\ufffd\\ufffd"},
        {"\xE2\x82z", "\\ufffd\\ufffdz"},
        {"\x01\x1F\x7F", "\\u0001\\u001f\x7F"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_string(cases[i].bytes, strlen(cases[i].bytes), cases[i].text);
    check_string("\xE2\x82\xAC", 2, "\\ufffd\\ufffd");   /* cut: the third byte is not ours */
}

static void logs_a_line(void *path) {
    struct Jsonl out;
    jsonl_open(&out, path);
    jsonl_begin(&out);
    jsonl_end(&out);
    jsonl_close(&out);
}

static void cuts(void *path) { jsonl_cut(path, "step", 3); }

static void test_jsonl_failures(void **state) {
    (void)state;
    assert_int_equal(run_in_child(logs_a_line, "/dev/full", output, sizeof output), 1);
    assert_string_equal(output,
                        "train: error: cannot write /dev/full: No space left on device\n");
    assert_int_equal(run_in_child(logs_a_line, "/no/such/log", output, sizeof output), 2);
    assert_int_equal(run_in_child(logs_a_line, folder, output, sizeof output), 2);
    assert_int_equal(run_in_child(cuts, folder, output, sizeof output), 2);
    assert_int_equal(run_in_child(cuts, "/no/such/log", output, sizeof output), 0);
}

/* A log that cannot be read to its end is not replaced by what could be read. */
static void test_jsonl_cut_on_a_failing_disk(void **state) {
    (void)state;
    static char log[8192];
    char path[128], temporary[160];
    size_t length = 0, after;
    for (int i = 0; i < 256; i++)
        length += (size_t)sprintf(log + length, "{\"step\": %d, \"x\": 1}\n", i % 3);
    snprintf(path, sizeof path, "%s", in_folder("long"));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    write_bytes(path, log, length);
    bad_path = path;
    for (bad_after = 0; bad_after <= length; bad_after += length / 17)
        for (int once = 0; once < 2; once++) {
            bad_once = once;
            assert_int_equal(run_in_child(cuts, path, output, sizeof output), 1);
            assert_non_null(strstr(output, "Input/output error"));
            const char *bad = bad_path;
            bad_path = NULL;
            assert_memory_equal(read_bytes(path, &after), log, length);
            bad_path = bad;
            assert_int_equal(after, length);
            assert_int_not_equal(access(temporary, F_OK), 0);
        }
    bad_path = NULL;
}

/* What a power failure can leave: zeros at the end of the file, or in the middle of a line. */
static void test_jsonl_cut_drops_zero_bytes(void **state) {
    (void)state;
    const char *path = in_folder("zeros");
    static const char before[] = "{\"step\": 1}\n{\"step\0: 2}\n\0\0\0\0\n{\"step\": 3}\n\0\0\0";
    write_bytes(path, before, sizeof before - 1);
    jsonl_cut(path, "step", 3);
    assert_string_equal(read_bytes(path, NULL), "{\"step\": 1}\n{\"step\": 3}\n");
}

static void test_jsonl_cut(void **state) {
    (void)state;
    static const struct { const char *before, *after; } cases[] = {
        {"", ""},
        {"{\"step\": 1}\n{\"step\": 4}\n{\"step\": 3}\n", "{\"step\": 1}\n{\"step\": 3}\n"},
        {"{\"step\": 1}\n{\"step\": 2", "{\"step\": 1}\n"},                    /* torn */
        {"{\"other\": 9}\n{\"a\": {\"step\": 9}}\n", "{\"other\": 9}\n{\"a\": {\"step\": 9}}\n"},
        {"{\"Step\": 9}\n{\"step\": \"9\"}\nnot JSON 9\n\n",
         "{\"Step\": 9}\n{\"step\": \"9\"}\nnot JSON 9\n\n"},
        {"{\"x\": \"\\\"step\\\": 9\", \"step\": 2}\n{\"x\": 1, \"step\": 1e3}\n",
         "{\"x\": \"\\\"step\\\": 9\", \"step\": 2}\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = in_folder("cut");
        write_bytes(path, cases[i].before, strlen(cases[i].before));
        jsonl_cut(path, "step", 3);
        assert_string_equal(read_bytes(path, NULL), cases[i].after);
    }
    assert_int_not_equal(access(in_folder("cut.tmp"), F_OK), 0);
}

/* ---- tokenizer ------------------------------------------------------------------------------- */

static void test_tokenizer(void **state) {
    (void)state;
    struct Tokenizer t;
    int ids[8];
    char text[8];
    tokenizer_from_alphabet(&t, "01+ ");
    assert_int_equal(t.vocab_size, 5);
    assert_int_equal(t.end_of_text, 4);
    assert_int_equal(tokenizer_encode(&t, "1+ 0", ids, 8), 4);
    assert_memory_equal(ids, ((int[]){1, 2, 3, 0}), 4 * sizeof *ids);
    assert_int_equal(tokenizer_encode(&t, "", ids, 0), 0);
    assert_int_equal(tokenizer_encode(&t, "1x", ids, 8), -1);
    assert_int_equal(tokenizer_encode(&t, "\xC3\xA9", ids, 8), -1);
    assert_int_equal(tokenizer_encode(&t, "1111", ids, 4), 4);
    assert_int_equal(tokenizer_encode(&t, "11111", ids, 4), -1);
    static const struct { int ids[6], count; const char *text; } cases[] = {
        {{1, 2, 0}, 3, "1+0"}, {{1, 4, 0}, 3, "1"}, {{4}, 1, ""}, {{0}, 0, ""},
        {{-1, 5, 1000000, 3}, 4, "??? "},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int n = tokenizer_decode(&t, cases[i].ids, cases[i].count, text, sizeof text);
        assert_string_equal(text, cases[i].text);
        assert_int_equal(n, strlen(text));
    }
    assert_int_equal(tokenizer_decode(&t, (int[]){1, 1, 1}, 3, text, 3), 2);
    assert_string_equal(text, "11");
    assert_int_equal(tokenizer_decode(&t, (int[]){1}, 1, text, 1), 0);
    assert_string_equal(text, "");
}

/* The files' text (transformers reads it: GPT-2 spells a space as U+0120), and back. */
static void test_tokenizer_files(void **state) {
    (void)state;
    struct Tokenizer written, read;
    tokenizer_from_alphabet(&written, "01 \n\"\\:\x7F~!");
    tokenizer_save(&written, folder, 16, NULL);
    assert_string_equal(read_bytes(in_folder("merges.txt"), NULL), "#version: 0.2\n");
    assert_string_equal(read_bytes(in_folder("vocab.json"), NULL),
        "{\n\t\"0\":\t0,\n\t\"1\":\t1,\n\t\"\xC4\xA0\":\t2,\n\t\"\xC4\x8A\":\t3,\n\t\"\\\"\":\t4,\n"
        "\t\"\\\\\":\t5,\n\t\":\":\t6,\n\t\"\xC4\xA1\":\t7,\n\t\"~\":\t8,\n\t\"!\":\t9,\n"
        "\t\"<|endoftext|>\":\t10\n}\n");
    cJSON *config = cJSON_Parse(read_bytes(in_folder("tokenizer_config.json"), NULL));
    assert_int_equal(cJSON_GetObjectItem(config, "model_max_length")->valueint, 16);
    assert_string_equal(cJSON_GetObjectItem(config, "tokenizer_class")->valuestring,
                        "GPT2Tokenizer");
    cJSON_Delete(config);
    assert_null(tokenizer_load(&read, folder));
    assert_memory_equal(&read, &written, sizeof read);
}

/* What transformers 5 saves: tokenizer.json alone. Read where it is a vocabulary of characters. */
static void test_tokenizer_library_file(void **state) {
    (void)state;
#define MODEL(vocab, merges) \
    "{\"model\": {\"type\": \"BPE\", \"vocab\": " vocab ", \"merges\": " merges "}"
#define ADDED(id) ", \"added_tokens\": [" END(id) "]}"
#define END(id) "{\"id\": " #id ", \"content\": \"<|endoftext|>\", \"special\": true}"
    static const struct { const char *text, *wrong; } cases[] = {
        {MODEL("{\"1\": 1, \"0\": 0, \"\xC4\xA0\": 2, \"<|endoftext|>\": 3}", "[]") ADDED(3), NULL},
        {MODEL("{\"0\": 0, \"1\": 1, \"\xC4\xA0\": 2}", "[]") ADDED(3), NULL},
        {MODEL("{\"0\": 0, \"1\": 1, \"\xC4\xA0\": 2, \"<|endoftext|>\": 3}", "[]") "}", NULL},
        {MODEL("{\"0\": 0, \"1\": 1}", "[]") ADDED(3), "leaves out"},
        {MODEL("{\"0\": 0, \"1\": 1}", "[]") ADDED(1), "there twice"},
        {MODEL("{\"0\": 0}", "[]") "}", "no <|endoftext|>"},
        {MODEL("{\"0\": 0, \"01\": 1}", "[]") "}", "not one ASCII character"},
        {MODEL("{\"0\": 0, \"1\": 1}", "[[\"0\", \"1\"]]") "}", "joins characters"},
        {MODEL("[[\"0\", -1.5]]", "[]") "}", "no tokens with ids"},
        {MODEL("{\"0\": 0}", "[]") ", \"added_tokens\": [{\"id\": 1}]}", "without content"},
        {"{}", "no tokens with ids"},
        {"[", "not JSON"},
    };
    remove(in_folder("vocab.json"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Tokenizer t;
        int ids[4];
        write_bytes(in_folder("tokenizer.json"), cases[i].text, strlen(cases[i].text));
        const char *wrong = tokenizer_load(&t, folder);
        if ((wrong == NULL) != (cases[i].wrong == NULL) ||
            (wrong && (!strstr(wrong, cases[i].wrong) || !strstr(wrong, "tokenizer.json"))))
            fail_msg("%s: \"%s\"", cases[i].text, wrong ? wrong : "accepted");
        if (wrong) continue;
        assert_int_equal(t.end_of_text, 3);
        assert_int_equal(tokenizer_encode(&t, "10 ", ids, 4), 3);
        assert_memory_equal(ids, ((int[]){1, 0, 2}), 3 * sizeof *ids);
    }
}

static void test_tokenizer_bad_files(void **state) {
    (void)state;
    static const struct { const char *text, *wrong; } cases[] = {
        {"{\"<|endoftext|>\": 0, \"b\": 2, \"a\": 1}", NULL},
        {"{\"a\": 0}", "no <|endoftext|>"},
        {"{}", "no <|endoftext|>"},
        {"{\"a\": 0, \"<|endoftext|>\": 2}", "leaves out"},
        {"{\"a\": 0, \"b\": 0, \"<|endoftext|>\": 1}", "there twice"},
        {"{\"a\": 0, \"a\": 1, \"<|endoftext|>\": 2}", "character twice"},
        {"{\"<|endoftext|>\": 0, \"<|endoftext|>\": 1}", "twice"},
        {"{\"a\": -1, \"<|endoftext|>\": 0}", "id"},
        {"{\"a\": 0.5, \"<|endoftext|>\": 1}", "id"},
        {"{\"a\": 1e300, \"<|endoftext|>\": 0}", "id"},
        {"{\"a\": \"0\", \"<|endoftext|>\": 1}", "id"},
        {"{\"ab\": 0, \"<|endoftext|>\": 1}", "not one ASCII character"},
        {"{\"\": 0, \"<|endoftext|>\": 1}", "not one ASCII character"},
        {"{\"\xC3\xA9\": 0, \"<|endoftext|>\": 1}", "not one ASCII character"},
        {"[0]", "not one JSON object"},
        {"{\"a\": 0", "not JSON"},
        {"", "not JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Tokenizer t;
        write_bytes(in_folder("vocab.json"), cases[i].text, strlen(cases[i].text));
        const char *wrong = tokenizer_load(&t, folder);
        if (!cases[i].wrong) assert_null(wrong);
        else if (!wrong || !strstr(wrong, cases[i].wrong))
            fail_msg("%s: \"%s\"", cases[i].text, wrong ? wrong : "accepted");
    }
    struct Tokenizer t;
    assert_string_equal(tokenizer_load(&t, "/no/such"),
                        "there is neither vocab.json nor tokenizer.json");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_lines_of_a_failing_disk),
        cmocka_unit_test(test_jsonl_line),
        cmocka_unit_test(test_jsonl_numbers_come_back),
        cmocka_unit_test(test_jsonl_utf8),
        cmocka_unit_test(test_jsonl_failures),
        cmocka_unit_test(test_jsonl_cut),
        cmocka_unit_test(test_jsonl_cut_on_a_failing_disk),
        cmocka_unit_test(test_jsonl_cut_drops_zero_bytes),
        cmocka_unit_test(test_tokenizer),
        cmocka_unit_test(test_tokenizer_files),
        cmocka_unit_test(test_tokenizer_library_file),
        cmocka_unit_test(test_tokenizer_bad_files),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
