/* Monitors that need the network: what the logged predictions are compared with, and REPO-D's D. */
#ifndef LLMC_MONITOR_H
#define LLMC_MONITOR_H

#include "experience.h"
#include "trainer.h"

/* REPO-D's sum and token count over a rollout batch (entropy.h), from a scoring pass with the
   current weights. */
double monitor_repo_d(struct Trainer *trainer, const struct Experience *experience,
                      float temperature, double *tokens);

/* The measured entropy push: how the mean entropy on the same tokens changed since the rollout, in
   nats. The tokens are those of a fixed subset of whole completions, spread evenly, with at most
   max_tokens tokens but at least one completion; max_tokens -1: 2 % of them. NaN where there are no
   completions. */
double monitor_entropy_push(struct Trainer *trainer, const struct Experience *experience,
                            float temperature, int64_t max_tokens);

#endif
