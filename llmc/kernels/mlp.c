/* The feed-forward block.

       pre = x w1^T + b1,   act = gelu(pre),   out = act w2^T + b2
       dpre = (dout w2) gelu'(pre),   and the two linear layers' gradients (matmul.c)

   A thread applies GELU, or its derivative, to the tile it has just made. */
#include "cpu.h"

static void mlp_forward(floatX *out, floatX *pre, floatX *act, const floatX *x,
                        const struct Mlp *mlp, int N) {
    int C = mlp->C, F = mlp->F;
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

static void gelu_forward(floatX *act, const floatX *pre, size_t n) {
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) act[i] = vm_gelu(pre[i]);
}

static void mlp_backward(floatX *dx, const struct MlpGradients *gradients, floatX *dpre,
                         const floatX *dout, const floatX *x, const floatX *pre, const floatX *act,
                         const struct Mlp *mlp, int N, void *workspace) {
    (void)workspace;
    const struct MlpGradients d = *gradients;
    int C = mlp->C, F = mlp->F;
    #pragma omp parallel
    {
        struct Tile t = cpu_linear_backward_input(dpre, dout, mlp->w2, N, F, C);
        for (int n = t.row; n < t.row + t.rows; n++) {
            const floatX *in = pre + (size_t)n * F + t.column;
            floatX *gradient = dpre + (size_t)n * F + t.column;
            #pragma omp simd
            for (int f = 0; f < t.columns; f++) gradient[f] *= vm_gelu_gradient(in[f]);
        }
        cpu_linear_backward_weight(d.dw2, d.db2, dout, act, N, F, C);
        #pragma omp barrier
        cpu_linear_backward_input(dx, dpre, mlp->w1, N, C, F);
        cpu_linear_backward_weight(d.dw1, d.db1, dpre, x, N, C, F);
    }
}

static void fill(struct Ops *ops) {
    ops->mlp_forward = mlp_forward;
    ops->gelu_forward = gelu_forward;
    ops->mlp_backward = mlp_backward;
}

const struct KernelFile cpu_mlp = {"mlp", fill, no_workspace};
