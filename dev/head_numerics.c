/* How far shortcuts of the head are from the exact value (doc/head.md, Numerics): each is tried on
   logits whose statistics and gradient are also computed in float64.

       make build/head_numerics
       build/head_numerics

   Rows of 50257 logits of three kinds: flat, N(0, 1); peaked, where one is larger by 16; offset,
   flat but around -100, as a network without a reason to centre them leaves them. What is asked:

       statistics   the largest error of log-probability and entropy over the rows (nats)
       gradient     ||dz - exact|| / ||exact|| over the rows, a = 1 and b = -0.01
       sums         ||dW - exact|| / ||exact||, dW being the sum of as many chunks' contributions */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "../llmc/base/check.h"
#include "../llmc/base/rng.h"
#include "../llmc/kernels/row_state.h"

enum { V = 50257, TILE = 512, ROWS = 64, ELEMENTS = 1 << 14 };
enum Kind { FLAT, PEAKED, OFFSET, KINDS };
static const char *const kind_name[KINDS] = {"flat", "peaked", "offset"};

/* A row: its logits, its target, and what is exact of it. */
struct Row {
    float z[V];
    int target;
    double lse, logp, entropy;
};

static float to_bf16(float x) {
    uint32_t bits = vm_bits(x);
    return vm_from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
}

static double statistics(double *entropy, const float *z, int target) {
    double m = -INFINITY, s = 0, w = 0;
    for (int j = 0; j < V; j++) m = fmax(m, z[j]);
    for (int j = 0; j < V; j++) s += exp(z[j] - m), w += exp(z[j] - m) * (z[j] - m);
    *entropy = log(s) - w / s;
    return z[target] - m - log(s);
}

static void make_row(struct Row *row, enum Kind kind, struct Rng *rng) {
    for (int j = 0; j < V; j++) row->z[j] = (float)rng_normal(rng) + (kind == OFFSET ? -100 : 0);
    row->target = rng_below(rng, V);
    if (kind == PEAKED) row->z[row->target] += 16;
    row->logp = statistics(&row->entropy, row->z, row->target);
    row->lse = row->z[row->target] - row->logp;
}

/* ---- statistics ------------------------------------------------------------------------------ */

/* As the head does it: tiles that merge, moments centred at the maximum. */
static struct RowState state_of(const struct Row *row) {
    struct RowState all = {-INFINITY, 0, 0, 0, 0};
    float weight[TILE];
    for (int first = 0; first < V; first += TILE) {
        int n = V - first < TILE ? V - first : TILE;
        struct RowState one = row_state(weight, row->z + first, n);
        all = first ? row_state_merge(all, one) : one;
    }
    return all;
}

static float centred(const struct Row *row, float *entropy) {
    struct RowState x = state_of(row);
    *entropy = logf(x.s) - x.w / x.s;
    return row->z[row->target] - x.m - logf(x.s);
}

/* The same tiles and merges, but H = lse - sum p z. */
static float uncentred(const struct Row *row, float *entropy) {
    float m = state_of(row).m, s = 0, u = 0;
    for (int first = 0; first < V; first += TILE) {
        float tile_s = 0, tile_u = 0;
        for (int j = first; j < V && j < first + TILE; j++) {
            float e = vm_exp(row->z[j] - m);
            tile_s += e;
            tile_u += e * row->z[j];
        }
        s += tile_s, u += tile_u;
    }
    float lse = m + logf(s);
    *entropy = lse - u / s;
    return row->z[row->target] - lse;
}

/* Two passes, each with one running sum: s, then p log p. */
static float running(const struct Row *row, float *entropy) {
    float m = state_of(row).m, s = 0, h = 0;
    for (int j = 0; j < V; j++) s += expf(row->z[j] - m);
    for (int j = 0; j < V; j++) {
        float logp = row->z[j] - m - logf(s);
        h -= expf(logp) * logp;
    }
    *entropy = h;
    return row->z[row->target] - m - logf(s);
}

/* Logits that were rounded to bf16, and nothing else. */
static float rounded(const struct Row *row, float *entropy) {
    static float z[V];
    double h, logp;
    for (int j = 0; j < V; j++) z[j] = to_bf16(row->z[j]);
    logp = statistics(&h, z, row->target);
    *entropy = (float)h;
    return (float)logp;
}

static const struct {
    const char *name;
    float (*logp)(const struct Row *row, float *entropy);
} shortcuts[] = {{"centred moment, tiles that merge (the head)", centred},
                 {"the same with H = lse - sum p z", uncentred},
                 {"one running sum of p log p", running},
                 {"logits rounded to bf16, then exact", rounded}};

