/* What a backend says of itself: its list of kernel files, the workspace they need, and the list of
   blocks of a packed batch. */
#include "test_ops.h"
#include "../llmc/kernels/backend.h"

/* Shapes of which each is the largest in some way. */
static const struct OpsShape shapes[] = {
    {.N = 1, .C = 1, .F = 1, .NH = 1, .NKV = 1, .HS = 1, .V = 1, .Vp = 1, .max_T = 1, .R = 1,
     .max_length = 1},
    {.N = 37, .C = 48, .F = 100, .NH = 3, .NKV = 1, .HS = 16, .V = 61, .Vp = 64, .max_T = 30,
     .R = 9, .max_length = 40},
    {.N = 5000, .C = 16, .F = 16, .NH = 1, .NKV = 1, .HS = 16, .V = 24, .Vp = 64, .max_T = 16,
     .R = 1, .max_length = 1},
    {.N = 2, .C = 64, .F = 8192, .NH = 4, .NKV = 4, .HS = 16, .V = 5, .Vp = 64, .max_T = 2, .R = 3,
     .max_length = 2},
    {.N = 200, .C = 96, .F = 100, .NH = 3, .NKV = 3, .HS = 32, .V = 50257, .Vp = 50304,
     .max_T = 200, .R = 300, .max_length = 300},
    {.N = 8, .C = 64, .F = 64, .NH = 4, .NKV = 1, .HS = 16, .V = 24, .Vp = 64, .max_T = 8,
     .R = 2000, .max_length = 4096},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* Every file of the list is counted: the workspace is the most that one of them says. */
static void test_workspace_counts_every_file(void **state) {
    (void)state;
    assert_true(ops->num_files >= 10);
    for (int s = 0; s < SHAPES; s++) {
        size_t most = 0, whole = ops->workspace_size(&shapes[s]);
        for (int f = 0; f < ops->num_files; f++) {
            const struct KernelFile *file = ops->files[f];
            assert_non_null(file->workspace);
            size_t bytes = file->workspace(&shapes[s]);
            if (bytes > whole)
                fail_msg("shape %d: %s needs %zu bytes, the workspace has %zu", s, file->name,
                         bytes, whole);
            if (bytes > most) most = bytes;
        }
        assert_int_equal(whole, most);
    }
}

static size_t ten(const struct OpsShape *shape) { return 10 * (size_t)shape->N; }
static size_t thirty(const struct OpsShape *shape) { return 30 * (size_t)shape->N; }

/* Wherever in the list the neediest file stands. */
static void test_workspace_of_a_list(void **state) {
    (void)state;
    static const struct KernelFile none = {"none", NULL, no_workspace}, less = {"less", NULL, ten};
    static const struct KernelFile most = {"most", NULL, thirty};
    const struct KernelFile *files[3];
    const struct OpsShape shape = {.N = 2};
    for (int i = 0; i < 3; i++) {
        files[i] = &most, files[(i + 1) % 3] = &none, files[(i + 2) % 3] = &less;
        assert_int_equal(kernel_files_workspace(files, 3, &shape), 60);
    }
    assert_int_equal(kernel_files_workspace(files, 0, &shape), 0);
}

/* Slots that are empty after all files but number f were filled; f -1: after all. */
static int missing_without(int f) {
    char names[4096];
    struct Ops other = {0};
    for (int g = 0; g < ops->num_files; g++)
        if (g != f) ops->files[g]->fill(&other);
    return ops_missing(&other, names, sizeof names);
}

/* Each file of the list fills slots that no other does, and is there once. */
static void test_list_is_whole(void **state) {
    (void)state;
    int missing = missing_without(-1);
    for (int f = 0; f < ops->num_files; f++) {
        if (missing_without(f) <= missing) fail_msg("%s fills no slot", ops->files[f]->name);
        for (int g = 0; g < f; g++)
            assert_string_not_equal(ops->files[g]->name, ops->files[f]->name);
    }
    /* some keep the table they were asked to fill */
    for (int f = 0; f < ops->num_files; f++) ops->files[f]->fill((struct Ops *)(uintptr_t)ops);
}

/* A file that says nothing of its workspace is named at start. */
static void test_silent_file_is_named(void **state) {
    (void)state;
    static const struct KernelFile silent = {"silent", NULL, NULL};
    static const struct KernelFile *const files[] = {&silent};
    struct Ops other = *ops;
    char names[256];
    other.files = files, other.num_files = 1;
    assert_int_equal(ops_missing(&other, names, sizeof names), 1);
    assert_string_equal(names, "the workspace of silent");
}

/* ---- blocks of queries ----------------------------------------------------------------------- */

/* Each query of each row is in one block, none is empty, and blocks with more keys before their
   queries come first. */
static void check_blocks(const int *start, int B, int block) {
    int N = start[B], *seen = calloc((size_t)N + 1, sizeof *seen);
    struct QueryBlock *blocks = calloc((size_t)(N / block + B) + 1, sizeof *blocks);
    int count = rows_cut_blocks(blocks, start, NULL, B, block);
    assert_true(count <= N / block + B);
    for (int i = 0; i < count; i++) {
        assert_true(blocks[i].row >= 0 && blocks[i].row < B && blocks[i].first % block == 0);
        int T = start[blocks[i].row + 1] - start[blocks[i].row];
        assert_true(blocks[i].first >= 0 && blocks[i].first < T);
        assert_true(i == 0 || blocks[i - 1].first >= blocks[i].first);
        for (int t = blocks[i].first; t < T && t < blocks[i].first + block; t++)
            seen[start[blocks[i].row] + t]++;
    }
    for (int n = 0; n < N; n++) assert_int_equal(seen[n], 1);
    free(seen), free(blocks);
}

static void test_blocks(void **state) {
    (void)state;
    static const int ragged[] = {0, 1, 65, 66, 194, 323, 323 + 64, 1000}, one[] = {0, 7};
    static const int short_rows[] = {0, 3, 4, 9, 11};
    for (int block = 1; block <= 128; block *= 2) {
        check_blocks(ragged, 7, block);
        check_blocks(one, 1, block);
        check_blocks(short_rows, 4, block);
    }
    struct QueryBlock by_hand[8];
    assert_int_equal(rows_cut_blocks(by_hand, (const int[]){0, 5, 7, 11}, NULL, 3, 2), 6);
    static const struct QueryBlock expected[] = {{0, 4}, {0, 2}, {2, 2}, {0, 0}, {1, 0}, {2, 0}};
    assert_memory_equal(by_hand, expected, sizeof expected);
}

/* The example of struct Rows: keys of a prompt count. */
static void test_blocks_of_rows_with_prompts(void **state) {
    (void)state;
    static const int start[] = {0, 3, 5, 8, 10}, prompt[] = {-1, 0, 0, -1};
    static const int expected_seen[] = {8, 5, 8, 10};
    static const struct QueryBlock expected[] = {{2, 2}, {1, 0}, {2, 0}, {0, 2}, {0, 0}, {3, 0}};
    struct QueryBlock blocks[9];
    int seen[4];
    assert_int_equal(rows_cut_blocks(blocks, start, prompt, 4, 2), 6);
    assert_memory_equal(blocks, expected, sizeof expected);
    rows_seen(seen, start, prompt, 4);
    assert_memory_equal(seen, expected_seen, sizeof seen);
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_workspace_counts_every_file),
        cmocka_unit_test(test_workspace_of_a_list),
        cmocka_unit_test(test_list_is_whole),
        cmocka_unit_test(test_silent_file_is_named),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_blocks_of_rows_with_prompts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
