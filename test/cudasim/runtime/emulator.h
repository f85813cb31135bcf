/* What the emulator's parts share. Kernels never see this header.

       options.cc    the CUDASIM variable            stream.cc   streams, events, queued operations
       fiber.cc      one stack per CUDA thread       graph.cc    capture and replay
       scheduler.cc  who runs next, deadlocks        device.cc   launch limits, device properties
       block.cc      blocks and shared memory        race.cc     races, bounds, unwritten memory
       meet.cc       barriers, warp operations       tsan.cc     the compiler's calls into race.cc
       memory.cc     device memory and copies        tensor.cc   cp.async, ldmatrix, mma.sync
       report.cc     errors, source lines, signals   hopper.cc   mbarrier, clusters, TMA
                                                     wgmma.cc    wgmma, setmaxnreg

   Everything runs on the thread that makes the first CUDA call; a second thread is an error. */
#ifndef CUDASIM_EMULATOR_H
#define CUDASIM_EMULATOR_H

#include "../device/language.h"
#include "../device/runtime_api.h"
#include "../device/warp.h"
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define CUDASIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDASIM_ASAN 1
#endif
#endif
#ifdef CUDASIM_ASAN
#include <sanitizer/asan_interface.h>
#endif
#ifndef __x86_64__
#define CUDASIM_UCONTEXT 1 /* switch stacks by swapcontext: anywhere, but slower */
#endif
#ifdef CUDASIM_UCONTEXT
#include <ucontext.h>
#endif

