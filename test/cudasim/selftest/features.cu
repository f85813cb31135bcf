/* Sound code with every feature the emulator offers: nothing of it may be reported. */
#include "../../../llmc/kernels/ptx.cuh"
#include "block_tools.cuh"
#include "selftest.h"

/* ---- shuffles and votes ---- */

__global__ void shuffle_kernel(int *out, int width) {
    int lane = threadIdx.x, *p = out + lane * 4;
    p[0] = __shfl_sync(0xffffffffu, lane * 10, 5, width);
    p[1] = __shfl_up_sync(0xffffffffu, lane * 10, 3, width);
    p[2] = __shfl_down_sync(0xffffffffu, lane * 10, 3, width);
    p[3] = __shfl_xor_sync(0xffffffffu, lane * 10, 5, width);
}

static void test_shuffles() {
    int *out = new_device<int>(128);
    for (int width = 4; width <= 32; width *= 2) {
        shuffle_kernel<<<1, 32>>>(out, width);
        std::vector<int> got = to_host(out, 128);
        for (int lane = 0; lane < 32; lane++) {
            int first = lane / width * width, last = first + width - 1;
            int up = lane - 3 >= first ? lane - 3 : lane, down = lane + 3 <= last ? lane + 3 : lane;
            int other = (lane ^ 5) <= last ? lane ^ 5 : lane;
            int want[4] = {first + 5 % width, up, down, other};
            for (int k = 0; k < 4; k++) expect(got[lane * 4 + k] == want[k] * 10, "shuffle");
        }
    }
}

__global__ void vote_kernel(unsigned *out) {
    unsigned lane = threadIdx.x, mask = lane < 16 ? 0x0000ffffu : 0xffff0000u, *p = out + lane * 8;
    p[0] = __ballot_sync(mask, lane & 1);
    p[1] = __reduce_add_sync(mask, lane);
    p[2] = (unsigned)__reduce_max_sync(mask, (int)lane - 20);
    p[3] = __match_any_sync(mask, lane / 4);
    p[4] = (unsigned)__any_sync(mask, lane == 3);
    p[5] = (unsigned)__all_sync(mask, lane < 16);
    p[6] = (unsigned)__shfl_xor_sync(mask, (double)lane, 1);
    p[7] = __reduce_min_sync(mask, lane ^ 5);
}

static void test_votes() {
    unsigned *out = new_device<unsigned>(256);
    vote_kernel<<<1, 32>>>(out);
    std::vector<unsigned> got = to_host(out, 256);
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned *p = &got[lane * 8];
        bool low = lane < 16;
        expect(p[0] == (low ? 0xaaaau : 0xaaaa0000u), "ballot");
        expect(p[1] == (low ? 120u : 376u), "reduce add");
        expect((int)p[2] == (low ? -5 : 11), "reduce max, signed");
        expect(p[3] == 15u << (lane / 4 * 4), "match any");
        expect(p[4] == (unsigned)low && p[5] == (unsigned)low, "any, all");
        expect(p[6] == (lane ^ 1), "shuffle of a double");
        expect(p[7] == (low ? 0u : 16u), "reduce min");
    }
}

/* ---- barriers ---- */

__global__ void counting_kernel(int *out) {
    int t = threadIdx.x;
    for (int i = 0; i < 8; i++) { /* a fast thread is in round i + 1 while another reads round i */
        int count = __syncthreads_count(t <= i);
        int any = __syncthreads_or(t == i * 10), all = __syncthreads_and(t < 64 + i);
        out[(i * 96 + t) * 3] = count;
        out[(i * 96 + t) * 3 + 1] = any != 0;
        out[(i * 96 + t) * 3 + 2] = all != 0;
    }
}

static void test_counting_barriers() {
    int *out = new_device<int>(8 * 96 * 3);
    counting_kernel<<<1, 96>>>(out);
    std::vector<int> got = to_host(out, 8 * 96 * 3);
    for (int i = 0; i < 8 * 96; i++) {
        int round = i / 96;
        expect(got[i * 3] == round + 1, "__syncthreads_count");
        expect(got[i * 3 + 1] == 1 && got[i * 3 + 2] == 0, "__syncthreads_or, _and");
    }
}

