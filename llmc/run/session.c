/* Options to a session, in the order of session_open: what to learn (choose.c), how large and how
   much memory (memory.c), where to write (directory.c), from which weights. */
#include "session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/console.h"
#include "../base/files.h"
#include "../base/text.h"
#include "../kernels/backends.h"
#include "describe.h"
#include "launch.h"
#include "memory.h"
#include "tokenize.h"

/* ---- settings ----------------------------------------------------------------------------- */

/* What differs from the run being resumed: the results then agree to rounding, not bit for bit. */
static void compare_settings(const struct Progress *before, const struct Progress *now) {
    if (before->threads != now->threads)
        say("resume    threads %lld -> %lld: equal to rounding, not bit for bit",
            (long long)before->threads, (long long)now->threads);
    if (fmax(1, (double)before->ranks) != (double)now->ranks)
        say("resume    ranks %lld -> %lld: equal to rounding, not bit for bit",
            (long long)(before->ranks ? before->ranks : 1), (long long)now->ranks);
    if (before->micro_tokens != now->micro_tokens)
        say("resume    micro-batch %lld -> %lld tokens: equal to rounding, not bit for bit",
            (long long)before->micro_tokens, (long long)now->micro_tokens);
    if (strcmp(before->backend, now->backend) || strcmp(before->dtype, now->dtype) ||
        strcmp(before->blas, now->blas))
        say("resume    %s %s %s -> %s %s %s: equal to rounding, not bit for bit",
            quote(before->backend), quote(before->dtype), quote(before->blas), now->backend,
            now->dtype, now->blas);
}

void session_note_task(struct Session *s) {
    snprintf(s->progress.task, sizeof s->progress.task, "%s", s->task->name);
}

static void note_settings(struct Session *s) {
    struct Progress before = s->progress;
    s->progress.seed = s->options.seed;
    s->progress.micro_tokens = s->shape.N;
    s->progress.ranks = world_size(&s->world);
    snprintf(s->progress.dtype, sizeof s->progress.dtype, "%s", s->ops->dtype);
    snprintf(s->progress.backend, sizeof s->progress.backend, "%s", s->ops->name);
    snprintf(s->progress.blas, sizeof s->progress.blas, "%s%s", launch_blas_name(),
             s->ops->products == s->ops->dtype ? "" : " bf16 products");
    session_note_task(s);
    s->progress.threads = s->threads;
    if (s->place.resumed) compare_settings(&before, &s->progress);
}

/* ---- weights and state ----------------------------------------------------------------------- */

/* A controller goes on where it stood. What its options have changed since starts from them: its
   variable, if another control moves it or it has another start, and the target. `opened` is the
   state before any rollout. */
static void resume_entropy(struct Session *s, const struct EntropyState *opened) {
    struct EntropyState *e = &s->entropy;
    const struct EntropyOptions *now = &e->options;
    struct Objective objective = choose_objective(&s->before);
    struct EntropyOptions was = choose_entropy(&s->before, objective.control);
    /* The control that the saved state belongs to. config.json may name another one: a start with
       another control writes it, and may have been killed before its first save. */
    int control = objective_axis_value("entropy-control", s->saved.control);
    if ((int)now->control != control)
        say("resume    entropy control %s -> %s: its variable starts anew",
            s->saved.control, entropy_controls[now->control].name);
    if ((int)now->control != control || now->rule != was.rule ||
        now->range.start != was.range.start) {
        e->control = opened->control, e->integral = opened->integral, e->coef = opened->coef;
        e->steps_at_bound = 0;
    }
    if (entropy_controls[now->control].has_rule && fabsf(e->control.zeta) > now->range.max)
        e->control.zeta = copysignf(now->range.max, e->control.zeta);
    bool in_nats = !isnan(now->target), was_in_nats = !isnan(was.target);
    bool same = in_nats == was_in_nats &&
                (in_nats ? now->target == was.target : now->target_ratio == was.target_ratio);
    if (e->rollouts == 0 || same) return;
    double target = in_nats ? now->target : now->target_ratio * e->initial;
    say("resume    entropy target %g -> %g", e->target, target);
    e->target = target;
}

/* The scale is fp16's own: a run that comes from another dtype starts with the first one. */
static void progress_from_state(struct Session *s) {
    struct TrainerProgress progress = trainer_progress(s->trainer);
    progress.step = s->progress.optimizer_step;
    if (progress.loss_scale != 1 && s->progress.loss_scale != 1)
        progress.loss_scale = s->progress.loss_scale,
        progress.loss_scale_updates = s->progress.loss_scale_updates;
    trainer_set_progress(s->trainer, progress);
}

