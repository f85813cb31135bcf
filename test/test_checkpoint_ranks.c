/* Checkpoints of several ranks, each of which has a share of the optimizer: the files are those of
   one rank, byte for byte, and any number of ranks goes on from them; what saving sends, how long
   the ranks are told to wait for each other, and a disk that is full in the midst of it. Every
   element has a value that says which part, tensor and element it is; the slices are computed here
   by hand.

       test_checkpoint_ranks [BACKEND DTYPE]   cpu auto, or sim bf16: with float32 masters */
#include <sys/resource.h>
#include "checkpoint_rig.h"
#include "ranks_rig.h"

enum { MOST_RANKS = 4 };
enum Part { DATA, FIRST, SECOND, MASTERS, NUM_PARTS };

static const char *backend = "cpu", *dtype = "auto";

/* ---- a rank's state -------------------------------------------------------------------------- */

struct State {
    struct Model *model;
    struct Weights weights;
    struct OptimizerState optimizer;
    size_t n, own;   /* elements of the flat buffers, and of this rank's share of one */
    int ranks;       /* that share: 1 where each has everything */
};

/* Which state: of a model whose tensors do not divide by the ranks, each rank with its slices or
   with everything. */
struct Kind {
    const char *family, *directory;
    bool zero;
};

static struct ModelConfig ragged_config(const char *family) {
    struct ModelConfig config = small_config(strcmp(family, "gpt2") == 0);
    snprintf(config.family, sizeof config.family, "%s", family);
    config.V = config.V_saved = 23, config.Vp = 64;
    if (config.tied) return config;
    config.NKV = 1, config.rope.theta = 10000;
    config.norm = NORM_RMS, config.activation = SWIGLU;
    return config;
}

static void state_open(struct State *s, const struct Kind *kind) {
    struct ModelConfig config = ragged_config(kind->family);
    RANK_CHECK(model_config_problem(&config) == NULL);
    s->model = model_build_ranks(&config, rig_ops, rig_world.size);
    s->ranks = kind->zero ? rig_world.size : 1;
    s->n = s->model->num_parameters, s->own = s->n / (size_t)s->ranks;
    struct Share share = {kind->zero ? rig_world.rank : 0, s->ranks};
    bool narrow = rig_ops->element_size < sizeof(float);
    float *parts[4];
    for (int i = 0; i < 4; i++) parts[i] = rig_ops->alloc(s->n * sizeof(float));
    s->weights = (struct Weights){.data = rig_ops->alloc(s->n * rig_ops->element_size),
                                  .master = narrow ? parts[2] : NULL, .share = share};
    s->optimizer = (struct OptimizerState){parts[0], parts[1], s->weights.master, share,
                                           s->ranks > 1 ? parts[3] : NULL};
}

/* Not a value of any element, nor zero. */
#define NEVER 0.75f

static float value(enum Part part, int tensor, size_t element) {
    if (part == DATA) return (float)((31 * (size_t)tensor + element) % 251) - 125;   /* in bf16 */
    float x = (float)((size_t)(tensor + 1) * 65536 + element);   /* exact: below 2^22 */
    return part == FIRST ? -x : part == SECOND ? x + 0.5f : -x - 0.25f;
}

/* A part [n] as it must be: zero in padding and gaps. The caller frees it. */
static float *whole_part(const struct Model *model, enum Part part) {
    float *x = calloc(model->num_parameters, sizeof *x);
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *t = &model->tensors[i];
        RANK_CHECK(t->saved < 65536);
        for (size_t j = 0; j < t->saved; j++) x[t->offset + j] = value(part, i, j);
    }
    return x;
}

/* This rank's slice of each bucket of whole [n], one after another, in out [own]. */
static void cut(float *out, const struct State *s, const float *whole) {
    size_t at = 0;
    for (int b = 0; b < s->model->num_buckets; b++) {
        size_t begin = s->model->buckets[b].begin, all = s->model->buckets[b].end - begin;
        size_t each = all / (size_t)s->ranks;
        RANK_CHECK(each * (size_t)s->ranks == all);
        for (size_t i = 0; i < each; i++)
            out[at++] = whole[begin + (s->ranks > 1 ? (size_t)rig_world.rank * each : 0) + i];
    }
    RANK_CHECK(at == s->own);
}

static float *part_of(const struct State *s, enum Part part) {
    float *const parts[NUM_PARTS] = {NULL, s->optimizer.m, s->optimizer.v, s->optimizer.master};
    return parts[part];
}

