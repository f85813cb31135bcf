/* The program's options: one row each. The parser is llmc/base/options.c. */
#include "options.h"

#include <math.h>
#include <stddef.h>
#include <string.h>
#include "../base/check.h"

/* When an option acts; each row says it in one column.

   FIXED, WARM, FREE: what --resume may change. A run keeps what is FIXED; WARM may change until its
   warm start is over; FREE may change, and acts from there on. Another value is refused.
   EVAL, SCORE, TOKENS: acts with --eval-only, with --score, with --tokenize and --detokenize; what
   does not is refused on their line.
   ONCE: what to do now, no part of the run's recipe: it is not saved. */
enum { ONCE = OPTION_ONCE, FIXED = 2, WARM = 4, FREE = 8, EVAL = 16, SCORE = 32,
       TOKENS = 64 };

#define FIELD(name) offsetof(struct Options, name)
#define MANY 1e9                          /* for numbers without a natural upper bound */
#define EXACT 9007199254740991.0          /* 2^53 - 1: JSON's numbers are exact up to here */

static const char LEARN[] = "What to learn", DATA[] = "Prompts from a file (doc/data.md)",
                  HOW[] = "How", ENTROPY[] = "Entropy",
                  EVALUATION[] = "Evaluation", RUN[] = "The run", MACHINE[] = "The machine";

#define WHOLE(name, field, min, max, value, group, use, help) \
    {name, OPTION_WHOLE, FIELD(field), min, max, value, NULL, NULL, group, use, help}
#define REAL(name, field, min, max, value, group, use, help) \
    {name, OPTION_REAL, FIELD(field), min, max, value, NULL, NULL, group, use, help}
#define FLAG(name, field, group, use, help) \
    {name, OPTION_FLAG, FIELD(field), 0, 0, 0, NULL, NULL, group, use, help}
#define WORD(name, field, value, choices, group, use, help) \
    {name, OPTION_WORD, FIELD(field), 0, 0, 0, value, choices, group, use, help}

