/* Inputs and outputs of a case, on the host and in a backend. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../../llmc/base/check.h"
#include "../../llmc/base/rng.h"
#include "../../llmc/io/safetensors.h"
#include "../../llmc/model.h"

const char *const data_names[] = {"normal", "peaked", "hidden", NULL};

/* ---- numbers --------------------------------------------------------------------------------- */

double bound_of(const struct Ops *ops, double roundings) {
    double unit = strcmp(ops->dtype, "bf16") == 0   ? 0x1p-8
                  : strcmp(ops->dtype, "fp16") == 0 ? 0x1p-11
                                                    : 0x1p-24;
    return roundings * unit + 2e-6;
}

void case_round(const struct Ops *ops, float *x, size_t n) {
    if (ops->element_size == sizeof *x) return;
    floatX *narrow = ops->alloc((n + 1) * ops->element_size);
    elements_upload(ops, narrow, x, n);
    elements_download(ops, x, narrow, n);
    ops->free(narrow);
}

float *case_new_floats(size_t n) { return check_alloc(n + 1, sizeof(float), "the benchmark"); }
int *case_new_ints(size_t n) { return check_alloc(n + 1, sizeof(int), "the benchmark"); }

/* [n] = [period] again and again. */
static void repeat(float *x, size_t period, size_t n) {
    for (size_t i = period; i < n; i++) x[i] = x[i - period];
}

/* The same million again and again, which no kernel notices. */
static float *noise(const struct Setting *s, size_t n, double scale, int stream, bool peaks) {
    size_t period = n < (size_t)1 << 20 ? n : (size_t)1 << 20;
    float *x = case_new_floats(n);
    struct Rng rng;
    rng_open(&rng, 11, RNG_TEST, (uint64_t)stream);
    for (size_t i = 0; i < period; i++)
        x[i] = (float)scale * (peaks && rng_below(&rng, 61) == 0 ? 12 : 1) * rng_normal(&rng);
    case_round(s->ops, x, period);
    repeat(x, period, n);
    return x;
}

float *case_noise(const struct Setting *s, size_t n, double scale, int stream) {
    return noise(s, n, scale, stream, false);
}

float *case_numbers(const struct Setting *s, size_t n, double scale, int stream) {
    if (s->data == HIDDEN) return hidden_numbers(s, false, 1, n);
    return noise(s, n, scale, stream, s->data == PEAKED);
}

/* ---- the file of HIDDEN ---------------------------------------------------------------------- */

static struct Hidden {
    struct Safetensors file;
    const struct SafetensorsEntry *hidden, *head;
    int *target;
    int N, C, V;
} h;

static const struct SafetensorsEntry *find(const char *path, const char *name, int dims,
                                           enum SafetensorsType type) {
    const struct SafetensorsEntry *entry = safetensors_find(&h.file, name);
    if (!entry || entry->num_dims != dims || entry->type != type)
        die_input("%s: there is no \"%s\" as ./train --dump-hidden writes it", path, name);
    return entry;
}

void hidden_open(const char *path) {
    const char *problem = safetensors_open(&h.file, path);
    if (problem) die_input("%s: %s", path, problem);
    h.hidden = find(path, "hidden", 2, ST_F32);
    h.head = find(path, "head", 2, ST_F32);
    const struct SafetensorsEntry *target = find(path, "target", 1, ST_I32);
    h.N = (int)h.hidden->shape[0], h.C = (int)h.hidden->shape[1], h.V = (int)h.head->shape[0];
    if (h.head->shape[1] != h.C || target->shape[0] != h.N || h.N < 1 || h.C < 1 || h.V < 1)
        die_input("%s: its three tensors do not belong together", path);
    size_t bytes = (size_t)h.N * sizeof *h.target;
    h.target = case_new_ints((size_t)h.N);
    if (pread(h.file.descriptor, h.target, bytes, (off_t)(h.file.data_begin + target->begin)) !=
        (ssize_t)bytes)
        die_machine("cannot read %s", path);
    for (int i = 0; i < h.N; i++)
        if (h.target[i] < 0 || h.target[i] >= h.V)
            die_input("%s: target %d is not in the vocabulary", path, i);
}

bool hidden_is_open(void) { return h.N > 0; }
int hidden_channels(void) { return h.C; }
int hidden_vocabulary(void) { return h.V; }
int hidden_target(int i) { return h.target[i % h.N]; }

float *hidden_numbers(const struct Setting *s, bool head, size_t rows, size_t columns) {
    const struct SafetensorsEntry *entry = head ? h.head : h.hidden;
    size_t n = rows * columns, part = n < entry->count ? n : entry->count;
    float *x = case_new_floats(n);
    if (safetensors_read(&h.file, entry, x, 0, part) != part)
        die_input("%s: not all numbers are finite", h.file.path);
    case_round(s->ops, x, part);
    repeat(x, part, n);
    return x;
}

/* ---- buffers --------------------------------------------------------------------------------- */

static struct Buffer *add(struct Case *c, const char *name, enum Kind kind, size_t n) {
    if (c->buffers == MOST_BUFFERS) die_machine("a case has too many buffers");
    c->buffer[c->buffers] = (struct Buffer){.name = name, .kind = kind, .n = n};
    return &c->buffer[c->buffers++];
}

struct Buffer *case_in(struct Case *c, const char *name, enum Kind kind, float *x, size_t n) {
    struct Buffer *b = add(c, name, kind, n);
    b->host = x;
    return b;
}

struct Buffer *case_ints(struct Case *c, const char *name, int *x, size_t n) {
    struct Buffer *b = add(c, name, IN_INT, n);
    b->ints = x;
    return b;
}

