/* What the tests of io stand on: a folder of their own, files of any bytes, and a disk that fails
   in the middle of one. */
#ifndef IO_RIG_H
#define IO_RIG_H

#include "test.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "child.h"

__attribute__((unused)) static char output[4096];
static char folder[] = "/tmp/test_io_XXXXXX";

static inline int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static inline int remove_folder(void **state) {
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    return system(command);
}

static inline const char *in_folder(const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static inline void write_bytes(const char *path, const void *bytes, size_t length) {
    remove(path);   /* some file systems write a truncated file to the disk at once: slow */
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

/* The file's bytes (a static buffer, terminated). */
__attribute__((unused)) static char *read_bytes(const char *path, size_t *length) {
    static char bytes[1 << 17];
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t n = fread(bytes, 1, sizeof bytes - 1, file);
    fclose(file);
    bytes[n] = 0;
    if (length) *length = n;
    return bytes;
}

/* ---- a disk that fails in the middle of a file ----------------------------------------------- */

static const char *bad_path;   /* of the file; NULL: all is well */
static size_t bad_after;       /* bytes that can be read */
static bool bad_once;          /* the disk recovers: the next read goes on */
static FILE *bad_file;

static inline ssize_t read_until_bad(void *position, char *out, size_t bytes) {
    size_t *at = position;
    if (*at == bad_after) {
        *at += bad_once;
        errno = EIO;
        return -1;
    }
    if (*at < bad_after && bytes > bad_after - *at) bytes = bad_after - *at;
    size_t n = fread(out, 1, bytes, bad_file);
    *at += n;
    return (ssize_t)n;
}

/* This stands before the C library's. */
FILE *fopen(const char *path, const char *mode) {
    static FILE *(*real)(const char *, const char *);
    static size_t position;
    if (!real) real = (FILE *(*)(const char *, const char *))dlsym(RTLD_NEXT, "fopen");
    if (!bad_path || mode[0] != 'r' || strcmp(path, bad_path) != 0) return real(path, mode);
    bad_file = real(path, mode);
    position = 0;
    return fopencookie(&position, "r", (cookie_io_functions_t){.read = read_until_bad});
}

/* Likewise: the bytes before bad_after of every file can be read, where bad_path is set. */
ssize_t pread(int descriptor, void *out, size_t bytes, off_t begin) {
    if (bad_path && (size_t)begin + bytes > bad_after) {
        errno = EIO;
        return -1;
    }
    return (ssize_t)syscall(SYS_pread64, descriptor, out, bytes, begin);
}

#endif
