/* --replay FILE: the completions of an earlier run's rollouts.jsonl are used in place of sampled
   ones. Two runs that replay the same file learn from the same tokens, so a difference between them
   (on another backend, element type or machine) comes from arithmetic alone, and not from a token
   that was drawn differently. */
#ifndef LLMC_REPLAY_H
#define LLMC_REPLAY_H

#include <stdbool.h>
#include "sampler.h"
#include "../tasks/task.h"

struct Replay;

/* Ends the program if the file cannot be opened or is a directory, with the message and exit code
   of lines_open. Owned by the caller; replay_close. */
struct Replay *replay_open(const char *path);
/* Fills `out` with the completions of step `step`, as if the request had been sampled; `example`
   [num_prompts] are its prompts. The log-probabilities and entropies are those in the file. Steps
   must be asked for in increasing order; lines of earlier steps are skipped. Returns false, from
   then on always, if the file does not have this step: it has ended, it has other prompts or fewer
   completions, it has tokens that this request could not have drawn (not in [0, V), more than
   max_tokens, or after end-of-text), or it cannot be read. The caller then saves the run and stops;
   the next two functions say why. */
bool replay_rollout(struct Replay *replay, int64_t step, const struct RolloutRequest *request,
                    const struct Example *example, int V, struct Rollout *out);
/* Why replay_rollout returned false: one sentence with the file's name and, where there is one, the
   line. NULL if it has not returned false, or replay is NULL. */
const char *replay_problem(const struct Replay *replay);
/* True if the reason is only that the file has ended after at least one whole step, which is not an
   error. */
bool replay_ended(const struct Replay *replay);
/* Ends the program with that sentence: exit code 1 if the machine failed to read, else 2. */
_Noreturn void replay_fail(const struct Replay *replay);
void replay_close(struct Replay *replay);

#endif