/* Which algorithms a GPU's matrix products have, in trainer_state.json beside the progress. */
static const struct Field choices_field = {
    FIELD(FIELD_TEXT, struct Session, matmul_choices, "matmul_choices"), .optional = true};
static const struct FieldTable choices_fields = {&choices_field, 1};

/* The checkpoint's choices go on, or nothing is timed (--matmul first). */
static void use_choices(const struct Session *s) {
    bool timed = strcmp(s->options.matmul, "timed") == 0;
    const char *problem = s->ops->matmul_choices_load(timed ? s->matmul_choices : NULL);
    if (problem)
        say("resume    the checkpoint's matmul choices are not used: %s; results may differ by "
            "rounding", problem);
}

static void load_reference(struct Session *s) {
    char base[4096], from[4096];
    check_path(base, sizeof base, "%s/reference", s->place.run);
    if (!checkpoint_latest(base, from, sizeof from))
        die_input("%s: the KL reference of this run is missing; start anew with --overwrite or set "
                  "--kl-coef 0", base);
    checkpoint_load_weights(from, s->model, &s->reference);
}

static void load(struct Session *s) {
    struct Weights *weights = trainer_weights(s->trainer);
    bool learn = !s->options.eval_only && !s->options.score[0];
    if (s->place.checkpoint[0]) checkpoint_load_weights(s->place.checkpoint, s->model, weights);
    else model_initialise(s->model, weights, (uint64_t)s->options.seed);
    entropy_open(&s->entropy, &s->entropy_options);
    if (!learn) return;
    export_open(&s->export, s->place.checkpoint, s->model, s->options.save_dtype, s->shard_bytes);
    trainer_reset_optimizer(s->trainer);
    if (!s->place.resumed) {
        use_choices(s);
        return;
    }
    struct OptimizerState optimizer = trainer_optimizer(s->trainer);
    struct EntropyState opened = s->entropy;
    struct Progress saved;
    struct DataState data = {0};
    checkpoint_load_state(s->place.checkpoint, &saved,
                          (struct FieldSection[]){{&entropy_fields, &s->entropy},
                                                  {&choices_fields, s},
                                                  {s->plan.data ? &data_fields : NULL, &data},
                                                  {NULL, NULL}});
    s->saved = saved;
    if (s->plan.data) data_resume(s->plan.data, &data);
    use_choices(s);
    checkpoint_load_optimizer(s->place.checkpoint, s->model, weights, &optimizer, saved.dtype);
    progress_from_state(s);
    resume_entropy(s, &opened);
    char stands[128];
    if (entropy_describe_state(&s->entropy, stands, sizeof stands)) say("resume    %s", stands);
    if (s->reference.data && s->progress.phases_begun > 0) load_reference(s);
}

/* Weights from elsewhere are warm already: the supervised start is skipped unless asked for. */
static int64_t choose_warm_start(const struct Session *s) {
    bool loaded = s->place.checkpoint[0] && !s->place.resumed;
    bool given = options_given(&s->options, "warm-start");
    int64_t steps = loaded && !given ? 0 : s->options.warm_start;
    if (s->plan.supervised) return 0;   /* all of its steps are such */
    if (steps == 0 || task_demonstrates(s->task)) return steps;
    if (given)
        die_input("--warm-start: task %s has no demonstrations to learn from; set --warm-start 0",
                  s->task->name);
    return 0;
}

/* NULL: completions are sampled. */
static struct Replay *choose_replay(const struct Session *s) {
    if (!s->options.replay[0]) return NULL;
    if (s->objective.filter)
        die_input("--replay has the completions that were kept, and --group-filter on would ask "
                  "for more; set --group-filter off");
    return replay_open(s->options.replay);
}

/* Returns the seed to use. The seed that the weights were trained with decides which prompts are
   held out; with another seed they would be measured on prompts they were trained on. */
static int64_t choose_held_out(const struct Session *s) {
    const struct Options *o = &s->options;
    struct Progress trained;
    if (!s->place.checkpoint[0] || s->place.resumed || o->score[0]) return o->seed;
    if (s->plan.data) return o->seed;   /* there the text alone decides */
    if (!checkpoint_has_state(s->place.checkpoint)) return o->seed;   /* not a run's */
    checkpoint_load_state(s->place.checkpoint, &trained, NULL);
    bool differs = trained.seed != o->seed;
    bool named = options_given(o, "seed") || o->seed != s->before.seed;
    if (differs && o->eval_only && named)
        die_input("--seed %lld: these weights were trained with seed %lld, which decides the "
                  "prompts that were held out; leave --seed out", (long long)o->seed,
                  (long long)trained.seed);
    if (o->eval_only) return trained.seed;
    if (differs)
        warn("the weights were trained with seed %lld: with another, they know some of the "
             "prompts that this run holds out", (long long)trained.seed);
    return o->seed;
}

