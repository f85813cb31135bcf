/* Checkpoints: bitwise round trips, files that others wrote (Hugging Face's save_pretrained, older
   names, half precision), and what kills at any moment leave. Files that do not fit:
   test_checkpoint_misfits.c. */
#include "checkpoint_rig.h"
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <sys/resource.h>
#include "child.h"
#include "../llmc/base/check.h"
#include "../llmc/base/json.h"
#include "../llmc/io/safetensors.h"

#define GOLDEN "test/golden/gpt2"

/* ---- a process that can die before any change to a directory -------------------------------- */

/* These stand before the C library's. fsync only counts: nothing here outlives the machine. */
static int calls_left = -1;   /* until the process ends; -1: it lives on */

static void count_call(void) {
    if (calls_left >= 0 && calls_left-- == 0) _exit(99);
}

int rename(const char *from, const char *to) {
    count_call();
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

int mkdir(const char *path, mode_t mode) {
    count_call();
    return mkdirat(AT_FDCWD, path, mode);
}

int remove(const char *path) {
    count_call();
    int result = unlinkat(AT_FDCWD, path, 0);
    return result != 0 && errno == EISDIR ? unlinkat(AT_FDCWD, path, AT_REMOVEDIR) : result;
}

int fsync(int descriptor) {
    count_call();
    return fcntl(descriptor, F_GETFD) < 0 ? -1 : 0;
}

/* ---- round trips ---------------------------------------------------------------------------- */

/* Field by field: between the fields lie bytes that nobody wrote. */
static void check_same_config(const struct ModelConfig *a, const struct ModelConfig *b) {
    assert_string_equal(a->family, b->family);
    assert_memory_equal(&a->L, &b->L, offsetof(struct ModelConfig, tied) -
                                          offsetof(struct ModelConfig, L)); /* ints without gaps */
    assert_int_equal(a->tied, b->tied);
    assert_memory_equal(&a->norm_epsilon, &b->norm_epsilon, sizeof a->norm_epsilon);
}

static void test_round_trip_is_bitwise(void **state) {
    (void)state;
    for (int tied = 0; tied < 2; tied++) {
        struct ModelConfig config = small_config(tied), found;
        struct Run run, back;
        run_open(&run, &config);
        run_fill(&run, 1);
        const char *directory = path_of("round%d", tied);
        save_step(&run, directory, 1234567, 0);

        char latest[PATH_SIZE];
        assert_true(checkpoint_latest(directory, latest, sizeof latest));
        assert_string_equal(latest, path_of("round%d/checkpoints/step_1234567", tied));
        assert_null(checkpoint_config(latest, &found));
        found.Vp = config.Vp;
        check_same_config(&found, &config);
        run_open(&back, &found);
        checkpoint_load_weights(latest, back.model, &back.weights);
        run_load_optimizer(&back, latest);
        assert_memory_equal(back.weights.data, run.weights.data, run.n * run.ops->element_size);
        assert_memory_equal(back.optimizer.m, run.optimizer.m, run.n * sizeof(float));
        assert_memory_equal(back.optimizer.v, run.optimizer.v, run.n * sizeof(float));
        struct Progress expected = awkward_state(1234567), loaded;
        struct Other other = {0};
        checkpoint_load_state(latest, &loaded,
                              (struct FieldSection[]){{&other_table, &other}, {NULL, NULL}});
        assert_memory_equal(&loaded, &expected, sizeof loaded);
        assert_memory_equal(&other, &awkward_other, sizeof other);
        struct Tokenizer *tokenizer;
        assert_null(tokenizer_load(&tokenizer, latest));
        assert_int_equal(tokenizer_vocab_size(tokenizer), 24);
        tokenizer_free(tokenizer);
        run_close(&run);
        run_close(&back);
    }
}

/* Master weights go with the moments; a file without them leaves the reader's as they are. */
static void test_master_weights(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run, back;
    run_open(&run, &config);
    run_open(&back, &config);
    run_fill(&run, 1);
    struct Ops narrow = *run.ops;   /* float32 weights have no other masters */
    narrow.dtype = "bf16";
    run.model->ops = back.model->ops = run.ops = back.ops = &narrow;
    size_t bytes = run.n * sizeof(float);
    float *kept = malloc(bytes);
    back.optimizer.master = memset(malloc(bytes), 0x7f, bytes);
    memcpy(kept, back.optimizer.master, bytes);
    save_step(&run, path_of("master"), 1, 0);
    run_load_optimizer(&back, path_of("master/checkpoints/step_000001"));
    assert_memory_equal(back.optimizer.master, kept, bytes);
    assert_memory_equal(back.optimizer.m, run.optimizer.m, bytes);
    run.optimizer.master = run.optimizer.m, run.optimizer.m = run.optimizer.v;
    save_step(&run, path_of("master"), 2, 0);
    run_load_optimizer(&back, path_of("master/checkpoints/step_000002"));
    assert_memory_equal(back.optimizer.master, run.optimizer.master, bytes);
    assert_memory_equal(back.optimizer.m, run.optimizer.v, bytes);
    run.optimizer.m = run.optimizer.master;
    free(kept), free(back.optimizer.master);
    run_close(&run);
    run_close(&back);
}

/* A bigger matrix than the pieces in which everything else is handled. */
static void test_round_trip_of_large_tensors(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    config.L = 1, config.F = 15000, config.V = config.V_saved = 14600, config.Vp = 14720;
    struct Run run, back;
    run_open(&run, &config);
    run_open(&back, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("large"), 1, 0);
    const char *latest = path_of("large/checkpoints/step_000001");
    checkpoint_load_weights(latest, back.model, &back.weights);
    run_load_optimizer(&back, latest);
    assert_memory_equal(back.weights.data, run.weights.data, run.n * run.ops->element_size);
    assert_memory_equal(back.optimizer.v, run.optimizer.v, run.n * sizeof(float));
    run_close(&run);
    run_close(&back);
    remove_scratch("large");
}

/* ---- files of others ------------------------------------------------------------------------ */

/* The nearest smaller number that bf16 or fp16 has (subnormals become 0), and its bits. */
static float truncate_to(enum SafetensorsType type, float x, uint16_t *half) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits &= type == ST_BF16 ? 0xffff0000u : 0xffffe000u;
    int exponent = (int)(bits >> 23 & 255) - 127;
    if (type == ST_F16 && exponent < -14) bits &= 0x80000000u;
    uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffffu;
    *half = (uint16_t)(bits >> 16);
    if (type == ST_F16) *half = (uint16_t)(sign | (rest ? (rest >> 13) - (112 << 10) : 0));
    memcpy(&x, &bits, 4);
    return x;
}

