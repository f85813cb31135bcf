/* base/: errors and atomic files, randomness, schedules, console, launch. */
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include "../llmc/base/check.h"
#include "../llmc/base/files.h"
#include "../llmc/base/console.h"
#include "../llmc/base/fields.h"
#include "../llmc/base/text.h"
#include "../llmc/run/launch.h"
#include "../llmc/base/time.h"
#include "child.h"

static char output[4096];
static char folder[] = "/tmp/test_base_XXXXXX";

static const char *in_folder(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[300];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

static const char *read_file(const char *path) {
    static char text[1 << 17];
    FILE *file = fopen(path, "rb");
    if (!file) return NULL;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    return text;
}

/* ---- rng ------------------------------------------------------------------------------------- */

/* The known answers of the authors' Random123 distribution (kat_vectors, philox4x32 10). */
static void test_philox_known_answers(void **state) {
    (void)state;
    static const struct { uint32_t counter[4], key[2], answer[4]; } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        philox(out, known[i].counter, known[i].key);
        assert_memory_equal(out, known[i].answer, sizeof out);
    }
}

static void test_uniform_stays_inside(void **state) {
    (void)state;
    assert_true(rng_uniform(0) > 0);
    assert_true(rng_uniform(~0u) < 1);
    double sum = 0;
    struct Rng rng;
    rng_open(&rng, 1, RNG_TEST, 0);
    for (int i = 0; i < 100000; i++) sum += rng_uniform(rng_next(&rng));
    /* five standard errors of the mean of 100000 uniforms */
    ASSERT_CLOSE("mean of uniforms", fabs(sum / 100000 - 0.5), 5 * sqrt(1.0 / 12 / 100000));
}

/* Every bit of the seed and every purpose gives another key. */
static void test_key_uses_every_bit(void **state) {
    (void)state;
    uint32_t keys[65 + RNG_ROUNDING][2];
    int count = 0;
    for (int bit = 0; bit < 64; bit++) rng_key(keys[count++], 1ull << bit, RNG_SAMPLE);
    for (int purpose = RNG_INIT; purpose <= RNG_ROUNDING; purpose++)
        rng_key(keys[count++], 0, (enum RngPurpose)purpose);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < i; j++) assert_memory_not_equal(keys[i], keys[j], sizeof keys[i]);
}

/* The sequence is Philox of (block, carry, ordinal high, ordinal low), in order. */
static void test_sequence_is_the_counter(void **state) {
    (void)state;
    struct Rng rng;
    rng_open(&rng, 42, RNG_TEST, 0x123456789abcull);
    uint32_t key[2], counter[4] = {0, 0, 0x1234, 0x56789abc}, block[4];
    rng_key(key, 42, RNG_TEST);
    for (int i = 0; i < 3; i++) {
        counter[0] = (uint32_t)i;
        philox(block, counter, key);
        for (int word = 0; word < 4; word++) assert_int_equal(rng_next(&rng), block[word]);
    }
    rng.counter[0] = ~0u;
    rng.used = 4;
    rng_next(&rng);
    assert_int_equal(rng.counter[0], 0);
    assert_int_equal(rng.counter[1], 1);
}

/* With n = 3 * 2^30 a scaled word without rejection is divisible by 3 half the time. */
static void test_below_is_unbiased(void **state) {
    (void)state;
    struct Rng rng;
    rng_open(&rng, 7, RNG_TEST, 1);
    int divisible = 0, draws = 30000, counts[5] = {0};
    for (int i = 0; i < draws; i++) {
        uint32_t x = rng_below(&rng, 3u << 30);
        assert_true(x < 3u << 30);
        divisible += x % 3 == 0;
    }
    ASSERT_CLOSE("share divisible by 3", fabs((double)divisible / draws - 1.0 / 3),
                 5 * sqrt(2.0 / 9 / draws));
    for (int i = 0; i < draws; i++) counts[rng_below(&rng, 5)]++;
    double chi_squared = 0;
    for (int i = 0; i < 5; i++) chi_squared += pow(counts[i] - draws / 5.0, 2) / (draws / 5.0);
    ASSERT_CLOSE("chi squared, 4 degrees of freedom", chi_squared, 30);   /* p = 5e-6 */
    for (int i = 0; i < 10; i++) assert_int_equal(rng_below(&rng, 1), 0);
}

