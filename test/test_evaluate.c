/* Evaluation: against counts by hand, and against every pair and every subset of a real rollout. */
#include "sampler_rig.h"
#include "letters.h"
#include "../llmc/rl/evaluate.h"

/* ---- of a model ------------------------------------------------------------------------------ */

/* A task whose prompts are four letters and an equals sign, and whose right answers are those with
   an even sum of bytes. */
static void even_next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    for (int i = 0; i < 4; i++)
        text_format(&example->prompt, "%c", 'a' + (int)rng_below(rng, 8));
    text_append(&example->prompt, "=", 1);
}
static float even_reward(const char *prompt, const char *answer, size_t length, bool ended) {
    unsigned sum = (unsigned char)prompt[0];
    for (size_t i = 0; i < length; i++) sum += (unsigned char)answer[i];
    return ended && sum % 2 == 0;
}
static void even_judge(const struct Task *task, struct Reward *reward,
                       const struct Completion *completion, int count) {
    (void)task;
    for (int i = 0; i < count; i++) {
        reward[i].value = even_reward(completion[i].example->prompt.bytes, completion[i].text,
                                      completion[i].length, completion[i].ended);
        reward[i].right = reward[i].value == 1;
    }
}
static const struct Task even = {.name = "even", .alphabet = "", .max_prompt = 5,
                                 .max_completion = MAX_TOKENS, .next = even_next,
                                 .judge = even_judge};

/* Of all subsets of k of the n samples, the share with a right one: pass@k by its definition. */
static double share_of_subsets(const bool *right, int n, int k) {
    int subsets = 0, passed = 0;
    for (unsigned set = 0; set < 1u << n; set++) {
        bool any = false;
        if (__builtin_popcount(set) != k) continue;
        for (int i = 0; i < n; i++) any |= (set >> i & 1) && right[i];
        subsets++;
        passed += any;
    }
    return k > n ? (double)NAN : (double)passed / subsets;
}

/* What evaluate() must say, from the texts: pairs are compared, subsets are counted. */
static struct Evaluation expected_evaluation(const struct Tokenizer *tokenizer, int num_prompts,
                                             int samples) {
    struct Evaluation expected = {0};
    int ordinals_token[32 * 5], start[33] = {0};
    uint32_t ordinal[32];
    char prompt[32][8];
    for (int p = 0; p < num_prompts; p++) {
        struct Example example = {0};
        example_draw(&example, &even, 21, RNG_EVAL_PROMPT, (uint64_t)p);
        strcpy(prompt[p], example.prompt.bytes);
        example_free(&example);
        struct Ids ids = {0};
        assert_true(tokenizer_encode(tokenizer, prompt[p], strlen(prompt[p]), 0, &ids));
        assert_int_equal(ids.count, 5);
        memcpy(ordinals_token + 5 * p, ids.id, 5 * sizeof *ids.id);
        ids_free(&ids);
        start[p + 1] = 5 * (p + 1);
        ordinal[p] = (uint32_t)p;
    }
    struct RolloutRequest request = {
        .num_prompts = num_prompts, .group = samples, .prompt_token = ordinals_token,
        .prompt_start = start, .ordinal = ordinal, .seed = 21, .purpose = RNG_EVAL_SAMPLE,
        .temperature = 1, .max_tokens = MAX_TOKENS,
        .ends = {{tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT)}, 1}};
    struct Rollout rollout = generate(0, &request);
    for (int p = 0; p < num_prompts; p++) {
        char answer[16][3 * MAX_TOKENS + 1];   /* U+FFFD is of three bytes */
        bool right[16];
        for (int i = 0; i < samples; i++) {
            int k = p * samples + i, from = rollout.start[k], n = rollout.start[k + 1] - from;
            struct Text text = {0};
            tokenizer_decode(tokenizer, rollout.token + from, n, TOKENIZER_PLAIN, &text);
            strcpy(answer[i], text.bytes);
            right[i] = even_reward(prompt[p], answer[i], text.length, rollout.ended[k]) == 1;
            text_free(&text);
            bool repeated = false;
            for (int j = 0; j < i; j++)
                repeated |= right[j] && strcmp(answer[i], answer[j]) == 0;
            expected.distinct_correct += right[i] && !repeated;
            expected.reward += right[i];
            expected.truncated += !rollout.ended[k];
            expected.mean_length += n;
            for (int t = from; t < from + n; t++) expected.entropy += rollout.entropy[t];
        }
        for (int k = 0; k < 4; k++)
            expected.pass_at[k] += share_of_subsets(right, samples, evaluation_k[k]) / num_prompts;
    }
    expected.entropy /= expected.mean_length;
    expected.distinct_correct /= num_prompts;
    expected.reward /= rollout.count;
    expected.truncated /= rollout.count;
    expected.mean_length /= rollout.count;
    rollout_free(&rollout);
    return expected;
}

