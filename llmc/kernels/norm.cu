/* Layer norm (1607.06450) and RMS norm (1910.07467) of each row over its C channels: norm.c in
   CUDA.

       mean = 1/C sum x,  rstd = 1 / sqrt(1/C sum (x - mean)^2 + epsilon)
       h = (x - mean) rstd,  out = h weight + bias
   RMS norm is the same without mean and bias. LAYER chooses when the kernels are compiled.

   Backward, with g = dout weight (elementwise) and averages over the row:
       dx += rstd (g - <g> - h <g h>),  dweight += sum_n dout h,  dbias += sum_n dout
   where RMS norm has no <g>, and no dbias.

   Forward: a warp per row, VEC columns (16 bytes) per lane and load. The row is read once and
   stays in registers for the mean, then the squares, then the output:

       column     0      VEC    2 VEC  ...  31 VEC   32 VEC  33 VEC ...
       lane       0       1       2    ...    31        0       1   ...
       vector   [              0                 ][            1        ...

   Backward: a block per slice of rows, VEC columns per thread. The sums of a row cross the block;
   those of the columns stay in the thread's registers until the slice ends:

       thread     0       1       2    ...
       row 0    [   ]   [   ]   [   ]      -> <g>, <g h> of row 0
       row 1    [   ]   [   ]   [   ]      -> <g>, <g h> of row 1
                  |       |       |
       partial  [   ]   [   ]   [   ]      workspace [slices][2][C] (RMS norm: [slices][1][C]),
                                           added in order by fold_kernel

   Rows that do not fit (C > 2048 forward, C > 512 VEC backward) take the long kernels, which read
   them again for each pass.

   There are about ten operations to an element, so only bytes count. Per element of 2 bytes the
   forward pass reads 2 and writes 2, with the residual sum 4 and 4; backward reads 6 and writes 2.
   The partial sums are 8 bytes per column and slice (RMS norm: 4), written and read: 4 MB, in the
   L2 cache. */
#include "dependent.cuh"

enum {
    ROWS = 4,           /* forward: rows of a block, a warp each */
    LONG_THREADS = 256, /* of the long kernels' blocks */
    MAX_THREADS = 512,  /* of a backward block */
    RESIDENT = 512,     /* backward: threads of a multiprocessor, 128 registers for each */
    MIN_SLICE = 4,      /* backward: with fewer rows the partial sums would be most of it */
    FOLD_WARPS = 32
};

/* ---- columns ------------------------------------------------------------------------------- */

/* VEC columns of a row, of which `left` exist (none if it is 0 or less); the others read as 0.
   WHOLE: rows are aligned to 16 bytes. That is known at compile time, so that there is no
   branch between the loads of a thread, and all are started before the first is waited for. */
template <bool WHOLE>
static __device__ __forceinline__ uint4 load_bits(const floatX *in, int left) {
    uint4 bits = make_uint4(0, 0, 0, 0);
    if (WHOLE) {
        if (left > 0) bits = *(const uint4 *)in;
    } else {
        floatX element[VEC];
#pragma unroll
        for (int j = 0; j < VEC; j++) element[j] = j < left ? in[j] : from_f<floatX>(0);
        memcpy(&bits, element, sizeof bits);
    }
    return bits;
}

static __device__ __forceinline__ void unpack_columns(float *out, uint4 bits) {
    floatX element[VEC];
    memcpy(element, &bits, sizeof bits);
#pragma unroll
    for (int j = 0; j < VEC; j++) out[j] = to_f(element[j]);
}

template <bool WHOLE>
static __device__ __forceinline__ void load_columns(float *out, const floatX *in, int left) {
    unpack_columns(out, load_bits<WHOLE>(in, left));
}

template <bool WHOLE>
static __device__ __forceinline__ void store_columns(floatX *out, const float *in, int left) {
    if (!WHOLE) store_some(out, in, left, false);
    else if (left > 0) store_vector(out, in);
}

static bool is_whole(const floatX *row, int C) { return rows_aligned(row, C, sizeof *row); }

/* ---- forward ------------------------------------------------------------------------------- */

struct Forward {
    floatX *sum, *out;
    float *mean, *rstd; /* mean: with LAYER only */
    const floatX *x, *delta, *weight, *bias; /* sum, delta: with RESIDUAL only; bias may be NULL */
    float epsilon;
    int N, C;
};

