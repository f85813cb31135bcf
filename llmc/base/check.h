/* Errors have two tiers.

   A mistake of the user or of the machine ends the program with ONE line: what, where, what to do.
   Anything made from model text or data never comes here: those functions return a value, the
   caller counts it, and the run goes on.

       die_input    exit code 2   the input is wrong (option, file, checkpoint, run directory)
       die_machine  exit code 1   the machine failed (memory, disk, device)

   Both print "train: error: " + the message + newline to stderr, after restoring the console line.
   Neither returns. Of several ranks each says who it is and where in the program it ended: "train:
   error: rank 1 on HOST (X.c:123): ...". A mistake in the input is mostly seen by all of them
   alike; so rank 0 says it, and another one that sees it waits a second first, in which it is ended
   by who started it. */
#ifndef LLMC_CHECK_H
#define LLMC_CHECK_H

#include <stdbool.h>
#include <stddef.h>

_Noreturn void die_input(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void die_machine(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* From now on this process is rank `rank` of several: its errors say so, and ranks other than 0 say
   nothing else (console.h). */
void check_rank(int rank);
/* A rank that ends because another one has ended calls this first: if that was for a mistake in the
   input, it has said so, and who started the ranks ends this one meanwhile. */
void check_others_first(void);
/* The machine's name. */
const char *check_host(void);

/* Is `error`, a value of errno, a failure of the machine (disk full, quota, memory, too many open
   files, I/O) and not of the path that was named? It decides between exit codes 1 and 2. */
bool is_machine_error(int error);

/* The same, called by their names, say which line of which file it was. */
_Noreturn void die_input_at(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
_Noreturn void die_machine_at(const char *file, int line, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* die_errno(doing, path): "cannot DOING PATH: ..." with errno's own words, by die_machine or
   die_input as is_machine_error says. */
_Noreturn void die_errno_at(const char *file, int line, const char *doing, const char *path);
#define die_input(...) die_input_at(__FILE__, __LINE__, __VA_ARGS__)
#define die_machine(...) die_machine_at(__FILE__, __LINE__, __VA_ARGS__)
#define die_errno(doing, path) die_errno_at(__FILE__, __LINE__, doing, path)

/* One line "train: warning: ..." on stderr; the run goes on. */
void warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Host memory that is there or the program ends (die_machine naming what was asked for).
   check_alloc zeroes. The caller frees with free(). */
void *check_alloc(size_t count, size_t size, const char *what);
void *check_realloc(void *pointer, size_t count, size_t size, const char *what);
char *check_strdup(const char *text);

/* snprintf into a path buffer; die_input if it does not fit. */
void check_path(char *out, size_t capacity, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
