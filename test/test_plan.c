/* --dry-run --device-memory: the plan of memory for a machine that is not this one, from a model's
   config.json alone. The sizes are compared with sums by hand. */
#include "program_rig.h"
#include "../llmc/run/world_plan.h"

static char shapes[4200];   /* examples/shapes of this checkout */

/* Sizes as the models' config.json has them; tied: the head is the embedding. */
static const struct Shape {
    const char *name;
    int64_t V, C, F, L, NH, NKV, HS;
    bool tied;
} qwen3[] = {
    {"qwen3-0.6b", 151936, 1024, 3072, 28, 16, 8, 128, true},
    {"qwen3-4b", 151936, 2560, 9728, 36, 32, 8, 128, true},
    {"qwen3-8b", 151936, 4096, 12288, 36, 32, 8, 128, false},
};

/* Embedding and head; in each layer q and o, k and v, gate, up and down, two norms of C and two of
   HS; the last norm. */
static int64_t parameters(const struct Shape *s) {
    int64_t layer = 2 * s->C * s->NH * s->HS + 2 * s->C * s->NKV * s->HS + 3 * s->C * s->F +
                    2 * s->C + 2 * s->HS;
    return (s->tied ? 1 : 2) * s->V * s->C + s->L * layer + s->C;
}

/* MiB of a line of the plan that was printed; 0 if there is none. */
static double planned(const char *group) {
    char line[64];
    snprintf(line, sizeof line, "\n  %s ", group);
    const char *at = strstr(output, line);
    return at ? atof(at + strlen(line)) : 0;
}

static int plan(const char *backend, const struct Shape *s, int gib, const char *more) {
    return run("%s --backend %s --dry-run --device-memory %d --model %s/%s --prompts 16 --group 8 "
               "--max-prompt 512 --max-tokens 512 %s",
               train, backend, gib, shapes, s->name, more);
}

/* A line is printed in hundredths of a MiB; buffers are filled up to 256 bytes. */
static void assert_planned(const char *group, int64_t bytes) {
    double mib = (double)bytes / (1 << 20);
    if (fabs(planned(group) - mib) > 0.02)
        fail_msg("%s: %.2f MiB planned, %.2f by hand:\n%s", group, planned(group), mib, output);
}

/* Each parameter of `weight` bytes, with `masters` copies in float32, two moments, a gradient. */
static void assert_parts(const struct Shape *s, int weight, int masters) {
    char says[64];
    int64_t count = parameters(s);
    snprintf(says, sizeof says, "qwen3: %lld parameters", (long long)count);
    if (!strstr(output, says)) fail_msg("not %s:\n%s", says, output);
    assert_planned("weights", count * weight);
    assert_planned("optimizer", count * 4 * (2 + masters));
    assert_planned("gradients", count * 4);
}

/* Memory far beyond this machine's: nothing of it is asked for. */
static void test_from_a_config_alone(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        if (plan("cpu", &qwen3[i], 4000, "")) fail_msg("%s: %s", qwen3[i].name, output);
        assert_parts(&qwen3[i], 4, 0);
        assert_non_null(strstr(output, "prompts of 512 and completions of 512 tokens"));
    }
    RUN_OK("$T --dry-run --device-memory 4000 --model %s/%s", shapes, qwen3[0].name);
    assert_non_null(strstr(output, "prompts of 512 and completions of 256 tokens"));
}

/* What the plan may use, and no more: 70 % of what it is told. */
static void test_keeps_to_what_it_is_told(void **state) {
    (void)state;
    double before = 0;
    for (int gib = 17; gib <= 68; gib *= 2) {
        if (plan("cpu", &qwen3[0], gib, "")) fail_msg("%d: %s", gib, output);
        double total = planned("total");
        assert_true(total <= .7 * 1024 * gib);
        assert_true(total >= before);
        before = total;
    }
    assert_int_equal(plan("cpu", &qwen3[0], 3, ""), 1);
}

