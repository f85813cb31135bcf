/* What must be settled before main begins its work. */
#ifndef LLMC_LAUNCH_H
#define LLMC_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>

/* OpenBLAS chooses its kernels when it is loaded, and a version older than the processor chooses
   badly (0.3.21 runs Haswell kernels on a Zen 5: half the speed). Where the processor has AVX-512 and
   OpenBLAS did not pick kernels that use it, this runs the program again with
   OPENBLAS_CORETYPE=SKYLAKEX. Call first in main; returns if nothing is to be done or exec fails. */
void launch_with_best_blas(char **argv);
/* The kernels OpenBLAS uses now, e.g. "SkylakeX". */
const char *launch_blas_name(void);

/* Sets the OpenMP thread count: n, or with n = 0 the processors this process may use. Returns it. */
int launch_threads(int64_t n);

/* SIGINT and SIGTERM ask the loop to stop after its step; a second SIGINT ends at once. */
void launch_catch_signals(void);
bool launch_stop_requested(void);

#endif
