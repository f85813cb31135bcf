/* The model: its table, its initial weights, and its passes against three independent definitions:
   golden vectors of Hugging Face's GPT-2 (dev/ref/make_gpt2.py), a plain float64 implementation on
   larger ragged shapes (gpt2_reference.h), and finite differences of that one for the gradients. */
#include "model_rig.h"
#include "gpt2_reference.h"
#include "../llmc/checkpoint.h"

#define GOLDEN "test/golden/"

static struct ModelConfig config_of(int L, int NH, int HS, int F, int V, int Vp, int max_T,
                                    bool tied) {
    return (struct ModelConfig){.family = "gpt2", .L = L, .NH = NH, .NKV = NH, .C = NH * HS,
                                .HS = HS, .F = F, .V = V, .V_saved = V, .Vp = Vp, .max_T = max_T,
                                .tied = tied,
                                .norm_epsilon = 1e-5};
}

static double *rig_double_weights(struct Rig *rig) {
    size_t n = rig->model->num_parameters;
    float *host = malloc(n * sizeof *host);
    double *w = malloc(n * sizeof *w);
    elements_download(rig->ops, host, rig->weights.data, n);
    for (size_t i = 0; i < n; i++) w[i] = host[i];
    free(host);
    return w;
}

/* The same in float64 by gpt2_reference.h: hidden [N,C], attention entropies [L,NH,N]; returns J.
   */
static double rig_reference(const struct Rig *rig, const double *w, double *hidden,
                            double *attention) {
    double objective = 0;
    int C = rig->model->config.C;
    for (int b = 0; b < rig->B; b++) {
        int start = rig->row_start[b];
        reference_forward(hidden + (size_t)start * C, attention + start, (size_t)rig->N, rig->model,
                          w, rig->token + start, rig->row_start[b + 1] - start);
    }
    #pragma omp parallel for reduction(+ : objective)
    for (int i = 0; i < rig->n; i++) {
        double logp, entropy;
        reference_head(&logp, &entropy, rig->model, w, hidden + (size_t)rig->row[i] * C,
                       rig->target[i]);
        objective += rig->dlogp[i] * logp + rig->dentropy[i] * entropy;
    }
    return objective;
}

/* Mean and deviation of n draws, each within 5 standard errors. */
static void check_normal(const struct Tensor *tensor, const float *x, size_t n, double deviation) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) sum += x[i], squares += (double)x[i] * x[i];
    double mean = sum / (double)n, found = sqrt(squares / (double)n - mean * mean);
    ASSERT_CLOSE(tensor->name, fabs(mean), 5 * deviation / sqrt((double)n));
    ASSERT_CLOSE(tensor->name, fabs(found - deviation), 5 * deviation / sqrt(2 * (double)n));
}

static void test_initial_weights(void **state) {
    (void)state;
    SKIP_IF_NARROW();
    const struct Ops *ops = ops_open(backend, dtype, 0);
    struct ModelConfig config = config_of(8, 4, 16, 256, 1000, 1024, 64, false);
    struct Model *model = model_build(&config, ops);
    size_t n = model->num_parameters;
    float *host[3];
    for (int i = 0; i < 3; i++) {
        struct Weights weights = {.data = ops->alloc(n * ops->element_size)};
        ops->fill_zero(weights.data, n * ops->element_size);
        model_initialise(model, &weights, i < 2 ? 1 : 2);
        host[i] = malloc(n * sizeof(float));
        elements_download(ops, host[i], weights.data, n);
        ops->free(weights.data);
    }
    assert_memory_equal(host[0], host[1], n * sizeof(float));
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *t = &model->tensors[i];
        const float *x = host[0] + t->offset;
        size_t real = t->saved;
        const char *end = t->name + strlen(t->name);
        bool residual = strcmp(end - 13, "c_proj.weight") == 0;
        bool norm = strstr(t->name, "ln_") && strcmp(end - 6, "weight") == 0;
        if (t->shape[1]) {
            check_normal(t, x, real, residual ? 0.02 / sqrt(2 * 8) : 0.02);
            struct Rng rng;   /* one sequence per tensor, however many threads drew it */
            rng_open(&rng, 1, RNG_INIT, (uint64_t)i);
            for (size_t j = 0; j < real; j++) assert_true(x[j] == t->init_std * rng_normal(&rng));
            assert_memory_not_equal(x, host[2] + t->offset, real * sizeof(float));
        }
        for (size_t j = 0; j < real && !t->shape[1]; j++) assert_true(x[j] == (norm ? 1 : 0));
        for (size_t j = real; j < t->count; j++) assert_true(x[j] == 0);
    }
    for (int i = 0; i < 3; i++) free(host[i]);
    model_free(model);
}

