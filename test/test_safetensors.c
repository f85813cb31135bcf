/* safetensors: files of its own package, files written here, and hostile ones. */
#include "io_rig.h"
#include "../llmc/base/check.h"
#include "../llmc/io/safetensors.h"

/* ---- files of the safetensors package -------------------------------------------------------- */

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

/* ---- hostile files --------------------------------------------------------------------------- */

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_types),
        cmocka_unit_test(test_safetensors_every_half),
        cmocka_unit_test(test_safetensors_written),
        cmocka_unit_test(test_safetensors_misuse),
        cmocka_unit_test(test_safetensors_on_a_failing_disk),
        cmocka_unit_test(test_safetensors_hostile_headers),
        cmocka_unit_test(test_safetensors_quotes_in_ascii),
        cmocka_unit_test(test_safetensors_hostile_sizes),
        cmocka_unit_test(test_safetensors_damage),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
