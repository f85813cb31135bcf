/* The lines of a data file, which may be larger than memory: read in blocks of some lines, each
   block in a random order of its own, the file again and again. Where a reading stands is a few
   numbers, the cursor, from which it goes on as if it had never stopped. */
#ifndef LLMC_BLOCKS_H
#define LLMC_BLOCKS_H

#include "../base/fields.h"
#include "../base/rng.h"
#include "../base/text.h"

enum { MOST_LINE = 16 << 20 };   /* bytes; a longer line is a bad one, and none of it is kept */

/* One line after another, with its place. */
struct LineReader {
    void *stream;            /* FILE */
    char path[4096];
    int64_t offset;          /* where the next line begins */
    int64_t line;            /* number of the line in hand, from 1 */
    int64_t begin;           /* where it begins */
    struct Text text;        /* it, without its newline and without a byte order mark */
    bool too_long;           /* then text is empty */
    char *buffer;
    size_t filled, used;
};
/* Ends the program (die_input, die_machine) if it cannot be read or is no plain file. option:
   "--data", for the message. */
void line_reader_open(struct LineReader *reader, const char *path, const char *option);
/* Goes on with the line that begins at offset; `line`: how many come before it. */
void line_reader_seek(struct LineReader *reader, int64_t offset, int64_t line);
/* False: the file is over. A read that fails ends the program. */
bool line_reader_next(struct LineReader *reader);
void line_reader_close(struct LineReader *reader);

/* Where a reading stands. */
struct Cursor {
    int64_t epoch;           /* times the whole file was read */
    int64_t offset, line;    /* of the block in hand: where it begins, lines before it */
    int64_t block;           /* its number in the file */
    int64_t index;           /* lines of it that were given */
    int64_t ordinal;         /* for the owner: examples made of lines so far */
};

struct Blocks {
    struct LineReader *reader;
    int64_t most_lines;      /* of a block; 1: the file's own order */
    uint64_t seed;
    int stream;              /* which of several readings: each has orders of its own */
    struct Cursor cursor;
    struct TextList text;    /* the block: its lines, those that are not blank ... */
    int64_t *number;         /* ... their numbers */
    int *order;              /* which comes when */
    int capacity;
    int64_t next_offset, next_line;   /* of the block behind it */
    bool loaded, is_last;
    void (*bad)(void *context, int64_t line, const char *problem);   /* lines that are too long */
    void *context;
};
/* The next line [*length], terminated, and its number; valid until the next call. *wrapped: the
   file begins anew with it. NULL: the file has no lines. */
const char *blocks_next(struct Blocks *blocks, size_t *length, int64_t *line, bool *wrapped);
/* Goes on from a cursor. */
void blocks_seek(struct Blocks *blocks, const struct Cursor *cursor);
void blocks_free(struct Blocks *blocks);

#endif
