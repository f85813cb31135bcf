/* The part of the CUDA runtime API that the emulator offers; values as in the toolkit's headers. */
#ifndef CUDASIM_RUNTIME_API_H
#define CUDASIM_RUNTIME_API_H

#include "language.h"

enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidMemcpyDirection = 21,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorIllegalState = 401,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorPeerAccessAlreadyEnabled = 704,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureUnmatched = 903,
    cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureIsolation = 905,
    cudaErrorStreamCaptureImplicit = 906,
    cudaErrorCapturedEvent = 907,
    cudaErrorInvalidClusterSize = 912
};
typedef enum cudaError cudaError_t;

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated
};
enum {
    cudaEventDefault = 0,
    cudaEventDisableTiming = 2,
    cudaStreamDefault = 0,
    cudaStreamNonBlocking = 1,
    cudaMemAttachGlobal = 1,
    cudaHostAllocDefault = 0,
    cudaSharedmemCarveoutMaxShared = 100
};

struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, maxThreadsPerMultiProcessor, warpSize;
    int maxThreadsPerBlock, l2CacheSize, regsPerBlock;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
};

typedef struct cudasim_event *cudaEvent_t;
typedef struct cudasim_graph *cudaGraph_t;
typedef struct cudasim_graph_exec *cudaGraphExec_t;
typedef void (*cudaHostFn_t)(void *data);

const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

/* ---- memory ---- */

namespace cudasim {
enum class MemoryKind { DEVICE, MANAGED, PINNED };
cudaError_t allocate(void **out, size_t bytes, MemoryKind kind);
cudaError_t copy_to_symbol(void *symbol, const void *in, size_t bytes);
cudaError_t copy_from_symbol(void *out, const void *symbol, size_t bytes);
} // namespace cudasim

template <class T> cudaError_t cudaMalloc(T **out, size_t bytes) {
    return cudasim::allocate((void **)out, bytes, cudasim::MemoryKind::DEVICE);
}
template <class T> cudaError_t cudaMallocAsync(T **out, size_t bytes, cudaStream_t) {
    return cudasim::allocate((void **)out, bytes, cudasim::MemoryKind::DEVICE);
}
template <class T> cudaError_t cudaMallocManaged(T **out, size_t bytes, unsigned = 1) {
    return cudasim::allocate((void **)out, bytes, cudasim::MemoryKind::MANAGED);
}
template <class T> cudaError_t cudaMallocHost(T **out, size_t bytes, unsigned = 0) {
    return cudasim::allocate((void **)out, bytes, cudasim::MemoryKind::PINNED);
}
template <class T> cudaError_t cudaHostAlloc(T **out, size_t bytes, unsigned) {
    return cudasim::allocate((void **)out, bytes, cudasim::MemoryKind::PINNED);
}
cudaError_t cudaFree(void *memory);
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaMemcpy(void *out, const void *in, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *out, const void *in, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream = 0);
/* `height` rows of `width` bytes, at distances of out_pitch and in_pitch bytes. */
cudaError_t cudaMemcpy2D(void *out, size_t out_pitch, const void *in, size_t in_pitch, size_t width,
                         size_t height, cudaMemcpyKind kind);
cudaError_t cudaMemcpy2DAsync(void *out, size_t out_pitch, const void *in, size_t in_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream = 0);
cudaError_t cudaMemset(void *out, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *out, int value, size_t bytes, cudaStream_t stream = 0);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);

template <class T>
cudaError_t cudaMemcpyToSymbol(T &symbol, const void *in, size_t bytes, size_t offset = 0) {
    return cudasim::copy_to_symbol((char *)&symbol + offset, in, bytes);
}
template <class T>
cudaError_t cudaMemcpyFromSymbol(void *out, const T &symbol, size_t bytes, size_t offset = 0) {
    return cudasim::copy_from_symbol(out, (const char *)&symbol + offset, bytes);
}

/* ---- streams, events, graphs ---- */

cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data);

cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = 0);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
                                 unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

/* ---- device ---- */

cudaError_t cudaDeviceSynchronize();
cudaError_t cudaDeviceReset();
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetPCIBusId(char *out, int capacity, int device);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);

/* Kernel attributes are kept under the kernel's text, because `kernel<<<>>>` may leave template
   arguments to deduction: write the kernel here as in the launch. */
namespace cudasim {
cudaError_t set_function_attribute(const char *text, cudaFuncAttribute attribute, int value);
template <class Function>
cudaError_t set_function_attribute(const char *text, Function *, cudaFuncAttribute attribute,
                                   int value) {
    return set_function_attribute(text, attribute, value);
}
} // namespace cudasim
#define cudaFuncSetAttribute(...) cudasim::set_function_attribute(#__VA_ARGS__, __VA_ARGS__)

/* The emulator has code for every kernel. */
struct cudaFuncAttributes {
    int binaryVersion, ptxVersion;
};
template <class Function>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, Function *) {
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}

/* Two blocks per multiprocessor, whatever the kernel: the emulator has no occupancy. */
template <class Function>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Function *, int, size_t) {
    *blocks = 2;
    return cudaSuccess;
}

/* ---- launches with attributes: clusters, programmatic launch ---- */

enum cudaLaunchAttributeID {
    cudaLaunchAttributeClusterDimension = 4,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6
};
union cudaLaunchAttributeValue {
    struct {
        unsigned x, y, z;
    } clusterDim;
    int programmaticStreamSerializationAllowed;
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};

namespace cudasim {
LaunchConfig with_attributes(const cudaLaunchConfig_t *config);
const char *kernel_name(const char *text); /* of the text of a call, which begins with it */
template <class... Parameters, class... Arguments>
cudaError_t launch_with_attributes(const char *text, const char *file, int line,
                                   const cudaLaunchConfig_t *config,
                                   void (*kernel)(Parameters...), Arguments &&...arguments) {
    launcher(file, line, kernel_name(text), with_attributes(config), [kernel](auto... values) {
        kernel(values...);
    })((Parameters)arguments...);
    return cudaPeekAtLastError();
}
} // namespace cudasim
#define cudaLaunchKernelEx(config, ...) \
    cudasim::launch_with_attributes(#__VA_ARGS__, __FILE__, __LINE__, config, __VA_ARGS__)

#endif
