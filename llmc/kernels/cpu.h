/* What the CPU kernels share: the storage type, one-thread matrix products, the split of work over
   threads.

   Every product is a ONE-THREAD call, OpenBLAS's or with --dtype bf16 ours, on a block, made inside
   our own parallel region (the OpenMP flavour of OpenBLAS is serial there by itself; in a team of
   one it is so only if omp_get_max_threads says one too, which launch_threads sees to). So bias,
   GELU and the like run on a block while it is still in cache, and only one thread pool exists.
   openblas_set_num_threads is never called: it would also change OpenMP's count. */
#ifndef LLMC_KERNELS_CPU_H
#define LLMC_KERNELS_CPU_H

#define BACKEND_FLOATX float

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <string.h>
#include "../base/check.h"
#include "../ops.h"
#include "gemm_bf16.h"
#include "vmath.h"

/* --dtype bf16: product_nt, product_nn and product_tn below, and decoding, round their operands
   to bf16 (gemm_bf16.h). Attention's own products, gemm_*, are float32 all the same. Set before a
   weight is packed. */
extern bool cpu_bf16_products;

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }

/* out [M,N] = alpha a b^T + beta out;  a [M,K], b [N,K].  lda, ldb, ldo are row strides. */
static inline void gemm_nt(float *out, int ldo, const float *a, int lda, const float *b, int ldb,
                           int M, int N, int K, float alpha, float beta) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, M, N, K, alpha, a, lda, b, ldb, beta, out,
                ldo);
}

/* out [M,N] = alpha a b + beta out;  a [M,K], b [K,N]. */
static inline void gemm_nn(float *out, int ldo, const float *a, int lda, const float *b, int ldb,
                           int M, int N, int K, float alpha, float beta) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, M, N, K, alpha, a, lda, b, ldb, beta,
                out, ldo);
}

/* out [M,N] = alpha a^T b + beta out;  a [K,M], b [K,N]. */
static inline void gemm_tn(float *out, int ldo, const float *a, int lda, const float *b, int ldb,
                           int M, int N, int K, float alpha, float beta) {
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, M, N, K, alpha, a, lda, b, ldb, beta, out,
                ldo);
}

/* The same three of the layers and the head, with operands as --dtype says; out is written, or
   added to if `add`. */
static inline void product_nt(float *out, int ldo, const float *a, int lda, const float *b, int ldb,
                              int M, int N, int K, float alpha, bool add) {
    struct Operand left = {a, lda, true}, right = {b, ldb, true};
    if (cpu_bf16_products) gemm_bf16(out, ldo, left, right, M, N, K, alpha, add);
    else gemm_nt(out, ldo, a, lda, b, ldb, M, N, K, alpha, add);
}

static inline void product_nn(float *out, int ldo, const float *a, int lda, const float *b, int ldb,
                              int M, int N, int K, float alpha, bool add) {
    struct Operand left = {a, lda, true}, right = {b, ldb, false};
    if (cpu_bf16_products) gemm_bf16(out, ldo, left, right, M, N, K, alpha, add);
    else gemm_nn(out, ldo, a, lda, b, ldb, M, N, K, alpha, add);
}

static inline void product_tn(float *out, int ldo, const float *a, int lda, const float *b, int ldb,
                              int M, int N, int K, float alpha, bool add) {
    struct Operand left = {a, lda, false}, right = {b, ldb, false};
    if (cpu_bf16_products) gemm_bf16(out, ldo, left, right, M, N, K, alpha, add);
    else gemm_tn(out, ldo, a, lda, b, ldb, M, N, K, alpha, add);
}

/* Part `part` of `parts` of the n items: [*begin, *end), whole units (the last one ragged) so that
   borders fall on multiples of `unit`. Empty parts have begin == end. */
static inline void split_range(int *begin, int *end, int n, int unit, int part, int parts) {
    int64_t units = ((int64_t)n + unit - 1) / unit;
    int64_t first = units * part / parts * unit, last = units * (part + 1) / parts * unit;
    *begin = (int)(first < n ? first : n);
    *end = (int)(last < n ? last : n);
}

/* The calling thread's part, inside a parallel region. */
static inline void split_thread(int *begin, int *end, int n, int unit) {
    split_range(begin, end, n, unit, omp_get_thread_num(), omp_get_num_threads());
}

/* Tokens are cut into at most this many parts, each with its own sums of a weight's gradient, which
   are added in order: so neither order nor bits depend on the number of threads. */
enum { MOST_PARTS = 64, TOKENS_PER_PART = 16 };

static inline int part_count(int N) {
    return min_int(MOST_PARTS, (N + TOKENS_PER_PART - 1) / TOKENS_PER_PART);
}

/* act [F] = silu(gate) * up of one token's pre [2F], gate first. */
static inline void swiglu_row(floatX *act, const floatX *pre, int F) {
    #pragma omp simd
    for (int f = 0; f < F; f++) act[f] = vm_silu(pre[f]) * pre[F + f];
}

/* A rectangle of a result [M,N]. */
struct Tile {
    int row, rows, column, columns;
};

/* The calling thread's tile of a product [M,N] inside a parallel region. A product packs every
   operand it is given, so of all grids of threads the one that packs least is taken: tall results
   are cut into rows, wide ones into columns. */
static inline struct Tile thread_tile(int M, int N) {
    int threads = omp_get_num_threads(), thread = omp_get_thread_num(), down = 1;
    double least = INFINITY;
    for (int d = 1; d <= threads; d++) {
        double packed = (double)d * N + (double)(threads / d) * M;
        if (threads % d == 0 && packed < least) least = packed, down = d;
    }
    int across = threads / down, row_end, column_end;
    struct Tile tile;
    split_range(&tile.row, &row_end, M, 8, thread / across, down);
    split_range(&tile.column, &column_end, N, 16, thread % across, across);
    tile.rows = row_end - tile.row;
    tile.columns = column_end - tile.column;
    return tile;
}

/* The three products of a linear layer, each on the calling thread's tile of its result (matmul.c):
   out = x w^T + bias over [N,OC]; dx = dout w over [N,C]; dw += dout^T x and dbias += column sums
   of dout over [OC,C]. The tile of out is returned, for work on it while it is in cache. */
struct Tile cpu_linear_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias,
                               int N, int C, int OC);
struct Tile cpu_linear_backward_input(floatX *dx, const floatX *dout, const floatX *w, int N, int C,
                                      int OC);
void cpu_linear_backward_weight(float *dw, float *dbias, const floatX *dout, const floatX *x, int N,
                                int C, int OC);

#endif
