/* The laboratory: several versions of one operation, to be read in order, checked and timed by one
   program.

   A version is a kernel file like those of llmc/kernels (struct KernelFile): it sets those slots of
   struct Ops that it has, to functions that keep the contract of llmc/ops.h. A ladder is the list
   of an operation's versions, simplest first, what ships among them; it is in the
   file of its name, head.cu.

   All ladders and the backend itself are in one plug-in, build/lab_cuda.so, or build/lab_sim.so
   with the simulator inside. It exports, beside what every backend exports (backend.h):

       lab_ladders   the ladders of an element type
       lab_device    measuring: time, caches, energy */
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

/* What the driver says of the device at this moment (NVML); NaN: nothing. */
struct LabState {
    double sm_mhz, memory_mhz, watts, celsius;
    const char *limited;           /* what holds clocks down: "power" "heat" "hardware", or "" */
};

/* The device that is open. In the simulator times mean nothing. */
struct LabDevice {
    char name[64];
    char software[160];            /* versions of driver, runtime and cuBLASLt */
    int multiprocessors;
    int capability;                /* 90: sm_90 */
    size_t l2_bytes, memory_bytes;
    /* Milliseconds between two events on the compute stream, round what `call` enqueues (slots of
       Ops). Waits for its end. */
    double (*time_ms)(void (*call)(void *context), void *context);
    /* Enqueues that the L2 cache is filled with something else. Its memory, twice the cache, is
       allocated by the first call. */
    void (*flush)(void);
    /* What the device has used since its driver was loaded; NaN: NVML does not say. The counter is
       renewed every 0.1 s or so: take differences over a second or more. */
    double (*energy_joules)(void);
    void (*state)(struct LabState *out);
};

/* Static, filled by the first call. To be called after backend_open. */
typedef const struct LabDevice *LabDeviceOpen(void);
#define LAB_DEVICE "lab_device"

#ifdef __cplusplus
}
#endif
#endif
