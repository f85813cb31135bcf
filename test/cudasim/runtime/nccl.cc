/* NCCL as processes over shared memory. Each collective is signed with its number, kind, size, type
   and root: ranks that disagree are told so instead of hanging. Reductions are done by every rank
   in rank order, so the result is the same everywhere and in every run. */
#include "../include/nccl.h"
#include "../device/float16.h"
#include "emulator.h"
#include <atomic>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

namespace cudasim {

enum { MAX_RANKS = 16, PATIENCE = 60 /* seconds */ };
enum : size_t { SLOT_BYTES = (size_t)1 << 20 };
enum : uint32_t { WORLD_OPEN = 0x6f70656e, WORLD_BROKEN = 0x62726f6b };

/* What all ranks map. Data passes through the slots, a megabyte of each rank's at a time. */
struct World {
    std::atomic<uint32_t> state;
    std::atomic<int> creator, joined, arrived, generation;
    uint64_t signature[MAX_RANKS];
    alignas(64) char slot[MAX_RANKS][SLOT_BYTES];
};

enum Collective { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, REDUCE };

} // namespace cudasim

struct cudasim_nccl {
    cudasim::World *world;
    int ranks, rank;
    uint64_t calls;
    cudaStream_t last_stream; /* calls keep their order, also over several streams */
    cudaEvent_t last;
};

