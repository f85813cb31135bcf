/* The trainer against the mathematics: scores and gradients against a float64 model and differences
   of a loss written out here, whatever the micro-batch; what is inactive; clipping, skipping and
   the loss scale; attention entropy. Runs do not depend on their micro-batch: test_program.c. */
#include "trainer_rig.h"
#include "../llmc/rl/evaluate.h"

/* lr 0 moves nothing: the gradients stay those of the weights at the start. */
static const struct OptimizerOptions still = {.beta1 = .9f, .beta2 = .95f, .epsilon = 1e-8f};
static const int order[COUNT] = {4, 0, 2, 5, 1, 3};

/* Tokens in the order of the picked sequences, whatever the size of a micro-batch. */
static void check_score_order(const int *order) {
    static const int sizes[] = {LONGEST - 1, 11, 64};
    for (int m = 0; m < 3; m++)
        for (int warm = 0; warm < 2; warm++) {
            struct Rig rig;
            struct Reference want;
            float found[4][MAX_LOSS];
            struct HeadStats out = {found[0], found[1], found[2], found[3]};
            double temperature = warm ? 1.7 : 1;
            rig_open(&rig, sizes[m], NULL, NULL);
            reference_set(&want, &rig, rig.w, temperature, NULL);
            trainer_score(rig.trainer, trainer_weights(rig.trainer), &rig.set, order, COUNT,
                          (float)temperature, &out);
            for (int i = 0, n = 0; i < COUNT; i++)
                for (int t = rig.loss_start[order[i]]; t < rig.loss_start[order[i] + 1]; t++, n++) {
                    /* float32 through two layers, about a hundred roundings of 6e-8 */
                    ASSERT_CLOSE("logp", fabs(found[0][n] - want.logp[t]), 2e-5);
                    ASSERT_CLOSE("entropy", fabs(found[1][n] - want.entropy[t]), 2e-5);
                    ASSERT_CLOSE("q", fabs(found[2][n] - want.q[t]), 2e-5);
                    ASSERT_CLOSE("r", fabs(found[3][n] - want.r[t]), 2e-5);
                }
            out = (struct HeadStats){.logp = found[0]};   /* the others are not wanted */
            trainer_score(rig.trainer, trainer_weights(rig.trainer), &rig.set, order, 1,
                          (float)temperature, &out);
            ASSERT_CLOSE("first", fabs(found[0][0] - want.logp[rig.loss_start[order[0]]]), 2e-5);
            rig_close(&rig);
        }
}

static void test_score_order(void **state) {
    (void)state;
    static const int as_in_the_set[COUNT] = {0, 1, 2, 3, 4, 5};
    check_score_order(order);
    prompts = alike;
    check_score_order(order);
    check_score_order(as_in_the_set);
    prompts = apart;
}

/* The mean of -log p over the learnt tokens of rows that are held out. */
static void test_loss_of_a_lesson(void **state) {
    (void)state;
    struct Rig rig;
    struct Reference want;
    double sum = 0;
    rig_open(&rig, 11, NULL, NULL);
    reference_set(&want, &rig, rig.w, 1, NULL);
    for (int t = 0; t < rig.loss_start[COUNT]; t++) sum -= want.logp[t];
    struct Lesson lesson = {.ids = {.id = rig.token, .count = rig.start[COUNT]},
                            .loss = {.bytes = (char *)rig.mask},
                            .end = {.id = rig.start + 1, .count = COUNT}};
    ASSERT_CLOSE("loss", fabs(evaluate_lesson(rig.trainer, &lesson) - sum / rig.loss_start[COUNT]),
                 2e-5);
    rig_close(&rig);
}

/* ---- gradients ------------------------------------------------------------------------------ */

