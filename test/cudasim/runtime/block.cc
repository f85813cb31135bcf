/* Blocks in flight and their shared memory. */
#include "emulator.h"

namespace cudasim {

static auto &idle_blocks = *new std::vector<Block *>();
static auto &idle_fibers = *new std::vector<Fiber *>();
static auto &idle_slots = *new std::vector<int>();
static int num_slots;
static uint64_t last_serial;

bool in_window(const Block *block, const void *address) {
    return (size_t)((const char *)address - block->window) < WINDOW;
}

/* ---- shared memory ---- */

static size_t align_up(size_t x, size_t alignment) {
    return (x + alignment - 1) / alignment * alignment;
}

/* Unreadable bytes between variables: as large as the variable, because strides jump over small
   gaps. */
static size_t gap_after(size_t bytes) {
    const size_t smallest = 1 << 10, largest = 32 << 10;
    return bytes < smallest ? smallest : bytes > largest ? largest : bytes;
}

/* Makes bytes of the window usable, filled with 0xff: a NaN in every floating type. */
static char *open_range(Block *block, size_t offset, size_t bytes) {
    char *address = block->window + offset;
    CUDASIM_UNPOISON(address, bytes);
    memset(address, 0xff, bytes);
    race_allocate(address, bytes, false);
    block->used = offset + bytes;
    return address;
}

void *dynamic_shared(size_t alignment) {
    Block *block = current->block;
    if (!block->dynamic_bytes)
        fail("the kernel uses extern __shared__ but was launched with 0 bytes of it");
    if ((uintptr_t)block->window % alignment)
        fail("dynamic shared memory cannot be aligned to %zu bytes", alignment);
    return block->window;
}

static void check_shared_limits(const Block *block, const char *name) {
    size_t limit = (size_t)options().shared_limit;
    if (block->static_bytes > 48 * 1024)
        fail("static __shared__ memory of %zu bytes exceeds 48 KB (variable %s)",
             block->static_bytes, name);
    if (block->static_bytes + block->dynamic_bytes > limit)
        fail("static + dynamic shared memory of %zu bytes exceeds %zu (variable %s)",
             block->static_bytes + block->dynamic_bytes, limit, name);
}

/* The address of a __shared__ variable in the running block; the first thread to come allocates. */
void *shared_variable(SharedVariable &variable, size_t bytes, size_t alignment, const char *name) {
    Block *block = current->block;
    if (variable.block_serial == block->serial) return variable.address;
    for (const SharedRange &range : block->variables) {
        if (range.variable != &variable) continue; /* another block ran in between */
        variable.block_serial = block->serial;
        return variable.address = range.address;
    }
    block->static_bytes += bytes;
    check_shared_limits(block, name);
    size_t begin = align_up(block->used + gap_after(bytes), alignment < 16 ? 16 : alignment);
    if (begin + bytes + gap_after(bytes) > WINDOW) fail("no room for the gaps around %s", name);
    char *address = open_range(block, begin, bytes);
    block->variables.push_back(SharedRange{&variable, address, bytes, name});
    variable.block_serial = block->serial;
    return variable.address = address;
}

char *shared_window() { return current->block->window; }

/* ---- blocks ---- */

static int take_slot() {
    if (idle_slots.empty()) {
        char *window = memory_base() + (size_t)num_slots * WINDOW;
        memset(window, 0xff, WINDOW / 2); /* what a stray read finds where nothing checks it */
        CUDASIM_POISON(window, WINDOW);
        idle_slots.push_back(num_slots++);
    }
    int slot = idle_slots.back();
    idle_slots.pop_back();
    return slot;
}

static Fiber *take_fiber(Block *block, unsigned index) {
    Fiber *fiber;
    if (idle_fibers.empty()) {
        fiber = new_fiber();
    } else {
        fiber = idle_fibers.back();
        idle_fibers.pop_back();
    }
    const dim3 &size = launch.config.block;
    fiber->block = block;
    fiber->index = index;
    fiber->lane = index % WARP;
    fiber->warp = index / WARP;
    fiber->thread = uint3{index % size.x, index / size.x % size.y, index / size.x / size.y};
    fiber->copies.clear();
    fiber->copy_group = fiber->store_group = 0;
    fiber->cluster_arrived = false;
    fiber->waits_for = nullptr;
    return fiber;
}

Block *start_block(unsigned linear, Cluster *cluster) {
    Block *block;
    if (idle_blocks.empty()) {
        block = new Block();
    } else {
        block = idle_blocks.back();
        idle_blocks.pop_back();
    }
    const dim3 &grid = launch.config.grid, &size = launch.config.block;
    block->linear = linear;
    block->position = dim3(linear % grid.x, linear / grid.x % grid.y, linear / grid.x / grid.y);
    block->threads = block->live = size.x * size.y * size.z;
    block->serial = ++last_serial;
    block->slot = take_slot();
    block->window = memory_base() + (size_t)block->slot * WINDOW;
    block->variables.clear();
    memset(block->barrier, 0, sizeof block->barrier);
    memset(block->registers, 0, sizeof block->registers);
    block->cluster = cluster;
    block->rank = (unsigned)cluster->blocks.size();
    cluster->blocks.push_back(block);
    block->static_bytes = 0;
    block->dynamic_bytes = launch.config.shared_bytes;
    race_begin_block(block);
    open_range(block, 0, block->dynamic_bytes);

    memset(block->live_lanes, 0, sizeof block->live_lanes);
    for (unsigned i = 0; i < block->threads; i++) {
        block->fiber[i] = take_fiber(block, i);
        block->live_lanes[i / WARP] |= 1u << i % WARP;
    }
    bool descending = options().order == DESCENDING;
    for (unsigned i = 0; i < block->threads; i++)
        make_ready(block->fiber[descending ? block->threads - 1 - i : i]);
    return block;
}

static void leave_cluster(Block *block) {
    Cluster *cluster = block->cluster;
    cluster->blocks[block->rank] = nullptr;
    cluster->slots.push_back(block->slot);
    if (cluster->slots.size() < cluster->blocks.size()) {
        CUDASIM_UNPOISON(block->window, block->used);
        memset(block->window, 0xff, block->used);
        CUDASIM_POISON(block->window, block->used);
        return;
    }
    idle_slots.insert(idle_slots.end(), cluster->slots.begin(), cluster->slots.end());
    delete cluster;
}

void finish_block(Block *block) {
    for (unsigned i = block->threads; i > 0; i--) idle_fibers.push_back(block->fiber[i - 1]);
    CUDASIM_POISON(block->window, block->used);
    race_end_window(block->window, block->used);
    leave_cluster(block);
    idle_blocks.push_back(block);
}

unsigned live_lanes() { return current->block->live_lanes[current->warp]; }

} // namespace cudasim
