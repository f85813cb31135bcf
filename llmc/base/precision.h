/* The storage type of weights and activations belongs to the backend.

   llm.c calls it floatX. A backend's own files say what it is before they include this header
   (BACKEND_FLOATX: float on the CPU; __nv_bfloat16, __half or float on CUDA). Host code leaves
   BACKEND_FLOATX undefined and gets an incomplete type: it can hold and pass a pointer to elements,
   but neither read one nor do arithmetic on the pointer. ops_at() in ops.h does that in bytes. */
#ifndef LLMC_PRECISION_H
#define LLMC_PRECISION_H

#ifdef BACKEND_FLOATX
typedef BACKEND_FLOATX floatX;
#else
typedef struct floatX floatX;
#endif

#endif
