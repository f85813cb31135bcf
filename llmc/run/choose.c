#include "choose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "launch.h"

/* ---- tasks ----------------------------------------------------------------------------------- */

static const struct Task *known_task(const char *option, const char *name) {
    const struct Task *task = task_find(name);
    if (!task) die_input("--%s %s: unknown task; known are %s", option, name, task_names());
    return task;
}

/* Ends the program: --tasks was given together with --task or --steps. Either may come from a
   config file (a resumed run's, say), so the message names what was not typed. */
static _Noreturn void die_of_two_plans(const struct Options *o) {
    bool one = options_on_line(o, "task") || options_on_line(o, "steps");
    if (one && !options_on_line(o, "tasks"))
        die_input("--tasks %s, from the config file, names the tasks and their steps; give --tasks "
                  "anew instead of --task and --steps", o->tasks);
    if (!one && options_on_line(o, "tasks"))
        die_input("--tasks %s: the config file names one --task, or its --steps; a run begun so "
                  "goes on with --steps, and --model RUN --tasks ... begins another from its "
                  "weights", o->tasks);
    die_input("--tasks names the tasks and their steps; leave out --task and --steps");
}

struct Scorer *choose_scorer(const struct Options *o, int threads) {
    static const char *const others[] = {"scorer-workers", "scorer-timeout", "max-turns"};
    for (int i = 0; i < 3 && !o->scorer[0]; i++)
        if (options_on_line(o, others[i])) die_input("--%s is for --scorer COMMAND", others[i]);
    if (!o->scorer[0] || o->score[0]) return NULL;
    int workers = o->scorer_workers ? (int)o->scorer_workers : threads < 8 ? threads : 8;
    return scorer_open(&(struct ScorerOptions){
        .command = o->scorer, .workers = workers, .timeout = o->scorer_timeout, .start = 60,
        .stops = launch_stop_requested});
}

/* The task of --data. Without it, what says how a file is read does nothing. */
static struct Task *choose_data(const struct Options *o, struct Scorer *scorer) {
    static const char *const others[] = {"eval-data", "eval-share", "prompt-template", "chat",
                                         "system", "reward", "reward-regex", "max-prompt",
                                         "shuffle-buffer", "bad-lines", "scorer"};
    for (size_t i = 0; i < sizeof others / sizeof *others && !o->data[0]; i++)
        if (options_on_line(o, others[i]) &&
            !(o->device_memory > 0 && strcmp(others[i], "max-prompt") == 0))   /* a plan's length */
            die_input("--%s is for --data FILE", others[i]);
    if (!o->data[0] || o->score[0]) return NULL;
    if (options_given(o, "task") || o->tasks[0])
        die_input("--data names what to learn; leave out --task and --tasks");
    if (o->eval_data[0] && options_on_line(o, "eval-share"))
        die_input("--eval-data is what is held out; leave out --eval-share");
    return data_open(&(struct DataOptions){
        .path = o->data, .eval_path = o->eval_data, .template_path = o->prompt_template,
        .chat = o->chat, .system = o->system, .reward = o->reward, .regex = o->reward_regex,
        .eval_share = o->eval_share, .eval_prompts = o->eval_prompts,
        .shuffle_buffer = o->shuffle_buffer, .max_prompt = o->max_prompt,
        .max_tokens = o->max_tokens, .bad_lines = o->bad_lines,
        .supervised = strcmp(o->objective, "ce") == 0, .scorer = scorer,
        .max_turns = scorer ? o->max_turns : 1});
}

/* --tasks NAME:STEPS,NAME:STEPS sets the phases and with them the steps; else there is one. */
struct Plan choose_plan(const struct Options *o, struct Scorer *scorer) {
    struct Plan plan = {.steps = o->steps, .data = choose_data(o, scorer)};
    char list[OPTION_TEXT], *rest = list, *item;
    if (plan.data) {
        plan.supervised = strcmp(o->objective, "ce") == 0;
        plan.phases[plan.num_phases++] = (struct Phase){plan.data, 0, o->steps};
        return plan;
    }
    if (!o->tasks[0]) {
        plan.phases[plan.num_phases++] = (struct Phase){known_task("task", o->task), 0, o->steps};
        return plan;
    }
    if (options_given(o, "task") || options_given(o, "steps")) die_of_two_plans(o);
    check_path(list, sizeof list, "%s", o->tasks);
    int64_t step = 0;
    while ((item = strsep(&rest, ",")) != NULL) {
        char *colon = strchr(item, ':'), *end = item;
        long long steps = colon ? strtoll(colon + 1, &end, 10) : 0;
        if (!colon || *end || steps < 1 || steps > 1000000000)
            die_input("--tasks %s: \"%s\" is not NAME:STEPS with at least one step", o->tasks,
                      item);
        if (plan.num_phases == MAX_PHASES)
            die_input("--tasks %s: more than %d tasks", o->tasks, MAX_PHASES);
        *colon = 0;
        plan.phases[plan.num_phases++] =
            (struct Phase){known_task("tasks", item), step, step + steps};
        step += steps;
    }
    plan.steps = step;
    return plan;
}

