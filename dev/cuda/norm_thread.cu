/* Norm, rung 1: as the formulas are written. A thread takes a row from beginning to end, and one
   takes a column for the gradients of weight and bias:

       thread       0            1            2
       reads     x[0][c]      x[1][c]      x[2][c]      then the same of c + 1, ...

   The 32 addresses of a warp's load lie a row apart, so each load asks for 32 lines of memory and
   uses 2 or 4 bytes of each; whether the rest is still in the cache when the next column comes
   depends on C. The pass over columns has this right: its threads are neighbours in memory. But
   there are only C of them.

   One thread's sum of a row has as many roundings behind one another as the row has columns, where
   a sum by a tree has their logarithm. In float32 that is too much for the mean; hence double. */
#include "../../llmc/kernels/cuda_common.cuh"

enum { THREADS = 128 };

/* x, or with RESIDUAL the rounded sum x + delta, which is stored. */
static __device__ float element(floatX *sum, const floatX *x, const floatX *delta, size_t i) {
    if (!delta) return to_f(x[i]);
    sum[i] = from_f<floatX>(to_f(x[i]) + to_f(delta[i]));
    return to_f(sum[i]);
}

/* sum, delta: NULL without a residual sum; mean: NULL with RMS norm. */
static __global__ void forward_kernel(floatX *sum, floatX *out, struct NormStats stats,
                                      const floatX *x, const floatX *delta, struct Norm norm,
                                      int N, int C) {
    int n = blockIdx.x * THREADS + threadIdx.x;
    if (n >= N) return;
    size_t row = (size_t)n * C;
    const bool layer = norm.kind == NORM_LAYER;
    double sum_x = 0, squares = 0;
    for (int c = 0; c < C; c++) sum_x += element(sum, x, delta, row + c);
    float mean = layer ? (float)(sum_x / C) : 0;
    const floatX *in = delta ? sum : x;
    for (int c = 0; c < C; c++) {
        float centred = to_f(in[row + c]) - mean;
        squares += centred * centred;
    }
    float rstd = 1.0f / sqrtf((float)(squares / C) + norm.epsilon);
    for (int c = 0; c < C; c++) {
        float bias = norm.bias ? to_f(norm.bias[c]) : 0.0f;
        float h = (to_f(in[row + c]) - mean) * rstd;
        out[row + c] = from_f<floatX>(h * to_f(norm.weight[c]) + bias);
    }
    if (layer) stats.mean[n] = mean;
    stats.rstd[n] = rstd;
}

/* dx += rstd (g - <g> - h <g h>), g = dout weight. */
static __global__ void backward_row_kernel(floatX *dx, const floatX *dout, const floatX *x,
                                           struct Norm norm, struct NormStats stats, int N, int C) {
    int n = blockIdx.x * THREADS + threadIdx.x;
    if (n >= N) return;
    size_t row = (size_t)n * C;
    const bool layer = norm.kind == NORM_LAYER;
    float mean = layer ? stats.mean[n] : 0, rstd = stats.rstd[n];
    double sum_g = 0, sum_gh = 0;
    for (int c = 0; c < C; c++) {
        float g = to_f(dout[row + c]) * to_f(norm.weight[c]);
        sum_g += g;
        sum_gh += g * (to_f(x[row + c]) - mean) * rstd;
    }
    float mean_g = layer ? (float)(sum_g / C) : 0, mean_gh = (float)(sum_gh / C);
    for (int c = 0; c < C; c++) {
        float g = to_f(dout[row + c]) * to_f(norm.weight[c]);
        float h = (to_f(x[row + c]) - mean) * rstd;
        dx[row + c] = from_f<floatX>(to_f(dx[row + c]) + rstd * (g - mean_g - h * mean_gh));
    }
}

/* dweight += sum_n dout h, dbias += sum_n dout (NULL: no bias). */
static __global__ void backward_column_kernel(float *dweight, float *dbias, const floatX *dout,
                                              const floatX *x, struct NormStats stats, bool layer,
                                              int N, int C) {
    int c = blockIdx.x * THREADS + threadIdx.x;
    if (c >= C) return;
    double weight_sum = 0, bias_sum = 0;
    for (int n = 0; n < N; n++) {
        size_t i = (size_t)n * C + c;
        float mean = layer ? stats.mean[n] : 0;
        weight_sum += to_f(dout[i]) * (to_f(x[i]) - mean) * stats.rstd[n];
        bias_sum += to_f(dout[i]);
    }
    dweight[c] += (float)weight_sum;
    if (dbias) dbias[c] += (float)bias_sum;
}

static void norm_residual_forward(floatX *sum, floatX *out, const struct NormStats *stats,
                                  const floatX *x, const floatX *delta, const struct Norm *norm,
                                  int N, int C) {
    if (N == 0) return;
    forward_kernel<<<ceil_div(N, THREADS), THREADS, 0, cuda.stream>>>(sum, out, *stats, x, delta,
                                                                      *norm, N, C);
    CUDA_CHECK_LAUNCH();
}

static void norm_forward(floatX *out, const struct NormStats *stats, const floatX *x,
                         const struct Norm *norm, int N, int C) {
    norm_residual_forward(NULL, out, stats, x, NULL, norm, N, C);
}

static void norm_backward(floatX *dx, float *dweight, float *dbias, const floatX *dout,
                          const floatX *x, const struct Norm *norm, const struct NormStats *stats,
                          int N, int C, void *workspace) {
    (void)workspace;
    if (N == 0) return;
    const bool layer = norm->kind == NORM_LAYER;
    if (!layer) dbias = NULL;
    backward_row_kernel<<<ceil_div(N, THREADS), THREADS, 0, cuda.stream>>>(dx, dout, x, *norm,
                                                                           *stats, N, C);
    CUDA_CHECK_LAUNCH();
    backward_column_kernel<<<ceil_div(C, THREADS), THREADS, 0, cuda.stream>>>(
        dweight, dbias, dout, x, *stats, layer, N, C);
    CUDA_CHECK_LAUNCH();
}

static void fill(struct Ops *ops) {
    ops->norm_forward = norm_forward;
    ops->norm_residual_forward = norm_residual_forward;
    ops->norm_backward = norm_backward;
}

extern const struct KernelFile PER_TYPE(norm_thread) = {"norm_thread", fill, no_workspace};
