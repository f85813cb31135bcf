/* The sampler's ladder: head_sample (llmc/ops.h, doc/kernels/decode.md). */
#include "lab.cuh"

#define VERSIONS(ROW)                                                                       \
    ROW(sample_materialised, any_gpu,                                                       \
        "all logits stored; a block a row reads them three times",                          \
        "right; 16 bytes of traffic a logit beside the weights, and R blocks to reduce")    \
    ROW(sample_one_pass, any_gpu,                                                           \
        "maximum, sums and winner in one reading",                                          \
        "8 bytes a logit instead of 16")                                                    \
    ROW(cuda_sample, any_gpu,                                                               \
        "a tile's logits reduced in registers, one cheap logarithm a logit: what ships",    \
        "24 bytes for 128 logits; V / 128 blocks reduce; 50 instructions a logit, not 124")
LADDER(sample, VERSIONS)
