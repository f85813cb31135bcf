/* The program's options are one table (options.c): name, type, range, default, when it acts, help.
   llmc/base/options.c parses it.

   To add one: a field here, a row there. An option appears when it works. */
#ifndef LLMC_OPTIONS_H
#define LLMC_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include "../base/options.h"

struct Options {
    /* what to learn */
    char task[OPTION_TEXT], tasks[OPTION_TEXT], model[OPTION_TEXT];
    /* prompts from a file */
    char data[OPTION_TEXT], eval_data[OPTION_TEXT];
    double eval_share;
    char prompt_template[OPTION_TEXT], chat[OPTION_TEXT], system[OPTION_TEXT];
    char reward[OPTION_TEXT], reward_regex[OPTION_TEXT];
    char scorer[OPTION_TEXT];
    int64_t scorer_workers;              /* 0 = chosen by the program */
    double scorer_timeout;               /* seconds */
    int64_t max_turns;
    int64_t max_prompt;                  /* 0 = chosen by the program */
    int64_t shuffle_buffer, bad_lines;
    int64_t layers, channels, heads, context;   /* 0 = the named model's */
    bool untied;
    /* how */
    char objective[OPTION_TEXT];
    char entropy_control[OPTION_TEXT];   /* "" = the objective's; likewise the axes below */
    char advantage[OPTION_TEXT], ratio[OPTION_TEXT], surrogate[OPTION_TEXT];
    char aggregation[OPTION_TEXT], overlong[OPTION_TEXT], kl[OPTION_TEXT], filter[OPTION_TEXT];
    double clip_low, clip_high, dual_clip, kl_coef;      /* NaN = the objective's */
    int64_t filter_rounds;
    char logp_dtype[OPTION_TEXT], old_logp[OPTION_TEXT];
    /* entropy */
    char scale[OPTION_TEXT], controller[OPTION_TEXT];    /* "" = tiny; the preset's */
    double entropy_target, entropy_target_ratio;         /* NaN = the scale's preset, likewise: */
    double zeta_start, zeta_min, zeta_max;
    double clip_high_min, clip_high_max, clip_high_step;
    double entropy_coef, entropy_coef_max, entropy_coef_step;
    bool repo_d_signed;
    int64_t entropy_push_tokens, attention_entropy_every;
    int64_t steps, warm_start, warm_batch, prompts, group, minibatches, epochs;
    double lr, warm_lr, weight_decay, grad_clip, beta1, beta2;
    int64_t lr_warmup;
    char lr_schedule[OPTION_TEXT];
    double lr_min_ratio;
    double temperature;
    int64_t max_tokens;                  /* 0 = the task's */
    /* evaluation */
    int64_t eval_every, eval_prompts, eval_samples;
    bool eval_only;
    char score[OPTION_TEXT], tokenize[OPTION_TEXT], detokenize[OPTION_TEXT];
    /* the run */
    char run[OPTION_TEXT];
    bool overwrite;
    char resume[OPTION_TEXT];
    int64_t save_every, keep;
    char save_dtype[OPTION_TEXT], shard_size[OPTION_TEXT];
    int64_t rollouts_every;
    char replay[OPTION_TEXT], dump_hidden[OPTION_TEXT];
    /* the machine */
    char backend[OPTION_TEXT], dtype[OPTION_TEXT], recompute[OPTION_TEXT];
    char matmul[OPTION_TEXT];
    int64_t seed, threads, decode_rows, micro_tokens;   /* 0 = chosen by the program */
    double cache_gb;                                    /* likewise */
    double device_memory;                               /* 2^30 bytes; 0 = what is free here */
    /* several ranks */
    char gpus[OPTION_TEXT];              /* "" = one process; "all", "4", "0,2,3" */
    int64_t ranks;                       /* on the CPU; 0 = one, or the launcher's */
    int64_t device;                      /* -1 = the launcher's, else 0 */
    char comm[OPTION_TEXT];
    double comm_timeout;                 /* seconds */
    int64_t comm_port;                   /* 0 = MASTER_PORT + 1 */
    int64_t zero;                        /* 1 = the optimizer's state is shared */
    char grad_comm[OPTION_TEXT];
    bool dry_run, quiet, help;
    unsigned char given[OPTION_LIMIT];   /* by row of the table: enum OptionGiven */
};

/* Defaults, then --config FILE in its place on the line, then the line. die_input for anything
   unknown (suggesting the nearest name), out of range, or without its value. --help prints and
   exits 0. */
void options_parse(struct Options *options, int argc, char **argv);
/* --help's text: every option with its default and range. */
void options_help(FILE *out);
/* All options as JSON, atomically; read back by --config. */
void options_save(const struct Options *options, const char *path);
/* Was it set on the line or in a config file (rather than left at its default)? */
bool options_given(const struct Options *options, const char *name);
/* A real number by its option's name; NaN: undecided, or there is no such option. */
double options_real(const struct Options *options, const char *name);
/* Was it set by its own word on the line? */
bool options_on_line(const struct Options *options, const char *name);

/* Row number i of the table, or NULL past its end. */
const struct Option *options_row(int i);
/* What other trainers call it; NULL: there are no more. */
const struct OptionSynonym *options_synonym(int i);

/* The two checks behind the table's column. A run that goes on keeps what its rows say: die_input
   for the first option that differs from `before` and may not. `warm`: its warm start is not
   over. */
void options_check_resume(const struct Options *options, const struct Options *before, bool warm);
/* With --eval-only, --score, --tokenize or --detokenize: die_input for the first word on the line
   that does nothing there. */
void options_check_measure(const struct Options *options);

#endif
