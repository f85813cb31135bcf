/* Times of an operation beside its floor. */
#include "bench.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../llmc/base/check.h"
#include "../../llmc/base/time.h"
#include "../cuda/lab_open.h"
#include "floor.h"

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double percentile(double *x, int n, double share) {
    qsort(x, (size_t)n, sizeof *x, compare);
    double at = share * (n - 1);
    int below = (int)at;
    return below + 1 < n ? x[below] + (at - below) * (x[below + 1] - x[below]) : x[n - 1];
}

static void three(double out[3], double *x, int n) {
    for (int k = 0; k < 3; k++) out[k] = percentile(x, n, 0.2 + 0.3 * k);
}

static double larger(double a, double b) { return a > b ? a : b; }

/* ---- the CPU's floor: matrix products and bytes ---------------------------------------------- */

/* out [M,N] = a b with a [M,K] and b [K,N], stored as CBLAS is told. */
struct Product { int M, N, K; CBLAS_TRANSPOSE a, b; };

static struct { float *a, *b, *out; size_t n; } scratch;   /* n numbers each */

static void scratch_reserve(size_t n) {
    if (n <= scratch.n) return;
    free(scratch.a), free(scratch.b), free(scratch.out);
    scratch.a = check_alloc(n, sizeof(float), "the benchmark");
    scratch.b = check_alloc(n, sizeof(float), "the benchmark");
    scratch.out = check_alloc(n, sizeof(float), "the benchmark");
    for (size_t i = 0; i < n; i++) scratch.a[i] = scratch.b[i] = (float)(i % 13) / 13 - 0.5f;
    scratch.n = n;
}

static void product_rows(const struct Product *p, int first, int rows) {
    int lda = p->a == CblasNoTrans ? p->K : p->M, ldb = p->b == CblasNoTrans ? p->N : p->K;
    size_t offset = p->a == CblasNoTrans ? (size_t)first * (size_t)lda : (size_t)first;
    cblas_sgemm(CblasRowMajor, p->a, p->b, rows, p->N, p->K, 1, scratch.a + offset, lda, scratch.b,
                ldb, 0, scratch.out + (size_t)first * (size_t)p->N, p->N);
}

/* Seconds of one product: OpenBLAS's own threading, or a split over rows; the better of the two. */
static double product_seconds(const struct Product *p) {
    double begin = seconds();
    product_rows(p, 0, p->M);
    double own = seconds() - begin;
    begin = seconds();
    #pragma omp parallel
    {
        int parts = omp_get_num_threads(), part = omp_get_thread_num();
        int first = (int)((long)p->M * part / parts), last = (int)((long)p->M * (part + 1) / parts);
        product_rows(p, first, last - first);
    }
    double split = seconds() - begin;
    return own < split ? own : split;
}

double floor_products(const struct Products *p) {
    const struct Product products[] = {{p->N, p->OC, p->C, CblasNoTrans, CblasTrans},
                                       {p->N, p->C, p->OC, CblasNoTrans, CblasNoTrans},
                                       {p->OC, p->C, p->N, CblasTrans, CblasNoTrans}};
    size_t N = (size_t)p->N, C = (size_t)p->C, OC = (size_t)p->OC;
    size_t most = N * OC > OC * C ? N * OC : OC * C;
    double sum = 0;
    scratch_reserve(most > N * C ? most : N * C);
    for (int i = p->forward ? 0 : 1; i < (p->backward ? 3 : 1); i++)
        sum += product_seconds(&products[i]);
    return sum;
}

double floor_flop_rate(void) {
    const struct Product p = {1024, 3072, 768, CblasNoTrans, CblasTrans};
    scratch_reserve((size_t)1024 * 3072);
    return 2. * p.M * p.N * p.K / product_seconds(&p);
}

double floor_byte_rate(void) {
    enum { NUMBERS = 128000000 };   /* 512 MB: no cache holds them */
    static float *memory;
    float sum = 0;
    if (!memory) {
        memory = check_alloc(NUMBERS, sizeof *memory, "the benchmark");
        memset(memory, 1, NUMBERS * sizeof *memory);
    }
    double begin = seconds();
    #pragma omp parallel for simd reduction(+ : sum)
    for (int i = 0; i < NUMBERS; i++) sum += memory[i];
    double end = seconds();
    if (sum == 1) puts("");   /* so that the sum is needed */
    return NUMBERS * 4. / (end - begin);
}

/* ---- turns on the CPU ------------------------------------------------------------------------ */

struct Alternation floor_compare(void (*ours)(void *), double (*floor_seconds)(void *),
                                 void *context, int repeats, double most_seconds) {
    double a[64], b[64], r[64], start;
    struct Alternation turns;
    int n = 0;
    ours(context), floor_seconds(context);
    start = seconds();
    for (; n < repeats && n < 64 && (n < 3 || seconds() - start < most_seconds); n++) {
        double begin = seconds();
        ours(context);
        a[n] = seconds() - begin;
        b[n] = floor_seconds(context);
        r[n] = a[n] / b[n];
    }
    three(turns.ours, a, n);
    turns.floor = percentile(b, n, 0.5), turns.ratio = percentile(r, n, 0.5);
    return turns;
}

