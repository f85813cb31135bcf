/* What several ranks find together beside updates: scores and monitors are those of one rank, and
   every rank has all of them; an update whose loss or gradient is not finite on one rank is skipped
   by all, who name the same tensor. The CPU's float32 only. */
#include "ranks_rig.h"
#include "../llmc/rl/monitor.h"

enum { COUNT = 11, LONGEST = 14, TOKENS = COUNT * LONGEST, MICRO = 32, MOST_RANKS = 4 };
static const int lengths[COUNT] = {7, 5, LONGEST, 2, 9, 6, 13, 3, 4, 11, 8};

struct Fixture {
    struct Model *model;
    struct Arena arena;
    struct Trainer *trainer;
    struct TrainingSet set;
    int start[COUNT + 1], loss_start[COUNT + 1], token[TOKENS], length[COUNT];
    unsigned char mask[TOKENS], active[COUNT];
    float advantage[COUNT], old[TOKENS], entropy[TOKENS];
};

static void fill_set(struct Fixture *f) {
    struct Rng rng;
    int at = 0, loss = 0;
    rng_open(&rng, 9, RNG_TEST, 4);
    for (int i = 0; i < COUNT; i++) {
        for (int t = 0; t < lengths[i]; t++, at++) {
            f->token[at] = (int)rng_below(&rng, 43);
            f->mask[at] = t >= 1 + i % 2;
            f->old[loss] = -3.7f + .2f * rng_normal(&rng);
            f->entropy[loss] = 3.5f;
            loss += f->mask[at];
        }
        f->start[i + 1] = at, f->loss_start[i + 1] = loss;
        f->length[i] = loss - f->loss_start[i];
        f->active[i] = 1, f->advantage[i] = (i % 2 ? -1 : 1) * (.4f + .1f * (float)i);
    }
    f->set = (struct TrainingSet){COUNT, f->start, f->token, f->mask, f->loss_start, f->old, NULL,
                                  f->advantage, f->active};
}

static void fixture_open(struct Fixture *f, bool zero) {
    *f = (struct Fixture){.model = NULL};
    struct ModelConfig c = {.family = "gpt2", .L = 2, .NH = 3, .NKV = 3, .C = 15, .HS = 5, .F = 37,
                            .V = 43, .V_saved = 44, .max_T = LONGEST, .norm_epsilon = 1e-5};
    c.Vp = (44 + rig_ops->vocabulary_multiple - 1) / rig_ops->vocabulary_multiple *
           rig_ops->vocabulary_multiple;
    RANK_CHECK(model_config_problem(&c) == NULL);
    struct OptimizerOptions options = {.beta1 = .9f, .beta2 = .95f, .epsilon = .1f,
                                       .grad_clip = 1, .zero = zero};
    struct OpsShape shape = {.N = MICRO, .C = c.C, .F = c.F, .NH = c.NH, .NKV = c.NKV,
                             .HS = c.HS, .V = c.V, .Vp = c.Vp, .max_T = LONGEST, .R = 1,
                             .max_length = LONGEST};
    f->model = model_build_ranks(&c, rig_ops, rig_world.size);
    f->trainer = trainer_reserve(f->model, &f->arena, &shape, RECOMPUTE_NONE, &options, &rig_world,
                                 1);
    trainer_reserve_attention(f->trainer, &f->arena);
    arena_commit(&f->arena, rig_ops);
    model_initialise(f->model, trainer_weights(f->trainer), 1);
    trainer_reset_optimizer(f->trainer);
    fill_set(f);
}

static void fixture_close(struct Fixture *f) {
    trainer_free(f->trainer), arena_free(&f->arena), model_free(f->model);
}

/* ---- scores and monitors --------------------------------------------------------------------- */

/* Of a pick of all sequences in another order, of two of them, and of none. */
struct Scores {
    float all[4][TOKENS], two[2][TOKENS];
    double repo_d, repo_d_tokens, push;
};
static const int two[2] = {9, 4};