static const struct Option rows[] = {
    WORD("task", task, "countdown", NULL, LEARN, FIXED | EVAL, "built-in task"),
    WORD("tasks", tasks, "", NULL, LEARN, FREE | EVAL,
         "one after another, with steps: countdown:300,countdown_sorted:300"),
    WORD("model", model, "tiny", NULL, LEARN, FIXED | EVAL | SCORE | TOKENS,
         "named size, or a Hugging Face directory"),
    WHOLE("layers", layers, 0, 1000, 0, LEARN, FIXED, "layers; 0 = the model's"),
    WHOLE("channels", channels, 0, 65536, 0, LEARN, FIXED,
          "width of the hidden state; 0 = the model's"),
    WHOLE("heads", heads, 0, 1024, 0, LEARN, FIXED, "attention heads; 0 = the model's"),
    WHOLE("context", context, 0, 1048576, 0, LEARN, FIXED, "positions; 0 = the model's"),
    FLAG("untied", untied, LEARN, FIXED, "the head has a weight of its own, not the embedding's"),

    WORD("data", data, "", NULL, DATA, FREE | EVAL,
         "JSON lines with prompts and answers, completions, messages or text"),
    WORD("eval-data", eval_data, "", NULL, DATA, FREE | EVAL,
         "held-out prompts; empty = a share of --data"),
    REAL("eval-share", eval_share, 0, 0.9, 0.1, DATA, FIXED | EVAL,
         "share of --data that is held out, by a hash of the prompt; 0 = none"),
    WORD("prompt-template", prompt_template, "", NULL, DATA, FIXED | EVAL,
         "file with {key} for the keys of a line; {{ and }} are braces"),
    WORD("chat", chat, "auto", "auto chatml llama3 none", DATA, FIXED | EVAL,
         "form of a conversation; auto = by the tokenizer's special tokens"),
    WORD("system", system, "auto", NULL, DATA, FIXED | EVAL,
         "system prompt of a chat; auto = the default of the model's template"),
    WORD("reward", reward, "auto", NULL, DATA, FREE | EVAL,
         "verifiers with weights: number:1,length:0.1; auto = by the first answer"),
    WORD("reward-regex", reward_regex, "", NULL, DATA, FREE | EVAL,
         "pattern of --reward regex; empty = each line's answer"),
    WORD("scorer", scorer, "", NULL, DATA, FREE | EVAL,
         "a program that gives the rewards: 'python3 NAME.py'"),
    WHOLE("scorer-workers", scorer_workers, 0, 256, 0, DATA, FREE | EVAL,
          "processes of it; 0 = one per thread, at most 8"),
    REAL("scorer-timeout", scorer_timeout, 0.01, 1e6, 10, DATA, FREE | EVAL,
         "seconds that it may take for a completion"),
    WHOLE("max-turns", max_turns, 1, 1000, 1, DATA, FREE | EVAL,
          "turns of the model in a completion; --scorer may answer between them"),
    WHOLE("max-prompt", max_prompt, 0, 1048576, 0, DATA, FIXED | EVAL,
          "tokens of a prompt, longer ones are passed over; 0 = 512, or what fits"),
    WHOLE("shuffle-buffer", shuffle_buffer, 1, 100000000, 10000, DATA, FIXED | EVAL,
          "lines that are shuffled together; 1 = the file's order"),
    WHOLE("bad-lines", bad_lines, 0, MANY, 100, DATA, FREE | EVAL,
          "the most bad lines that are passed over"),

    WORD("objective", objective, "grpo", NULL, HOW, FREE, "preset: a row of llmc/rl/objectives.c"),
    WORD("advantage", advantage, "", NULL, HOW, FREE, "replaces the objective's"),
    WORD("ratio", ratio, "", NULL, HOW, FREE, "replaces the objective's"),
    WORD("surrogate", surrogate, "", NULL, HOW, FREE, "replaces the objective's"),
    WORD("aggregation", aggregation, "", NULL, HOW, FREE, "replaces the objective's"),
    WORD("overlong", overlong, "", NULL, HOW, FREE, "replaces the objective's"),
    WORD("kl", kl, "", NULL, HOW, FREE, "estimator; replaces the objective's"),
    REAL("kl-coef", kl_coef, 0, 1000, NAN, HOW, FREE,
         "weight of the KL to the initial model; 0 = off"),
    WORD("group-filter", filter, "", "off on", HOW, FREE,
         "drop groups of equal rewards and refill"),
    WHOLE("filter-rounds", filter_rounds, 1, 1000, 8, HOW, FREE,
          "the most rounds of generation for it"),
    REAL("dual-clip", dual_clip, 0, 1000, NAN, HOW, FREE,
         "bound on the ratio where A < 0; 0 = off"),
    REAL("clip-low", clip_low, 0, 1, NAN, HOW, FREE, "the ratio's lower bound is 1 - this"),
    REAL("clip-high", clip_high, 0, 1000, NAN, HOW, FREE, "the ratio's upper bound is 1 + this"),
    WHOLE("steps", steps, 0, MANY, 600, HOW, FREE, "RL steps"),
    WHOLE("warm-start", warm_start, 0, MANY, 300, HOW, WARM, "supervised steps before them"),
    WHOLE("warm-batch", warm_batch, 1, 65536, 256, HOW, WARM, "demonstrations per supervised step"),
    REAL("warm-lr", warm_lr, 0, 1, 1e-3, HOW, WARM, "learning rate of the supervised steps"),
    WHOLE("prompts", prompts, 1, 65536, 32, HOW, FREE, "prompts per RL step"),
    WHOLE("group", group, 1, 65536, 16, HOW, FREE, "completions per prompt"),
    WHOLE("minibatches", minibatches, 1, 65536, 4, HOW, FREE, "updates per epoch of a rollout"),
    WHOLE("epochs", epochs, 1, 1000, 1, HOW, FREE, "times each rollout is used"),
    REAL("lr", lr, 0, 1, 1e-4, HOW, FREE, "learning rate of the RL steps"),
    WHOLE("lr-warmup", lr_warmup, 0, MANY, 0, HOW, FREE, "steps over which it rises from 0"),
    WORD("lr-schedule", lr_schedule, "constant", "constant linear cosine", HOW, FREE,
         "how it falls from there to the last step of all tasks"),
    REAL("lr-min-ratio", lr_min_ratio, 0, 1, 0, HOW, FREE, "the share of --lr it falls to"),
    REAL("weight-decay", weight_decay, 0, 100, 0, HOW, FREE, "AdamW's"),
    REAL("grad-clip", grad_clip, 0, MANY, 1, HOW, FREE, "largest gradient norm; 0 = no limit"),
    REAL("beta1", beta1, 0, 0.999999, 0.9, HOW, FREE, "AdamW's"),
    REAL("beta2", beta2, 0, 0.999999, 0.95, HOW, FREE, "AdamW's"),
    REAL("temperature", temperature, 0.01, 100, 1, HOW, FREE | EVAL | SCORE,
         "of sampling and of the objective"),
    WHOLE("max-tokens", max_tokens, 0, 1048576, 0, HOW, FREE | EVAL,
          "longest completion; 0 = the task's"),
    WORD("old-logp", old_logp, "auto", "auto sampled scored", HOW, FREE,
         "the ratio's denominator: as sampled, or scored; auto = scored below fp32"),

    WORD("entropy-control", entropy_control, "", NULL, ENTROPY, FREE, "replaces the objective's"),
    WORD("scale", scale, "", "tiny llm", ENTROPY, FREE,
         "built-in tasks' or the papers' values; empty = llm with --data --model DIR"),
    WORD("controller", controller, "", "double pi", ENTROPY, FREE, "rule of the controller"),
    REAL("entropy-target", entropy_target, 0, 100, NAN, ENTROPY, FREE, "in nats"),
    REAL("entropy-target-ratio", entropy_target_ratio, 0, 10, NAN, ENTROPY, FREE,
         "the target as a share of the first rollout's entropy"),
    REAL("zeta-start", zeta_start, -1000, 1000, NAN, ENTROPY, FREE, "REPO's variable at the start"),
    REAL("zeta-min", zeta_min, 0, 1000, NAN, ENTROPY, FREE, "its smallest size"),
    REAL("zeta-max", zeta_max, 0, 1000, NAN, ENTROPY, FREE, "its largest size"),
    REAL("clip-high-min", clip_high_min, 0, 1000, NAN, ENTROPY, FREE, "ADAPO's lower bound"),
    REAL("clip-high-max", clip_high_max, 0, 1000, NAN, ENTROPY, FREE, "ADAPO's upper bound"),
    REAL("clip-high-step", clip_high_step, 1, 1000, NAN, ENTROPY, FREE,
         "ADAPO's factor per rollout"),
    REAL("entropy-coef", entropy_coef, -1000, 1000, NAN, ENTROPY, FREE,
         "weight of the entropy bonus"),
    REAL("entropy-coef-max", entropy_coef_max, 0, 1000, NAN, ENTROPY, FREE,
         "the adaptive bonus' largest weight"),
    REAL("entropy-coef-step", entropy_coef_step, 0, 1000, NAN, ENTROPY, FREE,
         "the adaptive bonus' change of it per rollout"),
    FLAG("repo-d-signed", repo_d_signed, ENTROPY, FREE,
         "REPO-D by the signed change, as in the paper"),
    WORD("logp-dtype", logp_dtype, "fp32", "fp32 bf16 fp16", ENTROPY, FREE,
         "rounds log-probabilities before the ratio: the precision study"),
    WHOLE("entropy-push-tokens", entropy_push_tokens, -1, MANY, -1, ENTROPY, FREE,
          "tokens whose change of entropy is measured; -1 = 2 % of them, 0 = none"),
    WHOLE("attention-entropy-every", attention_entropy_every, 0, MANY, 1, ENTROPY, FREE,
          "steps between measurements of attention entropy; 0 = none"),

    WHOLE("eval-every", eval_every, 0, MANY, 50, EVALUATION, FREE,
          "RL steps between evaluations, one before and one after included; 0 = none"),
    WHOLE("eval-prompts", eval_prompts, 1, 1000000, 200, EVALUATION, FREE | EVAL,
          "held-out prompts"),
    WHOLE("eval-samples", eval_samples, 1, 65536, 64, EVALUATION, FREE | EVAL,
          "completions of each"),
    FLAG("eval-only", eval_only, EVALUATION, ONCE | EVAL, "evaluate and stop"),
    WORD("score", score, "", NULL, EVALUATION, ONCE | SCORE,
         "score the prompts and completions of a JSON lines file, and stop"),
    WORD("tokenize", tokenize, "", NULL, EVALUATION, ONCE | TOKENS,
         "token ids of the texts of a JSON lines file, by --model DIR, and stop"),
    WORD("detokenize", detokenize, "", NULL, EVALUATION, ONCE | TOKENS,
         "texts of the ids of a JSON lines file, by --model DIR, and stop"),

    WORD("run", run, "", NULL, RUN, ONCE | EVAL | SCORE,
         "directory of the run; empty = runs/NAME-TIME"),
    FLAG("overwrite", overwrite, RUN, ONCE,
         "an older run in its directory, or file of --dump-hidden, is lost"),
    WORD("resume", resume, "", NULL, RUN, ONCE | EVAL | SCORE,
         "go on: auto (what --run holds) or a run's directory"),
    WHOLE("save-every", save_every, 0, MANY, 100, RUN, FREE,
          "RL steps between checkpoints; 0 = only the last"),
    WHOLE("keep", keep, 0, MANY, 2, RUN, FREE, "checkpoints to keep; 0 = all"),
    WORD("save-dtype", save_dtype, "auto", "auto fp32 bf16 fp16", RUN, FREE,
         "of the weights in checkpoints; auto = that of --model's file"),
    WORD("shard-size", shard_size, "5GB", NULL, RUN, FREE,
         "weights larger than this are saved in several files; KB, MB or GB"),
    WHOLE("rollouts-every", rollouts_every, 0, MANY, 10, RUN, FREE,
          "RL steps between those whose completions go to rollouts.jsonl; 0 = none"),
    WORD("replay", replay, "", NULL, RUN, FREE,
         "take completions from this rollouts.jsonl instead of sampling"),
    WORD("dump-hidden", dump_hidden, "", NULL, RUN, ONCE,
         "write the first rollout's hidden states there, as safetensors"),
    {"config", OPTION_CONFIG, 0, 0, 0, 0, NULL, NULL, RUN, ONCE | EVAL | SCORE | TOKENS,
     "options from a JSON file; what follows on the line replaces them"},
    FLAG("dry-run", dry_run, RUN, ONCE | EVAL, "print the plan and stop"),
    FLAG("quiet", quiet, RUN, ONCE | EVAL | SCORE | TOKENS,
         "print errors, and what was measured, only"),
    FLAG("help", help, RUN, ONCE | EVAL | SCORE | TOKENS, "print this and stop"),

    WORD("backend", backend, "auto",
         "auto cpu cuda sim sim-asan sim-race", MACHINE, FREE | EVAL | SCORE,
         "what computes; auto = cuda where there is a GPU, else cpu"),
    WORD("dtype", dtype, "auto", "auto bf16 fp16 fp32", MACHINE, FREE | EVAL | SCORE,
         "GPU: of weights and activations, auto = bf16; CPU: of products, auto = fp32"),
    WORD("recompute", recompute, "none", "none mlp layer", MACHINE, FREE,
         "what backward computes again instead of keeping it in memory"),
    WORD("matmul", matmul, "timed", "timed first", MACHINE, FREE,
         "on a GPU: the fastest in a trial, or the library's first"),
    WORD("gpus", gpus, "", NULL, MACHINE, ONCE | EVAL,
         "a process for each of these: all, how many, or 0,2,3; empty = one"),
    WHOLE("ranks", ranks, 0, 64, 0, MACHINE, ONCE | EVAL,
          "processes on the CPU that train together; 0 = one, or a launcher's"),
    WHOLE("device", device, -1, 1023, -1, MACHINE, ONCE | EVAL | SCORE,
          "number of the GPU; -1 = the launcher's LOCAL_RANK, else 0"),
    WORD("comm", comm, "auto", "auto nccl", MACHINE, ONCE | EVAL,
         "how ranks communicate; nccl = through it even when there is one rank"),
    REAL("comm-timeout", comm_timeout, 1, 1e6, 120, MACHINE, ONCE | EVAL,
         "seconds that a rank waits for the others"),
    WHOLE("comm-port", comm_port, 0, 65535, 0, MACHINE, ONCE | EVAL,
          "where ranks that a launcher started meet; 0 = MASTER_PORT + 1"),
    WHOLE("zero", zero, 0, 1, 1, MACHINE, FREE,
          "1 = a rank holds its share of the optimizer's state; 0 = all of it"),
    WORD("grad-comm", grad_comm, "fp32", "fp32 bf16", MACHINE, FREE,
         "type in which ranks send gradients"),
    WHOLE("seed", seed, 0, EXACT, 1, MACHINE, FIXED | EVAL, "of every random draw"),
    WHOLE("threads", threads, 0, 1024, 0, MACHINE, FREE | EVAL | SCORE, "0 = one per processor"),
    WHOLE("decode-rows", decode_rows, 0, 65536, 0, MACHINE, FREE | EVAL,
          "completions decoded side by side; 0 = the program chooses"),
    REAL("cache-gb", cache_gb, 0, 1e6, 0, MACHINE, FREE | EVAL,
         "size of the decode cache in 2^30 bytes; 0 = the program chooses"),
    REAL("device-memory", device_memory, 0, 1e6, 0, MACHINE, ONCE | EVAL,
         "--dry-run plans for so many 2^30 bytes; 0 = what is free here"),
    WHOLE("micro-tokens", micro_tokens, 0, MANY, 0, MACHINE, FREE | SCORE,
          "tokens per forward and backward pass; 0 = the program chooses"),
};

