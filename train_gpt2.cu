/* policy.c: reinforcement learning of language models in plain C and CUDA, with the policy's
   entropy measured exactly and controlled. This file is the training loop. One step of it:

     a prompt is drawn (llmc/tasks) -> the sampler completes it and notes each token's
     log-probability (rl/sampler) -> the task gives a reward (llmc/tasks) -> rewards become
     advantages (rl/objectives) -> the model computes hidden states (transformer, through ops.h) ->
     the head computes each token's log-probability and entropy, without storing the logits
     (kernels/head) -> the objective gives the loss coefficients (rl/surrogates) -> the head and the
     model compute gradients -> AdamW updates the weights (rl/trainer). In each step the entropy is
     compared with its target and logged, and the controller changes its variable (rl/entropy).

   This file is C, despite its name, and the C compiler compiles it. Kernels are in llmc/kernels
   (X.c for the CPU, X.cu for CUDA); the loop is the same for both. Functions stand in the order in
   which they are called, the caller before the called. doc/tour.md walks through this file. */
#include <math.h>
#include <stdlib.h>
#include <sys/resource.h>
#include "llmc/base/check.h"
#include "llmc/base/console.h"
#include "llmc/base/json.h"
#include "llmc/base/time.h"
#include "llmc/rl/monitor.h"
#include "llmc/rl/schedule.h"
#include "llmc/run/launch.h"
#include "llmc/run/session.h"

static void train(struct Session *s);
static void evaluate_only(struct Session *s);
static bool is_warm(const struct Session *s);
static void warm_step(struct Session *s);
static void supervised_step(struct Session *s);
static bool is_at_border(const struct Session *s);
static void begin_phase(struct Session *s);
static bool make_step(struct Session *s);
static bool step(struct Session *s);
static bool collect(struct Session *s);
static void update(struct Session *s, struct StepReport *report);
static void score_old(struct Session *s, struct TrainingSet *set, int *order,
                      struct StepReport *report);
static void score_reference(struct Session *s, struct TrainingSet *set, int *order);
static void learn(struct Session *s, const struct TrainingSet *set, const int *pick, int count,
                  struct StepReport *report);
static void monitor(struct Session *s, struct StepReport *report);
static void evaluate_earlier_tasks(struct Session *s);
static void say_how_it_ended(const struct Session *s, bool moved);
static void count_skipped(struct Session *s, const struct UpdateResult *update, int64_t step);
static float learning_rate(const struct Session *s);
static bool stops(const struct Session *s);
static bool due(int64_t step, int64_t every);
static struct CommCounts comm_since(const struct Session *s, struct CommCounts before);
static double peak_host_memory_gb(void);

int main(int argc, char **argv) {
    struct Session session;
    launch_prepare(argv);
    json_memory(malloc);   /* cJSON ends the program when an allocation fails, as our code does */
    launch_ignore_size_limit();
    struct Ranks ranks = ranks_begin(argc, argv);   /* with --gpus or --ranks starts this again */
    session_open(&session, &ranks, argc, argv);
    if (session.options.score[0]) session_score(&session);
    else if (session.options.eval_only) evaluate_only(&session);
    else train(&session);
    session_close(&session);
    console_end(session.options.eval_only);   /* --score has a check of its own */
    return 0;
}

/* First the warm start: supervised steps, from which the policy learns the form of an answer. Then
   steps of policy gradient, on one task after another. */
static void train(struct Session *s) {
    int64_t begun = s->progress.warm_step + s->progress.step;
    while (!is_warm(s) && !stops(s)) {
        warm_step(s);
        if (due(s->progress.warm_step, s->options.save_every)) session_save(s);
    }
    while (s->progress.step < s->plan.steps && !stops(s)) {
        if (is_at_border(s)) begin_phase(s);
        if (make_step(s) && due(s->progress.step, s->options.save_every)) session_save(s);
    }
    if (s->progress.step == s->plan.steps) evaluate_earlier_tasks(s);
    bool moved = s->progress.warm_step + s->progress.step > begun;
    if (moved || !s->place.resumed) session_save(s);
    report_summary(&s->report, s->progress.step);
    say_how_it_ended(s, moved);
}

/* Makes one step, of the kind that the run is of. */
static bool make_step(struct Session *s) {
    if (!s->plan.supervised) return step(s);
    supervised_step(s);
    return true;
}

