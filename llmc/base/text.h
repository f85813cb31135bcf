/* Bytes that may be text. */
#ifndef LLMC_TEXT_H
#define LLMC_TEXT_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the UTF-8 character at the start of text, or 0: none begins there (Unicode 15, table
   3-7: no overlong forms, no surrogates, nothing past U+10FFFF). */
size_t utf8_length(const char *text, size_t available);

/* What a file says, for a message: printable ASCII as it is, every other byte as \xNN, cut after
   about 60 characters. One of four static buffers, used in turn. NULL gives "". */
const char *quote(const char *text);

/* Is it what a clone without Git LFS has in place of a large file? LFS_POINTER says so. */
bool is_lfs_pointer(const void *data, size_t bytes);
#define LFS_POINTER "is a Git LFS pointer and not the file itself; run `git lfs pull` where it is"

/* A message becomes one line that does not talk to the terminal: control characters and bytes that
   are not UTF-8 become '?'. */
void text_clean(char *text);

#endif
