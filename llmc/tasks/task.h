/* Tasks: where prompts and rewards come from. A task is one row, a struct Task: next draws an
   example, judge turns completions into rewards, demonstrate (optional) gives a right answer for
   the warm start. Training and evaluation use it alike, through examples.h.

   To add one: copy example.c, change its functions, and add its line to the table at the end of
   builtin.c. The built-in tasks share an alphabet of ASCII characters:

       countdown         357:22=  ->  3*5+7    three digits once each, with + - * (about 4 answers)
       countdown_sorted  357:22=  ->  3*5+7    the first operand must be the smallest digit
       split             17=      ->  9+3+5    three digits 1-9; 1 to 61 answers
       addition          47+85=   ->  132      one answer
       reverse           abcd=    ->  dcba     one answer
       sort              dbca=    ->  abcd     one answer; the example to copy

   Rewards of built-in tasks are bounded and total: any bytes in, a number in [0, 1] out, in time
   linear in the length. Nothing is evaluated that was not parsed first. */
#ifndef LLMC_TASK_H
#define LLMC_TASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "../base/rng.h"
#include "../base/text.h"

/* One prompt, for training or held out, with what its completions are judged by. What a task needs
   beyond the prompt's text (a reference answer, metadata, ids of its own) becomes a field here, set
   by next and read by judge; the built-in tasks read everything off the prompt. */
struct Example {
    uint64_t id;              /* which draw of its kind it is: see example_draw */
    struct Text prompt;
};

/* One completion of an example. Only read; the text holds any bytes, of any length. */
struct Completion {
    const struct Example *example;
    const char *text;         /* [length] and a zero; without the end-of-text token */
    size_t length;
    bool ended;               /* with end-of-text; else it was cut at the longest length */
};

struct Task {
    const char *name, *help;
    const char *alphabet;     /* characters that prompts and answers use, in id order */
    int max_prompt;           /* characters of the longest prompt */
    int max_completion;       /* tokens, the end-of-text token included */
    /* Appends to example->prompt (empty, id set) one prompt that has at least one right answer. All
       randomness is rng's, so that the same id gives the same example. */
    void (*next)(struct Example *example, struct Rng *rng);
    /* reward [count]: 1 is right (what pass@k counts), NaN unscored: it is left out of every mean
       and taught nothing from. Must not fail, whatever the text. */
    void (*judge)(float *reward, const struct Completion *completion, int count);
    /* Appends a random right answer to `answer` (empty), uniform over those of the task's
       documented form; false if there is none. NULL: the task has no demonstrations, and no warm
       start. */
    bool (*demonstrate)(struct Text *answer, const struct Example *example, struct Rng *rng);
    /* How many different answers of the demonstrated form are right: the attainable diversity.
       NULL: nobody knows. */
    int (*count_answers)(const struct Example *example);
    /* The task whose held-out prompts are held out here too, because prompts have the same form;
       NULL: its own. */
    const char *held_out_like;
};

/* The built-in tasks' alphabet, one for all, so that a model trained on one can go on with
   another. */
extern const char shared_alphabet[];

/* The row called `name`, or NULL. task_names: space-separated, for messages. */
const struct Task *task_find(const char *name);
const char *task_names(void);
/* Row i of the table, or NULL past the end: tests visit every row. */
const struct Task *task_row(int i);

#endif