static void print_statistics(const struct Row *rows) {
    printf("%-44s", "largest error: logp, H (nats)");
    for (int k = 0; k < KINDS; k++) printf("%20s", kind_name[k]);
    for (size_t i = 0; i < sizeof shortcuts / sizeof *shortcuts; i++) {
        printf("\n%-44s", shortcuts[i].name);
        for (int k = 0; k < KINDS; k++) {
            double worst_logp = 0, worst_entropy = 0;
            for (const struct Row *row = rows + k * ROWS; row < rows + (k + 1) * ROWS; row++) {
                float entropy, logp = shortcuts[i].logp(row, &entropy);
                worst_logp = fmax(worst_logp, fabs(logp - row->logp));
                worst_entropy = fmax(worst_entropy, fabs(entropy - row->entropy));
            }
            printf("   %8.1e %8.1e", worst_logp, worst_entropy);
        }
    }
    printf("\n\n");
}

/* ---- the gradient ---------------------------------------------------------------------------- */

static double gradient(const struct Row *row, int j, double p, double logp) {
    const double a = 1, b = -0.01;
    return p * (-a - b * (row->entropy + logp)) + (j == row->target ? a : 0);
}

/* dz of one logit from what the gradient's products would read. m: the maximum of its tile. */
static double from_dz(const struct Row *row, int j, float m) {
    (void)m;
    double logp = row->z[j] - row->lse;
    return to_bf16((float)gradient(row, j, exp(logp), logp));
}
static double from_z(const struct Row *row, int j, float m) {
    (void)m;
    double logp = to_bf16(row->z[j]) - row->lse;
    return gradient(row, j, exp(logp), logp);
}
static double from_power(const struct Row *row, int j, float m) {
    double e = to_bf16(expf(row->z[j] - m)), p = e * exp(m - row->lse);
    return gradient(row, j, p, e == 0 ? 0 : log(p));
}

static const struct {
    const char *name;
    double (*dz)(const struct Row *row, int j, float m);
} kept[] = {{"dz (what ships)", from_dz},
            {"z, made into dz on load", from_z},
            {"e^(z-m), m of a tile, made into dz on load", from_power}};

static double gradient_error(const struct Row *rows, int i) {
    double wrong = 0, all = 0;
    for (const struct Row *row = rows; row < rows + ROWS; row++)
        for (int first = 0; first < V; first += TILE) {
            int n = V - first < TILE ? V - first : TILE;
            float m = row_maximum(row->z + first, n);
            for (int j = first; j < first + n; j++) {
                double logp = row->z[j] - row->lse, exact = gradient(row, j, exp(logp), logp);
                double error = kept[i].dz(row, j, m) - exact;
                wrong += error * error, all += exact * exact;
            }
        }
    return sqrt(wrong / all);
}

static void print_gradients(const struct Row *rows) {
    printf("%-44s", "gradient, kept in bf16 for each logit:");
    for (int k = 0; k < KINDS; k++) printf("%20s", kind_name[k]);
    for (size_t i = 0; i < sizeof kept / sizeof *kept; i++) {
        printf("\n%-44s", kept[i].name);
        for (int k = 0; k < KINDS; k++)
            printf("%20.1e", gradient_error(rows + k * ROWS, i));
    }
    printf("\n\n");
}

/* ---- sums over chunks ------------------------------------------------------------------------ */

/* The sum of `chunks` normal numbers for each element, all positive or of either sign. */
static double sum_error(int chunks, bool one_sign, bool bf16) {
    struct Rng rng;
    double wrong = 0, all = 0;
    rng_open(&rng, 1, RNG_TEST, (uint64_t)chunks * 2 + one_sign);
    for (int i = 0; i < ELEMENTS; i++) {
        double exact = 0;
        float sum = 0;
        for (int k = 0; k < chunks; k++) {
            float x = rng_normal(&rng);
            if (one_sign) x = fabsf(x);
            exact += x;
            sum = bf16 ? to_bf16(sum + x) : sum + x;
        }
        wrong += (sum - exact) * (sum - exact), all += exact * exact;
    }
    return sqrt(wrong / all);
}

static void print_sums(void) {
    const int chunks[] = {16, 128, 1024};
    printf("%-44s%20s%20s%20s\n", "sums of dW over chunks:", "16", "128", "1024");
    for (int one_sign = 0; one_sign < 2; one_sign++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            printf("%-9s%-35s", bf16 ? "bf16," : "float32,",
                   one_sign ? "contributions of one sign" : "contributions of either sign");
            for (int k = 0; k < 3; k++) printf("%20.1e", sum_error(chunks[k], one_sign, bf16));
            printf("\n");
        }
}

int main(void) {
    struct Row *rows = malloc(KINDS * ROWS * sizeof *rows);
    if (!rows) die_machine("no memory for %d rows of logits", KINDS * ROWS);
    for (int i = 0; i < KINDS * ROWS; i++) {
        struct Rng rng;
        rng_open(&rng, 1, RNG_TEST, i);
        make_row(&rows[i], (enum Kind)(i / ROWS), &rng);
    }
    print_statistics(rows);
    print_gradients(rows);
    print_sums();
    free(rows);
    return 0;
}