/* Warp 0 fills a ring of two buffers, warps 1 to 3 read it: named barriers only. */
__global__ void ring_kernel(float *out, int n) {
    __shared__ float ring[2][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0;
    for (int i = 0; i < n; i++) {
        int s = i % 2, full = 1 + s, empty = 3 + s;
        if (warp == 0) {
            if (i >= 2) barrier_sync(empty, 128);
            ring[s][lane] = (float)(i * 32 + lane);
            barrier_arrive(full, 128);
        } else {
            barrier_sync(full, 128);
            sum += ring[s][(lane + warp) % 32];
            if (i + 2 < n) barrier_arrive(empty, 128);
        }
    }
    if (warp) out[threadIdx.x] = sum;
}

static void test_named_barriers() {
    float *out = new_device<float>(128);
    ring_kernel<<<1, 128>>>(out, 7);
    std::vector<float> got = to_host(out + 32, 96);
    for (int t = 32; t < 128; t++) {
        float want = 0;
        for (int i = 0; i < 7; i++) want += (float)(i * 32 + (t % 32 + t / 32) % 32);
        expect(got[t - 32] == want, "producer and consumers");
    }
}

/* ---- one kernel, several blocks: the last block adds up the others' results ---- */

__global__ void last_block_kernel(float *part, unsigned *counter, float *out, const float *x,
                                  int n) {
    __shared__ float sum[64];
    __shared__ bool last;
    int t = threadIdx.x;
    float own = 0;
    for (int i = blockIdx.x * 64 + t; i < n; i += gridDim.x * 64) own += x[i];
    sum[t] = own;
    __syncthreads();
    for (int k = 32; k > 0; k /= 2) {
        if (t < k) sum[t] += sum[t + k];
        __syncthreads();
    }
    if (t == 0) {
        part[blockIdx.x] = sum[0];
        __threadfence();
        last = atomicAdd(counter, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || t != 0) return;
    __threadfence();
    float total = 0;
    for (unsigned b = 0; b < gridDim.x; b++) total += part[b];
    *out = total;
}

static void test_last_block() {
    std::vector<float> x(1000);
    float want = 0;
    for (int i = 0; i < 1000; i++) want += x[i] = (float)(i % 13);
    float *part = new_device<float>(9), *out = new_device<float>(1);
    unsigned *counter = new_device<unsigned>(1);
    cudaMemset(counter, 0, sizeof *counter);
    last_block_kernel<<<9, 64>>>(part, counter, out, to_device(x), 1000);
    expect(to_host(out, 1)[0] == want, "last block");
}

/* ---- declarations, indices, early exit ---- */

template <class T, int N> struct Tile {
    T value[N];
};

template <class T> __global__ void declarations_kernel(T *out, int n) {
    __shared__ Tile<T, 8> tile;
    __shared__ alignas(16) T table[4][8], one;
    int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    if (i < 8) {
        tile.value[i] = (T)(float)i;
        table[1][i] = (T)(float)(i * 2);
    }
    if (i == 0) one = (T)1.0f;
    __syncthreads();
    if (i >= n) return; /* the barrier below is for those who are left */
    __syncthreads();
    float sum = (float)tile.value[i % 8] + (float)table[1][i % 8] + (float)one;
    out[i + n * blockIdx.z] = (T)sum;
}

static void test_declarations() {
    uint16_t *out = new_device<uint16_t>(80);
    declarations_kernel<__nv_bfloat16>
        <<<dim3(1, 1, 2), dim3(4, 4, 4)>>>((__nv_bfloat16 *)out, 40);
    std::vector<uint16_t> got = to_host(out, 80);
    for (int i = 0; i < 80; i++)
        expect(got[i] == encode_bf16(i % 40 % 8 * 3 + 1), "shared variables of several kinds");
}

__constant__ float scale_of[4];
__device__ int launches_seen;

__global__ void constants_kernel(float *out) {
    extern __shared__ float dynamic[];
    dynamic[threadIdx.x] = scale_of[threadIdx.x % 4];
    __syncthreads();
    out[threadIdx.x] = dynamic[threadIdx.x ^ 1] + (float)block_total(1);
    if (threadIdx.x == 0) launches_seen++;
}

#define LAUNCH_ON(stream, kernel, ...) kernel<<<1, 64, 64 * sizeof(float), stream>>>(__VA_ARGS__)

/* What must not mislead the rewriter: <<< and __shared__ in comments (f<<<1, 2>>>()), */
static const char *const decoys = "__shared__ int x; f<<<1, 2>>>(3); \" R\"(";
static const char *const raw_decoy = R"x(__shared__ float y[2]; g<<<1>>>("))x";
static const int big = 1'000'000, quote = '"', shifted = 1 << 3;

