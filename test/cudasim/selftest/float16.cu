/* bf16 and fp16 conversions against exact arithmetic on doubles. Here every 65521st float, those
   around each rounding border, and all 65536 narrow values; doc/cudasim.md says how all 2^32 were
   compared with the toolkit's own functions. */
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
            double border = ldexp(1 + (2 * i + 1) / 256.0, exponent),
                   tiny = ldexp(1, exponent - 45);
            for (double x : {border - tiny, border, border + tiny}) {
                expect(__bfloat16_as_ushort(__double2bfloat16(x)) == encode_bf16(x),
                       "double to bf16");
                expect(__half_as_ushort(__double2half(-x)) == encode_half(-x), "double to fp16");
            }
        }
    }
}

template <class T>
__global__ void arithmetic_kernel(T *product, T *sum, T *fused, const T *a, const T *b, const T *c,
                                  int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    product[i] = a[i] * b[i];
    sum[i] = a[i] + c[i];
    fused[i] = __hfma(a[i], b[i], c[i]);
}

/* Products, sums and fused multiply-adds round once: the exact results fit in a double. */
template <class T> static void check_arithmetic(int exponent_bits, int mantissa_bits) {
    enum { N = 20000 };
    std::vector<uint16_t> a(N), b(N), c(N);
    for (int i = 0; i < N; i++) {
        a[i] = encode16(next_number(), exponent_bits, mantissa_bits);
        b[i] = encode16(next_number(), exponent_bits, mantissa_bits);
        c[i] = encode16(ldexp(next_number(), -(i % 24)), exponent_bits, mantissa_bits);
    }
    uint16_t *out = new_device<uint16_t>(3 * N);
    arithmetic_kernel<T><<<(N + 127) / 128, 128>>>((T *)out, (T *)out + N, (T *)out + 2 * N,
                                                   (T *)to_device(a), (T *)to_device(b),
                                                   (T *)to_device(c), N);
    std::vector<uint16_t> got = to_host(out, 3 * N);
    for (int i = 0; i < N; i++) {
        double x = decode16(a[i], exponent_bits, mantissa_bits);
        double y = decode16(b[i], exponent_bits, mantissa_bits);
        double z = decode16(c[i], exponent_bits, mantissa_bits);
        expect(got[i] == encode16(x * y, exponent_bits, mantissa_bits), "product");
        expect(got[N + i] == encode16(x + z, exponent_bits, mantissa_bits), "sum");
        expect(got[2 * N + i] == encode16(x * y + z, exponent_bits, mantissa_bits), "fma");
    }
}

/* 1.5 * (1 + 2^-7) lies halfway between two bf16 numbers; a third operand far too small for the
   double that holds the sum still decides which of the two is nearer. */
static void check_fused_tie() {
    typedef std::vector<uint16_t> Vector;
    Vector a(2, encode_bf16(1.5)), b(2, encode_bf16(1 + 0x1p-7));
    Vector c = {encode_bf16(0x1p-60), encode_bf16(-0x1p-60)};
    __nv_bfloat16 *out = new_device<__nv_bfloat16>(6);
    arithmetic_kernel<<<1, 32>>>(out, out + 2, out + 4, (__nv_bfloat16 *)to_device(a),
                                 (__nv_bfloat16 *)to_device(b), (__nv_bfloat16 *)to_device(c), 2);
    Vector got = to_host((uint16_t *)out, 6);
    expect(got[4] == encode_bf16(194 * 0x1p-7), "fma just above a tie");
    expect(got[5] == encode_bf16(193 * 0x1p-7), "fma just below a tie");
}

static void test_arithmetic() {
    check_arithmetic<__nv_bfloat16>(8, 7);
    check_arithmetic<__half>(5, 10);
    check_fused_tie();
}

const Case float16_cases[] = {
    {"float16", 0, "from float", "", nullptr, "", test_from_float},
    {"float16", 0, "to float", "", nullptr, "", test_to_float},
    {"float16", 0, "from double", "", nullptr, "", test_from_double},
    {"float16", 0, "arithmetic rounds once", "", nullptr, "", test_arithmetic},
    {nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr},
};
