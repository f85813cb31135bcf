/* The passes of the transformer: forward, backward (the same operations in reverse order), decode.

       x_0 = wte[token] + wpe[position]
       for each layer:   mid   = x   + proj(attention(position(qkv(norm_1(x)))))
                         x_l+1 = mid + mlp(norm_2(mid))
       E = norm_f(x_L)

   Each addition to the residual stream is computed together with the norm that follows it
   (norm_residual_forward), so that a sum is normalised while it is in cache or registers. */
#include "model.h"

#include <assert.h>
#include <stdlib.h>
#include "base/check.h"

static const floatX *weight_at(const struct Model *model, const struct Weights *weights,
                               size_t offset) {
    return offset == NO_TENSOR ? NULL : ops_at(model->ops, weights->data, offset);
}

static float *gradient_at(float *grads, size_t offset) {
    return offset == NO_TENSOR ? NULL : grads + offset;
}

struct LayerWeights model_layer_weights(const struct Model *model, const struct Weights *weights,
                                        int l) {
    struct LayerWeights pointers;
#define X(name) pointers.name = weight_at(model, weights, model->layers[l].name);
    LAYER_TENSORS(X)
#undef X
    return pointers;
}

struct GlobalWeights model_global_weights(const struct Model *model,
                                          const struct Weights *weights) {
    struct GlobalWeights pointers;
#define X(name) pointers.name = weight_at(model, weights, model->globals.name);
    GLOBAL_TENSORS(X)
#undef X
    return pointers;
}

struct LayerGradients model_layer_gradients(const struct Model *model, float *grads, int l) {
    struct LayerGradients pointers;
#define X(name) pointers.name = gradient_at(grads, model->layers[l].name);
    LAYER_TENSORS(X)
#undef X
    return pointers;
}

struct GlobalGradients model_global_gradients(const struct Model *model, float *grads) {
    struct GlobalGradients pointers;
#define X(name) pointers.name = gradient_at(grads, model->globals.name);
    GLOBAL_TENSORS(X)
#undef X
    return pointers;
}

static int model_qkv(const struct ModelConfig *config) {
    const struct Heads heads = model_heads(config);
    return heads_qkv(&heads);
}

/* ---- a layer's weights as the slots take them ----------------------------------------------- */

static struct Norm model_norm(const struct Model *model, const floatX *weight, const floatX *bias) {
    return (struct Norm){model->config.norm, (float)model->config.norm_epsilon, weight, bias};
}

static struct Mlp layer_mlp(const struct Model *model, const struct LayerWeights *w) {
    const struct ModelConfig *config = &model->config;
    return (struct Mlp){config->activation, w->fc_weight, w->fc_bias,
                        w->fc_proj_weight,  w->fc_proj_bias, config->C, config->F};
}

/* Rows of fc_weight, and columns of what it gives. */
static int model_fc_rows(const struct ModelConfig *config) {
    return config->F * activation_inputs(config->activation);
}

static struct Position layer_position(const struct Model *model, const struct LayerWeights *w) {
    return (struct Position){(float)model->config.norm_epsilon, w->q_norm_weight, w->k_norm_weight,
                             model->inv_freq};
}

/* Query and key heads of a token whose norm the backward pass needs; 0: they have none. */
static int model_normed_heads(const struct Model *model) {
    if (model->layers[0].q_norm_weight == NO_TENSOR) return 0;
    return model->config.NH + model->config.NKV;
}

/* ---- activations ---------------------------------------------------------------------------- */

/* First what the forward pass keeps for the backward pass, for all layers; then scratch that each
   layer reuses. Where backward computes a layer's numbers again there is room for one layer only:
   L below is 1 for every array but x with RECOMPUTE_LAYER, and for act with RECOMPUTE_MLP. */
