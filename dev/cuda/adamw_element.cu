/* The update, rung 1: an element for each thread, and a launch for each range of equal decay.

       thread       0        1        2      ...
       element    begin   begin+1  begin+2   ...   of w, m, v and g: 4 bytes a load (w: 2 or 4)

   A warp's load is 128 bytes in a row, so memory is used well, but a thread has few loads on their
   way at a time, and computes four random numbers to use one. The sum of squares is one block's:
   its threads take every SUM_THREADS-th element, so that the order of the sum is fixed without a
   second launch. */
#include "../../llmc/kernels/rounding.cuh"

enum { THREADS = 256, SUM_THREADS = 1024 };

static __global__ void __launch_bounds__(SUM_THREADS)
squares_kernel(double *out, const float *x, size_t n) {
    __shared__ double scratch[SUM_THREADS / WARP];
    double sum = 0;
    for (size_t i = threadIdx.x; i < n; i += SUM_THREADS) sum += (double)x[i] * x[i];
    sum = block_sum<SUM_THREADS>(sum, scratch);
    if (threadIdx.x == 0) *out = sum;
}

static void sum_of_squares(double *out, const float *x, size_t n, void *workspace) {
    (void)workspace;
    squares_kernel<<<1, SUM_THREADS, 0, cuda.stream>>>(out, x, n);
    CUDA_CHECK_LAUNCH();
}

/* What is the same for every element of a range. */
struct Rates {
    float grad_scale, beta1, beta2, rate, root_scale, epsilon, decay;
    uint32_t key[2], step[2];
};

/* The random number of element i of the flat buffer is word i % 4 of Philox block i / 4, as in what
   ships: so both versions round alike. */
static __device__ uint32_t random_of(size_t i, const struct Rates &r) {
    size_t group = i / 4;
    const uint32_t counter[4] = {(uint32_t)group, (uint32_t)(group >> 32), r.step[0], r.step[1]};
    uint32_t random[4];
    philox(random, counter, r.key);
    return random[i % 4];
}

/* Elements [first, last) of the flat buffer, of which the arrays hold those from `begin` on. master
   may be NULL. */
static __global__ void __launch_bounds__(THREADS)
adamw_kernel(floatX *w, float *master, float *m, float *v, const float *g, struct Rates r,
             size_t begin, size_t first, size_t last) {
    size_t element = first + (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (element >= last) return;
    size_t i = element - begin;
    float grad = g[i] * r.grad_scale;
    float old = master ? master[i] : to_f(w[i]);
    float mean = r.beta1 * m[i] + (1.0f - r.beta1) * grad;
    float square = r.beta2 * v[i] + (1.0f - r.beta2) * grad * grad;
    float step = r.rate * mean / (sqrtf(square) * r.root_scale + r.epsilon);
    float weight = old - (step + r.decay * old);
    m[i] = mean;
    v[i] = square;
    if (master) master[i] = weight;
    w[i] = round_random<floatX>(weight, random_of(element, r));
}

static void adamw(floatX *w, float *master, float *m, float *v, const float *g,
                  const struct AdamwRange *ranges, int num_ranges, size_t begin, size_t end,
                  const struct AdamwStep *step) {
    double bias1 = 1.0 - pow(step->beta1, (double)step->step);
    double bias2 = 1.0 - pow(step->beta2, (double)step->step);
    struct Rates r = {step->grad_scale, step->beta1, step->beta2,
                      (float)(step->learning_rate / bias1), (float)(1.0 / sqrt(bias2)),
                      step->epsilon, 0, {0, 0},
                      {(uint32_t)step->step, (uint32_t)((uint64_t)step->step >> 32)}};
    rng_key(r.key, step->seed, RNG_ROUNDING);
    for (int i = 0; i < num_ranges; i++) {
        size_t first = ranges[i].begin > begin ? ranges[i].begin : begin;
        size_t last = ranges[i].end < end ? ranges[i].end : end;
        if (first >= last) continue;
        r.decay = step->learning_rate * ranges[i].weight_decay;
        unsigned blocks = (unsigned)((last - first + THREADS - 1) / THREADS);
        adamw_kernel<<<blocks, THREADS, 0, cuda.stream>>>(w, master, m, v, g, r, begin, first,
                                                          last);
        CUDA_CHECK_LAUNCH();
    }
}

static void fill(struct Ops *ops) {
    ops->sum_of_squares = sum_of_squares;
    ops->adamw = adamw;
}

extern const struct KernelFile PER_TYPE(adamw_element) = {"adamw_element", fill, no_workspace};
