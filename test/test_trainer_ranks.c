/* Updates of several ranks against those of one: losses, statistics, norms and weights agree to
   rounding, whatever the number of ranks, the form of the model, the objective and where the
   optimizer's state is; on all ranks they have the same bits, and in every run. */
#include "ranks_rig.h"
#include "../llmc/rl/monitor.h"
#include "../llmc/rl/trainer.h"

static const char *backend = "cpu", *dtype = "auto";

enum { COUNT = 13, LONGEST = 20, UPDATES = 4, MICRO = 48, MOST_RANKS = 4 };

/* What is trained: everything that a case may change. */
struct Case {
    const char *family, *objective, *control;
    bool tied, whole_state, narrow;
    int count;              /* sequences of the set */
    double scale_of_loss;   /* fp16: advantages times this, so that gradients overflow */
};

/* A model whose tensors are no multiples of anything. */
static struct ModelConfig config_of(const struct Case *c, const struct Ops *ops) {
    struct ModelConfig config = {.L = 2, .NH = 3, .NKV = 3, .C = 15, .HS = 5, .F = 37, .V = 43,
                                 .V_saved = 44, .max_T = LONGEST, .norm_epsilon = 1e-5,
                                 .tied = c->tied};
    int multiple = ops->vocabulary_multiple;
    if (strcmp(c->family, "llama") == 0) {
        RANK_CHECK(model_config_named(&config, "tiny-llama"));
        config.L = 2, config.F = 36, config.V = 43, config.V_saved = 44, config.max_T = LONGEST;
        config.tied = c->tied;
    }
    snprintf(config.family, sizeof config.family, "%s", c->family);
    config.Vp = (44 + multiple - 1) / multiple * multiple;
    RANK_CHECK(model_config_problem(&config) == NULL);
    return config;
}

struct Sequences {
    struct TrainingSet set;
    int start[COUNT + 1], loss_start[COUNT + 1], token[COUNT * LONGEST];
    unsigned char mask[COUNT * LONGEST], active[COUNT];
    float advantage[COUNT], old[COUNT * LONGEST], ref[COUNT * LONGEST];
};

/* Sequences of 3 to LONGEST tokens; some begin alike, one is not active, one is all prompt. */
static void sequences_fill(struct Sequences *s, const struct Case *c) {
    struct Rng rng;
    int at = 0, loss = 0;
    rng_open(&rng, 5, RNG_TEST, 1);
    for (int i = 0; i < c->count; i++) {
        int prompt = i % 3 == 0 ? 2 + (int)rng_below(&rng, 5) : at - s->start[i - 1];
        int length = prompt + 1 + (int)rng_below(&rng, 9);
        if (i % 3 != 0) prompt = 2, length = 3 + (int)rng_below(&rng, (uint32_t)LONGEST - 3);
        s->start[i] = at, s->loss_start[i] = loss;
        for (int t = 0; t < length; t++, at++) {
            s->token[at] = (int)rng_below(&rng, 43);
            if (i % 3 != 0 && t < 2) s->token[at] = s->token[s->start[i - 1] + t];
            s->mask[at] = t >= prompt && i != 4;
            loss += s->mask[at];
        }
        s->active[i] = i != 7;
        s->advantage[i] =
            (float)((i % 2 ? -1 : 1) * (.4 + .3 * (i % 5)) * (c->scale_of_loss > 0
                                                                  ? c->scale_of_loss : 1));
    }
    s->start[c->count] = at, s->loss_start[c->count] = loss;
    for (int t = 0; t < loss; t++) {
        s->old[t] = -3.7f + .3f * rng_normal(&rng);
        s->ref[t] = -3.8f + .3f * rng_normal(&rng);
    }
    s->set = (struct TrainingSet){c->count, s->start, s->token, s->mask, s->loss_start, s->old,
                                  s->ref, s->advantage, s->active};
}

/* What a rank found in each update, and the tensors' elements in the end. */
struct Found {
    struct ObjectiveStats stats[UPDATES];
    double norm[UPDATES], scale[UPDATES];
    long tokens[UPDATES];
    int overflows;
    double bytes;            /* communicated by the updates */
    size_t parameters;       /* of a flat buffer */
    int weights;             /* elements that follow */
};

/* Large epsilon: a step is then nearly proportional to the gradient, also where that is 0 but for
   roundings. (With a small one AdamW would make whole steps of either sign of these.) */
static const struct OptimizerOptions adamw = {.beta1 = .9f, .beta2 = .95f, .epsilon = .1f,
                                              .weight_decay = .1f, .grad_clip = .5f};

