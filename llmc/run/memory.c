#include "memory.h"

#include <limits.h>
#include <string.h>
#include "../base/check.h"

static int smaller(int64_t a, int64_t b) { return (int)(a < b ? a : b); }

int memory_longest_prompt(const struct Session *s) {
    int longest = 0;
    if (s->shape_only) return s->options.max_prompt ? (int)s->options.max_prompt : 512;
    for (int i = 0; i < s->plan.num_phases; i++)
        if (s->plan.phases[i].task->max_prompt > longest)
            longest = s->plan.phases[i].task->max_prompt;
    return longest;
}

int memory_longest_completion(const struct Session *s, int max_tokens) {
    int longest = max_tokens;   /* --max-tokens cuts rollouts, not demonstrations */
    if (s->shape_only) return max_tokens ? max_tokens : 256;
    for (int i = 0; i < s->plan.num_phases; i++)
        if (s->plan.phases[i].task->max_completion > longest)
            longest = s->plan.phases[i].task->max_completion;
    return longest;
}

int memory_evaluated_prompts(const struct Session *s, const struct Task *task) {
    int prompts = (int)s->options.eval_prompts;
    return task->draw && prompts > task->num_held_out ? task->num_held_out : prompts;
}

/* Of n things that the ranks share, what one has at most. */
static int64_t of_a_rank(const struct Session *s, int64_t n) {
    int size = world_size(&s->world);
    return (n + size - 1) / size;
}

/* The most completions that are sampled at once. */
static int64_t sampled_at_once(const struct Session *s) {
    const struct Options *o = &s->options;
    int64_t completions = s->plan.supervised ? 1 : of_a_rank(s, o->prompts) * o->group;
    int64_t evaluated =
        of_a_rank(s, memory_evaluated_prompts(s, s->plan.phases[0].task)) * o->eval_samples;
    if (o->eval_every == 0 && !o->eval_only) evaluated = 0;
    return completions > evaluated ? completions : evaluated;
}

/* The most sequences of an update. (With a built-in task those of the warm start count even where
   there is none: micro-batches, and with them roundings, stay what they were.) */
static int64_t sequences_of_update(const struct Session *s) {
    const struct Options *o = &s->options;
    if (s->plan.supervised) return o->prompts;
    int64_t per_minibatch = (o->prompts * o->group + o->minibatches - 1) / o->minibatches;
    bool warms = (!s->plan.data && !s->shape_only) || o->warm_start > 0;
    return warms && o->warm_batch > per_minibatch ? o->warm_batch : per_minibatch;
}

void memory_sizes(struct Session *s) {
    const struct Options *o = &s->options;
    const struct ModelConfig *c = &s->model->config;
    s->max_tokens = (int)o->max_tokens, s->decode_rows = (int)o->decode_rows;
    if (s->max_tokens == 0) s->max_tokens = memory_longest_completion(s, 0);
    int completion = memory_longest_completion(s, s->max_tokens);
    int longest = memory_longest_prompt(s) + completion;
    if (!o->score[0] && longest - 1 > c->max_T)
        die_input("prompts of %d and completions of %d tokens do not fit the model's context of "
                  "%d; lower --max-tokens or raise --context", memory_longest_prompt(s),
                  completion, c->max_T);
    if (o->score[0]) longest = c->max_T + 1;
    int64_t wanted = o->score[0] ? 4096 : of_a_rank(s, sequences_of_update(s) * (longest - 1));
    /* On the CPU more than that is not faster; a device takes what its memory has (memory_plan). */
    bool on_cpu = strcmp(s->ops->name, "cpu") == 0;
    int N = o->micro_tokens ? (int)o->micro_tokens : smaller(wanted, on_cpu ? 1024 : 1 << 18);
    if (s->place.resumed && !o->micro_tokens) N = (int)s->progress.micro_tokens;
    if (N < longest - 1) N = longest - 1;
    int64_t completions = sampled_at_once(s);
    if (completions > INT32_MAX / longest)
        die_input("--prompts x --group or --eval-prompts x --eval-samples: more than %d "
                  "completions at once", INT32_MAX / longest);
    if (s->decode_rows == 0) s->decode_rows = smaller(completions, 512);
    s->shape = (struct OpsShape){.N = N, .C = c->C, .F = c->F, .NH = c->NH, .NKV = c->NKV,
                                 .HS = c->HS, .V = c->V, .Vp = c->Vp, .max_T = longest - 1,
                                 .max_length = longest};
}

/* Completions of a prompt, the fewest that the session asks for at once. */
static int smallest_group(const struct Session *s) {
    const struct Options *o = &s->options;
    return (int)(o->eval_only || o->eval_samples < o->group ? o->eval_samples : o->group);
}