struct Activations {
    int N, B, max_T;
    enum Recompute recompute;
    floatX *x;                       /* [L+1,N,C] residual stream entering each layer, and last the
                                        final norm */
    floatX *mid;                     /* [L,N,C] residual stream after attention */
    floatX *norm_1, *norm_2;         /* [L,N,C] */
    struct NormStats stats_1, stats_2;   /* [L,N] each */
    floatX *qkv;                     /* [L,N,QKV] as attention takes it */
    struct PositionSaved heads;      /* [L,N,NH+NKV,HS], [L,N,NH+NKV]; NULL where they have no
                                        norm */
    floatX *attention;               /* [L,N,NH*HS] */
    float *lse;                      /* [L,NH,N] */
    floatX *pre, *act;               /* [L,N,P], [L,N,F] */
    floatX *hidden;                  /* [N,C] E */
    struct NormStats stats_f;        /* [N] each */
    floatX *delta;                   /* [N,max(C,NH*HS)] forward: what is added to the residual
                                        stream next; backward: gradient of an operation's input */
    floatX *wide;                    /* [N,max(P,QKV)] backward: dpre, dqkv */
    floatX *dx;                      /* [N,C] gradient of the residual stream */
    floatX *dhidden;                 /* [N,C] dE */
};

/* Pointers to one layer's part of struct Activations. */
struct LayerActivations {
    floatX *x, *x_next, *mid, *norm_1, *norm_2, *qkv, *attention, *pre, *act;
    struct NormStats stats_1, stats_2;
    struct PositionSaved heads;
    float *lse;
};

static struct NormStats stats_at(const struct NormStats *stats, size_t row) {
    return (struct NormStats){stats->mean ? stats->mean + row : NULL, stats->rstd + row};
}

static struct PositionSaved heads_at(const struct Model *model, const struct PositionSaved *saved,
                                     size_t row) {
    if (saved->x == NULL) return *saved;
    size_t head = row * (size_t)model_normed_heads(model);
    return (struct PositionSaved){ops_at(model->ops, saved->x, head * (size_t)model->config.HS),
                                  saved->rstd + head};
}

static struct LayerActivations layer_activations(const struct Model *model,
                                                 const struct Activations *a, int l) {
    const struct ModelConfig *config = &model->config;
    const struct Ops *ops = model->ops;
    size_t x_rows = (size_t)l * (size_t)a->N, C = (size_t)config->C, F = (size_t)config->F;
    size_t rows = a->recompute == RECOMPUTE_LAYER ? 0 : x_rows;
    size_t act_rows = a->recompute == RECOMPUTE_NONE ? x_rows : 0;
    return (struct LayerActivations){
        .x = ops_at(ops, a->x, x_rows * C),
        .x_next = ops_at(ops, a->x, (x_rows + (size_t)a->N) * C),
        .mid = ops_at(ops, a->mid, rows * C),
        .norm_1 = ops_at(ops, a->norm_1, rows * C),
        .norm_2 = ops_at(ops, a->norm_2, rows * C),
        .qkv = ops_at(ops, a->qkv, rows * (size_t)model_qkv(config)),
        .attention = ops_at(ops, a->attention, rows * (size_t)(config->NH * config->HS)),
        .pre = ops_at(ops, a->pre, rows * (size_t)model_fc_rows(config)),
        .act = ops_at(ops, a->act, act_rows * F),
        .stats_1 = stats_at(&a->stats_1, rows),
        .stats_2 = stats_at(&a->stats_2, rows),
        .heads = heads_at(model, &a->heads, rows),
        .lse = a->lse + rows * (size_t)config->NH,
    };
}

/* Reserves [layers, rows, width], or [rows, width] where layers is 0, and labels the buffer with
   its name and shape. element_size in bytes. */
static void reserve(struct Arena *arena, void *pointer_address, const char *group, const char *name,
                    size_t element_size, int layers, int rows, int width) {
    size_t bytes = element_size * (size_t)(layers ? layers : 1) * (size_t)rows * (size_t)width;
    if (layers)
        arena_reserve(arena, pointer_address, bytes, group, "%s [%d, %d, %d]", name, layers, rows,
                      width);
    else
        arena_reserve(arena, pointer_address, bytes, group, "%s [%d, %d]", name, rows, width);
}

/* The statistics of a norm of N tokens in each of L layers. */
static void reserve_stats(struct Arena *arena, struct NormStats *stats,
                          const struct ModelConfig *config, const char *group, const char *name,
                          int L, int N) {
    size_t bytes = (size_t)L * (size_t)N * sizeof(float);
    if (config->norm == NORM_LAYER)
        arena_reserve(arena, &stats->mean, bytes, group, "%s mean [%d, %d]", name, L, N);
    arena_reserve(arena, &stats->rstd, bytes, group, "%s rstd [%d, %d]", name, L, N);
}

