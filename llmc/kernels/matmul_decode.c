/* The matrix product of a decode step: R rows (one token each) times a weight that is the same for
   thousands of steps.

       out = x w^T + bias,   out [R,OC], x [R,C], w [OC,C]

   Two limits: at R = 1 every weight is read once for two flop, so the bound is memory bandwidth;
   from R of about 13 on it is arithmetic. A general sgemm reaches neither, because it packs the
   weight again at every call. Here it is packed once per update, in the order in which it is read
   (packed.h), and 13 rows x 32 columns of sums stay in 26 vector registers while a block streams
   past. */
#include "cpu.h"
#include "packed.h"

/* Sixteen floats, in whatever registers the machine has. */
typedef float vec16 __attribute__((vector_size(64), may_alias));
typedef float vec16_unaligned __attribute__((vector_size(64), may_alias, aligned(4)));

/* *sum += x w. Where the machine has no such vectors gcc takes them apart, and one number at a time
   is then thirty times slower; so there it is a loop, with the same bits. */
static inline void multiply_add(vec16 *sum, float x, const vec16 *w) {
#ifdef __AVX512F__
    *sum += x * *w;
#else
    typedef float __attribute__((may_alias)) number;
    number *to = (number *)sum;
    const number *from = (const number *)w;
    #pragma omp simd
    for (int i = 0; i < 16; i++) to[i] += x * from[i];
#endif
}

/* float_product for a row count known at compile time, so that the sums are registers. One
   template for all counts: the same operations in the same order, hence the same bits. */
static inline __attribute__((always_inline)) void product_of(int rows, float *out, int ldo,
                                                             const float *x, int ldx,
                                                             const float *block, int C) {
    enum { AHEAD = 64 * PACKED_COLUMNS }; /* floats: 8 KiB, past what the hardware fetches itself */
    vec16 left[PACKED_ROWS], right[PACKED_ROWS];
    #pragma GCC unroll 13
    for (int r = 0; r < rows; r++) left[r] = right[r] = (vec16){0};
    for (int k = 0; k < C; k++) {
        const vec16 *w = (const vec16 *)(block + (size_t)k * PACKED_COLUMNS);
        __builtin_prefetch((const float *)w + AHEAD);
        __builtin_prefetch((const float *)w + AHEAD + 16);
        #pragma GCC unroll 13
        for (int r = 0; r < rows; r++) {
            multiply_add(&left[r], x[(size_t)r * ldx + k], &w[0]);
            multiply_add(&right[r], x[(size_t)r * ldx + k], &w[1]);
        }
    }
    #pragma GCC unroll 13
    for (int r = 0; r < rows; r++) {
        vec16_unaligned *to = (vec16_unaligned *)(out + (size_t)r * ldo);
        to[0] = left[r];
        to[1] = right[r];
    }
}

static void float_product(float *out, int ldo, const float *x, int ldx, const float *block,
                          int rows, int C) {
#define CASE(n) case n: product_of(n, out, ldo, x, ldx, block, C); break
    switch (rows) {
        CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6); CASE(7);
        CASE(8); CASE(9); CASE(10); CASE(11); CASE(12); CASE(13);
    }
#undef CASE
}

/* The same by pairs of bf16; x is rounded a piece at a time, which stays in the first cache. */
static void pair_product(float *out, int ldo, const float *x, int ldx, const uint32_t *block,
                         int rows, int C) {
    enum { PIECE = 512, LD = PIECE / 2 + 16 };
    _Alignas(64) uint32_t pairs[PACKED_ROWS * LD];
    for (int k = 0; k < C; k += PIECE) {
        int depth = min_int(PIECE, C - k);
        pairs_of_rows(pairs, LD, x + k, ldx, rows, depth);
        pairs_product(out, ldo, pairs, LD, block + (size_t)k / 2 * PACKED_COLUMNS, rows,
                      (depth + 1) / 2, 1, k > 0);
    }
}

size_t packed_block_bytes(int C) {
    size_t stream = cpu_bf16_products ? ((size_t)C + 1) / 2 : (size_t)C;
    return stream * PACKED_COLUMNS * sizeof(float);
}

void packed_product(float *out, int ldo, const float *x, int ldx, const void *packed, int block,
                    int rows, int C) {
    const void *at = (const char *)packed + (size_t)block * packed_block_bytes(C);
    if (cpu_bf16_products) pair_product(out, ldo, x, ldx, at, rows, C);
    else float_product(out, ldo, x, ldx, at, rows, C);
}

