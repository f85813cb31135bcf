/* Atomic operations. Threads never preempt each other, so a plain read-modify-write is atomic; what
   is checked is the address, and (race build) who else touches it without an atomic. */
#ifndef CUDASIM_ATOMICS_H
#define CUDASIM_ATOMICS_H

#include "language.h"

namespace cudasim {
/* Address and race checks; in random thread order it may also let other threads run first. */
void before_atomic(const void *address, size_t bytes, bool reads, uintptr_t pc);
}

/* The functions below are never inlined, so this is the kernel's line. */
#define CUDASIM_ATOMIC_PLACE ((uintptr_t)__builtin_return_address(0))

#define CUDASIM_ATOMIC(name, reads, update)                                       \
    template <class T, class U> CUDASIM_UNCHECKED T name(T *address, U operand) { \
        cudasim::before_atomic(address, sizeof(T), reads, CUDASIM_ATOMIC_PLACE);  \
        T old = *address, value = (T)operand;                                     \
        *address = (T)(update);                                                   \
        return old;                                                               \
    }

CUDASIM_ATOMIC(atomicAdd, true, old + value)
CUDASIM_ATOMIC(atomicSub, true, old - value)
CUDASIM_ATOMIC(atomicMax, true, old > value ? old : value)
CUDASIM_ATOMIC(atomicMin, true, old < value ? old : value)
CUDASIM_ATOMIC(atomicExch, false, value)
CUDASIM_ATOMIC(atomicAnd, true, old & value)
CUDASIM_ATOMIC(atomicOr, true, old | value)
CUDASIM_ATOMIC(atomicXor, true, old ^ value)
CUDASIM_ATOMIC(atomicInc, true, old >= value ? 0 : old + 1)
CUDASIM_ATOMIC(atomicDec, true, old == 0 || old > value ? value : old - 1)

template <class T, class U, class V>
CUDASIM_UNCHECKED T atomicCAS(T *address, U compare, V value) {
    cudasim::before_atomic(address, sizeof(T), true, CUDASIM_ATOMIC_PLACE);
    T old = *address;
    if (old == (T)compare) *address = (T)value;
    return old;
}

#endif
