/* How large a session's batches are, and the plan of its memory (arena.h). */
#ifndef LLMC_MEMORY_H
#define LLMC_MEMORY_H

#include "session.h"

/* The longest prompt, and the longest completion, over all tasks of the session, in tokens; the
   latter with rollouts of at most max_tokens (0: as long as a task's longest). */
int memory_longest_prompt(const struct Session *session);
int memory_longest_completion(const struct Session *session, int max_tokens);
/* Prompts of an evaluation: no more than a file has. */
int memory_evaluated_prompts(const struct Session *session, const struct Task *task);
/* Pages of the cache at which no row ever waits for one. */
int memory_most_pages(const struct Session *session);

/* Sets session->shape (without R), decode_rows and max_tokens as the options want them. die_input
   if a sequence does not fit the model's context. */
void memory_sizes(struct Session *session);
/* Reserves by these sizes, and by smaller ones until the plan fits. Fewer decode rows never change
   a result, smaller micro-batches only its rounding. die_machine if the smallest does not fit. */
void memory_plan(struct Session *session);
/* Frees what memory_plan has reserved. */
void memory_release(struct Session *session);

#endif
