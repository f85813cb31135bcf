/* The products of gemm.cuh: each described to cuBLASLt once, its algorithm chosen once. Compiled
   once for all element types, so that a product has one algorithm whichever file asks for it. */
#include "gemm.cuh"

#include <math.h>
#include <string.h>
#include "gemm_choice.h"

/* ---- algorithms, remembered ------------------------------------------------------------------ */

struct GemmPlan {
    struct GemmKey key;
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, out;
    cublasLtMatmulAlgo_t algorithm;
    bool possible; /* false: the library has no algorithm for this */
};

/* A model has a dozen products for each number of rows that its batches have. Where all places are
   taken, a new plan replaces the one that was made first. */
enum { GEMM_PLANS = 256, GEMM_ALIGNMENT = 16 };
static struct GemmPlan gemm_plans[GEMM_PLANS];
static size_t gemm_plans_made;

/* The largest power of two, at most 16, that divides the address of every row. */
static int64_t gemm_alignment(struct Matrix x) {
    size_t element = x.type == CUDA_R_32F ? 4 : 2;
    size_t bits = (size_t)x.data | x.stride * element | GEMM_ALIGNMENT;
    return (int64_t)(bits & -bits);
}

static void gemm_attribute(struct GemmPlan *p, cublasLtMatmulDescAttributes_t attribute,
                           const void *value, size_t bytes) {
    CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(p->operation, attribute, value, bytes));
}

/* Tells a plan where its epilogue reads. */
static void gemm_epilogue_operand(struct GemmPlan *p, const void *operand) {
    if (p->key.epilogue == GEMM_BIAS)
        gemm_attribute(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &operand, sizeof operand);
    if (p->key.epilogue == GEMM_DGELU)
        gemm_attribute(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &operand, sizeof operand);
}

/* Describes the product. A row-major [rows,columns] matrix is a column-major [columns,rows] one. */
static void gemm_describe(struct GemmPlan *p) {
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

/* Asks the library for algorithms, which it returns best first by its own estimate; returns how
   many there are. The library derives an epilogue operand's alignment from its address and does not
   read there: address 16 stands for every operand that gemm_with accepts, all aligned to 16. */
enum { GEMM_ASKED = 8 };
static int gemm_candidates(cublasLtMatmulAlgo_t algorithm[GEMM_ASKED], struct GemmPlan *p) {
    cublasLtMatmulPreference_t wish;
    cublasLtMatmulHeuristicResult_t result[GEMM_ASKED];
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
        cuda.lt, p->operation, p->b, p->a, p->out, p->out, wish, GEMM_ASKED, result, &found);
    CUBLAS_CHECK(cublasLtMatmulPreferenceDestroy(wish));
    int possible = 0;
    for (int i = 0; status == CUBLAS_STATUS_SUCCESS && i < found; i++)
        if (result[i].state == CUBLAS_STATUS_SUCCESS) algorithm[possible++] = result[i].algo;
    return possible;
}

/* True if the algorithm can do exactly this product with the scratch memory that is reserved. */
static bool gemm_takes(const struct GemmPlan *p, const cublasLtMatmulAlgo_t *algorithm) {
    cublasLtMatmulHeuristicResult_t result;
    cublasStatus_t status = cublasLtMatmulAlgoCheck(cuda.lt, p->operation, p->b, p->a, p->out,
                                                    p->out, algorithm, &result);
    return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= cuda.lt_workspace_bytes;
}

static cublasStatus_t gemm_launch(const struct GemmPlan *p, const cublasLtMatmulAlgo_t *algorithm,
                                  void *out, const void *a, const void *b, float alpha,
                                  float beta) {
    return cublasLtMatmul(cuda.lt, p->operation, &alpha, b, p->b, a, p->a, &beta, out, p->out, out,
                          p->out, algorithm, cuda.lt_workspace, cuda.lt_workspace_bytes,
                          cuda.stream);
}

/* ---- timing ---------------------------------------------------------------------------------- */

/* Milliseconds of `launches` products; infinite if the algorithm fails. A weight gradient is added
   to what is there (beta 1), everything else overwrites. */
static float gemm_time(const struct GemmPlan *p, const cublasLtMatmulAlgo_t *algorithm, void *out,
                       const void *a, const void *b, int launches) {
    static cudaEvent_t begin, end;
    float milliseconds, beta = p->key.form == GEMM_TN ? 1.0f : 0.0f;
    if (!begin) CUDA_CHECK(cudaEventCreate(&begin));
    if (!end) CUDA_CHECK(cudaEventCreate(&end));
    CUDA_CHECK(cudaEventRecord(begin, cuda.stream));
    for (int i = 0; i < launches; i++)
        if (gemm_launch(p, algorithm, out, a, b, 1.0f, beta) != CUBLAS_STATUS_SUCCESS)
            return INFINITY;
    CUDA_CHECK(cudaEventRecord(end, cuda.stream));
    CUDA_CHECK(cudaEventSynchronize(end));
    CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin, end));
    return milliseconds;
}

/* Zeroed memory for the result of trial products, which is not read; NULL if it would take more
   than half of what is free. The caller frees it. */
static void *gemm_trial_memory(const struct GemmPlan *p) {
    size_t element = p->key.out_type == CUDA_R_32F ? 4 : 2, available, total;
    size_t bytes = (size_t)p->key.M * p->key.out_stride * element;
    void *memory;
    CUDA_CHECK(cudaMemGetInfo(&available, &total));
    if (bytes > available / 2) return NULL;
    if (cudaMalloc(&memory, bytes) != cudaSuccess) {
        cudaGetLastError(); /* so that no later check reports this error */
        return NULL;
    }
    CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, cuda.stream));
    return memory;
}

