/* What the head's versions for Hopper share: a ring of stages in shared memory that TMA fills and
   wgmma empties, and the numbers of the tile.

   Three warpgroups of 128 threads. One thread of the last starts copies; the first two multiply,
   each 64 rows of the block's 128 x 256 tile, with 128 sums a thread. Two blocks are a cluster:
   they have the same 256 columns and different rows, so each fetches half of the columns' operand
   for both.

                     columns 0 .. 127   128 .. 255             a stage: 64 elements of K
       block 0     +------------------+------------+           A  128 rows x 128 bytes   16 KB, own
         group 0   |   64 x 256                    |           B  256 rows x 128 bytes   32 KB,
         group 1   |   64 x 256                    |              half fetched by each block
       block 1     +------------------+------------+           4 stages: 192 KB
         group 0   |                               |
         group 1   |                               |
                   +-------------------------------+
                     B by block 0       by block 1

   From the second cache level a block takes (128 + 128) K elements for 2 * 128 * 256 K flop, 128
   flop a byte.

   Overlap. Both groups use the same stages, but the second is held back at the start until the
   first is LEAD stages ahead. When the first has its tile and reduces it, the second still has LEAD
   stages, to which the tensor cores are then its own; when it reduces, the first is in its next
   tile. LEAD stages last LEAD * 4 * 128 = 1536 cycles for a group that multiplies alone.

   full[s] ends a phase when a stage's bytes have come; empty[s] when all eight warps of each of the
   two blocks have multiplied it: then both halves may be overwritten. */
#pragma once
#include "../../llmc/kernels/cuda_common.cuh"
#include "../../llmc/kernels/ptx.cuh"
#include "../../llmc/kernels/ptx_hopper.cuh"

enum {
    GROUP = 128,               /* threads of a warpgroup */
    PRODUCER = 2 * GROUP,      /* the thread that starts copies; those before it multiply */
    HOPPER_THREADS = 3 * GROUP,
    PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240,
    BLOCK_ROWS = 128, PAIR_ROWS = 256, BLOCK_COLUMNS = 256, GROUP_ROWS = 64,
    STAGE_K = 64, LINE = 128,  /* bytes of a row of a tile: 64 elements */
    STEP_K = 16,               /* of one wgmma */
    STEP_BYTES = STEP_K * 2,
    A_BYTES = BLOCK_ROWS * LINE, B_BYTES = BLOCK_COLUMNS * LINE, STAGE_BYTES = A_BYTES + B_BYTES,
    STAGES = 4, LEAD = 3,
    SUMS = 128,                /* of a thread: 64 of row g, 64 of row g + 8 */
    EMPTY_ARRIVALS = 2 * 8,    /* warps that multiply, of a cluster */
    RING_BYTES = STAGES * STAGE_BYTES,
    BARRIER_BYTES = (2 * STAGES + 1) * 8
};

/* The type that tensor cores multiply. Versions for Hopper have no slots in float32, but their
   files compile. */
template <class T> struct NarrowType { typedef T type; };
template <> struct NarrowType<float> { typedef __nv_bfloat16 type; };
typedef NarrowType<floatX>::type narrow;

/* Shared memory: the stages, what else a kernel wants, the barriers. */
struct Ring {
    unsigned char *stages;
    uint64_t *full, *empty, *lead;
    int stage;       /* of the next to be filled or multiplied */
    unsigned parity; /* of its phase */
    int passed;      /* stages that this thread is through with, at most LEAD */
};

static __device__ __forceinline__ unsigned char *ring_a(const Ring &ring) {
    return ring.stages + ring.stage * STAGE_BYTES;
}
static __device__ __forceinline__ unsigned char *ring_b(const Ring &ring) {
    return ring_a(ring) + A_BYTES;
}
static __device__ __forceinline__ void ring_next(Ring *ring) {
    if (++ring->stage < STAGES) return;
    ring->stage = 0;
    ring->parity ^= 1;
}

#ifdef HOPPER_CODE

static __device__ __forceinline__ int warp_group() { return threadIdx.x / GROUP; }
/* In the block's tile: the first of a lane's two rows; the other is 8 further. */
static __device__ __forceinline__ int first_lane_row() {
    return threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
}

/* Barriers behind `bytes` of shared memory. By all threads of both blocks. */
static __device__ __forceinline__ Ring ring_open(unsigned char *shared, int bytes) {
    uint64_t *barrier = (uint64_t *)(shared + bytes);
    Ring ring = {shared, barrier, barrier + STAGES, barrier + 2 * STAGES, 0, 0, 0};
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            mbarrier_init(&ring.full[s], 1);
            mbarrier_init(&ring.empty[s], EMPTY_ARRIVALS);
        }
        mbarrier_init(ring.lead, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    cluster_arrive();
    cluster_wait();
    return ring;
}

