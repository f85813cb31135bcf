/* --replay FILE: the completions of an earlier run's rollouts.jsonl in place of sampled ones. Two
   runs that replay the same file see the same tokens, so what still differs between them (another
   backend, dtype or machine) is arithmetic alone: no token drawn differently sends them apart. */
#ifndef LLMC_REPLAY_H
#define LLMC_REPLAY_H

#include <stdbool.h>
#include "sampler.h"
#include "../tasks/task.h"

struct Replay;

/* Ends as lines_open does if the file cannot be opened, or is a directory. */
struct Replay *replay_open(const char *path);
/* The completions of step `step` as a rollout of `request`, whose prompts are those of example
   [num_prompts]. Steps come in the file's order; earlier ones are passed over. The
   log-probabilities and entropies are the file's. False: the file does not give this step, now and
   at every later call. It has ended, other prompts, fewer completions, or tokens this request could
   not have drawn (0 .. V - 1, at most max_tokens, nothing behind end-of-text), or reading it
   failed. The caller then saves what it has and stops, by what the next two say. */
bool replay_rollout(struct Replay *replay, int64_t step, const struct RolloutRequest *request,
                    const struct Example *example, int V, struct Rollout *out);
/* Why replay_rollout gave false, in one sentence that names the file and the line; NULL if it has
   not (or there is no replay). */
const char *replay_problem(const struct Replay *replay);
/* Is the problem only that the file is over, after at least one whole step? Then the run has done
   what there was to do. */
bool replay_ended(const struct Replay *replay);
/* Ends the program with the problem: exit code 1 where reading failed, else 2. */
_Noreturn void replay_fail(const struct Replay *replay);
void replay_close(struct Replay *replay);

#endif