static void test_flops(void **state) {
    (void)state;
    struct ModelConfig config = {.V = 50257, .V_saved = 50257, .Vp = 50304};
    model_config_named(&config, "gpt2");
    struct Model *model = model_build(&config, NULL);
    /* 6 (12 (768*2304 + 768*768 + 2*768*3072) + 768*50257) + 6*12*768*1024 */
    assert_true(model_flops_per_token(model, 1024) == 797815296.0);
    model_free(model);
}

/* ---- the passes ----------------------------------------------------------------------------- */

/* The golden numbers are float64 results rounded to float32. The bounds allow about a hundred
   roundings of 6e-8; the largest error seen is 1e-6. */
static void test_golden_vectors(void **state) {
    (void)state;
    SKIP_IF_NARROW();
    struct Safetensors file;
    assert_null(safetensors_open(&file, GOLDEN "gpt2_expected.safetensors"));
    struct ModelConfig config;
    assert_null(checkpoint_config(GOLDEN "gpt2", &config));
    config.Vp = 64;
    struct Rig rig;
    rig_open(&rig, &config, (int[]){24, 7, 14}, 3);
    checkpoint_load_weights(GOLDEN "gpt2", rig.model, &rig.weights);
    golden_ints(rig.token, &file, "token", rig.N);
    golden_ints(rig.row, &file, "row", rig.n);
    golden_ints(rig.target, &file, "target", rig.n);
    golden_ints(rig.row_start, &file, "row_start", rig.B + 1);
    free(rig.dlogp), free(rig.dentropy);
    rig.dlogp = golden(&file, "dlogp", (size_t)rig.n);
    rig.dentropy = golden(&file, "dentropy", (size_t)rig.n);
    rig_upload(&rig);
    rig_gradient(&rig);

    size_t hidden_size = (size_t)rig.N * config.C;
    float *hidden = malloc(hidden_size * sizeof *hidden);
    elements_download(rig.ops, hidden, rig_forward(&rig), hidden_size);
    check_golden(&file, "hidden", hidden, hidden_size, 1e-5);
    check_golden(&file, "logp", rig.logp, (size_t)rig.n, 1e-5);
    check_golden(&file, "entropy", rig.entropy, (size_t)rig.n, 1e-5);
    size_t attention_size = (size_t)config.L * config.NH * rig.N;
    float *attention = rig_download(&rig, rig.attention_entropy, attention_size);
    check_golden(&file, "attention_entropy", attention, attention_size, 1e-5);
    float *grads = rig_download(&rig, rig.grads, rig.model->num_parameters);
    for (int i = 0; i < rig.model->num_tensors; i++) {
        const struct Tensor *tensor = &rig.model->tensors[i];
        char name[100];
        snprintf(name, sizeof name, "grad.%s", tensor->name);
        float *found = gradient_as_saved(tensor, grads);
        check_golden(&file, name, found, tensor->saved, 1e-5);
        free(found);
    }
    float *cross_entropy = golden(&file, "cross_entropy", 1);
    double mean = 0;
    for (int i = 0; i < rig.n; i++) mean -= rig.logp[i] / rig.n;
    ASSERT_CLOSE("cross entropy", fabs(mean - *cross_entropy), 1e-4);
    free(cross_entropy), free(grads), free(attention), free(hidden);
    safetensors_close(&file);
    rig_close(&rig);
}

/* Directional derivatives of the float64 reference, one per tensor and then of everything at once,
   against the engine's gradient. The difference quotient errs by about 1e-7 of its terms, the
   float32 gradient by 1e-6; `scale` is the size a sum of random terms has. */
static void check_gradient(struct Rig *rig, int first, int last, const float *grads, double *w,
                           double *hidden, double *attention) {
    const struct Model *model = rig->model;
    const double h = 1e-5;
    double *direction = calloc(model->num_parameters, sizeof *direction);
    double dot = 0, squares = 0;
    for (int i = first; i < last; i++) {
        const struct Tensor *t = &model->tensors[i];
        size_t real = t->saved;
        float *d = new_normal(real, 1, 1000 + (uint64_t)i);
        for (size_t j = 0; j < real; j++) {
            double term = (double)d[j] * grads[t->offset + j];
            direction[t->offset + j] = d[j];
            dot += term;
            squares += term * term;
        }
        free(d);
    }
    double value[2];
    for (int sign = 0; sign < 2; sign++) {
        double step = sign ? -h : h;
        for (size_t j = 0; j < model->num_parameters; j++) w[j] += step * direction[j];
        value[sign] = rig_reference(rig, w, hidden, attention);
        for (size_t j = 0; j < model->num_parameters; j++) w[j] -= step * direction[j];
    }
    double slope = (value[0] - value[1]) / (2 * h), scale = sqrt(squares) + 1e-6;
    ASSERT_CLOSE(last - first == 1 ? model->tensors[first].name : "all tensors",
                 fabs(slope - dot) / scale, 2e-5);
    free(direction);
}

