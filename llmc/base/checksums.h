/* The checksums of a directory's files, so that bits that rot are found when a file is read. They
   are in one text file there, which checks itself:

       crc32c 3f2b8a10 612384 model.safetensors         checksum, bytes, name
       ...
       crc32c 9c01d2ee 311 checksums                    of the lines above

   A directory without that file (another program's, an older checkpoint) is not checked. */
#ifndef LLMC_CHECKSUMS_H
#define LLMC_CHECKSUMS_H

#include <stddef.h>
#include "files.h"

#define CHECKSUMS_NAME "checksums"

/* Begin with zeros; add each file when it is complete (sums NULL: nobody asks); save last. */
struct Checksums {
    char text[4096];
    size_t length;
};
void checksums_add(struct Checksums *sums, const struct AtomicFile *file);
void checksums_save(struct Checksums *sums, const char *directory);

/* die_input naming the file if it is not what was written: DIRECTORY/name, or with NULL every
   listed file but those that are verified when they are read (*.safetensors). A listed file that is
   not there, or is a directory or a named pipe, is refused in the same way. A file that is not
   listed passes. */
void checksums_verify(const char *directory, const char *name);

#endif