/* All parts hold their values (real), or NEVER. */
static void state_fill(struct State *s, bool real) {
    for (enum Part part = DATA; part < NUM_PARTS; part++) {
        float *whole = whole_part(s->model, part), *own = malloc(s->own * sizeof *own);
        for (size_t i = 0; i < s->n && !real; i++) whole[i] = NEVER;
        cut(own, s, whole);
        if (part == DATA) elements_upload(rig_ops, s->weights.data, whole, s->n);
        else if (part_of(s, part)) rig_ops->upload(part_of(s, part), own, s->own * sizeof *own);
        free(whole), free(own);
    }
}

static void check_equal(const char *name, const float *found, const float *expected, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (found[i] == expected[i]) continue;
        fprintf(stderr, "rank %d of %d: %s [%zu] is %.9g, not %.9g\n", rig_world.rank,
                rig_world.size, name, i, (double)found[i], (double)expected[i]);
        exit(1);
    }
}

static void state_check(const struct State *s) {
    static const char *const names[NUM_PARTS] = {"data", "m", "v", "master"};
    for (enum Part part = DATA; part < NUM_PARTS; part++) {
        float *whole = whole_part(s->model, part), *own = malloc(s->n * sizeof *own);
        float *found = malloc(s->n * sizeof *found);
        cut(own, s, whole);
        if (part == DATA) {
            elements_download(rig_ops, found, s->weights.data, s->n);
            check_equal(names[part], found, whole, s->n);
        } else if (part_of(s, part)) {
            rig_ops->download(found, part_of(s, part), s->own * sizeof *found);
            check_equal(names[part], found, own, s->own);
        }
        free(whole), free(own), free(found);
    }
}

static void state_close(struct State *s) {
    float *parts[] = {s->optimizer.m, s->optimizer.v, s->optimizer.master, s->optimizer.whole};
    for (int i = 0; i < 4; i++)
        if (parts[i]) rig_ops->free(parts[i]);
    rig_ops->free(s->weights.data);
    model_free(s->model);
}

/* ---- what a rank does ------------------------------------------------------------------------ */

/* Seconds that ranks were told to wait, call by call. */
static double waits[8];
static int num_waits;
static void (*real_expect)(int64_t step, double patience);

static void noted_expect(int64_t step, double patience) {
    if (num_waits < 8) waits[num_waits] = patience;
    num_waits++;
    real_expect(step, patience);
}

/* Saves step `step` through a world that notes how long it waits. */
static void save_noted(const struct State *s, const char *directory, bool optimizer,
                       int64_t step) {
    struct Ops noting = *rig_ops;
    struct World world = rig_world;
    struct Progress progress = awkward_state(step);
    real_expect = rig_ops->comm_expect, noting.comm_expect = noted_expect, num_waits = 0;
    if (world.size > 1) world.ops = &noting;
    checkpoint_save(directory, s->model, &s->weights, optimizer ? &s->optimizer : NULL, NULL,
                    &progress, NULL, NULL, 0, &world);
    if (world.size == 1) return;
    /* as long as a disk of 20 MB/s takes for 16 bytes a weight; then no longer than usual */
    double bytes = 16. * (double)s->model->num_parameters;
    RANK_CHECK(num_waits == 2 && waits[1] == world.timeout);
    RANK_CHECK(fabs(waits[0] - world.timeout - bytes / 20e6) < 1e-9);
}

static double sent(void) {
    struct CommCounts counts;
    rig_ops->comm_counts(&counts);
    return counts.bytes;
}

static void save_body(void *argument) {
    const struct Kind *kind = argument;
    struct State s;
    char latest[PATH_SIZE];
    state_open(&s, kind);
    state_fill(&s, true);
    world_any(&rig_world, false);
    double before = sent(), others = (double)rig_world.size - 1;
    bool counted = before > 0;   /* not every backend does */
    save_noted(&s, kind->directory, true, 7);
    /* the moments, and masters where there are some, by buckets; and that it is written */
    double parts = s.ranks > 1 ? (s.optimizer.master ? 3 : 2) * 4. * (double)s.n : 0;
    double expected = others / rig_world.size * parts + 8 * others;
    RANK_CHECK(!counted || fabs(sent() - before - expected) < 0.5);
    RANK_CHECK(checkpoint_latest(kind->directory, latest, sizeof latest));
    RANK_CHECK(strstr(latest, "step_000007") != NULL);
    state_check(&s);   /* saving changes nothing */
    world_any(&rig_world, false);   /* all have seen it */
    /* Without an optimizer nothing is gathered, and yet nobody goes on before it is written. */
    save_noted(&s, kind->directory, false, 8);
    RANK_CHECK(checkpoint_latest(kind->directory, latest, sizeof latest));
    RANK_CHECK(strstr(latest, "step_000008") != NULL);
    state_close(&s);
}

