/* Barriers, fences, shuffles and votes. Every one is a meeting of threads: see runtime/meet.cc. */
#ifndef CUDASIM_WARP_H
#define CUDASIM_WARP_H

#include "language.h"

namespace cudasim {

enum class BarrierResult { NONE, OR, AND, COUNT };

/* Barrier `id` of the block. expected = 0: all threads that have not exited; otherwise that many.
   wait = false only arrives. Returns the combined predicate. */
int block_barrier(int id, int expected, bool wait, int predicate, BarrierResult result,
                  const char *file, int line);

void warp_barrier(unsigned mask, const char *file, int line);
unsigned live_lanes();
void yield_thread();
void device_fence();

/* The value of lane `source`, 8 bytes at most. */
uint64_t warp_shuffle(unsigned mask, uint64_t value, int source, const char *what, const char *file,
                      int line);

enum class Vote { BALLOT, ADD, MIN, MAX, SIGNED_MIN, SIGNED_MAX, AND, OR, XOR, MATCH };
unsigned warp_vote(unsigned mask, uint64_t value, Vote vote, const char *what, const char *file,
                   int line);

enum class Shuffle { INDEX, UP, DOWN, XOR };

/* Which lane a shuffle reads from: inside the segment of `width` lanes, else the lane itself. */
inline int shuffle_source(Shuffle mode, int operand, int width) {
    int lane = (int)lane_index();
    int segment_mask = 32 - width;
    int first = lane & segment_mask;
    int last = first | (31 & ~segment_mask);
    int source = lane;
    switch (mode) {
    case Shuffle::INDEX: source = first | (operand & ~segment_mask & 31); break;
    case Shuffle::UP: source = lane - operand; break;
    case Shuffle::DOWN: source = lane + operand; break;
    case Shuffle::XOR: source = lane ^ operand; break;
    }
    bool inside = mode == Shuffle::UP ? source >= first : source <= last;
    return inside ? source : lane;
}

template <class T>
CUDASIM_UNCHECKED T shuffle(Shuffle mode, unsigned mask, T value, int operand, int width,
                            const char *what, const char *file, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    if (width < 1 || width > 32 || (width & (width - 1)) != 0)
        fail("%s at %s:%d: width %d is not a power of two up to 32", what, file, line, width);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = warp_shuffle(mask, bits, shuffle_source(mode, operand, width), what, file, line);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class T> uint64_t vote_bits(T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}

} // namespace cudasim

/* ---- barriers and fences ---- */

inline void __syncthreads(CUDASIM_HERE) {
    cudasim::block_barrier(0, 0, true, 0, cudasim::BarrierResult::NONE, file, line);
}
inline int __syncthreads_or(int predicate, CUDASIM_HERE) {
    return cudasim::block_barrier(0, 0, true, predicate, cudasim::BarrierResult::OR, file, line);
}
inline int __syncthreads_and(int predicate, CUDASIM_HERE) {
    return cudasim::block_barrier(0, 0, true, predicate, cudasim::BarrierResult::AND, file, line);
}
inline int __syncthreads_count(int predicate, CUDASIM_HERE) {
    return cudasim::block_barrier(0, 0, true, predicate, cudasim::BarrierResult::COUNT, file, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDASIM_HERE) {
    cudasim::warp_barrier(mask, file, line);
}
inline unsigned __activemask() { return cudasim::live_lanes(); }
inline void __threadfence() { cudasim::device_fence(); }
inline void __threadfence_system() { cudasim::device_fence(); }
inline void __threadfence_block() {} /* orders one thread's own writes: never a reason to wait */
inline void __nanosleep(unsigned) { cudasim::yield_thread(); }
[[noreturn]] inline void __trap() { cudasim::fail("__trap()"); }

/* ---- shuffles ---- */

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDASIM_HERE) {
    return cudasim::shuffle(cudasim::Shuffle::INDEX, mask, value, source, width, "__shfl_sync",
                            file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDASIM_HERE) {
    return cudasim::shuffle(cudasim::Shuffle::UP, mask, value, (int)delta, width, "__shfl_up_sync",
                            file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDASIM_HERE) {
    return cudasim::shuffle(cudasim::Shuffle::DOWN, mask, value, (int)delta, width,
                            "__shfl_down_sync", file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDASIM_HERE) {
    return cudasim::shuffle(cudasim::Shuffle::XOR, mask, value, lanes, width, "__shfl_xor_sync",
                            file, line);
}

/* ---- votes and reductions ---- */

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDASIM_HERE) {
    return cudasim::warp_vote(mask, predicate != 0, cudasim::Vote::BALLOT, "__ballot_sync", file,
                              line);
}
inline int __any_sync(unsigned mask, int predicate, CUDASIM_HERE) {
    return cudasim::warp_vote(mask, predicate != 0, cudasim::Vote::BALLOT, "__any_sync", file,
                              line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDASIM_HERE) {
    return cudasim::warp_vote(mask, predicate == 0, cudasim::Vote::BALLOT, "__all_sync", file,
                              line) == 0;
}
template <class T> unsigned __match_any_sync(unsigned mask, T value, CUDASIM_HERE) {
    return cudasim::warp_vote(mask, cudasim::vote_bits(value), cudasim::Vote::MATCH,
                              "__match_any_sync", file, line);
}

#define CUDASIM_REDUCE(name, type, vote)                                                        \
    inline type name(unsigned mask, type value, CUDASIM_HERE) {                                 \
        return (type)cudasim::warp_vote(mask, (unsigned)value, cudasim::Vote::vote, #name, file, \
                                        line);                                                  \
    }
CUDASIM_REDUCE(__reduce_add_sync, unsigned, ADD)
CUDASIM_REDUCE(__reduce_add_sync, int, ADD)
CUDASIM_REDUCE(__reduce_min_sync, unsigned, MIN)
CUDASIM_REDUCE(__reduce_min_sync, int, SIGNED_MIN)
CUDASIM_REDUCE(__reduce_max_sync, unsigned, MAX)
CUDASIM_REDUCE(__reduce_max_sync, int, SIGNED_MAX)
CUDASIM_REDUCE(__reduce_and_sync, unsigned, AND)
CUDASIM_REDUCE(__reduce_or_sync, unsigned, OR)
CUDASIM_REDUCE(__reduce_xor_sync, unsigned, XOR)

#endif
