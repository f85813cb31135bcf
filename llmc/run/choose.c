#include "choose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"

/* ---- tasks ----------------------------------------------------------------------------------- */

static const struct Task *known_task(const char *option, const char *name) {
    const struct Task *task = task_find(name);
    if (!task) die_input("--%s %s: unknown task; known are %s", option, name, task_names());
    return task;
}

/* --tasks NAME:STEPS,NAME:STEPS sets the phases and with them the steps; else there is one phase. */
struct Plan choose_plan(const struct Options *o) {
    struct Plan plan = {.steps = o->steps};
    char list[OPTION_TEXT], *rest = list, *item;
    if (!o->tasks[0]) {
        plan.phases[plan.num_phases++] = (struct Phase){known_task("task", o->task), 0, o->steps};
        return plan;
    }
    if (options_given(o, "task") || options_given(o, "steps"))
        die_input("--tasks names the tasks and their steps; leave out --task and --steps");
    check_path(list, sizeof list, "%s", o->tasks);
    int64_t step = 0;
    while ((item = strsep(&rest, ",")) != NULL) {
        char *colon = strchr(item, ':'), *end = item;
        long long steps = colon ? strtoll(colon + 1, &end, 10) : 0;
        if (!colon || *end || steps < 1 || steps > 1000000000)
            die_input("--tasks %s: \"%s\" is not NAME:STEPS with at least one step", o->tasks, item);
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

/* Replaces *value by the axis value called `name`, unless it is empty. */
static void choose_axis(int *value, const char *axis, const char *name) {
    if (!name[0]) return;
    *value = objective_axis_value(axis, name);
    if (*value < 0)
        die_input("--%s %s: unknown; known are %s", axis, name, objective_axis_names(axis));
}

static void choose_number(float *value, double option) {
    if (!isnan(option)) *value = (float)option;
}

struct Objective choose_objective(const struct Options *o) {
    const struct Objective *row = objective_find(o->objective);
    if (!row)
        die_input("--objective %s: unknown; known are %s", o->objective, objective_names());
    struct Objective objective = *row, *j = &objective;
    int advantage = j->advantage, ratio = j->ratio, surrogate = j->surrogate;
    int aggregation = j->aggregation, control = j->control, kl = j->kl, overlong = j->overlong;
    choose_axis(&advantage, "advantage", o->advantage);
    choose_axis(&ratio, "ratio", o->ratio);
    choose_axis(&surrogate, "surrogate", o->surrogate);
    choose_axis(&aggregation, "aggregation", o->aggregation);
    choose_axis(&control, "entropy-control", o->entropy_control);
    choose_axis(&kl, "kl", o->kl);
    choose_axis(&overlong, "overlong", o->overlong);
    j->advantage = advantage, j->ratio = ratio, j->surrogate = surrogate;
    j->aggregation = aggregation, j->control = control, j->kl = kl, j->overlong = overlong;
    if (o->filter[0]) j->filter = strcmp(o->filter, "on") == 0;
    choose_number(&j->clip_low, o->clip_low);
    choose_number(&j->clip_high, o->clip_high);
    choose_number(&j->dual_clip, o->dual_clip);
    choose_number(&j->kl_coef, o->kl_coef);
    const char *problem = objective_check_group(j, (int)o->group);
    if (problem) die_input("--group %lld: %s", (long long)o->group, problem);
    problem = objective_check_axes(j);
    if (problem) die_input("--objective %s: %s", o->objective, problem);
    return objective;
}

/* ---- entropy control ------------------------------------------------------------------------- */

const char *choose_scale(const struct Options *o) { return o->scale[0] ? o->scale : "tiny"; }

struct EntropyOptions choose_entropy(const struct Options *o, enum EntropyControl control) {
    struct EntropyOptions options, *e = &options;
    entropy_options_preset(e, control, choose_scale(o));
    if (o->controller[0])
        e->rule = strcmp(o->controller, "pi") == 0 ? CONTROLLER_PI : CONTROLLER_DOUBLE;
    choose_number(&e->target, o->entropy_target);
    choose_number(&e->target_ratio, o->entropy_target_ratio);
    choose_number(&e->zeta_start, o->zeta_start);
    choose_number(&e->zeta_min, o->zeta_min);
    choose_number(&e->zeta_max, o->zeta_max);
    choose_number(&e->clip_high_start, o->clip_high);
    choose_number(&e->clip_high_min, o->clip_high_min);
    choose_number(&e->clip_high_max, o->clip_high_max);
    choose_number(&e->clip_high_step, o->clip_high_step);
    choose_number(&e->coef_start, o->entropy_coef);
    e->repo_d_signed = o->repo_d_signed;
    if (e->zeta_min > e->zeta_max)
        die_input("--zeta-min %g is larger than --zeta-max %g", e->zeta_min, e->zeta_max);
    if (e->clip_high_min > e->clip_high_max)
        die_input("--clip-high-min %g is larger than --clip-high-max %g", e->clip_high_min,
                  e->clip_high_max);
    return options;
}

/* An option that the chosen control never reads would mislead whoever set it. */
void choose_warn(const struct Options *o, const struct Objective *j) {
    enum EntropyControl control = j->control;
    bool zeta = control >= CONTROL_REPO_R && control <= CONTROL_REPO_BETA;
    bool bonus = control == CONTROL_BONUS || control == CONTROL_ADAPTIVE_BONUS;
    bool adapo = control == CONTROL_ADAPO;
    bool target = zeta || adapo || control == CONTROL_ADAPTIVE_BONUS;
    bool clips = j->surrogate == SURROGATE_CLIP || j->surrogate == SURROGATE_CISPO;
    const struct { const char *name; bool read; } rows[] = {
        {"controller", zeta}, {"zeta-start", zeta}, {"zeta-min", zeta}, {"zeta-max", zeta},
        {"repo-d-signed", control == CONTROL_REPO_D}, {"entropy-coef", bonus},
        {"clip-high-min", adapo}, {"clip-high-max", adapo}, {"clip-high-step", adapo},
        {"entropy-target", target}, {"entropy-target-ratio", target},
        {"clip-low", clips}, {"clip-high", clips || adapo}, {"dual-clip", clips},
        {"kl", j->kl_coef > 0}, {"filter-rounds", j->filter},
    };
    char word[32];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (options_given(o, rows[i].name) && !rows[i].read)
            warn("--%s does nothing here: objective %s with entropy control %s does not read it",
                 rows[i].name, j->name,
                 objective_axis_word("entropy-control", (int)control, word));
}