namespace cudasim {

/* ---- options.cc ---- */

enum Order { ASCENDING, DESCENDING, RANDOM };

struct Options {
    int order;          /* which ready thread runs next, and which block */
    int seed;           /* of every random choice */
    int resident;       /* blocks in flight at once */
    int streams_random; /* queue stream operations and run them in random legal order; 2, 3: the
                           stream that was made first, or last, goes on whenever it can */
    int copies_late;    /* cp.async copies at wait_group, not at issue */
    int protect;        /* device memory is unreadable while host code runs */
    int shared_limit;   /* bytes of shared memory a block may opt in to */
    int timeout;        /* seconds of processor time for one kernel */
    int devices;        /* what cudaGetDeviceCount says */
    int multiprocessors;
    int capability;     /* 80, 90 */
};
const Options &options();
unsigned random_number();

/* ---- fibers and blocks ---- */

struct Block;
enum class State { READY, AT_BARRIER, IN_OPERATION, ON_CONDITION, DONE };

/* What a waiting thread waits for: the deadlock report groups by it. */
struct Wait {
    const char *what, *file;
    int line;
    unsigned mask; /* lanes of a warp operation; id of a barrier */
};

/* A cp.async that was issued and not yet waited for. */
struct PendingCopy {
    char *out;
    const char *in;
    int bytes, in_bytes, group;
    uintptr_t pc;
};

struct Fiber {
    void *stack_pointer;
    char *stack;
    void *fake_stack; /* AddressSanitizer's, kept over a switch */
    Block *block;
    uint3 thread;
    unsigned index, lane, warp;
    State state;
    Wait wait;
    int barrier_result; /* kept here: a faster thread may already have begun the next round */
    bool in_kernel_code;
    std::vector<PendingCopy> copies;
    int copy_group, store_group; /* of cp.async, of TMA stores */
    bool cluster_arrived;        /* ... and not yet waited */
    unsigned cluster_phase;
    const void *waits_for; /* an mbarrier */
    const std::function<bool()> *condition;
#ifdef CUDASIM_UCONTEXT
    ucontext_t context;
#endif
};

struct Barrier {
    int arrived, expected, combined;
    BarrierResult result;
    const char *file;
    int line;
};

enum { WARP = 32, WARPGROUP = 128, MAX_THREADS = 1024, NUM_BARRIERS = 16 };

/* Called once, by the last lane to arrive, with every lane's payload. */
typedef void (*WarpFunction)(void **payload, unsigned lanes);
struct WarpOperation {
    unsigned mask, arrived;
    const char *what, *file;
    int line;
    WarpFunction function;
    void *payload[WARP];
};

typedef void (*GroupFunction)(void **payload);
struct GroupOperation {
    unsigned arrived;
    const char *what;
    GroupFunction function;
    void *payload[WARPGROUP];
};

struct SharedRange {
    SharedVariable *variable;
    char *address;
    size_t bytes;
    const char *name;
};

/* Blocks that run together; one block where the launch asks for none. The memory of a block that
   has exited is kept until all have, so that nothing else can be found there. */
struct Cluster {
    std::vector<Block *> blocks; /* by rank; null: has exited */
    std::vector<int> slots;      /* of those */
    unsigned arrived, phase;     /* of cluster_arrive and _wait */
};

/* A block in flight. Its shared memory is a window of virtual memory: dynamic memory at its start,
   then the static variables in the order of first use, with unreadable gaps between. */
struct Block {
    dim3 position;
    unsigned linear, threads, live;
    uint64_t serial;
    int slot; /* which window; also indexes the race checker's state */
    char *window;
    size_t used, dynamic_bytes, static_bytes;
    std::vector<SharedRange> variables;
    Fiber *fiber[MAX_THREADS];
    Barrier barrier[NUM_BARRIERS];
    std::vector<WarpOperation> operations[MAX_THREADS / WARP];
    GroupOperation group[MAX_THREADS / WARPGROUP];
    int registers[MAX_THREADS / WARPGROUP]; /* by setmaxnreg; 0: as launched */
    Cluster *cluster;
    unsigned rank; /* in it */
    unsigned live_lanes[MAX_THREADS / WARP]; /* of a warp: the lanes that have not exited */
};

/* The kernel that runs, or ran last. */
struct Launch {
    const char *name, *file;
    int line;
    LaunchConfig config;
    const std::function<void()> *body;
};
extern Launch launch;
extern Fiber *current; /* null while host code or the scheduler runs */

/* ---- fiber.cc ---- */

Fiber *new_fiber();
void switch_fiber(Fiber *to); /* null: back to the scheduler */
void thread_main();           /* scheduler.cc: what every fiber runs */
bool on_stack(const Fiber *fiber, const void *address);
bool on_guard_page(const Fiber *fiber, const void *address);
size_t stack_bytes();

/* ---- scheduler.cc ---- */

void run_grid(const Launch &what);
void make_ready(Fiber *fiber);
void park();                  /* the caller has set its state and wait; returns when made ready */
void fuzz();                  /* random order: sometimes lets others run first */
/* Waits until condition() holds; does asynchronous work (TMA) while nothing else can run. */
void wait_until(const std::function<bool()> &condition, const char *what, const char *file,
                int line);
void wake_conditions();
struct AsyncEngine {
    bool (*pending)(const Block *block);
    void (*step)(); /* carries out some of the running block's work, as a waiting thread of it */
};
extern AsyncEngine async_engine;
const std::vector<Block *> &resident_blocks();
unsigned blocks_not_started();

/* ---- block.cc ---- */

enum : size_t { WINDOW = (size_t)1 << 20, MAX_WINDOWS = 256 };
Block *start_block(unsigned linear, Cluster *cluster);
void finish_block(Block *block);
bool in_window(const Block *block, const void *address);

/* ---- meet.cc ---- */

void warp_operation(unsigned mask, const char *what, void *payload, WarpFunction function,
                    const char *file, int line);
/* For instructions with .aligned: all 32 lanes, or it is an error. */
void full_warp_operation(const char *what, void *payload, WarpFunction function, const char *file,
                         int line);
void warpgroup_operation(const char *what, void *payload, GroupFunction function, const char *file,
                         int line);
void meet_without(Fiber *exited); /* a thread has exited: those who wait for it may go on */

/* ---- tensor.cc ---- */

void finish_copies(int groups_left); /* cp.async.wait_group */

/* ---- hopper.cc and wgmma.cc ---- */

void cluster_without(Fiber *exited);
void finish_stores();                                         /* a thread's, as it exits */
void check_no_loads(const Block *block);                      /* at a block's exit */
void check_no_products(const Block *block, unsigned thread);  /* at a thread's */
std::string describe_mbarrier(const void *address);

/* ---- memory.cc ---- */

/* One reserved range: the shared windows, then device memory. In the race build the shadow follows
   its layout. */
char *memory_base();
enum : size_t { SHARED_SPACE = WINDOW * MAX_WINDOWS };
size_t device_space();
bool is_device(const void *address);
bool is_pinned(const void *address, size_t bytes);
void require_device(const void *address, size_t bytes, const char *what);
void protect_device(bool on); /* no effect without the option */
std::string describe(const void *address);

#ifdef CUDASIM_ASAN
#define CUDASIM_POISON(address, bytes) ASAN_POISON_MEMORY_REGION(address, bytes)
#define CUDASIM_UNPOISON(address, bytes) ASAN_UNPOISON_MEMORY_REGION(address, bytes)
#else
#define CUDASIM_POISON(address, bytes) ((void)0)
#define CUDASIM_UNPOISON(address, bytes) ((void)0)
#endif

/* Accesses that the emulator makes on the running thread's behalf: bounds, initialisation, races.
   pc: the place in the kernel that a report names. */
void check_read(const void *address, size_t bytes, uintptr_t pc);
void check_write(const void *address, size_t bytes, uintptr_t pc);
/* A write that will come later, by cp.async or TMA: until then the bytes hold nothing. */
void check_late_write(void *address, size_t bytes, uintptr_t pc);
/* By TMA or wgmma, which do not see what ordinary accesses wrote before a fence. */
void check_async_read(const void *address, size_t bytes, uintptr_t pc);
void check_async_write(const void *address, size_t bytes, uintptr_t pc);
#define CUDASIM_CALLER ((uintptr_t)__builtin_return_address(0))

/* Accesses by copies and libraries, on the stream's behalf. */
void library_read(const void *address, size_t bytes, const char *what);
void library_wrote(const void *address, size_t bytes, const char *what);

/* ---- stream.cc and graph.cc ---- */

struct Operation {
    std::function<void()> run;    /* null for a bare event record or wait */
    std::function<void()> poison; /* at submission: makes the host's target unusable until it ran */
    cudaEvent_t record = nullptr, wait = nullptr;
    unsigned long wait_version = 0;
};
/* Enqueues, or adds to the graph being captured. */
cudaError_t submit(cudaStream_t stream, Operation operation);
/* Library calls (cuBLAS, NCCL) are stream operations like any other. */
cudaError_t enqueue_library(cudaStream_t stream, std::function<void()> run);
/* Time that has passed for events only, by what library calls claim to take. */
extern long simulated_seconds;
void drain_all();
/* Calls that wait or allocate are illegal while a capture goes on: returns the error and spoils the
   capture, or cudaSuccess. */
cudaError_t forbid_in_capture(bool allowed_if_relaxed);

/* ---- device.cc ---- */

cudaError_t set_error(cudaError_t error);
void require_one_thread();
bool is_other_thread(); /* one that must not call: host code of its own */

/* ---- report.cc ---- */

extern void (*at_failure)(); /* called once by fail(), if set: tells the other ranks */
void install_handlers();
void watch(bool on); /* the watchdog, around a kernel */
/* Where code at pc comes from: "file:line in function", innermost first, emulator frames left
   out. */
std::string source_of(uintptr_t pc);
uintptr_t module_offset(uintptr_t pc);   /* pc relative to this program or shared library */
uintptr_t module_address(uint32_t offset);
bool in_module(const void *address);     /* literals, __device__ and __constant__ variables */

} // namespace cudasim

