/* Checkpoints are Hugging Face directories that from_pretrained reads as they are, plus what
   training needs to go on (doc/formats.md):

       RUN/checkpoints/step_000100/
           model.safetensors       or shards and their index
           config.json  vocab.json merges.txt tokenizer_config.json, or the source's files
           optimizer.safetensors   exp_avg.NAME, exp_avg_sq.NAME, master.NAME (float32)
           trainer_state.json      step, ordinals, controller, settings
           checksums               of all of these; what is loaded is compared with them
       RUN/checkpoints/latest      a text file with the directory's name, moved into place last

   A checkpoint is written under a temporary name, synced, renamed; only then does `latest` move,
   and only then are old ones removed. So a kill at any moment leaves a complete latest one. */
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>
#include "base/fields.h"
#include "checkpoint_export.h"
#include "model.h"
#include "io/tokenizer.h"
#include "world.h"

/* What a run has done so far, saved and restored field by field through the table in checkpoint.c.
   The entropy controller's state is saved beside it through a table of its own. */
struct Progress {
    int64_t step;                 /* RL steps completed */
    int64_t warm_step;            /* supervised steps completed */
    int64_t optimizer_step;
    int64_t group_ordinal;        /* next global draw ordinal */
    int64_t demonstration_ordinal;
    int64_t update_ordinal;
    int64_t num_tokens;           /* trained on so far */
    int64_t skipped_in_a_row;
    int64_t phases_begun;         /* tasks of --tasks that were started */
    int64_t phase_begin;          /* first step of the one in hand */
    double loss_scale;            /* of fp16 gradients; 1 elsewhere */
    int64_t loss_scale_updates;   /* good updates since it changed */
    /* settings that must be equal for a bitwise resume; a difference is printed, not refused */
    int64_t seed, threads, micro_tokens, ranks;   /* ranks 0: of a file that does not say */
    char dtype[8], backend[16], blas[32];
    char task[64];
    char control[32];             /* the entropy control that the controller's state belongs to */
};

/* Reads DIR/config.json into `config`, with Vp = V: NULL or one sentence saying what is wrong
   (static storage, without the file's name). A tied model whose file holds a head of its own that
   differs from the embedding becomes untied, as in transformers; that is said. All checksums but
   those of the tensors, which are verified when they are loaded, are verified (die_input). */
const char *checkpoint_config(const char *directory, struct ModelConfig *config);
/* Loads weights (both names with and without "transformer."); die_input on any misfit, a wrong
   checksum or an element that is not finite, naming file, tensor, and what was expected. */
void checkpoint_load_weights(const char *directory, const struct Model *model,
                             struct Weights *weights);
/* What training goes on with, of a run that computed in `dtype`: moments, and weights that are
   rounded in model.safetensors, where the file has them. Every rank reads the file, and keeps its
   share of what is shared: so a run goes on with any number of ranks. Those of a float32 run
   replace `weights`; those of a 16-bit type are taken only where the backend computes in the same
   (master weights where `optimizer` has such a buffer), else what checkpoint_load_weights gave
   stays. die_input likewise. */
void checkpoint_load_optimizer(const char *directory, const struct Model *model,
                               struct Weights *weights, const struct OptimizerState *optimizer,
                               const char *dtype);
/* Is there a trainer_state.json, and not that of transformers' Trainer, which has the same name? */
bool checkpoint_has_state(const char *directory);
/* trainer_state.json: the run's progress, and further structs with their tables (a list that ends
   with a table of NULL; NULL: none). die_input where a field is missing or out of its bounds. */
void checkpoint_load_state(const char *directory, struct Progress *progress,
                           const struct FieldSection *sections);

/* Seconds that reading or writing one takes on a slow disk, at 20 MB/s: how much longer ranks wait
   for each other then. */
double checkpoint_seconds(const struct Model *model);

/* Writes one checkpoint; keep = how many to leave (0 = all). optimizer NULL: weights only; sections
   as above; export NULL: as of a run that began from random weights. Returns with `latest` pointing
   at it. The run's directory must be there: a save never makes it.

   world (NULL: one rank): every rank calls this, and returns when all is written. Rank 0 alone
   writes, and uses run_directory; the moments and masters of a share are gathered one after another
   in optimizer->whole, so that no rank's host holds more than a piece of a tensor. The others wait
   for checkpoint_seconds and their timeout. */
void checkpoint_save(const char *run_directory, const struct Model *model,
                     const struct Weights *weights, const struct OptimizerState *optimizer,
                     const struct Tokenizer *tokenizer, const struct Progress *progress,
                     const struct FieldSection *sections, const struct Export *export, int keep,
                     const struct World *world);
/* The directory `latest` names, complete; false: there is none. Only reads, so it may run beside a
   program that saves: what that one has put aside for an instant is found, or waited for. */
bool checkpoint_latest(const char *run_directory, char *out, size_t capacity);
/* The same, and until checkpoint_release (or this process' end) the --keep of a program that saves
   leaves that checkpoint where it is: for whoever reads it file by file. *hold is for
   checkpoint_release only; it is -1 where nothing is held: there is no checkpoint, or the file
   system has no locks. */
bool checkpoint_latest_held(const char *run_directory, char *out, size_t capacity, int *hold);
void checkpoint_release(int *hold);
/* Removes what --keep removes after a save: what a killed save left, and what readers held then.
   Only for the process that holds the run's lock. */
void checkpoint_keep(const char *run_directory, int keep);
/* Removes every checkpoint of a run, `latest` first; for a fresh start in its place. */
void checkpoint_remove_all(const char *run_directory);
/* The run under `parent` whose `latest` moved last; false: there is none. */
bool checkpoint_newest_run(const char *parent, char *out, size_t capacity);

#endif
