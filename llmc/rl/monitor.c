#include "monitor.h"

#include <math.h>
#include <stdlib.h>
#include "../base/check.h"
#include "entropy.h"

double monitor_repo_d(struct Trainer *trainer, const struct Experience *e, float temperature,
                      double *tokens) {
    int n = e->loss_start[e->count];
    size_t room = (size_t)n + 1;
    struct TrainingSet set = experience_training_set(e);
    int *pick = check_alloc((size_t)e->count + 1, sizeof *pick, "a monitor");
    float *all = check_alloc(5 * room, sizeof *all, "a monitor"), *advantage = all + 4 * room;
    struct HeadStats stats = {all, all + room, all + 2 * room, all + 3 * room};
    for (int i = 0; i < e->count; i++) {
        pick[i] = i;
        for (int t = e->loss_start[i]; t < e->loss_start[i + 1]; t++)
            advantage[t] = e->active[i] ? e->advantage[i] : 0;
    }
    trainer_score(trainer, trainer_weights(trainer), &set, pick, e->count, temperature, &stats);
    double sum = entropy_repo_d_sum(n, advantage, stats.logp, stats.entropy, stats.q, stats.qlog);
    *tokens = n;
    free(pick), free(all);
    return sum;
}

double monitor_entropy_push(struct Trainer *trainer, const struct Experience *e,
                            float temperature, int64_t max_tokens) {
    int total = e->loss_start[e->count], picked = 0, tokens = 0;
    if (e->count == 0) return NAN;
    int64_t budget = max_tokens >= 0 ? max_tokens : total / 50;
    int *pick = check_alloc((size_t)e->count, sizeof *pick, "a monitor");
    float *old = check_alloc((size_t)total + 1, sizeof *old, "a monitor");
    float *now = check_alloc(2 * (size_t)total + 2, sizeof *now, "a monitor");
    int stride = (int)(total / (budget > 0 ? budget : 1));
    for (int i = 0; i < e->count; i += stride > 1 ? stride : 1) {
        if (picked > 0 && tokens + e->length[i] > budget) break;
        for (int t = e->loss_start[i]; t < e->loss_start[i + 1]; t++) old[tokens++] = e->entropy[t];
        pick[picked++] = i;
    }
    struct TrainingSet set = experience_training_set(e);
    struct HeadStats stats = {.logp = now, .entropy = now + total + 1};
    trainer_score(trainer, trainer_weights(trainer), &set, pick, picked, temperature, &stats);
    double push = mean_of(stats.entropy, tokens) - mean_of(old, tokens);
    free(pick), free(old), free(now);
    return push;
}
