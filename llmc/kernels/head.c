/* The head: per-token log-probability, entropy and their gradients, without the N x V logits.

   With z = E W^T / temperature over the V columns and y the target, row_state.h gives lse, H, Q
   and QL of each row; logp = z_y - lse. From the objective's a = dJ/dlogp and b = dJ/dH the
   gradient of J by the logits is

       dz = p (k0 + k1 log p) + a 1[y],   k0 = -a - b H,  k1 = -b,  log p = z - m - ln s

   and dE = dz W, dW = dz^T E (times 1 / temperature). Autograd forms the logits twice (8 NVC flop
   in all), because it needs the loss before its backward pass. Here the objective is a callback
   between the two, so a chunk's logits are formed once: 6 NVC.

       rows of a chunk  x  tiles of the vocabulary          for each chunk
            | tile 0 | tile 1 | ... |                       1  logits and statistics, tile by tile
            |        |        |     |                       2  merge; ask the objective
       tiles are stored one after another,                  3  dz in place, dE = dz W
       each [rows][stride]                                  4  dW += dz^T E

   The partition into tiles and the order of every sum depend on sizes only, so no result depends on
   the number of threads, and work can go to whichever thread is free. A chunk must be long, because
   each of its three products reads or writes all of W. */
#include "cpu.h"
#include "row_state.h"

enum {
    TILE = 512,             /* vocabulary columns formed and reduced while in the second cache */
    BLOCK = 256,            /* rows of a work item */
    CHUNK = 192,            /* rows whose logits exist at once (at V = 50257 39 MB); 256 are 3 %
                               faster. Where V is small they are more: */
    CHUNK_LOGITS = 1 << 20, /* as many rows as have this number of logits, */
    CHUNK_MOST = 4096,      /* but not more than these */
    PARTS = 8               /* sums of dE that run side by side, added in order */
};

/* A chunk's sizes and its place in the workspace. */
struct Chunk {
    int rows, C, V, tiles, parts, stride;
    int live, *from;         /* rows of the gradient's products, and which they are */
    float *hidden;           /* [rows,C] gathered rows of E */
    float *logits;           /* [tiles][rows][stride], or [BLOCK][stride] for each thread */
    struct RowState *states; /* [tiles][rows] */
    float *dhidden;          /* [parts][rows,C] */
    struct HeadStats stats;  /* [rows] each, and so the following */
    float *target_logit, *maximum, *log_s, *dlogp, *dentropy;
    const int *target;
};

static int count_tiles(int V) { return (V + TILE - 1) / TILE; }

static int chunk_rows(int n, int V) {
    int rows = min_int(CHUNK_MOST, CHUNK_LOGITS / V / BLOCK * BLOCK);
    return min_int(n, max_int(CHUNK, rows));
}

/* The next `count` elements of `size` bytes of the workspace, aligned; NULL when measuring. */
static void *take(char *workspace, size_t *offset, size_t count, size_t size) {
    void *place = workspace ? workspace + *offset : NULL;
    *offset += (count * size + 255) / 256 * 256;
    return place;
}

/* Lays a chunk out in the workspace (NULL: only measures); returns its bytes. backward: every tile
   of logits is kept. */
static size_t chunk_open(struct Chunk *c, char *workspace, int rows, int C, int V, bool backward) {
    size_t offset = 0, tiles = count_tiles(V);
    *c = (struct Chunk){.rows = rows, .C = C, .V = V, .tiles = tiles, .live = rows};
    c->parts = min_int(PARTS, tiles);
    /* whole vectors; not a power of two, or the rows of a tile would share cache sets */
    c->stride = min_int(TILE, (V + 15) / 16 * 16) + 16;
    size_t kept = backward ? tiles * rows : (size_t)BLOCK * omp_get_max_threads();
    size_t parts = backward ? c->parts : 0;
    c->hidden = take(workspace, &offset, (size_t)rows * C, sizeof(float));
    c->logits = take(workspace, &offset, kept * c->stride, sizeof(float));
    c->states = take(workspace, &offset, tiles * rows, sizeof *c->states);
    c->dhidden = take(workspace, &offset, parts * rows * C, sizeof(float));
    c->from = take(workspace, &offset, rows, sizeof *c->from);
    float **arrays[] = {&c->stats.logp, &c->stats.entropy, &c->stats.q, &c->stats.qlog,
                        &c->target_logit, &c->maximum, &c->log_s, &c->dlogp, &c->dentropy};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        *arrays[i] = take(workspace, &offset, rows, sizeof(float));
    return offset;
}

static int tile_columns(const struct Chunk *c, int tile) {
    return min_int(TILE, c->V - tile * TILE);
}

static float *tile_row(const struct Chunk *c, int tile, int row) {
    return c->logits + ((size_t)tile * c->rows + row) * c->stride;
}

