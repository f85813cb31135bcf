#include "task.h"

#include <string.h>

const char shared_alphabet[] = "0123456789+-*:=abcdefgh";

/* The different right answers of one prompt. At most 81: split has 9 * 9 choices of two digits,
   from which the third follows. */
struct AnswerList {
    int count;
    char text[81][6];
};

static void answers_add(struct AnswerList *list, const char *text) {
    for (int i = 0; i < list->count; i++)
        if (strcmp(list->text[i], text) == 0) return;
    strcpy(list->text[list->count++], text);
}

static bool answers_pick(struct Text *answer, const struct AnswerList *list, struct Rng *rng) {
    if (list->count == 0) return false;
    text_format(answer, "%s", list->text[rng_below(rng, (uint32_t)list->count)]);
    return true;
}

static struct Reward right_or_wrong(bool right) {
    return (struct Reward){.value = right, .right = right};
}

static bool is_digit(char c) { return c >= '0' && c <= '9'; }
static bool is_nonzero_digit(char c) { return c >= '1' && c <= '9'; }
static int draw_digit(struct Rng *rng) { return 1 + (int)rng_below(rng, 9); }

/* Three digits 1-9 joined by two operators: the form of every answer of countdown and split. */
struct Expression {
    int operand[3];
    char operator[2];
};

/* Reads exactly "d o d o d" (without blanks); anything else is false. */
static bool expression_read(struct Expression *expression, const char *text, size_t length) {
    if (length != 5) return false;
    for (int i = 0; i < 3; i++) {
        if (!is_nonzero_digit(text[2 * i])) return false;
        expression->operand[i] = text[2 * i] - '0';
    }
    for (int i = 0; i < 2; i++) {
        char c = text[2 * i + 1];
        if (c != '+' && c != '-' && c != '*') return false;
        expression->operator[i] = c;
    }
    return true;
}

static void expression_write(char text[6], const struct Expression *expression) {
    for (int i = 0; i < 3; i++) text[2 * i] = (char)('0' + expression->operand[i]);
    for (int i = 0; i < 2; i++) text[2 * i + 1] = expression->operator[i];
    text[5] = 0;
}

/* The value, with * before + and -: adds up products, each with the sign before it. */
static int expression_value(const struct Expression *expression) {
    const int *x = expression->operand;
    int sum = 0, product = x[0];
    for (int i = 0; i < 2; i++) {
        if (expression->operator[i] == '*') {
            product *= x[i + 1];
        } else {
            sum += product;
            product = expression->operator[i] == '-' ? -x[i + 1] : x[i + 1];
        }
    }
    return sum + product;
}

/* ---- countdown: `357:22=` -> `3*5+7`, each digit once ---------------------------------------
   countdown_sorted: the same, and the first operand must be the smallest of the three digits. */

static bool countdown_read(int digit[3], int *target, const char *prompt) {
    if (strlen(prompt) != 7 || prompt[3] != ':' || prompt[6] != '=') return false;
    if (!is_nonzero_digit(prompt[4]) || !is_digit(prompt[5])) return false;
    for (int i = 0; i < 3; i++) {
        if (!is_nonzero_digit(prompt[i])) return false;
        digit[i] = prompt[i] - '0';
    }
    *target = 10 * (prompt[4] - '0') + prompt[5] - '0';
    return true;
}

static int smallest(const int digit[3]) {
    int least = digit[0];
    for (int i = 1; i < 3; i++)
        if (digit[i] < least) least = digit[i];
    return least;
}

/* Draws random expressions until the value of one has two digits, and makes the prompt of its
   digits in random order and its value. So every prompt has an answer. */
static void countdown_draw(struct Text *prompt, struct Rng *rng, bool sorted) {
    struct Expression e;
    int value;
    do {
        for (int i = 0; i < 3; i++) e.operand[i] = draw_digit(rng);
        for (int i = 0; i < 2; i++) e.operator[i] = "+-*"[rng_below(rng, 3)];
        value = expression_value(&e);
    } while (value < 10 || value > 99 || (sorted && e.operand[0] != smallest(e.operand)));
    rng_shuffle(rng, e.operand, 3);
    text_format(prompt, "%d%d%d:%d=", e.operand[0], e.operand[1], e.operand[2], value);
}

