/* Collecting experience. The completions come from a replayed file, so that every number is known
   beforehand. */
#include "letters.h"
#include <unistd.h>
#include "../llmc/rl/evaluate.h"

enum { MAX_TOKENS = 120, LONG = 100 };

static char path[64];
static struct Tokenizer *tokenizer;

static int setup(void **state) {
    (void)state;
    tokenizer = letters_tokenizer();
    snprintf(path, sizeof path, "/tmp/policy-experience-XXXXXX");
    int file = mkstemp(path);
    return file < 0 || close(file) != 0;
}

static int teardown(void **state) {
    (void)state;
    return unlink(path);
}

static struct CollectOptions options_of(int prompts, int group) {
    return (struct CollectOptions){.task = &letters, .tokenizer = tokenizer, .seed = LETTERS_SEED,
                                   .ends = {{tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT)}, 1},
                                   .prompts = prompts, .group = group, .max_tokens = MAX_TOKENS,
                                   .temperature = 1, .filter_rounds = 1, .step = 1};
}

/* Collects step 1 from a file with `words`; the prompts are number 7 and so on. Returns the ordinal
   after. */
static int64_t collect(struct Experience *e, struct CollectOptions o, const char *const *words,
                       int count) {
    int64_t ordinal = 7;
    assert_int_equal(truncate(path, 0), 0);
    write_step(path, 1, 7, o.group, words, count);
    o.replay = replay_open(path);
    assert_true(experience_collect(e, NULL, NULL, &o, &ordinal, NULL));
    replay_close(o.replay);
    return ordinal;
}

/* ---- rollouts -------------------------------------------------------------------------------- */

static void test_collect(void **state) {
    (void)state;
    static const char *const words[] = {"xr.", "w.", "xx", "h.", "r.", "xxr."};
    static const int length[] = {3, 2, 2, 2, 2, 4};
    static const float reward[] = {1, 0, 0, 0.5f, 1, 1};
    struct Experience e = {0};
    assert_int_equal(collect(&e, options_of(2, 3), words, 6), 9);
    assert_int_equal(e.count, 6);
    assert_int_equal(e.group_size, 3);
    struct Examples prompts = examples_draw(&letters, tokenizer, LETTERS_SEED, RNG_PROMPT, 7, 2);
    struct Rollout expected = rollout_of(words, 6);
    for (int i = 0, at = 0, loss_at = 0; i < 6; i++) {
        const int *prompt = prompts.ids.id + prompts.start[i / 3];
        assert_int_equal(e.start[i], at);
        assert_int_equal(e.loss_start[i], loss_at);
        assert_int_equal(e.length[i], length[i]);
        assert_memory_equal(e.token + at, prompt, 2 * sizeof(int));   /* a digit and = */
        assert_memory_equal(e.loss_mask + at, "\0\0", 2);
        for (int t = 0; t < length[i]; t++) {
            assert_int_equal(e.token[at + 2 + t], expected.token[loss_at + t]);
            assert_int_equal(e.loss_mask[at + 2 + t], 1);
            assert_true(e.logp[loss_at + t] == expected.logp[loss_at + t]);
            assert_true(e.entropy[loss_at + t] == expected.entropy[loss_at + t]);
        }
        assert_int_equal(e.ended[i], i != 2);
        assert_true(e.reward[i] == reward[i]);
        assert_string_equal(text_list_at(&e.prompt, i), prompts.example[i / 3].prompt.bytes);
        assert_int_equal(text_list_length(&e.completion, i), length[i] - (i != 2));
        assert_memory_equal(text_list_at(&e.completion, i), words[i], strcspn(words[i], "."));
        at += 2 + length[i], loss_at += length[i];
    }
    assert_int_equal(e.start[6], 27);
    examples_free(&prompts);
    rollout_free(&expected);
    experience_free(&e);
}

