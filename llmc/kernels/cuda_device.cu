/* The CUDA device: opening it, its memory, the order of its work, recorded sequences. Compiled
   once, for all element types; the plug-in's entry is at the end. */
#include "cuda_device.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct CudaDevice cuda;
static struct BackendHost host;

/* ---- errors ---------------------------------------------------------------------------------- */

void cuda_die(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    host.die("%s", text);
    __builtin_unreachable(); /* the host's die ends the process */
}

/* What a person can do about an error that has a usual cause. */
static const char *hint_for(cudaError_t error) {
    switch (error) {
    case cudaErrorMemoryAllocation:
        return "; use fewer --micro-tokens or --decode-rows, --recompute, or a smaller --model";
    case cudaErrorNoKernelImageForDevice:
        return "; the plug-in was built for another GPU: rebuild it here with `make clean cuda`";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
        return "; an error of an earlier kernel: `compute-sanitizer ./train ...` names it";
    default: return "";
    }
}

void cuda_fail(const char *file, int line, const char *what, cudaError_t error) {
    cuda_die("%s:%d: %s: %s (%s)%s", file, line, what, cudaGetErrorString(error),
             cudaGetErrorName(error), hint_for(error));
}

/* Between graph_begin and graph_end nothing may wait or touch memory from the host: it would be
   done when the sequence is recorded and not when it is replayed. Looked at on the first run of a
   sequence too, when nothing is recorded yet. */
static bool in_sequence;
static void forbid_in_sequence(const char *slot) {
    if (in_sequence) cuda_die("%s was called between graph_begin and graph_end", slot);
}

/* ---- memory ---------------------------------------------------------------------------------- */

static size_t total_memory; /* of the device, bytes */

/* The size is compared with the device's memory before the driver is asked, so that the message
   for an absurd size has numbers too. */
static void *device_alloc(size_t bytes) {
    void *memory = NULL;
    forbid_in_sequence("alloc");
    cudaError_t error = bytes > total_memory ? cudaErrorMemoryAllocation
                                             : cudaMalloc(&memory, bytes ? bytes : 1);
    if (error == cudaSuccess) return memory;
    if (error != cudaErrorMemoryAllocation) cuda_fail(__FILE__, __LINE__, "cudaMalloc", error);
    size_t available = total_memory, total;
    if (bytes <= total_memory) cudaMemGetInfo(&available, &total);
    cuda_die("out of memory: %.1f MB asked for, %.1f of %.1f MB are free on %s%s",
             (double)bytes / 1e6, (double)available / 1e6, (double)total_memory / 1e6, cuda.name,
             hint_for(error));
}

/* Waits for all that is enqueued, on both streams. */
static void sync_streams(void) {
    CUDA_CHECK(cudaStreamSynchronize(cuda.stream));
    if (cuda.comm_stream) CUDA_CHECK(cudaStreamSynchronize(cuda.comm_stream));
}

static void device_free(void *memory) {
    forbid_in_sequence("free");
    sync_streams(); /* what is enqueued may still use it */
    CUDA_CHECK(cudaFree(memory));
}

static size_t memory_available(void) {
    size_t available, total;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    return available;
}

/* Uploads are copied into one of two halves of pinned memory first. So the caller may change its
   own memory at once, and the host waits only when a half is full and the device has not yet read
   the other. */
enum { HALF = 4 << 20, BOUNCE = 1 << 20 };
static struct {
    char *half[2], *bounce; /* bounce: where small downloads land */
    cudaEvent_t read[2];    /* the half was copied to the device */
    int now;
    size_t used;            /* bytes of half[now] */
} staging;

static void device_upload(void *out, const void *in, size_t bytes) {
    forbid_in_sequence("upload");
    for (size_t done = 0; done < bytes;) {
        if (staging.used == HALF) {
            CUDA_CHECK(cudaEventRecord(staging.read[staging.now], cuda.stream));
            staging.now = !staging.now;
            CUDA_CHECK(cudaEventSynchronize(staging.read[staging.now]));
            staging.used = 0;
        }
        size_t room = HALF - staging.used, part = bytes - done < room ? bytes - done : room;
        char *from = staging.half[staging.now] + staging.used;
        memcpy(from, (const char *)in + done, part);
        CUDA_CHECK(cudaMemcpyAsync((char *)out + done, from, part, cudaMemcpyHostToDevice,
                                   cuda.stream));
        done += part;
        staging.used = (staging.used + part + 15) / 16 * 16;
    }
}

