#include "task.h"

#include <string.h>

/* One alphabet for every task, so that a model trained on one can go on with another. */
static const char shared_alphabet[] = "0123456789+-*:=abcdefgh";

/* The different right answers of one prompt. 81 = 9 * 9: two free digits, the third follows. */
struct AnswerList {
    int count;
    char text[81][6];
};

static void answers_add(struct AnswerList *list, const char *text) {
    for (int i = 0; i < list->count; i++)
        if (strcmp(list->text[i], text) == 0) return;
    strcpy(list->text[list->count++], text);
}

static bool answers_pick(char answer[TASK_TEXT], const struct AnswerList *list, struct Rng *rng) {
    if (list->count == 0) return false;
    strcpy(answer, list->text[rng_below(rng, (uint32_t)list->count)]);
    return true;
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

/* Multiplication first, then from left to right: a sum of products, each with its sign. */
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

/* Draws a random expression until its value has two digits, so that the prompt has an answer, and
   shows its digits in random order. */
static void countdown_draw(char prompt[TASK_TEXT], struct Rng *rng, bool sorted) {
    struct Expression e;
    int value;
    do {
        for (int i = 0; i < 3; i++) e.operand[i] = draw_digit(rng);
        for (int i = 0; i < 2; i++) e.operator[i] = "+-*"[rng_below(rng, 3)];
        value = expression_value(&e);
    } while (value < 10 || value > 99 || (sorted && e.operand[0] != smallest(e.operand)));
    rng_shuffle(rng, e.operand, 3);
    for (int i = 0; i < 3; i++) prompt[i] = (char)('0' + e.operand[i]);
    prompt[3] = ':';
    prompt[4] = (char)('0' + value / 10);
    prompt[5] = (char)('0' + value % 10);
    strcpy(prompt + 6, "=");
}

/* All right answers: 6 orders of the digits times 9 pairs of operators, equal texts once. */
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

static float countdown_score(const char *prompt, const char *answer, size_t length, bool ended,
                             bool sorted) {
    struct Expression e;
    int digit[3], target, unused[10] = {0};
    if (!ended || !countdown_read(digit, &target, prompt)) return 0;
    if (!expression_read(&e, answer, length) || expression_value(&e) != target) return 0;
    for (int i = 0; i < 3; i++) unused[digit[i]]++;
    for (int i = 0; i < 3; i++)
        if (unused[e.operand[i]]-- == 0) return 0;
    return !sorted || e.operand[0] == smallest(digit);
}

static void countdown_draw_prompt(char prompt[TASK_TEXT], struct Rng *rng) {
    countdown_draw(prompt, rng, false);
}
static bool countdown_demonstrate(char answer[TASK_TEXT], const char *prompt, struct Rng *rng) {
    struct AnswerList list;
    countdown_answers(&list, prompt, false);
    return answers_pick(answer, &list, rng);
}
static float countdown_reward(const char *prompt, const char *answer, size_t length, bool ended) {
    return countdown_score(prompt, answer, length, ended, false);
}
static int countdown_count(const char *prompt) {
    struct AnswerList list;
    countdown_answers(&list, prompt, false);
    return list.count;
}

static void sorted_draw_prompt(char prompt[TASK_TEXT], struct Rng *rng) {
    countdown_draw(prompt, rng, true);
}
static bool sorted_demonstrate(char answer[TASK_TEXT], const char *prompt, struct Rng *rng) {
    struct AnswerList list;
    countdown_answers(&list, prompt, true);
    return answers_pick(answer, &list, rng);
}
static float sorted_reward(const char *prompt, const char *answer, size_t length, bool ended) {
    return countdown_score(prompt, answer, length, ended, true);
}
static int sorted_count(const char *prompt) {
    struct AnswerList list;
    countdown_answers(&list, prompt, true);
    return list.count;
}

/* ---- split: `17=` -> three digits 1-9 that sum to it, `9+3+5` ------------------------------- */

/* 3..27, or 0 if the prompt is not one of this task. */
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

static void split_draw_prompt(char prompt[TASK_TEXT], struct Rng *rng) {
    int target = 3 + (int)rng_below(rng, 25);
    char *end = prompt;
    if (target > 9) *end++ = (char)('0' + target / 10);
    *end++ = (char)('0' + target % 10);
    strcpy(end, "=");
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

static bool split_demonstrate(char answer[TASK_TEXT], const char *prompt, struct Rng *rng) {
    struct AnswerList list;
    split_answers(&list, prompt);
    return answers_pick(answer, &list, rng);
}

static float split_reward(const char *prompt, const char *answer, size_t length, bool ended) {
    struct Expression e;
    int target = split_target(prompt);
    if (!ended || target == 0 || !expression_read(&e, answer, length)) return 0;
    return e.operator[0] == '+' && e.operator[1] == '+' && expression_value(&e) == target;
}

static int split_count(const char *prompt) {
    struct AnswerList list;
    split_answers(&list, prompt);
    return list.count;
}

/* ---- tasks with one right answer: smoke tests ----------------------------------------------- */

/* 1 if `answer` is exactly the one that `demonstrate` gives (which draws nothing here). */
static float only_answer_reward(bool (*demonstrate)(char *, const char *, struct Rng *),
                                const char *prompt, const char *answer, size_t length,
                                bool ended) {
    char right[TASK_TEXT];
    if (!ended || !demonstrate(right, prompt, NULL)) return 0;
    return length == strlen(right) && memcmp(answer, right, length) == 0;
}

/* addition: `47+85=` -> `132`, two-digit numbers */

static void addition_draw_prompt(char prompt[TASK_TEXT], struct Rng *rng) {
    strcpy(prompt, "00+00=");
    for (int i = 0; i < 2; i++) {
        prompt[3 * i] = (char)('0' + draw_digit(rng));
        prompt[3 * i + 1] = (char)('0' + rng_below(rng, 10));
    }
}

static bool addition_demonstrate(char answer[TASK_TEXT], const char *prompt, struct Rng *rng) {
    (void)rng;
    int sum = 0;
    if (strlen(prompt) != 6 || prompt[2] != '+' || prompt[5] != '=') return false;
    for (int i = 0; i < 2; i++) {
        if (!is_nonzero_digit(prompt[3 * i]) || !is_digit(prompt[3 * i + 1])) return false;
        sum += 10 * (prompt[3 * i] - '0') + prompt[3 * i + 1] - '0';
    }
    if (sum > 99) *answer++ = '1';   /* at most 99 + 99 = 198 */
    *answer++ = (char)('0' + sum / 10 % 10);
    *answer++ = (char)('0' + sum % 10);
    *answer = 0;
    return true;
}

static float addition_reward(const char *prompt, const char *answer, size_t length, bool ended) {
    return only_answer_reward(addition_demonstrate, prompt, answer, length, ended);
}

static int addition_count(const char *prompt) {
    char answer[TASK_TEXT];
    return addition_demonstrate(answer, prompt, NULL);
}

/* reverse: `abcd=` -> `dcba`, 4 to 6 letters a-h */

static void reverse_draw_prompt(char prompt[TASK_TEXT], struct Rng *rng) {
    int length = 4 + (int)rng_below(rng, 3);
    for (int i = 0; i < length; i++) prompt[i] = (char)('a' + rng_below(rng, 8));
    strcpy(prompt + length, "=");
}

static bool reverse_demonstrate(char answer[TASK_TEXT], const char *prompt, struct Rng *rng) {
    (void)rng;
    size_t length = strlen(prompt);
    if (length < 5 || length > 7 || prompt[length - 1] != '=') return false;
    length--;
    for (size_t i = 0; i < length; i++) {
        if (prompt[i] < 'a' || prompt[i] > 'h') return false;
        answer[length - 1 - i] = prompt[i];
    }
    answer[length] = 0;
    return true;
}

static float reverse_reward(const char *prompt, const char *answer, size_t length, bool ended) {
    return only_answer_reward(reverse_demonstrate, prompt, answer, length, ended);
}

static int reverse_count(const char *prompt) {
    char answer[TASK_TEXT];
    return reverse_demonstrate(answer, prompt, NULL);
}

/* ---- the table ------------------------------------------------------------------------------ */

/* max_completion is 5/4 of the longest right answer with its end-of-text: the soft overlong penalty
   falls on the last fifth, and must not reach a right answer. A row fits a context of 16. */
static const struct Task tasks[] = {
    {"countdown", "357:22= to an expression using each digit once, with + - *: 3*5+7",
     shared_alphabet, 7, 8,
     countdown_draw_prompt, countdown_demonstrate, countdown_reward, countdown_count, NULL},
    {"countdown_sorted", "countdown whose first operand must be the smallest digit",
     shared_alphabet, 7, 8,
     sorted_draw_prompt, sorted_demonstrate, sorted_reward, sorted_count, "countdown"},
    {"split", "17= to three digits 1-9 that sum to it: 9+3+5",
     shared_alphabet, 3, 8,
     split_draw_prompt, split_demonstrate, split_reward, split_count, NULL},
    {"addition", "47+85= to the sum: 132",
     shared_alphabet, 6, 5,
     addition_draw_prompt, addition_demonstrate, addition_reward, addition_count, NULL},
    {"reverse", "abcd= to the letters in reverse: dcba",
     shared_alphabet, 7, 9,
     reverse_draw_prompt, reverse_demonstrate, reverse_reward, reverse_count, NULL},
};
enum { NUM_TASKS = sizeof tasks / sizeof tasks[0] };

const struct Task *task_row(int i) { return i >= 0 && i < NUM_TASKS ? &tasks[i] : NULL; }

const struct Task *task_find(const char *name) {
    for (int i = 0; i < NUM_TASKS; i++)
        if (strcmp(tasks[i].name, name) == 0) return &tasks[i];
    return NULL;
}

const char *task_names(void) {
    static char names[256];
    names[0] = 0;
    for (int i = 0; i < NUM_TASKS; i++) {
        if (i > 0) strcat(names, " ");
        strcat(names, tasks[i].name);
    }
    return names;
}

/* ---- the split into training and held-out prompts ------------------------------------------- */

/* splitmix64's output function (Steele, Lea, Flood 2014). */
static uint64_t mix64(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* Which of 8 classes a text belongs to. Texts are told apart as written: `357:22=` may be held out
   while `735:22=`, the same digits in another order, is trained on. */
static int text_class(const char *text, uint64_t seed) {
    uint64_t hash = mix64(seed + 0x9E3779B97F4A7C15u);
    for (; *text; text++) hash = mix64(hash + 0x9E3779B97F4A7C15u * (unsigned char)*text);
    return (int)(hash >> 61);
}

/* The class held out is that of one fixed draw of the seed, so that it is never empty, however few
   prompts a task has. */
void task_prompt(const struct Task *task, char prompt[TASK_TEXT], uint64_t seed,
                 enum RngPurpose purpose, uint64_t ordinal, enum TaskSplit split) {
    struct Rng rng;
    const struct Task *like = task->held_out_like ? task_find(task->held_out_like) : task;
    rng_open(&rng, seed, RNG_EVAL_PROMPT, 0);
    like->draw_prompt(prompt, &rng);
    int held_out = text_class(prompt, seed);

    rng_open(&rng, seed, purpose, ordinal);
    do task->draw_prompt(prompt, &rng);
    while ((text_class(prompt, seed) == held_out) != (split == SPLIT_HELD_OUT));
}
