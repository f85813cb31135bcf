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
       calculator        38*47+29=             calls a calculator, in several turns
       address_book      ab:47=                calls that change a book which it does not see

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

/* A part of a completion of several turns: what the model said up to a token that ends a turn, or
   what the environment answered. */
struct Turn {
    const char *role;         /* "assistant": the model; "user" or "tool": the environment */
    const char *text;         /* [length], then a zero byte */
    size_t length;
};

/* One completion of an example, as judge is given it: not to be changed. The text may hold any
   bytes and have any length. */
struct Completion {
    const struct Example *example;
    const char *text;         /* [length], then a zero byte; without the end-of-text token. Of
                                 several turns: all their texts, one behind the other */
    size_t length;
    bool ended;               /* true: it ends with end-of-text; false: cut at the longest length */
    int tokens;               /* how many the model drew, the one that ends it included */
    /* Where the task has an environment: */
    const struct Turn *turn;  /* [num_turns], the model's first, then by turns */
    int num_turns;            /* 0: the task has one turn, and `text` is all there is */
    bool final;               /* it is over, and nothing can be answered any more */
    bool judged;              /* the environment has judged it already (struct Answer): */
    float score;              /* its score; NaN: it has none */
};

/* What an environment that takes time says about a completion: it goes on with a text, or is over
   with a score. */
struct Answer {
    int number;               /* of the completion, as it was asked */
    bool goes_on;
    const char *role;         /* goes_on: "user" or "tool" */
    const char *text;         /* goes_on: [length] */
    size_t length;
    bool judged;              /* else: whether it has a score, or judge is to give the reward */
    float score;              /* NaN: it has none, or the environment failed */
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

    /* An environment, with which the model talks in several turns: when it has ended one, `reply`
       appends to `text`, which is empty, what comes next in the context, and the model goes on
       behind it; or returns false, and the completion is over and goes to judge. It must be a
       function of the example and what was said so far; so a replayed or resumed run is the same.
       In the last turn and without room for a text it is not asked. NULL: there is none. */
    bool (*reply)(const struct Task *task, struct Text *text, const struct Completion *completion);
    int max_turns;            /* of the model; 0 and 1: there is no environment */
    /* In place of demonstrate: appends to `text`, which is empty, what a right completion says in
       its next turn, after what `so_far` has; at first that has no turns. Likewise false. */
    bool (*demonstrate_turn)(const struct Task *task, struct Text *text,
                             const struct Completion *so_far, struct Rng *rng);

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
    /* The most seconds that judge, and answers, may take for `count` completions; how long other
       ranks wait for this one. NULL: no time worth counting. */
    double (*judges_within)(const struct Task *task, int count);
    /* In place of demonstrate: appends the rows of lesson number `ordinal`. NULL: it has none. */
    void (*teach)(const struct Task *task, struct Lesson *lesson, uint64_t seed, uint64_t ordinal);
    /* In place of reply: the first asks about a completion, under a number of the caller's, and
       does not wait; the second gives an answer that has come, in any order, and with `wait` waits
       for one. False: there is none, with `wait` because nothing is asked. Its texts are valid
       until the next call. judge ends it: what was asked must be answered by then. */
    void (*ask)(const struct Task *task, const struct Completion *completion, int number);
    bool (*answer)(const struct Task *task, struct Answer *answer, bool wait);
    /* Appends an environment's text as it stands in the context, with what a chat form puts around
       it. False: the vocabulary has no ids for it. NULL: the text's own ids. */
    bool (*wrap)(const struct Task *task, struct Ids *ids, const char *role, const char *text,
                 size_t length);
};

/* Does the model talk with an environment? */
static inline bool task_converses(const struct Task *task) { return task->max_turns > 1; }

/* Does the task have demonstrations, or lessons in their place? */
static inline bool task_demonstrates(const struct Task *task) {
    return task->demonstrate || task->demonstrate_turn || task->teach;
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
