/* The functions that -fsanitize=thread makes the compiler call around every memory access that may
   be seen by another thread. They take the place of libtsan's, which is not linked. */
#include "emulator.h"

#ifdef CUDASIM_RACE

using cudasim::race_access;
using cudasim::READ;
using cudasim::VOLATILE_READ;
using cudasim::WRITE;

/* A vector access that is not aligned to its size is an error on the device. */
static inline void check_alignment(const void *address, uintptr_t bytes) {
    if ((uintptr_t)address % (bytes < 8 ? bytes : 8) && cudasim::current)
        cudasim::fail("misaligned access of %zu bytes at %s", (size_t)bytes,
                      cudasim::describe(address).c_str());
}

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}

#define ACCESS(bytes)                                                             \
    void __tsan_read##bytes(void *address) {                                      \
        check_alignment(address, bytes);                                          \
        race_access(address, bytes, READ, CUDASIM_CALLER);                        \
    }                                                                             \
    void __tsan_write##bytes(void *address) {                                     \
        check_alignment(address, bytes);                                          \
        race_access(address, bytes, WRITE, CUDASIM_CALLER);                       \
    }                                                                             \
    void __tsan_read_write##bytes(void *address) {                                \
        race_access(address, bytes, READ, CUDASIM_CALLER);                        \
        race_access(address, bytes, WRITE, CUDASIM_CALLER);                       \
    }                                                                             \
    void __tsan_unaligned_read##bytes(void *address) {                            \
        race_access(address, bytes, READ, CUDASIM_CALLER);                        \
    }                                                                             \
    void __tsan_unaligned_write##bytes(void *address) {                           \
        race_access(address, bytes, WRITE, CUDASIM_CALLER);                       \
    }                                                                             \
    void __tsan_unaligned_read_write##bytes(void *address) {                      \
        race_access(address, bytes, READ, CUDASIM_CALLER);                        \
        race_access(address, bytes, WRITE, CUDASIM_CALLER);                       \
    }                                                                             \
    void __tsan_volatile_read##bytes(void *address) {                             \
        race_access(address, bytes, VOLATILE_READ, CUDASIM_CALLER);               \
    }                                                                             \
    void __tsan_volatile_write##bytes(void *address) {                            \
        race_access(address, bytes, WRITE, CUDASIM_CALLER);                       \
    }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

void __tsan_read_range(void *address, size_t bytes) {
    race_access(address, bytes, READ, CUDASIM_CALLER);
}
void __tsan_write_range(void *address, size_t bytes) {
    race_access(address, bytes, WRITE, CUDASIM_CALLER);
}

/* clang up to 15 turns struct copies into plain calls of memcpy, memmove and memset; the build
   renames those in kernel objects (objcopy --redefine-sym), which is what newer clangs do by
   themselves. */
void *__tsan_memcpy(void *out, const void *in, size_t bytes) {
    if (cudasim::current && bytes) {
        race_access(in, bytes, READ, CUDASIM_CALLER);
        race_access(out, bytes, WRITE, CUDASIM_CALLER);
    }
    return memcpy(out, in, bytes);
}

void *__tsan_memmove(void *out, const void *in, size_t bytes) {
    if (cudasim::current && bytes) {
        race_access(in, bytes, READ, CUDASIM_CALLER);
        race_access(out, bytes, WRITE, CUDASIM_CALLER);
    }
    return memmove(out, in, bytes);
}

void *__tsan_memset(void *out, int value, size_t bytes) {
    if (cudasim::current && bytes) race_access(out, bytes, WRITE, CUDASIM_CALLER);
    return memset(out, value, bytes);
}

} // extern "C"

#endif
