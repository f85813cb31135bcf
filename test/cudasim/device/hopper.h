/* CPU bodies of the Hopper wrappers in kernels/ptx_hopper.cuh: mbarriers with transaction counts,
   TMA loads of 2-D tiles, wgmma from shared memory. */
#ifndef CUDASIM_HOPPER_H
#define CUDASIM_HOPPER_H

#include "warp.h"

/* What the driver's tensor map stands for: a row-major matrix of 16-bit elements and a tile size.
   Built by tensor_map_2d() below, not by the driver. */
struct alignas(64) CUtensorMap {
    char *base;
    int rows, columns, tile_rows, tile_columns;
    size_t pitch; /* bytes */
    uint32_t magic;
};

CUtensorMap tensor_map_2d(const void *base, int rows, int columns, int tile_rows, int tile_columns);

void mbarrier_init(uint64_t *barrier, unsigned arrivals);
inline void mbarrier_init_fence() {}
void mbarrier_arrive(uint64_t *barrier);
void mbarrier_arrive_expect(uint64_t *barrier, unsigned bytes);
void mbarrier_wait(uint64_t *barrier, unsigned parity, CUDASIM_HERE);

void tma_load_2d(void *shared, const CUtensorMap *map, int column, int row, uint64_t *barrier);

uint64_t wgmma_descriptor(const void *shared);
void wgmma_m64n64k16_bf16(float d[32], uint64_t a, uint64_t b, CUDASIM_HERE);
void wgmma_fence(CUDASIM_HERE);
void wgmma_commit(CUDASIM_HERE);
namespace cudasim {
void wgmma_wait(int groups_left, const char *file, int line);
}
template <int groups_left> inline void wgmma_wait(CUDASIM_HERE) {
    cudasim::wgmma_wait(groups_left, file, line);
}

#endif
