/* The wrappers of ptx_hopper.cuh inside one block: every shape and layout of wgmma, TMA loads and
   stores, stmatrix, setmaxnreg; and the mistakes that are easy to make with them. */
#include "../../../llmc/kernels/ptx.cuh"
#include "../../../llmc/kernels/ptx_hopper.cuh"
#include "../kernels/kernels.h"
#include "selftest.h"

enum { TILE_BYTES = 64 * 128, GROUP = 128, DEPTH = 64 };

/* ---- wgmma: d [64,N] = 2 a b^T over 64 columns k, in every layout ---- */

/* How the operands come: K-contiguous [rows,k] or (trans) [k,rows]; a from registers. */
enum Layout { PLAIN = 0, TRANS_A = 1, TRANS_B = 2, REGISTERS = 4 };

struct Operands {
    unsigned char *a, *b; /* tiles of 64 rows of 128 bytes */
    uint64_t *full;
};

/* Both tiles by TMA, in blocks of 64 x 64. What lies outside the matrices is zero. */
template <int N, int LAYOUT>
__device__ void load_operands(const Operands &o, const CUtensorMap *map_a,
                              const CUtensorMap *map_b) {
    mbarrier_init(o.full, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(o.full, TILE_BYTES * (1 + N / 64));
    tma_load_2d(o.a, map_a, 0, 0, o.full);
    for (int i = 0; i < N / 64; i++)
        tma_load_2d(o.b + i * TILE_BYTES, map_b, LAYOUT & TRANS_B ? i * 64 : 0,
                    LAYOUT & TRANS_B ? 0 : i * 64, o.full);
}

/* The 64 x 16 fragment of a from column k, of the K-contiguous matrix in global memory. */
template <class T>
__device__ void load_fragment(uint32_t out[4], const T *a, int M, int K, int stride, int k) {
    int lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 16 + lane / 4;
    for (int i = 0; i < 4; i++) {
        int row = row0 + 8 * (i % 2), column = k + lane % 4 * 2 + 8 * (i / 2);
        float x[2];
        for (int j = 0; j < 2; j++)
            x[j] = row < M && column + j < K ? (float)a[row * stride + column + j] : 0;
        out[i] = pack_pair<T>(x[0], x[1]);
    }
}

/* Written again by ordinary stores, as a kernel does that computes an operand. */
__device__ void rewrite_tile(unsigned char *tile) {
    volatile uint32_t *words = (volatile uint32_t *)tile;
    for (int i = threadIdx.x; i < TILE_BYTES / 4; i += GROUP) words[i] = words[i];
    if (!BUG(8)) fence_async_shared(); /* BUG 8: wgmma may not see what was written */
    __syncthreads();
}

template <class T, int N, int LAYOUT>
__device__ void multiply(float *d, const Operands &o, const uint32_t fragment[4][4],
                         int accumulate) {
    for (int k = 0; k < DEPTH; k += 16) {
        /* BUG 1: starts between two k; BUG 2: the layout is not told */
        const unsigned char *a = o.a + (LAYOUT & TRANS_A ? k * 128 : k * 2) + (BUG(1) ? 16 : 0);
        const unsigned char *b = o.b + (LAYOUT & TRANS_B ? k * 128 : k * 2);
        uint64_t descriptor_a = LAYOUT & TRANS_A && !BUG(2) ? wgmma_descriptor_mn(a, TILE_BYTES)
                                                            : wgmma_descriptor(a);
        /* BUG 3: the distance of the blocks of 64 */
        uint64_t descriptor_b = LAYOUT & TRANS_B
                                    ? wgmma_descriptor_mn(b, BUG(3) ? 1024 : TILE_BYTES)
                                    : wgmma_descriptor(b);
        if constexpr ((LAYOUT & REGISTERS) != 0)
            wgmma_rs<T, N, LAYOUT / TRANS_B % 2>(d, fragment[k / 16], descriptor_b,
                                                 accumulate || k);
        else
            wgmma_ss<T, N, LAYOUT % 2, LAYOUT / TRANS_B % 2>(d, descriptor_a, descriptor_b,
                                                             accumulate || k);
    }
}

template <class T, int N, int LAYOUT>
__global__ void __launch_bounds__(GROUP)
    products_kernel(float *out, const T *a, const __grid_constant__ CUtensorMap map_a,
                    const __grid_constant__ CUtensorMap map_b, int M, int K, int stride) {
#ifdef HOPPER_CODE
    extern __shared__ __align__(1024) unsigned char shared[];
    Operands o = {shared, shared + TILE_BYTES,
                  (uint64_t *)(shared + (1 + N / 64) * TILE_BYTES)};
    if (threadIdx.x == 0) load_operands<N, LAYOUT>(o, &map_a, &map_b);
    __syncthreads();
    mbarrier_wait(o.full, 0);
    if (LAYOUT & TRANS_B) rewrite_tile(o.b);
    uint32_t fragment[4][4] = {};
    if (LAYOUT & REGISTERS)
        for (int i = 0; i < 4; i++) load_fragment(fragment[i], a, M, K, stride, i * 16);
    float d[N / 2];
    for (int i = 0; i < N / 2; i++) d[i] = -1; /* must not count: accumulate = 0 */
    wgmma_fence();
    multiply<T, N, LAYOUT>(d, o, fragment, 0);
    wgmma_commit();
    multiply<T, N, LAYOUT>(d, o, fragment, 1);
    wgmma_commit();
    if (BUG(4)) d[3] += 1; /* BUG 4: sums touched, BUG 5: a tile overwritten before the wait */
    if (BUG(5)) ((volatile unsigned char *)o.b)[threadIdx.x] = 77;
    if (BUG(6)) return; /* BUG 6: exits without a wait */
    if (BUG(7)) wgmma_wait<1>(); /* BUG 7: and reads the sums */
    else wgmma_wait<0>();
    wgmma_registers<N / 2>(d);
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    for (int i = 0; i < N / 2; i++)
        out[(row + 8 * (i / 2 % 2)) * N + i / 4 * 8 + lane % 4 * 2 + i % 2] = d[i];
    if (BUG(7)) wgmma_wait<0>();
#endif
}

template <class T, int N, int LAYOUT> static void products_once(int M, int columns, int K) {
    bool half = std::is_same<T, __half>::value;
    /* a [M,K], b [columns,K], or the other way round; rows of 72 or 264 elements */
    int stride_a = 72, stride_b = LAYOUT & TRANS_B ? 264 : 72;
    std::vector<uint16_t> a(72 * 264, 0x7e00), b(72 * 264, 0x7e00); /* NaN, or very large */
    std::vector<double> x((size_t)M * K), y((size_t)columns * K);
    for (int i = 0; i < M * K; i++) {
        x[i] = next_number();
        a[LAYOUT & TRANS_A ? i % K * stride_a + i / K : i / K * stride_a + i % K] =
            half ? encode_half(x[i]) : encode_bf16(x[i]);
    }
    for (int i = 0; i < columns * K; i++) {
        y[i] = next_number();
        b[LAYOUT & TRANS_B ? i % K * stride_b + i / K : i / K * stride_b + i % K] =
            half ? encode_half(y[i]) : encode_bf16(y[i]);
    }
    const T *in_a = (const T *)to_device(a), *in_b = (const T *)to_device(b);
    CUtensorMap map_a = LAYOUT & TRANS_A ? tensor_map_2d(in_a, K, M, stride_a, 64, 64)
                                         : tensor_map_2d(in_a, M, K, stride_a, 64, 64);
    CUtensorMap map_b = LAYOUT & TRANS_B ? tensor_map_2d(in_b, K, columns, stride_b, 64, 64)
                                         : tensor_map_2d(in_b, columns, K, stride_b, 64, 64);
    float *out = new_device<float>(64 * N);
    int bytes = (1 + N / 64) * TILE_BYTES + 8;
    cudaFuncSetAttribute(products_kernel<T, N, LAYOUT>,
                         cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    products_kernel<T, N, LAYOUT><<<1, GROUP, bytes>>>(out, in_a, map_a, map_b, M, K, stride_a);
    std::vector<float> got = to_host(out, 64 * N);
    double error = 0;
    for (int i = 0; i < 64; i++) {
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K && i < M && j < columns; k++)
                sum += x[(size_t)(i * K + k)] * y[(size_t)(j * K + k)];
            error = worse(error, got[(size_t)(i * N + j)], 2 * sum);
        }
    }
    expect_close(error, 0, "wgmma"); /* multiples of 2^-12 below 2^7: float holds every sum */
}

