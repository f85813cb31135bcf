/* What the tests of operations share. They see a backend only through struct Ops, so the same
   programs test every backend: its name is the first argument ("cpu" without one), the dtype the
   second.

   Host arrays are float; put_x rounds them to the backend's floatX and back, so that a reference in
   double starts from the numbers that the backend sees. Outputs start as NaN, and so does the
   workspace: whatever an operation forgets to write or reads too early shows. */
#ifndef TEST_OPS_H
#define TEST_OPS_H

#include <stdbool.h>
#include "test.h"
#include "../dev/cuda/lab_open.h"
#include "../llmc/kernels/backends.h"

static const struct Ops *ops;

/* Everything allocated since the last release_all. */
static void *allocated[4096];
static int num_allocated;

static inline void *new_memory(size_t bytes) {
    assert_true(num_allocated < 4096);
    return allocated[num_allocated++] = ops->alloc(bytes);
}

static inline void *put_bytes(const void *host, size_t bytes) {
    void *memory = new_memory(bytes);
    ops->upload(memory, host, bytes);
    return memory;
}
static inline int *put_ints(const int *host, size_t n) { return put_bytes(host, n * sizeof *host); }
static inline float *put_floats(const float *host, size_t n) {
    return put_bytes(host, n * sizeof *host);
}

/* Uploads as floatX; host then holds what was kept. Where products round their operands to less
   than is stored (cpu bf16), what is kept is what they would see. */
static inline floatX *put_x(float *host, size_t n) {
    for (size_t i = 0; i < n && ops->products != ops->dtype; i++) {
        int exponent;
        if (!isfinite(host[i])) continue;
        frexpf(host[i], &exponent);
        host[i] = ldexpf(nearbyintf(ldexpf(host[i], 8 - exponent)), exponent - 8);
    }
    floatX *memory = new_memory(n * ops->element_size);
    float *wide = put_floats(host, n);
    ops->from_float(memory, wide, n);
    ops->to_float(wide, memory, n);
    ops->download(host, wide, n * sizeof *host);
    return memory;
}

/* A floatX or float output of n elements, every byte 255: a NaN in each of the types. */
static inline void *new_poison(size_t bytes) {
    unsigned char *host = malloc(bytes + 1);
    assert_non_null(host);
    memset(host, 255, bytes);
    void *memory = put_bytes(host, bytes);
    free(host);
    return memory;
}
static inline floatX *new_x(size_t n) { return new_poison(n * ops->element_size); }
static inline float *new_floats(size_t n) { return new_poison(n * sizeof(float)); }
/* A workspace, and a guard behind it that release_all finds as it was left. For one operation it is
   exactly as large as the files say whose names begin with `files`: what the whole backend asks for
   is the most of all of them, and would hide that one says too little. */
enum { GUARD = 256, GUARDS = 64 };
static struct {
    unsigned char *workspace;
    size_t bytes;
} guarded[GUARDS];
static int num_guarded;

static inline void *new_guarded(size_t bytes) {
    assert_true(num_guarded < GUARDS);
    guarded[num_guarded].workspace = new_poison(bytes + GUARD);
    guarded[num_guarded].bytes = bytes;
    return guarded[num_guarded++].workspace;
}

static inline void *new_workspace_of(const char *files, const struct OpsShape *shape) {
    size_t most = 0, found = 0;
    for (int f = 0; f < ops->num_files; f++) {
        if (strncmp(ops->files[f]->name, files, strlen(files)) != 0) continue;
        size_t bytes = ops->files[f]->workspace(shape);
        if (bytes > most) most = bytes;
        found++;
    }
    assert_true(found > 0);
    return new_guarded(most);
}

static inline void *new_workspace(const struct OpsShape *shape) {
    return new_guarded(ops->workspace_size(shape));
}

static inline void check_guards(void) {
    unsigned char guard[GUARD];
    for (int i = 0; i < num_guarded; i++) {
        ops->download(guard, guarded[i].workspace + guarded[i].bytes, GUARD);
        for (int j = 0; j < GUARD; j++)
            if (guard[j] != 255)
                fail_msg("byte %d behind a workspace of %zu bytes was written", j,
                         guarded[i].bytes);
    }
    num_guarded = 0;
}

/* Host copies; the caller frees. */
static inline float *get_floats(const float *in, size_t n) {
    float *host = malloc(n * sizeof *host + 1);
    assert_non_null(host);
    ops->download(host, in, n * sizeof *host);
    return host;
}
static inline float *get_x(const floatX *in, size_t n) {
    float *wide = new_memory(n * sizeof *wide);
    ops->to_float(wide, in, n);
    return get_floats(wide, n);
}

/* A packed batch whose rows begin at start [B+1] and have these prompts [B] (NULL: none): it, and
   its blocks where the backend wants some, to the backend. */
