/* Hopper's asynchronous instructions: mbarriers, TMA loads, wgmma. Asynchronous work is done as
   late as the program allows; until then its target holds NaNs and counts as never written. */
#include "../device/hopper.h"
#include "../device/float16.h"
#include "emulator.h"

namespace cudasim {

/* ---- mbarriers: the state is kept in the 8 bytes of shared memory, as on the device ---- */

enum { MBARRIER_VALID = 42 };

struct Mbarrier {
    uint32_t expected : 12, pending : 12, phase : 1, valid : 7;
    int32_t bytes; /* announced less arrived */
};
static_assert(sizeof(Mbarrier) == 8, "an mbarrier has 8 bytes");

static Mbarrier *mbarrier_at(uint64_t *address, const char *what) {
    if ((uintptr_t)address % 8 || !in_window(current->block, address))
        fail("%s: %p is not an aligned address in shared memory", what, (void *)address);
    return (Mbarrier *)address;
}

static Mbarrier *live_mbarrier(uint64_t *address, const char *what) {
    Mbarrier *barrier = mbarrier_at(address, what);
    if (barrier->valid != MBARRIER_VALID) fail("%s: the mbarrier was not initialised", what);
    return barrier;
}

static void end_phase_if_complete(Mbarrier *barrier) {
    if (barrier->pending || barrier->bytes) return;
    barrier->phase ^= 1;
    barrier->pending = barrier->expected;
}

static void release(const void *object) {
    race_release(object, current->block->slot, current->index);
}
static void acquire(const void *object) {
    race_acquire(object, current->block->slot, current->index);
}

static void arrive(uint64_t *address, int bytes, const char *what) {
    Mbarrier *barrier = live_mbarrier(address, what);
    if (!barrier->pending) fail("%s: more arrivals than the phase expects", what);
    barrier->bytes += bytes;
    barrier->pending--;
    end_phase_if_complete(barrier);
    release(address);
    wake_conditions();
}

/* ---- TMA ---- */

enum : uint32_t { TENSOR_MAP = 0x7a317a31 };

struct TmaLoad {
    const Block *block;
    char *out;
    CUtensorMap map;
    int column, row;
    uint64_t *barrier;
    uintptr_t pc;
};
static auto &loads = *new std::vector<TmaLoad>();

/* 8 elements from the matrix, zero outside it. */
static void gather(uint16_t out[8], const TmaLoad &load, int row, int column) {
    for (int k = 0; k < 8; k++) {
        int x = column + k;
        bool inside = row >= 0 && row < load.map.rows && x >= 0 && x < load.map.columns;
        out[k] = 0;
        if (!inside) continue;
        const char *in = load.map.base + (size_t)row * load.map.pitch + (size_t)x * 2;
        check_read(in, 2, load.pc);
        memcpy(&out[k], in, 2);
    }
}

/* Carried out by a waiting thread on behalf of the one that issued it. A tile's row is 128 bytes;
   the swizzle exchanges its 16-byte chunks by the row's number. */
static void carry_out(const TmaLoad &load) {
    acquire(load.out);
    const CUtensorMap &map = load.map;
    for (int r = 0; r < map.tile_rows; r++) {
        for (int c = 0; c < map.tile_columns; c += 8) {
            uint16_t chunk[8];
            gather(chunk, load, load.row + r, load.column + c);
            size_t swizzle = ((uintptr_t)load.out / 128 + (size_t)r) & 7;
            char *out = load.out + r * 128 + (((size_t)c / 8) ^ swizzle) * 16;
            check_write(out, 16, load.pc);
            memcpy(out, chunk, 16);
        }
    }
    Mbarrier *barrier = live_mbarrier(load.barrier, "TMA");
    barrier->bytes -= map.tile_rows * map.tile_columns * 2;
    end_phase_if_complete(barrier);
    release(load.barrier);
    wake_conditions();
}

static std::vector<size_t> loads_of(const Block *block) {
    std::vector<size_t> indices;
    for (size_t i = 0; i < loads.size(); i++)
        if (loads[i].block == block) indices.push_back(i);
    return indices;
}

static bool loads_pending(const Block *block) { return !loads_of(block).empty(); }

/* One load at a time, in any order: TMA guarantees no order. */
static void step_loads() {
    std::vector<size_t> candidates = loads_of(current->block);
    size_t pick = candidates[random_number() % candidates.size()];
    TmaLoad load = loads[pick];
    loads.erase(loads.begin() + (long)pick);
    carry_out(load);
}

/* ---- wgmma: operands are read and results appear at wait_group ---- */

enum { TILE = 64, DEPTH = 16, ACCUMULATORS = 32 };

struct Product {
    uint64_t a, b; /* descriptors */
    int group;
    float *d[WARPGROUP];
    uintptr_t pc;
};

/* The true values of accumulators that hold NaNs in the kernel's registers meanwhile. */
struct Accumulator {
    float *d[WARPGROUP];
    float value[WARPGROUP][ACCUMULATORS];
};

struct Warpgroup {
    uint64_t block_serial;
    bool fenced;
    int group;
    std::vector<Product> products;
    std::vector<Accumulator> accumulators;
};

static Warpgroup &current_warpgroup() {
    static Warpgroup all[MAX_WINDOWS][MAX_THREADS / WARPGROUP];
    Warpgroup &w = all[current->block->slot][current->index / WARPGROUP];
    if (w.block_serial != current->block->serial) {
        w = Warpgroup();
        w.block_serial = current->block->serial;
    }
    return w;
}

static size_t descriptor_start(uint64_t descriptor) { return (size_t)(descriptor & 0x3fff) << 4; }

/* Element (row, k) of a K-contiguous tile with the 128-byte swizzle, by the descriptor's fields. */
static float load_element(uint64_t descriptor, int row, int k) {
    if (descriptor >> 62 != 1)
        fail("wgmma: swizzle mode %d is not emulated", (int)(descriptor >> 62));
    size_t stride = (size_t)(descriptor >> 32 & 0x3fff) << 4;
    size_t linear = descriptor_start(descriptor) + (size_t)(row / 8) * stride +
                    (size_t)(row % 8) * 128 + (size_t)k * 2;
    size_t physical = linear ^ ((linear >> 7 & 7) << 4);
    uint16_t element;
    memcpy(&element, shared_window() + physical, 2);
    return bf16_to_float(element);
}

/* Both the issue and the wait must be legal times to read the 64 rows of an operand. */
static void check_operand(uint64_t descriptor, uintptr_t pc) {
    size_t tile = descriptor_start(descriptor) / 1024 * 1024;
    check_read(shared_window() + tile, TILE * 128, pc);
}

static Accumulator &find_accumulator(Warpgroup &w, float *const *d) {
    for (Accumulator &a : w.accumulators)
        if (a.d[0] == d[0]) return a;
    w.accumulators.emplace_back();
    Accumulator &a = w.accumulators.back();
    for (int t = 0; t < WARPGROUP; t++) {
        a.d[t] = d[t];
        memcpy(a.value[t], d[t], sizeof a.value[t]);
        memset(d[t], 0xff, sizeof a.value[t]);
    }
    return a;
}

static void multiply(Accumulator &accumulator, const Product &product) {
    static float a[TILE][DEPTH], b[TILE][DEPTH];
    for (int r = 0; r < TILE; r++) {
        for (int k = 0; k < DEPTH; k++) {
            a[r][k] = load_element(product.a, r, k);
            b[r][k] = load_element(product.b, r, k);
        }
    }
    for (int t = 0; t < WARPGROUP; t++) {
        for (int i = 0; i < ACCUMULATORS; i++) { /* registers: 8 columns of 2 x 2 */
            int row = t / WARP * 16 + t % WARP / 4 + 8 * (i >> 1 & 1);
            int column = i / 4 * 8 + t % 4 * 2 + (i & 1);
            float sum = 0;
            for (int k = 0; k < DEPTH; k++) sum += a[row][k] * b[column][k];
            accumulator.value[t][i] += sum;
        }
    }
}

static void deliver(Warpgroup &w) {
    for (Accumulator &a : w.accumulators)
        for (int t = 0; t < WARPGROUP; t++) memcpy(a.d[t], a.value[t], sizeof a.value[t]);
    w.accumulators.clear();
    w.fenced = false;
}

struct IssuePayload {
    float *d;
    uint64_t a, b;
    uintptr_t pc;
};

static void do_issue(void **payload) {
    Warpgroup &w = current_warpgroup();
    const IssuePayload *first = (const IssuePayload *)payload[0];
    Product product{first->a, first->b, w.group, {}, first->pc};
    for (int t = 0; t < WARPGROUP; t++) {
        const IssuePayload *p = (const IssuePayload *)payload[t];
        if (p->a != first->a || p->b != first->b)
            fail("wgmma: thread %d of the warpgroup has other descriptors than thread 0", t);
        product.d[t] = p->d;
    }
    if (!w.fenced) fail("wgmma without wgmma.fence since the registers were last touched");
    check_operand(product.a, product.pc);
    check_operand(product.b, product.pc);
    find_accumulator(w, product.d);
    w.products.push_back(product);
}

static void do_fence(void **) { current_warpgroup().fenced = true; }
static void do_commit(void **) { current_warpgroup().group++; }

static void do_wait(void **payload) {
    Warpgroup &w = current_warpgroup();
    int groups_left = *(const int *)payload[0];
    size_t done = 0;
    while (done < w.products.size() && w.products[done].group < w.group - groups_left) {
        const Product &product = w.products[done++];
        check_operand(product.a, product.pc);
        check_operand(product.b, product.pc);
        multiply(find_accumulator(w, product.d), product);
    }
    w.products.erase(w.products.begin(), w.products.begin() + (long)done);
    if (w.products.empty()) deliver(w);
}

void wgmma_wait(int groups_left, const char *file, int line) {
    warpgroup_operation("wgmma.wait_group", &groups_left, do_wait, file, line);
}

} // namespace cudasim

