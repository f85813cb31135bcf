/* wgmma: operands are read when a product is issued (they must be there) and again at wait_group
   (nothing may have changed them); results appear at the wait. Until then the sums in the kernel's
   registers are NaNs that nobody may overwrite. Fragments and descriptors: PTX ISA, "Register
   Fragments for wgmma.mma_async", "Matrix Descriptor Format". */
#include "../device/hopper.h"
#include "emulator.h"

namespace cudasim {

enum { TILE = 64, DEPTH = 16, MAX_N = 256 };

/* What sums in flight hold: a signalling NaN, which no arithmetic leaves as it is. */
static const uint32_t IN_FLIGHT = 0x7fa5a5a5;

struct Product {
    ProductShape shape;
    uint64_t a, b; /* descriptors */
    int accumulate, group;
    float *d[WARPGROUP];
    uint32_t registers[WARPGROUP][4];
    uint64_t hash; /* of the operands in shared memory, at the issue */
    unsigned reader; /* the thread for which they were read then */
    uintptr_t pc;
};

/* The true values of sums that hold NaNs in the kernel's registers meanwhile. */
struct Accumulator {
    int n;
    float *d[WARPGROUP];
    std::vector<float> value; /* 64 x n */
};

struct Warpgroup {
    uint64_t block_serial;
    bool fenced;
    int group;
    std::vector<Product> products;
    std::vector<Accumulator> accumulators;
};

static Warpgroup &warpgroup_of(const Block *block, unsigned index) {
    static Warpgroup all[MAX_WINDOWS][MAX_THREADS / WARPGROUP];
    Warpgroup &w = all[block->slot][index];
    if (w.block_serial != block->serial) {
        w = Warpgroup();
        w.block_serial = block->serial;
    }
    return w;
}
static Warpgroup &current_warpgroup() {
    return warpgroup_of(current->block, current->index / WARPGROUP);
}

/* ---- operands in shared memory ---- */

struct Operand {
    size_t start, leading, stride;
    bool trans; /* rows of 64 elements of M or N, one k each */
    int rows;
};

static Operand decode(uint64_t descriptor, bool trans, int rows, const char *name) {
    Operand o{(size_t)(descriptor & 0x3fff) << 4, (size_t)(descriptor >> 16 & 0x3fff) << 4,
              (size_t)(descriptor >> 32 & 0x3fff) << 4, trans, rows};
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7))
        fail("wgmma: %s's descriptor has swizzle mode %d, base offset %d; emulated are 1 and 0",
             name, (int)(descriptor >> 62), (int)(descriptor >> 49 & 7));
    if (o.stride % 1024 || !o.stride)
        fail("wgmma: %s's groups of 8 rows lie %zu bytes apart, not a multiple of 1024", name,
             o.stride);
    if (trans != (o.leading != 16))
        fail("wgmma: %s is read %s, and its descriptor says otherwise", name,
             trans ? "transposed (TRANS = 1)" : "K-contiguous (TRANS = 0)");
    if (trans && (o.leading % 1024 || o.start % 1024))
        fail("wgmma: %s starts at byte %zu, its blocks of 64 lie %zu bytes apart: not multiples of "
             "1024", name, o.start, o.leading);
    if (!trans && (o.start % 1024 >= 128 || o.start % 128 % 32))
        fail("wgmma: %s starts at byte %zu, which is none of k = 0, 16, 32, 48 of the first row of "
             "a tile aligned to 1024", name, o.start);
    return o;
}

/* Calls visit(address, row of M or N, k) for every 16 bytes, 8 elements along the row of memory. */
template <class Visit> static void for_chunks(const Operand &o, Visit visit) {
    int outer = o.trans ? DEPTH : o.rows, inner = o.trans ? o.rows : DEPTH;
    for (int r = 0; r < outer; r++) {
        for (int c = 0; c < inner; c += 8) {
            size_t linear = o.start + (size_t)(r / 8) * o.stride + (size_t)(r % 8) * 128 +
                            (size_t)(c / 64) * o.leading + (size_t)(c % 64) * 2;
            size_t physical = linear ^ ((linear >> 7 & 7) << 4);
            visit(shared_window() + physical, o.trans ? c : r, o.trans ? r : c);
        }
    }
}

static void check_operand(const Operand &o, uint64_t &hash, uintptr_t pc) {
    for_chunks(o, [&](const char *address, int, int) {
        check_async_read(address, 16, pc);
        uint64_t part[2];
        memcpy(part, address, 16);
        hash = (hash ^ part[0]) * 0x9e3779b97f4a7c15u;
        hash = (hash ^ part[1] ^ hash >> 29) * 0xbf58476d1ce4e5b9u;
    });
}

static uint64_t check_operands(const Product &p) {
    uint64_t hash = 1;
    if (!p.shape.a_in_registers)
        check_operand(decode(p.a, p.shape.trans_a, TILE, "a"), hash, p.pc);
    check_operand(decode(p.b, p.shape.trans_b, p.shape.n, "b"), hash, p.pc);
    return hash;
}