/* The device's sizes, by the CUDA files themselves, where the simulator's plug-in was built. */
static void test_of_a_device(void **state) {
    (void)state;
    int code = plan("sim", &qwen3[0], 78, "--dtype bf16");
    if (strstr(output, "there is no backend_sim.so")) skip();
    if (code) fail_msg("exit code %d: %s", code, output);
    assert_parts(&qwen3[0], 2, 1);
    assert_true(planned("total") <= .95 * 1024 * 78);
    assert_int_equal(plan("sim", &qwen3[2], 78, "--dtype bf16 --recompute layer"), 1);
    assert_non_null(strstr(output, "137.3 of them for the weights, their gradients and the opti"));
}

static void test_refusals(void **state) {
    (void)state;
    assert_int_equal(plan("cpu", &qwen3[2], 100, ""), 1);
    assert_non_null(strstr(output, "no option makes that smaller"));
    assert_int_equal(plan("cpu", &qwen3[0], 16, "--micro-tokens 100000"), 1);
    assert_non_null(strstr(output, "what helps: --recompute layer, a smaller --micro-tokens"));
    assert_null(strstr(output, "--cache-gb"));
    assert_int_equal(run("$T --device-memory 80 --steps 1"), 2);
    assert_non_null(strstr(output, "--dry-run"));
    assert_int_equal(run("$T --max-prompt 80 --dry-run"), 2);
    RUN_OK("$T --dry-run --device-memory 500 --model gpt2");   /* a named size has its own task */
    assert_non_null(strstr(output, "task      countdown"));
    assert_int_equal(run("$T --dry-run --model %s/%s", shapes, qwen3[0].name), 2);
    assert_non_null(strstr(output, "tokenizer.json"));
}

/* What ranks hold and send, of 9600 parameters in 14 buckets: by hand. */
static void test_of_ranks(void **state) {
    (void)state;
    struct Ops bf16 = {.element_size = 2}, fp32 = {.element_size = 4};
    struct Model model = {.ranks = 3, .num_buckets = 14, .num_parameters = 9600, .ops = &bf16};
    struct WorldPlan p = world_plan(&model, true, false);
    assert_true(p.weights == 19200 && p.gradients == 38400);
    assert_true(p.optimizer_alone == 115200 && p.optimizer == 38400);
    assert_true(p.send_gradients == 25600 && p.send_weights == 12800 && p.collectives == 28);
    assert_true(p.send_checkpoint == 2 * 38400);
    assert_true(world_plan(&model, true, true).send_gradients == 12800);
    p = world_plan(&model, false, false);
    assert_true(p.optimizer == 115200 && p.send_checkpoint == 0);
    assert_true(p.send_gradients == 51200 && p.send_weights == 0 && p.collectives == 14);
    model.ops = &fp32;   /* needs no masters */
    p = world_plan(&model, true, false);
    assert_true(p.weights == 38400 && p.optimizer == 25600 && p.send_weights == 25600);
    model.ranks = 1;
    p = world_plan(&model, true, false);
    assert_true(p.optimizer == p.optimizer_alone && p.collectives == 0);
    assert_true(p.send_gradients == 0 && p.send_weights == 0);
}

/* In the printed plan the optimizer's memory falls as 1/ranks. 28 + 2 buckets are rounded up to 32
   elements a rank, at most. */
static void test_optimizer_is_shared(void **state) {
    (void)state;
    const struct Shape *s = &qwen3[0];
    double count = (double)parameters(s), embedding = (double)(s->V * s->C), MiB = 1 << 20;
    for (int ranks = 1; ranks <= 64; ranks *= 8) {
        double gaps = 30. * 32 * ranks;
        char more[64], says[64];
        snprintf(more, sizeof more, "--ranks %d --prompts 512", ranks);
        if (plan("cpu", s, 4000, more)) fail_msg("%d ranks: %s", ranks, output);
        snprintf(says, sizeof says, "\nranks     %d, each with", ranks);
        assert_int_equal(strstr(output, says) != NULL, ranks > 1);
        double over = planned("optimizer") * MiB - 8 * count / ranks;
        if (over < -.01 * MiB || over > 8 * gaps / ranks + .01 * MiB)
            fail_msg("%d ranks: %.0f bytes above 1/%d", ranks, over, ranks);
        for (int i = 0; i < 2; i++)
            assert_in_range((long)(planned(i ? "weights" : "gradients") * MiB - 4 * count + 1e4),
                            0, (long)(4 * gaps + 2e4));
    }
    assert_int_equal(plan("cpu", s, 4000, "--ranks 8 --zero 0"), 0);
    assert_planned("optimizer", (int64_t)(8 * count));
    assert_non_null(strstr(output, "optimizer whole on every rank"));
    assert_non_null(strstr(output, "an update sends 4.172 GB from each"));   /* 2 x 7/8 x 4 */
    /* the place where gradients are rounded: of the largest bucket */
    assert_int_equal(plan("cpu", s, 4000, "--ranks 3 --grad-comm bf16"), 0);
    assert_planned("gradients", (int64_t)(4 * count + 2 * embedding));
    assert_non_null(strstr(output, "\nranks     3, each"));
    assert_non_null(strstr(output, "16 groups of 8: 5 to 6 on a rank"));
    assert_non_null(strstr(output, "gradients 794.7 MB (bf16, reduce-scatter)"));   /* 2/3 x 2 */
    assert_int_equal(plan("cpu", s, 4000, "--ranks 32"), 0);
    assert_non_null(strstr(output, "16 prompts for 32 ranks: some sample nothing"));
}