/* Forward, attention entropy and gradient against the float64 reference. */
static void check_against_reference(struct Rig *rig, bool each_tensor) {
    const struct ModelConfig *c = &rig->model->config;
    size_t hidden_size = (size_t)rig->N * c->C, attention_size = (size_t)c->L * c->NH * rig->N;
    double *w = rig_double_weights(rig);
    double *hidden = reference_alloc((size_t)rig->N, (size_t)c->C);
    double *attention = reference_alloc(1, attention_size);
    float *found = malloc(hidden_size * sizeof *found);
    rig_gradient(rig);
    elements_download(rig->ops, found, rig_forward(rig), hidden_size);
    float *found_attention = rig_download(rig, rig->attention_entropy, attention_size);
    float *grads = rig_download(rig, rig->grads, rig->model->num_parameters);

    rig_reference(rig, w, hidden, attention);
    ASSERT_CLOSE("hidden states", relative_l2(found, hidden, hidden_size), 1e-5);
    ASSERT_CLOSE("attention entropy", relative_l2(found_attention, attention, attention_size),
                 1e-5);
    for (int b = 0; b < rig->B; b++)
        for (int t = rig->row_start[b]; t < rig->row_start[b + 1]; t++)
            for (int i = 0; i < c->L * c->NH; i++) {
                float entropy = found_attention[(size_t)i * rig->N + t];
                assert_true(entropy >= -1e-6f);
                assert_true(entropy <= logf((float)(t - rig->row_start[b] + 1)) + 1e-5f);
            }
    int num_tensors = rig->model->num_tensors;
    for (int i = 0; each_tensor && i < num_tensors; i++)
        check_gradient(rig, i, i + 1, grads, w, hidden, attention);
    check_gradient(rig, 0, num_tensors, grads, w, hidden, attention);
    /* Padding rows have no gradient. */
    for (int i = 0; i < num_tensors; i++) {
        const struct Tensor *t = &rig->model->tensors[i];
        for (size_t j = t->saved; j < t->count; j++) assert_true(grads[t->offset + j] == 0);
    }
    free(w), free(hidden), free(attention), free(found), free(found_attention), free(grads);
}

static void test_small_model_against_the_reference(void **state) {
    (void)state;
    SKIP_IF_NARROW();
    for (int tied = 0; tied < 2; tied++) {
        struct ModelConfig config = config_of(2, 3, 7, 50, 37, 48, 20, tied);
        struct Rig rig;
        rig_open(&rig, &config, (int[]){9, 1, 20, 4}, 4);
        check_against_reference(&rig, true);
        rig_close(&rig);
    }
}

/* More than one block in every dimension, and a remainder in each. */
static void test_large_model_against_the_reference(void **state) {
    (void)state;
    SKIP_IF_NARROW();
    struct ModelConfig config = config_of(2, 3, 52, 610, 1013, 1024, 300, true);
    struct Rig rig;
    rig_open(&rig, &config, (int[]){130, 257, 1, 77}, 4);
    check_against_reference(&rig, false);
    rig_close(&rig);
}

static void test_one_layer_and_one_head(void **state) {
    (void)state;
    SKIP_IF_NARROW();
    struct ModelConfig config = config_of(1, 1, 16, 16, 5, 5, 6, true);
    struct Rig rig;
    rig_open(&rig, &config, (int[]){6, 2}, 2);
    check_against_reference(&rig, true);
    rig_close(&rig);
}

static void test_gradients_accumulate(void **state) {
    (void)state;
    SKIP_IF_NARROW();
    struct ModelConfig config = config_of(2, 2, 16, 128, 50, 64, 40, true);
    struct Rig rig;
    rig_open(&rig, &config, (int[]){40, 13, 29}, 3);
    size_t n = rig.model->num_parameters;
    rig_gradient(&rig);
    float *once = rig_download(&rig, rig.grads, n);
    double *expected = malloc(n * sizeof *expected);
    for (size_t i = 0; i < n; i++) expected[i] = 3.0 * once[i];
    rig_gradient(&rig);
    rig_gradient(&rig);
    float *thrice = rig_download(&rig, rig.grads, n);
    /* Sums in another order: roundings only. */
    ASSERT_CLOSE("three times the gradient", relative_l2(thrice, expected, n), 1e-5);
    /* And the same call gives the same bits. */
    rig.ops->fill_zero(rig.grads, n * sizeof(float));
    rig_gradient(&rig);
    float *again = rig_download(&rig, rig.grads, n);
    assert_memory_equal(once, again, n * sizeof(float));
    free(once), free(thrice), free(again), free(expected);
    rig_close(&rig);
}
/* Every recompute mode gives gradients with the same bits and takes less memory than keeping. Two
   passes are made, so that a second one that used what the first left behind would be noticed. */