/* Logits and states of rows [first, first + rows) in one tile; z is where the first row goes. */
static void tile_forward(struct Chunk *c, float *z, const float *W, int tile, int first, int rows,
                         float inv_temperature) {
    int C = c->C, column = tile * TILE, columns = tile_columns(c, tile);
    float weight[TILE];
    product_nt(z, c->stride, c->hidden + (size_t)first * C, C, W + (size_t)column * C, C, rows,
               columns, C, inv_temperature, false);
    for (int i = first; i < first + rows; i++, z += c->stride) {
        c->states[(size_t)tile * c->rows + i] = row_state(weight, z, columns);
        int y = c->target[i] - column;
        if (y >= 0 && y < columns) c->target_logit[i] = z[y];
    }
}

/* Merges row i's states in tile order and says what the objective sees. */
static void finish_row(struct Chunk *c, int i) {
    struct RowState state = c->states[i];
    for (int t = 1; t < c->tiles; t++)
        state = row_state_merge(state, c->states[(size_t)t * c->rows + i]);
    float log_s = vm_log(state.s), inverse = 1.0f / state.s;
    /* m and ln s stay apart: at m = 1e4 their sum, lse, would be rounded to 1e-3 */
    c->maximum[i] = state.m, c->log_s[i] = log_s;
    c->stats.logp[i] = (c->target_logit[i] - state.m) - log_s;
    c->stats.entropy[i] = log_s - state.w * inverse;
    c->stats.q[i] = state.q * inverse * inverse;
    c->stats.qlog[i] = (state.r - state.q * log_s) * inverse * inverse;
}

/* Statistics of a chunk. keep: every tile of logits stays; otherwise each thread has one. */
static void chunk_forward(struct Chunk *c, const float *E, const float *W, const int *row,
                          float inv_temperature, bool keep) {
    int blocks = (c->rows + BLOCK - 1) / BLOCK;
    #pragma omp parallel
    {
        #pragma omp for schedule(static)
        for (int i = 0; i < c->rows; i++)
            memcpy(c->hidden + (size_t)i * c->C, E + (size_t)row[i] * c->C, c->C * sizeof *E);
        #pragma omp for collapse(2) schedule(dynamic)
        for (int t = 0; t < c->tiles; t++)
            for (int b = 0; b < blocks; b++) {
                int first = b * BLOCK, rows = min_int(BLOCK, c->rows - first);
                float *z = keep ? tile_row(c, t, first)
                                : c->logits + (size_t)omp_get_thread_num() * BLOCK * c->stride;
                tile_forward(c, z, W, t, first, rows, inv_temperature);
            }
        #pragma omp for schedule(static)
        for (int i = 0; i < c->rows; i++) finish_row(c, i);
    }
}

static bool is_live(const struct Chunk *c, int i) {
    return c->dlogp[i] != 0 || c->dentropy[i] != 0;
}

/* Chooses the rows of the gradient's products, and brings their hidden states to the front.
   A chunk of one block leaves out rows without coefficients: each sum loses only terms that were
   exactly 0 (of bf16 products others then become pairs, which may change a rounding). A longer
   chunk's sums are made of pieces whose borders would move, and that would change bits. There such
   rows stay as zeros, hidden states too, because 0 times what is not finite is not 0. */
static void choose_live(struct Chunk *c) {
    size_t bytes = c->C * sizeof *c->hidden;
    bool all = c->rows > BLOCK;
    c->live = 0;
    for (int i = 0; i < c->rows; i++) {
        float *hidden = c->hidden + (size_t)i * c->C, *to = c->hidden + (size_t)c->live * c->C;
        if (!is_live(c, i) && !all) continue;
        if (!is_live(c, i)) memset(hidden, 0, bytes);
        if (to != hidden) memcpy(to, hidden, bytes);
        c->from[c->live++] = i;
    }
}

/* dz of row i in one tile, in place of its logits or of an earlier row's. */
static void row_dlogits(float *dz, const struct Chunk *c, int tile, int i, float inv_temperature) {
    int columns = tile_columns(c, tile), y = c->target[i] - tile * TILE;
    const float *z = tile_row(c, tile, i);
    if (!is_live(c, i)) { /* exactly 0, also where p is not finite */
        memset(dz, 0, columns * sizeof *dz);
        return;
    }
    float a = c->dlogp[i], b = c->dentropy[i], m = c->maximum[i], log_s = c->log_s[i];
    float k0 = (-a - b * c->stats.entropy[i]) * inv_temperature, k1 = -b * inv_temperature;
    #pragma omp simd
    for (int j = 0; j < columns; j++) {
        float logp = (z[j] - m) - log_s;
        dz[j] = vm_exp(logp) * (k0 + k1 * logp);
    }
    if (y >= 0 && y < columns) dz[y] += a * inv_temperature;
}

/* dz of a block of rows of the products over one part of the vocabulary, and this part's sum of
   dE. */
