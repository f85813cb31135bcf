/* --replay: a good file is given back exactly; every kind of bad line is named, with its number; a
   file that ends before a step, within one, or without one. */
#include "letters.h"
#include <sys/stat.h>
#include <unistd.h>
#include "child.h"

enum { MAX_TOKENS = 5, PROMPTS = 2, GROUP = 2, COUNT = PROMPTS * GROUP };

static char path[64];
static struct Tokenizer *tokenizer;
static const char *const words[] = {"xr.", "w.", "xxxxx", "h."};

static int setup(void **state) {
    (void)state;
    tokenizer = letters_tokenizer();
    snprintf(path, sizeof path, "/tmp/policy-replay-XXXXXX");
    int file = mkstemp(path);
    return file < 0 || close(file) != 0;
}

static int teardown(void **state) {
    (void)state;
    return unlink(path);
}

/* Asks for `step`, whose prompts are number 10 * step and on, at most max_tokens long. */
static bool ask(struct Replay *replay, int step, int max_tokens, struct Rollout *out) {
    struct Examples prompts = examples_draw(&letters, tokenizer, LETTERS_SEED, RNG_PROMPT,
                                            (uint64_t)(10 * step), PROMPTS);
    struct RolloutRequest request = {.num_prompts = PROMPTS, .group = GROUP,
                                     .max_tokens = max_tokens,
                                     .ends = {{tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT)}, 1}};
    bool found = replay_rollout(replay, step, &request, prompts.example,
                                tokenizer_vocab_size(tokenizer), out);
    examples_free(&prompts);
    return found;
}

static void write_steps(int from, int to) {
    assert_int_equal(truncate(path, 0), 0);
    for (int step = from; step <= to; step++)
        write_step(path, step, 10 * step, GROUP, words, COUNT);
}

