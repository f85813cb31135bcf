/* Launches that overlap with the kernel before them (programmatic dependent launch, sm_90 on).

   A decode step is a chain of some hundred kernels of a few microseconds, each of which needs what
   the one before has written. Launched as usual, a kernel starts when its predecessor has ended and
   its writes are visible, and meanwhile the device has nothing to do. A kernel launched with
   LAUNCH_DEPENDENT may begin earlier: its blocks find their place, and the weights of its tile are
   on their way to the second cache level, before it waits.

       kernel n      | wait | work                     |
       kernel n + 1         | weights to L2 | wait .. .| work                 |
       kernel n + 2                                    | weights to L2 | wait | work

   await_previous is called by every thread of such a kernel, before it reads or writes what another
   kernel touches. It lets the next kernel begin only after its own wait, so that of the kernels
   before, all but the last have ended when a kernel begins. Kernels that are launched as usual may
   stand between: they wait for all. Code for less than sm_90 has no waits, on newer GPUs too, and
   there all kernels are launched as usual. */
#pragma once
#include "cuda_common.cuh"
#include "ptx_hopper.cuh"

static const cudaLaunchConfig_t *dependent_launch(dim3 grid, int threads, size_t shared) {
    static cudaLaunchAttribute attribute;
    static cudaLaunchConfig_t config;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = cuda.stream;
    config.attrs = &attribute;
    config.numAttrs = cuda.programmatic ? 1 : 0;
    return &config;
}

/* LAUNCH_DEPENDENT(grid, threads, bytes of shared memory, kernel, its arguments) on the stream. */
#define LAUNCH_DEPENDENT(grid, threads, shared, ...) \
    CUDA_CHECK(cudaLaunchKernelEx(dependent_launch(dim3(grid), threads, shared), __VA_ARGS__))

static __device__ __forceinline__ void await_previous() {
    grid_dependency_wait();
    grid_dependency_launch();
}
