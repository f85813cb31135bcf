#include "rng.h"

#include <math.h>

/* Counter: (block number, 0, ordinal's upper half, ordinal's lower half). */
void rng_open(struct Rng *rng, uint64_t seed, enum RngPurpose purpose, uint64_t ordinal) {
    *rng = (struct Rng){.used = 4};
    rng_key(rng->key, seed, purpose);
    rng->counter[2] = (uint32_t)(ordinal >> 32);
    rng->counter[3] = (uint32_t)ordinal;
}

uint32_t rng_next(struct Rng *rng) {
    if (rng->used == 4) {
        philox(rng->block, rng->counter, rng->key);
        if (++rng->counter[0] == 0) rng->counter[1]++;
        rng->used = 0;
    }
    return rng->block[rng->used++];
}

/* Lemire, "Fast random integer generation in an interval" (2019): the upper word of bits * n is
   uniform once the 2^32 mod n smallest lower words are rejected. */
uint32_t rng_below(struct Rng *rng, uint32_t n) {
    uint32_t rejected = -n % n;
    uint64_t product;
    do product = (uint64_t)rng_next(rng) * n;
    while ((uint32_t)product < rejected);
    return (uint32_t)(product >> 32);
}

/* Box-Muller gives two numbers. The second is dropped, so that the counter is the whole state. */
float rng_normal(struct Rng *rng) {
    float radius = sqrtf(-2.0f * logf(rng_uniform(rng_next(rng))));
    return radius * cosf(2.0f * (float)M_PI * rng_uniform(rng_next(rng)));
}

void rng_shuffle(struct Rng *rng, int *items, int n) {
    for (int i = n - 1; i > 0; i--) {
        int j = (int)rng_below(rng, (uint32_t)i + 1);
        int item = items[i];
        items[i] = items[j];
        items[j] = item;
    }
}
