/* The update's ladder: adamw and sum_of_squares (llmc/ops.h; the formulas are at the head of
   llmc/kernels/adamw.c). Nothing but bytes: 28 an element in float32, in a 16-bit type 24 without a
   master copy and 30 with one; 4 for the sum of squares. */
#include "lab.cuh"

#define VERSIONS(ROW)                                                                         \
    ROW(adamw_element, any_gpu,                                                               \
        "a thread for each element, a launch for each range; the sum by one block",           \
        "near the bandwidth in large ranges; the sum slow: one multiprocessor asks for bytes") \
    ROW(cuda_adamw, any_gpu,                                                                  \
        "four elements a thread, 16 bytes a load, all ranges in a launch; sums by all blocks", \
        "a quarter of the loads, of the random numbers and of the launches: a copy's bandwidth")
LADDER(adamw, VERSIONS)
