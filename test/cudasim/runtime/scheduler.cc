/* Which thread runs next. Threads switch only where they wait (barriers, warp operations,
   conditions) or yield, and go straight from one to the next; the scheduler proper runs when none
   is ready. */
#include "emulator.h"
#include <algorithm>
#include <map>
#include <unistd.h>

namespace cudasim {

Launch launch;
AsyncEngine async_engine;

static auto &resident = *new std::vector<Block *>(); /* never destroyed: LeakSanitizer looks late */
static auto &waiters = *new std::vector<Fiber *>();  /* on a condition */
static unsigned next_block, num_blocks;
static bool a_block_finished;

const std::vector<Block *> &resident_blocks() { return resident; }
unsigned blocks_not_started() { return num_blocks - next_block; }

/* ---- the ready queue: first in, first out, or any order ---- */

static auto &ready = *new std::vector<Fiber *>();
static size_t ready_head;

static bool nobody_ready() { return ready_head == ready.size(); }

void make_ready(Fiber *fiber) {
    fiber->state = State::READY;
    ready.push_back(fiber);
}

static Fiber *take_ready() {
    if (nobody_ready()) return nullptr;
    if (options().order == RANDOM) {
        size_t pick = ready_head + random_number() % (ready.size() - ready_head);
        std::swap(ready[ready_head], ready[pick]);
    }
    Fiber *fiber = ready[ready_head++];
    if (nobody_ready()) {
        ready.clear();
        ready_head = 0;
    } else if (ready_head > 4096) { /* keep a long-lived queue from growing */
        ready.erase(ready.begin(), ready.begin() + (long)ready_head);
        ready_head = 0;
    }
    return fiber;
}

/* ---- waiting ---- */

/* A finished block is put away before anything else runs: its window may be needed. */
void park() { switch_fiber(a_block_finished ? nullptr : take_ready()); }

void yield_thread() {
    if (!current) return;
    make_ready(current);
    park();
}

void fuzz() {
    if (current && options().order == RANDOM && random_number() % 8 == 0) yield_thread();
}

void wake_conditions() {
    for (size_t i = 0; i < waiters.size();) {
        if ((*waiters[i]->condition)()) {
            make_ready(waiters[i]);
            waiters[i] = waiters.back();
            waiters.pop_back();
        } else {
            i++;
        }
    }
}

static bool async_pending(const Fiber *waiter) {
    return async_engine.pending && async_engine.pending(waiter->block);
}

/* Asynchronous work is done late, when nothing else can run (or at random): the latest
   moment that CUDA allows, which shows missing waits. */
void wait_until(const std::function<bool()> &condition, const char *what, const char *file,
                int line) {
    while (!condition()) {
        bool impatient = options().order == RANDOM && random_number() % 4 == 0;
        if (async_pending(current) && (nobody_ready() || impatient)) {
            async_engine.step();
            continue;
        }
        current->state = State::ON_CONDITION;
        current->wait = Wait{what, file, line, 0};
        current->condition = &condition;
        waiters.push_back(current);
        park();
    }
}

/* Called when no thread is ready: a condition may have come true, or a waiter can do pending
   work. */
static Fiber *find_runnable() {
    if (Fiber *fiber = take_ready()) return fiber;
    wake_conditions();
    if (Fiber *fiber = take_ready()) return fiber;
    for (size_t i = waiters.size(); i > 0; i--) {
        Fiber *fiber = waiters[i - 1];
        if (!async_pending(fiber)) continue;
        waiters.erase(waiters.begin() + (long)(i - 1));
        fiber->state = State::READY;
        return fiber;
    }
    return nullptr;
}

/* ---- the deadlock report: threads grouped by what they wait for ---- */

static std::string describe_wait(const Fiber *fiber) {
    char text[512];
    const Wait &w = fiber->wait;
    if (fiber->state == State::DONE) return "exited";
    if (fiber->waits_for) {
        snprintf(text, sizeof text, "waiting in %s at %s:%d",
                 describe_mbarrier(fiber->waits_for).c_str(), w.file, w.line);
        return text;
    }
    if (fiber->state == State::IN_OPERATION)
        snprintf(text, sizeof text, "waiting in %s (mask 0x%08x) at %s:%d", w.what, w.mask, w.file,
                 w.line);
    else snprintf(text, sizeof text, "waiting in %s at %s:%d", w.what, w.file, w.line);
    return text;
}

static void print_waiting_groups(const Block *block) {
    struct Group {
        int count;
        std::string members;
    };
    std::map<std::string, Group> groups;
    for (unsigned i = 0; i < block->threads; i++) {
        Group &group = groups[describe_wait(block->fiber[i])];
        group.count++;
        if (group.count <= 8) group.members += " " + std::to_string(i);
        if (group.count == 9) group.members += " ...";
    }
    for (const auto &entry : groups)
        fprintf(stderr, "    block (%u,%u,%u): %d threads %s:%s\n", block->position.x,
                block->position.y, block->position.z, entry.second.count, entry.first.c_str(),
                entry.second.members.c_str());
}

[[noreturn]] static void report_deadlock() {
    fflush(stdout);
    fprintf(stderr, "CUDASIM ERROR: deadlock in kernel %s launched at %s:%d: no thread can run\n",
            launch.name, launch.file, launch.line);
    for (const Block *block : resident) print_waiting_groups(block);
    fflush(stderr);
    _exit(86);
}

/* ---- running a grid ---- */

/* What every fiber runs: the kernel of the launch in hand, then a pause, for ever. */
void thread_main() {
    for (;;) {
        (*launch.body)();
        Fiber *me = current;
        finish_copies(0);
        finish_stores();
        check_no_products(me->block, me->index);
        me->state = State::DONE;
        me->block->live--;
        meet_without(me);
        cluster_without(me);
        if (me->block->live == 0) {
            check_no_loads(me->block);
            a_block_finished = true;
        }
        park();
    }
}

/* Of blocks, or of clusters. */
static std::vector<unsigned> start_order(unsigned count) {
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; i++) order[i] = i;
    if (options().order == DESCENDING) std::reverse(order.begin(), order.end());
    if (options().order == RANDOM)
        for (unsigned i = count; i > 1; i--) std::swap(order[i - 1], order[random_number() % i]);
    return order;
}

