/* What other programs do too, one turn for every line of standard input: so that a program can time
   ours and theirs in turns (dev/bench/peers_cpu.py).

       build/bench_turns head N C V [DTYPE]           logp and entropy, forward and backward
       build/bench_turns matmul N C OC [DTYPE]        a linear layer, forward and backward
       build/bench_turns step B T [DTYPE]             a training step of GPT-2 124M
       build/bench_turns decode BATCH TOKENS [DTYPE]  so many completions of so many tokens of it

   Each line is answered by one of three numbers: the seconds of the turn, those of the processors
   (of all threads; on a shared machine they say more), and the bytes that the process has held at
   most beyond those that it held when there were only the inputs, or the weights of a model (by
   Linux's count of resident memory). */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../llmc/base/check.h"
#include "../llmc/base/rng.h"
#include "../llmc/base/time.h"
#include "../llmc/kernels/backends.h"
#include "../llmc/run/launch.h"
#include "bench/rig.h"

static const struct Ops *ops;

/* ---- memory ---------------------------------------------------------------------------------- */

/* A line of /proc/self/status in bytes, "VmHWM:" or "VmRSS:"; 0 where there is none. */
static double status_bytes(const char *name) {
    char line[256];
    double kilobytes = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, name, strlen(name)) == 0) kilobytes = strtod(line + strlen(name), NULL);
    if (file) fclose(file);
    return 1024 * kilobytes;
}

static double bytes_before;

/* Only the inputs are there: what comes from now on is counted. */
static void count_memory(void) {
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (file) fputs("5", file), fclose(file);   /* the high water mark is that of now */
    bytes_before = status_bytes("VmRSS:");
}

/* Of this process; clock() counts all its threads. */
static double processor_seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

/* ---- the head -------------------------------------------------------------------------------- */

struct HeadTurn {
    struct Head head;
    struct HeadTokens tokens;
    struct HeadStats stats;
    floatX *E, *W, *dE;
    float *dW;
    void *workspace;
};

static void coefficients(void *context, int first, int rows, const struct HeadStats *stats,
                         float *dlogp, float *dentropy) {
    (void)context, (void)first, (void)stats;
    for (int i = 0; i < rows; i++) dlogp[i] = -1e-3f, dentropy[i] = -1e-5f;
}

static void head_turn(void *context) {
    struct HeadTurn *h = context;
    ops->head_forward_backward(&h->stats, h->dE, h->dW, h->E, h->W, &h->tokens, &h->head,
                               coefficients, NULL, h->workspace);
}

static floatX *noise(size_t n, float scale, uint64_t stream) {
    float *x = check_alloc(n, sizeof *x, "the benchmark");
    floatX *out = ops->alloc(n * ops->element_size);
    struct Rng rng;
    rng_open(&rng, 7, RNG_TEST, stream);
    for (size_t i = 0; i < n; i++) x[i] = scale * rng_normal(&rng);
    ops->from_float(out, x, n);
    free(x);
    return out;
}

/* The workspace and the outputs are part of what is counted. */
static void head_open(struct HeadTurn *h, int N, int C, int V) {
    size_t NC = (size_t)N * (size_t)C, VC = (size_t)V * (size_t)C;
    struct OpsShape shape = {.N = N, .C = C, .V = V, .Vp = V, .NH = 1, .NKV = 1, .HS = 64, .F = 64,
                             .max_T = 1, .R = 1, .max_length = 1};
    int *row = check_alloc((size_t)N, sizeof *row, "the benchmark");
    int *target = check_alloc((size_t)N, sizeof *target, "the benchmark");
    for (int i = 0; i < N; i++) row[i] = i, target[i] = (int)((int64_t)i * 7919 % V);
    *h = (struct HeadTurn){.head = {C, V, V, 1}, .tokens = {row, target, N, N},
                           .E = noise(NC, 1, 1), .W = noise(VC, 2 / sqrtf((float)C), 2)};
    count_memory();
    h->stats.logp = check_alloc((size_t)N, sizeof(float), "the benchmark");
    h->stats.entropy = check_alloc((size_t)N, sizeof(float), "the benchmark");
    h->dE = ops->alloc(NC * ops->element_size), h->dW = ops->alloc(VC * sizeof(float));
    h->workspace = ops->alloc(ops->workspace_size(&shape));
    ops->fill_zero(h->dW, VC * sizeof(float));
}

