/* What the checkpoint tests stand on: a directory of this run's own, and a small model with weights
   and moments. */
#ifndef CHECKPOINT_RIG_H
#define CHECKPOINT_RIG_H

#include "test.h"
#include <float.h>
#include <sys/stat.h>
#include <unistd.h>
#include "child.h"
#include "../llmc/base/check.h"
#include "../llmc/base/json.h"
#include "../llmc/checkpoint.h"
#include "../llmc/kernels/backends.h"

#define PATH_SIZE 4096

static char scratch[PATH_SIZE];

/* ---- files ---------------------------------------------------------------------------------- */

/* scratch/NAME in one of 32 static buffers, used in turn. */
static inline const char *path_of(const char *format, ...) {
    static char paths[32][PATH_SIZE];
    static int next;
    char *path = paths[next++ % 32];
    int length = snprintf(path, PATH_SIZE, "%s/", scratch);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(path + length, (size_t)(PATH_SIZE - length), format, arguments);
    va_end(arguments);
    return path;
}

static inline char *read_whole(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) fail_msg("cannot read %s", path);
    char *data = malloc(1 << 20);
    *length = fread(data, 1, 1 << 20, file);
    fclose(file);
    return data;
}

static inline void write_whole(const char *path, const void *data, size_t length) {
    unlink(path);   /* some file systems flush a file that is cut and written again */
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, length, file) != length || fclose(file) != 0)
        fail_msg("cannot write %s", path);
}

static inline bool exists(const char *path) { return access(path, F_OK) == 0; }

static inline void remove_scratch(const char *name) {
    char command[PATH_SIZE + 16];
    snprintf(command, sizeof command, "rm -rf '%s'", path_of("%s", name));
    if (system(command) != 0) fail_msg("cannot remove %s", name);
}

static pid_t main_process;

/* The leak checker calls this at exit. It is turned off in forked children, because it does not
   work after the fork of a process that had threads. */
int __lsan_is_turned_off(void) { return getpid() != main_process; }

static inline int set_up(void **state) {
    (void)state;
    main_process = getpid();
    json_memory(malloc);
    snprintf(scratch, sizeof scratch, "%s/test_checkpoint_XXXXXX", P_tmpdir);
    return mkdtemp(scratch) == NULL;
}

static inline int tear_down(void **state) {
    (void)state;
    remove_scratch("");
    return 0;
}

/* ---- a model with weights and moments ------------------------------------------------------- */

struct Run {
    const struct Ops *ops;
    struct Model *model;
    struct Weights weights;
    struct OptimizerState optimizer;
    size_t n;
};

static inline void run_open(struct Run *run, const struct ModelConfig *config) {
    run->ops = ops_open("cpu", "auto", 0);
    run->model = model_build(config, run->ops);
    run->n = run->model->num_parameters;
    run->weights = (struct Weights){.master = NULL};
    run->optimizer = (struct OptimizerState){.master = NULL};
    run->weights.data = run->ops->alloc(run->n * run->ops->element_size);
    run->optimizer.m = run->ops->alloc(run->n * sizeof(float));
    run->optimizer.v = run->ops->alloc(run->n * sizeof(float));
    memset(run->weights.data, 0x7f, run->n * run->ops->element_size);
    memset(run->optimizer.m, 0x7f, run->n * sizeof(float));
    memset(run->optimizer.v, 0x7f, run->n * sizeof(float));
}

static inline void run_close(struct Run *run) {
    run->ops->free(run->weights.data);
    run->ops->free(run->optimizer.m);
    run->ops->free(run->optimizer.v);
    model_free(run->model);
}

/* Of a run in the same type. */
static inline void run_load_optimizer(struct Run *run, const char *directory) {
    checkpoint_load_optimizer(directory, run->model, &run->weights, &run->optimizer,
                              run->ops->dtype);
}

/* Random everywhere but in padding and gaps, which are zero. */
static inline void run_fill(struct Run *run, uint64_t stream) {
    float *buffers[3] = {calloc(run->n, sizeof(float)), run->optimizer.m, run->optimizer.v};
    memset(run->optimizer.m, 0, run->n * sizeof(float));
    memset(run->optimizer.v, 0, run->n * sizeof(float));
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < run->model->num_tensors; i++) {
            const struct Tensor *t = &run->model->tensors[i];
            uint64_t tensor_stream = stream + 1000 * (uint64_t)k + (uint64_t)i;
            fill_normal(buffers[k] + t->offset, t->saved, 1, tensor_stream);
            for (size_t j = t->offset; k == 2 && j < t->offset + t->saved; j++)
                buffers[k][j] = fabsf(buffers[k][j]);   /* second moments */
        }
    elements_upload(run->ops, run->weights.data, buffers[0], run->n);
    free(buffers[0]);
}

