/* THE LIST of ladders, for one element type. */
#include "lab.cuh"

#define LADDERS(ADD) \
    ADD(head)        \
    ADD(attention)   \
    ADD(norm)        \
    ADD(adamw)       \
    ADD(sample)      \
    ADD(decode)      \
    ADD(matmul)

#define DECLARE(name) extern const struct Ladder PER_TYPE(ladder_##name);
LADDERS(DECLARE)

#define ENTER(name) &PER_TYPE(ladder_##name),
static const struct Ladder *const ladders[] = {LADDERS(ENTER)};

extern const struct Ladder *const *PER_TYPE(lab_ladders)(int *count) {
    *count = (int)(sizeof ladders / sizeof *ladders);
    return ladders;
}
