#include "check.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "console.h"
#include "text.h"

static int rank = -1;   /* -1: this is the only one */

void check_rank(int number) {
    rank = number;
    if (rank > 0) console_mute();
}

const char *check_host(void) {
    static char name[256];
    if (!name[0] && gethostname(name, sizeof name - 1) != 0) strcpy(name, "?");
    return name;
}

/* Prints the message as one line: control characters that it quotes from a file are replaced. The
   line is written at once, so that those of several ranks do not mix. */
static void print_line(const char *kind, const char *place, const char *format,
                       va_list arguments) {
    char text[8192];
    vsnprintf(text, sizeof text, format, arguments);
    text_clean(text);
    console_clear();
    fflush(stdout);
    if (rank < 0) fprintf(stderr, "train: %s: %s\n", kind, text);
    else fprintf(stderr, "train: %s: rank %d on %s%s: %s\n", kind, rank, check_host(), place, text);
}

void check_others_first(void) {
    if (rank < 0) return;
    signal(SIGTERM, SIG_DFL);   /* who started the ranks ends this one meanwhile */
    sleep(1);
}

static _Noreturn void die(int code, const char *file, int line, const char *format,
                          va_list arguments) {
    char place[128] = "";
    const char *slash = file ? strrchr(file, '/') : NULL;
    if (file) snprintf(place, sizeof place, " (%s:%d)", slash ? slash + 1 : file, line);
    if (code == 2 && rank > 0) check_others_first();   /* rank 0 sees the same and says it */
    print_line("error", place, format, arguments);
    exit(code);
}

void die_input_at(const char *file, int line, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    die(2, file, line, format, arguments);
}

void die_machine_at(const char *file, int line, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    die(1, file, line, format, arguments);
}

/* The names in parentheses are the functions, whose address a plug-in is given. */
void (die_input)(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    die(2, NULL, 0, format, arguments);
}

void (die_machine)(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    die(1, NULL, 0, format, arguments);
}

bool is_machine_error(int error) {
    return error == ENOSPC || error == EDQUOT || error == EFBIG || error == EIO ||
           error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOLCK;
}

void die_errno_at(const char *file, int line, const char *doing, const char *path) {
    int error = errno;
    bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    if (is_machine_error(error))
        die_machine_at(file, line, "cannot %s %s: %s%s", doing, path, strerror(error),
                       full ? "; make room or choose another place" : "");
    die_input_at(file, line, "cannot %s %s: %s", doing, path, strerror(error));
}

void warn(const char *format, ...) {
    if (console_quiet()) return;
    va_list arguments;
    va_start(arguments, format);
    print_line("warning", "", format, arguments);
    va_end(arguments);
}

static _Noreturn void die_no_memory(size_t count, size_t size, const char *what) {
    die_machine("out of memory: %s needs %.1f MB", what, (double)count * (double)size / 1e6);
}

void *check_alloc(size_t count, size_t size, const char *what) {
    /* calloc(0) may return NULL although it did not fail. */
    void *pointer = calloc(count ? count : 1, size ? size : 1);
    if (!pointer) die_no_memory(count, size, what);
    return pointer;
}

void *check_realloc(void *pointer, size_t count, size_t size, const char *what) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) die_no_memory(count, size, what);
    pointer = realloc(pointer, bytes ? bytes : 1);
    if (!pointer) die_no_memory(count, size, what);
    return pointer;
}

char *check_strdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    return memcpy(check_alloc(bytes, 1, "text"), text, bytes);
}

void check_path(char *out, size_t capacity, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(out, capacity, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= capacity)
        die_input("path too long (%d bytes, at most %zu): %.80s...", length, capacity - 1, out);
}
