/* The linear layer by its definition: a thread an element of each result, a loop over the terms.

       out = x w^T + bias       dx = dout w       dw += dout^T x       dbias += sum_n dout_n

   Two loads for each multiply-add. In forward, threads of a warp read 32 rows of w at once, each
   another line. */
#include "lab.cuh"

enum { THREADS = 256 };

static __global__ void forward_kernel(floatX *out, const floatX *x, const floatX *w,
                                      const floatX *bias, int N, int C, int OC) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (size_t)N * OC) return;
    const size_t n = i / OC, o = i % OC;
    float sum = bias ? to_f(bias[o]) : 0.0f;
    for (int c = 0; c < C; c++) sum = fmaf(to_f(x[n * C + c]), to_f(w[o * C + c]), sum);
    out[i] = from_f<floatX>(sum);
}

static __global__ void dx_kernel(floatX *dx, const floatX *dout, const floatX *w, int N, int C,
                                 int OC) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (size_t)N * C) return;
    const size_t n = i / C, c = i % C;
    float sum = 0;
    for (int o = 0; o < OC; o++)
        sum = fmaf(to_f(dout[n * OC + o]), to_f(w[(size_t)o * C + c]), sum);
    dx[i] = from_f<floatX>(sum);
}

static __global__ void dw_kernel(float *dw, const floatX *dout, const floatX *x, int N, int C,
                                 int OC) {
    size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (size_t)OC * C) return;
    const size_t o = i / C, c = i % C;
    float sum = 0;
    for (size_t n = 0; n < (size_t)N; n++)
        sum = fmaf(to_f(dout[n * OC + o]), to_f(x[n * C + c]), sum);
    dw[i] += sum;
}

static __global__ void dbias_kernel(float *dbias, const floatX *dout, int N, int OC) {
    int o = blockIdx.x * THREADS + threadIdx.x;
    if (o >= OC) return;
    float sum = 0;
    for (size_t n = 0; n < (size_t)N; n++) sum += to_f(dout[n * OC + o]);
    dbias[o] += sum;
}

static int blocks(size_t elements) { return (int)((elements + THREADS - 1) / THREADS); }

static void matmul_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias, int N,
                           int C, int OC) {
    if (N == 0) return;
    forward_kernel<<<blocks((size_t)N * OC), THREADS, 0, cuda.stream>>>(out, x, w, bias, N, C, OC);
    CUDA_CHECK_LAUNCH();
}

static void matmul_backward(floatX *dx, float *dw, float *dbias, const floatX *dout,
                            const floatX *x, const floatX *w, int N, int C, int OC,
                            void *workspace) {
    (void)workspace;
    if (N == 0) return;
    if (dx) dx_kernel<<<blocks((size_t)N * C), THREADS, 0, cuda.stream>>>(dx, dout, w, N, C, OC);
    dw_kernel<<<blocks((size_t)OC * C), THREADS, 0, cuda.stream>>>(dw, dout, x, N, C, OC);
    if (dbias) dbias_kernel<<<blocks((size_t)OC), THREADS, 0, cuda.stream>>>(dbias, dout, N, OC);
    CUDA_CHECK_LAUNCH();
}

static void fill(struct Ops *ops) {
    lab_unused();
    ops->matmul_forward = matmul_forward;
    ops->matmul_backward = matmul_backward;
}

extern const struct KernelFile PER_TYPE(matmul_naive) = {"matmul_naive", fill, no_workspace};
