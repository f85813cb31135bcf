/* Verifiers, by hand: what each says of a completion, and what a list of them adds up to. */
#include "test.h"
#include "../llmc/tasks/number.h"
#include "../llmc/tasks/verify.h"

static struct Verify *open_list(const char *list, const char *regex, int max_tokens) {
    const char *problem;
    struct VerifyOptions options = {regex, max_tokens, NULL};
    struct Verify *v = verify_open(list, &options, &problem);
    if (!v) fail_msg("%s: %s", list, problem);
    return v;
}

/* Copies of exactly their size, so that a sanitizer sees a read past them. */
static struct Text text_of(const char *bytes, size_t length) {
    struct Text text = {.bytes = malloc(length + 1), .length = length, .capacity = length + 1};
    memcpy(text.bytes, bytes, length);
    text.bytes[length] = 0;
    return text;
}

static struct Reward judge_bytes(struct Verify *v, const char *answer, const char *completion,
                                 size_t length, bool ended, int tokens) {
    struct Example example = {0};
    struct Text text = text_of(completion, length);
    struct Reward reward = {.value = -1};
    if (answer) example.answer = text_of(answer, strlen(answer));
    struct Completion c = {.example = &example, .text = text.bytes, .length = length,
                           .ended = ended, .tokens = tokens};
    verify_judge(v, &reward, &c, 1);
    free(text.bytes), free(example.answer.bytes);
    return reward;
}

static struct Reward judge(const char *list, const char *answer, const char *completion,
                           bool ended) {
    struct Verify *v = open_list(list, "", 100);
    struct Reward r = judge_bytes(v, answer, completion, strlen(completion), ended, 10);
    verify_close(v);
    return r;
}

struct Case { const char *answer, *completion; int right; };

static void check_cases(const char *list, const struct Case *cases, size_t count, bool ended) {
    for (size_t i = 0; i < count; i++) {
        struct Reward r = judge(list, cases[i].answer, cases[i].completion, ended);
        if (r.value != (float)cases[i].right || r.right != (cases[i].right == 1))
            fail_msg("%s, answer \"%s\", completion \"%s\": %g", list, cases[i].answer,
                     cases[i].completion, r.value);
    }
}
#define CHECK(list, cases, ended) check_cases(list, cases, sizeof cases / sizeof *cases, ended)

/* ---- number ---------------------------------------------------------------------------------- */

