/* Linear layers: matmul.c on a GPU. The products and the sums of columns are in linear.cuh, because
   the feed-forward block has two of these layers. */
#include "linear.cuh"

static void matmul_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias, int N,
                           int C, int OC) {
    linear_forward(out, x, w, bias, N, C, OC);
}

static void matmul_backward(floatX *dx, float *dw, float *dbias, const floatX *dout,
                            const floatX *x, const floatX *w, int N, int C, int OC,
                            void *workspace) {
    linear_backward(dx, dw, dbias, dout, x, w, N, C, OC, workspace);
}

/* The widest layer is the one into q, k and v, or the feed-forward block's. */
static size_t workspace_bytes(const struct OpsShape *shape) {
    int qkv = (shape->NH + 2 * shape->NKV) * shape->HS;
    return linear_workspace(shape->N, max_int(qkv, max_int(shape->C, shape->F)));
}

static void fill(struct Ops *ops) {
    ops->matmul_forward = matmul_forward;
    ops->matmul_backward = matmul_backward;
}

extern const struct KernelFile PER_TYPE(cuda_matmul) = {"matmul", fill, workspace_bytes};
