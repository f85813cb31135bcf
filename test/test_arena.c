/* The arena: addresses, alignment, disjointness, the printed ledger. Memory comes from a stand-in
   for the backend, so that this program needs no kernels. */
#include "test.h"
#include "../llmc/arena.h"

static int live_allocations;

static void *counted_alloc(size_t bytes) {
    live_allocations++;
    return aligned_alloc(256, (bytes + 255) / 256 * 256);
}

static void counted_free(void *memory) {
    live_allocations--;
    free(memory);
}

static const struct Ops test_ops = {.alloc = counted_alloc, .free = counted_free};

#define COUNT 200

static void test_buffers_are_aligned_and_disjoint(void **state) {
    (void)state;
    struct Arena arena = {0};
    char *pointer[COUNT];
    size_t bytes[COUNT], sum = 0;
    for (int i = 0; i < COUNT; i++) {
        bytes[i] = i % 7 == 3 ? 0 : 1 + (size_t)(i * 37) % 1500;
        sum += bytes[i];
        pointer[i] = (char *)1;
        arena_reserve(&arena, &pointer[i], bytes[i], i % 2 ? "odd" : "even", "buffer %d", i);
        assert_null(pointer[i]);
    }
    assert_true(arena.total >= sum && arena.total < sum + 256 * COUNT);
    arena_commit(&arena, &test_ops);
    assert_int_equal(live_allocations, 1);
    for (int i = 0; i < COUNT; i++) {
        if (bytes[i] == 0) {
            assert_null(pointer[i]);
            continue;
        }
        assert_int_equal((uintptr_t)pointer[i] % 256, 0);
        memset(pointer[i], i, bytes[i]);
    }
    /* A buffer that overlapped another would have been written over by it. */
    for (int i = 0; i < COUNT; i++)
        for (size_t b = 0; b < bytes[i]; b++) assert_int_equal(pointer[i][b], (char)i);
    arena_free(&arena);
    assert_int_equal(live_allocations, 0);
    assert_null(arena.memory);
}

static void test_empty_arena(void **state) {
    (void)state;
    struct Arena arena = {0};
    arena_commit(&arena, &test_ops);
    assert_non_null(arena.memory);
    arena_free(&arena);
}

static void test_ledger(void **state) {
    (void)state;
    struct Arena arena = {0};
    void *pointer[4];
    arena_reserve(&arena, &pointer[0], 3 << 20, "activations", "qkv [L=%d, %d]", 12, 64);
    arena_reserve(&arena, &pointer[1], 8 << 20, "weights", "parameters [%d]", 2 << 20);
    arena_reserve(&arena, &pointer[2], 1 << 20, "activations", "norm [%d]", 1 << 18);
    arena_reserve(&arena, &pointer[3], 0, "activations", "absent");
    char *text = NULL;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    arena_print(&arena, out);
    fclose(out);
    assert_string_equal(text,
                        "memory plan                      MiB\n"
                        "  activations                   4.00   33.3 %\n"
                        "  weights                       8.00   66.7 %\n"
                        "  total                        12.00\n"
                        "largest buffers\n"
                        "  weights                       8.00  parameters [2097152]\n"
                        "  activations                   3.00  qkv [L=12, 64]\n"
                        "  activations                   1.00  norm [262144]\n");
    free(text);
    arena_free(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buffers_are_aligned_and_disjoint),
        cmocka_unit_test(test_empty_arena),
        cmocka_unit_test(test_ledger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
