/* What is done to query and key heads before attention, position.c in CUDA: RMS norm of each head,
   then the rotation of the pairs (x_p, x_(p + HS/2)) by a_p = position inv_freq_p.

       forward    rstd = 1 / sqrt(1/HS sum x^2 + epsilon),  y = x rstd weight,  y rotated by a
       backward   dy rotated by -a;  h = x rstd,  g = dy weight,
                  dweight += sum over tokens and heads of dy h,  dx = rstd (g - h <g h>)

   A block has one token (backward with a norm: a slice of tokens), each of its warps every eighth
   head; a lane has the pairs p = lane and lane + 32, so that it holds both numbers of a rotation,
   and cosines and sines are formed once for all heads of the warp:

                  0 ... HS/2-1 | HS/2 ... HS-1      a head; lane l has p = l, l + 32 of each half
       token n    q_0  q_1 .. q_NH-1 | k_0 .. k_NKV-1 | v ..   (values are not touched)
                   |    |
                 warp 0 1 .. 7 0 1 ..

   HS may be odd where nothing is rotated: then the last pair has one number. What a head becomes
   depends on its own token only, and the same instructions run whether or not anything is kept for
   a backward pass: so a token has the same bits in training, in recomputation, in a decode step.

   dweight without float atomics: a warp adds up its heads in registers, token by token; the warps
   of a block are added in order -> partial [slices][2][HS] (queries', keys'); fold_kernel adds the
   slices in order.

   Bytes: forward reads and writes the heads once, 2 N (NH + NKV) HS elements, and with a norm
   writes them once more and reads them in backward, which otherwise moves the same. For 8192 tokens
   of Qwen3-0.6B (16 and 8 heads of 128) in bf16 that is 151 MB forward, 50 us at 3.0 TB/s. */
#include "dependent.cuh"

enum {
    WARPS = 8,
    THREADS = WARPS * WARP,
    MAX_HS = 128,
    PAIRS = MAX_HS / 2 / WARP, /* of a lane */
    MOST_SLICES = 512
};

struct Turn {
    floatX *x;                           /* qkv or dqkv [N,QKV] */
    floatX *saved_x;                     /* [N,NH+NKV,HS], NULL: not kept */
    float *rstd;                         /* [N,NH+NKV] */
    const int *position;
    const floatX *q_weight, *k_weight;   /* NULL: no norm */
    const float *inv_freq;               /* NULL: no rotation */
    float epsilon;
    float *partial;                      /* [slices][2][HS] */
    int N, NH, count, HS, half, QKV;     /* count: NH + NKV; half: pairs of a head */
    int slice;                           /* tokens of a block */
};

/* A lane's numbers of a head: x_p and x_(p + half). Those that it does not have are 0. */
struct HeadPart {
    float first[PAIRS], second[PAIRS];
};

static __device__ __forceinline__ HeadPart load_head(const floatX *x, int half, int HS) {
    HeadPart part;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int p = threadIdx.x % WARP + i * WARP;
        part.first[i] = p < half ? to_f(x[p]) : 0.0f;
        part.second[i] = p < half && p + half < HS ? to_f(x[p + half]) : 0.0f;
    }
    return part;
}

static __device__ __forceinline__ void store_head(floatX *x, const HeadPart &part, int half,
                                                  int HS) {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int p = threadIdx.x % WARP + i * WARP;
        if (p < half) x[p] = from_f<floatX>(part.first[i]);
        if (p < half && p + half < HS) x[p + half] = from_f<floatX>(part.second[i]);
    }
}

struct Angles {
    float cosine[PAIRS], sine[PAIRS];
};

/* sin and cos of an angle |x| < 2^31. With k the nearest integer to 2 x / pi, r = x - k pi/2 lies
   within pi/4 of 0, and sine and cosine of r or of pi/2 - r are two minimax polynomials in r^2
   (relative errors 4e-9 and 1e-10 before rounding). Up to 10^5 pi/2 is three floats: k times the
   first is subtracted exactly, because both are multiples of 2^-23 and the difference is below 1.
   Beyond that r is formed in double. sincosf reduces large angles with an array in local memory,
   which costs a stack, and registers. Against float64, for every float in [2^-10, 2^17): at most
   1.6 units in the last place of the result, 1.7e-7 of it. */
