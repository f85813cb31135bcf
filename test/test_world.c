/* The ranks' sums, gathers and shares (llmc/world.h): every rank's bytes come to every rank, in any
   number; sums have the same bits everywhere; the pieces of a list of work are a partition. */
#include "ranks_rig.h"

static const char *backend = "cpu", *dtype = "auto";

/* ---- shares of work -------------------------------------------------------------------------- */

/* Pieces follow each other, cover the list, and none is heavier than a rank's part of the whole by
   more than the heaviest item. */
static void check_pieces(int size, int n, const int *weight) {
    struct World world = {.size = size};
    int64_t all = 0, heaviest = 0;
    int next = 0;
    for (int i = 0; i < n; i++) {
        int64_t w = weight ? weight[i] : 1;
        all += w;
        if (w > heaviest) heaviest = w;
    }
    for (int r = 0; r < size; r++) {
        struct Piece piece = world_piece(&world, r, n, weight);
        int64_t sum = 0;
        assert_int_equal(piece.first, next);
        assert_true(piece.last >= piece.first);
        next = piece.last;
        for (int i = piece.first; i < piece.last; i++) sum += weight ? weight[i] : 1;
        if (sum * size > all + heaviest * size)
            fail_msg("rank %d of %d does %lld of %lld", r, size, (long long)sum, (long long)all);
    }
    assert_int_equal(next, n);
}

static void test_pieces(void **state) {
    (void)state;
    struct Rng rng;
    int weight[300];
    rng_open(&rng, 1, RNG_TEST, 0);
    for (int i = 0; i < 300; i++) weight[i] = (int)rng_below(&rng, 1000);
    for (int size = 1; size <= 9; size++)
        for (int n = 0; n <= 300; n += n < 12 ? 1 : 96) {
            check_pieces(size, n, NULL);
            check_pieces(size, n, weight);
        }
    for (int i = 0; i < 300; i++) weight[i] = 0;   /* nobody minds who does nothing */
    check_pieces(4, 300, weight);
    weight[7] = 1 << 30, weight[8] = 1 << 30;
    check_pieces(64, 300, weight);
}

/* By hand: ten equal items, and one that is as heavy as all the others. */
static void test_pieces_by_hand(void **state) {
    (void)state;
    static const int heavy_first[] = {6, 1, 1, 1, 1, 1, 1};
    struct World two = {.size = 2}, three = {.size = 3};
    assert_int_equal(world_piece(&two, 0, 10, NULL).last, 5);
    assert_int_equal(world_piece(&two, 0, 7, heavy_first).last, 1);
    assert_int_equal(world_piece(&three, 1, 10, NULL).first, 3);
    assert_int_equal(world_piece(&three, 1, 10, NULL).last, 7);
    assert_int_equal(world_piece(NULL, 0, 10, NULL).last, 10);
}

/* ---- what ranks exchange --------------------------------------------------------------------- */

/* Number i of what rank r brings; huge and tiny terms, so that the order of a sum shows;
   each is exact, however it is computed. */
static double term(int r, int i) {
    return (i % 3 - 1) * ldexp(1 + r * 37 + i * 11, (r * 29 + i * 7) % 90 - 45);
}

enum { TERMS = 1000 };

static void sums(void *context) {
    double x[TERMS];
    (void)context;
    for (int i = 0; i < TERMS; i++) x[i] = term(rig_world.rank, i);
    world_sum(&rig_world, x, TERMS);
    rig_return(x, sizeof x);
}

/* In the order of the ranks, to the last bit, on all of them. */
static void test_sums(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++) {
        struct RankResult result[4];
        run_ranks(result, NULL, ranks, backend, dtype, 60, sums, NULL);
        for (int r = 0; r < ranks; r++) {
            const double *x = (const double *)(void *)result[r].bytes;
            assert_int_equal(result[r].length, TERMS * sizeof *x);
            for (int i = 0; i < TERMS; i++) {
                double sum = 0;
                for (int k = 0; k < ranks; k++) sum += term(k, i);
                if (x[i] != sum) fail_msg("rank %d of %d, %d: %g, not %g", r, ranks, i, x[i], sum);
            }
            free(result[r].bytes);
        }
    }
}

/* Byte i of rank r's text, and how long it is: nothing, a few, more than a window. */
static char letter(int r, size_t i) { return (char)(i * 7 + i / 251 + (size_t)r * 31); }
static size_t length_of(int r, int round) {
    static const size_t lengths[3][4] = {{0, 0, 0, 0}, {5, 0, 3000001, 17}, {1 << 21, 1, 0, 7}};
    return lengths[round][r];
}

static void gathers(void *context) {
    struct Gathered gathered = {.bytes = NULL};
    (void)context;
    for (int round = 0; round < 3; round++) {
        size_t n = length_of(rig_world.rank, round);
        char *mine = malloc(n + 1);
        for (size_t i = 0; i < n; i++) mine[i] = letter(rig_world.rank, i);
        world_gather(&rig_world, &gathered, mine, n);
        for (int r = 0; r < rig_world.size; r++) {
            size_t begin = gathered.start[r];
            RANK_CHECK(gathered.start[r + 1] - begin == length_of(r, round));
            for (size_t i = 0; i < length_of(r, round); i++)
                RANK_CHECK(gathered.bytes[begin + i] == letter(r, i));
        }
        free(mine);
    }
    gathered_free(&gathered);
}

static void broadcasts(void *context) {
    (void)context;
    for (int root = 0; root < rig_world.size; root++) {
        size_t n = 1500001;
        char *x = malloc(n);
        for (size_t i = 0; i < n; i++) x[i] = letter(rig_world.rank, i);
        world_broadcast(&rig_world, x, n, root);
        for (size_t i = 0; i < n; i++) RANK_CHECK(x[i] == letter(root, i));
        free(x);
        RANK_CHECK(world_any(&rig_world, rig_world.rank == root));
        RANK_CHECK(!world_any(&rig_world, false));
        RANK_CHECK(world_least(&rig_world, rig_world.rank == root ? -2.5 : 7) == -2.5);
    }
}

static void test_gathers(void **state) {
    (void)state;
    for (int ranks = 1; ranks <= 4; ranks++) {
        run_ranks(NULL, NULL, ranks, backend, dtype, 60, gathers, NULL);
        run_ranks(NULL, NULL, ranks, backend, dtype, 60, broadcasts, NULL);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) backend = argv[1];
    if (argc > 2) dtype = argv[2];
    if (argc > 3) cmocka_set_test_filter(argv[3]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_pieces_by_hand),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_gathers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
