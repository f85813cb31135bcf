/* bf16 and fp16 conversions against exact arithmetic on doubles. Here every 65521st float, those around
   each rounding border, and all 65536 narrow values; doc/cudasim.md says how all 2^32 were compared
   with the toolkit's own functions. */
#include "selftest.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static void check_float(uint32_t bits) {
    float x = float_of(bits);
    expect(__bfloat16_as_ushort(__float2bfloat16(x)) == encode_bf16(x), "float to bf16");
    expect(__half_as_ushort(__float2half(x)) == encode_half(x), "float to fp16");
}

static void test_from_float() {
    for (uint64_t bits = 0; bits < (uint64_t)1 << 32; bits += 65521) check_float((uint32_t)bits);
    for (uint64_t border = 0; border < (uint64_t)1 << 32; border += 1 << 12)
        for (int d = -1; d <= 1; d++) check_float((uint32_t)(border + (uint64_t)d));
}

static bool same_value(double x, double y) { return x == y || (x != x && y != y); }

static void test_to_float() {
    for (unsigned bits = 0; bits < 65536; bits++) {
        float wide = __bfloat162float(__ushort_as_bfloat16((unsigned short)bits));
        expect(same_value(wide, decode_bf16((uint16_t)bits)), "bf16 to float");
        wide = __half2float(__ushort_as_half((unsigned short)bits));
        expect(same_value(wide, decode_half((uint16_t)bits)), "fp16 to float");
    }
}

/* A double just above a border must not be rounded to float first. */
static void test_from_double() {
    for (int exponent = -30; exponent <= 20; exponent++) {
        for (int i = 0; i < 64; i++) {
            double border = ldexp(1 + (2 * i + 1) / 256.0, exponent), tiny = ldexp(1, exponent - 45);
            for (double x : {border - tiny, border, border + tiny}) {
                expect(__bfloat16_as_ushort(__double2bfloat16(x)) == encode_bf16(x),
                       "double to bf16");
                expect(__half_as_ushort(__double2half(-x)) == encode_half(-x), "double to fp16");
            }
        }
    }
}

/* Products, sums and fused multiply-adds round once; long double holds them exactly enough. */
static void test_arithmetic() {
    for (int i = 0; i < 20000; i++) {
        double a = next_number(), b = next_number(), c = ldexp(next_number(), -(i % 24));
        __nv_bfloat16 x(a), y(b), z(c);
        expect(__bfloat16_as_ushort(x * y) == encode_bf16(a * b), "bf16 product");
        double cz = decode_bf16(__bfloat16_as_ushort(z));
        expect(__bfloat16_as_ushort(x + z) == encode_bf16(a + cz), "bf16 sum");
        expect(__bfloat16_as_ushort(__hfma(x, y, z)) == encode_bf16(a * b + cz), "bf16 fma");
        __half p(a), q(b), r(c);
        double cr = decode_half(__half_as_ushort(r));
        expect(__half_as_ushort(__hfma(p, q, r)) == encode_half(a * b + cr), "fp16 fma");
    }
}

const Case float16_cases[] = {
    {"float16", 0, "from float", "", nullptr, "", test_from_float},
    {"float16", 0, "to float", "", nullptr, "", test_to_float},
    {"float16", 0, "from double", "", nullptr, "", test_from_double},
    {"float16", 0, "arithmetic rounds once", "", nullptr, "", test_arithmetic},
    {nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr},
};
