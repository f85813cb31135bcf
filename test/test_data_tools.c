/* dev/data and the scorers of examples: what they make of a few lines, and of bad ones. Skipped
   where there is no python3 or not its packages, or the tests run elsewhere than in the
   repository. */
#include "program_rig.h"

static char here[4096], data[4200], scorers[4200];

static int make(void **state) {
    if (make_place(state) != 0 || !getcwd(here, sizeof here)) return -1;
    snprintf(data, sizeof data, "python3 %s/dev/data", here);
    snprintf(scorers, sizeof scorers, "python3 %s/examples", here);
    return 0;
}

static bool has_python(void) { return run("%s/gsm8k.py --help", data) == 0; }

/* The objects of a program's answer, a line each. */
static cJSON *answered(const char *name) { return read_log(name); }

static void assert_field(const cJSON *lines, int line, const char *key, const char *expected) {
    const cJSON *field = cJSON_GetObjectItem(cJSON_GetArrayItem(lines, line), key);
    if (!cJSON_IsString(field)) fail_msg("line %d has no text %s", line, key);
    assert_string_equal(field->valuestring, expected);
}

static FILE *open_new(const char *name) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", place, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    return file;
}

/* NaN: null. */
static double reward_of(const cJSON *lines, int id) {
    for (const cJSON *line = lines->child; line; line = line->next)
        if (cJSON_GetObjectItem(line, "id")->valueint == id) {
            const cJSON *reward = cJSON_GetObjectItem(line, "reward");
            assert_true(cJSON_IsNumber(reward) || cJSON_IsNull(reward));
            return cJSON_IsNull(reward) ? NAN : reward->valuedouble;
        }
    fail_msg("no answer to %d", id);
    return 0;
}

static void test_gsm8k(void **state) {
    (void)state;
    if (!has_python()) skip();
    RUN_OK("%s/gsm8k.py %s/examples/gsm8k_format.jsonl --out a.jsonl", data, here);
    cJSON *lines = answered("a.jsonl");
    const char *answers[] = {"7", "1350", "3.5", "-55"};
    assert_int_equal(cJSON_GetArraySize(lines), 4);
    for (int i = 0; i < 4; i++) assert_field(lines, i, "answer", answers[i]);
    assert_null(cJSON_GetObjectItem(lines->child, "completion"));
    cJSON_Delete(lines);
    RUN_OK("%s/gsm8k.py --supervised - < %s/examples/gsm8k_format.jsonl > a.jsonl", data, here);
    lines = answered("a.jsonl");
    assert_field(lines, 1, "completion",
                 "Half an hour is 30 minutes.\nThe printer makes 45*30=1350 pages.\n#### 1350");
    cJSON_Delete(lines);
}

static void test_math(void **state) {
    (void)state;
    if (!has_python()) skip();
    const char *answers[] = {"100", "\\frac{1}{6}", "\\{-1, 0, 1\\}", "6", "5\\sqrt{2}"};
    RUN_OK("%s/math_problems.py %s/examples/math_format.jsonl --out a.jsonl", data, here);
    cJSON *lines = answered("a.jsonl");
    assert_int_equal(cJSON_GetArraySize(lines), 5);
    for (int i = 0; i < 5; i++) assert_field(lines, i, "answer", answers[i]);
    assert_field(lines, 2, "subject", "Number Theory");
    cJSON_Delete(lines);
    /* a brace that LaTeX prints closes nothing; one that is never closed holds nothing */
    FILE *file = open_new("braces.jsonl");
    fputs("{\"problem\": \"p\", \"solution\": \"\\\\boxed{\\\\{1}, \\\\}\"}\n"
          "{\"problem\": \"p\", \"solution\": \"\\\\boxed{7\"}\n", file);
    assert_int_equal(fclose(file), 0);
    RUN_OK("%s/math_problems.py braces.jsonl > a.jsonl", data);
    lines = answered("a.jsonl");
    assert_int_equal(cJSON_GetArraySize(lines), 1);
    assert_field(lines, 0, "answer", "\\{1");
    cJSON_Delete(lines);
    /* the same as a folder with a file per problem; of two levels */
    RUN_OK("mkdir -p all/x all/y && sed -n 2p %s/examples/math_format.jsonl > all/y/1.json && "
           "sed -n 3p %s/examples/math_format.jsonl > all/x/2.json && "
           "sed -n 5p %s/examples/math_format.jsonl > all/x/3.json && "
           "%s/math_problems.py all --level 1,2 > a.jsonl", here, here, here, data);
    lines = answered("a.jsonl");
    assert_int_equal(cJSON_GetArraySize(lines), 2);
    assert_field(lines, 0, "source", "all/x/2.json");
    assert_field(lines, 1, "answer", "\\frac{1}{6}");
    cJSON_Delete(lines);
}