static inline struct Rows put_rows(const int *start, const int *prompt, int B) {
    struct Rows rows = {.N = start[B], .B = B, .start = put_ints(start, (size_t)B + 1)};
    for (int b = 0; b < B; b++) {
        int before = prompt ? prompt[b] : -1, length = start[b + 1] - start[b];
        if (before >= 0) length += start[before + 1] - start[before];
        if (length > rows.max_T) rows.max_T = length;
    }
    if (prompt) {
        int *seen = malloc((size_t)B * sizeof *seen);
        assert_non_null(seen);
        rows_seen(seen, start, prompt, B);
        rows.prompt = put_ints(prompt, (size_t)B), rows.seen = put_ints(seen, (size_t)B);
        free(seen);
    }
    if (ops->attention_block == 0) return rows;
    struct QueryBlock *block = malloc((size_t)(rows.N / ops->attention_block + B) * sizeof *block);
    assert_non_null(block);
    rows.blocks = rows_cut_blocks(block, start, prompt, B, ops->attention_block);
    rows.block = put_bytes(block, (size_t)rows.blocks * sizeof *block);
    free(block);
    return rows;
}

static inline void release_all(void) {
    check_guards();
    while (num_allocated) ops->free(allocated[--num_allocated]);
}

/* Half the distance from 1 to the next floatX: the relative error of one rounding. */
static inline double rounding_unit(void) {
    return strcmp(ops->products, "bf16") == 0   ? 0x1p-8
           : strcmp(ops->products, "fp16") == 0 ? 0x1p-11
                                             : 0x1p-24;
}

/* Bound of a relative L2 error: so many roundings to floatX one after another, and the float32
   arithmetic between them (sums of some thousand terms lose a few units of 2^-24). */
static inline double bound_of(double roundings) { return roundings * rounding_unit() + 1e-6; }

/* Fails unless n floats of the backend are the reference to within bound; frees nothing. */
static inline void check_floats(const char *name, const float *in, const double *reference,
                                size_t n, double bound) {
    float *host = get_floats(in, n);
    ASSERT_CLOSE(name, relative_l2(host, reference, n), bound);
    free(host);
}
static inline void check_x(const char *name, const floatX *in, const double *reference, size_t n,
                           double bound) {
    float *host = get_x(in, n);
    ASSERT_CLOSE(name, relative_l2(host, reference, n), bound);
    free(host);
}

static inline double *new_doubles(size_t n) {
    double *x = calloc(n + 1, sizeof *x);
    assert_non_null(x);
    return x;
}

/* Central difference of loss(context) along the direction d [n] of x [n]. */
static inline double slope_along(double *x, const double *d, size_t n,
                                 double (*loss)(void *context), void *context) {
    const double step = 1e-5;
    for (size_t i = 0; i < n; i++) x[i] += step * d[i];
    double above = loss(context);
    for (size_t i = 0; i < n; i++) x[i] -= 2 * step * d[i];
    double below = loss(context);
    for (size_t i = 0; i < n; i++) x[i] += step * d[i];
    return (above - below) / (2 * step);
}

static bool asked_for_small;

/* "sim/head_naive": the simulator's backend with that version's slots (dev/cuda/lab.h). */
static inline const struct Ops *open_version(const char *name, const char *dtype) {
    static struct Ops with_version;
    static struct Lab lab;
    char plugin[64], why[1024];
    const char *version = strchr(name, '/') + 1;
    snprintf(plugin, sizeof plugin, "%.*s", (int)(version - 1 - name), name);
    if (!lab_open(&lab, plugin, strcmp(dtype, "auto") == 0 ? "bf16" : dtype, why, sizeof why))
        die_machine("%s", why);
    const struct Version *found = lab_version(&lab, version);
    if (!found) die_input("no ladder has a version called %s", version);
    lab_use(&with_version, &lab, found);
    return &with_version;
}

/* Usage of every test of operations: PROGRAM [BACKEND[/VERSION] [DTYPE [PATTERN [small]]]]; tests
   whose names match the pattern (* and ?) run, with the smaller shapes if that is said. */
static inline void open_backend(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "cpu", *dtype = argc > 2 ? argv[2] : "auto";
    ops = strchr(name, '/') ? open_version(name, dtype) : ops_open(name, dtype, 0);
    if (argc > 3) cmocka_set_test_filter(argv[3]);
    asked_for_small = argc > 4;
}

/* The simulator's checking builds, and compute-sanitizer, run each access through a checker, 5 to
   40 times slower: there, tests take the smaller of their shapes (still larger than one block, and
   ragged). */
static inline bool is_slow(void) {
    return asked_for_small || strcmp(ops->name, "sim-asan") == 0 ||
           strcmp(ops->name, "sim-race") == 0;
}
static inline bool is_cpu(void) { return strcmp(ops->name, "cpu") == 0; }

/* GELU in GPT-2's tanh form (1606.08415), and its derivative, in double. */
static inline double gelu(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
static inline double gelu_slope(double x) {
    double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) +
           0.5 * x * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

#endif