static void test_evaluate(void **state) {
    (void)state;
    enum { NUM_PROMPTS = 30, SAMPLES = 10 };
    assert_memory_equal(evaluation_k, ((const int[]){1, 4, 16, 64}), sizeof evaluation_k);
    char alphabet[V + 1] = "abcdefgh=0123456789+-*:ijklmnopqrstuv";
    alphabet[end_of_text] = 0;   /* ids past it decode as U+FFFD */
    struct Tokenizer *tokenizer = tokenizer_from_alphabet(alphabet);
    struct Ends ends = {{end_of_text}, 1};
    struct Evaluation expected = expected_evaluation(tokenizer, NUM_PROMPTS, SAMPLES);
    for (int layout = 0; layout < LAYOUTS; layout++) {
        struct Evaluation got = evaluate(samplers[layout], &weights, &even, tokenizer, &ends, 21,
                                         NUM_PROMPTS, SAMPLES, 1, MAX_TOKENS, NULL, workspace);
        assert_int_equal(got.num_prompts, NUM_PROMPTS);
        assert_int_equal(got.samples, SAMPLES);
        for (int k = 0; k < 2; k++)
            ASSERT_CLOSE("pass@k", fabs(got.pass_at[k] - expected.pass_at[k]), 1e-12);
        assert_true(isnan(got.pass_at[2]) && isnan(got.pass_at[3]));
        ASSERT_CLOSE("distinct", fabs(got.distinct_correct - expected.distinct_correct), 1e-12);
        ASSERT_CLOSE("reward", fabs(got.reward - expected.reward), 1e-12);
        ASSERT_CLOSE("entropy", fabs(got.entropy - expected.entropy), 1e-9);
        ASSERT_CLOSE("mean length", fabs(got.mean_length - expected.mean_length), 1e-12);
        ASSERT_CLOSE("truncated", fabs(got.truncated - expected.truncated), 1e-12);
    }
    assert_true(expected.pass_at[0] > 0.1 && expected.pass_at[0] < 0.9);
    assert_true(expected.distinct_correct < expected.reward * SAMPLES);   /* some answers repeat */
    tokenizer_free(tokenizer);
}

/* ---- by hand -------------------------------------------------------------------------------- */

static struct Evaluation evaluation_of_words(const char *const *words, int prompts, int samples) {
    struct Tokenizer *tokenizer = letters_tokenizer();
    struct Examples examples = examples_draw(&letters, tokenizer, 3, RNG_EVAL_PROMPT, 0, prompts);
    struct Rollout rollout = rollout_of(words, prompts * samples);
    struct Evaluation result = evaluation_of(&examples, &rollout, samples);
    examples_free(&examples);
    rollout_free(&rollout);
    tokenizer_free(tokenizer);
    return result;
}

/* Two prompts, four answers each: 3 right of which 2 differ, one cut; then 1 right, one half right.
   pass@1: (3/4 + 1/4) / 2; pass@4: both have one. 21 tokens. */
static void test_by_hand(void **state) {
    (void)state;
    static const char *const words[] = {"xr.", "xr.", "r.", "xx", "w.", "xxr.", "xh.", "w."};
    struct Evaluation e = evaluation_of_words(words, 2, 4);
    assert_true(e.pass_at[0] == 0.5 && e.pass_at[1] == 1);
    assert_true(isnan(e.pass_at[2]) && isnan(e.pass_at[3]));
    assert_true(e.distinct_correct == (2 + 1) / 2.0);
    assert_true(e.reward == (3 / 4.0 + 1.5 / 4.0) / 2);
    assert_true(e.truncated == 1 / 8.0 && e.mean_length == 21 / 8.0);
    ASSERT_CLOSE("entropy", fabs(e.entropy - 0.11), 1e-7);   /* the mean of 1 .. 21 hundredths */
    assert_int_equal(e.unscored, 0);
    assert_true(e.num_prompts == 2 && e.samples == 4);
}

/* Unscored answers count neither as right nor as wrong: of the first prompt's 3 scored ones 2 are
   right, of the second's 4 one, and the third prompt has no scored one. pass@1: (2/3 + 1/4) / 2;
   pass@4: of the second prompt alone. */
static void test_unscored_answers(void **state) {
    (void)state;
    static const char *const words[] = {"r.", "w.", "u.", "xr.", "r.", "w.", "w.", "w.",
                                        "u.", "u.", "u.", "u."};
    struct Evaluation e = evaluation_of_words(words, 3, 4);
    ASSERT_CLOSE("pass@1", fabs(e.pass_at[0] - (2 / 3.0 + 1 / 4.0) / 2), 1e-15);
    assert_true(e.pass_at[1] == 1);
    assert_true(e.distinct_correct == 1.5);
    ASSERT_CLOSE("reward", fabs(e.reward - (2 / 3.0 + 1 / 4.0) / 2), 1e-15);
    assert_int_equal(e.unscored, 5);
    e = evaluation_of_words(words + 8, 1, 4);
    assert_true(isnan(e.pass_at[0]) && isnan(e.reward) && isnan(e.distinct_correct));
    assert_int_equal(e.unscored, 4);
}

/* What is right and what it is worth are two things: a task may weigh several. */
static void heavy_judge(const struct Task *task, struct Reward *reward,
                        const struct Completion *completion, int count) {
    letters_judge(task, reward, completion, count);
    for (int i = 0; i < count; i++) reward[i].value = reward[i].right ? 0.25f : 1;
}
static void test_right_is_not_reward(void **state) {
    (void)state;
    static const char *const words[] = {"r.", "w.", "w.", "w."};
    struct Task heavy = letters;
    heavy.judge = heavy_judge;
    struct Tokenizer *tokenizer = letters_tokenizer();
    struct Examples examples = examples_draw(&heavy, tokenizer, 3, RNG_EVAL_PROMPT, 0, 1);
    struct Rollout rollout = rollout_of(words, 4);
    struct Evaluation e = evaluation_of(&examples, &rollout, 4);
    assert_true(e.pass_at[0] == 0.25 && e.distinct_correct == 1);
    assert_true(e.reward == (0.25 + 3) / 4);
    examples_free(&examples);
    rollout_free(&rollout);
    tokenizer_free(tokenizer);
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_evaluate),
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_unscored_answers),
        cmocka_unit_test(test_right_is_not_reward),
    };
    return cmocka_run_group_tests_name("evaluate", tests, setup, teardown);
}
