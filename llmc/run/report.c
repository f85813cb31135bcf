#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/console.h"
#include "../base/time.h"

static void open_log(struct Jsonl *log, const char *run, const char *name, const char *key,
                     int64_t last) {
    char path[4096];
    check_path(path, sizeof path, "%s/%s", run, name);
    jsonl_cut(path, key, last);
    jsonl_open(log, path);
}

void report_open(struct Report *r, const char *run, int64_t rollouts_every,
                 const struct Progress *state) {
    char metrics[4096];
    *r = (struct Report){.rollouts_every = rollouts_every, .started = seconds(),
                         .first_step = state->step, .phase_step = state->step};
    check_path(r->run, sizeof r->run, "%s", run);
    check_path(metrics, sizeof metrics, "%s/metrics.jsonl", run);
    jsonl_cut(metrics, "phase_start", state->phases_begun - 1);
    jsonl_cut(metrics, "after_all", -1);   /* made again at the end of this process */
    open_log(&r->metrics, run, "metrics.jsonl", "step", state->step);
    open_log(&r->warm, run, "warm_start.jsonl", "warm_step", state->warm_step);
    open_log(&r->attention, run, "attention_entropy.jsonl", "step", state->step);
    open_log(&r->rollouts, run, "rollouts.jsonl", "step", state->step);
    tensorboard_open(&r->board, run, state->step + 1);
}

/* A report that was not opened: of a rank other than 0. */
static bool is_silent(const struct Report *r) { return !r->run[0]; }

void report_sync(struct Report *r) {
    if (is_silent(r)) return;
    jsonl_sync(&r->metrics);
    jsonl_sync(&r->warm);
    jsonl_sync(&r->attention);
    jsonl_sync(&r->rollouts);
    if (tensorboard_is_there(&r->board)) return;
    warn("%s was removed or replaced while the run wrote it; another one goes on from step %lld",
         r->board.path, (long long)r->step + 1);
    tensorboard_close(&r->board);
    tensorboard_open(&r->board, r->run, r->step + 1);
}

void report_close(struct Report *r) {
    if (is_silent(r)) return;
    jsonl_close(&r->metrics);
    jsonl_close(&r->warm);
    jsonl_close(&r->attention);
    jsonl_close(&r->rollouts);
    tensorboard_close(&r->board);
    free(r->attention_start);
}

/* ---- metrics.jsonl and TensorBoard ----------------------------------------------------------- */

static void number(struct Report *r, const char *key, double value) {
    jsonl_number(&r->metrics, key, value);
    tensorboard_scalar(&r->board, r->step, key, value);
}

/* The same, but NaN, which means that this step did not measure it, is not written. */
static void measured(struct Report *r, const char *key, double value) {
    if (!isnan(value)) number(r, key, value);
}

static void begin_line(struct Report *r, int64_t step, const char *task) {
    r->step = step;
    jsonl_begin(&r->metrics);
    jsonl_integer(&r->metrics, "step", step);
    jsonl_string(&r->metrics, "task", task, strlen(task));
}

static void end_line(struct Report *r) {
    jsonl_end(&r->metrics);
    tensorboard_flush(&r->board);
}

/* One number of an evaluation. Its tag in TensorBoard names the task: at the border of two tasks
   both are evaluated at one step, and the curve of one must not run on in the other's. (A line of
   metrics.jsonl names its task by itself.) */
static void evaluated(struct Report *r, const char *task, const char *name, double value) {
    char key[64], tag[TENSORBOARD_MAX_TAG];
    snprintf(key, sizeof key, "eval/%s", name);
    snprintf(tag, sizeof tag, "eval/%s/%s", task, name);
    jsonl_number(&r->metrics, key, value);
    tensorboard_scalar(&r->board, r->step, tag, value);
}

static void write_evaluation(struct Report *r, const char *task, const struct Evaluation *e) {
    if (!isnan(e->loss)) evaluated(r, task, "loss", e->loss);
    if (!isnan(e->loss)) evaluated(r, task, "perplexity", exp(e->loss));
    if (e->num_prompts == 0) return;
    for (int i = 0; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "pass@%d", evaluation_k[i]);
        if (!isnan(e->pass_at[i])) evaluated(r, task, name, e->pass_at[i]);
    }
    evaluated(r, task, "distinct_correct", e->distinct_correct);
    evaluated(r, task, "entropy", e->entropy);
    evaluated(r, task, "reward", e->reward);
    evaluated(r, task, "mean_length", e->mean_length);
    evaluated(r, task, "clipped_ratio", e->truncated);
    if (e->unscored > 0) evaluated(r, task, "unscored", e->unscored);
    jsonl_integer(&r->metrics, "eval/prompts", e->num_prompts);
    jsonl_integer(&r->metrics, "eval/samples", e->samples);
}

