#include "world.h"

#include <stdlib.h>
#include <string.h>
#include "base/check.h"

/* Bytes that a rank shows at a time; all ranks' together at most this. */
static const size_t WINDOW = (size_t)1 << 20, WINDOWS = (size_t)1 << 26;

static bool is_alone(const struct World *w) { return world_size(w) == 1; }

void world_open(struct World *w, const struct Ops *ops, int rank, int size, const void *id,
                double timeout) {
    *w = (struct World){.rank = rank, .size = size, .timeout = timeout};
    if (size == 1) return;
    ops->comm_open(rank, size, id, timeout);
    w->ops = ops;
    w->bytes = WINDOWS / (size_t)size < WINDOW ? WINDOWS / (size_t)size : WINDOW;
    w->window = ops->alloc(((size_t)size + 1) * w->bytes);
}

void world_close(struct World *w) {
    if (is_alone(w)) return;
    w->ops->free(w->window);
    *w = (struct World){0};
}

void world_step(struct World *w, int64_t step) {
    if (is_alone(w)) return;
    w->step = step;
    world_patience(w, 0);
}

void world_patience(const struct World *w, double extra) {
    if (!is_alone(w)) w->ops->comm_expect(w->step, w->timeout + extra);
}

/* out [size][n] = every rank's bytes [n], in windows. */
static void gather_equal(const struct World *w, char *out, const void *bytes, size_t n) {
    size_t size = (size_t)w->size;
    char *shown = check_alloc(size, w->bytes, "what ranks exchange");
    char *mine = w->window + size * w->bytes;
    for (size_t at = 0; at < n; at += w->bytes) {
        size_t part = n - at < w->bytes ? n - at : w->bytes;
        w->ops->upload(mine, (const char *)bytes + at, part);
        w->ops->all_gather(w->window, mine, part, -1, -1);
        w->ops->download(shown, w->window, size * part);
        for (size_t r = 0; r < size; r++) memcpy(out + r * n + at, shown + r * part, part);
    }
    free(shown);
}

void world_sum(const struct World *w, double *x, int n) {
    if (is_alone(w) || n == 0) return;
    size_t count = (size_t)n;
    double *all = check_alloc((size_t)w->size * count, sizeof *all, "sums over ranks");
    gather_equal(w, (char *)all, x, count * sizeof *x);
    for (size_t i = 0; i < count; i++) {
        double sum = 0;
        for (size_t r = 0; r < (size_t)w->size; r++) sum += all[r * count + i];
        x[i] = sum;
    }
    free(all);
}

bool world_any(const struct World *w, bool mine) {
    double any = mine;
    world_sum(w, &any, 1);
    return any > 0;
}

double world_least(const struct World *w, double x) {
    if (is_alone(w)) return x;
    double *all = check_alloc((size_t)w->size, sizeof *all, "sums over ranks");
    gather_equal(w, (char *)all, &x, sizeof x);
    for (int r = 0; r < w->size; r++)
        if (all[r] < x) x = all[r];
    free(all);
    return x;
}

void world_broadcast(const struct World *w, void *bytes, size_t n, int root) {
    if (is_alone(w)) return;
    for (size_t at = 0; at < n; at += w->bytes) {
        size_t part = n - at < w->bytes ? n - at : w->bytes;
        if (w->rank == root) w->ops->upload(w->window, (char *)bytes + at, part);
        w->ops->broadcast(w->window, part, root, -1, -1);
        w->ops->download((char *)bytes + at, w->window, part);
    }
}

void world_gather(const struct World *w, struct Gathered *out, const void *bytes, size_t n) {
    size_t size = (size_t)world_size(w), most = n;
    uint64_t *counts = check_alloc(size, sizeof *counts, "what ranks exchange"), mine = n;
    if (is_alone(w)) counts[0] = mine;
    else gather_equal(w, (char *)counts, &mine, sizeof mine);
    out->start = check_realloc(out->start, size + 1, sizeof *out->start, "what ranks exchange");
    out->start[0] = 0;
    for (size_t r = 0; r < size; r++) {
        out->start[r + 1] = out->start[r] + counts[r];
        if (counts[r] > most) most = counts[r];
    }
    if (out->capacity < size * most || !out->bytes) {
        out->capacity = size * most;
        out->bytes = check_realloc(out->bytes, out->capacity + 1, 1, "what ranks exchange");
    }
    if (is_alone(w)) {
        memcpy(out->bytes, bytes, n);
    } else {
        char *padded = check_alloc(most, 1, "what ranks exchange");
        memcpy(padded, bytes, n);
        gather_equal(w, out->bytes, padded, most);
        free(padded);
        for (size_t r = 1; r < size; r++)   /* rank 0's are in place */
            memmove(out->bytes + out->start[r], out->bytes + r * most, counts[r]);
    }
    free(counts);
}

void gathered_free(struct Gathered *gathered) {
    free(gathered->bytes), free(gathered->start);
    *gathered = (struct Gathered){0};
}

/* The first item of rank r's piece: the one in whose middle, or before it, r / size of all the work
   is done. */
static int piece_begin(int rank, int size, int n, const int *weight, int64_t all) {
    int64_t before = 0;
    int i = 0;
    if (rank >= size) return n;
    for (; i < n; i++) {
        int64_t cost = weight ? weight[i] : 1;
        if ((2 * before + cost) * size > 2 * all * rank) break;
        before += cost;
    }
    return i;
}

struct Piece world_piece(const struct World *w, int rank, int n, const int *weight) {
    int64_t all = 0;
    int size = world_size(w);
    for (int i = 0; i < n; i++) all += weight ? weight[i] : 1;
    if (rank == 0 && size == 1) return (struct Piece){0, n};
    return (struct Piece){rank == 0 ? 0 : piece_begin(rank, size, n, weight, all),
                          piece_begin(rank + 1, size, n, weight, all)};
}