/* The loss, written as in the papers; sequence 2 is inactive. */
static double loss_of(const struct Rig *rig, const struct Objective *o, const double *w) {
    struct Reference x;
    double loss = 0, tokens = 0, sequences = COUNT - 1;
    reference_set(&x, rig, w, 1, NULL);
    for (int s = 0; s < COUNT; s++) tokens += rig->active[s] * (rig->loss_start[s + 1] -
                                                                rig->loss_start[s]);
    for (int s = 0; s < COUNT; s++) {
        int first = rig->loss_start[s], length = rig->loss_start[s + 1] - first;
        double A = rig->advantage[s], mean = 0, weight = 1 / tokens;
        if (o->aggregation == AGGREGATE_SEQUENCE_MEAN) weight = 1 / (sequences * length);
        if (o->aggregation == AGGREGATE_CONSTANT) weight = 1. / (COUNT * 10);   /* max_tokens 10 */
        for (int t = first; t < first + length; t++) mean += (x.logp[t] - rig->old[t]) / length;
        for (int t = first; rig->active[s] && t < first + length; t++) {
            double r = exp(o->ratio == RATIO_SEQUENCE ? mean : x.logp[t] - rig->old[t]);
            double inside = fmin(fmax(r, 1 - (double)o->clip_low), 1 + (double)o->clip_high);
            loss -= weight * (o->surrogate == SURROGATE_CLIP ? fmin(r * A, inside * A)
                                                             : A * x.logp[t]);
            if (o->control == CONTROL_BONUS) loss -= weight * .05f * x.entropy[t];
        }
    }
    return loss;
}

/* Derivatives along random directions of all weights at once. */
static void check_gradient(const struct Rig *rig, const struct Objective *o, const float *gradient,
                           const char *name) {
    const double h = 1e-5;
    size_t n = rig->model->num_parameters;
    double *moved = reference_alloc(n, 1), norm = 0;
    for (size_t i = 0; i < n; i++) norm += (double)gradient[i] * gradient[i];
    for (uint64_t d = 0; d < 6; d++) {
        float *direction = calloc(n, sizeof *direction);
        double along = 0, up, down;
        for (int i = 0; i < rig->model->num_tensors; i++) {   /* padding stays 0 */
            const struct Tensor *t = &rig->model->tensors[i];
            fill_normal(direction + t->offset, t->saved, 1, 900 + 100 * d + (uint64_t)i);
        }
        for (size_t i = 0; i < n; i++) along += (double)gradient[i] * direction[i];
        for (size_t i = 0; i < n; i++) moved[i] = rig->w[i] + h * direction[i];
        up = loss_of(rig, o, moved);
        for (size_t i = 0; i < n; i++) moved[i] = rig->w[i] - h * direction[i];
        down = loss_of(rig, o, moved);
        /* float32's gradient is good to about 1e-6 of its length, the quotient to h squared */
        ASSERT_CLOSE(name, fabs(along - (up - down) / (2 * h)), 2e-5 * sqrt(norm));
        free(direction);
    }
    free(moved);
}

static const struct { const char *name, *aggregation, *control; } learnt[] = {
    {"rloo", "token_mean", "bonus"}, {"grpo", "sequence_mean", "none"},
    {"grpo", "constant", "bonus"},   {"grpo", "token_mean", "none"},
    {"gspo", "sequence_mean", "none"},
};

static void check_update(int micro_tokens, int which) {
    struct Rig rig;
    struct Reference x;
    struct Objective o = *objective_find(learnt[which].name);
    objective_choose(&o, "aggregation", learnt[which].aggregation);
    objective_choose(&o, "entropy-control", learnt[which].control);
    rig_open(&rig, micro_tokens, &still, NULL);
    reference_set(&x, &rig, rig.w, 1, NULL);
    for (int t = 0; t < rig.loss_start[COUNT]; t++)   /* inside and far outside the clip range */
        rig.old[t] = (float)(x.logp[t] + (o.ratio == RATIO_SEQUENCE ? 1e-4 : t % 3 - 1) * .5);
    rig.set.logp_old = rig.old;
    rig.active[2] = 0;
    struct ObjectiveBatch batch = {.logp_dtype = "fp32", .control = {.entropy_coef = .05f}};
    struct ObjectiveStats stats = {0};
    struct UpdateResult result = trainer_update(rig.trainer, &o, &rig.set, order, COUNT, &batch, 10,
                                                1, 0, &stats);
    float *gradient = rig_read(&rig, trainer_gradients(rig.trainer));
    double norm = 0;
    for (size_t i = 0; i < rig.model->num_parameters; i++)
        norm += (double)gradient[i] * gradient[i];
    assert_true(result.made && !result.skipped && result.overflows == 0);
    if (prompts == apart) {
        assert_int_equal(result.tokens, 6 + 4 + 1 + 7 + 5);   /* inputs of all but sequence 2 */
        assert_int_equal(result.micro_batches, micro_tokens == 8 ? 4 : 1);   /* 6 | 4 1 | 7 | 5 */
    } else if (micro_tokens == 8) {
        assert_int_equal(result.tokens, (2 + 4 + 2) + (1 + 4 + 3) + 5);   /* the second prompt
                                                                             twice: no room */
        assert_int_equal(result.micro_batches, 3);
    } else {
        assert_int_equal(result.tokens, (2 + 4 + 2) + 1 + (4 + 3 + 1));
        assert_int_equal(result.micro_batches, 1);
    }
    ASSERT_CLOSE("norm", fabs(result.grad_norm - sqrt(norm)), 1e-6 * sqrt(norm));
    ASSERT_CLOSE("loss", fabs(stats.loss - loss_of(&rig, &o, rig.w)), 1e-5);
    assert_true(stats.tokens == rig.loss_start[COUNT] - rig.loss_start[3] + rig.loss_start[2]);
    check_gradient(&rig, &o, gradient, learnt[which].name);
    free(gradient);
    rig_close(&rig);
}