/* Writes the golden weights again: names without "transformer.", the buffers of old files, and
   elements of another type. */
static void rewrite_golden(const char *path, enum SafetensorsType type) {
    struct Safetensors file;
    assert_null(safetensors_open(&file, GOLDEN "/model.safetensors"));
    struct SafetensorsWriter *writer = safetensors_create(path);
    for (int i = 0; i < file.count; i++)
        safetensors_describe(writer, file.entries[i].name + strlen("transformer."), type,
                             file.entries[i].num_dims, file.entries[i].shape);
    safetensors_describe(writer, "h.0.attn.bias", ST_F32, 2, (int64_t[]){2, 2});
    safetensors_describe(writer, "h.0.attn.masked_bias", ST_F32, 0, NULL);
    safetensors_describe(writer, "lm_head.weight", ST_F32, 1, (int64_t[]){1});
    for (int i = 0; i < file.count; i++) {
        size_t n = file.entries[i].count;
        float *x = malloc(n * sizeof *x);
        uint16_t *half = malloc(n * sizeof *half);
        safetensors_read(&file, &file.entries[i], x, 0, n);
        for (size_t j = 0; j < n; j++) truncate_to(type, x[j], &half[j]);
        if (type == ST_F32) safetensors_write(writer, x, n * sizeof *x);
        else safetensors_write(writer, half, n * sizeof *half);
        free(x), free(half);
    }
    safetensors_write(writer, (float[6]){0}, 6 * sizeof(float));
    safetensors_commit(writer, NULL);
    safetensors_close(&file);
}