enum { NUM_ROWS = sizeof rows / sizeof *rows };
_Static_assert(NUM_ROWS <= OPTION_LIMIT, "raise OPTION_LIMIT in options.h");

/* Names of options in other trainers (TRL, verl, transformers, llm.c), and what they are here. A -
   matches _ too. */
static const struct OptionSynonym synonyms[] = {
    {"learning-rate", "--lr"},
    {"lr-scheduler-type", "--lr-schedule"},
    {"warmup-steps", "--lr-warmup"},
    {"warmup-ratio", "--lr-warmup, in steps"},
    {"max-steps", "--steps"},
    {"total-training-steps", "--steps"},
    {"total-epochs", "--steps; --epochs says how often a rollout is used"},
    {"num-train-epochs", "--steps; --epochs says how often a rollout is used"},
    {"num-iterations", "--epochs"},
    {"ppo-epochs", "--epochs"},
    {"batch-size", "--prompts x --group completions a step, in --minibatches updates"},
    {"train-batch-size", "--prompts"},
    {"per-device-train-batch-size", "--prompts x --group; how much at once: --micro-tokens"},
    {"gradient-accumulation-steps", "not needed: the program divides by itself (--micro-tokens)"},
    {"micro-batch-size", "--micro-tokens"},
    {"steps-per-generation", "--minibatches"},
    {"num-mini-batches", "--minibatches"},
    {"num-generations", "--group"},
    {"rollout-n", "--group"},
    {"n", "--group"},
    {"group-size", "--group"},
    {"max-completion-length", "--max-tokens"},
    {"max-new-tokens", "--max-tokens"},
    {"max-response-length", "--max-tokens"},
    {"max-length", "--context, --max-tokens"},
    {"output-dir", "--run"},
    {"run-name", "--run"},
    {"overwrite-output-dir", "--overwrite"},
    {"resume-from-checkpoint", "--resume"},
    {"model-name-or-path", "--model"},
    {"dataset-name", "--data, a file of JSON lines; built-in ones: --task"},
    {"dataset", "--data, a file of JSON lines; built-in ones: --task"},
    {"dataset-path", "--data"},
    {"train-file", "--data"},
    {"train-files", "--data"},
    {"train-data", "--data"},
    {"train-dataset", "--data"},
    {"prompt-data", "--data"},
    {"val-files", "--eval-data"},
    {"validation-file", "--eval-data"},
    {"eval-dataset", "--eval-data"},
    {"max-prompt-length", "--max-prompt"},
    {"chat-template", "--chat"},
    {"apply-chat-template", "--chat"},
    {"system-prompt", "--system"},
    {"input-template", "--prompt-template"},
    {"reward-funcs", "--reward, or --scorer COMMAND for a program of yours"},
    {"reward-function", "--reward, or --scorer COMMAND for a program of yours"},
    {"reward-fn", "--reward, or --scorer COMMAND for a program of yours"},
    {"custom-reward-function", "--scorer COMMAND"},
    {"reward-model", "--scorer COMMAND, a program that asks the model"},
    {"reward-weights", "--reward NAME:WEIGHT,NAME:WEIGHT"},
    {"verifier", "--reward"},
    {"dataset-test-split", "--eval-share or --eval-data"},
    {"test-size", "--eval-share"},
    {"buffer-size", "--shuffle-buffer"},
    {"shuffle", "--shuffle-buffer; 1 = the file's order"},
    {"packing", "not needed: rows are always packed"},
    {"beta", "--kl-coef"},
    {"init-kl-coef", "--kl-coef"},
    {"kl-loss-coef", "--kl-coef"},
    {"epsilon", "--clip-low and --clip-high"},
    {"cliprange", "--clip-low and --clip-high"},
    {"clip-ratio", "--clip-low and --clip-high"},
    {"epsilon-high", "--clip-high"},
    {"clip-ratio-high", "--clip-high"},
    {"clip-ratio-low", "--clip-low"},
    {"delta", "--dual-clip"},
    {"clip-ratio-c", "--dual-clip"},
    {"loss-type", "--objective or --aggregation"},
    {"loss-agg-mode", "--aggregation"},
    {"adv-estimator", "--advantage"},
    {"scale-rewards", "--advantage"},
    {"importance-sampling-level", "--ratio"},
    {"mask-truncated-completions", "--overlong mask"},
    {"max-grad-norm", "--grad-clip"},
    {"adam-beta1", "--beta1"},
    {"adam-beta2", "--beta2"},
    {"ent-coef", "--entropy-coef"},
    {"entropy-coeff", "--entropy-coef"},
    {"gamma", "not needed: a completion has one reward, which all its tokens get"},
    {"lam", "not needed: a completion has one reward, which all its tokens get"},
    {"top-k", "left out: samples come from the whole distribution, at --temperature"},
    {"top-p", "left out: samples come from the whole distribution, at --temperature"},
    {"min-p", "left out: samples come from the whole distribution, at --temperature"},
    {"wandb", "scripts/to_wandb.py, on the run's directory"},
    {"logging-steps", "not needed: every step is logged in metrics.jsonl"},
    {"report-to", "not needed: TensorBoard's files are always written (scripts/to_wandb.py)"},
    {"save-steps", "--save-every"},
    {"save-total-limit", "--keep"},
    {"eval-steps", "--eval-every"},
    {"eval-interval", "--eval-every"},
    {"gradient-checkpointing", "--recompute"},
    {"nproc-per-node", "--gpus; on the CPU --ranks"},
    {"num-processes", "--gpus; on the CPU --ranks"},
    {"num-gpus", "--gpus"},
    {"n-gpus-per-node", "--gpus"},
    {"world-size", "--gpus; on the CPU --ranks"},
    {"nnodes", "scripts/run_slurm.sh, or torchrun, srun or mpirun around ./train"},
    {"num-machines", "scripts/run_slurm.sh, or torchrun, srun or mpirun around ./train"},
    {"local-rank", "not needed: LOCAL_RANK says it; by hand --device"},
    {"zero-stage", "--zero"},
    {"deepspeed", "--zero 1 (ZeRO-1), which is the default"},
    {"fsdp", "--zero 1 (ZeRO-1), which is the default"},
    {"use-distributed-optimizer", "--zero 1, which is the default"},
    {"ddp-backend", "--comm"},
    {"ddp-timeout", "--comm-timeout"},
    {"main-process-port", "--comm-port"},
    {"tensor-parallel-size", "left out: every rank has the whole model (doc/scaling.md)"},
    {"tensor-model-parallel-size", "left out: every rank has the whole model (doc/scaling.md)"},
    {"bf16", "--dtype bf16"},
    {"fp16", "--dtype fp16"},
    {"optim", "not needed: it is AdamW"},
    {"num-workers", "--threads"},
    {"n-layer", "--layers"},
    {"n-head", "--heads"},
    {"n-embd", "--channels"},
    {"block-size", "--context"},
    {"architectures", "--model, given the directory of this file: it describes a model"},
};

