#include "directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/files.h"
#include "../base/json.h"
#include "../io/tensorboard.h"

/* ---- what a directory is --------------------------------------------------------------------- */

enum Kind {
    NOTHING,    /* not there */
    FRESH,      /* there, and nothing in it but what a run makes first: a run may start in it */
    RUN,        /* a run's: its config.json, and its log, lock or checkpoints */
    DAMAGED,    /* a run's by its log, lock or checkpoints, but its config.json is none of ours */
    FOREIGN     /* anything else: a run must not change it */
};

static bool is_inside(const char *directory, const char *name) {
    char path[4096];
    check_path(path, sizeof path, "%s/%s", directory, name);
    return path_exists(path);
}

/* Is RUN/config.json a saved set of options, and not, say, a model's? */
static bool has_options(const char *run) {
    char path[4096];
    const char *problem;
    check_path(path, sizeof path, "%s/config.json", run);
    cJSON *config = file_problem(path) ? NULL : json_read(path, 1 << 20, &problem);
    bool ours = cJSON_IsString(cJSON_GetObjectItemCaseSensitive(config, "objective")) &&
                cJSON_IsNumber(cJSON_GetObjectItemCaseSensitive(config, "prompts")) &&
                cJSON_IsNumber(cJSON_GetObjectItemCaseSensitive(config, "seed"));
    cJSON_Delete(config);
    return ours;
}

static enum Kind kind_of(const char *path) {
    static const char *const early[] = {".", "..", "lock", "config.json.tmp"};
    DIR *directory = opendir(path);
    bool more = false;
    if (!directory && errno == ENOENT) return NOTHING;
    if (!directory && errno == ENOTDIR) return FOREIGN;
    if (!directory) die_errno("read the directory", path);
    for (const struct dirent *entry; (entry = next_entry(directory, path)) != NULL;) {
        bool is_early = false;
        for (size_t i = 0; i < sizeof early / sizeof *early; i++)
            is_early |= strcmp(entry->d_name, early[i]) == 0;
        more |= !is_early;
    }
    closedir(directory);
    if (!more) return FRESH;
    if (!is_inside(path, "config.json")) return FOREIGN;
    if (!is_inside(path, "metrics.jsonl") && !is_inside(path, "lock") &&
        !is_inside(path, "checkpoints")) return FOREIGN;
    return has_options(path) ? RUN : DAMAGED;
}

static bool same_directory(const char *a, const char *b) {
    struct stat of_a, of_b;
    return strcmp(a, b) == 0 || (stat(a, &of_a) == 0 && stat(b, &of_b) == 0 &&
                                 of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino);
}

/* ---- making and locking it ------------------------------------------------------------------- */

static _Noreturn void die_making(const char *path) {
    if (is_machine_error(errno)) die_errno("make the directory", path);
    die_input("cannot make the directory %s: %s; choose another with --run", path,
              strerror(errno));
}

static void make_directory(const char *path) {
    char partial[4096];
    check_path(partial, sizeof partial, "%s", path);
    for (char *slash = partial + 1;; slash++) {
        if (*slash != '/' && *slash) continue;
        char kept = *slash;
        *slash = 0;
        if (mkdir(partial, 0777) != 0 && errno != EEXIST) die_making(partial);
        if (!kept) return;
        *slash = kept;
    }
}

/* runs/TASK-OBJECTIVE-TIME, or the next of that name: making it reserves it, so that two programs
   started in one second take two. */
static void make_default(char *run, size_t capacity, const char *first) {
    make_directory("runs");
    check_path(run, capacity, "%s", first);
    for (int i = 2; mkdir(run, 0777) != 0; i++) {
        if (errno != EEXIST) die_making(run);
        check_path(run, capacity, "%s-%d", first, i);
    }
}

/* Two programs in one run directory would overwrite each other. The lock goes with the process. */
static int lock_descriptor = -1;

static void lock_run(const char *run) {
    char path[4096];
    if (lock_descriptor >= 0) return;
    check_path(path, sizeof path, "%s/lock", run);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) die_errno("write in the run directory", run);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno == EWOULDBLOCK)
            die_input("another program is using the run directory %s; choose another with --run",
                      run);
        die_machine("cannot lock %s: %s; a run needs a file system with locks", path,
                    strerror(errno));
    }
    lock_descriptor = fd;
}

void directory_check(const char *run) {
    char path[4096];
    check_path(path, sizeof path, "%s/lock", run);
    if (is_same_file(lock_descriptor, path)) return;
    die_machine("cannot save: the directory %s is gone, or another was put in its place; it was "
                "there when this run began", run);
}

/* ---- options, those of a resumed run first --------------------------------------------------- */

static bool measures(const struct Options *o) { return o->eval_only || o->score[0]; }

