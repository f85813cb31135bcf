/* Batches of examples: the one way from a task to prompts, and from completions to rewards, in
   training and in evaluation.

       examples_draw     task -> examples, their prompts as text and as ids
       (the sampler)     prompts -> completions
       examples_judge    completions -> texts -> rewards */
#ifndef LLMC_EXAMPLES_H
#define LLMC_EXAMPLES_H

#include "task.h"
#include "../io/tokenizer.h"

/* Example number `ordinal` of a kind, into *example (owned by the caller; what it held is reused).
   purpose: RNG_PROMPT and RNG_DEMONSTRATION give prompts for training, RNG_EVAL_PROMPT held-out
   ones. A hash of the prompt's text and the seed decides its side, about 1 in 8 is held out, and it
   redraws until the side is right: so a held-out prompt never occurs in training, in this task or
   in another with prompts of the same form. (The same digits in another order are another text.)
   Held-out prompts of one evaluation may repeat in tiny tasks. die_input if a task has too few
   prompts for two sides. */
void example_draw(struct Example *example, const struct Task *task, uint64_t seed,
                  enum RngPurpose purpose, uint64_t ordinal);
void example_free(struct Example *example);

/* `count` examples and their prompts as the sampler wants them. Owned; examples_free. */
struct Examples {
    const struct Task *task;
    const struct Tokenizer *tokenizer;
    int count;
    struct Example *example;   /* [count] */
    int *token, *start;        /* ids of prompt i: token[start[i]] to token[start[i + 1] - 1] */
    uint32_t *ordinal;         /* [count] low bits of the id: what samples are keyed by */
};

/* Numbers first, first + 1, ... of a kind. die_input if the vocabulary has no ids for a prompt. */
struct Examples examples_draw(const struct Task *task, const struct Tokenizer *tokenizer,
                              uint64_t seed, enum RngPurpose purpose, uint64_t first, int count);
/* Judges `group` completions of each example: number i answers example i / group, its ids are token
   [start[i]] to [start[i + 1] - 1]. reward [count * group], NaN = unscored (a reward that is not
   finite is none); text becomes the completions' texts, without end-of-text. */
void examples_judge(float *reward, struct TextList *text, const struct Examples *examples,
                    int group, const int *token, const int *start, const unsigned char *ended);
void examples_free(struct Examples *examples);

/* Appends the ids of `text` at *ids, which grows to `begin` + its length; returns where they end.
   die_input if the vocabulary has no ids for it. */
int encode_text(const struct Tokenizer *tokenizer, const struct Text *text, int **ids, int begin);

#endif