static int compare_floats(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* Kolmogorov's distance to the normal distribution, which erf knows. */
static void test_normal_distribution(void **state) {
    (void)state;
    enum { N = 100000 };
    float *x = new_normal(N, 1, 5);
    qsort(x, N, sizeof *x, compare_floats);
    double distance = 0;
    for (int i = 0; i < N; i++) {
        double cumulative = 0.5 * erfc(-x[i] / sqrt(2));
        distance = fmax(distance, fabs(cumulative - (i + 0.5) / N));
    }
    free(x);
    ASSERT_CLOSE("Kolmogorov distance", distance, 2.2 / sqrt(N));   /* p = 1e-4 */
}

static void test_shuffle(void **state) {
    (void)state;
    struct Rng rng;
    rng_open(&rng, 3, RNG_TEST, 2);
    int counts[27] = {0}, draws = 12000, seen = 0;
    for (int i = 0; i < draws; i++) {
        int items[3] = {0, 1, 2};
        rng_shuffle(&rng, items, 3);
        counts[items[0] * 9 + items[1] * 3 + items[2]]++;
    }
    for (int i = 0; i < 27; i++) {
        if (!counts[i]) continue;
        seen++;
        ASSERT_CLOSE("count of one order", fabs(counts[i] - draws / 6.0),
                     5 * sqrt(draws / 6.0 * 5 / 6));
    }
    assert_int_equal(seen, 6);
    int one = 9;
    rng_shuffle(&rng, &one, 1);
    rng_shuffle(&rng, NULL, 0);
    assert_int_equal(one, 9);
}

/* ---- check ----------------------------------------------------------------------------------- */

static void dies_of_input(void *text) { die_input("bad %s", (const char *)text); }
static void dies_of_machine(void *text) { die_machine("broken %s", (const char *)text); }
static void only_warns(void *text) { warn("odd %s", (const char *)text); }
static void warns_quietly(void *text) {
    console_open(true);
    only_warns(text);
}
static void speaks_as_rank(void *text) {
    check_rank(*(const char *)text - '0');
    console_open(false);
    say("a line"), say_result("a result"), warn("odd");
    console_progress("steps", 1, 2, 1);
    die_machine("broken %s", (const char *)text);
}
static void device_fails_as_rank(void *unused) {   /* a plug-in calls the function itself */
    void (*function)(const char *format, ...) = die_machine;
    (void)unused;
    check_rank(3);
    function("no device");
}
static void is_told_to_end_while_it_waits(void *unused) {
    (void)unused;
    check_rank(2);
    launch_catch_signals();
    pid_t self = getpid();
    if (fork() == 0) {
        usleep(200000);
        kill(self, SIGTERM);
        _exit(0);
    }
    die_input("what rank 0 says too");
}

/* Of several ranks each names itself, its machine and the line, and only rank 0 says more. */
static void test_errors_of_ranks(void **state) {
    (void)state;
    char host[256], expected[512];
    gethostname(host, sizeof host);
    assert_int_equal(run_in_child(speaks_as_rank, "1", output, sizeof output), 1);
    int line = 0;
    char *at = strstr(output, "test_base.c:");
    assert_true(at && sscanf(at, "test_base.c:%d", &line) == 1 && line > 100);
    snprintf(expected, sizeof expected,
             "train: error: rank 1 on %s (test_base.c:%d): broken 1\n", host, line);
    assert_string_equal(output, expected);
    assert_int_equal(run_in_child(speaks_as_rank, "0", output, sizeof output), 1);
    snprintf(expected, sizeof expected, "rank 0 on %s (test_base.c:%d): broken 0\n", host, line);
    assert_non_null(strstr(output, expected));
    assert_non_null(strstr(output, "a line\na result\n"));
    snprintf(expected, sizeof expected, "train: warning: rank 0 on %s: odd\n", host);
    assert_non_null(strstr(output, expected));
    assert_int_equal(run_in_child(device_fails_as_rank, NULL, output, sizeof output), 1);
    snprintf(expected, sizeof expected, "train: error: rank 3 on %s: no device\n", host);
    assert_string_equal(output, expected);
    int code = run_in_child(is_told_to_end_while_it_waits, NULL, output, sizeof output);
    assert_int_equal(code, 128 + SIGTERM);
    assert_string_equal(output, "");
}

static void allocates_too_much(void *unused) {
    (void)unused;
    check_alloc(SIZE_MAX / 2, 4, "the moon");
}
static void reallocates_too_much(void *unused) {
    (void)unused;
    free(check_realloc(NULL, SIZE_MAX / 4 + 2, 4, "the moon"));   /* 4 bytes, if it wrapped */
}
static void overflows_path(void *unused) {
    (void)unused;
    char path[8];
    check_path(path, sizeof path, "%s/%s", "abcd", "efg");
}

static void test_errors(void **state) {
    (void)state;
    static const struct {
        void (*body)(void *);
        const char *argument;
        int code;
        const char *said;
    } cases[] = {
        {dies_of_input, "apple", 2, "train: error: bad apple\n"},
        {dies_of_input, "a\nb\033[2J", 2, "train: error: bad a?b?[2J\n"},
        {dies_of_input, "\xC3\xA4\xFF\xC2\x9B\xE2\x82", 2, "train: error: bad \xC3\xA4?" "????\n"},
        {dies_of_machine, "disk", 1, "train: error: broken disk\n"},
        {only_warns, "sock", 0, "train: warning: odd sock\n"},
        {warns_quietly, "sock", 0, ""},
        {allocates_too_much, NULL, 1, "train: error: out of memory: the moon needs "},
        {reallocates_too_much, NULL, 1, "train: error: out of memory: the moon needs "},
        {overflows_path, NULL, 2, "train: error: path too long (8 bytes, at most 7): abcd/ef"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int code = run_in_child(cases[i].body, (void *)cases[i].argument, output, sizeof output);
        assert_int_equal(code, cases[i].code);
        if (*cases[i].said) assert_non_null(strstr(output, cases[i].said));
        else assert_string_equal(output, "");
    }
}

static void test_allocations(void **state) {
    (void)state;
    char *bytes = check_alloc(100, 3, "bytes");
    for (int i = 0; i < 300; i++) assert_int_equal(bytes[i], 0);
    bytes = check_realloc(bytes, 10, 1, "bytes");
    free(check_alloc(0, 4, "nothing"));
    free(bytes);
    char *copy = check_strdup("copy");
    assert_string_equal(copy, "copy");
    free(copy);
}

static void write_atomically(const char *path, const char *text) {
    struct AtomicFile file;
    atomic_open(&file, path);
    atomic_write(&file, text, strlen(text));
    atomic_commit(&file);
}

static void test_atomic_file(void **state) {
    (void)state;
    const char *path = in_folder("file");
    write_atomically(path, "old");
    struct AtomicFile file;
    atomic_open(&file, path);
    atomic_write(&file, "new", 3);
    fflush(file.stream);
    assert_string_equal(read_file(path), "old");   /* until the commit */
    atomic_commit(&file);
    assert_string_equal(read_file(path), "new");
    assert_int_not_equal(access(file.temporary, F_OK), 0);
}

/* A disk that is full after 64 kB. */
static void fills_the_disk(void *path) {
    struct rlimit limit = {65536, 65536};
    setrlimit(RLIMIT_FSIZE, &limit);
    launch_ignore_size_limit();
    struct AtomicFile file;
    atomic_open(&file, path);
    for (int i = 0; i < 1000; i++) atomic_write(&file, output, sizeof output);
    atomic_commit(&file);
}

static void writes_a_word(void *path) { write_atomically(path, "word"); }

static void loses_its_directory(void *unused) {
    struct AtomicFile file;
    char moved[256];
    (void)unused;
    atomic_open(&file, in_folder("moves/file"));
    atomic_write(&file, "word", 4);
    snprintf(moved, sizeof moved, "%s", in_folder("moved"));
    if (rename(in_folder("moves"), moved) == 0) atomic_commit(&file);
}

static void test_atomic_file_failures(void **state) {
    (void)state;
    char path[256], temporary[300];
    snprintf(path, sizeof path, "%s", in_folder("full"));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    write_atomically(path, "old");
    assert_int_equal(run_in_child(fills_the_disk, path, output, sizeof output), 1);
    assert_non_null(strstr(output, path));
    assert_string_equal(read_file(path), "old");
    assert_int_not_equal(access(temporary, F_OK), 0);

    /* a directory that was there a moment ago: before the file is opened, and before it is whole */
    snprintf(path, sizeof path, "%s", in_folder("missing/file"));
    assert_int_equal(run_in_child(writes_a_word, path, output, sizeof output), 1);
    assert_non_null(strstr(output, "its directory is gone"));
    assert_int_equal(mkdir(in_folder("moves"), 0777), 0);
    assert_int_equal(run_in_child(loses_its_directory, NULL, output, sizeof output), 1);
    assert_non_null(strstr(output, "its directory is gone"));

    snprintf(path, sizeof path, "%s", in_folder("directory"));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(run_in_child(writes_a_word, path, output, sizeof output), 2);
    assert_int_not_equal(access(temporary, F_OK), 0);
}

static void test_quotes(void **state) {
    (void)state;
    char longest[200];
    memset(longest, 'x', sizeof longest - 1);
    longest[199] = 0;
    assert_string_equal(quote("a\"b c"), "a\"b c");
    assert_string_equal(quote("\xC3\xA4\x01\x7F"), "\\xc3\\xa4\\x01\\x7f");
    assert_string_equal(quote(NULL), "");
    assert_int_equal(strlen(quote(longest)), 63);
    assert_string_equal(quote(longest) + 60, "...");
    memset(longest, 0xFF, sizeof longest - 1);
    assert_int_equal(strlen(quote(longest)), 63);
}

/* ---- fields ---------------------------------------------------------------------------------- */

struct Fielded {
    int64_t wide;
    int narrow;
    double real;
    float small;
    char text[4];
};

static const struct Field rows[] = {
    {FIELD(FIELD_INTEGER, struct Fielded, wide, "wide"), -FIELD_EXACT, FIELD_EXACT},
    {FIELD(FIELD_INTEGER, struct Fielded, narrow, "narrow"), 0, 7},
    {FIELD(FIELD_REAL, struct Fielded, real, "real"), -1, INFINITY},
    {FIELD(FIELD_REAL, struct Fielded, small, "small"), -1, 1, .or_nan = true},
    {FIELD(FIELD_TEXT, struct Fielded, text, "text")},
};

/* Of every kind: what is taken and what it prints as; out of bounds nothing changes. */
static void test_fields(void **state) {
    (void)state;
    static const struct { int row; const char *in, *out; bool number; } texts[] = {
        {0, "9007199254740991", "9007199254740991", true}, {0, "9007199254740992", NULL, false},
        {0, "-9007199254740991", "-9007199254740991", true}, {0, "0.5", NULL, false},
        {0, "", NULL, false}, {0, "1x", NULL, false}, {0, "nan", NULL, false},
        {1, "7", "7", true}, {1, "8", NULL, false}, {1, "-1", NULL, false},
        {1, "4294967296", NULL, false}, {1, "inf", NULL, false},
        {2, "0.1", "0.10000000000000001", true}, {2, "inf", "inf", false},
        {2, "-inf", NULL, false}, {2, "nan", NULL, false}, {2, "-1.1", NULL, false},
        {2, "4.9406564584124654e-324", "4.9406564584124654e-324", true}, {2, "1e999", NULL, false},
        {3, "0.25", "0.25", true}, {3, "nan", "nan", false}, {3, "2", NULL, false},
        {4, "abc", "abc", false}, {4, "", "", false}, {4, "abcd", NULL, false},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const struct Field *field = &rows[texts[i].row];
        struct Fielded object, before;
        char text[64];
        memset(&object, 0x11, sizeof object);
        memcpy(&before, &object, sizeof before); /* also what lies between fields */
        bool taken = field_set_text(field, &object, texts[i].in);
        if (taken != (texts[i].out != NULL)) fail_msg("%s \"%s\"", field->name, texts[i].in);
        if (!taken) assert_memory_equal(&object, &before, sizeof object);
        if (!taken) continue;
        assert_int_equal(field_print(text, sizeof text, field, &object), texts[i].number);
        assert_string_equal(text, texts[i].out);
    }
    struct Fielded object = {0};
    assert_false(field_set_number(&rows[4], &object, 1));
    assert_true(field_set_number(&rows[1], &object, 5));
    assert_int_equal(object.narrow, 5);
    assert_string_equal(field_wants(&rows[1]), "a whole number from 0 to 7");
}

/* ---- time and console ------------------------------------------------------------------------ */

static void test_seconds(void **state) {
    (void)state;
    double before = seconds();
    usleep(2000);
    double passed = seconds() - before;
    assert_true(passed >= 0.002 && passed < 10);
}

static void test_console_time(void **state) {
    (void)state;
    static const struct { double seconds; const char *text; } cases[] = {
        {0, "0:00"}, {41.6, "0:42"}, {59.7, "1:00"}, {723, "12:03"}, {3723, "1:02:03"},
        {360000, "100:00:00"}, {-1, "?:??"}, {NAN, "?:??"}, {INFINITY, "?:??"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(console_time(cases[i].seconds), cases[i].text);
}

static void talks(void *quiet) {
    console_open(quiet != NULL);
    say("step %d", 1);
    console_progress("step", 1, 2, 3);
    say("step %d", 2);
}

/* The same on a terminal of 24 columns; it comes back through the terminal's other end. */
static void talks_on_a_terminal(void *unused) {
    (void)unused;
    int other = posix_openpt(O_RDWR | O_NOCTTY);
    if (other < 0 || grantpt(other) != 0 || unlockpt(other) != 0) exit(77);
    int terminal = open(ptsname(other), O_RDWR | O_NOCTTY), plain = dup(STDOUT_FILENO);
    struct winsize size = {.ws_row = 10, .ws_col = 24};
    ioctl(terminal, TIOCSWINSZ, &size);
    dup2(terminal, STDOUT_FILENO);
    talks(NULL);
    char text[512] = "";
    size_t length = 0;
    while (!strstr(text, "step 2\r\n")) {   /* it comes in pieces */
        ssize_t n = read(other, text + length, sizeof text - 1 - length);
        if (n <= 0) break;
        length += (size_t)n;
    }
    if (write(plain, text, length) != (ssize_t)length) exit(78);
}

static void test_console(void **state) {
    (void)state;
    assert_int_equal(run_in_child(talks, NULL, output, sizeof output), 0);
    assert_string_equal(output, "step 1\nstep 2\n");
    assert_int_equal(run_in_child(talks, "quiet", output, sizeof output), 0);
    assert_string_equal(output, "");
    int code = run_in_child(talks_on_a_terminal, NULL, output, sizeof output);
    if (code == 77) skip();   /* no pseudo-terminals here */
    assert_int_equal(code, 0);
    assert_string_equal(output, "step 1\r\n\rstep 1/2 [#############\033[K\r\033[Kstep 2\r\n");
}

/* ---- launch ---------------------------------------------------------------------------------- */

static void launches(void *unused) {
    (void)unused;
    execl("/proc/self/exe", "test_base", "launched", NULL);
}

static void test_launch_prepare(void **state) {
    (void)state;
    unsetenv("OMP_WAIT_POLICY"), unsetenv("GOMP_SPINCOUNT"), unsetenv("KMP_BLOCKTIME");
    assert_int_equal(run_in_child(launches, NULL, output, sizeof output), 0);
    assert_string_equal(output, "1000");
    setenv("OMP_WAIT_POLICY", "active", 1);   /* the user's choice stands */
    assert_int_equal(run_in_child(launches, NULL, output, sizeof output), 0);
    assert_string_equal(output, "unset");
}

static void test_launch_threads(void **state) {
    (void)state;
    int all = launch_threads(0);
    assert_in_range(all, 1, omp_get_num_procs());
    assert_int_equal(omp_get_max_threads(), all);
    assert_int_equal(launch_threads(3), 3);
    assert_int_equal(omp_get_max_threads(), 3);
    launch_threads(all);
}

static void is_interrupted(void *times) {
    signal(SIGINT, SIG_DFL), signal(SIGTERM, SIG_DFL);   /* whatever our caller ignores */
    launch_catch_signals();
    if (launch_stop_requested()) exit(10);
    raise(SIGTERM);
    if (!launch_stop_requested()) exit(11);
    for (const char *c = times; *c; c++, usleep(150000)) raise(SIGINT);
    exit(12);
}

static void test_signals(void **state) {
    (void)state;
    assert_int_equal(run_in_child(is_interrupted, "1", output, sizeof output), 12);
    assert_int_equal(run_in_child(is_interrupted, "22", output, sizeof output), 128 + SIGINT);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "launched") == 0) {
        launch_prepare(argv);
        printf("%s", getenv("GOMP_SPINCOUNT") ? getenv("GOMP_SPINCOUNT") : "unset");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_known_answers),
        cmocka_unit_test(test_uniform_stays_inside),
        cmocka_unit_test(test_key_uses_every_bit),
        cmocka_unit_test(test_sequence_is_the_counter),
        cmocka_unit_test(test_below_is_unbiased),
        cmocka_unit_test(test_normal_distribution),
        cmocka_unit_test(test_shuffle),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_errors_of_ranks),
        cmocka_unit_test(test_allocations),
        cmocka_unit_test(test_atomic_file),
        cmocka_unit_test(test_atomic_file_failures),
        cmocka_unit_test(test_quotes),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_seconds),
        cmocka_unit_test(test_console_time),
        cmocka_unit_test(test_console),
        cmocka_unit_test(test_launch_prepare),
        cmocka_unit_test(test_launch_threads),
        cmocka_unit_test(test_signals),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