struct Call {
    struct Case *c;
    const struct Ops *ops;
    void *workspace;
    int each;
};

static void call_each(void *context) {
    struct Call *call = context;
    for (int i = 0; i < call->each; i++) call->c->call(call->c, call->ops, call->workspace);
}

/* Of `each` calls. */
static double case_floor(void *context) {
    const struct Call *call = context;
    const struct Case *c = call->c;
    double flop = c->products.N ? floor_products(&c->products)
                  : c->flop > 0 ? c->flop / floor_flop_rate()
                                : 0;
    return call->each * larger(flop, c->bytes / floor_byte_rate());
}

static void time_cpu_case(const struct Bench *b, struct Case *c) {
    struct Row *row = table_row(b, c->slot, "cpu", "cpu", b->cpu->dtype, c->shape);
    size_t bytes = b->cpu->workspace_size(&c->sizes);
    struct Call call = {c, b->cpu, b->cpu->alloc(bytes + 1), 1};
    case_upload(c, b->cpu);
    call_each(&call);
    double begin = seconds();
    call_each(&call);
    call.each = 1 + (int)(0.03 / (seconds() - begin + 1e-5));   /* much longer than a wake-up */
    struct Alternation t = floor_compare(call_each, case_floor, &call, 15, 4);
    for (int k = 0; k < 3; k++) row->warm[k] = 1e3 * t.ours[k] / call.each;
    row->flop = c->flop, row->bytes = c->bytes;
    row->floor_ms = 1e3 * t.floor / call.each, row->of_floor = 1 / t.ratio;
    if (c->products.N) row->products_ms = row->floor_ms, row->of_products = row->of_floor;
    row->extra_mib = (double)bytes / (1 << 20);
    case_release(c, b->cpu);
    b->cpu->free(call.workspace);
}

void time_cpu(const struct Bench *b) {
    for (int s = 0; b->op->slots[s]; s++) {
        struct Setting setting = {b->cpu, NORMAL, MODERATE, 0};
        for (;; setting.which++) {
            struct Case c = {.data = NORMAL};
            if (!b->op->open(&c, b->op->slots[s], &setting)) break;
            time_cpu_case(b, &c);
            case_close(&c);
        }
    }
}

/* ---- a GPU ----------------------------------------------------------------------------------- */

/* Milliseconds of one call, by events. What is short is called often between two of them. */
static double gpu_once(const struct Lab *lab, struct Call *call) {
    return lab->device->time_ms(call_each, call) / call->each;
}

/* In the simulator times mean nothing: there this only shows that all of it works. */
static bool is_simulated(const struct Lab *lab) { return strncmp(lab->ops.name, "sim", 3) == 0; }

/* Until the clocks are those of steady work; returns about how long a call takes. */
static double gpu_warm_up(const struct Lab *lab, struct Call *call) {
    double begin = seconds(), time = gpu_once(lab, call);
    if (is_simulated(lab)) return time;
    call->each = time < 0.1 ? (int)(0.1 / (time + 1e-4)) + 1 : 1;
    while (seconds() - begin < 0.5) time = gpu_once(lab, call);
    return time;
}

static double gpu_joules(const struct Lab *lab, struct Call *call) {
    double begin = seconds(), before = lab->device->energy_joules();
    int n = 0;
    if (isnan(before)) return NAN;
    while (n == 0 || (seconds() - begin < 1.2 && !is_simulated(lab)))
        gpu_once(lab, call), n += call->each;
    return (lab->device->energy_joules() - before) / n;
}

/* A call of more than 2 s (the definition, at a real model's size) is made once. */
static void gpu_times(struct Row *row, const struct Lab *lab, struct Call *call) {
    double warm[32], cold[32], time = gpu_warm_up(lab, call);
    int n = is_simulated(lab) ? 2 : time > 2000 ? 1 : time > 100 ? 5 : 25;
    for (int i = 0; i < n; i++) warm[i] = n == 1 ? time : gpu_once(lab, call);
    three(row->warm, warm, n);
    if (n == 1) return;
    int each = call->each;
    call->each = 1;
    for (int i = 0; i < n; i++) lab->device->flush(), cold[i] = gpu_once(lab, call);
    call->each = each;
    three(row->cold, cold, n);
    row->joules = gpu_joules(lab, call);
}

struct LayerCall {
    const struct Ops *ops;
    struct Products p;
    void *x, *w, *out, *dw, *workspace;
};

static void layer_products(void *context) {
    const struct LayerCall *l = context;
    const struct Products *p = &l->p;
    if (p->forward) l->ops->matmul_forward(l->out, l->x, l->w, NULL, p->N, p->C, p->OC);
    if (p->backward)
        l->ops->matmul_backward(l->x, l->dw, NULL, l->out, l->x, l->w, p->N, p->C, p->OC,
                                l->workspace);
}

