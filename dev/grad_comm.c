/* What --grad-comm bf16 costs in accuracy: gradients of rollouts of a real model, cut into parts of
   about as many tokens as several ranks would have, are summed by the communication slot itself, in
   float32 and in bf16, by as many processes; the sums are compared with the sum in float64.

       make build/grad_comm
       build/grad_comm --backend cpu --model RUN --objective dr_grpo --warm-start 0 --run FOLDER

   takes all options of ./train, of an objective whose loss is a sum over sequences. Prints, over
   four minibatches, ||sum - exact|| / ||exact|| of both, the worst bucket's, the parts' norm (root
   of the sum of squares) over the sum's, which says how much of a part is noise, and how far the
   parts' exact sum is from the gradient of the uncut minibatch. Learns nothing: the learning rate
   is 0. */
#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../llmc/base/check.h"
#include "../llmc/base/json.h"
#include "../llmc/kernels/backends.h"
#include "../llmc/run/launch.h"
#include "../llmc/run/session.h"
#include "../llmc/world.h"

enum { MOST = 8, WORLDS = 3, MINIBATCHES = 4, BUCKETS = 100 };
static const int world_ranks[WORLDS] = {2, 4, 8};
static const size_t MOST_PARAMETERS = (size_t)1 << 23;

/* What processes share: a world's own place. */
struct Hall {
    _Atomic int stage;       /* 1: there is an id; 2 + k: sum minibatch k; -1: end */
    _Atomic int done;        /* ranks that have, over all minibatches */
    char id[128];
    int buckets;
    struct Bucket bucket[BUCKETS];
    float *part[MOST];       /* [parameters] the gradient of each rank's part */
    float *sum[2];           /* [parameters] in float32, in bf16 */
};

static void *shared(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) die_machine("no shared memory");
    return memory;
}

static void await(_Atomic int *what, int least) {
    const struct timespec pause = {0, 1000000};
    while (atomic_load(what) < least && atomic_load(what) >= 0) nanosleep(&pause, NULL);
}

/* ---- a rank: sums the parts ------------------------------------------------------------------ */

static void sum_parts(const struct Ops *ops, struct Hall *p, int rank, int ranks, void *scratch) {
    for (int narrow = 0; narrow < 2; narrow++)
        for (int b = 0; b < p->buckets; b++) {
            size_t begin = p->bucket[b].begin, each = (p->bucket[b].end - begin) / (size_t)ranks;
            ops->reduce_scatter(p->sum[narrow] + begin + (size_t)rank * each,
                                p->part[rank] + begin, each, narrow ? scratch : NULL, -1, -1);
        }
}

static void be_rank(struct Hall *p, int rank, int ranks) {
    const struct Ops *ops = ops_open("cpu", "fp32", 0);
    void *scratch = malloc(2 * MOST_PARAMETERS);
    if (rank == 0) {
        ops->comm_id(p->id, NULL);
        atomic_store(&p->stage, 1);
    }
    await(&p->stage, 1);
    ops->comm_open(rank, ranks, p->id, 60);
    for (int k = 0; k < MINIBATCHES; k++) {
        await(&p->stage, 2 + k);
        if (atomic_load(&p->stage) < 0) break;
        sum_parts(ops, p, rank, ranks, scratch);
        atomic_fetch_add(&p->done, 1);
    }
    _exit(0);
}

static struct Hall *start_world(int ranks) {
    struct Hall *p = shared(sizeof *p);
    for (int r = 0; r < ranks; r++) p->part[r] = shared(MOST_PARAMETERS * sizeof(float));
    for (int i = 0; i < 2; i++) p->sum[i] = shared(MOST_PARAMETERS * sizeof(float));
    for (int r = 0; r < ranks; r++) {
        pid_t child = fork();
        if (child < 0) die_machine("no further process");
        if (child) continue;
        alarm(3000);
        be_rank(p, r, ranks);
    }
    return p;
}

/* ---- gradients ------------------------------------------------------------------------------- */

/* out [parameters] = the gradient of sequences [first, last) of `order`. */
static void gradient_of(struct Session *s, float *out, const struct TrainingSet *set,
                        const int *order, int first, int last) {
    struct ObjectiveBatch batch = {.control = s->entropy.control, .noise = INFINITY,
                                   .logp_dtype = "fp32"};
    struct ObjectiveStats stats = {0};
    memset(out, 0, s->model->num_parameters * sizeof *out);
    if (first == last) return;
    struct UpdateResult update =
        trainer_update(s->trainer, &s->objective, set, order + first, last - first, &batch,
                       s->max_tokens, (float)s->options.temperature, 0, &stats);
    if (update.made)
        s->ops->download(out, trainer_gradients(s->trainer), s->model->num_parameters * 4);
}

/* Parts of sequences picked [count], whose gradients are scaled to be of the whole: the objective
   divides by a constant times the sequences of an update. */