static void test_gradients(void **state) {
    (void)state;
    for (int i = 0; i < (int)(sizeof learnt / sizeof *learnt); i++) check_update(8, i);
    for (int i = 0; i < (int)(sizeof learnt / sizeof *learnt); i++) check_update(64, i);
}

/* What completions of one prompt share goes through the network once, and the gradient is that of
   the sequences one by one. */
static void test_gradients_of_shared_prompts(void **state) {
    prompts = alike;
    test_gradients(state);
    prompts = apart;
}

/* ---- the step ------------------------------------------------------------------------------- */

/* One update of supervised learning, by the rules that a test sets. */
static struct UpdateResult learn(struct Rig *rig, const struct Objective *o, float rate) {
    struct ObjectiveBatch batch = {.logp_dtype = "fp32"};
    struct ObjectiveStats stats = {0};
    return trainer_update(rig->trainer, o, &rig->set, order, COUNT, &batch, 10, 1, rate, &stats);
}

/* Nothing active: no update, and no step of the optimizer. */
static void test_nothing_to_learn(void **state) {
    (void)state;
    struct Rig rig;
    rig_open(&rig, 64, &still, NULL);
    memset(rig.active, 0, sizeof rig.active);
    trainer_watch_attention(rig.trainer);
    struct UpdateResult result = learn(&rig, objective_find("ce"), 1);
    assert_true(!result.made && !result.skipped && result.tokens == 0);
    assert_int_equal(trainer_progress(rig.trainer).step, 0);
    assert_null(trainer_attention_entropy(rig.trainer));
    float *now = rig_read(&rig, trainer_weights(rig.trainer)->data);
    for (size_t i = 0; i < rig.model->num_parameters; i++) assert_true(now[i] == rig.w[i]);
    free(now);
    rig_close(&rig);
}

/* AdamW's first moment after one step is (1 - beta1) of the gradient that it was given: the whole
   one below the limit, one of that length above it. */
static void test_gradient_clipping(void **state) {
    (void)state;
    struct OptimizerOptions options = still;
    for (int clipped = 0; clipped < 2; clipped++) {
        struct Rig rig;
        options.grad_clip = clipped ? .01f : 1e6f;
        rig_open(&rig, 64, &options, NULL);
        struct UpdateResult result = learn(&rig, objective_find("ce"), 1e-3f);
        assert_true(result.grad_norm > .02);
        double scale = clipped ? (double)options.grad_clip / result.grad_norm : 1;
        float *gradient = rig_read(&rig, trainer_gradients(rig.trainer));
        float *moment = rig_read(&rig, trainer_optimizer(rig.trainer).m);
        double difference = 0, length = 0;
        for (size_t i = 0; i < rig.model->num_parameters; i++) {
            double want = (1 - (double).9f) * scale * gradient[i];
            difference += (moment[i] - want) * (moment[i] - want), length += want * want;
        }
        ASSERT_CLOSE("moment", sqrt(difference), 1e-6 * sqrt(length));
        assert_int_equal(trainer_progress(rig.trainer).step, 1);
        free(gradient), free(moment);
        rig_close(&rig);
    }
}

