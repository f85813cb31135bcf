/* The feed-forward block: mlp.c on a GPU.

       pre = x w1^T + b1,   act = gelu(pre),   out = act w2^T + b2
       dpre = (dout w2) gelu'(pre),   and the two linear layers' gradients (linear.cuh)

   or, with pre = gate and up side by side,
       act = silu(gate) up,   dgate = (dout w2) up silu'(gate),   dup = (dout w2) silu(gate)

   forward    [x w1^T + b1] -> pre -> [gelu] -> act -> [act w2^T + b2] -> out
   backward   [dout w2, * gelu'(pre)] -> dpre -> [dpre w1] -> dx;  [dout^T act], [dpre^T x] -> dw

   Forward, act is made by a kernel of its own from the stored pre, not by the product's epilogue
   (cuBLASLt has one, GELU_AUX_BIAS). To the float32 sums that epilogue applies a formula that is
   not documented; a backward pass that did not keep act makes it again from pre as it was rounded,
   and must find the same bits. The price: pre is read once more, and no product hides this kernel's
   traffic, 2 N F elements. For 8192 x 3072 in bf16 that is 101 MB, 34 us at 3.0 TB/s, beside 98 us
   for the two products at 790 TFLOP/s.

   In backward no bits have to be reproduced, and the epilogue saves a rounding of dout w2 and 2 N F
   elements written and read, so it is used where it exists and is exact enough: in the narrow
   types, with rows aligned to 16 bytes. Otherwise a kernel multiplies dpre in place.

   SwiGLU has no epilogue in the library, because it needs two columns of a product for one. Forward
   its kernel reads 2 N F elements of pre and writes N F of act. Backward, dout w2 is formed in the
   half of dpre where dup belongs; a kernel reads it and pre, 3 N F, and writes both halves, 2 N F.
   For 8192 x 8960 in bf16 (Qwen2.5 1.5B) that is 0.44 and 0.73 GB, 0.15 and 0.25 ms at 3.0 TB/s,
   beside 0.86 ms forward and 1.7 ms backward for the three products at 790 TFLOP/s. */
#include "linear.cuh"
#include "swiglu.cuh"

enum { THREADS = ACTIVATION_THREADS };

/* GPT-2's GELU, x/2 (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3), written x sigmoid(2u): the
   same number, without the cancellation of 1 + tanh for negative x. */
static __device__ __forceinline__ float gelu(float x) {
    float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    return divide_x(x, 1.0f + exp_x(-2.0f * u));
}

/* d gelu / dx = s + x s (1 - s) 2 u', s = sigmoid(2u), 1 - s formed as e^-2u s. Beyond |x| = 10 it
   is 0 or 1 to float32, and holding x there keeps x^3 from overflowing. */
static __device__ __forceinline__ float gelu_gradient(float x) {
    float c = x < -10.0f ? -10.0f : x;
    c = c > 10.0f ? 10.0f : c;
    float e = exp_x(-1.5957691216057308f * (c + 0.044715f * c * c * c));
    float s = divide_x(1.0f, 1.0f + e);
    float slope = 1.5957691216057308f * (1.0f + 0.134145f * c * c);
    return s + c * slope * (e * s) * s;
}

/* ---- kernels: a thread has 16 bytes' worth of elements -------------------------------------- */

static __global__ void __launch_bounds__(THREADS)
gelu_kernel(floatX *act, const floatX *pre, size_t n, bool whole) {
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (i >= n) return;
    int count = n - i < VEC ? (int)(n - i) : VEC;
    float x[VEC];
    load_some(x, pre + i, count, whole);
#pragma unroll
    for (int j = 0; j < VEC; j++) x[j] = gelu(x[j]);
    store_some(act + i, x, count, whole);
}

/* dpre = dpre * gelu'(pre) */
static __global__ void __launch_bounds__(THREADS)
gelu_backward_kernel(floatX *dpre, const floatX *pre, size_t n, bool whole) {
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (i >= n) return;
    int count = n - i < VEC ? (int)(n - i) : VEC;
    float x[VEC], slope[VEC];
    load_some(x, pre + i, count, whole);
    load_some(slope, dpre + i, count, whole);
#pragma unroll
    for (int j = 0; j < VEC; j++) slope[j] *= gelu_gradient(x[j]);
    store_some(dpre + i, slope, count, whole);
}

