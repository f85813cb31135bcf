/* io/: JSON lines, safetensors against files of the safetensors package, the tokenizer's files. */
#include "test.h"

#include <cjson/cJSON.h>
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../llmc/base/check.h"
#include "../llmc/io/jsonl.h"
#include "../llmc/io/lines.h"
#include "../llmc/io/safetensors.h"
#include "../llmc/io/tokenizer.h"
#include "child.h"

static char output[4096];
static char folder[] = "/tmp/test_io_XXXXXX";

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

static const char *in_folder(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void write_bytes(const char *path, const void *bytes, size_t length) {
    remove(path);   /* some file systems write a truncated file to the disk at once: slow */
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

/* The file's bytes (a static buffer, terminated). */
static char *read_bytes(const char *path, size_t *length) {
    static char bytes[1 << 17];
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t n = fread(bytes, 1, sizeof bytes - 1, file);
    fclose(file);
    bytes[n] = 0;
    if (length) *length = n;
    return bytes;
}

/* ---- a disk that fails in the middle of a file ----------------------------------------------- */

static const char *bad_path;   /* of the file; NULL: all is well */
static size_t bad_after;       /* bytes that can be read */
static bool bad_once;          /* the disk recovers: the next read goes on */
static FILE *bad_file;

static ssize_t read_until_bad(void *position, char *out, size_t bytes) {
    size_t *at = position;
    if (*at == bad_after) {
        *at += bad_once;
        errno = EIO;
        return -1;
    }
    if (*at < bad_after && bytes > bad_after - *at) bytes = bad_after - *at;
    size_t n = fread(out, 1, bytes, bad_file);
    *at += n;
    return (ssize_t)n;
}

/* This stands before the C library's. */
FILE *fopen(const char *path, const char *mode) {
    static FILE *(*real)(const char *, const char *);
    static size_t position;
    if (!real) real = (FILE *(*)(const char *, const char *))dlsym(RTLD_NEXT, "fopen");
    if (!bad_path || mode[0] != 'r' || strcmp(path, bad_path) != 0) return real(path, mode);
    bad_file = real(path, mode);
    position = 0;
    return fopencookie(&position, "r", (cookie_io_functions_t){.read = read_until_bad});
}

/* Likewise: the bytes before bad_after of every file can be read, where bad_path is set. */
ssize_t pread(int descriptor, void *out, size_t bytes, off_t begin) {
    if (bad_path && (size_t)begin + bytes > bad_after) {
        errno = EIO;
        return -1;
    }
    return (ssize_t)syscall(SYS_pread64, descriptor, out, bytes, begin);
}

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

/* What a power failure leaves: zeros at the end of the file, or in the middle of a line. */
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

/* ---- safetensors: files of the safetensors package ------------------------------------------- */

/* The tensor's elements from `first` on (malloc). */
static float *read_floats(const struct Safetensors *file, const char *name, size_t first) {
    const struct SafetensorsEntry *entry = safetensors_find(file, name);
    assert_non_null(entry);
    float *x = malloc((entry->count + 1) * sizeof *x);
    safetensors_read(file, entry, x, first, entry->count - first);
    return x;
}

/* Each type against the same numbers that numpy converted to float64. */
static void test_safetensors_types(void **state) {
    (void)state;
    struct Safetensors file;
    assert_null(safetensors_open(&file, "test/golden/types.safetensors"));
    const char *golden = read_bytes("test/golden/types.safetensors", NULL);
    assert_int_equal(file.count, 11);
    static const struct { const char *name, *exact; } pairs[] = {
        {"half", "half_exact"}, {"bf16", "bf16_exact"}, {"single", "single_exact"}};
    for (int p = 0; p < 3; p++) {
        const struct SafetensorsEntry *exact = safetensors_find(&file, pairs[p].exact);
        assert_non_null(exact);
        float *x = read_floats(&file, pairs[p].name, 0);
        for (size_t i = 0; i < exact->count; i++) {
            double want;
            memcpy(&want, golden + file.data_begin + exact->begin + 8 * i, 8);
            if (isnan(want)) assert_true(isnan(x[i]));
            else assert_true((double)x[i] == want && !signbit(x[i]) == !signbit(want));
        }
        free(x);
    }
    float *x = read_floats(&file, "double", 1);
    assert_true(x[0] == -INFINITY && x[1] == 0 && x[2] == 12345.678f);
    free(x);
    x = read_floats(&file, "half", 11);
    assert_true(x[0] == 1);
    free(x);
    x = read_floats(&file, "scalar", 0);
    assert_true(x[0] == 2.5f);
    free(x);
    const struct SafetensorsEntry *single = safetensors_find(&file, "single");
    assert_int_equal(single->num_dims, 2);
    assert_int_equal(single->shape[0], 2);
    assert_int_equal(single->shape[1], 3);
    assert_int_equal(safetensors_find(&file, "scalar")->num_dims, 0);
    assert_int_equal(safetensors_find(&file, "empty")->count, 0);
    assert_int_equal(safetensors_find(&file, "counts")->type, ST_I64);
    assert_int_equal(safetensors_find(&file, "mask")->type, ST_OTHER);
    assert_null(safetensors_find(&file, "missing"));
    assert_null(safetensors_find(&file, "__metadata__"));
    safetensors_close(&file);
}

/* All 65536 halves, against the format's definition. */
static void test_safetensors_every_half(void **state) {
    (void)state;
    const char *path = in_folder("halves");
    static uint16_t bits[65536];
    static float x[65536];
    int64_t shape[1] = {65536};
    for (int i = 0; i < 65536; i++) bits[i] = (uint16_t)i;
    struct SafetensorsWriter *writer = safetensors_create(path);
    safetensors_describe(writer, "x", ST_F16, 1, shape);
    safetensors_write(writer, bits, sizeof bits);
    safetensors_commit(writer, NULL);
    struct Safetensors file;
    assert_null(safetensors_open(&file, path));
    safetensors_read(&file, safetensors_find(&file, "x"), x, 0, 65536);
    safetensors_close(&file);
    for (int i = 0; i < 65536; i++) {
        int exponent = i >> 10 & 31, rest = i & 1023;
        double want = exponent == 31  ? (rest ? NAN : INFINITY)
                      : exponent == 0 ? ldexp(rest, -24)
                                      : ldexp(1024 + rest, exponent - 25);
        if (i & 0x8000) want = -want;
        if (isnan(want)) assert_true(isnan(x[i]));
        else assert_true((double)x[i] == want && !signbit(x[i]) == !signbit(want));
    }
}

/* The same tensors give the package's file byte for byte. */
static void test_safetensors_written(void **state) {
    (void)state;
    static const float a[6] = {0, 0.25f, 0.5f, 0.75f, 1, 1.25f}, b[3] = {-1, 0.5f, 7};
    static const uint16_t c[3] = {0x3F80, 0xC049, 1}, d[5] = {0, 0x8000, 1, 0x8001, 0x03FF};
    const char *path = in_folder("written");
    struct SafetensorsWriter *writer = safetensors_create(path);
    safetensors_describe(writer, "a.weight", ST_F32, 2, (int64_t[]){2, 3});
    safetensors_describe(writer, "b.bias", ST_F32, 1, (int64_t[]){3});
    safetensors_describe(writer, "c.bf16", ST_BF16, 1, (int64_t[]){3});
    safetensors_describe(writer, "d.half", ST_F16, 1, (int64_t[]){5});
    safetensors_write(writer, a, sizeof a / 2);   /* pieces need not be tensors */
    safetensors_write(writer, a + 3, sizeof a / 2);
    safetensors_write(writer, b, sizeof b);
    safetensors_write(writer, c, sizeof c);
    safetensors_write(writer, d, sizeof d);
    safetensors_commit(writer, NULL);
    static char golden[1024];
    size_t expected, length;
    memcpy(golden, read_bytes("test/golden/written.safetensors", &expected), sizeof golden);
    const char *bytes = read_bytes(path, &length);
    assert_int_equal(length, expected);
    assert_memory_equal(bytes, golden, length);
}

static void writes_too_little(void *path) {
    struct SafetensorsWriter *writer = safetensors_create(path);
    safetensors_describe(writer, "a", ST_F32, 1, (int64_t[]){3});
    safetensors_write(writer, "abcd", 4);
    safetensors_commit(writer, NULL);
}

static void reads_halves(void *unused) {
    (void)unused;
    struct Safetensors file;
    float x[8];
    const char *wrong = safetensors_open(&file, "test/golden/types.safetensors");
    if (wrong) die_input("%s", wrong);
    safetensors_read(&file, safetensors_find(&file, "half"), x, 0, 8);
    safetensors_close(&file);
}

/* A disk that fails in the header or in the data is the machine's fault, and nothing is made of
   it. */
static void test_safetensors_on_a_failing_disk(void **state) {
    (void)state;
    struct Safetensors file;
    assert_null(safetensors_open(&file, "test/golden/types.safetensors"));
    size_t places[] = {0, 40, file.data_begin};
    safetensors_close(&file);
    if (run_in_child(reads_halves, NULL, output, sizeof output) != 0) fail_msg("%s", output);
    for (int i = 0; i < 3; i++) {
        bad_path = "", bad_after = places[i];
        assert_int_equal(run_in_child(reads_halves, NULL, output, sizeof output), 1);
        assert_non_null(strstr(output, "Input/output error"));
        bad_path = NULL;
    }
}

static void reads_integers(void *unused) {
    (void)unused;
    struct Safetensors file;
    float x[3];
    safetensors_open(&file, "test/golden/types.safetensors");
    safetensors_read(&file, safetensors_find(&file, "counts"), x, 0, 3);
}

static void test_safetensors_misuse(void **state) {
    (void)state;
    char path[128], temporary[160];
    snprintf(path, sizeof path, "%s", in_folder("little"));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    assert_int_equal(run_in_child(writes_too_little, path, output, sizeof output), 1);
    assert_non_null(strstr(output, "got 4 bytes of 12"));
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_not_equal(access(temporary, F_OK), 0);
    assert_int_equal(run_in_child(reads_integers, NULL, output, sizeof output), 2);
    assert_non_null(strstr(output, "tensor counts does not hold floats"));
}

/* ---- safetensors: hostile files -------------------------------------------------------------- */

/* Opens `length` bytes as a file. If they pass, every tensor is read. Returns what open did. */
static const char *open_bytes(const void *bytes, size_t length) {
    struct Safetensors file;
    const char *path = in_folder("hostile");
    write_bytes(path, bytes, length);
    const char *wrong = safetensors_open(&file, path);
    if (wrong) {
        assert_int_equal(file.descriptor, -1);
        assert_null(file.entries);
        for (const char *c = wrong; *c; c++) assert_true(*c >= 32 && *c < 127);
        return wrong;
    }
    size_t data_bytes = file.bytes - file.data_begin;
    for (int i = 0; i < file.count; i++) {
        const struct SafetensorsEntry *entry = &file.entries[i];
        assert_true(entry->begin <= entry->end && entry->end <= data_bytes);
        assert_ptr_equal(safetensors_find(&file, entry->name), entry);
        if (entry->type <= ST_F64) free(read_floats(&file, entry->name, 0));
    }
    safetensors_close(&file);
    return NULL;
}

/* A file of this header and `data_bytes` zeros. */
static const char *open_header(const char *header, size_t data_bytes) {
    static char bytes[1 << 16];
    uint64_t length = strlen(header);
    memset(bytes, 0, sizeof bytes);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    return open_bytes(bytes, 8 + length + data_bytes);
}

#define F32(name, shape, offsets) \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_safetensors_hostile_headers(void **state) {
    (void)state;
    static const struct { const char *header; size_t data; const char *wrong; } cases[] = {
        {"{" F32("a", "[2]", "[0,8]") "}", 8, NULL},
        {"{" F32("a", "[2]", "[0,8]") "}   ", 8, NULL},
        {"{}", 0, NULL},
        {"{\"__metadata__\":{}}", 0, NULL},
        {"{" F32("b", "[1]", "[4,8]") "," F32("a", "[1]", "[0,4]") "}", 8, NULL},
        {"{" F32("a", "[2]", "[0,8]") "}", 9, "1 bytes at the end belong to no tensor"},
        {"{" F32("a", "[2]", "[0,8]") "}", 7, "tensor a lies outside the file"},
        {"{" F32("a", "[2]", "[0,8]") "}x", 8, "goes on after"},
        {" {" F32("a", "[2]", "[0,8]") "}", 8, "not JSON"},
        {"[]", 0, "not JSON"},
        {"", 0, "not JSON"},
        {"{" F32("a", "[2]", "[0,8]"), 8, "not JSON"},
        {"{" F32("a", "[2]", "[0,8]") "," F32("a", "[2]", "[8,16]") "}", 16, "there twice"},
        {"{" F32("a", "[2]", "[0,8]") "," F32("b", "[2]", "[4,12]") "}", 12, "overlaps"},
        {"{" F32("a", "[2]", "[0,8]") "," F32("b", "[2]", "[0,8]") "}", 8, "overlaps"},
        {"{" F32("a", "[1]", "[0,4]") "," F32("b", "[1]", "[8,12]") "}", 12, "unused bytes"},
        {"{" F32("a", "[2]", "[8,0]") "}", 8, "lies outside"},
        {"{" F32("a", "[2]", "[-8,0]") "}", 8, "no valid data_offsets"},
        {"{" F32("a", "[2]", "[0,8.5]") "}", 8, "no valid data_offsets"},
        {"{" F32("a", "[2]", "[0,1e300]") "}", 8, "no valid data_offsets"},
        {"{" F32("a", "[2]", "[0,18446744073709551624]") "}", 8, "no valid data_offsets"},
        {"{" F32("a", "[2]", "[0,NaN]") "}", 8, "not JSON"},
        {"{" F32("a", "[2]", "[0,null]") "}", 8, "no valid data_offsets"},
        {"{" F32("a", "[2]", "[0,\"8\"]") "}", 8, "no valid data_offsets"},
        {"{" F32("a", "[2]", "[0,8,8]") "}", 8, "no valid data_offsets"},
        {"{" F32("a", "[2]", "[0]") "}", 8, "no valid data_offsets"},
        {"{" F32("a", "[2]", "{}") "}", 8, "no valid data_offsets"},
        {"{" F32("a", "[3]", "[0,8]") "}", 8, "not what its shape needs"},
        {"{" F32("a", "[-2]", "[0,8]") "}", 8, "impossible shape"},
        {"{" F32("a", "[2.5]", "[0,8]") "}", 8, "impossible shape"},
        {"{" F32("a", "[4294967296,4294967296]", "[0,0]") "}", 0, "impossible shape"},
        {"{" F32("a", "[4611686018427387904]", "[0,0]") "}", 0, "impossible shape"},
        {"{" F32("a", "[4503599627370496,4096]", "[0,0]") "}", 0, "impossible shape"},
        {"{" F32("a", "[4503599627370496,1024]", "[0,0]") "}", 0, "not what its shape needs"},
        {"{" F32("a", "[1,1,1,1,1]", "[0,4]") "}", 4, "more than 4"},
        {"{" F32("a", "2", "[0,8]") "}", 8, "no shape"},
        {"{\"a\":{\"dtype\":\"F99\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "unknown dtype"},
        {"{\"a\":{\"dtype\":7,\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "no dtype"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "no dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8, "no shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "no valid data_offsets"},
        {"{\"a\":3}", 0, "is not described"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *wrong = open_header(cases[i].header, cases[i].data);
        if (!cases[i].wrong) assert_null(wrong);
        else if (!wrong || !strstr(wrong, cases[i].wrong))
            fail_msg("%s: \"%s\", expected \"%s\"", cases[i].header, wrong ? wrong : "accepted",
                     cases[i].wrong);
    }
}

/* What a file says is quoted as ASCII, also where it is not (open_bytes looks at every message). */
static void test_safetensors_quotes_in_ascii(void **state) {
    (void)state;
    static const struct { const char *header, *wrong; } cases[] = {
        {"{" F32("\xC3\xA4\xE2\x80\xAE", "[2]", "[0,4]") "}", "\\xc3\\xa4\\xe2\\x80\\xae has"},
        {"{\"\xFF\x9B\":3}", "\\xff\\x9b is not described"},
        {"{\"a\":{\"dtype\":\"\\u001b[2J\xFF\",\"shape\":[2],\"data_offsets\":[0,8]}}",
         "dtype \"\\x1b[2J\\xff\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *wrong = open_header(cases[i].header, 8);
        if (!wrong || !strstr(wrong, cases[i].wrong)) fail_msg("%s", wrong ? wrong : "accepted");
    }
}

static void test_safetensors_hostile_sizes(void **state) {
    (void)state;
    static char header[1 << 15];
    char name[300], text[400];
    memset(name, 'n', sizeof name);
    name[127] = 0;
    snprintf(text, sizeof text, "{" F32("%s", "[1]", "[0,4]") "}", name);
    assert_null(open_header(text, 4));
    name[127] = 'n', name[128] = 0;
    snprintf(text, sizeof text, "{" F32("%s", "[1]", "[0,4]") "}", name);
    assert_non_null(strstr(open_header(text, 4), "name longer than 127"));
    header[0] = '{', header[1] = '"', header[2] = 'a', header[3] = '"', header[4] = ':';
    memset(header + 5, '[', sizeof header - 6);
    assert_non_null(strstr(open_header(header, 0), "not JSON"));
    static const uint64_t lengths[] = {1ull << 63, ~0ull, ~0ull - 7, 1ull << 32, 3, 100000000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char bytes[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
        memcpy(bytes, &lengths[i], 8);
        assert_non_null(strstr(open_bytes(bytes, sizeof bytes), "past the end"));
    }
    struct Safetensors file;
    assert_non_null(safetensors_open(&file, in_folder("absent")));
    assert_non_null(strstr(safetensors_open(&file, folder), "not a regular file"));
    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    assert_non_null(strstr(safetensors_open(&file, in_folder("pipe")), "not a regular file"));
}

/* A true file cut at every byte, and with every byte of its header changed in a few ways. */
static void test_safetensors_damage(void **state) {
    (void)state;
    static char golden[2048], damaged[2048];
    size_t length;
    memcpy(golden, read_bytes("test/golden/types.safetensors", &length), sizeof golden);
    assert_null(open_bytes(golden, length));
    for (size_t cut = 0; cut < length; cut++) {
        const char *wrong = open_bytes(golden, cut);
        assert_non_null(wrong);
        if (cut > 0 && cut < 8) assert_non_null(strstr(wrong, "too short"));
    }
    uint64_t header;
    memcpy(&header, golden, 8);
    static const char others[] = {0, '"', '9', '-', ']', '}', (char)0xFF};
    for (size_t i = 0; i < 8 + header; i++)
        for (size_t k = 0; k < sizeof others; k++) {
            memcpy(damaged, golden, length);
            damaged[i] = others[k];
            open_bytes(damaged, length);   /* an error or a sound file: it checks the latter */
        }
    /* header one byte longer: the data section is no longer aligned */
    memcpy(damaged, golden, 8 + header);
    damaged[8 + header] = ' ';
    memcpy(damaged + 9 + header, golden + 8 + header, length - 8 - header);
    damaged[0]++;
    assert_null(open_bytes(damaged, length + 1));
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
        cmocka_unit_test(test_safetensors_types),
        cmocka_unit_test(test_safetensors_every_half),
        cmocka_unit_test(test_safetensors_written),
        cmocka_unit_test(test_safetensors_misuse),
        cmocka_unit_test(test_safetensors_on_a_failing_disk),
        cmocka_unit_test(test_safetensors_hostile_headers),
        cmocka_unit_test(test_safetensors_quotes_in_ascii),
        cmocka_unit_test(test_safetensors_hostile_sizes),
        cmocka_unit_test(test_safetensors_damage),
        cmocka_unit_test(test_tokenizer),
        cmocka_unit_test(test_tokenizer_files),
        cmocka_unit_test(test_tokenizer_library_file),
        cmocka_unit_test(test_tokenizer_bad_files),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
