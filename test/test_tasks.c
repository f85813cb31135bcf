/* The built-in tasks against an oracle of other code: expressions are valued by splitting the text
   at its last operator, sums by printf, and the set of right answers is found by trying every
   string up to a length. */
#include "test.h"
#include "child.h"
#include "../llmc/tasks/examples.h"

/* NUM_TASKS: those of one turn come first; the others are in test_tools.c. TEXT: room for any
   prompt or answer of a built-in task. */
enum { NUM_TASKS = 6, ALL_TASKS = 8, TEXT = 64 };

/* ---- tasks on plain strings ------------------------------------------------------------------ */

static struct Example example;   /* reused by each of these */

static const struct Example *example_of(const char *prompt) {
    text_clear(&example.prompt);
    text_append(&example.prompt, prompt, strlen(prompt));
    return &example;
}

static void draw(const struct Task *task, char prompt[TEXT], uint64_t seed,
                 enum RngPurpose purpose, int ordinal) {
    example_draw(&example, task, seed, purpose, (uint64_t)ordinal);
    assert_true(example.id == (uint64_t)ordinal && example.prompt.length < TEXT);
    strcpy(prompt, example.prompt.bytes);
}

static bool demonstrate(const struct Task *task, char answer[TEXT], const char *prompt,
                        struct Rng *rng) {
    struct Text text = {0};
    text_clear(&text);
    bool found = task->demonstrate(task, &text, example_of(prompt), rng);
    assert_true(text.length < TEXT);
    strcpy(answer, text.bytes);
    text_free(&text);
    return found;
}

static float reward_of(const struct Task *task, const char *prompt, const char *answer,
                       size_t length, bool ended) {
    struct Reward reward;
    struct Completion completion = {.example = example_of(prompt), .text = answer,
                                    .length = length, .ended = ended,
                                    .tokens = (int)length + 1};
    task->judge(task, &reward, &completion, 1);
    assert_int_equal(reward.right, reward.value == 1);
    return reward.value;
}

/* The example task has no count; like all with one right answer, it has one. */
static int count_answers(const struct Task *task, const char *prompt) {
    return task->count_answers ? task->count_answers(task, example_of(prompt)) : 1;
}

/* ---- the oracle ----------------------------------------------------------------------------- */

/* The value of the text [from, to), or false: not an expression of one-digit numbers 1-9. */
static bool oracle_value(double *value, const char *from, const char *to) {
    if (to - from == 1) {
        *value = *from - '0';
        return *from >= '1' && *from <= '9';
    }
    if (to == from) return false;
    double left, right;
    for (const char *c = to - 1; c > from; c--)
        if (*c == '+' || *c == '-') {
            if (!oracle_value(&left, from, c) || !oracle_value(&right, c + 1, to)) return false;
            *value = *c == '+' ? left + right : left - right;
            return true;
        }
    for (const char *c = to - 1; c > from; c--)
        if (*c == '*') {
            if (!oracle_value(&left, from, c) || !oracle_value(&right, c + 1, to)) return false;
            *value = left * right;
            return true;
        }
    return false;
}

static int compare_chars(const void *a, const void *b) {
    return *(const char *)a - *(const char *)b;
}

/* The digits of `text` in ascending order. */
static void sorted_digits(char out[TEXT], const char *text, size_t length) {
    size_t n = 0;
    for (size_t i = 0; i < length; i++)
        if (text[i] >= '0' && text[i] <= '9') out[n++] = text[i];
    qsort(out, n, 1, compare_chars);
    out[n] = 0;
}

static bool oracle_countdown(const char *prompt, const char *text, bool sorted) {
    char wanted[TEXT], used[TEXT];
    double value;
    sorted_digits(wanted, prompt, 3);
    sorted_digits(used, text, strlen(text));
    return oracle_value(&value, text, text + strlen(text)) && value == atoi(prompt + 4) &&
           strcmp(wanted, used) == 0 && (!sorted || text[0] == wanted[0]);
}

static bool oracle_split(const char *prompt, const char *text) {
    char used[TEXT];
    double value;
    sorted_digits(used, text, strlen(text));
    return oracle_value(&value, text, text + strlen(text)) && value == atoi(prompt) &&
           strlen(used) == 3 && strchr(text, '-') == NULL && strchr(text, '*') == NULL;
}

