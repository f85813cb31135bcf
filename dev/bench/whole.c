/* What users wait for: training steps, generations, the built-in task; and what monitors cost. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "../../llmc/base/time.h"
#include "../../llmc/kernels/backends.h"
#include "../../llmc/rl/monitor.h"
#include "floor.h"
#include "rig.h"

static struct Row *row_of(const char *op, const char *backend, const char *dtype,
                          const char *shape) {
    struct Operation name = {.name = op};
    struct Bench b = {.op = &name};
    return table_row(&b, "whole", backend, backend, dtype, shape);
}

static void keep(struct Row *row, const struct Alternation *t) {
    for (int k = 0; k < 3; k++) row->warm[k] = 1e3 * t->ours[k];
    row->floor_ms = 1e3 * t->floor, row->of_floor = 1 / t->ratio;
}

/* ---- a GPT-2 124M training step -------------------------------------------------------------- */

static void train_step(void *context) {
    struct Learner *l = context;
    learner_update(l, 0, l->set.count, 1024);
}

/* All products of 12 layers and the head, 256 tokens, forward and backward. */
static double step_products(void *context) {
    static const struct Products layer[] = {{256, 768, 2304, true, true},
                                            {256, 768, 768, true, true},
                                            {256, 768, 3072, true, true},
                                            {256, 3072, 768, true, true}},
                                 head = {256, 768, 50257, true, true};
    double sum = 0;
    (void)context;
    for (int i = 0; i < 4; i++) sum += floor_products(&layer[i]);
    return 12 * sum + floor_products(&head);
}

static void step_cpu(void) {
    struct Learner l;
    learner_open(&l, bench_model("gpt2", ops_open("cpu", "auto", 0)), 4, 64, 256, RECOMPUTE_NONE,
                 false);
    struct Alternation t = floor_compare(train_step, step_products, &l, 15, 30);
    struct Row *row = row_of("step", "cpu", "fp32", "GPT-2 124M, B 4 T 64");
    keep(row, &t);
    row->products_ms = row->floor_ms, row->of_products = row->of_floor;
    row->flop = model_flops_per_token(l.model, 64) * 256;
    printf("step     GPT-2 124M, B=4 T=64: %.0f ms a training step, its products %.0f ms, ratio "
           "%.3f\n", 1e3 * t.ours[1], 1e3 * t.floor, t.ratio);
    learner_close(&l);
}

/* ---- generations ----------------------------------------------------------------------------- */

enum { TOKENS = 48 };

/* A decode step must read the weights once, and do two operations per weight and row: the larger
   of the two times, at the rates of this moment. */
static double generation_floor(void *context) {
    const struct Generation *g = context;
    double bytes = 4 * g->products / floor_byte_rate();
    double flops = 2 * g->products * g->request.group / floor_flop_rate();
    return TOKENS * (flops > bytes ? flops : bytes);
}

static void generate_cpu(void) {
    static const int batches[] = {1, 8, 32, 64};
    struct Model *model = bench_model("gpt2", ops_open("cpu", "auto", 0));
    for (int i = 0; i < 4; i++) {
        struct Generation g;
        char shape[64];
        generation_open(&g, model, batches[i], TOKENS);
        struct Alternation t = floor_compare(generation_run, generation_floor, &g, 5, 30);
        snprintf(shape, sizeof shape, "GPT-2 124M, batch %d x %d", batches[i], TOKENS);
        struct Row *row = row_of("generate", "cpu", "fp32", shape);
        keep(row, &t);
        row->flop = 2 * g.products * batches[i] * TOKENS;
        printf("generate GPT-2 124M float32, batch %2d: %6.0f tokens/s, floor %6.0f, %.0f %%\n",
               batches[i], batches[i] * TOKENS / t.ours[1], batches[i] * TOKENS / t.floor,
               100 / t.ratio);
        fflush(stdout);
        generation_close(&g);
    }
    model_free(model);
}

/* ---- the built-in task, as the program itself logs it ---------------------------------------- */

enum { TASK_STEPS = 60 };

