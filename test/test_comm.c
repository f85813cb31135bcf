/* Communication over ranks, each a process of its own that opens the backend, against the host's
   arithmetic: sums, scatter, gather, broadcast, of ragged sizes. The CPU and the simulator have as
   many ranks as one likes, a machine with GPUs one per GPU.

   They are forked before any backend is opened: neither CUDA nor OpenMP survives a fork. */
#include "test_ops.h"
#include "../llmc/kernels/backends.h"
#include <glob.h>
#include <signal.h>
#include <unistd.h>
#include "child.h"

enum { MAX_RANKS = 8, ID_BYTES = 128 };
static const char *backend = "cpu", *dtype = "auto";

/* ---- a world ------------------------------------------------------------------------------- */

static struct {
    int rank, ranks;
    int id_pipe[MAX_RANKS][2]; /* rank 0 hands the id to rank r through pipe r */
} world;

/* In a rank, where cmocka's assertions would not end the process. */
#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: rank %d of %d: %s\n", __FILE__, __LINE__, world.rank,     \
                    world.ranks, #condition);                                                 \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

static void meet(void) {
    char id[ID_BYTES] = {0};
    if (world.rank == 0) {
        if (world.ranks > 1) ops->comm_id(id, NULL); /* one rank needs no NCCL */
        for (int r = 1; r < world.ranks; r++)
            CHECK(write(world.id_pipe[r][1], id, sizeof id) == sizeof id);
    } else {
        CHECK(read(world.id_pipe[world.rank][0], id, sizeof id) == sizeof id);
    }
    ops->comm_open(world.rank, world.ranks, id, 60);
}

static void run_rank(int rank, void (*body)(void)) {
    char device[16];
    world.rank = rank;
    snprintf(device, sizeof device, "%d", rank);
    if (strcmp(backend, "cuda") == 0 && world.ranks > 1) setenv("CUDA_VISIBLE_DEVICES", device, 1);
    ops = ops_open(backend, dtype, 0);
    meet();
    body();
    release_all();
    exit(0);
}

/* Runs body in each of `ranks` processes; all must end well. When one does not, the others, which
   would wait for it, are ended. */
static void run_world(int ranks, void (*body)(void)) {
    pid_t child[MAX_RANKS];
    bool failed = false;
    world.ranks = ranks;
    for (int r = 0; r < ranks; r++) assert_int_equal(pipe(world.id_pipe[r]), 0);
    fflush(NULL);
    for (int r = 0; r < ranks; r++) {
        child[r] = fork();
        assert_true(child[r] >= 0);
        if (child[r] == 0) run_rank(r, body);
    }
    for (int ended = 0; ended < ranks; ended++) {
        int status;
        pid_t pid = wait(&status);
        for (int r = 0; r < ranks; r++)
            if (child[r] == pid) child[r] = 0;
        if (status == 0) continue;
        failed = true;
        for (int r = 0; r < ranks; r++)
            if (child[r]) kill(child[r], SIGTERM);
    }
    for (int r = 0; r < ranks; r++) close(world.id_pipe[r][0]), close(world.id_pipe[r][1]);
    assert_false(failed);
}

/* The largest world there can be here. */
static int most_ranks(void) {
    if (strcmp(backend, "cuda") != 0) return 3;
    glob_t found;
    int devices = glob("/dev/nvidia[0-9]*", 0, NULL, &found) == 0 ? (int)found.gl_pathc : 1;
    globfree(&found);
    return devices < 1 ? 1 : devices < MAX_RANKS ? devices : MAX_RANKS;
}

/* ---- what ranks do ------------------------------------------------------------------------- */

/* What rank r brings, which every rank can form. */
static float *data_of(int r, size_t n) { return new_normal(n, 1, 100 + (uint64_t)r); }

/* got [n] = the sum over ranks of elements [begin, begin + n) of what each brings, `all` elements,
   to `error` of the sum of their sizes. */
