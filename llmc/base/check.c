#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "console.h"

/* Prints one line. Control characters become '?': a message may quote a hostile file, and must stay
   one line and not talk to the terminal. */
static void print_line(const char *kind, const char *format, va_list arguments) {
    char text[8192];
    vsnprintf(text, sizeof text, format, arguments);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 32 || *c == 127) *c = '?';
    console_clear();
    fflush(stdout);
    fprintf(stderr, "train: %s: %s\n", kind, text);
}

void die_input(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line("error", format, arguments);
    exit(2);
}

void die_machine(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_line("error", format, arguments);
    exit(1);
}

bool is_machine_error(int error) {
    return error == ENOSPC || error == EDQUOT || error == EFBIG || error == EIO ||
           error == EMFILE || error == ENFILE || error == ENOMEM || error == ENOLCK;
}

void die_errno(const char *doing, const char *path) {
    int error = errno;
    bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
    if (is_machine_error(error))
        die_machine("cannot %s %s: %s%s", doing, path, strerror(error),
                    full ? "; make room or choose another place" : "");
    die_input("cannot %s %s: %s", doing, path, strerror(error));
}

void warn(const char *format, ...) {
    if (console_quiet()) return;
    va_list arguments;
    va_start(arguments, format);
    print_line("warning", format, arguments);
    va_end(arguments);
}

static _Noreturn void die_no_memory(size_t count, size_t size, const char *what) {
    die_machine("out of memory: %s needs %.1f MB", what, (double)count * (double)size / 1e6);
}

void *check_alloc(size_t count, size_t size, const char *what) {
    /* calloc(0) may return NULL without having failed. */
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

/* ---- files that appear whole or not at all --------------------------------------------------- */

/* Gives up: the old file stays as it was, the temporary one goes. */
static _Noreturn void atomic_fail(struct AtomicFile *file, const char *doing) {
    int error = errno;
    if (file->stream) fclose(file->stream);
    unlink(file->temporary);
    errno = error;
    die_errno(doing, file->path);
}

void atomic_open(struct AtomicFile *file, const char *path) {
    check_path(file->path, sizeof file->path, "%s", path);
    /* A fixed name, so that what a killed run left is overwritten by the next one. */
    check_path(file->temporary, sizeof file->temporary, "%s.tmp", path);
    file->stream = fopen(file->temporary, "wb");
    if (!file->stream) die_errno("write", path);
}

void atomic_write(struct AtomicFile *file, const void *data, size_t bytes) {
    if (bytes && fwrite(data, 1, bytes, file->stream) != bytes) atomic_fail(file, "write");
}

/* A rename is on the disk only when its directory is. */
static void sync_directory_of(const char *path) {
    char directory[4096];
    check_path(directory, sizeof directory, "%s", path);
    char *slash = strrchr(directory, '/');
    if (!slash) check_path(directory, sizeof directory, ".");
    else slash[slash == directory] = 0;
    int fd = open(directory, O_RDONLY | O_DIRECTORY);
    if (fd < 0) return;   /* a directory that may be written but not read: the rename stands */
    int failed = fsync(fd) != 0 && errno != EINVAL && errno != EROFS;   /* some cannot sync one */
    int error = errno;
    close(fd);
    errno = error;
    if (failed) die_errno("sync the directory of", path);
}

void atomic_commit(struct AtomicFile *file) {
    if (fflush(file->stream) != 0 || fsync(fileno(file->stream)) != 0) atomic_fail(file, "write");
    FILE *stream = file->stream;
    file->stream = NULL;
    if (fclose(stream) != 0) atomic_fail(file, "write");
    if (rename(file->temporary, file->path) != 0) atomic_fail(file, "replace");
    sync_directory_of(file->path);
}
