/* A session: everything one run of the program holds, opened from the options in one place so that
   train_gpt2.cu is only the loop. */
#ifndef LLMC_SESSION_H
#define LLMC_SESSION_H

#include "choose.h"
#include "directory.h"
#include "ranks.h"
#include "report.h"
#include "../arena.h"
#include "../checkpoint.h"
#include "../io/tokenizer.h"
#include "../model.h"
#include "../rl/entropy.h"
#include "../rl/evaluate.h"
#include "../rl/experience.h"
#include "../rl/objectives.h"
#include "../rl/sampler.h"
#include "../rl/trainer.h"
#include "../tasks/scorer.h"
#include "../tasks/task.h"
#include "../world.h"

struct Session {
    struct Options options;
    struct Options before;           /* a resumed run's until now; else the same */
    const struct Ops *ops;
    struct World world;              /* the ranks; with --dry-run only their number */
    struct Plan plan;                /* what to learn, one task after another */
    const struct Task *task;         /* of the phase in hand */
    struct Tokenizer *tokenizer;     /* NULL: --score, and the directory has none */
    struct Scorer *scorer;           /* of --scorer; NULL: none */
    struct Ends ends;                /* the tokens that end a completion */
    struct Objective objective;      /* the preset with the options' axes */
    struct Model *model;
    struct Arena arena;
    struct OpsShape shape;           /* micro-batch, decode rows, lengths */
    int decode_rows, max_tokens, threads;
    int cache_pages;                 /* of the decode cache (struct KvCache) */
    bool shape_only;                 /* choose_shape_only */
    bool scores_old;                 /* old log-probabilities by a scoring pass */
    bool dumped;                     /* session_dump_hidden has written its file */
    struct Trainer *trainer;
    struct Sampler *sampler;
    struct Weights reference;        /* frozen; data NULL: no reference */
    struct EntropyOptions entropy_options;
    struct EntropyState entropy;
    struct Progress progress;
    struct Progress saved;           /* as the last checkpoint has it; step -1: there is none */
    char matmul_choices[MATMUL_CHOICES_TEXT];   /* the backend's, as a checkpoint has them */
    struct Experience experience;
    struct Replay *replay;           /* NULL: completions are sampled */
    struct Report report;
    struct Export export;            /* how checkpoints look to other programs */
    size_t shard_bytes;              /* of --shard-size */
    struct Place place;              /* where it writes, and what it starts from */
};

/* Options to a session ready to train: prints the batch arithmetic and the memory plan, makes or
   resumes the run directory, loads or draws the weights. Ends the program where the options ask for
   no training (--help, --dry-run) or are wrong. */
void session_open(struct Session *session, const struct Ranks *ranks, int argc, char **argv);
/* On held-out prompts of `task`. */
struct Evaluation session_evaluate(struct Session *session, const struct Task *task);
/* Collects rollouts by the session's options. */
struct CollectOptions session_collect_options(const struct Session *session);
/* A checkpoint of everything, so that --resume goes on from here. Called, as everything else here,
   by all ranks. */
void session_save(struct Session *session);
/* The frozen reference for KL becomes the current weights (start of RL), and is saved. */
void session_freeze_reference(struct Session *session);
/* --score FILE: JSON lines in, JSON lines out on stdout. */
void session_score(struct Session *session);
/* --dump-hidden FILE, after the first rollout of this process; before and without it, nothing. */
void session_dump_hidden(struct Session *session);
/* Ends the program if that file cannot be, or there will be no rollout. */
void session_check_dump(const struct Session *session);
/* The task in hand goes into the state that is saved. */
void session_note_task(struct Session *session);
/* Third non-finite update in a row: writes RUN/failure.jsonl with the batch and RUN/failure/ with
   the weights, leaves the run's own checkpoints alone, and ends (exit 1). */
_Noreturn void session_fail(struct Session *session, const char *tensor);
void session_close(struct Session *session);

#endif
