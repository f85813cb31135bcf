/* Drawing the next token, without the R x V logits.

   Gumbel-max: the v with the largest z_v - log(-log u_v) is a draw from softmax(z) (z = E W^T /
   temperature). The noise depends on (v, position, sample, ordinal) and not on the place in a
   batch. So the maximum may be taken piece by piece, and each piece's log-sum-exp with it:

       (tile of the vocabulary, group of rows) -> a partial draw per row -> merged in tile order

   Within a tile the outer logarithm is not taken: the winner has the largest e^(z_v - m) / -log u_v
   and e^(z - m) has been computed for the log-sum-exp.

   Products are those of packed.h, the partition depends on V only, and a row is merged by itself: a
   row's draw, log-probability and entropy have the same bits in any batch. */
#include "cpu.h"
#include "packed.h"
#include "row_state.h"
#include "../base/rng.h"

enum {
    TILE = 512,              /* vocabulary columns whose logits exist at once */
    GROUP_PARTS = 5,         /* so many row parts of packed.h (64 rows) share a weight block */
    GROUP = GROUP_PARTS * PACKED_ROWS,
    LANES = 8                /* Philox counters side by side */
};

/* The statistics and the winner of one tile in one row. */
struct Draw {
    struct RowState state;
    float score; /* of the winner: z - log(-log u), or z when greedy */
    float logit; /* z of the winner */
    int token;
};

typedef uint64_t vec8u __attribute__((vector_size(64), may_alias));

/* bits [>= n, rounded up to 32] = the random words of vocabulary indices first .. first + n - 1:
   philox() of rng.h for LANES counters at a time. A lane has 64 bits because the product of two
   32-bit words has; between the rounds its upper half is ignored. */
static void fill_words(uint32_t *bits, int n, int first, const uint32_t counter[3],
                       const uint32_t key[2]) {
    const vec8u low = (vec8u){0} + 0xffffffffu, lane = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int v = 0; v < n; v += 4 * LANES) {
        vec8u c0 = lane + (uint64_t)(first + v) / 4, c1 = (vec8u){0} + counter[0];
        vec8u c2 = (vec8u){0} + counter[1], c3 = (vec8u){0} + counter[2];
        uint32_t k0 = key[0], k1 = key[1];
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
            vec8u a = (c0 & low) * 0xD2511F53u, b = (c2 & low) * 0xCD9E8D57u;
            c0 = (b >> 32) ^ c1 ^ k0;
            c1 = b;
            c2 = (a >> 32) ^ c3 ^ k1;
            c3 = a;
        }
        vec8u words01 = (c0 & low) | c1 << 32, words23 = (c2 & low) | c3 << 32;
        vec8u *out = (vec8u *)(bits + v);
        out[0] = __builtin_shufflevector(words01, words23, 0, 8, 1, 9, 2, 10, 3, 11);
        out[1] = __builtin_shufflevector(words01, words23, 4, 12, 5, 13, 6, 14, 7, 15);
    }
}

/* The first index where x [n] equals its maximum; the last one of all if x is NaN there. */
static int find_maximum(const float *x, int n) {
    float maximum = row_maximum(x, n);
    int first = n - 1;
    #pragma omp simd reduction(min : first)
    for (int j = 0; j < n; j++) {
        int here = x[j] == maximum ? j : n - 1;
        first = here < first ? here : first;
    }
    return first;
}

/* The draw among z [n], the logits of vocabulary indices first .. first + n - 1. */
static struct Draw draw_from_tile(const float *z, int n, int first, const uint32_t counter[3],
                                  const uint32_t key[2], bool greedy) {
    _Alignas(64) float weight[TILE];
    struct Draw draw = {.state = row_state(weight, z, n)};
    int winner;
    if (greedy) {
        winner = find_maximum(z, n);
        draw.score = draw.state.m;
    } else {
        _Alignas(64) uint32_t bits[TILE];
        fill_words(bits, n, first, counter, key);
        #pragma omp simd
        for (int j = 0; j < n; j++) weight[j] /= -vm_log(rng_uniform(bits[j]));
        winner = find_maximum(weight, n);
        draw.score = draw.state.m + vm_log(weight[winner]);
    }
    draw.logit = z[winner];
    draw.token = first + winner;
    return draw;
}

