/* io/tensorboard: records against TensorFlow's own writer, and read back by a second reader. */
#include "test.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include "../llmc/base/files.h"
#include "../llmc/io/tensorboard.h"
#include "../llmc/run/report.h"
#include "child.h"

static char folder[64];

static int make_folder(void **state) {
    (void)state;
    strcpy(folder, "/tmp/test_tensorboard_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    char command[100];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

static double now(void) {
    struct timeval time;
    gettimeofday(&time, NULL);
    return (double)time.tv_sec + 1e-6 * (double)time.tv_usec;
}

/* ---- a reader that shares nothing with the writer -------------------------------------------- */

struct Bytes {
    unsigned char data[1 << 16];
    size_t length;
};

static const struct Bytes *read_bytes(const char *path) {
    static struct Bytes bytes;
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    bytes.length = fread(bytes.data, 1, sizeof bytes.data, file);
    assert_true(bytes.length < sizeof bytes.data);
    fclose(file);
    return &bytes;
}

static uint64_t little_endian(const unsigned char *at, int bytes) {
    return bytes == 0 ? 0 : at[0] | little_endian(at + 1, bytes - 1) << 8;
}

static uint32_t reversed(uint32_t value, int bits) {
    uint32_t result = 0;
    for (int i = 0; i < bits; i++) result |= (value >> i & 1) << (bits - 1 - i);
    return result;
}

/* The CRC by its definition, most significant bit first with polynomial 0x1EDC6F41. */
static uint32_t reference_crc(const unsigned char *data, size_t bytes) {
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < bytes; i++) {
        crc ^= reversed(data[i], 8) << 24;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 0x80000000u ? (crc * 2) ^ 0x1EDC6F41u : crc * 2;
    }
    return ~reversed(crc, 32);
}

static uint32_t reference_masked_crc(const unsigned char *data, size_t bytes) {
    uint32_t crc = reference_crc(data, bytes);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

/* One decoded message: the last value of each field number below 16, and its wire type. */
struct Fields {
    int wire[16];                       /* -1: absent */
    uint64_t number[16];
    const unsigned char *bytes[16];     /* of number[] bytes; wire type 2 */
};

static const unsigned char *read_varint(const unsigned char *at, uint64_t *value) {
    *value = 0;
    for (int shift = 0;; shift += 7) {
        assert_true(shift < 70);
        *value |= (uint64_t)(*at & 127) << shift;
        if (*at++ < 128) return at;
    }
}

static struct Fields read_message(const unsigned char *at, size_t length) {
    struct Fields fields;
    memset(fields.wire, -1, sizeof fields.wire);
    for (const unsigned char *end = at + length; at < end;) {
        uint64_t key;
        at = read_varint(at, &key);
        assert_true(key >> 3 < 16);
        int field = (int)(key >> 3), wire = fields.wire[field] = (int)(key & 7);
        assert_true(wire == 0 || wire == 1 || wire == 2 || wire == 5);
        if (wire == 0 || wire == 2) at = read_varint(at, &fields.number[field]);
        else fields.number[field] = little_endian(at, wire == 1 ? 8 : 4);
        if (wire == 2) fields.bytes[field] = at;
        at += wire == 1 ? 8 : wire == 5 ? 4 : wire == 2 ? fields.number[field] : 0;
        assert_true(at <= end);
    }
    return fields;
}

struct Event {
    double wall_time;
    int64_t step;
    char version[32], tag[TENSORBOARD_MAX_TAG + 1];
    int status;             /* of the session; 0: no session log */
    float value;
};

static void copy_text(char *out, size_t capacity, const struct Fields *fields, int field) {
    if (fields->wire[field] < 0) return;
    assert_int_equal(fields->wire[field], 2);
    assert_true(fields->number[field] < capacity);
    memcpy(out, fields->bytes[field], fields->number[field]);
}

static struct Event read_event(const unsigned char *data, size_t length) {
    struct Event event = {0};
    struct Fields fields = read_message(data, length);
    assert_int_equal(fields.wire[1], 1);
    memcpy(&event.wall_time, &fields.number[1], 8);
    event.step = fields.wire[2] == 0 ? (int64_t)fields.number[2] : 0;
    copy_text(event.version, sizeof event.version, &fields, 3);
    if (fields.wire[7] == 2)
        event.status = (int)read_message(fields.bytes[7], fields.number[7]).number[1];
    if (fields.wire[5] == 2) {
        struct Fields summary = read_message(fields.bytes[5], fields.number[5]);
        struct Fields value = read_message(summary.bytes[1], summary.number[1]);
        copy_text(event.tag, sizeof event.tag, &value, 1);
        assert_int_equal(value.wire[2], 5);
        uint32_t bits = (uint32_t)value.number[2];
        memcpy(&event.value, &bits, 4);
    }
    return event;
}

/* Every record of a file, its framing checked; returns their number. */
static int read_events(struct Event *events, int capacity, const char *path) {
    const struct Bytes *file = read_bytes(path);
    int count = 0;
    for (size_t at = 0; at < file->length; count++) {
        const unsigned char *record = file->data + at;
        assert_true(at + 12 <= file->length && count < capacity);
        size_t length = little_endian(record, 8);
        assert_int_equal(little_endian(record + 8, 4), reference_masked_crc(record, 8));
        assert_true(at + 16 + length <= file->length);
        assert_int_equal(little_endian(record + 12 + length, 4),
                         reference_masked_crc(record + 12, length));
        events[count] = read_event(record + 12, length);
        at += 16 + length;
    }
    return count;
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* RFC 3720, appendix B.4, and the usual check string. */
static void test_crc_known_answers(void **state) {
    (void)state;
    unsigned char block[4][32];
    for (int i = 0; i < 32; i++)
        block[0][i] = 0, block[1][i] = 0xFF, block[2][i] = (unsigned char)i,
        block[3][i] = (unsigned char)(31 - i);
    static const uint32_t answer[] = {0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0x113FDB5C};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(crc32c(0, block[i], 32), answer[i]);
        assert_int_equal(reference_crc(block[i], 32), answer[i]);
    }
    assert_int_equal(crc32c(0, "123456789", 9), 0xE3069283);
    assert_int_equal(crc32c(0, "", 0), 0);
}

/* In pieces of every length, aligned or not, it is the CRC of the whole. */
static void test_crc_in_pieces(void **state) {
    (void)state;
    unsigned char data[67];
    for (int i = 0; i < 67; i++) data[i] = (unsigned char)(i * 37 + 11);
    for (size_t begin = 0; begin < 9; begin++)
        for (size_t cut = begin; cut <= sizeof data; cut++) {
            uint32_t crc = crc32c(0, data + begin, cut - begin);
            crc = crc32c(crc, data + cut, sizeof data - cut);
            assert_int_equal(crc, reference_crc(data + begin, sizeof data - begin));
        }
}

/* Written by the Python package tensorboard 2.21 (its RecordWriter and event_pb2), wall times 1.5,
   2.5, ... : version; START at step 7; reward .625 at 7; eval/pass@64 -1.5 at 300; zero 0 at 0. */
static const unsigned char golden[] =
    "\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7f\x4b\x22\x09\x00\x00\x00"
    "\x00\x00\x00\xf8\x3f\x1a\x0d\x62\x72\x61\x69\x6e\x2e\x45\x76\x65"
    "\x6e\x74\x3a\x32\x2a\x28\x64\x6c"
    "\x0f\x00\x00\x00\x00\x00\x00\x00\x6d\x53\x2b\x09\x09\x00\x00\x00"
    "\x00\x00\x00\x04\x40\x10\x07\x3a\x02\x08\x01\x9a\xaf\x83\xce"
    "\x1c\x00\x00\x00\x00\x00\x00\x00\xc8\xc1\x95\x1d\x09\x00\x00\x00"
    "\x00\x00\x00\x0c\x40\x10\x07\x2a\x0f\x0a\x0d\x0a\x06\x72\x65\x77"
    "\x61\x72\x64\x15\x00\x00\x20\x3f\x23\xd8\x07\xd4"
    "\x23\x00\x00\x00\x00\x00\x00\x00\xb0\x9f\x77\x43\x09\x00\x00\x00"
    "\x00\x00\x00\x12\x40\x10\xac\x02\x2a\x15\x0a\x13\x0a\x0c\x65\x76"
    "\x61\x6c\x2f\x70\x61\x73\x73\x40\x36\x34\x15\x00\x00\xc0\xbf\x38"
    "\xdd\xb4\xce"
    "\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7f\x4b\x22\x09\x00\x00\x00"
    "\x00\x00\x00\x16\x40\x2a\x0d\x0a\x0b\x0a\x04\x7a\x65\x72\x6f\x15"
    "\x00\x00\x00\x00\xd5\xaa\xfc\x18";

/* The same bytes, once our wall times (and so the data's CRC) are replaced by the golden file's. */
static void test_golden_bytes(void **state) {
    (void)state;
    struct TensorBoard board;
    tensorboard_open(&board, folder, 7);
    tensorboard_scalar(&board, 7, "reward", 0.625);
    tensorboard_scalar(&board, 300, "eval/pass@64", -1.5);
    tensorboard_scalar(&board, 0, "zero", 0);
    tensorboard_close(&board);

    struct Bytes file = *read_bytes(board.path);
    assert_int_equal(file.length, sizeof golden - 1);
    for (size_t at = 0; at < file.length;) {
        size_t length = little_endian(file.data + at, 8);
        memcpy(file.data + at + 13, golden + at + 13, 8);
        uint32_t crc = reference_masked_crc(file.data + at + 12, length);
        for (int i = 0; i < 4; i++) file.data[at + 12 + length + i] = (unsigned char)(crc >> 8 * i);
        at += 16 + length;
    }
    assert_memory_equal(file.data, golden, file.length);
}

/* Steps and tag lengths around every border of the encoding come back, with the time of writing. */
static void test_reads_back(void **state) {
    (void)state;
    static const int64_t steps[] = {0, 1, 127, 128, 16383, 16384, INT32_MAX, 1ll << 40, INT64_MAX};
    static const size_t lengths[] = {1, 6, 100, 120, 121, 122, 127, 128, 255, 256, 257, 1000};
    static struct Event events[120];
    char tag[1001];
    struct TensorBoard board;
    double before = now();
    tensorboard_open(&board, folder, 0);
    for (int i = 0; i < 108; i++) {
        memset(tag, 'a' + i % 26, sizeof tag);
        tag[lengths[i / 9]] = 0;
        tensorboard_scalar(&board, steps[i % 9], tag, 0.1 * i - 3);
    }
    tensorboard_close(&board);
    double after = now();

    assert_int_equal(read_events(events, 120, board.path), 110);
    assert_string_equal(events[0].version, "brain.Event:2");
    assert_int_equal(events[1].status, 1);
    for (int i = 0; i < 110; i++)   /* a microsecond: the resolution of gettimeofday */
        assert_true(before - 1e-6 <= events[i].wall_time && events[i].wall_time <= after + 1e-6);
    for (int i = 0; i < 108; i++) {
        const struct Event *e = &events[i + 2];
        size_t length = lengths[i / 9] < 256 ? lengths[i / 9] : 256;
        assert_int_equal(e->step, steps[i % 9]);
        assert_int_equal(strlen(e->tag), length);
        assert_int_equal(e->tag[length - 1], 'a' + i % 26);
        assert_true(e->value == (float)(0.1 * i - 3));
    }
}

static void test_values_that_are_not_finite(void **state) {
    (void)state;
    struct Event events[8];
    struct TensorBoard board;
    tensorboard_open(&board, folder, 0);
    tensorboard_scalar(&board, 1, "not measured", NAN);
    tensorboard_scalar(&board, 1, "diverged", INFINITY);
    tensorboard_close(&board);
    assert_int_equal(read_events(events, 8, board.path), 3);
    assert_string_equal(events[2].tag, "diverged");
    assert_true(isinf(events[2].value));
}

static void test_flush_shows_all(void **state) {
    (void)state;
    struct Event events[8];
    struct TensorBoard board;
    tensorboard_open(&board, folder, 0);
    assert_int_equal(read_events(events, 8, board.path), 2);
    tensorboard_scalar(&board, 1, "reward", 1);
    tensorboard_flush(&board);
    assert_int_equal(read_events(events, 8, board.path), 3);
    tensorboard_close(&board);
}

/* At the border of two tasks both are evaluated at one step: each under its own tag. */
static void test_evaluations_name_their_task(void **state) {
    (void)state;
    static struct Report report;
    static struct Event events[64];
    static const char *const tasks[] = {"first", "second"};
    struct Progress progress = {.step = 0};
    report_open(&report, folder, 0, &progress);
    for (int i = 0; i < 2; i++) {
        struct Evaluation e = {.num_prompts = 1, .samples = 4, .loss = NAN,
                               .reward = 0.25 + 0.5 * i,
                               .pass_at = {0.25 + 0.5 * i, 1, NAN, NAN}};
        report_evaluation(&report, tasks[i], 7, i ? "phase_start" : "after_all", i, &e);
    }
    int count = read_events(events, 64, report.board.path), found = 0;
    for (int i = 0; i < count; i++)
        for (int k = 0; k < 2; k++) {
            char tag[64];
            snprintf(tag, sizeof tag, "eval/%s/pass@1", tasks[k]);
            if (strcmp(events[i].tag, tag) != 0) continue;
            /* what is made again at the next end is one step further on */
            assert_true(events[i].step == (k ? 7 : 8));
            assert_true(events[i].value == 0.25f + 0.5f * (float)k);
            found++;
        }
    assert_int_equal(found, 2);
    for (int i = 0; i < count; i++)   /* no value of a name twice at one step */
        for (int k = 0; k < i; k++)
            assert_true(!events[i].tag[0] || strcmp(events[i].tag, events[k].tag) != 0);
    report_close(&report);
}

static int not_hidden(const struct dirent *entry) { return entry->d_name[0] != '.'; }
static int is_events(const struct dirent *e) { return strncmp(e->d_name, "events", 6) == 0; }

/* What TensorBoard does: files by name, events in order, START drops what came before from its step
   on. Returns how many numbers are left; value[step] for step < capacity. */
static int read_purged(float *value, int capacity) {
    struct dirent **names;
    int files = scandir(folder, &names, is_events, alphasort), left = 0;
    for (int i = 0; i < capacity; i++) value[i] = NAN;
    for (int f = 0; f < files; f++) {
        static struct Event events[64];
        char path[400];
        snprintf(path, sizeof path, "%s/%s", folder, names[f]->d_name);
        int count = read_events(events, 64, path);
        for (int i = 0; i < count; i++) {
            if (events[i].status == 1)
                for (int64_t s = events[i].step; s < capacity; s++) value[s] = NAN;
            if (events[i].tag[0]) value[events[i].step] = events[i].value;
        }
        free(names[f]);
    }
    free(names);
    for (int i = 0; i < capacity; i++) left += !isnan(value[i]);
    return left;
}

static void log_steps(int first, int last, double value) {
    struct TensorBoard board;
    tensorboard_open(&board, folder, first);
    for (int step = first; step <= last; step++) tensorboard_scalar(&board, step, "x", value);
    tensorboard_close(&board);
}

/* Three files within one second, each from an earlier step than where the one before ended: steps
   of the earlier files past that step are dropped. */
static void test_resume_drops_later_steps(void **state) {
    (void)state;
    float value[40];
    log_steps(0, 20, 1);
    log_steps(11, 30, 2);
    log_steps(6, 9, 3);
    assert_int_equal(read_purged(value, 40), 10);
    for (int step = 0; step < 10; step++) assert_true(value[step] == (step < 6 ? 1 : 3));
}

/* A run that goes on evaluates earlier tasks again at its own end: TensorBoard drops the points of
   the end before, and keeps all others. */
static void test_resume_drops_the_last_evaluation(void **state) {
    (void)state;
    struct Report report;
    struct Progress progress = {.phases_begun = 1};
    struct Evaluation before = {.num_prompts = 1, .truncated = .5, .loss = NAN};
    struct Evaluation after = {.num_prompts = 1, .truncated = .25, .loss = NAN};   /* logged last */
    float value[10];
    report_open(&report, folder, 0, &progress);
    report_evaluation(&report, "countdown", 4, "phase_start", 0, &before);
    report_evaluation(&report, "countdown", 4, "after_all", 0, &after);
    report_close(&report);
    progress.step = 4;
    report_open(&report, folder, 0, &progress);
    report_close(&report);
    assert_int_equal(read_purged(value, 10), 1);
    assert_true(value[4] == .5);
}

/* A file from the future (a clock set back since), and one by another program. */
static void test_new_file_sorts_last(void **state) {
    (void)state;
    char path[200];
    snprintf(path, sizeof path, "%s/events.out.tfevents.4102444800.host.1", folder);
    fclose(fopen(path, "w"));
    struct TensorBoard board;
    tensorboard_open(&board, folder, 0);
    tensorboard_close(&board);
    assert_true(strcmp(board.path, path) > 0);
    assert_non_null(strstr(board.path, ".4102444801.policy"));
}

static void test_remove_all_removes_ours(void **state) {
    (void)state;
    static const char *const kept[] = {"events.out.tfevents.1.host", "metrics.jsonl", "x.policy"};
    char path[200];
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, kept[i]);
        fclose(fopen(path, "w"));
    }
    log_steps(0, 1, 1);
    log_steps(0, 1, 1);
    tensorboard_remove_all(folder);
    struct dirent **names;
    int files = scandir(folder, &names, not_hidden, alphasort);
    assert_int_equal(files, 3);
    for (int i = 0; i < files; i++) {
        assert_string_equal(names[i]->d_name, kept[i]);
        free(names[i]);
    }
    free(names);
    tensorboard_remove_all("/nowhere/at/all");   /* nothing to remove */
}

