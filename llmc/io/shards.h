/* The tensors of a directory, in one file or in several (shards), as Hugging Face's libraries write
   them:

       NAME.safetensors                                      one file; or
       NAME-00001-of-00003.safetensors ...                   shards, and
       NAME.safetensors.index.json                           which tensor is in which of them:
           {"metadata": {"total_size": BYTES}, "weight_map": {"TENSOR": "FILE", ...}}

   Where both are there the one file is read, as transformers does. */
#ifndef LLMC_SHARDS_H
#define LLMC_SHARDS_H

#include <stdbool.h>
#include "safetensors.h"

enum { MOST_SHARDS = 500 };   /* each is an open file */

struct Shards {
    char path[4096];              /* of the one file or the index, for messages */
    struct Safetensors *files;    /* [count] */
    int count;
    struct ShardPlace *places;    /* [num_places] sorted by name; of one file there are none */
    int num_places;
};

/* Opens the files of NAME ("model") in a directory and checks their headers, that the index fits
   them, and that no tensor is in two. `verify`: the files' checksums are verified first
   (die_input); else only those of a file with a wrong header. Returns NULL, or one sentence with
   the file and what is wrong (static storage), in which case nothing is left open. */
const char *shards_open(struct Shards *shards, const char *directory, const char *name,
                        bool verify);
void shards_close(struct Shards *shards);
/* Is there such a file, or an index? */
bool shards_exist(const char *directory, const char *name);
/* A sentence, if a directory has the weights of a model in a way that is not read; else NULL. */
const char *shards_other_weights(const char *directory);
/* A tensor by its name and the file that has it; NULL: there is none. */
const struct SafetensorsEntry *shards_find(const struct Shards *shards, const char *name,
                                           const struct Safetensors **file);

/* Writing: describe all tensors; then give the data of each when shards_next asks for it; then
   commit. One file if all are at most shard_bytes together; else shards, cut where transformers
   cuts them, and the index. The files' checksums go into sums (or NULL). Ends the program as the
   files' writers do; die_input if there were more than MOST_SHARDS shards. The two texts and sums
   must live as long as the writer. */
struct ShardsWriter;
struct ShardsWriter *shards_create(const char *directory, const char *name, size_t shard_bytes,
                                   struct Checksums *sums);
void shards_describe(struct ShardsWriter *writer, const char *name, enum SafetensorsType type,
                     int num_dims, const int64_t *shape);
/* Which tensor's data comes next, by order of description; -1: all are written. */
int shards_next(struct ShardsWriter *writer);
/* Some more of its elements [n], which become the type that was described. */
void shards_write(struct ShardsWriter *writer, const float *x, size_t n);
/* When all is written: writes the index, if there is one, and frees. Returns how many elements were
   beyond the largest number of their type (safetensors_narrow). */
size_t shards_commit(struct ShardsWriter *writer);

#endif
