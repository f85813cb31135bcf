/* The CPU backend's memory, order and conversion. Backend memory is host memory and
   every slot is done when it returns, so order needs nothing; floatX is float, so conversion is a
   copy. */
#include "cpu.h"
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Large blocks lie on 2 MiB borders and ask for huge pages: a training step touches gigabytes, and
   with 4 KiB pages a good part of its time goes into address translation. */
#define HUGE_PAGE ((size_t)1 << 21)
/* Bytes copied per turn of a parallel loop: one core alone does not reach the memory's speed. */
#define COPY_BLOCK ((size_t)1 << 20)

static void *alloc(size_t bytes) {
    void *memory = NULL;
    bool huge = bytes >= 2 * HUGE_PAGE;
    if (posix_memalign(&memory, huge ? HUGE_PAGE : 256, bytes ? bytes : 1) != 0)
        die_machine("out of memory: %.1f MB asked for; use a smaller model or fewer rows",
                    (double)bytes / 1e6);
    if (huge) madvise(memory, bytes, MADV_HUGEPAGE); /* if it fails, only slower */
    return memory;
}

/* Bytes of memory that the machine has, or that this process's control group may use. Memory that
   other processes hold is counted as available. */
static size_t memory_available(void) {
    size_t bytes = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGE_SIZE), limit;
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "r");   /* "max": none */
    if (!file) return bytes;
    if (fscanf(file, "%zu", &limit) == 1 && limit < bytes) bytes = limit;
    fclose(file);
    return bytes;
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static void copy(void *out, const void *in, size_t bytes) {
    #pragma omp parallel for schedule(static) if (bytes > COPY_BLOCK)
    for (size_t i = 0; i < bytes; i += COPY_BLOCK)
        memcpy((char *)out + i, (const char *)in + i, smaller(bytes - i, COPY_BLOCK));
}

static void upload(void *out, const void *host, size_t bytes) { copy(out, host, bytes); }
static void download(void *host, const void *in, size_t bytes) { copy(host, in, bytes); }

/* There is nothing to wait for. The two buffers grow as needed and stay. */
static struct {
    void *data;
    size_t room;
} fetches[2];

static void fetch(int number, const void *in, size_t bytes) {
    if (bytes > fetches[number].room) {
        free(fetches[number].data);
        fetches[number].data = check_alloc(bytes, 1, "what is fetched");
        fetches[number].room = bytes;
    }
    copy(fetches[number].data, in, bytes);
}
static const void *fetched(int number) { return fetches[number].data; }

static void fill_zero(void *out, size_t bytes) {
    #pragma omp parallel for schedule(static) if (bytes > COPY_BLOCK)
    for (size_t i = 0; i < bytes; i += COPY_BLOCK)
        memset((char *)out + i, 0, smaller(bytes - i, COPY_BLOCK));
}

static void sync_compute(void) {}
static void event_record(int event) { (void)event; }
static void event_wait(int event) { (void)event; }

/* Records nothing, because calling the slots again costs nothing extra on the CPU. */
static bool graph_begin(const void *key, size_t bytes) {
    (void)key, (void)bytes;
    return true;
}
static void graph_end(void) {}

static void to_float(float *out, const floatX *in, size_t n) { copy(out, in, n * sizeof *out); }
static void from_float(floatX *out, const float *in, size_t n) { copy(out, in, n * sizeof *out); }

static void fill(struct Ops *ops) {
    ops->alloc = alloc;
    ops->free = free;
    ops->memory_available = memory_available;
    ops->graph_begin = graph_begin;
    ops->graph_end = graph_end;
    ops->upload = upload;
    ops->download = download;
    ops->fetch = fetch;
    ops->fetched = fetched;
    ops->copy = copy;
    ops->fill_zero = fill_zero;
    ops->sync = sync_compute;
    ops->event_record = event_record;
    ops->event_wait = event_wait;
    ops->to_float = to_float;
    ops->from_float = from_float;
}

const struct KernelFile cpu_memory = {"memory", fill, no_workspace};
