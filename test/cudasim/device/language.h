/* The CUDA language for an ordinary C++ compiler: qualifiers, vector types, built-in variables and
   kernel launches. `__shared__` and `<<<...>>>` are rewritten before by cu2cpp. */
#ifndef CUDASIM_LANGUAGE_H
#define CUDASIM_LANGUAGE_H

#ifdef __CUDACC__
#error "the emulator's headers must not be seen by nvcc"
#endif

#include <cfloat>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <math.h>
#include <tuple>
#include <utility>

#define CUDASIM 1
#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 13
#define CUDART_VERSION 13000

/* Kernel arguments are forwarded through `auto`: a literal NULL must stay a pointer. */
#undef NULL
#define NULL nullptr

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

/* Emulation code that sits in a header: the race checker must not take it for the kernel's. */
#define CUDASIM_UNCHECKED __attribute__((no_sanitize("thread"), noinline))
/* Default arguments that carry the caller's place in the source. */
#define CUDASIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

#define CUDASIM_VECTORS(element, name, alignment2, alignment4)                                   \
    struct alignas(alignment2) name##2 { element x, y; };                                         \
    struct name##3 { element x, y, z; };                                                          \
    struct alignas(alignment4) name##4 { element x, y, z, w; };                                   \
    inline name##2 make_##name##2(element x, element y) { return name##2{x, y}; }                 \
    inline name##3 make_##name##3(element x, element y, element z) { return name##3{x, y, z}; }   \
    inline name##4 make_##name##4(element x, element y, element z, element w) {                   \
        return name##4{x, y, z, w};                                                               \
    }

CUDASIM_VECTORS(signed char, char, 2, 4)
CUDASIM_VECTORS(unsigned char, uchar, 2, 4)
CUDASIM_VECTORS(short, short, 4, 8)
CUDASIM_VECTORS(unsigned short, ushort, 4, 8)
CUDASIM_VECTORS(int, int, 8, 16)
CUDASIM_VECTORS(unsigned, uint, 8, 16)
CUDASIM_VECTORS(float, float, 8, 16)
CUDASIM_VECTORS(double, double, 16, 16)
CUDASIM_VECTORS(long long, longlong, 16, 16)
CUDASIM_VECTORS(unsigned long long, ulonglong, 16, 16)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    operator uint3() const { return uint3{x, y, z}; }
};

/* Plain globals, rewritten by the scheduler at every switch of threads. Not const: the compiler has
   to read them again after each barrier or warp operation. */
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

typedef struct cudasim_stream *cudaStream_t;

namespace cudasim {

/* Prints one line, where in the kernel it happened and a backtrace; ends the process (exit 86). */
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The place of one `__shared__` variable: a cache of its address in the block that ran last. */
struct SharedVariable {
    uint64_t block_serial;
    void *address;
};
void *shared_variable(SharedVariable &variable, size_t bytes, size_t alignment, const char *name);
void *dynamic_shared(size_t alignment);
char *shared_window();   /* address 0 of the running block's shared memory */

unsigned lane_index();
unsigned thread_index(); /* linear index in the block */

/* ---- launches ---- */

struct LaunchConfig {
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
    dim3 cluster;
    bool programmatic; /* may begin before the launch before it has ended */
};

inline LaunchConfig config(dim3 grid, dim3 block, size_t shared_bytes = 0,
                           cudaStream_t stream = 0) {
    return LaunchConfig{grid, block, shared_bytes, stream, dim3(), false};
}

/* Checks the launch limits, then hands `thread_body` (what one thread runs) to the stream. */
void enqueue_launch(const char *name, const char *file, int line, const LaunchConfig &config,
                    std::function<void()> thread_body);

/* The kernel's own code runs between enter_kernel() and leave_kernel(): only there are accesses
   outside device memory an error. */
void enter_kernel();
void leave_kernel();

template <class Call, class Arguments, size_t... I>
CUDASIM_UNCHECKED void call_kernel(const Call &call, const Arguments &arguments,
                                   std::index_sequence<I...>) {
    /* On this thread's stack, as neither what was captured nor the arguments are device memory. */
    Call own = call;
    Arguments given = arguments;
    (void)given; /* a kernel may have none */
    enter_kernel();
    own(std::get<I>(given)...);
    leave_kernel();
}

/* Arguments are evaluated and copied once, at the launch, as on the device. */
template <class Call> struct Launcher {
    Call call;
    const char *name, *file;
    int line;
    LaunchConfig launch_config;

    template <class... Arguments> void operator()(Arguments... arguments) const {
        Call own = call;
        std::tuple<Arguments...> saved(arguments...);
        enqueue_launch(name, file, line, launch_config, [own, saved]() {
            call_kernel(own, saved, std::index_sequence_for<Arguments...>());
        });
    }
};

template <class Call>
Launcher<Call> launcher(const char *file, int line, const char *name, LaunchConfig config,
                        Call call) {
    return Launcher<Call>{call, name, file, line, config};
}

} // namespace cudasim

#endif
