/* The directories of a run's checkpoints: how a complete one gets its name, which is the latest,
   and which are removed (the steps of a save: doc/formats.md). */
#include "checkpoint_steps.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/check.h"
#include "base/files.h"
#include "checkpoint.h"

#define PATH_SIZE 4096
#define WEIGHTS_INDEX "model.safetensors.index.json"

/* ---- directories ---------------------------------------------------------------------------- */

/* Names that a save uses before it is done. The next save clears what a killed one left there. */
#define WRITING ".writing_"     /* not complete yet */
#define REPLACED ".replaced_"   /* complete: the older of two saves of one step */
#define REMOVING ".removing_"   /* not complete any more */

static void rename_path(const char *from, const char *to) {
    if (rename(from, to) != 0)
        die_machine("cannot rename %s to %s: %s", from, to, strerror(errno));
}

/* Contents of a file, or names in a directory, are on the disk when this returns. */
static void sync_path(const char *path) {
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || fsync(descriptor) != 0)
        die_machine("cannot write %s to the disk: %s", path, strerror(errno));
    close(descriptor);
}

static int is_visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }

static int is_left_over(const struct dirent *entry) {
    const char *name = entry->d_name;
    return strncmp(name, WRITING, strlen(WRITING)) == 0 ||
           strncmp(name, REPLACED, strlen(REPLACED)) == 0 ||
           strncmp(name, REMOVING, strlen(REMOVING)) == 0;
}

/* "step_" and digits only: nothing a file could use to point elsewhere. */
static bool is_step_name(const char *name) {
    return strncmp(name, "step_", 5) == 0 && name[5] != '\0' && strlen(name) < 32 &&
           strspn(name + 5, "0123456789") == strlen(name + 5);
}

static int is_step(const struct dirent *entry) { return is_step_name(entry->d_name); }

static int compare_steps(const struct dirent **a, const struct dirent **b) {
    long long x = atoll((*a)->d_name + 5), y = atoll((*b)->d_name + 5);
    return x < y ? 1 : x > y ? -1 : 0;   /* newest first */
}

/* scandir that ends the program on failure. The caller frees the names and the list. */
static int list_directory(const char *path, struct dirent ***names,
                          int (*filter)(const struct dirent *),
                          int (*compare)(const struct dirent **, const struct dirent **)) {
    int count = scandir(path, names, filter, compare);
    if (count < 0) die_machine("cannot list %s: %s", path, strerror(errno));
    return count;
}

static void sync_directory(const char *directory) {
    struct dirent **names;
    int count = list_directory(directory, &names, is_visible, alphasort);
    for (int i = 0; i < count; i++) {
        char path[PATH_SIZE];
        check_path(path, sizeof path, "%s/%s", directory, names[i]->d_name);
        sync_path(path);
        free(names[i]);
    }
    free(names);
    sync_path(directory);
}

static int remove_one(const char *path, const struct stat *status, int type, struct FTW *walk) {
    (void)status, (void)type, (void)walk;
    return remove(path);
}

/* A directory that cannot be removed costs disk space only: a warning, and the run goes on. */
static void remove_tree(const char *path) {
    if (nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0)
        warn("cannot remove %s: %s", path, strerror(errno));
}

/* Removes a checkpoint so that no half of one is ever seen under its name. */
static void remove_checkpoint(const char *checkpoints, const char *name) {
    char path[PATH_SIZE], removing[PATH_SIZE];
    check_path(path, sizeof path, "%s/%s", checkpoints, name);
    check_path(removing, sizeof removing, "%s/" REMOVING "%s", checkpoints, name);
    rename_path(path, removing);
    remove_tree(removing);
}

/* A save over an existing step was killed between its two renames: puts the older one back. Does
   nothing where there is nothing to put back. Only for the process that holds the run's lock:
   another one's save may be between its renames. */
static void restore_replaced(const char *checkpoints, const char *name) {
    char path[PATH_SIZE], replaced[PATH_SIZE];
    check_path(path, sizeof path, "%s/%s", checkpoints, name);
    check_path(replaced, sizeof replaced, "%s/" REPLACED "%s", checkpoints, name);
    if (!path_exists(path) && path_exists(replaced)) rename_path(replaced, path);
}

static void clear_left_overs(const char *checkpoints) {
    struct dirent **names;
    int count = list_directory(checkpoints, &names, is_left_over, alphasort);
    for (int i = 0; i < count; i++) {
        const char *name = names[i]->d_name;
        char path[PATH_SIZE];
        if (strncmp(name, REPLACED, strlen(REPLACED)) == 0)
            restore_replaced(checkpoints, name + strlen(REPLACED));
        check_path(path, sizeof path, "%s/%s", checkpoints, name);
        if (path_exists(path)) remove_tree(path);
        free(names[i]);
    }
    free(names);
}

