/* A tiny model with a trainer and sequences to learn from, and what the trainer must find of them
   in float64 (gpt2_reference.h): shared by test_trainer.c and test_monitor.c. The CPU's float32
   only. */
#ifndef TRAINER_RIG_H
#define TRAINER_RIG_H

#include "test.h"
#include "gpt2_reference.h"
#include "../llmc/kernels/backends.h"
#include "../llmc/rl/trainer.h"

enum { COUNT = 6, MAX_LOSS = 64, LONGEST = 9, VOCABULARY = 11, LAYERS = 2, HEADS = 2 };
static const int whole[COUNT] = {7, 5, LONGEST, 2, 8, 6};
static const int apart[COUNT] = {3, 2, 4, 1, 3, 5};   /* lengths of their prompts */
/* Lengths of prompts where sequences 0, 1 and 2 have the same one, and 4 and 5. */
static const int alike[COUNT] = {3, 3, 3, 1, 5, 5};
static const int *prompts = apart;

struct Rig {
    struct Ops ops;              /* a copy, so that a test may change a word of it */
    struct Model *model;
    struct Arena arena;
    struct Trainer *trainer;
    double *w;                   /* the weights at the start */
    struct TrainingSet set;
    int start[COUNT + 1], loss_start[COUNT + 1], token[64];
    unsigned char mask[64], active[COUNT];
    float advantage[COUNT], old[MAX_LOSS], ref[MAX_LOSS];
};

/* Of every token with loss of the set, in order; attention entropy [LAYERS*HEADS, 64] by token. */
struct Reference { double logp[MAX_LOSS], entropy[MAX_LOSS], q[MAX_LOSS], r[MAX_LOSS]; };

static inline void reference_token(struct Reference *out, int i, const struct Rig *rig,
                                   const double *w, const double *hidden, int target,
                                   double temperature) {
    double z[VOCABULARY], sum = 0;
    reference_linear(z, hidden, w + rig->model->globals.head, NULL, 1, rig->model->config.C,
                     VOCABULARY);
    for (int v = 0; v < VOCABULARY; v++) sum += exp(z[v] / temperature);
    out->logp[i] = z[target] / temperature - log(sum);
    out->entropy[i] = out->q[i] = out->r[i] = 0;
    for (int v = 0; v < VOCABULARY; v++) {
        double l = z[v] / temperature - log(sum), p = exp(l);
        out->entropy[i] -= p * l, out->q[i] += p * p, out->r[i] += p * p * l;
    }
}

/* attention may be NULL */
static inline void reference_set(struct Reference *out, const struct Rig *rig, const double *w,
                                 double temperature, double *attention) {
    double hidden[LONGEST * 64], unused[LAYERS * HEADS * 64];
    int n = 0, C = rig->model->config.C;
    for (int s = 0; s < COUNT; s++) {
        int begin = rig->start[s], inputs = rig->start[s + 1] - begin - 1;
        reference_forward(hidden, (attention ? attention : unused) + begin, 64, rig->model, w,
                          rig->token + begin, inputs);
        for (int t = 0; t < inputs; t++)
            if (rig->mask[begin + t + 1])
                reference_token(out, n++, rig, w, hidden + (size_t)t * (size_t)C,
                                rig->token[begin + t + 1], temperature);
    }
}

/* Sequences of random tokens; the third token after the prompt of the longest one has no loss. */
static inline void rig_fill(struct Rig *rig) {
    struct Rng rng;
    rng_open(&rng, 3, RNG_TEST, 77);
    int loss = 0;
    for (int s = 0; s < COUNT; s++) {
        rig->loss_start[s] = loss;
        rig->start[s + 1] = rig->start[s] + whole[s];
        for (int t = 0; t < whole[s]; t++) {
            int at = rig->start[s] + t;
            bool as_before = prompts == alike && t < prompts[s] && s > 0 &&
                             prompts[s] == prompts[s - 1];
            rig->token[at] = (int)rng_below(&rng, VOCABULARY);
            if (as_before) rig->token[at] = rig->token[rig->start[s - 1] + t];
            rig->mask[at] = t >= prompts[s] && !(s == 2 && t == prompts[s] + 2);
            loss += rig->mask[at];
        }
        rig->active[s] = 1;
        rig->advantage[s] = (s % 2 ? -1 : 1) * (.4f + .3f * (float)s);
    }
    rig->loss_start[COUNT] = loss;
    rig->set = (struct TrainingSet){COUNT, rig->start, rig->token, rig->mask, rig->loss_start, NULL,
                                    NULL, rig->advantage, rig->active};
}

static inline void rig_weights(struct Rig *rig) {
    size_t n = rig->model->num_parameters;
    float *host = calloc(n, sizeof *host);
    rig->w = reference_alloc(n, 1);
    for (int i = 0; i < rig->model->num_tensors; i++) {
        const struct Tensor *t = &rig->model->tensors[i];
        fill_normal(host + t->offset, t->saved, t->shape[1] ? .5f : .2f, 300 + (uint64_t)i);
        for (size_t j = 0; t->init_value == 1 && j < t->count; j++) host[t->offset + j] += 1;
    }
    for (size_t i = 0; i < n; i++) rig->w[i] = host[i];
    elements_upload(&rig->ops, trainer_weights(rig->trainer)->data, host, n);
    free(host);
}

static inline void rig_open(struct Rig *rig, int micro_tokens,
                            const struct OptimizerOptions *options, const char *dtype) {
    *rig = (struct Rig){.ops = *ops_open("cpu", "auto", 0)};
    if (dtype) rig->ops.dtype = dtype;
    struct ModelConfig c = {.family = "gpt2", .L = LAYERS, .NH = HEADS, .NKV = HEADS, .C = 8,
                            .HS = 4, .F = 16, .V = VOCABULARY, .V_saved = VOCABULARY,
                            .max_T = 12, .norm_epsilon = 1e-5};
    c.Vp = (c.V + rig->ops.vocabulary_multiple - 1) / rig->ops.vocabulary_multiple *
           rig->ops.vocabulary_multiple;
    assert_null(model_config_problem(&c));
    rig->model = model_build(&c, &rig->ops);
    struct OpsShape shape = {.N = micro_tokens, .C = c.C, .F = c.F, .NH = c.NH, .NKV = c.NKV,
                             .HS = c.HS, .V = c.V, .Vp = c.Vp, .max_T = LONGEST - 1, .R = 1,
                             .max_length = LONGEST};
    rig->trainer = trainer_reserve(rig->model, &rig->arena, &shape, RECOMPUTE_NONE, options,
                                   NULL, 1);
    trainer_reserve_attention(rig->trainer, &rig->arena);
    arena_commit(&rig->arena, &rig->ops);
    rig_fill(rig);
    rig_weights(rig);
    if (options) trainer_reset_optimizer(rig->trainer);
}

static inline void rig_close(struct Rig *rig) {
    trainer_free(rig->trainer);
    arena_free(&rig->arena);
    model_free(rig->model);
    free(rig->w);
}

/* A buffer of the backend as host memory [num_parameters]. */
static inline float *rig_read(struct Rig *rig, const void *buffer) {
    size_t bytes = rig->model->num_parameters * sizeof(float);
    float *host = malloc(bytes);
    rig->ops.download(host, buffer, bytes);
    return host;
}

#endif
