/* Bytes that may be text, and texts that grow. */
#ifndef LLMC_TEXT_H
#define LLMC_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the UTF-8 character at the start of text, or 0: none begins there (Unicode 15, table
   3-7: no overlong forms, no surrogates, nothing past U+10FFFF). */
size_t utf8_length(const char *text, size_t available);
/* The same where none need begin: bytes of the character, or of the longest part of one, at least 1
   (what one U+FFFD replaces: Unicode 15, section 3.9); *valid says which. */
size_t utf8_step(const char *text, size_t available, bool *valid);
/* Bytes at the end of text [length] that begin a character whose other bytes are not there: 0 to
   3. */
size_t utf8_unfinished(const char *text, size_t length);
bool utf8_is_valid(const char *text, size_t length);
/* The code point of the character at the start of text, which must be valid. */
unsigned utf8_code_point(const char *text);
#define UTF8_REPLACEMENT "\xEF\xBF\xBD"   /* U+FFFD */

/* What a file says, for a message: printable ASCII as it is, every other byte as \xNN, cut after
   about 60 characters. One of four static buffers, used in turn. NULL gives "". */
const char *quote(const char *text);

/* Is it the small text that a clone without Git LFS has in place of a large file? LFS_POINTER is
   the message for that. */
bool is_lfs_pointer(const void *data, size_t bytes);
#define LFS_POINTER "is a Git LFS pointer and not the file itself; run `git lfs pull` where it is"

/* Makes a message safe to print on a terminal, as one line: control characters and bytes that are
   not UTF-8 become '?'. */
void text_clean(char *text);

/* Text that grows: owned, terminated, and may hold zero bytes. Zero-initialise before first use. */
struct Text {
    char *bytes;               /* [length] and a zero; NULL before the first call */
    size_t length, capacity;
};
void text_clear(struct Text *text);   /* "", its memory kept */
void text_append(struct Text *text, const char *bytes, size_t length);
/* The same, with U+FFFD for what is not UTF-8. */
void text_append_utf8(struct Text *text, const char *bytes, size_t length);
/* Appends what printf would print. */
void text_format(struct Text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_free(struct Text *text);

/* A list of texts, one behind the other in one block. Zero-initialise before first use. */
struct TextList {
    struct Text all;           /* each terminated */
    size_t *start;             /* [count + 1] where each begins */
    int count, capacity;
};
void text_list_add(struct TextList *list, const char *bytes, size_t length);
/* Drops the texts from number `count` on. */
void text_list_cut(struct TextList *list, int count);
/* Text i, terminated, valid until the next add; and its length without the zero. */
const char *text_list_at(const struct TextList *list, int i);
size_t text_list_length(const struct TextList *list, int i);
void text_list_free(struct TextList *list);

#endif
