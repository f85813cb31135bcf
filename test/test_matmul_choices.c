/* Which of a library's algorithms a product gets. The simulator's cuBLASLt is made for this
   (test/cudasim/include/cublasLt.h): algorithm 0 is proposed first, 2 is the fastest and refuses
   odd sizes, 3 is in between; each sums in an order of its own, so that float32 results tell which
   one it was. The references are those orders of summation, written out here. Another backend
   (the CPU, a GPU) is held to what any has to do. */
#include "child.h"
#include "test_ops.h"

static char saved[MATMUL_CHOICES_TEXT];

static bool simulated(void) { return strncmp(ops->name, "sim", 3) == 0; }
static bool float32(void) { return strcmp(ops->dtype, "fp32") == 0; }

static int lines_in(const char *text) {
    int lines = 0;
    for (; *text; text++) lines += *text == '\n';
    return lines;
}

/* The numbers of a line: form, epilogue, M, N, K, then others; and the algorithm's number, byte 32
   of what follows in hexadecimal. */
struct Line {
    int form, M, N, K, algorithm;
};

static struct Line line_of(const char *text, int index) {
    struct Line line;
    int epilogue;
    for (; index >= 0; index--) text = strchr(text, '\n') + 1;
    assert_int_equal(sscanf(text, "%d %d %d %d %d", &line.form, &epilogue, &line.M, &line.N,
                            &line.K), 5);
    for (int word = 0; word < 13; word++) text = strchr(text, ' ') + 1;
    assert_int_equal(sscanf(text + 64, "%2x", (unsigned *)&line.algorithm), 1);
    return line;
}

/* sum x[i] y[i] as the simulator's algorithm sums it. */
static float dot_of(int algorithm, const float *x, const float *y, int n) {
    int partials = algorithm == 0 ? 16 : algorithm == 2 ? 8 : 4, i = 0;
    float partial[16] = {0}, sum = 0;
    for (; i + partials <= n; i += partials)
        for (int lane = 0; lane < partials; lane++) partial[lane] += x[i + lane] * y[i + lane];
    for (; i < n; i++) sum += x[i] * y[i];
    for (int lane = 0; lane < partials; lane++) sum += partial[lane];
    return sum;
}

/* A layer of N tokens, C to OC channels: C is long enough that orders of summation differ. */
enum { C = 96, OC = 32, MOST_N = 64 };
static float x[MOST_N * C], w[OC * C], out[MOST_N * OC];

/* Between 1/2 and 1, of 11 bits: products are exact in float32, fused or not; only sums round, and
   they do, because nothing cancels. */
static void fill_short(float *y, size_t n, uint64_t stream) {
    fill_normal(y, n, 400, stream);
    for (size_t i = 0; i < n; i++) y[i] = fminf(1024 + rintf(fabsf(y[i])), 2047) / 2048;
}

static void layer(int N) {
    fill_short(x, MOST_N * C, 7);
    fill_short(w, OC * C, 8);
    floatX *X = put_x(x, (size_t)N * C), *W = put_x(w, OC * C), *O = new_x((size_t)N * OC);
    float *wide = new_floats((size_t)N * OC);
    ops->matmul_forward(O, X, W, NULL, N, C, OC);
    ops->to_float(wide, O, (size_t)N * OC);
    ops->download(out, wide, (size_t)N * OC * sizeof *out);
    release_all();
}

/* How many elements of `out` are not what this algorithm gives. */
static int differing(int algorithm, int N) {
    int count = 0;
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++)
            count += out[n * OC + o] != dot_of(algorithm, x + n * C, w + o * C, C);
    return count;
}

static void assert_algorithm(int algorithm, int N) {
    layer(N);
    if (!float32()) return;
    assert_int_equal(differing(algorithm, N), 0);
    for (int other = 0; other < 4; other++)
        if (other != algorithm && other != 1) assert_true(differing(other, N) > 0);
}

static void begin(const char *text) { assert_null(ops->matmul_choices_load(text)); }