static void cut(struct Session *s, struct Hall *p, int ranks, const struct TrainingSet *set,
                const int *order, int count) {
    int *tokens = check_alloc((size_t)count, sizeof *tokens, "a minibatch");
    for (int i = 0; i < count; i++)
        tokens[i] = set->start[order[i] + 1] - set->start[order[i]];
    struct World world = {.size = ranks};
    for (int r = 0; r < ranks; r++) {
        struct Piece piece = world_piece(&world, r, count, tokens);
        float share = (float)(piece.last - piece.first) / (float)count;
        gradient_of(s, p->part[r], set, order, piece.first, piece.last);
        for (size_t i = 0; i < s->model->num_parameters; i++) p->part[r][i] *= share;
    }
    free(tokens);
}

/* ---- comparison ------------------------------------------------------------------------------ */

struct Errors {
    double norm, difference, worst;   /* sums of squares; of the worst bucket relative */
};

static void compare(struct Errors *e, const struct Hall *p, int ranks, const float *sum) {
    for (int b = 0; b < p->buckets; b++) {
        double norm = 0, difference = 0;
        for (size_t i = p->bucket[b].begin; i < p->bucket[b].end; i++) {
            double exact = 0;
            for (int r = 0; r < ranks; r++) exact += p->part[r][i];
            norm += exact * exact, difference += (sum[i] - exact) * (sum[i] - exact);
        }
        e->norm += norm, e->difference += difference;
        e->worst = fmax(e->worst, sqrt(difference / norm));
    }
}

/* How far the parts' sum is from the gradient of the whole, which is the parts' rounding. */
static double check_whole(const struct Hall *p, int ranks, const float *whole, size_t n) {
    double norm = 0, difference = 0;
    for (size_t i = 0; i < n; i++) {
        double exact = 0;
        for (int r = 0; r < ranks; r++) exact += p->part[r][i];
        norm += exact * exact, difference += (whole[i] - exact) * (whole[i] - exact);
    }
    return sqrt(difference / norm);
}

static void collect(struct Session *s) {
    struct CollectOptions options = session_collect_options(s);
    sampler_load_weights(s->sampler, trainer_weights(s->trainer));
    if (!experience_collect(&s->experience, s->sampler, trainer_weights(s->trainer), &options,
                            &s->progress.group_ordinal, trainer_workspace(s->trainer)))
        die_machine("no completions");
    struct RewardBatch rewards = experience_rewards(&s->experience, s->max_tokens);
    objective_advantages(&s->objective, &rewards, s->experience.advantage, s->experience.active);
    memset(s->experience.active, 1, (size_t)s->experience.count);
}

static void measure(struct Session *s, struct Hall *p, int ranks) {
    struct TrainingSet set = experience_training_set(&s->experience);
    struct Errors errors[2] = {0};
    double whole_error = 0, apart = 0;
    size_t n = s->model->num_parameters;
    float *whole = check_alloc(n, sizeof *whole, "a gradient");
    int *order = check_alloc((size_t)set.count, sizeof *order, "a minibatch");
    for (int i = 0; i < set.count; i++) order[i] = i;
    p->buckets = s->model->num_buckets;
    memcpy(p->bucket, s->model->buckets, (size_t)p->buckets * sizeof *p->bucket);
    for (int k = 0; k < MINIBATCHES; k++) {
        int first = k * set.count / MINIBATCHES, last = (k + 1) * set.count / MINIBATCHES;
        cut(s, p, ranks, &set, order + first, last - first);
        gradient_of(s, whole, &set, order, first, last);
        whole_error = fmax(whole_error, check_whole(p, ranks, whole, n));
        atomic_store(&p->stage, 2 + k);
        await(&p->done, (k + 1) * ranks);
        for (int narrow = 0; narrow < 2; narrow++)
            compare(&errors[narrow], p, ranks, p->sum[narrow]);
        for (int r = 0; r < ranks; r++)
            for (size_t i = 0; i < n; i++) apart += (double)p->part[r][i] * p->part[r][i];
    }
    printf("| %d | %.1e | %.2e | %.2e | %.2f | %.0e |\n", ranks,
           sqrt(errors[0].difference / errors[0].norm), sqrt(errors[1].difference / errors[1].norm),
           errors[1].worst, sqrt(apart / errors[0].norm), whole_error);
    free(order), free(whole);
}

int main(int argc, char **argv) {
    struct Session session;
    struct Hall *place[WORLDS];
    launch_prepare(argv);
    json_memory(malloc);
    for (int w = 0; w < WORLDS; w++) place[w] = start_world(world_ranks[w]);   /* before OpenMP */
    session_open(&session, &(struct Ranks){.size = 1}, argc, argv);
    if (session.model->num_parameters > MOST_PARAMETERS || session.model->num_buckets > BUCKETS)
        die_input("a model of at most %zu parameters", MOST_PARAMETERS);
    collect(&session);
    printf("| ranks | float32 | bf16 | bf16, worst bucket | parts / sum | parts, whole |\n"
           "|---|---|---|---|---|---|\n");
    for (int w = 0; w < WORLDS; w++) measure(&session, place[w], world_ranks[w]);
    while (wait(NULL) > 0) continue;
    session_close(&session);
    return 0;
}