static void device_download(void *out, const void *in, size_t bytes) {
    void *to = bytes <= BOUNCE ? staging.bounce : out;
    forbid_in_sequence("download");
    CUDA_CHECK(cudaMemcpyAsync(to, in, bytes, cudaMemcpyDeviceToHost, cuda.stream));
    CUDA_CHECK(cudaStreamSynchronize(cuda.stream));
    if (to != out) memcpy(out, to, bytes);
}

/* Downloads that do not wait: pinned memory, and the event behind the copy. */
static struct {
    void *data;
    size_t room;
    cudaEvent_t done;
} fetches[2];

static void device_fetch(int number, const void *in, size_t bytes) {
    enum { LEAST = 1 << 16 };
    forbid_in_sequence("fetch");
    if (!fetches[number].done)
        CUDA_CHECK(cudaEventCreateWithFlags(&fetches[number].done, cudaEventDisableTiming));
    if (bytes > fetches[number].room) {
        CUDA_CHECK(cudaEventSynchronize(fetches[number].done));
        CUDA_CHECK(cudaFreeHost(fetches[number].data));
        fetches[number].room = bytes > LEAST ? bytes : (size_t)LEAST;
        CUDA_CHECK(cudaMallocHost(&fetches[number].data, fetches[number].room));
    }
    CUDA_CHECK(cudaMemcpyAsync(fetches[number].data, in, bytes, cudaMemcpyDeviceToHost,
                               cuda.stream));
    CUDA_CHECK(cudaEventRecord(fetches[number].done, cuda.stream));
}

static const void *device_fetched(int number) {
    forbid_in_sequence("fetched");
    CUDA_CHECK(cudaEventSynchronize(fetches[number].done));
    return fetches[number].data;
}

static void device_copy(void *out, const void *in, size_t bytes) {
    CUDA_CHECK(cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToDevice, cuda.stream));
}

static void device_fill_zero(void *out, size_t bytes) {
    CUDA_CHECK(cudaMemsetAsync(out, 0, bytes, cuda.stream));
}

/* ---- order ----------------------------------------------------------------------------------- */

static cudaEvent_t events[EVENTS];

cudaEvent_t cuda_event(int event) {
    if (!events[event])
        CUDA_CHECK(cudaEventCreateWithFlags(&events[event], cudaEventDisableTiming));
    return events[event];
}

static void device_sync(void) {
    forbid_in_sequence("sync");
    sync_streams();
}

/* ---- recorded sequences ---------------------------------------------------------------------- */

enum { GRAPHS = 64, KEY = 64 };

/* A sequence by its key. The first time it only runs: whatever is loaded or chosen at first use is
   then not part of the recording. The second time it is recorded. */
static struct Graph {
    unsigned char key[KEY];
    size_t bytes;
    cudaGraphExec_t exec; /* NULL: seen once */
    long last_use;        /* 0: an empty place */
} graphs[GRAPHS];
static struct Graph *recorded; /* where the recording goes, while cuda.recording */
static long graph_uses;

/* The place of a key: its own, an empty one, or that of the sequence used longest ago. */
static struct Graph *graph_find(const void *key, size_t bytes) {
    struct Graph *oldest = &graphs[0];
    for (int i = 0; i < GRAPHS; i++) {
        struct Graph *g = &graphs[i];
        if (g->last_use && g->bytes == bytes && memcmp(g->key, key, bytes) == 0) return g;
        if (g->last_use < oldest->last_use) oldest = g;
    }
    return oldest;
}

static void graph_forget(struct Graph *g) {
    if (g->exec) CUDA_CHECK(cudaGraphExecDestroy(g->exec));
    memset(g, 0, sizeof *g);
}

void cuda_forget_sequences(void) {
    forbid_in_sequence("matmul_choices_load");
    for (int i = 0; i < GRAPHS; i++) graph_forget(&graphs[i]);
}

static bool graph_begin(const void *key, size_t bytes) {
    forbid_in_sequence("graph_begin");
    struct Graph *g = graph_find(key, bytes);
    bool known = g->last_use && g->bytes == bytes && memcmp(g->key, key, bytes) == 0;
    if (!known) {
        graph_forget(g);
        memcpy(g->key, key, bytes);
        g->bytes = bytes;
    }
    g->last_use = ++graph_uses;
    if (g->exec) {
        CUDA_CHECK(cudaGraphLaunch(g->exec, cuda.stream));
        return false;
    }
    if (known) {
        CUDA_CHECK(cudaStreamBeginCapture(cuda.stream, cudaStreamCaptureModeThreadLocal));
        cuda.recording = true;
        recorded = g;
    }
    in_sequence = true;
    return true;
}

