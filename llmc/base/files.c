#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "check.h"

/* ---- checksums ------------------------------------------------------------------------------- */

/* slice[k][b]: the CRC of byte b followed by k zero bytes. Eight bytes at a time then cost eight
   look-ups that do not wait for each other (Kounavis and Berry, 2008). */
static uint32_t slice[8][256];

static void make_slices(void) {
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
        slice[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++)
            slice[k][b] = slice[k - 1][b] >> 8 ^ slice[0][slice[k - 1][b] & 255];
}

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_slices);
    const unsigned char *p = data;
    crc = ~crc;
    for (; bytes >= 8; p += 8, bytes -= 8) {
        uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
                              (uint32_t)p[3] << 24);
        crc = slice[7][low & 255] ^ slice[6][low >> 8 & 255] ^ slice[5][low >> 16 & 255] ^
              slice[4][low >> 24] ^ slice[3][p[4]] ^ slice[2][p[5]] ^ slice[1][p[6]] ^
              slice[0][p[7]];
    }
    for (; bytes > 0; bytes--) crc = crc >> 8 ^ slice[0][(crc ^ *p++) & 255];
    return ~crc;
}

/* ---- files that appear whole or not at all --------------------------------------------------- */

void atomic_cancel(struct AtomicFile *file) {
    if (file->stream) fclose(file->stream);
    file->stream = NULL;
    unlink(file->temporary);
}

/* Files are written into directories that this program has made or found. If the directory is
   missing now, somebody removed it meanwhile, and the user's input is not wrong. */
static _Noreturn void die_writing(const char *doing, const char *path) {
    if (errno == ENOENT) die_machine("cannot %s %s: its directory is gone", doing, path);
    die_errno(doing, path);
}

static _Noreturn void atomic_fail(struct AtomicFile *file, const char *doing) {
    int error = errno;
    atomic_cancel(file);
    errno = error;
    die_writing(doing, file->path);
}

void atomic_open(struct AtomicFile *file, const char *path) {
    *file = (struct AtomicFile){0};
    check_path(file->path, sizeof file->path, "%s", path);
    /* A fixed name, so that what a killed run left is overwritten by the next one. */
    check_path(file->temporary, sizeof file->temporary, "%s.tmp", path);
    file->stream = fopen(file->temporary, "wb");
    if (!file->stream) die_writing("write", path);
}

void atomic_write(struct AtomicFile *file, const void *data, size_t bytes) {
    if (bytes && fwrite(data, 1, bytes, file->stream) != bytes) atomic_fail(file, "write");
    file->checksum = crc32c(file->checksum, data, bytes);
    file->bytes += bytes;
}

/* A rename survives a power failure only once the directory was synced. */
static void sync_directory_of(const char *path) {
    char directory[4096];
    check_path(directory, sizeof directory, "%s", path);
    char *slash = strrchr(directory, '/');
    if (!slash) check_path(directory, sizeof directory, ".");
    else slash[slash == directory] = 0;
    int fd = open(directory, O_RDONLY | O_DIRECTORY);
    if (fd < 0) return;   /* it may be written and not read: then it cannot be synced */
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

/* ---- directories ----------------------------------------------------------------------------- */

bool path_exists(const char *path) {
    if (access(path, F_OK) == 0) return true;
    if (is_machine_error(errno)) die_errno("read", path);
    return false;
}

const char *file_problem(const char *path) {
    struct stat status;
    if (access(path, R_OK) == 0 && stat(path, &status) == 0)
        return S_ISREG(status.st_mode) ? NULL : "it is not a regular file";
    if (is_machine_error(errno)) die_errno("read", path);
    return strerror(errno);
}

bool is_same_file(int descriptor, const char *path) {
    struct stat opened, named;
    if (fstat(descriptor, &opened) != 0) return false;
    if (stat(path, &named) == 0)
        return opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
    if (is_machine_error(errno)) die_errno("read", path);
    return false;
}

struct dirent *next_entry(DIR *directory, const char *path) {
    errno = 0;
    struct dirent *entry = readdir(directory);
    if (!entry && errno) die_errno("read the directory", path);
    return entry;
}

void make_directory_in(const char *parent, const char *name) {
    char path[4096];
    check_path(path, sizeof path, "%s/%s", parent, name);
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return;
    if (errno == ENOENT)
        die_machine("cannot make %s: the directory %s is gone; it was there when this run began",
                    path, parent);
    die_errno("make the directory", path);
}
