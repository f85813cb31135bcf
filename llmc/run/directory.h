/* The directory of a run: which one it is, whether it may be used, and what of it is kept. All that
   is known of a run is in its directory (doc/formats.md). */
#ifndef LLMC_DIRECTORY_H
#define LLMC_DIRECTORY_H

#include "options.h"
#include "../checkpoint.h"
#include "../world.h"

/* Where a session writes and what it starts from. */
struct Place {
    char run[4096];          /* the run directory; "" when nothing is written */
    char checkpoint[4096];   /* where weights come from; "" = drawn */
    int hold;                /* keeps another program from removing it: for checkpoint_release */
    bool resumed;            /* the checkpoint is the run's own, and its progress goes on */
};

/* The command line as options; for a resumed run, on top of its own config.json, and with `lock`
   the run is locked for this process (of several ranks, rank 0). *before: the options that the
   resumed run has had so far; else the line's. */
struct Options directory_options(int argc, char **argv, struct Options *before, bool lock);

/* The functions below are called by all ranks of `world` (NULL: this process is alone). Rank 0
   finds, makes, locks and writes; the others are given its Place and touch nothing. A world that is
   only planned, not open (ops NULL), is this process alone. */

/* Settles where to write and, from --resume and --model, what to start from. `task` is a part of
   the default name. Nothing is made yet. die_input for a directory that is not to be touched: a
   run may start where nothing is, in an empty directory (or one that a run left in its first
   moments), and with --overwrite in a run's. A run's latest checkpoint is held until the caller
   has read it (checkpoint_release). */
struct Place directory_find(const struct Options *options, const char *task,
                            const struct World *world);
/* Makes the directory and locks it for this process; what is in it stays as it was. A default name
   that is taken becomes the next one in *place. */
void directory_open(struct Place *place, const struct Options *options,
                    const struct World *world);
/* Once nothing can be wrong with the input any more: removes what an older run left, if this one
   starts afresh in its place, and writes config.json. */
void directory_begin(const struct Place *place, const struct Options *options,
                     const struct World *world);
/* Call on rank 0 before every save: die_machine if `run` is not the directory any more that this
   process has locked, because it was removed or another was put in its place. */
void directory_check(const char *run);

#endif
