/* The race checker (sim-race only). Kernels are compiled with -fsanitize=thread, but libtsan is not
   linked: the compiler's calls (tsan.cc) come here. Beside races it sees reads of memory that was
   never written and accesses outside allocations, both exact to the byte.

   Two accesses of one byte, at least one a write and not both atomic, race unless one happens
   before the other. What makes that order:

       inside a thread                       program order
       inside a block                        __syncthreads, __syncwarp, named barriers, mbarriers
       between blocks of one launch          __threadfence, then an atomic; an atomic on the same
                                             address by the other block
       between blocks of a cluster           cluster_arrive and _wait, mbarriers of the other block
       between launches                      always (stream order is tested by streams=random), but
                                             a programmatic launch only after grid_dependency_wait
       wgmma or TMA after ordinary writes    a fence_async_shared between them as well

   Shuffles and votes order nothing. A barrier of the whole block ends a *segment*: everything in an
   older segment of the same block has happened before. So vector clocks are needed only inside a
   segment, and they are zeroed at each such barrier. */
#include "emulator.h"
#include <set>
#include <sys/mman.h>
#include <unistd.h>
#include <unordered_map>

#ifdef CUDASIM_RACE
namespace cudasim {

/* ---- shadow memory: one cell for 2 bytes, the smallest element kernels share ---- */

struct Access {
    uint32_t segment; /* of a block: see Segment; 0 = none */
    uint32_t pc;      /* offset in the module */
    uint16_t clock;   /* of the thread, within the segment */
    uint16_t thread : 10, bytes : 2, unordered : 1, async : 1; /* see AccessKind */
};

struct Cell {
    Access write, reads[2]; /* the last write and the last two reads by different threads */
    uint8_t allocated, initialised; /* one bit per byte */
};
static_assert(sizeof(Cell) == 40, "the shadow is 20 times as large as the memory");

static Cell *shadow;

static bool launches_broken; /* a copy or a library call came after the last launch */

static void map_shadow() {
    if (shadow) return;
    size_t bytes = (SHARED_SPACE + device_space()) / 2 * sizeof(Cell);
    void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        fail("cannot reserve %zu GB of address space for the shadow", bytes >> 30);
    shadow = (Cell *)memory;
}

/* Calls visit(cell, mask of the bytes in it, address) for every cell that [address, +bytes)
   touches. */
template <class Visit> static void for_cells(const void *address, size_t bytes, Visit visit) {
    map_shadow();
    size_t begin = (size_t)((const char *)address - memory_base()), end = begin + bytes;
    for (size_t cell = begin / 2; cell * 2 < end; cell++) {
        unsigned low = cell * 2 >= begin ? 1 : 0;
        unsigned high = cell * 2 + 1 < end ? 2 : 0;
        if (!visit(shadow[cell], low | high, memory_base() + cell * 2)) return;
    }
}

static void mark(const void *address, size_t bytes, int allocated, int initialised) {
    for_cells(address, bytes, [&](Cell &cell, unsigned mask, const char *) {
        if (allocated == 1) cell.allocated |= (uint8_t)mask;
        if (allocated == 0) cell.allocated &= (uint8_t)~mask;
        if (initialised == 1) cell.initialised |= (uint8_t)mask;
        if (initialised == 0) cell.initialised &= (uint8_t)~mask;
        return true;
    });
}
enum { CLEAR = 0, SET = 1, LEAVE = -1 };

void race_allocate(const void *address, size_t bytes, bool initialised) {
    mark(address, bytes, SET, initialised ? SET : CLEAR);
}
void race_free(const void *address, size_t bytes) { mark(address, bytes, CLEAR, CLEAR); }
void race_forget(const void *address, size_t bytes) { mark(address, bytes, LEAVE, CLEAR); }

void race_end_window(const char *window, size_t bytes) {
    for_cells(window, bytes, [](Cell &cell, unsigned, const char *) {
        cell = Cell{};
        return true;
    });
}

/* Written by a copy or a library: ordered before and after by the stream. */
void race_written(const void *address, size_t bytes) {
    launches_broken = true;
    for_cells(address, bytes, [](Cell &cell, unsigned mask, const char *) {
        cell.initialised |= (uint8_t)mask;
        return true;
    });
}

/* A device-to-device copy: bytes that were never written stay so. */
void race_copied(const void *out, const void *in, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        size_t to = (size_t)((const char *)out + i - memory_base());
        size_t from = (size_t)((const char *)in + i - memory_base());
        unsigned written = shadow[from / 2].initialised >> (from & 1) & 1;
        Cell &cell = shadow[to / 2];
        cell.initialised = (uint8_t)((cell.initialised & ~(1u << (to & 1))) | written << (to & 1));
    }
}