/* All right answers, by trying 6 orders of the digits with 9 pairs of operators. Two equal digits
   give the same text twice; answers_add keeps one. */
static void countdown_answers(struct AnswerList *list, const char *prompt, bool sorted) {
    static const int order[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                    {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    int digit[3], target;
    list->count = 0;
    if (!countdown_read(digit, &target, prompt)) return;
    for (int p = 0; p < 6; p++) {
        for (int o = 0; o < 9; o++) {
            struct Expression e = {{digit[order[p][0]], digit[order[p][1]], digit[order[p][2]]},
                                   {"+-*"[o / 3], "+-*"[o % 3]}};
            char text[6];
            if (expression_value(&e) != target) continue;
            if (sorted && e.operand[0] != smallest(digit)) continue;
            expression_write(text, &e);
            answers_add(list, text);
        }
    }
}

static bool countdown_is_right(const struct Completion *c, bool sorted) {
    struct Expression e;
    int digit[3], target, unused[10] = {0};
    if (!c->ended || !countdown_read(digit, &target, c->example->prompt.bytes)) return 0;
    if (!expression_read(&e, c->text, c->length) || expression_value(&e) != target) return 0;
    for (int i = 0; i < 3; i++) unused[digit[i]]++;
    for (int i = 0; i < 3; i++)
        if (unused[e.operand[i]]-- == 0) return 0;
    return !sorted || e.operand[0] == smallest(digit);
}

static void countdown_next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    countdown_draw(&example->prompt, rng, false);
}
static void countdown_judge(const struct Task *task, struct Reward *reward,
                            const struct Completion *completion, int count) {
    (void)task;
    for (int i = 0; i < count; i++)
        reward[i] = right_or_wrong(countdown_is_right(&completion[i], false));
}
static bool countdown_demonstrate(const struct Task *task, struct Text *answer,
                                  const struct Example *example, struct Rng *rng) {
    (void)task;
    struct AnswerList list;
    countdown_answers(&list, example->prompt.bytes, false);
    return answers_pick(answer, &list, rng);
}
static int countdown_count(const struct Task *task, const struct Example *example) {
    (void)task;
    struct AnswerList list;
    countdown_answers(&list, example->prompt.bytes, false);
    return list.count;
}

static void sorted_next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    countdown_draw(&example->prompt, rng, true);
}
static void sorted_judge(const struct Task *task, struct Reward *reward,
                         const struct Completion *completion, int count) {
    (void)task;
    for (int i = 0; i < count; i++)
        reward[i] = right_or_wrong(countdown_is_right(&completion[i], true));
}
static bool sorted_demonstrate(const struct Task *task, struct Text *answer,
                               const struct Example *example, struct Rng *rng) {
    (void)task;
    struct AnswerList list;
    countdown_answers(&list, example->prompt.bytes, true);
    return answers_pick(answer, &list, rng);
}
static int sorted_count(const struct Task *task, const struct Example *example) {
    (void)task;
    struct AnswerList list;
    countdown_answers(&list, example->prompt.bytes, true);
    return list.count;
}

/* ---- split: `17=` -> three digits 1-9 that sum to it, `9+3+5` ------------------------------- */

/* The prompt's number, 3 to 27; 0 if the prompt is not one of this task. */
static int split_target(const char *prompt) {
    size_t length = strlen(prompt);
    int target = 0;
    if (length < 2 || length > 3 || prompt[length - 1] != '=' || prompt[0] == '0') return 0;
    for (size_t i = 0; i + 1 < length; i++) {
        if (!is_digit(prompt[i])) return 0;
        target = 10 * target + prompt[i] - '0';
    }
    return target >= 3 && target <= 27 ? target : 0;
}

static void split_next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    text_format(&example->prompt, "%d=", 3 + (int)rng_below(rng, 25));
}