/* ---- one step of policy gradient ------------------------------------------------------------- */

/* Makes one step and reports it. Returns false, and the step was not made, if the replayed file
   (--replay) had no completions left for it, or if the program is asked to stop while the user's
   scorer is still at work. */
static bool step(struct Session *s) {
    const struct Options *o = &s->options;
    struct Evaluation evaluation;
    struct CommCounts communicated = comm_since(s, (struct CommCounts){0});
    struct StepReport report = {.step = s->progress.step + 1, .total_steps = s->plan.steps,
                                .task = s->task->name, .experience = &s->experience,
                                .entropy = &s->entropy, .converses = task_converses(s->task),
                                .has_reference = s->reference.data != NULL};
    double begin = seconds();
    world_step(&s->world, report.step);
    struct ScorerCounts scorer = scorer_counts(s->scorer);
    if (!collect(s)) return false;
    if (due(report.step, o->attention_entropy_every)) trainer_watch_attention(s->trainer);
    update(s, &report);
    monitor(s, &report);
    s->progress.step++;
    report.seconds_step = seconds() - begin;
    report.num_tokens = s->progress.num_tokens;
    report.loss_scale = trainer_progress(s->trainer).loss_scale;
    report.train_flops = report.train_tokens * model_flops_per_token(s->model, s->shape.max_T);
    report.host_memory_gb = peak_host_memory_gb();
    report.device_memory_gb = s->ops->device[0] ? (double)s->arena.total / (1 << 30) : NAN;
    bool ends_phase = s->progress.step == s->plan.phases[s->progress.phases_begun - 1].end;
    if (due(s->progress.step, o->eval_every) || (o->eval_every && ends_phase)) {
        evaluation = session_evaluate(s, s->task);
        if (!evaluation.interrupted) report.evaluation = &evaluation;
    }
    scorer = scorer_counts_since(s->scorer, &scorer);
    if (s->scorer) report.scorer = &scorer;
    report.ranks = world_size(&s->world);
    report.comm = comm_since(s, communicated);
    report_step(&s->report, &report);
    return true;
}

/* Fills s->experience: prompts, completions, rewards, advantages. Then the entropy controller sees
   the rollout's entropy. Returns false, with nothing changed, if there are no completions or no
   rewards for this step (see step). */
static bool collect(struct Session *s) {
    struct Experience *e = &s->experience;
    struct CollectOptions options = session_collect_options(s);
    sampler_load_weights(s->sampler, trainer_weights(s->trainer));
    if (!experience_collect(e, s->sampler, trainer_weights(s->trainer), &options,
                            &s->progress.group_ordinal, trainer_workspace(s->trainer)))
        return false;
    session_dump_hidden(s);
    struct RewardBatch rewards = experience_rewards(e, s->max_tokens);
    objective_advantages(&s->objective, &rewards, e->advantage, e->active);
    const char *warning = entropy_update(&s->entropy,
                                         e->sum_entropy / (double)e->generated_tokens);
    if (warning) warn("%s", warning);
    if (entropy_controls[s->objective.control].measures_change) {
        double tokens, sum = monitor_repo_d(s->trainer, e, (float)s->options.temperature, &tokens);
        entropy_set_repo_d(&s->entropy, sum, tokens);
    }
    return true;
}

/* --epochs passes over the completions. Each pass shuffles them with the run's seed and makes one
   update on each of --minibatches parts. */
static void update(struct Session *s, struct StepReport *report) {
    const struct Options *o = &s->options;
    struct TrainingSet set = experience_training_set(&s->experience);
    int *order = check_alloc((size_t)set.count + 1, sizeof *order, "minibatches");
    double begin = seconds();
    score_old(s, &set, order, report);
    score_reference(s, &set, order);
    report->seconds_logprob = seconds() - begin;
    for (int64_t epoch = 0; epoch < o->epochs; epoch++) {
        struct Rng rng;
        rng_open(&rng, (uint64_t)o->seed, RNG_MINIBATCH,
                 (uint64_t)(s->progress.step * o->epochs + epoch));
        for (int i = 0; i < set.count; i++) order[i] = i;
        rng_shuffle(&rng, order, set.count);
        for (int64_t m = 0; m < o->minibatches; m++) {
            int64_t first = m * set.count / o->minibatches;
            int64_t last = (m + 1) * set.count / o->minibatches;
            learn(s, &set, order + first, (int)(last - first), report);
        }
    }
    report->seconds_update = seconds() - begin - report->seconds_logprob;
    free(order);
}

