/* CUDA graphs: a replay uses the addresses and by-value arguments of the capture. */
#include "selftest.h"
#include "../kernels/kernels.h"

enum { N = 500 };

__global__ void scale_kernel(float *x, int n, float factor) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] *= factor;
}

__global__ void sum_kernel(float *out, const float *x, const float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] + y[i];
}

/* What changes from step to step lives in device memory, as in a decode loop. */
__global__ void step_kernel(int *position, float *out) {
    __shared__ int now;
    if (threadIdx.x == 0) now = *position;
    __syncthreads();
    out[now * 32 + threadIdx.x] = (float)now;
    if (threadIdx.x == 0) *position = now + 1;
}

static cudaStream_t new_stream() {
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    return stream;
}

static void test_replay() {
    cudaStream_t stream = new_stream();
    std::vector<float> ones(N, 1.0f);
    float *x = to_device(ones), *host;
    cudaMallocHost(&host, N * sizeof(float));
    float factor = 2;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    scale_kernel<<<2, 256, 0, stream>>>(x, N, factor);
    cudaMemcpyAsync(host, x, N * sizeof(float), cudaMemcpyDeviceToHost, stream);
    expect(cudaStreamEndCapture(stream, &graph) == cudaSuccess, "end of capture");
    expect(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess, "instantiate");
    expect(to_host(x, 1)[0] == 1, "capturing runs nothing");
    factor = 100;        /* the graph keeps the 2 of the capture ... */
    float *captured = x;
    x = to_device(ones); /* ... and the address */
    float want = BUG(1) ? factor : 2; /* BUG 1: expects the value of today */
    for (int round = 1; round <= 3; round++) {
        cudaGraphLaunch(exec, stream);
        if (!BUG(2) || round < 3) cudaStreamSynchronize(stream); /* BUG 2: looks too early */
        for (int i = 0; i < N; i++) expect(host[i] == want, "replayed value");
        want *= 2;
    }
    expect(to_host(x, 1)[0] == 1 && to_host(captured, 1)[0] == 8, "the captured address");
    if (BUG(3)) { /* BUG 3: the graph outlives its buffer */
        cudaFree(captured);
        cudaGraphLaunch(exec, stream);
        cudaStreamSynchronize(stream);
    }
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
}

static void test_decode_loop() {
    cudaStream_t stream = new_stream();
    int *position = new_device<int>(1);
    float *out = new_device<float>(8 * 32);
    cudaMemsetAsync(position, 0, sizeof(int), stream);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed);
    step_kernel<<<1, 32, 0, stream>>>(position, out);
    cudaStreamEndCapture(stream, &graph);
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphDestroy(graph);
    for (int step = 0; step < 8; step++) cudaGraphLaunch(exec, stream);
    cudaGraphExecDestroy(exec); /* launches may still be queued */
    cudaStreamSynchronize(stream);
    std::vector<float> got = to_host(out, 8 * 32);
    for (int i = 0; i < 8 * 32; i++)
        expect(got[i] == (float)(i / 32), "positions in device memory");
}

/* Two branches: x and y are scaled side by side, then added. */
static cudaError_t capture_fork(cudaGraph_t *graph, float *out, float *x, float *y) {
    cudaStream_t main = new_stream(), side = new_stream();
    cudaEvent_t fork, join;
    cudaEventCreate(&fork);
    cudaEventCreate(&join);
    cudaStreamBeginCapture(main, cudaStreamCaptureModeGlobal);
    scale_kernel<<<2, 256, 0, main>>>(x, N, 2);
    cudaEventRecord(fork, main);
    cudaStreamWaitEvent(side, fork);
    scale_kernel<<<2, 256, 0, side>>>(y, N, 3);
    scale_kernel<<<2, 256, 0, main>>>(x, N, 5);
    cudaEventRecord(join, side);
    if (!BUG(1)) cudaStreamWaitEvent(main, join); /* BUG 1: the side stream never comes back */
    sum_kernel<<<2, 256, 0, main>>>(out, x, y, N);
    if (BUG(2)) cudaStreamSynchronize(main); /* BUG 2: waits inside the capture */
    if (BUG(3)) new_device<float>(4);        /* BUG 3: allocates inside the capture */
    cudaError_t error = cudaStreamEndCapture(main, graph);
    cudaStreamDestroy(side);
    cudaStreamDestroy(main);
    return error;
}

static void test_fork() {
    std::vector<float> ones(N, 1.0f);
    float *x = to_device(ones), *y = to_device(ones), *out = new_device<float>(N);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaStream_t stream = new_stream();
    expect(capture_fork(&graph, out, x, y) == cudaSuccess, "end of a forked capture");
    if (!graph) return;
    cudaGraphInstantiate(&exec, graph, 0);
    cudaGraphLaunch(exec, stream);
    cudaGraphLaunch(exec, stream);
    cudaStreamSynchronize(stream);
    std::vector<float> got = to_host(out, N);
    for (int i = 0; i < N; i++) expect(got[i] == 100 + 9, "two branches");
}

/* Calls that CUDA refuses during a capture, and what it answers. */
static void test_refusals() {
    cudaStream_t stream = new_stream(), other = new_stream();
    cudaEvent_t event;
    cudaEventCreate(&event);
    cudaEventRecord(event, other);
    cudaGraph_t graph;
    expect(cudaStreamBeginCapture(0, cudaStreamCaptureModeGlobal) ==
               cudaErrorStreamCaptureUnsupported, "capture of the legacy stream");
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
    expect(cudaStreamWaitEvent(stream, event) == cudaErrorStreamCaptureIsolation,
           "wait for an event outside the capture");
    cudaStreamCaptureStatus status;
    cudaStreamIsCapturing(stream, &status);
    expect(status == cudaStreamCaptureStatusInvalidated, "status of a spoiled capture");
    expect(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !graph,
           "end of a spoiled capture");
    expect(cudaStreamEndCapture(stream, &graph) == cudaErrorIllegalState, "end without begin");
    cudaGetLastError();
}

const Case graph_cases[] = {
    {"graphs", 0, "replay of addresses and values", "", nullptr, "", test_replay},
    {"graphs", 0, "the same, random stream order", "", nullptr, "streams=random", test_replay},
    {"graphs", 0, "decode loop in device memory", "", nullptr, "streams=random", test_decode_loop},
    {"graphs", 0, "fork and join", "", nullptr, "", test_fork},
    {"graphs", 0, "fork and join, random order", "", nullptr, "streams=random", test_fork},
    {"graphs", 0, "what a capture refuses", "", nullptr, "", test_refusals},
    {"graphs", 1, "by-value argument changed later", "sar", "WRONG", "", test_replay},
    {"graphs", 2, "result read before the graph ran", "sar", "WRONG", "streams=random",
     test_replay},
    {"graphs", 3, "graph outlives its buffer", "sar", "freed device buffer", "", test_replay},
    {"fork", 1, "side stream not joined", "sar", "WRONG end of a forked", "", test_fork},
    {"fork", 2, "synchronises while capturing", "sar", "WRONG end of a forked", "", test_fork},
    {"fork", 3, "allocates while capturing", "sar", "WRONG end of a forked", "", test_fork},
    {nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr},
};
