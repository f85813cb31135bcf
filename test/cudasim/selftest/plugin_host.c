/* A C program with OpenMP that loads kernels by dlopen, as the trainer loads its backends.
   usage: cudasim-host PLUGIN BUG */
#include <dlfcn.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 2048, ROUNDS = 20 };

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    void *plugin = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!plugin) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    int (*shift)(float *, const float *, int, int);
    *(void **)&shift = dlsym(plugin, "plugin_shift");
    if (!shift) return 2;

    static float x[N], out[N];
    int wrong = 0;
    for (int round = 0; round < ROUNDS; round++) {
#pragma omp parallel for num_threads(2)
        for (int i = 0; i < N; i++) x[i] = (float)(i * 7 % 100 + round);
        if (shift(out, x, N, atoi(argv[2])) != 0) return 1;
#pragma omp parallel for num_threads(2) reduction(+ : wrong)
        for (int i = 0; i < N; i++) {
            int group = i / 256 * 256, thread = i % 256;
            int from = group + ((thread > 0 ? thread - 1 : 0) + 2) % 256;
            wrong += out[i] != x[from] + 1;
        }
    }
    printf("%s: %d of %d values wrong\n", argv[1], wrong, N * ROUNDS);
    return wrong != 0;
}
