/* One line of a data file: a JSON object and what of it is a prompt, an answer, a completion. Keys
   are tolerant: the first of a list that is there (and not null) is taken.

       prompt      prompt  input  question  problem  messages       text, or messages
       answer      answer  label  ground_truth  solution  reward_model.ground_truth
       completion  completion  response             what supervised learning teaches; text, or one
                                                    message
       text        text                             plain text to learn

   Messages are a list of {"role": ..., "content": ...} with texts. All other keys are metadata. */
#ifndef LLMC_RECORD_H
#define LLMC_RECORD_H

#include <cjson/cJSON.h>
#include "../base/text.h"

/* A conversation: turn i has role i and content i. */
struct Turns {
    struct TextList role, content;
};
void turns_add(struct Turns *turns, const char *role, const char *content, size_t length);
void turns_clear(struct Turns *turns);
void turns_free(struct Turns *turns);

/* Zero-initialise before first use; record_read reuses it, record_free frees it. */
struct Record {
    struct Text line;
    cJSON *json;                 /* its object */
    const cJSON *prompt, *answer, *completion, *text;   /* members, or NULL */
    const cJSON *completion_text;   /* the completion's content, where it is a message */
    struct Turns turns;          /* the prompt's messages; none: it is a text */
};

/* Reads a line [length]; what follows points into the record. NULL, or what is wrong with the line:
   a predicate ("is not JSON") in static storage. No member need be there. */
const char *record_read(struct Record *record, const char *line, size_t length);
void record_free(struct Record *record);

/* A value by its name, nested by dots, lists by number (`a.b`, `nums.0`); a key that has the dots
   itself goes first. NULL: there is none, or it is null. */
const cJSON *record_find(const struct Record *record, const char *name);
/* Appends a value as text: a string's characters; anything else as it stands in the line. */
void record_text(struct Text *out, const struct Record *record, const cJSON *value);
/* Appends the JSON object of all members that are neither prompt, answer nor completion, as they
   stand in the line. */
void record_metadata(struct Text *out, const struct Record *record);
/* The names of its members, for messages: "question, answer". */
void record_keys(struct Text *out, const struct Record *record);

#endif
