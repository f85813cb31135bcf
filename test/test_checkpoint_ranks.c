/* Checkpoints of several ranks, each of which has a share of the optimizer: the files are those of
   one rank, byte for byte, and any number of ranks goes on from them. */
#include "checkpoint_rig.h"
#include "ranks_rig.h"

static const char *backend = "cpu", *dtype = "auto";

/* Tensors that divide by nothing: several blocks and a remainder in each direction. */
static struct ModelConfig ragged_config(const struct Ops *ops) {
    int multiple = ops->vocabulary_multiple;
    struct ModelConfig config = {.family = "gpt2", .L = 3, .NH = 3, .NKV = 3, .C = 33, .HS = 11,
                                 .F = 71, .V = 24, .V_saved = 24, .max_T = 13, .tied = false,
                                 .norm_epsilon = 1e-5};
    config.Vp = (24 + multiple - 1) / multiple * multiple;
    return config;
}

/* Element j of tensor i in part p: the moments, the masters, and (p = 3) the weights. Second
   moments are never below 0. A weight is a number that every element type has. */
static float element(int p, int i, size_t j) {
    float x = (float)((int)((j * 37 + (size_t)i * 101 + (size_t)p * 13) % 251) - 125) / 64;
    return p == 1 ? fabsf(x) + .25f : p == 2 ? x * 1.001f : x;
}

struct State {
    struct Model *model;
    struct Weights weights;
    struct OptimizerState optimizer;
};

static float *new_floats(size_t n) {
    float *x = rig_ops->alloc(n * sizeof *x), *host = malloc(n * sizeof *host);
    memset(host, 0x7f, n * sizeof *host);
    rig_ops->upload(x, host, n * sizeof *host);
    free(host);
    return x;
}

/* As the trainer has it. Nothing is filled. */
static struct State state_open(bool shared) {
    struct ModelConfig config = ragged_config(rig_ops);
    struct State s = {.model = model_build_ranks(&config, rig_ops, rig_world.size)};
    struct Share share = {0, 1};
    size_t n = s.model->num_parameters;
    if (shared && rig_world.size > 1) share = (struct Share){rig_world.rank, rig_world.size};
    size_t own = share_of(&share, n);
    s.weights.data = rig_ops->alloc(n * rig_ops->element_size);
    if (rig_ops->element_size < sizeof(float)) s.weights.master = new_floats(own);
    s.weights.share = share;
    s.optimizer = (struct OptimizerState){new_floats(own), new_floats(own), s.weights.master, share,
                                          share.ranks > 1 ? new_floats(n) : NULL};
    return s;
}

static void state_close(struct State *s) {
    void *owned[] = {s->weights.data, s->weights.master, s->optimizer.m, s->optimizer.v,
                     s->optimizer.whole};
    for (int i = 0; i < 5; i++)
        if (owned[i]) rig_ops->free(owned[i]);
    model_free(s->model);
}

/* The elements of a flat buffer: element() in tensors, 0 in gaps and padding. */
static float *flat_of(const struct Model *model, int part) {
    float *flat = calloc(model->num_parameters, sizeof *flat);
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *t = &model->tensors[i];
        for (size_t j = 0; j < t->saved; j++) flat[t->offset + j] = element(part, i, j);
    }
    return flat;
}

/* Element k of an array of a share is element index_of(k) of the flat buffer: counted from the
   definition, bucket by bucket. */
static void for_each_own(const struct State *s, const float *flat, float *own) {
    const struct Share *share = &s->optimizer.share;
    size_t k = 0;
    for (int b = 0; b < s->model->num_buckets; b++) {
        size_t begin = s->model->buckets[b].begin, end = s->model->buckets[b].end;
        size_t each = (end - begin) / (size_t)(share->ranks > 1 ? share->ranks : 1);
        for (size_t j = 0; j < each; j++) own[k++] = flat[begin + (size_t)share->rank * each + j];
    }
}

static float *part_of(const struct State *s, int part) {
    return part == 0 ? s->optimizer.m : part == 1 ? s->optimizer.v : s->optimizer.master;
}

static void fill(struct State *s) {
    size_t n = s->model->num_parameters, own = share_of(&s->optimizer.share, n);
    float *mine = malloc(own * sizeof *mine), *weights = flat_of(s->model, 3);
    for (int p = 0; p < 3; p++) {
        float *flat = flat_of(s->model, p);
        for_each_own(s, flat, mine);
        if (part_of(s, p)) rig_ops->upload(part_of(s, p), mine, own * sizeof *mine);
        free(flat);
    }
    elements_upload(rig_ops, s->weights.data, weights, n);
    free(mine), free(weights);
}

