/* Planted mistakes of host code, and of kernels that no single block shows. */
#include <vector>
#include "../../../llmc/kernels/ptx.cuh"
#include "../kernels/kernels.h"
#include "selftest.h"
#include <pthread.h>

enum { N = 1000 };

__global__ void fill_with(float *x, int n, float value) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = value;
}

__global__ void copy_to(float *out, const float *x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i];
}

static void expect_all(const float *host, float value) {
    for (int i = 0; i < N; i++) expect(host[i] == value, "values that came back");
}

/* ---- pointers and copies ---- */

static void test_pointers() {
    float *a = new_device<float>(N), *host;
    cudaMallocHost(&host, N * sizeof(float));
    fill_with<<<4, 256>>>(a, N, 3);
    cudaDeviceSynchronize();
    size_t bytes = N * sizeof(float);
    if (BUG(1)) expect(((volatile float *)a)[5] == 3, "BUG 1: host reads device memory");
    if (BUG(2)) cudaMemcpy(host, a, bytes, cudaMemcpyHostToDevice);     /* wrong direction */
    if (BUG(3)) cudaMemcpy(host, a, bytes + 4, cudaMemcpyDeviceToHost); /* one element too much */
    std::vector<float> own(N, 1); /* not pinned: no device sees it */
    if (BUG(4)) copy_to<<<4, 256>>>(a, own.data(), N); /* the kernel reads host memory */
    if (BUG(5)) fill_with<<<1, 2048>>>(a, N, 1); /* too many threads */
    cudaFree(a);
    if (BUG(6)) fill_with<<<4, 256>>>(a, N, 1); /* use after free */
    if (BUG(7)) cudaFree(a);                    /* freed twice */
    cudaDeviceSynchronize();
}

static void *allocate_elsewhere(void *) {
    new_device<float>(N);
    return nullptr;
}

/* On a GPU this is legal; the emulator says that it cannot do it. */
static void test_second_thread() {
    new_device<float>(N);
    pthread_t thread;
    pthread_create(&thread, nullptr, allocate_elsewhere, nullptr);
    pthread_join(thread, nullptr);
}

/* Rows of 12 floats out of 20, into rows of 16. */
static void test_strided_copies() {
    std::vector<float> host(20 * 5);
    for (size_t i = 0; i < host.size(); i++) host[i] = (float)i;
    float *device = new_device<float>(16 * 5);
    cudaMemset(device, 0, 16 * 5 * sizeof(float));
    cudaMemcpy2D(device, 64, host.data(), 80, 48, BUG(1) ? 6 : 5, cudaMemcpyHostToDevice);
    std::vector<float> got = to_host(device, 16 * 5);
    for (int i = 0; i < 16 * 5; i++)
        expect(got[i] == (i % 16 < 12 ? (float)(i / 16 * 20 + i % 16) : 0), "strided copy");
}

static void test_never_written() {
    float *a = new_device<float>(N), *b = new_device<float>(N);
    if (!BUG(1)) fill_with<<<4, 256>>>(a, N, 2); /* BUG 1: the kernel reads what nobody wrote */
    copy_to<<<4, 256>>>(b, a, BUG(2) ? N - 1 : N); /* BUG 2: so does the copy, for one element */
    std::vector<float> host = to_host(b, N);
    expect_all(host.data(), 2);
}

/* ---- streams ---- */

static void test_stream_order() {
    float *a = new_device<float>(N), *b = new_device<float>(N), *host;
    cudaMallocHost(&host, N * sizeof(float));
    cudaStream_t first, second;
    cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    cudaEvent_t event;
    cudaEventCreate(&event);
    fill_with<<<4, 256, 0, first>>>(a, N, 3);
    cudaEventRecord(event, first);
    if (!BUG(1)) cudaStreamWaitEvent(second, event); /* BUG 1: the streams are not ordered */
    copy_to<<<4, 256, 0, second>>>(b, a, N);
    cudaMemcpyAsync(host, b, N * sizeof(float), cudaMemcpyDeviceToHost, second);
    if (!BUG(2)) cudaStreamSynchronize(second); /* BUG 2: looks before the copy is done */
    expect_all(host, 3);
    cudaDeviceSynchronize();
}

/* ---- kernels that wait ---- */

__global__ void spin_kernel(volatile int *flag) {
    while (*flag == 0) {}
}

__global__ void handshake_kernel(int *flag, int *out) {
    if (blockIdx.x == 1) {
        atomicExch(flag, 1);
        return;
    }
    while (atomicAdd(flag, 0) == 0) __nanosleep(10);
    *out = 1;
}

static void test_endless() {
    int *flags = new_device<int>(2);
    cudaMemset(flags, 0, 2 * sizeof(int));
    if (BUG(1)) spin_kernel<<<1, 32>>>(flags);                  /* nobody sets it */
    if (BUG(2)) handshake_kernel<<<2, 1>>>(flags, flags + 1);   /* block 1 may never be resident */
}

__global__ void two_barriers_kernel(int *out) {
    int t = threadIdx.x;
    if (BUG(1)) {
        if (t < 32) barrier_sync(1, 64); /* the others never come */
        else __syncthreads();
    }
    if (BUG(2)) {
        if (t < 32) __syncthreads(); /* not the same barrier, although the counts fit */
        else __syncthreads();
    }
    if (BUG(3) && t % 2) __shfl_sync(0xffffffffu, t, 0); /* the even lanes wait in another call */
    if (BUG(3) && t % 2 == 0) __shfl_down_sync(0xffffffffu, t, 1);
    out[t] = t;
}

static void test_divergence() { two_barriers_kernel<<<1, 64>>>(new_device<int>(64)); }

/* ---- blocks ---- */

