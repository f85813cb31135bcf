/* Softmax statistics of a row of logits z, from one pass over it, in pieces that merge.

       m = max z,  s = sum e^(z-m),  w = sum e^(z-m) (z-m)       lse = m + ln s
       q = sum e^2(z-m),  r = sum e^2(z-m) (z-m)                 H   = ln s - w / s
                                                                 Q   = q / s^2
                                                                 QL  = (r - q ln s) / s^2

   w is centred at the maximum. In float32 over 50k columns this H errs by up to 2.5e-6, which is
   two or three of its ulps; H = lse - sum p z by up to 1e-4, a running sum of p log p by up to 7e-4
   (dev/head_numerics.c). */
#ifndef LLMC_KERNELS_ROW_STATE_H
#define LLMC_KERNELS_ROW_STATE_H

#include "vmath.h"

struct RowState {
    float m, s, w, q, r;
};

/* Maps a float to an integer so that the order stays the same: of a negative float, all bits but
   the sign are inverted. So a maximum is an integer maximum, which gcc and clang turn into vector
   code (float comparisons with NaN they do not), and a NaN of positive sign is the largest of
   all. */
static inline int32_t order_float(float x) {
    int32_t bits = (int32_t)vm_bits(x);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

static inline float row_maximum(const float *x, int n) {
    int32_t m = INT32_MIN;
    #pragma omp simd reduction(max : m)
    for (int j = 0; j < n; j++) m = order_float(x[j]) > m ? order_float(x[j]) : m;
    return vm_from_bits((uint32_t)(m ^ ((m >> 31) & 0x7fffffff)));
}

/* The state of z [n]; weight [n] = e^(z - m), a loop of its own because a long one runs slower. */
static inline struct RowState row_state(float *weight, const float *z, int n) {
    float m = row_maximum(z, n), s = 0, w = 0, q = 0, r = 0;
    #pragma omp simd
    for (int j = 0; j < n; j++) weight[j] = vm_exp(z[j] - m);
    #pragma omp simd reduction(+ : s, w, q, r)
    for (int j = 0; j < n; j++) {
        float e = weight[j], moment = e * (z[j] - m);
        s += e;
        w += moment;
        q += e * e;
        r += e * moment;
    }
    return (struct RowState){m, s, w, q, r};
}

/* The same state relative to a maximum M >= m: with d = m - M and a = e^d,
   s <- a s,  w <- a (w + d s),  q <- a^2 q,  r <- a^2 (r + d q). */
static inline struct RowState row_state_move(struct RowState x, float M) {
    float d = x.m - M, a = vm_exp(d);
    return (struct RowState){M, a * x.s, a * (x.w + d * x.s), a * a * x.q,
                             a * a * (x.r + d * x.q)};
}

/* The state of two pieces together. */
static inline struct RowState row_state_merge(struct RowState x, struct RowState y) {
    float M = y.m > x.m ? y.m : x.m;
    x = row_state_move(x, M);
    y = row_state_move(y, M);
    return (struct RowState){M, x.s + y.s, x.w + y.w, x.q + y.q, x.r + y.r};
}

#endif