/* Milliseconds of the bare products, by cuBLASLt through the backend's own slots. */
static double gpu_products(const struct Lab *lab, const struct Products *p) {
    const struct Ops *ops = &lab->ops;
    size_t N = (size_t)p->N, C = (size_t)p->C, OC = (size_t)p->OC, size = ops->element_size;
    struct OpsShape sizes = {.N = p->N, .C = p->C, .F = p->OC, .NH = 1, .NKV = 1, .HS = 64, .V = 1,
                             .Vp = 1, .max_T = 1, .R = 1, .max_length = 1};
    struct Setting s = {ops, NORMAL, LARGE, 0};
    struct LayerCall l = {ops, *p, ops->alloc(N * C * size), ops->alloc(OC * C * size),
                          ops->alloc(N * OC * size), ops->alloc(OC * C * 4),
                          ops->alloc(ops->workspace_size(&sizes) + 1)};
    struct Case c = {.slot = "products"};
    c.buffers = 3;
    c.buffer[0] = (struct Buffer){.kind = IN_X, .n = N * C, .host = case_noise(&s, N * C, 1, 1)};
    c.buffer[1] = (struct Buffer){.kind = IN_X, .n = OC * C, .host = case_noise(&s, OC * C, 1, 2)};
    c.buffer[2] = (struct Buffer){.kind = IN_X, .n = N * OC, .host = case_noise(&s, N * OC, 1, 3)};
    case_upload(&c, ops);
    ops->copy(l.x, c.buffer[0].at, N * C * size), ops->copy(l.w, c.buffer[1].at, OC * C * size);
    ops->copy(l.out, c.buffer[2].at, N * OC * size), ops->fill_zero(l.dw, OC * C * 4);
    case_release(&c, ops), case_close(&c);
    double times[9], begin = seconds();
    while (seconds() - begin < 0.5 && !is_simulated(lab))
        lab->device->time_ms(layer_products, &l);
    for (int i = 0; i < 9; i++) times[i] = lab->device->time_ms(layer_products, &l);
    void *owned[] = {l.x, l.w, l.out, l.dw, l.workspace};
    for (int i = 0; i < 5; i++) ops->free(owned[i]);
    return percentile(times, 9, 0.5);
}

struct Copy { const struct Ops *ops; void *out, *in; size_t bytes; };

static void copy(void *context) {
    const struct Copy *c = context;
    c->ops->copy(c->out, c->in, c->bytes);
}

void gpu_rates(struct Rates *out, const struct Lab *lab) {
    int side = is_simulated(lab) ? 64 : 8192;
    struct Products p = {side, side, side, true, false};
    struct Copy c = {.ops = &lab->ops, .bytes = is_simulated(lab) ? 1 << 16 : (size_t)1 << 30};
    double times[9];
    c.in = c.ops->alloc(c.bytes), c.out = c.ops->alloc(c.bytes);
    c.ops->fill_zero(c.in, c.bytes);
    for (int i = -3; i < 9; i++) {
        double time = lab->device->time_ms(copy, &c);
        if (i >= 0) times[i] = time;
    }
    c.ops->free(c.in), c.ops->free(c.out);
    out->bytes = 2e3 * (double)c.bytes / percentile(times, 9, 0.5);
    out->flop = 2e3 * pow(side, 3) / gpu_products(lab, &p);
}

static void time_gpu_version(const struct Bench *b, struct Case *c, const struct Version *version,
                             double products_ms, const struct Rates *rates) {
    static struct Ops ops;
    struct Ops only = {.name = NULL};
    version->file->fill(&only);
    if (!slot_is_there(&only, c->slot) || !version->runs_here()) return;
    lab_use(&ops, b->lab, version);
    struct Row *row =
        table_row(b, c->slot, version->file->name, b->backend, ops.dtype, c->shape);
    size_t bytes = version->file->workspace(&c->sizes);
    row->flop = c->flop, row->bytes = c->bytes, row->extra_mib = (double)bytes / (1 << 20);
    if (bytes + ((size_t)1 << 30) > ops.memory_available()) return;   /* the row says how much */
    struct Call call = {c, &ops, ops.alloc(bytes + 1), 1};
    case_remake(c, &ops);
    gpu_times(row, b->lab, &call);
    row->floor_ms = 1e3 * larger(c->flop / rates->flop, c->bytes / rates->bytes);
    row->of_floor = row->floor_ms / row->warm[1];
    row->products_ms = products_ms, row->of_products = products_ms / row->warm[1];
    ops.sync(), ops.free(call.workspace);
}

void time_gpu(const struct Bench *b, const struct Rates *rates) {
    const struct Ladder *ladder = lab_ladder(b->lab, b->op->name);
    for (int s = 0; ladder && b->op->slots[s]; s++) {
        struct Setting setting = {&b->lab->ops, NORMAL, is_simulated(b->lab) ? RAGGED : LARGE, 0};
        for (;; setting.which++) {
            struct Case c = {.data = NORMAL};
            if (!b->op->open(&c, b->op->slots[s], &setting)) break;
            case_upload(&c, &b->lab->ops);
            double products = c.products.N ? gpu_products(b->lab, &c.products) : NAN;
            for (int v = 0; v < ladder->count; v++)
                time_gpu_version(b, &c, &ladder->versions[v], products, rates);
            case_release(&c, &b->lab->ops);
            case_close(&c);
        }
    }
}
