/* Verifiers: rewards for completions of prompts from a file (--data), computed here. Each is a row
   of the table at the end of verify.c and gives a number, most of them 1 or 0; `--reward
   number:1,length:0.1` adds them up by weights. All take any bytes and end in bounded time.

   To add one: a function and its row in llmc/tasks/verify.c. */
#ifndef LLMC_VERIFY_H
#define LLMC_VERIFY_H

#include "scorer.h"
#include "task.h"

struct Verify;   /* the verifiers of a run with their weights; opaque */

/* What the verifiers read beside the completion. */
struct VerifyOptions {
    const char *regex;     /* `regex`: its pattern; "" = each example's answer is one */
    int max_tokens;        /* `length`: tokens of the longest completion */
    struct Scorer *scorer; /* `scorer`: the user's program, which must outlive it; NULL: none */
};

/* A verifier: either `one` or `all`. NaN: the completion cannot be judged (there is no reference
   answer, say), and stays unscored. */
struct Verifier {
    const char *name, *help;
    bool needs_answer;     /* an example without an answer is NaN, and never given to it */
    float (*one)(struct Verify *verify, const struct Completion *completion);
    /* score [count] =, of all completions at once. */
    void (*all)(struct Verify *verify, float *score, const struct Completion *completion,
                int count);
};

/* The verifiers that `list` names: NAME or NAME:WEIGHT (1), with commas between. NULL and one
   sentence in *problem (static storage) where it cannot be read. verify_close frees. */
struct Verify *verify_open(const char *list, const struct VerifyOptions *options,
                           const char **problem);
void verify_close(struct Verify *verify);
/* reward [count] =: value is the weighted sum, NaN where a score is; right where the verifier that
   was named first gives at least 1. */
void verify_judge(struct Verify *verify, struct Reward *reward,
                  const struct Completion *completion, int count);
/* Was the last verify_judge cut short, because the program is asked to stop? */
bool verify_interrupted(const struct Verify *verify);
/* Does any of them need reference answers? */
bool verify_needs_answers(const struct Verify *verify);
/* Row i of the table, or NULL past its end; all names, for messages. */
const struct Verifier *verifier_row(int i);
const char *verifier_names(void);
/* The name of the verifier that suits a reference answer: number, choice or exact. */
const char *verifier_for(const char *answer, size_t length);

#endif
