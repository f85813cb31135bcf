/* The tokens that end a text. A model may have several: what its config.json and
   generation_config.json name, the tokenizer's end-of-text, and where prompts have a chat form, the
   token that ends a turn. */
#ifndef LLMC_ENDS_H
#define LLMC_ENDS_H

#include <stdbool.h>

enum { MOST_ENDS = 16 };

/* Zero-initialise: none, and every completion goes on to its longest. */
struct Ends {
    int id[MOST_ENDS];
    int count;
};

static inline bool ends_has(const struct Ends *ends, int id) {
    for (int i = 0; i < ends->count; i++)
        if (ends->id[i] == id) return true;
    return false;
}

/* Adds an id that is not there yet; false: there is no room for it. */
static inline bool ends_add(struct Ends *ends, int id) {
    if (ends_has(ends, id)) return true;
    if (ends->count == MOST_ENDS) return false;
    ends->id[ends->count++] = id;
    return true;
}

#endif