/* A run goes on with the plan it was begun with: the phases it has begun start where they did, and
   the next one is still ahead. */
int choose_phase(const struct Plan *plan, const struct Progress *progress) {
    int64_t begun = progress->phases_begun;
    bool moved = begun > plan->num_phases ||
                 (begun > 0 && plan->phases[begun - 1].begin != progress->phase_begin) ||
                 (begun < plan->num_phases && progress->step > plan->phases[begun].begin);
    if (moved)
        die_input("--tasks does not fit the run being resumed, which is at step %lld of %s; only "
                  "the last task's steps may grow, and tasks be added", (long long)progress->step,
                  progress->task);
    return begun > 0 ? (int)begun - 1 : 0;
}

/* ---- the objective --------------------------------------------------------------------------- */

static void choose_number(float *value, double option) {
    if (!isnan(option)) *value = (float)option;
}

/* Replaces the axes that were named. */
static void choose_axes(const struct Options *o, struct Objective *objective) {
    const struct { const char *axis, *name; } chosen[] = {
        {"advantage", o->advantage}, {"ratio", o->ratio}, {"surrogate", o->surrogate},
        {"aggregation", o->aggregation}, {"entropy-control", o->entropy_control}, {"kl", o->kl},
        {"overlong", o->overlong},
    };
    for (size_t i = 0; i < sizeof chosen / sizeof *chosen; i++)
        if (chosen[i].name[0] && !objective_choose(objective, chosen[i].axis, chosen[i].name))
            die_input("--%s %s: unknown; known are %s", chosen[i].axis, chosen[i].name,
                      objective_axis_names(chosen[i].axis));
}

struct Objective choose_objective(const struct Options *o) {
    const struct Objective *row = objective_find(o->objective);
    if (!row)
        die_input("--objective %s: unknown; known are %s", o->objective, objective_names());
    struct Objective objective = *row, *j = &objective;
    choose_axes(o, j);
    if (o->filter[0]) j->filter = strcmp(o->filter, "on") == 0;
    choose_number(&j->clip_low, o->clip_low);
    choose_number(&j->clip_high, o->clip_high);
    choose_number(&j->dual_clip, o->dual_clip);
    choose_number(&j->kl_coef, o->kl_coef);
    if (entropy_controls[j->control].moves_clip_high)
        j->clip_high = choose_entropy(o, j->control).range.start;
    const char *problem = objective_check_group(j, (int)o->group);
    if (problem) die_input("--group %lld: %s", (long long)o->group, problem);
    problem = objective_check_axes(j);
    if (problem) die_input("--objective %s: %s", o->objective, problem);
    return objective;
}

/* ---- entropy control ------------------------------------------------------------------------- */

const char *choose_scale(const struct Options *o) {
    struct ModelConfig small;
    if (o->scale[0]) return o->scale;
    return o->data[0] && !model_config_named(&small, o->model) ? "llm" : "tiny";
}

struct EntropyOptions choose_entropy(const struct Options *o, enum EntropyControl control) {
    const struct Control *row = &entropy_controls[control];
    struct EntropyOptions options;
    entropy_options_preset(&options, control, choose_scale(o));
    if (o->controller[0])
        options.rule = strcmp(o->controller, "pi") == 0 ? CONTROLLER_PI : CONTROLLER_DOUBLE;
    choose_number(&options.target, o->entropy_target);
    choose_number(&options.target_ratio, o->entropy_target_ratio);
    choose_number(&options.range.start, options_real(o, row->option.start));
    choose_number(&options.range.min, options_real(o, row->option.min));
    choose_number(&options.range.max, options_real(o, row->option.max));
    choose_number(&options.range.step, options_real(o, row->option.step));
    options.repo_d_signed = o->repo_d_signed;
    const char *problem = entropy_options_problem(&options);
    if (problem) die_input("--entropy-control %s: %s", row->name, problem);
    return options;
}

/* ---- checkpoints ----------------------------------------------------------------------------- */

