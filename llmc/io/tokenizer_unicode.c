/* What the libraries below know differently of Unicode than the tokenizers library does: versions,
   mostly. */
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "../base/check.h"
#include "tokenizer_parts.h"
#include "unicode_recent.h"

/* ---- kinds of characters --------------------------------------------------------------------- */

struct Range { unsigned first, last; };

/* Is the code point in one of the ranges, which are in order? Their rows are `size` bytes apart and
   begin with a Range. Returns the row's number or -1. */
static int row_of(const void *rows, size_t size, int count, unsigned point) {
    int low = 0, high = count - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        struct Range range;
        memcpy(&range, (const char *)rows + (size_t)middle * size, sizeof range);
        if (point > range.last) low = middle + 1;
        else high = middle;
    }
    struct Range range;
    memcpy(&range, (const char *)rows + (size_t)low * size, sizeof range);
    return point >= range.first && point <= range.last ? low : -1;
}

enum { RECENT = 1, UNORDERED = 2 };   /* some characters of a page (256 code points) are */

static void mark_pages(unsigned char *pages, unsigned first, unsigned last, int what) {
    for (unsigned page = first >> 8; page <= last >> 8; page++)
        pages[page] |= (unsigned char)what;
}

/* Most text has no such pages. */
static int page_of(unsigned point) {
    static unsigned char pages[0x1100];
    static bool made;
    if (!made) {
        for (size_t i = 0; i < sizeof recent / sizeof *recent; i++)
            mark_pages(pages, recent[i].first, recent[i].last, RECENT);
        for (size_t i = 0; i < sizeof unordered / sizeof *unordered; i++)
            mark_pages(pages, unordered[i].first, unordered[i].last, UNORDERED);
        made = true;
    }
    return pages[point >> 8];
}

unsigned like_recent(unsigned point) {
    if (!(page_of(point) & RECENT)) return point;
    int row = row_of(recent, sizeof *recent, sizeof recent / sizeof *recent, point);
    return row < 0 ? point : recent[row].like;
}

/* Does the library's normalizer leave it where it is, though newer tables would not? */
static bool is_unordered(unsigned point) {
    return page_of(point) & UNORDERED &&
           row_of(unordered, sizeof *unordered, sizeof unordered / sizeof *unordered, point) >= 0;
}

bool is_white_space(unsigned c) {
    return (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

/* Letters in circles and squares are symbols, and alphabetic. */
bool is_word_character(unsigned c) {
    c = like_recent(c);
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM: case UTF8PROC_CATEGORY_LO: case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME: case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_PC: return true;
    default: break;
    }
    return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
           (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
           (c >= 0x1F170 && c <= 0x1F189);
}

/* ---- text for patterns ----------------------------------------------------------------------- */

static void put_code_point(char *text, unsigned point, size_t bytes) {
    static const unsigned char lead[5] = {0, 0, 0, 0xE0, 0xF0};
    for (size_t i = bytes - 1; i > 0; i--, point >>= 6) text[i] = (char)(0x80 | (point & 63));
    text[0] = (char)(lead[bytes] | point);
}

/* All of them, and what stands for them, are of three or four bytes. */
const char *pattern_view(const char *text, size_t length, struct Text *scratch) {
    const char *view = text;
    for (size_t i = 0, n; i < length; i += n) {
        n = 1;
        if ((unsigned char)text[i] < 0xE0) continue;
        n = (unsigned char)text[i] < 0xF0 ? 3 : 4;
        unsigned point = utf8_code_point(text + i), like = like_recent(point);
        if (like == point) continue;
        if (view == text) {
            text_clear(scratch);
            text_append(scratch, text, length);
            view = scratch->bytes;
        }
        put_code_point(scratch->bytes + i, like, n);
    }
    return view;
}

/* ---- the normalizer -------------------------------------------------------------------------- */

/* Does a character stay what and where it is, and join with nothing before it? Those below U+0300
   (lead bytes below 0xCC) do. */
static bool is_fixed(const char *text) {
    return (unsigned char)*text < 0xCC || is_unordered(utf8_code_point(text));
}

/* Puts marks in the order of their combining classes, those of one class as they are (Unicode 15,
   section 3.11, D109). utf8proc does it too, but by exchanging neighbours: a text of a hundred
   thousand marks would take it a minute. */
static void order_marks(utf8proc_int32_t *mark, size_t count) {
    size_t begin[257] = {0};
    utf8proc_int32_t *ordered = check_alloc(count, sizeof *ordered, "NFC");
    for (size_t i = 0; i < count; i++) begin[utf8proc_get_property(mark[i])->combining_class + 1]++;
    for (int class = 0; class < 256; class++) begin[class + 1] += begin[class];
    for (size_t i = 0; i < count; i++)
        ordered[begin[utf8proc_get_property(mark[i])->combining_class]++] = mark[i];
    memcpy(mark, ordered, count * sizeof *mark);
    free(ordered);
}

/* Orders every run of marks that is not in order; characters of class 0 stay between them. */
static void order(utf8proc_int32_t *point, size_t count) {
    for (size_t i = 0, end; i < count; i = end + 1) {
        int last = 0;
        bool ordered = true;
        for (end = i; end < count; end++) {
            int class = utf8proc_get_property(point[end])->combining_class;
            if (class == 0) break;
            ordered &= class >= last;
            last = class;
        }
        if (!ordered) order_marks(point + i, end - i);
    }
}

static void append_nfc(struct Text *out, const char *text, size_t length) {
    const utf8proc_option_t options = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    size_t room = 2 * length + 32, count = 0;   /* a character of 2 bytes has at most 3 parts */
    utf8proc_int32_t *point = check_alloc(room, sizeof *point, "NFC");
    for (size_t i = 0; i < length; i += utf8_length(text + i, length - i)) {
        utf8proc_int32_t whole = (utf8proc_int32_t)utf8_code_point(text + i);
        utf8proc_ssize_t parts = utf8proc_decompose_char(
            whole, point + count, (utf8proc_ssize_t)(room - count), options, &(int){0});
        if (parts < 0 || (size_t)parts > room - count) die_machine("NFC: no room");
        count += (size_t)parts;
    }
    order(point, count);
    utf8proc_ssize_t composed = utf8proc_normalize_utf32(point, (utf8proc_ssize_t)count, options);
    for (utf8proc_ssize_t i = 0; i < composed; i++) {
        char bytes[4];
        utf8proc_ssize_t n = utf8proc_encode_char(point[i], (utf8proc_uint8_t *)bytes);
        text_append(out, bytes, (size_t)n);
    }
    free(point);
}

/* Only what is not fixed is handed over, with the character before it, with which it may join. */
void text_to_nfc(struct Text *out, const char *text, size_t length) {
    size_t done = 0, at = 0, last = 0;   /* last: the character before `at` begins there */
    while (at < length) {
        if (is_fixed(text + at)) {
            bool joins = (unsigned char)text[at] < 0xCC;
            size_t n = utf8_length(text + at, length - at);
            last = joins ? at : at + n;
            at += n;
            continue;
        }
        size_t end = at;
        while (end < length && !is_fixed(text + end))
            end += utf8_length(text + end, length - end);
        text_append(out, text + done, last - done);
        append_nfc(out, text + last, end - last);
        done = at = last = end;
    }
    text_append(out, text + done, length - done);
}
