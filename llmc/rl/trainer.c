/* One optimizer step:

       picked sequences -> weights w_t -> micro-batches { pack -> forward -> head ( objective ) ->
       backward } -> sum over ranks -> norm, clip -> AdamW

   Micro-batches exist only to save memory. The weights w_t are computed for the whole minibatch
   before the first micro-batch, so the gradients of the micro-batches are simply added. */
#include "trainer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "entropy.h"

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
    float *grads, *moment1, *moment2;
    void *narrow;              /* backend, 2 bytes an element of the largest bucket; or NULL */
    struct Activations *activations;
    struct OptimizerOptions optimizer;
    struct AdamwRange *ranges;
    int num_ranges;
    int micro_tokens;
    struct TrainerProgress progress;
    uint64_t seed;
    struct Batch batch;        /* backend arrays */
    int *token, *position, *row_start, *row, *target;   /* host copies of batch's arrays */
    int *prompt, *seen;
    struct QueryBlock *block;
    double *norm_squared;      /* backend, one number */
    float *attention;          /* backend [L,NH,N] when attention entropy is wanted */
    float *attention_host;
    double *attention_mean;    /* [L*NH] */
    bool watch, watched;       /* attention entropy is requested; attention_mean was filled */
    void *workspace;
    struct Minibatch mini;
};

/* ---- the loss scale of fp16 ------------------------------------------------------------------ */

enum { SCALE_PATIENCE = 500 };   /* updates without overflow before a larger scale is tried */
static const double LARGEST_SCALE = 0x1p24, FIRST_SCALE = 0x1p16;

static double first_loss_scale(const struct Ops *ops) {
    return strcmp(ops->dtype, "fp16") == 0 ? FIRST_SCALE : 1;
}

/* Lowers the scale after an overflow. Returns false if it is the smallest already, 2, or if no
   scale is used (it is 1). */
static bool loss_scale_shrink(struct TrainerProgress *progress) {
    if (progress->loss_scale <= 2) return false;
    progress->loss_scale = progress->loss_scale > 8 ? progress->loss_scale / 4 : 2;
    progress->loss_scale_updates = 0;
    return true;
}

static void loss_scale_grow(struct TrainerProgress *progress, const struct Ops *ops) {
    if (first_loss_scale(ops) == 1 || ++progress->loss_scale_updates < SCALE_PATIENCE) return;
    progress->loss_scale_updates = 0;
    if (progress->loss_scale < LARGEST_SCALE) progress->loss_scale *= 2;
}

/* ---- reserve and free ------------------------------------------------------------------------ */

static size_t largest_bucket(const struct Model *model) {
    size_t most = 0;
    for (int b = 0; b < model->num_buckets; b++) {
        size_t count = model->buckets[b].end - model->buckets[b].begin;
        if (count > most) most = count;
    }
    return most;
}

static void optimizer_reserve(struct Trainer *t, struct Arena *arena,
                              const struct OptimizerOptions *optimizer) {
    size_t whole = t->model->num_parameters, count = share_of(&t->weights.share, whole);
    size_t bytes = count * sizeof(float);
    t->optimizer = *optimizer;
    t->ranges = model_adamw_ranges(t->model, optimizer->weight_decay, &t->num_ranges);
    if (t->ops->element_size < sizeof(float))
        arena_reserve(arena, &t->weights.master, bytes, "optimizer", "master weights [%zu]", count);
    arena_reserve(arena, &t->moment1, bytes, "optimizer", "m [%zu]", count);
    arena_reserve(arena, &t->moment2, bytes, "optimizer", "v [%zu]", count);
    arena->section = ARENA_TRAINING;
    arena_reserve(arena, &t->grads, whole * sizeof(float), "gradients", "gradients [%zu]", whole);
    if (optimizer->narrow_gradients && t->model->ranks > 1) {
        size_t most = largest_bucket(t->model);
        arena_reserve(arena, &t->narrow, 2 * most, "gradients", "in bf16 [%zu]", most);
    }
    arena->section = ARENA_ALWAYS;
}

