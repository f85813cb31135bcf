/* CPU bodies of the wrappers in llmc/kernels/ptx_hopper.cuh: mbarriers with transaction counts,
   clusters, TMA of 2-D tiles, wgmma, setmaxnreg, stmatrix, programmatic launch. */
#ifndef CUDASIM_HOPPER_H
#define CUDASIM_HOPPER_H

#include "float16.h"
#include "warp.h"

/* What the driver's tensor map stands for: a row-major matrix and a tile size. Built by
   tensor_map_2d() below, not by the driver. */
struct alignas(64) CUtensorMap {
    char *base;
    int rows, columns, tile_rows, tile_columns, element_bytes;
    size_t pitch; /* bytes */
    uint32_t magic;
};

namespace cudasim {
/* What a product is, beside its operands. */
struct ProductShape {
    int n;
    bool bf16, a_in_registers, trans_a, trans_b;
    bool operator==(const ProductShape &o) const {
        return n == o.n && bf16 == o.bf16 && a_in_registers == o.a_in_registers &&
               trans_a == o.trans_a && trans_b == o.trans_b;
    }
};
void wgmma(ProductShape shape, float *d, const uint32_t *registers, uint64_t a, uint64_t b,
           int accumulate, const char *file, int line);
void wgmma_wait(int groups_left, const char *file, int line);
void set_registers(bool more, int count, const char *file, int line);
void *map_to_block(void *shared, unsigned rank);
CUtensorMap tensor_map(const void *base, int element_bytes, int rows, int columns, size_t stride,
                       int tile_rows, int tile_columns);
void tma_store_wait(int groups_left, bool written);
template <class T> struct Is { enum { bf16 = 0 }; };
template <> struct Is<__nv_bfloat16> { enum { bf16 = 1 }; };
} // namespace cudasim

template <class T>
inline CUtensorMap tensor_map_2d(const T *base, int rows, int columns, size_t stride, int tile_rows,
                                 int tile_columns) {
    return cudasim::tensor_map(base, (int)sizeof(T), rows, columns, stride, tile_rows,
                               tile_columns);
}

void mbarrier_init(uint64_t *barrier, unsigned arrivals);
void mbarrier_init_fence();
void mbarrier_arrive(uint64_t *barrier);
void mbarrier_arrive_expect(uint64_t *barrier, unsigned bytes);
void mbarrier_arrive_cluster(uint64_t *barrier, unsigned rank);
void mbarrier_wait(uint64_t *barrier, unsigned parity, CUDASIM_HERE);

unsigned cluster_rank();
unsigned cluster_blocks();
void cluster_arrive(CUDASIM_HERE);
void cluster_wait(CUDASIM_HERE);
template <class T> inline T *cluster_map(T *shared, unsigned rank) {
    return (T *)cudasim::map_to_block((void *)shared, rank);
}

void tma_load_2d(void *shared, const CUtensorMap *map, int column, int row, uint64_t *barrier);
void tma_load_2d_multicast(void *shared, const CUtensorMap *map, int column, int row,
                           uint64_t *barrier, uint16_t blocks);
void tma_store_2d(const CUtensorMap *map, int column, int row, const void *shared);
void tma_store_commit();
template <int groups_left> inline void tma_store_wait() {
    cudasim::tma_store_wait(groups_left, false);
}
template <int groups_left> inline void tma_store_wait_written() {
    cudasim::tma_store_wait(groups_left, true);
}
void fence_async_shared();

uint64_t wgmma_descriptor(const void *shared);
uint64_t wgmma_descriptor_mn(const void *shared, unsigned block_bytes);
void wgmma_fence(CUDASIM_HERE);
void wgmma_commit(CUDASIM_HERE);
template <int groups_left> inline void wgmma_wait(CUDASIM_HERE) {
    cudasim::wgmma_wait(groups_left, file, line);
}
template <int count> inline void wgmma_registers(float *) {}

template <class T, int N, int TRANS_A = 0, int TRANS_B = 0>
inline void wgmma_ss(float *d, uint64_t a, uint64_t b, int accumulate, CUDASIM_HERE) {
    static_assert(N == 64 || N == 128 || N == 192 || N == 256, "a product of this width");
    static_assert(sizeof(T) == 2, "a type of 16 bits");
    cudasim::wgmma({N, (bool)cudasim::Is<T>::bf16, false, TRANS_A != 0, TRANS_B != 0}, d, nullptr,
                   a, b, accumulate, file, line);
}

template <class T, int N, int TRANS_B = 0>
inline void wgmma_rs(float *d, const uint32_t a[4], uint64_t b, int accumulate, CUDASIM_HERE) {
    static_assert(N == 64 || N == 128 || N == 192 || N == 256, "a product of this width");
    static_assert(sizeof(T) == 2, "a type of 16 bits");
    cudasim::wgmma({N, (bool)cudasim::Is<T>::bf16, true, false, TRANS_B != 0}, d, a, 0, b,
                   accumulate, file, line);
}

template <int count> inline void registers_release(CUDASIM_HERE) {
    static_assert(count >= 24 && count <= 256 && count % 8 == 0, "setmaxnreg");
    cudasim::set_registers(false, count, file, line);
}
template <int count> inline void registers_take(CUDASIM_HERE) {
    static_assert(count >= 24 && count <= 256 && count % 8 == 0, "setmaxnreg");
    cudasim::set_registers(true, count, file, line);
}

namespace cudasim {
void stmatrix(void *row, bool transposed, const uint32_t *in, const char *file, int line);
}
inline void stmatrix_x4(void *row, const uint32_t in[4], CUDASIM_HERE) {
    cudasim::stmatrix(row, false, in, file, line);
}
inline void stmatrix_x4_trans(void *row, const uint32_t in[4], CUDASIM_HERE) {
    cudasim::stmatrix(row, true, in, file, line);
}

void grid_dependency_wait();
void grid_dependency_launch();

inline void l2_prefetch(const void *global, unsigned bytes) {
    if (((uintptr_t)global | bytes) % 16)
        cudasim::fail("l2_prefetch: %p or %u bytes not of whole 16", global, bytes);
}

#endif