static struct Trainer *open_trainer(struct Model *model, struct Arena *arena,
                                    const struct Case *c) {
    const struct ModelConfig *m = &model->config;
    struct OpsShape shape = {.N = MICRO, .C = m->C, .F = m->F, .NH = m->NH, .NKV = m->NKV,
                             .HS = m->HS, .V = m->V, .Vp = m->Vp, .max_T = LONGEST, .R = 1,
                             .max_length = LONGEST};
    struct OptimizerOptions options = adamw;
    options.zero = !c->whole_state, options.narrow_gradients = c->narrow;
    struct Trainer *trainer = trainer_reserve(model, arena, &shape, RECOMPUTE_NONE, &options,
                                              &rig_world, 1);
    arena_commit(arena, rig_ops);
    model_initialise(model, trainer_weights(trainer), 1);
    trainer_reset_optimizer(trainer);
    return trainer;
}

/* Every weight that a file has, tensor by tensor: where they are in the buffer depends on the
   number of ranks. */
static float *read_weights(const struct Model *model, const struct Weights *weights, int *count) {
    float *out = malloc(model->num_real_parameters * sizeof *out);
    size_t at = 0;
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *t = &model->tensors[i];
        elements_download(rig_ops, out + at, ops_at(rig_ops, weights->data, t->offset), t->saved);
        at += t->saved;
    }
    *count = (int)at;
    return out;
}

static double bytes_sent(void) {
    struct CommCounts counts;
    rig_ops->comm_counts(&counts);
    return counts.bytes;
}

static void update_all(void *context) {
    const struct Case *c = context;
    struct Found found = {.weights = 0};
    struct Sequences s;
    struct Arena arena = {.entries = NULL};
    struct ModelConfig config = config_of(c, rig_ops);
    struct Model *model = model_build_ranks(&config, rig_ops, rig_world.size);
    struct Trainer *trainer = open_trainer(model, &arena, c);
    struct Objective objective = *objective_find(c->objective);
    struct ObjectiveBatch batch = {.control = {.clip_high = .2f, .zeta = .1f}, .noise = 0,
                                   .logp_dtype = "fp32", .seed = 3};
    int pick[COUNT];
    if (c->control) RANK_CHECK(objective_choose(&objective, "entropy-control", c->control));
    sequences_fill(&s, c);
    double before = bytes_sent();
    for (int u = 0; u < UPDATES; u++) {
        int n = u == 1 && c->count > 3 ? 2 : c->count;   /* once fewer sequences than ranks */
        for (int i = 0; i < n; i++) pick[i] = (i * 5 + u) % c->count;
        batch.ordinal = (uint64_t)u;
        struct UpdateResult r =
            trainer_update(trainer, &objective, &s.set, pick, n, &batch, LONGEST, 1, .05f,
                           &found.stats[u]);
        found.norm[u] = r.grad_norm, found.tokens[u] = r.tokens, found.overflows += r.overflows;
        found.scale[u] = trainer_progress(trainer).loss_scale;
        RANK_CHECK(!r.skipped && r.slowest >= 1 && r.slowest <= rig_world.size);
    }
    found.bytes = bytes_sent() - before;
    found.parameters = model->num_parameters;
    float *weights = read_weights(model, trainer_weights(trainer), &found.weights);
    size_t bytes = (size_t)found.weights * sizeof *weights;
    char *all = malloc(sizeof found + bytes);
    memcpy(all, &found, sizeof found);
    memcpy(all + sizeof found, weights, bytes);
    rig_return(all, sizeof found + bytes);
    free(all), free(weights);
    trainer_free(trainer), arena_free(&arena), model_free(model);
}

static const struct Found *found_of(const struct RankResult *r) {
    return (const struct Found *)(const void *)r->bytes;
}
static const float *weights_of(const struct RankResult *r) {
    return (const float *)(const void *)(r->bytes + sizeof(struct Found));
}

/* |x - y| is small beside y, or beside 1 for sums of terms of both signs. */
static void check_number(const char *what, int ranks, double x, double y, double bound) {
    char name[128];
    snprintf(name, sizeof name, "%s, %d ranks", what, ranks);
    ASSERT_CLOSE(name, fabs(x - y) / fmax(1, fabs(y)), bound);
}

/* Numbers of an update: each is a sum of at most a few hundred terms, which are computed with
   another rounding in another micro-batch; and after the first update, from weights that differ by
   such roundings. `unit`: of the backend's elements. */