static void score_all(void *context) {
    (void)context;
    struct Fixture f;
    struct Scores *s = calloc(1, sizeof *s);
    int pick[COUNT];
    fixture_open(&f, true);
    struct Weights *weights = trainer_weights(f.trainer);
    for (int i = 0; i < COUNT; i++) pick[i] = i * 4 % COUNT;
    trainer_score(f.trainer, weights, &f.set, pick, COUNT, .8f,
                  &(struct HeadStats){s->all[0], s->all[1], s->all[2], s->all[3]});
    trainer_score(f.trainer, weights, &f.set, two, 2, 1,
                  &(struct HeadStats){.logp = s->two[0], .q = s->two[1]});
    trainer_score(f.trainer, weights, &f.set, pick, 0, 1, &(struct HeadStats){.logp = f.old});
    struct Experience e = {.count = COUNT, .group_size = 1, .start = f.start,
                           .loss_start = f.loss_start, .token = f.token, .loss_mask = f.mask,
                           .logp = f.old, .entropy = f.entropy, .advantage = f.advantage,
                           .active = f.active, .length = f.length};
    s->repo_d = monitor_repo_d(f.trainer, &e, 1, &s->repo_d_tokens);
    s->push = monitor_entropy_push(f.trainer, &e, 1, 20);
    rig_return(s, sizeof *s);
    free(s);
    fixture_close(&f);
}

/* A token's numbers are sums of at most 43 terms, computed in another micro-batch. */
static void check_array(const char *what, const float *x, const float *y) {
    for (int i = 0; i < TOKENS; i++)
        ASSERT_CLOSE(what, fabs((double)x[i] - y[i]), 200 * 0x1p-24 * fmax(1, fabs(y[i])));
}

static void test_scores(void **state) {
    (void)state;
    struct RankResult one, got[MOST_RANKS];
    run_ranks(&one, NULL, 1, "cpu", "auto", 60, score_all, NULL);
    const struct Scores *y = (const void *)one.bytes;
    assert_true(y->all[1][0] > 1 && y->two[1][0] > 0);
    for (int ranks = 2; ranks <= MOST_RANKS; ranks++) {
        run_ranks(got, NULL, ranks, "cpu", "auto", 60, score_all, NULL);
        const struct Scores *x = (const void *)got[0].bytes;
        for (int a = 0; a < 4; a++) check_array("scores", x->all[a], y->all[a]);
        for (int a = 0; a < 2; a++) check_array("scores of two", x->two[a], y->two[a]);
        assert_true(x->repo_d_tokens == y->repo_d_tokens);
        ASSERT_CLOSE("D", fabs(x->repo_d - y->repo_d), 1e-5 * y->repo_d_tokens);
        ASSERT_CLOSE("push", fabs(x->push - y->push), 1e-5);
        for (int r = 1; r < ranks; r++) assert_memory_equal(got[r].bytes, x, sizeof *x);
        for (int r = 0; r < ranks; r++) free(got[r].bytes);
    }
    free(one.bytes);
}

/* ---- updates that are skipped ---------------------------------------------------------------- */

struct Decisions {
    char bad[2][80], overflowing[80];   /* what was named, and what should be */
    double norm;                        /* of the update after them */
    long tokens, step;
    uint64_t weights;                   /* a sum of them after it, by their bits */
};

static struct UpdateResult learn(struct Fixture *f) {
    struct ObjectiveBatch batch = {.control = {.clip_high = .2f}, .logp_dtype = "fp32", .seed = 3};
    struct ObjectiveStats stats = {0};
    int pick[COUNT];
    for (int i = 0; i < COUNT; i++) pick[i] = i;
    return trainer_update(f->trainer, objective_find("rloo"), &f->set, pick, COUNT, &batch, LONGEST,
                          1, .01f, &stats);
}

static float *read_floats(const void *backend, size_t n) {
    float *host = malloc(n * sizeof *host);
    rig_ops->download(host, backend, n * sizeof *host);
    return host;
}