static size_t matmul_packed_size(int C, int OC) {
    size_t blocks = ((size_t)OC + PACKED_COLUMNS - 1) / PACKED_COLUMNS;
    return blocks * packed_block_bytes(C);
}

/* A block of C x 32 floats: of 32 rows of w, of which `columns` exist. */
static void pack_floats(float *block, const float *rows, int columns, int C) {
    /* 16 values, one cache line, of each row at a time */
    for (int first = 0; first < C; first += 16)
        for (int j = 0; j < PACKED_COLUMNS; j++)
            for (int k = first; k < min_int(first + 16, C); k++)
                block[(size_t)k * PACKED_COLUMNS + j] = j < columns ? rows[(size_t)j * C + k] : 0;
}

static void matmul_pack(void *packed, const floatX *w, int C, int OC) {
    int blocks = (OC + PACKED_COLUMNS - 1) / PACKED_COLUMNS;
    #pragma omp parallel for schedule(static)
    for (int b = 0; b < blocks; b++) {
        void *block = (char *)packed + (size_t)b * packed_block_bytes(C);
        int columns = min_int(PACKED_COLUMNS, OC - b * PACKED_COLUMNS);
        const float *rows = w + (size_t)b * PACKED_COLUMNS * C;
        if (cpu_bf16_products) pairs_of_panel(block, (struct Operand){rows, C, true}, columns, C);
        else pack_floats(block, rows, columns, C);
    }
}

/* Bias and activation of one row's block while it is in the first cache. */
static void finish_row(float *out, float *sum, const float *bias, int columns, bool gelu) {
    if (bias)
        for (int j = 0; j < columns; j++) sum[j] += bias[j];
    if (gelu)
        for (int j = 0; j < PACKED_COLUMNS; j++) sum[j] = vm_gelu(sum[j]);
    memcpy(out, sum, columns * sizeof *out);
}

static void multiply(floatX *out, const floatX *x, const void *packed, const floatX *bias, int R,
                     int C, int OC, bool gelu) {
    int blocks = (OC + PACKED_COLUMNS - 1) / PACKED_COLUMNS, parts = packed_row_parts(R);
    /* Static and column-major: a thread reads one contiguous piece of the weight, and all rows pass
       a block while it is in the second cache. */
    #pragma omp parallel for collapse(2) schedule(static)
    for (int b = 0; b < blocks; b++) {
        for (int part = 0; part < parts; part++) {
            _Alignas(64) float sums[PACKED_ROWS * PACKED_COLUMNS];
            int first = packed_first_row(R, part), rows = packed_first_row(R, part + 1) - first;
            int column = b * PACKED_COLUMNS, columns = min_int(PACKED_COLUMNS, OC - column);
            packed_product(sums, PACKED_COLUMNS, x + (size_t)first * C, C, packed, b, rows, C);
            for (int r = 0; r < rows; r++)
                finish_row(out + (size_t)(first + r) * OC + column, sums + r * PACKED_COLUMNS,
                           bias ? bias + column : NULL, columns, gelu);
        }
    }
}

static void matmul_decode(floatX *out, const floatX *x, const void *packed, const floatX *bias,
                          int R, int C, int OC) {
    multiply(out, x, packed, bias, R, C, OC, false);
}

static void mlp_decode(floatX *out, floatX *pre, floatX *act, const floatX *x,
                       const void *packed_w1, const void *packed_w2, const struct Mlp *mlp, int R) {
    int C = mlp->C, F = mlp->F;
    if (mlp->activation == SWIGLU) {
        multiply(pre, x, packed_w1, mlp->b1, R, C, 2 * F, false);
        #pragma omp parallel for schedule(static)
        for (int r = 0; r < R; r++) swiglu_row(act + (size_t)r * F, pre + (size_t)r * 2 * F, F);
    } else {
        multiply(act, x, packed_w1, mlp->b1, R, C, F, true);
    }
    multiply(out, act, packed_w2, mlp->b2, R, F, C, false);
}

static void fill(struct Ops *ops) {
    ops->matmul_packed_size = matmul_packed_size;
    ops->matmul_pack = matmul_pack;
    ops->matmul_decode = matmul_decode;
    ops->mlp_decode = mlp_decode;
}

const struct KernelFile cpu_matmul_decode = {"matmul_decode", fill, no_workspace};