/* Medians of the last TASK_STEPS / 2 steps of a short run of ./train. */
static void task_cpu(void) {
    static const char run[] = "./train --quiet --overwrite --run build/bench-run --eval-every 0 "
                              "--warm-start 100 --steps 60 --save-every 0 --rollouts-every 0";
    static const char *const keys[] = {"step_time", "perf/gen_tok_s", "timing/monitor",
                                       "timing/gen", "timing/update"};
    double values[5][TASK_STEPS], medians[5];
    char *line = NULL;
    size_t capacity = 0;
    int n = 0;
    if (system(run) != 0) die_machine("the benchmark could not run: %s", run);
    FILE *log = fopen("build/bench-run/metrics.jsonl", "r");
    if (!log) die_machine("build/bench-run/metrics.jsonl is missing");
    while (n < TASK_STEPS / 2 && getline(&line, &capacity, log) >= 0) {
        cJSON *step = cJSON_Parse(line);
        if (cJSON_GetObjectItem(step, "step")->valueint > TASK_STEPS / 2) {
            for (int k = 0; k < 5; k++)
                values[k][n] = cJSON_GetObjectItem(step, keys[k])->valuedouble;
            n++;
        }
        cJSON_Delete(step);
    }
    fclose(log);
    free(line);
    for (int k = 0; k < 5; k++) medians[k] = percentile(values[k], n, 0.5);
    struct Row *row = row_of("task", "cpu", "fp32", "countdown, 32 x 16, 4 updates");
    for (int k = 0; k < 3; k++) row->warm[k] = 1e3 * percentile(values[0], n, 0.2 + 0.3 * k);
    printf("task     countdown, 32 prompts x 16 completions, 4 updates: %.0f sampled tokens/s, "
           "%.1f RL steps/s (rollout %.0f ms, updates %.0f ms), monitors %.1f %% of a step\n",
           medians[1], 1 / medians[0], 1e3 * medians[3], 1e3 * medians[4],
           100 * medians[2] / medians[0]);
}

/* ---- what the monitors cost ------------------------------------------------------------------ */

/* A GPT-2 124M step of RL: UPDATES updates on 4 completions of 64 tokens each, then the change of
   entropy measured on one of the 32 completions; attention entropy from the first update. */
enum { UPDATES = 8, COMPLETIONS = 4 * UPDATES, LENGTH = 65 };

static bool monitors_on;

static void monitored_step(void *context) {
    static struct Experience e;
    struct Learner *g = context;
    if (monitors_on) trainer_watch_attention(g->trainer);
    for (int u = 0; u < UPDATES; u++) learner_update(g, 4 * u, 4, 64);
    if (!monitors_on) return;
    if (!e.count) {
        e.count = COMPLETIONS;
        e.start = (int *)g->set.start, e.loss_start = (int *)g->set.loss_start;
        e.token = (int *)g->set.token, e.loss_mask = (unsigned char *)g->set.loss_mask;
        e.length = check_alloc(COMPLETIONS, sizeof(int), "the benchmark");
        e.entropy = check_alloc(COMPLETIONS * LENGTH, sizeof(float), "the benchmark");
        for (int i = 0; i < COMPLETIONS; i++) e.length[i] = LENGTH - 1;
    }
    monitor_entropy_push(g->trainer, &e, 1, -1);
}

static double unmonitored_step(void *context) {
    double begin = seconds();
    monitors_on = false;
    monitored_step(context);
    monitors_on = true;
    return seconds() - begin;
}

static void monitors_cpu(void) {
    struct Learner g;
    learner_open(&g, bench_model("gpt2", ops_open("cpu", "auto", 0)), COMPLETIONS, 64, 256,
                 RECOMPUTE_NONE, true);
    monitors_on = true;
    struct Alternation t = floor_compare(monitored_step, unmonitored_step, &g, 5, 90);
    keep(row_of("monitors", "cpu", "fp32", "GPT-2 124M, 8 updates of 4 x 64"), &t);
    printf("monitors GPT-2 124M, 8 updates of 4 x 64 tokens: %.0f ms with all monitors, %.0f ms "
           "without, ratio %.3f\n", 1e3 * t.ours[1], 1e3 * t.floor, t.ratio);
    learner_close(&g);
}

/* ---- on a GPU -------------------------------------------------------------------------------- */

static bool is_simulated(const struct Ops *ops) { return strncmp(ops->name, "sim", 3) == 0; }
static const char *gpu_model(const struct Ops *ops) { return is_simulated(ops) ? "tiny" : "gpt2"; }

