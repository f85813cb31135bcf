/* A model with weights, a packed batch and an objective on any backend: what test_model.c and
   test_golden.c run the passes with. */
#ifndef MODEL_RIG_H
#define MODEL_RIG_H

#include "test.h"
#include "../llmc/io/safetensors.h"
#include "../llmc/kernels/backends.h"
#include "../llmc/model.h"

/* From the command line: PROGRAM [BACKEND [DTYPE [PATTERN]]]. */
static const char *backend = "cpu", *dtype = "auto";

/* J = sum over tokens with loss of dlogp * logp + dentropy * H. */
struct Rig {
    const struct Ops *ops;
    enum Recompute recompute;
    struct Model *model;
    struct Arena arena;
    struct Weights weights;
    struct Activations *activations;
    struct Batch batch;
    float *grads, *attention_entropy;
    int *prompt, *seen;                             /* backend; for rig_cut */
    void *workspace;
    int N, B, n;                                    /* the rest is host memory */
    int *token, *row_start, *row, *target;
    float *dlogp, *dentropy, *logp, *entropy;
};

static inline bool is_narrow(const struct Ops *ops) { return strcmp(ops->products, "fp32") != 0; }

/* Half the distance from 1 to the next element. */
static inline double rounding_of(const struct Ops *ops) {
    return strcmp(ops->products, "bf16") == 0 ? 0x1p-8 : 0x1p-11;
}

/* The references in double and the files of other programs are compared with float32 only. How the
   16-bit types round is tested operation by operation (test_ops_dense.c and its neighbours). */
#define SKIP_IF_NARROW() \
    if (is_narrow(ops_open(backend, dtype, 0))) skip()

static inline void *new_ints(int n) { return calloc((size_t)n + 1, sizeof(int)); }

/* Random tokens. Every position has a loss but every third one and the last of each row. */
static inline void rig_fill(struct Rig *rig, const int *lengths, int B) {
    struct Rng rng;
    rng_open(&rng, 5, RNG_TEST, 9);
    rig->B = B;
    rig->row_start = new_ints(B);
    for (int b = 0; b < B; b++) rig->row_start[b + 1] = rig->row_start[b] + lengths[b];
    int N = rig->N = rig->row_start[B], *position = new_ints(N), longest = 0;
    rig->token = new_ints(N), rig->row = new_ints(N), rig->target = new_ints(N);
    for (int i = 0; i < N; i++)
        rig->token[i] = (int)rng_below(&rng, (uint32_t)rig->model->config.V);
    for (int b = 0; b < B; b++) {
        if (lengths[b] > longest) longest = lengths[b];
        for (int t = 0; t < lengths[b]; t++) {
            position[rig->row_start[b] + t] = t;
            if (t + 1 == lengths[b] || t % 3 == 0) continue;
            rig->row[rig->n] = rig->row_start[b] + t;
            rig->target[rig->n++] = rig->token[rig->row_start[b] + t + 1];
        }
    }
    rig->dlogp = new_normal((size_t)N, 1, 21);
    rig->dentropy = new_normal((size_t)N, 1, 22);
    rig->logp = calloc((size_t)N, sizeof(float));
    rig->entropy = calloc((size_t)N, sizeof(float));
    rig->batch = (struct Batch){.rows = {.N = N, .B = B, .max_T = longest},
                                .loss = {.n = rig->n, .N = N}};
    int block = rig->ops->attention_block, blocks = block ? N / block + N : 0;
    arena_reserve(&rig->arena, &rig->batch.position, (size_t)N * sizeof(int), "batch", "position");
    arena_reserve(&rig->arena, &rig->batch.token, (size_t)N * sizeof(int), "batch", "token");
    arena_reserve(&rig->arena, &rig->batch.loss.row, (size_t)N * sizeof(int), "batch", "row");
    arena_reserve(&rig->arena, &rig->batch.loss.target, (size_t)N * sizeof(int), "batch", "target");
    arena_reserve(&rig->arena, &rig->batch.rows.start, (size_t)(N + 1) * sizeof(int), "batch",
                  "row_start");
    arena_reserve(&rig->arena, &rig->prompt, (size_t)N * sizeof(int), "batch", "prompt");
    arena_reserve(&rig->arena, &rig->seen, (size_t)N * sizeof(int), "batch", "seen");
    arena_reserve(&rig->arena, &rig->batch.rows.block,
                  (size_t)blocks * sizeof *rig->batch.rows.block, "batch", "blocks");
    size_t parameters = rig->model->num_parameters;
    arena_reserve(&rig->arena, &rig->weights.data, parameters * rig->ops->element_size, "weights",
                  "weights");
    arena_reserve(&rig->arena, &rig->grads, parameters * sizeof(float), "gradients", "gradients");
    const struct ModelConfig *c = &rig->model->config;
    arena_reserve(&rig->arena, &rig->attention_entropy,
                  (size_t)c->L * (size_t)c->NH * (size_t)N * sizeof(float), "batch", "entropy");
    struct OpsShape shape = {.N = N, .C = c->C, .F = c->F, .NH = c->NH, .NKV = c->NKV, .HS = c->HS,
                             .V = c->V, .Vp = c->Vp, .max_T = longest, .R = N,
                             .max_length = longest};
    arena_reserve(&rig->arena, &rig->workspace, rig->ops->workspace_size(&shape), "workspace",
                  "workspace");
    /* More room than the batch needs, so that layer strides and batch sizes differ. */
    rig->activations = activations_reserve(rig->model, &rig->arena, N + 3, N + 1, longest,
                                            rig->recompute);
    arena_commit(&rig->arena, rig->ops);
    rig->ops->upload(rig->batch.position, position, (size_t)N * sizeof(int));
    rig->ops->fill_zero(rig->grads, parameters * sizeof(float));
    free(position);
}

