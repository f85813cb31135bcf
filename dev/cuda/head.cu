/* The head's ladder: head_forward and head_forward_backward (llmc/ops.h, doc/head.md). */
#include "lab.cuh"

#define VERSIONS(ROW)                                                                       \
    ROW(cuda_head, any_gpu,                                                                 \
        "chunks of logits, gradients written over them: what ships for learning",          \
        "memory for a chunk instead of all logits; 6 NVC instead of 8")                     \
    ROW(cuda_head_forward, any_gpu,                                                         \
        "statistics of the tile in registers: what ships for scoring",                      \
        "no logit is stored: 2 NVC and the inputs' bytes")
LADDER(head, VERSIONS)