template <class T, int N> static void products_of_width() {
    products_once<T, N, PLAIN>(64, N, 64);
    products_once<T, N, PLAIN>(61, N - 3, 50);
    products_once<T, N, TRANS_A>(61, N, 50);
    products_once<T, N, TRANS_B>(64, N - 3, 50);
    products_once<T, N, TRANS_A | TRANS_B>(61, N - 3, 64);
    products_once<T, N, REGISTERS>(61, N - 3, 50);
    products_once<T, N, REGISTERS | TRANS_B>(61, N - 3, 50);
}

static void test_products() {
    products_of_width<__nv_bfloat16, 64>();
    products_of_width<__half, 128>();
    products_of_width<__nv_bfloat16, 192>();
    products_of_width<__nv_bfloat16, 256>();
}
/* One product with a mistake. */
static void test_product() { products_once<__nv_bfloat16, 128, TRANS_A | TRANS_B>(61, 125, 50); }
static void test_plain_product() { products_once<__nv_bfloat16, 64, PLAIN>(61, 60, 50); }

/* ---- TMA: out = in + 1, tile by tile, through shared memory ---- */

enum { ROWS = 24, STAGES = 2 };

/* Of a tile as TMA leaves it. */
template <class T> __device__ T *element(unsigned char *tile, int row, int column) {
    int byte = column * (int)sizeof(T);
    return (T *)(tile + row * 128 + ((byte / 16) ^ (row % 8)) * 16 + byte % 16);
}