size_t choose_shard_bytes(const struct Options *o) {
    size_t bytes = export_shard_bytes(o->shard_size);
    if (!bytes)
        die_input("--shard-size %s: must be a number and KB, MB or GB, like 5GB", o->shard_size);
    return bytes;
}

/* ---- ranks ----------------------------------------------------------------------------------- */

/* How many GPUs a word like "8" or "0,2,3" names. */
static int64_t count_gpus(const char *word) {
    char *end;
    int64_t n = 1, number = strtoll(word, &end, 10);
    if (strcmp(word, "all") == 0)
        die_input("--gpus all: a plan asks no machine; say how many");
    if (strspn(word, "0123456789,") != strlen(word) || end == word)
        die_input("--gpus %s: must be a number, or numbers with commas between them", word);
    if (*end == '\0') return number;
    for (const char *at = word; (at = strchr(at, ',')) != NULL; at++) n++;
    return n;
}

int choose_ranks(const struct Options *o) {
    int64_t ranks = o->gpus[0] ? count_gpus(o->gpus) : o->ranks;
    if (!o->dry_run) return 1;
    if (o->gpus[0] && (ranks < 1 || ranks > 4096)) die_input("--gpus %s: from 1 to 4096", o->gpus);
    return ranks > 1 ? (int)ranks : 1;
}

/* ---- what was set and does nothing ----------------------------------------------------------- */

void choose_warn(const struct Options *o, const struct Objective *objective) {
    const struct Control *control = &entropy_controls[objective->control];
    for (int i = 0; options_row(i); i++) {
        const char *name = options_row(i)->name;
        if (options_given(o, name) && objective_ignores(objective, name))
            warn("--%s does nothing here: objective %s with surrogate %s and entropy control %s "
                 "does not read it", name, objective->name,
                 objective_axis_word("surrogate", (int)objective->surrogate), control->name);
    }
    if (control->has_target && options_given(o, "entropy-target") &&
        options_given(o, "entropy-target-ratio"))
        warn("--entropy-target-ratio does nothing here: --entropy-target says the target");
    if (control->has_rule && strcmp(o->controller, "pi") == 0 && options_given(o, "zeta-min"))
        warn("--zeta-min does nothing here: --controller pi has no smallest size");
    if (options_given(o, "lr-min-ratio") && strcmp(o->lr_schedule, "constant") == 0)
        warn("--lr-min-ratio does nothing here: --lr-schedule constant does not fall");
    if (strcmp(o->logp_dtype, "fp32") != 0 && !objective_ignores(objective, "logp-dtype"))
        warn("--logp-dtype %s rounds log-probabilities before the ratio, on purpose: for the "
             "precision study (doc/entropy.md)", o->logp_dtype);
    if (o->minibatches > o->prompts * o->group)
        warn("--minibatches %lld: a rollout has %lld completions, and a minibatch without one "
             "makes no update", (long long)o->minibatches, (long long)(o->prompts * o->group));
}

/* ---- the model ------------------------------------------------------------------------------- */

void choose_shape(struct ModelConfig *c, const struct Options *o) {
    if (o->layers) c->L = (int)o->layers;
    if (o->channels) c->C = (int)o->channels, c->F = 4 * c->C;
    if (o->heads) c->NH = c->NKV = (int)o->heads;
    if (o->context) c->max_T = (int)o->context;
    if (o->untied) c->tied = false;
    if ((o->channels || o->heads) && c->NH > 0) c->HS = c->C / c->NH;
}

/* ---- memory ---------------------------------------------------------------------------------- */

enum Recompute choose_recompute(const struct Options *o) {
    return strcmp(o->recompute, "layer") == 0 ? RECOMPUTE_LAYER
           : strcmp(o->recompute, "mlp") == 0 ? RECOMPUTE_MLP
                                              : RECOMPUTE_NONE;
}

int choose_pages(double given, double budget, double page, int least, int most) {
    const double gib = 1 << 30;
    double pages = floor((given > 0 ? given * gib : fmax(gib, budget / 4)) / page);
    if (given > 0 && pages < least)
        die_input("--cache-gb %g holds %.0f pages of %d positions (%.3g MiB each), but one row of "
                  "the longest prompt and completion takes %d; give --cache-gb %.3g, or lower "
                  "--max-tokens", given, pages, KV_PAGE, page / (1 << 20), least,
                  ceil(least * page / gib * 1e3) / 1e3);
    if (pages >= most) return most;
    return pages > least ? (int)pages : least;
}
