/* The memory plan. Every large backend buffer of the program is reserved by name and shape, the
   plan is printed, and then one allocation holds them all. Training steps allocate no backend
   memory.

       arena_reserve(&arena, &x, bytes, "activations", "qkv [L=12, N=1024, 2304]");  ... many
       arena_print(&arena, stdout);         a line per group, then the largest buffers by name
       arena_commit(&arena, ops);           one ops->alloc; every &x now points into it

   Training and decoding never run at the same time, so the buffers that only one of them needs use
   the same memory as those that only the other needs.

       | weights | m | v | workspace |  activations | gradients | batch ...            |
       |                             |  (packed weights) | pages of the cache | rows |
         ARENA_ALWAYS                   ARENA_TRAINING and, over it, ARENA_DECODING

   Packed weights are there only where the decode product cannot read the weights themselves
   (matmul_packed_size).

   Each buffer is aligned to 256 bytes. */
#ifndef LLMC_ARENA_H
#define LLMC_ARENA_H

#include <stdio.h>
#include "ops.h"

/* A buffer belongs to the section that `arena->section` names when it is reserved. A training or
   scoring pass makes the contents of the decoding section undefined, and decoding those of the
   training section. */
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
    size_t total;   /* bytes to allocate: ARENA_ALWAYS and the larger of the other two sections */
    char *memory;   /* NULL until commit */
    const struct Ops *ops;
};

/* pointer_address: the address of the pointer that arena_commit sets; the pointer is NULL until
   then, and stays NULL if bytes is 0. It must not move in between. group: the line of arena_print
   that counts this buffer; label: printf-like, its name and shape. Ends the program (die_machine)
   if the sum does not fit into a size_t. Must not be called after arena_commit (asserted). */
void arena_reserve(struct Arena *arena, void *pointer_address, size_t bytes, const char *group,
                   const char *label, ...) __attribute__((format(printf, 5, 6)));
void arena_print(const struct Arena *arena, FILE *out);
/* Allocates the memory and sets all pointers. Ends the program (die_machine), naming the largest
   buffer, if the backend has less memory than the plan needs. */
void arena_commit(struct Arena *arena, const struct Ops *ops);
void arena_free(struct Arena *arena);

#endif
