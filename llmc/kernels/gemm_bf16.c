/* out = alpha a b^T with bf16 operands and float32 sums, in the manner of Goto and van de Geijn
   (Anatomy of high-performance matrix multiplication, 2008):

       for a piece of K and of N      b -> panels [pairs][32]      second cache
           for a piece of M           a -> rows [M][pairs]         second cache
               for every panel        first cache
                   for 13 rows        26 sums of 16 floats in registers

   Packing rounds: a weight that is multiplied here has no bf16 copy besides. */
#include "gemm_bf16.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

enum {
    DEPTH = 256,  /* of K: a panel is 16 KB */
    WIDTH = 1024, /* of N: 512 KB of panels */
    HEIGHT = 260, /* of M: 20 times 13 rows, 146 KB */
    SIDE = 16,    /* of a square of pairs: items x pairs */
    LD = DEPTH / 2 + SIDE /* of the rows: a power of two would put them in the same cache sets */
};

typedef float vec16 __attribute__((vector_size(64), may_alias));
typedef float vec16_unaligned __attribute__((vector_size(64), may_alias, aligned(4)));
typedef uint32_t pairs16 __attribute__((vector_size(64), may_alias));
typedef uint32_t pairs16_unaligned __attribute__((vector_size(64), may_alias, aligned(4)));

static inline int least(int a, int b) { return a < b ? a : b; }

/* ---- the instructions, or what they do ------------------------------------------------------- */

/* Vectors go in and out by address: how one is passed would depend on the machine. */

#ifdef __AVX512BF16__

bool gemm_bf16_is_fast(void) { return true; }

/* Sixteen pairs of 32 numbers in a row. */
static inline void pairs_along(pairs16 *to, const float *x) {
    *to = (pairs16)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x));
}

/* Sixteen pairs of x[0], x[stride]; x[1], x[stride + 1]; ... */
static inline void pairs_across(pairs16 *to, const float *x, int stride) {
    __m512i even = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x)));
    __m512i odd = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + stride)));
    *to = (pairs16)_mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

/* *sum += the two products of each pair, the second one first. */
static inline void add_products(vec16 *sum, const pairs16 *columns, uint32_t row) {
    *sum = (vec16)_mm512_dpbf16_ps((__m512)*sum, (__m512bh)*columns,
                                   (__m512bh)_mm512_set1_epi32((int)row));
}

