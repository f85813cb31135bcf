/* make bench: is every version of every operation right, and how fast is it? (doc/lab.md)

       build/bench [OP=head,norm] [BACKEND=cpu|cuda|sim] [DTYPE=bf16] [HIDDEN=FILE] [OUT=DIR]
                   [TIME=cpu|lab|none]

   OP       head attention norm adamw sample decode matmul; step generate task monitors: what
            users wait for. Default: all
   BACKEND  where the laboratory's versions run. Default: cuda where build/lab_cuda.so opens, else
            sim where build/lab_sim.so does, else cpu: the CPU's slots alone
   DTYPE    fp32 bf16 fp16. Default: all are checked, bf16 is timed
   HIDDEN   a file of ./train --dump-hidden: real hidden states, for checks
   OUT      where the table goes. Default: build/bench-results
   TIME     what is timed: the CPU's slots or the laboratory's versions. Default: lab on CUDA,
            else cpu. In the simulator lab only shows that it works, on small shapes

   Exit code 0 if all versions agree with the reference, 1 if one does not, 2 for bad input. Stopped
   by SIGTERM or SIGINT it still writes what it has (exit code 1). */
#include "bench.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../llmc/base/check.h"
#include "../../llmc/base/files.h"
#include "../../llmc/base/json.h"
#include "../../llmc/kernels/backends.h"
#include "../../llmc/run/launch.h"
#include "../cuda/lab_open.h"

static const struct Operation *const operations[] = {
    &op_head, &op_attention, &op_norm, &op_adamw, &op_sample, &op_decode, &op_matmul, NULL};
static const char *const dtypes[] = {"fp32", "bf16", "fp16", NULL};

static struct { char *op, *backend, *dtype, *hidden, *out, *time; } asked;

/* ---- what is asked for ----------------------------------------------------------------------- */

static const struct Operation *operation(const char *name) {
    for (int i = 0; operations[i]; i++)
        if (strcmp(operations[i]->name, name) == 0) return operations[i];
    return NULL;
}

static void read_arguments(int argc, char **argv) {
    const struct { const char *name; char **to; } options[] = {
        {"OP", &asked.op}, {"BACKEND", &asked.backend}, {"DTYPE", &asked.dtype},
        {"HIDDEN", &asked.hidden}, {"OUT", &asked.out}, {"TIME", &asked.time}};
    for (int a = 1; a < argc; a++) {
        size_t name = strcspn(argv[a], "="), found = 0;
        for (size_t i = 0; i < sizeof options / sizeof *options; i++)
            if (strlen(options[i].name) == name && argv[a][name] == '=' &&
                strncmp(options[i].name, argv[a], name) == 0)
                *options[i].to = argv[a] + name + 1, found = 1;
        if (!found)
            die_input("%s: give OP=, BACKEND=, DTYPE=, HIDDEN=, OUT= or TIME= (OP=head)",
                      argv[a]);
    }
    if (!asked.op || !asked.op[0])
        asked.op = "head,attention,norm,adamw,sample,decode,matmul,step,generate,task,monitors";
    if (!asked.out || !asked.out[0]) asked.out = "build/bench-results";
    if (asked.hidden && !asked.hidden[0]) asked.hidden = NULL;
    if (asked.backend && !asked.backend[0]) asked.backend = NULL;
    if (asked.dtype && !asked.dtype[0]) asked.dtype = NULL;
    if (asked.time && !asked.time[0]) asked.time = NULL;
    if (asked.time && strcmp(asked.time, "cpu") != 0 && strcmp(asked.time, "lab") != 0 &&
        strcmp(asked.time, "none") != 0)
        die_input("TIME=%s: it is one of cpu, lab, none", asked.time);
    bool known = !asked.dtype;
    for (int d = 0; dtypes[d] && asked.dtype; d++) known |= strcmp(dtypes[d], asked.dtype) == 0;
    if (!known) die_input("DTYPE=%s: it is one of fp32, bf16, fp16", asked.dtype);
}

/* A folder of several levels. */
static void make_folder(const char *path) {
    char part[4096];
    check_path(part, sizeof part, "%s", path);
    for (char *at = part + 1;; at++) {
        if (*at != '/' && *at != 0) continue;
        char end = *at;
        *at = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST) die_errno("make the folder", part);
        if (!end) return;
        *at = end;
    }
}

/* ---- processes: one opens one plug-in, with one element type --------------------------------- */

static volatile sig_atomic_t stopped;
static void stop(int number) { (void)number, stopped = 1; }

/* Without SA_RESTART: waiting for a process ends. */
static void catch_stops(void) {
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL), sigaction(SIGINT, &action, NULL);
}

struct Job {
    const struct Operation *op;   /* or NULL: */
    const char *whole;            /* one of whole.c's */
    const char *dtype;
    bool (*run)(const struct Job *job);
};

static pid_t start(const struct Job *job) {
    fflush(stdout), fflush(stderr);
    pid_t child = fork();
    if (child < 0) die_machine("cannot start a process");
    if (child > 0) return child;
    signal(SIGTERM, SIG_DFL), signal(SIGINT, SIG_DFL);
    bool good = job->run(job);
    fflush(stdout);
    _exit(good ? 0 : 3);
}