static void test_good_file(void **state) {
    (void)state;
    write_steps(1, 3);
    struct Replay *replay = replay_open(path);
    struct Rollout expected = rollout_of(words, COUNT), got = {0};
    assert_null(replay_problem(NULL));
    for (int step = 1; step <= 3; step += 2) {   /* the second is passed over */
        assert_true(ask(replay, step, step == 1 ? MAX_TOKENS : 40, &got));
        assert_int_equal(got.count, COUNT);
        int tokens = expected.start[COUNT];
        assert_memory_equal(got.start, expected.start, (COUNT + 1) * sizeof(int));
        assert_memory_equal(got.token, expected.token, (size_t)tokens * sizeof(int));
        assert_memory_equal(got.ended, expected.ended, COUNT);
        for (int t = 0; t < tokens; t++)
            assert_true(got.logp[t] == expected.logp[t] && got.entropy[t] == expected.entropy[t]);
        assert_null(replay_problem(replay));
    }
    rollout_free(&got), rollout_free(&expected);
    replay_close(replay);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void fail_now(void *replay) { replay_fail(replay); }

/* After step 1 of the file there is no step 2: `ends` (the run is over) or not (the file is
   wrong). */
static void check_no_second_step(bool ends, const char *says) {
    struct Replay *replay = replay_open(path);
    struct Rollout got = {0};
    assert_true(ask(replay, 1, MAX_TOKENS, &got));
    for (int again = 0; again < 2; again++) {
        assert_false(ask(replay, 2, MAX_TOKENS, &got));
        assert_int_equal(replay_ended(replay), ends);
        assert_non_null(strstr(replay_problem(replay), path));
        if (!strstr(replay_problem(replay), says)) fail_msg("%s", replay_problem(replay));
    }
    rollout_free(&got);
    replay_close(replay);
}

static void append(const char *text) {
    FILE *file = fopen(path, "a");
    assert_true(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

/* The writer stopped between steps, within one, or within a line. */
static void test_end_before_the_step(void **state) {
    (void)state;
    write_steps(1, 1);
    check_no_second_step(true, "ends before step 2");
    write_step(path, 2, 20, 1, words, 1);
    check_no_second_step(true, "ends before step 2");
    append("{\"step\": 2, \"prompt\": \"3=\", \"tok");
    check_no_second_step(true, "ends before step 2");
}

/* The file has not even one whole step: an error, since it cannot be a file of this run. */
static void test_nothing_in_it(void **state) {
    (void)state;
    struct Rollout got = {0};
    char output[4096];
    for (int lines = 0; lines < 2; lines++) {
        assert_int_equal(truncate(path, 0), 0);
        if (lines) write_step(path, 1, 10, GROUP, words, 2);
        struct Replay *replay = replay_open(path);
        assert_false(ask(replay, 1, MAX_TOKENS, &got));
        assert_false(replay_ended(replay));
        assert_int_equal(run_in_child(fail_now, replay, output, sizeof output), 2);
        assert_non_null(strstr(output, "no whole step 1"));
        replay_close(replay);
    }
    rollout_free(&got);
}

/* A later step where this one should be: recorded with --rollouts-every 2, or with fewer
   prompts. */
static void test_steps_that_are_missing(void **state) {
    (void)state;
    write_steps(1, 1);
    write_step(path, 3, 30, GROUP, words, COUNT);
    check_no_second_step(false, ":5: fewer completions of step 2");
    write_steps(1, 1);
    write_step(path, 2, 20, GROUP, words, 2);
    write_step(path, 3, 30, GROUP, words, COUNT);
    check_no_second_step(false, ":7: fewer completions of step 2");
}

/* ---- bad lines ------------------------------------------------------------------------------- */

/* Replaces `old` in the file's line `number` by `new` ("\\0": a zero byte). */
static void damage(int number, const char *old, const char *new) {
    char text[1 << 14] = "";
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    char *line = text;
    for (int i = 1; i < number; i++) line = strchr(line, '\n') + 1;
    char *at = strstr(line, old);
    assert_true(at && (!strchr(line, '\n') || at < strchr(line, '\n')));
    bool zero = strcmp(new, "\\0") == 0;
    size_t before = (size_t)(at - text), n = strlen(old), m = zero ? 1 : strlen(new);
    file = fopen(path, "w");
    fwrite(text, 1, before, file);
    fwrite(zero ? "" : new, 1, m, file);
    fwrite(at + n, 1, length - before - n, file);
    assert_int_equal(fclose(file), 0);
}

static void test_bad_lines(void **state) {
    (void)state;
    static const struct {
        int line;
        const char *old, *new, *says;
    } cases[] = {
        {6, "{\"step\"", "\"step\"", ":6: not a JSON object with a number \"step\""},
        {6, "\"step\": 2", "\"stop\": 2", ":6: not a JSON object with a number \"step\""},
        {6, "\"step\": 2", "\"step\": \"2\"", ":6: not a JSON object with a number \"step\""},
        {6, "]}", "]} {}", ":6: not a JSON object"},
        {6, "{\"step\": 2, \"prompt\"", "\n{\"step\": 2, \"prompt\"", ":6: not a JSON object"},
        {6, "=\"", "\\0", ":6: not a JSON object"},
        {6, "=\"", "==\"", ":6: the prompt is not \""},
        {6, "\"prompt\"", "\"Prompt\"", ":6: the prompt is not \""},
        {6, "\"tokens\"", "\"ids\"", ":6: there is no list \"tokens\""},
        {6, "\"logp\": [", "\"logp\": 1, \"x\": [", ":6: there is no list \"logp\""},
        {6, "\"entropy\"", "\"e\"", ":6: there is no list \"entropy\""},
        {6, "\"tokens\": [14", "\"tokens\": [99", ":6: token 0 is not an id in 0..16"},
        {6, "\"tokens\": [14", "\"tokens\": [-1", ":6: token 0 is not an id"},
        {6, "\"tokens\": [14", "\"tokens\": [1.5", ":6: token 0 is not an id"},
        {6, "\"tokens\": [14", "\"tokens\": [null", ":6: token 0 is not an id"},
        {6, "\"tokens\": [14", "\"tokens\": [16", ":6: token 0 is the end of text"},
        {6, "\"tokens\": [14, 16]", "\"tokens\": []", ":6: there are no \"tokens\""},
        {6, "\"tokens\": [14", "\"tokens\": [1, 1, 1, 1, 14",
         ":6: \"tokens\" has more than 5 entries"},
        {6, "\"tokens\": [14", "\"tokens\": [1, 14", ":6: 3 \"tokens\" and 2 \"logp\""},
        {6, "\"entropy\": [", "\"entropy\": [0.1, ", ":6: 2 \"tokens\" and 3 \"entropy\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char output[8192];
        write_steps(1, 2);
        damage(cases[i].line, cases[i].old, cases[i].new);
        check_no_second_step(false, cases[i].says);
        struct Replay *replay = replay_open(path);
        struct Rollout got = {0};
        assert_true(ask(replay, 1, MAX_TOKENS, &got));
        assert_false(ask(replay, 2, MAX_TOKENS, &got));
        assert_int_equal(run_in_child(fail_now, replay, output, sizeof output), 2);
        assert_ptr_equal(strchr(output, '\n'), output + strlen(output) - 1);   /* one line */
        rollout_free(&got);
        replay_close(replay);
    }
}

/* null stands for a number that was not finite; it is read as NaN. */
static void test_null_is_nan(void **state) {
    (void)state;
    struct Rollout got = {0};
    write_steps(1, 1);
    damage(1, "\"logp\": [-1", "\"logp\": [null");
    struct Replay *replay = replay_open(path);
    assert_true(ask(replay, 1, MAX_TOKENS, &got));
    assert_true(isnan(got.logp[0]) && got.logp[1] == -2);
    rollout_free(&got);
    replay_close(replay);
}

/* ---- files that are none --------------------------------------------------------------------- */

static void open_it(void *name) { replay_close(replay_open(name)); }

static void test_no_file(void **state) {
    (void)state;
    char output[4096];
    assert_int_equal(run_in_child(open_it, "/no/such", output, sizeof output), 2);
    assert_non_null(strstr(output, "--replay"));
    assert_int_equal(run_in_child(open_it, "/tmp", output, sizeof output), 2);
    assert_non_null(strstr(output, "Is a directory"));
}

/* A read that fails (here of a process' memory at address 0) is not the end of the file, and the
   machine's fault. */
static void test_read_error(void **state) {
    (void)state;
    struct Rollout got = {0};
    char output[4096];
    if (access("/proc/self/mem", R_OK) != 0) skip();
    struct Replay *replay = replay_open("/proc/self/mem");
    assert_false(ask(replay, 1, MAX_TOKENS, &got));
    assert_false(replay_ended(replay));
    assert_int_equal(run_in_child(fail_now, replay, output, sizeof output), 1);
    assert_non_null(strstr(output, "cannot read --replay /proc/self/mem"));
    rollout_free(&got);
    replay_close(replay);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_file),
        cmocka_unit_test(test_end_before_the_step),
        cmocka_unit_test(test_nothing_in_it),
        cmocka_unit_test(test_steps_that_are_missing),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_null_is_nan),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_read_error),
    };
    return cmocka_run_group_tests_name("replay", tests, setup, teardown);
}
