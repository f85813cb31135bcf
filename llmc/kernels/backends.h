/* Which backends there are. Only code that opens a backend includes this header; code that uses one
   includes ops.h alone. */
#ifndef LLMC_KERNELS_BACKENDS_H
#define LLMC_KERNELS_BACKENDS_H

#include "../ops.h"

/* The backend called `name`, with elements of type `dtype`, complete: every slot was checked to be
   filled. The table lives until exit; there is one per process.

     name    "cpu", "cuda", "sim" (the CUDA kernels in the simulator, doc/cudasim.md; also
             "sim-asan", "sim-race"), or "auto": cuda where its plug-in opens, else cpu, with one
             line saying why if there is a plug-in
     device  its number among the machine's GPUs; the CPU and the simulator have one, whatever it is
     dtype   "fp32", "bf16", "fp16", or "auto": bf16 on CUDA, fp32 on the CPU

   A plug-in is backend_NAME.so beside the program or in its build folder. die_input for an unknown
   name or a dtype that the backend does not have; die_machine, saying why, for one that was asked
   for by name and cannot be opened here. */
const struct Ops *ops_open(const char *name, const char *dtype, int device);

/* The CPU's, by its list of files (cpu_backend.c). */
void cpu_fill(struct Ops *ops);

#endif
