/* The slots by name, and the choice of a backend. */
#include "ops.h"
#include <stdio.h>
#include <string.h>
#include "base/check.h"
#include "kernels/cpu.h"

#define SLOT(name) {#name, offsetof(struct Ops, name)}
static const struct {
    const char *name;
    size_t offset;
} slots[] = {
    SLOT(alloc), SLOT(free), SLOT(upload), SLOT(download), SLOT(copy), SLOT(fill_zero), SLOT(sync),
    SLOT(event_record), SLOT(event_wait), SLOT(to_float), SLOT(from_float), SLOT(workspace_size),
    SLOT(embedding_forward), SLOT(embedding_backward), SLOT(norm_forward),
    SLOT(norm_residual_forward), SLOT(norm_backward), SLOT(matmul_forward), SLOT(matmul_backward),
    SLOT(mlp_forward), SLOT(mlp_backward), SLOT(attention_forward), SLOT(attention_backward),
    SLOT(head_forward), SLOT(head_forward_backward), SLOT(matmul_packed_size), SLOT(matmul_pack),
    SLOT(matmul_decode), SLOT(attention_decode), SLOT(head_sample), SLOT(decode_advance),
    SLOT(sum_of_squares), SLOT(adamw), SLOT(all_reduce), SLOT(reduce_scatter), SLOT(all_gather),
    SLOT(broadcast)};
enum { NUM_SLOTS = sizeof slots / sizeof *slots };

/* From the first slot on, struct Ops holds function pointers only. */
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
    return missing;
}

static void cpu_fill(struct Ops *ops) {
    cpu_memory(ops);
    cpu_comm(ops);
    cpu_embedding(ops);
    cpu_norm(ops);
    cpu_matmul(ops);
    cpu_mlp(ops);
    cpu_attention(ops);
    cpu_head(ops);
    cpu_matmul_decode(ops);
    cpu_sample(ops);
    cpu_adamw(ops);
}

const struct Ops *ops_open(const char *name) {
    static struct Ops ops;
    char empty[1024];
    if (strcmp(name, "auto") != 0 && strcmp(name, "cpu") != 0)
        die_input("there is no backend \"%s\"; known are auto and cpu", name);
    cpu_fill(&ops);
    if (ops_missing(&ops, empty, sizeof empty))
        die_machine("backend %s is incomplete: nothing fills %s", ops.name, empty);
    return &ops;
}