static void test_names_and_types_of_other_writers(void **state) {
    (void)state;
    struct ModelConfig config;
    assert_null(checkpoint_config(GOLDEN, &config));
    assert_true(config.L == 2 && config.NH == 3 && config.C == 36 && config.F == 100);
    assert_true(config.V == 61 && config.max_T == 24 && config.tied);
    config.Vp = 64;
    struct Run golden, other;
    run_open(&golden, &config);
    run_open(&other, &config);
    checkpoint_load_weights(GOLDEN, golden.model, &golden.weights);
    float *expected = malloc(golden.n * sizeof *expected);
    float *found = malloc(golden.n * sizeof *found);
    elements_download(golden.ops, expected, golden.weights.data, golden.n);
    mkdir(path_of("other"), 0777);
    const enum SafetensorsType types[] = {ST_F32, ST_BF16, ST_F16};
    for (int i = 0; i < 3; i++) {
        rewrite_golden(path_of("other/model.safetensors"), types[i]);
        checkpoint_load_weights(path_of("other"), other.model, &other.weights);
        elements_download(other.ops, found, other.weights.data, other.n);
        for (size_t j = 0; j < golden.n; j++) {
            uint16_t half;
            float x = truncate_to(types[i], expected[j], &half);
            assert_true(found[j] == (types[i] == ST_F32 ? expected[j] : x));
        }
    }
    free(expected), free(found);
    run_close(&golden);
    run_close(&other);
}

/* ---- saving --------------------------------------------------------------------------------- */

static void test_keep_and_left_overs(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    run_open(&run, &config);
    run_fill(&run, 1);
    for (int step = 8; step <= 11; step++) save_step(&run, path_of("keep"), step, 2);
    assert_false(exists(path_of("keep/checkpoints/step_000009")));
    assert_true(exists(path_of("keep/checkpoints/step_000010")));
    assert_true(exists(path_of("keep/checkpoints/step_000011")));

    /* What killed saves leave, and a directory that is no checkpoint. */
    mkdir(path_of("keep/checkpoints/.writing_step_000012"), 0777);
    write_whole(path_of("keep/checkpoints/.writing_step_000012/model.safetensors"), "x", 1);
    mkdir(path_of("keep/checkpoints/.removing_step_000009"), 0777);
    mkdir(path_of("keep/checkpoints/step_best"), 0777);
    save_step(&run, path_of("keep"), 12, 0);
    assert_false(exists(path_of("keep/checkpoints/.writing_step_000012")));
    assert_false(exists(path_of("keep/checkpoints/.removing_step_000009")));
    assert_true(exists(path_of("keep/checkpoints/step_best")));
    assert_true(exists(path_of("keep/checkpoints/step_000010")));

    /* Going on from an older step: the one just saved stays, however many are newer. */
    save_step(&run, path_of("keep"), 3, 1);
    char latest[PATH_SIZE];
    assert_true(checkpoint_latest(path_of("keep"), latest, sizeof latest));
    assert_string_equal(latest, path_of("keep/checkpoints/step_000003"));
    assert_false(exists(path_of("keep/checkpoints/step_000012")));
    assert_true(exists(path_of("keep/checkpoints/step_best")));
    run_close(&run);
}

/* A checkpoint that a reader holds is not removed, whatever --keep says. Once it is released, the
   next call removes it. */
static void test_a_held_checkpoint_stays(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    char latest[PATH_SIZE];
    int hold, second;
    run_open(&run, &config);
    run_fill(&run, 1);
    assert_false(checkpoint_latest_held(path_of("held"), latest, sizeof latest, &hold));
    assert_int_equal(hold, -1);
    save_step(&run, path_of("held"), 1, 1);
    assert_true(checkpoint_latest_held(path_of("held"), latest, sizeof latest, &hold));
    assert_true(hold >= 0);
    save_step(&run, path_of("held"), 2, 1);
    assert_true(checkpoint_latest_held(path_of("held"), latest, sizeof latest, &second));
    assert_string_equal(latest, path_of("held/checkpoints/step_000002"));
    save_step(&run, path_of("held"), 3, 1);
    checkpoint_keep(path_of("held"), 1);
    assert_true(exists(path_of("held/checkpoints/step_000001/model.safetensors")));
    assert_true(exists(path_of("held/checkpoints/step_000002/model.safetensors")));
    checkpoint_release(&hold), checkpoint_release(&second);
    checkpoint_keep(path_of("held"), 1);
    assert_false(exists(path_of("held/checkpoints/step_000001")));
    assert_false(exists(path_of("held/checkpoints/step_000002")));
    assert_true(exists(path_of("held/checkpoints/step_000003")));
    run_close(&run);
}