/* Where s->scores_old is set (--old-logp), computes the old policy's log-probabilities with the
   training pass and uses them in place of those noted when sampling. With 16-bit elements the two
   passes round differently; with the sampled ones the first update's ratio would not be 1, and
   tokens would be clipped only because of rounding. The difference of the two is reported. */
static void score_old(struct Session *s, struct TrainingSet *set, int *order,
                      struct StepReport *report) {
    struct Experience *e = &s->experience;
    struct HeadStats out = {.logp = e->logp_scored};
    int tokens = e->loss_start[e->count];
    if (!s->scores_old || tokens == 0) return;
    for (int i = 0; i < set->count; i++) order[i] = i;
    trainer_score(s->trainer, trainer_weights(s->trainer), set, order, set->count,
                  (float)s->options.temperature, &out);
    for (int t = 0; t < tokens; t++) {
        double difference = fabs((double)e->logp_scored[t] - e->logp[t]);
        report->logp_difference_mean += difference / tokens;
        report->logp_difference_max = fmax(report->logp_difference_max, difference);
    }
    set->logp_old = e->logp_scored;
}

/* Log-probabilities under the frozen reference model. There is one only where the objective has a
   KL term. */
static void score_reference(struct Session *s, struct TrainingSet *set, int *order) {
    if (!s->reference.data) return;
    struct HeadStats out = {.logp = s->experience.logp_ref};
    for (int i = 0; i < set->count; i++) order[i] = i;
    trainer_score(s->trainer, &s->reference, set, order, set->count,
                  (float)s->options.temperature, &out);
    set->logp_ref = s->experience.logp_ref;
}

/* One optimizer step on the completions listed in pick. */
static void learn(struct Session *s, const struct TrainingSet *set, const int *pick, int count,
                  struct StepReport *report) {
    const struct Options *o = &s->options;
    struct ObjectiveStats stats = {0};
    bool unmoved = report->updates == report->skipped;   /* no update yet changed the weights that
                                                            sampled this rollout */
    struct ObjectiveBatch batch = {.control = s->entropy.control,
                                   .noise = unmoved ? INFINITY : report->noise,
                                   .logp_dtype = o->logp_dtype,
                                   .seed = (uint64_t)o->seed,
                                   .ordinal = (uint64_t)s->progress.update_ordinal++};
    float rate = learning_rate(s);
    struct UpdateResult update =
        trainer_update(s->trainer, &s->objective, set, pick, count, &batch, s->max_tokens,
                       (float)o->temperature, rate, &stats);
    if (!update.made) return;   /* every token was dropped by the filter or the overlong mask */
    count_skipped(s, &update, report->step);
    report->skipped += update.skipped;
    report->overflows += update.overflows;
    if (unmoved) report->noise = (float)fmax(report->noise, stats.old_difference_max);
    bool first = report->updates++ == 0;
    if (first && stats.tokens > 0 && !s->scores_old) {
        report->logp_difference_mean = stats.old_difference / stats.tokens;
        report->logp_difference_max = stats.old_difference_max;
    }
    objective_stats_add(&report->stats, &stats);
    report->learning_rate = rate;
    report->grad_norm += (update.grad_norm - report->grad_norm) / report->updates;
    report->slowest += (update.slowest - report->slowest) / report->updates;
    report->train_tokens += (double)update.tokens;
    s->progress.num_tokens += update.tokens;
}

/* Diagnostics after the updates: the change of entropy as measured on some of the tokens, which is
   logged beside the predicted change (--entropy-push-tokens), and the entropy of each attention
   head (--attention-entropy-every). */
static void monitor(struct Session *s, struct StepReport *report) {
    const struct Options *o = &s->options;
    double begin = seconds();
    report->push_measured = NAN;
    if (o->entropy_push_tokens)
        report->push_measured = monitor_entropy_push(
            s->trainer, &s->experience, (float)o->temperature, o->entropy_push_tokens);
    if (due(report->step, o->attention_entropy_every)) {
        report->attention_entropy = trainer_attention_entropy(s->trainer);
        report->layers = s->model->config.L, report->heads = s->model->config.NH;
    }
    report->seconds_monitor = seconds() - begin;
}

