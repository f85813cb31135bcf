/* Matrix products by cuBLASLt, row-major like everything here, sums in float32.

       GEMM_NT   out [M,N] = alpha a b^T + beta out      a [M,K]   b [N,K]
       GEMM_NN   out [M,N] = alpha a b   + beta out      a [M,K]   b [K,N]
       GEMM_TN   out [M,N] = alpha a^T b + beta out      a [K,M]   b [K,N]

   cuBLASLt counts down columns first, so it takes a row-major matrix for its transpose. Nothing is
   moved for that: it is asked for out^T = (op b)^T (op a)^T, where our b is its A and our a its B.

            ours                                  the same memory, as cuBLASLt sees it
            [M,K]    [K,N]     [M,N]              [N,K]    [K,M]     [N,M]
            op a     op b   =  out                A        B      =  D

   The same call gives the same bits. So the sums of a product that is cut along K are added in
   float32 in a step of its own, never in place or in the type of the output; the library's scratch
   has a fixed size; and an algorithm depends only on sizes, strides and alignments, which are asked
   about once and then remembered. What is stated of a pointer is what holds for all its rows: at
   most 16 bytes, the widest access there is. A tensor that starts at a whole row of an aligned
   buffer therefore has the alignment of its rows, whichever row that is: a layer that is computed
   again in another buffer gets the same algorithm.

   float32 operands are multiplied as float32, without TF32. */
#pragma once
#include "cuda_common.cuh"

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

/* ---- algorithms, remembered ------------------------------------------------------------------ */

/* All that an algorithm depends on. All of one width, so that keys compare byte by byte. */
struct GemmKey {
    int64_t form, epilogue, M, N, K;
    int64_t in_type, a_stride, a_alignment, b_stride, b_alignment;
    int64_t out_type, out_stride, out_alignment;
};

struct GemmPlan {
    struct GemmKey key;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, out;
    cublasLtMatmulAlgo_t algorithm;
    bool possible; /* false: the library has no algorithm for this */
};

/* A model has a dozen products for each number of rows that its batches happen to have; the plan
   made longest ago makes room for a new one. */
enum { GEMM_PLANS = 128, GEMM_ALIGNMENT = 16 };
static struct GemmPlan gemm_plans[GEMM_PLANS];
static size_t gemm_plans_made;

/* The largest power of two, at most 16, that divides the address of every row. */
static inline int64_t gemm_alignment(struct Matrix x) {
    size_t element = x.type == CUDA_R_32F ? 4 : 2;
    size_t bits = (size_t)x.data | x.stride * element | GEMM_ALIGNMENT;
    return (int64_t)(bits & -bits);
}

static inline void gemm_attribute(struct GemmPlan *p, cublasLtMatmulDescAttributes_t attribute,
                                  const void *value, size_t bytes) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->operation, attribute, value, bytes));
}

/* Tells a plan where its epilogue reads. */
static inline void gemm_epilogue_operand(struct GemmPlan *p, const void *operand) {
    if (p->key.epilogue == GEMM_BIAS)
        gemm_attribute(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &operand, sizeof operand);
    if (p->key.epilogue == GEMM_DGELU)
        gemm_attribute(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &operand, sizeof operand);
}

/* Describes the product. A row-major [rows,columns] matrix is a column-major [columns,rows] one. */
static inline void gemm_describe(struct GemmPlan *p) {
    const struct GemmKey *k = &p->key;
    cudaDataType_t in = (cudaDataType_t)k->in_type, out = (cudaDataType_t)k->out_type;
    bool a_transposed = k->form == GEMM_TN, b_transposed = k->form == GEMM_NT;
    int32_t first = b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    int32_t second = a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    int32_t epilogue = k->epilogue == GEMM_BIAS    ? CUBLASLT_EPILOGUE_BIAS
                       : k->epilogue == GEMM_DGELU ? CUBLASLT_EPILOGUE_DGELU
                                                   : CUBLASLT_EPILOGUE_DEFAULT;
    CUBLAS_CHECK(cublasLtMatmulDescCreate(&p->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    gemm_attribute(p, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
    gemm_attribute(p, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
    gemm_attribute(p, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (k->epilogue == GEMM_DGELU)
        gemm_attribute(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &k->out_stride,
                       sizeof k->out_stride);
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p->a, in, a_transposed ? k->M : k->K,
                                            a_transposed ? k->K : k->M, k->a_stride));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p->b, in, b_transposed ? k->K : k->N,
                                            b_transposed ? k->N : k->K, k->b_stride));
    CUBLAS_CHECK(cublasLtMatrixLayoutCreate(&p->out, out, k->N, k->M, k->out_stride));
}

/* Asks for the algorithm. The library concludes an epilogue operand's alignment from the address it
   is shown, which it does not read: 16 stands for every operand that gemm_with lets through. */
static inline void gemm_choose(struct GemmPlan *p) {
    cublasLtMatmulPreference_t wish;
    enum { ASKED = 8 };
    cublasLtMatmulHeuristicResult_t result[ASKED];
    int found = 0;
    uint64_t scratch = cuda.lt_workspace_bytes;
    uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    uint32_t b = (uint32_t)p->key.b_alignment, a = (uint32_t)p->key.a_alignment;
    uint32_t out = (uint32_t)p->key.out_alignment;
    const struct {
        cublasLtMatmulPreferenceAttributes_t name;
        const void *value;
        size_t bytes;
    } wishes[] = {{CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &scratch, sizeof scratch},
                  {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b, sizeof b},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a, sizeof a},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &out, sizeof out},
                  {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out, sizeof out}};
    CUBLAS_CHECK(cublasLtMatmulPreferenceCreate(&wish));
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++)
        CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(wish, wishes[i].name, wishes[i].value,
                                                          wishes[i].bytes));
    gemm_epilogue_operand(p, (const void *)GEMM_ALIGNMENT);
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        cuda.lt, p->operation, p->b, p->a, p->out, p->out, wish, ASKED, result, &found);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(wish));
    p->possible = false;
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found && !p->possible; i++) {
        p->possible = result[i].state == CUBLAS_STATUS_SUCCESS;
        p->algorithm = result[i].algo;
    }
}

