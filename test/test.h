/* What every test program shares: cmocka's includes in their order, deterministic random data,
   and comparisons that say how far off a result is. */
#ifndef TEST_H
#define TEST_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "../llmc/base/rng.h"

/* Standard normals times `scale`, different for every `stream`. */
static inline void fill_normal(float *x, size_t n, float scale, uint64_t stream) {
    struct Rng rng;
    rng_open(&rng, 1234, RNG_TEST, stream);
    for (size_t i = 0; i < n; i++) x[i] = scale * rng_normal(&rng);
}

static inline float *new_normal(size_t n, float scale, uint64_t stream) {
    float *x = malloc(n * sizeof *x);
    assert_non_null(x);
    fill_normal(x, n, scale, stream);
    return x;
}

/* ||x - ref|| / ||ref|| (absolute where ref is zero); NaN anywhere gives infinity. */
static inline double relative_l2(const float *x, const double *ref, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)x[i] - ref[i];
        difference += d * d;
        norm += ref[i] * ref[i];
    }
    double result = norm > 0 ? sqrt(difference / norm) : sqrt(difference);
    return isfinite(result) ? result : INFINITY;
}

/* Fails with the name, the error and the bound. */
#define ASSERT_CLOSE(name, error, bound)                                              \
    do {                                                                              \
        double error_ = (error), bound_ = (bound);                                    \
        if (!(error_ <= bound_)) fail_msg("%s: error %.3g > %.3g", name, error_, bound_); \
    } while (0)

#endif