static inline struct ModelConfig small_config(bool tied) {
    /* HS 36, F 100: several transpose blocks of 32 and a remainder in each direction */
    return (struct ModelConfig){.family = "gpt2", .L = 2, .NH = 2, .NKV = 2, .C = 72, .HS = 36,
                                .F = 100, .V = 24, .V_saved = 24, .Vp = 64, .max_T = 16,
                                .tied = tied,
                                .norm_epsilon = 1e-5};
}

/* Every field is set, also one added later: the whole numbers to different ones. */
static inline struct Progress awkward_state(int64_t step) {
    struct Progress state = {0};
    enum { WORDS = offsetof(struct Progress, dtype) / sizeof(int64_t) };
    for (int64_t i = 0; i < WORDS; i++)
        memcpy((char *)&state + (size_t)i * sizeof i, &(int64_t){i + 100}, sizeof i);
    snprintf(state.dtype, sizeof state.dtype, "fp32");
    snprintf(state.backend, sizeof state.backend, "a \"b\\\t\n");
    snprintf(state.blas, sizeof state.blas, "%031d", 7);   /* no room left */
    snprintf(state.task, sizeof state.task, "t\xc3\xa4sk");
    snprintf(state.control, sizeof state.control, "\"repo_r\"");
    state.step = step, state.loss_scale = 1.0 / 3;
    state.seed = (1LL << 53) - 1, state.num_tokens = 1000000000000000, state.micro_tokens = 0;
    return state;
}

/* Another module's state, saved in the same file. */
struct Other {
    double tiny, third, unknown;
    float narrow;
    int count;
    char text[2000];
};

static const struct Field other_fields[] = {
    {FIELD(FIELD_REAL, struct Other, tiny, "tiny"), -1, 1},
    {FIELD(FIELD_REAL, struct Other, third, "third"), -1, 1},
    {FIELD(FIELD_REAL, struct Other, unknown, "unknown"), -1, 1, .or_nan = true},
    {FIELD(FIELD_REAL, struct Other, narrow, "narrow"), 0, 3e38},
    {FIELD(FIELD_INTEGER, struct Other, count, "count"), -5, 5},
    {FIELD(FIELD_TEXT, struct Other, text, "text")},
};
static const struct FieldTable other_table = {other_fields, 6};
#define LINE "\t\"a line\" of fifty characters, and of several more \\\n"
#define LINES LINE LINE LINE LINE LINE LINE LINE LINE
static const struct Other awkward_other = {4.9e-324, 1.0 / 3, NAN, 0x1.fffffep-3f, -5,
                                           LINES LINES LINES LINES};

/* export NULL: as of a run that began from random weights. */
static inline void save_as(struct Run *run, const struct Export *export, const char *directory,
                           int64_t step, int keep) {
    struct Progress state = awkward_state(step);
    struct Other other = awkward_other;
    struct Tokenizer *tokenizer = tokenizer_from_alphabet("0123456789+-*=:abcdefgh");
    checkpoint_save(directory, run->model, &run->weights, &run->optimizer, tokenizer, &state,
                    (struct FieldSection[]){{&other_table, &other}, {NULL, NULL}}, export,
                    keep, NULL);
    tokenizer_free(tokenizer);
}

static inline void save_into(struct Run *run, const char *directory, int64_t step, int keep) {
    save_as(run, NULL, directory, step, keep);
}

/* Into a directory that is made if it is not there. */
static inline void save_step(struct Run *run, const char *directory, int64_t step, int keep) {
    mkdir(directory, 0777);
    save_into(run, directory, step, keep);
}

/* ---- what is refused ------------------------------------------------------------------------ */

struct LoadCase {
    const char *directory;
    struct Run *run;
    bool weights, optimizer, state, config, tokenizer;
};

static inline void load_body(void *argument) {
    const struct LoadCase *c = argument;
    struct Progress loaded;
    struct ModelConfig config;
    struct Tokenizer *tokenizer = NULL;
    const char *problem = c->config ? checkpoint_config(c->directory, &config) : NULL;
    if (problem) die_input("%s/config.json: %s", c->directory, problem);
    problem = c->tokenizer ? tokenizer_load(&tokenizer, c->directory) : NULL;
    if (problem) die_input("%s: %s", c->directory, problem);
    if (c->weights) checkpoint_load_weights(c->directory, c->run->model, &c->run->weights);
    if (c->optimizer) run_load_optimizer(c->run, c->directory);
    if (c->state) checkpoint_load_state(c->directory, &loaded, NULL);
    tokenizer_free(tokenizer);
}

/* The load ends with exit code 2 and one line that has every one of the words. */
static inline void check_refused(const struct LoadCase *c, const char *const *words) {
    char output[8192];
    int code = run_in_child(load_body, (void *)c, output, sizeof output);
    if (code != 2) fail_msg("exit code %d, output: %s", code, output);
    const char *newline = strchr(output, '\n');
    if (newline == NULL || newline[1] != '\0') fail_msg("not one line: %s", output);
    for (; words && *words; words++)
        if (strstr(output, *words) == NULL) fail_msg("\"%s\" is not in: %s", *words, output);
}

#endif
