/* A named arena: every large buffer of the program is reserved by name and shape, the plan is
   printed, then ONE allocation is made. Nothing is allocated in the loop.

       arena_reserve(&arena, &x, bytes, "activations", "qkv [L=12, N=1024, 2304]");  ... many
       arena_print(&arena, stdout);         the ledger: a line per group, largest buffers by name
       arena_commit(&arena, ops);           one ops->alloc; every &x now points into it

       | qkv | att | ... | grads | m | v | kv prompt | kv tail | workspace |  256-byte aligned */
#ifndef LLMC_ARENA_H
#define LLMC_ARENA_H

#include <stdio.h>
#include "ops.h"

struct ArenaEntry {
    void **pointer;
    size_t bytes, offset;
    char group[24], label[72];
};

struct Arena {
    struct ArenaEntry *entries;
    int count, capacity;
    size_t total;   /* bytes, alignment included */
    char *memory;   /* NULL until commit */
    const struct Ops *ops;
};

/* *pointer is set by arena_commit (NULL until then). group: the ledger's line; label: printf-like
   name and shape of this buffer. bytes may be 0 (pointer stays NULL). After commit: an assert. */
void arena_reserve(struct Arena *arena, void *pointer_address, size_t bytes, const char *group,
                   const char *label, ...) __attribute__((format(printf, 5, 6)));
void arena_print(const struct Arena *arena, FILE *out);
void arena_commit(struct Arena *arena, const struct Ops *ops);
void arena_free(struct Arena *arena);

#endif