/* ---- race.cc: empty functions in the other builds ---- */

#ifdef CUDASIM_RACE
#define CUDASIM_RACE_HOOK(declaration) declaration;
#else
#define CUDASIM_RACE_HOOK(declaration) inline declaration {}
#endif

namespace cudasim {
/* A volatile read may meet an atomic (the first look of a compare-and-swap loop), but not a plain
   write; a volatile write is a plain one. An exchange may be the first write. */
enum AccessKind : unsigned {
    READ = 1,
    WRITE = 2,
    UNORDERED = 4, /* does not conflict with another of its kind */
    VOLATILE_READ = READ | UNORDERED,
    EXCHANGE = WRITE | UNORDERED,
    ATOMIC = READ | WRITE | UNORDERED,
    ASYNC = 8, /* by TMA or wgmma, in shared memory */
    ASYNC_READ = READ | ASYNC,
    ASYNC_WRITE = WRITE | ASYNC
};
CUDASIM_RACE_HOOK(void race_access(const void *, size_t, AccessKind, uintptr_t))
CUDASIM_RACE_HOOK(void race_begin_launch())
CUDASIM_RACE_HOOK(void race_begin_block(const Block *))
CUDASIM_RACE_HOOK(void race_end_window(const char *, size_t))
CUDASIM_RACE_HOOK(void race_allocate(const void *, size_t, bool))
CUDASIM_RACE_HOOK(void race_free(const void *, size_t))
CUDASIM_RACE_HOOK(void race_forget(const void *, size_t))
CUDASIM_RACE_HOOK(void race_written(const void *, size_t))
CUDASIM_RACE_HOOK(void race_copied(const void *, const void *, size_t))
CUDASIM_RACE_HOOK(void race_library_read(const void *, size_t, const char *))
CUDASIM_RACE_HOOK(void race_arrive(int, unsigned, int))
CUDASIM_RACE_HOOK(void race_release_barrier(const Block *, int, int))
CUDASIM_RACE_HOOK(void race_leave(int, unsigned, int))
CUDASIM_RACE_HOOK(void race_warp_barrier(int, unsigned, unsigned))
CUDASIM_RACE_HOOK(void race_release(const void *, int, unsigned))
CUDASIM_RACE_HOOK(void race_acquire(const void *, int, unsigned))
CUDASIM_RACE_HOOK(void race_release_to(const void *, int, unsigned, int))
CUDASIM_RACE_HOOK(void race_acquire_cluster(const void *, int, unsigned))
CUDASIM_RACE_HOOK(void race_async_fence(int, unsigned))
CUDASIM_RACE_HOOK(void race_dependency_wait(int, unsigned))
CUDASIM_RACE_HOOK(void race_fence(int, unsigned))
} // namespace cudasim

#endif
