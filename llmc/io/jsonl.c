#include "jsonl.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../base/check.h"

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

/* Bytes of the UTF-8 character at the start of text, or 0: none begins there (Unicode 15, table
   3-7: no overlong forms, no surrogates, nothing past U+10FFFF). */
static size_t utf8_length(const unsigned char *text, size_t available) {
    unsigned char lead = text[0], low = 0x80, high = 0xBF;
    size_t length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3
                    : lead < 0xF5 ? 4 : 0;
    if (length == 0 || length > available) return 0;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    if (length > 1 && (text[1] < low || text[1] > high)) return 0;
    for (size_t i = 2; i < length; i++)
        if (text[i] < 0x80 || text[i] > 0xBF) return 0;
    return length;
}

/* A JSON string of any bytes: what is not UTF-8 becomes the replacement character. */
static void append_string(struct Jsonl *out, const char *value, size_t length) {
    const unsigned char *text = (const unsigned char *)value;
    append(out, "\"", 1);
    for (size_t i = 0; i < length;) {
        size_t n = utf8_length(text + i, length - i);
        if (n == 0) append(out, "\\ufffd", 6);
        else if (text[i] == '"' || text[i] == '\\') append_format(out, "\\%c", text[i]);
        else if (text[i] == '\n') append(out, "\\n", 2);
        else if (text[i] < 32) append_format(out, "\\u%04x", text[i]);
        else append(out, value + i, n);
        i += n ? n : 1;
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

/* ---- the file -------------------------------------------------------------------------------- */

void jsonl_open(struct Jsonl *out, const char *path) {
    *out = (struct Jsonl){0};
    check_path(out->path, sizeof out->path, "%s", path);
    out->stream = fopen(path, "ab");
    if (!out->stream) die_input("cannot write %s: %s", path, strerror(errno));
}

/* write(2) and not the stream's buffer: whoever reads the file while it grows sees whole lines. */
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

void jsonl_close(struct Jsonl *out) {
    if (out->stream && fclose(out->stream) != 0)
        die_machine("cannot write %s: %s", out->path, strerror(errno));
    free(out->line);
    *out = (struct Jsonl){0};
}

/* ---- cutting --------------------------------------------------------------------------------- */

/* Is it a whole line without `key`, or with key <= last? */
static bool keep_line(const char *line, size_t length, const char *key, int64_t last) {
    if (length == 0 || line[length - 1] != '\n') return false;
    cJSON *object = cJSON_Parse(line);
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    bool keep = !cJSON_IsNumber(item) || item->valuedouble <= (double)last;
    cJSON_Delete(object);
    return keep;
}

void jsonl_cut(const char *path, const char *key, int64_t last) {
    FILE *in = fopen(path, "rb");
    if (!in && errno == ENOENT) return;
    if (!in) die_input("cannot read %s: %s", path, strerror(errno));
    struct AtomicFile out;
    atomic_open(&out, path);
    char *line = NULL;
    size_t capacity = 0;
    for (ssize_t n; errno = 0, (n = getline(&line, &capacity, in)) > 0;)
        if (keep_line(line, (size_t)n, key, last)) atomic_write(&out, line, (size_t)n);
    if (errno) {
        int error = errno;
        unlink(out.temporary);
        die_input("cannot read %s: %s", path, strerror(error));
    }
    atomic_commit(&out);
    fclose(in);
    free(line);
}
