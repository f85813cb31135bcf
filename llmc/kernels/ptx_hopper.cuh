/* Hopper's asynchronous instructions, wrapped once as asm and once as a CPU body (test/cudasim), in
   the manner of ptx.cuh. Kernels that use them have their bodies inside #ifdef HOPPER_CODE, so that
   a file compiles for other architectures too (their host code must not launch there).

   mbarriers: 8 aligned bytes of shared memory. A phase ends when all arrivals and all announced
   bytes have come; the next begins at once.
       mbarrier_init(b, arrivals)      one thread; then mbarrier_init_fence() by it, then a barrier
       mbarrier_arrive(b)              releases what this thread did before
       mbarrier_arrive_expect(b, n)    arrives and announces n bytes of TMA loads for this phase
       mbarrier_wait(b, parity)        until the phase of this parity (0 for the first) has ended
       mbarrier_arrive_cluster(b, r)   arrives at the barrier at the same place in block r's memory:
                                       that this thread has read something. What it wrote is not
                                       released to that block; cluster_arrive does that

   Clusters: blocks that run together and see each other's shared memory. Launched with
   cudaLaunchKernelEx and cudaLaunchAttributeClusterDimension.
       cluster_rank(), cluster_blocks()       of this block, in its cluster
       cluster_arrive(), cluster_wait()       a barrier of all the cluster's threads, in two halves;
                                              what was written before arrive is seen after wait. No
                                              block may exit while another still uses its memory
       cluster_map(shared, r)                 block r's copy of an address, for ordinary loads

   TMA: one thread moves a tile of tile_rows x 128 bytes between a row-major matrix and shared
   memory, where it lies with the 128-byte swizzle: row r at shared + 128 r, its 16-byte chunk c at
   place c ^ (r % 8). `shared` is aligned to 1024 bytes. What lies outside the matrix is loaded as
   zero (it counts as bytes all the same) and not stored.
       tensor_map_2d<T>(...)           host: describes the matrix; passed as __grid_constant__ const
       tma_load_2d(s, map, column, row, b)                announces its bytes to barrier b
       tma_load_2d_multicast(s, map, column, row, b, m)   the same tile into the same place of every
                                       block whose bit is set in m, and its bytes to b there
       tma_store_2d(map, column, row, s)   fence_async_shared() by those who wrote the tile, then a
       tma_store_commit()                  barrier, before; then one group of stores ends here
       tma_store_wait<n>()             all but the n youngest groups have been read from shared
                                       memory, which may be written again (or the block may exit)
       tma_store_wait_written<n>()     ... and are in global memory
       fence_async_shared()            what this thread sees in shared memory by ordinary accesses
                                       is seen by TMA and wgmma after it

   wgmma: a warpgroup, 128 threads from a multiple of 128 on, multiplies d (64 x N) += a (64 x 16)
   b^T (N x 16), float sums. d is spread over the threads: register i of thread t holds
       row    16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2)
       column 8 (i / 4) + 2 (t % 4) + i % 2
       wgmma_descriptor(s)         a tile of rows of 64 elements of k (128 bytes), as TMA leaves it:
                                   K-contiguous. s + 2 k (k = 0, 16, 32, 48) for the columns from k
       wgmma_descriptor_mn(s, n)   the other way round: rows of 64 elements of M or N, one k a row;
                                   n bytes from one such block to the next. s + 128 k for those from
                                   k; the product is told by TRANS = 1
       wgmma_ss<T, N, TRANS_A, TRANS_B>(d, a, b, accumulate)   N 64, 128, 192, 256; T bf16 or half;
                                   accumulate = 0: d = a b^T
       wgmma_rs<T, N, TRANS_B>(d, a, b, accumulate)   a in 4 registers of pairs, as ptx.cuh's mma:
                                   rows t % 32 / 4 and + 8 of the warp's 16, columns 2 (t % 4), then
                                   both at columns + 8
                                   A warpgroup's number comes from __shfl_sync(.., threadIdx.x
                                   / 128, 0), so that descriptors stay in uniform registers
       wgmma_fence()               before the first product, and after registers were touched
       wgmma_commit(), wgmma_wait<n>()   groups, as of cp.async. Until then d, a's registers and the
                                   tiles belong to the product
       wgmma_registers<n>(d)       no instruction: keeps the compiler from moving accesses of d [n]
                                   across it. After every wgmma_wait, before d is used

   registers_release<n>, _take<n>: the warpgroup's threads have n registers from here on
   (setmaxnreg; n a multiple of 8 from 24 to 256). The kernel needs __launch_bounds__(threads, 1):
   ptxas ignores both where it does not know the number at entry, and says so (C7508).

   stmatrix_x4 [_trans]: 4 matrices of 8 x 8 16-bit elements to shared memory; lane 8 m + i brings
   the address of row i of matrix m, registers as ldmatrix_x4 leaves them.

   Programmatic launch (cudaLaunchAttributeProgrammaticStreamSerialization): the next grid may begin
   when all blocks have called grid_dependency_launch() or ended; it must not touch what they write
   before grid_dependency_wait(), which returns when they have ended. Nothing below sm_90.

   l2_prefetch: begins to bring bytes to the second cache level; address and number are multiples of
   16. It reads nothing that a program could see, so it may come before what it fetches is written.
   Nothing below sm_90.

   PTX ISA 8.x: "mbarrier", "cp.async.bulk.tensor", "wgmma", "Matrix Descriptor Format", "stmatrix",
   "setmaxnreg", "griddepcontrol", "barrier.cluster". */
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#if defined(CUDASIM) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_CODE
#endif

