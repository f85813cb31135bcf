/* Communication over ranks by NCCL: one rank per GPU, sums in float32, on the compute stream and
   so in order with all else. With one rank every sum has one term: each operation is the identity,
   and the two with separate buffers copy.

   NCCL is the one library that may be missing, for a single process never asks for it. So neither
   its header nor the library is needed to build or to load this plug-in: what is used of its
   interface is declared here, weakly. Where the functions are linked in (the simulator's stand-in,
   test/cudasim/runtime/nccl.cc) they are called; elsewhere they are NULL, and the first one needed
   opens libnccl.so.2. Values and types are those of nccl.h since NCCL 2.0. */
#include "cuda_device.h"
#include <dlfcn.h>
#include <string.h>

/* ---- NCCL's interface ---------------------------------------------------------------------- */

typedef struct ncclComm *ncclComm_t;
typedef struct {
    char internal[128];
} ncclUniqueId;
enum { ncclSuccess = 0, ncclInvalidUsage = 5 };
enum { ncclInt8 = 0, ncclFloat32 = 7 };
enum { ncclSum = 0 };

#define WEAK __attribute__((weak))
extern "C" {
WEAK const char *ncclGetErrorString(int result);
WEAK int ncclGetUniqueId(ncclUniqueId *id);
WEAK int ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank);
WEAK int ncclAllReduce(const void *send, void *receive, size_t count, int type, int operation,
                       ncclComm_t comm, cudaStream_t stream);
WEAK int ncclReduceScatter(const void *send, void *receive, size_t receive_count, int type,
                           int operation, ncclComm_t comm, cudaStream_t stream);
WEAK int ncclAllGather(const void *send, void *receive, size_t send_count, int type,
                       ncclComm_t comm, cudaStream_t stream);
WEAK int ncclBroadcast(const void *send, void *receive, size_t count, int type, int root,
                       ncclComm_t comm, cudaStream_t stream);
}

/* The function called `name`: `linked`, or that of the library, which stays open. */
static void *nccl_find(void *linked, const char *name) {
    static void *library;
    if (linked) return linked;
    if (!library) library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library)
        cuda_die("several ranks need NCCL (%s); install the package libnccl2, or use one GPU",
                 dlerror());
    void *function = dlsym(library, name);
    if (!function) cuda_die("libnccl.so.2 has no %s: it is too old", name);
    return function;
}
#define NCCL_FIND(function) ((decltype(&function))nccl_find((void *)function, #function))

/* NCCL's own text says how to learn more. */
#define NCCL_CALL(function, ...)                                                          \
    do {                                                                                  \
        int error_ = NCCL_FIND(function)(__VA_ARGS__);                                    \
        if (error_ != ncclSuccess)                                                        \
            cuda_die("%s:%d: %s: %s%s", __FILE__, __LINE__, #function,                    \
                     NCCL_FIND(ncclGetErrorString)(error_),                               \
                     error_ == ncclInvalidUsage ? "; each rank needs a GPU of its own" : ""); \
    } while (0)

/* ---- the slots ----------------------------------------------------------------------------- */

static ncclComm_t world; /* NULL: one rank */
static cudaEvent_t reached;

static void comm_id(void *id, const char *meeting) {
    ncclUniqueId made;
    (void)meeting;
    NCCL_CALL(ncclGetUniqueId, &made);
    memcpy(id, &made, sizeof made);
}

static void comm_open(int rank, int ranks, const void *id, double patience) {
    ncclUniqueId given;
    (void)patience;
    if (ranks == 1) return;
    memcpy(&given, id, sizeof given);
    CUDA_CHECK(cudaStreamCreateWithFlags(&cuda.comm_stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaEventCreateWithFlags(&reached, cudaEventDisableTiming));
    NCCL_CALL(ncclCommInitRank, &world, ranks, given, rank);
}

static void comm_expect(int64_t step, double patience) { (void)step, (void)patience; }
static void comm_counts(struct CommCounts *counts) { memset(counts, 0, sizeof *counts); }

static void copy_unless_there(void *out, const void *in, size_t bytes) {
    if (out == in) return;
    CUDA_CHECK(cudaMemcpyAsync(out, in, bytes, cudaMemcpyDeviceToDevice, cuda.stream));
}

/* The communication stream goes on when event `after` is there. */
static void begin(int after) {
    if (after < 0) {
        CUDA_CHECK(cudaEventRecord(reached, cuda.stream));
        CUDA_CHECK(cudaStreamWaitEvent(cuda.comm_stream, reached, 0));
    } else {
        CUDA_CHECK(cudaStreamWaitEvent(cuda.comm_stream, cuda_event(after), 0));
    }
}

static void end(int done) {
    cudaEvent_t event = done < 0 ? reached : cuda_event(done);
    CUDA_CHECK(cudaEventRecord(event, cuda.comm_stream));
    if (done < 0) CUDA_CHECK(cudaStreamWaitEvent(cuda.stream, event, 0));
}

static void all_reduce(float *x, size_t n, int after, int done) {
    if (!world) return;
    begin(after);
    NCCL_CALL(ncclAllReduce, x, x, n, ncclFloat32, ncclSum, world, cuda.comm_stream);
    end(done);
}

static void reduce_scatter(float *out, const float *in, size_t each, void *narrow, int after,
                           int done) {
    (void)narrow;
    if (!world) {
        copy_unless_there(out, in, each * sizeof *out);
        return;
    }
    begin(after);
    NCCL_CALL(ncclReduceScatter, in, out, each, ncclFloat32, ncclSum, world, cuda.comm_stream);
    end(done);
}

static void all_gather(void *out, const void *in, size_t bytes_each, int after, int done) {
    if (!world) {
        copy_unless_there(out, in, bytes_each);
        return;
    }
    begin(after);
    NCCL_CALL(ncclAllGather, in, out, bytes_each, ncclInt8, world, cuda.comm_stream);
    end(done);
}

static void broadcast(void *x, size_t bytes, int root, int after, int done) {
    if (!world) return;
    begin(after);
    NCCL_CALL(ncclBroadcast, x, x, bytes, ncclInt8, root, world, cuda.comm_stream);
    end(done);
}

static void fill(struct Ops *ops) {
    ops->comm_id = comm_id;
    ops->comm_open = comm_open;
    ops->comm_expect = comm_expect;
    ops->comm_counts = comm_counts;
    ops->all_reduce = all_reduce;
    ops->reduce_scatter = reduce_scatter;
    ops->all_gather = all_gather;
    ops->broadcast = broadcast;
}

extern const struct KernelFile cuda_comm = {"comm", fill, no_workspace};