static void split_answers(struct AnswerList *list, const char *prompt) {
    int target = split_target(prompt);
    list->count = 0;
    for (int a = 1; a <= 9; a++) {
        for (int b = 1; b <= 9; b++) {
            int c = target - a - b;
            if (c < 1 || c > 9) continue;
            struct Expression e = {{a, b, c}, {'+', '+'}};
            expression_write(list->text[list->count++], &e);
        }
    }
}

static void split_judge(const struct Task *task, struct Reward *reward,
                        const struct Completion *completion, int count) {
    (void)task;
    for (int i = 0; i < count; i++) {
        const struct Completion *c = &completion[i];
        struct Expression e;
        int target = split_target(c->example->prompt.bytes);
        reward[i] = right_or_wrong(c->ended && target != 0 &&
                                   expression_read(&e, c->text, c->length) &&
                                   e.operator[0] == '+' && e.operator[1] == '+' &&
                                   expression_value(&e) == target);
    }
}

static bool split_demonstrate(const struct Task *task, struct Text *answer,
                              const struct Example *example, struct Rng *rng) {
    (void)task;
    struct AnswerList list;
    split_answers(&list, example->prompt.bytes);
    return answers_pick(answer, &list, rng);
}

static int split_count(const struct Task *task, const struct Example *example) {
    (void)task;
    struct AnswerList list;
    split_answers(&list, example->prompt.bytes);
    return list.count;
}

/* ---- tasks with one right answer: smoke tests ----------------------------------------------- */

typedef bool Demonstrate(const struct Task *task, struct Text *answer,
                         const struct Example *example, struct Rng *rng);

/* Reward 1 for exactly the answer that `demonstrate` gives, else 0. These tasks' demonstrate
   functions use neither task nor rng, so NULL is given. */
static void judge_by_demonstration(struct Reward *reward, const struct Completion *completion,
                                   int count, Demonstrate *demonstrate) {
    struct Text right = {0};
    for (int i = 0; i < count; i++) {
        const struct Completion *c = &completion[i];
        text_clear(&right);
        reward[i] = right_or_wrong(c->ended && demonstrate(NULL, &right, c->example, NULL) &&
                                   c->length == right.length &&
                                   memcmp(c->text, right.bytes, c->length) == 0);
    }
    text_free(&right);
}

static int count_demonstration(const struct Example *example, Demonstrate *demonstrate) {
    struct Text answer = {0};
    int count = demonstrate(NULL, &answer, example, NULL);
    text_free(&answer);
    return count;
}

/* addition: `47+85=` -> `132`, two-digit numbers */

static void addition_next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    for (int i = 0; i < 2; i++) {
        int tens = draw_digit(rng), ones = (int)rng_below(rng, 10);
        text_format(&example->prompt, "%d%d%c", tens, ones, "+="[i]);
    }
}

static bool addition_demonstrate(const struct Task *task, struct Text *answer,
                                 const struct Example *example, struct Rng *rng) {
    (void)task, (void)rng;
    const char *prompt = example->prompt.bytes;
    int sum = 0;
    if (strlen(prompt) != 6 || prompt[2] != '+' || prompt[5] != '=') return false;
    for (int i = 0; i < 2; i++) {
        if (!is_nonzero_digit(prompt[3 * i]) || !is_digit(prompt[3 * i + 1])) return false;
        sum += 10 * (prompt[3 * i] - '0') + prompt[3 * i + 1] - '0';
    }
    text_format(answer, "%d", sum);
    return true;
}

static void addition_judge(const struct Task *task, struct Reward *reward,
                           const struct Completion *completion, int count) {
    (void)task;
    judge_by_demonstration(reward, completion, count, addition_demonstrate);
}

static int addition_count(const struct Task *task, const struct Example *example) {
    (void)task;
    return count_demonstration(example, addition_demonstrate);
}

/* reverse: `abcd=` -> `dcba`, 4 to 6 letters a-h */

static void reverse_next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    int length = 4 + (int)rng_below(rng, 3);
    for (int i = 0; i < length; i++)
        text_format(&example->prompt, "%c", 'a' + (int)rng_below(rng, 8));
    text_append(&example->prompt, "=", 1);
}

