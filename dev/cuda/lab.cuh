/* How a ladder is written:

       #define VERSIONS(ROW)                                                      \
           ROW(head_naive, any_gpu, "what changed", "what it was to bring")       \
           ROW(cuda_head, any_gpu, "...", "...")
       LADDER(head, VERSIONS)

   head_naive is the version's struct KernelFile, PER_TYPE(head_naive), in a file of its own;
   cuda_head is what ships. The second word says which devices it runs on. */
#pragma once
#include "../../llmc/kernels/cuda_common.cuh"
#include "lab.h"

static bool any_gpu() { return true; }

/* Kernels for sm_90a run on that architecture only. */
static bool hopper() {
    int device = 0, major = 0, minor = 0;
    CUDA_CHECK(cudaGetDevice(&device));
    CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    return major == 9 && minor == 0;
}

#define LADDER_FILE(file, where, change, expected) extern const struct KernelFile PER_TYPE(file);
#define LADDER_ROW(file, where, change, expected) {&PER_TYPE(file), where, change, expected},
#define LADDER(op, versions)                                                               \
    versions(LADDER_FILE)                                                                  \
    static const struct Version op##_versions[] = {versions(LADDER_ROW)};                  \
    extern const struct Ladder PER_TYPE(ladder_##op) = {                                   \
        #op, op##_versions, (int)(sizeof op##_versions / sizeof *op##_versions)};

/* Every file uses one of the two at most. */
static inline void lab_unused() { (void)any_gpu, (void)hopper; }
