/* One optimizer step:

       picked sequences -> weights w_t -> micro-batches { pack -> forward -> head ( objective ) ->
       backward } -> sum over ranks -> norm, clip -> AdamW

   Several ranks each take a piece of the minibatch; sums over them: optimizer.c. Micro-batches
   exist only to save memory. The weights w_t are computed for the whole minibatch
   before the first micro-batch, so the gradients of the micro-batches are simply added. */
#include "trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "entropy.h"
#include "optimizer.h"

/* Host arrays of the present minibatch; they grow to the largest one so far. */
struct Minibatch {
    int *pick;                 /* active sequences, in the set's order */
    int *length;               /* tokens with loss */
    int *sequence_start, *sequence_of;
    unsigned char *active, *selected;
    float *advantage, *weight, *sequence_ratio;
    float *logp_old, *logp_ref, *logp_now;
    int sequences, tokens, capacity_sequences, capacity_tokens;
};

struct Trainer {
    const struct Model *model;
    const struct Ops *ops;
    struct Weights weights;
    struct Optimizer optimizer;
    const struct World *world;
    struct Activations *activations;
    int micro_tokens;
    struct Batch batch;        /* backend arrays */
    int *token, *position, *row_start, *row, *target;   /* host copies of batch's arrays */
    int *prompt, *seen;
    struct QueryBlock *block;
    float *attention;          /* backend [L,NH,N] when attention entropy is wanted */
    float *attention_host;
    double *attention_mean;    /* [L*NH] */
    bool watch, watched;       /* attention entropy is requested; attention_mean was filled */
    void *workspace;
    struct Minibatch mini;
};

/* ---- reserve and free ------------------------------------------------------------------------ */

struct Trainer *trainer_reserve(const struct Model *model, struct Arena *arena,
                                const struct OpsShape *shape, enum Recompute recompute,
                                const struct OptimizerOptions *optimizer,
                                const struct World *world, uint64_t seed) {
    struct Trainer *t = check_alloc(1, sizeof *t, "the trainer");
    int N = shape->N;
    size_t count = model->num_parameters, ints = (size_t)(N + 1) * sizeof(int);
    t->model = model, t->ops = model->ops, t->world = world;
    t->micro_tokens = N;
    t->optimizer.progress.loss_scale = optimizer_first_loss_scale(t->ops);
    arena_reserve(arena, &t->weights.data, count * t->ops->element_size, "weights", "weights [%zu]",
                  count);
    if (optimizer)
        optimizer_reserve(&t->optimizer, model, arena, &t->weights, optimizer, world,
                          &t->workspace, seed);
    size_t workspace = t->ops->workspace_size(shape);
    arena_reserve(arena, &t->workspace, workspace, "workspace", "workspace, shared by all slots");
    arena->section = ARENA_TRAINING;
    arena_reserve(arena, &t->batch.token, ints, "batch", "token [%d]", N);
    arena_reserve(arena, &t->batch.position, ints, "batch", "position [%d]", N);
    arena_reserve(arena, &t->batch.rows.start, ints, "batch", "row_start [%d]", N + 1);
    arena_reserve(arena, &t->batch.rows.prompt, ints, "batch", "prompt [%d]", N);
    arena_reserve(arena, &t->batch.rows.seen, ints, "batch", "seen [%d]", N);
    arena_reserve(arena, &t->batch.loss.row, ints, "batch", "row [%d]", N);
    arena_reserve(arena, &t->batch.loss.target, ints, "batch", "target [%d]", N);
    int block = t->ops->attention_block, blocks = block ? N / block + N : 0;
    arena_reserve(arena, &t->batch.rows.block, (size_t)blocks * sizeof *t->block, "batch",
                  "blocks of queries [%d]", blocks);
    t->activations = activations_reserve(model, arena, N, N, shape->max_T,
                                         optimizer ? recompute : RECOMPUTE_LAYER);
    arena->section = ARENA_ALWAYS;
    t->token = check_alloc(7 * (size_t)(N + 1), sizeof(int), "the batch");
    t->position = t->token + (N + 1), t->row_start = t->position + (N + 1);
    t->row = t->row_start + (N + 1), t->target = t->row + (N + 1);
    t->prompt = t->target + (N + 1), t->seen = t->prompt + (N + 1);
    t->block = check_alloc((size_t)blocks + 1, sizeof *t->block, "the batch");
    return t;
}

