/* The product every decode operation is made of: a few rows times 32 columns of a packed weight.
   Its layout, with OC columns in blocks of 32 and C the summed index:

       packed [ceil(OC / 32)][C][32]     zeros beyond OC; a block is one contiguous stream

   With --dtype bf16 it is [ceil(OC / 32)][(C + 1) / 2][32] pairs of bf16 (gemm_bf16.h), half the
   bytes, and rows are rounded as they are read.

   Each output element is ONE chain of fused multiply-adds over k = 0 .. C-1 (of bf16: a chain for
   each 512 of them, added up in order), whatever the number of rows. So a row's bits depend on
   that row and the weights only. */
#ifndef LLMC_KERNELS_PACKED_H
#define LLMC_KERNELS_PACKED_H

#include <stddef.h>
#include <stdint.h>

enum { PACKED_COLUMNS = 32, PACKED_ROWS = 13 };

/* Bytes of a block. */
size_t packed_block_bytes(int C);

/* out [rows,32] = x [rows,C] times block number `block` of packed; rows in 1 .. PACKED_ROWS; ldo,
   ldx: row strides. packed is aligned to 64 bytes. */
void packed_product(float *out, int ldo, const float *x, int ldx, const void *packed, int block,
                    int rows, int C);

/* `rows` rows are cut into as few parts of at most PACKED_ROWS as possible, and as even as possible
   (14 rows: 7 + 7; a part of a single row would cost a pass like any other). How many, and where
   one begins: */
static inline int packed_row_parts(int rows) { return (rows + PACKED_ROWS - 1) / PACKED_ROWS; }
static inline int packed_first_row(int rows, int part) {
    return (int)((int64_t)rows * part / packed_row_parts(rows));
}

#endif
