/* The CPU backend: its list of kernel files, and the table filled from it. */
#include "cpu.h"
#include "backend.h"
#include "backends.h"

extern const struct KernelFile cpu_memory, cpu_comm, cpu_embedding, cpu_norm, cpu_matmul, cpu_mlp,
    cpu_position, cpu_attention, cpu_head, cpu_matmul_decode, cpu_sample, cpu_adamw;

/* THE LIST. A file has to be here to fill its slots and to have its workspace counted. */
static const struct KernelFile *const files[] = {
    &cpu_memory,
    &cpu_comm,
    &cpu_embedding,
    &cpu_norm,
    &cpu_matmul,
    &cpu_mlp,
    &cpu_position,
    &cpu_attention,
    &cpu_head,
    &cpu_matmul_decode,
    &cpu_sample,
    &cpu_adamw,
};
enum { NUM_FILES = sizeof files / sizeof *files };

static size_t workspace_size(const struct OpsShape *shape) {
    return kernel_files_workspace(files, NUM_FILES, shape);
}

bool cpu_bf16_products;

void cpu_fill(struct Ops *ops, bool bf16_products) {
    cpu_bf16_products = bf16_products;
    ops->name = "cpu";
    ops->device = "";
    ops->dtype = "fp32";
    ops->products = bf16_products ? "bf16" : ops->dtype;
    ops->element_size = sizeof(floatX);
    ops->vocabulary_multiple = 1;
    ops->decode_multiple = 1;
    ops->asynchronous = false;
    ops->attention_block = 0;
    ops->workspace_size = workspace_size;
    kernel_files_fill(ops, files, NUM_FILES);
}