__global__ void sum_of_blocks_kernel(float *part, unsigned *counter, float *out) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        part[blockIdx.x] = (float)blockIdx.x;
        if (!BUG(1)) __threadfence(); /* BUG 1: the last block may not see it */
        last = atomicAdd(counter, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    float total = 0;
    for (unsigned b = 0; b < gridDim.x; b++) total += part[b];
    *out = total;
    if (!BUG(2)) *counter = 0; /* BUG 2: never rewound, and the next launch counts on from here */
}

static void test_last_block_bugs() {
    float *part = new_device<float>(8), *out = new_device<float>(1);
    unsigned *counter = new_device<unsigned>(1);
    if (!BUG(3)) cudaMemset(counter, 0, 4); /* BUG 3: relies on zeroed memory */
    for (int round = 0; round < 2; round++) {
        cudaMemset(out, 0, 4);
        sum_of_blocks_kernel<<<8, 32>>>(part, counter, out);
        expect(to_host(out, 1)[0] == 28, "sum over blocks");
    }
}

/* Every thread counts in one place of global or shared memory, not atomically. */
__global__ void count_kernel(int *global) {
    __shared__ int shared;
    if (threadIdx.x == 0) shared = 0;
    __syncthreads();
    if (BUG(1)) shared += 1;
    else atomicAdd(&shared, 1);
    __syncthreads();
    if (BUG(2)) *global += 1;
    else atomicAdd(global, 1);
    if (threadIdx.x == 0 && shared == 0) *global = -1;
}

static void test_counting() {
    int *count = new_device<int>(1);
    cudaMemset(count, 0, 4);
    count_kernel<<<2, 64>>>(count);
    expect(to_host(count, 1)[0] == 128, "count of threads");
}

/* ---- alignment ---- */

__global__ void vector_kernel(float *out, const float *x, int offset) {
    const float4 v = *(const float4 *)(x + 4 * threadIdx.x + offset);
    out[threadIdx.x] = v.x + v.w;
}

static void test_alignment() {
    float *x = new_device<float>(256), *out = new_device<float>(32);
    fill_with<<<1, 256>>>(x, 256, 1);
    vector_kernel<<<1, 32>>>(out, x, BUG(1) ? 1 : 0); /* BUG 1: a 16-byte load at 4 bytes */
    expect(to_host(out, 32)[31] == 2, "vector load");
}

const Case host_cases[] = {
    {"pointers", 0, "allocate, fill, free", "", nullptr, "protect=1", test_pointers},
    {"pointers", 1, "host dereferences device memory", "sr", "device memory", "protect=1",
     test_pointers},
    {"pointers", 2, "copy in the wrong direction", "sar", "is not a device pointer", "",
     test_pointers},
    {"pointers", 3, "copy of one element too much", "sar", "cudaMemcpy destination", "",
     test_pointers},
    {"pointers", 4, "kernel reads host memory", "r", "HOST-MEMORY ACCESS", "", test_pointers},
    {"pointers", 5, "too many threads", "sar", "bad launch", "", test_pointers},
    {"pointers", 6, "use after free", "ar", "freed device buffer", "", test_pointers},
    {"pointers", 7, "freed twice", "sar", "freed twice", "", test_pointers},
    {"threads", 1, "a second host thread", "sar", "second thread", "", test_second_thread},
    {"strided", 0, "copies of rows", "", nullptr, "", test_strided_copies},
    {"strided", 1, "one row too many", "sar", "not all inside", "", test_strided_copies},
    {"unwritten", 0, "everything written first", "", nullptr, "", test_never_written},
    {"unwritten", 1, "kernel reads unwritten memory", "sar", "UNINITIALISED READ", "",
     test_never_written},
    {"unwritten", 2, "copy reads unwritten memory", "sar", "UNINITIALISED READ by cudaMemcpy", "",
     test_never_written},
    {"streams", 0, "event and synchronisation", "", nullptr, "streams=random", test_stream_order},
    {"streams", 1, "missing event between streams", "sar", "WRONG", "streams=random",
     test_stream_order},
    {"streams", 2, "missing synchronisation", "sar", "WRONG", "streams=random", test_stream_order},
    {"endless", 1, "loop that nothing ends", "sar", "without an end", "timeout=1", test_endless},
    {"endless", 2, "waits for a block not resident", "sar", "had not started", "timeout=1",
     test_endless},
    {"diverge", 0, "no barrier", "", nullptr, "", test_divergence},
    {"diverge", 1, "barrier that half the threads miss", "sar", "deadlock", "", test_divergence},
    {"diverge", 2, "__syncthreads in both branches", "sar", "divergent __syncthreads", "",
     test_divergence},
    {"diverge", 3, "lanes in different shuffles", "sar", "divergent warp operation", "",
     test_divergence},
    {"blocks", 0, "fence, atomic, rewound counter", "", nullptr, "", test_last_block_bugs},
    {"blocks", 1, "missing __threadfence", "r", "RACE read-after-write", "", test_last_block_bugs},
    {"blocks", 2, "counter not rewound", "sar", "WRONG", "", test_last_block_bugs},
    {"blocks", 3, "relies on zeroed memory", "sar", "UNINITIALISED READ", "", test_last_block_bugs},
    {"counting", 0, "atomics", "", nullptr, "", test_counting},
    {"counting", 1, "shared counter without atomics", "r", "RACE", "", test_counting},
    {"counting", 2, "global counter without atomics", "r", "RACE", "", test_counting},
    {"alignment", 0, "aligned vector loads", "", nullptr, "", test_alignment},
    {"alignment", 1, "misaligned vector load", "a", "misaligned", "", test_alignment},
    {nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr},
};