static float element_value(uint16_t bits, bool bf16) {
    return bf16 ? bf16_to_float(bits) : half_to_float(bits);
}

/* out: [DEPTH][rows] */
static void read_operand(float *out, const Operand &o, bool bf16) {
    for_chunks(o, [&](const char *address, int row, int k) {
        for (int i = 0; i < 8; i++) {
            uint16_t bits;
            memcpy(&bits, address + 2 * i, 2);
            int at = o.trans ? k * o.rows + row + i : (k + i) * o.rows + row;
            out[at] = element_value(bits, bf16);
        }
    });
}

static void read_registers(float *out, const Product &p) {
    for (int t = 0; t < WARPGROUP; t++) {
        for (int i = 0; i < 8; i++) {
            int row = t / WARP * 16 + t % WARP / 4 + 8 * (i >> 1 & 1);
            int k = t % 4 * 2 + (i & 1) + 8 * (i >> 2);
            uint16_t bits = (uint16_t)(p.registers[t][i >> 1] >> 16 * (i & 1));
            out[k * TILE + row] = element_value(bits, p.shape.bf16);
        }
    }
}

/* ---- products ---- */

static Accumulator *find_accumulator(Warpgroup &w, float *const *d) {
    for (Accumulator &a : w.accumulators)
        if (a.d[0] == d[0]) return &a;
    return nullptr;
}

/* Register i of thread t is this place of the 64 x n sums. */
static size_t place_of(int t, int i, int n) {
    int row = t / WARP * 16 + t % WARP / 4 + 8 * (i >> 1 & 1);
    int column = i / 4 * 8 + t % 4 * 2 + (i & 1);
    return (size_t)(row * n + column);
}

static void take_registers(Warpgroup &w, const Product &p) {
    w.accumulators.emplace_back();
    Accumulator &a = w.accumulators.back();
    a.n = p.shape.n;
    a.value.resize((size_t)(TILE * a.n));
    for (int t = 0; t < WARPGROUP; t++) {
        a.d[t] = p.d[t];
        for (int i = 0; i < a.n / 2; i++) a.value[place_of(t, i, a.n)] = a.d[t][i];
        for (int i = 0; i < a.n / 2; i++) memcpy(&a.d[t][i], &IN_FLIGHT, sizeof(float));
    }
}

static void give_registers_back(const Accumulator &a) {
    for (int t = 0; t < WARPGROUP; t++) {
        for (int i = 0; i < a.n / 2; i++) {
            uint32_t bits;
            memcpy(&bits, &a.d[t][i], 4);
            if (bits != IN_FLIGHT)
                fail("wgmma: thread %d wrote to register %d of the sums before wgmma.wait_group", t,
                     i);
            a.d[t][i] = a.value[place_of(t, i, a.n)];
        }
    }
}

static void multiply(Accumulator &sums, const Product &p) {
    static float a[DEPTH * TILE], b[DEPTH * MAX_N], row[MAX_N];
    int n = p.shape.n;
    if (p.shape.a_in_registers) read_registers(a, p);
    else read_operand(a, decode(p.a, p.shape.trans_a, TILE, "a"), p.shape.bf16);
    read_operand(b, decode(p.b, p.shape.trans_b, n, "b"), p.shape.bf16);
    for (int i = 0; i < TILE; i++) {
        float *out = &sums.value[(size_t)(i * n)];
        for (int j = 0; j < n; j++) row[j] = 0;
        for (int k = 0; k < DEPTH; k++)
            for (int j = 0; j < n; j++) row[j] += a[k * TILE + i] * b[k * n + j];
        for (int j = 0; j < n; j++) out[j] = p.accumulate ? out[j] + row[j] : row[j];
    }
}

/* The sums that no product in flight adds to. */
static void deliver(Warpgroup &w) {
    for (size_t i = 0; i < w.accumulators.size();) {
        bool in_flight = false;
        for (const Product &p : w.products) in_flight |= p.d[0] == w.accumulators[i].d[0];
        if (in_flight) {
            i++;
            continue;
        }
        give_registers_back(w.accumulators[i]);
        w.accumulators.erase(w.accumulators.begin() + (long)i);
        w.fenced = false;
    }
}

struct IssuePayload {
    ProductShape shape;
    float *d;
    const uint32_t *registers;
    uint64_t a, b;
    int accumulate;
    uintptr_t pc;
};

static void do_issue(void **payload) {
    Warpgroup &w = current_warpgroup();
    const IssuePayload *first = (const IssuePayload *)payload[0];
    Product product{first->shape, first->a, first->b, first->accumulate, w.group, {}, {}, 0,
                    current->index, first->pc};
    for (int t = 0; t < WARPGROUP; t++) {
        const IssuePayload *p = (const IssuePayload *)payload[t];
        if (!(p->shape == first->shape) || p->a != first->a || p->b != first->b ||
            !p->accumulate != !first->accumulate)
            fail("wgmma: thread %d of the warpgroup has other operands than thread 0", t);
        product.d[t] = p->d;
        if (p->registers) memcpy(product.registers[t], p->registers, sizeof product.registers[t]);
    }
    Accumulator *sums = find_accumulator(w, product.d);
    if (!w.fenced && (!sums || product.shape.a_in_registers))
        fail("wgmma without wgmma.fence since the registers were last touched");
    if (sums && sums->n != product.shape.n)
        fail("wgmma: products of width %d and %d in flight to the same registers", sums->n,
             product.shape.n);
    product.hash = check_operands(product);
    if (!sums) take_registers(w, product);
    w.products.push_back(product);
}

