#include "tensorboard.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/files.h"

/* ---- protocol buffers: a message is a row of (key = field << 3 | wire type, value) ----------- */

enum { WIRE_VARINT, WIRE_FIXED64, WIRE_BYTES, WIRE_FIXED32 = 5 };

/* Numbers of event.proto and summary.proto. */
enum { EVENT_WALL_TIME = 1, EVENT_STEP, EVENT_FILE_VERSION, EVENT_SUMMARY = 5,
       EVENT_SESSION_LOG = 7 };
enum { SUMMARY_VALUE = 1, VALUE_TAG = 1, VALUE_SIMPLE_VALUE, SESSION_LOG_STATUS = 1 };
enum { SESSION_START = 1 };

/* Room for the longest event: a tag of full length and less than 100 bytes around it. */
struct Message {
    size_t length;
    unsigned char bytes[TENSORBOARD_MAX_TAG + 100];
};

static void put_fixed(struct Message *m, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) m->bytes[m->length++] = (unsigned char)(value >> 8 * i);
}

/* Seven bits a byte, lowest first; the top bit says that more follow. */
static void put_varint(struct Message *m, uint64_t value) {
    for (; value >= 128; value >>= 7) put_fixed(m, value | 128, 1);
    put_fixed(m, value, 1);
}

static void put_key(struct Message *m, int field, int wire) {
    put_varint(m, (uint64_t)(field << 3 | wire));
}

static void put_integer(struct Message *m, int field, int64_t value) {
    put_key(m, field, WIRE_VARINT);
    put_varint(m, (uint64_t)value);
}

static void put_double(struct Message *m, int field, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(m, field, WIRE_FIXED64);
    put_fixed(m, bits, 8);
}

static void put_float(struct Message *m, int field, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(m, field, WIRE_FIXED32);
    put_fixed(m, bits, 4);
}

static void put_bytes(struct Message *m, int field, const void *data, size_t bytes) {
    put_key(m, field, WIRE_BYTES);
    put_varint(m, bytes);
    memcpy(m->bytes + m->length, data, bytes);
    m->length += bytes;
}

static void put_message(struct Message *m, int field, const struct Message *inner) {
    put_bytes(m, field, inner->bytes, inner->length);
}

/* ---- records --------------------------------------------------------------------------------- */

/* TFRecord stores CRCs rotated and shifted by a constant, because the CRC of data that contains its
   own CRC detects little. */
static uint32_t masked_crc(const void *data, size_t bytes) {
    uint32_t crc = crc32c(0, data, bytes);
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

static _Noreturn void die_write(const struct TensorBoard *board) {
    die_machine("cannot write %s: %s", board->path, strerror(errno));
}

static void write_record(struct TensorBoard *board, const struct Message *event) {
    struct Message head = {0}, tail = {0};
    put_fixed(&head, event->length, 8);
    put_fixed(&head, masked_crc(head.bytes, 8), 4);
    put_fixed(&tail, masked_crc(event->bytes, event->length), 4);
    if (fwrite(head.bytes, 1, head.length, board->stream) != head.length ||
        fwrite(event->bytes, 1, event->length, board->stream) != event->length ||
        fwrite(tail.bytes, 1, tail.length, board->stream) != tail.length)
        die_write(board);
}

/* An event of now; the caller adds what happened. */
static struct Message event_at(int64_t step) {
    struct Message event = {0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    put_double(&event, EVENT_WALL_TIME, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec);
    if (step != 0) put_integer(&event, EVENT_STEP, step);   /* proto3 leaves zeros out */
    return event;
}

/* ---- files ----------------------------------------------------------------------------------- */

#define PREFIX "events.out.tfevents."
#define SUFFIX ".policy"

/* The newest time in the names of a directory's event files, whoever wrote them; 0 without any. */
static long long newest_time(const char *directory) {
    DIR *entries = opendir(directory);
    if (!entries) die_errno("read the directory", directory);
    long long newest = 0, at;
    for (const struct dirent *entry; (entry = next_entry(entries, directory));)
        if (sscanf(entry->d_name, PREFIX "%10lld", &at) == 1 && at > newest) newest = at;
    closedir(entries);
    return newest;
}

void tensorboard_open(struct TensorBoard *board, const char *directory, int64_t first_step) {
    /* later than the others even within one second, or after the clock was set back */
    long long now = (long long)time(NULL), newest = newest_time(directory);
    check_path(board->path, sizeof board->path, "%s/" PREFIX "%010lld" SUFFIX, directory,
               newest < now ? now : newest + 1);
    board->stream = fopen(board->path, "wbx");
    if (!board->stream) die_errno("write", board->path);

    static const char version[] = "brain.Event:2";   /* since 2, START drops steps */
    struct Message event = event_at(0), session = {0};
    put_bytes(&event, EVENT_FILE_VERSION, version, sizeof version - 1);
    write_record(board, &event);
    event = event_at(first_step);
    put_integer(&session, SESSION_LOG_STATUS, SESSION_START);
    put_message(&event, EVENT_SESSION_LOG, &session);
    write_record(board, &event);
    tensorboard_flush(board);
}

void tensorboard_scalar(struct TensorBoard *board, int64_t step, const char *tag, double value) {
    if (isnan(value)) return;
    struct Message event = event_at(step), summary = {0}, scalar = {0};
    put_bytes(&scalar, VALUE_TAG, tag, strnlen(tag, TENSORBOARD_MAX_TAG));
    put_float(&scalar, VALUE_SIMPLE_VALUE, (float)value);
    put_message(&summary, SUMMARY_VALUE, &scalar);
    put_message(&event, EVENT_SUMMARY, &summary);
    write_record(board, &event);
}

void tensorboard_flush(struct TensorBoard *board) {
    if (fflush(board->stream) != 0) die_write(board);
}

bool tensorboard_is_there(const struct TensorBoard *board) {
    return is_same_file(fileno(board->stream), board->path);
}

void tensorboard_close(struct TensorBoard *board) {
    if (board->stream && fclose(board->stream) != 0) die_write(board);
    board->stream = NULL;
}

void tensorboard_remove_all(const char *directory) {
    DIR *entries = opendir(directory);
    if (!entries && errno == ENOENT) return;
    if (!entries) die_errno("read the directory", directory);
    for (const struct dirent *entry; (entry = next_entry(entries, directory));) {
        const char *name = entry->d_name;
        size_t length = strlen(name), suffix = strlen(SUFFIX);
        bool ours = strncmp(name, PREFIX, strlen(PREFIX)) == 0 && length > suffix &&
                    strcmp(name + length - suffix, SUFFIX) == 0;
        if (ours) unlinkat(dirfd(entries), name, 0);
    }
    closedir(entries);
}
