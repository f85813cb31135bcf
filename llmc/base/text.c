#include "text.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "check.h"

size_t utf8_length(const char *bytes, size_t available) {
    const unsigned char *text = (const unsigned char *)bytes;
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
