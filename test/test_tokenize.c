/* ./train --tokenize and --detokenize: lines in, lines out, and what is wrong with lines. */
#include "program_rig.h"

#define GOLDEN "test/golden/tokenizers/"

static char golden[4096];   /* the folder of golden tokenizers, from the root */

static void write_text(const char *name, const char *text) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", place, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* One line that says it, and exit code 2. */
static void assert_refused(const char *arguments, const char *says) {
    assert_int_equal(run("G=%s; $T %s", golden, arguments), 2);
    if (!strstr(output, says)) fail_msg("%s: %s", arguments, output);
    assert_ptr_equal(strchr(output, '\n'), output + strlen(output) - 1);
}

/* Ids of the golden cases as lines: those of the library. */
static void test_golden_lines(void **state) {
    (void)state;
    static const char *const names[] = {"llama3", "smollm2", "gpt2"};
    for (size_t i = 0; i < 3; i++) {
        RUN_OK("$T --tokenize %s/%s/cases.jsonl --model %s/%s > ids.jsonl", golden, names[i],
               golden, names[i]);
        /* {"text":...,"ids":[1,2]} on both sides, spaces apart */
        RUN_OK("sed 's/.*\"ids\":\\(\\[[^]]*\\]\\).*/{\"ids\":\\1}/' %s/%s/cases.jsonl > want && "
               "tr -d ' ' < ids.jsonl > got && cmp want got", golden, names[i]);
    }
    RUN_OK("$T --detokenize ids.jsonl --model %s/gpt2 > text.jsonl && "
           "$T --tokenize text.jsonl --model %s/gpt2 > again && cmp again ids.jsonl", golden,
           golden);
}

/* Each line says for itself; zero bytes, surrogate pairs and quotes go both ways. */
static void test_lines(void **state) {
    (void)state;
    write_text("lines", "{\"text\": \"a<|eot_id|>\"}\n"
               "{\"text\": \"a\", \"add_special_tokens\": false}\n\n"
               "{\"text\": \"a\\u0000\\ud83d\\ude00\\\"\\\\u0000\\ufdd0\", \"other\": 1}\n");
    RUN_OK("$T --tokenize lines --model %s/llama3 > ids && $T --detokenize ids --model %s/llama3",
           golden, golden);
    assert_string_equal(output,
        "{\"text\": \"<|begin_of_text|>a<|eot_id|>\"}\n{\"text\": \"a\"}\n"
        "{\"text\": \"<|begin_of_text|>a\\u0000\xF0\x9F\x98\x80\\\"\\\\u0000\xEF\xB7\x90\"}\n");
    write_text("ids", "{\"ids\": [0, 1000000], \"skip_special_tokens\": true}\n{\"ids\": []}\n");
    RUN_OK("$T --detokenize ids --model %s/llama3", golden);
    assert_string_equal(output, "{\"text\": \"!\xEF\xBF\xBD\"}\n{\"text\": \"\"}\n");
}

/* Bad lines are named, counted, and answered with null; the others are not touched. */
static void test_bad_lines(void **state) {
    (void)state;
    write_text("lines",
               "{\"text\": 7}\n{\"text\": \"a\"}\nno JSON\n[\"a\"]\n{\"text\": \"\\ud800\"}\n");
    RUN_OK("$T --tokenize lines --model %s/gpt2 2> said", golden);
    int lines = 0, nulls = 0;
    for (char *line = strtok(output, "\n"); line; line = strtok(NULL, "\n"), lines++)
        nulls += strcmp(line, "{\"ids\": null}") == 0;
    assert_true(lines == 5 && nulls == 4);
    RUN_OK("grep -q 'lines:1: not a JSON object with \"text\"' said && grep -q 'lines:5:' said && "
           "grep -q '4 of 5 lines were bad' said");
    write_text("lines", "{\"ids\": [1, -1]}\n{\"ids\": [0.5]}\n{\"ids\": 3}\n{\"ids\": [1]}\n");
    RUN_OK("$T --detokenize lines --model %s/gpt2 2> said && grep -q '3 of 4 lines' said", golden);
}

static void test_refused(void **state) {
    (void)state;
    write_text("lines", "{\"text\": \"a\"}\n");
    assert_refused("--tokenize lines", "--model");
    assert_refused("--tokenize nowhere --model $G/gpt2", "nowhere");
    assert_refused("--tokenize lines --model .", "neither vocab.json nor tokenizer.json");
    assert_refused("--tokenize lines --detokenize lines --model $G/gpt2", "one at a time");
    assert_refused("--tokenize lines --model $G/gpt2 --steps 3", "--steps does nothing");
    assert_int_equal(run("$T --tokenize lines --model %s/gpt2 > /dev/full", golden), 1);
    assert_int_not_equal(run("$T --tokenize . --model %s/gpt2", golden), 0);
}

static int set_up(void **state) {
    char here[2048];
    if (!getcwd(here, sizeof here)) return -1;
    snprintf(golden, sizeof golden, "%s/" GOLDEN, here);
    golden[strlen(golden) - 1] = 0;
    return make_place(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_lines),
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, set_up, remove_place);
}
