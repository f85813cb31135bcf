/* Files and directories that are written, and checksums of them. */
#ifndef LLMC_FILES_H
#define LLMC_FILES_H

#include <dirent.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* CRC-32C (Castagnoli; RFC 3720, B.4) of data that may come in pieces: begin with 0, and give what
   came back with the next piece. */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);

/* A file that replaces `path` whole or not at all: open a temporary name beside it, write, then
   commit = flush + fsync + rename + fsync of the directory. Where the machine fails (disk full,
   quota), or the directory is not there any more, it ends in die_machine after the temporary file
   was removed; an unwritable place ends in die_input. */
struct AtomicFile {
    FILE *stream;
    char path[4096], temporary[4096];
    uint32_t checksum;   /* crc32c of what was written so far */
    size_t bytes;
};
void atomic_open(struct AtomicFile *file, const char *path);
void atomic_write(struct AtomicFile *file, const void *data, size_t bytes);
void atomic_commit(struct AtomicFile *file);
/* Instead of committing: the old file stays as it was, the temporary one goes. */
void atomic_cancel(struct AtomicFile *file);

/* Is there something of that name? An I/O error ends the program: the caller would take the file
   for missing, and make a new one in its place or read another. */
bool path_exists(const char *path);

/* NULL: `path` is a regular file that may be read; else why it is not, in a few words (static
   storage). For the files of a run or a checkpoint: opening a named pipe there would wait for ever
   for somebody who writes into it. An I/O error ends the program. */
const char *file_problem(const char *path);

/* Is the open file (or directory) the one that `path` names now? False where nothing has that name
   any more. An I/O error ends the program. */
bool is_same_file(int descriptor, const char *path);

/* readdir for a directory called `path`: NULL at its end only, an error ends the program. */
struct dirent *next_entry(DIR *directory, const char *path);

/* Makes parent/name, if it is not there yet. Ends the program if it cannot, also where `parent` is
   missing. */
void make_directory_in(const char *parent, const char *name);

#endif
