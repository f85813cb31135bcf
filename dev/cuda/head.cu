/* The head's ladder: head_forward and head_forward_backward (llmc/ops.h, doc/head.md). */
#include "lab.cuh"

#define VERSIONS(ROW)                                                                       \
    ROW(head_materialised, any_gpu,                                                         \
        "all logits formed and kept; a block per row, a pass for each formula",             \
        "the products' time and 18 bytes a logit: what a framework gives, but 6 NVC")       \
    ROW(cuda_head, any_gpu,                                                                 \
        "chunks of logits, read once for all statistics, dz over them; ships for learning", \
        "memory of two chunks; 10 bytes a logit; rows without coefficients at 2 NVC of 6")  \
    ROW(cuda_head_forward, any_gpu,                                                         \
        "statistics of the tile in registers: what ships for scoring",                      \
        "no logit is stored: 2 NVC and the inputs' bytes")
LADDER(head, VERSIONS)
