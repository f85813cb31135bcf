/* --dump-hidden FILE: what the head gets in a real run, for benchmarks and studies of kernels.
   After the first rollout of this process, the hidden states after the last norm of the tokens
   that predict the drawn ones, under the weights that drew them. Safetensors (doc/formats.md):

       hidden [N,C]  F32, completion by completion      target [N]  I32, the token that was drawn
       head   [V,C]  F32, the head's weight, without padding rows

   N is that of the completions from the first on that together have at most MOST_HIDDEN tokens. */
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../base/console.h"
#include "../base/files.h"
#include "../io/safetensors.h"
#include "session.h"

enum { MOST_HIDDEN = 16384 };

void session_check_dump(const struct Session *s) {
    const struct Options *o = &s->options;
    struct AtomicFile file;
    char directory[OPTION_TEXT];
    if (!o->dump_hidden[0] || world_rank(&s->world) != 0) return;
    if (s->plan.supervised || s->progress.step >= s->plan.steps)
        die_input("--dump-hidden %s: this run has no rollout to take hidden states from; it needs "
                  "%s", o->dump_hidden,
                  s->plan.supervised ? "an objective other than ce" : "more --steps");
    if (!o->overwrite && path_exists(o->dump_hidden))
        die_input("--dump-hidden %s: the file exists; name another, or --overwrite it",
                  o->dump_hidden);
    snprintf(directory, sizeof directory, "%s", o->dump_hidden);
    char *slash = strrchr(directory, '/');
    if (slash && slash > directory) {
        *slash = 0;
        if (!path_exists(directory))
            die_input("--dump-hidden %s: there is no directory %s", o->dump_hidden, directory);
    }
    if (o->dry_run) return;
    atomic_open(&file, o->dump_hidden);   /* now, and not after the warm start */
    atomic_cancel(&file);
}

struct Dump {
    struct SafetensorsWriter *writer;
    size_t C;
};

static void write_hidden(void *context, const float *hidden, int n) {
    const struct Dump *to = context;
    safetensors_write(to->writer, hidden, (size_t)n * to->C * sizeof *hidden);
}

static void write_targets(struct SafetensorsWriter *writer, const struct Experience *e,
                          int tokens) {
    for (int i = 0; i < tokens; i++) {
        int32_t token = e->token[i];
        if (e->loss_mask[i]) safetensors_write(writer, &token, sizeof token);
    }
}

static void write_head(struct SafetensorsWriter *writer, const struct Model *model,
                       const struct Weights *weights) {
    enum { SLICE = 1024 };
    int V = model->config.V;
    size_t C = (size_t)model->config.C;
    const floatX *W = model_head_weight(model, weights);
    float *rows = check_alloc(SLICE * C, sizeof *rows, "the head's weight");
    for (int v = 0; v < V; v += SLICE) {
        size_t n = (size_t)(V - v < SLICE ? V - v : SLICE) * C;
        elements_download(model->ops, rows, ops_at(model->ops, W, (size_t)v * C), n);
        safetensors_write(writer, rows, n * sizeof *rows);
    }
    free(rows);
}

void session_dump_hidden(struct Session *s) {
    const struct Experience *e = &s->experience;
    const char *path = s->options.dump_hidden;
    int count = 0;
    if (!path[0] || s->dumped || e->count == 0 || world_rank(&s->world) != 0) return;
    while (count < e->count && (count == 0 || e->loss_start[count + 1] <= MOST_HIDDEN)) count++;
    struct TrainingSet set = experience_training_set(e);
    const struct Weights *weights = trainer_weights(s->trainer);
    int64_t N = e->loss_start[count], C = s->model->config.C, V = s->model->config.V;
    int *pick = check_alloc((size_t)count, sizeof *pick, "hidden states");
    for (int i = 0; i < count; i++) pick[i] = i;
    struct Dump to = {safetensors_create(path), (size_t)C};
    safetensors_describe(to.writer, "hidden", ST_F32, 2, (int64_t[]){N, C});
    safetensors_describe(to.writer, "target", ST_I32, 1, (int64_t[]){N});
    safetensors_describe(to.writer, "head", ST_F32, 2, (int64_t[]){V, C});
    trainer_hidden_states(s->trainer, weights, &set, pick, count, write_hidden, &to);
    write_targets(to.writer, e, e->start[count]);
    write_head(to.writer, s->model, weights);
    safetensors_commit(to.writer, NULL);
    s->dumped = true;
    say("hidden states of %lld tokens, and the head's weight [%lld, %lld], are in %s",
        (long long)N, (long long)V, (long long)C, path);
    free(pick);
}
