/* The CUDA backend for one element type: its slots from the files beside this one, the
   workspace that serves all of them, and the conversion of elements. */
#include "cuda_common.cuh"

enum { THREADS = 256 };

/* A thread converts 16 bytes' worth of elements. */
static __global__ void to_float_kernel(float *out, const floatX *in, size_t n, bool whole) {
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (i >= n) return;
    int count = n - i < VEC ? (int)(n - i) : VEC;
    float x[VEC];
    load_some(x, in + i, count, whole);
    for (int j = 0; j < VEC; j += 4) store_some(out + i + j, x + j, count - j, whole);
}

static __global__ void from_float_kernel(floatX *out, const float *in, size_t n, bool whole) {
    size_t i = ((size_t)blockIdx.x * THREADS + threadIdx.x) * VEC;
    if (i >= n) return;
    int count = n - i < VEC ? (int)(n - i) : VEC;
    float x[VEC];
    for (int j = 0; j < VEC; j += 4) load_some(x + j, in + i + j, count - j, whole);
    store_some(out + i, x, count, whole);
}

static unsigned blocks_for(size_t n) {
    return (unsigned)((n + (size_t)THREADS * VEC - 1) / ((size_t)THREADS * VEC));
}

static bool both_aligned(const void *a, const void *b) {
    return rows_aligned(a, 16, 1) && rows_aligned(b, 16, 1);
}

static void to_float(float *out, const floatX *in, size_t n) {
    if (n == 0) return;
    to_float_kernel<<<blocks_for(n), THREADS, 0, cuda.stream>>>(out, in, n, both_aligned(out, in));
    CUDA_CHECK_LAUNCH();
}

static void from_float(floatX *out, const float *in, size_t n) {
    if (n == 0) return;
    from_float_kernel<<<blocks_for(n), THREADS, 0, cuda.stream>>>(out, in, n,
                                                                  both_aligned(out, in));
    CUDA_CHECK_LAUNCH();
}

/* True if the plug-in has machine code for this GPU. One that was built for other GPUs loads
   without an error and fails at its first kernel. Code made from PTX for older GPUs, which a newer
   one can run, has no waits for launches that overlap (dependent.cuh). */
bool PER_TYPE(cuda_has_code)(void) {
    cudaFuncAttributes attributes;
    bool there = cudaFuncGetAttributes(&attributes, to_float_kernel) == cudaSuccess;
    cuda.programmatic = there && attributes.ptxVersion >= 90;
    if (!there) cudaGetLastError(); /* so that no later check reports this error */
    return there;
}

extern const struct KernelFile PER_TYPE(cuda_embedding), PER_TYPE(cuda_norm),
    PER_TYPE(cuda_matmul), PER_TYPE(cuda_mlp), PER_TYPE(cuda_position), PER_TYPE(cuda_attention),
    PER_TYPE(cuda_attention_decode), PER_TYPE(cuda_head), PER_TYPE(cuda_head_forward),
    PER_TYPE(cuda_matmul_decode), PER_TYPE(cuda_sample), PER_TYPE(cuda_adamw);

/* THE LIST. A file has to be here to fill its slots and to have its workspace counted. */
static const struct KernelFile *const files[] = {
    &cuda_memory,
    &cuda_comm,
    &cuda_gemm_choice,
    &PER_TYPE(cuda_embedding),
    &PER_TYPE(cuda_norm),
    &PER_TYPE(cuda_matmul),
    &PER_TYPE(cuda_mlp),
    &PER_TYPE(cuda_position),
    &PER_TYPE(cuda_attention),
    &PER_TYPE(cuda_attention_decode),
    &PER_TYPE(cuda_head),
    &PER_TYPE(cuda_head_forward),
    &PER_TYPE(cuda_matmul_decode),
    &PER_TYPE(cuda_sample),
    &PER_TYPE(cuda_adamw),
};
enum { NUM_FILES = sizeof files / sizeof *files };

static size_t workspace_size(const struct OpsShape *shape) {
    return kernel_files_workspace(files, NUM_FILES, shape);
}

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

void PER_TYPE(cuda_fill)(struct Ops *ops) {
    ops->name = BACKEND_NAME;
    ops->device = cuda.name;
    ops->dtype = TEXT(BACKEND_DTYPE);
    ops->element_size = sizeof(floatX);
    ops->vocabulary_multiple = 64;
    ops->decode_multiple = 8;
    ops->asynchronous = true;
    ops->to_float = to_float;
    ops->from_float = from_float;
    ops->workspace_size = workspace_size;
    kernel_files_fill(ops, files, NUM_FILES);
}