static void reserve(struct Session *s) {
    const struct Options *o = &s->options;
    struct OptimizerOptions optimizer = {
        .beta1 = (float)o->beta1, .beta2 = (float)o->beta2, .epsilon = 1e-8f,
        .weight_decay = (float)o->weight_decay, .grad_clip = (float)o->grad_clip,
        .zero = o->zero, .narrow_gradients = strcmp(o->grad_comm, "bf16") == 0};
    bool learn = !o->eval_only && !o->score[0];
    s->shape.R = sampler_step_rows(s->ops, s->decode_rows, memory_longest_prompt(s));
    s->trainer = trainer_reserve(s->model, &s->arena, &s->shape, choose_recompute(o),
                                 learn ? &optimizer : NULL, &s->world, (uint64_t)o->seed);
    if (!o->score[0])
        s->sampler = sampler_reserve(s->model, &s->arena, s->decode_rows, smallest_group(s),
                                     memory_longest_prompt(s), s->max_tokens, s->cache_pages);
    if (learn && o->attention_entropy_every) trainer_reserve_attention(s->trainer, &s->arena);
    if (s->objective.kl_coef > 0)
        arena_reserve(&s->arena, &s->reference.data,
                      s->model->num_parameters * s->ops->element_size, "weights",
                      "reference [%zu]", s->model->num_parameters);
}

void memory_release(struct Session *s) {
    trainer_free(s->trainer);
    sampler_free(s->sampler);
    arena_free(&s->arena);
    s->trainer = NULL, s->sampler = NULL;
}

int memory_most_pages(const struct Session *s) {
    int64_t most = sampler_most_pages(s->decode_rows, smallest_group(s), memory_longest_prompt(s),
                                      s->max_tokens);
    return most < INT_MAX ? (int)most : INT_MAX;
}

/* Makes the larger of the two users of the shared part smaller; false: nothing left to choose. */
static bool plan_less(struct Session *s, bool decoding_is_larger) {
    const struct Options *o = &s->options;
    int least = sampler_least_pages(memory_longest_prompt(s), s->max_tokens);
    if (decoding_is_larger && o->cache_gb == 0 && s->cache_pages / 2 >= 8 * least) {
        s->cache_pages /= 2;
        return true;
    }
    bool rows = s->decode_rows > 16 && !o->decode_rows;
    bool tokens = s->shape.N / 2 >= s->shape.max_T && !o->micro_tokens;
    if (rows && (decoding_is_larger || !tokens)) s->decode_rows /= 2;
    else if (tokens) s->shape.N /= 2;
    else return false;
    return true;
}

/* Ends the program: even the smallest sizes need more than there is. `fixed`: bytes of the weights
   and, where they are trained, of all that there is once for each of them. */
static _Noreturn void refuse_plan(const struct Session *s, size_t fixed, size_t budget) {
    const struct Options *o = &s->options;
    bool learns = !o->eval_only && !o->score[0];
    double gib = 1 << 30, needed = (double)s->arena.total / gib, there = (double)budget / gib;
    if (fixed > budget)
        die_machine("the smallest plan needs %.1f GiB, %.1f of them for the weights%s, and %.1f "
                    "GiB may be used: no option makes that smaller; choose a smaller --model or a "
                    "machine with more memory", needed, (double)fixed / gib,
                    learns ? ", their gradients and the optimizer" : "", there);
    die_machine("the smallest plan needs %.1f GiB and %.1f GiB may be used; what helps:%s%s%s%s "
                "lower --max-prompt and --max-tokens, a smaller --model", needed, there,
                learns && strcmp(o->recompute, "layer") != 0 ? " --recompute layer," : "",
                o->micro_tokens ? " a smaller --micro-tokens," : "",
                o->decode_rows ? " a smaller --decode-rows," : "",
                o->cache_gb > 0 ? " a smaller --cache-gb," : "");
}

/* Bytes of the buffers that have the same size in every plan of this model. */
static size_t fixed_bytes(const struct Arena *arena) {
    static const char *const groups[] = {"weights", "optimizer", "gradients"};
    size_t bytes = 0;
    for (int i = 0; i < arena->count; i++)
        for (size_t g = 0; g < sizeof groups / sizeof *groups; g++)
            if (strcmp(arena->entries[i].group, groups[g]) == 0) bytes += arena->entries[i].bytes;
    return bytes;
}

/* What the plan may use: 70 % of the host's memory, which others use too, or 95 % of what is free
   on a device. --device-memory stands for what would be free on another machine. */
static size_t memory_budget(const struct Session *s) {
    double given = s->options.device_memory * (1 << 30);
    bool on_cpu = strcmp(s->ops->name, "cpu") == 0;
    size_t available = given > 0 ? (size_t)given : s->ops->memory_available();
    if (on_cpu && given == 0) available /= (size_t)world_size(&s->world);
    available = available / 100 * (on_cpu ? 70 : 95);
    return s->world.ops ? (size_t)world_least(&s->world, (double)available) : available;
}

void memory_plan(struct Session *s) {
    size_t budget = memory_budget(s);
    int least = sampler_least_pages(memory_longest_prompt(s), s->max_tokens);
    if (!s->options.score[0])
        s->cache_pages =
            choose_pages(s->options.cache_gb, (double)budget, (double)decode_page_bytes(s->model),
                         least, memory_most_pages(s));
    for (reserve(s); s->arena.total > budget; reserve(s)) {
        size_t *sections = s->arena.section_bytes;
        bool decoding_is_larger = sections[ARENA_DECODING] > sections[ARENA_TRAINING];
        if (!plan_less(s, decoding_is_larger)) refuse_plan(s, fixed_bytes(&s->arena), budget);
        memory_release(s);
    }
}
