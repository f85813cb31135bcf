/* Kernels behind a C function, as a shared library: how the backend uses the emulator. */
#include <cuda_runtime.h>
#include <stddef.h>

__global__ void shift_kernel(float *out, const float *x, int n, int bug) {
    __shared__ float tile[256];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) tile[threadIdx.x] = x[i];
    if (!bug) __syncthreads(); /* the bug: reads what another thread has not written yet */
    int neighbour = threadIdx.x > 0 ? threadIdx.x - 1 : 0;
    if (i < n) out[i] = tile[(neighbour + 2) % blockDim.x] + 1;
}

/* out[i] = 1 + x of the next element in its group of 256; host arrays, n a multiple of 256. Returns
   0, or CUDA's error. */
extern "C" __attribute__((visibility("default"))) int plugin_shift(float *out, const float *x,
                                                                   int n, int bug) {
    float *device_x, *device_out;
    size_t bytes = (size_t)n * sizeof(float);
    cudaMalloc(&device_x, bytes);
    cudaMalloc(&device_out, bytes);
    cudaMemcpy(device_x, x, bytes, cudaMemcpyHostToDevice);
    shift_kernel<<<(n + 255) / 256, 256>>>(device_out, device_x, n, bug);
    cudaError_t error = cudaGetLastError();
    cudaMemcpy(out, device_out, bytes, cudaMemcpyDeviceToHost);
    cudaFree(device_x);
    cudaFree(device_out);
    return (int)error;
}