/* row += delta in `left` columns, rounded to floatX, and stored as the sum: the norm is of what is
   stored, so that norm_forward on the stored sum repeats it to the bit. Recomputed activations
   rely on that. */
template <bool WHOLE>
static __device__ __forceinline__ void add_delta(float *row, const float *delta, floatX *sum,
                                                 int left) {
#pragma unroll
    for (int j = 0; j < VEC; j++) row[j] = to_f(from_f<floatX>(row[j] + delta[j]));
    store_columns<WHOLE>(sum, row, left);
}

/* Weight and bias in VEC columns from c, as they lie in memory. */
struct Affine {
    uint4 weight, bias;
};

template <bool LAYER, bool WHOLE>
static __device__ __forceinline__ Affine load_affine(const struct Forward &a, int c) {
    Affine affine = {load_bits<WHOLE>(a.weight + c, a.C - c), make_uint4(0, 0, 0, 0)};
    if (LAYER && a.bias) affine.bias = load_bits<WHOLE>(a.bias + c, a.C - c);
    return affine;
}

/* out = centred rstd weight + bias in `left` columns. fmaf is written out, here and in the squares:
   the compiler then has no choice that could differ between two instances of one formula. */
template <bool WHOLE>
static __device__ __forceinline__ void store_row(floatX *to, const float *centred, float rstd,
                                                 const Affine &affine, int left) {
    float weight[VEC], bias[VEC], out[VEC];
    unpack_columns(weight, affine.weight);
    unpack_columns(bias, affine.bias);
#pragma unroll
    for (int j = 0; j < VEC; j++) out[j] = fmaf(centred[j] * rstd, weight[j], bias[j]);
    store_columns<WHOLE>(to, out, left);
}

/* With LAYER, row -= mean in `left` columns. Returns the sum of their squares. Beyond them row
   stays 0. */
template <bool LAYER>
static __device__ __forceinline__ float centre(float *row, float mean, int left) {
    float squares = 0;
#pragma unroll
    for (int j = 0; j < VEC; j++) {
        if (LAYER) row[j] = j < left ? row[j] - mean : 0.0f;
        squares = fmaf(row[j], row[j], squares);
    }
    return squares;
}

static __device__ __forceinline__ float sum_of(const float *row) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < VEC; j++) sum += row[j];
    return sum;
}

/* HELD: floats of the row in each lane's registers, C <= 32 HELD. Weight and bias are loaded with
   the row, before the first store, past which the compiler may move no load: a decode step has few
   rows, and waits for memory once instead of twice. Where registers are short (float rows of more
   than 1024 channels, rows that are not aligned) they are loaded when they are needed. Two blocks
   of a multiprocessor have 8 rows under way, which keeps memory busy; left without that number the
   assembler aims at more blocks than the registers allow, and spills a few. */
template <int HELD, bool LAYER, bool RESIDUAL, bool WHOLE>
static __global__ void __launch_bounds__(ROWS * WARP, 2)
forward_kernel(struct Forward a) {
    enum { VECTORS = HELD / VEC, EARLY = WHOLE && HELD * sizeof(floatX) <= 128 };
    int n = blockIdx.x * ROWS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    await_previous();
    if (n >= a.N) return; /* the whole warp */
    size_t row = (size_t)n * a.C;
    float held[VECTORS][VEC], delta[VECTORS][VEC], sum = 0, squares = 0;
    Affine affine[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        if (EARLY) affine[v] = load_affine<LAYER, WHOLE>(a, (v * WARP + lane) * VEC);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        int c = (v * WARP + lane) * VEC;
        load_columns<WHOLE>(held[v], a.x + row + c, a.C - c);
        if (RESIDUAL) load_columns<WHOLE>(delta[v], a.delta + row + c, a.C - c);
    }
#pragma unroll
    for (int v = 0; v < VECTORS; v++) { /* after all loads: `sum` may be x */
        int c = (v * WARP + lane) * VEC;
        if (RESIDUAL) add_delta<WHOLE>(held[v], delta[v], a.sum + row + c, a.C - c);
        if (LAYER) sum += sum_of(held[v]);
    }
    float mean = LAYER ? warp_sum(sum) / (float)a.C : 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++)
        squares += centre<LAYER>(held[v], mean, a.C - (v * WARP + lane) * VEC);
    float rstd = 1.0f / sqrtf(warp_sum(squares) / (float)a.C + a.epsilon);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        int c = (v * WARP + lane) * VEC;
        if (!EARLY) affine[v] = load_affine<LAYER, WHOLE>(a, c);
        store_row<WHOLE>(a.out + row + c, held[v], rstd, affine[v], a.C - c);
    }
    if (lane > 0) return;
    if (LAYER) a.mean[n] = mean;
    a.rstd[n] = rstd;
}