struct Activations *activations_reserve(const struct Model *model, struct Arena *arena, int N,
                                        int B, int max_T, enum Recompute recompute) {
    const struct ModelConfig *config = &model->config;
    int C = config->C, F = config->F, P = model_fc_rows(config), QKV = model_qkv(config);
    int width = config->NH * config->HS, normed = model_normed_heads(model);
    int L = recompute == RECOMPUTE_LAYER ? 1 : config->L;
    int L_act = recompute == RECOMPUTE_NONE ? config->L : 1;
    size_t size = model->ops->element_size;
    const char *saved = "activations", *scratch = "backward scratch";
    struct Activations *a = check_alloc(1, sizeof *a, "the activations");
    a->N = N, a->B = B, a->max_T = max_T, a->recompute = recompute;
    reserve(arena, &a->x, saved, "residual", size, config->L + 1, N, C);
    reserve(arena, &a->mid, saved, "residual after attention", size, L, N, C);
    reserve(arena, &a->norm_1, saved, "norm 1", size, L, N, C);
    reserve(arena, &a->norm_2, saved, "norm 2", size, L, N, C);
    reserve_stats(arena, &a->stats_1, config, saved, "norm 1", L, N);
    reserve_stats(arena, &a->stats_2, config, saved, "norm 2", L, N);
    reserve(arena, &a->qkv, saved, "qkv", size, L, N, QKV);
    if (normed) {
        reserve(arena, &a->heads.x, saved, "qk before norm", size, L, N, normed * config->HS);
        reserve(arena, &a->heads.rstd, saved, "qk norm rstd", sizeof(float), L, N, normed);
    }
    reserve(arena, &a->attention, saved, "attention", size, L, N, width);
    reserve(arena, &a->lse, saved, "attention lse", sizeof(float), L, config->NH, N);
    reserve(arena, &a->pre, saved, "mlp before activation", size, L, N, P);
    reserve(arena, &a->act, saved, "mlp after activation", size, L_act, N, F);
    reserve(arena, &a->hidden, saved, "hidden states E", size, 0, N, C);
    reserve_stats(arena, &a->stats_f, config, saved, "final norm", 1, N);
    reserve(arena, &a->delta, scratch, "delta", size, 0, N, width > C ? width : C);
    reserve(arena, &a->wide, scratch, "dqkv or dpre", size, 0, N, QKV > P ? QKV : P);
    reserve(arena, &a->dx, scratch, "residual gradient", size, 0, N, C);
    reserve(arena, &a->dhidden, scratch, "dE", size, 0, N, C);
    return a;
}

void activations_free(struct Activations *activations) { free(activations); }

floatX *model_hidden_gradient(struct Activations *activations) { return activations->dhidden; }

/* ---- forward and backward ------------------------------------------------------------------- */

/* The attention half of a layer: from norm_1's output to the residual stream after attention
   (s->mid) and norm_2's output. entropy: attention entropies [NH,N] of this layer, or NULL. Uses
   a->delta. */
static void attention_block(const struct Model *model, const struct LayerWeights *w,
                            const struct LayerActivations *s, struct Activations *a,
                            const struct Batch *batch, float *entropy, void *workspace) {
    const struct ModelConfig *config = &model->config;
    const struct Ops *ops = model->ops;
    const struct Heads heads = model_heads(config);
    const struct Norm norm_2 = model_norm(model, w->ln_2_weight, w->ln_2_bias);
    const struct Position position = layer_position(model, w);
    int N = batch->rows.N, C = config->C, width = config->NH * config->HS;
    ops->matmul_forward(s->qkv, s->norm_1, w->qkv_weight, w->qkv_bias, N, C, model_qkv(config));
    ops->position_forward(s->qkv, &s->heads, batch->position, &position, &heads, N);
    ops->attention_forward(s->attention, s->lse, entropy, s->qkv, &batch->rows, &heads, workspace);
    ops->matmul_forward(a->delta, s->attention, w->proj_weight, w->proj_bias, N, width, C);
    ops->norm_residual_forward(s->mid, s->norm_2, &s->stats_2, s->x, a->delta, &norm_2, N, C);
}

/* One layer's forward pass. On entry a->delta holds the feed-forward output of layer l - 1, which
   is not yet added to the residual stream; on return it holds that of layer l. */