/* Returns the index of the fastest of n algorithms. The shorter of two timed turns counts, after a
   first turn that only loads the code.
   a and b are the real operands; the real output is not touched. */
static int gemm_fastest(const struct GemmPlan *p, const cublasLtMatmulAlgo_t *algorithm, int n,
                        const void *a, const void *b) {
    enum { TURNS = 3, LAUNCHES = 2 };
    float time[GEMM_ASKED];
    int best = 0;
    void *out = n > 1 ? gemm_trial_memory(p) : NULL;
    if (!out) return 0;
    for (int turn = 0; turn < TURNS; turn++)
        for (int i = 0; i < n; i++) {
            float now = gemm_time(p, &algorithm[i], out, a, b, turn == 0 ? 1 : LAUNCHES);
            if (turn < 2 || now < time[i]) time[i] = now;
        }
    for (int i = 1; i < n; i++)
        if (time[i] < time[best]) best = i;
    CUDA_CHECK(cudaStreamSynchronize(cuda.stream));
    CUDA_CHECK(cudaFree(out));
    return best;
}

/* The class's choice where this shape takes it, else the library's first; and where its class has
   none yet, the fastest becomes it. Timing allocates and waits, which is impossible in a recording
   and not needed there: a sequence runs once before it is recorded, and makes its choices then. */
static void gemm_choose(struct GemmPlan *p, const void *operand, const void *a, const void *b) {
    cublasLtMatmulAlgo_t algorithm[GEMM_ASKED];
    int possible = gemm_candidates(algorithm, p);
    p->possible = possible > 0;
    if (!p->possible) return;
    gemm_epilogue_operand(p, operand);
    const cublasLtMatmulAlgo_t *known = gemm_choice_find(&p->key);
    p->algorithm = algorithm[0];
    if (known && gemm_takes(p, known)) p->algorithm = *known;
    if (known || !gemm_choice_wanted()) return;
    if (cuda.recording)
        cuda_die("a product of M %d, N %d, K %d is recorded that was not in the sequence when it "
                 "first ran; its key in graph_begin has to tell the two apart",
                 (int)p->key.M, (int)p->key.N, (int)p->key.K);
    p->algorithm = algorithm[gemm_fastest(p, algorithm, possible, a, b)];
    gemm_choice_add(&p->key, &p->algorithm);
}

/* ---- plans ----------------------------------------------------------------------------------- */

static void gemm_forget(struct GemmPlan *p) {
    CUBLAS_CHECK(cublasLtMatmulDescDestroy(p->operation));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(p->a));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(p->b));
    CUBLAS_CHECK(cublasLtMatrixLayoutDestroy(p->out));
}

void gemm_forget_plans(void) {
    for (size_t i = 0; i < GEMM_PLANS && i < gemm_plans_made; i++) gemm_forget(&gemm_plans[i]);
    gemm_plans_made = 0;
}

static struct GemmPlan *gemm_plan(const struct GemmKey *key, const void *operand, const void *a,
                                  const void *b) {
    for (size_t i = 0; i < GEMM_PLANS && i < gemm_plans_made; i++)
        if (memcmp(&gemm_plans[i].key, key, sizeof *key) == 0) return &gemm_plans[i];
    struct GemmPlan *plan = &gemm_plans[gemm_plans_made % GEMM_PLANS];
    if (gemm_plans_made >= GEMM_PLANS) gemm_forget(plan);
    gemm_plans_made++;
    plan->key = *key;
    gemm_describe(plan);
    gemm_choose(plan, operand, a, b);
    return plan;
}

static struct GemmPlan *gemm_plan_for(enum GemmForm form, enum GemmEpilogue epilogue,
                                      const void *operand, struct Matrix out, struct Matrix a,
                                      struct Matrix b, int M, int N, int K) {
    struct GemmKey key = {form, epilogue, M, N, K, a.type, (int64_t)a.stride, gemm_alignment(a),
                          (int64_t)b.stride, gemm_alignment(b), out.type, (int64_t)out.stride,
                          gemm_alignment(out)};
    return gemm_plan(&key, operand, a.data, b.data);
}

/* ---- products -------------------------------------------------------------------------------- */

void gemm(enum GemmForm form, struct Matrix out, struct Matrix a, struct Matrix b, int M, int N,
          int K, float alpha, float beta) {
    if (M == 0 || N == 0 || K == 0) return; /* K 0 occurs for gradients only: 0 is added */
    struct GemmPlan *plan = gemm_plan_for(form, GEMM_PLAIN, NULL, out, a, b, M, N, K);
    if (!plan->possible)
        cuda_die("cuBLASLt has no algorithm for a product of %s of M %d, N %d, K %d",
                 form == GEMM_NT ? "a b^T" : form == GEMM_NN ? "a b" : "a^T b", M, N, K);
    CUBLAS_CHECK(gemm_launch(plan, &plan->algorithm, out.data, a.data, b.data, alpha, beta));
}

bool gemm_with(enum GemmEpilogue epilogue, const void *operand, enum GemmForm form,
               struct Matrix out, struct Matrix a, struct Matrix b, int M, int N, int K) {
    if (M == 0 || N == 0) return true;
    if ((size_t)operand % GEMM_ALIGNMENT || gemm_alignment(out) < GEMM_ALIGNMENT) return false;
    struct GemmPlan *plan = gemm_plan_for(form, epilogue, operand, out, a, b, M, N, K);
    if (!plan->possible) return false;
    gemm_epilogue_operand(plan, operand);
    CUBLAS_CHECK(gemm_launch(plan, &plan->algorithm, out.data, a.data, b.data, 1.0f, 0.0f));
    return true;
}
