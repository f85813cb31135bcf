/* Row states (row_state.cuh) of sums u that are not yet logits: z = u / temperature. With
   c = log2(e) / temperature, as the special function unit has its exponential to the base 2:

       m = max u,  s = sum 2^(c (u-m)),  w = sum 2^(c (u-m)) (u-m),  q and r likewise

   The difference is taken first, so that the largest term is 1 exactly and a common offset costs
   nothing. base2_to_e gives the state of z, but for m, which no longer matters then. */
#pragma once
#include "../../llmc/kernels/row_state.cuh"
#include "../../llmc/kernels/ptx.cuh"

#define LOG2_E 1.44269504088896341f
#define LN_2 0.69314718055994531f

/* Relative to a maximum M >= m. An empty state stays empty. */
static __device__ __forceinline__ RowState base2_move(RowState x, float M, float c) {
    bool empty = x.m == -INFINITY;
    float d = empty ? 0.0f : x.m - M, a = empty ? 0.0f : exp2_approx(d * c);
    return RowState{M, a * x.s, a * (x.w + d * x.s), a * a * x.q, a * a * (x.r + d * x.q)};
}

static __device__ __forceinline__ RowState base2_merge(RowState x, RowState y, float c) {
    float M = fmaxf(x.m, y.m);
    x = base2_move(x, M, c);
    y = base2_move(y, M, c);
    return RowState{M, x.s + y.s, x.w + y.w, x.q + y.q, x.r + y.r};
}

static __device__ __forceinline__ RowState base2_to_e(RowState x, float inv_temperature) {
    x.w *= inv_temperature;
    x.r *= inv_temperature;
    return x;
}
