#include "text.h"

#include <stdio.h>
#include <string.h>

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
