/* Where threads meet: block barriers, warp operations (shuffles, votes, __syncwarp, tensor-core
   instructions) and warpgroup operations. The last to arrive does the work for all. */
#include "emulator.h"

namespace cudasim {

/* Calls visit(i) for i in [0, count), in thread order or against it. */
template <class Visit> static void for_each_in_order(unsigned count, Visit visit) {
    bool descending = options().order == DESCENDING;
    for (unsigned i = 0; i < count; i++) visit(descending ? count - 1 - i : i);
}

/* ---- block barriers ---- */

static void open_barrier(Block *block, int id) {
    Barrier &barrier = block->barrier[id];
    race_release_barrier(block, id, barrier.expected);
    barrier.arrived = 0;
    for_each_in_order(block->threads, [&](unsigned i) {
        Fiber *fiber = block->fiber[i];
        if (fiber->state != State::AT_BARRIER || (int)fiber->wait.mask != id) return;
        fiber->barrier_result = barrier.combined;
        make_ready(fiber);
    });
}

/* The first to arrive says what barrier this is; the others must agree. Different source lines in
   a full barrier mean that the block has diverged. */
static void check_barrier(const Barrier &barrier, int id, int expected, BarrierResult result,
                          const char *file, int line) {
    if (barrier.expected != expected || barrier.result != result)
        fail("barrier %d used with different counts or kinds: %s:%d and %s:%d", id, barrier.file,
             barrier.line, file, line);
    if (expected == 0 && (barrier.line != line || strcmp(barrier.file, file) != 0))
        fail("divergent __syncthreads: this thread at %s:%d while others wait at %s:%d", file, line,
             barrier.file, barrier.line);
}

static void combine(Barrier &barrier, int predicate) {
    int value = predicate != 0;
    switch (barrier.result) {
    case BarrierResult::NONE: break;
    case BarrierResult::OR: barrier.combined |= value; break;
    case BarrierResult::AND: barrier.combined &= value; break;
    case BarrierResult::COUNT: barrier.combined += value; break;
    }
}

int block_barrier(int id, int expected, bool wait, int predicate, BarrierResult result,
                  const char *file, int line) {
    if (!current) fail("barrier outside a kernel");
    if (id < 0 || id >= NUM_BARRIERS) fail("barrier %d: there are only 16", id);
    Block *block = current->block;
    Barrier &barrier = block->barrier[id];
    if (barrier.arrived == 0) {
        int neutral = result == BarrierResult::AND;
        barrier = Barrier{0, expected, neutral, result, file, line};
    }
    check_barrier(barrier, id, expected, result, file, line);
    combine(barrier, predicate);
    barrier.arrived++;
    race_arrive(block->slot, current->index, id);

    int needed = expected ? expected : (int)block->live;
    if (barrier.arrived == needed) {
        current->barrier_result = barrier.combined;
        open_barrier(block, id);
    } else if (wait) {
        current->state = State::AT_BARRIER;
        current->wait = Wait{id ? "bar.sync" : "__syncthreads", file, line, (unsigned)id};
        park();
    }
    if (wait) race_leave(block->slot, current->index, id);
    return current->barrier_result;
}

/* ---- warp operations ---- */

static void finish_warp_operation(Block *block, unsigned warp, size_t index) {
    std::vector<WarpOperation> &list = block->operations[warp];
    WarpOperation operation = list[index];
    list.erase(list.begin() + (long)index);
    operation.function(operation.payload, operation.arrived);
    for_each_in_order(WARP, [&](unsigned lane) {
        if (!(operation.arrived >> lane & 1)) return;
        Fiber *fiber = block->fiber[warp * WARP + lane];
        if (fiber != current) make_ready(fiber);
    });
}

/* The operation of this mask that others already wait in, or a new one. */
static size_t find_warp_operation(std::vector<WarpOperation> &list, unsigned mask, const char *what,
                                  WarpFunction function, const char *file, int line) {
    for (size_t i = 0; i < list.size(); i++) {
        const WarpOperation &other = list[i];
        if (other.mask == mask) {
            bool same = other.what == what || strcmp(other.what, what) == 0;
            if (other.function != function || !same)
                fail("divergent warp operation: this lane in %s at %s:%d, others in %s at %s:%d "
                     "(mask 0x%08x)",
                     what, file, line, other.what, other.file, other.line, mask);
            return i;
        }
        if (other.arrived & mask)
            fail("%s at %s:%d with mask 0x%08x, but lanes 0x%08x of it wait in %s at %s:%d with "
                 "mask "
                 "0x%08x",
                 what, file, line, mask, other.arrived & mask, other.what, other.file, other.line,
                 other.mask);
    }
    list.push_back(WarpOperation{mask, 0, what, file, line, function, {}});
    return list.size() - 1;
}

void warp_operation(unsigned mask, const char *what, void *payload, WarpFunction function,
                    const char *file, int line) {
    if (!current) fail("%s outside a kernel", what);
    Block *block = current->block;
    unsigned lane = current->lane, warp = current->warp;
    if (!(mask >> lane & 1))
        fail("%s at %s:%d: calling lane %u is not in its own mask 0x%08x", what, file, line, lane,
             mask);
    std::vector<WarpOperation> &list = block->operations[warp];
    size_t index = find_warp_operation(list, mask, what, function, file, line);
    list[index].arrived |= 1u << lane;
    list[index].payload[lane] = payload;
    if (list[index].arrived == (mask & block->live_lanes[warp])) {
        finish_warp_operation(block, warp, index);
        return;
    }
    current->state = State::IN_OPERATION;
    current->wait = Wait{what, file, line, mask};
    park();
}

void full_warp_operation(const char *what, void *payload, WarpFunction function, const char *file,
                         int line) {
    unsigned lanes = live_lanes();
    if (lanes != 0xffffffffu)
        fail("%s at %s:%d is .aligned but only lanes 0x%08x of the warp are there", what, file,
             line, lanes);
    warp_operation(0xffffffffu, what, payload, function, file, line);
}

/* ---- warpgroup operations: 128 threads ---- */

void warpgroup_operation(const char *what, void *payload, GroupFunction function, const char *file,
                         int line) {
    Block *block = current->block;
    unsigned group = current->index / WARPGROUP, first = group * WARPGROUP;
    if (first + WARPGROUP > block->threads)
        fail("%s at %s:%d: thread %u is in no complete warpgroup", what, file, line,
             current->index);
    GroupOperation &operation = block->group[group];
    if (operation.arrived == 0) {
        operation.what = what;
        operation.function = function;
    }
    if (operation.function != function)
        fail("divergent warpgroup operation: %s at %s:%d while others wait in %s", what, file, line,
             operation.what);
    operation.payload[current->index - first] = payload;
    if (++operation.arrived < WARPGROUP) {
        current->state = State::IN_OPERATION;
        current->wait = Wait{what, file, line, 0xffffffffu};
        park();
        return;
    }
    operation.arrived = 0;
    function(operation.payload);
    for_each_in_order(WARPGROUP, [&](unsigned i) {
        if (block->fiber[first + i] != current) make_ready(block->fiber[first + i]);
    });
}

/* Exited threads count neither for a full barrier nor for a warp operation's mask. */
void meet_without(Fiber *exited) {
    Block *block = exited->block;
    std::vector<WarpOperation> &list = block->operations[exited->warp];
    unsigned live = block->live_lanes[exited->warp] &= ~(1u << exited->lane);
    for (size_t i = list.size(); i > 0; i--)
        if (list[i - 1].arrived == (list[i - 1].mask & live))
            finish_warp_operation(block, exited->warp, i - 1);
    const Barrier &barrier = block->barrier[0];
    if (barrier.arrived && barrier.expected == 0 && barrier.arrived == (int)block->live)
        open_barrier(block, 0);
}

/* ---- shuffles ---- */

struct ShufflePayload {
    uint64_t value, result;
    int source;
    bool source_missing;
};

static void do_shuffle(void **payload, unsigned lanes) {
    for (int lane = 0; lane < WARP; lane++) {
        if (!(lanes >> lane & 1)) continue;
        ShufflePayload *me = (ShufflePayload *)payload[lane];
        me->source_missing = !(lanes >> me->source & 1);
        if (!me->source_missing) me->result = ((ShufflePayload *)payload[me->source])->value;
    }
}

uint64_t warp_shuffle(unsigned mask, uint64_t value, int source, const char *what, const char *file,
                      int line) {
    ShufflePayload me{value, 0, source & 31, false};
    warp_operation(mask, what, &me, do_shuffle, file, line);
    if (me.source_missing)
        fail("%s at %s:%d: lane %u reads from lane %d, which takes no part (mask 0x%08x)", what,
             file, line, lane_index(), me.source, mask);
    return me.result;
}

/* ---- votes ---- */

struct VotePayload {
    uint64_t value;
    Vote vote;
    unsigned result;
};

static unsigned reduce_pair(Vote vote, unsigned a, unsigned b) {
    switch (vote) {
    case Vote::ADD: return a + b;
    case Vote::MIN: return a < b ? a : b;
    case Vote::MAX: return a > b ? a : b;
    case Vote::SIGNED_MIN: return (int)a < (int)b ? a : b;
    case Vote::SIGNED_MAX: return (int)a > (int)b ? a : b;
    case Vote::AND: return a & b;
    case Vote::OR: return a | b;
    case Vote::XOR: return a ^ b;
    default: return 0;
    }
}

static unsigned lanes_with_value(void **payload, unsigned lanes, uint64_t value) {
    unsigned mask = 0;
    for (int lane = 0; lane < WARP; lane++)
        if (lanes >> lane & 1 && ((VotePayload *)payload[lane])->value == value) mask |= 1u << lane;
    return mask;
}

static void do_vote(void **payload, unsigned lanes) {
    unsigned reduced = 0;
    bool first = true;
    for (int lane = 0; lane < WARP; lane++) {
        if (!(lanes >> lane & 1)) continue;
        VotePayload *me = (VotePayload *)payload[lane];
        if (me->vote == Vote::BALLOT) reduced |= (me->value ? 1u : 0u) << lane;
        else if (first) reduced = (unsigned)me->value;
        else reduced = reduce_pair(me->vote, reduced, (unsigned)me->value);
        first = false;
    }
    for (int lane = 0; lane < WARP; lane++) {
        if (!(lanes >> lane & 1)) continue;
        VotePayload *me = (VotePayload *)payload[lane];
        me->result =
            me->vote == Vote::MATCH ? lanes_with_value(payload, lanes, me->value) : reduced;
    }
}

unsigned warp_vote(unsigned mask, uint64_t value, Vote vote, const char *what, const char *file,
                   int line) {
    VotePayload me{value, vote, 0};
    warp_operation(mask, what, &me, do_vote, file, line);
    return me.result;
}

/* ---- __syncwarp ---- */

static void do_warp_barrier(void **, unsigned lanes) {
    race_warp_barrier(current->block->slot, current->warp, lanes);
}

void warp_barrier(unsigned mask, const char *file, int line) {
    warp_operation(mask, "__syncwarp", nullptr, do_warp_barrier, file, line);
}

} // namespace cudasim