/* ---- segments and clocks ---- */

static uint32_t last_segment, first_segment_of_launch = 1;
/* Launches from this segment on may still run when a programmatic launch begins. */
static uint32_t first_concurrent_segment = 1;
static auto &block_of_segment = *new std::vector<uint32_t>(); /* of this launch */

/* What another block of the cluster has done, as far as this one knows. */
struct View {
    uint32_t segment;
    std::vector<uint16_t> clock; /* of its threads in that segment; all of older ones is known */
};
typedef std::unordered_map<uint32_t, View> Views; /* by block */

/* State of one block in flight, by slot. clocks[t * threads + u] is what thread t knows of u;
   fenced_clocks the same of writes that fence_async_shared has made visible to TMA and wgmma. */
struct Slot {
    unsigned threads;
    uint32_t block, segment;
    bool dirty; /* some clock is not zero */
    std::vector<uint16_t> clocks;
    std::vector<uint16_t> arriving[NUM_BARRIERS], released[NUM_BARRIERS];
    std::unordered_map<const void *, std::vector<uint16_t>> objects; /* mbarriers and the like */
    std::unordered_map<const void *, Views> foreign_objects; /* what other blocks released there */
    Views foreign;
    std::vector<uint16_t> fenced_clocks;
    bool any_fence;             /* by fence_async_shared, in this segment */
    uint32_t fenced_before;     /* older segments are fenced as a whole, since a later fence */
    std::unordered_map<uint32_t, std::vector<uint16_t>> fenced_then; /* by segment, when it ended */
    std::vector<char> waited;   /* by thread: grid_dependency_wait */
    bool any_waited;
    std::vector<uint64_t> acquired; /* bit set: blocks whose writes this one may read */
    std::vector<char> fenced;       /* by thread: no write to device memory since its fence */
};
static Slot *const slots = new Slot[MAX_WINDOWS]();

static uint32_t new_segment(uint32_t block) {
    block_of_segment.push_back(block);
    return ++last_segment;
}

static uint16_t *clocks_of(Slot &slot, unsigned thread) {
    return &slot.clocks[(size_t)thread * slot.threads];
}

static void reset_clocks(Slot &slot) {
    if (slot.dirty) std::fill(slot.clocks.begin(), slot.clocks.end(), 0);
    if (slot.any_fence) std::fill(slot.fenced_clocks.begin(), slot.fenced_clocks.end(), 0);
    slot.dirty = slot.any_fence = false;
    for (int i = 0; i < NUM_BARRIERS; i++) {
        slot.arriving[i].clear();
        slot.released[i].clear();
    }
    slot.objects.clear();
}

static auto &released_by_atomic = *new std::unordered_map<const void *, std::vector<uint64_t>>();

static auto &cluster_objects = *new std::unordered_map<const void *, Views>();

void race_begin_launch() {
    map_shadow();
    first_segment_of_launch = last_segment + 1;
    if (!launch.config.programmatic || launches_broken)
        first_concurrent_segment = first_segment_of_launch;
    launches_broken = false;
    cluster_objects.clear();
    block_of_segment.clear();
    released_by_atomic.clear();
}

