/* The update: AdamW (1711.05101), one pass over w, m, v and g; adamw.c in CUDA.

       g' = grad_scale g
       m = beta1 m + (1 - beta1) g',   v = beta2 v + (1 - beta2) g'^2
       w -= rate (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + decay w)

   Where there is a master copy, the step is made on it, and w is its rounding to floatX. A narrow
   floatX is rounded stochastically (rounding.cuh): to the nearest, every step below half the
   distance of neighbours would be lost, in bf16 below 1/512 of the weight, and most steps are. The
   random number is a function of seed, step and element alone: however the work is split over
   calls or ranks, the bits are the same.

       elements   |  0  1  2  3 |  4  5  6  7 |  8 ...    a group of 4: one thread, and one block
       ranges     [  decay 0.1      )[ 0  )[  0.1 ...     of Philox, counter (group, step)

   A thread whose group lies in one range moves 16 bytes at a time; one that meets a border goes
   element by element. Memory bound: 28 bytes per element in float32 (w, m, v read and written, g
   read), in a 16-bit floatX 24 without a master copy and 30 with one, for about 90 operations. */
#include "rounding.cuh"

enum {
    THREADS = 256,
    GROUP = 4,                         /* elements of a load, and of a thread of AdamW */
    LOADS = 4,                         /* sum of squares: loads of a thread at a time */
    STRETCH = LOADS * GROUP * THREADS, /* sum of squares: elements a block reads at a time */
    MAX_PARTS = 4096,                  /* sum of squares: most blocks */
    MAX_RANGES = 128 /* AdamW: most in a launch; 3 of the 4 KB that kernel parameters may have */
};

/* ---- the sum of squares -------------------------------------------------------------------- */

/* part[block] = the block's share: every gridDim.x-th stretch of x. A thread's loads of a stretch
   are all on their way before the first is needed. */
static __global__ void __launch_bounds__(THREADS)
squares_kernel(double *part, const float *x, size_t n, bool whole) {
    __shared__ double scratch[THREADS / WARP];
    double sum = 0;
    for (size_t at = (size_t)blockIdx.x * STRETCH; at < n; at += (size_t)gridDim.x * STRETCH) {
        float four[LOADS][GROUP];
#pragma unroll
        for (int k = 0; k < LOADS; k++) {
            size_t i = at + (k * THREADS + threadIdx.x) * GROUP, left = i < n ? n - i : 0;
            load_some(four[k], x + i, left < GROUP ? (int)left : GROUP, whole);
        }
#pragma unroll
        for (int k = 0; k < LOADS; k++)
            for (int j = 0; j < GROUP; j++) sum += (double)four[k][j] * four[k][j];
    }
    sum = block_sum<THREADS>(sum, scratch);
    if (threadIdx.x == 0) part[blockIdx.x] = sum;
}

static __global__ void __launch_bounds__(THREADS)
total_kernel(double *out, const double *part, int parts) {
    __shared__ double scratch[THREADS / WARP];
    double sum = 0;
    for (int i = threadIdx.x; i < parts; i += THREADS) sum += part[i];
    sum = block_sum<THREADS>(sum, scratch);
    if (threadIdx.x == 0) *out = sum;
}

/* The number of parts, and so the order of the sum, depends on n alone. */
static void sum_of_squares(double *out, const float *x, size_t n, void *workspace) {
    double *part = (double *)workspace; /* [MAX_PARTS] */
    size_t stretches = (n + STRETCH - 1) / STRETCH;
    int parts = stretches < MAX_PARTS ? (int)stretches : MAX_PARTS;
    if (parts > 0) {
        squares_kernel<<<parts, THREADS, 0, cuda.stream>>>(part, x, n, rows_aligned(x, GROUP, 4));
        CUDA_CHECK_LAUNCH();
    }
    total_kernel<<<1, THREADS, 0, cuda.stream>>>(out, part, parts);
    CUDA_CHECK_LAUNCH();
}

/* ---- AdamW --------------------------------------------------------------------------------- */

struct Buffers {
    floatX *w;
    float *master, *m, *v; /* master may be NULL */
    const float *g;
};

/* What is the same for every element of a step. */
struct Rates {
    float grad_scale, beta1, beta2, rate, root_scale, epsilon;
    uint32_t key[2], step[2];
};

/* Sorted, disjoint, none empty; decay is learning_rate * weight_decay. */
struct Ranges {
    int count;
    struct { size_t begin, end; float decay; } range[MAX_RANGES];
};

/* The new weight; m and v are updated. */
static __device__ __forceinline__ float update(float w, float *m, float *v, float g, float decay,
                                               const struct Rates &r) {
    float grad = g * r.grad_scale;
    *m = r.beta1 * *m + (1.0f - r.beta1) * grad;
    *v = r.beta2 * *v + (1.0f - r.beta2) * grad * grad;
    return w - (r.rate * *m / (sqrtf(*v) * r.root_scale + r.epsilon) + decay * w);
}

/* One element i. */
static __device__ __forceinline__ void update_one(const struct Buffers &b, size_t i, float decay,
                                                  const struct Rates &r, uint32_t random) {
    float w = b.master ? b.master[i] : to_f(b.w[i]), m = b.m[i], v = b.v[i];
    w = update(w, &m, &v, b.g[i], decay, r);
    if (b.master) b.master[i] = w;
    b.w[i] = round_random<floatX>(w, random);
    b.m[i] = m;
    b.v[i] = v;
}

/* Four floatX as one load or store of 8 or 16 bytes. */
struct __align__(GROUP * sizeof(floatX)) Four {
    floatX element[GROUP];
};