/* Where the run stood, and what its options may become. */
static void resume(struct Session *s) {
    checkpoint_load_state(s->place.checkpoint, &s->progress, NULL);
    if (objective_axis_value("entropy-control", s->progress.control) < 0)
        die_input("%s/trainer_state.json: \"control\" is \"%s\", and there is no such control",
                  s->place.checkpoint, quote(s->progress.control));
    options_check_resume(&s->options, &s->before, s->progress.phases_begun == 0);
    if (s->plan.data && !s->before.data[0])
        die_input("--data %s: the run that goes on was begun without a data file; --model RUN "
                  "begins another from its weights", s->options.data);
    if (s->plan.steps < s->progress.step)
        die_input("--steps %lld: the run is at step %lld already", (long long)s->plan.steps,
                  (long long)s->progress.step);
}

/* Is there anyone to meet? */
static bool meets(const struct Ranks *ranks, const struct Options *o) {
    return ranks->size > 1 || strcmp(o->comm, "nccl") == 0;
}

static void open_backend(struct Session *s, const struct Ranks *ranks) {
    const struct Options *o = &s->options;
    s->ops = ops_open(ranks_backend(o), o->dtype, ranks_device(ranks, o));
    if (!meets(ranks, o)) return;
    ranks_open(&s->world, ranks, o, s->ops);
    ranks_check(&s->world, ranks, o, s->ops, NULL);
}

/* What to learn, where to write, what to start from: all that follows from the options alone. */
static void choose(struct Session *s, const struct Ranks *ranks, int argc, char **argv) {
    struct Options *o = &s->options;
    *o = directory_options(argc, argv, &s->before, ranks->rank == 0);
    if (o->tokenize[0] || o->detokenize[0]) tokenize_and_exit(o);
    console_open(o->quiet || o->score[0]);
    if (!o->eval_only && !o->score[0]) launch_catch_signals();   /* measuring has nothing to save */
    s->threads = launch_threads(o->threads);   /* workspaces are sized by it */
    s->scorer = choose_scorer(o, s->threads);
    s->plan = choose_plan(o, s->scorer);
    s->objective = choose_objective(o);
    s->entropy_options = choose_entropy(o, s->objective.control);
    s->shard_bytes = choose_shard_bytes(o);
    if (meets(ranks, o)) open_backend(s, ranks);   /* rank 0 finds the place for all */
    else s->world.size = choose_ranks(o);
    s->place = directory_find(o, s->plan.phases[0].task->name, &s->world);
    s->shape_only = choose_shape_only(o, s->place.checkpoint);
    if (s->place.resumed) resume(s);
    o->seed = choose_held_out(s);
    s->task = s->plan.phases[choose_phase(&s->plan, &s->progress)].task;
    if (!s->place.resumed && !o->score[0]) choose_warn(o, &s->objective);
}

/* --data: what follows from the model and its tokenizer. */
static void prepare_data(struct Session *s) {
    struct Options *o = &s->options;
    data_prepare(s->plan.data, s->tokenizer, s->place.checkpoint, s->model->config.max_T,
                 (uint64_t)o->seed);
    data_add_ends(s->plan.data, &s->ends);
    if (s->plan.data->num_held_out > 0 || s->plan.data->held_out_lessons) return;
    if (o->eval_only)
        die_input("--eval-only: nothing is held out; give --eval-data FILE or --eval-share");
    o->eval_every = 0;
}

/* The user's scorer is started, with the first example: what it cannot do shows now. */
static void try_scorer(struct Session *s) {
    struct Example example = {0};
    bool held_out = s->task->num_held_out > 0;
    if (!s->scorer) return;
    example_draw(&example, s->task, (uint64_t)s->options.seed,
                 held_out ? RNG_EVAL_PROMPT : RNG_PROMPT, 0);
    scorer_try(s->scorer, &example);
    example_free(&example);
}

/* True if a resumed run has no step left to do. Its config.json is then left as it is. */
static bool is_over(const struct Session *s) {
    return s->place.resumed && s->progress.phases_begun == s->plan.num_phases &&
           s->progress.step >= s->plan.steps;
}

/* Of several ranks only the first writes files. */
static bool writes(const struct Session *s) { return world_rank(&s->world) == 0; }