/* dpre [N,2F]: its second half is the gradient of act, and both become those of pre. */
static __global__ void __launch_bounds__(THREADS)
swiglu_backward_kernel(floatX *dpre, const floatX *pre, int N, int F, bool whole) {
    const int chunks = ceil_div(F, VEC);
    size_t index = (size_t)blockIdx.x * THREADS + threadIdx.x, n = index / chunks;
    if (n >= (size_t)N) return;
    int f = (int)(index % chunks) * VEC, left = F - f;
    const floatX *gate = pre + n * 2 * F + f;
    floatX *dgate = dpre + n * 2 * F + f;
    float x[VEC], up[VEC], dact[VEC];
    load_some(x, gate, left, whole);
    load_some(up, gate + F, left, whole);
    load_some(dact, dgate + F, left, whole);
#pragma unroll
    for (int j = 0; j < VEC; j++) {
        up[j] *= dact[j] * silu_gradient(x[j]);
        dact[j] *= silu(x[j]);
    }
    store_some(dgate, up, left, whole);
    store_some(dgate + F, dact, left, whole);
}

/* ---- their launches ------------------------------------------------------------------------- */

static void activation_forward(floatX *act, const floatX *pre, int N, int F,
                               enum Activation activation) {
    size_t n = (size_t)N * F;
    if (n == 0) return;
    if (activation == SWIGLU) {
        swiglu_forward(act, pre, N, F);
        return;
    }
    gelu_kernel<<<blocks_for(1, n), THREADS, 0, cuda.stream>>>(act, pre, n,
                                                               both_aligned(act, pre, 0));
    CUDA_CHECK_LAUNCH();
}

static void gelu_backward(floatX *dpre, const floatX *pre, size_t n) {
    if (n == 0) return;
    gelu_backward_kernel<<<blocks_for(1, n), THREADS, 0, cuda.stream>>>(
        dpre, pre, n, both_aligned(dpre, pre, 0));
    CUDA_CHECK_LAUNCH();
}

static void swiglu_backward(floatX *dpre, const floatX *pre, int N, int F) {
    if (N == 0 || F == 0) return;
    swiglu_backward_kernel<<<blocks_for(N, F), THREADS, 0, cuda.stream>>>(
        dpre, pre, N, F, both_aligned(dpre, pre, F));
    CUDA_CHECK_LAUNCH();
}

/* ---- the slots ------------------------------------------------------------------------------ */

static void mlp_forward(floatX *out, floatX *pre, floatX *act, const floatX *x,
                        const struct Mlp *mlp, int N) {
    int C = mlp->C, F = mlp->F;
    linear_forward(pre, x, mlp->w1, mlp->b1, N, C, F * activation_inputs(mlp->activation));
    activation_forward(act, pre, N, F, mlp->activation);
    linear_forward(out, act, mlp->w2, mlp->b2, N, F, C);
}

/* dpre [N,P] of dout. */
static void activation_backward(floatX *dpre, const floatX *dout, const floatX *pre,
                                const struct Mlp *mlp, int N) {
    int C = mlp->C, F = mlp->F;
    struct Matrix a = matrix(dout, C), b = matrix(mlp->w2, F);
    bool narrow = sizeof(floatX) < sizeof(float);
    if (mlp->activation == SWIGLU) {
        gemm(GEMM_NN, matrix(dpre + F, 2 * (size_t)F), a, b, N, F, C, 1.0f, 0.0f);
        swiglu_backward(dpre, pre, N, F);
    } else if (!narrow ||
               !gemm_with(GEMM_DGELU, pre, GEMM_NN, matrix(dpre, F), a, b, N, F, C)) {
        gemm(GEMM_NN, matrix(dpre, F), a, b, N, F, C, 1.0f, 0.0f);
        gelu_backward(dpre, pre, (size_t)N * F);
    }
}

static void mlp_backward(floatX *dx, const struct MlpGradients *gradients, floatX *dpre,
                         const floatX *dout, const floatX *x, const floatX *pre, const floatX *act,
                         const struct Mlp *mlp, int N, void *workspace) {
    const struct MlpGradients d = *gradients;
    int C = mlp->C, F = mlp->F, P = F * activation_inputs(mlp->activation);
    activation_backward(dpre, dout, pre, mlp, N);
    linear_backward(NULL, d.dw2, d.db2, dout, act, mlp->w2, N, F, C, workspace);
    linear_backward(dx, d.dw1, d.db1, dpre, x, mlp->w1, N, C, P, workspace);
}

/* The shape does not say which activation it is: room for SwiGLU's 2 F columns. */
static size_t workspace_bytes(const struct OpsShape *shape) {
    return linear_workspace(shape->N, max_int(shape->C, 2 * shape->F));
}

static void fill(struct Ops *ops) {
    ops->mlp_forward = mlp_forward;
    ops->activation_forward = activation_forward;
    ops->mlp_backward = mlp_backward;
}

extern const struct KernelFile PER_TYPE(cuda_mlp) = {"mlp", fill, workspace_bytes};
