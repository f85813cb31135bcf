/* Several ranks: which process this is, and what starts the others.

   A run of several ranks is begun in one of two ways. Either the program starts itself once for
   each GPU (--gpus) or several times on the CPU (--ranks): the process that the user called then
   does nothing else, and never opens a device; or torchrun, srun or mpirun has started the ranks,
   which find each other by what these leave in the environment. */
#ifndef LLMC_RANKS_H
#define LLMC_RANKS_H

#include "../model.h"
#include "../world.h"
#include "options.h"

enum { RANKS_ID = 128, RANKS_MOST = 64 };

struct Ranks {
    int rank, size;              /* size 1: this is the only one */
    int local;                   /* number among the ranks of this machine */
    const char *launcher;        /* what started them: "--ranks", "torchrun", ...; NULL: alone */
    unsigned char id[RANKS_ID];  /* where they meet (ops->comm_id) */
    char meeting[512];           /* or "HOST:PORT", of which the id is to be made; "" */
};

/* Call in main before anything is opened; the options are only looked at. Returns in the processes
   that work, one or each of several, whose errors name the rank from then on (check_rank). In the
   one that starts them it does not return: signals go on to the ranks, and when one fails the
   others have a moment to end by themselves, then are made to. It ends with the exit code of the
   first that failed, 128 + the signal if that ended it. die_input for what cannot be meant. */
struct Ranks ranks_begin(int argc, char **argv);

/* What ops_open is to be given: the backend of --backend, or the one that --gpus or --ranks means;
   the number of this rank's GPU. */
const char *ranks_backend(const struct Options *options);
int ranks_device(const struct Ranks *ranks, const struct Options *options);

/* world_open by what ranks_begin has found. */
void ranks_open(struct World *world, const struct Ranks *ranks, const struct Options *options,
                const struct Ops *ops);

/* Call right after ranks_open, and again when the model is known (until then NULL). All ranks end
   by die_input, naming what it is, if one has another option, program, backend or model than rank
   0, or a GPU that is another rank's. */
void ranks_check(const struct World *world, const struct Ranks *ranks,
                 const struct Options *options, const struct Ops *ops, const struct Model *model);

/* ---- for ranks.c alone ----------------------------------------------------------------------- */

/* Starts `size` ranks that meet at `id` and ends with them (ranks_launch.c). */
_Noreturn void ranks_launch(char **argv, int size, const unsigned char id[RANKS_ID],
                            const char *backend);

/* What ranks_check compares: lines of a name, a tab and a value, first "host" and "device". The
   first later one that differs between rank 0's text and another rank's, as a sentence; or NULL. */
const char *ranks_compare(const char *zero, const char *other, int rank);
/* Have two of them the same GPU? A sentence, or NULL. device: its name. */
const char *ranks_share(const char *a, const char *b, int rank_a, int rank_b, const char *device);

#endif
