#include "describe.h"

#include <math.h>
#include <string.h>
#include "../base/check.h"
#include "../base/console.h"
#include "launch.h"
#include "memory.h"
#include "world_plan.h"

static void describe_control(const struct Session *s) {
    char line[256];
    if (entropy_describe(&s->entropy_options, line, sizeof line))
        say("entropy   scale %s; %s", choose_scale(&s->options), line);
}

/* Warns of options whose values cannot have the effect that they name. */
static void warn_of_limits(const struct Session *s, int updates) {
    const struct Options *o = &s->options;
    int V = s->model->config.V;
    if (o->lr_warmup >= s->plan.steps && s->plan.steps > 0 && o->lr_warmup > 0)
        warn("--lr-warmup %lld is not shorter than the %lld steps: the rate never reaches --lr",
             (long long)o->lr_warmup, (long long)s->plan.steps);
    const struct EntropyOptions *entropy = &s->entropy_options;
    if (entropy_controls[entropy->control].has_target && entropy->target > log(V))
        warn("--entropy-target %g cannot be reached: the entropy of %d words is at most %.3g",
             entropy->target, V, log(V));
    const char *inert = objective_check_updates(&s->objective, updates);
    if (inert && !s->plan.supervised) warn("%s", inert);
}

/* The batch arithmetic. */
static void describe_batch(const struct Session *s) {
    const struct Options *o = &s->options;
    if (s->plan.supervised) {
        say("batch     %lld lines a step, %lld steps; micro-batch %d tokens", (long long)o->prompts,
            (long long)s->plan.steps, s->shape.N);
        return;
    }
    int64_t completions = o->prompts * o->group, updates = o->minibatches * o->epochs;
    say("batch     %lld prompts x %lld completions = %lld a step, in %lld minibatches x %lld "
        "epochs = %lld updates of about %lld completions", (long long)o->prompts,
        (long long)o->group, (long long)completions, (long long)o->minibatches,
        (long long)o->epochs, (long long)updates, (long long)(completions / o->minibatches));
    say("          %lld steps = %lld updates, %lld completions; micro-batch %d tokens, %d decode "
        "rows", (long long)s->plan.steps, (long long)(s->plan.steps * updates),
        (long long)(s->plan.steps * completions), s->shape.N, s->decode_rows);
    int most = memory_most_pages(s), pages = s->cache_pages < most ? s->cache_pages : most;
    say("cache     %d pages of %d positions, %.3g GiB: %s", pages, KV_PAGE,
        pages * (double)decode_page_bytes(s->model) / (1 << 30),
        pages < most ? "when they run out, the youngest row waits" : "no row ever waits for one");
}

/* Only where there are several. */
static void describe_ranks(const struct Session *s) {
    const struct Options *o = &s->options;
    if (world_size(&s->world) == 1) return;
    struct WorldPlan plan = world_plan(s->model, o->zero, strcmp(o->grad_comm, "bf16") == 0);
    describe_world(&plan, s->plan.supervised ? 0 : o->prompts, o->group, o->minibatches);
}

void describe_session(const struct Session *s) {
    const struct Options *o = &s->options;
    const struct ModelConfig *c = &s->model->config;
    char objective[512];
    objective_describe(&s->objective, objective, sizeof objective);
    if (s->shape_only)
        say("task      none: prompts of %d and completions of %d tokens, by --max-prompt and "
            "--max-tokens", memory_longest_prompt(s), s->max_tokens);
    for (int i = 0; i < s->plan.num_phases && !s->shape_only; i++)
        say("task      %s, to step %lld: %s", s->plan.phases[i].task->name,
            (long long)s->plan.phases[i].end, s->plan.phases[i].task->help);
    say("objective %s", objective);
    describe_control(s);
    say("model     %s: %zu parameters, L=%d C=%d NH=%d T=%d V=%d, %s head, from %s", c->family,
        s->model->num_real_parameters, c->L, c->C, c->NH, c->max_T, c->V,
        c->tied ? "tied" : "untied",
        s->place.checkpoint[0] ? s->place.checkpoint : "random weights");
    if (c->V < c->V_saved)
        say("          the last %d of the %d rows of its vocabulary have no word in the tokenizer: "
            "never drawn, never trained", c->V_saved - c->V, c->V_saved);
    if (s->ops->device[0])
        say("machine   backend %s %s, %s, %lld threads", s->ops->name, s->ops->dtype,
            s->ops->device, (long long)s->progress.threads);
    else
        say("machine   backend %s %s%s, %lld threads, OpenBLAS %s", s->ops->name, s->ops->dtype,
            s->ops->products == s->ops->dtype ? "" : " with bf16 products",
            (long long)s->progress.threads, launch_blas_name());
    describe_batch(s);
    describe_ranks(s);
    if (strcmp(o->lr_schedule, "constant") != 0)
        say("schedule  learning rate %g falls to %g (%s) over all %lld steps; more --steps stretch "
            "it", o->lr, o->lr * o->lr_min_ratio, o->lr_schedule, (long long)s->plan.steps);
    warn_of_limits(s, (int)(o->minibatches * o->epochs));
    if (!console_quiet()) arena_print(&s->arena, stdout);
}
