/* Scalar intrinsics. The fast ones (__expf ...) are as exact here as the host's libm: a test's
   tolerance must allow for the device's. */
#ifndef CUDASIM_INTRINSICS_H
#define CUDASIM_INTRINSICS_H

#include "language.h"

template <class To, class From> inline To cudasim_bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

inline int __float_as_int(float x) { return cudasim_bit_cast<int>(x); }
inline float __int_as_float(int x) { return cudasim_bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return cudasim_bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cudasim_bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return cudasim_bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return cudasim_bit_cast<double>(x); }

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
/* volatile: these two exist to keep a compiler from contracting them into an fma. */
inline float __fadd_rn(float a, float b) {
    volatile float sum = a + b;
    return sum;
}
inline float __fmul_rn(float a, float b) {
    volatile float product = a * b;
    return product;
}

inline int __float2int_rn(float x) { return (int)rintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline unsigned __float2uint_rn(float x) { return (unsigned)rintf(x); }
inline unsigned __float2uint_rz(float x) { return (unsigned)x; }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((uint64_t)a * b) >> 32); }
inline int __mulhi(int a, int b) { return (int)(((int64_t)a * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    shift &= 31;
    return shift ? (high << shift) | (low >> (32 - shift)) : high;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    shift &= 31;
    return shift ? (low >> shift) | (high << (32 - shift)) : low;
}
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= ((x >> i) & 1u) << (31 - i);
    return reversed;
}
/* Each nibble of the selector picks one of 8 bytes; its top bit replicates that byte's sign. */
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    uint64_t bytes = ((uint64_t)high << 32) | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned nibble = (selector >> (4 * i)) & 15;
        unsigned byte = (unsigned)(bytes >> (8 * (nibble & 7))) & 255;
        if (nibble & 8) byte = (byte & 128) ? 255 : 0;
        result |= byte << (8 * i);
    }
    return result;
}
inline long long clock64() {
    static long long ticks;
    return ++ticks;
}

/* Loads and stores with cache hints: the hint has no meaning here. Inlined, so that the access
   counts as the kernel's own. */
#define CUDASIM_LOAD(name) \
    template <class T> __forceinline__ T name(const T *address) { return *address; }
#define CUDASIM_STORE(name) \
    template <class T> __forceinline__ void name(T *address, T value) { *address = value; }
CUDASIM_LOAD(__ldg)
CUDASIM_LOAD(__ldca)
CUDASIM_LOAD(__ldcg)
CUDASIM_LOAD(__ldcs)
CUDASIM_LOAD(__ldcv)
CUDASIM_LOAD(__ldlu)
CUDASIM_STORE(__stcg)
CUDASIM_STORE(__stcs)
CUDASIM_STORE(__stwb)
CUDASIM_STORE(__stwt)

/* 32 bits, as on the device: the offset in the block's shared window. */
inline size_t __cvta_generic_to_shared(const void *address) {
    return (size_t)((const char *)address - cudasim::shared_window());
}

#define CUDASIM_MIN_MAX(type)                               \
    inline type min(type a, type b) { return a < b ? a : b; } \
    inline type max(type a, type b) { return a > b ? a : b; }
CUDASIM_MIN_MAX(int)
CUDASIM_MIN_MAX(unsigned)
CUDASIM_MIN_MAX(long)
CUDASIM_MIN_MAX(unsigned long)
CUDASIM_MIN_MAX(long long)
CUDASIM_MIN_MAX(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }

#endif