static void test_first_until_asked(void **state) {
    (void)state;
    if (!simulated()) skip();
    begin(NULL);
    assert_algorithm(0, 16);
    ops->matmul_choices_save(saved, sizeof saved);
    assert_string_equal(saved, "");
}

static void test_fastest_of_a_class(void **state) {
    (void)state;
    if (!simulated()) skip();
    begin("");
    assert_algorithm(2, 18);   /* times: 17 to 20 tokens are one class */
    assert_algorithm(2, 20);
    assert_algorithm(0, 19);   /* the class's algorithm refuses it: its own first */
    assert_algorithm(3, 21);   /* a new class; the fastest that takes an odd size */
    assert_algorithm(3, 22);   /* ... also where a faster one would do, because the class has it */
}

static void test_saved_and_loaded(void **state) {
    (void)state;
    if (!simulated()) skip();
    begin("");
    assert_algorithm(2, 18);
    assert_algorithm(3, 21);
    ops->matmul_choices_freeze();
    ops->matmul_choices_save(saved, sizeof saved);
    assert_int_equal(lines_in(saved), 3);
    struct Line even = line_of(saved, 0), odd = line_of(saved, 1);
    assert_int_equal(even.M, 20);
    assert_int_equal(even.N, OC);
    assert_int_equal(even.K, C);
    assert_int_equal(even.algorithm, 2);
    assert_int_equal(odd.M, 24);
    assert_int_equal(odd.algorithm, 3);
    for (int again = 0; again < 2; again++) {   /* the one that goes on; the one that resumes */
        assert_algorithm(2, 20);
        assert_algorithm(3, 24);
        assert_algorithm(0, 19);
        assert_algorithm(2, 8);    /* new: the nearest class in tokens, nothing is timed */
        assert_algorithm(3, 64);
        char after[MATMUL_CHOICES_TEXT];
        ops->matmul_choices_save(after, sizeof after);
        assert_string_equal(after, saved);
        begin(saved);
    }
}

/* Writing the choices down is no decision: only freeze makes them final, and not before there is
   one. */
static void test_save_changes_nothing(void **state) {
    (void)state;
    if (!simulated()) skip();
    begin("");
    ops->matmul_choices_freeze();
    assert_algorithm(2, 18);
    ops->matmul_choices_save(saved, sizeof saved);
    assert_algorithm(3, 21);   /* a new class is still timed */
    ops->matmul_choices_save(saved, sizeof saved);
    assert_int_equal(lines_in(saved), 3);
    ops->matmul_choices_freeze();
    assert_algorithm(3, 40);   /* new: the nearest class's, and no fourth line */
    char after[MATMUL_CHOICES_TEXT];
    ops->matmul_choices_save(after, sizeof after);
    assert_string_equal(after, saved);
}

static void test_classes(void **state) {
    (void)state;
    static const struct { int tokens, rounded; } cases[] = {
        {2, 2}, {6, 6}, {8, 8}, {10, 10}, {18, 20}, {22, 24}, {26, 28}, {30, 32}, {32, 32},
        {34, 40}, {42, 48}, {50, 56}, {58, 64}};
    if (!simulated()) skip();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin("");
        layer(cases[i].tokens);
        ops->matmul_choices_save(saved, sizeof saved);
        assert_int_equal(line_of(saved, 0).M, cases[i].rounded);
    }
}

