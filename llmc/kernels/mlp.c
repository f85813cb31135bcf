/* The feed-forward block.

       pre = x w1^T + b1,   act = gelu(pre),   out = act w2^T + b2
       dpre = (dout w2) gelu'(pre),   and the two linear layers' gradients (matmul.c)

   or, with pre = gate and up side by side,
       act = silu(gate) up,   dgate = (dout w2) up silu'(gate),   dup = (dout w2) silu(gate)

   A thread applies GELU, or its derivative, to the tile it has just made. */
#include "cpu.h"

/* Inside a parallel region: act of pre, by whole tokens. */
static void swiglu_tokens(floatX *act, const floatX *pre, int N, int F) {
    int begin, end;
    split_thread(&begin, &end, N, 1);
    for (int n = begin; n < end; n++)
        swiglu_row(act + (size_t)n * F, pre + (size_t)n * 2 * F, F);
}

static void swiglu_mlp_forward(floatX *out, floatX *pre, floatX *act, const floatX *x,
                               const struct Mlp *mlp, int N) {
    int C = mlp->C, F = mlp->F;
    #pragma omp parallel
    {
        cpu_linear_forward(pre, x, mlp->w1, mlp->b1, N, C, 2 * F);
        #pragma omp barrier
        swiglu_tokens(act, pre, N, F);
        #pragma omp barrier
        cpu_linear_forward(out, act, mlp->w2, mlp->b2, N, F, C);
    }
}

static void mlp_forward(floatX *out, floatX *pre, floatX *act, const floatX *x,
                        const struct Mlp *mlp, int N) {
    int C = mlp->C, F = mlp->F;
    if (mlp->activation == SWIGLU) {
        swiglu_mlp_forward(out, pre, act, x, mlp, N);
        return;
    }
    #pragma omp parallel
    {
        struct Tile t = cpu_linear_forward(pre, x, mlp->w1, mlp->b1, N, C, F);
        for (int n = t.row; n < t.row + t.rows; n++) {
            const floatX *in = pre + (size_t)n * F + t.column;
            floatX *activated = act + (size_t)n * F + t.column;
            #pragma omp simd
            for (int f = 0; f < t.columns; f++) activated[f] = vm_gelu(in[f]);
        }
        #pragma omp barrier
        cpu_linear_forward(out, act, mlp->w2, mlp->b2, N, F, C);
    }
}

static void activation_forward(floatX *act, const floatX *pre, int N, int F,
                               enum Activation activation) {
    if (activation == SWIGLU) {
        #pragma omp parallel
        swiglu_tokens(act, pre, N, F);
        return;
    }
    size_t n = (size_t)N * F;
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) act[i] = vm_gelu(pre[i]);
}

/* The calling thread's tile of dpre. dout w2, the gradient of act, is formed where dup belongs. */
static void swiglu_backward(floatX *dpre, const floatX *dout, const floatX *pre,
                            const struct Mlp *mlp, int N) {
    int C = mlp->C, F = mlp->F, P = 2 * F;
    struct Tile t = thread_tile(N, F);
    if (t.rows == 0 || t.columns == 0) return;
    product_nn(dpre + (size_t)t.row * P + F + t.column, P, dout + (size_t)t.row * C, C,
               mlp->w2 + t.column, F, t.rows, t.columns, C, 1.0f, false);
    for (int n = t.row; n < t.row + t.rows; n++) {
        const floatX *gate = pre + (size_t)n * P + t.column, *up = gate + F;
        floatX *dgate = dpre + (size_t)n * P + t.column, *dup = dgate + F;
        #pragma omp simd
        for (int f = 0; f < t.columns; f++) {
            float dact = dup[f];
            dgate[f] = dact * up[f] * vm_silu_gradient(gate[f]);
            dup[f] = dact * vm_silu(gate[f]);
        }
    }
}

static void gelu_backward(floatX *dpre, const floatX *dout, const floatX *pre,
                          const struct Mlp *mlp, int N) {
    int F = mlp->F;
    struct Tile t = cpu_linear_backward_input(dpre, dout, mlp->w2, N, F, mlp->C);
    for (int n = t.row; n < t.row + t.rows; n++) {
        const floatX *in = pre + (size_t)n * F + t.column;
        floatX *gradient = dpre + (size_t)n * F + t.column;
        #pragma omp simd
        for (int f = 0; f < t.columns; f++) gradient[f] *= vm_gelu_gradient(in[f]);
    }
}

static void mlp_backward(floatX *dx, const struct MlpGradients *gradients, floatX *dpre,
                         const floatX *dout, const floatX *x, const floatX *pre, const floatX *act,
                         const struct Mlp *mlp, int N, void *workspace) {
    (void)workspace;
    const struct MlpGradients d = *gradients;
    int C = mlp->C, F = mlp->F, P = F * activation_inputs(mlp->activation);
    #pragma omp parallel
    {
        if (mlp->activation == SWIGLU) swiglu_backward(dpre, dout, pre, mlp, N);
        else gelu_backward(dpre, dout, pre, mlp, N);
        cpu_linear_backward_weight(d.dw2, d.db2, dout, act, N, F, C);
        #pragma omp barrier
        cpu_linear_backward_input(dx, dpre, mlp->w1, N, C, P);
        cpu_linear_backward_weight(d.dw1, d.db1, dpre, x, N, C, P);
    }
}

static void fill(struct Ops *ops) {
    ops->mlp_forward = mlp_forward;
    ops->activation_forward = activation_forward;
    ops->mlp_backward = mlp_backward;
}

const struct KernelFile cpu_mlp = {"mlp", fill, no_workspace};
