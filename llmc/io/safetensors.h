/* safetensors: 8-byte little-endian header length, a JSON header, raw tensors.
   Format: https://github.com/huggingface/safetensors (see doc/formats.md).

   Any file can be given to the reader: a damaged or malicious one (header length past the end,
   overlapping or out-of-range offsets, overflowing shapes, wrong types) gives an error text.
   A disk that fails ends the program (die_machine). */
#ifndef LLMC_SAFETENSORS_H
#define LLMC_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>
#include "../base/checksums.h"

enum SafetensorsType { ST_F32, ST_F16, ST_BF16, ST_F64, ST_I64, ST_I32, ST_OTHER };

struct SafetensorsEntry {
    char name[128];
    enum SafetensorsType type;
    int num_dims;
    int64_t shape[4];
    size_t count;              /* product of the shape */
    size_t begin, end;         /* bytes in the data section */
};

struct Safetensors {
    char path[4096];
    int descriptor;            /* -1: not open */
    size_t bytes, data_begin;  /* of the file; where its data section begins */
    struct SafetensorsEntry *entries;
    int count;
};

/* Opens and checks the whole header. Returns NULL, or one sentence with what is wrong (static
   storage) in which case nothing is left open. */
const char *safetensors_open(struct Safetensors *file, const char *path);
const struct SafetensorsEntry *safetensors_find(const struct Safetensors *file, const char *name);
/* Elements [first, first + n) converted to float32, by all threads; entry must be F32, F16, BF16 or
   F64. Returns n, or which of them (from 0) is the first that is not finite. */
size_t safetensors_read(const struct Safetensors *file, const struct SafetensorsEntry *entry,
                        float *out, size_t first, size_t n);
void safetensors_close(struct Safetensors *file);

/* Bytes of an element. */
size_t safetensors_size(enum SafetensorsType type);
/* out [n] = x [n] in a type of 16 bits (ST_F16, ST_BF16), rounded to nearest even. A finite number
   beyond the type's largest becomes that largest, with its sign; returns how many there were. */
size_t safetensors_narrow(uint16_t *out, const float *x, enum SafetensorsType type, size_t n);

/* Writing: describe all tensors, then give their data in the same order, then commit.
   Uses AtomicFile; ends the program as that does. */
struct SafetensorsWriter;
struct SafetensorsWriter *safetensors_create(const char *path);
void safetensors_describe(struct SafetensorsWriter *writer, const char *name,
                          enum SafetensorsType type, int num_dims, const int64_t *shape);
void safetensors_write(struct SafetensorsWriter *writer, const void *data, size_t bytes);
/* Checks that all bytes that were described were written, puts the file in its place, and frees.
   The file's checksum goes into sums (or NULL). */
void safetensors_commit(struct SafetensorsWriter *writer, struct Checksums *sums);

#endif
