/* Linear layers.

       out = x w^T + bias          out [N,OC], x [N,C], w [OC,C]
       dx  = dout w                dw += dout^T x,   dbias += sum_n dout_n

   Each thread makes one tile of each result with a one-thread product (cpu.h). It can be added to
   what is in the result, so the bias is written there first and costs nothing. */
#include "cpu.h"

struct Tile cpu_linear_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias,
                               int N, int C, int OC) {
    struct Tile t = thread_tile(N, OC);
    if (t.rows == 0 || t.columns == 0) return t;
    floatX *corner = out + (size_t)t.row * OC + t.column;
    for (int n = 0; n < t.rows && bias; n++)
        memcpy(corner + (size_t)n * OC, bias + t.column, (size_t)t.columns * sizeof *bias);
    product_nt(corner, OC, x + (size_t)t.row * C, C, w + (size_t)t.column * C, C, t.rows,
               t.columns, C, 1.0f, bias != NULL);
    return t;
}

struct Tile cpu_linear_backward_input(floatX *dx, const floatX *dout, const floatX *w, int N, int C,
                                      int OC) {
    struct Tile t = thread_tile(N, C);
    if (t.rows == 0 || t.columns == 0) return t;
    product_nn(dx + (size_t)t.row * C + t.column, C, dout + (size_t)t.row * OC, OC, w + t.column, C,
               t.rows, t.columns, OC, 1.0f, false);
    return t;
}

/* dbias [begin, end) += the sums of these columns of dout, over n in order. */
static void add_column_sums(float *dbias, const floatX *dout, int begin, int end, int N, int OC) {
    float sum[512];
    for (int first = begin; first < end; first += 512) {
        int columns = min_int(512, end - first);
        memset(sum, 0, sizeof sum);
        for (int n = 0; n < N; n++) {
            const floatX *row = dout + (size_t)n * OC + first;
            for (int o = 0; o < columns; o++) sum[o] += row[o];
        }
        for (int o = 0; o < columns; o++) dbias[first + o] += sum[o];
    }
}

void cpu_linear_backward_weight(float *dw, float *dbias, const floatX *dout, const floatX *x, int N,
                                int C, int OC) {
    struct Tile t = thread_tile(OC, C);
    if (t.rows == 0 || t.columns == 0) return;
    if (dbias && t.column == 0) add_column_sums(dbias, dout, t.row, t.row + t.rows, N, OC);
    product_tn(dw + (size_t)t.row * C + t.column, C, dout + t.row, OC, x + t.column, C, t.rows,
               t.columns, N, 1.0f, true);
}

static void matmul_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias, int N,
                           int C, int OC) {
    #pragma omp parallel
    cpu_linear_forward(out, x, w, bias, N, C, OC);
}

static void matmul_backward(floatX *dx, float *dw, float *dbias, const floatX *dout,
                            const floatX *x, const floatX *w, int N, int C, int OC,
                            void *workspace) {
    (void)workspace;
    #pragma omp parallel
    {
        if (dx) cpu_linear_backward_input(dx, dout, w, N, C, OC);
        cpu_linear_backward_weight(dw, dbias, dout, x, N, C, OC);
    }
}

/* One library, one algorithm: nothing to choose. */
static const char *matmul_choices_load(const char *text) {
    return text && text[0] ? "they are another device's, library version's or dtype's" : NULL;
}

static void matmul_choices_save(char *out, size_t capacity) {
    if (capacity) out[0] = '\0';
}

static void matmul_choices_freeze(void) {}

static void fill(struct Ops *ops) {
    ops->matmul_forward = matmul_forward;
    ops->matmul_backward = matmul_backward;
    ops->matmul_choices_load = matmul_choices_load;
    ops->matmul_choices_save = matmul_choices_save;
    ops->matmul_choices_freeze = matmul_choices_freeze;
}

const struct KernelFile cpu_matmul = {"matmul", fill, no_workspace};