namespace nested {
template <class T, int N> __global__ void add_up_kernel(T *out, int n) {
    __shared__ Tile<T, N> tile, // two variables, a comment and a line break between them
        second[2];
    tile.value[threadIdx.x] = (T)1;
    second[1].value[threadIdx.x] = (T)2;
    __syncthreads();
    if (threadIdx.x == 0) *out = tile.value[n - 1] + second[1].value[0];
}
} // namespace nested

static void test_constants_and_launches() {
    float host[4] = {1, 2, 3, 4};
    cudaMemcpyToSymbol(scale_of, host, sizeof host);
    float *out = new_device<float>(64);
    void (*kernel)(float *) = constants_kernel;
    LAUNCH_ON(0, constants_kernel, out);
    kernel<<<1, 64, 256>>>(out);
    std::vector<float> got = to_host(out, 64);
    for (int i = 0; i < 64; i++) expect(got[i] == host[(i ^ 1) % 4] + 64, "constants");
    nested::add_up_kernel<float, 32><<<dim3((shifted >> 3), 1),
                                       32 /* threads >>> */, 0>>>(out, 32);
    expect(to_host(out, 1)[0] == 3, "launch over two lines");
    expect(strlen(decoys) == 39 && strlen(raw_decoy) == 34 && big == 1000000 && quote == 34,
           "literals");
    int seen;
    cudaMemcpyFromSymbol(&seen, launches_seen, sizeof seen);
    expect(seen == 2, "device variable");
}

/* ---- atomics ---- */

__device__ float atomic_max_float(float *address, float value) {
    int *bits = (int *)address, old = *(volatile int *)bits; /* volatile: others are at it */
    while (__int_as_float(old) < value) {
        int assumed = old;
        old = atomicCAS(bits, assumed, __float_as_int(value));
        if (old == assumed) break;
    }
    return __int_as_float(old);
}

__global__ void atomics_kernel(int *histogram, float *largest, __nv_bfloat162 *pair, const int *x,
                               int n) {
    __shared__ float block_largest;
    if (threadIdx.x == 0) block_largest = -INFINITY;
    __syncthreads();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        atomicAdd(&histogram[x[i] & 7], 1);
        atomicMax(&histogram[8], x[i]);
        if (i < 64) atomicAdd(pair, __floats2bfloat162_rn(1.0f, 2.0f));
        atomic_max_float(&block_largest, (float)x[i]);
    }
    __syncthreads();
    if (threadIdx.x == 0) atomicExch(&largest[blockIdx.x], block_largest); /* the first write */
}

static void test_atomics() {
    std::vector<int> x(1000);
    for (int i = 0; i < 1000; i++) x[i] = i;
    int *histogram = new_device<int>(9);
    float *largest = new_device<float>(4);
    uint32_t *pair = new_device<uint32_t>(1);
    cudaMemset(histogram, 0, 9 * sizeof(int));
    cudaMemset(pair, 0, 4);
    atomics_kernel<<<4, 256>>>(histogram, largest, (__nv_bfloat162 *)pair, to_device(x), 1000);
    std::vector<int> got = to_host(histogram, 9);
    for (int i = 0; i < 8; i++) expect(got[i] == 125, "histogram");
    expect(got[8] == 999, "atomicMax");
    std::vector<float> maxima = to_host(largest, 4);
    for (int b = 0; b < 4; b++)
        expect(maxima[b] == (float)(b < 3 ? b * 256 + 255 : 999), "CAS loop");
    uint32_t sum = to_host(pair, 1)[0];
    expect((sum & 0xffff) == encode_bf16(64) && sum >> 16 == encode_bf16(128), "pair atomicAdd");
}

