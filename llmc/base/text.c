#include "text.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"

/* How many bytes at the start of text are right for the character that its first byte begins;
   *needed: how many that has (0: no character begins so). */
static size_t right_bytes(const char *bytes, size_t available, size_t *needed) {
    const unsigned char *text = (const unsigned char *)bytes;
    unsigned char lead = text[0], low = 0x80, high = 0xBF;
    *needed = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3
              : lead < 0xF5 ? 4 : 0;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    size_t n = *needed > 0;
    for (; n < *needed && n < available; n++, low = 0x80, high = 0xBF)
        if (text[n] < low || text[n] > high) break;
    return n;
}

size_t utf8_length(const char *text, size_t available) {
    size_t needed, right = right_bytes(text, available, &needed);
    return right == needed && needed <= available ? needed : 0;
}

size_t utf8_step(const char *text, size_t available, bool *valid) {
    size_t needed, right = right_bytes(text, available, &needed);
    *valid = right > 0 && right == needed;
    return right > 0 ? right : 1;
}

bool utf8_is_valid(const char *text, size_t length) {
    for (size_t i = 0, n; i < length; i += n) {
        n = (unsigned char)text[i] < 0x80 ? 1 : utf8_length(text + i, length - i);
        if (n == 0) return false;
    }
    return true;
}

size_t utf8_unfinished(const char *text, size_t length) {
    for (size_t n = 1; n <= 3 && n <= length; n++) {
        size_t needed, right = right_bytes(text + length - n, n, &needed);
        if (right == n && needed > n) return n;
    }
    return 0;
}

unsigned utf8_code_point(const char *bytes) {
    const unsigned char *c = (const unsigned char *)bytes;
    if (c[0] < 0x80) return c[0];
    if (c[0] < 0xE0) return (c[0] & 31u) << 6 | (c[1] & 63u);
    if (c[0] < 0xF0) return (c[0] & 15u) << 12 | (c[1] & 63u) << 6 | (c[2] & 63u);
    return (c[0] & 7u) << 18 | (c[1] & 63u) << 12 | (c[2] & 63u) << 6 | (c[3] & 63u);
}

const char *quote(const char *text) {
    enum { MOST = 60, BUFFERS = 4 };
    static char buffers[BUFFERS][MOST + 16];
    static int next;
    char *out = buffers[next++ % BUFFERS];
    size_t length = 0;
    for (; text && *text && length < MOST; text++) {
        unsigned char c = (unsigned char)*text;
        if (c >= 32 && c < 127) out[length++] = (char)c;
        else length += (size_t)sprintf(out + length, "\\x%02x", c);
    }
    strcpy(out + length, text && *text ? "..." : "");
    return out;
}

bool is_lfs_pointer(const void *data, size_t bytes) {
    static const char start[] = "version https://git-lfs";
    return bytes >= sizeof start - 1 && memcmp(data, start, sizeof start - 1) == 0;
}

void text_clean(char *text) {
    for (size_t left = strlen(text), n; left > 0; text += n, left -= n) {
        n = utf8_length(text, left);
        const unsigned char *c = (const unsigned char *)text;
        bool control = n == 0 || c[0] < 32 || c[0] == 127 || (c[0] == 0xC2 && c[1] < 0xA0);
        if (n == 0) n = 1;
        if (control) memset(text, '?', n);
    }
}

/* ---- text that grows ------------------------------------------------------------------------- */

/* Room for `more` bytes and the zero behind what is there; returns where they go. */
static char *text_room(struct Text *text, size_t more) {
    size_t needed = text->length + more + 1;
    if (needed > text->capacity) {
        text->capacity = 2 * needed + 16;
        text->bytes = check_realloc(text->bytes, text->capacity, 1, "a text");
    }
    return text->bytes + text->length;
}

void text_clear(struct Text *text) {
    text->length = 0;
    *text_room(text, 0) = 0;
}

void text_append(struct Text *text, const char *bytes, size_t length) {
    char *at = text_room(text, length);
    memcpy(at, bytes, length);
    at[length] = 0;
    text->length += length;
}

void text_append_utf8(struct Text *text, const char *bytes, size_t length) {
    size_t kept = 0, at = 0, n;
    for (; at < length; at += n) {
        bool valid;
        n = utf8_step(bytes + at, length - at, &valid);
        if (valid) continue;
        text_append(text, bytes + kept, at - kept);
        text_append(text, UTF8_REPLACEMENT, sizeof UTF8_REPLACEMENT - 1);
        kept = at + n;
    }
    text_append(text, bytes + kept, length - kept);
}

void text_format(struct Text *text, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length > 0) vsnprintf(text_room(text, (size_t)length), (size_t)length + 1, format, again);
    va_end(again);
    if (length > 0) text->length += (size_t)length;
    else if (!text->bytes) text_clear(text);
}

void text_free(struct Text *text) {
    free(text->bytes);
    *text = (struct Text){0};
}

/* ---- lists of texts -------------------------------------------------------------------------- */

void text_list_add(struct TextList *list, const char *bytes, size_t length) {
    if (list->count + 2 > list->capacity) {
        list->capacity = 2 * (list->count + 2);
        list->start = check_realloc(list->start, (size_t)list->capacity, sizeof *list->start,
                                    "a list of texts");
    }
    list->start[list->count] = list->all.length;
    text_append(&list->all, bytes, length);
    text_append(&list->all, "", 1);
    list->start[++list->count] = list->all.length;
}

void text_list_cut(struct TextList *list, int count) {
    if (count >= list->count) return;
    list->all.length = list->start[count];
    list->count = count;
}

const char *text_list_at(const struct TextList *list, int i) {
    return list->all.bytes + list->start[i];
}

size_t text_list_length(const struct TextList *list, int i) {
    return list->start[i + 1] - list->start[i] - 1;
}

void text_list_free(struct TextList *list) {
    text_free(&list->all);
    free(list->start);
    *list = (struct TextList){0};
}
