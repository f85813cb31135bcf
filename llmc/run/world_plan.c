#include "world_plan.h"

#include <stdio.h>
#include "../base/check.h"
#include "../base/console.h"

/* What a rank sends in a reduce-scatter or an all-gather of so many bytes in all. */
static double others(const struct WorldPlan *p, double whole) {
    return whole * (p->ranks - 1) / p->ranks;
}

struct WorldPlan world_plan(const struct Model *model, bool zero, bool narrow) {
    struct WorldPlan p = {.ranks = model->ranks, .buckets = model->num_buckets, .zero = zero,
                          .narrow = narrow, .parameters = model->num_parameters};
    double n = (double)model->num_parameters, element = (double)model->ops->element_size;
    bool masters = model->ops->element_size < sizeof(float);
    p.weights = n * element, p.gradients = n * sizeof(float);
    p.optimizer_alone = n * sizeof(float) * (masters ? 3 : 2);
    p.optimizer = zero ? p.optimizer_alone / p.ranks : p.optimizer_alone;
    if (p.ranks == 1) return p;
    /* Without sharing, a sum that everybody gets: scattered and gathered. */
    double scattered = others(&p, n * (narrow ? 2 : 4));
    p.send_gradients = zero ? scattered : 2 * others(&p, n * 4);
    p.send_weights = zero ? others(&p, n * element) : 0;
    p.send_checkpoint = zero ? others(&p, p.optimizer_alone) : 0;
    p.collectives = p.buckets * (zero ? 2 : 1);
    return p;
}

static double mib(double bytes) { return bytes / (1 << 20); }

static const char *sent(char out[24], double bytes) {
    if (bytes < 1e9) snprintf(out, 24, "%.4g MB", 1e-6 * bytes);
    else snprintf(out, 24, "%.4g GB", 1e-9 * bytes);
    return out;
}

void describe_world(const struct WorldPlan *p, int64_t groups, int64_t group,
                    int64_t minibatches) {
    say("ranks     %d, each with all weights (%.2f MiB) and gradients (%.2f MiB)", p->ranks,
        mib(p->weights), mib(p->gradients));
    if (p->zero)
        say("          optimizer 1/%d of each of %d buckets: %.2f MiB a rank of %.2f in all "
            "(--zero 1)", p->ranks, p->buckets, mib(p->optimizer), mib(p->optimizer_alone));
    else
        say("          optimizer whole on every rank: %.2f MiB (--zero 0)", mib(p->optimizer));
    if (groups > 0) {
        int64_t least = groups / p->ranks, most = (groups + p->ranks - 1) / p->ranks;
        say("          a round's %lld groups of %lld: %lld to %lld on a rank; a minibatch of about "
            "%lld completions in %d parts of about as many tokens", (long long)groups,
            (long long)group, (long long)least, (long long)most,
            (long long)(groups * group / minibatches), p->ranks);
        if (least == 0)
            warn("%lld prompts for %d ranks: some sample nothing; set --prompts to a multiple of "
                 "the ranks", (long long)groups, p->ranks);
    }
    char all[24], gradients[24], weights[24], checkpoint[24];
    say("          an update sends %s from each: gradients %s (%s%s), weights %s%s, in %d "
        "collectives", sent(all, p->send_gradients + p->send_weights),
        sent(gradients, p->send_gradients), p->narrow ? "bf16, " : "",
        p->zero ? "reduce-scatter" : "all-reduce", sent(weights, p->send_weights),
        p->zero ? " (all-gather)" : "", p->collectives);
    if (p->zero)
        say("          a checkpoint gathers the optimizer: %s from each",
            sent(checkpoint, p->send_checkpoint));
}
