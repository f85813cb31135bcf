/* JSON lines out: one flat object per line, written whole (one write call), numbers with enough
   digits to come back exactly. Non-finite numbers become null. Reading JSON is cJSON's job. */
#ifndef LLMC_JSONL_H
#define LLMC_JSONL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct Jsonl {
    FILE *stream;
    char path[4096];
    char *line;       /* the object being built */
    size_t length, capacity;
};

/* Opens for appending; die_input if it cannot. */
void jsonl_open(struct Jsonl *out, const char *path);
void jsonl_begin(struct Jsonl *out);
void jsonl_number(struct Jsonl *out, const char *key, double value);   /* float32 precision: %.9g */
void jsonl_double(struct Jsonl *out, const char *key, double value);   /* %.17g */
void jsonl_integer(struct Jsonl *out, const char *key, int64_t value);
void jsonl_boolean(struct Jsonl *out, const char *key, bool value);
void jsonl_string(struct Jsonl *out, const char *key, const char *value, size_t length);
void jsonl_integers(struct Jsonl *out, const char *key, const int *values, int count);
void jsonl_numbers(struct Jsonl *out, const char *key, const float *values, int count);
/* A value that is JSON already; it stays on its line. */
void jsonl_raw(struct Jsonl *out, const char *key, const char *json, size_t length);
void jsonl_null(struct Jsonl *out, const char *key);
/* Ends the object and hands the line to the kernel; die_machine if the disk refuses it. */
void jsonl_end(struct Jsonl *out);
/* In place of jsonl_end, also for one that has no file (zero-initialised): the line with its end
   [*length], valid until the next jsonl_begin. */
const char *jsonl_line(struct Jsonl *out, size_t *length);
/* What was written is on the disk when this returns; die_machine if it cannot be. If the file was
   removed or replaced since it was opened, a warning says so, and what follows goes to the file
   that has its name then (a new one, if there is none). */
void jsonl_sync(struct Jsonl *out);
void jsonl_close(struct Jsonl *out);

/* Keeps only the lines of a log whose integer `key` is <= last (and lines without it), atomically:
   a resumed run must not log a step twice. A last line without its newline and lines with zero
   bytes are dropped. A missing file stays missing. A file that cannot be read to its end stays as
   it is, and the program ends. */
void jsonl_cut(const char *path, const char *key, int64_t last);

#endif
