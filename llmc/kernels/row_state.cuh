/* Softmax statistics of a row of logits z in pieces that merge: row_state.h in CUDA, same formulas.

       m = max z,  s = sum e^(z-m),  w = sum e^(z-m) (z-m)       lse = m + ln s
       q = sum e^2(z-m),  r = sum e^2(z-m) (z-m)                 H   = ln s - w / s
                                                                 Q   = q / s^2
                                                                 QL  = (r - q ln s) / s^2

   w is centred at the maximum; row_state.h says how much smaller its error is. m starts at -inf,
   never at 0. */
#pragma once
#include "cuda_common.cuh"

struct RowState {
    float m, s, w, q, r;
};

static __device__ __forceinline__ RowState row_state_empty() {
    return RowState{-INFINITY, 0, 0, 0, 0};
}

/* The same state relative to a maximum M >= m. An empty piece (m = -inf) stays empty: its a and d
   are set to 0, because -inf - (-inf) would be NaN. */
static __device__ __forceinline__ RowState row_state_move(RowState x, float M) {
    bool empty = x.m == -INFINITY;
    float d = empty ? 0.0f : x.m - M, a = empty ? 0.0f : expf(d);
    return RowState{M, a * x.s, a * (x.w + d * x.s), a * a * x.q, a * a * (x.r + d * x.q)};
}

/* The state of two pieces together. A NaN in either stays. */
static __device__ __forceinline__ RowState row_state_merge(RowState x, RowState y) {
    float M = y.m > x.m || isnan(y.m) ? y.m : x.m;
    x = row_state_move(x, M);
    y = row_state_move(y, M);
    return RowState{M, x.s + y.s, x.w + y.w, x.q + y.q, x.r + y.r};
}

/* One logit more, under a maximum that is known to be at least z. */
static __device__ __forceinline__ void row_state_add(RowState *x, float z) {
    float centred = z - x->m, e = expf(centred), moment = e * centred;
    if (z == -INFINITY) moment = e = 0; /* a masked column: 0 and not 0 * -inf */
    x->s += e;
    x->w += moment;
    x->q += e * e;
    x->r += e * moment;
}

/* Lanes that differ in the bits of `lanes` (1, or 1 and 2, ...) merge; all get the result. */
static __device__ __forceinline__ RowState row_state_shuffle(RowState x, int lanes) {
    return RowState{__shfl_xor_sync(FULL_WARP, x.m, lanes), __shfl_xor_sync(FULL_WARP, x.s, lanes),
                    __shfl_xor_sync(FULL_WARP, x.w, lanes), __shfl_xor_sync(FULL_WARP, x.q, lanes),
                    __shfl_xor_sync(FULL_WARP, x.r, lanes)};
}

/* What the objective sees. logp needs the target's logit: (z_y - m) - ln s, not z_y - lse, because
   at m = 1e4 the sum m + ln s would be rounded to 1e-3. */
static __device__ __forceinline__ float row_state_entropy(RowState x) {
    return logf(x.s) - x.w / x.s;
}
static __device__ __forceinline__ float row_state_q(RowState x) { return x.q / x.s / x.s; }
static __device__ __forceinline__ float row_state_qlog(RowState x) {
    return (x.r - x.q * logf(x.s)) / x.s / x.s;
}
