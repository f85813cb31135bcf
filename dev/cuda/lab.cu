/* What the laboratory's plug-in exports (lab.h). Compiled once. */
#include <string.h>
#include "lab.h"

__attribute__((weak)) const struct Ladder *const *lab_ladders_fp32(int *count);
__attribute__((weak)) const struct Ladder *const *lab_ladders_bf16(int *count);
__attribute__((weak)) const struct Ladder *const *lab_ladders_fp16(int *count);

extern "C" __attribute__((visibility("default"))) const struct Ladder *const *
lab_ladders(const char *dtype, int *count) {
    static const struct {
        const char *dtype;
        const struct Ladder *const *(*of)(int *count);
    } types[] = {{"fp32", lab_ladders_fp32},
                 {"bf16", lab_ladders_bf16},
                 {"fp16", lab_ladders_fp16}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(types[i].dtype, dtype) == 0 && types[i].of) return types[i].of(count);
    return NULL;
}
