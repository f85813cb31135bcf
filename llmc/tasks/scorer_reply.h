/* One line that a scorer wrote: what it says, for which item. */
#ifndef LLMC_SCORER_REPLY_H
#define LLMC_SCORER_REPLY_H

#include <stddef.h>
#include <stdint.h>

enum ReplyKind {
    REPLY_REWARD,       /* a reward: a finite number (true and false are 1 and 0) */
    REPLY_NONE,         /* null: the item stays unscored */
    REPLY_CONTINUE,     /* a text, "continue", behind which the model is to go on */
    /* The rest are faults, most of them lines that are nothing of the protocol. */
    REPLY_NOT_JSON,     /* no JSON object (a line that print left there, say) */
    REPLY_NO_ID,        /* an object without an id that could be ours */
    REPLY_NO_REWARD,    /* an id without a reward, or with one that is no finite number */
    REPLY_KINDS
};

struct Reply {
    enum ReplyKind kind;
    int64_t id;         /* where there is one, that is not for NOT_JSON and NO_ID; never negative */
    float reward;       /* NaN unless kind is REWARD */
    const char *role;   /* CONTINUE: "user" or "tool" */
    const char *text;   /* CONTINUE: UTF-8, in static storage that the next call uses again */
    size_t length;
};

/* Reads a line [length], without its end; any bytes. Takes time and memory linear in its length. */
struct Reply scorer_reply(const char *line, size_t length);

#endif
