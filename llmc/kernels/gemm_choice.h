/* Which algorithm a product gets. cuBLASLt proposes several and guesses their order; here each is
   run once and the fastest remembered, for a class of sizes and not for each size that a packed
   batch has.

       M, N, K, strides, types, alignments        exact: what the library is asked about
       the same, its number of tokens rounded up  the class: what is timed once and saved
       to eighths of the power of two above

   Tokens are M, but K in a weight gradient (GEMM_TN). The choices are text that a checkpoint holds:
   which one is fastest is decided by a clock, so that a run that goes on must be told. */
#ifndef LLMC_GEMM_CHOICE_H
#define LLMC_GEMM_CHOICE_H

#include "cuda_device.h"

/* All that an algorithm depends on. All of one width, so that keys compare byte by byte. */
struct GemmKey {
    int64_t form, epilogue, M, N, K;
    int64_t in_type, a_stride, a_alignment, b_stride, b_alignment;
    int64_t out_type, out_stride, out_alignment;
};

/* The algorithm of the key's class. Once choices are final (frozen, loaded, or as many as there is
   room for), that of the class nearest in tokens. NULL: there is none. */
const cublasLtMatmulAlgo_t *gemm_choice_find(const struct GemmKey *key);
/* True if a class that has no choice yet is to be timed now. */
bool gemm_choice_wanted(void);
/* Remembers the algorithm as the choice of the key's class. */
void gemm_choice_add(const struct GemmKey *key, const cublasLtMatmulAlgo_t *algorithm);
/* Empties the list of products that gemm.cu has described: each is chosen again when it is next
   needed. */
void gemm_forget_plans(void);

#endif