static void assert_unmoved(struct Rig *rig, const char *what) {
    const void *buffers[] = {trainer_optimizer(rig->trainer).m, trainer_optimizer(rig->trainer).v};
    float *now = rig_read(rig, trainer_weights(rig->trainer)->data);
    for (size_t i = 0; i < rig->model->num_parameters; i++)
        if (now[i] != (float)rig->w[i]) fail_msg("%s moved a weight", what);
    free(now);
    for (int k = 0; k < 2; k++) {
        now = rig_read(rig, buffers[k]);
        for (size_t i = 0; i < rig->model->num_parameters; i++)
            if (now[i] != 0) fail_msg("%s moved a moment", what);
        free(now);
    }
    assert_int_equal(trainer_progress(rig->trainer).step, 0);
}

/* A loss that is not finite, and a gradient that overflows in one tensor only: no weight changes,
   the tensor is named, and the update after it counts as the first. */
static void test_skipped_updates(void **state) {
    (void)state;
    struct Rig rig;
    struct Objective o = *objective_find("rloo");
    rig_open(&rig, 64, &still, NULL);
    rig.set.logp_old = rig.old;
    rig.old[3] = NAN;
    struct UpdateResult result = learn(&rig, &o, 1e-3f);
    assert_true(result.made && result.skipped && isnan(result.grad_norm));
    assert_string_equal(result.bad_tensor, "the loss");
    assert_unmoved(&rig, "a bad loss");

    /* The MLP's inner activations 1e12 and the weights after them 1e-12: the sums stay small, the
       gradient of those weights is 1e12 times that of the sums, 1e28 by the advantages. */
    const struct Tensor *tensors = rig.model->tensors;
    size_t fc_bias = rig.model->layers[1].fc_bias, out = rig.model->layers[1].fc_proj_weight;
    const char *name = NULL;
    float *host = rig_read(&rig, trainer_weights(rig.trainer)->data);
    for (int i = 0; i < rig.model->num_tensors; i++) {
        size_t offset = tensors[i].offset;
        for (size_t j = 0; j < tensors[i].count && offset == fc_bias; j++) host[offset + j] = 1e12f;
        for (size_t j = 0; j < tensors[i].count && offset == out; j++) host[offset + j] *= 1e-12f;
        if (offset == out) name = tensors[i].name;
    }
    for (size_t i = 0; i < rig.model->num_parameters; i++) rig.w[i] = host[i];
    elements_upload(&rig.ops, trainer_weights(rig.trainer)->data, host,
                    rig.model->num_parameters);
    free(host);
    rig.set.logp_old = NULL;
    for (int s = 0; s < COUNT; s++) rig.advantage[s] *= 1e28f;
    result = learn(&rig, &o, 1e-3f);
    assert_true(result.skipped);
    assert_string_equal(result.bad_tensor, name);
    assert_unmoved(&rig, "a bad gradient");

    for (int s = 0; s < COUNT; s++) rig.advantage[s] /= 1e28f;
    assert_false(learn(&rig, &o, 1e-3f).skipped);
    assert_int_equal(trainer_progress(rig.trainer).step, 1);
    rig_close(&rig);
}

/* ---- the loss scale of fp16, on a CPU that says it is one ------------------------------------ */

/* The weights after an update that starts at this scale; 0: without one. */
static float *weights_after(double scale, int64_t good, struct UpdateResult *result,
                            struct TrainerProgress *progress) {
    struct Rig rig;
    rig_open(&rig, 64, &still, scale ? "fp16" : "fp32");
    *progress = trainer_progress(rig.trainer);
    assert_true(progress->loss_scale == (scale ? 0x1p16 : 1));
    if (scale) progress->loss_scale = scale, progress->loss_scale_updates = good;
    trainer_set_progress(rig.trainer, *progress);
    *result = learn(&rig, objective_find("ce"), 1e-2f);
    *progress = trainer_progress(rig.trainer);
    float *weights = rig_read(&rig, trainer_weights(rig.trainer)->data);
    rig_close(&rig);
    return weights;
}