void race_begin_block(const Block *block) {
    Slot &slot = slots[block->slot];
    if (slot.threads != block->threads) {
        slot.threads = block->threads;
        slot.clocks.assign((size_t)slot.threads * slot.threads, 0);
        slot.fenced_clocks = slot.clocks;
    }
    reset_clocks(slot);
    slot.block = block->linear;
    slot.segment = new_segment(block->linear);
    slot.acquired.clear();
    slot.fenced.assign(slot.threads, 0);
    slot.foreign.clear();
    slot.foreign_objects.clear();
    slot.fenced_before = 0;
    slot.fenced_then.clear();
    slot.waited.assign(slot.threads, 0);
    slot.any_waited = false;
}

/* ---- order inside a block ---- */

static void join(uint16_t *into, const uint16_t *from, unsigned count) {
    for (unsigned i = 0; i < count; i++)
        if (from[i] > into[i]) into[i] = from[i];
}

static uint16_t *fenced_clocks_of(Slot &slot, unsigned thread) {
    return &slot.fenced_clocks[(size_t)thread * slot.threads];
}

static void tick(Slot &slot, unsigned thread) {
    if (++clocks_of(slot, thread)[thread] == UINT16_MAX)
        fail("race checker: 65535 synchronisations without __syncthreads");
    slot.dirty = true;
}

/* What `thread` has done so far becomes visible to whoever joins `clock`, which holds clocks and
   then fenced clocks. */
static void release_into(Slot &slot, std::vector<uint16_t> &clock, unsigned thread) {
    clock.resize(2 * (size_t)slot.threads);
    tick(slot, thread);
    join(clock.data(), clocks_of(slot, thread), slot.threads);
    if (slot.any_fence)
        join(clock.data() + slot.threads, fenced_clocks_of(slot, thread), slot.threads);
}

static void acquire_from(Slot &slot, const std::vector<uint16_t> &clock, unsigned thread) {
    if (clock.empty()) return;
    join(clocks_of(slot, thread), clock.data(), slot.threads);
    if (slot.any_fence)
        join(fenced_clocks_of(slot, thread), clock.data() + slot.threads, slot.threads);
    if (slot.any_waited) slot.waited[thread] = 1;
}

/* fence_async_shared: what happened before it, by whichever thread, is visible to TMA and wgmma for
   those who are ordered after it. Of older segments: for the whole block. */
void race_async_fence(int slot_index, unsigned thread) {
    Slot &slot = slots[slot_index];
    tick(slot, thread);
    slot.any_fence = true;
    join(fenced_clocks_of(slot, thread), clocks_of(slot, thread), slot.threads);
    slot.fenced_before = slot.segment;
}

static void keep_fenced_clocks(Slot &slot) {
    if (!slot.any_fence) return;
    std::vector<uint16_t> &all = slot.fenced_then[slot.segment];
    all.assign(slot.threads, 0);
    for (unsigned t = 0; t < slot.threads; t++)
        join(all.data(), fenced_clocks_of(slot, t), slot.threads);
}

/* May TMA or wgmma, on behalf of `thread`, read what this ordinary access wrote? */
static bool is_fenced(const Access &write, Slot &slot, unsigned thread) {
    if (write.async || write.segment < first_segment_of_launch) return true;
    if (write.segment == slot.segment)
        return fenced_clocks_of(slot, thread)[write.thread] > write.clock;
    uint32_t block = block_of_segment[write.segment - first_segment_of_launch];
    if (block != slot.block || write.segment < slot.fenced_before) return true;
    auto then = slot.fenced_then.find(write.segment);
    return then != slot.fenced_then.end() && then->second[write.thread] > write.clock;
}

void race_arrive(int slot_index, unsigned thread, int barrier) {
    Slot &slot = slots[slot_index];
    if (barrier != 0) release_into(slot, slot.arriving[barrier], thread);
}