struct Trainer *trainer_reserve(const struct Model *model, struct Arena *arena,
                                const struct OpsShape *shape, enum Recompute recompute,
                                const struct OptimizerOptions *optimizer,
                                const struct World *world, uint64_t seed) {
    struct Trainer *t = check_alloc(1, sizeof *t, "the trainer");
    int N = shape->N;
    size_t count = model->num_parameters, ints = (size_t)(N + 1) * sizeof(int);
    t->model = model, t->ops = model->ops, t->seed = seed;
    t->micro_tokens = N;
    t->progress.loss_scale = first_loss_scale(t->ops);
    if (optimizer && optimizer->zero && world_size(world) > 1)
        t->weights.share = (struct Share){world_rank(world), world_size(world)};
    arena_reserve(arena, &t->weights.data, count * t->ops->element_size, "weights", "weights [%zu]",
                  count);
    if (optimizer) optimizer_reserve(t, arena, optimizer);
    arena_reserve(arena, &t->norm_squared, sizeof(double), "optimizer", "norm_squared");
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
                     m->logp_old, m->logp_ref,     m->logp_now,       t->token,       t->ranges,
                     t->attention_host, t->attention_mean, t->block};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
    activations_free(t->activations);
    free(t);
}

struct Weights *trainer_weights(struct Trainer *t) { return &t->weights; }
struct OptimizerState trainer_optimizer(const struct Trainer *t) {
    return (struct OptimizerState){t->moment1, t->moment2, t->weights.master, t->weights.share};
}
float *trainer_gradients(struct Trainer *t) { return t->grads; }
struct TrainerProgress trainer_progress(const struct Trainer *t) { return t->progress; }
void trainer_set_progress(struct Trainer *t, struct TrainerProgress progress) {
    t->progress = progress;
}
void *trainer_workspace(struct Trainer *t) { return t->workspace; }

void trainer_reset_optimizer(struct Trainer *t) {
    size_t bytes = share_of(&t->weights.share, t->model->num_parameters) * sizeof(float);
    t->ops->fill_zero(t->moment1, bytes);
    t->ops->fill_zero(t->moment2, bytes);
    t->progress.step = 0;
}

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

static struct HeadStats stats_at(const struct HeadStats *stats, int i) {
    struct HeadStats moved = {stats->logp ? stats->logp + i : NULL,
                              stats->entropy ? stats->entropy + i : NULL,
                              stats->q ? stats->q + i : NULL,
                              stats->qlog ? stats->qlog + i : NULL};
    return moved;
}

