/* What a run logs and prints: RUN/metrics.jsonl (one flat object per step, the field's usual keys,
   see doc/formats.md), RUN/warm_start.jsonl, RUN/rollouts.jsonl, the console's table and summary.
   */
#ifndef LLMC_REPORT_H
#define LLMC_REPORT_H

#include "../rl/entropy.h"
#include "../rl/evaluate.h"
#include "../rl/experience.h"
#include "../checkpoint.h"
#include "../ops.h"
#include "../io/jsonl.h"
#include "../io/tensorboard.h"
#include "../tasks/scorer.h"

/* One RL step. Pointers are only read during the call. */
struct StepReport {
    int64_t step, total_steps;         /* step counts from 1; 0 = before the first */
    const char *task;
    struct ObjectiveStats stats;       /* summed over the step's updates */
    int updates, skipped, overflows;
    double loss_scale;                 /* fp16's, after the step; 1 elsewhere */
    double grad_norm, learning_rate;   /* mean over updates; of the last */
    int64_t num_tokens;                /* trained on since the start */
    double logp_difference_mean, logp_difference_max;  /* |scored - sampled| at the 1st update */
    float noise;                       /* largest |l - l_old| before it: rounding, not learning */
    const struct Experience *experience;
    const struct EntropyState *entropy;
    double seconds_step, seconds_logprob, seconds_update, seconds_monitor;
    double train_tokens, train_flops;  /* of this step */
    double host_memory_gb;             /* 2^30 bytes, the most so far */
    double device_memory_gb;           /* 2^30 bytes, the memory plan's total, without what CUDA and
                                          its libraries take; NaN: the backend is the CPU */
    bool has_reference;
    double push_measured;              /* NaN: not measured */
    const double *attention_entropy;   /* [layers * heads], or NULL */
    int layers, heads;
    const struct Evaluation *evaluation;   /* NULL: not evaluated at this step */
    bool converses;                        /* the task has an environment */
    const struct ScorerCounts *scorer;     /* of this step with its evaluation; NULL: none */
    int ranks;                             /* 0 or 1: nothing of the following is logged */
    struct CommCounts comm;                /* what rank 0 communicated in the step, with its
                                              evaluation: the difference of two comm_counts */
    double slowest;                        /* tokens of the rank that learns from most over the
                                              ranks' mean, mean over updates; 0: no update */
};

/* One supervised step: of the warm start, or of a run with the objective ce. */
struct WarmReport {
    int64_t step, total_steps;
    double loss, entropy, grad_norm, learning_rate, seconds;
};

struct Report {
    struct Jsonl metrics, warm, rollouts, attention;
    struct TensorBoard board;
    int64_t step;                          /* of the line being written */
    int64_t rollouts_every;                /* steps; 0 = none */
    bool header_said;
    double *attention_start;               /* [layers * heads] of the first measured step */
    bool attention_warned;
    struct Evaluation first, last;         /* for the summary */
    bool evaluated;
    double first_entropy, last_entropy, first_reward, last_reward;
    bool supervised;                       /* then in place of the rewards: */
    double first_loss, last_loss;
    double seconds_per_step;               /* smoothed, for the time left */
    double started;
    int64_t first_step, phase_step;        /* first of this process; of the phase in hand */
    char run[4096];
};

/* Opens the logs for appending, after removing the lines past what `state` has done: a resumed run
   logs no step twice. A report that was zero-initialised and is not opened, as that of every rank
   but 0, is silent: none of the functions below does anything with it. */
void report_open(struct Report *report, const char *run, int64_t rollouts_every,
                 const struct Progress *state);
void report_warm(struct Report *report, const struct WarmReport *warm);
/* A step of a run that is supervised: into metrics.jsonl. evaluation NULL: there was none. */
void report_supervised(struct Report *report, const struct WarmReport *supervised,
                       const char *task, int64_t num_tokens, const struct Evaluation *evaluation);
/* An evaluation outside a step: "phase_start", before the first step of phase number `phase`, or
   "after_all", at the end, of a task learnt earlier. */
void report_evaluation(struct Report *report, const char *task, int64_t step, const char *when,
                       int phase, const struct Evaluation *evaluation);
void report_step(struct Report *report, const struct StepReport *step);
/* The table's line for a person: pass@k etc. in words. */
void report_describe_evaluation(const struct Evaluation *evaluation, char *out, int capacity);
void report_summary(struct Report *report, int64_t steps_done);
/* Every line so far is on the disk when this returns. A log that was removed or replaced under the
   run is said, and goes on in a new file; its earlier lines are lost. */
void report_sync(struct Report *report);
void report_close(struct Report *report);

#endif