/* Milliseconds of work that ends in a sync, after one turn that does not count. */
static void gpu_keep(struct Row *row, const struct Ops *ops, const struct Rates *rates,
                     void (*call)(void *), void *context) {
    enum { MOST = 7 };
    int repeats = is_simulated(ops) ? 1 : MOST;
    double times[MOST], flop = row->flop / rates->flop, bytes = row->bytes / rates->bytes;
    for (int i = -1; i < repeats; i++) {
        ops->sync();
        double begin = seconds();
        call(context);
        ops->sync();
        if (i >= 0) times[i] = 1e3 * (seconds() - begin);
    }
    for (int k = 0; k < 3; k++) row->warm[k] = percentile(times, repeats, 0.2 + 0.3 * k);
    row->floor_ms = 1e3 * (flop > bytes ? flop : bytes);
    row->of_floor = row->floor_ms / row->warm[1];
}

/* B rows of T tokens in micro-batches of N tokens. */
static void step_gpu(const struct Ops *ops, const struct Rates *rates) {
    static const struct { enum Recompute recompute; const char *word; } ways[] = {
        {RECOMPUTE_NONE, "none"}, {RECOMPUTE_LAYER, "layer"}};
    int B = is_simulated(ops) ? 2 : 32, T = is_simulated(ops) ? 16 : 1024;
    for (int i = 0; i < 2; i++) {
        struct Learner l;
        char shape[64];
        learner_open(&l, bench_model(gpu_model(ops), ops), B, T, B * T, ways[i].recompute, false);
        snprintf(shape, sizeof shape, "%s, B %d T %d, %s", gpu_model(ops), B, T, ways[i].word);
        struct Row *row = row_of("step", ops->name, ops->dtype, shape);
        row->flop = model_flops_per_token(l.model, T) * B * T;
        row->extra_mib = (double)l.arena.total / (1 << 20);
        gpu_keep(row, ops, rates, train_step, &l);
        printf("step     %s: %.1f ms, %.0f tokens/s, %.0f %% of the products' rate\n", shape,
               row->warm[1], 1e3 * B * T / row->warm[1], 100 * row->of_floor);
        learner_close(&l);
    }
}

/* Floor: every step reads the weights, and each row's keys and values so far. */
static void generate_gpu(const struct Ops *ops, const struct Rates *rates) {
    static const int batches[] = {1, 8, 64, 256, 1024};
    int most = is_simulated(ops) ? 6 : 256;
    struct Model *model = bench_model(gpu_model(ops), ops);
    const struct ModelConfig *c = &model->config;
    for (int i = 0; i < (is_simulated(ops) ? 2 : 5); i++) {
        struct Generation g;
        char shape[64];
        generation_open(&g, model, batches[i], most);
        snprintf(shape, sizeof shape, "%s, batch %d x %d", gpu_model(ops), batches[i], most);
        struct Row *row = row_of("generate", ops->name, ops->dtype, shape);
        double cache = 2.0 * c->L * c->NKV * c->HS * batches[i] * 0.5 * most;
        row->flop = 2 * g.products * batches[i] * most;
        row->bytes = most * (g.products + cache) * (double)ops->element_size;
        gpu_keep(row, ops, rates, generation_run, &g);
        printf("generate %s: %.0f tokens/s, %.0f %% of the floor\n", shape,
               1e3 * batches[i] * most / row->warm[1], 100 * row->of_floor);
        generation_close(&g);
    }
    model_free(model);
}

/* ---------------------------------------------------------------------------------------------- */

static const struct Whole {
    const char *name;
    void (*cpu)(void);
    void (*gpu)(const struct Ops *ops, const struct Rates *rates);   /* NULL: only on the CPU */
} wholes[] = {{"step", step_cpu, step_gpu}, {"generate", generate_cpu, generate_gpu},
              {"task", task_cpu, NULL}, {"monitors", monitors_cpu, NULL}};

static const struct Whole *whole_find(const char *name) {
    for (size_t i = 0; i < sizeof wholes / sizeof *wholes; i++)
        if (strcmp(wholes[i].name, name) == 0) return &wholes[i];
    return NULL;
}

bool whole_is(const char *name) { return whole_find(name) != NULL; }
void whole_cpu(const char *name) { whole_find(name)->cpu(); }
void whole_gpu(const char *name, const struct Ops *ops, const struct Rates *rates) {
    if (whole_find(name)->gpu) whole_find(name)->gpu(ops, rates);
}