static double covariance(const struct ObjectiveStats *s) {
    return s->adv_logp / s->tokens - s->adv / s->tokens * (s->logp / s->tokens);
}

/* Which probabilities the clip works on: shares of the tokens of each bucket, by the sign of A. */
static void write_clip_buckets(struct Report *r, const struct ObjectiveStats *o) {
    static const char *const bucket[CLIP_BUCKETS] = {"p<1e-3", "p<1e-2", "p<0.1",
                                                     "p<0.5",  "p<0.9",  "p<=1"};
    for (int i = 0; i < CLIP_BUCKETS; i++) {
        char key[64];
        if (o->bucket_tokens[i] == 0) continue;
        snprintf(key, sizeof key, "clip_ratio/low/%s", bucket[i]);
        number(r, key, o->bucket_clipped_low[i] / o->bucket_tokens[i]);
        snprintf(key, sizeof key, "clip_ratio/high/%s", bucket[i]);
        number(r, key, o->bucket_clipped_high[i] / o->bucket_tokens[i]);
    }
}

/* What the objective saw, per token with weight. */
static void write_objective(struct Report *r, const struct StepReport *s) {
    const struct ObjectiveStats *o = &s->stats;
    double n = o->tokens;
    number(r, "loss", o->loss / (s->updates > 0 ? s->updates : 1));
    number(r, "policy_loss", o->policy_loss / (s->updates > 0 ? s->updates : 1));
    number(r, "grad_norm", s->grad_norm);
    number(r, "learning_rate", s->learning_rate);
    number(r, "updates", s->updates);
    number(r, "updates_skipped", s->skipped);
    if (s->loss_scale != 1) {
        number(r, "loss_scale", s->loss_scale);
        number(r, "loss_scale_overflows", s->overflows);
    }
    measured(r, "entropy_push_measured", s->push_measured);
    if (o->tokens == 0) return;   /* nothing was learnt from */
    if (s->has_reference) number(r, "kl", o->kl / n);
    number(r, "ratio_mean", o->ratio / n);
    number(r, "clip_ratio/low_mean", o->clipped_low / n);
    number(r, "clip_ratio/high_mean", o->clipped_high / n);
    write_clip_buckets(r, o);
    number(r, "adv_logp_cov", covariance(o));
    number(r, "entropy_push_raw", o->push_raw / n);
    number(r, "entropy_push_effective", o->push_effective / n);
    number(r, "sampling/sampling_logp_difference/mean", s->logp_difference_mean);
    number(r, "sampling/sampling_logp_difference/max", s->logp_difference_max);
}

/* The controller's target and its variable, whichever that is. */
static void write_control(struct Report *r, const struct EntropyState *e) {
    const struct Control *row = &entropy_controls[e->options.control];
    if (row->has_target) number(r, "entropy_target", e->target);
    for (int i = 0; i < 2 && row->logged[i].key; i++)
        number(r, row->logged[i].key,
               *(const float *)((const char *)&e->control + row->logged[i].value));
    if (e->steps_at_bound > 0) number(r, "entropy_steps_at_bound", e->steps_at_bound);
}

static void write_rollout(struct Report *r, const struct StepReport *s) {
    const struct Experience *e = s->experience;
    double entropy = e->sum_entropy / (double)e->generated_tokens;
    number(r, "reward", e->sum_reward / (double)e->scored);
    number(r, "reward_std", e->reward_std);
    number(r, "frac_reward_zero_std", e->frac_reward_zero_std);
    number(r, "entropy", entropy);
    number(r, "entropy_ratio", entropy / s->entropy->initial);
    number(r, "entropy_cumulative", s->entropy->cumulative);
    write_control(r, s->entropy);
    number(r, "completions/mean_length", e->sum_length / (double)e->generated);
    number(r, "completions/clipped_ratio", e->truncated / (double)e->generated);
    if (e->generated > e->count) number(r, "completions/generated", (double)e->generated);
    if (e->generated > e->scored)
        number(r, "completions/unscored", (double)(e->generated - e->scored));
}