/* Rewards 1 0 0 and .5 1 1: means 1/3 and 5/6, deviations sqrt(1/3) and sqrt(1/12). */
static void test_sums(void **state) {
    (void)state;
    static const char *const words[] = {"xr.", "w.", "xx", "h.", "r.", "xxr."};
    struct Experience e = {0};
    collect(&e, options_of(2, 3), words, 6);
    assert_int_equal(e.generated, 6);
    assert_int_equal(e.scored, 6);
    assert_int_equal(e.generated_tokens, 15);
    assert_true(e.sum_length == 15 && e.truncated == 1 && e.frac_reward_zero_std == 0);
    ASSERT_CLOSE("reward", fabs(e.sum_reward - 3.5), 1e-12);
    ASSERT_CLOSE("reward_std", fabs(e.reward_std - (sqrt(1 / 3.0) + sqrt(1 / 12.0)) / 2), 1e-12);
    ASSERT_CLOSE("entropy", fabs(e.sum_entropy - 1.20), 1e-6);   /* 1 + ... + 15 hundredths */
    experience_free(&e);
}

/* A completion with reward NaN is left out of the means. The scored rewards of the three groups are
   1 and 0; none; 1 and 1. */
static void test_unscored(void **state) {
    (void)state;
    static const char *const words[] = {"r.", "u.", "w.", "u.", "u.", "u.", "r.", "r.", "u."};
    struct Experience e = {0};
    collect(&e, options_of(3, 3), words, 9);
    assert_int_equal(e.generated, 9);
    assert_int_equal(e.scored, 4);
    ASSERT_CLOSE("reward", fabs(e.sum_reward - 3), 1e-12);
    ASSERT_CLOSE("reward_std", fabs(e.reward_std - (sqrt(0.5) + 0) / 2), 1e-12);
    ASSERT_CLOSE("zero std", fabs(e.frac_reward_zero_std - 2 / 3.0), 1e-12); /* teach nothing */
    assert_true(isnan(e.reward[1]) && e.reward[0] == 1);
    collect(&e, options_of(1, 3), words + 3, 3);
    assert_true(e.scored == 0 && isnan(e.reward_std) && e.sum_reward == 0);
    experience_free(&e);
}

/* Groups of equal rewards are dropped, and a second round generates others. The statistics hold
   everything that was generated, also groups that came when the batch was full. */
static void test_group_filter(void **state) {
    (void)state;
    static const char *const words[] = {"r.", "r.", "xr.", "w.", "w.", "w.",     /* 2nd stays */
                                        "r.", "xw.", "xxr.", "w.", "r.", "xxxw."}; /* 1st, 2nd */
    struct Experience e = {0};
    struct CollectOptions o = options_of(3, 2);
    o.filter = true, o.filter_rounds = 4;
    assert_int_equal(collect(&e, o, words, 12), 7 + 6);
    assert_int_equal(e.count, 6);
    static const char *const kept[] = {"xr", "w", "r", "xw", "xxr", "w"};
    for (int i = 0; i < 6; i++) assert_string_equal(text_list_at(&e.completion, i), kept[i]);
    assert_int_equal(e.generated, 12);
    assert_int_equal(e.generated_tokens, 4 + 5 + 4 + 5 + 6 + 7);
    ASSERT_CLOSE("reward", fabs(e.sum_reward - 6), 1e-12);
    ASSERT_CLOSE("zero std", fabs(e.frac_reward_zero_std - 2 / 6.0), 1e-12);
    o.filter_rounds = 1;   /* used up: a smaller batch */
    assert_int_equal(collect(&e, o, words, 6), 7 + 3);
    assert_int_equal(e.count, 2);
    assert_int_equal(e.generated, 6);
    experience_free(&e);
}

/* A completion far longer than any of the built-in tasks' is judged and logged whole, here and in
   evaluation alike: its last letter is what counts. */
