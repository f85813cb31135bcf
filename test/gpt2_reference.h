/* GPT-2 in float64, one row at a time, written as in the paper: the independent definition that
   test_model.c holds the engine against. Slow and plain on purpose; it shares nothing with the
   kernels but the place of each tensor in the flat buffer. */
#ifndef GPT2_REFERENCE_H
#define GPT2_REFERENCE_H

#include <math.h>
#include <stdlib.h>
#include "../llmc/model.h"

static double *reference_alloc(size_t rows, size_t columns) {
    double *memory = calloc(rows * columns + 1, sizeof *memory);
    if (memory == NULL) abort();
    return memory;
}

/* out [T,OC] = x [T,C] w^T [OC,C] + bias */
static void reference_linear(double *out, const double *x, const double *w, const double *bias,
                             int T, int C, int OC) {
    #pragma omp parallel for schedule(static)
    for (int t = 0; t < T; t++)
        for (int o = 0; o < OC; o++) {
            double sum = bias ? bias[o] : 0;
            for (int c = 0; c < C; c++)
                sum += x[(size_t)t * C + c] * w[(size_t)o * C + c];
            out[(size_t)t * OC + o] = sum;
        }
}

static void reference_norm(double *out, const double *x, const double *weight, const double *bias,
                           int T, int C) {
    for (int t = 0; t < T; t++, x += C, out += C) {
        double mean = 0, variance = 0;
        for (int c = 0; c < C; c++) mean += x[c] / C;
        for (int c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / C;
        for (int c = 0; c < C; c++)
            out[c] = (x[c] - mean) / sqrt(variance + 1e-5) * weight[c] + bias[c];
    }
}

/* One head of causal attention; returns the entropy of each position's weights in entropy [T]. */
static void reference_attention(double *out, double *entropy, const double *qkv, int T, int head,
                                int NH, int HS) {
    int width = 3 * NH * HS;
    double *p = reference_alloc(1, (size_t)T);
    for (int t = 0; t < T; t++) {
        const double *q = qkv + (size_t)t * width + head * HS;
        double sum = 0;
        for (int s = 0; s <= t; s++) {
            const double *k = qkv + (size_t)s * width + (NH + head) * HS;
            double score = 0;
            for (int i = 0; i < HS; i++) score += q[i] * k[i];
            p[s] = exp(score / sqrt(HS));
            sum += p[s];
        }
        double *o = out + (size_t)t * NH * HS + head * HS;
        for (int i = 0; i < HS; i++) o[i] = 0;
        entropy[t] = 0;
        for (int s = 0; s <= t; s++) {
            const double *v = qkv + (size_t)s * width + (2 * NH + head) * HS;
            double weight = p[s] / sum;
            entropy[t] -= weight > 0 ? weight * log(weight) : 0;
            for (int i = 0; i < HS; i++) o[i] += weight * v[i];
        }
    }
    free(p);
}

static double reference_gelu(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* hidden [T,C] of one row; attention entropy of layer l, head h at entropy[(l*NH + h) * stride]. */
static void reference_forward(double *hidden, double *entropy, size_t stride,
                              const struct Model *model, const double *w, const int *token, int T) {
    const struct ModelConfig *c = &model->config;
    const struct GlobalOffsets *g = &model->globals;
    int C = c->C, F = c->F;
    size_t size = (size_t)T * C;
    double *x = reference_alloc((size_t)T, (size_t)C);
    double *norm = reference_alloc((size_t)T, (size_t)C);
    double *out = reference_alloc((size_t)T, (size_t)C);
    double *qkv = reference_alloc((size_t)T, 3 * (size_t)C);
    double *mlp = reference_alloc((size_t)T, (size_t)F);

    for (int t = 0; t < T; t++)
        for (int i = 0; i < C; i++)
            x[(size_t)t * C + i] = w[g->wte + (size_t)token[t] * C + i] +
                                   w[g->wpe + (size_t)t * C + i];
    for (int l = 0; l < c->L; l++) {
        const struct LayerOffsets *at = &model->layers[l];
        reference_norm(norm, x, w + at->ln_1_weight, w + at->ln_1_bias, T, C);
        reference_linear(qkv, norm, w + at->qkv_weight, w + at->qkv_bias, T, C, 3 * C);
        for (int h = 0; h < c->NH; h++)
            reference_attention(norm, entropy + (size_t)(l * c->NH + h) * stride, qkv, T, h, c->NH,
                                c->HS);
        reference_linear(out, norm, w + at->proj_weight, w + at->proj_bias, T, C, C);
        for (size_t i = 0; i < size; i++) x[i] += out[i];
        reference_norm(norm, x, w + at->ln_2_weight, w + at->ln_2_bias, T, C);
        reference_linear(mlp, norm, w + at->fc_weight, w + at->fc_bias, T, C, F);
        for (size_t i = 0; i < (size_t)T * F; i++) mlp[i] = reference_gelu(mlp[i]);
        reference_linear(out, mlp, w + at->fc_proj_weight, w + at->fc_proj_bias, T, F, C);
        for (size_t i = 0; i < size; i++) x[i] += out[i];
    }
    reference_norm(hidden, x, w + g->ln_f_weight, w + g->ln_f_bias, T, C);
    free(x), free(norm), free(out), free(qkv), free(mlp);
}

/* logp of `target` and the entropy of softmax(W hidden) over the V real columns. */
static inline void reference_head(double *logp, double *entropy, const struct Model *model,
                           const double *w, const double *hidden, int target) {
    int V = model->config.V;
    double *z = reference_alloc(1, (size_t)V), most = -INFINITY, sum = 0;
    reference_linear(z, hidden, w + model->globals.head, NULL, 1, model->config.C, V);
    for (int v = 0; v < V; v++) most = fmax(most, z[v]);
    for (int v = 0; v < V; v++) sum += exp(z[v] - most);
    double lse = most + log(sum);
    *logp = z[target] - lse;
    *entropy = 0;
    for (int v = 0; v < V; v++) *entropy -= exp(z[v] - lse) * (z[v] - lse);
    free(z);
}

#endif
