/* The scripts of examples/ with --dry-run: that their commands are ones that ./train takes. A tiny
   tokenizer and a config.json stand in for the model, a few lines for the prompts; nothing of
   Python is needed. */
#include "program_rig.h"

/* A tree as the scripts expect it, with the program under test; a model; prompts of both tasks. */
static int make_tree(void **state) {
    char here[4096];
    if (make_place(state) || !realpath(".", here)) return -1;
    return run("mkdir tree model runs && ln -s %s tree/train && cp -r %s/examples tree/examples && "
               "cp %s/test/golden/chat/chatml/* model/ && "
               "echo '{\"model_type\": \"llama\", \"vocab_size\": 1000, \"hidden_size\": 16, "
               "\"intermediate_size\": 32, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, "
               "\"max_position_embeddings\": 2048, \"rms_norm_eps\": 1e-5, "
               "\"tie_word_embeddings\": true}' > model/config.json", train, here, here);
}

/* Prompts in the form of dev/data/reasoning.py, in WHERE. */
static void write_prompts(const char *where) {
    RUN_OK("mkdir -p %s && for i in 1 2 3 4 5 6 7 8 9; do echo '{\"prompt\": \"What is '$i' plus "
           "4?\", \"answer\": \"'$((i + 4))'\", \"completion\": \"'$((i + 4))'\", \"metadata\": "
           "{\"numbers\": ['$i', 4], \"target\": '$((i + 4))', \"source_dataset\": "
           "\"countdown\"}}'; done > %s/prompts.jsonl", where, where);
}

static const struct {
    const char *script, *form;
    const char *lessons;      /* how the plan of the supervised start begins; "": there is none */
    const char *batch, *judged;
} runs[] = {
    {"countdown", "short", "32 lines a step, 40 steps", "4 prompts x 8 completions", "by scorer"},
    {"countdown", "long", "64 lines a step, 100 steps", "64 prompts x 16 completions", "by scorer"},
    {"gsm_symbolic", "short", "16 lines a step, 30 steps", "4 prompts x 8 completions",
     "rewarded by number"},
    {"gsm_symbolic", "long", "", "64 prompts x 8 completions", "rewarded by number"},
};

static void test_plans(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        write_prompts("where");
        RUN_OK("tree/examples/%s.sh %s model where --dry-run --backend cpu", runs[i].script,
               runs[i].form);
        const char *lessons = strstr(output, runs[i].lessons);
        if (!lessons || !strstr(lessons, runs[i].batch) || !strstr(lessons, runs[i].judged))
            fail_msg("%s %s: %s", runs[i].script, runs[i].form, output);
        if (!runs[i].lessons[0]) assert_null(strstr(output, "lines a step"));
        assert_int_equal(run("test -e where/lessons -o -e where/reinforced"), 1);
    }
}

/* The tool task: built in, and for a chat model with the environment of examples/. */
static void test_tool_task(void **state) {
    (void)state;
    RUN_OK("tree/examples/address_book.sh short where --dry-run --backend cpu");
    assert_non_null(strstr(output, "address_book"));
    RUN_OK("cd tree && examples/address_book.sh long ../model ../where --dry-run --backend cpu");
    assert_non_null(strstr(output, "16 prompts x 16 completions"));
    assert_non_null(strstr(output, "by scorer"));
    assert_int_equal(run("test -e where/address_book"), 1);
}

/* Lessons that are there are not given again, and the next stage begins from them. */
static void test_lessons_are_kept(void **state) {
    (void)state;
    write_prompts("kept");
    RUN_OK("cp -r model kept/lessons && tree/examples/countdown.sh short model kept --dry-run "
           "--backend cpu");
    assert_null(strstr(output, "lines a step"));
    assert_non_null(strstr(output, "from kept/lessons"));
}

static void test_wrong_use(void **state) {
    (void)state;
    assert_int_equal(run("tree/examples/countdown.sh short"), 2);
    assert_non_null(strstr(output, "countdown.sh long MODEL WHERE"));
    assert_int_equal(run("tree/examples/address_book.sh long model"), 2);
    assert_non_null(strstr(output, "address_book.sh long MODEL WHERE"));
    assert_int_equal(run("tree/examples/gsm_symbolic.sh middling model where"), 2);
    assert_non_null(strstr(output, "short or long, not middling"));
    assert_int_equal(run("tree/examples/countdown.sh short nowhere where --dry-run"), 2);
    assert_non_null(strstr(output, "--model nowhere"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plans),
        cmocka_unit_test(test_tool_task),
        cmocka_unit_test(test_lessons_are_kept),
        cmocka_unit_test(test_wrong_use),
    };
    return cmocka_run_group_tests(tests, make_tree, remove_place);
}