/* Elements i to i + 3, all arrays aligned there. */
static __device__ __forceinline__ void update_four(const struct Buffers &b, size_t i, float decay,
                                                   const struct Rates &r,
                                                   const uint32_t random[GROUP]) {
    float w[GROUP], m[GROUP], v[GROUP], g[GROUP];
    struct Four narrow;
    load_vector(g, b.g + i);
    load_vector(m, b.m + i);
    load_vector(v, b.v + i);
    if (b.master) load_vector(w, b.master + i);
    else {
        narrow = *(const struct Four *)(b.w + i);
#pragma unroll
        for (int j = 0; j < GROUP; j++) w[j] = to_f(narrow.element[j]);
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        w[j] = update(w[j], &m[j], &v[j], g[j], decay, r);
        narrow.element[j] = round_random<floatX>(w[j], random[j]);
    }
    if (b.master) store_vector(b.master + i, w);
    *(struct Four *)(b.w + i) = narrow;
    store_vector(b.m + i, m);
    store_vector(b.v + i, v);
}

/* The first range that ends beyond element i, or count. */
static __device__ __forceinline__ int find_range(const struct Ranges &ranges, size_t i) {
    int low = 0, high = ranges.count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (ranges.range[middle].end > i) high = middle;
        else low = middle + 1;
    }
    return low;
}

static __global__ void __launch_bounds__(THREADS)
adamw_kernel(struct Buffers b, struct Rates r, struct Ranges ranges, size_t first_group,
             bool whole) {
    size_t group = first_group + (size_t)blockIdx.x * THREADS + threadIdx.x, i = group * GROUP;
    int k = find_range(ranges, i);
    if (k == ranges.count || ranges.range[k].begin >= i + GROUP) return;
    const uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), r.step[0], r.step[1]};
    uint32_t random[4];
    philox(random, counter, r.key);
    if (whole && ranges.range[k].begin <= i && i + GROUP <= ranges.range[k].end) {
        update_four(b, i, ranges.range[k].decay, r, random);
        return;
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        while (k < ranges.count && ranges.range[k].end <= i + j) k++;
        if (k < ranges.count && ranges.range[k].begin <= i + j)
            update_one(b, i + j, ranges.range[k].decay, r, random[j]);
    }
}

static struct Rates rates_of(const struct AdamwStep *step) {
    double bias1 = 1.0 - pow(step->beta1, (double)step->step);
    double bias2 = 1.0 - pow(step->beta2, (double)step->step);
    struct Rates r = {step->grad_scale, step->beta1, step->beta2,
                      (float)(step->learning_rate / bias1), (float)(1.0 / sqrt(bias2)),
                      step->epsilon, {0, 0},
                      {(uint32_t)step->step, (uint32_t)((uint64_t)step->step >> 32)}};
    rng_key(r.key, step->seed, RNG_ROUNDING);
    return r;
}

/* All the ranges in it, in one launch from the first to the last. */
static void launch(const struct Buffers *b, const struct Rates *r, const struct Ranges *ranges) {
    if (ranges->count == 0) return;
    size_t first = ranges->range[0].begin / GROUP;
    size_t groups = (ranges->range[ranges->count - 1].end + GROUP - 1) / GROUP - first;
    bool whole = (uintptr_t)b->w % sizeof(struct Four) == 0 && rows_aligned(b->m, GROUP, 4) &&
                 rows_aligned(b->v, GROUP, 4) && rows_aligned(b->g, GROUP, 4) &&
                 rows_aligned(b->master, GROUP, 4);
    unsigned blocks = (unsigned)((groups + THREADS - 1) / THREADS);
    adamw_kernel<<<blocks, THREADS, 0, cuda.stream>>>(*b, *r, *ranges, first, whole);
    CUDA_CHECK_LAUNCH();
}

/* Where element 0 of the flat buffer would be, for a pointer to element `begin`: the kernel counts
   from there. It need not be an address of anything. */
template <class T> static T *flat_start(T *pointer, size_t begin) {
    return pointer ? (T *)((uintptr_t)pointer - begin * sizeof(T)) : NULL;
}

/* The ranges are passed by value, so the host may reuse its array at once. */
static void adamw(floatX *w, float *master, float *m, float *v, const float *g,
                  const struct AdamwRange *ranges, int num_ranges, size_t begin, size_t end,
                  const struct AdamwStep *step) {
    struct Buffers b = {flat_start(w, begin), flat_start(master, begin), flat_start(m, begin),
                        flat_start(v, begin), flat_start(g, begin)};
    struct Rates r = rates_of(step);
    struct Ranges part;
    part.count = 0;
    for (int i = 0; i < num_ranges; i++) {
        size_t first = ranges[i].begin > begin ? ranges[i].begin : begin;
        size_t last = ranges[i].end < end ? ranges[i].end : end;
        if (first >= last) continue;
        part.range[part.count].begin = first;
        part.range[part.count].end = last;
        part.range[part.count++].decay = step->learning_rate * ranges[i].weight_decay;
        if (part.count < MAX_RANGES) continue;
        launch(&b, &r, &part);
        part.count = 0;
    }
    launch(&b, &r, &part);
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    (void)shape;
    return MAX_PARTS * sizeof(double);
}

static void fill(struct Ops *ops) {
    ops->sum_of_squares = sum_of_squares;
    ops->adamw = adamw;
}

extern const struct KernelFile PER_TYPE(cuda_adamw) = {"adamw", fill, workspace_bytes};
