/* What the options choose: the run directory, the tasks, the objective, the entropy control. Every
   name is looked up and every contradiction refused here, before anything is made. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/console.h"
#include "launch.h"
#include "session.h"

/* ---- the run directory ------------------------------------------------------------------------ */

static bool exists(const char *path) { return access(path, F_OK) == 0; }

static void make_directory(const char *path) {
    char partial[4096];
    check_path(partial, sizeof partial, "%s", path);
    for (char *slash = partial + 1;; slash++) {
        if (*slash != '/' && *slash) continue;
        char kept = *slash;
        *slash = 0;
        if (mkdir(partial, 0777) != 0 && errno != EEXIST)
            die_input("cannot make the directory %s: %s; choose another with --run", partial,
                      strerror(errno));
        if (!kept) return;
        *slash = kept;
    }
}

/* Two programs in one run directory would overwrite each other; the lock goes with the process. */
static void lock_run(const char *run) {
    char path[4096];
    check_path(path, sizeof path, "%s/lock", run);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) die_input("cannot write in the run directory %s: %s", run, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0)
        die_input("another program is using the run directory %s; choose another with --run", run);
}

static void default_run_name(struct Session *s) {
    char when[32];
    time_t now = time(NULL);
    strftime(when, sizeof when, "%Y%m%d-%H%M%S", localtime(&now));
    check_path(s->run, sizeof s->run, "runs/%s-%s-%s", s->phases[0].task->name,
               s->options.objective, when);
    for (int i = 2; exists(s->run); i++)
        check_path(s->run, sizeof s->run, "runs/%s-%s-%s-%d", s->phases[0].task->name,
                   s->options.objective, when, i);
}

/* A resumed run without a checkpoint starts afresh in its directory, which must be a run's: with auto
   because it was killed early, by name never. */
static void require_own_run(const struct Session *s) {
    char config[4096];
    if (strcmp(s->options.resume, "auto") != 0)
        die_input("--resume %s: there is no checkpoint in it", s->options.resume);
    check_path(config, sizeof config, "%s/config.json", s->run);
    if (exists(s->run) && !exists(config) && !s->options.overwrite)
        die_input("%s exists and is no run; --run names another, --overwrite uses it", s->run);
}

/* Settles s->run and, for a resumed run, s->checkpoint and s->progress. */
static void find_run(struct Session *s) {
    const struct Options *o = &s->options;
    if (o->eval_only || o->score[0]) {
        if (o->resume[0] && !(o->run[0] && checkpoint_latest(o->run, s->checkpoint,
                                                             sizeof s->checkpoint)))
            die_input("--resume %s: there is no checkpoint to measure", o->resume);
        return;
    }
    if (o->run[0]) check_path(s->run, sizeof s->run, "%s", o->run);
    else default_run_name(s);
    if (o->resume[0]) {
        s->resumed = checkpoint_latest(s->run, s->checkpoint, sizeof s->checkpoint);
        if (s->resumed) checkpoint_load_state(s->checkpoint, &s->progress, NULL);
        else require_own_run(s);
    } else if (exists(s->run) && !o->overwrite && !o->dry_run) {
        die_input("the run directory %s exists; --resume auto goes on with it, --overwrite starts "
                  "it anew, --run names another", s->run);
    }
}

/* A fresh start in an existing directory removes what the old run logged and saved, nothing else. */
static void clear_run(const char *run, const char *checkpoint) {
    static const char *const logs[] = {"metrics.jsonl", "warm_start.jsonl", "rollouts.jsonl",
                                       "attention_entropy.jsonl", "failure.jsonl"};
    char path[4096], *inside = realpath(run, NULL), *needed = realpath(checkpoint, NULL);
    if (inside && needed && strncmp(needed, inside, strlen(inside)) == 0 &&
        (needed[strlen(inside)] == '/' || !needed[strlen(inside)]))
        die_input("--model %s is inside --run %s, which --overwrite would clear", checkpoint, run);
    free(inside), free(needed);
    for (size_t i = 0; i < sizeof logs / sizeof *logs; i++) {
        check_path(path, sizeof path, "%s/%s", run, logs[i]);
        unlink(path);
    }
    tensorboard_remove_all(run);
    checkpoint_remove_all(run);
    check_path(path, sizeof path, "%s/reference", run);
    checkpoint_remove_all(path);
}

void session_open_run(struct Session *s) {
    char path[4096];
    make_directory(s->run);
    lock_run(s->run);
    if (!s->resumed) clear_run(s->run, s->checkpoint);
    check_path(path, sizeof path, "%s/config.json", s->run);
    options_save(&s->options, path);
    report_open(&s->report, s->run, s->options.rollouts_every, &s->progress);
}

/* ---- options, those of a resumed run first ------------------------------------------------------ */

/* The run that --resume means: DIR, or with auto --run's, or else the newest under runs/. False:
   there is none, which for auto means a fresh start. */
static bool resumed_run(const struct Options *o, char *run, size_t capacity) {
    if (strcmp(o->resume, "auto") != 0) {
        check_path(run, capacity, "%s", o->resume);
        if (!exists(run)) die_input("--resume %s: there is no such run directory", run);
        return true;
    }
    if (o->run[0]) {
        check_path(run, capacity, "%s", o->run);
        return exists(run);
    }
    return checkpoint_newest_run("runs", run, capacity);
}