static void load_body_of_rank(void *argument) {
    const struct Kind *kind = argument;
    struct State s;
    char path[PATH_SIZE];
    snprintf(path, sizeof path, "%s/checkpoints/step_000007", kind->directory);
    state_open(&s, kind);
    state_fill(&s, false);
    checkpoint_load_weights(path, s.model, &s.weights);
    checkpoint_load_optimizer(path, s.model, &s.weights, &s.optimizer, rig_ops->dtype);
    state_check(&s);
    state_close(&s);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void check_same_file(const char *a, const char *b, const char *name) {
    char path[PATH_SIZE];
    size_t length[2];
    char *bytes[2];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/checkpoints/step_000007/%s", i ? b : a, name);
        bytes[i] = read_whole(path, &length[i]);
    }
    assert_true(length[0] > 0 && length[0] < 1 << 20);
    if (length[0] != length[1] || memcmp(bytes[0], bytes[1], length[0]) != 0)
        fail_msg("%s of %s and %s differ", name, a, b);
    free(bytes[0]), free(bytes[1]);
}

/* Saved by each number of ranks, sliced or whole: the same files. Loaded by each: its slices. */
static void check_family(const char *family) {
    static const char *const files[] = {"model.safetensors", "optimizer.safetensors",
                                        "trainer_state.json", "config.json", "checksums"};
    const char *first = NULL;
    for (int zero = 1; zero >= 0; zero--) {
        for (int ranks = 1; ranks <= (zero ? MOST_RANKS : 2); ranks++) {
            const char *directory = path_of("%s_%d_%d", family, zero, ranks);
            assert_int_equal(mkdir(directory, 0777), 0);
            struct Kind kind = {family, directory, zero};
            run_ranks(NULL, NULL, ranks, backend, dtype, 60, save_body, &kind);
            if (first == NULL) first = directory;
            for (size_t f = 0; f < sizeof files / sizeof *files; f++)
                check_same_file(first, directory, files[f]);
        }
        for (int ranks = 1; ranks <= (zero ? MOST_RANKS : 2); ranks++) {
            struct Kind kind = {family, first, zero};
            run_ranks(NULL, NULL, ranks, backend, dtype, 60, load_body_of_rank, &kind);
        }
    }
}

static void test_any_number_to_any_other(void **state) {
    (void)state;
    check_family("gpt2");
    check_family("llama");
}

/* The disk of rank 0 is full when it is in the midst of the optimizer's file: every rank ends, and
   the checkpoint before is whole. */
static void full_body(void *argument) {
    const struct Kind *kind = argument;
    struct State s;
    state_open(&s, kind);
    state_fill(&s, true);
    size_t room = 6 * s.model->num_real_parameters;   /* of 4 and 8 bytes a weight, or 12 */
    if (freopen("/dev/null", "w", stderr) == NULL) exit(3);
    if (rig_world.rank == 0) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){room, room});
    }
    save_noted(&s, kind->directory, true, 9);
    exit(4);
}

static void test_full_disk(void **state) {
    (void)state;
    int codes[3];
    char latest[PATH_SIZE];
    const char *directory = path_of("full");
    if (strcmp(backend, "cpu") != 0) skip();   /* the simulator's ranks end in their own way */
    struct Kind kind = {"gpt2", directory, true};
    assert_int_equal(mkdir(directory, 0777), 0);
    run_ranks(NULL, NULL, 2, backend, dtype, 60, save_body, &kind);
    run_ranks(NULL, codes, 3, backend, dtype, 10, full_body, &kind);
    for (int r = 0; r < 3; r++) assert_int_equal(codes[r], 1);
    assert_true(exists(path_of("full/checkpoints/.writing_step_000009/model.safetensors")));
    assert_false(exists(path_of("full/checkpoints/step_000009")));
    assert_true(checkpoint_latest(directory, latest, sizeof latest));
    assert_non_null(strstr(latest, "step_000008"));
    run_ranks(NULL, NULL, 3, backend, dtype, 60, load_body_of_rank, &kind);
}

int main(int argc, char **argv) {
    if (argc > 2) backend = argv[1], dtype = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_number_to_any_other),
        cmocka_unit_test(test_full_disk),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
