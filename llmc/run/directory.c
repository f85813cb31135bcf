#include "directory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "../base/check.h"
#include "../io/tensorboard.h"

/* ---- the run directory ----------------------------------------------------------------------- */

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

static void default_name(char *run, size_t capacity, const char *task, const char *objective) {
    char when[32];
    time_t now = time(NULL);
    strftime(when, sizeof when, "%Y%m%d-%H%M%S", localtime(&now));
    check_path(run, capacity, "runs/%s-%s-%s", task, objective, when);
    for (int i = 2; exists(run); i++)
        check_path(run, capacity, "runs/%s-%s-%s-%d", task, objective, when, i);
}

/* A resumed run without a checkpoint starts afresh in its directory, which must be a run's: with auto
   because it was killed early, by name never. */
static void require_own_run(const struct Options *o, const char *run) {
    char config[4096];
    if (strcmp(o->resume, "auto") != 0)
        die_input("--resume %s: there is no checkpoint in it", o->resume);
    check_path(config, sizeof config, "%s/config.json", run);
    if (exists(run) && !exists(config) && !o->overwrite)
        die_input("%s exists and is no run; --run names another, --overwrite uses it", run);
}

/* A directory given as --model: a Hugging Face directory, or a run (its latest checkpoint). */
static void find_model(struct Place *place, const char *model) {
    struct ModelConfig config;
    if (model_config_named(&config, model)) return;
    if (checkpoint_latest(model, place->checkpoint, sizeof place->checkpoint)) return;
    check_path(place->checkpoint, sizeof place->checkpoint, "%s", model);
}

struct Place directory_find(const struct Options *o, const char *task) {
    struct Place place = {0};
    char *checkpoint = place.checkpoint;
    if (o->eval_only || o->score[0]) {
        if (!o->resume[0]) find_model(&place, o->model);
        else if (!o->run[0] || !checkpoint_latest(o->run, checkpoint, sizeof place.checkpoint))
            die_input("--resume %s: there is no checkpoint to measure", o->resume);
        return place;
    }
    if (o->run[0]) check_path(place.run, sizeof place.run, "%s", o->run);
    else default_name(place.run, sizeof place.run, task, o->objective);
    if (o->resume[0]) {
        place.resumed = checkpoint_latest(place.run, checkpoint, sizeof place.checkpoint);
        if (!place.resumed) require_own_run(o, place.run);
    } else if (exists(place.run) && !o->overwrite && !o->dry_run) {
        die_input("the run directory %s exists; --resume auto goes on with it, --overwrite starts "
                  "it anew, --run names another", place.run);
    }
    if (!place.resumed) find_model(&place, o->model);
    return place;
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

void directory_open(const struct Place *place, const struct Options *options) {
    char path[4096];
    make_directory(place->run);
    lock_run(place->run);
    if (!place->resumed) clear_run(place->run, place->checkpoint);
    check_path(path, sizeof path, "%s/config.json", place->run);
    options_save(options, path);
}

/* ---- options, those of a resumed run first --------------------------------------------------- */

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
struct Options directory_options(int argc, char **argv) {
    struct Options options;
    char run[4096], config[4096];
    options_parse(&options, argc, argv);
    if (!options.resume[0] || !resumed_run(&options, run, sizeof run)) return options;
    check_path(config, sizeof config, "%s/config.json", run);
    if (exists(config)) {
        char **line = check_alloc((size_t)argc + 3, sizeof *line, "the command line");
        line[0] = argv[0], line[1] = "--config", line[2] = config;
        for (int i = 1; i < argc; i++) line[i + 2] = argv[i];
        options_parse(&options, argc + 2, line);
        free(line);
    }
    check_path(options.run, sizeof options.run, "%s", run);
    return options;
}