static void check_updates(const struct RankResult *got, const struct RankResult *one, int ranks,
                          double unit) {
    const struct Found *a = found_of(got), *b = found_of(one);
    for (int u = 0; u < UPDATES; u++) {
        const struct ObjectiveStats *s = &a->stats[u], *t = &b->stats[u];
        double bound = 200 * unit;
        assert_true(s->tokens == t->tokens && t->tokens > 0);
        check_number("loss", ranks, s->loss, t->loss, bound);
        check_number("logp", ranks, s->logp / s->tokens, t->logp / t->tokens, bound);
        check_number("entropy", ranks, s->entropy / s->tokens, t->entropy / t->tokens, bound);
        check_number("push", ranks, s->push_raw / s->tokens, t->push_raw / t->tokens, bound);
        check_number("largest difference", ranks, s->old_difference_max, t->old_difference_max,
                     bound);
        ASSERT_CLOSE("norm", fabs(a->norm[u] - b->norm[u]) / b->norm[u], 10 * bound);
        assert_true(a->scale[u] == b->scale[u]);
    }
    assert_int_equal(a->overflows, b->overflows);
}

/* The weights have moved alike: what they differ by, beside how far they have moved. */
static void check_weights(const struct RankResult *got, const struct RankResult *one,
                          const float *start, double bound) {
    int n = found_of(one)->weights;
    double apart = 0, moved = 0;
    assert_int_equal(found_of(got)->weights, n);
    for (int i = 0; i < n; i++) {
        apart += pow((double)weights_of(got)[i] - weights_of(one)[i], 2);
        moved += pow((double)weights_of(one)[i] - start[i], 2);
    }
    assert_true(moved > 0);
    ASSERT_CLOSE("weights", sqrt(apart / moved), bound);
}

/* The weights before the first update. */
static void start_weights(void *context) {
    const struct Case *c = context;
    struct Arena arena = {.entries = NULL};
    struct ModelConfig config = config_of(c, rig_ops);
    struct Model *model = model_build_ranks(&config, rig_ops, 1);
    struct Trainer *trainer = open_trainer(model, &arena, c);
    int n;
    float *weights = read_weights(model, trainer_weights(trainer), &n);
    rig_return(weights, (size_t)n * sizeof *weights);
    free(weights);
    trainer_free(trainer), arena_free(&arena), model_free(model);
}

static void free_results(struct RankResult *result, int n) {
    for (int r = 0; r < n; r++) free(result[r].bytes);
}

static void check_case(struct Case c, int most_ranks, double unit, double weights_bound) {
    struct RankResult one, start, got[MOST_RANKS], again[MOST_RANKS];
    run_ranks(&start, NULL, 1, backend, dtype, 60, start_weights, &c);
    run_ranks(&one, NULL, 1, backend, dtype, 60, update_all, &c);
    for (int ranks = 2; ranks <= most_ranks; ranks++) {
        run_ranks(got, NULL, ranks, backend, dtype, 60, update_all, &c);
        for (int r = 1; r < ranks; r++) {
            assert_int_equal(got[r].length, got[0].length);
            assert_memory_equal(got[r].bytes + sizeof(struct Found),
                                got[0].bytes + sizeof(struct Found),
                                got[0].length - sizeof(struct Found));
            assert_memory_equal(found_of(&got[r])->stats, found_of(&got[0])->stats,
                                sizeof found_of(&got[0])->stats);
            assert_memory_equal(found_of(&got[r])->norm, found_of(&got[0])->norm,
                                sizeof found_of(&got[0])->norm);
        }
        check_updates(&got[0], &one, ranks, unit);
        check_weights(&got[0], &one, (const float *)(const void *)start.bytes, weights_bound);
        run_ranks(again, NULL, ranks, backend, dtype, 60, update_all, &c);
        assert_int_equal(again[0].length, got[0].length);
        assert_memory_equal(again[0].bytes, got[0].bytes, got[0].length);
        free_results(got, ranks), free_results(again, ranks);
    }
    free(one.bytes), free(start.bytes);
}

static bool is_narrow(void) { return strcmp(dtype, "bf16") == 0 || strcmp(dtype, "fp16") == 0; }
static int most(void) { return strcmp(backend, "cpu") == 0 ? 4 : 2; }

/* Relative to how far the weights have gone: a step is the sum of gradients divided by a root of
   their squares, each with a relative error of some ten roundings; in a narrow type the weights
   themselves are rounded, at random but alike for all ranks, from masters that differ. */
static void check(struct Case c) {
    double unit = strcmp(dtype, "bf16") == 0 ? 0x1p-8 : strcmp(dtype, "fp16") == 0 ? 0x1p-11
                                                                                   : 0x1p-24;
    if (c.count == 0) c.count = COUNT;
    check_case(c, most(), unit, is_narrow() ? 1 : 2000 * unit);
}