/* A block per row, which each thread reads once per pass (of `sum` it reads what it wrote). */
template <bool LAYER, bool RESIDUAL, bool WHOLE>
static __global__ void __launch_bounds__(LONG_THREADS) long_forward_kernel(struct Forward a) {
    __shared__ float scratch[LONG_THREADS / WARP];
    enum { STRIDE = LONG_THREADS * VEC };
    int n = blockIdx.x, first = threadIdx.x * VEC;
    size_t row = (size_t)n * a.C;
    float held[VEC], delta[VEC], sum = 0, squares = 0, mean = 0;
    await_previous();
    for (int c = first; c < a.C; c += STRIDE) {
        load_columns<WHOLE>(held, a.x + row + c, a.C - c);
        if (RESIDUAL) load_columns<WHOLE>(delta, a.delta + row + c, a.C - c);
        if (RESIDUAL) add_delta<WHOLE>(held, delta, a.sum + row + c, a.C - c);
        if (LAYER) sum += sum_of(held);
        else squares += centre<LAYER>(held, 0, a.C - c);
    }
    const floatX *x = RESIDUAL ? a.sum : a.x;
    if (LAYER) mean = block_sum<LONG_THREADS>(sum, scratch) / (float)a.C;
    for (int c = first; LAYER && c < a.C; c += STRIDE) {
        load_columns<WHOLE>(held, x + row + c, a.C - c);
        squares += centre<LAYER>(held, mean, a.C - c);
    }
    float variance = block_sum<LONG_THREADS>(squares, scratch) / (float)a.C;
    float rstd = 1.0f / sqrtf(variance + a.epsilon);
    for (int c = first; c < a.C; c += STRIDE) {
        load_columns<WHOLE>(held, x + row + c, a.C - c);
        centre<LAYER>(held, mean, a.C - c);
        store_row<WHOLE>(a.out + row + c, held, rstd, load_affine<LAYER, WHOLE>(a, c), a.C - c);
    }
    if (threadIdx.x > 0) return;
    if (LAYER) a.mean[n] = mean;
    a.rstd[n] = rstd;
}

/* The kernel is chosen by C alone (WHOLE changes no sum's order): a row's bits do
   not depend on the number of rows nor on the row's address. */
template <bool LAYER, bool RESIDUAL, bool WHOLE>
static void launch_forward(const struct Forward &a) {
    enum { THREADS = ROWS * WARP };
    int blocks = ceil_div(a.N, ROWS);
    if (a.C <= 8 * WARP)
        LAUNCH_DEPENDENT(blocks, THREADS, 0, forward_kernel<8, LAYER, RESIDUAL, WHOLE>, a);
    else if (a.C <= 16 * WARP)
        LAUNCH_DEPENDENT(blocks, THREADS, 0, forward_kernel<16, LAYER, RESIDUAL, WHOLE>, a);
    else if (a.C <= 32 * WARP)
        LAUNCH_DEPENDENT(blocks, THREADS, 0, forward_kernel<32, LAYER, RESIDUAL, WHOLE>, a);
    else if (a.C <= 64 * WARP)
        LAUNCH_DEPENDENT(blocks, THREADS, 0, forward_kernel<64, LAYER, RESIDUAL, WHOLE>, a);
    else
        LAUNCH_DEPENDENT(a.N, LONG_THREADS, 0, long_forward_kernel<LAYER, RESIDUAL, WHOLE>, a);
}

template <bool RESIDUAL>
static void forward(const struct Forward &a, enum NormKind kind, bool whole) {
    if (a.N == 0) return;
    if (kind == NORM_LAYER && whole) launch_forward<true, RESIDUAL, true>(a);
    else if (kind == NORM_LAYER) launch_forward<true, RESIDUAL, false>(a);
    else if (whole) launch_forward<false, RESIDUAL, true>(a);
    else launch_forward<false, RESIDUAL, false>(a);
}

static bool is_whole(const struct Norm *norm, int C) {
    return is_whole(norm->weight, C) && is_whole(norm->bias, C);
}