/* Returns when all ranks have read the checkpoint, which rank 0 holds for all. */
static void await_readers(struct Session *s) {
    world_patience(&s->world, checkpoint_seconds(s->model));
    world_any(&s->world, false);
    world_patience(&s->world, 0);
}

void session_open(struct Session *s, const struct Ranks *ranks, int argc, char **argv) {
    const struct Options *o = &s->options;
    *s = (struct Session){.saved.step = -1};
    choose(s, ranks, argc, argv);
    if (!s->ops) open_backend(s, ranks);
    s->scores_old = strcmp(s->options.old_logp, "auto") == 0
                        ? strcmp(s->ops->products, "fp32") != 0
                        : strcmp(s->options.old_logp, "scored") == 0;
    bool built_in = !s->plan.data && !s->shape_only;
    int longest = built_in ? memory_longest_prompt(s) + memory_longest_completion(s, 0) - 1 : 0;
    struct ModelConfig config = choose_model(o, &s->place, s->shape_only ? NULL : s->task, longest,
                                             s->ops, &s->tokenizer);
    if (!s->shape_only) s->ends = choose_ends(o, &s->place, s->tokenizer, config.V);
    s->model = model_build_ranks(&config, s->ops, world_size(&s->world));
    if (meets(ranks, o)) ranks_check(&s->world, ranks, o, s->ops, s->model);
    if (s->plan.data) prepare_data(s);
    s->options.warm_start = choose_warm_start(s);
    session_check_dump(s);
    memory_sizes(s);
    s->replay = choose_replay(s);
    memory_plan(s);
    note_settings(s);
    if (s->place.run[0] && !s->options.dry_run) directory_open(&s->place, &s->options, &s->world);
    if (!s->options.score[0]) describe_session(s);
    if (s->options.dry_run) {
        console_end(true);
        exit(0);
    }
    try_scorer(s);
    arena_commit(&s->arena, s->ops);
    load(s);
    await_readers(s);
    checkpoint_release(&s->place.hold);
    if (!s->place.run[0]) return;
    if (s->place.resumed && writes(s)) checkpoint_keep(s->place.run, (int)s->options.keep);
    if (!is_over(s)) directory_begin(&s->place, &s->options, &s->world);
    if (writes(s))
        report_open(&s->report, s->place.run, s->options.rollouts_every, &s->progress);
}

/* ---- evaluation, saving, the end ------------------------------------------------------------- */

struct Evaluation session_evaluate(struct Session *s, const struct Task *task) {
    const struct Options *o = &s->options;
    const struct Lesson *lessons = task->held_out_lessons;
    double loss = lessons ? evaluate_lesson(s->trainer, lessons) : NAN;
    struct Evaluation e = {0};
    int prompts = memory_evaluated_prompts(s, task);
    if (prompts > 0) {
        sampler_load_weights(s->sampler, trainer_weights(s->trainer));
        e = evaluate(s->sampler, trainer_weights(s->trainer), task, s->tokenizer, &s->ends,
                     (uint64_t)o->seed, prompts, (int)o->eval_samples, (float)o->temperature,
                     s->max_tokens, &s->world, trainer_workspace(s->trainer));
    }
    e.loss = loss;
    if (!isfinite(e.entropy) || (lessons && !isfinite(loss)))
        die_machine("step %lld: the policy's entropy or loss on what is held out is not finite, so "
                    "the weights are worth nothing; an earlier checkpoint may be good",
                    (long long)s->progress.step);
    return e;
}

struct CollectOptions session_collect_options(const struct Session *s) {
    const struct Options *o = &s->options;
    return (struct CollectOptions){
        .task = s->task, .tokenizer = s->tokenizer, .ends = s->ends,
        .seed = (uint64_t)o->seed, .prompts = (int)o->prompts, .group = (int)o->group,
        .max_tokens = s->max_tokens, .temperature = (float)o->temperature,
        .filter = s->objective.filter, .filter_rounds = (int)o->filter_rounds,
        .replay = s->replay, .step = s->progress.step + 1, .world = &s->world};
}

/* The choices that a checkpoint has are rank 0's; from then on all ranks use them, as those do that
   go on from it. */
static void share_choices(struct Session *s) {
    size_t bytes = sizeof s->matmul_choices;
    s->ops->matmul_choices_save(s->matmul_choices, bytes);
    if (world_size(&s->world) == 1) return;
    char *own = check_strdup(s->matmul_choices);
    world_broadcast(&s->world, s->matmul_choices, bytes, 0);
    if (strcmp(own, s->matmul_choices) != 0) s->ops->matmul_choices_load(s->matmul_choices);
    free(own);
}

