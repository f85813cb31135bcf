/* io: lines in, JSON lines out. safetensors: test_safetensors.c; tokenizers: test_tokenizer.c */
#include "io_rig.h"
#include <cjson/cJSON.h>
#include "../llmc/base/check.h"
#include "../llmc/io/jsonl.h"
#include "../llmc/io/lines.h"

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
        {"\xE2\x82z", "\\ufffdz"},                        /* one for the part of a character */
        {"\x01\x1F\x7F", "\\u0001\\u001f\x7F"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_string(cases[i].bytes, strlen(cases[i].bytes), cases[i].text);
    check_string("\xE2\x82\xAC", 2, "\\ufffd");   /* cut: the third byte is not ours */
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
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
