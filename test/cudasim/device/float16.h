/* __nv_bfloat16 and __half: own types with the toolkit's names. The conversions give the toolkit's
   bits for every float (selftest/float16.cc); arithmetic rounds once, as the device's does. */
#ifndef CUDASIM_FLOAT16_H
#define CUDASIM_FLOAT16_H

#include "intrinsics.h"

namespace cudasim {

/* Nearest even; every NaN becomes 0x7fff, as on the device. */
inline uint16_t bf16_from_float(float x) {
    uint32_t bits = cudasim_bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t bf16_from_float_toward_zero(float x) {
    uint32_t bits = cudasim_bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return (uint16_t)(bits >> 16);
}

inline float bf16_to_float(uint16_t x) { return cudasim_bit_cast<float>((uint32_t)x << 16); }

inline uint16_t half_from_float(float x) {
    uint32_t bits = cudasim_bit_cast<uint32_t>(x);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above: infinity */
    if (magnitude < 0x38800000u) { /* subnormal or zero: count units of 2^-24, nearest even */
        float units = fabsf(x) * 0x1p24f;
        return (uint16_t)(sign | (uint32_t)rintf(units));
    }
    magnitude += 0xc8000fffu + ((magnitude >> 13) & 1u); /* exponent bias 127 -> 15, then round */
    return (uint16_t)(sign | (magnitude >> 13));
}

inline float half_to_float(uint16_t x) {
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16;
    uint32_t exponent = (x >> 10) & 31u, mantissa = x & 1023u;
    if (exponent == 31 && mantissa) return cudasim_bit_cast<float>(0x7fffffffu); /* any NaN */
    if (exponent == 31) return cudasim_bit_cast<float>(sign | 0x7f800000u);
    if (exponent)
        return cudasim_bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
    float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

/* double -> float rounding to odd: a second rounding to a narrower type is then as good as one. */
inline float round_to_odd(double x) {
    float nearest = (float)x;
    if ((double)nearest == x || x != x) return nearest;
    uint32_t bits = cudasim_bit_cast<uint32_t>(nearest);
    if (fabs((double)nearest) > fabs(x)) bits -= 1; /* back toward zero */
    return cudasim_bit_cast<float>(bits | 1u);
}

/* a * b + c for narrow a, b, c (the product is exact in double), rounded to odd. */
inline double multiply_add_to_odd(double a, double b, double c) {
    double product = a * b, sum = product + c;
    double part = sum - product;
    double error = (product - (sum - part)) + (c - part); /* two-sum: sum + error is exact */
    uint64_t bits = cudasim_bit_cast<uint64_t>(sum);
    if (!(error < 0 || error > 0) || (bits & 1)) return sum;
    return cudasim_bit_cast<double>((error > 0) == (sum > 0) ? bits | 1 : bits - 1);
}

} // namespace cudasim

/* One narrow type and its pair: storage, conversions both ways, arithmetic rounded after each
   operation. (A float holds more than twice the bits, so float arithmetic and then rounding is
   exact rounding for + - * /; a fused multiply-add needs more care.) */
#define CUDASIM_FLOAT16(type, pair, from_float, to_float)                                      \
    struct alignas(2) type {                                                                   \
        unsigned short __x;                                                                    \
        type() = default;                                                                      \
        type(float x) : __x(cudasim::from_float(x)) {}                                         \
        type(double x) : __x(cudasim::from_float(cudasim::round_to_odd(x))) {}                 \
        type(int x) : type((double)x) {}                                                       \
        type(unsigned x) : type((double)x) {}                                                  \
        type(type##_raw raw) : __x(raw.x) {}                                                   \
        operator float() const { return cudasim::to_float(__x); }                              \
    };                                                                                         \
    struct alignas(4) pair {                                                                   \
        type x, y;                                                                             \
        pair() = default;                                                                      \
        pair(type x, type y) : x(x), y(y) {}                                                   \
    };                                                                                         \
    CUDASIM_FLOAT16_OPERATOR(type, pair, +)                                                    \
    CUDASIM_FLOAT16_OPERATOR(type, pair, -)                                                    \
    CUDASIM_FLOAT16_OPERATOR(type, pair, *)                                                    \
    CUDASIM_FLOAT16_OPERATOR(type, pair, /)                                                    \
    inline type operator-(type a) { return type(-(float)a); }                                  \
    inline type __hadd(type a, type b) { return a + b; }                                       \
    inline type __hsub(type a, type b) { return a - b; }                                       \
    inline type __hmul(type a, type b) { return a * b; }                                       \
    inline type __hdiv(type a, type b) { return a / b; }                                       \
    inline type __hneg(type a) { return -a; }                                                  \
    inline type __habs(type a) { return type(fabsf(a)); }                                      \
    inline type __hmax(type a, type b) { return type(fmaxf(a, b)); }                           \
    inline type __hmin(type a, type b) { return type(fminf(a, b)); }                           \
    inline type __hfma(type a, type b, type c) {                                               \
        return type(cudasim::multiply_add_to_odd((float)a, (float)b, (float)c));               \
    }                                                                                          \
    inline bool __hisnan(type a) { return (float)a != (float)a; }                              \
    inline pair __hadd2(pair a, pair b) { return a + b; }                                      \
    inline pair __hsub2(pair a, pair b) { return a - b; }                                      \
    inline pair __hmul2(pair a, pair b) { return a * b; }                                      \
    inline pair __hmax2(pair a, pair b) { return pair(__hmax(a.x, b.x), __hmax(a.y, b.y)); }   \
    inline pair __hmin2(pair a, pair b) { return pair(__hmin(a.x, b.x), __hmin(a.y, b.y)); }   \
    inline pair __hfma2(pair a, pair b, pair c) {                                              \
        return pair(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));                             \
    }                                                                                          \
    inline float __low2float(pair a) { return a.x; }                                           \
    inline float __high2float(pair a) { return a.y; }

#define CUDASIM_FLOAT16_OPERATOR(type, pair, op)                                               \
    inline type operator op(type a, type b) { return type((float)a op(float) b); }             \
    inline type &operator op##=(type &a, type b) { return a = a op b; }                        \
    inline pair operator op(pair a, pair b) { return pair(a.x op b.x, a.y op b.y); }           \
    inline pair &operator op##=(pair &a, pair b) { return a = a op b; }

struct __nv_bfloat16_raw { unsigned short x; };
struct __half_raw { unsigned short x; };

CUDASIM_FLOAT16(__nv_bfloat16, __nv_bfloat162, bf16_from_float, bf16_to_float)
CUDASIM_FLOAT16(__half, __half2, half_from_float, half_to_float)

typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
typedef __half half;
typedef __half2 half2;

/* ---- bf16 conversions ---- */

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return __nv_bfloat16_raw{x}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.__x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rz(float x) {
    return __ushort_as_bfloat16(cudasim::bf16_from_float_toward_zero(x));
}
inline __nv_bfloat16 __double2bfloat16(double x) { return x; }
inline __nv_bfloat16 __int2bfloat16_rn(int x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return __nv_bfloat162(x, y); }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return __nv_bfloat162(v.x, v.y); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) {
    return __nv_bfloat162(x, y);
}
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return __nv_bfloat162(x, x); }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return __nv_bfloat162(x, x); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return float2{v.x, v.y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }

/* ---- fp16 conversions ---- */

inline __half __ushort_as_half(unsigned short x) { return __half_raw{x}; }
inline unsigned short __half_as_ushort(__half x) { return x.__x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { return x; }
inline __half __int2half_rn(int x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half2 __floats2half2_rn(float x, float y) { return __half2(x, y); }
inline __half2 __float22half2_rn(float2 v) { return __half2(v.x, v.y); }
inline __half2 __halves2half2(__half x, __half y) { return __half2(x, y); }
inline __half2 __half2half2(__half x) { return __half2(x, x); }
inline __half2 __float2half2_rn(float x) { return __half2(x, x); }
inline float2 __half22float2(__half2 v) { return float2{v.x, v.y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }

#endif