void race_release_barrier(const Block *block, int barrier, int expected) {
    Slot &slot = slots[block->slot];
    if (expected == 0) {
        if (slot.any_waited) std::fill(slot.waited.begin(), slot.waited.end(), 1);
        keep_fenced_clocks(slot);
        slot.segment = new_segment(slot.block);
        reset_clocks(slot);
        return;
    }
    slot.released[barrier].swap(slot.arriving[barrier]);
    slot.arriving[barrier].clear();
}

void race_leave(int slot_index, unsigned thread, int barrier) {
    Slot &slot = slots[slot_index];
    acquire_from(slot, slot.released[barrier], thread);
}

void race_warp_barrier(int slot_index, unsigned warp, unsigned lanes) {
    Slot &slot = slots[slot_index];
    std::vector<uint16_t> all;
    for (unsigned lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1) release_into(slot, all, warp * WARP + lane);
    for (unsigned lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1) acquire_from(slot, all, warp * WARP + lane);
}

static void join_view(View &into, const View &from) {
    if (from.segment > into.segment) into = from;
    else if (from.segment == into.segment)
        join(into.clock.data(), from.clock.data(), (unsigned)from.clock.size());
}

/* What is known of other blocks is known to the whole block; of its own, to the thread. */
static void acquire_views(Slot &slot, const Views &views, unsigned thread) {
    for (const auto &entry : views) {
        const View &view = entry.second;
        if (entry.first != slot.block) join_view(slot.foreign[entry.first], view);
        else if (view.segment == slot.segment)
            join(clocks_of(slot, thread), view.clock.data(), slot.threads);
    }
    slot.dirty = true;
}

void race_release(const void *object, int slot_index, unsigned thread) {
    Slot &slot = slots[slot_index];
    release_into(slot, slot.objects[object], thread);
}

void race_acquire(const void *object, int slot_index, unsigned thread) {
    Slot &slot = slots[slot_index];
    auto it = slot.objects.find(object);
    if (it != slot.objects.end()) acquire_from(slot, it->second, thread);
    auto foreign = slot.foreign_objects.find(object);
    if (foreign != slot.foreign_objects.end()) acquire_views(slot, foreign->second, thread);
}

/* To an object in the memory of another block of the cluster (owner: its slot), or of the cluster
   itself (-1). */
void race_release_to(const void *object, int slot_index, unsigned thread, int owner) {
    if (owner == slot_index) return race_release(object, slot_index, thread);
    Slot &slot = slots[slot_index];
    tick(slot, thread);
    const uint16_t *own = clocks_of(slot, thread);
    Views &views = owner < 0 ? cluster_objects[object] : slots[owner].foreign_objects[object];
    join_view(views[slot.block],
              View{slot.segment, std::vector<uint16_t>(own, own + slot.threads)});
    for (const auto &known : slot.foreign) join_view(views[known.first], known.second);
}

void race_acquire_cluster(const void *object, int slot_index, unsigned thread) {
    acquire_views(slots[slot_index], cluster_objects[object], thread);
}

void race_dependency_wait(int slot_index, unsigned thread) {
    slots[slot_index].waited[thread] = 1;
    slots[slot_index].any_waited = true;
}

/* ---- order between blocks ---- */

void race_fence(int slot_index, unsigned thread) { slots[slot_index].fenced[thread] = 1; }

static bool has_bit(const std::vector<uint64_t> &bits, uint32_t index) {
    return index / 64 < bits.size() && (bits[index / 64] >> (index % 64) & 1);
}

static void set_bit(std::vector<uint64_t> &bits, uint32_t index) {
    if (bits.size() <= index / 64) bits.resize(index / 64 + 1);
    bits[index / 64] |= (uint64_t)1 << (index % 64);
}

/* An atomic on device memory acquires what was released at its address, and releases this block's
   writes if a fence stands between them and the atomic. */
static void synchronise_by_atomic(Slot &slot, const void *address, unsigned thread) {
    std::vector<uint64_t> &released = released_by_atomic[address];
    if (slot.acquired.size() < released.size()) slot.acquired.resize(released.size());
    for (size_t i = 0; i < released.size(); i++) slot.acquired[i] |= released[i];
    if (slot.fenced[thread]) set_bit(released, slot.block);
}