static const struct OptionTable table = {
    .rows = rows, .num_rows = NUM_ROWS, .given = FIELD(given), .help = FIELD(help),
    .synonyms = synonyms, .num_synonyms = sizeof synonyms / sizeof *synonyms,
    .usage =
        "train: reinforcement learning of a language model\n\n"
        "  ./train                                     the built-in task, minutes on a CPU\n"
        "  ./train --objective repo --run runs/repo    another objective\n"
        "  ./train --resume runs/repo                  goes on where that run stopped\n"
        "  ./train --resume runs/repo --eval-only      measures it\n"
        "  ./train --config runs/repo/config.json --seed 2 --run runs/again\n"};

void options_parse(struct Options *options, int argc, char **argv) {
    memset(options, 0, sizeof *options);
    option_table_parse(&table, options, argc, argv);
}

void options_help(FILE *out) { option_table_help(&table, out); }

void options_save(const struct Options *options, const char *path) {
    option_table_save(&table, options, path);
}

bool options_given(const struct Options *options, const char *name) {
    int row = option_table_find(&table, name);
    return row >= 0 && options->given[row];
}

double options_real(const struct Options *options, const char *name) {
    int row = name ? option_table_find(&table, name) : -1;
    if (row < 0 || rows[row].type != OPTION_REAL) return NAN;
    return *(const double *)((const char *)options + rows[row].offset);
}

