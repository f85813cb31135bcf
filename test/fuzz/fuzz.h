/* What the fuzz targets share. A target is one file, fuzz_NAME.c, with one function, fuzz_NAME: it
   reads `size` bytes as its reader does, checks what came of them, and aborts where that is wrong.

       make fuzz                each target for a minute, with clang's libFuzzer and its sanitizers
       build/test/test_fuzz     every file of test/fuzz/corpus/NAME once (part of `make test`) */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "../../llmc/base/json.h"

/* libFuzzer calls one function of this name; a test program has all targets. */
#ifdef FUZZING
#define FUZZ_TARGET(function)                                           \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);       \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {      \
        json_memory(malloc);                                            \
        function(data, size);                                           \
        return 0;                                                       \
    }
#else
#define FUZZ_TARGET(function)
#endif

/* Ends the program as a crash, so that the fuzzer keeps the input. */
#define MUST(condition)                                                                 \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);     \
            abort();                                                                    \
        }                                                                               \
    } while (0)

/* A message is one line of printable text that can be shown to the user. */
static inline void must_be_a_line(const char *problem) {
    MUST(problem[0] && !strchr(problem, '\n'));
}

/* A file in memory whose bytes the next call replaces; *descriptor: -1 before the first. */
static inline void fuzz_file(int *descriptor, const void *data, size_t size) {
    if (*descriptor < 0) *descriptor = memfd_create("fuzz", MFD_CLOEXEC);
    MUST(*descriptor >= 0 && ftruncate(*descriptor, 0) == 0);
    MUST(pwrite(*descriptor, data, size, 0) == (ssize_t)size);
}

/* Its path. */
static inline void fuzz_path(char path[64], int descriptor) {
    snprintf(path, 64, "/proc/self/fd/%d", descriptor);
}

enum { MOST_DIRECTORIES = 8 };
static struct { char path[MOST_DIRECTORIES][64]; int count; } fuzz_directories;

static inline void fuzz_remove_directories(void) {
    char command[128];
    for (int i = 0; i < fuzz_directories.count; i++) {
        snprintf(command, sizeof command, "rm -rf %s", fuzz_directories.path[i]);
        MUST(system(command) == 0);
    }
}

/* A fresh directory, which goes when the program ends. */
static inline const char *fuzz_directory(void) {
    MUST(fuzz_directories.count < MOST_DIRECTORIES);
    char *path = fuzz_directories.path[fuzz_directories.count++];
    snprintf(path, 64, "/tmp/policy-fuzz-XXXXXX");
    MUST(mkdtemp(path));
    if (fuzz_directories.count == 1) atexit(fuzz_remove_directories);
    return path;
}

/* The file `name` of a directory is that file in memory. */
static inline void fuzz_link(const char *directory, const char *name, int descriptor) {
    char path[64], link[512];
    fuzz_path(path, descriptor);
    snprintf(link, sizeof link, "%s/%s", directory, name);
    unlink(link);
    MUST(symlink(path, link) == 0);
}

/* The part of an input before its next zero byte, a copy; the rest stays in *data and *size. */
static inline char *fuzz_part(const uint8_t **data, size_t *size, size_t *length) {
    const uint8_t *zero = *size ? memchr(*data, 0, *size) : NULL;
    *length = zero ? (size_t)(zero - *data) : *size;
    char *part = malloc(*length + 1);
    if (*length) memcpy(part, *data, *length);
    part[*length] = 0;
    *data += *length + (zero != NULL);
    *size -= *length + (zero != NULL);
    return part;
}

#endif