void trainer_free(struct Trainer *t) {
    if (!t) return;
    struct Minibatch *m = &t->mini;
    void *owned[] = {m->pick,   m->length,         m->sequence_start, m->sequence_of, m->active,
                     m->selected, m->advantage,    m->weight,         m->sequence_ratio,
                     m->logp_old, m->logp_ref,     m->logp_now,       t->token,
                     t->attention_host, t->attention_mean, t->block};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    activations_free(t->activations);
    optimizer_free(&t->optimizer);
    free(t);
}

struct Weights *trainer_weights(struct Trainer *t) {
    optimizer_await(&t->optimizer);
    return &t->weights;
}

struct OptimizerState trainer_optimizer(const struct Trainer *t) {
    return optimizer_state(&t->optimizer);
}
float *trainer_gradients(struct Trainer *t) { return t->optimizer.grads; }
struct TrainerProgress trainer_progress(const struct Trainer *t) { return t->optimizer.progress; }
void trainer_set_progress(struct Trainer *t, struct TrainerProgress progress) {
    t->optimizer.progress = progress;
}
void *trainer_workspace(struct Trainer *t) { return t->workspace; }
void trainer_reset_optimizer(struct Trainer *t) { optimizer_reset(&t->optimizer); }

/* ---- the minibatch: picked sequences as flat arrays ------------------------------------------ */

static void minibatch_grow(struct Minibatch *m, int sequences, int tokens) {
    if (sequences >= m->capacity_sequences) {
        size_t n = (size_t)sequences + 1;
        m->pick = check_realloc(m->pick, n, sizeof(int), "a minibatch");
        m->length = check_realloc(m->length, n, sizeof(int), "a minibatch");
        m->sequence_start = check_realloc(m->sequence_start, n, sizeof(int), "a minibatch");
        m->active = check_realloc(m->active, n, 1, "a minibatch");
        m->advantage = check_realloc(m->advantage, n, sizeof(float), "a minibatch");
        m->weight = check_realloc(m->weight, n, sizeof(float), "a minibatch");
        m->sequence_ratio = check_realloc(m->sequence_ratio, n, sizeof(float), "a minibatch");
        m->capacity_sequences = sequences + 1;
    }
    if (tokens > m->capacity_tokens) {
        size_t n = (size_t)tokens;
        m->sequence_of = check_realloc(m->sequence_of, n, sizeof(int), "a minibatch");
        m->selected = check_realloc(m->selected, n, 1, "a minibatch");
        m->logp_old = check_realloc(m->logp_old, n, sizeof(float), "a minibatch");
        m->logp_ref = check_realloc(m->logp_ref, n, sizeof(float), "a minibatch");
        m->logp_now = check_realloc(m->logp_now, n, sizeof(float), "a minibatch");
        m->capacity_tokens = tokens;
    }
}

