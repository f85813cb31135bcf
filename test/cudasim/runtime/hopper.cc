/* mbarriers, clusters and TMA. Asynchronous work is done as late as the program allows; until then
   its target holds NaNs and counts as never written. */
#include "../device/hopper.h"
#include "emulator.h"

namespace cudasim {

/* ---- mbarriers: the state is kept in the 8 bytes of shared memory, as on the device ---- */

enum { MBARRIER_VALID = 42, MAX_ARRIVALS = 4095, MAX_BYTES = (1 << 20) - 1 };

struct Mbarrier {
    uint32_t expected : 12, pending : 12, phase : 1, visible : 1, valid : 6;
    int32_t bytes; /* announced less arrived */
};
static_assert(sizeof(Mbarrier) == 8, "an mbarrier has 8 bytes");

/* Initialised by this thread, and no fence since. */
struct NewBarrier {
    const Fiber *fiber;
    Mbarrier *barrier;
};
static auto &new_barriers = *new std::vector<NewBarrier>();

static Mbarrier *mbarrier_at(const Block *block, uint64_t *address, const char *what) {
    if ((uintptr_t)address % 8 || !in_window(block, address))
        fail("%s: %p is not an aligned address in shared memory", what, (void *)address);
    return (Mbarrier *)address;
}

static Mbarrier *live_mbarrier(const Block *block, uint64_t *address, const char *what) {
    Mbarrier *barrier = mbarrier_at(block, address, what);
    if (barrier->valid != MBARRIER_VALID) fail("%s: the mbarrier was not initialised", what);
    return barrier;
}

/* For TMA and for other blocks. */
static Mbarrier *visible_mbarrier(const Block *block, uint64_t *address, const char *what) {
    Mbarrier *barrier = live_mbarrier(block, address, what);
    if (!barrier->visible)
        fail("%s: no mbarrier_init_fence since the barrier was initialised", what);
    return barrier;
}

static void end_phase_if_complete(Mbarrier *barrier) {
    if (barrier->pending || barrier->bytes > 0) return;
    if (barrier->bytes < 0)
        fail("mbarrier: %d bytes more than were announced came in this phase", -barrier->bytes);
    barrier->phase ^= 1;
    barrier->pending = barrier->expected;
}

static void release(const void *object) {
    race_release(object, current->block->slot, current->index);
}
static void acquire(const void *object) {
    race_acquire(object, current->block->slot, current->index);
}

static void arrive(Mbarrier *barrier, int bytes, const char *what) {
    if (!barrier->pending) fail("%s: more arrivals than the phase expects", what);
    barrier->bytes += bytes;
    if (barrier->bytes > MAX_BYTES)
        fail("%s: %d bytes announced in one phase; 2^20 - 1 can be", what, barrier->bytes);
    barrier->pending--;
    end_phase_if_complete(barrier);
    wake_conditions();
}

/* ---- clusters ---- */

static Block *block_of_rank(unsigned rank, const char *what) {
    const Cluster *cluster = current->block->cluster;
    if (rank >= cluster->blocks.size())
        fail("%s: block %u of a cluster of %zu", what, rank, cluster->blocks.size());
    if (!cluster->blocks[rank])
        fail("%s: block %u of the cluster has exited, its shared memory is gone", what, rank);
    return cluster->blocks[rank];
}

static char *address_in(const Block *block, const void *shared, const char *what) {
    if (!in_window(current->block, shared)) fail("%s: %p is not shared memory", what, shared);
    return block->window + ((const char *)shared - shared_window());
}

void *map_to_block(void *shared, unsigned rank) {
    return address_in(block_of_rank(rank, "cluster_map"), shared, "cluster_map");
}

/* Threads that have exited are not waited for. */
static void open_cluster_barrier(Cluster *cluster) {
    unsigned live = 0;
    for (const Block *block : cluster->blocks) live += block ? block->live : 0;
    if (cluster->arrived < live) return;
    cluster->arrived = 0;
    cluster->phase++;
    wake_conditions();
}

static void do_nothing(void **, unsigned) {}

void cluster_without(Fiber *exited) {
    if (exited->cluster_arrived) fail("the thread exits between cluster_arrive and cluster_wait");
    Cluster *cluster = exited->block->cluster;
    if (cluster->arrived) open_cluster_barrier(cluster);
}

/* ---- TMA ---- */

enum : uint32_t { TENSOR_MAP = 0x7a317a31 };

/* Into one block's memory; a multicast is one of these for every block. */
struct TmaLoad {
    const Block *block;
    char *out;
    CUtensorMap map;
    int column, row;
    uint64_t *barrier;
    uintptr_t pc;
};
static auto &loads = *new std::vector<TmaLoad>();

struct TmaStore {
    const Fiber *fiber;
    CUtensorMap map;
    int column, row, group;
    const char *in;
    bool committed, was_read;
    std::vector<char> data; /* what was there at the issue */
    uintptr_t pc;
};
static auto &stores = *new std::vector<TmaStore>();

static size_t tile_bytes(const CUtensorMap &map) { return (size_t)map.tile_rows * 128; }

/* The matrix's address of 16 bytes of a tile's row, and how many bytes of them are inside it. */
struct Chunk {
    char *global;
    size_t skip, bytes; /* outside on the left; inside */
};
static Chunk chunk_at(const CUtensorMap &map, int row, int column) {
    int count = 16 / map.element_bytes, low = column < 0 ? -column : 0;
    int high = map.columns - column < count ? map.columns - column : count;
    if (row < 0 || row >= map.rows || high <= low) return Chunk{nullptr, 0, 0};
    size_t size = (size_t)map.element_bytes;
    return Chunk{map.base + (size_t)row * map.pitch + (size_t)(column + low) * size,
                 (size_t)low * size, (size_t)(high - low) * size};
}

/* Calls visit(offset in the tile's shared memory, chunk of the matrix). */
template <class Visit>
static void for_tile(const CUtensorMap &map, int column, int row, Visit visit) {
    for (int r = 0; r < map.tile_rows; r++)
        for (int c = 0; c < 8; c++)
            visit((size_t)(r * 128 + (c ^ (r & 7)) * 16),
                  chunk_at(map, row + r, column + c * 16 / map.element_bytes));
}

/* Carried out by a waiting thread on behalf of the one that issued it. */
static void carry_out(const TmaLoad &load) {
    acquire(load.out);
    for_tile(load.map, load.column, load.row, [&](size_t offset, const Chunk &chunk) {
        char bytes[16] = {};
        if (chunk.bytes) {
            check_read(chunk.global, chunk.bytes, load.pc);
            memcpy(bytes + chunk.skip, chunk.global, chunk.bytes);
        }
        check_async_write(load.out + offset, 16, load.pc);
        memcpy(load.out + offset, bytes, 16);
    });
    Mbarrier *barrier = live_mbarrier(load.block, load.barrier, "TMA");
    barrier->bytes -= (int)tile_bytes(load.map);
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

static void check_tile(const CUtensorMap *map, const void *shared) {
    if (map->magic != TENSOR_MAP) fail("TMA: this is no tensor map");
    if (!in_window(current->block, shared)) fail("TMA: the tile is not in shared memory");
    if ((size_t)((const char *)shared - shared_window()) % 1024)
        fail("TMA: tiles with the 128-byte swizzle are aligned to 1024 bytes");
}

static bool overlap(const char *a, size_t a_bytes, const char *b, size_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}

static void start_load(const Block *block, void *shared, const CUtensorMap *map, int column,
                       int row, uint64_t *barrier, uintptr_t pc) {
    char *out = address_in(block, shared, "TMA");
    uint64_t *there = (uint64_t *)address_in(block, barrier, "TMA");
    visible_mbarrier(block, there, "TMA");
    for (const TmaLoad &other : loads)
        if (overlap(out, tile_bytes(*map), other.out, tile_bytes(other.map)))
            fail("TMA: a load into a tile that another load has not yet filled");
    for (const TmaStore &store : stores)
        if (!store.was_read && overlap(out, tile_bytes(*map), store.in, tile_bytes(store.map)))
            fail("TMA: a load into a tile that a store still reads");
    check_late_write(out, tile_bytes(*map), pc);
    race_release_to(out, current->block->slot, current->index, block->slot);
    loads.push_back(TmaLoad{block, out, *map, column, row, there, pc});
}

/* ---- stores: by the thread that issued them. Shared memory must stay as it is until a wait says
   that it was read; global memory gets the tile as late as may be. ---- */

static void must_be_unchanged(TmaStore &store) {
    if (store.was_read) return;
    for (size_t i = 0; i < store.data.size(); i += 16) check_async_read(store.in + i, 16, store.pc);
    if (memcmp(store.data.data(), store.in, store.data.size()))
        fail("TMA: a tile changed while a store was reading it");
    store.was_read = true;
}

static void write_out(const TmaStore &store) {
    for_tile(store.map, store.column, store.row, [&](size_t offset, const Chunk &chunk) {
        if (!chunk.bytes) return;
        check_write(chunk.global, chunk.bytes, store.pc);
        memcpy(chunk.global, store.data.data() + offset + chunk.skip, chunk.bytes);
    });
}

void tma_store_wait(int groups_left, bool written) {
    for (size_t i = 0; i < stores.size();) {
        TmaStore &store = stores[i];
        bool mine = store.fiber == current && store.group < current->store_group - groups_left;
        if (mine) must_be_unchanged(store);
        if (mine && written) {
            write_out(store);
            stores.erase(stores.begin() + (long)i);
        } else {
            i++;
        }
    }
}

void finish_stores() {
    for (const TmaStore &store : stores) {
        if (store.fiber != current) continue;
        if (!store.was_read)
            fail("the thread exits before tma_store_wait: shared memory may be gone before TMA has "
                 "read it%s",
                 store.group < current->store_group ? "" : " (and no tma_store_commit)");
    }
    tma_store_wait(0, true);
}

/* ---- the end of a block, and a deadlock ---- */

void check_no_loads(const Block *block) {
    if (loads_pending(block))
        fail("the block exits before a TMA load into its shared memory has come");
}

/* What an mbarrier still waits for, for the report of a deadlock. */
std::string describe_mbarrier(const void *address) {
    const Mbarrier *barrier = (const Mbarrier *)address;
    char text[128];
    snprintf(text, sizeof text,
             "mbarrier.try_wait (%d arrivals and %d announced bytes are missing)",
             (int)barrier->pending, (int)barrier->bytes);
    return text;
}

CUtensorMap tensor_map(const void *base, int element_bytes, int rows, int columns, size_t stride,
                       int tile_rows, int tile_columns) {
    if ((uintptr_t)base % 16 || stride * (size_t)element_bytes % 16)
        fail("tensor map: base and stride must be multiples of 16 bytes");
    if (tile_columns * element_bytes != 128 || tile_rows < 1 || tile_rows > 256)
        fail("tensor map: a tile has rows of 128 bytes, and 256 of them at most");
    if (rows < 1 || columns < 1 || stride < (size_t)columns)
        fail("tensor map: %d x %d elements, stride %zu", rows, columns, stride);
    async_engine = AsyncEngine{loads_pending, step_loads};
    return CUtensorMap{(char *)base, rows,          columns,
                       tile_rows,    tile_columns,  element_bytes,
                       stride * (size_t)element_bytes, TENSOR_MAP};
}

} // namespace cudasim

using namespace cudasim;

/* ---- mbarriers ---- */

void mbarrier_init(uint64_t *address, unsigned arrivals) {
    Mbarrier *barrier = mbarrier_at(current->block, address, "mbarrier.init");
    if (arrivals < 1 || arrivals > MAX_ARRIVALS) fail("mbarrier.init: %u arrivals", arrivals);
    check_write(address, 8, CUDASIM_CALLER);
    *barrier = Mbarrier{arrivals & 4095, arrivals & 4095, 0, 0, MBARRIER_VALID, 0};
    new_barriers.push_back(NewBarrier{current, barrier});
}

void mbarrier_init_fence() {
    for (size_t i = 0; i < new_barriers.size();) {
        if (new_barriers[i].fiber != current) {
            i++;
            continue;
        }
        new_barriers[i].barrier->visible = 1;
        new_barriers.erase(new_barriers.begin() + (long)i);
    }
}

void mbarrier_arrive(uint64_t *address) {
    release(address);
    arrive(live_mbarrier(current->block, address, "mbarrier.arrive"), 0, "mbarrier.arrive");
}

void mbarrier_arrive_expect(uint64_t *address, unsigned bytes) {
    release(address);
    arrive(live_mbarrier(current->block, address, "mbarrier.arrive.expect_tx"), (int)bytes,
           "mbarrier.arrive.expect_tx");
}

void mbarrier_arrive_cluster(uint64_t *address, unsigned rank) {
    Block *block = block_of_rank(rank, "mbarrier.arrive");
    uint64_t *there = (uint64_t *)address_in(block, address, "mbarrier.arrive");
    Mbarrier *barrier = block == current->block
                            ? live_mbarrier(block, there, "mbarrier.arrive")
                            : visible_mbarrier(block, there, "mbarrier.arrive");
    race_release_to(there, current->block->slot, current->index, block->slot);
    arrive(barrier, 0, "mbarrier.arrive");
}

void mbarrier_wait(uint64_t *address, unsigned parity, const char *file, int line) {
    Mbarrier *barrier = live_mbarrier(current->block, address, "mbarrier.try_wait");
    current->waits_for = address;
    wait_until([=] { return barrier->phase != (parity & 1); }, "mbarrier.try_wait", file, line);
    current->waits_for = nullptr;
    acquire(address);
}

/* ---- clusters ---- */

unsigned cluster_rank() { return current->block->rank; }
unsigned cluster_blocks() { return (unsigned)current->block->cluster->blocks.size(); }

void cluster_arrive(const char *file, int line) {
    full_warp_operation("barrier.cluster.arrive", nullptr, do_nothing, file, line);
    if (current->cluster_arrived) fail("cluster_arrive twice without cluster_wait");
    Cluster *cluster = current->block->cluster;
    current->cluster_arrived = true;
    current->cluster_phase = cluster->phase;
    race_release_to(cluster, current->block->slot, current->index, -1);
    cluster->arrived++;
    open_cluster_barrier(cluster);
}

void cluster_wait(const char *file, int line) {
    full_warp_operation("barrier.cluster.wait", nullptr, do_nothing, file, line);
    if (!current->cluster_arrived) fail("cluster_wait without cluster_arrive");
    current->cluster_arrived = false;
    Cluster *cluster = current->block->cluster;
    unsigned phase = current->cluster_phase;
    wait_until([=] { return cluster->phase != phase; }, "barrier.cluster.wait", file, line);
    race_acquire_cluster(cluster, current->block->slot, current->index);
}

/* ---- TMA ---- */

void tma_load_2d(void *shared, const CUtensorMap *map, int column, int row, uint64_t *barrier) {
    check_tile(map, shared);
    start_load(current->block, shared, map, column, row, barrier, CUDASIM_CALLER);
}

void tma_load_2d_multicast(void *shared, const CUtensorMap *map, int column, int row,
                           uint64_t *barrier, uint16_t blocks) {
    check_tile(map, shared);
    if (!blocks) fail("TMA: a multicast to no block");
    for (unsigned rank = 0; rank < 16; rank++)
        if (blocks >> rank & 1)
            start_load(block_of_rank(rank, "TMA multicast"), shared, map, column, row, barrier,
                       CUDASIM_CALLER);
}

void tma_store_2d(const CUtensorMap *map, int column, int row, const void *shared) {
    check_tile(map, shared);
    const char *in = (const char *)shared;
    for (size_t i = 0; i < tile_bytes(*map); i += 16) check_async_read(in + i, 16, CUDASIM_CALLER);
    uintptr_t pc = CUDASIM_CALLER;
    for_tile(*map, column, row, [&](size_t, const Chunk &chunk) {
        if (chunk.bytes) check_late_write(chunk.global, chunk.bytes, pc);
    });
    stores.push_back(TmaStore{current, *map, column, row, current->store_group, in, false, false,
                              std::vector<char>(in, in + tile_bytes(*map)), pc});
}

void tma_store_commit() { current->store_group++; }

void fence_async_shared() { race_async_fence(current->block->slot, current->index); }

/* ---- programmatic launch: see race.cc ---- */

void grid_dependency_wait() { race_dependency_wait(current->block->slot, current->index); }
void grid_dependency_launch() {}
