/* The linear layer as Hopper wants it (ptx_hopper.cuh): tiles come by TMA, wgmma multiplies from
   shared memory, and threads compute no addresses. All three products are one kernel, since TMA and
   wgmma take an operand of either layout (K: the dimension summed over):

       out = x w^T + bias    M tokens,  N = OC, K = C        x, w K-contiguous
       dx  = dout w          M tokens,  N = C,  K = OC       w transposed
       dw += dout^T x        M = OC,    N = C,  K tokens     both transposed

   Two blocks, a cluster, share a tile of 256 x 256: each has 128 rows, and both need the same 256
   rows of b. Each loads half of these and sends them to both (multicast), so a block reads
   16 + 16 KB from L2 for a stage of 48 KB: 128 flop a byte.

       warpgroup 0   producer: one thread waits for an empty stage, starts 2 loads of a, 2 of b
       1, 2          64 x 256 sums each in 128 registers; 4 products a stage, one stage in flight

       stage (of 4)  | a: 2 x 64 rows | b: 64 | 64 | 64 | 64 |    blocks of 64 x 64, 8 KB each
                                        from block 0   from block 1
       full[s]       this block's producer, and the 48 KB
       empty[s]      the 8 multiplying warps of both blocks, since both write to both

   Blocks stay, and take one tile after the other (8 pairs of rows before the next column, for L2);
   the producer is stages ahead, into the next tile while this one is stored. Narrow results go
   through shared memory, 64 columns at a time, and out by TMA, which cuts them off at the edges;
   dw is added to from registers. Sums have the order of K.

   Computed: at Hopper's rate, 2048 multiply-adds a cycle and multiprocessor, the 128 x 256 x 64 of
   a stage take 1024 cycles, in which 32 KB come from L2: 32 bytes a cycle.

   TMA needs rows of a multiple of 16 bytes: other shapes take what ships (linear.cuh). No float32:
   wgmma rounds it to TF32. */
#include "../../llmc/kernels/linear.cuh"
#include "../../llmc/kernels/ptx.cuh"
#include "../../llmc/kernels/ptx_hopper.cuh"
#include "lab.cuh"

enum {
    GROUP = 128,                        /* threads of a warpgroup */
    CONSUMERS = 2,
    ALL = (1 + CONSUMERS) * GROUP,
    SIDE = 64,                          /* of a block that TMA moves, and depth of a stage */
    ROWS = CONSUMERS * SIDE,            /* of a block's tile */
    COLUMNS = 256,
    BOX = SIDE * SIDE * 2,              /* bytes */
    A_BYTES = ROWS / SIDE * BOX,
    STAGE = A_BYTES + COLUMNS / SIDE * BOX,
    STAGES = 4,
    OUT_STAGES = 2,                     /* boxes on their way out, of each warpgroup */
    OUT_AT = STAGES * STAGE,
    BARRIERS_AT = OUT_AT + CONSUMERS * OUT_STAGES * BOX,
    SHARED = BARRIERS_AT + 2 * STAGES * (int)sizeof(uint64_t),
    DOWN_FIRST = 8                      /* pairs of rows */
};

struct Sizes {
    int M, N, K;
};

struct Place {
    int row, column; /* of this block's tile */
};

/* Tile t of those of the clusters: 8 pairs down, then across. Templates throughout, so that builds
   without wgmma do not find them unused. */
template <class T> static __device__ Place place_of(const Sizes &s, int t, unsigned rank) {
    int down = ceil_div(s.M, 2 * ROWS), across = ceil_div(s.N, COLUMNS);
    int first = t / (DOWN_FIRST * across) * DOWN_FIRST, at = t % (DOWN_FIRST * across);
    int here = min_int(DOWN_FIRST, down - first);
    return Place{(first + at % here) * 2 * ROWS + (int)rank * ROWS, at / here * COLUMNS};
}
template <class T> static __device__ __forceinline__ int count_tiles(const Sizes &s) {
    return ceil_div(s.M, 2 * ROWS) * ceil_div(s.N, COLUMNS);
}

struct Shared {
    unsigned char *base;
    uint64_t *full, *empty; /* [STAGES] */
};