/* The host's side of the batch to the backend. */
static inline void rig_upload(struct Rig *rig) {
    rig->ops->upload(rig->batch.token, rig->token, (size_t)rig->N * sizeof(int));
    rig->ops->upload(rig->batch.loss.row, rig->row, (size_t)rig->n * sizeof(int));
    rig->ops->upload(rig->batch.loss.target, rig->target, (size_t)rig->n * sizeof(int));
    struct Rows *rows = &rig->batch.rows;
    rig->ops->upload(rows->start, rig->row_start, (size_t)(rig->B + 1) * sizeof(int));
    if (rig->ops->attention_block == 0) return;
    struct QueryBlock block[1024];
    assert_true(rig->N / rig->ops->attention_block + rig->B <= 1024);
    rows->blocks = rows_cut_blocks(block, rig->row_start, NULL, rig->B, rig->ops->attention_block);
    rig->ops->upload(rows->block, block, (size_t)rows->blocks * sizeof *block);
}

/* Cuts the rows into more: row b is [start[b], start[b+1]) and has prompt[b]. */
static inline void rig_cut(struct Rig *rig, const int *start, const int *prompt, int B) {
    struct Rows *rows = &rig->batch.rows;
    struct QueryBlock block[1024];
    int seen[64];
    assert_true(B <= 64 && start[B] == rig->N);
    rows_seen(seen, start, prompt, B);
    rows->B = B, rows->prompt = rig->prompt, rows->seen = rig->seen;
    rig->ops->upload(rows->start, start, (size_t)(B + 1) * sizeof(int));
    rig->ops->upload(rows->prompt, prompt, (size_t)B * sizeof(int));
    rig->ops->upload(rows->seen, seen, (size_t)B * sizeof(int));
    if (rig->ops->attention_block == 0) return;
    assert_true(rig->N / rig->ops->attention_block + B <= 1024);
    rows->blocks = rows_cut_blocks(block, start, prompt, B, rig->ops->attention_block);
    rig->ops->upload(rows->block, block, (size_t)rows->blocks * sizeof *block);
}

/* Weights large enough that attention and GELU are far from linear. */
static inline void rig_random_weights(struct Rig *rig) {
    float *host = calloc(rig->model->num_parameters, sizeof *host);
    for (int i = 0; i < rig->model->num_tensors; i++) {
        const struct Tensor *tensor = &rig->model->tensors[i];
        int columns = tensor->shape[1] ? tensor->shape[1] : 1;
        float scale = tensor->shape[1] ? 1.5f / sqrtf((float)columns) : 0.2f;
        float *w = host + tensor->offset;
        fill_normal(w, tensor->saved, scale, 100 + (uint64_t)i);
        for (size_t j = 0; tensor->init_value == 1 && j < tensor->count; j++) w[j] += 1;
    }
    elements_upload(rig->ops, rig->weights.data, host, rig->model->num_parameters);
    free(host);
}

