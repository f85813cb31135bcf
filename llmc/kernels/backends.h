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
     dtype   "fp32", "bf16", "fp16", or "auto": bf16 on CUDA, fp32 on the CPU. On the CPU bf16 is
             what the operands of products are rounded to; all that is stored is float32

   A plug-in is backend_NAME.so beside the program or in its build folder. die_input for an unknown
   name or a dtype that the backend does not have; die_machine, saying why, for one that was asked
   for by name and cannot be opened here. */
const struct Ops *ops_open(const char *name, const char *dtype, int device);

/* For the process that starts several ranks and opens no device itself.

   How many devices a backend has here, counted in a child process; 0: none, or it has no such
   thing. */
int backend_devices(const char *name);
/* out = what tells device number `device` of a backend from all others of all machines; "": nothing
   does. Call where the backend is open. */
void backend_device_id(const char *name, int device, char out[64]);
/* id [128] = a new meeting point for a backend's ranks (ops->comm_id), held by this process until
   backend_meeting_over, which is called when the ranks have ended. die_machine where it has
   none. */
void backend_meeting(const char *name, void *id);
void backend_meeting_over(const char *name, const void *id);

/* The CPU's, by its list of files (cpu_backend.c). bf16_products: --dtype bf16 (gemm_bf16.h); it
   holds for the process. */
void cpu_fill(struct Ops *ops, bool bf16_products);

#endif