/* A block of a cluster stays until the other has no more use for its memory. */
static __device__ __forceinline__ void ring_close() {
    __syncwarp();
    cluster_arrive();
    cluster_wait();
}

/* Producer: waits until the stage is empty in both blocks, and announces the bytes to come. */
static __device__ __forceinline__ void ring_fill(const Ring &ring, int bytes) {
    mbarrier_wait(&ring.empty[ring.stage], ring.parity ^ 1);
    mbarrier_arrive_expect(&ring.full[ring.stage], bytes);
}

/* A warp is through with a stage, in both blocks' books. */
static __device__ __forceinline__ void ring_release(Ring *ring, int stage) {
    __syncwarp();
    if (threadIdx.x % WARP == 0) {
        mbarrier_arrive_cluster(&ring->empty[stage], 0);
        mbarrier_arrive_cluster(&ring->empty[stage], 1);
    }
    if (ring->passed < LEAD && ++ring->passed == LEAD && threadIdx.x == 0)
        mbarrier_arrive(ring->lead);
}

/* Consumers, before their first stage: the second group lets the first go ahead, if there are that
   many stages. */
static __device__ __forceinline__ void ring_hold_back(const Ring &ring, int total_stages) {
    if (warp_group() == 1 && total_stages >= LEAD) mbarrier_wait(ring.lead, 0);
}

/* sum = A B^T over `stages` stages, both operands K-contiguous. A stage is released when the
   products of the next one are under way. */
static __device__ __forceinline__ void multiply(float *sum, Ring *ring, int stages) {
    int before = 0;
    for (int k = 0; k < stages; k++) {
        mbarrier_wait(&ring->full[ring->stage], ring->parity);
        const unsigned char *a = ring_a(*ring) + warp_group() * GROUP_ROWS * LINE;
        const unsigned char *b = ring_b(*ring);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < STAGE_K / STEP_K; step++)
            wgmma_ss<narrow, BLOCK_COLUMNS>(sum, wgmma_descriptor(a + step * STEP_BYTES),
                                            wgmma_descriptor(b + step * STEP_BYTES),
                                            k > 0 || step > 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (k > 0) ring_release(ring, before);
        before = ring->stage;
        ring_next(ring);
    }
    wgmma_wait<0>();
    wgmma_registers<SUMS>(sum);
    ring_release(ring, before);
}

#endif

/* ---- inputs as TMA wants them: rows of a multiple of 16 bytes -------------------------------- */

enum { COPIERS = 128 };

/* to [rows][stride] = the rows `row[0..]` of from [..][C] (NULL: in order), zeros from C on. */
static __global__ void __launch_bounds__(COPIERS)
copy_rows_kernel(narrow *to, const narrow *from, const int *row, int C, int stride) {
    size_t i = blockIdx.x;
    from += (row ? (size_t)row[i] : i) * C;
    to += i * stride;
    for (int d = threadIdx.x; d < stride; d += COPIERS) to[d] = d < C ? from[d] : narrow(0.0f);
}
static __global__ void __launch_bounds__(COPIERS)
copy_whole_rows_kernel(uint4 *to, const uint4 *from, const int *row, int chunks) {
    size_t i = blockIdx.x;
    from += (row ? (size_t)row[i] : i) * chunks;
    to += i * chunks;
    for (int c = threadIdx.x; c < chunks; c += COPIERS) to[c] = from[c];
}

/* Elements from row to row of a copy. */
static inline int copied_stride(int C) { return (int)align_up(C, 8); }

static inline void copy_rows(narrow *to, const floatX *from, const int *row, int rows, int C) {
    if (rows_aligned(from, C, sizeof *from))
        copy_whole_rows_kernel<<<rows, COPIERS, 0, cuda.stream>>>(
            (uint4 *)to, (const uint4 *)from, row, (int)(C * sizeof *from / sizeof(uint4)));
    else
        copy_rows_kernel<<<rows, COPIERS, 0, cuda.stream>>>(to, (const narrow *)from, row, C,
                                                            copied_stride(C));
    CUDA_CHECK_LAUNCH();
}

/* W [V,C] as TMA can read it: itself, or a copy where its rows are not whole chunks of 16 bytes. */
static inline size_t readable_bytes(int V, int C) {
    return C % 8 == 0 ? 0 : align_up((size_t)V * copied_stride(C) * sizeof(narrow), 256);
}
static inline const narrow *readable(narrow *copy, const floatX *W, int V, int C) {
    if (C % 8 != 0) copy_rows(copy, W, NULL, V, C);
    else if (!rows_aligned(W, C, sizeof *W))
        cuda_die("the head's versions for Hopper want a weight that is aligned to 16 bytes");
    return C % 8 == 0 ? (const narrow *)W : copy;
}
