/* The instructions of llmc/kernels/ptx.cuh on the CPU: cp.async, ldmatrix, mma.sync. */
#include "emulator.h"
#include "../device/float16.h"
#include "../device/hopper.h"
#include "../device/ptx.h"

namespace cudasim {

static void require_shared(const void *address, const char *what) {
    if (!in_window(current->block, address))
        fail("%s: %p is not shared memory", what, address);
}

/* ---- cp.async: issued now, copied when waited for; until then the target holds nothing ---- */

static void carry_out(const PendingCopy &copy) {
    size_t in_bytes = (size_t)copy.in_bytes, bytes = (size_t)copy.bytes;
    check_read(copy.in, in_bytes, copy.pc);
    check_write(copy.out, bytes, copy.pc);
    memcpy(copy.out, copy.in, in_bytes);
    memset(copy.out + in_bytes, 0, bytes - in_bytes);
}

void cp_async(void *out, const void *in, int bytes, int in_bytes) {
    if (((uintptr_t)out | (uintptr_t)in) % (unsigned)bytes)
        fail("cp.async: %p or %p is not aligned to %d bytes", out, in, bytes);
    if (in_bytes < 0 || in_bytes > bytes) fail("cp.async: source size %d of %d", in_bytes, bytes);
    require_shared(out, "cp.async destination");
    uintptr_t pc = CUDASIM_CALLER;
    PendingCopy copy{(char *)out, (const char *)in, bytes, in_bytes, current->copy_group, pc};
    if (!options().copies_late) return carry_out(copy);
    check_read(in, (size_t)in_bytes, pc); /* now or at the wait: both must be legal */
    check_late_write(out, (size_t)bytes, pc);
    current->copies.push_back(copy);
}

void cp_async_commit() { current->copy_group++; }

void finish_copies(int groups_left) {
    std::vector<PendingCopy> &copies = current->copies;
    size_t done = 0;
    while (done < copies.size() && copies[done].group < current->copy_group - groups_left)
        carry_out(copies[done++]);
    copies.erase(copies.begin(), copies.begin() + (long)done);
}

void cp_async_wait(int groups_left) { finish_copies(groups_left); }

/* ---- ldmatrix: lane 8 m + i gives the address of row i of matrix m ---- */

struct LoadPayload {
    const void *row;
    uint32_t result[4];
};

static void load_matrix(void **payload, int matrix, bool transposed) {
    uint16_t element[8][8];
    for (int i = 0; i < 8; i++)
        memcpy(element[i], ((LoadPayload *)payload[matrix * 8 + i])->row, 16);
    for (int lane = 0; lane < WARP; lane++) {
        int row = lane / 4, pair = lane % 4 * 2;
        uint16_t low = transposed ? element[pair][row] : element[row][pair];
        uint16_t high = transposed ? element[pair + 1][row] : element[row][pair + 1];
        ((LoadPayload *)payload[lane])->result[matrix] = low | (uint32_t)high << 16;
    }
}

template <int matrices, bool transposed> static void do_load(void **payload, unsigned) {
    for (int m = 0; m < matrices; m++) load_matrix(payload, m, transposed);
}

void ldmatrix(uint32_t *out, int matrices, bool transposed, const void *row, const char *file,
              int line) {
    if (lane_index() < (unsigned)matrices * 8) {
        if ((uintptr_t)row % 16) fail("ldmatrix at %s:%d: row %p is not aligned to 16 bytes", file,
                                      line, row);
        require_shared(row, "ldmatrix");
        check_read(row, 16, CUDASIM_CALLER);
    }
    LoadPayload me{row, {}};
    WarpFunction function = matrices == 4 ? (transposed ? do_load<4, true> : do_load<4, false>)
                                          : (transposed ? do_load<2, true> : do_load<2, false>);
    full_warp_operation(matrices == 4 ? "ldmatrix.x4" : "ldmatrix.x2", &me, function, file, line);
    memcpy(out, me.result, (size_t)matrices * 4);
}

/* ---- stmatrix: the same the other way ---- */

struct StorePayload {
    void *row;
    const uint32_t *in;
};

template <bool transposed> static void do_store(void **payload, unsigned) {
    for (int matrix = 0; matrix < 4; matrix++) {
        uint16_t element[8][8];
        for (int lane = 0; lane < WARP; lane++) {
            uint32_t pair = ((StorePayload *)payload[lane])->in[matrix];
            int row = lane / 4, column = lane % 4 * 2;
            for (int i = 0; i < 2; i++)
                (transposed ? element[column + i][row] : element[row][column + i]) =
                    (uint16_t)(pair >> 16 * i);
        }
        for (int i = 0; i < 8; i++)
            memcpy(((StorePayload *)payload[matrix * 8 + i])->row, element[i], 16);
    }
}

void stmatrix(void *row, bool transposed, const uint32_t *in, const char *file, int line) {
    if ((uintptr_t)row % 16)
        fail("stmatrix at %s:%d: row %p is not aligned to 16 bytes", file, line, row);
    require_shared(row, "stmatrix");
    check_write(row, 16, CUDASIM_CALLER);
    StorePayload me{row, in};
    full_warp_operation("stmatrix.x4", &me, transposed ? do_store<true> : do_store<false>, file,
                        line);
}

/* ---- mma.sync.m16n8k16.row.col, fp32 accumulation. Which lane holds what: PTX ISA, "Matrix
   Fragments for mma.m16n8k16 with floating point type". ---- */

struct MmaPayload {
    float *d;
    const uint32_t *a, *b;
    const float *c;
};

template <float to_float(uint16_t)> static void do_mma(void **payload, unsigned) {
    float a[16][16], b[16][8], c[16][8];
    for (int lane = 0; lane < WARP; lane++) {
        const MmaPayload *p = (const MmaPayload *)payload[lane];
        int row = lane / 4, column = lane % 4 * 2;
        for (int i = 0; i < 8; i++) /* 4 registers of 2 elements */
            a[row + 8 * (i >> 1 & 1)][column + (i & 1) + 8 * (i >> 2)] =
                to_float((uint16_t)(p->a[i >> 1] >> 16 * (i & 1)));
        for (int i = 0; i < 4; i++)
            b[column + (i & 1) + 8 * (i >> 1)][row] =
                to_float((uint16_t)(p->b[i >> 1] >> 16 * (i & 1)));
        for (int i = 0; i < 4; i++) c[row + 8 * (i >> 1)][column + (i & 1)] = p->c[i];
    }
    for (int i = 0; i < 16; i++) {
        float sum[8] = {0};
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) sum[j] += a[i][k] * b[k][j];
        for (int j = 0; j < 8; j++) c[i][j] += sum[j];
    }
    for (int lane = 0; lane < WARP; lane++) {
        const MmaPayload *p = (const MmaPayload *)payload[lane];
        for (int i = 0; i < 4; i++)
            p->d[i] = c[lane / 4 + 8 * (i >> 1)][lane % 4 * 2 + (i & 1)];
    }
}

void mma_bf16(float *d, const uint32_t *a, const uint32_t *b, const float *c, const char *file,
              int line) {
    MmaPayload me{d, a, b, c};
    full_warp_operation("mma.m16n8k16.bf16", &me, do_mma<bf16_to_float>, file, line);
}

void mma_half(float *d, const uint32_t *a, const uint32_t *b, const float *c, const char *file,
              int line) {
    MmaPayload me{d, a, b, c};
    full_warp_operation("mma.m16n8k16.f16", &me, do_mma<half_to_float>, file, line);
}

/* ---- fences and barriers ---- */

void device_fence() {
    if (current) race_fence(current->block->slot, current->index);
}

} // namespace cudasim