#ifdef CUDASIM
#include "ptx_hopper_cpu.h"
#else

__device__ __forceinline__ uint32_t hopper_shared_address(const void *shared) {
    return (uint32_t)__cvta_generic_to_shared(shared);
}

/* ---- mbarriers ---- */

__device__ __forceinline__ void mbarrier_init(uint64_t *barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(hopper_shared_address(barrier)),
                 "r"(arrivals)
                 : "memory");
}

__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(hopper_shared_address(barrier))
                 : "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                     hopper_shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void mbarrier_arrive_cluster(uint64_t *barrier, unsigned rank) {
    asm volatile("{\n"
                 ".reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                 "}" ::"r"(hopper_shared_address(barrier)),
                 "r"(rank)
                 : "memory");
}

/* At the scope of the block. At that of the cluster an arrival would wait for all of its thread's
   stores (MEMBAR.ALL.GPU), and a wait would empty the first cache level (CCTL.IVALL). */
__device__ __forceinline__ void mbarrier_wait(uint64_t *barrier, unsigned parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "WAIT:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@done bra DONE;\n"
                 "bra WAIT;\n"
                 "DONE:\n"
                 "}" ::"r"(hopper_shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

/* ---- clusters ---- */

__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ unsigned cluster_blocks() {
    unsigned blocks;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
    return blocks;
}

__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

template <class T> __device__ __forceinline__ T *cluster_map(T *shared, unsigned rank) {
    T *there;
    asm volatile("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(shared), "r"(rank));
    return there;
}

/* ---- TMA ---- */

__device__ __forceinline__ void tma_load_2d(void *shared, const CUtensorMap *map, int column,
                                            int row, uint64_t *barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(hopper_shared_address(shared)),
                 "l"(map), "r"(hopper_shared_address(barrier)), "r"(column), "r"(row)
                 : "memory");
}

__device__ __forceinline__ void tma_load_2d_multicast(void *shared, const CUtensorMap *map,
                                                      int column, int row, uint64_t *barrier,
                                                      uint16_t blocks) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(
                     hopper_shared_address(shared)),
                 "l"(map), "r"(hopper_shared_address(barrier)), "r"(column), "r"(row), "h"(blocks)
                 : "memory");
}

__device__ __forceinline__ void tma_store_2d(const CUtensorMap *map, int column, int row,
                                             const void *shared) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group "
                 "[%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(hopper_shared_address(shared)), "r"(column), "r"(row)
                 : "memory");
}

__device__ __forceinline__ void tma_store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

template <int groups_left> __device__ __forceinline__ void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(groups_left) : "memory");
}

template <int groups_left> __device__ __forceinline__ void tma_store_wait_written() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(groups_left) : "memory");
}

__device__ __forceinline__ void fence_async_shared() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