static void test_saving_over_a_step(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run, back;
    char latest[PATH_SIZE];
    run_open(&run, &config);
    run_open(&back, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("over"), 5, 0);
    run_fill(&run, 2);
    save_step(&run, path_of("over"), 5, 0);
    assert_false(exists(path_of("over/checkpoints/.replaced_step_000005")));
    assert_true(checkpoint_latest(path_of("over"), latest, sizeof latest));
    checkpoint_load_weights(latest, back.model, &back.weights);
    assert_memory_equal(back.weights.data, run.weights.data, run.n * run.ops->element_size);

    /* Killed between its two renames: the older one is found again, and left where it is: the one
       who looks may stand beside a save. */
    rename(path_of("over/checkpoints/step_000005"),
           path_of("over/checkpoints/.replaced_step_000005"));
    assert_true(checkpoint_latest(path_of("over"), latest, sizeof latest));
    checkpoint_load_weights(latest, back.model, &back.weights);
    assert_false(exists(path_of("over/checkpoints/step_000005")));
    /* The same, put back by the next save. */
    save_step(&run, path_of("over"), 6, 0);
    assert_true(exists(path_of("over/checkpoints/step_000005/model.safetensors")));
    assert_false(exists(path_of("over/checkpoints/.replaced_step_000005")));
    run_close(&run);
    run_close(&back);
}

static void test_removing_all_and_the_newest_run(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    char newest[PATH_SIZE];
    run_open(&run, &config);
    run_fill(&run, 1);
    assert_false(checkpoint_newest_run(path_of("runs"), newest, sizeof newest));
    mkdir(path_of("runs"), 0777);
    mkdir(path_of("runs/empty"), 0777);
    assert_false(checkpoint_newest_run(path_of("runs"), newest, sizeof newest));
    save_step(&run, path_of("runs/a"), 1, 0);
    save_step(&run, path_of("runs/b"), 1, 0);
    const struct timespec past[2] = {{1000, 0}, {1000, 0}};
    assert_int_equal(utimensat(AT_FDCWD, path_of("runs/b/checkpoints/latest"), past, 0), 0);
    assert_true(checkpoint_newest_run(path_of("runs"), newest, sizeof newest));
    assert_string_equal(newest, path_of("runs/a"));

    mkdir(path_of("runs/a/checkpoints/.writing_step_000002"), 0777);
    mkdir(path_of("runs/a/checkpoints/notes"), 0777);
    checkpoint_remove_all(path_of("runs/a"));
    checkpoint_remove_all(path_of("runs/empty"));
    assert_false(exists(path_of("runs/a/checkpoints/step_000001")));
    assert_false(exists(path_of("runs/a/checkpoints/.writing_step_000002")));
    assert_true(exists(path_of("runs/a/checkpoints/notes")));
    assert_false(checkpoint_latest(path_of("runs/a"), newest, sizeof newest));
    assert_true(checkpoint_newest_run(path_of("runs"), newest, sizeof newest));
    assert_string_equal(newest, path_of("runs/b"));
    run_close(&run);
}

static void latest_body(void *argument) {
    char latest[PATH_SIZE];
    checkpoint_latest(argument, latest, sizeof latest);
}

static void test_latest(void **state) {
    (void)state;
    char latest[PATH_SIZE], output[8192];
    assert_false(checkpoint_latest(path_of("none"), latest, sizeof latest));
    mkdir(path_of("damage"), 0777);
    mkdir(path_of("damage/checkpoints"), 0777);
    const char *contents[] = {"", "step_", "../../etc", "step_000001/..", "step_000001",
                              "step_000000000000000000000000000000000000000000000000000000000001"};
    for (size_t i = 0; i < sizeof contents / sizeof contents[0]; i++) {
        write_whole(path_of("damage/checkpoints/latest"), contents[i], strlen(contents[i]));
        assert_int_equal(run_in_child(latest_body, (void *)path_of("damage"), output,
                                      sizeof output), 2);
        assert_non_null(strstr(output, "damage/checkpoints/"));
    }
    /* an I/O error is reported as one, and not as a wrong name in the file */
    unlink(path_of("damage/checkpoints/latest"));
    assert_int_equal(symlink("/proc/self/mem", path_of("damage/checkpoints/latest")), 0);
    assert_int_equal(run_in_child(latest_body, (void *)path_of("damage"), output, sizeof output),
                     1);
    assert_non_null(strstr(output, "Input/output error"));
}

static const char *unasked;   /* the first access() to a path with this text fails with EIO */

int access(const char *path, int mode) {
    if (unasked && strstr(path, unasked)) {
        unasked = NULL, errno = EIO;
        return -1;
    }
    return faccessat(AT_FDCWD, path, mode, 0);
}

