/* Every version of an operation against the reference in double and the CPU's slot. */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "../cuda/lab_open.h"

/* Where a slot is in struct Ops. */
#define SLOT(name) {#name, offsetof(struct Ops, name)}
static const struct {
    const char *name;
    size_t offset;
} slots[] = {
    SLOT(head_forward), SLOT(head_forward_backward), SLOT(attention_forward),
    SLOT(attention_backward), SLOT(norm_forward), SLOT(norm_residual_forward), SLOT(norm_backward),
    SLOT(adamw), SLOT(sum_of_squares), SLOT(head_sample), SLOT(matmul_decode), SLOT(mlp_decode),
    SLOT(attention_decode), SLOT(matmul_forward), SLOT(matmul_backward),
};

bool slot_is_there(const struct Ops *ops, const char *slot) {
    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++)
        if (strcmp(slots[i].name, slot) == 0) {
            void (*function)(void);
            memcpy(&function, (const char *)ops + slots[i].offset, sizeof function);
            return function != NULL;
        }
    die_machine("the benchmark knows no slot %s", slot);
}

/* What one version gave for a case. */
struct Outcome {
    double *got[MOST_BUFFERS];
    bool repeats;
};

static void outcome_free(struct Outcome *o) {
    for (int i = 0; i < MOST_BUFFERS; i++) free(o->got[i]);
}

static void call_once(struct Case *c, const struct Ops *ops, void *workspace, size_t bytes,
                      double **got) {
    unsigned char *poison = check_alloc(bytes + 1, 1, "the benchmark");
    memset(poison, 255, bytes);
    ops->upload(workspace, poison, bytes);
    free(poison);
    case_reset(c, ops);
    c->call(c, ops, workspace);
    ops->sync();
    for (int i = 0; i < c->buffers; i++)
        got[i] = is_output(&c->buffer[i]) ? case_download(&c->buffer[i], ops) : NULL;
}

/* Twice: the second time must give the same bits. */
static void run(struct Outcome *o, struct Case *c, const struct Ops *ops, size_t bytes) {
    struct Outcome again;
    void *workspace = ops->alloc(bytes + 1);
    *o = again = (struct Outcome){.repeats = true};
    case_upload(c, ops);
    call_once(c, ops, workspace, bytes, o->got);
    call_once(c, ops, workspace, bytes, again.got);
    for (int i = 0; i < c->buffers; i++)
        if (o->got[i])
            o->repeats &= memcmp(o->got[i], again.got[i], c->buffer[i].n * sizeof(double)) == 0;
    outcome_free(&again);
    case_release(c, ops);
    ops->free(workspace);
}

/* Keeps the worst error of each output in the row's list. */
static void note_error(struct Row *row, const char *name, double error) {
    char before[sizeof row->errors], out[sizeof row->errors] = "", item[64];
    size_t length = 0;
    bool found = false;
    memcpy(before, row->errors, sizeof before);
    char *rest = before;
    for (char *part; (part = strsep(&rest, ",")) != NULL;) {
        char of[32];
        double known;
        if (sscanf(part, " %31s %lg", of, &known) != 2) continue;
        bool same = strcmp(of, name) == 0;
        if (same) found = true, known = error <= known ? known : error;
        snprintf(item, sizeof item, "%s%s %.2g", length ? ", " : "", of, known);
        length += (size_t)snprintf(out + length, sizeof out - length, "%s", item);
        if (length >= sizeof out) return;
    }
    if (!found)
        snprintf(out + length, sizeof out - length, "%s%s %.2g", length ? ", " : "", name, error);
    memcpy(row->errors, out, sizeof out);
}

static void complain(const struct Row *row, const struct Case *c, const char *what,
                     const char *from, struct Error error, double bound) {
    printf("WRONG  %s (%s, %s), %s of %s, %s data: ", row->version, row->backend, row->dtype,
           row->slot, c->shape, data_names[c->data]);
    if (isnan(error.over_bound))
        printf("%s is not a number, or was written beyond its end\n", what);
    else
        printf("%s is off by %.3g%s, %.3g times its bound %.3g\n", what, error.shown, from,
               error.over_bound, bound);
}

/* Compares what came out with what must, and with the CPU's (NULL: not with that). */
static void judge(struct Row *row, struct Case *c, const struct Outcome *o,
                  const struct Outcome *cpu) {
    if (c->settle) c->settle(c, o->got);
    row->cases++;
    for (int i = 0; i < c->buffers; i++) {
        struct Buffer b = c->buffer[i];
        if (!o->got[i] || !b.want) continue;
        struct Error error = case_error(&b, o->got[i], b.want);
        note_error(row, b.name, error.shown);
        if (!(error.over_bound <= row->worst)) row->worst = error.over_bound;
        bool good = error.over_bound <= 1;
        if (!good) complain(row, c, b.name, "", error, b.bound);
        if (good && cpu) {
            b.bound = b.apart > 0 ? b.apart : 2 * b.bound;
            error = case_error(&b, o->got[i], cpu->got[i]);
            good = error.over_bound <= 1;
            if (!good) complain(row, c, b.name, " from the CPU's", error, b.bound);
        }
        row->agrees &= good;
    }
    if (!o->repeats)
        printf("WRONG  %s (%s, %s), %s of %s: the second call gives other bits\n", row->version,
               row->backend, row->dtype, row->slot, c->shape);
    row->repeats &= o->repeats, row->agrees &= o->repeats;
}

/* One case: the CPU's slot, then every version that has it and runs here. dtype: what inputs are
   rounded to; the CPU computes in float32. */
static bool check_case(const struct Bench *b, struct Case *c, const char *dtype) {
    bool good = true;
    struct Outcome cpu = {.repeats = true}, o;
    static struct Ops ops;
    c->expect(c);
    if (b->cpu) {
        run(&cpu, c, b->cpu, b->cpu->workspace_size(&c->sizes));
        struct Row *row = table_row(b, c->slot, "cpu", "cpu", dtype, "");
        judge(row, c, &cpu, NULL);
        good &= row->agrees;
    }
    const struct Ladder *ladder = b->lab ? lab_ladder(b->lab, b->op->name) : NULL;
    for (int v = 0; ladder && v < ladder->count; v++) {
        const struct Version *version = &ladder->versions[v];
        struct Ops only = {.name = NULL};
        version->file->fill(&only);
        if (!slot_is_there(&only, c->slot) || !version->runs_here()) continue;
        lab_use(&ops, b->lab, version);
        struct Row *row = table_row(b, c->slot, version->file->name, b->backend, dtype, "");
        run(&o, c, &ops, version->file->workspace(&c->sizes));
        judge(row, c, &o, b->cpu ? &cpu : NULL);
        outcome_free(&o);
        good &= row->agrees;
    }
    outcome_free(&cpu);
    return good;
}

bool check_versions(const struct Bench *b) {
    bool good = true;
    for (int s = 0; b->op->slots[s]; s++)
        for (int d = NORMAL; d <= HIDDEN; d++) {
            struct Setting setting = {b->lab ? &b->lab->ops : b->cpu, (enum Data)d, RAGGED, 0};
            if (d == HIDDEN && !hidden_is_open()) continue;
            for (;; setting.which++) {
                struct Case c = {.data = (enum Data)d, .wanted = true};
                if (!b->op->open(&c, b->op->slots[s], &setting)) break;
                good &= check_case(b, &c, setting.ops->dtype);
                case_close(&c);
            }
        }
    return good;
}
