/* The directory of a run: which one it is, whether it may be used, and what of it is kept. A run is
   its directory (doc/formats.md); nothing else remembers it. */
#ifndef LLMC_DIRECTORY_H
#define LLMC_DIRECTORY_H

#include "options.h"
#include "../checkpoint.h"

/* Where a session writes and what it starts from. */
struct Place {
    char run[4096];          /* the run directory; "" when nothing is written */
    char checkpoint[4096];   /* where weights come from; "" = drawn */
    bool resumed;            /* the checkpoint is the run's own, and its progress goes on */
};

/* The command line as options; for a resumed run, on top of its own config.json. */
struct Options directory_options(int argc, char **argv);
/* Settles where to write and, from --resume and --model, what to start from. `task` is a part of the
   default name. die_input for a directory that is not to be touched. Nothing is made yet. */
struct Place directory_find(const struct Options *options, const char *task);
/* Makes the directory, locks it for this process, and removes what an older run left if this one
   starts afresh in its place. Then config.json is written. */
void directory_open(const struct Place *place, const struct Options *options);

#endif