static void put_away_finished_blocks() {
    a_block_finished = false;
    for (size_t i = 0; i < resident.size();) {
        if (resident[i]->live > 0) {
            i++;
            continue;
        }
        finish_block(resident[i]);
        resident[i] = resident.back();
        resident.pop_back();
    }
}

/* Cluster number `index` of the grid. */
static void start_cluster(unsigned index) {
    const dim3 &c = launch.config.cluster, &grid = launch.config.grid;
    unsigned across = grid.x / c.x, down = grid.y / c.y;
    unsigned x0 = index % across * c.x, y0 = index / across % down * c.y,
             z0 = index / across / down * c.z;
    Cluster *cluster = new Cluster();
    for (unsigned i = 0; i < c.x * c.y * c.z; i++) {
        unsigned x = x0 + i % c.x, y = y0 + i / c.x % c.y, z = z0 + i / c.x / c.y;
        resident.push_back(start_block((z * grid.y + y) * grid.x + x, cluster));
    }
}

void run_grid(const Launch &what) {
    launch = what;
    blockDim = what.config.block;
    gridDim = what.config.grid;
    race_begin_launch();
    const dim3 &c = what.config.cluster;
    unsigned each = c.x * c.y * c.z;
    num_blocks = gridDim.x * gridDim.y * gridDim.z;
    next_block = 0;
    std::vector<unsigned> order = start_order(num_blocks / each);
    size_t capacity = options().resident > 0 ? (size_t)options().resident : 1;
    if (capacity > MAX_WINDOWS) capacity = MAX_WINDOWS;
    watch(true);
    for (;;) {
        while (next_block < num_blocks &&
               (resident.empty() || resident.size() + each <= capacity)) {
            start_cluster(order[next_block / each]);
            next_block += each;
        }
        if (resident.empty()) break;
        Fiber *fiber = find_runnable();
        if (!fiber) report_deadlock();
        switch_fiber(fiber);
        if (a_block_finished) put_away_finished_blocks();
    }
    watch(false);
}

} // namespace cudasim
