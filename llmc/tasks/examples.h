/* Batches of examples. Training and evaluation both get their prompts and their rewards from a task
   through these functions.

       examples_draw     task -> examples, their prompts as text and as ids
       (the sampler)     prompts -> completions
       examples_judge    completions -> texts -> rewards */
#ifndef LLMC_EXAMPLES_H
#define LLMC_EXAMPLES_H

#include "environment.h"
#include "task.h"
#include "../io/tokenizer.h"

/* Draws example number `ordinal` into *example (owned by the caller; memory it has is reused).
   purpose: RNG_PROMPT and RNG_DEMONSTRATION give prompts for training, RNG_EVAL_PROMPT held-out
   prompts. Whether a prompt is held out is decided by a hash of its text and the seed; about 1 in 8
   is. Prompts are drawn until one is of the kind wanted. So a held-out prompt never occurs in
   training, neither in this task nor in one with prompts of the same form (Task.held_out_like). The
   same digits in another order are a different text. In tasks with few prompts an evaluation may
   have the same held-out prompt more than once. Ends the program (die_input) if the task has too
   few different prompts for both kinds. A task that has its examples (Task.draw) decides all this
   itself. */
void example_draw(struct Example *example, const struct Task *task, uint64_t seed,
                  enum RngPurpose purpose, uint64_t ordinal);
void example_free(struct Example *example);

/* `count` examples, with their prompts as the sampler reads them. The struct owns its arrays;
   examples_free. */
struct Examples {
    const struct Task *task;
    const struct Tokenizer *tokenizer;
    int count;
    struct Example *example;   /* [count] */
    struct Ids ids;            /* of all prompts */
    int *start;                /* those of prompt i: ids.id[start[i]] to ids.id[start[i + 1] - 1] */
    uint32_t *ordinal;         /* [count] low 32 bits of the id, for the keys of random draws */
};

/* Draws examples number first, first + 1, ..., first + count - 1 (example_draw). Ends the program
   (die_input) if the vocabulary has no ids for a prompt. */
struct Examples examples_draw(const struct Task *task, const struct Tokenizer *tokenizer,
                              uint64_t seed, enum RngPurpose purpose, uint64_t first, int count);
/* Completions as the sampler left them. The ids of completion i are token[start[i]] to
   token[start[i + 1] - 1]. */
struct Completed {
    const int *token, *start;
    const unsigned char *ended;
    const struct Exchange *exchange;   /* [count], or NULL: no environment said anything */
};
/* Judges `group` completions of each example. Completion i answers example i / group. reward
   [count * group] =; NaN: unscored, also where the task's reward is infinite. text: becomes the
   completions' texts, without special tokens such as the end of text. turns: NULL, or becomes their
   turns (exchange_json) where the task has an environment, else empty texts. False: the judge was
   interrupted (Task.interrupted), and the rewards are not to be used. */
bool examples_judge(struct Reward *reward, struct TextList *text, struct TextList *turns,
                    const struct Examples *examples, int group, const struct Completed *completed);
void examples_free(struct Examples *examples);

/* Appends the ids of a task's text. Ends the program (die_input) if the vocabulary has no ids for
   it. */
void encode_text(const struct Tokenizer *tokenizer, const struct Text *text, struct Ids *ids);

#endif
