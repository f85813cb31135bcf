/* A decode product as its definition is written: a thread for each element of out, which goes
   along a row of x and a row of w, one element after the other.

       bytes   neighbouring threads read neighbouring rows of w: 32 lanes, 32 lines of memory, and 2
               of 32 bytes used at a time, the rest later if the cache still has it; w is read anew
               for every row of x

   Weights are as what ships packs them: rows of packed_stride(C) elements. */
#include "../../llmc/kernels/tile_product.cuh"
#include "lab.cuh"

enum { THREADS = 256 };

static __global__ void __launch_bounds__(THREADS)
    naive_kernel(floatX *out, const floatX *x, const floatX *w, const floatX *bias, int R, int C,
                 int OC) {
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (size_t)R * OC) return;
    const int row = (int)(i / OC), column = (int)(i % OC);
    x += (size_t)row * C, w += column * packed_stride(C);
    float sum = 0;
    for (int k = 0; k < C; k++) sum = fmaf(to_f(x[k]), to_f(w[k]), sum);
    out[i] = from_f<floatX>(bias ? sum + to_f(bias[column]) : sum);
}

static void matmul_decode(floatX *out, const floatX *x, const void *packed, const floatX *bias,
                          int R, int C, int OC) {
    if (R == 0) return;
    const size_t blocks = ((size_t)R * OC + THREADS - 1) / THREADS;
    naive_kernel<<<(unsigned)blocks, THREADS, 0, cuda.stream>>>(out, x, (const floatX *)packed,
                                                                bias, R, C, OC);
    CUDA_CHECK_LAUNCH();
}

static void fill(struct Ops *ops) {
    lab_unused();
    ops->matmul_decode = matmul_decode;
}

extern const struct KernelFile PER_TYPE(decode_naive) = {"decode_naive", fill, no_workspace};
