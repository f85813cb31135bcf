/* Token and position embedding.

       x_n = wte[token_n] + wpe[position_n]
       dwte[v] += sum over n with token_n = v of dx_n,     dwpe[t] likewise by position

   A token whose position is negative is padding: its x is 0, and it adds to no gradient. */
#include "cpu.h"

static void embedding_forward(floatX *x, const int *token, const int *position, const floatX *wte,
                              const floatX *wpe, int N, int C) {
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        floatX *out = x + (size_t)n * C;
        if (position[n] < 0) {
            memset(out, 0, (size_t)C * sizeof *out);
            continue;
        }
        const floatX *a = wte + (size_t)token[n] * C;
        if (wpe == NULL) {
            memcpy(out, a, (size_t)C * sizeof *out);
            continue;
        }
        const floatX *b = wpe + (size_t)position[n] * C;
        for (int c = 0; c < C; c++) out[c] = a[c] + b[c];
    }
}

/* Many n share a token, so threads cannot share the n; each takes a slice of the channels, and the
   order of every sum is that of n, whatever the number of threads. */
static void embedding_backward(float *dwte, float *dwpe, const floatX *dx, const int *token,
                               const int *position, int N, int C, void *workspace) {
    (void)workspace;
    #pragma omp parallel
    {
        int begin, end;
        split_thread(&begin, &end, C, 16);
        for (int n = 0; n < N && begin < end; n++) {
            if (position[n] < 0) continue;
            const floatX *in = dx + (size_t)n * C;
            float *by_token = dwte + (size_t)token[n] * C;
            for (int c = begin; c < end; c++) by_token[c] += in[c];
            if (dwpe == NULL) continue;
            float *by_position = dwpe + (size_t)position[n] * C;
            for (int c = begin; c < end; c++) by_position[c] += in[c];
        }
    }
}

static void fill(struct Ops *ops) {
    ops->embedding_forward = embedding_forward;
    ops->embedding_backward = embedding_backward;
}

const struct KernelFile cpu_embedding = {"embedding", fill, no_workspace};
