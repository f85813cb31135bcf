/* Running ./train as a user does, in a fresh directory, and reading what it left there. */
#ifndef PROGRAM_RIG_H
#define PROGRAM_RIG_H

#include <cjson/cJSON.h>
#include <libgen.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "test.h"

static char train[8192], place[64];

/* Options in front of every line's own. */
static const char *always = "";
static char output[1 << 16];

/* Runs a shell line in the test's directory with $T as the program; stdout and stderr land in
   `output`. Returns the exit code, 128 + signal if killed. */
__attribute__((format(printf, 1, 2))) static int run(const char *format, ...) {
    char line[8192], command[20000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    snprintf(command, sizeof command, "cd %s && T='%s %s' && { %s ; } 2>&1", place, train, always,
             line);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t n = fread(output, 1, sizeof output - 1, pipe);
    output[n] = 0;
    int status = pclose(pipe);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Fails with what the program said. */
#define RUN_OK(...)                                                                      \
    do {                                                                                 \
        int code_ = run(__VA_ARGS__);                                                    \
        if (code_ != 0) fail_msg("exit code %d from: %s\n%s", code_, #__VA_ARGS__, output); \
    } while (0)

static char *read_file(const char *name, size_t *size) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", place, name);
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is missing", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*size + 1);
    assert_int_equal(fread(data, 1, *size, file), *size);
    data[*size] = 0;
    fclose(file);
    return data;
}

static void assert_same_file(const char *a, const char *b) {
    size_t size_a, size_b;
    char *data_a = read_file(a, &size_a), *data_b = read_file(b, &size_b);
    if (size_a != size_b || memcmp(data_a, data_b, size_a) != 0) fail_msg("%s and %s differ", a, b);
    free(data_a), free(data_b);
}

/* ---- a program in the background ------------------------------------------------------------- */

/* Starts the program on `arguments` in the test's directory, its output in signalled.log. */
static inline pid_t start(const char *arguments) {
    char line[20000];
    snprintf(line, sizeof line, "cd %s && exec %s %s %s >signalled.log 2>&1", place, train, always,
             arguments);
    pid_t child = fork();
    if (child == 0) {
        /* this process may have been started with some ignored (make test &) */
        signal(SIGINT, SIG_DFL), signal(SIGHUP, SIG_DFL), signal(SIGTERM, SIG_DFL);
        execl("/bin/sh", "sh", "-c", line, (char *)NULL);
        _exit(127);
    }
    return child;
}

static inline void pause_for(long microseconds) {
    struct timespec pause = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&pause, NULL);
}

/* Waits until the file is there and not empty; a minute at most. */
static inline void wait_for_file(const char *name) {
    for (int i = 0; i < 6000; i++, pause_for(10000))
        if (run("test -s %s", name) == 0) return;
    fail_msg("%s did not come", name);
}

/* The child's status; killed after a minute. */
static inline int wait_for_end(pid_t child) {
    int status;
    for (int i = 0; i < 6000; i++, pause_for(10000))
        if (waitpid(child, &status, WNOHANG) == child) return status;
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    return status;
}

/* ---- logs ------------------------------------------------------------------------------------ */

/* What the machine took for a step, not what came of it. */
static bool is_timing(const char *key) {
    return strncmp(key, "timing/", 7) == 0 || strncmp(key, "perf/", 5) == 0 ||
           strncmp(key, "cache/", 6) == 0 || strcmp(key, "step_time") == 0;
}

/* The lines of a log as one JSON array without timings. */
static cJSON *read_log(const char *name) {
    size_t size;
    char *text = read_file(name, &size), *rest = text, *line;
    cJSON *lines = cJSON_CreateArray();
    while ((line = strsep(&rest, "\n")) && *line) {
        cJSON *object = cJSON_Parse(line);
        if (!object) fail_msg("%s: not JSON: %s", name, line);
        for (cJSON *item = object->child, *next; item; item = next) {
            next = item->next;
            if (is_timing(item->string)) cJSON_Delete(cJSON_DetachItemViaPointer(object, item));
        }
        cJSON_AddItemToArray(lines, object);
    }
    free(text);
    return lines;
}

static inline void assert_same_log(const char *a, const char *b) {
    cJSON *log_a = read_log(a), *log_b = read_log(b);
    assert_true(cJSON_GetArraySize(log_a) > 0);
    char *text_a = cJSON_Print(log_a), *text_b = cJSON_Print(log_b);
    if (strcmp(text_a, text_b) != 0) fail_msg("%s and %s differ", a, b);
    free(text_a), free(text_b);
    cJSON_Delete(log_a), cJSON_Delete(log_b);
}

/* Key of the line with this step; NaN if there is none. */
static inline double logged(const cJSON *log, int step, const char *key) {
    const cJSON *line;
    cJSON_ArrayForEach(line, log) {
        const cJSON *value = cJSON_GetObjectItem(line, key);
        if (cJSON_GetObjectItem(line, "step")->valueint == step && cJSON_IsNumber(value))
            return value->valuedouble;
    }
    return NAN;
}

/* The weights and moments a run ended with. */
static inline void assert_same_end(const char *a, const char *b, int step) {
    static const char *const files[] = {"model.safetensors", "optimizer.safetensors"};
    for (int i = 0; i < 2; i++) {
        char path_a[256], path_b[256];
        snprintf(path_a, sizeof path_a, "%s/checkpoints/step_%06d/%s", a, step, files[i]);
        snprintf(path_b, sizeof path_b, "%s/checkpoints/step_%06d/%s", b, step, files[i]);
        assert_same_file(path_a, path_b);
    }
}

/* ---- the place ------------------------------------------------------------------------------- */

static int make_place(void **state) {
    (void)state;
    char self[4096], beside[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0) return -1;
    self[n] = 0;
    /* what launchers of several ranks say: these programs are none of theirs */
    static const char *const launchers[] = {"RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK",
                                            "SLURM_PROCID", "POLICYC_MEETING"};
    for (size_t i = 0; i < sizeof launchers / sizeof *launchers; i++) unsetenv(launchers[i]);
    signal(SIGHUP, SIG_DFL);   /* under nohup programs would ignore it, and tests wait for ever */
    snprintf(beside, sizeof beside, "%.4000s", dirname(dirname(self)));   /* the build folder */
    snprintf(train, sizeof train, "%s/train", beside);
    if (access(train, X_OK) != 0) snprintf(train, sizeof train, "%s/../train", beside);
    if (access(train, X_OK) != 0) return -1;
    snprintf(place, sizeof place, "/tmp/policy-test-XXXXXX");
    return mkdtemp(place) ? 0 : -1;
}

static int remove_place(void **state) {
    (void)state;
    return run("cd / && rm -rf %s", place);
}

#endif
