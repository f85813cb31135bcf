/* The device as CUDA describes it: errors, launch limits, attributes. */
#include "emulator.h"
#include <pthread.h>
#include <set>
#include <unordered_map>

namespace cudasim {

/* ---- errors ---- */

static cudaError_t last_error;

cudaError_t set_error(cudaError_t error) { return last_error = error; }

/* The scheduler has one state and the fibers one home stack: all calls must come from one
   thread. */
bool is_other_thread() {
    static pthread_t owner = pthread_self();
    return !pthread_equal(owner, pthread_self());
}

void require_one_thread() {
    if (is_other_thread())
        fail("the CUDA API is called from a second thread; the emulator works for one");
}

struct ErrorText {
    cudaError_t error;
    const char *name, *text;
};

static const ErrorText error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "the capture was not begun on this stream"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorInvalidClusterSize, "cudaErrorInvalidClusterSize", "invalid cluster size"},
};

static const ErrorText *find_error(cudaError_t error) {
    for (const ErrorText &entry : error_texts)
        if (entry.error == error) return &entry;
    return nullptr;
}

/* ---- kernel attributes and launch limits ---- */

enum : size_t { DEFAULT_DYNAMIC_SHARED = 48 * 1024 };
enum { MAX_CLUSTER = 8 /* more must be asked for, and are not everywhere */ };

static auto &opted_in = *new std::unordered_map<std::string, size_t>();

/* The kernel's text without blanks, &, outer brackets and whatever follows it in the macro call. */
static std::string kernel_key(const char *text) {
    std::string key;
    int depth = 0;
    for (const char *c = text; *c; c++) {
        if (*c == '<' || *c == '(') depth++;
        if (*c == '>' || *c == ')') depth--;
        if (*c == ',' && depth == 0) break;
        if (!isspace((unsigned char)*c) && *c != '&') key += *c;
    }
    while (key.size() > 2 && key.front() == '(' && key.back() == ')')
        key = key.substr(1, key.size() - 2);
    return key;
}

const char *kernel_name(const char *text) {
    static auto &names = *new std::set<std::string>();
    return names.insert(kernel_key(text)).first->c_str();
}

cudaError_t set_function_attribute(const char *text, cudaFuncAttribute attribute, int value) {
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || value > options().shared_limit) return set_error(cudaErrorInvalidValue);
    size_t &limit = opted_in[kernel_key(text)];
    if ((size_t)value > limit) limit = (size_t)value; /* instantiations may share one text */
    return cudaSuccess;
}

LaunchConfig with_attributes(const cudaLaunchConfig_t *from) {
    LaunchConfig to =
        config(from->gridDim, from->blockDim, from->dynamicSmemBytes, from->stream);
    for (unsigned i = 0; i < from->numAttrs; i++) {
        const cudaLaunchAttributeValue &value = from->attrs[i].val;
        if (from->attrs[i].id == cudaLaunchAttributeClusterDimension)
            to.cluster = dim3(value.clusterDim.x, value.clusterDim.y, value.clusterDim.z);
        if (from->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization)
            to.programmatic = value.programmaticStreamSerializationAllowed != 0;
    }
    return to;
}

static cudaError_t check_launch(const LaunchConfig &c, size_t shared_limit) {
    size_t threads = (size_t)c.block.x * c.block.y * c.block.z;
    bool block_fits = threads > 0 && threads <= MAX_THREADS && c.block.z <= 64;
    bool grid_fits = c.grid.x > 0 && c.grid.y > 0 && c.grid.z > 0 && c.grid.x <= 0x7fffffffu &&
                     c.grid.y <= 65535 && c.grid.z <= 65535;
    if (!block_fits || !grid_fits) return cudaErrorInvalidConfiguration;
    unsigned together = c.cluster.x * c.cluster.y * c.cluster.z;
    if (together < 1 || together > MAX_CLUSTER || c.grid.x % c.cluster.x ||
        c.grid.y % c.cluster.y || c.grid.z % c.cluster.z)
        return cudaErrorInvalidClusterSize;
    if ((together > 1 || c.programmatic) && options().capability < 90) return cudaErrorNotSupported;
    if (c.shared_bytes > shared_limit) return cudaErrorInvalidValue;
    return cudaSuccess;
}

void enqueue_launch(const char *name, const char *file, int line, const LaunchConfig &c,
                    std::function<void()> thread_body) {
    auto limit = opted_in.find(kernel_key(name));
    size_t shared_limit = limit == opted_in.end() || limit->second < DEFAULT_DYNAMIC_SHARED
                              ? (size_t)DEFAULT_DYNAMIC_SHARED
                              : limit->second;
    if (cudaError_t error = check_launch(c, shared_limit)) {
        fprintf(stderr,
                "CUDASIM: bad launch of %s at %s:%d: grid (%u,%u,%u), block (%u,%u,%u), cluster "
                "(%u,%u,%u), %zu bytes of dynamic shared memory (limit %zu)\n",
                name, file, line, c.grid.x, c.grid.y, c.grid.z, c.block.x, c.block.y, c.block.z,
                c.cluster.x, c.cluster.y, c.cluster.z, c.shared_bytes, shared_limit);
        set_error(error);
        return;
    }
    enqueue_library(c.stream, [=] { run_grid(Launch{name, file, line, c, &thread_body}); });
}

} // namespace cudasim

using namespace cudasim;

const char *cudaGetErrorName(cudaError_t error) {
    const ErrorText *entry = find_error(error);
    return entry ? entry->name : "unknown error";
}

const char *cudaGetErrorString(cudaError_t error) {
    const ErrorText *entry = find_error(error);
    return entry ? entry->text : "unknown error";
}

cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError() { return last_error; }

/* ---- devices: all the same, and all this one ---- */

static int current_device;

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= options().devices) return set_error(cudaErrorInvalidDevice);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = options().devices;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (device < 0 || device >= options().devices) return set_error(cudaErrorInvalidDevice);
    *properties = cudaDeviceProp{};
    snprintf(properties->name, sizeof properties->name, "cudasim");
    properties->major = options().capability / 10;
    properties->minor = options().capability % 10;
    properties->multiProcessorCount = options().multiprocessors;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->warpSize = WARP;
    properties->maxThreadsPerBlock = MAX_THREADS;
    properties->l2CacheSize = 50 << 20;
    properties->regsPerBlock = 65536;
    properties->totalGlobalMem = device_space();
    properties->sharedMemPerBlock = DEFAULT_DYNAMIC_SHARED;
    properties->sharedMemPerBlockOptin = (size_t)options().shared_limit;
    properties->sharedMemPerMultiprocessor = (size_t)options().shared_limit + 1024;
    return cudaSuccess;
}

/* They are on no bus; the number stands for the place. */
cudaError_t cudaDeviceGetPCIBusId(char *out, int capacity, int device) {
    if (device < 0 || device >= options().devices) return set_error(cudaErrorInvalidDevice);
    snprintf(out, (size_t)capacity, "0000:%02X:00.0", device);
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = 12000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    default: return set_error(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