using namespace cudasim;

CUtensorMap tensor_map_2d(const void *base, int rows, int columns, int tile_rows,
                          int tile_columns) {
    if ((uintptr_t)base % 16 || columns * 2 % 16 || tile_columns != 64 || tile_rows > 256)
        fail("tensor map: base and pitch must be multiples of 16 bytes, a tile's row 128 bytes");
    async_engine = AsyncEngine{loads_pending, step_loads};
    return CUtensorMap{(char *)base, rows,         columns,   tile_rows, tile_columns,
                       (size_t)columns * 2, TENSOR_MAP};
}

void mbarrier_init(uint64_t *address, unsigned arrivals) {
    Mbarrier *barrier = mbarrier_at(address, "mbarrier.init");
    check_write(address, 8, CUDASIM_CALLER);
    *barrier = Mbarrier{arrivals & 4095, arrivals & 4095, 0, MBARRIER_VALID, 0};
}

void mbarrier_arrive(uint64_t *barrier) { arrive(barrier, 0, "mbarrier.arrive"); }

void mbarrier_arrive_expect(uint64_t *barrier, unsigned bytes) {
    arrive(barrier, (int)bytes, "mbarrier.arrive.expect_tx");
}

void mbarrier_wait(uint64_t *address, unsigned parity, const char *file, int line) {
    Mbarrier *barrier = live_mbarrier(address, "mbarrier.try_wait");
    wait_until([=] { return barrier->phase != (parity & 1); }, "mbarrier.try_wait", file, line);
    acquire(address);
}

