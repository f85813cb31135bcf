/* The laboratory: several versions of one operation, to be read in order, checked and timed by one
   program.

   A version is a kernel file like those of llmc/kernels (struct KernelFile): it sets those slots of
   struct Ops that it has, to functions that keep the contract of llmc/ops.h. A ladder is the list
   of an operation's versions, simplest first, what ships among them; it is in the
   file of its name, head.cu.

   All ladders and the backend itself are in one plug-in, build/lab_cuda.so, or build/lab_sim.so
   with the simulator inside. It exports, beside what every backend exports (backend.h):

       lab_ladders   the ladders of an element type */
#ifndef LAB_H
#define LAB_H

#include "../../llmc/kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

struct Version {
    const struct KernelFile *file; /* its name, slots and workspace. A slot that it leaves alone is
                                      one that it does not have (for this element type) */
    bool (*runs_here)(void);       /* on the device that is open */
    const char *change;            /* what changed against the version before */
    const char *expected;          /* what that was expected to bring, before it was tried */
};

struct Ladder {
    const char *op;                /* head attention norm adamw sample decode matmul */
    const struct Version *versions;
    int count;
};

/* The ladders for elements of type `dtype` ("fp32", "bf16", "fp16"), static; *count of them. NULL:
   the plug-in was built without that type. To be called after backend_open. */
typedef const struct Ladder *const *LabLadders(const char *dtype, int *count);
#define LAB_LADDERS "lab_ladders"

#ifdef __cplusplus
}
#endif
#endif