static bool reverse_demonstrate(const struct Task *task, struct Text *answer,
                                const struct Example *example, struct Rng *rng) {
    (void)task, (void)rng;
    const char *prompt = example->prompt.bytes;
    size_t length = strlen(prompt);
    if (length < 5 || length > 7 || prompt[length - 1] != '=') return false;
    length--;
    for (size_t i = 0; i < length; i++)
        if (prompt[i] < 'a' || prompt[i] > 'h') return false;
    while (length-- > 0) text_append(answer, prompt + length, 1);
    return true;
}

static void reverse_judge(const struct Task *task, struct Reward *reward,
                          const struct Completion *completion, int count) {
    (void)task;
    judge_by_demonstration(reward, completion, count, reverse_demonstrate);
}

static int reverse_count(const struct Task *task, const struct Example *example) {
    (void)task;
    return count_demonstration(example, reverse_demonstrate);
}

/* ---- the table ------------------------------------------------------------------------------ */

/* max_completion is 5/4 of the longest right answer with its end-of-text, because the soft overlong
   penalty applies to lengths in the last fifth and must not reach a right answer. Prompt and
   completion together fit into a context of 16 tokens. */
static const struct Task countdown_task = {
    .name = "countdown",
    .help = "357:22= to an expression using each digit once, with + - *: 3*5+7",
    .alphabet = shared_alphabet, .max_prompt = 7, .max_completion = 8,
    .next = countdown_next, .judge = countdown_judge, .demonstrate = countdown_demonstrate,
    .count_answers = countdown_count};
static const struct Task countdown_sorted_task = {
    .name = "countdown_sorted", .help = "countdown whose first operand must be the smallest digit",
    .alphabet = shared_alphabet, .max_prompt = 7, .max_completion = 8,
    .next = sorted_next, .judge = sorted_judge, .demonstrate = sorted_demonstrate,
    .count_answers = sorted_count, .held_out_like = "countdown"};
static const struct Task split_task = {
    .name = "split", .help = "17= to three digits 1-9 that sum to it: 9+3+5",
    .alphabet = shared_alphabet, .max_prompt = 3, .max_completion = 8,
    .next = split_next, .judge = split_judge, .demonstrate = split_demonstrate,
    .count_answers = split_count};
static const struct Task addition_task = {
    .name = "addition", .help = "47+85= to the sum: 132",
    .alphabet = shared_alphabet, .max_prompt = 6, .max_completion = 5,
    .next = addition_next, .judge = addition_judge, .demonstrate = addition_demonstrate,
    .count_answers = addition_count};
static const struct Task reverse_task = {
    .name = "reverse", .help = "abcd= to the letters in reverse: dcba",
    .alphabet = shared_alphabet, .max_prompt = 7, .max_completion = 9,
    .next = reverse_next, .judge = reverse_judge, .demonstrate = reverse_demonstrate,
    .count_answers = reverse_count};

/* Tasks that have a file of their own: each has a declaration here and its name in the table. */
extern const struct Task sort_task;          /* example.c */
extern const struct Task calculator_task;    /* calculator.c */
extern const struct Task address_book_task;  /* address_book.c */

static const struct Task *const tasks[] = {
    &countdown_task, &countdown_sorted_task, &split_task, &addition_task, &reverse_task,
    &sort_task, &calculator_task, &address_book_task,
};
enum { NUM_TASKS = sizeof tasks / sizeof *tasks };

const struct Task *task_row(int i) { return i >= 0 && i < NUM_TASKS ? tasks[i] : NULL; }

const struct Task *task_find(const char *name) {
    for (int i = 0; i < NUM_TASKS; i++)
        if (strcmp(tasks[i]->name, name) == 0) return tasks[i];
    return NULL;
}

const char *task_names(void) {
    static struct Text names;
    text_clear(&names);
    for (int i = 0; i < NUM_TASKS; i++) text_format(&names, "%s%s", i ? " " : "", tasks[i]->name);
    return names.bytes;
}
