/* The decode step's ladder: matmul_decode, mlp_decode and attention_decode (llmc/ops.h,
   doc/kernels/decode.md). */
#include "lab.cuh"

#define VERSIONS(ROW)                                                                       \
    ROW(decode_naive, any_gpu,                                                              \
        "the definition: a thread an element of the product",                               \
        "right; w from memory in pieces of 2 bytes, once for every row")                    \
    ROW(decode_warp, any_gpu,                                                               \
        "a warp a column, 16 bytes a lane, eight rows at a time",                           \
        "w in whole lines, once for eight rows: memory's rate at up to 8 rows")             \
    ROW(decode_tiles, any_gpu,                                                              \
        "tensor cores, tiles of 16 x 32 or 64 x 32, eight stages of cp.async",              \
        "w once for 64 rows: memory's rate where OC / 32 blocks fill the device")           \
    ROW(cuda_matmul_decode, any_gpu,                                                        \
        "K in four parts that four blocks may share; the tile that brings least: ships",    \
        "128 blocks instead of 32 for an OC of 1024; half the bytes at 17 rows")            \
    ROW(decode_attention_naive, any_gpu,                                                    \
        "attention's definition: a thread a row and head goes along all keys",              \
        "right, and slow: R NH / 64 blocks, 2 bytes of a line at a time")                   \
    ROW(cuda_attention_decode, any_gpu,                                                     \
        "attention of a step, 128 keys a block, pieces merged: what ships",                 \
        "keys and values once, at memory's rate")
LADDER(decode, VERSIONS)
