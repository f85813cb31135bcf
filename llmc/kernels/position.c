/* What is done to query and key heads before attention: RMS norm (1910.07467) of each head, then
   the rotation by position (2104.09864) of the pairs (x_i, x_(i + HS/2)) by a_i.

       rstd = 1 / sqrt(1/HS sum x^2 + epsilon),  h = x rstd,  y = h weight
       (y1, y2) becomes (y1 cos a - y2 sin a, y2 cos a + y1 sin a),  a_i = position inv_freq_i

   Backward: the gradient is turned back by the same angles, which gives that of y; with it
       dweight += sum over tokens and heads of dy h,  g = dy weight,  dx = rstd (g - h <g h>)

   Cosines and sines are formed once for a token and serve all its heads. */
#include "cpu.h"

#define PAIRS 64 /* cosines and sines held at a time */

struct Angles {
    float cosine[PAIRS], sine[PAIRS];
};

/* Those of pairs [first, first + count). The angle is a float32 number, as in transformers; its
   cosine and sine are those of that number. */
static void angles_of(struct Angles *angles, int position, const float *inv_freq, int first,
                      int count) {
    for (int i = 0; i < count; i++) {
        float angle = (float)position * inv_freq[first + i];
        angles->cosine[i] = cosf(angle);
        angles->sine[i] = sinf(angle);
    }
}

/* Rotates the heads [heads,HS] of a token by its angles, or, with direction -1, back. */
static void rotate(floatX *x, int position, const float *inv_freq, int heads, int HS,
                   float direction) {
    int half = HS / 2;
    for (int first = 0; first < half; first += PAIRS) {
        int count = min_int(PAIRS, half - first);
        struct Angles a;
        angles_of(&a, position, inv_freq, first, count);
        for (int i = 0; i < count; i++) a.sine[i] *= direction;
        for (int h = 0; h < heads; h++) {
            floatX *x1 = x + (size_t)h * HS + first, *x2 = x1 + half;
            #pragma omp simd
            for (int i = 0; i < count; i++) {
                float y1 = x1[i] * a.cosine[i] - x2[i] * a.sine[i];
                float y2 = x2[i] * a.cosine[i] + x1[i] * a.sine[i];
                x1[i] = y1;
                x2[i] = y2;
            }
        }
    }
}

/* Head number h of token n: where what it was is kept. */
static size_t saved_at(int n, int h, const struct Heads *heads) {
    return (size_t)n * (heads->NH + heads->NKV) + h;
}

/* The norm of token n's heads x [NH+NKV,HS]. */
static void normalise(floatX *x, const struct PositionSaved *saved, const struct Position *how,
                      const struct Heads *heads, int n) {
    const int HS = heads->HS;
    for (int h = 0; h < heads->NH + heads->NKV; h++, x += HS) {
        const floatX *weight = h < heads->NH ? how->q_weight : how->k_weight;
        float r = 1.0f / sqrtf(vm_dot(x, x, HS) / (float)HS + how->epsilon);
        if (saved->x) {
            memcpy(saved->x + saved_at(n, h, heads) * HS, x, (size_t)HS * sizeof *x);
            saved->rstd[saved_at(n, h, heads)] = r;
        }
        for (int i = 0; i < HS; i++) x[i] = x[i] * r * weight[i];
    }
}

static void position_forward(floatX *qkv, const struct PositionSaved *saved, const int *position,
                             const struct Position *how, const struct Heads *heads, int N) {
    const int QKV = heads_qkv(heads), count = heads->NH + heads->NKV;
    if (how->q_weight == NULL && how->inv_freq == NULL) return;
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        floatX *x = qkv + (size_t)n * QKV;
        if (position[n] < 0) continue;
        if (how->q_weight) normalise(x, saved, how, heads, n);
        if (how->inv_freq) rotate(x, position[n], how->inv_freq, count, heads->HS, 1.0f);
    }
}

/* The norm's backward pass for token n; dweight [2][HS] += that of the queries and of the keys. */
static void normalise_backward(floatX *dx, float *dweight, const struct PositionSaved *saved,
                               const struct Position *how, const struct Heads *heads, int n) {
    const int HS = heads->HS;
    for (int h = 0; h < heads->NH + heads->NKV; h++, dx += HS) {
        bool query = h < heads->NH;
        const floatX *weight = query ? how->q_weight : how->k_weight;
        const floatX *x = saved->x + saved_at(n, h, heads) * HS;
        float *dw = query ? dweight : dweight + HS, r = saved->rstd[saved_at(n, h, heads)];
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int i = 0; i < HS; i++) {
            dw[i] += dx[i] * (x[i] * r);
            sum += dx[i] * weight[i] * (x[i] * r);
        }
        float mean = sum / (float)HS;
        #pragma omp simd
        for (int i = 0; i < HS; i++) dx[i] = r * (dx[i] * weight[i] - x[i] * r * mean);
    }
}

static void position_backward(floatX *dqkv, const struct PositionGradients *gradients,
                              const struct PositionSaved *saved, const int *position,
                              const struct Position *how, const struct Heads *heads, int N,
                              void *workspace) {
    const int QKV = heads_qkv(heads), HS = heads->HS, count = heads->NH + heads->NKV;
    float *sums = workspace; /* [parts][2][HS] */
    int parts = part_count(N);
    if (how->q_weight == NULL && how->inv_freq == NULL) return;
    #pragma omp parallel for schedule(static)
    for (int part = 0; part < parts; part++) {
        float *sum = sums + (size_t)part * 2 * HS;
        int begin, end;
        split_range(&begin, &end, N, 1, part, parts);
        memset(sum, 0, 2 * (size_t)HS * sizeof *sum);
        for (int n = begin; n < end; n++) {
            floatX *dx = dqkv + (size_t)n * QKV;
            if (position[n] < 0) continue;
            if (how->inv_freq) rotate(dx, position[n], how->inv_freq, count, HS, -1.0f);
            if (how->q_weight) normalise_backward(dx, sum, saved, how, heads, n);
        }
    }
    for (int part = 0; part < parts && how->q_weight; part++) {
        const float *sum = sums + (size_t)part * 2 * HS;
        for (int i = 0; i < HS; i++) {
            gradients->dq_weight[i] += sum[i];
            gradients->dk_weight[i] += sum[HS + i];
        }
    }
}

static size_t workspace_bytes(const struct OpsShape *shape) {
    return (size_t)part_count(shape->N) * 2 * shape->HS * sizeof(float);
}

static void fill(struct Ops *ops) {
    ops->position_forward = position_forward;
    ops->position_backward = position_backward;
}

const struct KernelFile cpu_position = {"position", fill, workspace_bytes};
