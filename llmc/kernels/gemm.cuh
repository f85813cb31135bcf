/* Matrix products by cuBLASLt, row-major like everything here, sums in float32.

       GEMM_NT   out [M,N] = alpha a b^T + beta out      a [M,K]   b [N,K]
       GEMM_NN   out [M,N] = alpha a b   + beta out      a [M,K]   b [K,N]
       GEMM_TN   out [M,N] = alpha a^T b + beta out      a [K,M]   b [K,N]

   cuBLASLt stores matrices column by column, so it reads a row-major matrix as its transpose. No
   data is moved: the call asks for out^T = (op b)^T (op a)^T, where our b is its A and our a its B.

            ours                                  the same memory, as cuBLASLt sees it
            [M,K]    [K,N]     [M,N]              [N,K]    [K,M]     [N,M]
            op a     op b   =  out                A        B      =  D

   The same call gives the same bits. So the sums of a product that is cut along K are added in
   float32 in a step of its own, never in place or in the type of the output; the library's scratch
   has a fixed size; and an algorithm depends only on sizes, strides and alignments (gemm_choice.h),
   which are asked about once and then remembered. The alignment of a matrix is the largest power of
   two, at most 16 bytes (the widest access), that divides the addresses of all its rows. A tensor
   that starts at a whole row of an aligned buffer therefore has the alignment of its rows,
   whichever row that is: a layer that is computed again in another buffer gets the same algorithm.

   float32 operands are multiplied as float32, without TF32. */
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include "cuda_device.h"

enum GemmForm { GEMM_NT, GEMM_NN, GEMM_TN };

/* What happens to the float32 sums before they are rounded and stored, and what it reads:
   GEMM_BIAS   + bias[column], bias [N]
   GEMM_DGELU  * gelu'(pre), pre [M,N] with the stride of out */
enum GemmEpilogue { GEMM_PLAIN, GEMM_BIAS, GEMM_DGELU };

/* Rows of `stride` elements. */
struct Matrix {
    void *data;
    cudaDataType_t type;
    size_t stride;
};

template <class T> struct GemmType;
template <> struct GemmType<float> { static const cudaDataType_t value = CUDA_R_32F; };
template <> struct GemmType<__nv_bfloat16> { static const cudaDataType_t value = CUDA_R_16BF; };
template <> struct GemmType<__half> { static const cudaDataType_t value = CUDA_R_16F; };

template <class T> static inline struct Matrix matrix(const T *data, size_t stride) {
    struct Matrix x = {(void *)data, GemmType<T>::value, stride};
    return x;
}

/* out = alpha op(a) op(b) + beta out, as the form says. a and b have one element type. */
void gemm(enum GemmForm form, struct Matrix out, struct Matrix a, struct Matrix b, int M, int N,
          int K, float alpha, float beta);

/* out = epilogue(op(a) op(b)). Returns false, and has done nothing, where that is not possible:
   where rows or the operand are not aligned to 16 bytes (the library's own rule for pre is rows of
   8 elements), and where the library has no such algorithm. The caller then takes two steps. */
bool gemm_with(enum GemmEpilogue epilogue, const void *operand, enum GemmForm form,
               struct Matrix out, struct Matrix a, struct Matrix b, int M, int N, int K);