/* ---- errors ---------------------------------------------------------------------------------- */

static void open_in(void *directory) {
    struct TensorBoard board;
    tensorboard_open(&board, directory, 0);
}

/* A file that may not grow past 4 kB stands in for a full disk. */
static void fill_disk(void *directory) {
    struct TensorBoard board;
    signal(SIGXFSZ, SIG_IGN);
    tensorboard_open(&board, directory, 0);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){4096, 4096});
    for (int step = 0; step < 1000; step++) tensorboard_scalar(&board, step, "reward", 0.5);
    tensorboard_flush(&board);
}

static void test_errors(void **state) {
    (void)state;
    char output[4096];
    assert_int_equal(run_in_child(open_in, "/nowhere/at/all", output, sizeof output), 2);
    assert_non_null(strstr(output, "train: error: cannot read the directory /nowhere/at/all"));
    assert_ptr_equal(strchr(output, '\n'), output + strlen(output) - 1);
    assert_int_equal(run_in_child(fill_disk, folder, output, sizeof output), 1);
    assert_non_null(strstr(output, "train: error: cannot write"));
    assert_ptr_equal(strchr(output, '\n'), output + strlen(output) - 1);
}

#define IN_FOLDER(test) cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc_known_answers),
        cmocka_unit_test(test_crc_in_pieces),
        IN_FOLDER(test_golden_bytes),
        IN_FOLDER(test_reads_back),
        IN_FOLDER(test_values_that_are_not_finite),
        IN_FOLDER(test_flush_shows_all),
        IN_FOLDER(test_evaluations_name_their_task),
        IN_FOLDER(test_resume_drops_later_steps),
        IN_FOLDER(test_resume_drops_the_last_evaluation),
        IN_FOLDER(test_new_file_sorts_last),
        IN_FOLDER(test_remove_all_removes_ours),
        IN_FOLDER(test_errors),
    };
    return cmocka_run_group_tests_name("tensorboard", tests, NULL, NULL);
}
