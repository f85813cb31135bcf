/* The built-in tasks with an environment, calculator and address_book: what their environments
   answer, by hand and against another reckoning; that demonstrations are right and fit; that any
   text is survived. */
#include "test.h"
#include "../llmc/rl/experience.h"

enum { MOST = 16 };

static struct Tokenizer *tokenizer;

/* A conversation by hand: what the model says, one turn a word, "." for an empty one. Answers are
   put between by the task; the whole is written to `told`, and judged. */
static struct Reward talk(const struct Task *task, const struct Example *example, char *told,
                          const char *says, bool ended) {
    struct Turn turn[2 * MOST];
    struct Text answer[MOST] = {{0}};
    struct Reward reward;
    struct Completion c = {.example = example, .turn = turn, .text = "", .ended = true};
    char copy[256], none[1] = "", *rest = copy, *word;
    int n = 0;
    snprintf(copy, sizeof copy, "%s", says);
    told[0] = 0;
    while ((word = strsep(&rest, " ")) != NULL && n < MOST) {
        if (strcmp(word, ".") == 0) word = none;
        turn[c.num_turns++] = (struct Turn){"assistant", word, strlen(word)};
        text_clear(&answer[n]);
        if (!rest) break;   /* the last turn is not answered */
        if (!task->reply(task, &answer[n], &c)) break;
        sprintf(told + strlen(told), "%s%s", n ? " " : "", answer[n].bytes);
        turn[c.num_turns++] = (struct Turn){"tool", answer[n].bytes, answer[n].length};
        n++;
    }
    c.final = true, c.ended = ended;
    task->judge(task, &reward, &c, 1);
    for (int i = 0; i < MOST; i++) text_free(&answer[i]);
    return reward;
}

static struct Example example_of(const char *prompt, const char *book) {
    struct Example e = {.id = 0};
    text_format(&e.prompt, "%s", prompt);
    if (book) text_format(&e.metadata, "{\"book\": \"%s\"}", book);
    return e;
}

struct Case {
    const char *prompt, *book, *says, *told;
    float reward;
};

static void check_cases(const struct Task *task, const struct Case *cases, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct Example e = example_of(cases[i].prompt, cases[i].book);
        char told[256];
        struct Reward reward = talk(task, &e, told, cases[i].says, true);
        if (strcmp(told, cases[i].told) != 0 || reward.value != cases[i].reward)
            fail_msg("%s %s: told \"%s\", reward %g", cases[i].prompt, cases[i].says, told,
                     reward.value);
        assert_int_equal(reward.right, reward.value == 1);
        assert_true(talk(task, &e, told, cases[i].says, false).value == 0);   /* cut */
        example_free(&e);
    }
}

static void test_calculator(void **state) {
    (void)state;
    static const struct Case cases[] = {
        {"38*47+29=", NULL, "38*47= 1786+29= 1815", "1786 1815", 1},
        {"38*47+29=", NULL, "1815", "", 1},                      /* who knows it need not call */
        {"38*47+29=", NULL, "38*47= 1786", "1786", 0},
        {"38*47-29=", NULL, "38*47= 1786-29= 1757", "1786 1757", 1},
        {"10*10-99=", NULL, "10*10-99= 100-99= 1", ": 1", 1},    /* one operator a call */
        {"10*10-99=", NULL, "1-99= -98+99= 1", "-98 1", 1},
        {"10*10-99=", NULL, "= ab= 1+= 1", ": : :", 1},
        {"10*10-99=", NULL, "999999*999999= 1", "999998000001", 1},
        {"10*10-99=", NULL, "1000000*1= 01", ":", 0},
        {"10*10-99=", NULL, "-1*7= +1", "-7", 0},
        {"10*10-99=", NULL, "1*-7= 1*7", ":", 0},
        {"1*1=", NULL, "1", "", 0},
    };
    check_cases(task_find("calculator"), cases, sizeof cases / sizeof *cases);
}

static void test_address_book(void **state) {
    (void)state;
    static const char book[] = "ab12cd07gh99";
    static const struct Case cases[] = {
        {"ab:47=", book, "ab= *ab47 .", "12 +", 1},
        {"ab:47=", book, "*ab47 .", "+", 1},
        {"ab:47=", book, "+ab47 *ab47 .", "- +", 1},
        {"ab:47=", book, "*ab47", "", 1},                   /* the last call is carried out, too */
        {"ab:47=", book, "+ab47 .", "-", 0},
        {"ab:47=", book, "*ab47 *cd08 .", "+ +", 0},        /* what nobody asked for */
        {"ab:47=", book, "*ab47 *cd08 *cd07 .", "+ + +", 1},/* ... undone */
        {"ab:12=", book, ".", "", 1},
        {"ef:30=", book, "ef= +ef30 .", "- +", 1},
        {"ef:30=", book, "*ef30 .", "-", 0},
        {"cd:ab=", book, "cd= ab= *ab07 .", "07 12 +", 1},
        {"cd:ef=", book, "cd= +ef07 .", "07 +", 1},
        {"cd:ef=", book, "cd= +ef08 .", "07 +", 0},
        {"cd-=", book, "-cd cd= .", "+ -", 1},
        {"ef-=", book, ".", "", 1},
        {"cd-=", book, "-cd -cd .", "+ -", 1},
        {"cd-=", book, "-cd -ab .", "+ +", 0},
        {"cd-=", book, "cd -c +cd7 *xy12 -cd .", ": : : : +", 1},
        {"ab:47=", "", "ab= +ab47 .", "- +", 1},
        {"xy:47=", book, ".", "", 0},
    };
    check_cases(task_find("address_book"), cases, sizeof cases / sizeof *cases);
}