/* ---- matrix loads ---- */

__global__ void transpose_kernel(uint32_t *out) {
    __shared__ alignas(16) uint16_t tile[16][8];
    int lane = threadIdx.x;
    for (int i = lane; i < 128; i += 32) tile[i / 8][i % 8] = (uint16_t)i;
    __syncwarp();
    uint32_t r[2];
    ldmatrix_x2_trans(r, tile[lane % 16]);
    out[lane] = r[0];
    out[32 + lane] = r[1];
    float2 f = unpack_pair<__half>(pack_pair<__half>((float)lane, -1.5f));
    out[64 + lane] = f.x == (float)lane && f.y == -1.5f;
}

static void test_ldmatrix() {
    uint32_t *out = new_device<uint32_t>(96);
    transpose_kernel<<<1, 32>>>(out);
    std::vector<uint32_t> got = to_host(out, 96);
    for (int lane = 0; lane < 32; lane++) {
        uint32_t low = lane % 4 * 16 + lane / 4, want = low | (low + 8) << 16;
        expect(got[lane] == want && got[32 + lane] == want + 0x00400040u, "ldmatrix.trans");
        expect(got[64 + lane] == 1, "pack_pair, unpack_pair");
    }
}

/* ---- streams ---- */

__global__ void fill_kernel(float *x, int n, float value) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = value;
}
__global__ void add_kernel(float *x, const float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] += y[i];
}

static void count_call(void *data) { ++*(int *)data; }

static void test_streams() {
    enum { N = 1000 };
    cudaStream_t a, b;
    cudaEvent_t ready, done;
    cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&ready, cudaEventDisableTiming);
    cudaEventCreate(&done);
    float *x = new_device<float>(N), *y = new_device<float>(N), *host;
    cudaMallocHost(&host, N * sizeof(float));
    int calls = 0;
    for (int round = 1; round <= 3; round++) {
        fill_kernel<<<4, 256, 0, a>>>(x, N, (float)round);
        fill_kernel<<<4, 256, 0, b>>>(y, N, 10);
        cudaEventRecord(ready, a);
        cudaStreamWaitEvent(b, ready);
        add_kernel<<<4, 256, 0, b>>>(y, x, N);
        cudaMemcpyAsync(host, y, N * sizeof(float), cudaMemcpyDeviceToHost, b);
        cudaLaunchHostFunc(b, count_call, &calls);
        cudaEventRecord(done, b);
        cudaStreamWaitEvent(a, done);
        while (cudaEventQuery(done) == cudaErrorNotReady) {}
        for (int i = 0; i < N; i++) expect(host[i] == (float)(10 + round), "two streams");
        expect(calls == round, "host function");
    }
    cudaStreamSynchronize(a);
    cudaFreeHost(host);
    cudaStreamDestroy(a);
    cudaStreamDestroy(b);
}

const Case feature_cases[] = {
    {"features", 0, "shuffles of every width", "", nullptr, "", test_shuffles},
    {"features", 0, "votes and reductions", "", nullptr, "", test_votes},
    {"features", 0, "__syncthreads_count, _or, _and", "", nullptr, "", test_counting_barriers},
    {"features", 0, "named barriers", "", nullptr, "", test_named_barriers},
    {"features", 0, "last block with fence and atomic", "", nullptr, "", test_last_block},
    {"features", 0, "shared declarations, 3-D, early exit", "", nullptr, "", test_declarations},
    {"features", 0, "constants, included files, launches", "", nullptr, "",
     test_constants_and_launches},
    {"features", 0, "atomics", "", nullptr, "", test_atomics},
    {"features", 0, "ldmatrix.trans, pairs", "", nullptr, "", test_ldmatrix},
    {"features", 0, "streams and events, eager", "", nullptr, "", test_streams},
    {"features", 0, "streams and events, random order", "", nullptr, "streams=random,protect=1",
     test_streams},
    {nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr},
};