static void layer_forward(const struct Model *model, const struct Weights *weights,
                          struct Activations *a, const struct Batch *batch, int l, float *entropy,
                          void *workspace) {
    const struct Ops *ops = model->ops;
    const struct LayerWeights w = model_layer_weights(model, weights, l);
    const struct LayerActivations s = layer_activations(model, a, l);
    const struct Norm norm_1 = model_norm(model, w.ln_1_weight, w.ln_1_bias);
    const struct Mlp mlp = layer_mlp(model, &w);
    int N = batch->rows.N, C = model->config.C;

    if (l == 0) {
        ops->norm_forward(s.norm_1, &s.stats_1, s.x, &norm_1, N, C);
    } else {
        const floatX *mid = layer_activations(model, a, l - 1).mid;
        ops->norm_residual_forward(s.x, s.norm_1, &s.stats_1, mid, a->delta, &norm_1, N, C);
    }
    attention_block(model, &w, &s, a, batch, entropy, workspace);
    ops->mlp_forward(a->delta, s.pre, s.act, s.norm_2, &mlp, N);
}

/* Computes again what the forward pass of layer l did not keep, with the same slots on the same
   numbers, so the bits are the same. Not needed for the last layer: the arrays with room for one
   layer still hold its numbers. Overwrites a->delta. */
static void layer_recompute(const struct Model *model, const struct LayerWeights *w,
                            const struct LayerActivations *s, struct Activations *a,
                            const struct Batch *batch, int l, void *workspace) {
    const struct ModelConfig *config = &model->config;
    const struct Ops *ops = model->ops;
    const struct Norm norm_1 = model_norm(model, w->ln_1_weight, w->ln_1_bias);
    int N = batch->rows.N, C = config->C;
    if (a->recompute == RECOMPUTE_NONE || l == config->L - 1) return;
    if (a->recompute == RECOMPUTE_LAYER) {
        ops->norm_forward(s->norm_1, &s->stats_1, s->x, &norm_1, N, C);
        attention_block(model, w, s, a, batch, NULL, workspace);
        ops->matmul_forward(s->pre, s->norm_2, w->fc_weight, w->fc_bias, N, C,
                            model_fc_rows(config));
    }
    ops->activation_forward(s->act, s->pre, N, config->F, config->activation);
}

/* After an update on several ranks the weights arrive while the first layers compute already. */
static void await_bucket(const struct Model *model, const struct Weights *weights, int bucket) {
    if (!weights->arrives || weights->arrives[bucket] < 0) return;
    model->ops->event_wait(weights->arrives[bucket]);
}

floatX *model_forward(const struct Model *model, const struct Weights *weights,
                      struct Activations *activations, const struct Batch *batch,
                      float *attention_entropy, void *workspace) {
    const struct ModelConfig *config = &model->config;
    const struct Ops *ops = model->ops;
    struct Activations *a = activations;
    const struct GlobalWeights w = model_global_weights(model, weights);
    const struct Norm norm_f = model_norm(model, w.ln_f_weight, w.ln_f_bias);
    const struct Rows *rows = &batch->rows;
    int N = rows->N, C = config->C, L = config->L;
    assert(N <= a->N && rows->B <= a->B && rows->max_T <= a->max_T);
    assert(rows->max_T <= config->max_T);

    await_bucket(model, weights, 0);
    ops->embedding_forward(a->x, batch->token, batch->position, w.wte, w.wpe, N, C);
    for (int l = 0; l < L; l++) {
        size_t offset = (size_t)l * (size_t)config->NH * (size_t)N;
        float *entropy = attention_entropy ? attention_entropy + offset : NULL;
        await_bucket(model, weights, l + 1);
        layer_forward(model, weights, a, batch, l, entropy, workspace);
    }
    await_bucket(model, weights, L + 1);
    const struct LayerActivations last = layer_activations(model, a, L - 1);
    ops->norm_residual_forward(last.x_next, a->hidden, &a->stats_f, last.mid, a->delta, &norm_f, N,
                               C);
    return a->hidden;
}

/* The gradients of layer_forward's operations, from its last to its first. On entry a->dx is the
   gradient of the residual stream after the layer, on return of the one before it: the two norms
   add the gradients of the two branches to it. */