namespace cudasim {

static void wait_for(const std::function<bool()> &done, const char *what, int rank) {
    time_t start = time(nullptr);
    while (!done()) {
        sched_yield();
        if (time(nullptr) - start > PATIENCE) fail("NCCL rank %d: %s", rank, what);
    }
}

static void barrier(const cudasim_nccl *comm) {
    World *world = comm->world;
    int generation = world->generation.load();
    if (world->arrived.fetch_add(1) + 1 == comm->ranks) {
        world->arrived = 0;
        world->generation.fetch_add(1);
        return;
    }
    wait_for([=] { return world->generation != generation || world->state == WORLD_BROKEN; },
             "another rank did not call this collective", comm->rank);
    if (world->generation == generation) fail("NCCL rank %d: another rank failed", comm->rank);
}

static World *last_world;
static void break_world() { last_world->state = WORLD_BROKEN; }

/* ---- reductions ---- */

/* Narrow types add up in float. */
template <class T> struct Wide { typedef T type; };
template <> struct Wide<__nv_bfloat16> { typedef float type; };
template <> struct Wide<__half> { typedef float type; };

template <class A> static A reduce_pair(ncclRedOp_t op, A a, A b) {
    switch (op) {
    case ncclProd: return a * b;
    case ncclMax: return a > b ? a : b;
    case ncclMin: return a < b ? a : b;
    default: return a + b;
    }
}

template <class T>
static void reduce(const cudasim_nccl *comm, void *out, size_t count, ncclRedOp_t op) {
    typedef typename Wide<T>::type A;
    for (size_t i = 0; i < count; i++) {
        A value = (A)((T *)comm->world->slot[0])[i];
        for (int r = 1; r < comm->ranks; r++)
            value = reduce_pair<A>(op, value, (A)((T *)comm->world->slot[r])[i]);
        if (op == ncclAvg) value = value / (A)comm->ranks;
        ((T *)out)[i] = (T)value;
    }
}

static void reduce_any(const cudasim_nccl *comm, void *out, size_t count, ncclDataType_t type,
                       ncclRedOp_t op) {
    switch (type) {
    case ncclInt8: return reduce<signed char>(comm, out, count, op);
    case ncclUint8: return reduce<unsigned char>(comm, out, count, op);
    case ncclInt32: return reduce<int>(comm, out, count, op);
    case ncclUint32: return reduce<unsigned>(comm, out, count, op);
    case ncclInt64: return reduce<int64_t>(comm, out, count, op);
    case ncclUint64: return reduce<uint64_t>(comm, out, count, op);
    case ncclFloat16: return reduce<__half>(comm, out, count, op);
    case ncclFloat32: return reduce<float>(comm, out, count, op);
    case ncclFloat64: return reduce<double>(comm, out, count, op);
    case ncclBfloat16: return reduce<__nv_bfloat16>(comm, out, count, op);
    }
}

static size_t size_of(ncclDataType_t type) {
    switch (type) {
    case ncclInt8:
    case ncclUint8: return 1;
    case ncclFloat16:
    case ncclBfloat16: return 2;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64: return 8;
    default: return 4;
    }
}

/* ---- one collective ---- */

struct Call {
    Collective kind;
    const char *send;
    char *receive;
    size_t count; /* as the caller gave it: per rank for reduce_scatter and all_gather */
    ncclDataType_t type;
    ncclRedOp_t op;
    int root;
};

static void check_signatures(cudasim_nccl *comm, const Call &call) {
    uint64_t fields[] = {comm->calls++,       (uint64_t)call.kind, call.count,
                         (uint64_t)call.type, (uint64_t)call.op,   (uint64_t)call.root};
    uint64_t hash = 1469598103934665603ull; /* FNV-1a */
    for (uint64_t field : fields) hash = (hash ^ field) * 1099511628211ull;
    comm->world->signature[comm->rank] = hash;
    barrier(comm);
    for (int r = 0; r < comm->ranks; r++)
        if (comm->world->signature[r] != hash)
            fail("NCCL mismatch: ranks %d and %d called different collectives (kind, count, type, "
                 "operation or root) as call %llu",
                 comm->rank, r, (unsigned long long)comm->calls);
}

/* One chunk: elements [begin, begin + count) of part `part` (a rank's share of a
   reduce_scatter). */
static void move_chunk(const cudasim_nccl *comm, const Call &c, size_t part, size_t begin,
                       size_t count, bool gives) {
    size_t size = size_of(c.type);
    char *out = c.receive + begin * size;
    bool root = comm->rank == c.root;
    if (gives)
        memcpy(comm->world->slot[comm->rank], c.send + (part * c.count + begin) * size,
               count * size);
    barrier(comm);
    switch (c.kind) {
    case ALL_REDUCE: reduce_any(comm, out, count, c.type, c.op); break;
    case REDUCE:
        if (root) reduce_any(comm, out, count, c.type, c.op);
        break;
    case REDUCE_SCATTER:
        if ((int)part == comm->rank) reduce_any(comm, out, count, c.type, c.op);
        break;
    case BROADCAST: memcpy(out, comm->world->slot[c.root], count * size); break;
    case ALL_GATHER:
        for (int r = 0; r < comm->ranks; r++)
            memcpy(out + (size_t)r * c.count * size, comm->world->slot[r], count * size);
        break;
    }
    barrier(comm);
}

/* In place is allowed where a rank's own share lies, and nothing else may overlap. */
static void check_in_place(const cudasim_nccl *comm, const Call &c, size_t sent, size_t received) {
    if (c.send >= c.receive + received || c.receive >= c.send + sent) return;
    size_t share = c.count * size_of(c.type) * (size_t)comm->rank;
    const char *send = c.kind == REDUCE_SCATTER ? c.send + share : c.send;
    const char *receive = c.kind == ALL_GATHER ? c.receive + share : c.receive;
    if (send != receive) fail("NCCL rank %d: send and receive buffers overlap", comm->rank);
}

static void run_call(cudasim_nccl *comm, const Call &c) {
    size_t size = size_of(c.type), ranks = (size_t)comm->ranks;
    size_t sent = c.kind == REDUCE_SCATTER ? c.count * ranks : c.count;
    size_t received = c.kind == ALL_GATHER ? c.count * ranks : c.count;
    bool gives = c.kind != BROADCAST || comm->rank == c.root;
    bool takes = c.kind != REDUCE || comm->rank == c.root;
    if (gives) library_read(c.send, sent * size, "NCCL send buffer");
    if (takes) require_device(c.receive, received * size, "NCCL receive buffer");
    if (gives && takes) check_in_place(comm, c, sent * size, received * size);
    check_signatures(comm, c);
    size_t parts = c.kind == REDUCE_SCATTER ? ranks : 1, chunk = SLOT_BYTES / size;
    for (size_t part = 0; part < parts; part++)
        for (size_t begin = 0; begin < c.count; begin += chunk)
            move_chunk(comm, c, part, begin, c.count - begin < chunk ? c.count - begin : chunk,
                       gives);
    if (takes) library_wrote(c.receive, received * size, "NCCL receive buffer");
}

static ncclResult_t enqueue_call(ncclComm_t comm, const Call &call, cudaStream_t stream) {
    if (call.root < 0 || call.root >= comm->ranks) return ncclInvalidArgument;
    if (comm->last_stream != stream) cudaStreamWaitEvent(stream, comm->last);
    comm->last_stream = stream;
    cudaError_t error = enqueue_library(stream, [=] { run_call(comm, call); });
    cudaEventRecord(comm->last, stream);
    return error ? ncclUnhandledCudaError : ncclSuccess;
}

/* ---- meeting ---- */

static World *map_world(int file) {
    void *memory = mmap(nullptr, sizeof(World), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return memory == MAP_FAILED ? nullptr : (World *)memory;
}

/* Rank 0 makes the world anew, whatever an earlier run that crashed has left under its name. */
static World *create_world(const char *name) {
    shm_unlink(name);
    int file = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (file < 0) return nullptr;
    if (ftruncate(file, sizeof(World)) != 0) {
        close(file);
        return nullptr;
    }
    World *world = map_world(file);
    if (!world) return nullptr;
    world->creator = (int)getpid();
    world->state = WORLD_OPEN;
    return world;
}

/* The others wait for a world whose creator lives. */
static World *join_world(const char *name) {
    int file = shm_open(name, O_RDWR, 0600);
    if (file < 0) return nullptr;
    if (lseek(file, 0, SEEK_END) < (off_t)sizeof(World)) {
        close(file);
        return nullptr;
    }
    World *world = map_world(file);
    if (!world) return nullptr;
    if (world->state == WORLD_OPEN && kill(world->creator, 0) == 0) return world;
    munmap(world, sizeof(World));
    return nullptr;
}

} // namespace cudasim

using namespace cudasim;

const char *ncclGetErrorString(ncclResult_t result) {
    switch (result) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error";
    case ncclSystemError: return "unhandled system error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    default: return "internal error";
    }
}
const char *ncclGetLastError(ncclComm_t) { return ""; }

