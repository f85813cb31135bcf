/* What the benchmarks share: a model that trains or generates. */
#ifndef BENCH_RIG_H
#define BENCH_RIG_H

#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "../../llmc/rl/sampler.h"
#include "../../llmc/rl/trainer.h"

/* A named size with its vocabulary: "gpt2" 50257, "tiny" (simulated backends) 97. */
static inline struct Model *bench_model(const char *name, const struct Ops *ops) {
    struct ModelConfig c;
    model_config_named(&c, name);
    c.V = c.V_saved = strcmp(name, "tiny") == 0 ? 97 : 50257;
    c.Vp = (c.V + ops->vocabulary_multiple - 1) / ops->vocabulary_multiple *
           ops->vocabulary_multiple;
    return model_build(&c, ops);
}

/* Room for a trunk of N tokens in sequences of at most T, and for R decode rows of max_length. */
static inline struct OpsShape bench_shape(const struct ModelConfig *c, int N, int T, int R,
                                          int max_length) {
    return (struct OpsShape){.N = N, .C = c->C, .F = c->F, .NH = c->NH, .NKV = c->NKV, .HS = c->HS,
                             .V = c->V, .Vp = c->Vp, .max_T = T, .R = R, .max_length = max_length};
}

/* ---- learning ---- */

/* A model with random weights, and sequences to learn from. learner_close frees all of it. */
struct Learner {
    struct Model *model;
    struct Arena arena;
    struct Trainer *trainer;
    struct TrainingSet set;
};

/* `count` sequences of T + 1 tokens, the first of each without loss. */
static inline struct TrainingSet bench_sequences(int count, int T, int V) {
    size_t tokens = (size_t)count * (size_t)(T + 1);
    int *token = check_alloc(tokens, sizeof *token, "the benchmark");
    int *start = check_alloc((size_t)count + 1, sizeof *start, "the benchmark");
    int *loss_start = check_alloc((size_t)count + 1, sizeof *loss_start, "the benchmark");
    unsigned char *mask = check_alloc(tokens, 1, "the benchmark");
    for (size_t i = 0; i < tokens; i++) {
        token[i] = (int)(i * 7919 % (size_t)V);
        mask[i] = i % (size_t)(T + 1) > 0;
    }
    for (int b = 0; b <= count; b++) start[b] = b * (T + 1), loss_start[b] = b * T;
    return (struct TrainingSet){.count = count, .start = start, .token = token, .loss_mask = mask,
                                .loss_start = loss_start};
}

/* Takes the model. `count` sequences of T tokens with loss, in micro-batches of N tokens. */
static inline void learner_open(struct Learner *l, struct Model *model, int count, int T, int N,
                                enum Recompute recompute, bool attention) {
    struct OptimizerOptions optimizer = {.beta1 = .9f, .beta2 = .95f, .epsilon = 1e-8f,
                                         .weight_decay = .1f, .grad_clip = 1};
    struct OpsShape shape = bench_shape(&model->config, N, T, 1, T);
    *l = (struct Learner){.model = model, .set = bench_sequences(count, T, model->config.V)};
    l->trainer = trainer_reserve(model, &l->arena, &shape, recompute, &optimizer,
                                 NULL, 1);
    if (attention) trainer_reserve_attention(l->trainer, &l->arena);
    arena_commit(&l->arena, model->ops);
    model_initialise(model, trainer_weights(l->trainer), 1);
    trainer_reset_optimizer(l->trainer);
}

/* One supervised update on sequences [first, first + count); ends the program if it fails. */
static inline void learner_update(struct Learner *l, int first, int count, int prompts) {
    struct ObjectiveStats stats = {0};
    struct ObjectiveBatch batch = {.logp_dtype = "fp32"};
    int *pick = check_alloc((size_t)count, sizeof *pick, "the benchmark");
    for (int i = 0; i < count; i++) pick[i] = first + i;
    struct UpdateResult result = trainer_update(l->trainer, objective_find("ce"), &l->set, pick,
                                                count, &batch, prompts, 1, 1e-5f, &stats);
    if (result.skipped || !(stats.loss > 0))
        die_machine("the benchmark's update failed: loss %g", stats.loss);
    free(pick);
}

static inline void learner_close(struct Learner *l) {
    free((void *)l->set.token), free((void *)l->set.start);
    free((void *)l->set.loss_start), free((void *)l->set.loss_mask);
    trainer_free(l->trainer), arena_free(&l->arena), model_free(l->model);
}

/* ---- generating ---- */

/* `batch` completions of one prompt of two tokens. generation_close frees all but the model. */
struct Generation {
    struct Sampler *sampler;
    struct Weights weights;
    struct Arena arena;
    void *workspace;
    struct RolloutRequest request;
    struct Rollout rollout;
    double products; /* weights that take part in a product, per token */
};

static inline void generation_open(struct Generation *g, const struct Model *model, int batch,
                                   int tokens) {
    static const int prompt[2] = {4, 12}, start[2] = {0, 2};
    static const uint32_t ordinal = 0;
    const struct ModelConfig *c = &model->config;
    const struct Ops *ops = model->ops;
    *g = (struct Generation){.request = {.num_prompts = 1, .group = batch, .prompt_token = prompt,
                                         .prompt_start = start, .ordinal = &ordinal, .seed = 1,
                                         .purpose = RNG_SAMPLE, .temperature = 1,
                                         .max_tokens = tokens}};
    arena_reserve(&g->arena, &g->weights.data, model->num_parameters * ops->element_size,
                  "weights", "weights");
    g->sampler = sampler_reserve(model, &g->arena, batch, batch, 2, tokens, INT_MAX);
    struct OpsShape shape = bench_shape(c, 1, 1, sampler_step_rows(ops, batch, 2), tokens + 2);
    arena_reserve(&g->arena, &g->workspace, ops->workspace_size(&shape), "workspace", "workspace");
    arena_commit(&g->arena, ops);
    model_initialise(model, &g->weights, 1);
    sampler_load_weights(g->sampler, &g->weights);
    g->products = (double)(model->num_real_parameters - (size_t)c->max_T * (size_t)c->C);
}

static inline void generation_run(void *context) {
    struct Generation *g = context;
    sampler_generate(g->sampler, &g->weights, &g->request, &g->rollout, g->workspace);
}

static inline void generation_close(struct Generation *g) {
    rollout_free(&g->rollout), sampler_free(g->sampler), arena_free(&g->arena);
}

#endif
