/* Clusters of blocks, and programmatic launches: the wrappers of ptx_hopper.cuh that reach beyond a
   block, and the mistakes that are easy to make with them. */
#include "../../../llmc/kernels/ptx_hopper.cuh"
#include "../kernels/kernels.h"
#include "selftest.h"

enum { THREADS = 128, TILE_BYTES = 64 * 128 };

struct ClusterLaunch {
    cudaLaunchAttribute attribute[2];
    cudaLaunchConfig_t config;
};

static void describe_launch(ClusterLaunch *launch, dim3 grid, dim3 cluster, int shared_bytes,
                            bool programmatic) {
    launch->config = cudaLaunchConfig_t{};
    launch->config.gridDim = grid;
    launch->config.blockDim = dim3(THREADS);
    launch->config.dynamicSmemBytes = (size_t)shared_bytes;
    launch->config.attrs = launch->attribute;
    launch->config.numAttrs = programmatic ? 2 : 1;
    launch->attribute[0].id = cudaLaunchAttributeClusterDimension;
    launch->attribute[0].val.clusterDim.x = cluster.x;
    launch->attribute[0].val.clusterDim.y = cluster.y;
    launch->attribute[0].val.clusterDim.z = cluster.z;
    launch->attribute[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    launch->attribute[1].val.programmaticStreamSerializationAllowed = 1;
}

/* ---- shared memory of other blocks: each thread adds what its namesakes hold ---- */

__global__ void __launch_bounds__(THREADS) sum_kernel(int *out, int base) {
#ifdef HOPPER_CODE
    __shared__ int mine[THREADS];
    int block = (int)(blockIdx.y * gridDim.x + blockIdx.x), sum = 0;
    mine[threadIdx.x] = base + block * 1000 + (int)threadIdx.x;
    if (!BUG(1)) cluster_arrive(); /* BUG 1: others may not have written */
    if (!BUG(1) && !BUG(2)) cluster_wait(); /* BUG 2: arrives, and does not wait */
    for (unsigned r = 0; r < cluster_blocks(); r++) sum += cluster_map(mine, r)[threadIdx.x ^ 5];
    out[block * THREADS + (int)threadIdx.x] = sum;
    if (BUG(3)) return; /* BUG 3: exits while others still read its memory */
    if (!BUG(1) && BUG(2)) cluster_wait();
    cluster_arrive();
    cluster_wait();
#endif
}

static void sum_once(dim3 grid, dim3 cluster) {
    int blocks = (int)(grid.x * grid.y);
    int *out = new_device<int>((size_t)(blocks * THREADS));
    ClusterLaunch launch;
    describe_launch(&launch, grid, cluster, 0, false);
    cudaLaunchKernelEx(&launch.config, sum_kernel, out, 7);
    std::vector<int> got = to_host(out, (size_t)(blocks * THREADS));
    for (int b = 0; b < blocks; b++) {
        int x0 = b % (int)grid.x / (int)cluster.x * (int)cluster.x, sum = 0;
        int y0 = b / (int)grid.x / (int)cluster.y * (int)cluster.y;
        for (int y = y0; y < y0 + (int)cluster.y; y++)
            for (int x = x0; x < x0 + (int)cluster.x; x++) sum += 7 + (y * (int)grid.x + x) * 1000;
        for (int t = 0; t < THREADS; t++) {
            int want = sum + (int)(cluster.x * cluster.y) * (t ^ 5);
            expect(got[(size_t)(b * THREADS + t)] == want, "sum over a cluster");
        }
    }
}

static void test_sums() {
    sum_once(dim3(6), dim3(2));
    sum_once(dim3(4, 6), dim3(2, 3));
    sum_once(dim3(3), dim3(1));
}

static void test_cluster_size() {
    expect(BUG(4), "only as a planted bug");
    sum_once(dim3(5), dim3(2)); /* BUG 4: no whole number of clusters */
}

/* ---- multicast: block 0 of each pair sends the tiles of a matrix to both, which write them out.
   One stage: both say to block 0 that it is empty. ---- */

__global__ void __launch_bounds__(THREADS)
    multicast_kernel(float *out, const __grid_constant__ CUtensorMap map, int tiles) {
#ifdef HOPPER_CODE
    extern __shared__ __align__(1024) unsigned char tile[];
    __shared__ uint64_t full, empty;
    unsigned rank = cluster_rank();
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1);
        mbarrier_init(&empty, BUG(1) ? 1 : 2); /* BUG 1: the other block is not awaited */
        mbarrier_init_fence();
    }
    if (!BUG(3)) cluster_arrive(); /* BUG 3: the other's barriers may not be there yet */
    if (!BUG(3)) cluster_wait();
    else __syncthreads();
    for (int t = 0; t < tiles; t++) {
        if (threadIdx.x == 0) mbarrier_arrive_expect(&full, TILE_BYTES);
        if (threadIdx.x == 0 && rank == 0 && t == 0) {
            tma_load_2d_multicast(tile, &map, 0, 0, &full, BUG(2) ? 1 : 3); /* BUG 2: to one */
        } else if (threadIdx.x == 0 && rank == 0) {
            mbarrier_wait(&empty, (t - 1) & 1);
            tma_load_2d_multicast(tile, &map, 0, t * 64, &full, 3);
        }
        mbarrier_wait(&full, t & 1);
        for (int i = threadIdx.x; i < 64 * 32; i += THREADS) {
            int row = i / 32, column = i % 32;
            out[((int)blockIdx.x * tiles + t) * 2048 + i] =
                ((float *)(tile + row * 128 + (column / 4 ^ row % 8) * 16))[column % 4];
        }
        __syncthreads();
        if (threadIdx.x == 0 && !(BUG(1) && rank)) mbarrier_arrive_cluster(&empty, 0);
    }
    cluster_arrive();
    cluster_wait();
