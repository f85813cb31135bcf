/* A named arena: every large buffer of the program is reserved by name and shape, the plan is
   printed, then ONE allocation is made. Nothing is allocated in the loop.

       arena_reserve(&arena, &x, bytes, "activations", "qkv [L=12, N=1024, 2304]");  ... many
       arena_print(&arena, stdout);         the ledger: a line per group, largest buffers by name
       arena_commit(&arena, ops);           one ops->alloc; every &x now points into it

   Training and decoding never run at once, so what only one of them needs lies over what only the
   other needs: the decode cache is handed back to training between rollouts by never being its own.

       | weights | m | v | workspace |  activations | gradients | batch ...            |
       |                             |  (packed weights) | kv prompts | kv tails | rows |
         ARENA_ALWAYS                   ARENA_TRAINING and, over it, ARENA_DECODING

   Packed weights are there only where the decode product cannot read the weights themselves
   (matmul_packed_size).

   Each buffer is aligned to 256 bytes. */
#ifndef LLMC_ARENA_H
#define LLMC_ARENA_H

#include <stdio.h>
#include "ops.h"

/* What is reserved goes to the section that `arena->section` names at that moment. A pass over
   training data (scoring too) makes the contents of the decoding section undefined, and the other
   way round. */
enum ArenaSection { ARENA_ALWAYS, ARENA_TRAINING, ARENA_DECODING, ARENA_SECTIONS };

struct ArenaEntry {
    void **pointer;
    size_t bytes, offset;   /* offset: within the section */
    enum ArenaSection section;
    char group[24], label[72];
};

struct Arena {
    struct ArenaEntry *entries;
    int count, capacity;
    enum ArenaSection section;
    size_t section_bytes[ARENA_SECTIONS];
    size_t total;   /* bytes to allocate, alignment included */
    char *memory;   /* NULL until commit */
    const struct Ops *ops;
};

/* *pointer is set by arena_commit (NULL until then). group: the ledger's line; label: printf-like
   name and shape of this buffer. bytes may be 0 (pointer stays NULL). After commit: an assert. */
void arena_reserve(struct Arena *arena, void *pointer_address, size_t bytes, const char *group,
                   const char *label, ...) __attribute__((format(printf, 5, 6)));
void arena_print(const struct Arena *arena, FILE *out);
/* die_machine, naming the largest buffer, where the backend has less memory than the plan needs. */
void arena_commit(struct Arena *arena, const struct Ops *ops);
void arena_free(struct Arena *arena);

#endif