static int compare_ints(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

/* Gathers the picked sequences that are active and have tokens with loss. The others have no
   gradient, so they do not go through the network. They are put in the set's order, in which
   completions of one prompt are neighbours. */
static void minibatch_gather(struct Minibatch *m, const struct TrainingSet *set, const int *pick,
                             int num_pick) {
    int tokens = 0;
    for (int i = 0; i < num_pick; i++)
        tokens += set->loss_start[pick[i] + 1] - set->loss_start[pick[i]];
    minibatch_grow(m, num_pick, tokens);
    m->sequences = m->tokens = 0;
    for (int i = 0; i < num_pick; i++) {
        int length = set->loss_start[pick[i] + 1] - set->loss_start[pick[i]];
        if ((!set->active || set->active[pick[i]]) && length > 0) m->pick[m->sequences++] = pick[i];
    }
    qsort(m->pick, (size_t)m->sequences, sizeof *m->pick, compare_ints);
    for (int k = 0; k < m->sequences; k++) {
        int s = m->pick[k], begin = set->loss_start[s], length = set->loss_start[s + 1] - begin;
        m->length[k] = length, m->active[k] = 1;
        m->advantage[k] = set->advantage ? set->advantage[s] : 0;
        m->sequence_start[k] = m->tokens;
        for (int j = 0; j < length; j++, m->tokens++) {
            m->sequence_of[m->tokens] = k;
            if (set->logp_old) m->logp_old[m->tokens] = set->logp_old[begin + j];
            if (set->logp_ref) m->logp_ref[m->tokens] = set->logp_ref[begin + j];
        }
    }
    m->sequence_start[m->sequences] = m->tokens;
}

/* ---- micro-batches --------------------------------------------------------------------------- */

static void micro_batch_upload(struct Trainer *t) {
    const struct Ops *ops = t->ops;
    struct Rows *rows = &t->batch.rows;
    struct HeadTokens *loss = &t->batch.loss;
    rows_seen(t->seen, t->row_start, t->prompt, rows->B);
    ops->upload(t->batch.token, t->token, (size_t)rows->N * sizeof(int));
    ops->upload(t->batch.position, t->position, (size_t)rows->N * sizeof(int));
    ops->upload(rows->start, t->row_start, (size_t)(rows->B + 1) * sizeof(int));
    ops->upload(rows->prompt, t->prompt, (size_t)rows->B * sizeof(int));
    ops->upload(rows->seen, t->seen, (size_t)rows->B * sizeof(int));
    ops->upload(loss->row, t->row, (size_t)loss->n * sizeof(int));
    ops->upload(loss->target, t->target, (size_t)loss->n * sizeof(int));
    if (ops->attention_block == 0) return;
    rows->blocks = rows_cut_blocks(t->block, t->row_start, t->prompt, rows->B,
                                   ops->attention_block);
    ops->upload(rows->block, t->block, (size_t)rows->blocks * sizeof *t->block);
}

/* Tokens of sequence s before the one whose prediction is the first that has a loss: what it may
   share with others. */
static int leading_tokens(const struct TrainingSet *set, int s) {
    int begin = set->start[s], length = set->start[s + 1] - begin, first = 1;
    while (first < length && !set->loss_mask[begin + first]) first++;
    return first < length ? first - 1 : 0;
}

static bool begin_alike(const struct TrainingSet *set, int a, int b, int tokens) {
    return leading_tokens(set, b) == tokens &&
           memcmp(set->token + set->start[a], set->token + set->start[b],
                  (size_t)tokens * sizeof(int)) == 0;
}

/* Appends a row: inputs [first, end) of sequence s. */
static void append_row(struct Trainer *t, const struct TrainingSet *set, int s, int first, int end,
                       int prompt) {
    struct Rows *rows = &t->batch.rows;
    struct HeadTokens *loss = &t->batch.loss;
    int begin = set->start[s];
    t->prompt[rows->B] = prompt;
    t->row_start[rows->B++] = rows->N;
    for (int k = first; k < end; k++) {
        t->token[rows->N] = set->token[begin + k];
        t->position[rows->N] = k;
        if (set->loss_mask[begin + k + 1]) {
            t->row[loss->n] = rows->N;
            t->target[loss->n++] = set->token[begin + k + 1];
        }
        rows->N++;
    }
    t->row_start[rows->B] = rows->N;
    if (end > rows->max_T) rows->max_T = end;
}

/* Packs sequences from pick[first] on, as many as fit, into the backend's batch arrays. A sequence
   of T tokens gives T - 1 inputs: its last token is predicted, and predicts nothing. Neighbours
   that begin alike (the completions of a prompt) share a row of those tokens, which so go through
   the network once. Their last one is not among them: it predicts another token in each.

       sequences   a b c|d e f    a b c|g h    i j|k       | where the loss begins

       token     a b | c d e | c g | i j       position  0 1 | 2 3 4 | 2 3 | 0 1
       row_start 0     2       5     7   9     prompt   -1     0       0    -1
       target[i] follows token[row[i]] in its sequence, for tokens with loss only

   Returns the index in pick after the last sequence packed. */
static int micro_batch_pack(struct Trainer *t, const struct TrainingSet *set, const int *pick,
                            int num_pick, int first) {
    struct Rows *rows = &t->batch.rows;
    int prompt = -1, shared = 0, owner = 0;   /* the last prompt's row, its tokens, and the sequence
                                                 that they were taken from */
    int s = first;
    rows->N = rows->B = rows->max_T = t->batch.loss.n = 0;
    t->row_start[0] = 0;
    for (; s < num_pick; s++) {
        int inputs = set->start[pick[s] + 1] - set->start[pick[s]] - 1;
        if (inputs < 1) continue;
        bool joins = prompt >= 0 && begin_alike(set, owner, pick[s], shared);
        if (rows->N + inputs - (joins ? shared : 0) > t->micro_tokens) break;
        if (!joins) {
            prompt = -1, shared = leading_tokens(set, pick[s]), owner = pick[s];
            if (s + 1 == num_pick || !begin_alike(set, owner, pick[s + 1], shared)) shared = 0;
            if (shared > 0) {
                prompt = rows->B;
                append_row(t, set, owner, 0, shared, -1);
            }
        }
        append_row(t, set, pick[s], shared, inputs, prompt);
    }
    if (s == first)
        die_machine("a sequence of %d tokens does not fit into a micro-batch of %d",
                    set->start[pick[s] + 1] - set->start[pick[s]], t->micro_tokens);
    t->batch.loss.N = rows->N;
    micro_batch_upload(t);
    return s;
}

/* Tokens with loss of sequences pick [0, n). */
static int loss_tokens(const struct TrainingSet *set, const int *pick, int n) {
    int tokens = 0;
    for (int i = 0; i < n; i++) tokens += set->loss_start[pick[i] + 1] - set->loss_start[pick[i]];
    return tokens;
}

/* This rank's piece of the sequences in pick [n], of about as many tokens as any other's. */
static struct Piece own_piece(const struct Trainer *t, const struct TrainingSet *set,
                              const int *pick, int n) {
    if (world_size(t->world) == 1) return (struct Piece){0, n};
    int *cost = check_alloc((size_t)n + 1, sizeof *cost, "a batch");
    for (int i = 0; i < n; i++) cost[i] = set->start[pick[i] + 1] - set->start[pick[i]];
    struct Piece piece = world_piece(t->world, world_rank(t->world), n, cost);
    free(cost);
    return piece;
}

static struct HeadStats stats_at(const struct HeadStats *stats, int i) {
    struct HeadStats moved = {stats->logp ? stats->logp + i : NULL,
                              stats->entropy ? stats->entropy + i : NULL,
                              stats->q ? stats->q + i : NULL,
                              stats->qlog ? stats->qlog + i : NULL};
    return moved;
}

/* Every rank has elements [first, first + own) of out's arrays; afterwards all have all of them.
   The ranks' elements follow each other. */
static void share_scores(const struct World *world, const struct HeadStats *out, int first,
                         int own) {
    float *const array[] = {out->logp, out->entropy, out->q, out->qlog};
    struct Gathered gathered = {.bytes = NULL};
    for (int a = 0; a < 4; a++) {
        if (!array[a]) continue;
        world_gather(world, &gathered, array[a] + first, (size_t)own * sizeof(float));
        memcpy(array[a], gathered.bytes, gathered.start[world_size(world)]);
    }
    gathered_free(&gathered);
}

void trainer_score(struct Trainer *t, const struct Weights *weights, const struct TrainingSet *set,
                   const int *pick, int num_pick, float temperature, const struct HeadStats *out) {
    const struct Head head = model_head(t->model, temperature);
    struct Piece piece = own_piece(t, set, pick, num_pick);
    int first = loss_tokens(set, pick, piece.first), scored = first;
    for (int next = piece.first; next < piece.last; scored += t->batch.loss.n) {
        next = micro_batch_pack(t, set, pick, piece.last, next);
        floatX *E = model_forward(t->model, weights, t->activations, &t->batch, NULL, t->workspace);
        struct HeadStats here = stats_at(out, scored);
        t->ops->head_forward(&here, E, model_head_weight(t->model, weights), &t->batch.loss, &head,
                             t->workspace);
    }
    if (world_size(t->world) > 1) share_scores(t->world, out, first, scored - first);
}

void trainer_hidden_states(struct Trainer *t, const struct Weights *weights,
                           const struct TrainingSet *set, const int *pick, int num_pick,
                           void (*take)(void *context, const float *hidden, int n),
                           void *context) {
    enum { SLICE = 1024 };   /* tokens whose hidden states are on the host at once */
    size_t C = (size_t)t->model->config.C;
    float *hidden = check_alloc(SLICE * C, sizeof *hidden, "hidden states");
    for (int next = 0; next < num_pick;) {
        next = micro_batch_pack(t, set, pick, num_pick, next);
        floatX *E = model_forward(t->model, weights, t->activations, &t->batch, NULL, t->workspace);
        for (int first = 0, i = 0; first < t->batch.rows.N; first += SLICE) {
            int left = t->batch.rows.N - first, tokens = left < SLICE ? left : SLICE, n = 0;
            elements_download(t->ops, hidden, ops_at(t->ops, E, (size_t)first * C),
                              (size_t)tokens * C);
            for (; i < t->batch.loss.n && t->row[i] < first + tokens; i++)
                memmove(hidden + (size_t)n++ * C, hidden + (size_t)(t->row[i] - first) * C,
                        C * sizeof *hidden);
            if (n > 0) take(context, hidden, n);
        }
    }
    free(hidden);
}

/* The head's callback context: where this micro-batch is within the minibatch (micro_first: its
   first token with loss), and what the objective needs. */
struct Upstream {
    const struct Objective *objective;
    const struct ObjectiveBatch *batch;
    struct ObjectiveStats *stats;
    float loss_scale;
    int micro_first;
};

static void upstream(void *context, int first_row, int rows, const struct HeadStats *head,
                     float *dlogp, float *dentropy) {
    struct Upstream *u = context;
    objective_coefficients(u->objective, u->batch, u->micro_first + first_row, rows, head->logp,
                           head->entropy, head->q, head->qlog, dlogp, dentropy, u->stats);
    for (int i = 0; i < rows && u->loss_scale != 1; i++)
        dlogp[i] *= u->loss_scale, dentropy[i] *= u->loss_scale;
}

void trainer_reserve_attention(struct Trainer *t, struct Arena *arena) {
    const struct ModelConfig *c = &t->model->config;
    size_t heads = (size_t)c->L * (size_t)c->NH, n = heads * (size_t)t->micro_tokens;
    arena->section = ARENA_TRAINING;
    arena_reserve(arena, &t->attention, n * sizeof(float), "batch",
                  "attention entropy [%d, %d, %d]", c->L, c->NH, t->micro_tokens);
    arena->section = ARENA_ALWAYS;
    t->attention_host = check_alloc(n, sizeof(float), "attention entropy");
    t->attention_mean = check_alloc(heads, sizeof(double), "attention entropy");
}

void trainer_watch_attention(struct Trainer *t) {
    t->watch = t->attention != NULL && world_rank(t->world) == 0;
    t->watched = false;
}

const double *trainer_attention_entropy(const struct Trainer *t) {
    return t->watched ? t->attention_mean : NULL;
}

static void attention_read(struct Trainer *t) {
    const struct ModelConfig *c = &t->model->config;
    size_t n = (size_t)c->L * (size_t)c->NH * (size_t)t->batch.rows.N;
    t->ops->download(t->attention_host, t->attention, n * sizeof(float));
    entropy_attention_means(t->attention_mean, t->attention_host, t->position, c->L * c->NH,
                            t->batch.rows.N);
    t->watch = false, t->watched = true;
}

static void micro_batch_learn(struct Trainer *t, struct Upstream *u, float temperature,
                              struct BucketDone done) {
    const struct Head head = model_head(t->model, temperature);
    const struct HeadStats unwanted = {0};
    float *grads = t->optimizer.grads;
    floatX *E = model_forward(t->model, &t->weights, t->activations, &t->batch,
                              t->watch ? t->attention : NULL, t->workspace);
    if (t->watch) attention_read(t);
    t->ops->head_forward_backward(&unwanted, model_hidden_gradient(t->activations),
                                  model_head_gradient(t->model, grads), E,
                                  model_head_weight(t->model, &t->weights), &t->batch.loss, &head,
                                  upstream, u, t->workspace);
    model_backward(t->model, &t->weights, t->activations, &t->batch, grads, done, t->workspace);
}

/* ---- the optimizer step ---------------------------------------------------------------------- */

/* The gathered minibatch as the objective reads it. If a token's coefficients depend on other
   tokens (scope sequence or batch), a scoring pass first computes all log-probabilities: the head
   then costs 8 NVC operations instead of 6 (doc/head.md). */
static struct ObjectiveBatch minibatch_view(struct Trainer *t, const struct Objective *objective,
                                            const struct TrainingSet *set,
                                            const struct ObjectiveBatch *template,
                                            float temperature) {
    struct Minibatch *m = &t->mini;
    struct ObjectiveBatch view = *template;
    view.num_tokens = m->tokens, view.num_sequences = m->sequences;
    view.sequence_start = m->sequence_start, view.sequence_of = m->sequence_of;
    view.advantage = m->advantage, view.weight = m->weight;
    view.logp_old = set->logp_old ? m->logp_old : NULL;
    view.logp_ref = set->logp_ref ? m->logp_ref : NULL;
    view.sequence_ratio = m->sequence_ratio, view.selected = m->selected;
    if (objective_scope(objective) != SCOPE_TOKEN) {
        struct HeadStats stats = {.logp = m->logp_now};
        trainer_score(t, &t->weights, set, m->pick, m->sequences, temperature, &stats);
        view.logp_now = m->logp_now;
    }
    objective_prepare(objective, &view);
    return view;
}

/* What the ranks have found in their pieces, added in their order: the same on all of them. */
static void add_ranks(const struct World *world, struct UpdateResult *result,
                      struct ObjectiveStats *stats) {
    struct Found {
        struct ObjectiveStats stats;
        long tokens;
    } own = {*stats, result->tokens};
    struct Gathered gathered = {.bytes = NULL};
    int size = world_size(world);
    long most = 0;
    world_gather(world, &gathered, &own, sizeof own);
    *stats = (struct ObjectiveStats){0};
    result->tokens = 0;
    for (int r = 0; r < size; r++) {
        struct Found found;
        memcpy(&found, gathered.bytes + gathered.start[r], sizeof found);
        objective_stats_add(stats, &found.stats);
        result->tokens += found.tokens;
        if (found.tokens > most) most = found.tokens;
    }
    result->slowest = (double)most * size / (double)result->tokens;
    gathered_free(&gathered);
}

/* Forward pass, head and backward pass of the gathered minibatch, summed over micro-batches and
   ranks. Sets the gradients, result's norm and counts, and *stats. */
static void gradients(struct Trainer *t, const struct Objective *objective,
                      const struct TrainingSet *set, const struct ObjectiveBatch *view,
                      float temperature, struct UpdateResult *result,
                      struct ObjectiveStats *stats) {
    struct Minibatch *m = &t->mini;
    struct Optimizer *o = &t->optimizer;
    struct Piece piece = own_piece(t, set, m->pick, m->sequences);
    *stats = (struct ObjectiveStats){0};
    result->micro_batches = 0, result->tokens = 0, result->slowest = 1;
    optimizer_begin(o);
    struct Upstream u = {objective, view, stats, (float)o->progress.loss_scale,
                         m->sequence_start[piece.first]};
    for (int next = piece.first; next < piece.last; u.micro_first += t->batch.loss.n) {
        next = micro_batch_pack(t, set, m->pick, piece.last, next);
        micro_batch_learn(t, &u, temperature,
                          next == piece.last ? optimizer_bucket_done(o) : (struct BucketDone){0});
        result->micro_batches++, result->tokens += t->batch.rows.N;
    }
    if (piece.first == piece.last) optimizer_sum_all(o);
    t->watch = false;
    result->grad_norm = optimizer_norm(o);
    if (world_size(t->world) > 1) add_ranks(t->world, result, stats);
}

struct UpdateResult trainer_update(struct Trainer *t, const struct Objective *objective,
                                   const struct TrainingSet *set, const int *pick, int num_pick,
                                   const struct ObjectiveBatch *batch_template, int max_tokens,
                                   float temperature, float learning_rate,
                                   struct ObjectiveStats *stats) {
    struct UpdateResult result = {0};
    struct Minibatch *m = &t->mini;
    struct ObjectiveStats here;
    minibatch_gather(m, set, pick, num_pick);
    if (m->sequences == 0) return result;
    result.made = true;
    struct WeightSums sums = objective_weight_sums(m->sequences, m->length, m->active);
    sums.all_sequences = num_pick;   /* inactive sequences count here, though not gathered */
    objective_weights(objective, sums, max_tokens, m->sequences, m->length, m->active, m->weight);
    struct ObjectiveBatch view = minibatch_view(t, objective, set, batch_template, temperature);
    gradients(t, objective, set, &view, temperature, &result, &here);
    bool loss_is_bad = here.non_finite > 0 || !isfinite(here.loss);
    const struct TrainerProgress before = t->optimizer.progress;
    while (!loss_is_bad && !isfinite(result.grad_norm) && optimizer_shrink_scale(&t->optimizer)) {
        gradients(t, objective, set, &view, temperature, &result, &here);
        result.overflows++;
    }
    if (!isfinite(result.grad_norm)) t->optimizer.progress = before;   /* not the scale's fault */
    if (loss_is_bad) {
        result.skipped = true, result.bad_tensor = "the loss";
        result.grad_norm = NAN;
    } else if (!isfinite(result.grad_norm)) {
        result.skipped = true, result.bad_tensor = optimizer_bad_tensor(&t->optimizer);
    } else {
        optimizer_step(&t->optimizer, result.grad_norm, learning_rate);
    }
    objective_stats_add(stats, &here);
    return result;
}