template <class T>
__device__ void add_one(unsigned char *out, unsigned char *in) {
    int columns = 128 / (int)sizeof(T);
    for (int i = threadIdx.x; i < ROWS * columns; i += GROUP) {
        int row = i / columns, column = i % columns;
        *element<T>(out, row, column) = (T)((float)*element<T>(in, row, column) + 1);
    }
}

__device__ void start_load(unsigned char *in, const CUtensorMap *map, int column, int row,
                           uint64_t *full) {
    /* BUG 1: announces too few bytes, BUG 2: too many */
    mbarrier_arrive_expect(full, ROWS * 128 - (BUG(1) ? 16 : 0) + (BUG(2) ? 16 : 0));
    tma_load_2d(in + (BUG(3) ? 512 : 0), map, column, row, full); /* BUG 3: misaligned tile */
}

__device__ void start_store(const CUtensorMap *map, int column, int row, unsigned char *out) {
    tma_store_2d(map, column, row, out);
    if (!BUG(4)) tma_store_commit(); /* BUG 4: no group */
}

/* Tiles of a row of the matrix, from columns that are no multiples of a tile and begin outside. */
template <class T>
__global__ void __launch_bounds__(GROUP)
    add_kernel(const __grid_constant__ CUtensorMap map_out,
               const __grid_constant__ CUtensorMap map_in, int tiles) {
#ifdef HOPPER_CODE
    enum { COLUMNS = 128 / sizeof(T), STAGE = 4096 };
    extern __shared__ __align__(1024) unsigned char shared[];
    unsigned char *in = shared, *out = shared + STAGE;
    uint64_t *full = (uint64_t *)(shared + (1 + STAGES) * STAGE);
    int row = (int)blockIdx.x * ROWS - 3;
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        if (!BUG(5)) mbarrier_init_fence(); /* BUG 5: TMA may not see the barrier */
    }
    __syncthreads();
    for (int t = 0; t < tiles; t++) {
        int column = t * COLUMNS - 8;
        unsigned char *stage = out + t % STAGES * STAGE;
        if (threadIdx.x == 0) {
            start_load(in, &map_in, column, row, full);
            if (!BUG(6)) tma_store_wait<STAGES - 1>(); /* BUG 6: the stage is still being read */
        }
        __syncthreads();
        if (!BUG(7)) mbarrier_wait(full, t & 1); /* BUG 7: the tile is not there yet */
        add_one<T>(stage, in);
        if (!BUG(8)) fence_async_shared(); /* BUG 8: TMA may not see what was written */
        if (!BUG(9)) __syncthreads();      /* BUG 9: others may not have written */
        if (threadIdx.x == 0) start_store(&map_out, column, row, stage);
    }
    if (threadIdx.x == 0 && !BUG(10)) tma_store_wait<0>(); /* BUG 10: exits too early */
#endif
}

template <class T> static void add_once(int rows, int columns) {
    int stride = (columns + 15) / 8 * 8, tile = 128 / (int)sizeof(T);
    std::vector<float> x((size_t)rows * stride);
    std::vector<T> in(x.size());
    for (size_t i = 0; i < x.size(); i++) in[i] = (T)(x[i] = next_number());
    T *out = to_device(in);
    CUtensorMap map_in = tensor_map_2d(to_device(in), rows, columns, stride, ROWS, tile);
    CUtensorMap map_out = tensor_map_2d(out, rows, columns, stride, ROWS, tile);
    add_kernel<T><<<(rows + 2 * ROWS) / ROWS, GROUP, (1 + STAGES) * 4096 + 8>>>(
        map_out, map_in, (columns + 8 + tile - 1) / tile);
    std::vector<T> got = to_host(out, x.size());
    double error = 0;
    for (size_t i = 0; i < x.size(); i++)
        error = worse(error, (float)got[i], x[i] + ((int)(i % stride) < columns));
    expect_close(error, sizeof(T) == 4 ? 0 : 0x1p-7, "TMA"); /* sums in [0, 2], rounded to bf16 */
}