/* s[i] lane j <-> s[j] lane i. */
static inline void transpose(pairs16 s[SIDE]) {
    __m512i a[SIDE], b[SIDE];
    for (int i = 0; i < SIDE; i += 2) {
        a[i] = _mm512_unpacklo_epi32((__m512i)s[i], (__m512i)s[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32((__m512i)s[i], (__m512i)s[i + 1]);
    }
    for (int i = 0; i < SIDE; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    /* now quarter q of b[i + j] has lane 4 q + j of s[i .. i + 3], i a multiple of 4 */
    for (int i = 0; i < SIDE; i += 8)
        for (int j = 0; j < 4; j++) {
            a[i + j] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0x88);
            a[i + j + 4] = _mm512_shuffle_i32x4(b[i + j], b[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        s[j] = (pairs16)_mm512_shuffle_i32x4(a[j], a[j + 8], 0x88);
        s[j + 8] = (pairs16)_mm512_shuffle_i32x4(a[j], a[j + 8], 0xdd);
    }
}

#else

bool gemm_bf16_is_fast(void) { return false; }

/* The bits of the nearest bf16, in the low half; a NaN stays one. */
static inline uint32_t nearest(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
    return ((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded) >> 16;
}

static inline void pairs_along(pairs16 *to, const float *x) {
    for (int i = 0; i < SIDE; i++) (*to)[i] = nearest(x[2 * i]) | nearest(x[2 * i + 1]) << 16;
}

static inline void pairs_across(pairs16 *to, const float *x, int stride) {
    for (int i = 0; i < SIDE; i++) (*to)[i] = nearest(x[i]) | nearest(x[stride + i]) << 16;
}

static inline float from_upper_half(uint32_t bits) {
    float x;
    bits &= 0xffff0000;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Number by number: gcc takes vectors that the machine has not apart, and one number at a time is
   then thirty times slower. */
static inline void add_products(vec16 *sum, const pairs16 *columns, uint32_t row) {
    typedef float __attribute__((may_alias)) number;
    typedef uint32_t __attribute__((may_alias)) pair;
    number *to = (number *)sum;
    const pair *from = (const pair *)columns;
    float first = from_upper_half(row << 16), second = from_upper_half(row);
    #pragma omp simd
    for (int i = 0; i < SIDE; i++) {
        to[i] += second * from_upper_half(from[i]);
        to[i] += first * from_upper_half(from[i] << 16);
    }
}

static inline void transpose(pairs16 s[SIDE]) {
    pairs16 from[SIDE];
    memcpy(from, s, sizeof from);
    for (int i = 0; i < SIDE; i++)
        for (int j = 0; j < SIDE; j++) s[i][j] = from[j][i];
}

#endif

/* ---- packing --------------------------------------------------------------------------------- */

void pairs_of_rows(uint32_t *to, int ld, const float *x, int stride, int rows, int K) {
    for (int r = 0; r < rows; r++, to += ld, x += stride) {
        int k = 0;
        pairs16 pairs;
        for (; k + 2 * SIDE <= K; k += 2 * SIDE) {
            pairs_along(&pairs, x + k);
            *(pairs16_unaligned *)(to + k / 2) = pairs;
        }
        if (k == K) continue;
        float rest[2 * SIDE] = {0};
        memcpy(rest, x + k, (size_t)(K - k) * sizeof *x);
        pairs_along(&pairs, rest);
        memcpy(to + k / 2, &pairs, (size_t)(K - k + 1) / 2 * sizeof *to);
    }
}

/* The operand from item i and number k on. */
static struct Operand operand_at(struct Operand x, int i, int k) {
    x.x += x.along ? (size_t)i * x.stride + k : (size_t)k * x.stride + i;
    return x;
}

/* Where items [i, i + 16) and k [k, k + 32) of x begin; what is beyond `items` and K is 0. */
static struct Operand square_at(float copy[2 * SIDE * SIDE], struct Operand x, int i, int k,
                                int items, int K) {
    const struct Operand at = operand_at(x, i, k);
    int there = least(SIDE, items - i), numbers = least(2 * SIDE, K - k);
    if (there == SIDE && numbers == 2 * SIDE) return at;
    int rows = x.along ? there : numbers, columns = x.along ? numbers : there;
    int stride = x.along ? 2 * SIDE : SIDE;
    memset(copy, 0, 2 * SIDE * SIDE * sizeof *copy);
    for (int r = 0; r < rows; r++)
        memcpy(copy + r * stride, at.x + (size_t)r * x.stride, (size_t)columns * sizeof *copy);
    return (struct Operand){copy, stride, x.along};
}

/* s = that square: s[item] lane pair if `by_item`, else s[pair] lane item. */
static inline void load_square(pairs16 s[SIDE], struct Operand x, bool by_item, int i, int k,
                               int items, int K) {
    float copy[2 * SIDE * SIDE];
    struct Operand at = square_at(copy, x, i, k, items, K);
    for (int n = 0; n < SIDE && at.along; n++) pairs_along(&s[n], at.x + (size_t)n * at.stride);
    for (int n = 0; n < SIDE && !at.along; n++)
        pairs_across(&s[n], at.x + (size_t)2 * n * at.stride, at.stride);
    if (at.along != by_item) transpose(s);
}

void pairs_of_panel(uint32_t *to, struct Operand x, int columns, int K) {
    pairs16 s[SIDE];
    for (int k = 0; k < K; k += 2 * SIDE)
        for (int i = 0; i < PACKED_COLUMNS; i += SIDE) {
            int pairs = least(SIDE, (K - k + 1) / 2);
            if (i < columns) load_square(s, x, false, i, k, columns, K);
            else memset(s, 0, sizeof s);
            for (int p = 0; p < pairs; p++)
                *(pairs16 *)(to + (size_t)(k / 2 + p) * PACKED_COLUMNS + i) = s[p];
        }
}

/* As pairs_of_rows for M items of either kind; rows up to a multiple of 16 are written. */
static void pack_items(uint32_t *to, struct Operand x, int M, int K) {
    pairs16 s[SIDE];
    if (x.along) {
        pairs_of_rows(to, LD, x.x, x.stride, M, K);
        return;
    }
    for (int i = 0; i < M; i += SIDE)
        for (int k = 0; k < K; k += 2 * SIDE) {
            load_square(s, x, true, i, k, M, K);
            for (int n = 0; n < SIDE; n++)
                *(pairs16_unaligned *)(to + (size_t)(i + n) * LD + k / 2) = s[n];
        }
}

/* ---- the product ----------------------------------------------------------------------------- */

/* For a number of rows known at compile time, so that the sums are registers. */
static inline __attribute__((always_inline)) void
product_of(int rows, float *out, int ldo, const uint32_t *x, int ldx, const uint32_t *panel,
           int pairs, float alpha, bool add) {
    enum { AHEAD = 64 * PACKED_COLUMNS }; /* 8 KiB, past what the hardware fetches itself */
    vec16 left[PACKED_ROWS], right[PACKED_ROWS];
    #pragma GCC unroll 13
    for (int r = 0; r < rows; r++) left[r] = right[r] = (vec16){0};
    for (int p = 0; p < pairs; p++) {
        const pairs16 *w = (const pairs16 *)(panel + (size_t)p * PACKED_COLUMNS);
        __builtin_prefetch((const uint32_t *)w + AHEAD);
        __builtin_prefetch((const uint32_t *)w + AHEAD + 16);
        #pragma GCC unroll 13
        for (int r = 0; r < rows; r++) {
            add_products(&left[r], &w[0], x[(size_t)r * ldx + p]);
            add_products(&right[r], &w[1], x[(size_t)r * ldx + p]);
        }
    }
    #pragma GCC unroll 13
    for (int r = 0; r < rows; r++) {
        vec16_unaligned *to = (vec16_unaligned *)(out + (size_t)r * ldo);
        left[r] *= alpha, right[r] *= alpha;
        if (add) left[r] += to[0], right[r] += to[1];
        to[0] = left[r], to[1] = right[r];
    }
}

void pairs_product(float *out, int ldo, const uint32_t *x, int ldx, const uint32_t *panel,
                   int rows, int pairs, float alpha, bool add) {
#define CASE(n) case n: product_of(n, out, ldo, x, ldx, panel, pairs, alpha, add); break
    switch (rows) {
        CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6); CASE(7);
        CASE(8); CASE(9); CASE(10); CASE(11); CASE(12); CASE(13);
    }
#undef CASE
}

/* A panel of fewer than 32 columns: by way of a tile that has room for all. */
static void narrow_product(float *out, int ldo, const uint32_t *x, const uint32_t *panel, int rows,
                           int columns, int pairs, float alpha, bool add) {
    _Alignas(64) float tile[PACKED_ROWS * PACKED_COLUMNS];
    pairs_product(tile, PACKED_COLUMNS, x, LD, panel, rows, pairs, alpha, false);
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < columns; j++) {
            float *to = out + (size_t)r * ldo + j;
            *to = (add ? *to : 0) + tile[r * PACKED_COLUMNS + j];
        }
}

/* Packed rows [M] times packed panels of N columns. */
static void multiply(float *out, int ldo, const uint32_t *rows, const uint32_t *panels, int M,
                     int N, int pairs, float alpha, bool add) {
    for (int j = 0; j < N; j += PACKED_COLUMNS, panels += DEPTH / 2 * PACKED_COLUMNS)
        for (int i = 0; i < M; i += PACKED_ROWS) {
            float *corner = out + (size_t)i * ldo + j;
            const uint32_t *x = rows + (size_t)i * LD;
            int count = least(PACKED_ROWS, M - i), columns = least(PACKED_COLUMNS, N - j);
            if (columns == PACKED_COLUMNS)
                pairs_product(corner, ldo, x, LD, panels, count, pairs, alpha, add);
            else narrow_product(corner, ldo, x, panels, count, columns, pairs, alpha, add);
        }
}

static void clear(float *out, int ldo, int M, int N) {
    for (int i = 0; i < M; i++) memset(out + (size_t)i * ldo, 0, (size_t)N * sizeof *out);
}

/* Where the calling thread packs. It has it from its first product on, to its end: in static memory
   it would be taken from the stack of every thread, also where no product is bf16. */
struct Packing {
    _Alignas(64) uint32_t rows[(HEIGHT + SIDE) * LD];
    uint32_t panels[WIDTH * DEPTH / 2];
};

static pthread_key_t packing_key;   /* its destructor frees what a thread that ends had */
static void make_packing_key(void) {
    if (pthread_key_create(&packing_key, free) != 0) die_machine("no more thread keys");
}

static struct Packing *packing(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static _Thread_local struct Packing *place;
    if (place) return place;
    pthread_once(&once, make_packing_key);
    char *memory = check_alloc(1, sizeof *place + 63, "packing for bf16 products");
    pthread_setspecific(packing_key, memory);
    return place = (struct Packing *)(((uintptr_t)memory + 63) / 64 * 64);
}

void gemm_bf16(float *out, int ldo, struct Operand a, struct Operand b, int M, int N, int K,
               float alpha, bool add) {
    uint32_t *rows = packing()->rows, *panels = packing()->panels;
    if (K == 0 && !add) clear(out, ldo, M, N);
    for (int k = 0; k < K; k += DEPTH) {
        int depth = least(DEPTH, K - k), pairs = (depth + 1) / 2;
        for (int n = 0; n < N; n += WIDTH) {
            int width = least(WIDTH, N - n);
            for (int j = 0; j < width; j += PACKED_COLUMNS)
                pairs_of_panel(panels + j * (DEPTH / 2), operand_at(b, n + j, k),
                               least(PACKED_COLUMNS, width - j), depth);
            for (int m = 0; m < M; m += HEIGHT) {
                int height = least(HEIGHT, M - m);
                pack_items(rows, operand_at(a, m, k), height, depth);
                multiply(out + (size_t)m * ldo + n, ldo, rows, panels, height, width, pairs, alpha,
                         add || k > 0);
            }
        }
    }
}
