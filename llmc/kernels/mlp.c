/* The feed-forward block.

       pre = x w1^T + b1,   act = gelu(pre),   out = act w2^T + b2
       dpre = (dout w2) gelu'(pre),   and the two linear layers' gradients (matmul.c)

   A thread applies GELU, or its derivative, to the tile it has just made. */
#include "cpu.h"

static void mlp_forward(floatX *out, floatX *pre, floatX *act, const floatX *x, const floatX *w1,
                        const floatX *b1, const floatX *w2, const floatX *b2, int N, int C, int F) {
    #pragma omp parallel
    {
        struct Tile t = cpu_linear_forward(pre, x, w1, b1, N, C, F);
        for (int n = t.row; n < t.row + t.rows; n++) {
            const floatX *in = pre + (size_t)n * F + t.column;
            floatX *activated = act + (size_t)n * F + t.column;
            #pragma omp simd
            for (int f = 0; f < t.columns; f++) activated[f] = vm_gelu(in[f]);
        }
        #pragma omp barrier
        cpu_linear_forward(out, act, w2, b2, N, F, C);
    }
}

static void gelu_forward(floatX *act, const floatX *pre, size_t n) {
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) act[i] = vm_gelu(pre[i]);
}

static void mlp_backward(floatX *dx, float *dw1, float *db1, float *dw2, float *db2, floatX *dpre,
                         const floatX *dout, const floatX *x, const floatX *pre, const floatX *act,
                         const floatX *w1, const floatX *w2, int N, int C, int F, void *workspace) {
    (void)workspace;
    #pragma omp parallel
    {
        struct Tile t = cpu_linear_backward_input(dpre, dout, w2, N, F, C);
        for (int n = t.row; n < t.row + t.rows; n++) {
            const floatX *in = pre + (size_t)n * F + t.column;
            floatX *gradient = dpre + (size_t)n * F + t.column;
            #pragma omp simd
            for (int f = 0; f < t.columns; f++) gradient[f] *= vm_gelu_gradient(in[f]);
        }
        cpu_linear_backward_weight(dw2, db2, dout, act, N, F, C);
        #pragma omp barrier
        cpu_linear_backward_input(dx, dpre, w1, N, C, F);
        cpu_linear_backward_weight(dw1, db1, dpre, x, N, C, F);
    }
}

size_t cpu_mlp_workspace(const struct OpsShape *shape) {
    (void)shape;
    return 0;
}

void cpu_mlp(struct Ops *ops) {
    ops->mlp_forward = mlp_forward;
    ops->gelu_forward = gelu_forward;
    ops->mlp_backward = mlp_backward;
}