/* A resumed run goes on with its own config.json; the command line is applied on top of it. */
static void parse_options(struct Session *s, int argc, char **argv) {
    char run[4096], config[4096];
    options_parse(&s->options, argc, argv);
    if (!s->options.resume[0] || !resumed_run(&s->options, run, sizeof run)) return;
    check_path(config, sizeof config, "%s/config.json", run);
    if (exists(config)) {
        char **line = check_alloc((size_t)argc + 3, sizeof *line, "the command line");
        line[0] = argv[0], line[1] = "--config", line[2] = config;
        for (int i = 1; i < argc; i++) line[i + 2] = argv[i];
        options_parse(&s->options, argc + 2, line);
        free(line);
    }
    check_path(s->options.run, sizeof s->options.run, "%s", run);
}

/* ---- tasks ---------------------------------------------------------------------------------------- */

static const struct Task *known_task(const char *option, const char *name) {
    const struct Task *task = task_find(name);
    if (!task) die_input("--%s %s: unknown task; known are %s", option, name, task_names());
    return task;
}

/* --tasks NAME:STEPS,NAME:STEPS sets the phases and with them the steps; else there is one phase. */
static void choose_tasks(struct Session *s) {
    const struct Options *o = &s->options;
    char list[OPTION_TEXT], *rest = list, *item;
    s->steps = o->steps;
    if (!o->tasks[0]) {
        s->phases[s->num_phases++] = (struct Phase){known_task("task", o->task), 0, o->steps};
        return;
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
        if (s->num_phases == MAX_PHASES)
            die_input("--tasks %s: more than %d tasks", o->tasks, MAX_PHASES);
        *colon = 0;
        s->phases[s->num_phases++] =
            (struct Phase){known_task("tasks", item), step, step + steps};
        step += steps;
    }
    s->steps = step;
}

/* ---- the objective ---------------------------------------------------------------------------------- */

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

static void choose_objective(struct Session *s) {
    const struct Options *o = &s->options;
    const struct Objective *row = objective_find(o->objective);
    if (!row)
        die_input("--objective %s: unknown; known are %s", o->objective, objective_names());
    struct Objective *j = &s->objective;
    *j = *row;
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
}

/* ---- entropy control ---------------------------------------------------------------------------------- */

static void choose_entropy(struct Session *s) {
    const struct Options *o = &s->options;
    struct EntropyOptions *e = &s->entropy_options;
    snprintf(s->scale, sizeof s->scale, "%.7s", o->scale[0] ? o->scale : "tiny");
    entropy_options_preset(e, s->objective.control, s->scale);
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
}

/* An option that the chosen control never reads would mislead whoever set it. */
static void warn_of_idle_options(const struct Session *s) {
    enum EntropyControl control = s->objective.control;
    bool zeta = control >= CONTROL_REPO_R && control <= CONTROL_REPO_BETA;
    bool bonus = control == CONTROL_BONUS || control == CONTROL_ADAPTIVE_BONUS;
    bool adapo = control == CONTROL_ADAPO;
    bool target = zeta || adapo || control == CONTROL_ADAPTIVE_BONUS;
    bool clips = s->objective.surrogate == SURROGATE_CLIP ||
                 s->objective.surrogate == SURROGATE_CISPO;
    const struct { const char *name; bool read; } rows[] = {
        {"controller", zeta}, {"zeta-start", zeta}, {"zeta-min", zeta}, {"zeta-max", zeta},
        {"repo-d-signed", control == CONTROL_REPO_D}, {"entropy-coef", bonus},
        {"clip-high-min", adapo}, {"clip-high-max", adapo}, {"clip-high-step", adapo},
        {"entropy-target", target}, {"entropy-target-ratio", target},
        {"clip-low", clips}, {"clip-high", clips || adapo}, {"dual-clip", clips},
        {"kl", s->objective.kl_coef > 0}, {"filter-rounds", s->objective.filter},
    };
    char word[32];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (options_given(&s->options, rows[i].name) && !rows[i].read)
            warn("--%s does nothing here: objective %s with entropy control %s does not read it",
                 rows[i].name, s->objective.name,
                 objective_axis_word("entropy-control", (int)control, word));
}

/* A run goes on with the plan it was begun with: the phases it has begun start where they did, and
   the next one is still ahead. */
static void check_phases(const struct Session *s) {
    int64_t begun = s->progress.phases_begun;
    bool moved = begun > s->num_phases ||
                 (begun > 0 && s->phases[begun - 1].begin != s->progress.phase_begin) ||
                 (begun < s->num_phases && s->progress.step > s->phases[begun].begin);
    if (moved)
        die_input("--tasks does not fit the run being resumed, which is at step %lld of %s; only "
                  "the last task's steps may grow, and tasks be added", (long long)s->progress.step,
                  s->progress.task);
}

void session_choose(struct Session *s, int argc, char **argv) {
    parse_options(s, argc, argv);
    console_open(s->options.quiet || s->options.score[0]);
    launch_catch_signals();
    s->threads = launch_threads(s->options.threads);   /* workspaces are sized by it */
    choose_tasks(s);
    choose_objective(s);
    choose_entropy(s);
    find_run(s);
    if (s->resumed) check_phases(s);
    s->task = s->phases[0].task;
    for (int i = 1; i < s->num_phases; i++)
        if (s->progress.phases_begun > i) s->task = s->phases[i].task;
    if (!s->resumed && !s->options.score[0]) warn_of_idle_options(s);
}
