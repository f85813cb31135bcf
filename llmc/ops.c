/* The slots by name, and the list of blocks of a packed batch. */
#include "ops.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOT(name) {#name, offsetof(struct Ops, name)}
static const struct {
    const char *name;
    size_t offset;
} slots[] = {
    SLOT(alloc), SLOT(free), SLOT(memory_available), SLOT(upload), SLOT(download), SLOT(fetch),
    SLOT(fetched), SLOT(copy), SLOT(fill_zero), SLOT(sync), SLOT(event_record), SLOT(event_wait),
    SLOT(to_float), SLOT(from_float), SLOT(workspace_size), SLOT(graph_begin), SLOT(graph_end),
    SLOT(embedding_forward), SLOT(embedding_backward), SLOT(norm_forward),
    SLOT(norm_residual_forward), SLOT(norm_backward), SLOT(matmul_forward), SLOT(matmul_backward),
    SLOT(matmul_choices_load), SLOT(matmul_choices_save), SLOT(matmul_choices_freeze),
    SLOT(mlp_forward), SLOT(activation_forward), SLOT(mlp_backward), SLOT(position_forward),
    SLOT(position_backward), SLOT(attention_forward), SLOT(attention_backward),
    SLOT(head_forward), SLOT(head_forward_backward), SLOT(matmul_packed_size), SLOT(matmul_pack),
    SLOT(matmul_decode), SLOT(mlp_decode), SLOT(attention_decode), SLOT(head_sample),
    SLOT(decode_advance), SLOT(sum_of_squares), SLOT(adamw), SLOT(comm_id),
    SLOT(comm_open), SLOT(comm_expect), SLOT(comm_counts), SLOT(all_reduce), SLOT(reduce_scatter),
    SLOT(all_gather), SLOT(broadcast)};
enum { NUM_SLOTS = sizeof slots / sizeof *slots };

/* struct Ops holds nothing but function pointers from its first slot, alloc, to its end. */
typedef void (*AnyFunction)(void);
_Static_assert(NUM_SLOTS * sizeof(AnyFunction) == sizeof(struct Ops) - offsetof(struct Ops, alloc),
               "every slot of struct Ops has its row in slots[]");

int ops_missing(const struct Ops *ops, char *out, size_t capacity) {
    int missing = 0;
    size_t length = 0;
    if (capacity) out[0] = '\0';
    for (int i = 0; i < NUM_SLOTS; i++) {
        AnyFunction function;
        memcpy(&function, (const char *)ops + slots[i].offset, sizeof function);
        if (function) continue;
        if (length < capacity)
            length += (size_t)snprintf(out + length, capacity - length, "%s%s", missing ? ", " : "",
                                       slots[i].name);
        missing++;
    }
    for (int i = 0; i < ops->num_files; i++) {
        if (ops->files[i]->workspace) continue;
        if (length < capacity)
            length += (size_t)snprintf(out + length, capacity - length, "%sthe workspace of %s",
                                       missing ? ", " : "", ops->files[i]->name);
        missing++;
    }
    return missing;
}

/* What the order of blocks follows from. */
struct Cut {
    const int *start, *prompt;
};

/* Keys that come before a block's first query. */
static int keys_before(const struct QueryBlock *block, const struct Cut *cut) {
    int prompt = cut->prompt ? cut->prompt[block->row] : -1;
    return block->first + (prompt < 0 ? 0 : cut->start[prompt + 1] - cut->start[prompt]);
}

static int compare_blocks(const void *a, const void *b, void *cut) {
    const struct QueryBlock *x = a, *y = b;
    int keys = keys_before(x, cut), others = keys_before(y, cut);
    if (keys != others) return keys > others ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

int rows_cut_blocks(struct QueryBlock *out, const int *start, const int *prompt, int B,
                    int block) {
    struct Cut cut = {start, prompt};
    int count = 0;
    for (int b = 0; b < B; b++)
        for (int first = 0; first < start[b + 1] - start[b]; first += block)
            out[count++] = (struct QueryBlock){b, first};
    qsort_r(out, (size_t)count, sizeof *out, compare_blocks, &cut);
    return count;
}

void rows_seen(int *seen, const int *start, const int *prompt, int B) {
    for (int b = 0; b < B; b++) {
        seen[b] = start[b + 1];
        if (prompt[b] >= 0) seen[prompt[b]] = start[b + 1];
    }
}