template <class T> struct TensorMapType;
template <> struct TensorMapType<float> {
    static constexpr CUtensorMapDataType value = CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
};
template <> struct TensorMapType<__nv_bfloat16> {
    static constexpr CUtensorMapDataType value = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
};
template <> struct TensorMapType<__half> {
    static constexpr CUtensorMapDataType value = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
};

/* The driver's function, found without linking libcuda. */
inline decltype(&cuTensorMapEncodeTiled) tensor_map_encoder() {
    static void *encoder;
    if (encoder) return (decltype(&cuTensorMapEncodeTiled))encoder;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encoder, 12000, cudaEnableDefault,
                                     &found);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &encoder, cudaEnableDefault, &found);
#endif
    if (found == cudaDriverEntryPointSuccess && encoder)
        return (decltype(&cuTensorMapEncodeTiled))encoder;
    fprintf(stderr, "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12\n");
    exit(1);
}

/* A row-major matrix of T (float, bf16, half), rows at a distance of `stride` elements, moved in
   tiles of tile_rows (at most 256) x tile_columns, a row of which has 128 bytes. base and the
   stride in bytes are multiples of 16. Ends the program (exit code 1) where that does not hold. */
template <class T>
inline CUtensorMap tensor_map_2d(const T *base, int rows, int columns, size_t stride, int tile_rows,
                                 int tile_columns) {
    CUtensorMap map;
    cuuint64_t extent[2] = {(cuuint64_t)columns, (cuuint64_t)rows};
    cuuint64_t pitch[1] = {(cuuint64_t)(stride * sizeof(T))};
    cuuint32_t tile[2] = {(cuuint32_t)tile_columns, (cuuint32_t)tile_rows};
    cuuint32_t step[2] = {1, 1};
    CUresult result = tensor_map_encoder()(
        &map, TensorMapType<T>::value, 2, (void *)base, extent, pitch, tile, step,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS && tile_columns * sizeof(T) == 128) return map;
    fprintf(stderr, "tensor map of %d x %d elements, stride %zu, tile %d x %d: error %d\n", rows,
            columns, stride, tile_rows, tile_columns, (int)result);
    exit(1);
}

/* ---- wgmma ---- */

/* Start / 16; leading offset; stride offset 1024: from 8 rows of 128 bytes to the next 8; swizzle
   mode 1 = 128 bytes. */
__device__ __forceinline__ uint64_t wgmma_descriptor(const void *shared) {
    uint64_t start = (hopper_shared_address(shared) & 0x3ffff) >> 4;
    return start | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

__device__ __forceinline__ uint64_t wgmma_descriptor_mn(const void *shared, unsigned block_bytes) {
    uint64_t start = (hopper_shared_address(shared) & 0x3ffff) >> 4;
    return start | (uint64_t)(block_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

__device__ __forceinline__ void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int groups_left> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(groups_left) : "memory");
}

template <int count> __device__ __forceinline__ void wgmma_registers(float *d) {
#pragma unroll
    for (int i = 0; i < count; i++) asm volatile("" : "+f"(d[i])::"memory");
}

/* The names %0 to %N/2-1 of the sums, and the sums as operands. */
#define WGMMA_NAMES_32 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
    "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_NAMES_64 \
    WGMMA_NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
    "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_NAMES_96 \
    WGMMA_NAMES_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
    "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define WGMMA_NAMES_128 \
    WGMMA_NAMES_96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
    "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_SUMS_16(i) \
    WGMMA_SUMS_4(i), WGMMA_SUMS_4(i + 4), WGMMA_SUMS_4(i + 8), WGMMA_SUMS_4(i + 12)
#define WGMMA_SUMS_32 WGMMA_SUMS_16(0), WGMMA_SUMS_16(16)
#define WGMMA_SUMS_64 WGMMA_SUMS_32, WGMMA_SUMS_16(32), WGMMA_SUMS_16(48)
#define WGMMA_SUMS_96 WGMMA_SUMS_64, WGMMA_SUMS_16(64), WGMMA_SUMS_16(80)
#define WGMMA_SUMS_128 WGMMA_SUMS_96, WGMMA_SUMS_16(96), WGMMA_SUMS_16(112)

/* One product. `sums` is N / 2; p0 to p5 are the operands' numbers after the sums. */
#define WGMMA_SS(N, sums, type, p0, p1, p2, p3, p4)                                            \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " p2 ", 0;\n"                           \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " "           \
                 "{" WGMMA_NAMES_##sums "}, " p0 ", " p1 ", add, 1, 1, " p3 ", " p4 ";\n}"      \
                 : WGMMA_SUMS_##sums                                                           \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(TRANS_A), "n"(TRANS_B))
#define WGMMA_RS(N, sums, type, p0, p1, p2, p3, p4, p5, p6)                                     \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, " p5 ", 0;\n"                           \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " "           \
                 "{" WGMMA_NAMES_##sums "}, {" p0 "," p1 "," p2 "," p3 "}, " p4                \
                 ", add, 1, 1, " p6 ";\n}"                                                     \
                 : WGMMA_SUMS_##sums                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),        \
                   "n"(TRANS_B))