static inline void rig_open_recompute(struct Rig *rig, const struct ModelConfig *config,
                                      const int *lengths, int B, enum Recompute recompute) {
    memset(rig, 0, sizeof *rig);
    rig->recompute = recompute;
    assert_null(model_config_problem(config));
    rig->ops = ops_open(backend, dtype, 0);
    rig->model = model_build(config, rig->ops);
    rig_fill(rig, lengths, B);
    rig_upload(rig);
    rig_random_weights(rig);
}

static inline void rig_open(struct Rig *rig, const struct ModelConfig *config, const int *lengths,
                            int B) {
    rig_open_recompute(rig, config, lengths, B, RECOMPUTE_NONE);
}

static inline void rig_close(struct Rig *rig) {
    activations_free(rig->activations);
    arena_free(&rig->arena);
    model_free(rig->model);
    free(rig->token), free(rig->row_start), free(rig->row), free(rig->target);
    free(rig->dlogp), free(rig->dentropy), free(rig->logp), free(rig->entropy);
}

static inline floatX *rig_forward(struct Rig *rig) {
    return model_forward(rig->model, &rig->weights, rig->activations, &rig->batch,
                         rig->attention_entropy, rig->workspace);
}

static inline void copy_coefficients(void *context, int first_row, int rows,
                                     const struct HeadStats *stats, float *dlogp, float *dentropy) {
    const struct Rig *rig = context;
    (void)stats;
    memcpy(dlogp, rig->dlogp + first_row, (size_t)rows * sizeof *dlogp);
    memcpy(dentropy, rig->dentropy + first_row, (size_t)rows * sizeof *dentropy);
}

/* Forward, head and backward: rig->logp and entropy [n] =, rig->grads +=. */
static inline void rig_gradient(struct Rig *rig) {
    const struct Head head = model_head(rig->model, 1);
    const floatX *E = rig_forward(rig);
    struct HeadStats stats = {.logp = rig->logp, .entropy = rig->entropy};
    rig->ops->head_forward_backward(
        &stats, model_hidden_gradient(rig->activations),
        model_head_gradient(rig->model, rig->grads), E,
        model_head_weight(rig->model, &rig->weights), &rig->batch.loss, &head, copy_coefficients,
        rig, rig->workspace);
    model_backward(rig->model, &rig->weights, rig->activations, &rig->batch, rig->grads,
                   (struct BucketDone){0}, rig->workspace);
}

static inline float *rig_download(struct Rig *rig, const float *in, size_t n) {
    float *host = malloc(n * sizeof *host);
    rig->ops->download(host, in, n * sizeof *host);
    return host;
}

/* ---- files of expected numbers --------------------------------------------------------------- */

/* A whole tensor of the golden file. */
static inline float *golden(const struct Safetensors *file, const char *name, size_t count) {
    const struct SafetensorsEntry *entry = safetensors_find(file, name);
    if (entry == NULL || entry->count != count) fail_msg("golden file: %s", name);
    float *x = malloc(count * sizeof *x);
    safetensors_read(file, entry, x, 0, count);
    return x;
}

static inline void check_golden(const struct Safetensors *file, const char *name,
                                const float *found, size_t count, double bound) {
    float *expected = golden(file, name, count);
    double *wide = malloc(count * sizeof *wide);
    for (size_t i = 0; i < count; i++) wide[i] = expected[i];
    ASSERT_CLOSE(name, relative_l2(found, wide, count), bound);
    free(expected);
    free(wide);
}

static inline void golden_ints(int *out, const struct Safetensors *file, const char *name,
                               int count) {
    float *x = golden(file, name, (size_t)count);
    for (int i = 0; i < count; i++) out[i] = (int)x[i];
    free(x);
}

/* The gradient of a tensor in the file's layout. */
static inline float *gradient_as_saved(const struct Tensor *tensor, const float *grads) {
    int rows = tensor->rows_saved, columns = tensor->shape[1] ? tensor->shape[1] : 1;
    float *out = malloc((size_t)rows * (size_t)columns * sizeof *out);
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++)
            out[tensor->transposed ? c * rows + r : r * columns + c] =
                grads[tensor->offset + (size_t)r * columns + c];
    return out;
}

#endif