/* ---- before and after the steps -------------------------------------------------------------- */

/* One update on `count` right answers, by the path that policy gradient takes: the objective "ce"
   is cross entropy. */
static struct UpdateResult learn_answers(struct Session *s, int count, float rate,
                                         struct ObjectiveStats *stats) {
    const struct Objective *ce = objective_find("ce");
    struct CollectOptions collect = session_collect_options(s);
    struct ObjectiveBatch batch = {.logp_dtype = "fp32"};
    experience_demonstrate(&s->experience, &collect, count, &s->progress.demonstration_ordinal);
    struct TrainingSet set = experience_training_set(&s->experience);
    int *pick = check_alloc((size_t)set.count + 1, sizeof *pick, "a batch");
    set.logp_old = NULL;
    for (int i = 0; i < set.count; i++) pick[i] = i;
    struct UpdateResult update = trainer_update(s->trainer, ce, &set, pick, set.count, &batch,
                                                s->max_tokens, 1, rate, stats);
    s->progress.num_tokens += update.tokens;
    free(pick);
    return update;
}

/* One supervised step on --warm-batch right answers. */
static void warm_step(struct Session *s) {
    const struct Options *o = &s->options;
    struct ObjectiveStats stats = {0};
    double begin = seconds();
    world_step(&s->world, s->progress.warm_step + 1);
    struct UpdateResult update = learn_answers(s, (int)o->warm_batch, (float)o->warm_lr, &stats);
    s->progress.warm_step++;
    count_skipped(s, &update, s->progress.warm_step);
    report_warm(&s->report, &(struct WarmReport){
        .step = s->progress.warm_step, .total_steps = o->warm_start, .loss = stats.loss,
        .entropy = stats.tokens > 0 ? stats.entropy / stats.tokens : NAN,
        .grad_norm = update.grad_norm,
        .learning_rate = o->warm_lr, .seconds = seconds() - begin});
}

/* One step of a run that is supervised (--objective ce --data): on --prompts lines of the file. */
static void supervised_step(struct Session *s) {
    const struct Options *o = &s->options;
    struct ObjectiveStats stats = {0};
    struct Evaluation evaluation;
    double begin = seconds();
    float rate = learning_rate(s);
    world_step(&s->world, s->progress.step + 1);
    struct UpdateResult update = learn_answers(s, (int)o->prompts, rate, &stats);
    count_skipped(s, &update, s->progress.step + 1);
    s->progress.step++;
    struct WarmReport report = {
        .step = s->progress.step, .total_steps = s->plan.steps, .loss = stats.loss,
        .entropy = stats.tokens > 0 ? stats.entropy / stats.tokens : NAN,
        .grad_norm = update.grad_norm, .learning_rate = rate, .seconds = seconds() - begin};
    bool last = s->progress.step == s->plan.steps;
    bool evaluates = due(s->progress.step, o->eval_every) || (o->eval_every && last);
    if (evaluates) evaluation = session_evaluate(s, s->task);
    report_supervised(&s->report, &report, s->task->name, s->progress.num_tokens,
                      evaluates && !evaluation.interrupted ? &evaluation : NULL);
}

/* Called before the first step on a task. Resets the optimizer's moments and the entropy
   controller, makes the present weights the reference, and evaluates. The weights are those that
   the warm start left, or the task before this one. */
static void begin_phase(struct Session *s) {
    int phase = (int)s->progress.phases_begun;
    if (phase > 0) session_save(s);   /* so a resume of this task starts from the weights that are
                                         its reference, and no older ones are kept */
    s->task = s->plan.phases[phase].task;
    session_note_task(s);
    trainer_reset_optimizer(s->trainer);
    entropy_open(&s->entropy, &s->entropy_options);
    session_freeze_reference(s);
    s->progress.phases_begun = phase + 1;
    s->progress.phase_begin = s->plan.phases[phase].begin;
    if (!s->options.eval_every) return;
    struct Evaluation evaluation = session_evaluate(s, s->task);
    char text[256];
    if (evaluation.interrupted) return;
    report_evaluation(&s->report, s->task->name, s->progress.step, "phase_start", phase,
                      &evaluation);
    report_describe_evaluation(&evaluation, text, sizeof text);
    say("%s before %s: held-out %s", s->task->name,
        s->plan.supervised ? "training" : "RL", text);
    if (phase == 0 && !s->plan.supervised)
        say("(a policy gradient's loss is near 0 by construction: watch reward, entropy, pass@k)");
}