void tma_load_2d(void *shared, const CUtensorMap *map, int column, int row, uint64_t *barrier) {
    if (map->magic != TENSOR_MAP) fail("TMA: this is no tensor map");
    live_mbarrier(barrier, "TMA");
    if (!in_window(current->block, shared)) fail("TMA: the destination is not shared memory");
    if ((size_t)((char *)shared - shared_window()) % 1024)
        fail("TMA: tiles with the 128-byte swizzle are aligned to 1024 bytes");
    check_late_write(shared, (size_t)map->tile_rows * 128, CUDASIM_CALLER);
    release(shared);
    loads.push_back(
        TmaLoad{current->block, (char *)shared, *map, column, row, barrier, CUDASIM_CALLER});
}

uint64_t wgmma_descriptor(const void *shared) {
    uint64_t start = ((size_t)((const char *)shared - shared_window()) & 0x3ffff) >> 4;
    return start | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

void wgmma_m64n64k16_bf16(float d[32], uint64_t a, uint64_t b, const char *file, int line) {
    IssuePayload me{d, a, b, CUDASIM_CALLER};
    warpgroup_operation("wgmma.m64n64k16", &me, do_issue, file, line);
}

void wgmma_fence(const char *file, int line) {
    warpgroup_operation("wgmma.fence", nullptr, do_fence, file, line);
}

void wgmma_commit(const char *file, int line) {
    warpgroup_operation("wgmma.commit_group", nullptr, do_commit, file, line);
}