/* What is wrong is named and left out; a file of nothing else is an error, and so is none. */
static void test_bad_lines(void **state) {
    (void)state;
    if (!has_python()) skip();
    RUN_OK("printf '%%s\\n' '{\"question\": \"a\", \"answer\": \"#### 1\"}' '{' '[3]' "
           "'{\"question\": \"a\", \"answer\": \"1\"}' '{\"question\": 1}' '' > bad.jsonl && "
           "%s/gsm8k.py bad.jsonl --out a.jsonl", data);
    for (int line = 2; line <= 5; line++) {
        char name[64];
        snprintf(name, sizeof name, "gsm8k.py: bad.jsonl:%d: left out: ", line);
        assert_non_null(strstr(output, name));
    }
    assert_non_null(strstr(output, "gsm8k.py: 1 lines in a.jsonl, 4 left out\n"));
    assert_int_equal(run("%s/math_problems.py bad.jsonl --out b.jsonl", data), 2);
    assert_int_equal(run("%s/gsm8k.py missing.jsonl", data), 2);
    assert_non_null(strstr(output, "gsm8k.py: missing.jsonl: No such file"));
    assert_int_equal(run("%s/gsm8k.py bad.jsonl --out no/folder", data), 2);
    assert_int_equal(run("%s/gsm8k.py bad.jsonl > /dev/full", data), 1);
    assert_null(strstr(output, "Traceback"));
    assert_int_equal(run("ls | grep -c writing"), 1);   /* none */
}

static void test_smallest_scorer(void **state) {
    (void)state;
    if (!has_python()) skip();
    RUN_OK("printf '%%s\\n' "
           "'{\"id\": 8, \"prompt\": \"\", \"completion\": \"it is 42\", \"answer\": \"42\"}' "
           "'{\"id\": 3, \"prompt\": \"\", \"completion\": \"\", \"answer\": \"42\"}' "
           "'{\"id\": 4, \"prompt\": \"\", \"completion\": \"x\", \"answer\": null}' "
           "| %s/reward_example.py > r.jsonl", scorers);
    cJSON *lines = answered("r.jsonl");
    assert_true(fabs(reward_of(lines, 8) - (0.5 + 0.5 / 3)) < 1e-12);
    assert_true(reward_of(lines, 3) == 0 && reward_of(lines, 4) == 0);
    cJSON_Delete(lines);
}

/* Tasks of reasoning-gym from a seed, and their scorer: by hand, for a prompt made by hand. Text of
   a model never runs. */
static void test_reasoning_gym(void **state) {
    (void)state;
    if (!has_python() || run("python3 -c 'import reasoning_gym'") != 0) skip();
    RUN_OK("%s/reasoning.py countdown --size 20 --seed 5 --out a.jsonl --set max_numbers=4 && "
           "%s/reasoning.py countdown --size 20 --seed 5 --set max_numbers=4 | cmp - a.jsonl",
           data, data);
    cJSON *lines = answered("a.jsonl");
    assert_int_equal(cJSON_GetArraySize(lines), 20);
    const cJSON *metadata = cJSON_GetObjectItem(lines->child, "metadata");
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItem(metadata, "numbers")), 4);
    cJSON_Delete(lines);
    RUN_OK("%s/reasoning.py countdown --size 1 --seed 5 --lessons | python3 -c 'import json; "
           "line = json.loads(input()); assert line[\"completion\"] == line[\"answer\"]' && "
           "! grep -q completion a.jsonl", data);
    assert_int_equal(run("%s/reasoning.py countdown --set numbers=3", data), 2);
    assert_int_equal(run("%s/reasoning.py no_such_task", data), 2);
    assert_int_equal(run("%s/reasoning.py countdown --set min_numbers=0", data), 2);
    assert_null(strstr(output, "Traceback"));

    const char *completions[] = {"3*5+7", "I try.\\n<answer>5 * 3 + 7</answer> done", "22", "",
                                 "3*5+7+__import__('os').mkdir('ran')", "9**9**9**9**9", "3*7+5-4"};
    const double expected[] = {1, 1, .05, 0, 0, 0, .05};
    FILE *file = open_new("items.jsonl");
    for (int i = 0; i < 7; i++)   /* the metadata alone, and beside other keys of the line */
        fprintf(file, "{\"id\": %d, \"prompt\": \"p\", \"completion\": \"%s\", \"answer\": null, "
                "\"metadata\": %s{\"source_dataset\": \"countdown\", \"numbers\": [3, 5, 7], "
                "\"target\": 22}%s}\n", i, completions[i], i % 2 ? "{\"metadata\": " : "",
                i % 2 ? "}" : "");
    fputs("{\"id\": 7, \"prompt\": \"p\", \"completion\": \"x\"}\n"
          "{\"id\": 8, \"prompt\": \"p\", \"completion\": \"[open('ran', 'w')]\", \"answer\": \"a\""
          ", \"metadata\": {\"source_dataset\": \"string_insertion\"}}\n", file);
    assert_int_equal(fclose(file), 0);
    RUN_OK("%s/reward_reasoning_gym.py < items.jsonl > r.jsonl", scorers);
    lines = answered("r.jsonl");
    for (int i = 0; i < 7; i++)
        if (!(fabs(reward_of(lines, i) - expected[i]) <= 1e-9))
            fail_msg("%s: %g", completions[i], reward_of(lines, i));
    assert_true(isnan(reward_of(lines, 7)) && isnan(reward_of(lines, 8)));
    cJSON_Delete(lines);
    assert_int_not_equal(run("test -e ran"), 0);
}

/* A tiny model written in GGUF, converted and read back (dev/ref/check_smollm2.py). */
static void test_smollm2(void **state) {
    (void)state;
    int code = run("OMP_NUM_THREADS=1 python3 %s/dev/ref/check_smollm2.py", here);
    if (code == 77 || !has_python()) skip();
    if (code != 0) fail_msg("%s", output);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gsm8k),
        cmocka_unit_test(test_math),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_smallest_scorer),
        cmocka_unit_test(test_reasoning_gym),
        cmocka_unit_test(test_smollm2),
    };
    return cmocka_run_group_tests_name("data_tools", tests, make, remove_place);
}