static void part_backward(struct Chunk *c, const float *W, int block, int part,
                          float inv_temperature) {
    int C = c->C, first = block * BLOCK, rows = min_int(BLOCK, c->live - first), begin, end;
    float *dhidden = c->dhidden + ((size_t)part * c->rows + first) * C;
    split_range(&begin, &end, c->tiles, 1, part, c->parts);
    for (int t = begin; t < end; t++) {
        for (int i = first; i < first + rows; i++)
            row_dlogits(tile_row(c, t, i), c, t, c->from[i], inv_temperature);
        product_nn(dhidden, C, tile_row(c, t, first), c->stride, W + (size_t)t * TILE * C, C, rows,
                   C, tile_columns(c, t), 1, t > begin);
    }
}

/* dE [C] += the parts' sums of row i of the products. */
static void add_parts(float *dE, const struct Chunk *c, int i) {
    for (int part = 0; part < c->parts; part++)
        for (int k = 0; k < c->C; k++)
            dE[k] += c->dhidden[((size_t)part * c->rows + i) * c->C + k];
}

/* dE and, unless it is NULL, dW of a chunk whose coefficients are known. dE was zero; no token is
   listed twice. */
static void chunk_backward(struct Chunk *c, float *dE, float *dW, const float *W, const int *row,
                           float inv_temperature) {
    int C = c->C, blocks, tiles = dW ? c->tiles : 0;
    choose_live(c);
    blocks = (c->live + BLOCK - 1) / BLOCK;
    #pragma omp parallel
    {
        #pragma omp for collapse(2) schedule(dynamic)
        for (int b = 0; b < blocks; b++)
            for (int part = 0; part < c->parts; part++)
                part_backward(c, W, b, part, inv_temperature);
        #pragma omp for schedule(dynamic) nowait
        for (int t = 0; t < tiles; t++)
            product_tn(dW + (size_t)t * TILE * C, C, tile_row(c, t, 0), c->stride, c->hidden, C,
                       tile_columns(c, t), C, c->live, 1, true);
        #pragma omp for schedule(static)
        for (int i = 0; i < c->live; i++) add_parts(dE + (size_t)row[c->from[i]] * C, c, i);
    }
}

/* Copies a chunk's statistics to the caller's arrays, those that are wanted. */
static void store_stats(const struct HeadStats *stats, const struct Chunk *c, int first) {
    size_t bytes = c->rows * sizeof(float);
    if (stats->logp) memcpy(stats->logp + first, c->stats.logp, bytes);
    if (stats->entropy) memcpy(stats->entropy + first, c->stats.entropy, bytes);
    if (stats->q) memcpy(stats->q + first, c->stats.q, bytes);
    if (stats->qlog) memcpy(stats->qlog + first, c->stats.qlog, bytes);
}

static void head_forward(const struct HeadStats *stats, const floatX *E, const floatX *W,
                         const struct HeadTokens *tokens, const struct Head *head,
                         void *workspace) {
    int n = tokens->n, most = chunk_rows(n, head->V);
    for (int first = 0; first < n; first += most) {
        struct Chunk c;
        chunk_open(&c, workspace, min_int(most, n - first), head->C, head->V, false);
        c.target = tokens->target + first;
        chunk_forward(&c, E, W, tokens->row + first, head->inv_temperature, false);
        store_stats(stats, &c, first);
    }
}

static void head_forward_backward(const struct HeadStats *stats, floatX *dE, float *dW,
                                  const floatX *E, const floatX *W,
                                  const struct HeadTokens *tokens, const struct Head *head,
                                  HeadUpstream upstream, void *context, void *workspace) {
    int n = tokens->n, most = chunk_rows(n, head->V);
    memset(dE, 0, (size_t)tokens->N * head->C * sizeof *dE);
    for (int first = 0; first < n; first += most) {
        struct Chunk c;
        const int *row = tokens->row + first;
        chunk_open(&c, workspace, min_int(most, n - first), head->C, head->V, true);
        c.target = tokens->target + first;
        chunk_forward(&c, E, W, row, head->inv_temperature, true);
        store_stats(stats, &c, first);
        upstream(context, first, c.rows, &c.stats, c.dlogp, c.dentropy);
        chunk_backward(&c, dE, dW, W, row, head->inv_temperature);
    }
}

/* A smaller vocabulary may need more, because its chunks are longer; beyond CHUNK_LOGITS / CHUNK
   columns they no longer shrink, and only the largest counts. Serves as many threads as there are
   now. */
static size_t workspace_bytes(const struct OpsShape *shape) {
    size_t most = 0;
    for (int V = shape->V; V > 0; V = min_int(V - 1, CHUNK_LOGITS / CHUNK)) {
        struct Chunk c;
        int rows = chunk_rows(shape->N, V);
        size_t training = chunk_open(&c, NULL, rows, shape->C, V, true);
        size_t scoring = chunk_open(&c, NULL, rows, shape->C, V, false);
        if (training > most) most = training;
        if (scoring > most) most = scoring;
    }
    return most;
}

static void fill(struct Ops *ops) {
    ops->head_forward = head_forward;
    ops->head_forward_backward = head_forward_backward;
}

const struct KernelFile cpu_head = {"head", fill, workspace_bytes};