static void save_to(struct Session *s, const char *directory, int keep) {
    struct OptimizerState optimizer = trainer_optimizer(s->trainer);
    struct TrainerProgress progress = trainer_progress(s->trainer);
    s->progress.optimizer_step = progress.step;
    s->progress.loss_scale = progress.loss_scale;
    s->progress.loss_scale_updates = progress.loss_scale_updates;
    snprintf(s->progress.control, sizeof s->progress.control, "%s",
             entropy_controls[s->objective.control].name);
    share_choices(s);
    struct DataState data = s->plan.data ? data_state(s->plan.data) : (struct DataState){0};
    checkpoint_save(directory, s->model, trainer_weights(s->trainer), &optimizer, s->tokenizer,
                    &s->progress,
                    (struct FieldSection[]){{&entropy_fields, &s->entropy}, {&choices_fields, s},
                                            {s->plan.data ? &data_fields : NULL, &data},
                                            {NULL, NULL}},
                    &s->export, keep, &s->world);
}

/* True if nothing was trained since the last save. Then nothing is written, because another program
   may be reading that checkpoint. */
static bool is_saved(const struct Session *s) {
    const struct Progress *a = &s->saved, *b = &s->progress;
    return a->step == b->step && a->warm_step == b->warm_step && a->phases_begun == b->phases_begun;
}

void session_save(struct Session *s) {
    if (is_saved(s)) return;
    if (writes(s)) directory_check(s->place.run);
    report_sync(&s->report);   /* a checkpoint covers lines that are on the disk */
    s->ops->matmul_choices_freeze();   /* this run and one that resumes it compute the same bits */
    save_to(s, s->place.run, (int)s->options.keep);
    s->saved = s->progress;
}

void session_freeze_reference(struct Session *s) {
    char base[4096];
    struct Export exact = s->export;   /* a resumed run needs the weights as they are */
    exact.types = NULL, exact.retyped = true;
    if (!s->reference.data) return;
    s->ops->copy(s->reference.data, trainer_weights(s->trainer)->data,
                 s->model->num_parameters * s->ops->element_size);
    check_path(base, sizeof base, "%s/reference", s->place.run);
    if (writes(s)) make_directory_in(s->place.run, "reference");
    checkpoint_save(base, s->model, &s->reference, NULL, s->tokenizer, &s->progress, NULL, &exact,
                    1, &s->world);
}

/* The batch in hand as JSON lines. */
static void write_batch(const struct Session *s, const char *path, const char *tensor) {
    struct Jsonl log;
    const struct Experience *e = &s->experience;
    bool warming = s->progress.phases_begun == 0, demonstrated = warming || s->plan.supervised;
    unlink(path);
    jsonl_open(&log, path);
    for (int i = 0; i < e->count; i++) {
        jsonl_begin(&log);
        if (warming) jsonl_integer(&log, "warm_step", s->progress.warm_step);
        else jsonl_integer(&log, "step", s->progress.step + 1);
        jsonl_string(&log, "bad_tensor", tensor, strlen(tensor));
        jsonl_integers(&log, "tokens", e->token + e->start[i], e->start[i + 1] - e->start[i]);
        if (!demonstrated) {   /* demonstrations have neither */
            jsonl_number(&log, "reward", e->reward[i]);
            jsonl_numbers(&log, "logp", e->logp + e->loss_start[i], e->length[i]);
        }
        jsonl_end(&log);
    }
    jsonl_close(&log);
}

_Noreturn void session_fail(struct Session *s, const char *tensor) {
    char path[4096], bundle[4096];
    bool warming = s->progress.phases_begun == 0;
    check_path(path, sizeof path, "%s/failure.jsonl", s->place.run);
    check_path(bundle, sizeof bundle, "%s/failure", s->place.run);
    if (writes(s)) {
        write_batch(s, path, tensor);
        make_directory_in(s->place.run, "failure");
    }
    save_to(s, bundle, 1);
    die_machine("three updates in a row were not finite, last in %s; the batch is in %s, the "
                "weights in %s/checkpoints; --resume goes on from the checkpoint before, with a "
                "lower %s", tensor, path, bundle, warming ? "--warm-lr" : "--lr");
}

void session_close(struct Session *s) {
    if (s->place.run[0]) report_close(&s->report);
    memory_release(s);
    experience_free(&s->experience);
    replay_close(s->replay);
    data_close(s->plan.data);
    scorer_close(s->scorer);
    tokenizer_free(s->tokenizer);
    export_close(&s->export);
    model_free(s->model);
    world_close(&s->world);
}
