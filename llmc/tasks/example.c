/* A complete task in fifty lines, to be copied. Prompt `dbca=`, four letters a-h, answer
   `abcd`, the same letters in order.

   A task of your own: copy this file, change the three functions and the row, and add the row's
   name to the table in builtin.c (two lines there). Then ./train --task NAME trains on it. */
#include <string.h>
#include "task.h"

enum { LETTERS = 4 };

/* A prompt: random letters and an equals sign. */
static void sort_next(const struct Task *task, struct Example *example, struct Rng *rng) {
    (void)task;
    for (int i = 0; i < LETTERS; i++)
        text_format(&example->prompt, "%c", 'a' + (int)rng_below(rng, 8));
    text_append(&example->prompt, "=", 1);
}

/* The right answer: all a's of the prompt, then all b's, and so on. There is only one, so rng is
   not used. */
static bool sort_demonstrate(const struct Task *task, struct Text *answer,
                             const struct Example *example, struct Rng *rng) {
    (void)task, (void)rng;
    for (char letter = 'a'; letter <= 'h'; letter++)
        for (int i = 0; i < LETTERS; i++)
            if (example->prompt.bytes[i] == letter) text_append(answer, &letter, 1);
    return true;
}

/* 1 for the right answer, else 0. A completion may hold any bytes and have any length, so its
   length is compared first. */
static void sort_judge(const struct Task *task, struct Reward *reward,
                       const struct Completion *completion, int count) {
    struct Text right = {0};
    for (int i = 0; i < count; i++) {
        const struct Completion *c = &completion[i];
        text_clear(&right);
        sort_demonstrate(task, &right, c->example, NULL);
        bool same = c->ended && c->length == right.length &&
                    memcmp(c->text, right.bytes, right.length) == 0;
        reward[i] = (struct Reward){.value = same, .right = same};
    }
    text_free(&right);
}

/* max_completion: the answer (4) and end-of-text (1), times 5/4, because the soft overlong penalty
   applies to the last fifth. */
const struct Task sort_task = {
    .name = "sort", .help = "dbca= to the letters in order: abcd", .alphabet = shared_alphabet,
    .max_prompt = LETTERS + 1, .max_completion = 7, .next = sort_next, .judge = sort_judge,
    .demonstrate = sort_demonstrate};
