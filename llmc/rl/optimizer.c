#include "optimizer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"

/* ---- the loss scale of fp16 ------------------------------------------------------------------ */

enum { SCALE_PATIENCE = 500 };   /* updates without overflow before a larger scale is tried */
static const double LARGEST_SCALE = 0x1p24, FIRST_SCALE = 0x1p16;

double optimizer_first_loss_scale(const struct Ops *ops) {
    return strcmp(ops->dtype, "fp16") == 0 ? FIRST_SCALE : 1;
}

bool optimizer_shrink_scale(struct Optimizer *o) {
    struct TrainerProgress *progress = &o->progress;
    if (progress->loss_scale <= 2) return false;
    progress->loss_scale = progress->loss_scale > 8 ? progress->loss_scale / 4 : 2;
    progress->loss_scale_updates = 0;
    return true;
}

static void grow_scale(struct Optimizer *o) {
    struct TrainerProgress *progress = &o->progress;
    if (optimizer_first_loss_scale(o->ops) == 1) return;
    if (++progress->loss_scale_updates < SCALE_PATIENCE) return;
    progress->loss_scale_updates = 0;
    if (progress->loss_scale < LARGEST_SCALE) progress->loss_scale *= 2;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static bool has_ranks(const struct Optimizer *o) { return world_size(o->world) > 1; }
static bool is_shared(const struct Optimizer *o) { return o->share.ranks > 1; }

static size_t largest_bucket(const struct Model *model) {
    size_t most = 0;
    for (int b = 0; b < model->num_buckets; b++) {
        size_t n = model->buckets[b].end - model->buckets[b].begin;
        if (n > most) most = n;
    }
    return most;
}

void optimizer_reserve(struct Optimizer *o, const struct Model *model, struct Arena *arena,
                       struct Weights *weights, const struct OptimizerOptions *options,
                       const struct World *world, void **workspace, uint64_t seed) {
    size_t count = model->num_parameters, own;
    *o = (struct Optimizer){.model = model, .ops = model->ops, .world = world, .weights = weights,
                            .options = *options, .workspace = workspace, .seed = seed};
    assert(model->ranks == world_size(world) && 4 * model->num_buckets <= EVENTS);
    o->progress.loss_scale = optimizer_first_loss_scale(o->ops);
    o->ranges = model_adamw_ranges(model, options->weight_decay, &o->num_ranges);
    o->share = (struct Share){0, 1};
    if (has_ranks(o) && options->zero) o->share = (struct Share){world->rank, world->size};
    weights->share = o->share;
    own = share_of(&o->share, count);
    if (o->ops->element_size < sizeof(float))
        arena_reserve(arena, &weights->master, own * sizeof(float), "optimizer",
                      "master weights [%zu]", own);
    arena_reserve(arena, &o->m, own * sizeof(float), "optimizer", "m [%zu]", own);
    arena_reserve(arena, &o->v, own * sizeof(float), "optimizer", "v [%zu]", own);
    arena->section = ARENA_TRAINING;
    arena_reserve(arena, &o->grads, count * sizeof(float), "gradients", "gradients [%zu]", count);
    if (is_shared(o) && options->narrow_gradients)
        arena_reserve(arena, &o->narrow, 2 * largest_bucket(model), "gradients",
                      "in bf16 [%zu]", largest_bucket(model));
    arena->section = ARENA_ALWAYS;
    arena_reserve(arena, &o->sums, (size_t)model->num_buckets * sizeof *o->sums, "optimizer",
                  "sums of squares [%d]", model->num_buckets);
    if (!has_ranks(o)) return;
    o->arrives = check_alloc((size_t)model->num_buckets, sizeof *o->arrives, "the optimizer");
    for (int b = 0; b < model->num_buckets; b++) o->arrives[b] = -1;
    weights->arrives = o->arrives;
}

void optimizer_free(struct Optimizer *o) {
    free(o->ranges);
    free(o->arrives);
}

void optimizer_reset(struct Optimizer *o) {
    size_t bytes = share_of(&o->share, o->model->num_parameters) * sizeof(float);
    o->ops->fill_zero(o->m, bytes);
    o->ops->fill_zero(o->v, bytes);
    o->progress.step = 0;
}

struct OptimizerState optimizer_state(const struct Optimizer *o) {
    return (struct OptimizerState){o->m, o->v, o->weights->master, o->share,
                                   is_shared(o) ? o->grads : NULL};
}

/* ---- gradients, summed over the ranks -------------------------------------------------------- */

/* The events of a bucket: its gradients are final, and summed; its weights are new, and with all
   ranks. */
enum Event { GRADS_FINAL, GRADS_SUMMED, WEIGHTS_NEW, WEIGHTS_THERE, BUCKET_EVENTS };
static int event_of(int bucket, enum Event event) { return bucket * BUCKET_EVENTS + (int)event; }

void optimizer_begin(struct Optimizer *o) {
    o->ops->fill_zero(o->grads, o->model->num_parameters * sizeof(float));
}

static void sum_bucket(void *context, int b) {
    struct Optimizer *o = context;
    const struct Bucket *bucket = &o->model->buckets[b];
    struct Bucket slice = share_slice(&o->share, bucket);
    int after = event_of(b, GRADS_FINAL), done = event_of(b, GRADS_SUMMED);
    if (bucket->begin == bucket->end) return;
    o->ops->event_record(after);
    if (is_shared(o))
        o->ops->reduce_scatter(o->grads + slice.begin, o->grads + bucket->begin,
                               slice.end - slice.begin, o->narrow, after, done);
    else
        o->ops->all_reduce(o->grads + bucket->begin, bucket->end - bucket->begin, after, done);
}

struct BucketDone optimizer_bucket_done(struct Optimizer *o) {
    return (struct BucketDone){has_ranks(o) ? sum_bucket : NULL, o};
}

void optimizer_sum_all(struct Optimizer *o) {
    for (int b = o->model->num_buckets - 1; b >= 0 && has_ranks(o); b--) sum_bucket(o, b);
}

static double squared_norm(struct Optimizer *o, const float *x, size_t n) {
    double result;
    o->ops->sum_of_squares(o->sums, x, n, *o->workspace);
    o->ops->download(&result, o->sums, sizeof result);
    return result;
}

/* The own slices' part, of each bucket when its gradients are summed. */
static double squared_norm_of_slices(struct Optimizer *o) {
    int n = o->model->num_buckets;
    double *sums = check_alloc((size_t)n, sizeof *sums, "sums of squares"), total = 0;
    for (int b = 0; b < n; b++) {
        struct Bucket slice = share_slice(&o->share, &o->model->buckets[b]);
        if (slice.begin < slice.end) o->ops->event_wait(event_of(b, GRADS_SUMMED));
        o->ops->sum_of_squares(o->sums + b, o->grads + slice.begin, slice.end - slice.begin,
                               *o->workspace);
    }
    o->ops->download(sums, o->sums, (size_t)n * sizeof *sums);
    for (int b = 0; b < n; b++) total += sums[b];
    free(sums);
    return total;
}

double optimizer_norm(struct Optimizer *o) {
    double sum;
    if (has_ranks(o)) sum = squared_norm_of_slices(o);
    else sum = squared_norm(o, o->grads, o->model->num_parameters);
    if (is_shared(o)) world_sum(o->world, &sum, 1);
    return sqrt(sum) / o->progress.loss_scale;
}

/* sums [num_tensors] of squares of what this rank has of each tensor. */
static void sum_tensors(struct Optimizer *o, double *sums) {
    for (int i = 0; i < o->model->num_tensors; i++) {
        const struct Tensor *tensor = &o->model->tensors[i];
        size_t end = tensor->offset + tensor->count;
        for (int b = 0; b < o->model->num_buckets; b++) {
            struct Bucket slice = share_slice(&o->share, &o->model->buckets[b]);
            size_t first = slice.begin > tensor->offset ? slice.begin : tensor->offset;
            size_t last = slice.end < end ? slice.end : end;
            if (first < last) sums[i] += squared_norm(o, o->grads + first, last - first);
        }
    }
}

const char *optimizer_bad_tensor(struct Optimizer *o) {
    const char *name = "the sum over all tensors";
    int n = o->model->num_tensors;
    double *sums = check_alloc((size_t)n, sizeof *sums, "sums of squares");
    sum_tensors(o, sums);
    if (is_shared(o)) world_sum(o->world, sums, n);
    for (int i = n - 1; i >= 0; i--)
        if (!isfinite(sums[i])) name = o->model->tensors[i].name;
    free(sums);
    return name;
}

/* ---- the step -------------------------------------------------------------------------------- */

/* AdamW on elements [slice.begin, slice.end), which begin at element `at` of m, v and master. */
static void update_slice(struct Optimizer *o, struct Bucket slice, size_t at,
                         const struct AdamwStep *step) {
    float *master = o->weights->master;
    o->ops->adamw(ops_at(o->ops, o->weights->data, slice.begin), master ? master + at : NULL,
                  o->m + at, o->v + at, o->grads + slice.begin, o->ranges, o->num_ranges,
                  slice.begin, slice.end, step);
}

/* Every rank updates its slice of each bucket and gathers the others'. In the order in which the
   next forward pass reads them. */
static void update_shared(struct Optimizer *o, const struct AdamwStep *step) {
    for (int b = 0; b < o->model->num_buckets; b++) {
        const struct Bucket *bucket = &o->model->buckets[b];
        struct Bucket slice = share_slice(&o->share, bucket);
        int after = event_of(b, WEIGHTS_NEW), done = event_of(b, WEIGHTS_THERE);
        if (bucket->begin == bucket->end) continue;
        update_slice(o, slice, share_of(&o->share, bucket->begin), step);
        o->ops->event_record(after);
        o->ops->all_gather(ops_at(o->ops, o->weights->data, bucket->begin),
                           ops_at(o->ops, o->weights->data, slice.begin),
                           (slice.end - slice.begin) * o->ops->element_size, after, done);
        o->arrives[b] = done;
    }
}

void optimizer_step(struct Optimizer *o, double norm, float learning_rate) {
    const struct OptimizerOptions *a = &o->options;
    double scale = 1 / o->progress.loss_scale;
    if (a->grad_clip > 0 && norm > a->grad_clip) scale *= a->grad_clip / norm;
    struct AdamwStep step = {.learning_rate = learning_rate, .beta1 = a->beta1, .beta2 = a->beta2,
                             .epsilon = a->epsilon, .grad_scale = (float)scale,
                             .step = ++o->progress.step, .seed = o->seed};
    if (is_shared(o)) update_shared(o, &step);
    else update_slice(o, (struct Bucket){0, o->model->num_parameters}, 0, &step);
    grow_scale(o);
}

void optimizer_await(struct Optimizer *o) {
    for (int b = 0; o->arrives && b < o->model->num_buckets; b++) {
        if (o->arrives[b] >= 0) o->ops->event_wait(o->arrives[b]);
        o->arrives[b] = -1;
    }
}
