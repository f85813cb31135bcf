/* A small random model of odd sizes with a sampler in three layouts, for what tests rollouts. */
#ifndef SAMPLER_RIG_H
#define SAMPLER_RIG_H

#include <limits.h>
#include "test_ops.h"
#include "../llmc/model.h"
#include "../llmc/rl/sampler.h"

enum { V = 37, PROMPTS = 13, GROUP = 5, LONGEST_PROMPT = 9, MAX_TOKENS = 12, CONTEXT = 20 };

/* In layout OTHER the host is a step ahead of what it reads where the backend does not ask for
   that, and the other way round. */
static const int row_counts[] = {1, 7, 64, 7};
enum { LAYOUTS = 3, OTHER = 3 };

static struct Ops other_ops;
static struct Model *model, *other_model;
static struct Weights weights;
static struct Sampler *samplers[LAYOUTS + 1];
static struct Arena arena;
static void *workspace;
static int end_of_text;   /* a token that this model draws often */

/* ---- the model and its prompts -------------------------------------------------------------- */

/* Weights large enough that distributions are far from uniform; padding rows stay zero. */
static void fill_weights(void) {
    float *host = calloc(model->num_parameters, sizeof *host);
    assert_non_null(host);
    for (int t = 0; t < model->num_tensors; t++) {
        const struct Tensor *tensor = &model->tensors[t];
        size_t width = tensor->shape[1] ? (size_t)tensor->shape[1] : 1;
        size_t n = (size_t)tensor->rows_saved * width;
        fill_normal(host + tensor->offset, n, 0.25f, (uint64_t)t);
        for (size_t i = 0; i < n; i++) host[tensor->offset + i] += tensor->init_value;
    }
    elements_upload(ops, weights.data, host, model->num_parameters);
    free(host);
}

struct Prompts {
    int token[PROMPTS * LONGEST_PROMPT], start[PROMPTS + 1];
    uint32_t ordinal[PROMPTS];
};

/* Prompts of 1 to 9 tokens; which one stands at p follows from order[p] alone. */
static struct Prompts make_prompts(const int *order) {
    struct Prompts prompts = {.start = {0}};
    for (int p = 0; p < PROMPTS; p++) {
        struct Rng rng;
        rng_open(&rng, 9, RNG_TEST, (uint64_t)order[p]);
        int length = 1 + order[p] * 4 % LONGEST_PROMPT;
        for (int k = 0; k < length; k++)
            prompts.token[prompts.start[p] + k] = (int)rng_below(&rng, V);
        prompts.start[p + 1] = prompts.start[p] + length;
        prompts.ordinal[p] = 1000u + (uint32_t)order[p] * 7919u;
    }
    return prompts;
}

static const int in_order[PROMPTS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
__attribute__((unused))
static const int shuffled[PROMPTS] = {8, 0, 12, 5, 3, 11, 1, 9, 2, 10, 7, 4, 6};

static struct RolloutRequest make_request(const struct Prompts *prompts, float temperature) {
    return (struct RolloutRequest){
        .num_prompts = PROMPTS, .group = GROUP, .prompt_token = prompts->token,
        .prompt_start = prompts->start, .ordinal = prompts->ordinal, .seed = 77,
        .purpose = RNG_SAMPLE, .temperature = temperature, .max_tokens = MAX_TOKENS,
        .ends = {{end_of_text}, 1}};
}

static inline struct Rollout generate(int layout, const struct RolloutRequest *request) {
    struct Rollout rollout = {0};
    sampler_generate(samplers[layout], &weights, request, &rollout, workspace);
    return rollout;
}

/* The token from `lowest` on that is drawn most often. */
static int find_frequent_token(int lowest) {
    int count[V] = {0}, best = lowest;
    struct Prompts prompts = make_prompts(in_order);
    struct RolloutRequest request = make_request(&prompts, 1);
    request.ends.count = 0;
    struct Rollout rollout = generate(2, &request);
    for (int i = 0; i < rollout.start[rollout.count]; i++) count[rollout.token[i]]++;
    for (int v = lowest; v < V; v++)
        if (count[v] > count[best]) best = v;
    rollout_free(&rollout);
    return best;
}

static int setup(void **state) {
    (void)state;
    struct ModelConfig config = {.family = "gpt2", .L = 3, .NH = 3, .NKV = 3, .C = 60, .HS = 20,
                                 .F = 100, .V = V, .V_saved = V, .max_T = CONTEXT, .tied = true,
                                 .norm_epsilon = 1e-5};
    config.Vp = (V / ops->vocabulary_multiple + 1) * ops->vocabulary_multiple;
    assert_null(model_config_problem(&config));
    model = model_build(&config, ops);
    arena_reserve(&arena, &weights.data, model->num_parameters * ops->element_size, "weights", "w");
    other_ops = *ops;
    other_ops.asynchronous = !ops->asynchronous;
    other_model = model_build(&config, &other_ops);
    for (int i = 0; i <= OTHER; i++)
        samplers[i] = sampler_reserve(i == OTHER ? other_model : model, &arena,
                                      row_counts[i], GROUP, LONGEST_PROMPT, MAX_TOKENS, INT_MAX);
    arena_commit(&arena, ops);
    struct OpsShape shape = {
        .N = PROMPTS * GROUP * MAX_TOKENS * V, .C = config.C, /* score() asks for every word */
        .F = config.F, .NH = config.NH, .NKV = config.NKV,
        .HS = config.HS, .V = V, .Vp = config.Vp, .max_T = CONTEXT, .max_length = CONTEXT + 1,
        .R = sampler_step_rows(ops, row_counts[2], LONGEST_PROMPT)};
    workspace = new_workspace(&shape);
    fill_weights();
    for (int i = 0; i <= OTHER; i++) sampler_load_weights(samplers[i], &weights);
    end_of_text = find_frequent_token(20);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    for (int i = 0; i <= OTHER; i++) sampler_free(samplers[i]);
    release_all();
    arena_free(&arena);
    model_free(model);
    model_free(other_model);
    return 0;
}

#endif
