/* Counter-based randomness: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
   1, 2, 3", SC 2011). No state: a draw is a pure function of what it is for. So no draw depends on
   batch layout, rank, thread count or resume.

   The key is (seed, purpose). The counter of a sampled token is
   (vocabulary index / 4, position, sample within its group, global ordinal of the group);
   word v % 4 of the output belongs to vocabulary index v. */
#ifndef LLMC_RNG_H
#define LLMC_RNG_H

#include <stdint.h>

/* A backend whose kernels call these functions defines RNG_INLINE before it includes this header.
   */
#ifndef RNG_INLINE
#define RNG_INLINE static inline
#endif

enum RngPurpose {
    RNG_INIT = 1,        /* initial weights; ordinal = index of the tensor */
    RNG_PROMPT,          /* which prompt a training group gets; ordinal = the group's */
    RNG_SAMPLE,          /* sampled tokens of training rollouts */
    RNG_MINIBATCH,       /* the order of completions within an epoch */
    RNG_DEMONSTRATION,   /* warm start: prompts and answers */
    RNG_EVAL_PROMPT,     /* held-out prompts */
    RNG_EVAL_SAMPLE,     /* sampled tokens of evaluations */
    RNG_COVARIANCE,      /* clip_cov: which tokens lose their gradient */
    RNG_ROUNDING,        /* stochastic rounding of low-precision weights */
    RNG_DATA,            /* the order of a data file's lines; ordinal = epoch, block, stream */
    RNG_TEST = 100
};

/* out[4] = Philox4x32-10 of counter[4] under key[2]. Golden vectors: test/test_base.c. */
RNG_INLINE void philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]) {
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * c0, b = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection in which every input bit
   changes about half of the output's. */
RNG_INLINE uint64_t rng_mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* key[2] of a purpose: the 64-bit seed is folded so that every bit of it counts. */
RNG_INLINE void rng_key(uint32_t key[2], uint64_t seed, enum RngPurpose purpose) {
    uint64_t folded = rng_mix(rng_mix(seed + 0x9E3779B97F4A7C15u) + (uint64_t)purpose);
    key[0] = (uint32_t)folded;
    key[1] = (uint32_t)(folded >> 32);
}

/* A uniform number strictly inside (0, 1): (bits + 1/2) / 2^23 from the upper 23 bits. A 24th would
   leave no place for the half in a float's significand, and the largest would round to 1. */
RNG_INLINE float rng_uniform(uint32_t bits) { return ((float)(bits >> 9) + 0.5f) * 0x1p-23f; }

/* A sequence of draws for host code that needs an unknown number of them (a task drawing digits, a
   shuffle). Its whole state is the counter, so it too starts anywhere. */
struct Rng {
    uint32_t key[2], counter[4], block[4];
    int used;
};
void rng_open(struct Rng *rng, uint64_t seed, enum RngPurpose purpose, uint64_t ordinal);
uint32_t rng_next(struct Rng *rng);
uint32_t rng_below(struct Rng *rng, uint32_t n);      /* unbiased in [0, n), n >= 1 */
float rng_normal(struct Rng *rng);                    /* standard normal (Box-Muller) */
void rng_shuffle(struct Rng *rng, int *items, int n); /* Fisher-Yates, in place */

#endif
