/* The arena: addresses, alignment, no overlap, the printed plan. Memory comes from a stand-in for
   the backend, so that this program needs no kernels. */
#include "test.h"
#include "../llmc/arena.h"
#include "child.h"

static int live_allocations;

static void *counted_alloc(size_t bytes) {
    live_allocations++;
    return aligned_alloc(256, (bytes + 255) / 256 * 256);
}

static void counted_free(void *memory) {
    live_allocations--;
    free(memory);
}

static size_t memory_left = (size_t)1 << 40;
static size_t memory_available(void) { return memory_left; }

static const struct Ops test_ops = {.alloc = counted_alloc, .free = counted_free,
                                    .memory_available = memory_available};

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
    /* Had two buffers overlapped, one would hold the other's bytes by now. */
    for (int i = 0; i < COUNT; i++)
        for (size_t b = 0; b < bytes[i]; b++) assert_int_equal(pointer[i][b], (char)i);
    arena_free(&arena);
    assert_int_equal(live_allocations, 0);
    assert_null(arena.memory);
}

/* The training and decoding sections share memory: together they take the size of the larger one,
   and neither overlaps the section that is always kept. */
static void test_sections(void **state) {
    (void)state;
    struct Arena arena = {0};
    char *always[2], *training[2], *decoding[2];
    arena_reserve(&arena, &always[0], 1000, "a", "a0");
    arena.section = ARENA_TRAINING;
    arena_reserve(&arena, &training[0], 300, "t", "t0");
    arena.section = ARENA_DECODING;
    arena_reserve(&arena, &decoding[0], 5000, "d", "d0");
    arena.section = ARENA_TRAINING;
    arena_reserve(&arena, &training[1], 2000, "t", "t1");
    arena.section = ARENA_ALWAYS;
    arena_reserve(&arena, &always[1], 10, "a", "a1"); /* after the sections were begun */
    arena.section = ARENA_DECODING;
    arena_reserve(&arena, &decoding[1], 256, "d", "d1");
    assert_int_equal(arena.total, 1024 + 256 + 5120 + 256);
    arena_commit(&arena, &test_ops);
    memset(always[0], 1, 1000), memset(always[1], 2, 10);
    memset(decoding[0], 3, 5000), memset(decoding[1], 4, 256);
    for (int i = 0; i < 5000; i++) assert_int_equal(decoding[0][i], 3);
    memset(training[0], 5, 300), memset(training[1], 6, 2000);
    for (int i = 0; i < 300; i++) assert_int_equal(training[0][i], 5);
    for (int i = 0; i < 1000; i++) assert_int_equal(always[0][i], 1);
    for (int i = 0; i < 10; i++) assert_int_equal(always[1][i], 2);
    assert_ptr_equal(training[0], decoding[0]); /* the same place */
    arena_free(&arena);
}

static void commit_too_much(void *context) {
    memory_left = 1 << 20;
    arena_commit(context, &test_ops);
}

static void test_too_large(void **state) {
    (void)state;
    struct Arena arena = {0};
    void *small, *large;
    char output[512];
    arena_reserve(&arena, &small, 1 << 19, "weights", "parameters [7]");
    arena_reserve(&arena, &large, 1 << 20, "activations", "qkv [L=%d]", 12);
    assert_int_equal(run_in_child(commit_too_much, &arena, output, sizeof output), 1);
    assert_non_null(strstr(output, "out of memory"));
    assert_non_null(strstr(output, "activations, qkv [L=12]"));
    arena_free(&arena);
}

static void reserve_beyond_addresses(void *context) {
    static void *pointer[4];
    for (int i = 0; i < 4; i++)
        arena_reserve(context, &pointer[i], ((size_t)1 << 62) + 256, "weights", "buffer %d", i);
}

/* Four buffers of a quarter of the address space and a little more: their sum wraps around to 1024
   bytes, and must not be taken for a small plan. */
static void test_sum_beyond_addresses(void **state) {
    (void)state;
    for (int section = 0; section < ARENA_SECTIONS; section++) {
        struct Arena arena = {.section = section};
        char output[512];
        assert_int_equal(run_in_child(reserve_beyond_addresses, &arena, output, sizeof output), 1);
        assert_non_null(strstr(output, "is too large for this machine's addresses"));
    }
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
        cmocka_unit_test(test_sections),
        cmocka_unit_test(test_too_large),
        cmocka_unit_test(test_sum_beyond_addresses),
        cmocka_unit_test(test_empty_arena),
        cmocka_unit_test(test_ledger),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