static inline void gemm_forget(struct GemmPlan *p) {
    CUBLAS_CHECK(cublasLtMatmulDescDestroy(p->operation));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(p->a));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(p->b));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(p->out));
}

static inline struct GemmPlan *gemm_plan(const struct GemmKey *key) {
    for (size_t i = 0; i < GEMM_PLANS && i < gemm_plans_made; i++)
        if (memcmp(&gemm_plans[i].key, key, sizeof *key) == 0) return &gemm_plans[i];
    struct GemmPlan *plan = &gemm_plans[gemm_plans_made % GEMM_PLANS];
    if (gemm_plans_made >= GEMM_PLANS) gemm_forget(plan);
    gemm_plans_made++;
    plan->key = *key;
    gemm_describe(plan);
    gemm_choose(plan);
    return plan;
}

/* ---- products -------------------------------------------------------------------------------- */

static inline struct GemmPlan *gemm_plan_for(enum GemmForm form, enum GemmEpilogue epilogue,
                                             struct Matrix out, struct Matrix a, struct Matrix b,
                                             int M, int N, int K) {
    struct GemmKey key = {form, epilogue, M, N, K, a.type, (int64_t)a.stride, gemm_alignment(a),
                          (int64_t)b.stride, gemm_alignment(b), out.type, (int64_t)out.stride,
                          gemm_alignment(out)};
    return gemm_plan(&key);
}

static inline void gemm_run(const struct GemmPlan *p, struct Matrix out, struct Matrix a,
                            struct Matrix b, float alpha, float beta) {
    CUBLAS_CHECK(cublasLtMatmul(cuda.lt, p->operation, &alpha, b.data, p->b, a.data, p->a, &beta,
                                out.data, p->out, out.data, p->out, &p->algorithm,
                                cuda.lt_workspace, cuda.lt_workspace_bytes, cuda.stream));
}

/* out = alpha op(a) op(b) + beta out, as the form says. a and b have one element type. */
static inline void gemm(enum GemmForm form, struct Matrix out, struct Matrix a, struct Matrix b,
                        int M, int N, int K, float alpha, float beta) {
    if (M == 0 || N == 0 || K == 0) return; /* K: a sum of nothing, onto a gradient */
    struct GemmPlan *plan = gemm_plan_for(form, GEMM_PLAIN, out, a, b, M, N, K);
    if (!plan->possible)
        cuda_die("cuBLASLt has no algorithm for a product of %s of M %d, N %d, K %d",
                 form == GEMM_NT ? "a b^T" : form == GEMM_NN ? "a b" : "a^T b", M, N, K);
    gemm_run(plan, out, a, b, alpha, beta);
}

/* out = epilogue(op(a) op(b)). Returns false, and has done nothing, where that is not possible:
   where rows or the operand are not aligned to 16 bytes (the library's own rule for pre is rows of
   8 elements), and where the library has no such algorithm. The caller then takes two steps. */
static inline bool gemm_with(enum GemmEpilogue epilogue, const void *operand, enum GemmForm form,
                             struct Matrix out, struct Matrix a, struct Matrix b, int M, int N,
                             int K) {
    if (M == 0 || N == 0) return true;
    if ((size_t)operand % GEMM_ALIGNMENT || gemm_alignment(out) < GEMM_ALIGNMENT) return false;
    struct GemmPlan *plan = gemm_plan_for(form, epilogue, out, a, b, M, N, K);
    if (!plan->possible) return false;
    gemm_epilogue_operand(plan, operand);
    gemm_run(plan, out, a, b, 1.0f, 0.0f);
    return true;
}