/* All N. */
#define WGMMA_SS_TYPE(type)                                                             \
    if constexpr (N == 64) WGMMA_SS(64, 32, type, "%32", "%33", "%34", "%35", "%36");       \
    if constexpr (N == 128) WGMMA_SS(128, 64, type, "%64", "%65", "%66", "%67", "%68");     \
    if constexpr (N == 192) WGMMA_SS(192, 96, type, "%96", "%97", "%98", "%99", "%100");    \
    if constexpr (N == 256) WGMMA_SS(256, 128, type, "%128", "%129", "%130", "%131", "%132")
#define WGMMA_RS_TYPE(type)                                                                     \
    if constexpr (N == 64)                                                                      \
        WGMMA_RS(64, 32, type, "%32", "%33", "%34", "%35", "%36", "%37", "%38");                \
    if constexpr (N == 128)                                                                     \
        WGMMA_RS(128, 64, type, "%64", "%65", "%66", "%67", "%68", "%69", "%70");               \
    if constexpr (N == 192)                                                                     \
        WGMMA_RS(192, 96, type, "%96", "%97", "%98", "%99", "%100", "%101", "%102");            \
    if constexpr (N == 256)                                                                     \
        WGMMA_RS(256, 128, type, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

template <class T> struct WgmmaType;
template <> struct WgmmaType<__nv_bfloat16> { enum { bf16 = 1 }; };
template <> struct WgmmaType<__half> { enum { bf16 = 0 }; };

template <class T, int N, int TRANS_A = 0, int TRANS_B = 0>
__device__ __forceinline__ void wgmma_ss(float *d, uint64_t a, uint64_t b, int accumulate) {
    static_assert(N == 64 || N == 128 || N == 192 || N == 256, "a product of this width");
    if constexpr (WgmmaType<T>::bf16) {
        WGMMA_SS_TYPE("bf16");
    } else {
        WGMMA_SS_TYPE("f16");
    }
}

template <class T, int N, int TRANS_B = 0>
__device__ __forceinline__ void wgmma_rs(float *d, const uint32_t a[4], uint64_t b,
                                         int accumulate) {
    static_assert(N == 64 || N == 128 || N == 192 || N == 256, "a product of this width");
    if constexpr (WgmmaType<T>::bf16) {
        WGMMA_RS_TYPE("bf16");
    } else {
        WGMMA_RS_TYPE("f16");
    }
}

/* ---- registers, stmatrix, programmatic launch ---- */

template <int count> __device__ __forceinline__ void registers_release() {
    static_assert(count >= 24 && count <= 256 && count % 8 == 0, "setmaxnreg");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}

template <int count> __device__ __forceinline__ void registers_take() {
    static_assert(count >= 24 && count <= 256 && count % 8 == 0, "setmaxnreg");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

__device__ __forceinline__ void stmatrix_x4(void *row, const uint32_t in[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                     hopper_shared_address(row)),
                 "r"(in[0]), "r"(in[1]), "r"(in[2]), "r"(in[3])
                 : "memory");
}

__device__ __forceinline__ void stmatrix_x4_trans(void *row, const uint32_t in[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(
                     hopper_shared_address(row)),
                 "r"(in[0]), "r"(in[1]), "r"(in[2]), "r"(in[3])
                 : "memory");
}

__device__ __forceinline__ void grid_dependency_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void grid_dependency_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void l2_prefetch(const void *global, unsigned bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                     __cvta_generic_to_global(global)),
                 "r"(bytes));
#else
    (void)global, (void)bytes;
#endif
}

#endif