static void norm_forward(floatX *out, const struct NormStats *stats, const floatX *x,
                         const struct Norm *norm, int N, int C) {
    struct Forward a = {NULL, out, stats->mean, stats->rstd, x, NULL, norm->weight, norm->bias,
                        norm->epsilon, N, C};
    forward<false>(a, norm->kind, is_whole(out, C) && is_whole(x, C) && is_whole(norm, C));
}

static void norm_residual_forward(floatX *sum, floatX *out, const struct NormStats *stats,
                                  const floatX *x, const floatX *delta, const struct Norm *norm,
                                  int N, int C) {
    struct Forward a = {sum, out, stats->mean, stats->rstd, x, delta, norm->weight, norm->bias,
                        norm->epsilon, N, C};
    forward<true>(a, norm->kind, is_whole(sum, C) && is_whole(out, C) && is_whole(x, C) &&
                                     is_whole(delta, C) && is_whole(norm, C));
}

/* ---- backward ------------------------------------------------------------------------------ */

struct Backward {
    floatX *dx;
    const floatX *dout, *x, *weight;
    const float *mean, *rstd; /* mean: with LAYER only */
    float *partial; /* [slices][2][C]: the sums of dweight, then of dbias; dweight's only without
                       LAYER */
    int N, C, slice; /* slice: rows of each but the last */
};

/* In: x, dout, weight in VEC columns of a row. x becomes h and dout becomes g; their sums over the
   columns are added to *row, and the columns' own dout h and dout to dweight and dbias. Without
   LAYER there is no mean, no sum of g and no dbias. */
template <bool LAYER>
static __device__ __forceinline__ void backward_sums(float *x, float *dout, const float *weight,
                                                     float mean, float rstd, float2 *row,
                                                     float *dweight, float *dbias) {
#pragma unroll
    for (int j = 0; j < VEC; j++) {
        x[j] = (LAYER ? x[j] - mean : x[j]) * rstd;
        dweight[j] += dout[j] * x[j];
        if (LAYER) dbias[j] += dout[j];
        dout[j] *= weight[j];
        if (LAYER) row->x += dout[j];
        row->y += dout[j] * x[j];
    }
}

/* dx += rstd (g - <g> - h <g h>) */
template <bool LAYER>
static __device__ __forceinline__ void backward_dx(float *dx, const float *g, const float *h,
                                                   float2 mean, float rstd) {
#pragma unroll
    for (int j = 0; j < VEC; j++) {
        float centred = LAYER ? g[j] - mean.x : g[j];
        dx[j] += rstd * (centred - h[j] * mean.y);
    }
}

/* What each thread has summed of each of some rows becomes the row's average over the block. With
   one barrier: the caller alternates between two arrays `scratch`, so that a fast warp writes the
   next sums while a slow one still reads these. */
template <bool LAYER, int COUNT, int WARPS>
static __device__ __forceinline__ void row_means(float2 *row, float2 (*scratch)[WARPS], int C) {
#pragma unroll
    for (int r = 0; r < COUNT; r++) {
        row[r] = make_float2(LAYER ? warp_sum(row[r].x) : 0.0f, warp_sum(row[r].y));
        if (threadIdx.x % WARP == 0) scratch[r][threadIdx.x / WARP] = row[r];
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < COUNT; r++) {
        float2 sum = make_float2(0, 0);
        for (int w = 0; w < (int)blockDim.x / WARP; w++)
            sum.x += LAYER ? scratch[r][w].x : 0.0f, sum.y += scratch[r][w].y;
        row[r] = make_float2(sum.x / (float)C, sum.y / (float)C);
    }
}

/* VEC floats, `left` of them real. */
static __device__ __forceinline__ void load_floats(float *out, const float *in, int left,
                                                   bool whole) {
#pragma unroll
    for (int j = 0; j < VEC; j += 4) load_some(out + j, in + j, left - j, whole);
}
static __device__ __forceinline__ void store_floats(float *out, const float *in, int left,
                                                    bool whole) {
#pragma unroll
    for (int j = 0; j < VEC; j += 4) store_some(out + j, in + j, left - j, whole);
}

/* Floats of a slice in `partial`. */
template <bool LAYER> static __host__ __device__ __forceinline__ size_t sums_of(int C) {
    return (size_t)(LAYER ? 2 : 1) * C;
}

/* Two rows at a time, for twice the loads in flight and half the barriers. C <= blockDim.x VEC.
   Threads beyond the row's end, and a second row beyond the slice's, have no columns left: they
   read zeros, add zeros and write nothing. */
