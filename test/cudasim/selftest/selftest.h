/* The emulator's own tests. A case is a function that runs kernels and checks their results; each
   runs in a process of its own, because most planted bugs end it. */
#ifndef CUDASIM_SELFTEST_H
#define CUDASIM_SELFTEST_H

#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <vector>

struct Case {
    const char *name;
    int bug;              /* planted_bug while it runs; 0: nothing is wrong, nothing may be said */
    const char *what;
    const char *found_by; /* builds that must report it: s(im), a(san), r(ace) */
    const char *says;     /* what sim-race must print (every build, where r is not listed) */
    const char *settings; /* CUDASIM for this case, or "" */
    void (*run)();
};

extern const Case kernel_cases[], feature_cases[], hopper_cases[], cluster_cases[], host_cases[],
    graph_cases[], library_cases[], float16_cases[]; /* each ends with a null name */

/* Counts as a failure of the case, and says what. */
void expect(bool condition, const char *what);
/* error is NaN or larger than bound: a failure. */
void expect_close(double error, double bound, const char *what);
int failure_count();

/* The larger of two errors; NaN counts as infinite. */
inline double worse(double error, double a, double b) {
    double difference = fabs(a - b);
    if (!(difference == difference)) return INFINITY;
    return difference > error ? difference : error;
}

/* Deterministic numbers in [-1, 1] that bf16 and fp16 hold exactly: multiples of 1/64. */
float next_number();

/* value rounded to nearest even in a format with these many exponent and mantissa bits: the
   independent reference, by ldexp and nearbyint. */
uint16_t encode16(double value, int exponent_bits, int mantissa_bits);
double decode16(uint16_t bits, int exponent_bits, int mantissa_bits);
inline uint16_t encode_bf16(double x) { return encode16(x, 8, 7); }
inline uint16_t encode_half(double x) { return encode16(x, 5, 10); }
inline double decode_bf16(uint16_t x) { return decode16(x, 8, 7); }
inline double decode_half(uint16_t x) { return decode16(x, 5, 10); }

template <class T> T *new_device(size_t count) {
    T *memory;
    cudaMalloc(&memory, count * sizeof(T));
    return memory;
}

template <class T> T *to_device(const std::vector<T> &host) {
    T *memory = new_device<T>(host.size());
    cudaMemcpy(memory, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice);
    return memory;
}

template <class T> std::vector<T> to_host(const T *memory, size_t count) {
    std::vector<T> host(count);
    cudaMemcpy(host.data(), memory, count * sizeof(T), cudaMemcpyDeviceToHost);
    return host;
}

#endif
