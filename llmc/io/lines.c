#include "lines.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"

void lines_open(struct Lines *lines, const char *path, const char *option) {
    *lines = (struct Lines){.option = option ? option : ""};
    check_path(lines->path, sizeof lines->path, "%s", path);
    lines->stream = fopen(path, "rb");
    if (!lines->stream) lines_fail(lines);
}

int lines_try(struct Lines *lines) {
    errno = 0;
    ssize_t length = getline(&lines->text, &lines->capacity, lines->stream);
    /* An error in the middle of a line gives its beginning, as the end of the file would. */
    if (ferror(lines->stream) || (length < 0 && !feof(lines->stream))) return -1;
    if (length < 0) return 0;
    lines->length = (size_t)length;
    lines->number++;
    return 1;
}

bool lines_next(struct Lines *lines) {
    int got = lines_try(lines);
    if (got < 0) lines_fail(lines);
    return got > 0;
}

void lines_fail(const struct Lines *lines) {
    char doing[64];
    snprintf(doing, sizeof doing, "read%s%s", *lines->option ? " " : "", lines->option);
    if (errno == 0) errno = EIO;
    die_errno(doing, lines->path);
}

bool lines_has_zero(const struct Lines *lines) {
    return memchr(lines->text, 0, lines->length) != NULL;
}

void lines_close(struct Lines *lines) {
    fclose(lines->stream);
    free(lines->text);
    *lines = (struct Lines){0};
}
