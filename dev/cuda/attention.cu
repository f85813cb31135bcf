/* Attention's ladder, training: attention_forward and attention_backward (llmc/ops.h,
   doc/kernels/attention.md). */
#include "lab.cuh"

#define VERSIONS(ROW)                                                                        \
    ROW(attention_naive, any_gpu,                                                            \
        "the definition: a thread a query, three passes; backward a thread a query or a key", \
        "right, and slow: every thread reads every key for itself")                          \
    ROW(attention_tiled, any_gpu,                                                            \
        "tiles of keys in shared memory, softmax in one pass (forward only)",                \
        "4 HS flop a pair instead of 8, a key's bytes once for a block of queries")          \
    ROW(cuda_attention, any_gpu,                                                             \
        "mma.sync, two stages of cp.async, seven products backward: what ships",             \
        "the tensor cores' rate, 16 times that of FMAs")                                     \
    ROW(attention_five, any_gpu,                                                             \
        "backward with five products: parts of dq in float32 for each tile of keys",         \
        "2 of 7 products less, for 8 HS bytes a query and tile: pays in the second cache") \
    ROW(attention_hopper, hopper,                                                            \
        "forward by TMA and wgmma: a warp brings tiles, two warpgroups multiply",            \
        "the tensor cores' whole rate, 1.6 times that of mma.sync")
LADDER(attention, VERSIONS)