/* Powers of two: no bit of the update depends on the scale, nor on how often it had to shrink. */
static void test_loss_scale(void **state) {
    (void)state;
    static const struct { double scale; int64_t good; double after; int64_t later; } cases[] = {
        {0x1p16, 7, 0x1p16, 8}, {0x1p16, 499, 0x1p17, 0}, {0x1p24, 499, 0x1p24, 0},
        {2, 499, 4, 0},
    };
    struct UpdateResult plain, result;
    struct TrainerProgress progress;
    float *want = weights_after(0, 0, &plain, &progress);
    size_t bytes = 0;
    struct Rig rig;
    rig_open(&rig, 64, &still, NULL);
    bytes = rig.model->num_parameters * sizeof *want;
    rig_close(&rig);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float *found = weights_after(cases[i].scale, cases[i].good, &result, &progress);
        assert_memory_equal(found, want, bytes);
        assert_true(result.grad_norm == plain.grad_norm && result.overflows == 0);
        assert_true(progress.loss_scale == cases[i].after);
        assert_int_equal(progress.loss_scale_updates, cases[i].later);
        free(found);
    }
    float *found = weights_after(0x1p132, 499, &result, &progress);   /* beyond float32 */
    assert_memory_equal(found, want, bytes);
    assert_true(result.overflows > 2 && !result.skipped);
    assert_true(progress.loss_scale == ldexp(1, 132 - 2 * result.overflows));
    assert_int_equal(progress.loss_scale_updates, 1);   /* counted anew */
    free(found), free(want);
}

/* If the gradient is not finite at any scale, the scale is not the cause and stays as it was. */
static void test_loss_scale_that_is_not_the_cause(void **state) {
    (void)state;
    struct Rig rig;
    rig_open(&rig, 64, &still, "fp16");
    struct TrainerProgress before = trainer_progress(rig.trainer), after;
    before.loss_scale_updates = 31;
    trainer_set_progress(rig.trainer, before);
    for (int s = 0; s < COUNT; s++) rig.advantage[s] = 3e38f;
    struct UpdateResult result = learn(&rig, objective_find("rloo"), 1e-2f);
    after = trainer_progress(rig.trainer);
    assert_true(result.skipped && result.overflows > 2);
    assert_true(after.loss_scale == before.loss_scale && after.loss_scale_updates == 31);
    assert_int_equal(after.step, 0);
    rig_close(&rig);
}

/* ---- attention entropy ---------------------------------------------------------------------- */

/* Of the first micro-batch: H / log(number of keys), over tokens that have a choice, each once. */
static void check_attention_entropy(int micro_tokens, int sequences) {
    struct Rig rig;
    struct Reference unused;
    static double entropy[LAYERS * HEADS * 64];
    rig_open(&rig, micro_tokens, &still, NULL);
    reference_set(&unused, &rig, rig.w, 1, entropy);
    assert_null(trainer_attention_entropy(rig.trainer));
    learn(&rig, objective_find("ce"), 0);
    assert_null(trainer_attention_entropy(rig.trainer));   /* nobody watched */
    trainer_watch_attention(rig.trainer);
    learn(&rig, objective_find("ce"), 0);
    const double *found = trainer_attention_entropy(rig.trainer);
    assert_non_null(found);
    for (int h = 0; h < LAYERS * HEADS; h++) {
        double sum = 0;
        int tokens = 0;
        for (int s = 0; s < sequences; s++) {
            bool shared = prompts == alike && s > 0 && prompts[s] == prompts[s - 1];
            for (int t = shared ? prompts[s] - 1 : 1; t < whole[s] - 1; t++, tokens++)
                sum += entropy[h * 64 + rig.start[s] + t] / log(t + 1.0);
        }
        ASSERT_CLOSE("attention entropy", fabs(found[h] - sum / tokens), 1e-5);
    }
    rig_close(&rig);
}

static void test_attention_entropy(void **state) {
    (void)state;
    check_attention_entropy(64, COUNT);
    check_attention_entropy(8, 1);
    check_attention_entropy(13, 2);
    prompts = alike;
    check_attention_entropy(64, COUNT);
    check_attention_entropy(8, 2);
    prompts = apart;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_score_order),
        cmocka_unit_test(test_loss_of_a_lesson),
        cmocka_unit_test(test_gradients),
        cmocka_unit_test(test_gradients_of_shared_prompts),
        cmocka_unit_test(test_nothing_to_learn),
        cmocka_unit_test(test_gradient_clipping),
        cmocka_unit_test(test_skipped_updates),
        cmocka_unit_test(test_loss_scale),
        cmocka_unit_test(test_loss_scale_that_is_not_the_cause),
        cmocka_unit_test(test_attention_entropy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
