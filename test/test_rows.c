/* Rows of a packed batch cut into blocks of queries: all of them, once, the longest first. */
#include <stdlib.h>
#include "../llmc/ops.h"
#include "test.h"

/* Every position is in exactly one block, and blocks with more keys before them are first. */
static void check(const int *start, int B, int block) {
    int N = start[B], *seen = calloc((size_t)N, sizeof *seen);
    struct QueryBlock *out = malloc((size_t)(N / block + B) * sizeof *out);
    int blocks = rows_cut_blocks(out, start, NULL, B, block);
    assert_true(blocks <= N / block + B);
    for (int i = 0; i < blocks; i++) {
        int row = out[i].row, first = out[i].first;
        assert_in_range(row, 0, B - 1);
        int T = start[row + 1] - start[row];
        assert_int_equal(first % block, 0);
        assert_in_range(first, 0, T - 1);
        if (i > 0) assert_true(first <= out[i - 1].first);
        for (int t = first; t < first + block && t < T; t++) seen[start[row] + t]++;
    }
    for (int t = 0; t < N; t++) assert_int_equal(seen[t], 1);
    free(seen), free(out);
}

static void test_every_position_once(void **state) {
    (void)state;
    const int one[] = {0, 1}, equal[] = {0, 256, 512, 768}, ragged[] = {0, 3, 131, 132, 517, 645,
                                                                      646};
    check(one, 1, 128);
    check(equal, 3, 128);
    check(ragged, 6, 128);
    check(ragged, 6, 16);
    check(ragged, 6, 1);
    for (uint32_t seed = 1; seed <= 50; seed++) {
        int start[41] = {0}, B = 1 + (int)(seed * 7 % 40);
        for (int b = 0; b < B; b++)
            start[b + 1] = start[b] + 1 + (int)((seed * 2654435761u + (uint32_t)b * 40503u) % 300);
        check(start, B, 1 + (int)(seed * 13 % 130));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_position_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