/* The trial products of a weight gradient are not added to it, nor written over dx. */
static void test_gradients_untouched(void **state) {
    (void)state;
    enum { N = 18 };
    const struct OpsShape shape = {.N = N, .C = C, .F = OC, .NH = 1, .NKV = 1, .HS = OC, .V = 8,
                                   .Vp = 64, .max_T = N, .R = 1, .max_length = N};
    static float dout[N * OC], dx[N * C], dw[OC * C];
    fill_short(x, N * C, 9);
    fill_short(w, OC * C, 10);
    fill_short(dout, N * OC, 11);
    for (int i = 0; i < OC * C; i++) dw[i] = 1;
    begin("");
    floatX *X = put_x(x, N * C), *W = put_x(w, OC * C), *D = put_x(dout, N * OC);
    floatX *DX = new_x(N * C);
    float *DW = put_floats(dw, OC * C), *wide = new_floats(N * C);
    ops->matmul_backward(DX, DW, NULL, D, X, W, N, C, OC, new_workspace_of("matmul", &shape));
    ops->to_float(wide, DX, N * C);
    ops->download(dx, wide, sizeof dx);
    ops->download(dw, DW, sizeof dw);
    release_all();
    for (int o = 0; o < OC; o++)
        for (int c = 0; c < C; c++) {
            double sum = 1;
            for (int n = 0; n < N; n++) sum += (double)dout[n * OC + o] * x[n * C + c];
            assert_true(fabs(dw[o * C + c] - sum) < 1e-4);
        }
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) {
            double sum = 0, size = 0;
            for (int o = 0; o < OC; o++) {
                sum += (double)dout[n * OC + o] * w[o * C + c];
                size += fabs((double)dout[n * OC + o] * w[o * C + c]);
            }
            assert_true(fabs(dx[n * C + c] - sum) <= size / 128);   /* bf16: 2^-9 and room */
        }
}

/* ---- recorded sequences ---------------------------------------------------------------------- */

/* The buffers of a recorded layer: made before, because a sequence may not allocate. */
struct Recorded {
    floatX *x, *w, *out;
    float *wide;
    int N, OC;
    const char *slot;   /* what is called in the sequence and may not be */
};

static struct Recorded new_recorded(int N) {
    fill_short(x, MOST_N * C, 7);
    fill_short(w, OC * C, 8);
    struct Recorded r = {.x = put_x(x, MOST_N * C), .w = put_x(w, OC * C), .N = N, .OC = OC};
    r.out = new_x(MOST_N * OC);
    r.wide = new_floats(MOST_N * OC);
    return r;
}

/* One sequence of one key: runs the first time, is recorded the second, replayed after. */
static void run_recorded(const struct Recorded *r) {
    if (ops->graph_begin("layer", 5)) {
        ops->matmul_forward(r->out, r->x, r->w, NULL, r->N, C, r->OC);
        ops->graph_end();
    }
    ops->to_float(r->wide, r->out, (size_t)r->N * OC);
    ops->download(out, r->wide, (size_t)r->N * OC * sizeof *out);
}

/* Replayed or not, a product has the algorithm that was chosen for it: also if its description made
   room for others before it was recorded, and if the choices were loaded anew. */
static void test_recorded_choices(void **state) {
    (void)state;
    if (!simulated()) skip();
    struct Recorded r = new_recorded(18);
    for (int round = 0; round < 6; round++) {
        if (round == 0) begin(NULL);
        if (round == 3) begin("");
        run_recorded(&r);
        if (float32()) assert_int_equal(differing(round < 3 ? 0 : 2, r.N), 0);
        if (round % 3 == 0)
            for (int i = 0; i < 320; i++)
                ops->matmul_forward(r.out, r.x, r.w, NULL, 1 + i % MOST_N, C, 4 * (i / MOST_N + 1));
    }
    release_all();
    begin(NULL);
}

/* A sequence of another size under the same key: it would have to be timed while it is recorded. */
static void record_another(void *recorded) {
    struct Recorded *r = recorded;
    run_recorded(r);
    r->N = 40;
    run_recorded(r);
}

static void call_in_sequence(void *recorded) {
    struct Recorded *r = recorded;
    ops->graph_begin("refused", 7);
    if (strcmp(r->slot, "alloc") == 0) ops->alloc(16);
    if (strcmp(r->slot, "free") == 0) ops->free(r->x);
    if (strcmp(r->slot, "upload") == 0) ops->upload(r->wide, out, 16);
    if (strcmp(r->slot, "download") == 0) ops->download(out, r->wide, 16);
    if (strcmp(r->slot, "fetch") == 0) ops->fetch(0, r->wide, 16);
    if (strcmp(r->slot, "fetched") == 0) ops->fetched(0);
    if (strcmp(r->slot, "sync") == 0) ops->sync();
    if (strcmp(r->slot, "matmul_choices_load") == 0) ops->matmul_choices_load("");
    if (strcmp(r->slot, "graph_begin") == 0) ops->graph_begin("other", 5);
}