#ifdef HOPPER_CODE
/* One thread. Box `i` of an operand, k from `k` on; transposed: memory has a row for each k. */
template <int TRANS>
static __device__ __forceinline__ void load_box(unsigned char *to, const CUtensorMap *map, int row,
                                                int k, uint64_t *full, uint16_t blocks) {
    int x = TRANS ? row : k, y = TRANS ? k : row;
    if (blocks) tma_load_2d_multicast(to, map, x, y, full, blocks);
    else tma_load_2d(to, map, x, y, full);
}

template <class T, int TRANS_A, int TRANS_B>
static __device__ void produce(const Shared &shared, const CUtensorMap *map_a,
                               const CUtensorMap *map_b, const Sizes &s, unsigned rank) {
    int n = 0;
    for (int t = blockIdx.x / 2; t < count_tiles<T>(s); t += gridDim.x / 2) {
        Place place = place_of<T>(s, t, rank);
        for (int k = 0; k < s.K; k += SIDE, n++) {
            int stage = n % STAGES;
            unsigned char *to = shared.base + stage * STAGE;
            uint64_t *full = &shared.full[stage];
            mbarrier_wait(&shared.empty[stage], (n / STAGES & 1) ^ 1);
            mbarrier_arrive_expect(full, STAGE);
            for (int i = 0; i < ROWS / SIDE; i++)
                load_box<TRANS_A>(to + i * BOX, map_a, place.row + i * SIDE, k, full, 0);
            for (int i = (int)rank * 2; i < (int)rank * 2 + 2; i++)
                load_box<TRANS_B>(to + A_BYTES + i * BOX, map_b, place.column + i * SIDE, k, full,
                                  3);
        }
    }
}

/* This warp has read the stage: lanes 0 and 1 tell both blocks. */
template <class T>
static __device__ __forceinline__ void release_stage(const Shared &shared, int n) {
    if (threadIdx.x % WARP < 2)
        mbarrier_arrive_cluster(&shared.empty[n % STAGES], threadIdx.x % WARP);
}

/* d [64,256] = the tile's sums over K; n: the first of its stages, counted from the start. */
template <class T, int TRANS_A, int TRANS_B>
static __device__ __forceinline__ void multiply(float *d, const Shared &shared, int group, int n,
                                                int steps) {
    for (int i = 0; i < steps; i++) {
        const unsigned char *a = shared.base + (n + i) % STAGES * STAGE + group * BOX;
        const unsigned char *b = shared.base + (n + i) % STAGES * STAGE + A_BYTES;
        mbarrier_wait(&shared.full[(n + i) % STAGES], (n + i) / STAGES & 1);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < SIDE; k += 16)
            wgmma_ss<T, COLUMNS, TRANS_A, TRANS_B>(
                d, TRANS_A ? wgmma_descriptor_mn(a + k * 128, BOX) : wgmma_descriptor(a + k * 2),
                TRANS_B ? wgmma_descriptor_mn(b + k * 128, BOX) : wgmma_descriptor(b + k * 2),
                i + k > 0);
        wgmma_commit();
        wgmma_wait<1>(); /* the stage before has been read */
        if (i > 0) release_stage<T>(shared, n + i - 1);
    }
    wgmma_wait<0>();
    wgmma_registers<COLUMNS / 2>(d);
    release_stage<T>(shared, n + steps - 1);
}

/* A thread's place in the sums of a warpgroup: its first row and column. */
template <class T> static __device__ __forceinline__ int own_row() {
    return threadIdx.x % GROUP / WARP * 16 + threadIdx.x % WARP / 4;
}
template <class T> static __device__ __forceinline__ int own_column() {
    return threadIdx.x % 4 * 2;
}

/* 64 columns of the sums to `box` as TMA wants them. Lane 8 m + r brings the address of row r of
   matrix m of four: rows 0-7 and 8-15 of the warp's 16, then the same 8 columns on. */