static void fails_to_ask(void *name) {
    char latest[PATH_SIZE];
    unasked = name;
    checkpoint_latest(path_of("asked"), latest, sizeof latest);
}

/* An I/O error while a checkpoint's files are looked for ends the program: the file is not taken
   for missing, for which the reader would try again. */
static void test_io_errors_are_not_absence(void **state) {
    (void)state;
    static const char *const names[] = {"model.safetensors", "config.json", "trainer_state.json"};
    struct ModelConfig config = small_config(true);
    struct Run run;
    char output[8192];
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("asked"), 1, 0);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int code = run_in_child(fails_to_ask, (void *)names[i], output, sizeof output);
        if (code != 1 || !strstr(output, names[i]) || !strstr(output, "Input/output error"))
            fail_msg("%s: %d %s", names[i], code, output);
    }
    run_close(&run);
}

struct SaveCase {
    struct Run *run;
    const char *directory;
    rlim_t limit;     /* bytes a file may have; 0 = any */
    int value;        /* of every weight and first moment */
    int64_t step;
    int keep;
};

static void save_body(void *argument) {
    const struct SaveCase *c = argument;
    if (c->limit) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){c->limit, c->limit});
    }
    for (size_t i = 0; i < c->run->n; i++) c->run->optimizer.m[i] = (float)c->value;
    elements_upload(c->run->ops, c->run->weights.data, c->run->optimizer.m, c->run->n);
    save_step(c->run, c->directory, c->step, c->keep);
}

static void gone_body(void *argument) { save_into(argument, path_of("gone"), 2, 0); }

/* The run's directory was removed under it: a save makes nothing in its place. */
static void test_a_save_does_not_make_the_run(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    char output[8192];
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, path_of("gone"), 1, 0);
    remove_scratch("gone");
    assert_int_equal(run_in_child(gone_body, &run, output, sizeof output), 1);
    assert_non_null(strstr(output, "gone is gone"));
    assert_false(exists(path_of("gone")));
    run_close(&run);
}

static long allocations_left = -1;   /* until one fails; -1: none does */

static void *allocate_some(size_t bytes) {
    if (allocations_left >= 0 && allocations_left-- == 0) return NULL;
    return malloc(bytes);
}

struct MemoryCase {
    struct SaveCase save;
    long allocations;
};

static void memory_body(void *argument) {
    const struct MemoryCase *c = argument;
    allocations_left = c->allocations;
    save_body((void *)&c->save);
}

/* Every allocation of the JSON library fails in its turn: the save ends the program before `latest`
   moves, and never leaves a field out. */
static void test_saves_without_memory(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    char output[8192], latest[PATH_SIZE], directory[PATH_SIZE];
    snprintf(directory, sizeof directory, "%s", path_of("memory"));
    run_open(&run, &config);
    run_fill(&run, 1);
    save_step(&run, directory, 1, 0);
    struct MemoryCase c = {.save = {&run, directory, .step = 2, .value = 1}};
    json_memory(allocate_some);
    int code = 1;
    for (c.allocations = 0; code != 0; c.allocations += c.allocations < 20 ? 1 : 7) {
        code = run_in_child(memory_body, &c, output, sizeof output);
        assert_true(checkpoint_latest(directory, latest, sizeof latest));
        if (code == 0) break;
        assert_int_equal(code, 1);
        assert_non_null(strstr(output, "out of memory"));
        assert_string_equal(latest, path_of("memory/checkpoints/step_000001"));
    }
    assert_true(c.allocations > 200);
    assert_string_equal(latest, path_of("memory/checkpoints/step_000002"));
    json_memory(malloc);
    run_close(&run);
}

static void test_failing_saves_leave_the_last_one(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run;
    char output[8192], latest[PATH_SIZE];
    run_open(&run, &config);
    run_fill(&run, 1);
    write_whole(path_of("a_file"), "", 0);
    struct SaveCase in_a_file = {&run, path_of("a_file"), .step = 1};
    assert_int_equal(run_in_child(save_body, &in_a_file, output, sizeof output), 2);
    save_step(&run, path_of("full"), 1, 0);
    struct SaveCase full = {&run, path_of("full"), .limit = 100000, .step = 3};
    assert_int_equal(run_in_child(save_body, &full, output, sizeof output), 1);
    assert_non_null(strstr(output, "model.safetensors"));
    assert_true(checkpoint_latest(path_of("full"), latest, sizeof latest));
    assert_string_equal(latest, path_of("full/checkpoints/step_000001"));
    checkpoint_load_weights(latest, run.model, &run.weights);
    run_close(&run);
}