static void assert_dies(void (*body)(void *), struct Recorded *r, const char *says) {
    char said[1024];
    int code = run_in_child(body, r, said, sizeof said);
    if (code != 1 || !strstr(said, says)) fail_msg("exit code %d, said: %s", code, said);
}

/* What a recording cannot hold ends the program in a line that says what it was, the first time. */
static void test_refused_in_a_sequence(void **state) {
    (void)state;
    static const char *const slots[] = {"alloc", "free", "upload", "download", "fetch",
                                        "fetched", "sync", "matmul_choices_load", "graph_begin"};
    if (!simulated()) skip();
    begin("");
    struct Recorded r = new_recorded(18);
    assert_dies(record_another, &r, "a product of M 40, N 32, K 96 is recorded that was not");
    for (size_t i = 0; i < sizeof slots / sizeof *slots; i++) {
        char says[64];
        snprintf(says, sizeof says, "%s was called between graph_begin and", slots[i]);
        r.slot = slots[i];
        assert_dies(call_in_sequence, &r, says);
    }
    release_all();
}

/* Text of another machine, and damaged text: refused in words, and then as a fresh start. */
static void test_foreign_text(void **state) {
    (void)state;
    assert_non_null(ops->matmul_choices_load("another GPU, cuBLASLt 1, fp32\n"));
    if (!simulated()) skip();
    begin("");
    layer(18);
    ops->matmul_choices_save(saved, sizeof saved);
    size_t length = strlen(saved);
    char text[MATMUL_CHOICES_TEXT];
    for (size_t cut = 1; cut < length; cut++) {
        memcpy(text, saved, cut);
        text[cut] = '\0';
        const char *problem = ops->matmul_choices_load(text);
        if (!strchr(text, '\n')) assert_non_null(strstr(problem, "another device"));
        else if (text[cut - 1] != '\n') assert_non_null(strstr(problem, "damaged"));
    }
    memcpy(text, saved, length + 1);
    text[length - 2] = 'g';
    assert_non_null(ops->matmul_choices_load(text));
    assert_algorithm(3, 21);   /* timed, as nothing was loaded */
    assert_algorithm(2, 18);
}

/* What holds for every backend: a choice changes no more than rounding, and loading what was saved
   gives the same bits. */
static void test_same_bits(void **state) {
    (void)state;
    static float first[MOST_N * OC];
    begin("");
    layer(40);
    memcpy(first, out, sizeof first);
    ops->matmul_choices_save(saved, sizeof saved);
    begin(saved);
    layer(40);
    assert_memory_equal(first, out, 40 * OC * sizeof *out);
    for (int n = 0; n < 40; n++)
        for (int o = 0; o < OC; o++) {
            double sum = 0, size = 0;
            for (int c = 0; c < C; c++) {
                sum += (double)x[n * C + c] * w[o * C + c];
                size += fabs((double)x[n * C + c] * w[o * C + c]);
            }
            assert_true(fabs(out[n * OC + o] - sum) <= size / 128);
        }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_until_asked), cmocka_unit_test(test_fastest_of_a_class),
        cmocka_unit_test(test_saved_and_loaded),  cmocka_unit_test(test_classes),
        cmocka_unit_test(test_save_changes_nothing),
        cmocka_unit_test(test_gradients_untouched), cmocka_unit_test(test_foreign_text),
        cmocka_unit_test(test_same_bits), cmocka_unit_test(test_recorded_choices),
        cmocka_unit_test(test_refused_in_a_sequence),
    };
    open_backend(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
