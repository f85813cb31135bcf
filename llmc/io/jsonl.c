#include "jsonl.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/files.h"
#include "../base/text.h"
#include "lines.h"

/* ---- building a line ------------------------------------------------------------------------- */

static void append(struct Jsonl *out, const char *bytes, size_t count) {
    size_t needed = out->length + count;
    if (needed > out->capacity) {
        out->capacity = 2 * needed + 256;
        out->line = check_realloc(out->line, out->capacity, 1, "a log line");
    }
    memcpy(out->line + out->length, bytes, count);
    out->length = needed;
}

__attribute__((format(printf, 2, 3)))
static void append_format(struct Jsonl *out, const char *format, ...) {
    char text[64];   /* a number */
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    append(out, text, (size_t)length);
}

/* A JSON string of any bytes: what is not UTF-8 becomes the replacement character. */
static void append_string(struct Jsonl *out, const char *value, size_t length) {
    append(out, "\"", 1);
    for (size_t i = 0; i < length;) {
        bool valid;
        size_t n = utf8_step(value + i, length - i, &valid);
        unsigned char c = (unsigned char)value[i];
        if (!valid) append(out, "\\ufffd", 6);
        else if (c == '"' || c == '\\') append_format(out, "\\%c", c);
        else if (c == '\n') append(out, "\\n", 2);
        else if (c < 32) append_format(out, "\\u%04x", c);
        else append(out, value + i, n);
        i += n;
    }
    append(out, "\"", 1);
}

static void append_key(struct Jsonl *out, const char *key) {
    if (out->length > 1) append(out, ", ", 2);
    append_string(out, key, strlen(key));
    append(out, ": ", 2);
}

static void append_number(struct Jsonl *out, double value, int digits) {
    if (isfinite(value)) append_format(out, "%.*g", digits, value);
    else append(out, "null", 4);
}

void jsonl_begin(struct Jsonl *out) {
    out->length = 0;
    append(out, "{", 1);
}

void jsonl_number(struct Jsonl *out, const char *key, double value) {
    append_key(out, key);
    append_number(out, value, 9);
}

void jsonl_double(struct Jsonl *out, const char *key, double value) {
    append_key(out, key);
    append_number(out, value, 17);
}

void jsonl_integer(struct Jsonl *out, const char *key, int64_t value) {
    append_key(out, key);
    append_format(out, "%lld", (long long)value);
}

void jsonl_boolean(struct Jsonl *out, const char *key, bool value) {
    append_key(out, key);
    append_format(out, "%s", value ? "true" : "false");
}

void jsonl_string(struct Jsonl *out, const char *key, const char *value, size_t length) {
    append_key(out, key);
    append_string(out, value, length);
}

void jsonl_integers(struct Jsonl *out, const char *key, const int *values, int count) {
    append_key(out, key);
    append(out, "[", 1);
    for (int i = 0; i < count; i++) append_format(out, "%s%d", i ? ", " : "", values[i]);
    append(out, "]", 1);
}

void jsonl_numbers(struct Jsonl *out, const char *key, const float *values, int count) {
    append_key(out, key);
    append(out, "[", 1);
    for (int i = 0; i < count; i++) {
        if (i) append(out, ", ", 2);
        append_number(out, values[i], 9);
    }
    append(out, "]", 1);
}

/* Line ends and other control characters may not stand in a line: outside of strings they are
   blanks. (A string must not hold one; some parsers let it pass.) */
void jsonl_raw(struct Jsonl *out, const char *key, const char *json, size_t length) {
    bool in_string = false;
    append_key(out, key);
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)json[i];
        if (c < 32 && in_string) append_format(out, "\\u%04x", c);
        else append(out, c < 32 ? " " : json + i, 1);
        if (in_string && c == '\\' && i + 1 < length && (unsigned char)json[i + 1] >= 32)
            append(out, json + ++i, 1);
        else if (c == '"') in_string = !in_string;
    }
}

void jsonl_null(struct Jsonl *out, const char *key) { jsonl_raw(out, key, "null", 4); }

const char *jsonl_line(struct Jsonl *out, size_t *length) {
    append(out, "}\n", 2);
    *length = out->length;
    return out->line;
}

/* ---- the file -------------------------------------------------------------------------------- */

void jsonl_open(struct Jsonl *out, const char *path) {
    *out = (struct Jsonl){0};
    check_path(out->path, sizeof out->path, "%s", path);
    out->stream = fopen(path, "ab");
    if (!out->stream) die_errno("write", path);
}

/* With write(2) and not the stream's buffer, so that another program that reads the file while it
   grows sees whole lines. */
void jsonl_end(struct Jsonl *out) {
    append(out, "}\n", 2);
    for (size_t done = 0; done < out->length;) {
        ssize_t n = write(fileno(out->stream), out->line + done, out->length - done);
        if (n > 0) done += (size_t)n;
        else if (n < 0 && errno != EINTR)
            die_machine("cannot write %s: %s", out->path, strerror(errno));
    }
    out->length = 0;
}

/* Where the name cannot be opened again, lines still go to the file that has lost it. */
static void reopen(struct Jsonl *out) {
    FILE *stream = fopen(out->path, "ab");
    if (!stream) {
        warn("%s was removed or replaced while the run wrote it, and cannot be opened again: %s",
             out->path, strerror(errno));
        return;
    }
    warn("%s was removed or replaced while the run wrote it; lines from here on go to the file "
         "that has its name now", out->path);
    fclose(out->stream);
    out->stream = stream;
}

void jsonl_sync(struct Jsonl *out) {
    /* Pipes and some file systems cannot sync (EINVAL, EROFS): that is no error. */
    if (fsync(fileno(out->stream)) != 0 && errno != EINVAL && errno != EROFS)
        die_machine("cannot write %s to the disk: %s", out->path, strerror(errno));
    if (!is_same_file(fileno(out->stream), out->path)) reopen(out);
}

void jsonl_close(struct Jsonl *out) {
    if (out->stream && fclose(out->stream) != 0)
        die_machine("cannot write %s: %s", out->path, strerror(errno));
    free(out->line);
    *out = (struct Jsonl){0};
}

/* ---- cutting --------------------------------------------------------------------------------- */

/* Is it a whole line, and one without `key` or with key <= last? A line with zero bytes, which a
   power failure can leave at the end of a file, is dropped. */
static bool keep_line(const struct Lines *line, const char *key, int64_t last) {
    if (line->text[line->length - 1] != '\n' || lines_has_zero(line)) return false;
    cJSON *object = cJSON_Parse(line->text);
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    bool keep = !cJSON_IsNumber(item) || item->valuedouble <= (double)last;
    cJSON_Delete(object);
    return keep;
}

void jsonl_cut(const char *path, const char *key, int64_t last) {
    struct Lines in;
    struct AtomicFile out;
    int got;
    if (!path_exists(path)) return;
    lines_open(&in, path, NULL);
    atomic_open(&out, path);
    while ((got = lines_try(&in)) > 0)
        if (keep_line(&in, key, last)) atomic_write(&out, in.text, in.length);
    if (got < 0) {   /* the old file stays: it has lines that were not read */
        atomic_cancel(&out);
        lines_fail(&in);
    }
    atomic_commit(&out);
    lines_close(&in);
}