void trainer_score(struct Trainer *t, const struct Weights *weights, const struct TrainingSet *set,
                   const int *pick, int num_pick, float temperature, const struct HeadStats *out) {
    const struct Head head = model_head(t->model, temperature);
    for (int next = 0, scored = 0; next < num_pick; scored += t->batch.loss.n) {
        next = micro_batch_pack(t, set, pick, num_pick, next);
        floatX *E = model_forward(t->model, weights, t->activations, &t->batch, NULL, t->workspace);
        struct HeadStats here = stats_at(out, scored);
        t->ops->head_forward(&here, E, model_head_weight(t->model, weights), &t->batch.loss, &head,
                             t->workspace);
    }
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
    t->watch = t->attention != NULL;
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

static void micro_batch_learn(struct Trainer *t, struct Upstream *u, float temperature) {
    const struct Head head = model_head(t->model, temperature);
    const struct HeadStats unwanted = {0};
    floatX *E = model_forward(t->model, &t->weights, t->activations, &t->batch,
                              t->watch ? t->attention : NULL, t->workspace);
    if (t->watch) attention_read(t);
    t->ops->head_forward_backward(&unwanted, model_hidden_gradient(t->activations),
                                  model_head_gradient(t->model, t->grads), E,
                                  model_head_weight(t->model, &t->weights), &t->batch.loss, &head,
                                  upstream, u, t->workspace);
    model_backward(t->model, &t->weights, t->activations, &t->batch, t->grads,
                   (struct BucketDone){0}, t->workspace);
}

/* ---- the optimizer step ---------------------------------------------------------------------- */

static double squared_norm(struct Trainer *t, const float *x, size_t n) {
    double result;
    t->ops->sum_of_squares(t->norm_squared, x, n, t->workspace);
    t->ops->download(&result, t->norm_squared, sizeof result);
    return result;
}

static const char *first_bad_tensor(struct Trainer *t) {
    for (int i = 0; i < t->model->num_tensors; i++) {
        const struct Tensor *tensor = &t->model->tensors[i];
        if (!isfinite(squared_norm(t, t->grads + tensor->offset, tensor->count)))
            return tensor->name;
    }
    return "the sum over all tensors";
}

/* Clips by the global norm (1211.5063) and updates the weights. If the norm is not finite, finds
   the tensor to blame and changes nothing. */
static void optimizer_step(struct Trainer *t, struct UpdateResult *result, float learning_rate) {
    const struct OptimizerOptions *o = &t->optimizer;
    if (!isfinite(result->grad_norm)) {
        result->skipped = true, result->bad_tensor = first_bad_tensor(t);
        return;
    }
    double scale = 1 / t->progress.loss_scale;
    if (o->grad_clip > 0 && result->grad_norm > o->grad_clip)
        scale *= o->grad_clip / result->grad_norm;
    struct AdamwStep step = {.learning_rate = learning_rate, .beta1 = o->beta1, .beta2 = o->beta2,
                             .epsilon = o->epsilon, .grad_scale = (float)scale,
                             .step = ++t->progress.step, .seed = t->seed};
    t->ops->adamw(t->weights.data, t->weights.master, t->moment1, t->moment2, t->grads, t->ranges,
                  t->num_ranges, 0, t->model->num_parameters, &step);
    loss_scale_grow(&t->progress, t->ops);
}

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

/* Forward pass, head and backward pass of the gathered minibatch, summed over micro-batches and
   ranks. Sets t->grads, result's norm (divided by the loss scale) and counts, and *stats. */
static void gradients(struct Trainer *t, const struct Objective *objective,
                      const struct TrainingSet *set, const struct ObjectiveBatch *view,
                      float temperature, struct UpdateResult *result,
                      struct ObjectiveStats *stats) {
    struct Minibatch *m = &t->mini;
    size_t count = t->model->num_parameters;
    *stats = (struct ObjectiveStats){0};
    result->micro_batches = 0, result->tokens = 0;
    t->ops->fill_zero(t->grads, count * sizeof(float));
    struct Upstream u = {objective, view, stats, (float)t->progress.loss_scale, 0};
    for (int next = 0; next < m->sequences; u.micro_first += t->batch.loss.n) {
        next = micro_batch_pack(t, set, m->pick, m->sequences, next);
        micro_batch_learn(t, &u, temperature);
        result->micro_batches++, result->tokens += t->batch.rows.N;
    }
    t->watch = false;
    t->ops->all_reduce(t->grads, count, -1, -1);
    result->grad_norm = sqrt(squared_norm(t, t->grads, count)) / t->progress.loss_scale;
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
    const struct TrainerProgress before = t->progress;
    while (!loss_is_bad && !isfinite(result.grad_norm) && loss_scale_shrink(&t->progress)) {
        gradients(t, objective, set, &view, temperature, &result, &here);
        result.overflows++;
    }
    if (!isfinite(result.grad_norm)) t->progress = before;   /* the scale was not the cause */
    if (loss_is_bad) {
        result.skipped = true, result.bad_tensor = "the loss";
        result.grad_norm = NAN;
    } else {
        optimizer_step(t, &result, learning_rate);
    }
    objective_stats_add(stats, &here);
    return result;
}