/* What an environment said, per completion. */
static void write_environment(struct Report *r, const struct Experience *e) {
    double completions = (double)e->generated;
    number(r, "env/turns", 1 + (double)e->texts / completions);
    number(r, "env/text_tokens", (double)e->text_tokens / completions);
    number(r, "env/cut", (double)e->texts_cut / completions);
}

/* What the user's program did in this step. */
static void write_scorer(struct Report *r, const struct ScorerCounts *c) {
    number(r, "scorer/unscored", (double)c->unscored);
    number(r, "scorer/failed", (double)c->failed);
    number(r, "scorer/restarts", (double)c->restarts);
    number(r, "scorer/bad_lines", (double)c->bad_lines);
}

static void write_timing(struct Report *r, const struct StepReport *s) {
    const struct Experience *e = s->experience;
    double learning = s->seconds_update + s->seconds_logprob;
    number(r, "step_time", s->seconds_step);
    number(r, "timing/gen", e->seconds_generate);
    number(r, "timing/reward", e->seconds_reward);
    number(r, "timing/logprob", s->seconds_logprob);
    number(r, "timing/update", s->seconds_update);
    number(r, "timing/monitor", s->seconds_monitor);
    number(r, "perf/gen_tok_s", (double)e->generated_tokens / e->seconds_generate);
    if (e->pages_peak > 0) {
        number(r, "cache/pages_peak", (double)e->pages_peak);
        number(r, "cache/preempted", (double)e->preempted);
    }
    number(r, "perf/train_tok_s", s->train_tokens / learning);
    number(r, "perf/train_gflop_s", 1e-9 * s->train_flops / learning);
    bool on_device = !isnan(s->device_memory_gb);
    number(r, "perf/peak_mem_gb", on_device ? s->device_memory_gb : s->host_memory_gb);
    if (on_device) number(r, "perf/peak_host_mem_gb", s->host_memory_gb);
}

/* What several ranks cost each other. */
static void write_ranks(struct Report *r, const struct StepReport *s) {
    number(r, "ranks", s->ranks);
    number(r, "comm/calls", (double)s->comm.calls);
    number(r, "comm/bytes", s->comm.bytes);
    number(r, "timing/comm", s->comm.seconds);
    number(r, "timing/comm_exposed", s->comm.exposed);
    if (s->slowest > 0) number(r, "perf/slowest_rank", s->slowest);
}

/* ---- attention entropy ----------------------------------------------------------------------- */

/* A head that lost more than half of its attention entropy looks at fewer and fewer tokens: said
   once, with the worst one. */
static void warn_of_attention(struct Report *r, const struct StepReport *s) {
    int worst = 0, n = s->layers * s->heads;
    for (int i = 1; i < n; i++)
        if (s->attention_entropy[i] * r->attention_start[worst] <
            s->attention_entropy[worst] * r->attention_start[i]) worst = i;
    double now = s->attention_entropy[worst], start = r->attention_start[worst];
    if (r->attention_warned || !(now < 0.5 * start)) return;
    r->attention_warned = true;
    warn("step %lld: the attention entropy of layer %d head %d fell from %.3f to %.3f",
         (long long)s->step, worst / s->heads, worst % s->heads, start, now);
}

static void write_attention(struct Report *r, const struct StepReport *s) {
    int n = s->layers * s->heads;
    float *values = check_alloc((size_t)n, sizeof *values, "attention entropy");
    double min = INFINITY, sum = 0;
    for (int i = 0; i < n; i++) {
        values[i] = (float)s->attention_entropy[i];
        min = fmin(min, s->attention_entropy[i]), sum += s->attention_entropy[i];
    }
    number(r, "attention_entropy/min", min);
    number(r, "attention_entropy/mean", sum / n);
    jsonl_begin(&r->attention);
    jsonl_integer(&r->attention, "step", s->step);
    jsonl_integer(&r->attention, "layers", s->layers);
    jsonl_integer(&r->attention, "heads", s->heads);
    jsonl_numbers(&r->attention, "entropy", values, n);
    jsonl_end(&r->attention);
    free(values);
    if (!r->attention_start) {
        r->attention_start = check_alloc((size_t)n, sizeof(double), "attention entropy");
        memcpy(r->attention_start, s->attention_entropy, (size_t)n * sizeof(double));
    }
    warn_of_attention(r, s);
}