#endif
}

static void test_multicast() {
    enum { TILES = 3, BLOCKS = 4, ROWS = TILES * 64 - 9 };
    std::vector<float> x(ROWS * 32);
    for (float &f : x) f = next_number();
    CUtensorMap map = tensor_map_2d(to_device(x), ROWS, 32, 32, 64, 32);
    float *out = new_device<float>(BLOCKS * TILES * 2048);
    ClusterLaunch launch;
    describe_launch(&launch, dim3(BLOCKS), dim3(2), TILE_BYTES, false);
    cudaLaunchKernelEx(&launch.config, multicast_kernel, out, map, (int)TILES);
    std::vector<float> got = to_host(out, BLOCKS * TILES * 2048);
    for (size_t i = 0; i < got.size(); i++) {
        size_t at = i % (TILES * 2048);
        expect(got[i] == (at < x.size() ? x[at] : 0), "multicast");
    }
}

/* ---- programmatic launch ---- */

__global__ void __launch_bounds__(THREADS) first_kernel(float *y, const float *x, int n) {
    grid_dependency_launch();
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i < n) y[i] = 2 * x[i];
}

/* x is overwritten only when the grid before has read it. */
__global__ void __launch_bounds__(THREADS)
    second_kernel(float *z, float *x, const float *y, const float *weight, int n) {
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    float w = i < n ? weight[i] : 0, early = 0;
    if (i < n && BUG(1)) early = y[i]; /* BUG 1: read before the wait */
    if (i < n && BUG(2)) x[i] = w;     /* BUG 2: written before the wait */
    if (!BUG(3)) grid_dependency_wait(); /* BUG 3: no wait at all */
    if (i < n) {
        z[i] = w * (BUG(1) ? early : y[i]);
        x[i] = w;
    }
}

static void test_programmatic() {
    enum { N = 1000 };
    std::vector<float> x(N), w(N);
    for (float &f : x) f = next_number();
    for (float &f : w) f = next_number();
    float *in = to_device(x), *weight = to_device(w);
    float *y = new_device<float>(N), *z = new_device<float>(N);
    ClusterLaunch launch;
    describe_launch(&launch, dim3((N + THREADS - 1) / THREADS), dim3(1), 0, true);
    first_kernel<<<(N + THREADS - 1) / THREADS, THREADS>>>(y, in, (int)N);
    cudaLaunchKernelEx(&launch.config, second_kernel, z, in, (const float *)y,
                       (const float *)weight, (int)N);
    std::vector<float> got = to_host(z, N), written = to_host(in, N);
    for (int i = 0; i < N; i++) {
        expect(got[(size_t)i] == w[(size_t)i] * 2 * x[(size_t)i], "programmatic launch");
        expect(written[(size_t)i] == w[(size_t)i], "programmatic launch, written");
    }
}

const Case cluster_cases[] = {
    {"cluster", 0, "shared memory of other blocks", "", nullptr, "", test_sums},
    {"cluster", 1, "read before others have written", "sar", "UNINITIALISED READ", "", test_sums},
    {"cluster", 2, "arrives, and waits too late", "sar", "RACE", "", test_sums},
    {"cluster", 3, "exits while others read its memory", "sar", "has exited", "", test_sums},
    {"cluster", 4, "grid of no whole clusters", "sar", "bad launch", "", test_cluster_size},
    {"multicast", 0, "a tile to two blocks", "", nullptr, "", test_multicast},
    {"multicast", 1, "the other block's slot not awaited", "sar", nullptr, "", test_multicast},
    {"multicast", 2, "a block is left out", "sar", "announced bytes are missing", "",
     test_multicast},
    {"multicast", 3, "the other's barriers not awaited", "sar", nullptr, "", test_multicast},
    {"launch", 0, "programmatic", "", nullptr, "", test_programmatic},
    {"launch", 1, "result read before the wait", "r", "no grid_dependency_wait", "",
     test_programmatic},
    {"launch", 2, "input overwritten before the wait", "r", "no grid_dependency_wait", "",
     test_programmatic},
    {"launch", 3, "no wait", "r", "no grid_dependency_wait", "", test_programmatic},
    {nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr},
};