static void layer_backward(const struct Model *model, const struct Weights *weights,
                           struct Activations *a, const struct Batch *batch, int l, float *grads,
                           void *workspace) {
    const struct ModelConfig *config = &model->config;
    const struct Ops *ops = model->ops;
    const struct LayerWeights w = model_layer_weights(model, weights, l);
    const struct LayerGradients d = model_layer_gradients(model, grads, l);
    const struct LayerActivations s = layer_activations(model, a, l);
    const struct Norm norm_1 = model_norm(model, w.ln_1_weight, w.ln_1_bias);
    const struct Norm norm_2 = model_norm(model, w.ln_2_weight, w.ln_2_bias);
    const struct Mlp mlp = layer_mlp(model, &w);
    const struct MlpGradients dmlp = {d.fc_weight, d.fc_bias, d.fc_proj_weight, d.fc_proj_bias};
    const struct Position position = layer_position(model, &w);
    const struct PositionGradients dposition = {d.q_norm_weight, d.k_norm_weight};
    const struct Heads heads = model_heads(config);
    int N = batch->rows.N, C = config->C, width = config->NH * config->HS;

    layer_recompute(model, &w, &s, a, batch, l, workspace);
    ops->mlp_backward(a->delta, &dmlp, a->wide, a->dx, s.norm_2, s.pre, s.act, &mlp, N, workspace);
    ops->norm_backward(a->dx, d.ln_2_weight, d.ln_2_bias, a->delta, s.mid, &norm_2, &s.stats_2, N,
                       C, workspace);
    ops->matmul_backward(a->delta, d.proj_weight, d.proj_bias, a->dx, s.attention, w.proj_weight, N,
                         width, C, workspace);
    ops->attention_backward(a->wide, a->delta, s.attention, s.qkv, s.lse, &batch->rows, &heads,
                            workspace);
    ops->position_backward(a->wide, &dposition, &s.heads, batch->position, &position, &heads, N,
                           workspace);
    ops->matmul_backward(a->delta, d.qkv_weight, d.qkv_bias, a->wide, s.norm_1, w.qkv_weight, N, C,
                         model_qkv(config), workspace);
    ops->norm_backward(a->dx, d.ln_1_weight, d.ln_1_bias, a->delta, s.x, &norm_1, &s.stats_1, N, C,
                       workspace);
}

void model_backward(const struct Model *model, const struct Weights *weights,
                    struct Activations *activations, const struct Batch *batch, float *grads,
                    struct BucketDone done, void *workspace) {
    const struct Ops *ops = model->ops;
    struct Activations *a = activations;
    const struct GlobalWeights w = model_global_weights(model, weights);
    const struct GlobalGradients d = model_global_gradients(model, grads);
    const struct Norm norm_f = model_norm(model, w.ln_f_weight, w.ln_f_bias);
    int N = batch->rows.N, C = model->config.C, L = model->config.L;

    ops->fill_zero(a->dx, (size_t)N * (size_t)C * ops->element_size);
    const floatX *x = layer_activations(model, a, L - 1).x_next;
    ops->norm_backward(a->dx, d.ln_f_weight, d.ln_f_bias, a->dhidden, x, &norm_f, &a->stats_f, N, C,
                       workspace);
    if (done.call) done.call(done.context, L + 1);
    for (int l = L - 1; l >= 0; l--) {
        layer_backward(model, weights, a, batch, l, grads, workspace);
        if (done.call) done.call(done.context, l + 1);
    }
    ops->embedding_backward(d.wte, d.wpe, a->dx, batch->token, batch->position, N, C, workspace);
    if (done.call) done.call(done.context, 0);
}

/* ---- decode --------------------------------------------------------------------------------- */

/* One of a layer's matrices in the layout that ops->matmul_decode reads, for all layers. */
struct PackedMatrix {
    char *data;      /* [L][stride] bytes */
    size_t stride;   /* 0: the backend reads the weight itself, and data is NULL */
    int C, OC;       /* w is [OC,C] */
};

struct DecodeState {
    int R;
    struct PackedMatrix qkv, proj, fc, fc_proj, head;
    const void *head_weight; /* the head's weight for head_sample; set by decode_load_weights */
    struct KvCache cache;
    floatX *x, *norm, *qkv_out, *attention, *pre, *act, *delta;   /* [R, ...] */
    struct NormStats stats;                                       /* [R] each */
};