static void test_numbers(void **state) {
    (void)state;
    static const struct Case cases[] = {
        {"72", "72", 1}, {"72", "#### 72", 1}, {"72", "The answer is 72.", 1},
        {"72", "73", 0}, {"72", "", 0}, {"72", "none", 0}, {"72", "seventy-two", 0},
        {"72", "72 apples and 3 pears", 0}, {"72", "1 2 3\n72", 1},
        {"Natalia sold 48/2 = 24 clips.\n#### 72", "so \\boxed{72}", 1},
        /* which mark wins: the later one */
        {"5", "#### 4\nno: \\boxed{5}", 1}, {"5", "\\boxed{4}, so\n#### 5 and 6", 1},
        {"5", "#### 5\n\nChecked 17 times.", 1}, {"5", "#### 4\n#### 5", 1},
        {"5", "\\boxed{4} \\boxed{5}", 1}, {"5", "\\boxed{5} \\boxed{4}", 0},
        {"5", "####", 0}, {"5", "5 ####", 0}, {"5", "####5", 1}, {"5", "\\boxed{} 5", 0},
        /* nested braces */
        {"1/2", "\\boxed{\\frac{1}{2}}", 1}, {"1/2", "\\boxed{x = \\frac{1}{2}}", 1},
        {"5", "\\boxed{\\text{about {5}}}", 1}, {"5", "\\boxed{\\boxed{5}}", 1},
        {"5", "\\fbox{5}", 1}, {"5", "\\boxed{4\\} 5} 6", 1},
        {"5", "\\boxed{5", 1 /* the last number */}, {"5", "\\boxed{3 \\boxed{5}", 1},
        /* thousands, currency, signs */
        {"1234", "1,234", 1}, {"1,234", "1234", 1}, {"1234567", "$1,234,567.00", 1},
        {"1234", "1{,}234", 1}, {"10000", "10,\\!000", 1}, {"10000", "10\\,000", 1},
        {"234", "1,234", 0}, {"2", "1,2", 1}, {"3456", "12,3456", 1}, {"12345", "12,345", 1},
        {"5", "$5", 1}, {"5", "\\$5", 1}, {"5", "$5$", 1}, {"5", "\xE2\x82\xAC""5", 1},
        {"5", "5 \xE2\x82\xAC", 1}, {"-5", "-5", 1}, {"-5", "- 5", 0}, {"-5", "-$5", 1},
        {"-5", "$-5", 1}, {"-5", "\xE2\x88\x92""5", 1}, {"5", "+5", 1}, {"-5", "x = -5", 1},
        {"5", "10-5", 1}, {"-5", "10-5", 0}, {"5", "(a)-5", 1}, {"-5", "(-5)", 1},
        {"0", "-0", 1},
        /* decimals and fractions, exactly */
        {"0.50", "1/2", 1}, {"1/2", "0.5", 1}, {"1/2", ".5", 1}, {"1/2", "2/4", 1},
        {"0.3333333333333333", "1/3", 0}, {"1/3", "\\dfrac13", 1}, {"1/3", "2/6", 1},
        {"-1/2", "-\\frac{1}{2}", 1}, {"-1/2", "\\frac{-1}{2}", 1}, {"1/2", "\\frac{-1}{-2}", 1},
        {"3/2", "1\\frac{1}{2}", 1}, {"3/2", "1 1/2", 1}, {"1.5", "1\\frac12", 1},
        {"0.1", "0.10000000000000000000000000000000001", 0}, {"3", "3.000", 1}, {"3.", "3", 1},
        {"007", "7", 1}, {"2024", "12/25/2024", 1}, {"5", "5/0", 0}, {"0", "0/7", 1},
        {"2", "\\frac{x}{2}", 1}, {"123456789012345678901234567890",
                                   "123456789012345678901234567890", 1},
        {"123456789012345678901234567890", "123456789012345678901234567891", 0},
        /* powers of ten; exponents and words are no values */
        {"1000", "1e3", 1}, {"0.001", "1E-3", 1}, {"1500", "1.5 \\times 10^{3}", 1},
        {"1500", "1.5 \xC3\x97 10^3", 1}, {"0.015", "1.5 * 10^{-2}", 1}, {"5", "5 cm^2", 1},
        {"5", "5 m^{3}", 1}, {"5", "5 = x_1", 1}, {"5", "5 is x2", 1}, {"5", "5e", 1},
        {"1", "1e5x", 1}, {"12", "#### 12/25/2024", 1},
        {"1e300", "1e300", 1}, {"1e300", "1e301", 0}, {"1e99999", "1e99999", -1},
        /* percent */
        {"50%", "50%", 1}, {"50", "50%", 1}, {"0.5", "50 %", 1}, {"50%", "50", 1},
        {"50%", "0.5", 1}, {"50", "50\\%", 1}, {"50%", "5000", 0}, {"5000", "50%", 0},
        {"0.5", "0.5%", 1}, {"0.005", "0.5%", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Reward r = judge("number", cases[i].answer, cases[i].completion, true);
        bool good = cases[i].right < 0 ? isnan(r.value) : r.value == (float)cases[i].right;
        if (!good)
            fail_msg("answer \"%s\", completion \"%s\": %g", cases[i].answer, cases[i].completion,
                     r.value);
    }
}

/* A completion that was cut has an answer only where that is known to be complete. */
static void test_numbers_cut(void **state) {
    (void)state;
    static const struct Case cases[] = {
        {"72", "the answer is 72", 0}, {"7", "#### 7", 0}, {"72", "#### 72", 0},
        {"72", "#### 72\n", 1}, {"72", "#### 72.", 0}, {"72", "\\boxed{72}", 1},
        {"72", "\\boxed{72", 0}, {"72", "\\boxed{72} so 7", 1}, {"72", "", 0},
    };
    CHECK("number", cases, false);
}

static void test_without_answer(void **state) {
    (void)state;
    assert_true(isnan(judge("number", NULL, "5", true).value));
    assert_true(isnan(judge("number", "", "5", true).value));
    assert_true(isnan(judge("number", "no idea", "5", true).value));
    assert_true(isnan(judge("choice", "?", "A", true).value));
    assert_true(isnan(judge("exact", NULL, "", true).value));
    assert_true(isnan(judge("regex", NULL, "x", true).value));
    assert_false(judge("number", NULL, "5", true).right);
    assert_true(judge("length", NULL, "5", true).value > 0);
}

/* ---- the others ------------------------------------------------------------------------------ */

static void test_exact(void **state) {
    (void)state;
    static const struct Case cases[] = {
        {"Paris", "Paris", 1}, {" Paris\n", "\tParis ", 1}, {"Paris", "paris", 0},
        {"Paris", "Paris.", 0}, {"Paris", "", 0}, {"1/2", "0.5", 0},
    };
    static const struct Case cut[] = {{"Paris", "Paris", 0}};
    CHECK("exact", cases, true);
    CHECK("exact", cut, false);
}

static void test_choice(void **state) {
    (void)state;
    static const struct Case cases[] = {
        {"B", "B", 1}, {"(B)", "B", 1}, {"B", "(B)", 1}, {"B", "B) Paris", 1}, {"B", "B. Paris", 1},
        {"B", "The answer is (B).", 1}, {"B", "Answer: B", 1}, {"A", "The answer is A because", 1},
        {"B", "A or B? The ANSWER is **B**", 1}, {"B", "\\boxed{B}", 1},
        {"B", "\\boxed{\\text{B}} not C", 1}, {"B", "the answer is C, no: \\boxed{B}", 1},
        {"C", "Not A, not B, so C", 1}, {"B", "Bread", 0}, {"A", "A bird in the hand", 0},
        {"E", "E", 1}, {"B", "F", 0}, {"B", "b", 0}, {"B", "", 0}, {"B", "C", 0}, {"B", "(", 0},
    };
    static const struct Case cut[] = {
        {"B", "The answer is (B), because", 1}, {"B", "\\boxed{B} and", 1}, {"B", "so B", 0},
    };
    CHECK("choice", cases, true);
    CHECK("choice", cut, false);
}

static void test_regex(void **state) {
    (void)state;
    static const struct Case cases[] = {   /* the answer is the pattern */
        {"^a+$", "aaa", 1}, {"^a+$", "aab", 0}, {"(?i)paris", "In PARIS.", 1}, {"\\d{3}", "12", 0},
        {"(?s)<think>.*</think>", "<think>\n1\n</think>", 1}, {"\xC3\xA9.", "\xC3\xA9\xC3\xA9", 1},
    };
    CHECK("regex", cases, true);
    CHECK("regex", cases, false);
    assert_true(isnan(judge("regex", "(", "(", true).value));   /* a data file's mistake */
    struct Verify *v = open_list("regex", "^yes", 10);          /* the option's goes first */
    assert_true(judge_bytes(v, "no", "yes!", 4, true, 2).value == 1);
    assert_true(judge_bytes(v, "no", "no", 2, true, 2).value == 0);
    assert_true(judge_bytes(v, NULL, "yes\xFF\0x", 6, true, 2).value == 1);   /* any bytes */
    assert_true(judge_bytes(v, NULL, "\xFFyes", 4, true, 2).value == 0);
    verify_close(v);
}

/* 1 - tokens / longest, and nothing for what was cut. */
static void test_length(void **state) {
    (void)state;
    struct Verify *v = open_list("length", "", 40);
    assert_true(judge_bytes(v, NULL, "x", 1, true, 10).value == 0.75f);
    assert_true(judge_bytes(v, NULL, "x", 1, true, 40).value == 0);
    assert_true(judge_bytes(v, NULL, "x", 1, false, 10).value == 0);
    verify_close(v);
}

/* ---- lists ----------------------------------------------------------------------------------- */

static void test_weights(void **state) {
    (void)state;
    struct Verify *v = open_list("number:1,length:0.5", "", 40);
    assert_true(verify_needs_answers(v));
    struct Reward r = judge_bytes(v, "5", "5", 1, true, 10);
    assert_true(r.value == 1.375f && r.right);
    r = judge_bytes(v, "5", "6", 1, true, 10);
    assert_true(r.value == 0.375f && !r.right);
    assert_true(isnan(judge_bytes(v, NULL, "5", 1, true, 10).value));   /* unscored by one */
    verify_close(v);
    v = open_list("length:-2,exact:3", "", 40);   /* the first named says what is right */
    r = judge_bytes(v, "5", "5", 1, true, 10);
    assert_true(r.value == 1.5f && !r.right);
    verify_close(v);
    v = open_list("length", "", 40);
    assert_false(verify_needs_answers(v));
    verify_close(v);
    v = open_list("regex", "", 40);
    assert_true(verify_needs_answers(v));
    verify_close(v);
}

static void test_bad_lists(void **state) {
    (void)state;
    static const struct { const char *list, *regex, *says; } cases[] = {
        {"", "", "\"\" is unknown; known are exact number choice regex length"},
        {"numbr", "", "\"numbr\" is unknown"}, {"number,", "", "\"\" is unknown"},
        {"number:", "", "is not a weight"}, {"number:x", "", "is not a weight"},
        {"number:0", "", "is not a weight"}, {"number:1e9", "", "is not a weight"},
        {"number:nan", "", "is not a weight"}, {"number: 1", "", "is not a weight"},
        {"number:1:2", "", "is not a weight"}, {"number,number", "", "number is there twice"},
        {"regex", "a(", "missing closing parenthesis, at byte 2 of \"a(\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *problem;
        struct VerifyOptions options = {cases[i].regex, 10, NULL};
        assert_null(verify_open(cases[i].list, &options, &problem));
        if (!strstr(problem, cases[i].says)) fail_msg("\"%s\": %s", cases[i].list, problem);
    }
}

static void test_for_answer(void **state) {
    (void)state;
    static const struct { const char *answer, *name; } cases[] = {
        {"72", "number"}, {"$1,234", "number"}, {"-1/2", "number"}, {"x\n#### 72", "number"},
        {"a long solution that ends in \\boxed{72}", "number"}, {"12 apples", "number"},
        {"B", "choice"}, {"(B)", "choice"}, {"F", "exact"}, {"Paris", "exact"}, {"", "exact"},
        {"In 1984 he wrote a book of that name", "exact"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(verifier_for(cases[i].answer, strlen(cases[i].answer)),
                            cases[i].name);
}

static void test_table(void **state) {
    (void)state;
    static const char *const names[] = {"exact", "number", "choice", "regex", "length",
                                        "scorer"};
    enum { ROWS = sizeof names / sizeof *names };
    for (int i = 0; i < ROWS; i++) assert_string_equal(verifier_row(i)->name, names[i]);
    assert_null(verifier_row(ROWS));
    assert_null(verifier_row(-1));
}

/* ---- any bytes, bounded time ----------------------------------------------------------------- */

static void test_fuzz(void **state) {
    (void)state;
    static const char symbols[] = "0123456789.,-/\\{}$%^_ ####\\boxed{\\frac{1}{2}}e(A)B\n"
                                  "\xE2\x88\x92";
    struct Rng rng;
    struct Verify *v = open_list("number:1,choice:1,regex:1,length:1,exact:1", "[0-9]+$", 50);
    rng_open(&rng, 3, RNG_TEST, 0);
    for (int n = 0; n < 100000; n++) {
        char bytes[64], answer[32];
        size_t length = rng_below(&rng, sizeof bytes), wanted = rng_below(&rng, sizeof answer);
        for (size_t i = 0; i < length; i++) {
            uint32_t k = rng_below(&rng, sizeof symbols + 4);
            bytes[i] = k < sizeof symbols ? symbols[k] : (char)rng_below(&rng, 256);
        }
        for (size_t i = 0; i < wanted; i++)
            answer[i] = symbols[rng_below(&rng, sizeof symbols - 1)];
        answer[wanted < sizeof answer ? wanted : wanted - 1] = 0;
        struct Reward r = judge_bytes(v, answer, bytes, length, n % 2, 10);
        assert_true(isnan(r.value) || (r.value >= 0 && r.value <= 5));
    }
    verify_close(v);
}

/* A megabyte of what is worst for each reader: more than linear time would be hours. */
static void test_bounded_time(void **state) {
    (void)state;
    static const char *const units[] = {"1", "1/", "1,", "\\boxed{", "{", "}", "\\frac{1}{", "#",
                                        "1 ", "answer ", "A ", "-", "10^", "x ", "a", "1e1",
                                        "1 \\times 10^{"};
    enum { SIZE = 1 << 20 };
    char *bytes = malloc(SIZE);
    for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
        size_t n = strlen(units[u]);
        for (size_t i = 0; i < SIZE; i++) bytes[i] = units[u][i % n];
        struct Verify *v = open_list("number:1,choice:1,regex:1", "(a+)+$|(a|aa)+b", 10);
        judge_bytes(v, "5", bytes, SIZE, true, 10);
        verify_close(v);
    }
    free(bytes);
}

/* A pattern with exponentially many ways to fail gives up; without a limit this would not end. */
static void test_match_limit(void **state) {
    (void)state;
    struct Verify *v = open_list("regex", "^(a|aa)+$", 10);
    char text[64];
    memset(text, 'a', sizeof text);
    text[60] = 'b';
    for (int i = 0; i < 100; i++)
        assert_true(judge_bytes(v, NULL, text, 61, true, 5).value == 0);
    assert_true(judge_bytes(v, NULL, text, 60, true, 5).value == 1);
    verify_close(v);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),      cmocka_unit_test(test_numbers_cut),
        cmocka_unit_test(test_without_answer), cmocka_unit_test(test_exact),
        cmocka_unit_test(test_choice),       cmocka_unit_test(test_regex),
        cmocka_unit_test(test_length),       cmocka_unit_test(test_weights),
        cmocka_unit_test(test_bad_lists),    cmocka_unit_test(test_for_answer),
        cmocka_unit_test(test_table),        cmocka_unit_test(test_fuzz),
        cmocka_unit_test(test_bounded_time), cmocka_unit_test(test_match_limit),
    };
    return cmocka_run_group_tests_name("verify", tests, NULL, NULL);
}