/* Is the text (shorter than TEXT, without zeros) a right answer? */
static bool oracle(const struct Task *task, const char *prompt, const char *text) {
    if (strcmp(task->name, "countdown") == 0) return oracle_countdown(prompt, text, false);
    if (strcmp(task->name, "countdown_sorted") == 0) return oracle_countdown(prompt, text, true);
    if (strcmp(task->name, "split") == 0) return oracle_split(prompt, text);
    if (strcmp(task->name, "addition") == 0) {
        char sum[16];
        snprintf(sum, sizeof sum, "%d", atoi(prompt) + atoi(prompt + 3));
        return strcmp(sum, text) == 0;
    }
    size_t n = strlen(prompt) - 1;
    if (strlen(text) != n) return false;
    if (strcmp(task->name, "sort") == 0) {
        char letters[TEXT];
        strcpy(letters, prompt);
        qsort(letters, n, 1, compare_chars);
        return strncmp(letters, text, n) == 0;
    }
    for (size_t i = 0; i < n; i++)
        if (text[i] != prompt[n - 1 - i]) return false;
    return true;
}

/* ---- the table ------------------------------------------------------------------------------ */

static void test_table(void **state) {
    (void)state;
    assert_null(task_row(-1));
    assert_null(task_row(ALL_TASKS));
    assert_null(task_find("count"));
    assert_string_equal(task_names(), "countdown countdown_sorted split addition reverse sort "
                        "calculator address_book");
    for (int i = NUM_TASKS; i < ALL_TASKS; i++)
        assert_true(task_converses(task_row(i)) && task_find(task_row(i)->name) == task_row(i));
    for (int i = 0; i < NUM_TASKS; i++) {
        const struct Task *task = task_row(i);
        assert_ptr_equal(task_find(task->name), task);
        assert_string_equal(task->alphabet, task_row(0)->alphabet);
        assert_true(task->max_prompt + task->max_completion <= 16);
    }
    const char *alphabet = task_row(0)->alphabet;
    assert_int_equal(strlen(alphabet), 23);
    for (const char *c = alphabet; *c; c++) assert_ptr_equal(strchr(alphabet, *c), c);
}

