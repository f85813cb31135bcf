/* Tasks: where prompts and rewards come from. A task is a struct Task: its function next draws an
   example, judge computes rewards from completions, and demonstrate (optional) gives a right answer
   for the warm start. Training and evaluation both use it through examples.h.

   To add one: copy example.c, change its functions, and add its line to the table at the end of
   builtin.c. A file of prompts needs no C at all (--data). The built-in tasks share an alphabet of
   ASCII characters:

       countdown         357:22=  ->  3*5+7    three digits once each, with + - * (about 4 answers)
       countdown_sorted  357:22=  ->  3*5+7    the first operand must be the smallest digit
       split             17=      ->  9+3+5    three digits 1-9; 1 to 61 answers
       addition          47+85=   ->  132      one answer
       reverse           abcd=    ->  dcba     one answer
       sort              dbca=    ->  abcd     one answer; the example to copy

   The built-in tasks give a reward in [0, 1] for any bytes a completion may hold, in time linear in
   its length. They compute the value of an expression only after it was parsed as one. */
#ifndef LLMC_TASK_H
#define LLMC_TASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "../base/rng.h"
#include "../base/text.h"
#include "encode.h"

/* One prompt, for training or held out, with all that its completions are judged by. The built-in
   tasks need only the prompt's text. Texts have any length; their memory is the struct's and reused
   by the next draw (example_free). Zero-initialise before first use. */
struct Example {
    uint64_t id;              /* the ordinal with which example_draw drew it (examples.h) */
    struct Text prompt;
    struct Ids ids;           /* the prompt's tokens where its text alone does not say them (a chat
                                 form, begin-of-text); none: those of the text */
    struct Text answer;       /* reference answer; bytes NULL or empty: there is none */
    struct Text metadata;     /* what else is known of it, one JSON object; likewise */
};

/* One completion of an example, as judge is given it: not to be changed. The text may hold any
   bytes and have any length. */
struct Completion {
    const struct Example *example;
    const char *text;         /* [length], then a zero byte; without the end-of-text token */
    size_t length;
    bool ended;               /* true: it ends with end-of-text; false: cut at the longest length */
    int tokens;               /* how many it has, the one that ends it included */
};

/* What a completion is worth. */
struct Reward {
    float value;              /* NaN: unscored; left out of all means, and gives no gradient */
    bool right;               /* what pass@k counts */
};

/* Rows to learn from in a supervised step: prompts with right answers, conversations, plain text.
   Zero-initialise; lesson_free. */
struct Lesson {
    struct Ids ids;           /* one row behind the other */
    struct Text loss;         /* [ids.count] a byte each: 1 where the token is learnt; never at the
                                 first of a row, which nothing comes before */
    struct Ids end;           /* [rows] where each row ends */
};
void lesson_free(struct Lesson *lesson);

/* A task. Its functions get the task itself, so that one that is made at run time has its state
   behind it. */
struct Task {
    const char *name, *help;
    const char *alphabet;     /* characters that prompts and answers use, in id order */
    int max_prompt;           /* tokens of the longest prompt (here: characters) */
    int max_completion;       /* tokens, the end-of-text token included */
    /* Appends to example->prompt, which is empty, a prompt that has at least one right answer;
       example->id is set. All randomness comes from rng, so that the same id gives the same
       example. */
    void (*next)(const struct Task *task, struct Example *example, struct Rng *rng);
    /* reward [count] =, of completion [count]. Must not fail on any text. */
    void (*judge)(const struct Task *task, struct Reward *reward,
                  const struct Completion *completion, int count);
    /* Appends to `answer`, which is empty, a random right answer, drawn uniformly from those of the
       form that `help` shows. Returns false if there is none. NULL: the task has no demonstrations,
       and so no warm start. */
    bool (*demonstrate)(const struct Task *task, struct Text *answer,
                        const struct Example *example, struct Rng *rng);
    /* How many different right answers of that form the example has: the most that distinct_correct
       can reach. NULL: not known. */
    int (*count_answers)(const struct Task *task, const struct Example *example);
    /* The name of a task with prompts of the same form, whose split into training and held-out
       prompts is used here too; NULL: this task's own. */
    const char *held_out_like;

    /* The rest is for tasks that are made at run time and have their examples (a file of prompts);
       the others leave it 0. */
    void *state;
    /* In place of next: sets example number `ordinal` of its kind, whose texts are empty and whose
       id is set. The task itself decides what is held out: the first num_held_out of purpose
       RNG_EVAL_PROMPT. */
    void (*draw)(const struct Task *task, struct Example *example, uint64_t seed,
                 enum RngPurpose purpose, uint64_t ordinal);
    int num_held_out;         /* 0: none, and nothing is evaluated */
    /* Rows whose loss an evaluation measures in a supervised run; NULL: none. */
    const struct Lesson *held_out_lessons;
    /* Was the last judge cut short, because the program is asked to stop? Then its rewards are not
       to be used. NULL: never. */
    bool (*interrupted)(const struct Task *task);
    /* In place of demonstrate: appends the rows of lesson number `ordinal`. NULL: it has none. */
    void (*teach)(const struct Task *task, struct Lesson *lesson, uint64_t seed, uint64_t ordinal);
};

/* Does the task have demonstrations, or lessons in their place? */
static inline bool task_demonstrates(const struct Task *task) {
    return task->demonstrate || task->teach;
}

/* The alphabet of all built-in tasks. It is the same for all, so that a model that was trained on
   one task can be trained on another. */
extern const char shared_alphabet[];

/* The task called `name`, or NULL. task_names: all names, space-separated, for messages. */
const struct Task *task_find(const char *name);
const char *task_names(void);
/* Task i of the table, or NULL for i past the end; for tests of every task. */
const struct Task *task_row(int i);

#endif