static void check_sum_to(const float *got, size_t begin, size_t n, size_t all, double error) {
    double *sum = new_doubles(n), *size = new_doubles(n);
    for (int r = 0; r < world.ranks; r++) {
        float *x = data_of(r, all);
        for (size_t i = 0; i < n; i++) {
            sum[i] += x[begin + i];
            size[i] += fabs(x[begin + i]);
        }
        free(x);
    }
    for (size_t i = 0; i < n; i++) CHECK(fabs(got[i] - sum[i]) <= error * size[i]);
    free(sum), free(size);
}

/* A sum of R terms, in any order, is rounded R - 1 times, each time by at most 2^-24 of the sum of
   their sizes. */
static void check_sum(const float *got, size_t begin, size_t n, size_t all) {
    check_sum_to(got, begin, n, all, (world.ranks - 1) * 0x1p-24);
}

/* x [n] of every rank is the same to the last bit: else replicas would drift apart. */
static void check_same_everywhere(const float *x, size_t n) {
    float *first = put_floats(x, n);
    ops->broadcast(first, n * sizeof *x, 0, -1, -1);
    float *back = get_floats(first, n);
    CHECK(memcmp(back, x, n * sizeof *x) == 0);
    free(back);
}

/* One, a few, many; and more than the megabyte that the simulator moves at a time. After the last
   there is one more, which must stay. */
static const size_t sizes[] = {1, 5, 1000, 300007};

static void all_reduce(void) {
    for (int s = 0; s < 4; s++) {
        size_t n = sizes[s];
        float *mine = data_of(world.rank, n + 1), *x = put_floats(mine, n + 1);
        ops->all_reduce(x, n, -1, -1);
        float *got = get_floats(x, n + 1);
        check_sum(got, 0, n, n + 1);
        check_same_everywhere(got, n);
        CHECK(got[n] == mine[n]);
        free(mine), free(got);
    }
}

static void reduce_scatter(void) {
    for (int s = 0; s < 4; s++) {
        size_t each = sizes[s], all = each * (size_t)world.ranks;
        float *mine = data_of(world.rank, all), *in = put_floats(mine, all);
        float *out = new_floats(each + 1);
        ops->reduce_scatter(out, in, each, NULL, -1, -1);
        float *got = get_floats(out, each + 1), *kept = get_floats(in, all);
        check_sum(got, each * (size_t)world.rank, each, all);
        CHECK(isnan(got[each]));
        CHECK(memcmp(kept, mine, all * sizeof *mine) == 0);
        free(mine), free(got), free(kept);
    }
}

/* Bytes, not floats, and no multiple of anything; from a buffer of its own, and from its place in
   the result. */
static void all_gather(void) {
    for (int s = 0; s < 4; s++) {
        size_t each = sizes[s] * 4 - 1, all = each * (size_t)world.ranks;
        size_t place = each * (size_t)world.rank;
        char *mine = (char *)data_of(world.rank, sizes[s]), *got = malloc(all + 1);
        char *in = put_bytes(mine, each), *out = new_poison(all + 1), *same = new_poison(all + 1);
        ops->copy(same + place, in, each);
        ops->all_gather(out, in, each, -1, -1);
        ops->all_gather(same, same + place, each, -1, -1);
        for (int in_place = 0; in_place < 2; in_place++) {
            ops->download(got, in_place ? same : out, all + 1);
            for (int r = 0; r < world.ranks; r++) {
                float *share = data_of(r, sizes[s]);
                CHECK(memcmp(got + each * (size_t)r, share, each) == 0);
                free(share);
            }
            CHECK(got[all] == (char)255);
        }
        free(mine), free(got);
    }
}

