/* The linear layers' ladder: matmul_forward and matmul_backward (llmc/ops.h). */
#include "lab.cuh"

#define VERSIONS(ROW)                                                                        \
    ROW(matmul_naive, any_gpu,                                                               \
        "the definition: a thread an element of out, dx or dw",                              \
        "right; 8 bytes from the caches for each multiply-add")                              \
    ROW(matmul_tiled, any_gpu,                                                               \
        "tiles of 64 x 64 in shared memory, 4 x 4 sums a thread",                            \
        "a 64th of the bytes from the caches; the rate of FMAs instead of loads")            \
    ROW(matmul_mma, any_gpu,                                                                 \
        "mma.sync, tiles of 128 x 128, three stages of cp.async (forward only)",             \
        "the tensor cores' rate, 16 times that of FMAs; on Hopper less than wgmma's")        \
    ROW(matmul_hopper, hopper,                                                               \
        "wgmma from shared memory, TMA, tiles of 256 x 256 by pairs of blocks, persistent",  \
        "all of Hopper's rate: no thread spends instructions on addresses or fragments")     \
    ROW(cuda_matmul, any_gpu, "cuBLASLt, bias in its epilogue: what ships",                  \
        "what the vendor's kernels reach, whatever the shape and the GPU")
LADDER(matmul, VERSIONS)