static bool happens_before(const Access &earlier, Slot &slot, unsigned thread, bool shared) {
    if (earlier.segment < first_segment_of_launch)
        return earlier.segment < first_concurrent_segment || slot.waited[thread];
    if (earlier.segment == slot.segment)
        return earlier.thread == thread || clocks_of(slot, thread)[earlier.thread] > earlier.clock;
    uint32_t block = block_of_segment[earlier.segment - first_segment_of_launch];
    if (block == slot.block) return true;
    if (!shared) return has_bit(slot.acquired, block);
    auto view = slot.foreign.find(block); /* of the same cluster */
    if (view == slot.foreign.end() || view->second.segment < earlier.segment) return false;
    return view->second.segment > earlier.segment ||
           view->second.clock[earlier.thread] > earlier.clock;
}

/* ---- reports ---- */

static int num_reports;
static auto &reported = *new std::set<std::string>();

static void report_at_exit() {
    fflush(nullptr);
    fprintf(stderr, "CUDASIM: %d race or memory reports\n", num_reports);
    _exit(66);
}

/* False where the same thing was said before, or too much was said already. */
static bool first_time(const std::string &key) {
    if (!reported.insert(key).second) return false;
    if (num_reports++ == 0) atexit(report_at_exit);
    if (num_reports > 20) return false;
    fflush(stdout);
    return true;
}

/* The kernel's line: the access itself, or what called the emulator's code that made it. */
static std::string place_of(uintptr_t pc) {
    std::string place = source_of(pc);
    return place.empty() ? std::string("an emulated instruction") : place;
}

struct Report {
    const char *kind;
    const char *address;
    size_t bytes;
    uintptr_t pc;
};

static void print_report(const Report &r, const Access *other, const char *other_kind) {
    std::string here = place_of(r.pc), there;
    if (other) there = place_of(module_address(other->pc));
    if (!first_time(std::string(r.kind) + here + there)) return;
    fprintf(stderr, "CUDASIM %s: %zu bytes of %s, kernel %s\n", r.kind, r.bytes,
            describe(r.address).c_str(), launch.name);
    fprintf(stderr, "    block (%u,%u,%u) thread %u at %s\n", blockIdx.x, blockIdx.y, blockIdx.z,
            current->index, here.c_str());
    if (!other) return;
    bool this_launch = other->segment >= first_segment_of_launch;
    uint32_t block = this_launch ? block_of_segment[other->segment - first_segment_of_launch] : 0;
    fprintf(stderr, "    %s by %sblock %u thread %u at %s\n", other_kind,
            this_launch || !other->segment ? "" : "the grid before (no grid_dependency_wait), ",
            block, other->thread, there.c_str());
}

/* ---- one access ---- */

struct Context {
    Slot *slot;
    unsigned thread;
    bool shared;
    AccessKind kind;
    Report report;
};

static bool conflicts(const Access &earlier, unsigned mask, const Context &c) {
    if (!(earlier.bytes & mask)) return false;
    if ((c.kind & UNORDERED) && earlier.unordered) return false;
    return !happens_before(earlier, *c.slot, c.thread, c.shared);
}

static void report_conflict(Context &c, const Access &earlier, const char *kind, const char *what) {
    c.report.kind = kind;
    print_report(c.report, &earlier, what);
}

static void check_races(const Cell &cell, unsigned mask, Context &c) {
    if (conflicts(cell.write, mask, c))
        report_conflict(c, cell.write,
                        c.kind & WRITE ? "RACE write-after-write" : "RACE read-after-write",
                        cell.write.unordered ? "earlier atomic" : "earlier write");
    if (c.kind == ASYNC_READ && (cell.write.bytes & mask) &&
        !is_fenced(cell.write, *c.slot, c.thread))
        report_conflict(c, cell.write, "RACE no fence_async_shared", "earlier write");
    if (!(c.kind & WRITE)) return;
    for (const Access &read : cell.reads) {
        if (!conflicts(read, mask, c)) continue;
        report_conflict(c, read, "RACE write-after-read", "earlier read");
        break;
    }
}