static void test_tma() {
    add_once<float>(50, 77);
    add_once<__nv_bfloat16>(47, 200);
}

/* ---- stmatrix; registers moved from one warpgroup to another ---- */

__global__ void stmatrix_kernel(uint16_t *out, int transposed) {
#ifdef HOPPER_CODE
    __shared__ __align__(16) uint16_t tile[32][8];
    int lane = threadIdx.x;
    uint32_t x[4];
    for (int m = 0; m < 4; m++) {
        int low = m * 64 + lane * 2;
        x[m] = (uint32_t)(low | (low + 1) << 16);
    }
    if (transposed) stmatrix_x4_trans(tile[lane], x);
    else stmatrix_x4(tile[lane], x);
    __syncwarp();
    for (int i = lane; i < 256; i += 32) out[i] = tile[i / 8][i % 8];
#endif
}

static void test_stmatrix() {
    uint16_t *out = new_device<uint16_t>(256);
    for (int transposed = 0; transposed < 2; transposed++) {
        stmatrix_kernel<<<1, 32>>>(out, transposed);
        std::vector<uint16_t> got = to_host(out, 256);
        for (int i = 0; i < 256; i++) {
            int row = i / 8 % 8, column = i % 8;
            int want = i / 64 * 64 + (transposed ? column * 8 + row : row * 8 + column);
            expect(got[(size_t)i] == want, "stmatrix");
        }
    }
}

__global__ void __launch_bounds__(3 * GROUP, 1) registers_kernel(int *out) {
#ifdef HOPPER_CODE
    if (threadIdx.x < GROUP) {
        if (BUG(1)) registers_release<56>(); /* BUG 1: leaves too few for the others */
        else registers_release<24>();
        if (BUG(2)) registers_release<40>(); /* BUG 2: more than it has */
    } else {
        registers_take<240>();
    }
    out[threadIdx.x] = (int)threadIdx.x;
#endif
}

static void test_registers() {
    int *out = new_device<int>(3 * GROUP);
    registers_kernel<<<1, 3 * GROUP>>>(out);
    std::vector<int> got = to_host(out, 3 * GROUP);
    for (int i = 0; i < 3 * GROUP; i++) expect(got[(size_t)i] == i, "setmaxnreg");
}

const Case hopper_cases[] = {
    {"wgmma", 0, "every width, layout and type", "", nullptr, "", test_products},
    {"wgmma", 1, "descriptor between two k", "sar", "none of k", "", test_plain_product},
    {"wgmma", 2, "transposed, and not told", "sar", "says otherwise", "", test_product},
    {"wgmma", 3, "distance of the blocks of 64", "sar", "WRONG", "", test_product},
    {"wgmma", 4, "sums touched before the wait", "sar", "before wgmma.wait_group", "",
     test_product},
    {"wgmma", 5, "tile overwritten before the wait", "sar", "RACE", "", test_product},
    {"wgmma", 6, "exits before the wait", "sar", "exits before wgmma.wait_group", "",
     test_product},
    {"wgmma", 7, "sums read a group too early", "sar", "WRONG", "", test_product},
    {"wgmma", 8, "no fence_async_shared before it", "r", "no fence_async_shared", "", test_product},
    {"tma", 0, "tiles over all edges, float and bf16", "", nullptr, "", test_tma},
    {"tma", 1, "announces too few bytes", "sar", "more than were announced", "", test_tma},
    {"tma", 2, "announces too many bytes", "sar", "announced bytes are missing", "", test_tma},
    {"tma", 3, "misaligned tile", "sar", "aligned to 1024", "", test_tma},
    {"tma", 4, "store that is in no group", "sar", "no tma_store_commit", "", test_tma},
    {"tma", 5, "no mbarrier_init_fence", "sar", "mbarrier_init_fence", "", test_tma},
    {"tma", 6, "overwrites what a store reads", "sar", "while a store was reading", "", test_tma},
    {"tma", 7, "tile not awaited", "sar", "UNINITIALISED READ", "", test_tma},
    {"tma", 8, "no fence_async_shared before a store", "r", "no fence_async_shared", "",
     test_tma},
    {"tma", 9, "store before others have written", "sar", "RACE", "", test_tma},
    {"tma", 10, "exits before the store has read", "sar", "before tma_store_wait", "", test_tma},
    {"stmatrix", 0, "both orders", "", nullptr, "", test_stmatrix},
    {"registers", 0, "from one warpgroup to two", "", nullptr, "", test_registers},
    {"registers", 1, "more than there are", "sar", "and there are 65536", "", test_registers},
    {"registers", 2, "up by a release", "sar", "setmaxnreg: down to 40", "", test_registers},
    {nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr},
};