/* Ends the program: what a directory is that --resume cannot go on with. */
static _Noreturn void die_no_run(const char *run) {
    if (is_inside(run, "trainer_state.json"))
        die_input("--resume %s: that is a checkpoint; --resume goes on with a run, the directory "
                  "that holds checkpoints/, and --model takes a checkpoint's weights", run);
    if (is_inside(run, "checkpoints"))
        die_input("--resume %s: it has checkpoints but no config.json, so the run's options are "
                  "lost; --model %s takes its weights", run, run);
    die_input("--resume %s: it is no run (there is no config.json of one in it)", run);
}

/* Ends the program: config.json is empty, cut short, or another file. */
static _Noreturn void die_options_lost(const char *run) {
    static const char lost[] = "is not the config.json of a run, so its options are lost";
    if (is_inside(run, "checkpoints"))
        die_input("%s/config.json %s; --model %s --run ANOTHER starts another run from its weights",
                  run, lost, run);
    die_input("%s/config.json %s; --run ANOTHER starts another run", run, lost);
}

/* The run that --resume means: DIR, or with auto --run's, or else the newest under runs/. False:
   there is none, which for auto means a fresh start. */
static bool resumed_run(const struct Options *o, char *run, size_t capacity) {
    bool by_name = strcmp(o->resume, "auto") != 0;
    if (by_name && o->run[0] && !same_directory(o->resume, o->run))
        die_input("--resume %s goes on in its own directory, not in --run %s; --model %s --run %s "
                  "starts another run from its weights", o->resume, o->run, o->resume, o->run);
    if (by_name || o->run[0]) check_path(run, capacity, "%s", by_name ? o->resume : o->run);
    else if (!checkpoint_newest_run("runs", run, capacity)) return false;
    enum Kind kind = kind_of(run);
    if (by_name && kind == NOTHING)
        die_input("--resume %s: there is no such run directory", run);
    if (by_name && kind == FRESH)
        die_input("--resume %s: it is empty; --run %s starts a run in it", run, run);
    if (kind == FOREIGN) die_no_run(run);
    return kind == RUN || kind == DAMAGED;
}

struct Options directory_options(int argc, char **argv, struct Options *before, bool lock) {
    struct Options options;
    char run[4096], config[4096];
    options_parse(&options, argc, argv);
    if (measures(&options)) options_check_measure(&options);
    *before = options;
    if (!options.resume[0] || !resumed_run(&options, run, sizeof run)) return options;
    if (lock && !measures(&options) && !options.dry_run) lock_run(run);   /* before it is read */
    check_path(config, sizeof config, "%s/config.json", run);
    if (kind_of(run) == DAMAGED) die_options_lost(run);
    char **line = check_alloc((size_t)argc + 3, sizeof *line, "the command line");
    line[0] = argv[0], line[1] = "--config", line[2] = config;
    options_parse(before, 3, line);
    for (int i = 1; i < argc; i++) line[i + 2] = argv[i];
    options_parse(&options, argc + 2, line);
    free(line);
    check_path(options.run, sizeof options.run, "%s", run);
    return options;
}

/* ---- where to write, what to start from ------------------------------------------------------ */

static void default_name(char *run, size_t capacity, const char *task, const char *objective) {
    char when[32];
    time_t now = time(NULL);
    strftime(when, sizeof when, "%Y%m%d-%H%M%S", localtime(&now));
    check_path(run, capacity, "runs/%s-%s-%s", task, objective, when);
}

/* A directory given as --model: a Hugging Face directory, or a run (its latest checkpoint). */
static void find_model(struct Place *place, const char *model) {
    struct ModelConfig config;
    if (model_config_named(&config, model)) return;
    if (checkpoint_latest_held(model, place->checkpoint, sizeof place->checkpoint, &place->hold))
        return;
    check_path(place->checkpoint, sizeof place->checkpoint, "%s", model);
}

/* The weights that --eval-only or --score measures. Nothing is written. */
static struct Place find_measured(const struct Options *o) {
    struct Place place = {.hold = -1};
    char *checkpoint = place.checkpoint;
    const char *what = o->score[0] ? "--score" : "--eval-only";
    if (o->resume[0]) {
        if (options_on_line(o, "model"))
            die_input("--model and --resume both name weights to measure: leave one out");
        if (!o->run[0] || !checkpoint_latest_held(o->run, checkpoint, sizeof place.checkpoint,
                                                  &place.hold))
            die_input("--resume %s: there is no checkpoint to measure", o->resume);
        return place;
    }
    if (o->run[0])
        die_input("%s writes no run, so --run does nothing; --resume %s measures that run's "
                  "weights", what, o->run);
    find_model(&place, o->model);
    if (!checkpoint[0])
        die_input("%s measures weights, and those of %s are random: name some with --model "
                  "DIRECTORY or --resume RUN", what, o->model);
    return place;
}

