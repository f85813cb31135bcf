/* CPU bodies of the wrappers in llmc/kernels/ptx.cuh. */
#ifndef CUDASIM_PTX_H
#define CUDASIM_PTX_H

#include "float16.h"
#include "warp.h"

namespace cudasim {
void cp_async(void *out, const void *in, int bytes, int in_bytes);
void cp_async_commit();
void cp_async_wait(int groups_left);
void ldmatrix(uint32_t *out, int matrices, bool transposed, const void *row, const char *file,
              int line);
void mma_bf16(float *d, const uint32_t *a, const uint32_t *b, const float *c, const char *file,
              int line);
void mma_half(float *d, const uint32_t *a, const uint32_t *b, const float *c, const char *file,
              int line);
inline void named_barrier(int id, int threads, bool wait, const char *file, int line) {
    if (threads <= 0 || threads % 32)
        fail("barrier %d: %d threads is no multiple of 32", id, threads);
    block_barrier(id, threads, wait, 0, BarrierResult::NONE, file, line);
}
} // namespace cudasim

inline void cp_async16(void *shared, const void *global, int bytes = 16) {
    cudasim::cp_async(shared, global, 16, bytes);
}
inline void cp_async4(void *shared, const void *global, int bytes = 4) {
    cudasim::cp_async(shared, global, 4, bytes);
}
inline void cp_async_commit() { cudasim::cp_async_commit(); }
template <int groups_left> inline void cp_async_wait() { cudasim::cp_async_wait(groups_left); }

inline void ldmatrix_x2(uint32_t out[2], const void *row, CUDASIM_HERE) {
    cudasim::ldmatrix(out, 2, false, row, file, line);
}
inline void ldmatrix_x2_trans(uint32_t out[2], const void *row, CUDASIM_HERE) {
    cudasim::ldmatrix(out, 2, true, row, file, line);
}
inline void ldmatrix_x4(uint32_t out[4], const void *row, CUDASIM_HERE) {
    cudasim::ldmatrix(out, 4, false, row, file, line);
}
inline void ldmatrix_x4_trans(uint32_t out[4], const void *row, CUDASIM_HERE) {
    cudasim::ldmatrix(out, 4, true, row, file, line);
}

template <class T>
inline void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2], const float c[4],
                         CUDASIM_HERE);
template <>
inline void mma_m16n8k16<__nv_bfloat16>(float d[4], const uint32_t a[4], const uint32_t b[2],
                                        const float c[4], const char *file, int line) {
    cudasim::mma_bf16(d, a, b, c, file, line);
}
template <>
inline void mma_m16n8k16<__half>(float d[4], const uint32_t a[4], const uint32_t b[2],
                                 const float c[4], const char *file, int line) {
    cudasim::mma_half(d, a, b, c, file, line);
}

inline float exp2_approx(float x) {
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
/* As wrong as PTX allows. */
inline float log2_approx(float x) {
    double y = log2((double)x);
    return (float)(x > 0.5f && x < 2 ? y + 0x1p-22 : y * (1 + 0x1p-22));
}
inline float reciprocal_approx(float x) {
    float y = 1.0f / x;
    return fabsf(y) < 0x1p-126f ? 0.0f : y;
}

inline void barrier_sync(int id, int threads, CUDASIM_HERE) {
    cudasim::named_barrier(id, threads, true, file, line);
}
inline void barrier_arrive(int id, int threads, CUDASIM_HERE) {
    cudasim::named_barrier(id, threads, false, file, line);
}

#endif