static void test_known_answers(void **state) {
    (void)state;
    static const struct { const char *task, *prompt, *answer; float reward; } cases[] = {
        {"countdown", "357:22=", "3*5+7", 1},        {"countdown", "357:22=", "7+5*3", 1},
        {"countdown", "357:22=", "(3*5)+7", 0},      {"countdown", "357:22=", "3*5+7 ", 0},
        {"countdown", "357:22=", "+3*5+7", 0},       {"countdown", "357:22=", "3*5+8", 0},
        {"countdown", "357:22=", "8+9+5", 0},        {"countdown", "357:22=", "", 0},
        {"countdown", "357:22=", "22", 0},           {"countdown", "219:19=", "2*9+1", 1},
        {"countdown", "355:28=", "5*5+3", 1},        {"countdown", "335:28=", "5*5+3", 0},
        {"countdown", "289:70=", "8*9-2", 1},        {"countdown", "289:70=", "9-2*8", 0},
        {"countdown", "999:99=", "9*9+9", 0},        {"countdown", "999:90=", "9*9+9", 1},
        {"countdown", "35:22=", "3*5+7", 0},         {"countdown", "", "3*5+7", 0},
        {"countdown", "357:22=1", "3*5+7", 0},       {"countdown", "357:022=", "3*5+7", 0},
        {"countdown_sorted", "357:22=", "3*5+7", 1}, {"countdown_sorted", "357:22=", "7+3*5", 0},
        {"countdown_sorted", "753:22=", "3*5+7", 1}, {"countdown_sorted", "553:28=", "5*5+3", 0},
        {"split", "17=", "9+3+5", 1},                {"split", "17=", "9+8", 0},
        {"split", "17=", "9+3*5", 0},                {"split", "12=", "6*3-6", 0},
        {"split", "28=", "9+9+9", 0},                {"split", "3=", "1+1+1", 1},
        {"split", "03=", "1+1+1", 0},                {"split", "9=", "0+4+5", 0},
        {"addition", "47+85=", "132", 1},            {"addition", "47+85=", "0132", 0},
        {"addition", "10+10=", "20", 1},             {"addition", "10+10=", "020", 0},
        {"addition", "7+85=", "92", 0},              {"addition", "47+85=", "13", 0},
        {"reverse", "abcd=", "dcba", 1},             {"reverse", "abcdef=", "fedcba", 1},
        {"reverse", "abcd=", "abcd", 0},             {"reverse", "abyz=", "zyba", 0},
        {"reverse", "ABCD=", "DCBA", 0},             {"reverse", "abc=", "cba", 0},
        {"reverse", "abcdefg=", "gfedcba", 0},       {"addition", "47+85=0", "132", 0},
        {"sort", "dbca=", "abcd", 1},                {"sort", "dbca=", "dcba", 0},
        {"sort", "hgha=", "aghh", 1},                {"sort", "hgha=", "agh", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct Task *task = task_find(cases[i].task);
        size_t length = strlen(cases[i].answer);
        float reward = reward_of(task, cases[i].prompt, cases[i].answer, length, true);
        if (reward != cases[i].reward)
            fail_msg("%s %s%s: reward %g", task->name, cases[i].prompt, cases[i].answer, reward);
        assert_true(reward_of(task, cases[i].prompt, cases[i].answer, length, false) == 0);
    }
}

/* Every prompt is in the alphabet and in bounds, has an answer, and its demonstration is right and
   clear of the last fifth of the completion, where the soft overlong penalty begins. */
static void test_prompts(void **state) {
    (void)state;
    for (int i = 0; i < NUM_TASKS; i++) {
        const struct Task *task = task_row(i);
        for (int n = 0; n < 4000; n++) {
            char prompt[TEXT], again[TEXT], answer[TEXT];
            enum RngPurpose purpose = n % 2 ? RNG_EVAL_PROMPT : RNG_DEMONSTRATION;
            draw(task, prompt, 7, purpose, n);
            draw(task, again, 7, purpose, n);
            assert_string_equal(prompt, again);
            assert_int_equal(strspn(prompt, task->alphabet), strlen(prompt));
            assert_in_range(strlen(prompt), 1, task->max_prompt);
            struct Rng rng;
            rng_open(&rng, 7, RNG_TEST, (uint64_t)n);
            assert_true(count_answers(task, prompt) >= 1);
            assert_true(demonstrate(task, answer, prompt, &rng));
            assert_true(reward_of(task, prompt, answer, strlen(answer), true) == 1);
            assert_true(oracle(task, prompt, answer));
            assert_true((double)(strlen(answer) + 1) <= 0.8 * task->max_completion);
        }
    }
}

/* A seed gives the same prompts in every version of the program. These were written down when each
   task was added. */
static void test_prompts_of_a_seed(void **state) {
    (void)state;
    static const struct { const char *task, *prompt[4]; } cases[] = {
        {"countdown", {"828:24=", "319:11=", "453:17=", "947:67="}},
        {"countdown_sorted", {"828:24=", "791:63=", "687:62=", "947:67="}},
        {"split", {"22=", "3=", "16=", "13="}},
        {"addition", {"75+30=", "12+48=", "47+14=", "46+91="}},
        {"reverse", {"ebaebg=", "ccgf=", "dhhc=", "fhbfe="}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int n = 0; n < 4; n++) {
            char prompt[TEXT];
            draw(task_find(cases[i].task), prompt, 3, RNG_PROMPT, n);
            assert_string_equal(prompt, cases[i].prompt[n]);
        }
}

/* A task with one prompt has none left to hold out: that is an error, not an endless loop. */
static void one_prompt(const struct Task *task, struct Example *one, struct Rng *rng) {
    (void)task, (void)rng;
    text_append(&one->prompt, "1=", 2);
}
static void draw_of_one(void *purpose) {
    static const struct Task task = {.name = "one", .next = one_prompt};
    struct Example drawn = {0};
    example_draw(&drawn, &task, 1, *(enum RngPurpose *)purpose, 0);
    example_free(&drawn);
}
static void test_too_few_prompts(void **state) {
    (void)state;
    char output[512];
    enum RngPurpose held_out = RNG_EVAL_PROMPT, trained = RNG_PROMPT;
    assert_int_equal(run_in_child(draw_of_one, &held_out, output, sizeof output), 0);
    assert_int_equal(run_in_child(draw_of_one, &trained, output, sizeof output), 2);
    assert_non_null(strstr(output, "task one: none of"));
}

/* ---- rewards and counts against every string ------------------------------------------------ */

/* The next string over `symbols` in order of length, then value; "" comes first. */
static void next_string(char *text, const char *symbols) {
    size_t i = strlen(text);
    while (i-- > 0) {
        const char *next = strchr(symbols, text[i]) + 1;
        if (*next) {
            text[i] = *next;
            return;
        }
        text[i] = symbols[0];
    }
    size_t length = strlen(text);
    text[length] = symbols[0];
    text[length + 1] = 0;
}

/* All strings over `symbols` up to max_length: rewarded exactly where the oracle says so; returns
   how many are right. */
static int check_every_string(const struct Task *task, const char *prompt, const char *symbols,
                              size_t max_length) {
    int right = 0;
    char text[TEXT] = "";
    for (; strlen(text) <= max_length; next_string(text, symbols)) {
        float reward = reward_of(task, prompt, text, strlen(text), true);
        if (reward != (float)oracle(task, prompt, text))
            fail_msg("%s %s%s: reward %g", task->name, prompt, text, reward);
        right += reward == 1;
    }
    return right;
}

static void test_rewards_exhaustively(void **state) {
    (void)state;
    for (int i = 0; i < NUM_TASKS; i++) {
        const struct Task *task = task_row(i);
        for (int n = 0; n < 24; n++) {
            char prompt[TEXT], symbols[TEXT];
            size_t longest = 7;
            draw(task, prompt, 11, RNG_PROMPT, n);
            switch (task->name[0]) {
            case 'c': snprintf(symbols, sizeof symbols, "%.3s+-*", prompt); break;
            case 's':
                strcpy(symbols, task->name[1] == 'p' ? "123456789+-*" : "abcdefgh"), longest = 5;
                break;
            case 'a': strcpy(symbols, "0123456789"), longest = 4; break;
            default: strcpy(symbols, "abcdefgh"), longest = 6; break;
            }
            if (task->name[0] == 'r' && n >= 2) break;
            /* A repeated digit would make next_string go round: keep the first of each. */
            for (char *c = symbols; *c;)
                if (strchr(symbols, *c) < c) memmove(c, c + 1, strlen(c)); else c++;
            assert_int_equal(check_every_string(task, prompt, symbols, longest),
                             count_answers(task, prompt));
        }
    }
}

/* One prompt with all 23 characters, up to the longest right answer's length. */
static void test_rewards_whole_alphabet(void **state) {
    (void)state;
    const struct Task *task = task_find("countdown_sorted");
    assert_int_equal(check_every_string(task, "242:18=", task->alphabet, 5),
                     count_answers(task, "242:18="));
    task = task_find("countdown");
    assert_int_equal(check_every_string(task, "357:22=", task->alphabet, 5),
                     count_answers(task, "357:22="));
}

/* The number of ways to write 3..27 as three digits 1-9: coefficients of (x + ... + x^9)^3. */
static void test_split_counts(void **state) {
    (void)state;
    int ways[28] = {1};
    for (int digit = 0; digit < 3; digit++)
        for (int sum = 27; sum >= 0; sum--) {
            int total = 0;
            for (int d = 1; d <= 9 && d <= sum; d++) total += ways[sum - d];
            ways[sum] = total;
        }
    const struct Task *task = task_find("split");
    for (int sum = 0; sum <= 40; sum++) {
        char prompt[TEXT];
        snprintf(prompt, sizeof prompt, "%d=", sum);
        assert_int_equal(count_answers(task, prompt), sum <= 27 ? ways[sum] : 0);
    }
}

/* ---- any bytes in --------------------------------------------------------------------------- */

/* A copy of exactly the answer's size and its zero, so that the address sanitizer sees a read past
   them. */
static float reward_of_copy(const struct Task *task, const char *prompt, const char *bytes,
                            size_t length) {
    char *exact = malloc(length + 1);
    assert_non_null(exact);
    memcpy(exact, bytes, length);
    exact[length] = 0;
    float reward = reward_of(task, prompt, exact, length, true);
    free(exact);
    return reward;
}

/* Changes, inserts or removes one byte at a random place. Returns the new length. */
static size_t mutate(char *text, size_t length, struct Rng *rng) {
    size_t at = rng_below(rng, (uint32_t)length + 1);
    bool any = rng_below(rng, 3) == 0;
    char byte = any ? (char)rng_below(rng, 256) : "0123456789+-*:=abcdefgh"[rng_below(rng, 23)];
    switch (rng_below(rng, 3)) {
    case 0:
        memmove(text + at + 1, text + at, length - at);
        text[at] = byte;
        return length + 1;
    case 1:
        if (at == length) return length;
        memmove(text + at, text + at + 1, length - at - 1);
        return length - 1;
    default:
        if (at < length) text[at] = byte;
        return length;
    }
}

static void test_fuzz(void **state) {
    (void)state;
    struct Rng rng;
    rng_open(&rng, 3, RNG_TEST, 0);
    for (int i = 0; i < NUM_TASKS; i++) {
        const struct Task *task = task_row(i);
        for (int n = 0; n < 20000; n++) {
            char prompt[TEXT], bytes[TEXT * 2];
            draw(task, prompt, 5, RNG_PROMPT, n / 100);
            assert_true(demonstrate(task, bytes, prompt, &rng));
            size_t length = strlen(bytes);
            for (uint32_t m = rng_below(&rng, 4); m > 0; m--) length = mutate(bytes, length, &rng);
            bytes[length] = 0;
            bool right = strlen(bytes) == length && oracle(task, prompt, bytes);
            assert_true(reward_of_copy(task, prompt, bytes, length) == (float)right);

            /* noise as an answer, and a damaged prompt: no crash, no number outside [0, 1] */
            length = rng_below(&rng, sizeof bytes);
            for (size_t k = 0; k < length; k++) bytes[k] = (char)rng_below(&rng, 256);
            assert_true(reward_of_copy(task, prompt, bytes, length) == 0);
            prompt[mutate(prompt, strlen(prompt), &rng)] = 0;
            float reward = reward_of_copy(task, prompt, bytes, length);
            assert_true(reward >= 0 && reward <= 1);
            assert_true(count_answers(task, prompt) >= 0);
        }
        size_t large = 1 << 20;
        char *ones = malloc(large);
        memset(ones, '1', large);
        assert_true(reward_of_copy(task, "111:11=", ones, large) == 0);
        free(ones);
    }
}

/* ---- distributions -------------------------------------------------------------------------- */

/* Demonstrations are uniform over the right answers: Pearson's chi-square over 300 draws for each
   of n answers has mean n - 1 and variance 2 (n - 1); five deviations bound it. */
static void test_demonstrations_are_uniform(void **state) {
    (void)state;
    static const struct { const char *task, *prompt; } cases[] = {
        {"countdown", "357:22="}, {"countdown", "126:12="}, {"split", "15="}, {"split", "5="},
        {"countdown_sorted", "149:14="}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct Task *task = task_find(cases[i].task);
        char seen[81][TEXT];
        int count[81], n = count_answers(task, cases[i].prompt), found = 0;
        assert_in_range(n, 2, 81);
        struct Rng rng;
        rng_open(&rng, 17, RNG_TEST, i);
        for (int draw = 0; draw < 300 * n; draw++) {
            char answer[TEXT];
            assert_true(demonstrate(task, answer, cases[i].prompt, &rng));
            int k = 0;
            while (k < found && strcmp(seen[k], answer) != 0) k++;
            if (k == found) {
                assert_true(found < n);
                strcpy(seen[found], answer);
                count[found++] = 0;
            }
            count[k]++;
        }
        assert_int_equal(found, n);
        double chi_square = 0;
        for (int k = 0; k < n; k++) chi_square += pow(count[k] - 300, 2) / 300;
        ASSERT_CLOSE(task->name, chi_square, n - 1 + 5 * sqrt(2.0 * (n - 1)));
    }
}

static int compare_texts(const void *a, const void *b) { return strcmp(a, b); }

/* Draws n prompts of a split, in ascending order. */
static char (*sorted_prompts(const struct Task *task, uint64_t seed, bool held_out, int n))[TEXT] {
    char(*texts)[TEXT] = calloc((size_t)n, TEXT);
    assert_non_null(texts);
    for (int i = 0; i < n; i++) {
        /* Evaluations draw with one purpose, training with two: all must keep to their side. */
        enum RngPurpose purpose = held_out ? RNG_EVAL_PROMPT
                                  : i % 2  ? RNG_PROMPT
                                           : RNG_DEMONSTRATION;
        draw(task, texts[i], seed, purpose, i);
    }
    qsort(texts, (size_t)n, TEXT, compare_texts);
    return texts;
}

/* No held-out prompt is ever drawn for training; drawing ends for every seed, however few prompts a
   task has. */
static void test_held_out_prompts(void **state) {
    (void)state;
    for (int i = 0; i < NUM_TASKS; i++) {
        for (uint64_t seed = 0; seed < 40; seed++) {
            const struct Task *task = task_row(i);
            int num_train = seed == 0 ? 50000 : 500, num_held_out = seed == 0 ? 2000 : 50;
            char(*train)[TEXT] = sorted_prompts(task, seed, false, num_train);
            char(*held_out)[TEXT] = sorted_prompts(task, seed, true, num_held_out);
            for (int k = 0; k < num_held_out; k++)
                if (bsearch(held_out[k], train, (size_t)num_train, TEXT, compare_texts))
                    fail_msg("%s, seed %d: both splits have %s", task->name,
                             (int)seed, held_out[k]);
            free(train);
            free(held_out);
        }
    }
}

/* Tasks that share a form of prompt hold out the same texts, so that learning one after the other
   keeps both evaluations clean. */
static void test_held_out_across_tasks(void **state) {
    (void)state;
    const struct Task *first = task_find("countdown"), *second = task_find("countdown_sorted");
    for (uint64_t seed = 0; seed < 20; seed++) {
        char(*train)[TEXT] = sorted_prompts(first, seed, false, 5000);
        char(*held_out)[TEXT] = sorted_prompts(second, seed, true, 200);
        for (int k = 0; k < 200; k++)
            if (bsearch(held_out[k], train, 5000, TEXT, compare_texts))
                fail_msg("seed %d: %s is held out and trained on", (int)seed, held_out[k]);
        free(train), free(held_out);
    }
}

/* An eighth is held out: the share of draws that leave training, over seeds. */
static void test_held_out_share(void **state) {
    (void)state;
    const struct Task *task = task_find("countdown");
    int changed = 0, n = 0;
    for (uint64_t seed = 0; seed < 20; seed++)
        for (int ordinal = 0; ordinal < 400; ordinal++, n++) {
            char drawn[TEXT], kept[TEXT];
            struct Rng rng;
            rng_open(&rng, seed, RNG_PROMPT, (uint64_t)ordinal);
            task->next(task, (struct Example *)example_of(""), &rng);
            strcpy(drawn, example.prompt.bytes);
            draw(task, kept, seed, RNG_PROMPT, ordinal);
            changed += strcmp(drawn, kept) != 0;
        }
    assert_in_range(changed, n / 10, n * 3 / 20);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_prompts_of_a_seed),
        cmocka_unit_test(test_too_few_prompts),
        cmocka_unit_test(test_rewards_exhaustively),
        cmocka_unit_test(test_rewards_whole_alphabet),
        cmocka_unit_test(test_split_counts),
        cmocka_unit_test(test_fuzz),
        cmocka_unit_test(test_demonstrations_are_uniform),
        cmocka_unit_test(test_held_out_prompts),
        cmocka_unit_test(test_held_out_across_tasks),
        cmocka_unit_test(test_held_out_share),
    };
    return cmocka_run_group_tests_name("tasks", tests, NULL, NULL);
}
