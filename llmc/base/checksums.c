#include "checksums.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "check.h"
#include "text.h"

/* The longest list that is read: a thousand files or more. */
#define MOST_LIST ((size_t)1 << 20)

static void add_line(struct Text *list, uint32_t checksum, size_t bytes, const char *name) {
    text_format(list, "crc32c %08x %zu %s\n", checksum, bytes, name);
}

void checksums_add(struct Checksums *sums, const struct AtomicFile *file) {
    if (!sums) return;
    const char *slash = strrchr(file->path, '/');
    add_line(&sums->text, file->checksum, file->bytes, slash ? slash + 1 : file->path);
}

void checksums_save(struct Checksums *sums, const char *directory) {
    char path[4096];
    struct AtomicFile file;
    struct Text *list = &sums->text;
    check_path(path, sizeof path, "%s/" CHECKSUMS_NAME, directory);
    add_line(list, crc32c(0, list->bytes, list->length), list->length, CHECKSUMS_NAME);
    atomic_open(&file, path);
    atomic_write(&file, list->bytes, list->length);
    atomic_commit(&file);
    text_free(list);
}

/* ---- verifying ------------------------------------------------------------------------------- */

/* The checksum and the length of a regular file. A failure ends the program. */
static void sum_file(const char *path, uint32_t *checksum, size_t *bytes) {
    enum { PIECE = 1 << 20 };
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) die_errno("read", path);
    char *piece = check_alloc(PIECE, 1, "a piece of a file");
    ssize_t n;
    *checksum = 0, *bytes = 0;
    while ((n = read(descriptor, piece, PIECE)) != 0) {
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) die_errno("read", path);
        *checksum = crc32c(*checksum, piece, (size_t)n);
        *bytes += (size_t)n;
    }
    free(piece);
    close(descriptor);
}

/* The list of a directory as terminated text, owned by the caller. NULL: the directory has none.
   Ends the program if the last line is not the checksum of the lines above it. */
static char *read_list(const char *path) {
    if (!path_exists(path)) return NULL;
    const char *problem = file_problem(path);
    if (problem) die_input("%s: %s", path, problem);
    FILE *stream = fopen(path, "rb");
    if (!stream) die_errno("read", path);
    char *text = check_alloc(MOST_LIST, 1, "a list of checksums");
    size_t length = fread(text, 1, MOST_LIST - 1, stream);
    if (ferror(stream)) die_errno("read", path);
    fclose(stream);
    text[length] = '\0';
    struct Text own = {0};   /* what the last line must be */
    const char *last = length > 1 ? memrchr(text, '\n', length - 1) : NULL;
    size_t before = last ? (size_t)(last + 1 - text) : 0;
    add_line(&own, crc32c(0, text, before), before, CHECKSUMS_NAME);
    if (length != before + own.length || memcmp(text + before, own.bytes, own.length) != 0)
        die_input("%s is damaged: its last line is not the checksum of those before; take another "
                  "checkpoint, or remove this file to load unchecked", path);
    text_free(&own);
    return text;
}

static void verify(const char *directory, const char *name, uint32_t wanted, size_t wanted_bytes) {
    char path[4096];
    uint32_t checksum;
    size_t bytes;
    check_path(path, sizeof path, "%s/%s", directory, name);
    const char *problem = file_problem(path);
    if (problem)
        die_input("%s: %s, and it was saved with the others; take another checkpoint, or, if you "
                  "changed the files, remove " CHECKSUMS_NAME " beside it", path, problem);
    sum_file(path, &checksum, &bytes);
    if (bytes != wanted_bytes || checksum != wanted)
        die_input("%s is damaged: it has %zu bytes and checksum %08x, and had %zu and %08x when it "
                  "was saved; take another checkpoint, or, if you changed the file, remove "
                  CHECKSUMS_NAME " beside it", path, bytes, checksum, wanted_bytes, wanted);
}

/* *.safetensors: those are verified when they are read. */
static bool holds_tensors(const char *name) {
    const char *end = ".safetensors";
    size_t length = strlen(name), tail = strlen(end);
    return length >= tail && strcmp(name + length - tail, end) == 0;
}

void checksums_verify(const char *directory, const char *name) {
    char path[4096], *line;
    check_path(path, sizeof path, "%s/" CHECKSUMS_NAME, directory);
    char *text = read_list(path), *rest = text;
    while (rest && (line = strsep(&rest, "\n")) != NULL && rest && *rest) {   /* all but the last */
        char listed[256];
        unsigned checksum;
        size_t bytes;
        if (sscanf(line, "crc32c %8x %zu %255s", &checksum, &bytes, listed) != 3 ||
            strchr(listed, '/'))
            die_input("%s: \"%s\" is not a checksum, a number of bytes and a name", path,
                      quote(line));
        bool wanted = name ? strcmp(name, listed) == 0 : !holds_tensors(listed);
        if (wanted) verify(directory, listed, checksum, bytes);
    }
    free(text);
}