static __device__ __forceinline__ void sine_cosine(float x, float *sine, float *cosine) {
    float k = rintf(x * 0.636619772f), r;
    if (fabsf(x) < 1e5f) {
        r = fmaf(-k, 0x1.921fb6p+0f, x);
        r = fmaf(-k, -0x1.777a5cp-25f, r);
        r = fmaf(-k, -0x1.ee59dap-50f, r);
    } else {
        double whole = rint((double)x * 0.63661977236758134);
        k = (float)(((int)whole) & 3);
        r = (float)fma(-whole, 0x1.1a62633145c07p-54, fma(-whole, 0x1.921fb54442d18p+0, (double)x));
    }
    float square = r * r, s, c;
    s = fmaf(fmaf(-1.9517528e-4f, square, 8.3321808e-3f), square, -1.6666655e-1f);
    s = fmaf(r * square, s, r);
    c = fmaf(fmaf(2.4439410e-5f, square, -1.3887377e-3f), square, 4.1666646e-2f);
    c = fmaf(square * square, c, fmaf(-0.5f, square, 1.0f));
    const int quarter = (int)k & 3;
    const float along = quarter & 1 ? c : s, across = quarter & 1 ? s : c;
    *sine = quarter & 2 ? -along : along;
    *cosine = (quarter + 1) & 2 ? -across : across;
}

/* The angle is a float32 number, as in transformers; its cosine and sine are those of that
   number. */
static __device__ __forceinline__ Angles angles_of(const Turn &t, int position) {
    Angles angles;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int p = threadIdx.x % WARP + i * WARP;
        float angle = p < t.half ? __fmul_rn((float)position, t.inv_freq[p]) : 0.0f;
        sine_cosine(angle, &angles.sine[i], &angles.cosine[i]);
    }
    return angles;
}

/* direction -1: back. */
static __device__ __forceinline__ void rotate(HeadPart &x, const Angles &a, float direction) {
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        float sine = a.sine[i] * direction, first = x.first[i], second = x.second[i];
        x.first[i] = first * a.cosine[i] - second * sine;
        x.second[i] = second * a.cosine[i] + first * sine;
    }
}

/* sum over the head of x y */
static __device__ __forceinline__ float dot(const HeadPart &x, const HeadPart &y) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
        sum = fmaf(x.first[i], y.first[i], fmaf(x.second[i], y.second[i], sum));
    return warp_sum(sum);
}

/* ---- forward -------------------------------------------------------------------------------- */

template <bool NORM> static __global__ void __launch_bounds__(THREADS) forward_kernel(Turn t) {
    await_previous();
    const size_t n = blockIdx.x;
    const int position = t.position[n];
    if (position < 0) return;
    Angles angles;
    if (t.inv_freq) angles = angles_of(t, position);
    for (int h = threadIdx.x / WARP; h < t.count; h += WARPS) {
        floatX *at = t.x + n * t.QKV + (size_t)h * t.HS;
        HeadPart x = load_head(at, t.half, t.HS);
        if (NORM) {
            const HeadPart weight = load_head(h < t.NH ? t.q_weight : t.k_weight, t.half, t.HS);
            float rstd = 1.0f / sqrtf(dot(x, x) / t.HS + t.epsilon);
            if (t.saved_x) {
                store_head(t.saved_x + (n * t.count + h) * t.HS, x, t.half, t.HS);
                if (threadIdx.x % WARP == 0) t.rstd[n * t.count + h] = rstd;
            }
#pragma unroll
            for (int i = 0; i < PAIRS; i++) {
                x.first[i] = x.first[i] * rstd * weight.first[i];
                x.second[i] = x.second[i] * rstd * weight.second[i];
            }
        }
        if (t.inv_freq) rotate(x, angles, 1.0f);
        store_head(at, x, t.half, t.HS);
    }
}

/* ---- backward ------------------------------------------------------------------------------- */

/* Head h of token n; dx: its gradient, turned back already. Adds to dweight. */
static __device__ __forceinline__ void norm_backward(HeadPart &dx, HeadPart &dweight,
                                                     const Turn &t, size_t n, int h) {
    const HeadPart weight = load_head(h < t.NH ? t.q_weight : t.k_weight, t.half, t.HS);
    const float rstd = t.rstd[n * t.count + h];
    HeadPart x = load_head(t.saved_x + (n * t.count + h) * t.HS, t.half, t.HS);
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        x.first[i] *= rstd;
        x.second[i] *= rstd;
        dweight.first[i] = fmaf(dx.first[i], x.first[i], dweight.first[i]);
        dweight.second[i] = fmaf(dx.second[i], x.second[i], dweight.second[i]);
        dx.first[i] *= weight.first[i];
        dx.second[i] *= weight.second[i];
    }
    float mean = dot(dx, x) / t.HS;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        dx.first[i] = rstd * (dx.first[i] - x.first[i] * mean);
        dx.second[i] = rstd * (dx.second[i] - x.second[i] * mean);
    }
}

/* The block's sums of dweight: [2][HS] of its slice. sums: shared [WARPS][2][MAX_HS]. */
static __device__ void store_sums(const Turn &t, const HeadPart dweight[2],
                                  float (*sums)[2][MAX_HS]) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (int which = 0; which < 2; which++)
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            int p = lane + i * WARP;
            if (p < t.half) sums[warp][which][p] = dweight[which].first[i];
            if (p < t.half && p + t.half < t.HS)
                sums[warp][which][p + t.half] = dweight[which].second[i];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < 2 * t.HS; i += THREADS) {
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += sums[w][i / t.HS][i % t.HS];
        t.partial[(size_t)blockIdx.x * 2 * t.HS + i] = sum;
    }
}