/* 8B, which no device of 80 GB can train alone, is planned for eight of them. */
static void test_eight_devices(void **state) {
    (void)state;
    int code = plan("sim", &qwen3[2], 78, "--dtype bf16 --recompute layer --gpus 8");
    if (strstr(output, "there is no backend_sim.so")) skip();
    if (code) fail_msg("exit code %d: %s", code, output);
    assert_true(planned("total") <= .95 * 1024 * 78);
    double over = planned("optimizer") - 12. / 8 * (double)parameters(&qwen3[2]) / (1 << 20);
    assert_true(fabs(over) < .1);
}

static void test_refused_ranks(void **state) {
    (void)state;
    static const char *const lines[][2] = {
        {"--ranks 2 --zero 0 --grad-comm bf16", "leave out --zero 0"},
        {"--backend sim --gpus 2 --ranks 3", "leave --ranks out"},
        {"--backend sim --gpus two", "must be a number"},
        {"--backend sim --gpus 0", "from 1 to 4096"}};
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        assert_int_equal(run("$T --dry-run %s", lines[i][0]), 2);
        if (!strstr(output, lines[i][1])) fail_msg("%s: %s", lines[i][0], output);
    }
}

/* What a run sends in a step is what its plan says of its updates, which is printed with four
   digits, and the little that the ranks tell each other: less than a hundredth here. */
static void test_run_sends_as_planned(void **state) {
    (void)state;
    static const char *const ways[] = {"", "--zero 0", "--grad-comm bf16"};
    for (int i = 0; i < 3; i++) {
        char file[64];
        RUN_OK("$T --ranks 3 --steps 2 --warm-start 2 --prompts 8 --group 4 --eval-every 0 "
               "--save-every 0 %s --run sends-%d", ways[i], i);
        const char *at = strstr(output, "an update sends ");
        if (!at) fail_msg("%s: %s", ways[i], output);
        double planned = 1e6 * atof(at + strlen("an update sends "));
        snprintf(file, sizeof file, "sends-%d/metrics.jsonl", i);
        cJSON *log = read_log(file);
        for (int step = 1; step <= 2; step++) {
            double sends = logged(log, step, "comm/bytes") / logged(log, step, "updates");
            if (!(sends > .9995 * planned && sends < 1.01 * planned))
                fail_msg("%s: step %d sends %.0f bytes an update, and %.0f are planned", ways[i],
                         step, sends, planned);
            assert_true(logged(log, step, "ranks") == 3);
        }
        cJSON_Delete(log);
    }
}

int main(void) {
    always = "--backend cpu";
    if (!realpath("examples/shapes", shapes)) return print_error("no examples/shapes here\n"), 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_from_a_config_alone),
        cmocka_unit_test(test_keeps_to_what_it_is_told),
        cmocka_unit_test(test_of_a_device),
        cmocka_unit_test(test_of_ranks),
        cmocka_unit_test(test_optimizer_is_shared),
        cmocka_unit_test(test_eight_devices),
        cmocka_unit_test(test_refused_ranks),
        cmocka_unit_test(test_run_sends_as_planned),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, make_place, remove_place);
}
