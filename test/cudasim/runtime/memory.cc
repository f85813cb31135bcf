/* Device memory: one reserved range, handed out in order and never reused, so that a stale pointer
   always points at memory known to be freed. Around each allocation lie gaps of 4 KB to 1 MB. */
#include "emulator.h"
#include "../device/atomics.h"
#include <map>
#include <sys/mman.h>

namespace cudasim {

#ifdef CUDASIM_RACE
static const size_t DEVICE_SPACE = (size_t)8 << 30; /* the shadow is 20 times as large */
#else
static const size_t DEVICE_SPACE = (size_t)64 << 30;
#endif

struct Allocation {
    size_t bytes;
    MemoryKind kind;
    bool live; /* freed ones are remembered, so that a report can name them */
};
typedef std::map<char *, Allocation> AllocationMap;
static auto &allocations = *new AllocationMap(); /* device and managed */
static auto &pinned = *new std::map<char *, size_t>();
static size_t device_used; /* bytes from the start of device space that were ever handed out */

char *memory_base() {
    static char *base;
    if (base) return base;
    void *memory = mmap(nullptr, SHARED_SPACE + DEVICE_SPACE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("cannot reserve address space for device memory");
    base = (char *)memory;
    install_handlers();
    return base;
}

static char *device_base() { return memory_base() + SHARED_SPACE; }
size_t device_space() { return DEVICE_SPACE; }

bool is_device(const void *address) {
    return (size_t)((const char *)address - device_base()) < DEVICE_SPACE;
}

/* With protect=1, host code that touches device memory faults; handlers say so. */
void protect_device(bool on) {
    if (!options().protect || !device_used) return;
    mprotect(device_base(), (device_used + 4095) & ~(size_t)4095,
             on ? PROT_NONE : PROT_READ | PROT_WRITE);
}

/* ---- allocation ---- */

static size_t align_up(size_t x, size_t alignment) {
    return (x + alignment - 1) / alignment * alignment;
}

static size_t gap_around(size_t bytes) {
    const size_t smallest = 4 << 10, largest = 1 << 20;
    return bytes < smallest ? smallest : bytes > largest ? largest : align_up(bytes, 4096);
}

static cudaError_t allocate_pinned(void **out, size_t bytes) {
    char *memory = (char *)malloc(bytes ? bytes : 1);
    if (!memory) return set_error(cudaErrorMemoryAllocation);
    pinned[memory] = bytes;
    *out = memory;
    return cudaSuccess;
}

cudaError_t allocate(void **out, size_t bytes, MemoryKind kind) {
    require_one_thread();
    if (cudaError_t error = forbid_in_capture(true)) return error;
    if (kind == MemoryKind::PINNED) return allocate_pinned(out, bytes);
    static size_t last_gap; /* the gap between two buffers is as large as the larger one asks for */
    size_t gap = gap_around(bytes), room = align_up(bytes, 256);
    size_t before = gap > last_gap ? gap : last_gap;
    if (device_used + before + room + gap > DEVICE_SPACE)
        return set_error(cudaErrorMemoryAllocation);
    protect_device(false);
    char *begin = device_base() + device_used, *address = begin + before;
    device_used += before + room;
    last_gap = gap;
    allocations[address] = Allocation{bytes, kind, true};
    /* 0xff is a NaN in fp32, bf16 and fp16; a little of the gap gets it too, for builds where
       nothing else notices a read beyond the end. */
    CUDASIM_UNPOISON(begin, before + room + gap);
    memset(address, 0xff, room + 4096);
    CUDASIM_POISON(begin, before + room + gap);
    CUDASIM_UNPOISON(address, bytes);
    race_allocate(address, bytes, kind == MemoryKind::MANAGED);
    protect_device(true);
    *out = address;
    return cudaSuccess;
}

/* ---- what a pointer points at ---- */

static AllocationMap::iterator find_allocation(const void *address, size_t bytes) {
    auto it = allocations.upper_bound((char *)address);
    if (it == allocations.begin()) return allocations.end();
    --it;
    bool inside = (const char *)address + bytes <= it->first + it->second.bytes;
    return inside && it->second.live ? it : allocations.end();
}

void require_device(const void *address, size_t bytes, const char *what) {
    if (!bytes) return;
    if (!is_device(address)) fail("%s: %p is not a device pointer", what, address);
    if (find_allocation(address, bytes) == allocations.end())
        fail("%s: %zu bytes from %s are not all inside one live allocation", what, bytes,
             describe(address).c_str());
}

static void require_host(const void *address, size_t bytes, const char *what) {
    if (!bytes) return;
    if (is_device(address)) {
        auto it = find_allocation(address, bytes);
        if (it == allocations.end() || it->second.kind == MemoryKind::DEVICE)
            fail("%s: %p is a device pointer where a host pointer is needed", what, address);
        return;
    }
    auto it = pinned.upper_bound((char *)address);
    if (it == pinned.begin()) return;
    --it;
    size_t offset = (size_t)((const char *)address - it->first);
    if (offset < it->second && offset + bytes > it->second)
        fail("%s: %zu bytes run past the end of a pinned buffer of %zu", what, bytes, it->second);
}

bool is_pinned(const void *address, size_t bytes) {
    auto it = pinned.upper_bound((char *)address);
    if (it == pinned.begin()) return false;
    --it;
    return (const char *)address + bytes <= it->first + it->second;
}

static std::string describe_shared(const Block *block, const char *address) {
    char text[256];
    for (const SharedRange &range : block->variables) {
        size_t offset = (size_t)(address - range.address);
        if (offset >= range.bytes + 1024) continue;
        snprintf(text, sizeof text, "__shared__ %s (byte %zu of %zu)", range.name, offset,
                 range.bytes);
        return text;
    }
    snprintf(text, sizeof text, "dynamic shared memory (byte %zu of %zu)",
             (size_t)(address - block->window), block->dynamic_bytes);
    return text;
}

/* The variable or buffer at an address, and the byte in it. */
std::string describe(const void *address) {
    char text[256];
    for (const Block *block : resident_blocks())
        if (in_window(block, address)) return describe_shared(block, (const char *)address);
    if (is_device(address)) {
        auto it = allocations.upper_bound((char *)address);
        if (it == allocations.begin()) return "device memory before the first buffer";
        --it;
        size_t offset = (size_t)((const char *)address - it->first);
        snprintf(text, sizeof text, "%sdevice buffer %p (byte %zu of %zu)",
                 it->second.live ? "" : "freed ", (void *)it->first, offset, it->second.bytes);
        return text;
    }
    snprintf(text, sizeof text, "host memory at %p", address);
    return text;
}

/* ---- accesses on a thread's or a library's behalf ---- */

static void require_readable(const void *address, size_t bytes, const char *what) {
#ifdef CUDASIM_ASAN
    void *bad = __asan_region_is_poisoned((void *)address, bytes);
    if (bad) fail("%s of %zu bytes runs into %s", what, bytes, describe(bad).c_str());
#else
    (void)address, (void)bytes, (void)what;
#endif
}

void check_read(const void *address, size_t bytes, uintptr_t pc) {
    require_readable(address, bytes, "read");
    race_access(address, bytes, READ, pc);
}

void check_write(const void *address, size_t bytes, uintptr_t pc) {
    require_readable(address, bytes, "write");
    race_access(address, bytes, WRITE, pc);
}

void check_async_read(const void *address, size_t bytes, uintptr_t pc) {
    require_readable(address, bytes, "read");
    race_access(address, bytes, ASYNC_READ, pc);
}

void check_async_write(const void *address, size_t bytes, uintptr_t pc) {
    require_readable(address, bytes, "write");
    race_access(address, bytes, ASYNC_WRITE, pc);
}

void check_late_write(void *address, size_t bytes, uintptr_t pc) {
    check_write(address, bytes, pc);
    race_forget(address, bytes);
    memset(address, 0xff, bytes);
}

void before_atomic(const void *address, size_t bytes, bool reads, uintptr_t pc) {
    if ((uintptr_t)address % bytes) fail("misaligned atomic at %s", describe(address).c_str());
    fuzz();
    require_readable(address, bytes, "atomic");
    race_access(address, bytes, reads ? ATOMIC : EXCHANGE, pc);
}

void library_read(const void *address, size_t bytes, const char *what) {
    require_device(address, bytes, what);
    race_library_read(address, bytes, what);
}

void library_wrote(const void *address, size_t bytes, const char *what) {
    require_device(address, bytes, what);
    race_written(address, bytes);
}

/* ---- copies ---- */

static void check_copy(const void *out, const void *in, size_t bytes, cudaMemcpyKind kind) {
    bool out_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool in_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) {
        out_device = is_device(out);
        in_device = is_device(in);
    }
    if (out_device) require_device(out, bytes, "cudaMemcpy destination");
    else require_host(out, bytes, "cudaMemcpy destination");
    if (in_device) require_device(in, bytes, "cudaMemcpy source");
    else require_host(in, bytes, "cudaMemcpy source");
}

static void do_copy(void *out, const void *in, size_t bytes) {
    if (bytes == 0) return; // legal in CUDA, wherever the pointers lead
    memmove(out, in, bytes);
    if (is_device(out) && is_device(in)) race_copied(out, in, bytes);
    else if (is_device(out)) race_written(out, bytes);
    else if (is_device(in)) race_library_read(in, bytes, "cudaMemcpy");
}

} // namespace cudasim

