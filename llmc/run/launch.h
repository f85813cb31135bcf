/* What the program does before its work begins: descriptors, threads, signals. */
#ifndef LLMC_LAUNCH_H
#define LLMC_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>

/* Call first in main. Two things that cannot be changed later:

   Standard descriptors that are closed are opened on /dev/null. Otherwise the first file that the
   run opens would be given number 1 or 2, and console text would be written into it.

   OpenMP threads that wait for each other spin by default, for milliseconds: right on an idle
   machine, ruinous on a shared one, where the thread waited for may not be running (measured: 5x
   slower with other work on the same cores). The runtime reads its settings when it is loaded, so
   this runs the program again with short spins. What the environment already says (GOMP_SPINCOUNT,
   KMP_BLOCKTIME, OMP_WAIT_POLICY) stands. Returns if nothing is to be done or exec fails. */
void launch_prepare(char **argv);
/* The kernels OpenBLAS uses now, e.g. "SkylakeX". */
const char *launch_blas_name(void);

/* The processors that this process may use: its affinity, and its control group's quota. */
int launch_processors(void);
/* Settles the OpenMP thread count and returns it: what OpenMP really gives of n, or of the threads
   it would take by itself with n = 0 (OMP_NUM_THREADS, else the processors that this process may
   use: its affinity, and its control group's quota). */
int launch_threads(int64_t n);

/* For a program that saves: SIGINT, SIGTERM, SIGHUP, and a reader of its output that goes away
   (SIGPIPE), ask the loop to stop after its step. The second signal of a kind ends the program at
   once. What the caller had ignored (nohup) stays ignored. */
void launch_catch_signals(void);
bool launch_stop_requested(void);
/* Writing past a file size limit becomes an error that is reported, as on a full disk, and not a
   signal that ends the program. */
void launch_ignore_size_limit(void);

#endif
