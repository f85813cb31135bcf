/* Measurements that need a scoring pass of the network: the measured entropy push, which is logged
   beside the predicted one, and REPO-D's D. */
#ifndef LLMC_MONITOR_H
#define LLMC_MONITOR_H

#include "experience.h"
#include "trainer.h"

/* The sum for REPO-D over a rollout batch (entropy_repo_d_sum), from a scoring pass with the
   present weights. *tokens: how many tokens it is over. */
double monitor_repo_d(struct Trainer *trainer, const struct Experience *experience,
                      float temperature, double *tokens);

/* The measured entropy push: how much the mean entropy on some of the rollout's tokens changed
   since they were sampled, in nats. The tokens are those of whole completions, spread evenly over
   the batch: at most max_tokens tokens (-1: 2 % of all), but at least one completion. NaN if there
   are no completions. */
double monitor_entropy_push(struct Trainer *trainer, const struct Experience *experience,
                            float temperature, int64_t max_tokens);

#endif
