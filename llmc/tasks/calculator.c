/* calculator: `38*47+29=` -> 1815, with a calculator that the model may call. A turn that ends with
   an equals sign is a call, of two numbers and + - or *; any other turn is the answer:

       model  38*47=      calculator  1786
       model  1786+29=    calculator  1815
       model  1815

   A call that it cannot read is answered `:`. Multiplying is too much for a small model, so what it
   has to learn is to call, and to copy what it is told. */
#include <stdlib.h>
#include <string.h>
#include "task.h"

/* Reads a number of 1 to 6 digits, with a minus before it where that may be; NULL: there is none.
   Returns where it ends. */
static const char *read_number(long *value, const char *at, const char *end, bool may_be_negative) {
    long sign = 1;
    int digits = 0;
    if (may_be_negative && at < end && *at == '-') sign = -1, at++;
    for (*value = 0; at < end && *at >= '0' && *at <= '9' && digits < 7; at++, digits++)
        *value = 10 * *value + (*at - '0');
    *value *= sign;
    return digits >= 1 && digits <= 6 ? at : NULL;
}

/* The value of "a*b", "a+b" or "a-b", exactly so; false: it is none of these. */
static bool calculate(long *value, const char *text, size_t length) {
    const char *end = text + length, *at;
    long a, b;
    at = read_number(&a, text, end, true);
    if (!at || at == end) return false;
    char sign = *at;
    at = read_number(&b, at + 1, end, false);
    if (at != end) return false;
    *value = sign == '*' ? a * b : sign == '+' ? a + b : a - b;
    return sign == '*' || sign == '+' || sign == '-';
}

/* `38*47+29=` */
static void next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    int number[3];
    for (int i = 0; i < 3; i++) number[i] = 10 + (int)rng_below(rng, 90);
    text_format(&example->prompt, "%d*%d%c%d=", number[0], number[1], "+-"[rng_below(rng, 2)],
                number[2]);
}

/* The prompt's parts; false: it is none of this task's. */
static bool read_prompt(long number[3], char *sign, const struct Text *prompt) {
    if (prompt->length != 9 || prompt->bytes[2] != '*' || prompt->bytes[8] != '=') return false;
    *sign = prompt->bytes[5];
    for (int i = 0; i < 3; i++) number[i] = strtol(prompt->bytes + 3 * i, NULL, 10);
    return *sign == '+' || *sign == '-';
}

static bool is_call(const struct Turn *turn) {
    return turn->length > 0 && turn->text[turn->length - 1] == '=';
}

static bool reply(const struct Task *task, struct Text *text, const struct Completion *c) {
    const struct Turn *turn = &c->turn[c->num_turns - 1];
    long value;
    (void)task;
    if (!is_call(turn)) return false;
    if (calculate(&value, turn->text, turn->length - 1)) text_format(text, "%ld", value);
    else text_append(text, ":", 1);
    return true;
}

static bool is_right(const struct Completion *c) {
    const struct Turn *turn = &c->turn[c->num_turns - 1];
    long number[3];
    char sign, right[32];
    if (!c->ended || !read_prompt(number, &sign, &c->example->prompt)) return false;
    long product = number[0] * number[1];
    snprintf(right, sizeof right, "%ld", sign == '+' ? product + number[2] : product - number[2]);
    return turn->length == strlen(right) && memcmp(turn->text, right, turn->length) == 0;
}

static void judge(const struct Task *task, struct Reward *reward,
                  const struct Completion *completion, int count) {
    (void)task;
    for (int i = 0; i < count; i++) {
        bool right = is_right(&completion[i]);
        reward[i] = (struct Reward){.value = right, .right = right};
    }
}

/* The product, then the sum with what came, then what came. */
static bool demonstrate(const struct Task *task, struct Text *text, const struct Completion *so_far,
                        struct Rng *rng) {
    long number[3];
    char sign;
    (void)task, (void)rng;
    if (!read_prompt(number, &sign, &so_far->example->prompt)) return false;
    if (so_far->num_turns == 0) {
        text_format(text, "%ld*%ld=", number[0], number[1]);
        return true;
    }
    const struct Turn *told = &so_far->turn[so_far->num_turns - 1];
    text_append(text, told->text, told->length);
    if (so_far->num_turns == 2) text_format(text, "%c%ld=", sign, number[2]);
    return true;
}

/* max_completion: 38*47= 1786 1786+29= 1815 1815 with the ends of three turns, times 5/4 as
   elsewhere. */
const struct Task calculator_task = {
    .name = "calculator", .help = "38*47+29= to its value, with a calculator to call: 38*47=",
    .alphabet = shared_alphabet, .max_prompt = 9, .max_completion = 37, .max_turns = 4,
    .next = next, .judge = judge, .reply = reply, .demonstrate_turn = demonstrate};
