/* What the options choose. Every name is looked up and every contradiction refused here, before
   anything is made: each function takes the options it reads and returns what they mean, or ends
   the program (die_input). */
#ifndef LLMC_CHOOSE_H
#define LLMC_CHOOSE_H

#include "directory.h"
#include "options.h"
#include "../checkpoint.h"
#include "../rl/entropy.h"
#include "../rl/objectives.h"
#include "../tasks/data.h"
#include "../tasks/scorer.h"
#include "../tasks/task.h"

#define MAX_PHASES 8

/* One task of a session: learnt until global step `end`. */
struct Phase {
    const struct Task *task;
    int64_t begin, end;
};

struct Plan {
    struct Phase phases[MAX_PHASES];   /* one, or those of --tasks */
    int num_phases;
    int64_t steps;                     /* of all phases */
    struct Task *data;                 /* the task of --data, then that of the one phase; or NULL */
    bool supervised;                   /* its steps are supervised ones (--objective ce) */
};

/* The user's program that gives rewards, or NULL; nothing of it is started. */
struct Scorer *choose_scorer(const struct Options *options, int threads);
struct Plan choose_plan(const struct Options *options, struct Scorer *scorer);
/* The phase that a run with this progress is in; die_input if the plan is not the one it was begun
   with. Fresh progress is in phase 0. */
int choose_phase(const struct Plan *plan, const struct Progress *progress);
/* The preset with the options' axes and numbers. */
struct Objective choose_objective(const struct Options *options);
/* "tiny" or "llm": whose values the entropy options start from. */
const char *choose_scale(const struct Options *options);
struct EntropyOptions choose_entropy(const struct Options *options, enum EntropyControl control);
/* --shard-size in bytes. */
size_t choose_shard_bytes(const struct Options *options);
/* How many ranks: 1 unless --gpus or --ranks says more. */
int choose_ranks(const struct Options *options);
/* Warns of options that were set and do nothing: what reads them was not chosen. */
void choose_warn(const struct Options *options, const struct Objective *objective);

/* True for a plan of memory that needs no more of the model's directory than its config.json
   (choose_model.c): --device-memory with a directory and without --data. Its lengths are those of
   --max-prompt (0: 512) and --max-tokens (0: 256). die_input for --device-memory without
   --dry-run. checkpoint: struct Place's. */
bool choose_shape_only(const struct Options *options, const char *checkpoint);
/* The model's configuration, from place's checkpoint or by the options, with Vp for the backend;
   and its tokenizer, which the caller frees. task: NULL for a plan by the shape alone, and then
   *tokenizer is left as it is. longest: positions that a new model has at least where --context
   does not say how many. die_input for what cannot be used. */
struct ModelConfig choose_model(const struct Options *options, const struct Place *place,
                                const struct Task *task, int longest, const struct Ops *ops,
                                struct Tokenizer **tokenizer);
/* What a completion ends with: the tokenizer's end of text, and all that the directory names. V:
   words of the model. */
struct Ends choose_ends(const struct Options *options, const struct Place *place,
                        const struct Tokenizer *tokenizer, int V);

/* Replaces the sizes of a new model that --layers, --channels and the like name. */
void choose_shape(struct ModelConfig *config, const struct Options *options);
enum Recompute choose_recompute(const struct Options *options);
/* How many pages of `page` bytes the decode cache is to have: as --cache-gb (given; 0: not given)
   says; or enough for every row at its longest (most), if that is at most 1 GiB or a quarter of the
   memory that the plan may have (budget, bytes). Rows are seldom all at their longest, and a row
   that finds no page waits. least: pages of one longest row, which must fit; die_input if it does
   not. */
int choose_pages(double given, double budget, double page, int least, int most);

#endif