static void test_recompute(void **state) {
    (void)state;
    struct ModelConfig config = config_of(3, 3, 20, 130, 50, 64, 40, true);
    float *kept = NULL;
    size_t bytes[3];
    for (int mode = RECOMPUTE_NONE; mode <= RECOMPUTE_LAYER; mode++) {
        struct Rig rig;
        rig_open_recompute(&rig, &config, (int[]){40, 13, 29}, 3, (enum Recompute)mode);
        size_t n = rig.model->num_parameters;
        bytes[mode] = rig.arena.total;
        rig_gradient(&rig);
        rig_gradient(&rig);
        float *grads = rig_download(&rig, rig.grads, n);
        if (kept) assert_memory_equal(grads, kept, n * sizeof *grads);
        if (kept) free(grads);
        else kept = grads;
        rig_close(&rig);
    }
    free(kept);
    assert_true(bytes[RECOMPUTE_MLP] < bytes[RECOMPUTE_NONE]);
    assert_true(bytes[RECOMPUTE_LAYER] < bytes[RECOMPUTE_MLP]);
}

/* ---- decode --------------------------------------------------------------------------------- */

#define GROUPS 3
#define SAMPLES 4
static const int prompt_length[GROUPS] = {5, 1, 17};

static int completion_length(int group, int sample) { return 1 + (3 * group + 5 * sample) % 11; }

struct DecodeRig {
    struct Rig *rig;               /* its rows are prompt + completion, a group's prompts equal */
    struct DecodeState *decode;
    struct Arena arena;
    struct DecodeRows rows;
    int *host[5];                  /* token, position, prompt slot, prompt length, tail slot */
    int *where;                    /* [R] the packed token that a row is */
    int R, capacity;
};

static void decode_rig_open(struct DecodeRig *d, struct Rig *rig, int capacity) {
    memset(d, 0, sizeof *d);
    d->rig = rig;
    d->capacity = capacity;
    /* a page each: prompts of 17 tokens, tails of 11 */
    enum { PAGES = GROUPS + GROUPS * SAMPLES };
    const struct CacheSize cache = {PAGES, GROUPS, 1, GROUPS * SAMPLES, 1};
    d->decode = decode_reserve(rig->model, &d->arena, capacity, &cache);
    int **device[5] = {&d->rows.token, &d->rows.position, &d->rows.prompt_slot,
                       &d->rows.prompt_length, &d->rows.tail_slot};
    for (int i = 0; i < 5; i++) {
        d->host[i] = new_ints(capacity);
        arena_reserve(&d->arena, device[i], (size_t)capacity * sizeof(int), "rows", "%d", i);
    }
    d->where = new_ints(capacity);
    arena_commit(&d->arena, rig->ops);
    decode_load_weights(rig->model, d->decode, &rig->weights);
    int page[PAGES];
    for (int i = 0; i < PAGES; i++) page[i] = (i * 7 + 4) % PAGES;
    decode_set_pages(rig->model, d->decode, page, page + GROUPS);
}

static void decode_rig_close(struct DecodeRig *d) {
    for (int i = 0; i < 5; i++) free(d->host[i]);
    free(d->where);
    decode_free(d->decode);
    arena_free(&d->arena);
}

/* Adds token `position` of a sample to the step. Slots are not in order, as after many groups. */
static void add_row(struct DecodeRig *d, int group, int sample, int position) {
    int i = group * SAMPLES + sample, n = d->rig->row_start[i] + position, r = d->R++;
    assert_true(r < d->capacity);
    d->where[r] = n;
    d->host[0][r] = d->rig->token[n];
    d->host[1][r] = position;
    d->host[2][r] = (group + 1) % GROUPS;
    d->host[3][r] = prompt_length[group];
    d->host[4][r] = position < prompt_length[group] ? 0 : (i * 5 + 3) % (GROUPS * SAMPLES);
}