static void remember(Cell &cell, unsigned mask, const Context &c) {
    Access now;
    now.segment = c.slot->segment;
    now.pc = (uint32_t)module_offset(c.report.pc);
    now.clock = clocks_of(*c.slot, c.thread)[c.thread];
    now.thread = (uint16_t)(c.thread & 1023);
    now.bytes = (uint16_t)(mask & 3);
    now.unordered = (c.kind & UNORDERED) != 0;
    now.async = (c.kind & ASYNC) != 0;
    if (c.kind & WRITE) {
        cell.write = now;
        cell.initialised |= (uint8_t)mask;
        return;
    }
    const Access &last = cell.reads[0];
    if (last.segment != now.segment || last.thread != now.thread) cell.reads[1] = last;
    cell.reads[0] = now;
}

/* Returns whether the rest of the access is worth looking at. */
static bool check_cell(Cell &cell, unsigned mask, const char *address, Context &c) {
    c.report.address = address;
    if ((cell.allocated & mask) != mask) {
        c.report.kind = c.kind & WRITE ? "OUT-OF-BOUNDS WRITE" : "OUT-OF-BOUNDS READ";
        print_report(c.report, nullptr, nullptr);
        return false;
    }
    if ((c.kind & READ) && (cell.initialised & mask) != mask) {
        c.report.kind = "UNINITIALISED READ";
        print_report(c.report, nullptr, nullptr);
        cell.initialised |= (uint8_t)mask;
    }
    check_races(cell, mask, c);
    remember(cell, mask, c);
    return true;
}

/* Accesses outside device and shared memory: fine in host code, on the thread's own stack, in the
   module's constants and in pinned memory. */
static void check_outside(const void *address, size_t bytes, uintptr_t pc) {
    if (!current || !current->in_kernel_code) return;
    if (on_stack(current, address) || in_module(address)) return;
    if (is_other_thread() || is_pinned(address, bytes)) return;
    Report report{"HOST-MEMORY ACCESS", (const char *)address, bytes, pc};
    print_report(report, nullptr, nullptr);
}

void race_access(const void *address, size_t bytes, AccessKind kind, uintptr_t pc) {
    static const char *const base = memory_base();
    static const size_t space = SHARED_SPACE + device_space();
    bool atomic = (kind & WRITE) && (kind & UNORDERED);
    if ((size_t)((const char *)address - base) >= space) {
        if (atomic && current && in_module(address)) /* a __device__ variable orders blocks too */
            synchronise_by_atomic(slots[current->block->slot], address, current->index);
        return check_outside(address, bytes, pc);
    }
    if (!current)
        fail("host code touches device memory: %s, at %s", describe(address).c_str(),
             source_of(pc).c_str());
    Slot &slot = slots[current->block->slot];
    bool shared = (size_t)((const char *)address - base) < SHARED_SPACE;
    Context context{&slot, current->index, shared, kind,
                    Report{"", (const char *)address, bytes, pc}};
    if (atomic && !shared) synchronise_by_atomic(slot, address, current->index);
    if (kind == WRITE && !shared) slot.fenced[current->index] = 0;
    for_cells(address, bytes, [&](Cell &cell, unsigned mask, const char *at) {
        return check_cell(cell, mask, at, context);
    });
}

/* Copies to the host and library calls must not read what was never written. */
void race_library_read(const void *address, size_t bytes, const char *what) {
    launches_broken = true;
    for_cells(address, bytes, [&](Cell &cell, unsigned mask, const char *at) {
        if ((cell.initialised & mask) == mask) return true;
        if (first_time(std::string("library read ") + what + describe(address)))
            fprintf(stderr, "CUDASIM UNINITIALISED READ by %s: %s\n", what, describe(at).c_str());
        return false;
    });
}

} // namespace cudasim
#endif