static void check_state(const struct State *s) {
    size_t n = s->model->num_parameters, own = share_of(&s->optimizer.share, n);
    float *mine = malloc(own * sizeof *mine), *got = malloc(n * sizeof *got);
    float *weights = flat_of(s->model, 3);
    for (int p = 0; p < 3; p++) {
        float *flat = flat_of(s->model, p);
        if (!part_of(s, p)) continue;
        for_each_own(s, flat, mine);
        rig_ops->download(got, part_of(s, p), own * sizeof *got);
        RANK_CHECK(memcmp(got, mine, own * sizeof *got) == 0);
        free(flat);
    }
    elements_download(rig_ops, got, s->weights.data, n);
    RANK_CHECK(memcmp(got, weights, n * sizeof *got) == 0);
    free(mine), free(got), free(weights);
}

static bool shared;
static const char *directory;

static void save(void *context) {
    struct State s = state_open(shared);
    struct Progress progress = awkward_state(7);
    (void)context;
    fill(&s);
    if (rig_world.rank == 0) RANK_CHECK(mkdir(directory, 0777) == 0);
    checkpoint_save(directory, s.model, &s.weights, &s.optimizer, NULL, &progress, NULL, NULL, 0,
                    &rig_world);
    /* written when it returns, on every rank */
    char latest[PATH_SIZE];
    RANK_CHECK(checkpoint_latest(directory, latest, sizeof latest));
    check_state(&s);   /* saving changes nothing */
    state_close(&s);
}

static void load(void *context) {
    struct State s = state_open(shared);
    char latest[PATH_SIZE];
    (void)context;
    RANK_CHECK(checkpoint_latest(directory, latest, sizeof latest));
    checkpoint_load_weights(latest, s.model, &s.weights);
    checkpoint_load_optimizer(latest, s.model, &s.weights, &s.optimizer, rig_ops->dtype);
    check_state(&s);
    state_close(&s);
}

static void assert_same_files(const char *a, const char *b) {
    static const char *const files[] = {"model.safetensors", "optimizer.safetensors",
                                        "trainer_state.json", "config.json", "checksums"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char command[3 * PATH_SIZE];
        snprintf(command, sizeof command, "cmp %s/checkpoints/step_000007/%s "
                 "%s/checkpoints/step_000007/%s", a, files[i], b, files[i]);
        if (system(command) != 0) fail_msg("%s", command);
    }
}

static int most(void) { return strcmp(backend, "cpu") == 0 ? 4 : 2; }

/* Saved by each number of ranks, loaded by each. */
static void test_any_number_of_ranks(void **state) {
    (void)state;
    char first[PATH_SIZE];
    snprintf(first, sizeof first, "%s", path_of("ranks1shared"));
    for (int ranks = 1; ranks <= most(); ranks++)
        for (int share = 1; share >= 0; share--) {
            char here[PATH_SIZE];
            snprintf(here, sizeof here, "%s",
                     path_of("ranks%d%s", ranks, share ? "shared" : "whole"));
            shared = share, directory = here;
            run_ranks(NULL, NULL, ranks, backend, dtype, 60, save, NULL);
            assert_same_files(first, here);
            for (int readers = 1; readers <= most(); readers++) {
                shared = true;
                run_ranks(NULL, NULL, readers, backend, dtype, 60, load, NULL);
            }
        }
}

/* Rank 0 cannot write: it says so, and the others end as well. */
static void save_nowhere(void *context) {
    struct State s = state_open(true);
    struct Progress progress = awkward_state(7);
    (void)context;
    fill(&s);
    checkpoint_save("/dev/null/nowhere", s.model, &s.weights, &s.optimizer, NULL, &progress, NULL,
                    NULL, 0, &rig_world);
}

static void test_rank_0_cannot_write(void **state) {
    (void)state;
    int codes[3];
    if (strcmp(backend, "cpu") != 0) skip();
    run_ranks(NULL, codes, 3, backend, dtype, 20, save_nowhere, NULL);
    for (int r = 0; r < 3; r++) assert_true(codes[r] == 1 || codes[r] == 2);
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) dtype = argv[2];
    if (argc > 3) cmocka_set_test_filter(argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_number_of_ranks),
        cmocka_unit_test(test_rank_0_cannot_write),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
