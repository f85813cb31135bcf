/* What a model's directory has beside the weights: its configuration, tokenizer, chat template,
   licence. They are read once and written into every checkpoint byte for byte, so that what is
   trained is served as its source was. Which files these are: a list in assets.c; others (a model
   card, weights in other formats, another program's state) stay behind. */
#ifndef LLMC_ASSETS_H
#define LLMC_ASSETS_H

#include <stddef.h>
#include "../base/checksums.h"
#include "../base/text.h"

/* Zero-initialise: none. */
struct Assets {
    struct TextList names;     /* "config.json" */
    struct TextList contents;
};

/* Reads all that the directory has. die_input for one that is no regular file or larger than any
   tokenizer, die_machine where the disk fails. */
void assets_read(struct Assets *assets, const char *directory);
/* The bytes of a file, terminated; NULL: it is not there. */
const char *assets_find(const struct Assets *assets, const char *name);
/* Writes all but `without` (NULL: all) into a directory; their checksums go into sums (or NULL). */
void assets_write(const struct Assets *assets, const char *directory, const char *without,
                  struct Checksums *sums);
/* Writes one file of these bytes. */
void assets_write_file(const char *directory, const char *name, const char *bytes, size_t length,
                       struct Checksums *sums);
void assets_free(struct Assets *assets);

#endif
