/* Matrix products behind the cuBLAS and cuBLASLt names: plain loops, float32 accumulation, every
   operand checked (device memory, in bounds, initialised, not overlapping the output). */
#include "../device/float16.h"
#include "../include/cublasLt.h"
#include "emulator.h"

namespace cudasim {

struct Matrix {
    char *data;
    cudaDataType_t type;
    int64_t rows, columns, ld, stride; /* stride: from one batch to the next, in elements */
};

struct Product {
    bool transpose_a, transpose_b;
    int64_t m, n, k, batches;
    float alpha, beta;
    Matrix a, b, c, d;
    cublasLtEpilogue_t epilogue;
    Matrix bias, aux; /* bias: one column */
    int candidate;    /* cublasLt's algorithm; 0 otherwise */
};

/* cublasLt's algorithms, as the header describes them. */
static const struct {
    int partial;
    int seconds;
} candidates[] = {{16, 3}, {0, 0}, {8, 1}, {4, 2}};
enum { CANDIDATES = sizeof candidates / sizeof *candidates };

static size_t element_size(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

static float load(const Matrix &x, int64_t row, int64_t column) {
    const char *at = x.data + (size_t)(column * x.ld + row) * element_size(x.type);
    if (x.type == CUDA_R_32F) return *(const float *)at;
    return x.type == CUDA_R_16BF ? bf16_to_float(*(const uint16_t *)at)
                                 : half_to_float(*(const uint16_t *)at);
}

static void store(const Matrix &x, int64_t row, int64_t column, float value) {
    char *at = x.data + (size_t)(column * x.ld + row) * element_size(x.type);
    if (x.type == CUDA_R_32F) *(float *)at = value;
    else if (x.type == CUDA_R_16BF) *(uint16_t *)at = bf16_from_float(value);
    else *(uint16_t *)at = half_from_float(value);
}

static void read_columns(const Matrix &x, const char *what) {
    size_t size = element_size(x.type);
    for (int64_t j = 0; j < x.columns; j++)
        library_read(x.data + (size_t)(j * x.ld) * size, (size_t)x.rows * size, what);
}

static void wrote_columns(const Matrix &x, const char *what) {
    size_t size = element_size(x.type);
    for (int64_t j = 0; j < x.columns; j++)
        library_wrote(x.data + (size_t)(j * x.ld) * size, (size_t)x.rows * size, what);
}

static Matrix batch(const Matrix &x, int64_t index) {
    Matrix result = x;
    if (x.data) result.data += (size_t)(index * x.stride) * element_size(x.type);
    return result;
}

static const char *end_of(const Matrix &x) {
    return x.data + (size_t)((x.columns - 1) * x.ld + x.rows) * element_size(x.type);
}

/* The output must not overlap an input: the order in which elements are read and written is
   open. */
static void check_overlap(const Matrix &out, const Matrix &in, const char *what) {
    if (out.data < end_of(in) && in.data < end_of(out))
        fail("cuBLAS: the output overlaps %s", what);
}

/* ---- epilogues ---- */

static bool has_bias(cublasLtEpilogue_t e) { return e < CUBLASLT_EPILOGUE_DGELU && (e & 4); }
static bool has_gelu(cublasLtEpilogue_t e) { return e < CUBLASLT_EPILOGUE_DGELU && (e & 32); }
static bool has_relu(cublasLtEpilogue_t e) { return e < CUBLASLT_EPILOGUE_DGELU && (e & 2); }
static bool writes_aux(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
static bool has_dgelu(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_DGELU || e == CUBLASLT_EPILOGUE_DGELU_BGRAD;
}
static bool writes_bias(cublasLtEpilogue_t e) {
    return e == CUBLASLT_EPILOGUE_DGELU_BGRAD || e == CUBLASLT_EPILOGUE_BGRADA ||
           e == CUBLASLT_EPILOGUE_BGRADB;
}

static const float SQRT_2_OVER_PI = 0.7978845608f;

/* The tanh form of GELU (1606.08415) and its derivative. */
static float gelu(float x) {
    return 0.5f * x * (1.0f + tanhf(SQRT_2_OVER_PI * (x + 0.044715f * x * x * x)));
}

static float gelu_derivative(float x) {
    float inner = SQRT_2_OVER_PI * (x + 0.044715f * x * x * x);
    float t = tanhf(inner), slope = SQRT_2_OVER_PI * (1.0f + 3.0f * 0.044715f * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope;
}

static float apply_epilogue(const Product &p, float value, int64_t row, int64_t column) {
    if (has_bias(p.epilogue)) value += load(p.bias, row, 0);
    if (writes_aux(p.epilogue)) {
        store(p.aux, row, column, value);
        value = load(p.aux, row, column); /* the activation sees what was stored */
    }
    if (has_gelu(p.epilogue)) value = gelu(value);
    if (has_relu(p.epilogue)) value = value > 0 ? value : 0;
    if (has_dgelu(p.epilogue)) value *= gelu_derivative(load(p.aux, row, column));
    return value;
}

/* ---- the product ---- */

/* Row i of op(X) as floats: [rows,k], contiguous in k. */
static std::vector<float> gather(const Matrix &x, bool k_is_column, int64_t rows, int64_t k) {
    std::vector<float> out((size_t)(rows * k));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t p = 0; p < k; p++)
            out[(size_t)(i * k + p)] = k_is_column ? load(x, i, p) : load(x, p, i);
    return out;
}

/* PARTIAL sums, so that it vectorises. */
template <int PARTIAL> static float dot_by(const float *x, const float *y, int64_t k) {
    float partial[PARTIAL] = {}, sum = 0;
    int64_t p = 0;
    for (; p + PARTIAL <= k; p += PARTIAL)
        for (int lane = 0; lane < PARTIAL; lane++) partial[lane] += x[p + lane] * y[p + lane];
    for (; p < k; p++) sum += x[p] * y[p];
    for (int lane = 0; lane < PARTIAL; lane++) sum += partial[lane];
    return sum;
}

static float dot(const float *x, const float *y, int64_t k, int partial) {
    return partial == 16 ? dot_by<16>(x, y, k) : partial == 8 ? dot_by<8>(x, y, k)
                                                              : dot_by<4>(x, y, k);
}

static void check_operands(const Product &p) {
    read_columns(p.a, "cuBLAS operand A");
    read_columns(p.b, "cuBLAS operand B");
    if (p.beta != 0) read_columns(p.c, "cuBLAS operand C");
    if (has_bias(p.epilogue)) read_columns(p.bias, "cuBLAS bias");
    if (has_dgelu(p.epilogue)) read_columns(p.aux, "cuBLAS auxiliary input");
    check_overlap(p.d, p.a, "A");
    check_overlap(p.d, p.b, "B");
}

/* Sums over k of op(A)'s rows or op(B)'s columns, or over the columns of what was just computed. */
static void store_bias_gradient(const Product &p, const std::vector<float> &a,
                                const std::vector<float> &b, const std::vector<float> &row_sums) {
    for (int64_t i = 0; i < p.bias.rows; i++) {
        float sum = 0;
        if (p.epilogue == CUBLASLT_EPILOGUE_DGELU_BGRAD) sum = row_sums[(size_t)i];
        const std::vector<float> &x = p.epilogue == CUBLASLT_EPILOGUE_BGRADA ? a : b;
        if (p.epilogue != CUBLASLT_EPILOGUE_DGELU_BGRAD)
            for (int64_t q = 0; q < p.k; q++) sum += x[(size_t)(i * p.k + q)];
        store(p.bias, i, 0, sum);
    }
    wrote_columns(p.bias, "cuBLAS bias gradient");
}

static void multiply_one(const Product &p) {
    check_operands(p);
    std::vector<float> a = gather(p.a, !p.transpose_a, p.m, p.k);
    std::vector<float> b = gather(p.b, p.transpose_b, p.n, p.k);
    std::vector<float> row_sums((size_t)p.m);
    for (int64_t j = 0; j < p.d.columns; j++)
        require_device(p.d.data + (size_t)(j * p.d.ld) * element_size(p.d.type),
                       (size_t)p.d.rows * element_size(p.d.type), "cuBLAS output");
    for (int64_t j = 0; j < p.n; j++) {
        for (int64_t i = 0; i < p.m; i++) {
            float value = p.alpha * dot(&a[(size_t)(i * p.k)], &b[(size_t)(j * p.k)], p.k,
                                        candidates[p.candidate].partial);
            if (p.beta != 0) value += p.beta * load(p.c, i, j);
            value = apply_epilogue(p, value, i, j);
            row_sums[(size_t)i] += value;
            store(p.d, i, j, value);
        }
    }
    wrote_columns(p.d, "cuBLAS output");
    if (writes_aux(p.epilogue)) wrote_columns(p.aux, "cuBLAS auxiliary output");
    if (writes_bias(p.epilogue)) store_bias_gradient(p, a, b, row_sums);
}

static void multiply(const Product &product) {
    simulated_seconds += candidates[product.candidate].seconds;
    for (int64_t z = 0; z < product.batches; z++) {
        Product p = product;
        p.a = batch(product.a, z);
        p.b = batch(product.b, z);
        p.c = batch(product.c, z);
        p.d = batch(product.d, z);
        multiply_one(p);
    }
}

static bool supported(cudaDataType_t type) {
    return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF;
}

} // namespace cudasim

using namespace cudasim;

struct cudasim_cublas {
    cudaStream_t stream;
};
struct cudasim_layout {
    Matrix matrix;
    int batches;
};
struct cudasim_matmul {
    cublasComputeType_t compute;
    int32_t transpose_a, transpose_b, epilogue, bias_type, aux_type, pointer_mode;
    void *bias, *aux;
    int64_t aux_ld;
};
struct cudasim_preference {
    uint32_t alignment[4]; /* of A, B, C and D, bytes */
};

/* ---- cuBLAS ---- */

const char *cublasGetStatusName(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "another cuBLAS status";
    }
}
const char *cublasGetStatusString(cublasStatus_t status) { return cublasGetStatusName(status); }

cublasStatus_t cublasCreate(cublasHandle_t *handle) {
    *handle = new cudasim_cublas();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy(cublasHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream(cublasHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return CUBLAS_STATUS_SUCCESS; }
cublasStatus_t cublasSetWorkspace(cublasHandle_t, void *workspace, size_t bytes) {
    require_device(workspace, bytes, "cuBLAS workspace");
    return CUBLAS_STATUS_SUCCESS;
}

static Matrix matrix_of(const void *data, cudaDataType_t type, int64_t rows, int64_t columns,
                        int64_t ld, int64_t stride) {
    return Matrix{(char *)data, type, rows, columns, ld, stride};
}

static cublasStatus_t submit_product(cudaStream_t stream, const Product &p) {
    if (!supported(p.a.type) || !supported(p.b.type) || !supported(p.d.type))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (p.a.ld < p.a.rows || p.b.ld < p.b.rows || p.c.ld < p.c.rows || p.d.ld < p.d.rows)
        return CUBLAS_STATUS_INVALID_VALUE;
    cudaError_t error = enqueue_library(stream, [p] { multiply(p); });
    return error ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmStridedBatchedEx(
    cublasHandle_t handle, cublasOperation_t transa, cublasOperation_t transb, int m, int n, int k,
    const void *alpha, const void *A, cudaDataType_t Atype, int lda, long long strideA,
    const void *B, cudaDataType_t Btype, int ldb, long long strideB, const void *beta, void *C,
    cudaDataType_t Ctype, int ldc, long long strideC, int batchCount,
    cublasComputeType_t computeType, cublasGemmAlgo_t) {
    if (computeType == CUBLAS_COMPUTE_16F) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (m < 0 || n < 0 || k < 0 || batchCount < 0) return CUBLAS_STATUS_INVALID_VALUE;
    bool ta = transa != CUBLAS_OP_N, tb = transb != CUBLAS_OP_N;
    Product p = {};
    p.transpose_a = ta, p.transpose_b = tb;
    p.m = m, p.n = n, p.k = k, p.batches = batchCount;
    p.alpha = *(const float *)alpha, p.beta = *(const float *)beta;
    p.a = matrix_of(A, Atype, ta ? k : m, ta ? m : k, lda, strideA);
    p.b = matrix_of(B, Btype, tb ? n : k, tb ? k : n, ldb, strideB);
    p.c = p.d = matrix_of(C, Ctype, m, n, ldc, strideC);
    p.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return submit_product(handle->stream, p);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void *alpha,
                            const void *A, cudaDataType_t Atype, int lda, const void *B,
                            cudaDataType_t Btype, int ldb, const void *beta, void *C,
                            cudaDataType_t Ctype, int ldc, cublasComputeType_t computeType,
                            cublasGemmAlgo_t algo) {
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B,
                                      Btype, ldb, 0, beta, C, Ctype, ldc, 0, 1, computeType, algo);
}

cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t transa,
                           cublasOperation_t transb, int m, int n, int k, const float *alpha,
                           const float *A, int lda, const float *B, int ldb, const float *beta,
                           float *C, int ldc) {
    return cublasSgemmStridedBatched(handle, transa, transb, m, n, k, alpha, A, lda, 0, B, ldb, 0,
                                     beta, C, ldc, 0, 1);
}

cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t transa,
                                         cublasOperation_t transb, int m, int n, int k,
                                         const float *alpha, const float *A, int lda,
                                         long long strideA, const float *B, int ldb,
                                         long long strideB, const float *beta, float *C, int ldc,
                                         long long strideC, int batchCount) {
    return cublasGemmStridedBatchedEx(handle, transa, transb, m, n, k, alpha, A, CUDA_R_32F, lda,
                                      strideA, B, CUDA_R_32F, ldb, strideB, beta, C, CUDA_R_32F,
                                      ldc, strideC, batchCount, CUBLAS_COMPUTE_32F,
                                      CUBLAS_GEMM_DEFAULT);
}

/* ---- cuBLASLt ---- */

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) { return cublasCreate(handle); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return cublasDestroy(handle); }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t) {
    *desc = new cudasim_matmul();
    (*desc)->compute = compute;
    (*desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    (*desc)->bias_type = (*desc)->aux_type = -1; /* the output's */
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

/* Copies an attribute's value; a wrong size is an error, as in the library. */
template <class T> static cublasStatus_t set(T *place, const void *value, size_t bytes) {
    if (!value || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(place, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    int32_t scale_type;
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: return set(&d->compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: return set(&scale_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE: return set(&d->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA: return set(&d->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB: return set(&d->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE: return set(&d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return set(&d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: return set(&d->bias_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return set(&d->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return set(&d->aux_ld, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE: return set(&d->aux_type, value, bytes);
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t ld) {
    *layout = new cudasim_layout();
    (*layout)->matrix = matrix_of(nullptr, type, (int64_t)rows, (int64_t)columns, ld, 0);
    (*layout)->batches = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t bytes) {
    int32_t order = CUBLASLT_ORDER_COL;
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        set(&order, value, bytes);
        return order == CUBLASLT_ORDER_COL ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
    case CUBLASLT_MATRIX_LAYOUT_TYPE: return set(&l->matrix.type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS: return set(&l->matrix.rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS: return set(&l->matrix.columns, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD: return set(&l->matrix.ld, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: return set(&l->batches, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: return set(&l->matrix.stride, value, bytes);
    default: return CUBLAS_STATUS_NOT_SUPPORTED;
    }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = new cudasim_preference{{256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes) {
    int operand = attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
    if (operand < 0 || operand > 3) return CUBLAS_STATUS_SUCCESS;
    return set(&preference->alignment[operand], value, bytes);
}

static cublasStatus_t check_epilogue(const cudasim_matmul *desc, int64_t m) {
    cublasLtEpilogue_t e = (cublasLtEpilogue_t)desc->epilogue;
    bool known = e == CUBLASLT_EPILOGUE_DEFAULT || has_bias(e) || has_gelu(e) || has_relu(e) ||
                 has_dgelu(e) || writes_bias(e);
    if (!known) return CUBLAS_STATUS_NOT_SUPPORTED;
    if ((has_bias(e) || writes_bias(e)) && !desc->bias) return CUBLAS_STATUS_INVALID_VALUE;
    if (!writes_aux(e) && !has_dgelu(e)) return CUBLAS_STATUS_SUCCESS;
    /* the library's own rule: the auxiliary matrix has a leading dimension divisible by 8 */
    bool fits = desc->aux && desc->aux_ld >= m && desc->aux_ld % 8 == 0;
    return fits ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

static cublasStatus_t check_matmul(const cudasim_matmul *desc, const cudasim_layout *a,
                                   const cudasim_layout *b, const cudasim_layout *c,
                                   const cudasim_layout *d) {
    const Matrix &A = a->matrix, &B = b->matrix, &C = c->matrix, &D = d->matrix;
    if (desc->compute == CUBLAS_COMPUTE_16F || desc->pointer_mode != CUBLAS_POINTER_MODE_HOST)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    int64_t m = desc->transpose_a ? A.columns : A.rows, k = desc->transpose_a ? A.rows : A.columns;
    int64_t n = desc->transpose_b ? B.rows : B.columns, kb = desc->transpose_b ? B.columns : B.rows;
    bool shapes = m == D.rows && n == D.columns && k == kb && C.rows == m && C.columns == n;
    bool batches = a->batches == d->batches && b->batches == d->batches && c->batches == d->batches;
    if (!shapes || !batches || C.type != D.type) return CUBLAS_STATUS_INVALID_VALUE;
    return check_epilogue(desc, m);
}

static cublasStatus_t check_candidate(const cublasLtMatmulAlgo_t *algo, const cudasim_layout *a,
                                      const cudasim_layout *d) {
    if (algo->data[4] >= CANDIDATES || candidates[algo->data[4]].partial == 0)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    bool odd = (a->matrix.rows | a->matrix.columns | d->matrix.rows | d->matrix.columns) & 1;
    return algo->data[4] == 2 && odd ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
    cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D, cublasLtMatmulPreference_t preference,
    int requested, cublasLtMatmulHeuristicResult_t results[], int *returned) {
    *returned = 0;
    if (requested < 1) return CUBLAS_STATUS_INVALID_VALUE;
    cublasStatus_t status = check_matmul(desc, A, B, C, D);
    if (status != CUBLAS_STATUS_SUCCESS) return CUBLAS_STATUS_NOT_SUPPORTED;
    for (; *returned < CANDIDATES && *returned < requested; ++*returned) {
        cublasLtMatmulHeuristicResult_t *r = &results[*returned];
        *r = cublasLtMatmulHeuristicResult_t{};
        for (int i = 0; i < 4; i++) r->algo.data[i] = preference->alignment[i];
        r->algo.data[4] = (uint64_t)*returned;
        r->state = check_candidate(&r->algo, A, D);
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t A, cublasLtMatrixLayout_t B,
                                       cublasLtMatrixLayout_t C, cublasLtMatrixLayout_t D,
                                       const cublasLtMatmulAlgo_t *algo,
                                       cublasLtMatmulHeuristicResult_t *result) {
    cublasStatus_t status = check_matmul(desc, A, B, C, D);
    if (status == CUBLAS_STATUS_SUCCESS) status = check_candidate(algo, A, D);
    *result = cublasLtMatmulHeuristicResult_t{};
    result->algo = *algo;
    return result->state = status;
}

size_t cublasLtGetVersion(void) { return 120000; }

/* An algorithm that was chosen for aligned operands reads garbage, or faults, with others. */
static void check_alignment(const cublasLtMatmulAlgo_t *algo, const void *const operands[4]) {
    for (int i = 0; algo && i < 4; i++)
        if (algo->data[i] && (uintptr_t)operands[i] % algo->data[i])
            fail("cuBLAS: operand %c is not aligned to %d bytes, as was said for the algorithm",
                 "ABCD"[i], (int)algo->data[i]);
}

static Matrix with_data(const cudasim_layout *layout, const void *data) {
    Matrix matrix = layout->matrix;
    matrix.data = (char *)data;
    return matrix;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *A, cublasLtMatrixLayout_t layout_a, const void *B,
                              cublasLtMatrixLayout_t layout_b, const void *beta, const void *C,
                              cublasLtMatrixLayout_t layout_c, void *D,
                              cublasLtMatrixLayout_t layout_d, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream) {
    cublasStatus_t status = check_matmul(desc, layout_a, layout_b, layout_c, layout_d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (algo) status = check_candidate(algo, layout_a, layout_d);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    const void *const operands[4] = {A, B, C, D};
    check_alignment(algo, operands);
    require_device(workspace, workspace ? workspace_bytes : 0, "cuBLASLt workspace");
    Product p = {};
    p.transpose_a = desc->transpose_a, p.transpose_b = desc->transpose_b;
    p.a = with_data(layout_a, A);
    p.b = with_data(layout_b, B);
    p.c = with_data(layout_c, C);
    p.d = with_data(layout_d, D);
    p.m = p.d.rows, p.n = p.d.columns;
    p.k = p.transpose_a ? p.a.rows : p.a.columns;
    p.batches = layout_d->batches;
    p.alpha = *(const float *)alpha, p.beta = *(const float *)beta;
    p.candidate = algo ? (int)algo->data[4] : 0;
    p.epilogue = (cublasLtEpilogue_t)desc->epilogue;
    cudaDataType_t bias_type = desc->bias_type < 0 ? p.d.type : (cudaDataType_t)desc->bias_type;
    cudaDataType_t aux_type = desc->aux_type < 0 ? p.d.type : (cudaDataType_t)desc->aux_type;
    int64_t bias_rows = p.epilogue == CUBLASLT_EPILOGUE_BGRADB ? p.n : p.m;
    p.bias = matrix_of(desc->bias, bias_type, bias_rows, 1, bias_rows, 0);
    p.aux = matrix_of(desc->aux, aux_type, p.m, p.n, desc->aux_ld, 0);
    return submit_product(stream, p);
}