/* Ends the program if a run may not start in the directory because of what is there. */
static void check_start(const struct Options *o, const char *run) {
    enum Kind kind = kind_of(run);
    char latest[4096];
    if (kind == NOTHING || kind == FRESH || o->dry_run) return;
    if (kind == DAMAGED)
        die_input("the config.json in %s is not a run's; --run names another directory", run);
    if (kind == FOREIGN) die_input("%s exists and is no run; --run names another directory", run);
    if (o->resume[0] && strcmp(o->resume, "auto") != 0)
        die_input("--resume %s: there is no checkpoint in it yet; --run %s --resume auto starts it "
                  "anew with its options", run, run);
    if (o->resume[0] && checkpoint_latest(run, latest, sizeof latest))
        die_input("another program has just used the run directory %s; start this one again", run);
    if (!o->resume[0] && !o->overwrite)
        die_input("the run directory %s exists; --resume auto goes on with it, --overwrite starts "
                  "it anew, --run names another", run);
}

/* Where to write and from what to start. */
static struct Place find(const struct Options *o, const char *task) {
    struct Place place = {.hold = -1};
    if (measures(o)) return find_measured(o);
    if (o->run[0]) check_path(place.run, sizeof place.run, "%s", o->run);
    else default_name(place.run, sizeof place.run, task, o->objective);
    place.resumed = o->resume[0] &&
                    checkpoint_latest_held(place.run, place.checkpoint, sizeof place.checkpoint,
                                           &place.hold);
    if (place.resumed) return place;
    if (o->run[0]) check_start(o, place.run);
    find_model(&place, o->model);
    return place;
}

/* Does this process act for all ranks? */
static bool acts(const struct World *world) {
    return !world || !world->ops || world_rank(world) == 0;
}

/* Rank 0's *place, to all. What it holds and has locked stays its own. */
static void share_place(struct Place *place, const struct World *world) {
    int hold = place->hold;
    if (world && world->ops) world_broadcast(world, place, sizeof *place, 0);
    place->hold = acts(world) ? hold : -1;
}

struct Place directory_find(const struct Options *o, const char *task,
                            const struct World *world) {
    struct Place place = {.hold = -1};
    if (acts(world)) place = find(o, task);
    share_place(&place, world);
    return place;
}

/* Ends the program if the weights to start from are in the run that --overwrite would clear. */
static void refuse_inside(const char *run, const char *checkpoint) {
    char *inside = realpath(run, NULL), *needed = realpath(checkpoint, NULL);
    if (inside && needed && strncmp(needed, inside, strlen(inside)) == 0 &&
        (needed[strlen(inside)] == '/' || !needed[strlen(inside)]))
        die_input("--model %s is inside --run %s, which --overwrite would clear", checkpoint, run);
    free(inside), free(needed);
}

/* A fresh start in a run's directory removes what the old run logged and saved, nothing else. */
static void clear_run(const char *run) {
    static const char *const logs[] = {"metrics.jsonl", "warm_start.jsonl", "rollouts.jsonl",
                                       "attention_entropy.jsonl", "failure.jsonl",
                                       "wandb.json"};   /* what to_wandb.py has sent of it */
    static const char *const bundles[] = {"reference", "failure"};
    char path[4096];
    for (size_t i = 0; i < sizeof logs / sizeof *logs; i++) {
        check_path(path, sizeof path, "%s/%s", run, logs[i]);
        unlink(path);
    }
    tensorboard_remove_all(run);
    checkpoint_remove_all(run);
    for (size_t i = 0; i < sizeof bundles / sizeof *bundles; i++) {
        check_path(path, sizeof path, "%s/%s", run, bundles[i]);
        checkpoint_remove_all(path);
    }
}

static void open_place(struct Place *place, const struct Options *options) {
    char path[4096];
    if (options->run[0]) {
        make_directory(place->run);
    } else {
        check_path(path, sizeof path, "%s", place->run);
        make_default(place->run, sizeof place->run, path);
    }
    lock_run(place->run);
    if (!place->resumed) {
        check_start(options, place->run);   /* again: another program may have begun there */
        refuse_inside(place->run, place->checkpoint);
    }
}

void directory_open(struct Place *place, const struct Options *options,
                    const struct World *world) {
    if (acts(world)) open_place(place, options);
    share_place(place, world);
}

void directory_begin(const struct Place *place, const struct Options *options,
                     const struct World *world) {
    char path[4096];
    if (!acts(world)) return;
    if (!place->resumed) clear_run(place->run);
    check_path(path, sizeof path, "%s/config.json", place->run);
    options_save(options, path);
}
