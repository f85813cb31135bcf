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
        "no logit is stored: 2 NVC and the inputs' bytes")                                  \
    ROW(head_hopper_forward, hopper,                                                        \
        "scoring by TMA and wgmma: a warp copies, two groups multiply in turn, blocks in pairs", \
        "statistics are reduced while the other group multiplies; fewer bytes from L2")     \
    ROW(head_hopper_gradient, hopper,                                                       \
        "learning: bf16 e^(z-m) is kept for logits, dz is rebuilt on its way into wgmma",   \
        "6 bytes a logit instead of 18, and only the products touch it; longer chunks")
LADDER(head, VERSIONS)