static void test_long_completions(void **state) {
    (void)state;
    char right[LONG + 2], wrong[LONG + 2];
    memset(right, 'x', LONG), strcpy(right + LONG - 1, "r.");
    memset(wrong, 'r', LONG), strcpy(wrong + LONG - 1, "w.");
    const char *const words[] = {right, wrong};
    struct Experience e = {0};
    collect(&e, options_of(1, 2), words, 2);
    assert_true(e.reward[0] == 1 && e.reward[1] == 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(text_list_length(&e.completion, i), LONG);
        assert_memory_equal(text_list_at(&e.completion, i), words[i], LONG);
    }
    struct Examples held_out =
        examples_draw(&letters, tokenizer, LETTERS_SEED, RNG_EVAL_PROMPT, 0, 1);
    struct Rollout rollout = rollout_of(words, 2);
    struct Evaluation evaluation = evaluation_of(&held_out, &rollout, 2);
    assert_true(evaluation.reward == (e.reward[0] + e.reward[1]) / 2);
    assert_true(evaluation.pass_at[0] == 0.5 && evaluation.distinct_correct == 1);
    examples_free(&held_out);
    rollout_free(&rollout);
    experience_free(&e);
}

/* What a judge reads is without the token that ended it, special or not; a completion that was cut
   keeps all of its own. */
static void test_text_without_its_end(void **state) {
    (void)state;
    static const char *const words[] = {"rx", "rx"};
    struct Examples prompts = examples_draw(&letters, tokenizer, LETTERS_SEED, RNG_PROMPT, 0, 1);
    struct Rollout rollout = rollout_of(words, 2);
    struct TextList text = {0};
    struct Reward reward[2];
    rollout.ended[0] = 1;   /* by x, one of several ends */
    struct Completed completed = rollout_completed(&rollout);
    examples_judge(reward, &text, NULL, &prompts, 2, &completed);
    assert_string_equal(text_list_at(&text, 0), "r");
    assert_string_equal(text_list_at(&text, 1), "rx");
    assert_true(reward[0].right && !reward[1].right);
    text_list_free(&text), rollout_free(&rollout), examples_free(&prompts);
}

/* A file that does not give the step leaves the ordinal alone, so that what is saved then goes
   on. */
static void test_nothing_to_replay(void **state) {
    (void)state;
    static const char *const words[] = {"r.", "w."};
    struct Experience e = {0};
    struct CollectOptions o = options_of(1, 2);
    int64_t ordinal = 7;
    assert_int_equal(truncate(path, 0), 0);
    write_step(path, 1, 7, 2, words, 2);
    o.replay = replay_open(path);
    assert_true(experience_collect(&e, NULL, NULL, &o, &ordinal, NULL));
    o.step = 2;
    assert_false(experience_collect(&e, NULL, NULL, &o, &ordinal, NULL));
    assert_int_equal(ordinal, 8);
    replay_close(o.replay);
    experience_free(&e);
}

/* ---- demonstrations -------------------------------------------------------------------------- */

/* A task that has an answer to even digits only. */
static bool even_demonstrate(const struct Task *task, struct Text *answer,
                             const struct Example *example, struct Rng *rng) {
    (void)task, (void)rng;
    text_append(answer, "xr", 2);
    return (example->prompt.bytes[0] - '0') % 2 == 0;
}