/* Does a reader hold the checkpoint (checkpoint_latest_held)? Where the file system has no locks,
   none does. */
static bool is_held(const char *checkpoints, const char *name) {
    char path[PATH_SIZE];
    check_path(path, sizeof path, "%s/%s", checkpoints, name);
    int descriptor = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor < 0) return false;
    bool held = flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    close(descriptor);
    return held;
}

/* Leaves `current` and the newest others, `keep` in all, and what a reader holds: that goes when
   this is called again. */
static void remove_old(const char *checkpoints, const char *current, int keep) {
    if (keep <= 0) return;
    struct dirent **names;
    int count = list_directory(checkpoints, &names, is_step, compare_steps), kept = 1;
    for (int i = 0; i < count; i++) {
        bool is_current = strcmp(names[i]->d_name, current) == 0;
        if (!is_current && ++kept > keep && !is_held(checkpoints, names[i]->d_name))
            remove_checkpoint(checkpoints, names[i]->d_name);
        free(names[i]);
    }
    free(names);
}

/* ---- a save --------------------------------------------------------------------------------- */

/* Gives a complete, synced directory its name. Where that exists, the older save is renamed first;
   restore_replaced and checkpoint_latest find it there if the program is killed in between. */
static void move_into_place(const char *checkpoints, const char *writing, const char *name) {
    char path[PATH_SIZE], replaced[PATH_SIZE];
    check_path(path, sizeof path, "%s/%s", checkpoints, name);
    check_path(replaced, sizeof replaced, "%s/" REPLACED "%s", checkpoints, name);
    bool taken = path_exists(path);
    if (taken) rename_path(path, replaced);
    rename_path(writing, path);
    sync_path(checkpoints);
    if (taken) remove_tree(replaced);
}

void steps_begin(const char *run_directory, const char *name, char *writing, size_t capacity) {
    char checkpoints[PATH_SIZE], inside[64];
    check_path(checkpoints, sizeof checkpoints, "%s/checkpoints", run_directory);
    check_path(writing, capacity, "%s/" WRITING "%s", checkpoints, name);
    check_path(inside, sizeof inside, WRITING "%s", name);
    make_directory_in(run_directory, "checkpoints");
    clear_left_overs(checkpoints);
    make_directory_in(checkpoints, inside);
}

void steps_finish(const char *run_directory, const char *name, const char *writing, int keep) {
    char checkpoints[PATH_SIZE], path[PATH_SIZE];
    struct AtomicFile latest;
    check_path(checkpoints, sizeof checkpoints, "%s/checkpoints", run_directory);
    check_path(path, sizeof path, "%s/latest", checkpoints);
    sync_directory(writing);
    move_into_place(checkpoints, writing, name);
    atomic_open(&latest, path);
    atomic_write(&latest, name, strlen(name));
    atomic_write(&latest, "\n", 1);
    atomic_commit(&latest);
    remove_old(checkpoints, name, keep);
}

/* ---- what is there -------------------------------------------------------------------------- */

/* The name in `latest`; false: there is no such file. */
static bool read_latest(const char *path, char name[64]) {
    if (!path_exists(path)) return false;
    const char *problem = file_problem(path);
    if (problem) die_input("%s: %s", path, problem);
    FILE *stream = fopen(path, "r");
    if (stream == NULL) die_errno("read", path);
    name[fread(name, 1, 63, stream)] = '\0';
    if (ferror(stream)) die_errno("read", path);
    fclose(stream);
    name[strcspn(name, "\n")] = '\0';
    if (!is_step_name(name))
        die_input("%s does not name a checkpoint; write one's name (step_000100) into it", path);
    return true;
}

/* NULL: all files that a checkpoint must have are there; else why one is not, and its path. */
static const char *find_missing(const char *checkpoint, char missing[PATH_SIZE]) {
    const char *required[] = {"model.safetensors", "config.json", "trainer_state.json"};
    check_path(missing, PATH_SIZE, "%s/" WEIGHTS_INDEX, checkpoint);
    if (path_exists(missing)) required[0] = WEIGHTS_INDEX;   /* the weights are in several files */
    for (size_t i = 0; i < sizeof required / sizeof required[0]; i++) {
        check_path(missing, PATH_SIZE, "%s/%s", checkpoint, required[i]);
        const char *problem = file_problem(missing);
        if (problem) return problem;
    }
    return NULL;
}