static void write_rollouts(struct Jsonl *log, int64_t step, const struct Experience *e) {
    for (int i = 0; i < e->count; i++) {
        int at = e->loss_start[i];
        jsonl_begin(log);
        jsonl_integer(log, "step", step);
        jsonl_string(log, "prompt", text_list_at(&e->prompt, i), text_list_length(&e->prompt, i));
        jsonl_string(log, "completion", text_list_at(&e->completion, i),
                     text_list_length(&e->completion, i));
        jsonl_number(log, "reward", e->reward[i]);
        jsonl_number(log, "advantage", e->advantage[i]);
        jsonl_boolean(log, "ended", e->ended[i]);
        if (text_list_length(&e->turns, i) > 0)
            jsonl_raw(log, "turns", text_list_at(&e->turns, i), text_list_length(&e->turns, i));
        jsonl_integers(log, "tokens", e->token + e->completion_start[i],
                       e->start[i + 1] - e->completion_start[i]);
        jsonl_numbers(log, "logp", e->logp + at, e->length[i]);
        jsonl_numbers(log, "entropy", e->entropy + at, e->length[i]);
        jsonl_end(log);
    }
}

void report_evaluation(struct Report *r, const char *task, int64_t step, const char *when,
                       int phase, const struct Evaluation *evaluation) {
    if (is_silent(r)) return;
    bool after_all = strcmp(when, "after_all") == 0;
    begin_line(r, step, task);
    jsonl_integer(&r->metrics, when, phase);
    /* In TensorBoard one step further on: a run that goes on drops what is logged past its step,
       and makes this evaluation again at its own end. */
    if (after_all) r->step = step + 1;
    write_evaluation(r, task, evaluation);
    r->step = step;
    end_line(r);
    if (after_all) return;
    r->first = r->last = *evaluation, r->evaluated = true;   /* the summary is of the last task */
    r->phase_step = step;
}

/* ---- the console ----------------------------------------------------------------------------- */

void report_describe_evaluation(const struct Evaluation *e, char *out, int capacity) {
    int at = 0;
    out[0] = '\0';
    if (!isnan(e->loss)) at = snprintf(out, (size_t)capacity, "loss %.4f  ", e->loss);
    if (e->num_prompts == 0) return;
    for (int i = 0; i < 4 && at < capacity; i++)
        if (!isnan(e->pass_at[i]))
            at += snprintf(out + at, (size_t)(capacity - at), "pass@%d %.3f  ", evaluation_k[i],
                           e->pass_at[i]);
    if (at < capacity)
        snprintf(out + at, (size_t)(capacity - at),
                 "distinct %.2f  entropy %.3f  (%d prompts x %d samples)", e->distinct_correct,
                 e->entropy, e->num_prompts, e->samples);
}

void report_warm(struct Report *r, const struct WarmReport *w) {
    if (is_silent(r)) return;
    jsonl_begin(&r->warm);
    jsonl_integer(&r->warm, "warm_step", w->step);
    jsonl_number(&r->warm, "loss", w->loss);
    jsonl_number(&r->warm, "entropy", w->entropy);
    jsonl_number(&r->warm, "grad_norm", w->grad_norm);
    jsonl_number(&r->warm, "learning_rate", w->learning_rate);
    jsonl_number(&r->warm, "step_time", w->seconds);
    jsonl_end(&r->warm);
    double left = (double)(w->total_steps - w->step) * (seconds() - r->started) / (double)w->step;
    if (w->step % 100 == 0 || w->step == w->total_steps)
        say("warm start %4lld/%lld   loss %.3f   entropy %.3f", (long long)w->step,
            (long long)w->total_steps, w->loss, w->entropy);
    console_progress("warm start", w->step, w->total_steps, left);
}

void report_supervised(struct Report *r, const struct WarmReport *w, const char *task,
                       int64_t num_tokens, const struct Evaluation *evaluation) {
    if (is_silent(r)) return;
    begin_line(r, w->step, task);
    number(r, "loss", w->loss);
    number(r, "entropy", w->entropy);
    number(r, "grad_norm", w->grad_norm);
    number(r, "learning_rate", w->learning_rate);
    jsonl_integer(&r->metrics, "num_tokens", num_tokens);
    if (evaluation) write_evaluation(r, task, evaluation);
    number(r, "step_time", w->seconds);
    end_line(r);
    if (!r->supervised) r->first_loss = w->loss, r->first_entropy = w->entropy;
    r->last_loss = w->loss, r->last_entropy = w->entropy;
    r->supervised = true;
    if (evaluation) {
        if (!r->evaluated) r->first = *evaluation;
        r->last = *evaluation, r->evaluated = true;
    }
    double weight = r->seconds_per_step > 0 ? 0.1 : 1;
    r->seconds_per_step += weight * (w->seconds - r->seconds_per_step);
    int64_t every = w->total_steps / 20 + 1;
    char text[256] = "";
    if (evaluation) report_describe_evaluation(evaluation, text, sizeof text);
    if (evaluation || w->step % every == 0 || w->step == w->total_steps)
        say("step %4lld/%lld   loss %.4f   entropy %.3f   |grad| %.3f   %s", (long long)w->step,
            (long long)w->total_steps, w->loss, w->entropy, w->grad_norm, text);
    console_progress("supervised", w->step, w->total_steps,
                     (double)(w->total_steps - w->step) * r->seconds_per_step);
}