template <bool NORM> static __global__ void __launch_bounds__(THREADS) backward_kernel(Turn t) {
    __shared__ float sums[NORM ? WARPS : 1][2][MAX_HS];
    const int begin = blockIdx.x * t.slice, end = min_int(t.N, begin + t.slice);
    HeadPart dweight[2] = {};
    for (int n = begin; n < end; n++) {
        const int position = t.position[n];
        if (position < 0) continue;
        Angles angles;
        if (t.inv_freq) angles = angles_of(t, position);
        for (int h = threadIdx.x / WARP; h < t.count; h += WARPS) {
            floatX *at = t.x + (size_t)n * t.QKV + (size_t)h * t.HS;
            HeadPart dx = load_head(at, t.half, t.HS);
            if (t.inv_freq) rotate(dx, angles, -1.0f);
            if (NORM && h < t.NH) norm_backward(dx, dweight[0], t, n, h);
            else if (NORM) norm_backward(dx, dweight[1], t, n, h);
            store_head(at, dx, t.half, t.HS);
        }
    }
    if (NORM) store_sums(t, dweight, sums);
}

/* dq_weight and dk_weight [HS] += the slices' sums, in order. */
static __global__ void fold_kernel(float *dq_weight, float *dk_weight, const float *partial,
                                   int slices, int HS) {
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= 2 * HS) return;
    float sum = 0;
#pragma unroll 8
    for (int s = 0; s < slices; s++) sum += partial[(size_t)s * 2 * HS + i];
    if (i < HS) dq_weight[i] += sum;
    else dk_weight[i - HS] += sum;
}

/* ---- the slots ------------------------------------------------------------------------------ */

static struct Turn turn_of(floatX *x, const struct PositionSaved *saved, const int *position,
                           const struct Position *how, const struct Heads *heads, int N) {
    if (heads->HS > MAX_HS)
        cuda_die("heads of %d numbers are more than the GPU's kernels have room for, %d",
                 heads->HS, (int)MAX_HS);
    struct Turn t = {};
    t.x = x, t.saved_x = saved->x, t.rstd = saved->rstd, t.position = position;
    t.q_weight = how->q_weight, t.k_weight = how->k_weight, t.inv_freq = how->inv_freq;
    t.epsilon = how->epsilon;
    t.N = N, t.NH = heads->NH, t.count = heads->NH + heads->NKV, t.HS = heads->HS;
    t.half = (heads->HS + 1) / 2, t.QKV = heads_qkv(heads), t.slice = 1;
    return t;
}

static void position_forward(floatX *qkv, const struct PositionSaved *saved, const int *position,
                             const struct Position *how, const struct Heads *heads, int N) {
    if (N == 0 || (how->q_weight == NULL && how->inv_freq == NULL)) return;
    struct Turn t = turn_of(qkv, saved, position, how, heads, N);
    if (how->q_weight) LAUNCH_DEPENDENT(N, THREADS, 0, forward_kernel<true>, t);
    else LAUNCH_DEPENDENT(N, THREADS, 0, forward_kernel<false>, t);
}

static void position_backward(floatX *dqkv, const struct PositionGradients *gradients,
                              const struct PositionSaved *saved, const int *position,
                              const struct Position *how, const struct Heads *heads, int N,
                              void *workspace) {
    if (N == 0 || (how->q_weight == NULL && how->inv_freq == NULL)) return;
    struct Turn t = turn_of(dqkv, saved, position, how, heads, N);
    if (how->q_weight == NULL) {
        backward_kernel<false><<<N, THREADS, 0, cuda.stream>>>(t);
        CUDA_CHECK_LAUNCH();
        return;
    }
    t.slice = ceil_div(N, MOST_SLICES);
    t.partial = (float *)workspace;
    int slices = ceil_div(N, t.slice);
    backward_kernel<true><<<slices, THREADS, 0, cuda.stream>>>(t);
    CUDA_CHECK_LAUNCH();
    fold_kernel<<<ceil_div(2 * t.HS, THREADS), THREADS, 0, cuda.stream>>>(
        gradients->dq_weight, gradients->dk_weight, t.partial, slices, t.HS);
    CUDA_CHECK_LAUNCH();
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return (size_t)min_int(shape->N, MOST_SLICES) * 2 * shape->HS * sizeof(float);
}

static void fill(struct Ops *ops) {
    ops->position_forward = position_forward;
    ops->position_backward = position_backward;
}

extern const struct KernelFile PER_TYPE(cuda_position) = {"position", fill, workspace_bytes};