using namespace cudasim;

cudaError_t cudaMemcpy(void *out, const void *in, size_t bytes, cudaMemcpyKind kind) {
    require_one_thread();
    if (cudaError_t error = forbid_in_capture(false)) return error;
    check_copy(out, in, bytes, kind);
    drain_all();
    protect_device(false);
    do_copy(out, in, bytes);
    protect_device(true);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *out, const void *in, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    check_copy(out, in, bytes, kind);
    Operation copy;
    copy.run = [=] {
        check_copy(out, in, bytes, kind); /* again: a graph may outlive the buffer */
        do_copy(out, in, bytes);
    };
    if (!is_device(out)) copy.poison = [=] { memset(out, 0xff, bytes); };
    return submit(stream, copy);
}

cudaError_t cudaMemcpy2D(void *out, size_t out_pitch, const void *in, size_t in_pitch, size_t width,
                         size_t height, cudaMemcpyKind kind) {
    if (width > out_pitch || width > in_pitch) return set_error(cudaErrorInvalidValue);
    for (size_t row = 0; row < height; row++) {
        cudaError_t error = cudaMemcpy((char *)out + row * out_pitch,
                                       (const char *)in + row * in_pitch, width, kind);
        if (error) return error;
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *out, size_t out_pitch, const void *in, size_t in_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
    if (width > out_pitch || width > in_pitch) return set_error(cudaErrorInvalidValue);
    for (size_t row = 0; row < height; row++) {
        cudaError_t error = cudaMemcpyAsync((char *)out + row * out_pitch,
                                            (const char *)in + row * in_pitch, width, kind, stream);
        if (error) return error;
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *out, int value, size_t bytes, cudaStream_t stream) {
    require_device(out, bytes, "cudaMemset");
    Operation fill;
    fill.run = [=] {
        require_device(out, bytes, "cudaMemset");
        memset(out, value, bytes);
        race_written(out, bytes);
    };
    return submit(stream, fill);
}

cudaError_t cudaMemset(void *out, int value, size_t bytes) {
    return cudaMemsetAsync(out, value, bytes, 0);
}

cudaError_t cudasim::copy_to_symbol(void *symbol, const void *in, size_t bytes) {
    drain_all();
    memcpy(symbol, in, bytes);
    return cudaSuccess;
}

cudaError_t cudasim::copy_from_symbol(void *out, const void *symbol, size_t bytes) {
    drain_all();
    memcpy(out, symbol, bytes);
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory) {
    require_one_thread();
    if (!memory) return cudaSuccess;
    if (cudaError_t error = forbid_in_capture(true)) return error;
    drain_all();
    auto it = allocations.find((char *)memory);
    if (it == allocations.end() || !it->second.live)
        fail("cudaFree: %p is not the start of a live allocation (freed twice?)", memory);
    size_t bytes = it->second.bytes;
    it->second.live = false;
    race_free(memory, bytes);
    CUDASIM_POISON(memory, bytes);
    /* Give whole pages back; the addresses stay reserved. */
    uintptr_t begin = ((uintptr_t)memory + 4095) & ~(uintptr_t)4095;
    uintptr_t end = ((uintptr_t)memory + bytes) & ~(uintptr_t)4095;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED);
    return cudaSuccess;
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t) { return cudaFree(memory); }

cudaError_t cudaFreeHost(void *memory) {
    if (!memory) return cudaSuccess;
    if (!pinned.erase((char *)memory)) fail("cudaFreeHost: %p was not allocated here", memory);
    free(memory);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    *total_bytes = DEVICE_SPACE;
    *free_bytes = DEVICE_SPACE - device_used;
    return cudaSuccess;
}
