/* The CUDA backend's one device: its streams and libraries, the reporting of errors, and the
   plug-in's entry. Compiled once; what depends on the element type is in cuda_common.cuh.

   The program is C and does not include this file: it opens the plug-in (backend_cuda.so, or
   backend_sim.so with the simulator inside) and asks for a table of slots (backend.h). */
#ifndef LLMC_CUDA_DEVICE_H
#define LLMC_CUDA_DEVICE_H

#include <cublasLt.h>
#include <cuda_runtime.h>
#include "../ops.h"
#include "backend.h"

/* Written once, by open_device() in cuda_device.cu, but for `recording` (graph_begin, graph_end);
   read by all CUDA files. All launches go to `stream`. */
struct CudaDevice {
    cudaStream_t stream, comm_stream;
    cublasLtHandle_t lt;
    void *lt_workspace;            /* cuBLASLt's own scratch, fixed: its sums stay repeatable */
    size_t lt_workspace_bytes;
    int multiprocessors;
    int shared_limit;              /* bytes of shared memory a block may opt in to */
    char name[64];
    const char *dtype;             /* "bf16": what floatX is in this process */
    bool programmatic;             /* launches may overlap: code for sm_90 on */
    bool recording;                /* launches go into a recorded sequence and are not run now */
};
extern struct CudaDevice cuda;

/* Number `event` of those that order the streams; made at its first use. */
cudaEvent_t cuda_event(int event);

/* Forgets all recorded sequences (graph_begin): each runs once more before it is recorded again.
   For a change after which a slot launches other kernels for the same arguments. */
void cuda_forget_sequences(void);

/* Ends the program through the host: "FILE:LINE: WHAT: ERROR; HINT". */
#ifdef __GNUC__
__attribute__((noreturn))
#endif
void cuda_fail(const char *file, int line, const char *what, cudaError_t error);
#ifdef __GNUC__
__attribute__((noreturn, format(printf, 1, 2)))
#endif
void cuda_die(const char *format, ...);

#define CUDA_CHECK(call)                                                          \
    do {                                                                          \
        cudaError_t error_ = (call);                                              \
        if (error_ != cudaSuccess) cuda_fail(__FILE__, __LINE__, #call, error_);  \
    } while (0)

/* After every launch: reports a wrong launch configuration at the launch. An error inside a kernel
   is reported by the next download or sync. */
#define CUDA_CHECK_LAUNCH()                                                                 \
    do {                                                                                    \
        cudaError_t error_ = cudaGetLastError();                                            \
        if (error_ != cudaSuccess) cuda_fail(__FILE__, __LINE__, "kernel launch", error_);  \
    } while (0)

#define CUBLAS_CHECK(call)                                                             \
    do {                                                                               \
        cublasStatus_t status_ = (call);                                               \
        if (status_ != CUBLAS_STATUS_SUCCESS)                                          \
            cuda_die("%s:%d: %s: cuBLAS status %d", __FILE__, __LINE__, #call, (int)status_); \
    } while (0)

/* The files whose slots do not depend on the element type. */
extern const struct KernelFile cuda_memory, cuda_comm, cuda_gemm_choice;

#endif
