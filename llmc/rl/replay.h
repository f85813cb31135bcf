/* --replay FILE: the completions of an earlier run's rollouts.jsonl in place of sampled ones. Two runs
   that replay the same file see the same tokens, so what still differs between them (another
   backend, dtype or machine) is arithmetic alone: no token drawn differently sends them apart. */
#ifndef LLMC_REPLAY_H
#define LLMC_REPLAY_H

#include "sampler.h"
#include "../tasks/task.h"

struct Replay;

/* die_input if the file cannot be opened. */
struct Replay *replay_open(const char *path);
/* The completions of step `step` as a rollout of `request`, whose prompts read `prompt`. Steps come in
   the file's order; earlier ones are passed over. die_input, naming the line, where the file has
   other prompts, fewer completions, or tokens this request could not have drawn (0 .. V - 1, at most
   max_tokens). The log-probabilities and entropies are the file's. */
void replay_rollout(struct Replay *replay, int64_t step, const struct RolloutRequest *request,
                    char (*prompt)[TASK_TEXT], int V, struct Rollout *out);
void replay_close(struct Replay *replay);

#endif