struct Buffer *case_made(struct Case *c, const char *name) { return add(c, name, MADE, 0); }

struct Buffer *case_out(struct Case *c, const char *name, enum Kind kind, size_t n, double bound) {
    struct Buffer *b = add(c, name, kind, n);
    if (c->wanted) b->want = check_alloc(n + 1, sizeof *b->want, "the benchmark");
    b->bound = bound;
    return b;
}

bool is_output(const struct Buffer *b) { return b->kind >= OUT_X && b->kind <= OUT_HOST; }

static size_t bytes_of(const struct Buffer *b, const struct Ops *ops) {
    bool narrow = b->kind == IN_X || b->kind == OUT_X;
    return b->n * (narrow ? ops->element_size
                   : b->kind == OUT_DOUBLE ? sizeof(double)
                                           : sizeof(float));
}

/* Behind an output there are some bytes that nobody may write. */
enum { GUARD = 256 };

/* Every byte 255: a NaN in each type. */
static void poison(struct Buffer *b, const struct Ops *ops) {
    size_t bytes = bytes_of(b, ops) + GUARD;
    unsigned char *all = check_alloc(bytes, 1, "the benchmark");
    memset(all, 255, bytes);
    if (b->kind == OUT_HOST) memcpy(b->at, all, bytes);
    else ops->upload(b->at, all, bytes);
    free(all);
}

static void fill(struct Buffer *b, const struct Ops *ops) {
    if (is_output(b)) poison(b, ops);
    if (b->ints) ops->upload(b->at, b->ints, bytes_of(b, ops));
    else if (!b->host) return;
    else if (b->kind == IN_X || b->kind == OUT_X) elements_upload(ops, b->at, b->host, b->n);
    else ops->upload(b->at, b->host, bytes_of(b, ops));
}

void case_upload(struct Case *c, const struct Ops *ops) {
    for (int i = 0; i < c->buffers; i++) {
        struct Buffer *b = &c->buffer[i];
        if (b->kind == MADE) continue;
        size_t bytes = bytes_of(b, ops) + GUARD;
        b->at = b->kind == OUT_HOST ? check_alloc(bytes, 1, "the benchmark") : ops->alloc(bytes);
        fill(b, ops);
    }
    if (c->prepare) c->prepare(c, ops);
    ops->sync();
}

void case_remake(struct Case *c, const struct Ops *ops) {
    for (int i = 0; i < c->buffers; i++) {
        struct Buffer *b = &c->buffer[i];
        if (b->kind != MADE || !b->at) continue;
        ops->free(b->at);
        b->at = NULL;
    }
    if (c->prepare) c->prepare(c, ops);
    ops->sync();
}

void case_reset(struct Case *c, const struct Ops *ops) {
    for (int i = 0; i < c->buffers; i++)
        if (is_output(&c->buffer[i])) fill(&c->buffer[i], ops);
}

void case_release(struct Case *c, const struct Ops *ops) {
    for (int i = 0; i < c->buffers; i++) {
        struct Buffer *b = &c->buffer[i];
        if (b->kind == OUT_HOST) free(b->at);
        else if (b->at) ops->free(b->at);
        b->at = NULL;
    }
}

static bool guard_is_whole(const struct Buffer *b, const struct Ops *ops) {
    unsigned char guard[GUARD];
    char *end = (char *)b->at + bytes_of(b, ops);
    if (b->kind == OUT_HOST) memcpy(guard, end, GUARD);
    else ops->download(guard, end, GUARD);
    for (int k = 0; k < GUARD; k++)
        if (guard[k] != 255) return false;
    return true;
}

double *case_download(const struct Buffer *b, const struct Ops *ops) {
    double *out = check_alloc(b->n + 1, sizeof *out, "the benchmark");
    float *x = case_new_floats(b->n);
    if (b->kind == OUT_DOUBLE) ops->download(out, b->at, bytes_of(b, ops));
    else if (b->kind == OUT_X) elements_download(ops, x, b->at, b->n);
    else if (b->kind == OUT_HOST) memcpy(x, b->at, bytes_of(b, ops));
    else ops->download(x, b->at, bytes_of(b, ops));
    for (size_t k = 0; k < b->n && b->kind != OUT_DOUBLE; k++) {
        int number;
        memcpy(&number, &x[k], sizeof number);
        out[k] = b->kind == OUT_INT ? number : (double)x[k];
    }
    if (!guard_is_whole(b, ops)) out[0] = NAN;
    free(x);
    return out;
}

struct Error case_error(const struct Buffer *b, const double *got, const double *want) {
    double largest = 0, difference = 0, size = 0, worst = 0;
    for (size_t k = 0; k < b->n; k++) {
        double d = got[k] - want[k];
        if (!isfinite(d)) return (struct Error){NAN, NAN};
        largest = fmax(largest, fabs(d));
        difference += d * d, size += want[k] * want[k];
    }
    if (b->absolute) return (struct Error){largest, largest / b->bound};
    double mean = sqrt(size / (double)(b->n + 1)), relative = sqrt(difference);
    if (size > 0) relative /= sqrt(size);
    for (size_t k = 0; k < b->n && mean > 0; k++)
        worst = fmax(worst, fabs(got[k] - want[k]) / (fabs(want[k]) + mean));
    return (struct Error){relative, fmax(relative, worst / 8) / b->bound};
}

void case_close(struct Case *c) {
    for (int i = 0; i < c->buffers; i++)
        free(c->buffer[i].host), free(c->buffer[i].ints), free(c->buffer[i].want);
    free(c->about);
    c->buffers = 0, c->about = NULL;
}