static void test_demonstrations(void **state) {
    (void)state;
    struct Task task = letters;
    struct Experience e = {0};
    struct CollectOptions o = options_of(1, 1);
    int64_t ordinal = 100;
    int kept = 0;
    task.demonstrate = even_demonstrate;
    o.task = &task;
    experience_demonstrate(&e, &o, 40, &ordinal);
    assert_int_equal(ordinal, 140);
    for (int i = 0; i < 40; i++) {
        struct Example example = {0};
        example_draw(&example, &task, LETTERS_SEED, RNG_DEMONSTRATION, (uint64_t)(100 + i));
        int digit = example.prompt.bytes[0] - '0';
        example_free(&example);
        if (digit % 2 != 0) continue;
        const int token[] = {digit, letter_id(tokenizer, '='), letter_id(tokenizer, 'x'),
                             letter_id(tokenizer, 'r'),
                             tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT)};
        assert_int_equal(e.start[kept + 1] - e.start[kept], 5);
        assert_memory_equal(e.token + e.start[kept], token, sizeof token);
        assert_memory_equal(e.loss_mask + e.start[kept], "\0\0\1\1\1", 5);
        assert_true(e.length[kept] == 3 && e.active[kept] && e.ended[kept]);
        kept++;
    }
    assert_int_equal(e.count, kept);
    assert_in_range(kept, 5, 35);
    experience_free(&e);
}

/* Lesson n: n % 3 rows; row r has 2 + r tokens n, n + 1, ..., of which every second is learnt. */
static void rows_teach(const struct Task *task, struct Lesson *lesson, uint64_t seed,
                       uint64_t ordinal) {
    assert_true(task->state == path && seed == LETTERS_SEED);
    for (int r = 0; r < (int)(ordinal % 3); r++) {
        for (int t = 0; t < 2 + r; t++) {
            ids_add(&lesson->ids, (int)ordinal + t);
            text_append(&lesson->loss, t % 2 ? "\1" : "\0", 1);
        }
        ids_add(&lesson->end, lesson->ids.count);
    }
}

static void test_lessons(void **state) {
    (void)state;
    struct Task task = {.name = "rows", .teach = rows_teach, .state = path};
    struct Experience e = {0};
    struct CollectOptions o = options_of(1, 1);
    int64_t ordinal = 3;   /* no row; one; two; no row; one */
    assert_true(task_demonstrates(&task) && !task_demonstrates(&letters));
    o.task = &task;
    experience_demonstrate(&e, &o, 5, &ordinal);
    assert_int_equal(ordinal, 8);
    assert_int_equal(e.count, 4);
    static const int token[] = {4, 5, 5, 6, 5, 6, 7, 7, 8}, start[] = {0, 2, 4, 7, 9};
    assert_memory_equal(e.start, start, sizeof start);
    assert_memory_equal(e.token, token, sizeof token);
    assert_memory_equal(e.loss_mask, "\0\1\0\1\0\1\0\0\1", 9);
    for (int i = 0; i < 4; i++) assert_true(e.length[i] == 1 && e.loss_start[i + 1] == i + 1);
    experience_free(&e);
}

/* ---- views ----------------------------------------------------------------------------------- */

static void test_views(void **state) {
    (void)state;
    static const char *const words[] = {"xr.", "w.", "xx", "h."};
    struct Experience e = {0};
    collect(&e, options_of(2, 2), words, 4);
    struct RewardBatch rewards = experience_rewards(&e, 50);
    assert_true(rewards.count == 4 && rewards.group_size == 2 && rewards.max_tokens == 50);
    assert_true(rewards.reward == e.reward && rewards.length == e.length);
    assert_true(rewards.ended == e.ended);
    struct TrainingSet set = experience_training_set(&e);
    assert_true(set.count == 4 && set.start == e.start && set.token == e.token);
    assert_true(set.loss_mask == e.loss_mask && set.loss_start == e.loss_start);
    assert_true(set.logp_old == e.logp && set.advantage == e.advantage && set.active == e.active);
    assert_null(set.logp_ref);
    experience_free(&e);
    assert_true(e.count == 0 && e.token == NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_collect),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_unscored),
        cmocka_unit_test(test_group_filter),
        cmocka_unit_test(test_long_completions),
        cmocka_unit_test(test_text_without_its_end),
        cmocka_unit_test(test_nothing_to_replay),
        cmocka_unit_test(test_demonstrations),
        cmocka_unit_test(test_lessons),
        cmocka_unit_test(test_views),
    };
    return cmocka_run_group_tests_name("experience", tests, setup, teardown);
}