/* ---- a linear layer -------------------------------------------------------------------------- */

struct MatmulTurn {
    int N, C, OC;
    floatX *x, *w, *out, *dx;
    float *dw;
};

static void matmul_turn(void *context) {
    struct MatmulTurn *m = context;
    ops->matmul_forward(m->out, m->x, m->w, NULL, m->N, m->C, m->OC);
    ops->matmul_backward(m->dx, m->dw, NULL, m->out, m->x, m->w, m->N, m->C, m->OC, NULL);
}

/* ---- what is asked for ----------------------------------------------------------------------- */

struct Contest {
    void (*run)(void *context);
    void *context;
};

struct StepTurn {
    struct Learner learner;
    int prompts;
};

static void step_turn(void *context) {
    struct StepTurn *s = context;
    learner_update(&s->learner, 0, s->learner.set.count, s->prompts);
}

/* A small one first, so that what libraries allocate once is not counted. */
static struct Contest open_head(const int *n) {
    static struct HeadTurn small, head;
    head_open(&small, 64, 32, 500);
    head_turn(&small);
    head_open(&head, n[0], n[1], n[2]);
    return (struct Contest){head_turn, &head};
}

/* dw stays what a turn leaves: values do not change the time. */
static struct Contest open_matmul(const int *n) {
    static struct MatmulTurn m;
    size_t N = (size_t)n[0], C = (size_t)n[1], OC = (size_t)n[2];
    m = (struct MatmulTurn){.N = n[0], .C = n[1], .OC = n[2], .x = noise(N * C, 1, 1),
                            .w = noise(OC * C, 1 / sqrtf((float)C), 2)};
    count_memory();
    m.out = ops->alloc(N * OC * ops->element_size), m.dx = ops->alloc(N * C * ops->element_size);
    m.dw = ops->alloc(OC * C * sizeof(float));
    ops->fill_zero(m.dw, OC * C * sizeof(float));
    return (struct Contest){matmul_turn, &m};
}

static struct Contest open_step(const int *n) {
    static struct StepTurn step;
    step.prompts = n[0] * n[1];
    struct Model *model = bench_model("gpt2", ops);
    count_memory();
    bytes_before += (double)model->num_real_parameters * (double)ops->element_size;
    learner_open(&step.learner, model, n[0], n[1], n[0] * n[1], RECOMPUTE_NONE, false);
    return (struct Contest){step_turn, &step};
}

static struct Contest open_decode(const int *n) {
    static struct Generation generation;
    struct Model *model = bench_model("gpt2", ops);
    count_memory();
    bytes_before += (double)model->num_real_parameters * (double)ops->element_size;
    generation_open(&generation, model, n[0], n[1]);
    return (struct Contest){generation_run, &generation};
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        int numbers;
        struct Contest (*open)(const int *numbers);
    } turns[] = {{"head", 3, open_head}, {"matmul", 3, open_matmul}, {"step", 2, open_step},
                 {"decode", 2, open_decode}};
    struct Contest turn = {NULL, NULL};
    int numbers[3] = {0}, c;
    launch_prepare(argv);
    launch_threads(0);
    int words = argc;
    bool typed = argc > 2 && (argv[argc - 1][0] < '0' || argv[argc - 1][0] > '9');
    if (typed) words--;
    ops = ops_open("cpu", typed ? argv[words] : "auto", 0);
    for (int i = 0; i < words - 2 && i < 3; i++) numbers[i] = atoi(argv[i + 2]);
    for (size_t i = 0; argc > 1 && i < sizeof turns / sizeof *turns; i++) {
        int given = words - 2;
        bool good = strcmp(argv[1], turns[i].name) == 0 && given == turns[i].numbers;
        for (int k = 0; k < turns[i].numbers; k++) good &= numbers[k] > 0;
        if (good) turn = turns[i].open(numbers);
    }
    if (!turn.run) die_input("give head N C V, matmul N C OC, step B T, or decode BATCH TOKENS; "
                              "and a dtype");
    while ((c = getchar()) != EOF) {
        if (c != '\n') continue;
        double begin = seconds(), processors = processor_seconds();
        turn.run(turn.context);
        double time = seconds() - begin;
        printf("%.6f %.6f %.0f\n", time, processor_seconds() - processors,
               status_bytes("VmHWM:") - bytes_before);
        fflush(stdout);
    }
    return 0;
}