/* Takes a shared lock on a checkpoint's directory. *hold becomes its descriptor, or -1 where the
   file system has no locks. False: the directory is not there any more, or is just being removed or
   replaced. */
static bool hold_directory(const char *path, int *hold) {
    *hold = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*hold < 0 && is_machine_error(errno)) die_errno("read the directory", path);
    if (*hold < 0) return false;
    bool locked = flock(*hold, LOCK_SH | LOCK_NB) == 0;
    if (!locked && errno != EWOULDBLOCK) {
        checkpoint_release(hold);
        return true;
    }
    /* `path` may have become another directory between open and flock */
    if (locked && is_same_file(*hold, path)) return true;
    checkpoint_release(hold);
    return false;
}

void checkpoint_release(int *hold) {
    if (*hold >= 0) close(*hold);
    *hold = -1;
}

bool checkpoint_latest(const char *run_directory, char *out, size_t capacity) {
    int hold;
    bool found = checkpoint_latest_held(run_directory, out, capacity, &hold);
    checkpoint_release(&hold);
    return found;
}

bool checkpoint_latest_held(const char *run_directory, char *out, size_t capacity, int *hold) {
    char checkpoints[PATH_SIZE], path[PATH_SIZE], missing[PATH_SIZE], name[64];
    check_path(checkpoints, sizeof checkpoints, "%s/checkpoints", run_directory);
    check_path(path, sizeof path, "%s/latest", checkpoints);
    const char *problem = NULL;
    *hold = -1;
    for (int tries = 0; tries < 10; tries++) {
        if (!read_latest(path, name)) return false;
        check_path(out, capacity, "%s/%s", checkpoints, name);
        bool held = hold_directory(out, hold);
        problem = find_missing(out, missing);
        if (held && !problem) return true;
        checkpoint_release(hold);
        usleep(20000);   /* a save may be replacing it, or --keep removed it after `latest` moved */
    }
    char ignored[PATH_SIZE];   /* a save over this step may have been killed between two renames */
    check_path(out, capacity, "%s/" REPLACED "%s", checkpoints, name);
    if (!find_missing(out, ignored)) return true;
    die_input("%s: %s; the checkpoint that `latest` names is not complete", missing,
              problem ? problem : "it is being removed");
}

void checkpoint_keep(const char *run_directory, int keep) {
    char checkpoints[PATH_SIZE], path[PATH_SIZE], name[64];
    check_path(checkpoints, sizeof checkpoints, "%s/checkpoints", run_directory);
    check_path(path, sizeof path, "%s/latest", checkpoints);
    if (!read_latest(path, name)) return;
    clear_left_overs(checkpoints);
    remove_old(checkpoints, name, keep);
}

void checkpoint_remove_all(const char *run_directory) {
    char checkpoints[PATH_SIZE], latest[PATH_SIZE];
    struct dirent **names;
    check_path(checkpoints, sizeof checkpoints, "%s/checkpoints", run_directory);
    if (!path_exists(checkpoints)) return;
    check_path(latest, sizeof latest, "%s/latest", checkpoints);
    if (unlink(latest) != 0 && errno != ENOENT)
        die_machine("cannot remove %s: %s", latest, strerror(errno));
    clear_left_overs(checkpoints);
    int count = list_directory(checkpoints, &names, is_step, alphasort);
    for (int i = 0; i < count; i++) {
        remove_checkpoint(checkpoints, names[i]->d_name);
        free(names[i]);
    }
    free(names);
}

bool checkpoint_newest_run(const char *parent, char *out, size_t capacity) {
    struct dirent **names;
    struct timespec newest = {0};
    bool found = false;
    int count = scandir(parent, &names, is_visible, alphasort);
    if (count < 0 && is_machine_error(errno)) die_errno("read the directory", parent);
    for (int i = 0; i < count; i++) {
        char latest[PATH_SIZE];
        struct stat status;
        check_path(latest, sizeof latest, "%s/%s/checkpoints/latest", parent, names[i]->d_name);
        if (path_exists(latest) && stat(latest, &status) == 0 &&
            (!found || status.st_mtim.tv_sec > newest.tv_sec ||
             (status.st_mtim.tv_sec == newest.tv_sec &&
              status.st_mtim.tv_nsec > newest.tv_nsec))) {
            found = true, newest = status.st_mtim;
            check_path(out, capacity, "%s/%s", parent, names[i]->d_name);
        }
        free(names[i]);
    }
    if (count >= 0) free(names);
    return found;
}