static void say_header(bool ranks) {
    say("\n%9s %7s %8s %6s %7s %8s %8s %6s %6s %7s %8s %7s %8s%s", "step", "reward", "entropy",
        "H/H0", "pass@1", "pass@64", "distinct", "len", "clip%", "|grad|", "tok/s", "left",
        "loss", ranks ? "  comm MB   wait%  slowest" : "");
}

/* A number right-aligned in `width`, or blanks where it was not measured. */
static const char *cell(char *out, int width, int digits, double value) {
    if (isnan(value)) snprintf(out, 16, "%*s", width, "");
    else snprintf(out, 16, "%*.*f", width, digits, value);
    return out;
}

/* NaN: no completion is scored. */
static double mean_reward(const struct Experience *e) {
    return e->scored ? e->sum_reward / (double)e->scored : NAN;
}

/* ", 12 unscored" at the end of a line, where there are such completions. */
static const char *unscored(const struct Experience *e, const char *before) {
    static char text[48];
    if (e->generated == e->scored) return "";
    snprintf(text, sizeof text, "%s%lld unscored", before, (long long)(e->generated - e->scored));
    return text;
}

/* The columns of several ranks: what each sent, the share of the step in which a rank's device did
   nothing but wait for communication, the rank with most tokens against the mean. */
static const char *rank_cells(const struct StepReport *s) {
    static char text[64];
    char slowest[16];
    if (s->ranks < 2) return "";
    snprintf(text, sizeof text, " %8.4g %7.1f %s", 1e-6 * s->comm.bytes,
             100 * s->comm.exposed / s->seconds_step,
             cell(slowest, 8, 2, s->slowest > 0 ? s->slowest : NAN));
    return text;
}

/* For a person: reward and entropy first, loss last, because at ratio 1 the surrogate's value is
   zero-mean by construction and says little. */
static void say_table_line(const struct Report *r, const struct StepReport *s) {
    const struct Experience *e = s->experience;
    const struct Evaluation *v = s->evaluation;
    char c1[16], c64[16], cd[16], step[24];
    double entropy = e->sum_entropy / (double)e->generated_tokens;
    double clipped = (s->stats.clipped_low + s->stats.clipped_high) / fmax(s->stats.tokens, 1);
    snprintf(step, sizeof step, "%lld/%lld", (long long)s->step, (long long)s->total_steps);
    say("%9s %7.3f %8.3f %6.2f %s %s %s %6.2f %6.2f %7.3f %8.0f %7s %8.4f%s%s", step,
        mean_reward(e), entropy, entropy / s->entropy->initial,
        cell(c1, 7, 3, v ? v->pass_at[0] : NAN), cell(c64, 8, 3, v ? v->pass_at[3] : NAN),
        cell(cd, 8, 2, v ? v->distinct_correct : NAN), e->sum_length / (double)e->generated,
        100 * clipped, s->grad_norm, (double)e->generated_tokens / e->seconds_generate,
        console_time((double)(s->total_steps - s->step) * r->seconds_per_step),
        s->stats.loss / fmax(s->updates, 1), rank_cells(s), unscored(e, "  "));
}

/* " ranks=8 comm_mb=.. comm=.. exposed=.. slowest=..", seconds; nothing with one rank. */
static const char *rank_pairs(const struct StepReport *s) {
    static char text[128];
    int at = 0;
    text[0] = '\0';
    if (s->ranks > 1)
        at = snprintf(text, sizeof text, " ranks=%d comm_mb=%.4g comm=%.3f exposed=%.3f", s->ranks,
                      1e-6 * s->comm.bytes, s->comm.seconds, s->comm.exposed);
    if (s->ranks > 1 && s->slowest > 0)
        snprintf(text + at, sizeof text - (size_t)at, " slowest=%.2f", s->slowest);
    return text;
}