static void broadcast(void) {
    for (int root = 0; root < world.ranks; root++)
        for (int s = 0; s < 4; s++) {
            size_t bytes = sizes[s] * 4 - 1;
            float *mine = data_of(world.rank, sizes[s]), *sent = data_of(root, sizes[s]);
            char *x = put_bytes(mine, bytes + 1), *got = malloc(bytes + 1);
            ops->broadcast(x, bytes, root, -1, -1);
            ops->download(got, x, bytes + 1);
            CHECK(memcmp(got, sent, bytes) == 0);
            CHECK(got[bytes] == ((char *)mine)[bytes]);
            free(mine), free(sent), free(got);
        }
}

/* Nothing is waited for in between: the operations are in order with the stream's other work. */
static void in_order(void) {
    enum { n = 70001 };
    float *mine = data_of(world.rank, n), *x = put_floats(mine, n), *y = new_floats(n);
    ops->all_reduce(x, n, -1, -1);
    ops->copy(y, x, n * sizeof *x);
    ops->fill_zero(x, n * sizeof *x);
    ops->all_reduce(x, n, -1, -1);
    ops->upload(x, mine, n * sizeof *x);
    float *got = get_floats(y, n), *last = get_floats(x, n);
    check_sum(got, 0, n, n);
    CHECK(memcmp(last, mine, n * sizeof *mine) == 0);
    free(mine), free(got), free(last);
}

/* Each collective has to wait for what the compute stream did before its event, and for no more;
   and what the compute stream does after the wait has to see it. A missing event shows where the
   streams run in other orders (CUDASIM="streams=..."): what is read is NaN, or not summed. */
static void with_events(void) {
    enum { n = 3001, ROUNDS = 6 };
    size_t all = (size_t)n * (size_t)world.ranks, place = (size_t)n * (size_t)world.rank;
    float *mine = data_of(world.rank, all), *in = put_floats(mine, all), *nothing = new_floats(all);
    float *x[ROUNDS], *part[ROUNDS], *whole[ROUNDS], *kept[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) {
        x[i] = new_floats(all), part[i] = new_floats(n);
        whole[i] = new_floats(all), kept[i] = new_floats(all);
    }
    ops->sync();
    for (int i = 0; i < ROUNDS; i++) {
        ops->copy(x[i], in, all * sizeof *in);
        ops->event_record(3 * i);
        ops->reduce_scatter(part[i], x[i], n, NULL, 3 * i, 3 * i + 1);
    }
    for (int i = ROUNDS - 1; i >= 0; i--) {   /* the last first: no other wait stands in for its */
        ops->event_wait(3 * i + 1);
        ops->copy(whole[i] + place, part[i], n * sizeof *in);
        ops->copy(x[i], nothing, all * sizeof *in);
        ops->event_record(3 * i + 1);
    }
    for (int i = 0; i < ROUNDS; i++)
        ops->all_gather(whole[i], whole[i] + place, n * sizeof *in, 3 * i + 1, 3 * i + 2);
    for (int i = ROUNDS - 1; i >= 0; i--) {
        ops->event_wait(3 * i + 2);
        ops->copy(kept[i], whole[i], all * sizeof *in);
        ops->copy(whole[i], nothing, all * sizeof *in);
    }
    for (int i = 0; i < ROUNDS; i++) {
        float *got = get_floats(kept[i], all);
        check_sum(got, 0, all, all);
        free(got);
    }
    free(mine);
}

/* Sums of elements rounded to bf16. Each of R elements and each of R - 1 partial sums is rounded,
   by at most 2^-8 of its size (8 significant bits), which is at most that of all elements together,
   but for the roundings before. */
