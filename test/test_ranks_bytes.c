/* What ranks send, as the communication slots count it, against the formulas of doc/scaling.md: the
   host's exchanges by hand, an update's collectives by the plan that is printed (world_plan). */
#include "../llmc/run/world_plan.h"
#include "model_rig.h"
#include "ranks_rig.h"

/* Bytes sent by this rank since the last call. */
static double sent(void) {
    static double before;
    struct CommCounts counts;
    rig_ops->comm_counts(&counts);
    double since = counts.bytes - before;
    before = counts.bytes;
    return since;
}

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

/* ---- an update's collectives ----------------------------------------------------------------- */

static const char *const models[] = {"tiny", "tiny-llama"};

static struct Model *build(const char *name) {
    struct ModelConfig config;
    assert_true(model_config_named(&config, name));
    config.V = config.V_saved = 37, config.Vp = 40;   /* divides by no number of ranks */
    return model_build_ranks(&config, rig_ops, rig_world.size);
}

/* The calls that an update makes, bucket by bucket. */
static void communicate(const struct Model *model, bool zero, bool narrow) {
    size_t n = model->num_parameters, bytes = n * sizeof(float);
    size_t element = rig_ops->element_size;
    struct Share share = {rig_world.rank, rig_world.size};
    float *grads = rig_ops->alloc(bytes);
    char *weights = rig_ops->alloc(n * element);
    void *scratch = rig_ops->alloc(bytes);
    rig_ops->fill_zero(grads, bytes);
    rig_ops->fill_zero(weights, n * element);
    for (int b = model->num_buckets - 1; b >= 0; b--) {
        struct Bucket all = model->buckets[b], mine = share_slice(&share, &all);
        if (zero)
            rig_ops->reduce_scatter(grads + mine.begin, grads + all.begin, mine.end - mine.begin,
                                    narrow ? scratch : NULL, -1, -1);
        else rig_ops->all_reduce(grads + all.begin, all.end - all.begin, -1, -1);
    }
    for (int b = 0; b < model->num_buckets && zero; b++) {
        struct Bucket all = model->buckets[b], mine = share_slice(&share, &all);
        rig_ops->all_gather(weights + all.begin * element, weights + mine.begin * element,
                            (mine.end - mine.begin) * element, -1, -1);
    }
    rig_ops->free(grads), rig_ops->free(weights), rig_ops->free(scratch);
}

static void update(void *unused) {
    (void)unused;
    for (int i = 0; i < 2; i++) {
        struct Model *model = build(models[i]);
        for (int how = 0; how < 3; how++) {
            bool zero = how != 2, narrow = how == 1;
            struct WorldPlan plan = world_plan(model, zero, narrow);
            sent();
            communicate(model, zero, narrow);
            double bytes = sent(), wanted = plan.send_gradients + plan.send_weights;
            /* both are sums of fractions with the ranks below the line */
            RANK_CHECK(fabs(bytes - wanted) <= 1e-9 * wanted);
            RANK_CHECK(rig_world.size > 1 ? wanted > 0 : wanted == 0);
        }
        model_free(model);
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
