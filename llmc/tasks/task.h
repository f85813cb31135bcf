/* Tasks: where prompts and rewards come from. A task is a row of a table: an alphabet, the longest
   prompt and answer, and four functions. All text is ASCII of the alphabet, which the built-in
   tasks share. Adding one: a row of tasks[] and its functions.

       countdown         357:22=  ->  3*5+7    three digits once each, with + - * (about 4 answers)
       countdown_sorted  357:22=  ->  3*5+7    the first operand must be the smallest digit
       split             17=      ->  9+3+5    three digits 1-9; 1 to 61 answers
       addition          47+85=   ->  132      one answer
       reverse           abcd=    ->  dcba     one answer

   Rewards are bounded and total: any bytes in, a number in [0, 1] out, in time linear in the
   length. Nothing is evaluated that was not parsed first. */
#ifndef LLMC_TASK_H
#define LLMC_TASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "../base/rng.h"

#define TASK_TEXT 64   /* bytes that hold any prompt or answer of a built-in task, with its 0 */

struct Task {
    const char *name, *help;
    const char *alphabet;     /* characters that prompts and answers use, in id order */
    int max_prompt;           /* characters */
    int max_completion;       /* tokens, the end-of-text token included */
    /* Draws one prompt that has at least one right answer. */
    void (*draw_prompt)(char prompt[TASK_TEXT], struct Rng *rng);
    /* A random correct answer, uniform over the right answers of the prompt (up to the task's
       documented form); false if there is none. */
    bool (*demonstrate)(char answer[TASK_TEXT], const char *prompt, struct Rng *rng);
    /* 1 right, 0 wrong. `answer` holds any `length` bytes; `ended`: the completion ended with
       end-of-text (else it was cut: 0). */
    float (*reward)(const char *prompt, const char *answer, size_t length, bool ended);
    /* How many different answers of the demonstrated form are right: the attainable diversity. */
    int (*count_answers)(const char *prompt);
    /* The task whose held-out prompts are held out here too, because prompts have the same form; NULL:
       its own. */
    const char *held_out_like;
};

/* The row called `name`, or NULL. tasks_names: space-separated, for messages. */
const struct Task *task_find(const char *name);
const char *task_names(void);
/* Row i of the table, or NULL past the end: tests visit every row. */
const struct Task *task_row(int i);

enum TaskSplit { SPLIT_TRAIN, SPLIT_HELD_OUT };

/* Prompt number `ordinal` of a split. A hash of the prompt's text and the seed decides its side,
   about 1 in 8 is held out, and it redraws until the side is right: so a held-out prompt never
   occurs in training, in this task or in another with prompts of the same form. (The same digits in
   another order are another text.) Held-out prompts of one evaluation may repeat in tiny tasks. purpose: RNG_PROMPT, RNG_DEMONSTRATION or
   RNG_EVAL_PROMPT. */
void task_prompt(const struct Task *task, char prompt[TASK_TEXT], uint64_t seed,
                 enum RngPurpose purpose, uint64_t ordinal, enum TaskSplit split);

#endif