/* True if it ended well; false if a version is wrong or crashed. */
static bool finish(pid_t child) {
    int status;
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) die_machine("cannot wait for a process");
        if (stopped) kill(child, SIGKILL);
    }
    if (stopped) return false;
    if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3))
        return WEXITSTATUS(status) == 0;
    if (WIFEXITED(status)) exit(WEXITSTATUS(status));   /* it has said what is wrong */
    printf("WRONG  a version's process was ended by signal %d\n", WTERMSIG(status));
    return false;
}

static void open_lab(struct Lab *lab, const char *dtype) {
    char why[1024];
    if (!lab_open(lab, asked.backend, dtype, why, sizeof why)) die_machine("%s", why);
    lab->ops.matmul_choices_load("");   /* as ./train does by default */
}

static bool run_probe(const struct Job *job) {
    struct Lab lab;
    char why[1024], path[64];
    snprintf(path, sizeof path, "build/lab_%s.so", job->whole);
    if (access(path, F_OK) != 0) return false;
    bool opens = lab_open(&lab, job->whole, job->dtype, why, sizeof why);
    if (!opens) printf("%s does not open here: %s\n", path, why);
    return opens;
}

static bool run_check(const struct Job *job) {
    struct Lab lab;
    struct Bench b = {.op = job->op, .cpu = ops_open("cpu", "auto", 0), .backend = asked.backend};
    if (strcmp(asked.backend, "cpu") != 0) open_lab(b.lab = &lab, job->dtype);
    return check_versions(&b);
}

static bool is_gpu(void) { return strcmp(asked.backend, "cuda") == 0; }

static bool run_time(const struct Job *job) {
    struct Bench b = {.op = job->op, .backend = asked.backend};
    if (strcmp(asked.time, "none") == 0) return true;
    if (strcmp(asked.time, "cpu") == 0) {
        if (job->whole) whole_cpu(job->whole);
        else b.cpu = ops_open("cpu", "auto", 0), time_cpu(&b);
        return true;
    }
    struct Lab lab;
    struct Rates rates;
    open_lab(b.lab = &lab, job->dtype);
    gpu_rates(&rates, &lab);
    if (job->whole) whole_gpu(job->whole, &lab.ops, &rates);
    else time_gpu(&b, &rates);
    table_device(&lab, &rates);
    return true;
}

/* cuda, sim, or cpu; says what that means. */
static void choose_backend(void) {
    static const char *const names[] = {"cuda", "sim"};
    char path[256];
    if (asked.backend && strcmp(asked.backend, "cpu") != 0) {
        check_path(path, sizeof path, "build/lab_%s.so", asked.backend);
        if (!path_exists(path))
            die_input("BACKEND=%s: there is no %s; make bench builds it for cuda and sim",
                      asked.backend, path);
    }
    for (int i = 0; i < 2 && !asked.backend; i++) {
        struct Job probe = {.whole = names[i], .dtype = "fp32", .run = run_probe};
        if (finish(start(&probe))) asked.backend = (char *)names[i];
    }
    if (!asked.backend) asked.backend = "cpu";
    if (strcmp(asked.backend, "cpu") == 0)
        puts("no laboratory here (build/lab_cuda.so or build/lab_sim.so): the CPU's slots alone");
    else if (!is_gpu())
        puts("no GPU: the versions are checked in the simulator, where times mean nothing");
    if (!asked.time) asked.time = is_gpu() ? "lab" : "cpu";
    if (strcmp(asked.time, "lab") == 0 && strcmp(asked.backend, "cpu") == 0)
        die_input("TIME=lab: there is no laboratory here to time; leave TIME out");
}

/* The element types side by side, as there are processors. */
static bool check(const struct Operation *op) {
    pid_t child[3];
    int n = 0, most = launch_processors();
    bool good = true, alone = strcmp(asked.backend, "cpu") == 0 || is_gpu();
    for (int d = 0; dtypes[d]; d++) {
        if (asked.dtype && strcmp(asked.dtype, dtypes[d]) != 0) continue;
        if (strcmp(asked.backend, "cpu") == 0 && d > 0) continue;
        struct Job job = {.op = op, .dtype = dtypes[d], .run = run_check};
        if (n == most || (alone && n == 1)) good &= finish(child[--n]);
        child[n++] = start(&job);
    }
    while (n > 0) good &= finish(child[--n]);
    return good;
}

int main(int argc, char **argv) {
    launch_prepare(argv);
    json_memory(malloc);
    read_arguments(argc, argv);
    table_open();
    for (char *list = check_strdup(asked.op), *name; (name = strsep(&list, ",")) != NULL;)
        if (!operation(name) && !whole_is(name))
            die_input("OP=%s: it is one of head attention norm adamw sample decode matmul step "
                      "generate task monitors", name);
    if (asked.hidden) hidden_open(asked.hidden);
    make_folder(asked.out);
    catch_stops();
    choose_backend();
    bool good = true;
    for (char *list = check_strdup(asked.op), *name; (name = strsep(&list, ",")) != NULL;) {
        struct Job job = {.op = operation(name), .whole = operation(name) ? NULL : name,
                          .dtype = asked.dtype ? asked.dtype : "bf16", .run = run_time};
        bool right = job.op ? check(job.op) : true;
        good &= right;
        if (!stopped) good &= finish(start(&job));
        table_print(name);
        if (stopped) break;
        if (!right) printf("\n%s: a version is WRONG, see above\n", name);
    }
    if (stopped) puts("\nstopped: the table has what was measured until then");
    table_save(asked.out);
    return good ? 0 : 1;
}