/* A skipped update: no weight and no moment has moved. Copies the name of the tensor to blame. */
static void learn_nothing(struct Fixture *f, char *bad) {
    size_t n = f->model->num_parameters;
    float *before = read_floats(trainer_weights(f->trainer)->data, n);
    struct UpdateResult result = learn(f);
    struct OptimizerState state = trainer_optimizer(f->trainer);
    RANK_CHECK(result.made && result.skipped && !isfinite(result.grad_norm));
    snprintf(bad, 80, "%s", result.bad_tensor);
    float *after = read_floats(trainer_weights(f->trainer)->data, n);
    RANK_CHECK(memcmp(before, after, n * sizeof *before) == 0);
    free(after), free(before);
    size_t own = share_of(&state.share, n);
    float *m = read_floats(state.m, own), *v = read_floats(state.v, own);
    for (size_t i = 0; i < own; i++) RANK_CHECK(m[i] == 0 && v[i] == 0);
    free(m), free(v);
    RANK_CHECK(trainer_progress(f->trainer).step == 0);
}

/* The MLP's inner activations 1e14 and the weights after them times 1e-14: the sums stay small, and
   those weights' gradient is 1e14 times that of the sums, which the advantages make 1e24. */
static void make_overflow(struct Fixture *f, char *name) {
    struct Weights *weights = trainer_weights(f->trainer);
    float *host = read_floats(weights->data, f->model->num_parameters);
    for (int i = 0; i < f->model->num_tensors; i++) {
        const struct Tensor *t = &f->model->tensors[i];
        bool bias = t->offset == f->model->layers[1].fc_bias;
        bool out = t->offset == f->model->layers[1].fc_proj_weight;
        for (size_t j = t->offset; j < t->offset + t->saved; j++)
            host[j] = bias ? 1e14f : out ? host[j] * 1e-14f : host[j];
        if (out) snprintf(name, 80, "%s", t->name);
    }
    elements_upload(rig_ops, weights->data, host, f->model->num_parameters);
    free(host);
    f->advantage[9] = 1e27f;   /* one sequence, which one rank has */
}

static void decide_all(void *context) {
    struct Fixture f;
    struct Decisions d = {.norm = 0};
    fixture_open(&f, *(const bool *)context);
    float whole = f.old[f.loss_start[9]], advantage = f.advantage[9];
    f.old[f.loss_start[9]] = NAN;
    learn_nothing(&f, d.bad[0]);
    f.old[f.loss_start[9]] = whole;
    make_overflow(&f, d.overflowing);
    learn_nothing(&f, d.bad[1]);
    f.advantage[9] = advantage;
    trainer_watch_attention(f.trainer);
    struct UpdateResult result = learn(&f);
    RANK_CHECK(result.made && !result.skipped && isfinite(result.grad_norm));
    RANK_CHECK((trainer_attention_entropy(f.trainer) != NULL) == (rig_world.rank == 0));
    d.norm = result.grad_norm, d.tokens = result.tokens;
    d.step = (long)trainer_progress(f.trainer).step;
    size_t n = f.model->num_parameters;
    float *weights = read_floats(trainer_weights(f.trainer)->data, n);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, weights + i, sizeof bits);
        d.weights = d.weights * 31 + bits;
    }
    free(weights);
    rig_return(&d, sizeof d);
    fixture_close(&f);
}

static void test_skipped_updates(void **state) {
    (void)state;
    struct RankResult got[MOST_RANKS];
    double norm = 0;
    long tokens = 0;
    for (int zero = 0; zero < 2; zero++)
        for (int ranks = 1; ranks <= MOST_RANKS; ranks++) {
            bool shared = zero;
            run_ranks(got, NULL, ranks, "cpu", "auto", 60, decide_all, &shared);
            const struct Decisions *d = (const void *)got[0].bytes;
            assert_string_equal(d->bad[0], "the loss");
            assert_string_equal(d->bad[1], d->overflowing);
            assert_true(d->step == 1 && d->norm > 0);
            if (norm == 0) norm = d->norm, tokens = d->tokens;
            assert_true(d->tokens == tokens);
            ASSERT_CLOSE("norm", fabs(d->norm - norm) / norm, 2000 * 0x1p-24);
            for (int r = 1; r < ranks; r++) assert_memory_equal(got[r].bytes, d, sizeof *d);
            for (int r = 0; r < ranks; r++) free(got[r].bytes);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scores),
        cmocka_unit_test(test_skipped_updates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