static void packed_reserve(struct PackedMatrix *matrix, struct Arena *arena, const struct Ops *ops,
                           const char *name, int layers, int C, int OC) {
    /* The stride is a multiple of 256 so that every layer is aligned to 256 bytes, as the first. */
    matrix->stride = (ops->matmul_packed_size(C, OC) + 255) / 256 * 256;
    matrix->C = C, matrix->OC = OC;
    if (matrix->stride == 0) return;
    arena_reserve(arena, &matrix->data, (size_t)layers * matrix->stride, "decode weights",
                  "packed %s [%d, %d, %d]", name, layers, OC, C);
}

static void packed_load(struct PackedMatrix *matrix, const struct Ops *ops, const floatX *w,
                        int l) {
    if (matrix->stride == 0) return;
    ops->matmul_pack(matrix->data + (size_t)l * matrix->stride, w, matrix->C, matrix->OC);
}

/* The `packed` argument of matmul_decode for layer l, whose weight is w. */
static const void *packed_at(const struct PackedMatrix *matrix, const floatX *w, int l) {
    return matrix->stride ? (const void *)(matrix->data + (size_t)l * matrix->stride) : w;
}

static void packed_multiply(floatX *out, const floatX *x, const struct PackedMatrix *matrix,
                            const floatX *w, const floatX *bias, const struct Ops *ops, int l,
                            int R) {
    ops->matmul_decode(out, x, packed_at(matrix, w, l), bias, R, matrix->C, matrix->OC);
}

/* Bytes of a page in all layers. */
static size_t cache_page_bytes(const struct Ops *ops, const struct Heads *heads, int L) {
    return (size_t)L * 2 * (size_t)heads->NKV * KV_PAGE * (size_t)heads->HS * ops->element_size;
}

static void cache_reserve(struct KvCache *cache, struct Arena *arena, const struct Ops *ops) {
    const char *group = "decode cache";
    size_t prompt = (size_t)cache->prompt_slots * (size_t)cache->prompt_width;
    size_t tail = (size_t)cache->tail_slots * (size_t)cache->tail_width;
    arena_reserve(arena, &cache->pool,
                  (size_t)cache->pages * cache_page_bytes(ops, &cache->heads, cache->L), group,
                  "pages [%d, %d, 2, %d, %d, %d]", cache->L, cache->pages, cache->heads.NKV,
                  KV_PAGE, cache->heads.HS);
    arena_reserve(arena, &cache->prompt, prompt * sizeof(int), group, "prompts' pages [%d, %d]",
                  cache->prompt_slots, cache->prompt_width);
    arena_reserve(arena, &cache->tail, tail * sizeof(int), group, "tails' pages [%d, %d]",
                  cache->tail_slots, cache->tail_width);
}

size_t decode_page_bytes(const struct Model *model) {
    const struct Heads heads = model_heads(&model->config);
    return cache_page_bytes(model->ops, &heads, model->config.L);
}

struct DecodeState *decode_reserve(const struct Model *model, struct Arena *arena, int R,
                                   const struct CacheSize *cache) {
    const struct ModelConfig *config = &model->config;
    const struct Ops *ops = model->ops;
    int L = config->L, C = config->C, F = config->F, QKV = model_qkv(config);
    int heads = config->NH * config->HS, P = model_fc_rows(config);
    size_t size = ops->element_size;
    const char *group = "decode scratch";
    struct DecodeState *state = check_alloc(1, sizeof *state, "the decode state");
    state->R = R;
    packed_reserve(&state->qkv, arena, ops, "qkv", L, C, QKV);
    packed_reserve(&state->proj, arena, ops, "proj", L, heads, C);
    packed_reserve(&state->fc, arena, ops, "fc", L, C, P);
    packed_reserve(&state->fc_proj, arena, ops, "fc_proj", L, F, C);
    packed_reserve(&state->head, arena, ops, "head", 1, C, config->Vp);

    state->cache = (struct KvCache){
        .heads = model_heads(config), .L = L, .pages = cache->pages,
        .prompt_slots = cache->prompt_slots, .prompt_width = cache->prompt_width,
        .tail_slots = cache->tail_slots, .tail_width = cache->tail_width,
    };
    cache_reserve(&state->cache, arena, ops);

    reserve(arena, &state->x, group, "residual", size, 0, R, C);
    reserve(arena, &state->norm, group, "norm", size, 0, R, C);
    reserve_stats(arena, &state->stats, config, group, "norm", 1, R);
    reserve(arena, &state->qkv_out, group, "qkv", size, 0, R, QKV);
    reserve(arena, &state->attention, group, "attention", size, 0, R, heads);
    if (P > F) reserve(arena, &state->pre, group, "mlp before activation", size, 0, R, P);
    reserve(arena, &state->act, group, "mlp after activation", size, 0, R, F);
    reserve(arena, &state->delta, group, "delta", size, 0, R, C);
    return state;
}

