/* The update: AdamW (1711.05101), one pass over w, m, v and g.

       g' = grad_scale g
       m = beta1 m + (1 - beta1) g',   v = beta2 v + (1 - beta2) g'^2
       w -= rate (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + decay w)

   Where there is a master copy, the step is made on it, and w is its rounding. */
#include "cpu.h"

/* A fixed number of parts, whatever the number of threads: so the bits of the sum depend on the
   data only. */
#define PARTS 1024
/* Elements of one turn of the parallel loop. */
#define BLOCK ((size_t)1 << 14)

static double squares(const float *x, size_t n) {
    double sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static void sum_of_squares(double *out, const float *x, size_t n, void *workspace) {
    double *part = workspace; /* [PARTS] */
    size_t each = (n / PARTS + 16) / 16 * 16;
    #pragma omp parallel for schedule(static)
    for (int p = 0; p < PARTS; p++) {
        size_t begin = each * (size_t)p < n ? each * (size_t)p : n;
        part[p] = squares(x + begin, n - begin < each ? n - begin : each);
    }
    double sum = 0;
    for (int p = 0; p < PARTS; p++) sum += part[p];
    *out = sum;
}

/* The numbers of one step that are the same for every element. */
struct Rates {
    float grad_scale, beta1, beta2, rate, root_scale, epsilon, decay;
};

/* n elements; w holds the weights that count (the master copy where there is one). */
static void update(float *restrict w, float *restrict m, float *restrict v, const float *restrict g,
                   size_t n, const struct Rates *r) {
    for (size_t i = 0; i < n; i++) {
        float grad = g[i] * r->grad_scale;
        float first = r->beta1 * m[i] + (1.0f - r->beta1) * grad;
        float second = r->beta2 * v[i] + (1.0f - r->beta2) * grad * grad;
        m[i] = first;
        v[i] = second;
        w[i] -= r->rate * first / (sqrtf(second) * r->root_scale + r->epsilon) + r->decay * w[i];
    }
}

static void adamw(floatX *w, float *master, float *m, float *v, const float *g,
                  const struct AdamwRange *ranges, int num_ranges, size_t begin, size_t end,
                  const struct AdamwStep *step) {
    double bias1 = 1.0 - pow(step->beta1, (double)step->step);
    double bias2 = 1.0 - pow(step->beta2, (double)step->step);
    #pragma omp parallel
    for (int i = 0; i < num_ranges; i++) {
        size_t first = ranges[i].begin > begin ? ranges[i].begin : begin;
        size_t last = ranges[i].end < end ? ranges[i].end : end;
        struct Rates rates = {step->grad_scale, step->beta1, step->beta2,
                              (float)(step->learning_rate / bias1), (float)(1.0 / sqrt(bias2)),
                              step->epsilon, step->learning_rate * ranges[i].weight_decay};
        #pragma omp for schedule(static) nowait
        for (size_t j = first; j < last; j += BLOCK) {
            size_t n = last - j < BLOCK ? last - j : BLOCK;
            size_t at = j - begin;
            update((master ? master : w) + at, m + at, v + at, g + at, n, &rates);
            if (master) memcpy(w + at, master + at, n * sizeof *w);
        }
    }
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    (void)shape;
    return PARTS * sizeof(double);
}

static void fill(struct Ops *ops) {
    ops->sum_of_squares = sum_of_squares;
    ops->adamw = adamw;
}

const struct KernelFile cpu_adamw = {"adamw", fill, workspace_bytes};
