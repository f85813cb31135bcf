/* The cuBLAS and NCCL stand-ins against plain float64 loops. */
#include "selftest.h"
#include "../kernels/kernels.h"
#include <cublasLt.h>
#include <cublas_v2.h>
#include <nccl.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- cuBLAS: column-major, so a matrix [rows,columns] has element (i,j) at j * ld + i ---- */

struct Host {
    int rows, columns, ld;
    std::vector<uint16_t> data; /* bf16 */
};

static Host random_matrix(int rows, int columns) {
    Host h{rows, columns, rows + 3, {}};
    h.data.resize((size_t)h.ld * columns);
    for (uint16_t &x : h.data) x = encode_bf16(next_number());
    return h;
}

static double at(const Host &h, bool transposed, int i, int j) {
    int row = transposed ? j : i, column = transposed ? i : j;
    return decode_bf16(h.data[(size_t)column * h.ld + row]);
}

static double product_at(const Host &a, bool ta, const Host &b, bool tb, int i, int j, int k) {
    double sum = 0;
    for (int p = 0; p < k; p++) sum += at(a, ta, i, p) * at(b, tb, p, j);
    return sum;
}

static void gemm_transposed(bool ta, bool tb) {
    const int m = 37, n = 21, k = 50;
    Host a = ta ? random_matrix(k, m) : random_matrix(m, k);
    Host b = tb ? random_matrix(n, k) : random_matrix(k, n);
    std::vector<float> c((size_t)m * n, 0.5f);
    float *out = to_device(c), alpha = 2, beta = 3;
    cublasHandle_t handle;
    cublasCreate(&handle);
    cublasStatus_t status = cublasGemmEx(
        handle, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N, m, n, k, &alpha,
        to_device(a.data), CUDA_R_16BF, BUG(1) ? a.rows - 1 : a.ld, to_device(b.data), CUDA_R_16BF,
        b.ld, &beta, out, CUDA_R_32F, m, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    expect(status == CUBLAS_STATUS_SUCCESS, "cublasGemmEx status"); /* BUG 1: ld too small */
    std::vector<float> got = to_host(out, (size_t)m * n);
    double error = 0;
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++)
            error = worse(error, got[(size_t)j * m + i],
                          2 * product_at(a, ta, b, tb, i, j, k) + 3 * 0.5);
    expect_close(error, 1e-4, "cublasGemmEx");
    cublasDestroy(handle);
}

static void test_gemm_ex() {
    gemm_transposed(false, false);
    gemm_transposed(true, false);
    gemm_transposed(false, true);
    gemm_transposed(true, true);
}

static void test_batched() {
    const int m = 9, n = 7, k = 12, batches = 3;
    std::vector<float> a(m * k * batches), b(k * n * batches);
    for (float &x : a) x = next_number();
    for (float &x : b) x = next_number();
    int extra = BUG(1) ? 1 : 0; /* BUG 1: the last batch runs past the buffer */
    float *out = new_device<float>(m * n * batches), alpha = 1, beta = 0;
    cublasHandle_t handle;
    cublasCreate(&handle);
    cublasSgemmStridedBatched(handle, CUBLAS_OP_N, CUBLAS_OP_N, m, n, k, &alpha, to_device(a), m,
                              m * k + extra, to_device(b), k, k * n, &beta, out, m, m * n, batches);
    std::vector<float> got = to_host(out, m * n * batches);
    double error = 0;
    for (int z = 0; z < batches; z++)
        for (int i = 0; i < m; i++)
            for (int j = 0; j < n; j++) {
                double sum = 0;
                for (int p = 0; p < k; p++)
                    sum += (double)a[z * m * k + p * m + i] * b[z * k * n + j * k + p];
                error = worse(error, got[z * m * n + j * m + i], sum);
            }
    expect_close(error, 1e-5, "strided batches");
    cublasDestroy(handle);
}

/* cublasLtMatmul of bf16 a [m,k], b [k,n] with an epilogue. */
static cublasStatus_t matmul(cublasLtEpilogue_t epilogue, const Host &a, const Host &b,
                             uint16_t *out, int ld, uint16_t *bias, uint16_t *aux, int64_t aux_ld) {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t la, lb, ld_layout;
    float alpha = 1, beta = 0;
    cublasLtCreate(&handle);
    cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &aux,
                                   sizeof aux);
    cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &aux_ld,
                                   sizeof aux_ld);
    cublasLtMatrixLayoutCreate(&la, CUDA_R_16BF, a.rows, a.columns, a.ld);
    cublasLtMatrixLayoutCreate(&lb, CUDA_R_16BF, b.rows, b.columns, b.ld);
    cublasLtMatrixLayoutCreate(&ld_layout, CUDA_R_16BF, a.rows, b.columns, ld);
    cublasStatus_t status =
        cublasLtMatmul(handle, desc, &alpha, to_device(a.data), la, to_device(b.data), lb, &beta,
                       out, ld_layout, out, ld_layout, nullptr, nullptr, 0, 0);
    cublasLtMatrixLayoutDestroy(la);
    cublasLtMatrixLayoutDestroy(lb);
    cublasLtMatrixLayoutDestroy(ld_layout);
    cublasLtMatmulDescDestroy(desc);
    cublasLtDestroy(handle);
    return status;
}