static void graph_end(void) {
    in_sequence = false;
    if (!cuda.recording) return;
    cudaGraph_t graph;
    CUDA_CHECK(cudaStreamEndCapture(cuda.stream, &graph));
    cuda.recording = false;
    CUDA_CHECK(cudaGraphInstantiate(&recorded->exec, graph, 0));
    CUDA_CHECK(cudaGraphDestroy(graph));
    CUDA_CHECK(cudaGraphLaunch(recorded->exec, cuda.stream));
}

static void fill(struct Ops *ops) {
    ops->alloc = device_alloc;
    ops->free = device_free;
    ops->memory_available = memory_available;
    ops->upload = device_upload;
    ops->download = device_download;
    ops->fetch = device_fetch;
    ops->fetched = device_fetched;
    ops->copy = device_copy;
    ops->fill_zero = device_fill_zero;
    ops->sync = device_sync;
    ops->graph_begin = graph_begin;
    ops->graph_end = graph_end;
}

extern const struct KernelFile cuda_memory = {"memory", fill, no_workspace};

/* ---- the entry ------------------------------------------------------------------------------- */

/* NULL if there is a device that the kernels run on, else why not. */
static const char *check_device(int device) {
    static char why[256];
    int count = 0, major = 0, minor = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0) {
        snprintf(why, sizeof why, "no CUDA device here (%s)",
                 error == cudaSuccess ? "none found" : cudaGetErrorString(error));
        return why;
    }
    if (device >= count) {
        snprintf(why, sizeof why, "there is no device %d, only %d of them", device, count);
        return why;
    }
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    if (major >= 8) return NULL;
    snprintf(why, sizeof why, "the GPU has compute capability %d.%d; 8.0 (A100) or newer is needed",
             major, minor);
    return why;
}

static void open_device(int device) {
    struct cudaDeviceProp properties;
    CUDA_CHECK(cudaSetDevice(device));
    CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
    snprintf(cuda.name, sizeof cuda.name, "%.63s", properties.name);
    cuda.multiprocessors = properties.multiProcessorCount;
    cuda.shared_limit = (int)properties.sharedMemPerBlockOptin;
    total_memory = properties.totalGlobalMem;
    CUDA_CHECK(cudaStreamCreateWithFlags(&cuda.stream, cudaStreamNonBlocking));
    for (int i = 0; i < 2; i++) {
        CUDA_CHECK(cudaMallocHost((void **)&staging.half[i], HALF));
        CUDA_CHECK(cudaEventCreateWithFlags(&staging.read[i], cudaEventDisableTiming));
    }
    CUDA_CHECK(cudaMallocHost((void **)&staging.bounce, BOUNCE));
    CUBLAS_CHECK(cublasLtCreate(&cuda.lt));
    cuda.lt_workspace_bytes = (size_t)32 << 20; /* what NVIDIA recommends for Hopper */
    CUDA_CHECK(cudaMalloc(&cuda.lt_workspace, cuda.lt_workspace_bytes));
}

/* One row per element type; each is a compilation of the same files (cuda_backend.cu). Weak: a
   plug-in may be built without some. */
__attribute__((weak)) void cuda_fill_fp32(struct Ops *ops);
__attribute__((weak)) void cuda_fill_bf16(struct Ops *ops);
__attribute__((weak)) void cuda_fill_fp16(struct Ops *ops);
__attribute__((weak)) bool cuda_has_code_fp32(void);
__attribute__((weak)) bool cuda_has_code_bf16(void);
__attribute__((weak)) bool cuda_has_code_fp16(void);

extern "C" __attribute__((visibility("default"))) int backend_devices(void) {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

extern "C" __attribute__((visibility("default"))) const char *
backend_open(struct Ops *ops, size_t ops_size, const char *dtype, int device,
             const struct BackendHost *from) {
    if (ops_size != sizeof *ops) return "the plug-in was built from other sources; run make";
    static const struct {
        const char *dtype;
        void (*fill)(struct Ops *ops);
        bool (*has_code)(void);
    } types[] = {{"fp32", cuda_fill_fp32, cuda_has_code_fp32},
                 {"bf16", cuda_fill_bf16, cuda_has_code_bf16},
                 {"fp16", cuda_fill_fp16, cuda_has_code_fp16}};
    host = *from;
    const char *problem = check_device(device);
    if (problem) return problem;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (strcmp(types[i].dtype, dtype) != 0 || !types[i].fill) continue;
        open_device(device);
        if (!types[i].has_code()) return "the plug-in has no code for this GPU; make clean cuda";
        cuda.dtype = types[i].dtype;
        types[i].fill(ops);
        return NULL;
    }
    return "the plug-in was built without this dtype";
}
