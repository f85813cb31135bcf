/* dev/scaling.py, the model behind doc/scaling.md: its tables are those of the page, and its parts
   agree with the program (parameters, the ranks' pieces, bytes) and with sums by hand. */
#include <sys/wait.h>
#include "../llmc/base/json.h"
#include "../llmc/base/rng.h"
#include "../llmc/model.h"
#include "../llmc/run/world_plan.h"
#include "../llmc/world.h"
#include "test.h"

static char output[1 << 14];

/* Runs Python, `scaling` imported and its names known. Returns the exit code. */
__attribute__((format(printf, 1, 2))) static int python(const char *format, ...) {
    char code[4096], line[8192];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(code, sizeof code, format, arguments);
    va_end(arguments);
    snprintf(line, sizeof line, "PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=dev python3 -c 'from scaling "
             "import *\n%s' 2>&1", code);
    FILE *pipe = popen(line, "r");
    assert_non_null(pipe);
    output[fread(output, 1, sizeof output - 1, pipe)] = 0;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool has_python(void) { return python("print(1)") == 0; }

static double number(const char *expression) {
    if (python("print(repr(float(%s)))", expression)) fail_msg("%s: %s", expression, output);
    return strtod(output, NULL);
}

static void test_the_page(void **state) {
    (void)state;
    if (!has_python()) skip();
    int code = python("import sys\nsys.argv[1:] = [\"--check\", \"doc/scaling.md\"]\n"
                      "sys.exit(main())");
    if (code) fail_msg("doc/scaling.md is not what dev/scaling.py prints:\n%s", output);
}

/* The families' tables of tensors have as many parameters as the script's shapes. */
static void test_parameters(void **state) {
    (void)state;
    static const char *const names[] = {"qwen3-0.6b", "qwen3-4b", "qwen3-8b"};
    static const char *const shapes[] = {"QWEN_06", "QWEN_4", "QWEN_8"};
    struct ModelConfig config;
    struct Ops ops = {.element_size = 2};
    const char *problem;
    char expression[64];
    if (!has_python()) skip();
    for (int i = 0; i < 4; i++) {
        if (i == 3) {
            assert_true(model_config_named(&config, "gpt2"));
            config.V = config.V_saved = config.Vp = 50257;
        } else {
            char path[64];
            snprintf(path, sizeof path, "examples/shapes/%s/config.json", names[i]);
            cJSON *json = json_read(path, 1 << 20, &problem);
            if (!json) fail_msg("%s: %s", path, problem);
            assert_null(model_config_read(&config, json));
            cJSON_Delete(json);
        }
        struct Model *model = model_build(&config, NULL);
        snprintf(expression, sizeof expression, "%s.parameters()", i == 3 ? "GPT2" : shapes[i]);
        assert_true(number(expression) == (double)model->num_real_parameters);
        /* 32 per bucket at most are added: what ranks send is the same to that */
        model->ops = &ops, model->ranks = 8;
        struct WorldPlan plan = world_plan(model, true, false);
        snprintf(expression, sizeof expression, "sent(8, 6 * %s.parameters())",
                 i == 3 ? "GPT2" : shapes[i]);
        double sent = plan.send_gradients + plan.send_weights;
        ASSERT_CLOSE("bytes", fabs(number(expression) / sent - 1), 1e-5);
        model->ops = NULL;
        model_free(model);
    }
}

/* Lists of random costs, cut by the program and by the script. */
static void test_pieces(void **state) {
    (void)state;
    struct Rng rng;
    if (!has_python()) skip();
    rng_open(&rng, 3, RNG_TEST, 0);
    for (int round = 0; round < 6; round++) {
        int weight[40], n = round == 0 ? 2 : 5 + 7 * round, ranks = 1 + round * 3, at = 0;
        char list[512] = "", wanted[256] = "[";
        for (int i = 0; i < n; i++) {
            weight[i] = 1 + (int)rng_below(&rng, 50);
            at += snprintf(list + at, sizeof list - (size_t)at, "%d, ", weight[i]);
        }
        for (int r = 0; r < ranks; r++) {
            struct World world = {.rank = r, .size = ranks};
            struct Piece piece = world_piece(&world, r, n, weight);
            snprintf(wanted + strlen(wanted), sizeof wanted - strlen(wanted), "%d, ", piece.first);
        }
        snprintf(wanted + strlen(wanted), sizeof wanted - strlen(wanted), "%d]\n", n);
        assert_int_equal(python("print(pieces(%d, [%s]))", ranks, list), 0);
        assert_string_equal(output, wanted);
    }
}

/* Machines and models whose times can be added up by hand. */
static void test_times_by_hand(void **state) {
    (void)state;
    if (!has_python()) skip();
    const char *setup = "m = Machine(memory=1000, rate=1e6, kernel=0, inside=2, link=100, "
                        "network=30, hop_inside=1, hop_between=5, host=10)\n"
                        "s = Shape(\"s\", 10, 4, 8, 1, 1, 1, 4, False)\n"
                        "r = Run(prompts=2, group=2, prompt=3, longest=4, rows=2)\n";
    static const struct { const char *expression; double value; } wanted[] = {
        /* in a machine: half of 800 bytes at 100, one hop */
        {"ring(m, 2, 800)", 4 + 1},
        /* two machines: 3/4 of 800 bytes at 2 x 30, 2 hops between and 2 inside */
        {"ring(m, 4, 800)", 10 + 2 * 5 + 2 * 1},
        {"ring(m, 1, 800)", 0},
        /* 4 matrices of 4 x 4 and 3 of 4 x 8, a head of 10 x 4 */
        {"s.products()", 64 + 96 + 40},
        {"s.parameters()", 40 + (64 + 96 + 8 + 8) + 4 + 40},
        /* 400 bytes of weights, and of keys and values 16 for each of 5 positions */
        {"decode_step(s, m, 1, 5)", .48},
        /* a prompt's token: 400 operations for the weights, 2 x 3 x 4 for attention; half a prompt
           for a completion. Then two steps, at position 4 on average */
        {"rollout(s, m, r, [2], 2)", .5 * 3 * 424 / 1e6 + 2 * (400 + 16 * 4) / 1000.},
        /* two at a time, both at position 4; after 2 steps one at 6 and the third at 4; after 4 the
           third alone */
        {"rollout(s, m, r, [2, 4, 3], 2)",
         1.5 * 3 * 424 / 1e6 + (2 * (400 + 16 * 8.) + 2 * (400 + 16 * (6 + 4.)) +
                                1 * (400 + 16 * 5.5)) / 1000.},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        if (python("%sprint(repr(float(%s)))", setup, wanted[i].expression))
            fail_msg("%s", output);
        double value = strtod(output, NULL);
        if (fabs(value - wanted[i].value) > 1e-9 * (1 + wanted[i].value))
            fail_msg("%s is %.12g, not %.12g", wanted[i].expression, value, wanted[i].value);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_page),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_times_by_hand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