ncclResult_t ncclGetVersion(int *version) {
    *version = 22800;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memset(id, 0, sizeof *id);
    const char *meeting = getenv("NCCL_COMM_ID");
    if (meeting) {
        snprintf(id->internal, 100, "/cudasim.%s", meeting);
    } else {
        static int count;
        snprintf(id->internal, 100, "/cudasim.%d.%ld.%d", (int)getpid(), (long)time(nullptr),
                 count++);
    }
    for (char *c = id->internal + 1; *c; c++)
        if (*c == '/') *c = '_';
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    if (ranks < 1 || ranks > MAX_RANKS || rank < 0 || rank >= ranks) return ncclInvalidArgument;
    World *world = nullptr;
    if (rank == 0) world = create_world(id.internal);
    else wait_for([&] { return (world = join_world(id.internal)) != nullptr; },
                  "rank 0 does not come", rank);
    if (!world) return ncclSystemError;
    cudasim_nccl *made = new cudasim_nccl{world, ranks, rank, 0, nullptr, nullptr};
    cudaEventCreateWithFlags(&made->last, cudaEventDisableTiming);
    world->joined++;
    wait_for([=] { return world->joined.load() >= ranks; }, "some rank does not come", rank);
    last_world = world;
    at_failure = break_world; /* so that the other ranks end at once, not after PATIENCE seconds */
    barrier(made);
    if (rank == 0) shm_unlink(id.internal);
    *comm = made;
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    cudaEventDestroy(comm->last); /* waits for what is queued */
    if (comm->world == last_world) at_failure = nullptr;
    munmap(comm->world, sizeof(World));
    delete comm;
    return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t) { return ncclSuccess; }
ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclCommDestroy(comm); }

ncclResult_t ncclCommCount(ncclComm_t comm, int *ranks) {
    *ranks = comm->ranks;
    return ncclSuccess;
}
ncclResult_t ncclCommUserRank(ncclComm_t comm, int *rank) {
    *rank = comm->rank;
    return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *error) {
    *error = ncclSuccess;
    return ncclSuccess;
}

static Call make_call(Collective kind, const void *send, void *receive, size_t count,
                      ncclDataType_t type, ncclRedOp_t op, int root) {
    return Call{kind, (const char *)send, (char *)receive, count, type, op, root};
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type,
                           ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    return enqueue_call(comm, make_call(ALL_REDUCE, send, receive, count, type, op, 0), stream);
}
ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream) {
    return enqueue_call(comm, make_call(REDUCE_SCATTER, send, receive, count, type, op, 0), stream);
}
ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
    return enqueue_call(comm, make_call(ALL_GATHER, send, receive, count, type, ncclSum, 0),
                        stream);
}
ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
    return enqueue_call(comm, make_call(BROADCAST, send, receive, count, type, ncclSum, root),
                        stream);
}
ncclResult_t ncclReduce(const void *send, void *receive, size_t count, ncclDataType_t type,
                        ncclRedOp_t op, int root, ncclComm_t comm, cudaStream_t stream) {
    return enqueue_call(comm, make_call(REDUCE, send, receive, count, type, op, root), stream);
}
ncclResult_t ncclGroupStart() { return ncclSuccess; }
ncclResult_t ncclGroupEnd() { return ncclSuccess; }