template <class T>
static __device__ __forceinline__ void write_box(unsigned char *box, const float *d,
                                                 const T *bias, int columns) {
    int lane = threadIdx.x % WARP;
    int row = threadIdx.x % GROUP / WARP * 16 + lane / 8 % 2 * 8 + lane % 8;
#pragma unroll
    for (int j = 0; j < SIDE / 8; j += 2) {
        uint32_t pairs[4];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int column = (j + h) * 8 + own_column<T>();
            const float *s = d + (j + h) * 4;
            float low = bias && column < columns ? to_f(bias[column]) : 0.0f;
            float high = bias && column < columns ? to_f(bias[column + 1]) : 0.0f;
            pairs[2 * h] = pack_pair<T>(s[0] + low, s[1] + high);
            pairs[2 * h + 1] = pack_pair<T>(s[2] + low, s[3] + high);
        }
        stmatrix_x4(box + row * 128 + ((j + lane / 16) ^ (row % 8)) * 16, pairs);
    }
}

/* Narrow results. The warpgroup's first thread speaks to TMA, the others wait for it. */
template <class T>
static __device__ __forceinline__ void store(const CUtensorMap *map, unsigned char *boxes,
                                             const float *d, const T *bias, const Place &place,
                                             int group, const Sizes &s) {
    bool speaks = threadIdx.x % GROUP == 0;
#pragma unroll
    for (int c = 0; c < COLUMNS / SIDE; c++) {
        int column = place.column + c * SIDE;
        unsigned char *box = boxes + c % OUT_STAGES * BOX;
        if (speaks) tma_store_wait<OUT_STAGES - 1>();
        barrier_sync(1 + group, GROUP);
        write_box<T>(box, d + c * SIDE / 2, bias ? bias + column : NULL, s.N - column);
        fence_async_shared();
        barrier_sync(1 + group, GROUP);
        if (!speaks) continue;
        tma_store_2d(map, column, place.row + group * SIDE, box);
        tma_store_commit();
    }
}

/* out [M,N] += the sums: four lanes have 32 bytes of a row. */
template <class T>
static __device__ __forceinline__ void add(float *out, const float *d, const Place &place,
                                           int group, const Sizes &s) {
    int row = place.row + group * SIDE + own_row<T>();
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i += 2) {
        int m = row + i / 2 % 2 * 8, n = place.column + i / 4 * 8 + own_column<T>();
        if (m >= s.M || n >= s.N) continue;
        float2 *at = (float2 *)(out + (size_t)m * s.N + n), x = *at;
        *at = make_float2(x.x + d[i], x.y + d[i + 1]);
    }
}

template <class T, int TRANS_A, int TRANS_B>
static __device__ void consume(const Shared &shared, const CUtensorMap *map_out, float *added,
                               const T *bias, const Sizes &s, unsigned rank) {
    /* from lane 0, so that the compiler keeps it, and the descriptors, in uniform registers */
    int group = __shfl_sync(FULL_WARP, threadIdx.x / GROUP, 0) - 1;
    int steps = ceil_div(s.K, SIDE), n = 0;
    unsigned char *boxes = shared.base + OUT_AT + group * OUT_STAGES * BOX;
    for (int t = blockIdx.x / 2; t < count_tiles<T>(s); t += gridDim.x / 2, n += steps) {
        Place place = place_of<T>(s, t, rank);
        float d[COLUMNS / 2];
        multiply<T, TRANS_A, TRANS_B>(d, shared, group, n, steps);
        if (TRANS_A) add<T>(added, d, place, group, s);
        else store<T>(map_out, boxes, d, bias, place, group, s);
    }
    if (threadIdx.x % GROUP == 0) tma_store_wait<0>();
}
#endif

/* out or added: [M,N]. Both are there only if they are written: dw is added to. */
template <class T, int TRANS_A, int TRANS_B>
static __global__ void __launch_bounds__(ALL, 1)
    product_kernel(const __grid_constant__ CUtensorMap map_out,
                   const __grid_constant__ CUtensorMap map_a,
                   const __grid_constant__ CUtensorMap map_b, float *added, const T *bias,
                   Sizes sizes) {
#ifdef HOPPER_CODE
    extern __shared__ __align__(1024) unsigned char base[];
    Shared shared = {base, (uint64_t *)(base + BARRIERS_AT),
                     (uint64_t *)(base + BARRIERS_AT) + STAGES};
    unsigned rank = cluster_rank();
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&shared.full[i], 1);
            mbarrier_init(&shared.empty[i], 2 * CONSUMERS * (GROUP / WARP));
        }
        mbarrier_init_fence();
    }
    cluster_arrive(); /* the other block's barriers are there, too */
    cluster_wait();
    if (threadIdx.x < GROUP) {
        registers_release<40>();
        if (threadIdx.x == 0)
            produce<T, TRANS_A, TRANS_B>(shared, &map_a, &map_b, sizes, rank);
        __syncwarp();
    } else {
        registers_take<232>();
        consume<T, TRANS_A, TRANS_B>(shared, &map_out, added, bias, sizes, rank);
    }
    cluster_arrive(); /* the other block may still send here */
    cluster_wait();