/* Runs the step and copies each row's hidden state to out [N,C], at the packed token that it is. */
static void run_step(struct DecodeRig *d, float *out) {
    if (d->R == 0) return;
    int C = d->rig->model->config.C;
    int *device[5] = {d->rows.token, d->rows.position, d->rows.prompt_slot, d->rows.prompt_length,
                      d->rows.tail_slot};
    for (int i = 0; i < 5; i++)
        d->rig->ops->upload(device[i], d->host[i], (size_t)d->R * sizeof(int));
    floatX *E = model_decode(d->rig->model, &d->rig->weights, d->decode, &d->rows, d->R,
                             d->rig->workspace);
    float *host = malloc((size_t)d->R * C * sizeof *host);
    elements_download(d->rig->ops, host, E, (size_t)d->R * C);
    for (int r = 0; r < d->R; r++)
        memcpy(out + (size_t)d->where[r] * C, host + (size_t)r * C, (size_t)C * sizeof *host);
    free(host);
    d->R = 0;
}

/* Decodes all tokens: in few steps, the prompts in one of them, or with one token per step. */
static void decode_all(struct Rig *rig, float *out, bool one_by_one) {
    struct DecodeRig d;
    decode_rig_open(&d, rig, one_by_one ? 1 : 23);
    for (int g = 0; g < GROUPS; g++)
        for (int t = 0; t < prompt_length[g]; t++) {
            add_row(&d, g, 0, t);
            if (one_by_one) run_step(&d, out);
        }
    run_step(&d, out);
    for (int k = 0; k < 11; k++) {
        for (int g = GROUPS - 1; g >= 0; g--)
            for (int s = 0; s < SAMPLES; s++) {
                if (k >= completion_length(g, s)) continue;
                add_row(&d, g, s, prompt_length[g] + k);
                if (one_by_one) run_step(&d, out);
            }
        run_step(&d, out);
    }
    /* Of a group's prompts only the first entered the network; the others' states are the same. */
    int C = rig->model->config.C;
    for (int g = 0; g < GROUPS; g++)
        for (int s = 1; s < SAMPLES; s++)
            memcpy(out + (size_t)rig->row_start[g * SAMPLES + s] * C,
                   out + (size_t)rig->row_start[g * SAMPLES] * C,
                   (size_t)prompt_length[g] * C * sizeof *out);
    decode_rig_close(&d);
}

static void test_decode_equals_forward(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        struct ModelConfig config = config_of(3, 3, 20, 150, 61, 64, 40, tied);
        int lengths[GROUPS * SAMPLES];
        for (int i = 0; i < GROUPS * SAMPLES; i++)
            lengths[i] = prompt_length[i / SAMPLES] + completion_length(i / SAMPLES, i % SAMPLES);
        struct Rig rig;
        rig_open(&rig, &config, lengths, GROUPS * SAMPLES);
        for (int i = 0; i < GROUPS * SAMPLES; i++)
            memcpy(rig.token + rig.row_start[i], rig.token + rig.row_start[i / SAMPLES * SAMPLES],
                   (size_t)prompt_length[i / SAMPLES] * sizeof(int));
        rig_upload(&rig);
        size_t size = (size_t)rig.N * config.C;
        float *forward = malloc(size * sizeof *forward);
        float *many = malloc(size * sizeof *many), *single = malloc(size * sizeof *single);
        elements_download(rig.ops, forward, rig_forward(&rig), size);
        memset(many, 0xff, size * sizeof *many);     /* NaN where decode left a token out */
        memset(single, 0xff, size * sizeof *single);
        decode_all(&rig, many, false);
        decode_all(&rig, single, true);
        double *expected = malloc(size * sizeof *expected);
        for (size_t i = 0; i < size; i++) expected[i] = forward[i];
        /* the two passes round at the same places, but not the same sums */
        ASSERT_CLOSE("decode", relative_l2(many, expected, size),
                     is_narrow(rig.ops) ? 4 * rounding_of(rig.ops) : 1e-5);
        /* A row's bits do not depend on its neighbours. */
        assert_memory_equal(many, single, size * sizeof *many);
        free(forward), free(many), free(single), free(expected);
        rig_close(&rig);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) dtype = argv[2];
    if (argc > 3) cmocka_set_test_filter(argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_initial_weights),
        cmocka_unit_test(test_flops),
        cmocka_unit_test(test_golden_vectors),
        cmocka_unit_test(test_small_model_against_the_reference),
        cmocka_unit_test(test_large_model_against_the_reference),
        cmocka_unit_test(test_one_layer_and_one_head),
        cmocka_unit_test(test_gradients_accumulate),
        cmocka_unit_test(test_recompute),
        cmocka_unit_test(test_decode_equals_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