static double gelu64(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static double gelu64_slope(double x) { /* central difference */
    const double h = 1e-5;
    return (gelu64(x + h) - gelu64(x - h)) / (2 * h);
}

/* One problem for all epilogues. bf16 results are right to 2^-7 of 1 + |x|. */
enum { M = 24, NCOLS = 19, K = 40 };
static const double EPILOGUE_BOUND = 0x1p-7;

static double relative_worse(double error, uint16_t got, double want) {
    double scale = 1 + fabs(want);
    return worse(error, decode_bf16(got) / scale, want / scale);
}

static void check_gelu_aux_bias(const Host &a, const Host &b) {
    std::vector<uint16_t> bias(M);
    for (uint16_t &x : bias) x = encode_bf16(next_number());
    uint16_t *out = new_device<uint16_t>(M * NCOLS), *aux = new_device<uint16_t>(M * NCOLS);
    int64_t aux_ld = BUG(1) ? M - 1 : M; /* BUG 1: smaller than a column */
    cublasStatus_t status =
        matmul(CUBLASLT_EPILOGUE_GELU_AUX_BIAS, a, b, out, M, to_device(bias), aux, aux_ld);
    expect(status == CUBLAS_STATUS_SUCCESS, "GELU_AUX_BIAS status");
    std::vector<uint16_t> y = to_host(out, M * NCOLS), pre = to_host(aux, M * NCOLS);
    double error = 0, error_aux = 0;
    for (int j = 0; j < NCOLS; j++) {
        for (int i = 0; i < M; i++) {
            double x = product_at(a, false, b, false, i, j, K) + decode_bf16(bias[i]);
            error_aux = relative_worse(error_aux, pre[j * M + i], x);
            error = relative_worse(error, y[j * M + i], gelu64(decode_bf16(pre[j * M + i])));
        }
    }
    expect_close(error, EPILOGUE_BOUND, "GELU_AUX_BIAS, output");
    expect_close(error_aux, EPILOGUE_BOUND, "GELU_AUX_BIAS, auxiliary");
}

static void check_dgelu_bgrad(const Host &a, const Host &b) {
    std::vector<uint16_t> aux(M * NCOLS);
    for (uint16_t &x : aux) x = encode_bf16(2 * next_number());
    uint16_t *out = new_device<uint16_t>(M * NCOLS), *dbias = new_device<uint16_t>(M);
    matmul(CUBLASLT_EPILOGUE_DGELU_BGRAD, a, b, out, M, dbias, to_device(aux), M);
    std::vector<uint16_t> y = to_host(out, M * NCOLS), sums = to_host(dbias, M);
    double error = 0, error_sums = 0;
    for (int i = 0; i < M; i++) {
        double sum = 0;
        for (int j = 0; j < NCOLS; j++) {
            double slope = gelu64_slope(decode_bf16(aux[j * M + i]));
            double x = product_at(a, false, b, false, i, j, K) * slope;
            error = relative_worse(error, y[j * M + i], x);
            sum += x;
        }
        error_sums = relative_worse(error_sums, sums[i], sum);
    }
    expect_close(error, EPILOGUE_BOUND, "DGELU_BGRAD, output");
    expect_close(error_sums, EPILOGUE_BOUND, "DGELU_BGRAD, bias gradient");
}

static void check_bgrad(const Host &a, const Host &b) {
    uint16_t *out = new_device<uint16_t>(M * NCOLS), *dbias_a = new_device<uint16_t>(M),
             *dbias_b = new_device<uint16_t>(NCOLS);
    matmul(CUBLASLT_EPILOGUE_BGRADA, a, b, out, M, dbias_a, nullptr, 0);
    matmul(CUBLASLT_EPILOGUE_BGRADB, a, b, out, M, dbias_b, nullptr, 0);
    std::vector<uint16_t> sums_a = to_host(dbias_a, M), sums_b = to_host(dbias_b, NCOLS);
    double error = 0;
    for (int i = 0; i < M; i++) {
        double sum = 0;
        for (int p = 0; p < K; p++) sum += at(a, false, i, p);
        error = relative_worse(error, sums_a[i], sum);
    }
    for (int j = 0; j < NCOLS; j++) {
        double sum = 0;
        for (int p = 0; p < K; p++) sum += at(b, false, p, j);
        error = relative_worse(error, sums_b[j], sum);
    }
    expect_close(error, EPILOGUE_BOUND, "BGRADA, BGRADB");
}

static void test_epilogues() {
    Host a = random_matrix(M, K), b = random_matrix(K, NCOLS);
    check_gelu_aux_bias(a, b);
    check_dgelu_bgrad(a, b);
    check_bgrad(a, b);
}

static void test_overlap() {
    cublasHandle_t handle;
    float alpha = 1, beta = 0, *x = to_device(std::vector<float>(64, 1.0f));
    float *out = BUG(1) ? x : new_device<float>(64); /* BUG 1: the output is also an operand */
    cublasCreate(&handle);
    cublasSgemm(handle, CUBLAS_OP_N, CUBLAS_OP_N, 8, 8, 8, &alpha, x, 8, x, 8, &beta, out, 8);
    expect(to_host(out, 64)[63] == 8, "product of ones");
    cublasDestroy(handle);
}

/* ---- NCCL: this process forks into three ranks ---- */

enum { RANKS = 3, COUNT = 700001 }; /* more than two megabytes: several chunks, the last ragged */

static float value_of(int rank, size_t i) { return (float)((rank + 1) * (int)(i % 101)); }

static void check_collectives(ncclComm_t comm, int rank, cudaStream_t stream) {
    std::vector<float> mine(COUNT);
    for (size_t i = 0; i < COUNT; i++) mine[i] = value_of(rank, i);
    float *x = to_device(mine), *gathered = new_device<float>((size_t)COUNT * RANKS);
    float *again = new_device<float>(COUNT);
    size_t count = BUG(1) && rank == 1 ? COUNT - 1 : COUNT; /* BUG 1: one rank has another size */
    float *own = gathered + (size_t)rank * COUNT; /* in place: this rank's share of the result */
    cudaMemcpyAsync(own, x, COUNT * sizeof(float), cudaMemcpyDeviceToDevice, stream);
    if (BUG(3)) own += rank == 0; /* BUG 3: shifted, it overlaps without being in place */
    ncclAllGather(own, gathered, COUNT, ncclFloat, comm, stream);
    if (!BUG(2) || rank != 2) /* BUG 2: one rank calls another collective */
        ncclReduceScatter(gathered, again, COUNT, ncclFloat, ncclSum, comm, stream);
    else ncclBroadcast(x, again, COUNT, ncclFloat, 0, comm, stream);
    ncclAllReduce(x, x, count, ncclFloat, ncclSum, comm, stream); /* in place */
    ncclBroadcast(again, again, COUNT, ncclFloat, 1, comm, stream);
    cudaStreamSynchronize(stream);
    std::vector<float> sum = to_host(x, COUNT), all = to_host(gathered, (size_t)COUNT * RANKS);
    std::vector<float> back = to_host(again, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        expect(sum[i] == (float)(6 * (int)(i % 101)), "all-reduce");
        for (int r = 0; r < RANKS; r++)
            expect(all[(size_t)r * COUNT + i] == value_of(r, i), "all-gather");
        expect(back[i] == RANKS * value_of(1, i), "reduce-scatter, then broadcast from rank 1");
    }
}

static void run_rank(ncclUniqueId id, int rank) {
    ncclComm_t comm;
    cudaStream_t stream;
    int devices = 1;
    cudaGetDeviceCount(&devices);
    cudaSetDevice(rank % devices);
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    expect(ncclCommInitRank(&comm, RANKS, id, rank) == ncclSuccess, "ncclCommInitRank");
    check_collectives(comm, rank, stream);
    ncclCommDestroy(comm);
}

static void test_nccl() {
    ncclUniqueId id;
    ncclGetUniqueId(&id);
    pid_t children[RANKS];
    fflush(nullptr);
    for (int rank = 1; rank < RANKS; rank++) {
        children[rank] = fork();
        if (children[rank] != 0) continue;
        run_rank(id, rank);
        exit(failure_count() ? 1 : 0);
    }
    run_rank(id, 0);
    for (int rank = 1; rank < RANKS; rank++) {
        int status;
        waitpid(children[rank], &status, 0);
        expect(status == 0, "another rank failed");
    }
}

const Case library_cases[] = {
    {"cublas", 0, "GemmEx, all transpositions", "", nullptr, "", test_gemm_ex},
    {"cublas", 0, "strided batches", "", nullptr, "", test_batched},
    {"cublas", 0, "cuBLASLt epilogues", "", nullptr, "", test_epilogues},
    {"cublas", 1, "leading dimension too small", "sar", "WRONG", "", test_gemm_ex},
    {"batched", 1, "last batch past the buffer", "sar", "not all inside", "", test_batched},
    {"cublaslt", 1, "auxiliary leading dimension", "sar", "WRONG GELU_AUX", "", test_epilogues},
    {"overlap", 0, "output beside the operands", "", nullptr, "", test_overlap},
    {"overlap", 1, "output overlaps an operand", "sar", "overlaps", "", test_overlap},
    {"nccl", 0, "three ranks, four collectives", "", nullptr, "devices=3", test_nccl},
    {"nccl", 0, "the same, random stream order", "", nullptr, "devices=3,streams=random",
     test_nccl},
    {"nccl", 1, "ranks disagree on the count", "sar", "NCCL mismatch", "", test_nccl},
    {"nccl", 2, "ranks call different collectives", "sar", "NCCL mismatch", "", test_nccl},
    {"nccl", 3, "buffers overlap, not in place", "sar", "buffers overlap", "", test_nccl},
    {nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr},
};