#endif
}

/* ---- the host -------------------------------------------------------------------------------- */

/* rows x columns in memory, moved in boxes of 64 x 64. */
template <class T> static CUtensorMap boxes_of(const T *data, int rows, int columns) {
    return tensor_map_2d(data, rows, columns, (size_t)columns, SIDE, SIDE);
}

template <class T, int TRANS_A, int TRANS_B>
static void product(T *out, float *added, const T *a, const T *b, const T *bias, int M, int N,
                    int K) {
    Sizes s = {M, N, K};
    CUtensorMap map_a = TRANS_A ? boxes_of(a, K, M) : boxes_of(a, M, K);
    CUtensorMap map_b = TRANS_B ? boxes_of(b, K, N) : boxes_of(b, N, K);
    CUtensorMap map_out = out ? boxes_of(out, M, N) : map_a;
    cudaLaunchAttribute pair = {};
    pair.id = cudaLaunchAttributeClusterDimension;
    pair.val.clusterDim.x = 2;
    pair.val.clusterDim.y = pair.val.clusterDim.z = 1;
    int tiles = ceil_div(M, 2 * ROWS) * ceil_div(N, COLUMNS);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(2 * min_int(tiles, max_int(1, cuda.multiprocessors / 2)));
    config.blockDim = dim3(ALL);
    config.dynamicSmemBytes = SHARED;
    config.stream = cuda.stream;
    config.attrs = &pair;
    config.numAttrs = 1;
    ALLOW_SHARED(SHARED, product_kernel<T, TRANS_A, TRANS_B>);
    CUDA_CHECK(cudaLaunchKernelEx(&config, product_kernel<T, TRANS_A, TRANS_B>, map_out, map_a,
                                  map_b, added, bias, s));
}

/* Can TMA move this matrix? */
template <class T> static bool fits(const T *data, int columns) {
    return rows_aligned(data, (size_t)columns, sizeof *data);
}

template <class T>
static void matmul_forward(T *out, const T *x, const T *w, const T *bias, int N, int C, int OC) {
    if (N == 0) return;
    if (!fits(x, C) || !fits(w, C) || !fits(out, OC)) linear_forward(out, x, w, bias, N, C, OC);
    else product<T, 0, 0>(out, NULL, x, w, bias, N, OC, C);
}

template <class T>
static void matmul_backward(T *dx, float *dw, float *dbias, const T *dout, const T *x, const T *w,
                            int N, int C, int OC, void *workspace) {
    if (N == 0) return;
    bool all_fit = fits(dout, OC) && fits(x, C) && fits(w, C) && (!dx || fits(dx, C)) &&
                   (uintptr_t)dw % sizeof(float2) == 0;
    if (!all_fit) {
        linear_backward(dx, dw, dbias, dout, x, w, N, C, OC, workspace);
        return;
    }
    if (dx) product<T, 0, 1>(dx, NULL, dout, w, (const T *)NULL, N, C, OC);
    product<T, 1, 1>((T *)NULL, dw, dout, x, (const T *)NULL, OC, C, N);
    if (dbias) add_column_sums(dbias, dout, N, OC, workspace);
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    int qkv = (shape->NH + 2 * shape->NKV) * shape->HS;
    return linear_workspace(shape->N, max_int(qkv, max_int(shape->C, shape->F)));
}

template <class T> static void fill_type(struct Ops *ops) {
    if constexpr (sizeof(T) == 2) {
        ops->matmul_forward = matmul_forward<T>;
        ops->matmul_backward = matmul_backward<T>;
    } else {
        (void)ops;
    }
}

static void fill(struct Ops *ops) {
    lab_unused();
    fill_type<floatX>(ops);
}

extern const struct KernelFile PER_TYPE(matmul_hopper) = {"matmul_hopper", fill, workspace_bytes};