/* No directory has a checkpoint's name and not all of its files. */
static void check_no_halves(const char *directory, int64_t newest) {
    static const char *const names[] = {"model.safetensors", "optimizer.safetensors",
                                        "trainer_state.json", "config.json", "vocab.json"};
    for (int64_t step = newest - 2; step <= newest; step++) {
        char path[PATH_SIZE + 64];
        snprintf(path, sizeof path, "%s/checkpoints/step_%06d", directory, (int)step);
        size_t length = strlen(path);
        if (!exists(path)) continue;
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
            snprintf(path + length, sizeof path - length, "/%s", names[i]);
            if (!exists(path)) fail_msg("%s is missing", path);
        }
    }
}

static int count_steps(const char *directory) {
    char path[PATH_SIZE];
    glob_t found;
    snprintf(path, sizeof path, "%s/checkpoints/*step_*", directory);
    int failed = glob(path, GLOB_PERIOD, NULL, &found), count = failed ? 0 : (int)found.gl_pathc;
    globfree(&found);
    return count;
}

/* Loads what `latest` names; every number of it must be the same. Returns that number. */
static float loaded_value(struct Run *back, const char *directory) {
    char latest[PATH_SIZE];
    struct Progress loaded;
    assert_true(checkpoint_latest(directory, latest, sizeof latest));
    checkpoint_load_weights(latest, back->model, &back->weights);
    run_load_optimizer(back, latest);
    checkpoint_load_state(latest, &loaded, NULL);
    float *host = malloc(back->n * sizeof *host);
    elements_download(back->ops, host, back->weights.data, back->n);
    float value = host[0];
    for (int i = 0; i < back->model->num_tensors; i++) {
        const struct Tensor *t = &back->model->tensors[i];
        for (size_t j = t->offset; j < t->offset + t->saved; j++)
            assert_true(host[j] == value && back->optimizer.m[j] == value);
    }
    free(host);
    return value;
}

struct KillCase {
    struct SaveCase save;
    int calls;   /* until the process dies */
};

static void kill_body(void *argument) {
    const struct KillCase *c = argument;
    calls_left = c->calls;
    save_body((void *)&c->save);
}

/* A process that dies before its first, second, ... step of a save: `latest` names the whole save
   before or the whole new one, and the next save finds its way through what was left. Once for new
   steps, once for saves over one and the same step. */
static void test_kills_leave_a_complete_checkpoint(void **state) {
    (void)state;
    struct ModelConfig config = small_config(true);
    struct Run run, back;
    char output[8192];
    run_open(&run, &config);
    run_open(&back, &config);
    for (int over = 0; over < 2; over++) {
        const char *directory = path_of("killed%d", over);
        struct KillCase c = {{&run, directory, 0, .value = 1, .step = 1, .keep = 1}, -1};
        save_body(&c.save);
        int before = 1, code = 99;
        for (c.calls = 0; code == 99; c.calls++) {
            c.save.value++;
            if (!over) c.save.step++;
            code = run_in_child(kill_body, &c, output, sizeof output);
            assert_true(code == 99 || code == 0);
            check_no_halves(directory, c.save.step);
            int after = (int)loaded_value(&back, directory);
            assert_true(after == before || after == c.save.value);
            before = after;
            /* what the next start of the run calls */
            checkpoint_keep(directory, 1);
            assert_int_equal(count_steps(directory), 1);
        }
        assert_true(c.calls > 20);
        assert_int_equal(before, c.save.value);
    }
    run_close(&run);
    run_close(&back);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip_is_bitwise),
        cmocka_unit_test(test_round_trip_of_large_tensors),
        cmocka_unit_test(test_master_weights),
        cmocka_unit_test(test_names_and_types_of_other_writers),
        cmocka_unit_test(test_keep_and_left_overs),
        cmocka_unit_test(test_a_held_checkpoint_stays),
        cmocka_unit_test(test_saving_over_a_step),
        cmocka_unit_test(test_removing_all_and_the_newest_run),
        cmocka_unit_test(test_latest),
        cmocka_unit_test(test_io_errors_are_not_absence),
        cmocka_unit_test(test_a_save_does_not_make_the_run),
        cmocka_unit_test(test_saves_without_memory),
        cmocka_unit_test(test_failing_saves_leave_the_last_one),
        cmocka_unit_test(test_kills_leave_a_complete_checkpoint),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
