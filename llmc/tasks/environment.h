/* Conversations: completions of several turns. When the model has ended a turn, the task's
   environment is asked; what it answers enters the context, and the model goes on:

       prompt | 38*47=. | 1786 | 1786+9=. | 1795 | 1795.        . ends a turn
                model     env.   model      env.   model

   The sampler asks, and decodes other rows until the answer comes. An environment's text is part of
   the completion and of its longest length, but was not drawn: it has no log-probability, no
   entropy and no loss. */
#ifndef LLMC_ENVIRONMENT_H
#define LLMC_ENVIRONMENT_H

#include "record.h"
#include "task.h"

struct Examples;

/* What the environment said in one completion. Zero-initialise; exchange_free. */
struct Exchange {
    struct Turns said;         /* roles and texts */
    struct Ids at;             /* text k stands at tokens [at.id[2k], at.id[2k + 1]) of the
                                  completion, its chat form included */
    bool judged;               /* it has judged the completion: */
    float score;               /* NaN: without a score, or it failed */
};
void exchange_clear(struct Exchange *exchange);
void exchange_free(struct Exchange *exchange);
void exchange_add(struct Exchange *exchange, const char *role, const char *text, size_t length,
                  int begin, int end);
/* How many tokens it said. NULL is fine for it: none. */
int exchange_tokens(const struct Exchange *exchange);
/* mask [count] = 1 for the tokens that the model drew, 0 for the environment's. Likewise. */
void exchange_mask(unsigned char *mask, int count, const struct Exchange *exchange);
/* Appends the turns as a JSON list: [{"role": "assistant", "content": "..", "tokens": 5}, ..];
   tokens: how many each has. */
struct TurnList;
void exchange_json(struct Text *out, const struct TurnList *turns, const struct Exchange *exchange,
                   int count);

/* The turns of a completion as texts. Zero-initialise; turn_list_free. */
struct TurnList {
    struct Turn *turn;         /* [count]; they point into `texts` and into the exchange */
    int count, capacity;
    struct TextList texts;     /* the model's */
    struct Text whole;         /* all of it */
};
void turn_list_free(struct TurnList *list);
/* Makes them of a completion's tokens [count]; ended: the last one ends it. */
void turn_list_make(struct TurnList *list, const struct Tokenizer *tokenizer, const int *token,
                    int count, bool ended, const struct Exchange *exchange);

struct Environment;            /* of one batch of completions; opaque */

/* `group` completions of each example; they must outlive it. environment_close frees; NULL is fine
   for it. NULL: the task has no environment. */
struct Environment *environment_open(const struct Examples *examples, int group);
void environment_close(struct Environment *environment);

/* The model has ended a turn of completion `number`, whose tokens [count] these are; not asked if
   it was the last that is allowed: false. */
bool environment_ask(struct Environment *environment, int number, const int *token, int count,
                     const struct Exchange *exchange);
/* An answer that has come; with `wait` it is waited for. False: there is none, with `wait` because
   nothing is asked. If it goes on, *ids is its text as it enters the context; both valid until the
   next call. */
bool environment_answer(struct Environment *environment, struct Answer *answer,
                        const struct Ids **ids, bool wait);

#endif