/* After the last task: evaluates every earlier task again, to show how much was forgotten. */
static void evaluate_earlier_tasks(struct Session *s) {
    for (int i = 0; i + 1 < s->plan.num_phases && s->options.eval_every; i++) {
        const struct Task *task = s->plan.phases[i].task;
        struct Evaluation evaluation = session_evaluate(s, task);
        char text[256];
        report_evaluation(&s->report, task->name, s->progress.step, "after_all", i, &evaluation);
        report_describe_evaluation(&evaluation, text, sizeof text);
        say("%s after all: held-out %s", task->name, text);
    }
}

/* Says why the run stopped and how to continue it. If the replayed file had a mistake, the program
   ends here with that error; the checkpoint has been written by then. */
static void say_how_it_ended(const struct Session *s, bool moved) {
    const char *problem = replay_problem(s->replay);
    if (problem && !replay_ended(s->replay)) replay_fail(s->replay);
    if (s->progress.step < s->plan.steps || !is_warm(s))
        say("stopped after step %lld%s%s; go on with: ./train --resume %s",
            (long long)s->progress.step, problem ? ": " : "", problem ? problem : "",
            s->place.run);
    else if (!moved && s->place.resumed)
        say("this run is finished, at step %lld of %lld: --steps N goes on with it, and %s",
            (long long)s->progress.step, (long long)s->plan.steps,
            "--eval-only measures it");
}

/* --eval-only: evaluates the policy on every task of the plan and changes nothing. */
static void evaluate_only(struct Session *s) {
    for (int i = 0; i < s->plan.num_phases; i++) {
        const struct Task *task = s->plan.phases[i].task;
        struct Evaluation evaluation = session_evaluate(s, task);
        char text[256];
        report_describe_evaluation(&evaluation, text, sizeof text);
        say_result("%s held-out: %s", task->name, text);
    }
}

/* ---- small parts ----------------------------------------------------------------------------- */

/* An update whose loss or gradient was not finite changed no weight. After three of them in a row
   the run is given up: session_fail saves what is needed to look into it, and ends the program. */
static void count_skipped(struct Session *s, const struct UpdateResult *update, int64_t step) {
    if (!update->skipped) {
        s->progress.skipped_in_a_row = 0;
        return;
    }
    warn("step %lld: update skipped, %s is not finite", (long long)step, update->bad_tensor);
    if (++s->progress.skipped_in_a_row >= 3) session_fail(s, update->bad_tensor);
}

static bool is_warm(const struct Session *s) {
    return s->progress.warm_step >= s->options.warm_start || s->progress.step > 0;
}

static bool is_at_border(const struct Session *s) {
    int64_t next = s->progress.phases_begun;
    return next < s->plan.num_phases && s->progress.step == s->plan.phases[next].begin;
}

/* --lr as its schedule has it at the step in hand. */
static float learning_rate(const struct Session *s) {
    const struct Options *o = &s->options;
    struct Schedule schedule = {o->lr_schedule, (float)o->lr, o->lr_min_ratio, o->lr_warmup,
                                s->plan.steps};
    return schedule_rate(&schedule, s->progress.step);
}

/* True if a signal asks the program to stop, or the replayed file is at its end or is wrong, on any
   rank. */
static bool stops(const struct Session *s) {
    return world_any(&s->world, launch_stop_requested() || replay_problem(s->replay));
}

static bool due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

/* What this rank has communicated since `before`; nothing if it is the only one. */
static struct CommCounts comm_since(const struct Session *s, struct CommCounts before) {
    struct CommCounts now = {0};
    if (world_size(&s->world) == 1) return now;
    s->ops->comm_counts(&now);
    return (struct CommCounts){now.calls - before.calls, now.bytes - before.bytes,
                               now.seconds - before.seconds, now.exposed - before.exposed};
}

static double peak_host_memory_gb(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss / (1 << 20);
}
