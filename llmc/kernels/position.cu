/* Query and key heads before attention. Models that norm or rotate them are kept off this backend
   (session.c), so nothing is to be done. */
#include "cuda_common.cuh"

static void position_forward(floatX *, const struct PositionSaved *, const int *,
                             const struct Position *how, const struct Heads *, int) {
    if (how->q_weight || how->inv_freq) die_machine("the CUDA backend has no rotation");
}

static void position_backward(floatX *, const struct PositionGradients *,
                              const struct PositionSaved *, const int *,
                              const struct Position *how, const struct Heads *, int, void *) {
    if (how->q_weight || how->inv_freq) die_machine("the CUDA backend has no rotation");
}

static void fill(struct Ops *ops) {
    ops->position_forward = position_forward;
    ops->position_backward = position_backward;
}

extern const struct KernelFile PER_TYPE(cuda_position) = {"position", fill, no_workspace};