static void narrow(void) {
    for (int s = 0; s < 4; s++) {
        size_t each = sizes[s], all = each * (size_t)world.ranks;
        float *mine = data_of(world.rank, all), *in = put_floats(mine, all);
        float *out = new_floats(each + 1);
        char *scratch = new_poison(2 * all + 1);
        ops->reduce_scatter(out, in, each, scratch, -1, -1);
        float *got = get_floats(out, each + 1), *kept = get_floats(in, all);
        CHECK(isnan(got[each]));
        CHECK(memcmp(kept, mine, all * sizeof *mine) == 0);
        check_sum_to(got, each * (size_t)world.rank, each, all, world.ranks * 0x1p-8 * 1.02);
        for (size_t i = 0; i < each && world.ranks > 1; i++) {
            uint32_t bits;
            memcpy(&bits, &got[i], sizeof bits);
            CHECK((bits & 0xffff) == 0);   /* it was bf16 */
        }
        free(mine), free(got), free(kept);
    }
}

/* What was counted since the last call. */
static struct CommCounts counted(void) {
    static struct CommCounts before;
    struct CommCounts now, since;
    ops->comm_counts(&now);
    since = (struct CommCounts){now.calls - before.calls, now.bytes - before.bytes,
                                now.seconds - before.seconds, now.exposed - before.exposed};
    before = now;
    CHECK(since.seconds >= 0 && isfinite(since.seconds));
    CHECK(since.exposed >= 0 && isfinite(since.exposed));
    return since;
}

static void check_counted(int64_t calls, double bytes) {
    struct CommCounts since = counted();
    if (world.ranks == 1) calls = 0, bytes = 0;
    CHECK(since.calls == calls);
    CHECK(fabs(since.bytes - bytes) <= 1e-9 * bytes);
    CHECK(world.ranks == 1 || since.seconds > 0);
}

/* The formulas of ops.h (struct CommCounts); and more operations than the times of which are kept
   at once, some of them never waited for. */
static void counts(void) {
    enum { n = 1001, MANY = 700 };
    double R = world.ranks;
    size_t all = (size_t)n * (size_t)world.ranks;
    float *x = new_floats(all), *y = new_floats(all);
    char *scratch = new_poison(2 * all);
    ops->fill_zero(x, all * sizeof *x);
    counted();
    ops->all_reduce(x, n, -1, -1);
    check_counted(1, 2 * (R - 1) / R * n * 4);
    ops->reduce_scatter(y, x, n, NULL, -1, -1);
    check_counted(1, (R - 1) / R * n * R * 4);
    ops->reduce_scatter(y, x, n, scratch, -1, -1);
    check_counted(1, (R - 1) / R * n * R * 2);
    ops->all_gather(x, y, n, -1, -1);
    check_counted(1, (R - 1) / R * n * R);
    ops->broadcast(x, n, world.ranks - 1, -1, -1);
    check_counted(1, world.rank == world.ranks - 1 ? n : 0);
    for (int i = 0; i < MANY; i++) {
        ops->broadcast(x, 8, 0, -1, i % 50);
        if (i % 3 == 0) ops->event_wait(i % 50);
    }
    check_counted(MANY, world.rank == 0 ? MANY * 8 : 0);
}

static void all_of_it(void) {
    all_reduce(), reduce_scatter(), all_gather(), broadcast(), in_order();
    with_events(), narrow(), counts();
}

static void test_one_rank(void **state) { (void)state, run_world(1, all_of_it); }
static void test_two_ranks(void **state) {
    (void)state;
    if (most_ranks() >= 2) run_world(2, all_of_it);
}
static void test_most_ranks(void **state) { (void)state, run_world(most_ranks(), all_of_it); }

/* A single process need not meet anyone. */
static void alone(void *context) {
    (void)context;
    world.ranks = 1;
    ops = ops_open(backend, dtype, 0);
    all_of_it();
    release_all();
}

static void test_alone(void **state) {
    (void)state;
    char output[1024];
    if (run_in_child(alone, NULL, output, sizeof output) != 0) fail_msg("%s", output);
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) dtype = argv[2];
    if (argc > 3) cmocka_set_test_filter(argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_rank),
        cmocka_unit_test(test_two_ranks),
        cmocka_unit_test(test_most_ranks),
        cmocka_unit_test(test_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
