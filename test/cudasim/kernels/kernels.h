/* Small kernels for the emulator's own tests. Each works, and can be told to make one of the
   mistakes that are easy to make: BUG(n) is true for the bug the test asked for, and never under
   nvcc. All pointers are device pointers; bf16 and fp16 data is passed as unsigned short. */
#ifndef CUDASIM_KERNELS_H
#define CUDASIM_KERNELS_H

#include <cuda_runtime.h>

#ifdef CUDASIM
extern int planted_bug;
#else
enum { planted_bug = 0 };
#endif
#define BUG(number) (planted_bug == (number))

/* out [N,C], mean [N], rstd [N] = layer norm of x [N,C] with weight, bias [C] */
void layernorm_forward(float *out, float *mean, float *rstd, const float *x, const float *weight,
                       const float *bias, int N, int C);
void layernorm_forward_bf16(unsigned short *out, const unsigned short *x,
                            const unsigned short *weight, const unsigned short *bias, int N, int C);

/* Per row of logits [rows,Vp], over its V real columns: log-sum-exp, entropy of the softmax, and
   the log-probability of target [rows]. V need not be a multiple of 8. */
void row_lse_entropy(float *lse, float *entropy, float *logp, const unsigned short *logits,
                     const int *target, int rows, int V, int Vp);

/* C [M,N] = A [M,K] B [N,K]^T, fp32 accumulation; K a multiple of 8 */
void gemm_bf16(unsigned short *C, const unsigned short *A, const unsigned short *B, int M, int N,
               int K);
void gemm_half(unsigned short *C, const unsigned short *A, const unsigned short *B, int M, int N,
               int K);
/* The same on Hopper: TMA loads, wgmma. */
void gemm_hopper(unsigned short *C, const unsigned short *A, const unsigned short *B, int M, int N,
                 int K);

/* Causal attention, fp32: qkv [B,T,3,NH,HS] -> out [B,T,NH,HS], lse [B,NH,T]; HS 16, 64 or 128.
   Returns the launch's error. */
int attention_forward(float *out, float *lse, const float *qkv, int B, int T, int NH, int HS);

#endif