static void do_fence(void **) { current_warpgroup().fenced = true; }
static void do_commit(void **) { current_warpgroup().group++; }

static void do_wait(void **payload) {
    Warpgroup &w = current_warpgroup();
    int groups_left = *(const int *)payload[0];
    const Block *block = current->block;
    size_t done = 0;
    while (done < w.products.size() && w.products[done].group < w.group - groups_left) {
        const Product &product = w.products[done++];
        if (check_operands(product) != product.hash)
            fail("wgmma: a tile changed while a product was reading it");
        multiply(*find_accumulator(w, product.d), product);
        race_release(&w, block->slot, product.reader);
    }
    w.products.erase(w.products.begin(), w.products.begin() + (long)done);
    deliver(w);
    /* The reads were those of the whole warpgroup: any of its threads may now hand the tile on. */
    unsigned first = current->index / WARPGROUP * WARPGROUP;
    race_release(&w, block->slot, current->index);
    for (unsigned t = 0; t < WARPGROUP; t++) race_acquire(&w, block->slot, first + t);
}

void wgmma_wait(int groups_left, const char *file, int line) {
    warpgroup_operation("wgmma.wait_group", &groups_left, do_wait, file, line);
}

void wgmma(ProductShape shape, float *d, const uint32_t *registers, uint64_t a, uint64_t b,
           int accumulate, const char *file, int line) {
    IssuePayload me{shape, d, registers, a, b, accumulate, CUDASIM_CALLER};
    warpgroup_operation("wgmma.mma_async", &me, do_issue, file, line);
}

void check_no_products(const Block *block, unsigned index) {
    if (index / WARPGROUP * WARPGROUP + WARPGROUP > block->threads) return;
    if (!warpgroup_of(block, index / WARPGROUP).products.empty())
        fail("the thread exits before wgmma.wait_group");
}

/* ---- setmaxnreg ---- */

enum { REGISTERS = 65536 };

struct RegisterPayload {
    bool more;
    int count;
};

static int registers_at_launch(const Block *block) {
    int each = REGISTERS / (int)((block->threads + WARPGROUP - 1) / WARPGROUP * WARPGROUP);
    return each >= 256 ? 256 : each / 8 * 8;
}

static void do_set_registers(void **payload) {
    Block *block = current->block;
    const RegisterPayload *first = (const RegisterPayload *)payload[0];
    for (int t = 0; t < WARPGROUP; t++) {
        const RegisterPayload *p = (const RegisterPayload *)payload[t];
        if (p->more != first->more || p->count != first->count)
            fail("setmaxnreg: the threads of a warpgroup ask for different numbers");
    }
    int &mine = block->registers[current->index / WARPGROUP], launched = registers_at_launch(block);
    if (!mine) mine = launched;
    if (first->more ? first->count < mine : first->count > mine)
        fail("setmaxnreg: %s to %d registers, but the thread has %d", first->more ? "up" : "down",
             first->count, mine);
    mine = first->count;
    int sum = 0;
    unsigned groups = (block->threads + WARPGROUP - 1) / WARPGROUP;
    for (unsigned g = 0; g < groups; g++) {
        if (!block->registers[g]) return; /* this group may still give some back */
        sum += block->registers[g] * WARPGROUP;
    }
    if (sum > REGISTERS)
        fail("setmaxnreg: the warpgroups ask for %d registers, and there are %d", sum, REGISTERS);
}

void set_registers(bool more, int count, const char *file, int line) {
    RegisterPayload me{more, count};
    warpgroup_operation("setmaxnreg", &me, do_set_registers, file, line);
}

} // namespace cudasim

using namespace cudasim;

static uint64_t shared_start(const void *shared) {
    if (!in_window(current->block, shared))
        fail("wgmma: a descriptor of what is not shared memory");
    return ((size_t)((const char *)shared - shared_window()) & 0x3ffff) >> 4;
}

uint64_t wgmma_descriptor(const void *shared) {
    return shared_start(shared) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}

uint64_t wgmma_descriptor_mn(const void *shared, unsigned block_bytes) {
    return shared_start(shared) | (uint64_t)(block_bytes >> 4) << 16 |
           (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

void wgmma_fence(const char *file, int line) {
    warpgroup_operation("wgmma.fence", nullptr, do_fence, file, line);
}

void wgmma_commit(const char *file, int line) {
    warpgroup_operation("wgmma.commit_group", nullptr, do_commit, file, line);
}