/* Partial draws of one tile for the rows of group `group`; draws [R][tiles]. */
static void draw_tile(struct Draw *draws, const float *E, const void *packed,
                      const struct DecodeRows *rows, const uint32_t key[2], int tile, int group,
                      const struct Head *head, int R) {
    _Alignas(64) float z[GROUP * TILE];
    int C = head->C, V = head->V;
    int tiles = (V + TILE - 1) / TILE, first = tile * TILE, columns = min_int(TILE, V - first);
    int part = group * GROUP_PARTS, end = min_int(part + GROUP_PARTS, packed_row_parts(R));
    int row_begin = packed_first_row(R, part), row_end = packed_first_row(R, end);
    for (int b = 0; b * PACKED_COLUMNS < columns; b++)
        for (int p = part; p < end; p++) {
            int row = packed_first_row(R, p), count = packed_first_row(R, p + 1) - row;
            packed_product(z + (row - row_begin) * TILE + b * PACKED_COLUMNS, TILE,
                           E + (size_t)row * C, C, packed, first / PACKED_COLUMNS + b, count, C);
        }
    bool greedy = head->inv_temperature == 0;
    for (int i = row_begin; i < row_end; i++) {
        float *row = z + (i - row_begin) * TILE;
        uint32_t counter[3] = {(uint32_t)rows->position[i] + 1, rows->sample[i], rows->ordinal[i]};
        for (int j = 0; j < columns; j++) row[j] *= greedy ? 1 : head->inv_temperature;
        draws[(size_t)i * tiles + tile] = draw_from_tile(row, columns, first, counter, key, greedy);
    }
}

/* All tiles' draws of one row [tiles] become one. */
static struct Draw merge_draws(const struct Draw *draws, int tiles) {
    struct Draw best = draws[0];
    for (int t = 1; t < tiles; t++) {
        struct RowState state = row_state_merge(best.state, draws[t].state);
        if (draws[t].score > best.score) best = draws[t];
        best.state = state;
    }
    return best;
}

static void head_sample(int *token, float *logp, float *entropy, const floatX *E,
                        const void *packed, const struct DecodeRows *rows, const uint32_t key[2],
                        const struct Head *head, int R, void *workspace) {
    struct Draw *draws = workspace;
    int tiles = (head->V + TILE - 1) / TILE, parts = packed_row_parts(R);
    int groups = (parts + GROUP_PARTS - 1) / GROUP_PARTS;
    #pragma omp parallel
    {
        #pragma omp for collapse(2) schedule(dynamic)
        for (int tile = 0; tile < tiles; tile++)
            for (int group = 0; group < groups; group++)
                draw_tile(draws, E, packed, rows, key, tile, group, head, R);
        #pragma omp for schedule(static)
        for (int i = 0; i < R; i++) {
            struct Draw draw = merge_draws(draws + (size_t)i * tiles, tiles);
            float log_s = vm_log(draw.state.s);
            token[i] = draw.token;
            /* not logit - lse: at m = 1e4 lse would be rounded to 1e-3 */
            logp[i] = (draw.logit - draw.state.m) - log_s;
            entropy[i] = log_s - draw.state.w / draw.state.s;
        }
    }
}

static void decode_advance(const struct DecodeRows *rows, const int *token, int R) {
    for (int i = 0; i < R; i++) {
        if (rows->position[i] < 0) continue; /* empty, and stays so */
        rows->token[i] = token[i];
        rows->position[i]++;
    }
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return (size_t)shape->R * ((shape->V + TILE - 1) / TILE) * sizeof(struct Draw);
}

static void fill(struct Ops *ops) {
    ops->head_sample = head_sample;
    ops->decode_advance = decode_advance;
}

const struct KernelFile cpu_sample = {"sample", fill, workspace_bytes};