static void test_families(void **state) {
    (void)state;
    check((struct Case){.family = "gpt2", .objective = "grpo", .tied = true});
    check((struct Case){.family = "llama", .objective = "grpo"});
}

static void test_whole_state(void **state) {
    (void)state;
    check((struct Case){.family = "gpt2", .objective = "grpo", .whole_state = true});
}

/* Coefficients that depend on a sequence's other tokens, and on all of the minibatch. */
static void test_scopes(void **state) {
    (void)state;
    check((struct Case){.family = "gpt2", .objective = "gspo", .tied = true});
    check((struct Case){.family = "llama", .objective = "grpo", .control = "clip_cov"});
    check((struct Case){.family = "gpt2", .objective = "grpo", .control = "kl_cov"});
    check((struct Case){.family = "gpt2", .objective = "dapo", .tied = true});
}

/* Fewer sequences than ranks: some have none, in every update. */
static void test_ranks_without_tokens(void **state) {
    (void)state;
    check((struct Case){.family = "gpt2", .objective = "grpo", .tied = true, .count = 3});
}

/* What is sent is what world_plan's formulas say: the gradients in float32, and the weights; all
   else that ranks tell each other in an update is less than 4 KB from each. */
static void test_bytes(void **state) {
    (void)state;
    struct Case c = {.family = "gpt2", .objective = "grpo", .tied = true, .count = COUNT};
    struct RankResult got[MOST_RANKS];
    for (int ranks = 2; ranks <= most(); ranks++)
        for (int whole = 0; whole < 2; whole++) {
            c.whole_state = whole;
            run_ranks(got, NULL, ranks, backend, dtype, 60, update_all, &c);
            const struct Found *found = found_of(&got[0]);
            double element = is_narrow() ? 2 : 4, n = (double)found->parameters;
            double each = c.whole_state ? 2 * 4 * n : (4 + element) * n;
            double expected = UPDATES * each * (ranks - 1) / ranks;
            assert_true(found->bytes >= expected && found->bytes < expected + UPDATES * 4096.0);
            free_results(got, ranks);
        }
}

/* Gradients that travel as bf16: each of R partial sums is rounded by at most 2^-9 of itself, and
   AdamW's step has the relative error of its gradient, or somewhat more where gradients of several
   updates cancel. */
static void test_narrow_gradients(void **state) {
    (void)state;
    struct Case c = {.family = "gpt2", .objective = "grpo", .tied = true, .narrow = true,
                     .count = COUNT};
    struct RankResult one, start, got[MOST_RANKS];
    if (is_narrow()) skip();
    run_ranks(&start, NULL, 1, backend, dtype, 60, start_weights, &c);
    run_ranks(&one, NULL, 1, backend, dtype, 60, update_all, &c);
    for (int ranks = 2; ranks <= most(); ranks++) {
        run_ranks(got, NULL, ranks, backend, dtype, 60, update_all, &c);
        double error = fabs(found_of(&got[0])->norm[0] / found_of(&one)->norm[0] - 1);
        ASSERT_CLOSE("norm", error, ranks * 0x1p-9);
        assert_true(error > 0x1p-24);   /* they did travel as bf16 */
        check_weights(&got[0], &one, (const float *)(const void *)start.bytes, 4 * ranks * 0x1p-9);
        assert_true(found_of(&got[0])->bytes <
                    UPDATES * ((2 + 4) * (double)found_of(&got[0])->parameters * (ranks - 1) /
                                   ranks + 4096));
        free_results(got, ranks);
    }
    free(one.bytes), free(start.bytes);
}

/* fp16's gradients overflow at the first scale: the pass is repeated on all ranks alike, and the
   number of repetitions is that of one rank. */
static void test_loss_scale(void **state) {
    (void)state;
    if (strcmp(dtype, "fp16") != 0) skip();
    struct Case c = {.family = "gpt2", .objective = "grpo", .scale_of_loss = 50, .count = COUNT};
    struct RankResult got[2];
    run_ranks(got, NULL, 2, backend, dtype, 60, update_all, &c);
    assert_true(found_of(&got[0])->overflows > 0);
    free_results(got, 2);
    check_case(c, 2, 0x1p-11, 1);
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) dtype = argv[2];
    if (argc > 3) cmocka_set_test_filter(argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_whole_state),
        cmocka_unit_test(test_scopes),
        cmocka_unit_test(test_ranks_without_tokens),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_narrow_gradients),
        cmocka_unit_test(test_loss_scale),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