template <bool LAYER, bool WHOLE>
static __global__ void __launch_bounds__(MAX_THREADS) backward_kernel(struct Backward a) {
    __shared__ float2 scratch[2][2][MAX_THREADS / WARP];
    int c = threadIdx.x * VEC, columns = a.C - c;
    int begin = blockIdx.x * a.slice, end = min_int(begin + a.slice, a.N);
    float weight[VEC], dweight[VEC] = {0}, dbias[VEC] = {0};
    load_columns<WHOLE>(weight, a.weight + c, columns);
    for (int n = begin; n < end; n += 2) {
        const int last = min_int(n + 1, end - 1), index[2] = {n, last};
        const int left[2] = {columns, last > n ? columns : 0};
        float h[2][VEC], g[2][VEC], dx[2][VEC];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            size_t at = (size_t)index[r] * a.C + c;
            load_columns<WHOLE>(h[r], a.x + at, left[r]);
            load_columns<WHOLE>(g[r], a.dout + at, left[r]);
            load_columns<WHOLE>(dx[r], a.dx + at, left[r]);
        }
        float2 row[2] = {make_float2(0, 0), make_float2(0, 0)};
#pragma unroll
        for (int r = 0; r < 2; r++)
            backward_sums<LAYER>(h[r], g[r], weight, LAYER ? a.mean[index[r]] : 0.0f,
                                 a.rstd[index[r]], &row[r], dweight, dbias);
        row_means<LAYER, 2>(row, scratch[(n - begin) / 2 % 2], a.C);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            backward_dx<LAYER>(dx[r], g[r], h[r], row[r], a.rstd[index[r]]);
            store_columns<WHOLE>(a.dx + (size_t)index[r] * a.C + c, dx[r], left[r]);
        }
    }
    float *partial = a.partial + (size_t)blockIdx.x * sums_of<LAYER>(a.C) + c;
    store_floats(partial, dweight, columns, WHOLE);
    if (LAYER) store_floats(partial + a.C, dbias, columns, WHOLE);
}

/* Any C: each row is read twice, and the sums of the columns lie in the workspace throughout. */
template <bool LAYER, bool WHOLE>
static __global__ void __launch_bounds__(LONG_THREADS) long_backward_kernel(struct Backward a) {
    __shared__ float2 scratch[2][1][LONG_THREADS / WARP];
    enum { STRIDE = LONG_THREADS * VEC };
    int first = threadIdx.x * VEC;
    int begin = blockIdx.x * a.slice, end = min_int(begin + a.slice, a.N);
    float *partial = a.partial + (size_t)blockIdx.x * sums_of<LAYER>(a.C);
    float h[VEC], g[VEC], dx[VEC], weight[VEC], dweight[VEC] = {0}, dbias[VEC] = {0};
    for (int n = begin; n < end; n++) {
        float2 row = make_float2(0, 0), unused = make_float2(0, 0);
        const float mean = LAYER ? a.mean[n] : 0.0f;
        for (int c = first; c < a.C; c += STRIDE) {
            size_t at = (size_t)n * a.C + c;
            int left = a.C - c, kept = n > begin ? left : 0;
            load_columns<WHOLE>(h, a.x + at, left);
            load_columns<WHOLE>(g, a.dout + at, left);
            load_columns<WHOLE>(weight, a.weight + c, left);
            load_floats(dweight, partial + c, kept, WHOLE);
            if (LAYER) load_floats(dbias, partial + a.C + c, kept, WHOLE);
            backward_sums<LAYER>(h, g, weight, mean, a.rstd[n], &row, dweight, dbias);
            store_floats(partial + c, dweight, left, WHOLE);
            if (LAYER) store_floats(partial + a.C + c, dbias, left, WHOLE);
        }
        row_means<LAYER, 1>(&row, scratch[(n - begin) % 2], a.C);
        for (int c = first; c < a.C; c += STRIDE) {
            size_t at = (size_t)n * a.C + c;
            int left = a.C - c;
            load_columns<WHOLE>(h, a.x + at, left);
            load_columns<WHOLE>(g, a.dout + at, left);
            load_columns<WHOLE>(dx, a.dx + at, left);
            load_columns<WHOLE>(weight, a.weight + c, left);
            backward_sums<LAYER>(h, g, weight, mean, a.rstd[n], &unused, dweight, dbias);
            backward_dx<LAYER>(dx, g, h, row, a.rstd[n]);
            store_columns<WHOLE>(a.dx + at, dx, left);
        }
    }
}

