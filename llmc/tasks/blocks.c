#include "blocks.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "../base/check.h"

enum { BUFFER = 1 << 16, MOST_BLOCK_BYTES = 64 << 20 };

/* ---- lines ----------------------------------------------------------------------------------- */

void line_reader_open(struct LineReader *r, const char *path, const char *option) {
    struct stat status;
    char doing[64];
    *r = (struct LineReader){.buffer = check_alloc(BUFFER, 1, "a data file")};
    check_path(r->path, sizeof r->path, "%s", path);
    snprintf(doing, sizeof doing, "read %s", option);
    FILE *stream = fopen(path, "rb");
    if (!stream || fstat(fileno(stream), &status) != 0) die_errno(doing, path);
    if (!S_ISREG(status.st_mode))
        die_input("%s %s is not a plain file: it is read more than once, from places inside it",
                  option, path);
    r->stream = stream;
    text_clear(&r->text);
}

void line_reader_seek(struct LineReader *r, int64_t offset, int64_t line) {
    if (fseeko(r->stream, (off_t)offset, SEEK_SET) != 0) die_errno("read", r->path);
    r->offset = offset, r->line = line;
    r->filled = r->used = 0;
}

/* False: the file is over. */
static bool refill(struct LineReader *r) {
    errno = 0;
    r->used = 0;
    r->filled = fread(r->buffer, 1, BUFFER, r->stream);
    if (r->filled == 0 && ferror((FILE *)r->stream)) {
        if (errno == 0) errno = EIO;
        die_errno("read", r->path);
    }
    return r->filled > 0;
}

/* Takes the newline off, and at the file's beginning the byte order mark. (A carriage return is
   white space of JSON.) */
static void strip(struct LineReader *r) {
    struct Text *t = &r->text;
    if (t->length > 0 && t->bytes[t->length - 1] == '\n') t->length--;
    t->bytes[t->length] = 0;
    if (r->begin == 0 && t->length >= 3 && memcmp(t->bytes, "\xEF\xBB\xBF", 3) == 0) {
        memmove(t->bytes, t->bytes + 3, t->length - 2);
        t->length -= 3;
    }
}

bool line_reader_next(struct LineReader *r) {
    bool any = false, ended = false;
    text_clear(&r->text);
    r->begin = r->offset, r->too_long = false;
    while (!ended && (r->used < r->filled || refill(r))) {
        const char *at = r->buffer + r->used;
        const char *newline = memchr(at, '\n', r->filled - r->used);
        size_t n = newline ? (size_t)(newline - at) + 1 : r->filled - r->used;
        if (r->text.length + n > MOST_LINE) r->too_long = true;
        if (!r->too_long) text_append(&r->text, at, n);
        r->used += n, r->offset += (int64_t)n;
        any = true, ended = newline != NULL;
    }
    if (!any) return false;
    if (r->too_long) text_clear(&r->text);
    strip(r);
    r->line++;
    return true;
}

void line_reader_close(struct LineReader *r) {
    if (r->stream) fclose(r->stream);
    text_free(&r->text);
    free(r->buffer);
    *r = (struct LineReader){0};
}

/* ---- blocks ---------------------------------------------------------------------------------- */

static bool is_blank_line(const struct Text *text) {
    return text->bytes[strspn(text->bytes, " \t\r\n")] == 0 &&
           strlen(text->bytes) == text->length;
}

static void add_line(struct Blocks *b, const struct LineReader *r) {
    if (b->text.count == b->capacity) {
        b->capacity = 2 * b->capacity + 64;
        size_t n = (size_t)b->capacity;
        b->number = check_realloc(b->number, n, sizeof *b->number, "a block of lines");
        b->order = check_realloc(b->order, n, sizeof *b->order, "a block of lines");
    }
    b->number[b->text.count] = r->line;
    text_list_add(&b->text, r->text.bytes, r->text.length);
}

/* The block that begins at the cursor, and its order. */
static void load(struct Blocks *b) {
    struct LineReader *r = b->reader;
    text_list_cut(&b->text, 0);
    line_reader_seek(r, b->cursor.offset, b->cursor.line);
    b->is_last = false;
    while (b->text.count < b->most_lines && b->text.all.length < MOST_BLOCK_BYTES) {
        if (!line_reader_next(r)) {
            b->is_last = true;
            break;
        }
        if (r->too_long) b->bad(b->context, r->line, "is longer than 16 MB");
        else if (!is_blank_line(&r->text)) add_line(b, r);
    }
    b->next_offset = r->offset, b->next_line = r->line;
    b->loaded = true;
    for (int i = 0; i < b->text.count; i++) b->order[i] = i;
    if (b->most_lines == 1 || b->text.count < 2) return;
    struct Rng rng;
    uint64_t which = (uint64_t)b->cursor.epoch << 32 | (uint64_t)(uint32_t)b->cursor.block;
    rng_open(&rng, b->seed, RNG_DATA, which << 1 | (uint64_t)(b->stream & 1));
    rng_shuffle(&rng, b->order, b->text.count);
}

/* The cursor to the block behind, or to the file's beginning: true. */
static bool advance(struct Blocks *b) {
    struct Cursor *c = &b->cursor;
    c->index = 0;
    b->loaded = false;
    if (!b->is_last) {
        c->offset = b->next_offset, c->line = b->next_line;
        c->block++;
        return false;
    }
    c->offset = c->line = c->block = 0;
    c->epoch++;
    return true;
}

const char *blocks_next(struct Blocks *b, size_t *length, int64_t *line, bool *wrapped) {
    int times = 0;   /* the file's end was met */
    *wrapped = false;
    for (;;) {
        if (!b->loaded) load(b);
        if (b->cursor.index < b->text.count) break;
        if (advance(b)) *wrapped = true, times++;
        if (times == 2) return NULL;
    }
    int i = b->order[b->cursor.index++];
    *length = text_list_length(&b->text, i);
    *line = b->number[i];
    return text_list_at(&b->text, i);
}

void blocks_seek(struct Blocks *b, const struct Cursor *cursor) {
    b->cursor = *cursor;
    b->loaded = false;
}

void blocks_free(struct Blocks *b) {
    text_list_free(&b->text);
    free(b->number), free(b->order);
    b->number = NULL, b->order = NULL;
    b->capacity = 0;
    b->loaded = false;
}