/* For a program: key=value, a few lines a run; everything is in metrics.jsonl. */
static void say_plain_line(const struct StepReport *s) {
    const struct Experience *e = s->experience;
    char evaluation[160] = "";
    const struct Evaluation *v = s->evaluation;
    int last = 3;   /* the largest k that was measured */
    while (v && last > 0 && isnan(v->pass_at[last])) last--;
    if (v)
        snprintf(evaluation, sizeof evaluation, " pass@1=%.4f pass@%d=%.4f distinct=%.3f",
                 v->pass_at[0], evaluation_k[last], v->pass_at[last], v->distinct_correct);
    say("step=%lld reward=%.4f entropy=%.4f%s grad_norm=%.4f step_time=%.3f loss=%.5f%s%s",
        (long long)s->step, mean_reward(e),
        e->sum_entropy / (double)e->generated_tokens, evaluation, s->grad_norm, s->seconds_step,
        s->stats.loss / fmax(s->updates, 1), rank_pairs(s), unscored(e, ", "));
}

static void say_step(struct Report *r, const struct StepReport *s) {
    bool person = isatty(STDOUT_FILENO);
    int64_t every = person ? 1 : s->total_steps / 20 + 1;
    if (person && !r->header_said) say_header(s->ranks > 1);
    r->header_said = true;
    if (person) say_table_line(r, s);
    else if (s->evaluation || s->step % every == 0) say_plain_line(s);
    console_progress("training", s->step, s->total_steps,
                     (double)(s->total_steps - s->step) * r->seconds_per_step);
}

void report_step(struct Report *r, const struct StepReport *s) {
    if (is_silent(r)) return;
    begin_line(r, s->step, s->task);
    write_rollout(r, s);
    write_objective(r, s);
    jsonl_integer(&r->metrics, "num_tokens", s->num_tokens);
    if (s->attention_entropy) write_attention(r, s);
    if (s->evaluation) write_evaluation(r, s->task, s->evaluation);
    if (s->converses) write_environment(r, s->experience);
    if (s->scorer) write_scorer(r, s->scorer);
    write_timing(r, s);
    if (s->ranks > 1) write_ranks(r, s);
    end_line(r);
    if (r->rollouts_every && s->step % r->rollouts_every == 0)
        write_rollouts(&r->rollouts, s->step, s->experience);

    const struct Experience *e = s->experience;
    r->last_entropy = e->sum_entropy / (double)e->generated_tokens;
    r->last_reward = mean_reward(e);
    if (s->step == r->phase_step + 1)
        r->first_entropy = r->last_entropy, r->first_reward = r->last_reward;
    if (s->evaluation) {
        if (!r->evaluated) r->first = *s->evaluation;
        r->last = *s->evaluation, r->evaluated = true;
    }
    double weight = r->seconds_per_step > 0 ? 0.1 : 1;
    r->seconds_per_step += weight * (s->seconds_step - r->seconds_per_step);
    say_step(r, s);
}

void report_summary(struct Report *r, int64_t steps_done) {
    if (is_silent(r)) return;
    int64_t here = steps_done - r->first_step;
    if (here > 0) {
        say("\n%lld steps in %s (steps %lld to %lld)", (long long)here,
            console_time(seconds() - r->started), (long long)r->first_step + 1,
            (long long)steps_done);
        say("%-22s %9s %9s", "", "start", "end");
        if (r->supervised) say("%-22s %9.4f %9.4f", "loss", r->first_loss, r->last_loss);
        else say("%-22s %9.3f %9.3f", "reward", r->first_reward, r->last_reward);
        say("%-22s %9.3f %9.3f", "entropy (nats)", r->first_entropy, r->last_entropy);
    }
    if (r->evaluated && !isnan(r->last.loss))
        say("%-22s %9.4f %9.4f", "held-out loss", r->first.loss, r->last.loss);
    if (r->evaluated && r->last.num_prompts > 0) {
        for (int i = 0; i < 4; i++)
            if (!isnan(r->last.pass_at[i]))
                say("held-out pass@%-9d %9.3f %9.3f", evaluation_k[i], r->first.pass_at[i],
                    r->last.pass_at[i]);
        say("%-22s %9.2f %9.2f   of %d samples", "distinct correct", r->first.distinct_correct,
            r->last.distinct_correct, r->last.samples);
    }
    say("files: %s/{metrics.jsonl, rollouts.jsonl, config.json, checkpoints/}", r->run);
}
