/* Tiles in shared memory, the textbook's step after the definition, without tensor cores.

       a block: 64 x 64 elements of the result; a thread: 4 x 4 of them, rows and columns 16 apart

                  k: 16 at a time
            a  | 64 x 16 |  ..          each element is read from memory once for 64 others
            b  | 16 x 64 |  ..          and from shared memory once for 4

   All three products are one kernel: the element of row m and term k of an operand lies at
   m * row + k * step, so a transposed operand has its two strides the other way round. Flop a byte
   of memory: 64 in 16-bit elements; 8 loads of 4 bytes from shared memory feed 16 multiply-adds. */
#include "../../llmc/kernels/linear.cuh"
#include "lab.cuh"

enum { TILE = 64, DEPTH = 16, ACROSS = 16, THREADS = ACROSS * ACROSS, OWN = TILE / ACROSS };

struct Operand {
    const floatX *data;
    size_t row, step; /* strides of a row of the result (or column, of b), and of a term */
};

/* shared [DEPTH][TILE] = 16 terms of 64 rows from m0; what lies outside is zero. */
static __device__ void load_tile(float (*shared)[TILE + 1], const struct Operand &a, int m0, int k0,
                                 int M, int K) {
    for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
        /* neighbours in the block are neighbours in memory */
        int m = a.step == 1 ? i / DEPTH : i % TILE, k = a.step == 1 ? i % DEPTH : i / TILE;
        bool inside = m0 + m < M && k0 + k < K;
        shared[k][m] = inside ? to_f(a.data[(m0 + m) * a.row + (k0 + k) * a.step]) : 0.0f;
    }
}

/* out [M,N] = the sum over K of a and b, and bias [N] if there is one. ADD: += instead. */
template <bool ADD, class Out>
static __global__ void __launch_bounds__(THREADS)
    product_kernel(Out *out, Operand a, Operand b, const floatX *bias, int M, int N, int K) {
    __shared__ float a_tile[DEPTH][TILE + 1], b_tile[DEPTH][TILE + 1]; /* + 1: banks */
    int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    int y = threadIdx.x / ACROSS, x = threadIdx.x % ACROSS;
    float sum[OWN][OWN] = {};
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        __syncthreads();
        load_tile(a_tile, a, m0, k0, M, K);
        load_tile(b_tile, b, n0, k0, N, K);
        __syncthreads();
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
            for (int i = 0; i < OWN; i++)
#pragma unroll
                for (int j = 0; j < OWN; j++)
                    sum[i][j] = fmaf(a_tile[k][y + i * ACROSS], b_tile[k][x + j * ACROSS],
                                     sum[i][j]);
    }
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
        for (int j = 0; j < OWN; j++) {
            int m = m0 + y + i * ACROSS, n = n0 + x + j * ACROSS;
            if (m >= M || n >= N) continue;
            float y = sum[i][j] + (bias ? to_f(bias[n]) : 0.0f);
            Out *at = out + (size_t)m * N + n;
            *at = ADD ? from_f<Out>(to_f(*at) + y) : from_f<Out>(y);
        }
}

template <bool ADD, class Out>
static void product(Out *out, Operand a, Operand b, const floatX *bias, int M, int N, int K) {
    dim3 grid(ceil_div(N, TILE), ceil_div(M, TILE));
    product_kernel<ADD><<<grid, THREADS, 0, cuda.stream>>>(out, a, b, bias, M, N, K);
    CUDA_CHECK_LAUNCH();
}

static void matmul_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias, int N,
                           int C, int OC) {
    Operand a = {x, (size_t)C, 1}, b = {w, (size_t)C, 1};
    if (N > 0) product<false>(out, a, b, bias, N, OC, C);
}

static void matmul_backward(floatX *dx, float *dw, float *dbias, const floatX *dout,
                            const floatX *x, const floatX *w, int N, int C, int OC,
                            void *workspace) {
    Operand slope = {dout, (size_t)OC, 1}, slope_t = {dout, 1, (size_t)OC};
    Operand w_t = {w, 1, (size_t)C}, x_t = {x, 1, (size_t)C};
    if (N == 0) return;
    if (dx) product<false>(dx, slope, w_t, NULL, N, C, OC);
    product<true>(dw, slope_t, x_t, NULL, OC, C, N);
    if (dbias) add_column_sums(dbias, dout, N, OC, workspace);
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    int qkv = (shape->NH + 2 * shape->NKV) * shape->HS;
    return linear_workspace(shape->N, max_int(qkv, max_int(shape->C, shape->F)));
}

static void fill(struct Ops *ops) {
    lab_unused();
    ops->matmul_forward = matmul_forward;
    ops->matmul_backward = matmul_backward;
}

extern const struct KernelFile PER_TYPE(matmul_tiled) = {"matmul_tiled", fill, workspace_bytes};
