/* Errors have two tiers.

   A mistake of the user or of the machine ends the program with ONE line: what, where, what to do.
   Anything made from model text or data never comes here: those functions return a value, the
   caller counts it, and the run goes on.

       die_input    exit code 2   the input is wrong (option, file, checkpoint, run directory)
       die_machine  exit code 1   the machine failed (memory, disk, device)

   Both print "train: error: " + the message + newline to stderr, after restoring the console line.
   Neither returns. */
#ifndef LLMC_CHECK_H
#define LLMC_CHECK_H

#include <stdbool.h>
#include <stddef.h>

_Noreturn void die_input(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void die_machine(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Is `error`, a value of errno, a failure of the machine (disk full, quota, memory, too many open
   files, I/O) and not of the path that was named? It decides between exit codes 1 and 2. */
bool is_machine_error(int error);
/* "cannot DOING PATH: ..." with errno's own words, by die_machine or die_input as is_machine_error
   says. */
_Noreturn void die_errno(const char *doing, const char *path);

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