bool options_on_line(const struct Options *options, const char *name) {
    int row = option_table_find(&table, name);
    return row >= 0 && options->given[row] == OPTION_ON_LINE;
}

const struct OptionSynonym *options_synonym(int i) {
    return i < table.num_synonyms ? &synonyms[i] : NULL;
}

const struct Option *options_row(int i) { return i < NUM_ROWS ? &rows[i] : NULL; }

void options_check_resume(const struct Options *options, const struct Options *before, bool warm) {
    for (int i = 0; i < NUM_ROWS; i++) {
        const struct Option *o = &rows[i];
        char now[OPTION_TEXT], then[OPTION_TEXT];
        const char *zero = strstr(o->help, "0 = ");   /* what it stands for: "the model's" */
        if (o->use & (ONCE | FREE) || (o->use & WARM && warm)) continue;
        if (option_same(o, options, before)) continue;
        option_value(o, before, then);
        bool explain = zero && strcmp(then, "0") == 0;
        die_input("--%s %s: the run that goes on was begun with \"%s\"%s%s%s, and %s; start "
                  "another run for it", o->name, option_value(o, options, now), then,
                  explain ? " (" : "", explain ? zero : "", explain ? ")" : "",
                  o->use & WARM ? "its warm start is over" : "keeps it");
    }
}

void options_check_measure(const struct Options *options) {
    const struct { const char *name; bool on; unsigned use; } acts[] = {
        {"tokenize", options->tokenize[0], TOKENS}, {"detokenize", options->detokenize[0], TOKENS},
        {"score", options->score[0], SCORE}, {"eval-only", options->eval_only, EVAL}};
    int act = 0;
    while (act < 3 && !acts[act].on) act++;
    for (int i = 0; i < NUM_ROWS; i++)
        if (options->given[i] == OPTION_ON_LINE && !(rows[i].use & acts[act].use))
            die_input("--%s does nothing with --%s; leave it out", rows[i].name, acts[act].name);
}
