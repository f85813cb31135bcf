/* What ranks send, as the communication slots count it, against the formulas of doc/scaling.md: the
   host's exchanges by hand, an update's collectives by the plan that is printed (world_plan). */
#include "../llmc/rl/trainer.h"
#include "../llmc/run/world_plan.h"
#include "ranks_rig.h"

static const char *backend = "cpu", *dtype = "auto";

/* What this rank has communicated since the last call. */
static struct CommCounts communicated(void) {
    static struct CommCounts before;
    struct CommCounts now;
    rig_ops->comm_counts(&now);
    struct CommCounts since = {.calls = now.calls - before.calls,
                               .bytes = now.bytes - before.bytes};
    before = now;
    return since;
}

static double sent(void) { return communicated().bytes; }

/* ---- the host's exchanges -------------------------------------------------------------------- */

static void exchange(void *unused) {
    (void)unused;
    const int R = rig_world.size, rank = rig_world.rank;
    double x[5] = {1, 2, 3, 4, 5};
    size_t most = ((size_t)3 << 19) + 7 * (size_t)(R - 1);   /* above a window */
    char *bytes = calloc(1, most);
    struct Gathered gathered = {0};
    sent();
    world_sum(&rig_world, x, 5);
    RANK_CHECK(sent() == (R - 1) * 8. * 5);
    world_any(&rig_world, false);
    RANK_CHECK(sent() == (R - 1) * 8.);
    /* every rank has another number; the largest counts */
    world_gather(&rig_world, &gathered, bytes, most - 7 * (size_t)rank);
    RANK_CHECK(sent() == (R - 1) * (8 + (double)most));
    world_broadcast(&rig_world, bytes, most, R - 1);
    RANK_CHECK(sent() == (rank == R - 1 && R > 1 ? (double)most : 0));
    gathered_free(&gathered);
    free(bytes);
}

static void test_exchanges(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++)
        run_ranks(NULL, NULL, ranks, backend, dtype, 60, exchange, NULL);
}

/* ---- an update ------------------------------------------------------------------------------- */

enum { SEQUENCES = 7, LENGTH = 9, WORDS = 37 };

struct Learner {
    struct Model *model;
    struct Arena arena;
    struct Trainer *trainer;
    int start[SEQUENCES + 1], loss_start[SEQUENCES + 1], token[SEQUENCES * LENGTH];
    unsigned char mask[SEQUENCES * LENGTH];
    struct TrainingSet set;
};

static void learner_open(struct Learner *l, const char *name, bool zero, bool narrow) {
    struct ModelConfig c;
    struct OptimizerOptions optimizer = {.beta1 = .9f, .beta2 = .95f, .epsilon = 1e-8f,
                                         .zero = zero, .narrow_gradients = narrow};
    int multiple = rig_ops->vocabulary_multiple, at = 0, loss = 0;
    RANK_CHECK(model_config_named(&c, name));
    c.V = c.V_saved = WORDS, c.Vp = (WORDS + multiple - 1) / multiple * multiple;
    *l = (struct Learner){.model = model_build_ranks(&c, rig_ops, rig_world.size)};
    struct OpsShape shape = {.N = 2 * LENGTH, .C = c.C, .F = c.F, .NH = c.NH, .NKV = c.NKV,
                             .HS = c.HS, .V = c.V, .Vp = c.Vp, .max_T = LENGTH, .R = 1,
                             .max_length = LENGTH};
    l->trainer = trainer_reserve(l->model, &l->arena, &shape, RECOMPUTE_NONE, &optimizer,
                                 &rig_world, 1);
    arena_commit(&l->arena, rig_ops);
    model_initialise(l->model, trainer_weights(l->trainer), 1);
    trainer_reset_optimizer(l->trainer);
    for (int s = 0; s < SEQUENCES; s++) {   /* of 3 to 9 tokens, all but the first with a loss */
        for (int t = 0; t < 3 + s; t++, at++)
            l->token[at] = (5 * at + s) % WORDS, l->mask[at] = t > 0, loss += t > 0;
        l->start[s + 1] = at, l->loss_start[s + 1] = loss;
    }
    l->set = (struct TrainingSet){.count = SEQUENCES, .start = l->start, .token = l->token,
                                  .loss_mask = l->mask, .loss_start = l->loss_start};
}

static void learner_free(struct Learner *l) {
    trainer_free(l->trainer);
    arena_free(&l->arena);
    model_free(l->model);
}

/* What the ranks tell each other of an update: the norm's square, unless each has the whole
   gradient, and what each has found, in one gather (add_ranks in trainer.c). */
static double told(bool zero) {
    double found = sizeof(struct ObjectiveStats) + sizeof(long);
    return (rig_world.size - 1) * ((zero ? 8 : 0) + 8 + found);
}

static void update(void *unused) {
    (void)unused;
    static const char *const models[] = {"tiny", "tiny-llama"};
    static const int picks[] = {SEQUENCES, 2};   /* of two sequences some rank of three has none */
    static const int pick[SEQUENCES] = {0, 1, 2, 3, 4, 5, 6};
    for (int i = 0; i < 12; i++) {
        bool zero = i / 4 != 2, narrow = i / 4 == 1;
        struct Learner l;
        struct ObjectiveBatch batch = {.logp_dtype = "fp32"};
        struct ObjectiveStats stats = {0};
        learner_open(&l, models[i % 2], zero, narrow);
        struct WorldPlan plan = world_plan(l.model, zero, narrow);
        communicated();
        struct UpdateResult result =
            trainer_update(l.trainer, objective_find("ce"), &l.set, pick, picks[i / 2 % 2], &batch,
                           LENGTH, 1, 1e-3f, &stats);
        struct CommCounts since = communicated();
        double wanted = plan.send_gradients + plan.send_weights + told(zero);
        RANK_CHECK(result.made && !result.skipped);
        /* both are sums of fractions with the ranks below the line */
        RANK_CHECK(fabs(since.bytes - wanted) <= 1e-9 * wanted);
        int64_t calls = rig_world.size > 1 ? plan.collectives + 2 + zero : 0;
        RANK_CHECK(since.calls == calls);
        RANK_CHECK(rig_world.size > 1 ? wanted > 0 : wanted == 0);
        learner_free(&l);
    }
}

static void test_update(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++)
        run_ranks(NULL, NULL, ranks, backend, dtype, 60, update, NULL);
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) dtype = argv[2];
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exchanges),
        cmocka_unit_test(test_update),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
