/* A reward from a program of the user's (--scorer), in any language. It is run by /bin/sh -c,
   several times side by side; each process reads items from its standard input and writes rewards
   to its standard output, a JSON object a line:

       in    {"id": 7, "prompt": "2+2=", "completion": "4", "ended": true, "answer": "4",
              "metadata": {}}
       out   {"id": 7, "reward": 1.0}          or null: no reward, the completion stays unscored

   in any order. "ended" is false where the completion was cut at the longest length. "answer" is
   null where an example has none. A completion's bytes that are not UTF-8 come as U+FFFD.
   doc/data.md has the protocol with its limits for users.

   Nothing that the program does ends a run or blocks it for long. A process that ends, closes its
   output, floods it, or leaves an item without an answer for the time limit is killed with all its
   children and started again; its items are asked again, one at a time. An item whose process was
   lost twice, or that was answered wrongly twice, stays unscored (NaN), as does the rest of a batch
   in which nothing but losses comes. Lines that are no answers are counted, and the first of each
   kind is shown. Rewards depend neither on the number of processes nor on the order of answers. */
#ifndef LLMC_SCORER_H
#define LLMC_SCORER_H

#include <stdbool.h>
#include <stdint.h>
#include "task.h"

struct ScorerOptions {
    const char *command;      /* must live as long as the scorer */
    int workers;              /* processes, 1 to PROCESS_LIMIT */
    double timeout;           /* seconds that an item may take */
    double start;             /* seconds more that the first of all answers may take */
    bool (*stops)(void);      /* is the program asked to stop? May be NULL */
};

/* What happened since the start. */
struct ScorerCounts {
    int64_t items;            /* asked for */
    int64_t unscored;         /* of them without a reward: null, or failed */
    int64_t failed;           /* of those the ones without a valid answer */
    int64_t restarts;         /* processes that were started again */
    int64_t bad_lines;        /* lines that are no answer, or a wrong one */
};

struct Scorer;   /* opaque */

/* Starts nothing yet. scorer_close ends the processes: it closes their input, and kills after a
   second what is still there. NULL is fine for it. */
struct Scorer *scorer_open(const struct ScorerOptions *options);
void scorer_close(struct Scorer *scorer);

/* Starts the processes and asks each for `example` with an empty completion, so that mistakes are
   found at start: ends the program (die_input) if the command cannot be run, or ends again and
   again before it has answered. The reward is not used; no answer in time, or a wrong one, is a
   warning. It also measures how long a process needs from its start to its first answer, which is
   allowed for when one is started again. */
void scorer_try(struct Scorer *scorer, const struct Example *example);

/* reward [count] =, of completion [count]; NaN: unscored. Those that are judged already are not
   asked for again. Ends a batch that scorer_begin began. */
void scorer_score(struct Scorer *scorer, float *reward, const struct Completion *completion,
                  int count);
/* An environment: completions are asked for one by one, while others are in the making. The program
   may answer {"id": 7, "continue": "text", "role": "tool"} in place of a reward. scorer_begin
   begins a batch, unless one has begun; scorer_score ends it. scorer_ask takes what it needs of the
   completion and does not wait. scorer_answer is Task.answer; to be called often, for it does all
   the reading and writing: time in which it is not called does not count towards an item's
   limit. */
void scorer_begin(struct Scorer *scorer);
void scorer_ask(struct Scorer *scorer, const struct Completion *completion, int number);
bool scorer_answer(struct Scorer *scorer, struct Answer *answer, bool wait);

/* Was the last scorer_score cut short because the program is asked to stop? Then its rewards are
   not to be used. */
bool scorer_interrupted(const struct Scorer *scorer);
/* The most seconds that `items` may take: each is asked twice for its time limit, of a process that
   has just been started. */
double scorer_within(const struct Scorer *scorer, int64_t items);
struct ScorerCounts scorer_counts(const struct Scorer *scorer);   /* NULL: zeros */
/* What happened since they were `before`. */
struct ScorerCounts scorer_counts_since(const struct Scorer *scorer,
                                        const struct ScorerCounts *before);

#endif
