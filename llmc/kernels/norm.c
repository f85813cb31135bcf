/* Layer norm (1607.06450) and RMS norm (1910.07467) of each row over its C channels.

       mean = 1/C sum x,  rstd = 1 / sqrt(1/C sum (x - mean)^2 + epsilon)
       h = (x - mean) rstd,  out = h weight + bias
   RMS norm is the same without mean and bias.

   Backward, with g = dout weight (elementwise) and averages over the row:
       dx += rstd (g - <g> - h <g h>),  dweight += sum_n dout h,  dbias += sum_n dout
   where RMS norm has no <g>. */
#include "cpu.h"

/* Row n, which stays in the first cache level for its four passes. The sums have a fixed order:
   decoding uses this slot too, where a row's bits must not depend on the other rows. */
static void normalise_row(floatX *out, const struct NormStats *stats, const floatX *x,
                          const struct Norm *norm, int n, int C) {
    const floatX *weight = norm->weight, *bias = norm->bias;
    const floatX *centred = x;
    if (norm->kind == NORM_LAYER) {
        float m = vm_sum(x, C) / (float)C;
        for (int c = 0; c < C; c++) out[c] = x[c] - m;
        stats->mean[n] = m;
        centred = out;
    }
    float r = 1.0f / sqrtf(vm_dot(centred, centred, C) / (float)C + norm->epsilon);
    if (bias != NULL)
        for (int c = 0; c < C; c++) out[c] = centred[c] * r * weight[c] + bias[c];
    else
        for (int c = 0; c < C; c++) out[c] = centred[c] * r * weight[c];
    stats->rstd[n] = r;
}

static void norm_forward(floatX *out, const struct NormStats *stats, const floatX *x,
                         const struct Norm *norm, int N, int C) {
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        size_t row = (size_t)n * C;
        normalise_row(out + row, stats, x + row, norm, n, C);
    }
}

static void norm_residual_forward(floatX *sum, floatX *out, const struct NormStats *stats,
                                  const floatX *x, const floatX *delta, const struct Norm *norm,
                                  int N, int C) {
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        size_t row = (size_t)n * C;
        for (int c = 0; c < C; c++) sum[row + c] = x[row + c] + delta[row + c];
        normalise_row(out + row, stats, sum + row, norm, n, C);
    }
}

/* dx of one row, and its addition to the sums of its part. */
static void backward_row(floatX *dx, float *dweight, float *dbias, const floatX *dout,
                         const floatX *x, const struct Norm *norm, float mean, float rstd, int C) {
    const floatX *weight = norm->weight;
    float sum_g = 0, sum_gh = 0;
    #pragma omp simd reduction(+ : sum_g, sum_gh)
    for (int c = 0; c < C; c++) {
        float h = (x[c] - mean) * rstd, g = dout[c] * weight[c];
        sum_g += g;
        sum_gh += g * h;
        dweight[c] += dout[c] * h;
        dbias[c] += dout[c];
    }
    float mean_g = norm->kind == NORM_LAYER ? sum_g / (float)C : 0, mean_gh = sum_gh / (float)C;
    #pragma omp simd
    for (int c = 0; c < C; c++) {
        float h = (x[c] - mean) * rstd, g = dout[c] * weight[c];
        dx[c] += rstd * (g - mean_g - h * mean_gh);
    }
}

static void norm_backward(floatX *dx, float *dweight, float *dbias, const floatX *dout,
                          const floatX *x, const struct Norm *norm, const struct NormStats *stats,
                          int N, int C, void *workspace) {
    float *sums = workspace; /* [parts][2][C] */
    int parts = part_count(N);
    #pragma omp parallel
    {
        #pragma omp for schedule(static)
        for (int part = 0; part < parts; part++) {
            float *sum = sums + (size_t)part * 2 * C;
            int begin, end;
            split_range(&begin, &end, N, 1, part, parts);
            memset(sum, 0, 2 * (size_t)C * sizeof *sum);
            for (int n = begin; n < end; n++) {
                size_t row = (size_t)n * C;
                float mean = norm->kind == NORM_LAYER ? stats->mean[n] : 0;
                backward_row(dx + row, sum, sum + C, dout + row, x + row, norm, mean,
                             stats->rstd[n], C);
            }
        }
        int begin, end;
        split_thread(&begin, &end, C, 16);
        for (int part = 0; part < parts; part++) {
            const float *sum = sums + (size_t)part * 2 * C;
            for (int c = begin; c < end; c++) dweight[c] += sum[c];
            for (int c = begin; c < end && dbias; c++) dbias[c] += sum[C + c];
        }
    }
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return (size_t)part_count(shape->N) * 2 * shape->C * sizeof(float);
}

static void fill(struct Ops *ops) {
    ops->norm_forward = norm_forward;
    ops->norm_residual_forward = norm_residual_forward;
    ops->norm_backward = norm_backward;
}

const struct KernelFile cpu_norm = {"norm", fill, workspace_bytes};