/* Demonstrations as training has them: right, with loss on the model's turns and their ends alone,
   clear of the last fifth of the longest completion. The book that they leave is reckoned here. */
static void test_demonstrations(void **state) {
    (void)state;
    static const char *const names[] = {"calculator", "address_book"};
    for (int t = 0; t < 2; t++) {
        const struct Task *task = task_find(names[t]);
        struct Experience e = {0};
        int64_t ordinal = 5;
        int most = 0, end = tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT), longest = 0;
        struct CollectOptions o = {.task = task, .tokenizer = tokenizer, .seed = 3};
        experience_demonstrate(&e, &o, 600, &ordinal);
        assert_int_equal(e.count, 600);
        for (int i = 0; i < e.count; i++) {
            struct Example example = {0};
            struct Text said = {0};
            char told[256], tools[256] = "";
            int turns = 1, begin = e.completion_start[i], n = e.start[i + 1] - begin;
            example_draw(&example, task, 3, RNG_DEMONSTRATION, 5 + (uint64_t)i);
            assert_int_equal(begin - e.start[i], example.prompt.length);
            assert_true(begin - e.start[i] <= task->max_prompt);
            if (n > longest) longest = n;
            for (int k = begin; k < e.start[i + 1]; k++) {
                bool drawn = e.loss_mask[k], ends = e.token[k] == end;
                struct Text one = {0};
                text_clear(&one);
                tokenizer_decode(tokenizer, e.token + k, 1, TOKENIZER_PLAIN, &one);
                bool new_turn = drawn && k > begin && !e.loss_mask[k - 1];
                bool empty = ends && (k == begin || new_turn);
                turns += new_turn;
                assert_true(drawn || !ends);
                if (drawn && ends && k + 1 < e.start[i + 1]) assert_false(e.loss_mask[k + 1]);
                if (new_turn) text_append(&said, " ", 1), strcat(tools, " ");
                if (empty) text_append(&said, ".", 1);
                if (drawn) text_append(&said, one.bytes, one.length);
                else strcat(tools, one.bytes);
                text_free(&one);
            }
            assert_true(e.loss_mask[e.start[i + 1] - 1] && e.token[e.start[i + 1] - 1] == end);
            if (turns > most) most = turns;
            struct Reward reward = talk(task, &example, told, said.bytes, true);
            if (reward.value != 1) fail_msg("%s %s", example.prompt.bytes, said.bytes);
            if (turns > 1) tools[strlen(tools) - 1] = 0;   /* behind each a turn began */
            assert_string_equal(told, tools);
            text_free(&said);
            example_free(&example);
        }
        assert_in_range(most, 3, task->max_turns);
        assert_true(longest <= 0.8 * task->max_completion);
        assert_true(longest > 0.8 * task->max_completion - 3);   /* and no more than needed */
        experience_free(&e);
    }
}

/* Any bytes are survived, in any number of turns. */
static void test_any_text(void **state) {
    (void)state;
    static const char *const names[] = {"calculator", "address_book"};
    struct Rng rng;
    rng_open(&rng, 3, RNG_TEST, 0);
    for (int i = 0; i < 20000; i++) {
        const struct Task *task = task_find(names[i % 2]);
        struct Example e = {0};
        char text[7][12];
        struct Turn turn[7];
        struct Text answer = {0};
        struct Reward reward;
        example_draw(&e, task, 3, RNG_PROMPT, (uint64_t)i % 50);
        for (int k = 0; k < 7; k++) {
            size_t n = rng_below(&rng, 11);
            for (size_t j = 0; j < n; j++)
                text[k][j] = rng_below(&rng, 9) ? shared_alphabet[rng_below(&rng, 23)]
                                                : (char)rng_below(&rng, 256);
            text[k][n] = 0;
            turn[k] = (struct Turn){k % 2 ? "tool" : "assistant", text[k], n};
        }
        struct Completion c = {.example = &e, .text = "", .ended = true, .turn = turn,
                               .num_turns = 1 + 2 * (int)rng_below(&rng, 4)};
        text_clear(&answer);
        bool goes_on = task->reply(task, &answer, &c);
        if (goes_on) assert_int_equal(strspn(answer.bytes, task->alphabet), answer.length);
        if (goes_on) assert_in_range(answer.length, 1, 13);
        task->judge(task, &reward, &c, 1);
        assert_true(reward.value == 0 || reward.value == 1);
        text_free(&answer);
        example_free(&e);
    }
}

static int setup(void **state) {
    (void)state;
    tokenizer = tokenizer_from_alphabet(shared_alphabet);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    tokenizer_free(tokenizer);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calculator),
        cmocka_unit_test(test_address_book),
        cmocka_unit_test(test_demonstrations),
        cmocka_unit_test(test_any_text),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
