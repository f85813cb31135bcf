/* The checksums of a directory's files, so that a damaged file is recognised when it is read. They
   are in one text file in that directory, whose last line is the checksum of the lines above it:

       crc32c 3f2b8a10 612384 model.safetensors         checksum, bytes, name
       ...
       crc32c 9c01d2ee 311 checksums                    of the lines above

   A directory without that file (another program's, an older checkpoint) is not checked. */
#ifndef LLMC_CHECKSUMS_H
#define LLMC_CHECKSUMS_H

#include <stddef.h>
#include "files.h"
#include "text.h"

#define CHECKSUMS_NAME "checksums"

/* The list while it is made. Begin with zeros, add each file when it is complete, save it last,
   which frees. checksums_add does nothing where sums is NULL. checksums_save ends the program if it
   cannot write. */
struct Checksums {
    struct Text text;
};
void checksums_add(struct Checksums *sums, const struct AtomicFile *file);
void checksums_save(struct Checksums *sums, const char *directory);

/* die_input naming the file if it is not what was written: DIRECTORY/name, or with NULL every
   listed file but those that are verified when they are read (*.safetensors). A listed file that is
   not there, or is a directory or a named pipe, is refused in the same way. A file that is not
   listed passes. */
void checksums_verify(const char *directory, const char *name);

#endif