/* dweight, and dbias unless it is NULL, += the slices' sums, `stride` floats each. A block has 32
   of the columns, one per lane; warp w adds slices w, w + 32, ...; the first warp adds the warps'
   sums in order. */
static __global__ void __launch_bounds__(FOLD_WARPS * WARP)
fold_kernel(float *dweight, float *dbias, const float *partial, int slices, int C, size_t stride) {
    __shared__ float sums[FOLD_WARPS][WARP];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = blockIdx.x * WARP + lane;
    int columns = dbias ? 2 * C : C;
    float sum = 0;
    if (column < columns) {
#pragma unroll 8
        for (int s = warp; s < slices; s += FOLD_WARPS) sum += partial[s * stride + column];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    float total = 0;
#pragma unroll
    for (int w = 0; w < FOLD_WARPS; w++) total += sums[w][lane];
    if (column < C) dweight[column] += total;
    else dbias[column - C] += total;
}

/* Threads of a backward block: a vector for each, or those of the long kernel. */
static int backward_threads(int C) {
    int threads = ceil_div(ceil_div(C, VEC), WARP) * WARP;
    return threads <= MAX_THREADS ? threads : LONG_THREADS;
}

/* Rows of a slice: so few that all blocks are resident at once, but at least MIN_SLICE. */
static int slice_rows(int N, int C) {
    int blocks = cuda.multiprocessors * (RESIDENT / backward_threads(C));
    return max_int(MIN_SLICE, ceil_div(N, blocks));
}

template <bool LAYER, bool WHOLE> static void launch_backward(const struct Backward &a) {
    int slices = ceil_div(a.N, a.slice), threads = backward_threads(a.C);
    if (a.C <= threads * VEC)
        backward_kernel<LAYER, WHOLE><<<slices, threads, 0, cuda.stream>>>(a);
    else long_backward_kernel<LAYER, WHOLE><<<slices, threads, 0, cuda.stream>>>(a);
    CUDA_CHECK_LAUNCH();
}

static void norm_backward(floatX *dx, float *dweight, float *dbias, const floatX *dout,
                          const floatX *x, const struct Norm *norm, const struct NormStats *stats,
                          int N, int C, void *workspace) {
    if (N == 0) return;
    const bool layer = norm->kind == NORM_LAYER;
    float *partial = (float *)workspace;
    struct Backward a = {dx, dout, x, norm->weight, stats->mean, stats->rstd, partial, N, C,
                         slice_rows(N, C)};
    bool whole = is_whole(dx, C) && is_whole(dout, C) && is_whole(x, C) &&
                 is_whole(norm->weight, C);
    if (layer && whole) launch_backward<true, true>(a);
    else if (layer) launch_backward<true, false>(a);
    else if (whole) launch_backward<false, true>(a);
    else launch_backward<false, false>(a);
    if (!layer) dbias = NULL;
    fold_kernel<<<ceil_div(dbias ? 2 * C : C, WARP), FOLD_WARPS * WARP, 0, cuda.stream>>>(
        dweight, dbias, partial, ceil_div(N, a.slice), C,
        layer ? sums_of<true>(C) : sums_of<false>(C));
    CUDA_CHECK_LAUNCH();
}

/* The most that 2 * slices * C floats can be at any C up to the shape's. By the device, slices are
   RESIDENT / threads per multiprocessor, which with C <= threads VEC makes slices * C at most
   RESIDENT VEC; or RESIDENT / LONG_THREADS C in the long kernel. By rows, N / MIN_SLICE C. */
static size_t workspace_bytes(const struct OpsShape *shape) {
    size_t resident = max_int(RESIDENT * VEC, RESIDENT / LONG_THREADS * shape->C);
    size_t by_device = cuda.multiprocessors * resident;
    size_t by_rows = (size_t)ceil_div(shape->N, MIN_SLICE) * shape->C;
    return (by_device < by_rows ? by_device : by_rows) * 2 * sizeof(float);
}

static void fill(struct Ops *ops) {
    ops->norm_forward = norm_forward;
    ops->norm_residual_forward = norm_residual_forward;
    ops->norm_backward = norm_backward;
}

extern const struct KernelFile PER_TYPE(cuda_norm) = {"norm", fill, workspace_bytes};