void decode_free(struct DecodeState *state) { free(state); }

void decode_set_pages(const struct Model *model, struct DecodeState *state, const int *prompt,
                      const int *tail) {
    const struct KvCache *c = &state->cache;
    size_t prompts = (size_t)c->prompt_slots * (size_t)c->prompt_width * sizeof(int);
    size_t tails = (size_t)c->tail_slots * (size_t)c->tail_width * sizeof(int);
    if (prompt) model->ops->upload(c->prompt, prompt, prompts);
    if (tail) model->ops->upload(c->tail, tail, tails);
}

const void *decode_head_weight(const struct DecodeState *state) { return state->head_weight; }

void decode_load_weights(const struct Model *model, struct DecodeState *state,
                         const struct Weights *weights) {
    const struct Ops *ops = model->ops;
    for (int l = 0; l < model->config.L; l++) {
        const struct LayerWeights w = model_layer_weights(model, weights, l);
        packed_load(&state->qkv, ops, w.qkv_weight, l);
        packed_load(&state->proj, ops, w.proj_weight, l);
        packed_load(&state->fc, ops, w.fc_weight, l);
        packed_load(&state->fc_proj, ops, w.fc_proj_weight, l);
    }
    packed_load(&state->head, ops, model_head_weight(model, weights), 0);
    state->head_weight = packed_at(&state->head, model_head_weight(model, weights), 0);
}

/* layer_forward for decoding: one token per row, which attends to keys and values in the cache. */
static void layer_decode(const struct Model *model, const struct Weights *weights,
                         struct DecodeState *s, const struct DecodeRows *rows, int l, int R,
                         void *workspace) {
    const struct Ops *ops = model->ops;
    const struct LayerWeights w = model_layer_weights(model, weights, l);
    const struct Norm norm_1 = model_norm(model, w.ln_1_weight, w.ln_1_bias);
    const struct Norm norm_2 = model_norm(model, w.ln_2_weight, w.ln_2_bias);
    const struct Mlp mlp = layer_mlp(model, &w);
    const struct Position position = layer_position(model, &w);
    const struct PositionSaved none = {NULL, NULL};
    int C = model->config.C;

    if (l == 0) ops->norm_forward(s->norm, &s->stats, s->x, &norm_1, R, C);
    else ops->norm_residual_forward(s->x, s->norm, &s->stats, s->x, s->delta, &norm_1, R, C);
    packed_multiply(s->qkv_out, s->norm, &s->qkv, w.qkv_weight, w.qkv_bias, ops, l, R);
    ops->position_forward(s->qkv_out, &none, rows->position, &position, &s->cache.heads, R);
    ops->attention_decode(s->attention, s->qkv_out, &s->cache, rows, l, R, workspace);
    packed_multiply(s->delta, s->attention, &s->proj, w.proj_weight, w.proj_bias, ops, l, R);
    ops->norm_residual_forward(s->x, s->norm, &s->stats, s->x, s->delta, &norm_2, R, C);
    ops->mlp_decode(s->delta, s->pre, s->act, s->norm, packed_at(&s->fc, w.fc_weight, l),
                    packed_at(&s->fc_proj, w.fc_proj_weight, l), &mlp, R);
}

floatX *model_decode(const struct Model *model, const struct Weights *weights,
                     struct DecodeState *state, const struct DecodeRows *rows, int R,
                     void *workspace) {
    const struct Ops *ops = model->ops;
    const struct GlobalWeights w = model_global_weights(model, weights);
    const struct Norm norm_f = model_norm(model, w.ln_f_weight, w.ln_f_bias);
    struct DecodeState *s = state;
    int C = model->config.C;
    assert(R <= s->R);

    ops->embedding_forward(s->x, rows->token, rows->position, w.wte, w.wpe, R, C);
    for (int l = 0; l < model->config.L; l++)
        layer_decode(model, weights, s, rows, l, R, workspace);
    ops->norm_residual_forward(s->x, s->norm, &s->stats, s->x, s->delta, &norm_f, R, C);
    return s->norm;
}
