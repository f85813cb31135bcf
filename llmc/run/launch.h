/* What must be settled before main begins its work. */
#ifndef LLMC_LAUNCH_H
#define LLMC_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>

/* OpenMP threads that wait for each other spin by default, for milliseconds: right on an idle
   machine, ruinous on a shared one, where the thread waited for may not be running (measured: 5x
   slower with other work on the same cores). The runtime reads its settings when it is loaded, so
   this runs the program again with short spins. What the environment already says (GOMP_SPINCOUNT,
   KMP_BLOCKTIME, OMP_WAIT_POLICY) stands. Call first in main; returns if nothing is to be done or
   exec fails. */
void launch_with_patient_threads(char **argv);
/* The kernels OpenBLAS uses now, e.g. "SkylakeX". */
const char *launch_blas_name(void);

/* Sets the OpenMP thread count: n, or with n = 0 the processors this process may use (its affinity,
   and its control group's quota). Returns it. */
int launch_threads(int64_t n);

/* SIGINT and SIGTERM ask the loop to stop after its step; a second SIGINT ends at once. */
void launch_catch_signals(void);
bool launch_stop_requested(void);

#endif
