#include "arena.h"

#include <assert.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "base/check.h"

#define ARENA_ALIGN 256
#define MAX_GROUPS 32
#define LARGEST 8

static size_t align_up(size_t bytes) {
    return (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
}

/* Bytes of the memory that the training and decoding sections share: those of the larger one. */
static size_t arena_shared_bytes(const struct Arena *arena) {
    size_t training = arena->section_bytes[ARENA_TRAINING];
    size_t decoding = arena->section_bytes[ARENA_DECODING];
    return training > decoding ? training : decoding;
}

void arena_reserve(struct Arena *arena, void *pointer_address, size_t bytes, const char *group,
                   const char *label, ...) {
    assert(arena->memory == NULL);
    if (arena->count == arena->capacity) {
        arena->capacity = arena->capacity ? 2 * arena->capacity : 64;
        arena->entries = check_realloc(arena->entries, (size_t)arena->capacity,
                                       sizeof *arena->entries, "the memory plan");
    }
    struct ArenaEntry *entry = &arena->entries[arena->count++];
    memset(entry, 0, sizeof *entry);
    entry->pointer = pointer_address;
    entry->bytes = bytes;
    entry->section = arena->section;
    entry->offset = arena->section_bytes[arena->section];
    snprintf(entry->group, sizeof entry->group, "%s", group);
    va_list arguments;
    va_start(arguments, label);
    vsnprintf(entry->label, sizeof entry->label, label, arguments);
    va_end(arguments);
    const size_t *sections = arena->section_bytes;
    const size_t limit = SIZE_MAX / 4;   /* of each section, so that no sum below can wrap around */
    if (bytes > limit || sections[arena->section] > limit - bytes)
        die_machine("%s: %s is too large for this machine's addresses", entry->group, entry->label);
    arena->section_bytes[arena->section] += align_up(bytes);
    arena->total = sections[ARENA_ALWAYS] + arena_shared_bytes(arena);
    /* The caller's pointer may have any type. memset and memcpy may write it; an assignment through
       a void ** would break the aliasing rules. */
    memset(pointer_address, 0, sizeof(void *));
}

struct Group {
    const char *name;
    size_t bytes;
};

/* Sums the entries by group, in order of first appearance; returns how many groups there are. Past
   MAX_GROUPS everything is counted with the last. */
static int arena_sum_groups(const struct Arena *arena, struct Group *groups) {
    int count = 0;
    for (int i = 0; i < arena->count; i++) {
        const struct ArenaEntry *entry = &arena->entries[i];
        int g = 0;
        while (g < count && strcmp(groups[g].name, entry->group) != 0) g++;
        if (g == MAX_GROUPS) g--;
        if (g == count) groups[count++] = (struct Group){.name = entry->group};
        groups[g].bytes += align_up(entry->bytes);
    }
    return count;
}

/* Larger first; equal sizes in the order they were reserved. */
static int compare_entries(const void *a, const void *b) {
    const struct ArenaEntry *x = *(const struct ArenaEntry *const *)a;
    const struct ArenaEntry *y = *(const struct ArenaEntry *const *)b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return x < y ? -1 : 1;
}

void arena_print(const struct Arena *arena, FILE *out) {
    const double mib = 1024.0 * 1024.0;
    struct Group groups[MAX_GROUPS];
    int num_groups = arena_sum_groups(arena, groups);
    fprintf(out, "memory plan%*s\n", 25, "MiB");
    for (int g = 0; g < num_groups; g++)
        fprintf(out, "  %-22s %11.2f  %5.1f %%\n", groups[g].name, (double)groups[g].bytes / mib,
                100.0 * (double)groups[g].bytes / (double)(arena->total ? arena->total : 1));
    size_t sum = 0;
    for (int i = 0; i < ARENA_SECTIONS; i++) sum += arena->section_bytes[i];
    if (sum > arena->total)
        fprintf(out, "  %-22s %11.2f  training and decoding use the same place\n", "shared",
                -(double)(sum - arena->total) / mib);
    fprintf(out, "  %-22s %11.2f\n", "total", (double)arena->total / mib);

    if (arena->count == 0) return;
    const struct ArenaEntry **sorted =
        check_alloc((size_t)arena->count, sizeof *sorted, "the memory plan");
    for (int i = 0; i < arena->count; i++) sorted[i] = &arena->entries[i];
    qsort(sorted, (size_t)arena->count, sizeof *sorted, compare_entries);
    fprintf(out, "largest buffers\n");
    for (int i = 0; i < arena->count && i < LARGEST && sorted[i]->bytes > 0; i++)
        fprintf(out, "  %-22s %11.2f  %s\n", sorted[i]->group, (double)sorted[i]->bytes / mib,
                sorted[i]->label);
    free(sorted);
}

/* Ends the program if the plan needs more memory than the backend has. Checked before alloc, whose
   message could not name the buffers. */
static void check_room(const struct Arena *arena, const struct Ops *ops) {
    const struct ArenaEntry *largest = NULL;
    size_t available = ops->memory_available();
    if (arena->total <= available) return;
    for (int i = 0; i < arena->count; i++)
        if (!largest || arena->entries[i].bytes > largest->bytes) largest = &arena->entries[i];
    die_machine("out of memory: the plan needs %.2f GB and %.2f GB are free; its largest buffer is "
                "%s, %s, %.2f GB", (double)arena->total / 1e9, (double)available / 1e9,
                largest->group, largest->label, (double)largest->bytes / 1e9);
}

void arena_commit(struct Arena *arena, const struct Ops *ops) {
    assert(arena->memory == NULL);
    arena->ops = ops;
    check_room(arena, ops);
    arena->memory = ops->alloc(arena->total ? arena->total : ARENA_ALIGN);
    for (int i = 0; i < arena->count; i++) {
        const struct ArenaEntry *entry = &arena->entries[i];
        if (entry->bytes == 0) continue;
        size_t section = entry->section == ARENA_ALWAYS ? 0 : arena->section_bytes[ARENA_ALWAYS];
        void *address = arena->memory + section + entry->offset;
        memcpy(entry->pointer, &address, sizeof address);
    }
}

void arena_free(struct Arena *arena) {
    if (arena->memory != NULL) arena->ops->free(arena->memory);
    free(arena->entries);
    memset(arena, 0, sizeof *arena);
}
