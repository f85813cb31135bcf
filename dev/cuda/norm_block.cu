/* Norm, rung 2: a block for each row, so that neighbouring threads read neighbouring addresses. It
   is the kernel of most textbooks: a sum over the block, a second one, then the output, and each of
   the three reads the row again (from a cache, if it has stayed there).

       thread       0         1         2     ...
       reads     x[n][0]   x[n][1]   x[n][2]        then x[n][THREADS + ...]

   For dweight and dbias a block takes all rows of a slice, a column each thread; the partial sums
   of the slices are added in order by a second kernel, so that the result repeats bit for bit. */
#include "../../llmc/kernels/cuda_common.cuh"

enum {
    THREADS = 256,
    SLICE = 64 /* rows of a slice */
};

/* sum, delta: NULL without a residual sum; stats.mean: NULL with RMS norm. */
static __global__ void __launch_bounds__(THREADS)
forward_kernel(floatX *sum, floatX *out, struct NormStats stats, const floatX *x,
               const floatX *delta, struct Norm norm, int C) {
    __shared__ float scratch[THREADS / WARP];
    size_t row = (size_t)blockIdx.x * C;
    const bool layer = norm.kind == NORM_LAYER;
    float mean = 0, squares = 0;
    for (int c = threadIdx.x; c < C; c += THREADS) {
        float element = to_f(x[row + c]);
        if (delta) {
            sum[row + c] = from_f<floatX>(element + to_f(delta[row + c]));
            element = to_f(sum[row + c]);
        }
        mean += element;
    }
    mean = layer ? block_sum<THREADS>(mean, scratch) / (float)C : 0;
    const floatX *in = delta ? sum : x; /* each thread reads what it wrote itself */
    for (int c = threadIdx.x; c < C; c += THREADS) {
        float centred = to_f(in[row + c]) - mean;
        squares += centred * centred;
    }
    float rstd = 1.0f / sqrtf(block_sum<THREADS>(squares, scratch) / (float)C + norm.epsilon);
    for (int c = threadIdx.x; c < C; c += THREADS) {
        float bias = norm.bias ? to_f(norm.bias[c]) : 0.0f;
        float h = (to_f(in[row + c]) - mean) * rstd;
        out[row + c] = from_f<floatX>(h * to_f(norm.weight[c]) + bias);
    }
    if (threadIdx.x > 0) return;
    if (layer) stats.mean[blockIdx.x] = mean;
    stats.rstd[blockIdx.x] = rstd;
}

/* dx += rstd (g - <g> - h <g h>), g = dout weight. */
static __global__ void __launch_bounds__(THREADS)
backward_row_kernel(floatX *dx, const floatX *dout, const floatX *x, struct Norm norm,
                    struct NormStats stats, int C) {
    __shared__ float scratch[THREADS / WARP];
    int n = blockIdx.x;
    size_t row = (size_t)n * C;
    const bool layer = norm.kind == NORM_LAYER;
    float mean = layer ? stats.mean[n] : 0, rstd = stats.rstd[n], sum_g = 0, sum_gh = 0;
    for (int c = threadIdx.x; c < C; c += THREADS) {
        float g = to_f(dout[row + c]) * to_f(norm.weight[c]);
        sum_g += g;
        sum_gh += g * (to_f(x[row + c]) - mean) * rstd;
    }
    float mean_g = layer ? block_sum<THREADS>(sum_g, scratch) / (float)C : 0;
    float mean_gh = block_sum<THREADS>(sum_gh, scratch) / (float)C;
    for (int c = threadIdx.x; c < C; c += THREADS) {
        float g = to_f(dout[row + c]) * to_f(norm.weight[c]);
        float h = (to_f(x[row + c]) - mean) * rstd;
        dx[row + c] = from_f<floatX>(to_f(dx[row + c]) + rstd * (g - mean_g - h * mean_gh));
    }
}

/* partial [slices][2][C]: of a slice, sum dout h, then sum dout. */
static __global__ void __launch_bounds__(THREADS)
backward_slice_kernel(float *partial, const floatX *dout, const floatX *x, struct NormStats stats,
                      bool layer, int N, int C) {
    int c = blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * SLICE;
    if (c >= C) return;
    float weight_sum = 0, bias_sum = 0;
    for (int n = first; n < min_int(first + SLICE, N); n++) {
        size_t i = (size_t)n * C + c;
        float mean = layer ? stats.mean[n] : 0;
        weight_sum += to_f(dout[i]) * (to_f(x[i]) - mean) * stats.rstd[n];
        bias_sum += to_f(dout[i]);
    }
    float *sums = partial + (size_t)blockIdx.y * 2 * C;
    sums[c] = weight_sum;
    sums[C + c] = bias_sum;
}

static __global__ void __launch_bounds__(THREADS)
add_slices_kernel(float *dweight, float *dbias, const float *partial, int slices, int C) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= C) return;
    float weight_sum = 0, bias_sum = 0;
    for (int s = 0; s < slices; s++) {
        weight_sum += partial[(size_t)s * 2 * C + c];
        bias_sum += partial[(size_t)s * 2 * C + C + c];
    }
    dweight[c] += weight_sum;
    if (dbias) dbias[c] += bias_sum;
}

static void norm_residual_forward(floatX *sum, floatX *out, const struct NormStats *stats,
                                  const floatX *x, const floatX *delta, const struct Norm *norm,
                                  int N, int C) {
    if (N == 0) return;
    forward_kernel<<<N, THREADS, 0, cuda.stream>>>(sum, out, *stats, x, delta, *norm, C);
    CUDA_CHECK_LAUNCH();
}

static void norm_forward(floatX *out, const struct NormStats *stats, const floatX *x,
                         const struct Norm *norm, int N, int C) {
    norm_residual_forward(NULL, out, stats, x, NULL, norm, N, C);
}

static void norm_backward(floatX *dx, float *dweight, float *dbias, const floatX *dout,
                          const floatX *x, const struct Norm *norm, const struct NormStats *stats,
                          int N, int C, void *workspace) {
    if (N == 0) return;
    float *partial = (float *)workspace;
    const bool layer = norm->kind == NORM_LAYER;
    int slices = ceil_div(N, SLICE), blocks = ceil_div(C, THREADS);
    if (!layer) dbias = NULL;
    backward_row_kernel<<<N, THREADS, 0, cuda.stream>>>(dx, dout, x, *norm, *stats, C);
    CUDA_CHECK_LAUNCH();
    backward_slice_kernel<<<dim3(blocks, slices), THREADS, 0, cuda.stream>>>(
        partial, dout, x, *stats, layer, N, C);
    CUDA_CHECK_LAUNCH();
    add_slices_kernel<<<blocks, THREADS, 0, cuda.stream>>>(dweight, dbias, partial, slices, C);
    CUDA_CHECK_LAUNCH();
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return (size_t)ceil_div(shape->N, SLICE) * 2 * shape->C * sizeof(float);
}

static void fill(struct Ops *ops) {
    ops->norm_forward = norm_forward;
    ops->norm_residual_forward = norm_residual_forward;
    ops->norm_backward = norm_backward;
}

extern const struct KernelFile PER_TYPE(norm_block) = {"norm_block", fill, workspace_bytes};
