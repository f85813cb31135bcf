/* Matrix products of the CPU backend whose operands are rounded to bf16 and whose sums and results
   are float32 (--dtype bf16).

   A number is rounded to nearest, ties to even. Two that follow each other along the summed index
   are a PAIR in 32 bits, the first in the low half; a missing second one is 0. What AVX512_BF16
   does in one instruction, two products a lane, plain C does elsewhere in the same order: slower
   than float32, but the same numbers, up to those below 1.2e-38, which the instruction takes for
   0. The order of a function's sums depends on K only.

   A PANEL is 32 columns of a right operand, [pairs][32], aligned to 64 bytes: a block of packed.h.
   At most 13 rows at a time are multiplied with it: their sums are 26 vector registers. */
#ifndef LLMC_KERNELS_GEMM_BF16_H
#define LLMC_KERNELS_GEMM_BF16_H

#include <stdbool.h>
#include <stdint.h>
#include "packed.h"

/* Is there an instruction for it here? */
bool gemm_bf16_is_fast(void);

/* A matrix [items][K], K being the summed index: element (i, k) is at x[i * stride + k] if `along`,
   else at x[k * stride + i]. */
struct Operand {
    const float *x;
    int stride;
    bool along;
};

/* out [M,N] = alpha a b^T, or += if `add`; ldo: stride of its rows. By the calling
   thread alone, which keeps 0.7 MB to pack in until it ends (die_machine if there is none). */
void gemm_bf16(float *out, int ldo, struct Operand a, struct Operand b, int M, int N, int K,
               float alpha, bool add);

/* to [rows][ld] = the pairs of x [rows][K], rows `stride` apart. */
void pairs_of_rows(uint32_t *to, int ld, const float *x, int stride, int rows, int K);

/* to [(K + 1) / 2][32] = a panel of `columns` <= 32 items of x, the other columns 0. */
void pairs_of_panel(uint32_t *to, struct Operand x, int columns, int K);

/* out [rows][32] = alpha x panel, or += if `add`; x [rows][ldx] pairs, of which there are `pairs`;
   rows in 1 .. PACKED_ROWS. */
void pairs_product(float *out, int ldo, const uint32_t *x, int ldx, const uint32_t *panel,
                   int rows, int pairs, float alpha, bool add);

#endif
