/* The norm's ladder: norm_forward, norm_residual_forward and norm_backward (llmc/ops.h; the
   formulas are at the head of llmc/kernels/norm.c). There are about ten operations to an element,
   so a version is as good as the bytes it moves: 2 elements forward, 4 with the residual sum, 4
   backward. */
#include "lab.cuh"

#define VERSIONS(ROW)                                                                       \
    ROW(norm_thread, any_gpu,                                                               \
        "a thread for each row; dweight: a thread for each column",                         \
        "slow: neighbouring threads read addresses a whole row apart, 32 lines for a load") \
    ROW(norm_block, any_gpu,                                                                \
        "a block for each row, which reads it once a pass; dweight: slices of rows",        \
        "loads of neighbouring addresses; three reads of a row, of which two hit a cache")  \
    ROW(cuda_norm, any_gpu,                                                                 \
        "a warp for each row, 16 bytes a load, the row in registers; backward two at once", \
        "each byte once: the bandwidth of a copy")
LADDER(norm, VERSIONS)
