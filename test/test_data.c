/* Prompts from a file: what a line gives, in which order lines come, what is held out, and what is
   said of lines and files that are wrong. All files are written here. */
#include "data_rig.h"

static char said[1 << 16];

/* ---- what a line gives ----------------------------------------------------------------------- */

static void test_keys(void **state) {
    (void)state;
    static const struct { const char *line, *prompt, *answer, *metadata; } cases[] = {
        {"{\"prompt\": \"a\", \"answer\": \"b\"}", "a", "b", "{}"},
        {"{\"input\": \"a\", \"label\": \"b\"}", "a", "b", "{}"},
        {"{\"question\": \"a\", \"ground_truth\": \"b\"}", "a", "b", "{}"},
        {"{\"problem\": \"a\", \"solution\": \"b\"}", "a", "b", "{}"},
        {"{\"prompt\":\"a\",\"reward_model\":{\"style\":\"rule\",\"ground_truth\":\"b\"}}", "a",
         "b", "{\"reward_model\":{\"style\":\"rule\",\"ground_truth\":\"b\"}}"},
        {"{\"reward_model.ground_truth\": \"b\", \"prompt\": \"a\"}", "a", "b", "{}"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"answer\": 7}", "a", "7",
         "{}"},
        {"{\"prompt\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", "
         "\"content\": \"a\"}]}", "s\n\na", "", "{}"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
         "\"content\": \"b\"}]}", "a", "b", "{}"},
        /* the first key of the list goes first, null is not there, others are kept as written */
        {"{\"input\": \"i\", \"prompt\": \"a\"}", "a", "", "{\"input\": \"i\"}"},
        {"{\"prompt\": \"a\", \"x\": 1, \"completion\": \"c\", \"response\": \"r\"}", "a", "",
         "{\"x\": 1, \"response\": \"r\"}"},
        {"{\"question\": \"q\", \"prompt\": \"a\", \"label\": \"l\", \"answer\": \"b\"}", "a", "b",
         "{\"question\": \"q\", \"label\": \"l\"}"},
        {"{\"prompt\": null, \"question\": \"a\", \"answer\": null, \"label\": \"b\"}", "a", "b",
         "{\"prompt\": null, \"answer\": null}"},
        {"{\"prompt\": \"a\", \"id\": 12345678901234567890, \"x\": {\"y\": [1, \"}\\\"\", {}]}, "
         "\"z\" : 0.50 }", "a", "",
         "{\"id\": 12345678901234567890, \"x\": {\"y\": [1, \"}\\\"\", {}]}, \"z\" : 0.50}"},
        {"{\"prompt\": \"a\", \"answer\": 0.50}", "a", "0.50", "{}"},
        {"{\"prompt\": \"a\", \"answer\": true}", "a", "true", "{}"},
        {"{\"prompt\": \"a\", \"answer\": [1, 2]}", "a", "[1, 2]", "{}"},
        {"  {\"prompt\" : \"a\\\\u0000\\n\\\"b\"}  ", "a\\u0000\n\"b", "", "{}"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct DataOptions o = data_options();
        o.reward = "length";
        write_file(data_path, cases[i].line);
        struct Task *task = open_data(&o);
        const struct Example *e = drawn(task, 0);
        assert_string_equal(e->prompt.bytes, cases[i].prompt);
        assert_string_equal(e->answer.bytes, cases[i].answer);
        assert_string_equal(e->metadata.bytes, cases[i].metadata);
        assert_int_equal(e->ids.count, strlen(cases[i].prompt));
        data_close(task);
    }
}

/* CRLF, a byte order mark, blank lines, no newline at the end: all the same file. */
static void test_line_ends(void **state) {
    (void)state;
    static const char *const files[] = {
        "{\"prompt\": \"p0\"}\n{\"prompt\": \"p1\"}\n",
        "{\"prompt\": \"p0\"}\n{\"prompt\": \"p1\"}",
        "\xEF\xBB\xBF{\"prompt\": \"p0\"}\r\n\r\n{\"prompt\": \"p1\"}\r\n",
        "\n \t\n{\"prompt\": \"p0\"}\n\n\n{\"prompt\": \"p1\"}\n\n",
    };
    for (size_t i = 0; i < 4; i++) {
        struct Opening o = {data_options(), 4, false};
        o.options.reward = "length", o.options.bad_lines = 0;
        write_file(data_path, files[i]);
        assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 0);
        assert_non_null(strstr(said, "[p0][p1][p0][p1]"));
    }
}

/* Behind a byte order mark a line gives what it gives elsewhere. */
static void test_byte_order_mark(void **state) {
    (void)state;
    struct DataOptions o = data_options();
    write_file(data_path, "\xEF\xBB\xBF{\"prompt\": \"a\", \"answer\": 0.50, \"x\": 1}\r\n");
    struct Task *task = open_data(&o);
    assert_string_equal(drawn(task, 0)->answer.bytes, "0.50");
    assert_string_equal(drawn(task, 0)->metadata.bytes, "{\"x\": 1}");
    data_close(task);
}

/* ---- order ----------------------------------------------------------------------------------- */

/* Every pass has every line once; blocks keep to themselves; passes differ, and so do seeds. */
static void test_order(void **state) {
    (void)state;
    enum { LINES = 60, BUFFER = 25 };
    struct DataOptions o = data_options();
    int first[LINES], moved = 0, differ = 0, by_seed = 0;
    write_numbered(data_path, 0, LINES);
    struct Task *task = open_data(&o);
    for (int i = 0; i < 2 * LINES; i++) assert_int_equal(number_drawn(task, i), i % LINES);
    data_close(task);
    o.shuffle_buffer = BUFFER;
    for (int seed = 0; seed < 2; seed++) {
        o.seed = (uint64_t)seed;
        task = open_data(&o);
        for (int pass = 0; pass < 3; pass++) {
            int seen[LINES] = {0};
            for (int i = 0; i < LINES; i++) {
                int k = number_drawn(task, pass * LINES + i);
                assert_int_equal(k / BUFFER, i / BUFFER);
                assert_int_equal(seen[k]++, 0);
                if (pass == 0 && seed == 0) first[i] = k, moved += k != i;
                if (pass == 1 && seed == 0) differ += k != first[i];
                if (pass == 0 && seed == 1) by_seed += k != first[i];
            }
        }
        data_close(task);
    }
    assert_true(moved > LINES / 2 && differ > LINES / 2 && by_seed > LINES / 2);
}

/* Example n is the same one however it is come by. */
static void test_any_number(void **state) {
    (void)state;
    struct DataOptions o = data_options();
    int expected[100];
    static const int order[] = {99, 0, 50, 51, 49, 7, 98, 97, 1};
    o.shuffle_buffer = 16;
    write_numbered(data_path, 0, 41);
    struct Task *task = open_data(&o);
    for (int i = 0; i < 100; i++) expected[i] = number_drawn(task, i);
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        assert_int_equal(number_drawn(task, order[i]), expected[order[i]]);
    data_close(task);
}

/* A reading that stops after any example and goes on from its state gives the same ones. */
static void test_state(void **state) {
    (void)state;
    struct DataOptions o = data_options();
    int expected[120];
    o.shuffle_buffer = 16, o.seed = 5;
    write_numbered(data_path, 0, 41);
    struct Task *task = open_data(&o);
    for (int i = 0; i < 120; i++) expected[i] = number_drawn(task, i);
    data_close(task);
    for (int stop = 0; stop <= 100; stop++) {
        task = open_data(&o);
        for (int i = 0; i < stop; i++) number_drawn(task, i);
        struct DataState saved = data_state(task);
        assert_int_equal(saved.ordinal, stop);
        assert_int_equal(saved.line, 16 * saved.block);   /* for messages */
        data_close(task);
        task = open_data(&o);
        data_resume(task, &saved);
        for (int i = stop; i < stop + 20; i++)
            assert_int_equal(number_drawn(task, i), expected[i]);
        data_close(task);
    }
}

struct Resume { struct DataOptions options; struct DataState state; };
static void resume(void *argument) {
    struct Resume *r = argument;
    struct Task *task = open_data(&r->options);
    data_resume(task, &r->state);
    data_close(task);
}
static void test_changed_file(void **state) {
    (void)state;
    struct Resume r = {.options = data_options()};
    write_numbered(data_path, 10, 41);
    struct Task *task = open_data(&r.options);
    r.state = data_state(task);
    data_close(task);
    assert_int_equal(run_in_child(resume, &r, said, sizeof said), 0);
    write_numbered(data_path, 11, 41);   /* as long, other bytes at its beginning */
    assert_int_equal(run_in_child(resume, &r, said, sizeof said), 2);
    assert_non_null(strstr(said, "has changed since this run began"));
    write_numbered(data_path, 10, 42);
    assert_int_equal(run_in_child(resume, &r, said, sizeof said), 2);
    assert_non_null(strstr(said, "has changed since this run began"));
    r.state = (struct DataState){0};
    assert_int_equal(run_in_child(resume, &r, said, sizeof said), 2);
    assert_non_null(strstr(said, "was not begun with a data file"));
}

static void grow_while_read(void *argument) {
    struct Task *task = open_data(argument);
    for (int i = 0; i < 100; i++) {
        number_drawn(task, i);
        if (i == 5) write_numbered(data_path, 0, 43);
    }
}
static void test_file_that_grows(void **state) {
    (void)state;
    struct DataOptions o = data_options();
    write_numbered(data_path, 0, 41);
    assert_int_equal(run_in_child(grow_while_read, &o, said, sizeof said), 2);
    assert_non_null(strstr(said, "has changed while it was read"));
}

/* ---- what is held out ------------------------------------------------------------------------ */

static void held_numbers(const struct Task *task, bool *held, int count) {
    struct Example example = {0};
    memset(held, 0, (size_t)count);
    for (int i = 0; i < task->num_held_out; i++) {
        example_draw(&example, task, 0, RNG_EVAL_PROMPT, (uint64_t)i);
        int k = atoi(example.prompt.bytes + 1);
        assert_false(held[k]);
        held[k] = true;
    }
    example_free(&example);
}

/* A share of the prompts is never trained on, whatever the seed. 2000 draws of 1/5: a deviation of
   18, and five of them are allowed. */
static void test_held_out(void **state) {
    (void)state;
    enum { LINES = 2000 };
    struct DataOptions o = data_options();
    static bool held[LINES], again[LINES];
    o.eval_share = 0.2, o.eval_prompts = LINES;
    write_numbered(data_path, 0, LINES);
    struct Task *task = open_data(&o);
    assert_in_range(task->num_held_out, 400 - 5 * 18, 400 + 5 * 18);
    held_numbers(task, held, LINES);
    for (int i = 0; i < LINES; i++) assert_false(held[number_drawn(task, i)]);
    data_close(task);
    o.seed = 9, o.shuffle_buffer = 100;
    task = open_data(&o);
    held_numbers(task, again, LINES);
    assert_memory_equal(held, again, LINES);
    data_close(task);
    o.eval_prompts = 50;   /* fewer are evaluated on; what is trained on stays the same */
    task = open_data(&o);
    assert_int_equal(task->num_held_out, 50);
    held_numbers(task, again, LINES);
    uint64_t largest = 0, least = UINT64_MAX;   /* of those evaluated on; of the others held out */
    for (int k = 0; k < LINES; k++) {
        char prompt[16];
        uint64_t hash = data_hash(prompt, (size_t)snprintf(prompt, sizeof prompt, "p%d", k));
        assert_true(!again[k] || held[k]);
        if (again[k] && hash > largest) largest = hash;
        if (held[k] && !again[k] && hash < least) least = hash;
    }
    assert_true(largest < least);
    for (int i = 0; i < LINES; i++) assert_false(held[number_drawn(task, i)]);
    data_close(task);
}

/* Which prompts are held out never changes between versions. The list was computed by a program of
   its own from FNV-1a and splitmix64's finaliser; below are FNV's published values. */
static void test_held_out_of_old(void **state) {
    (void)state;
    static const int expected[] = {0, 16, 17, 44, 67, 72};
    struct DataOptions o = data_options();
    bool held[100];
    int found = 0;
    o.eval_share = 0.1;
    write_numbered(data_path, 0, 100);
    struct Task *task = open_data(&o);
    held_numbers(task, held, 100);
    for (int k = 0; k < 100; k++)
        if (held[k]) assert_int_equal(k, expected[found++]);
    assert_int_equal(found, sizeof expected / sizeof *expected);
    data_close(task);
    assert_true(data_hash("", 0) == rng_mix(0xCBF29CE484222325u));
    assert_true(data_hash("a", 1) == rng_mix(0xAF63DC4C8601EC8Cu));
}

/* Of two prompts one is held out; of one, none. */
static void test_few_prompts(void **state) {
    (void)state;
    struct DataOptions o = data_options();
    o.eval_share = 0.01;
    write_numbered(data_path, 1, 2);
    struct Task *task = open_data(&o);
    assert_int_equal(task->num_held_out, 1);
    bool held[3];
    held_numbers(task, held, 3);
    for (int i = 0; i < 4; i++) assert_false(held[number_drawn(task, i)]);
    data_close(task);
    write_numbered(data_path, 1, 1);
    task = open_data(&o);
    assert_int_equal(task->num_held_out, 0);
    assert_int_equal(number_drawn(task, 0), 1);
    data_close(task);
}

/* The other file is all held out, and what of it is in the data too is not trained on. */
static void test_eval_file(void **state) {
    (void)state;
    struct DataOptions o = data_options();
    bool held[60];
    o.eval_path = other_path, o.eval_share = 0.5;
    write_numbered(data_path, 0, 50);
    write_numbered(other_path, 40, 20);
    struct Task *task = open_data(&o);
    assert_int_equal(task->num_held_out, 20);
    held_numbers(task, held, 60);
    for (int k = 0; k < 60; k++) assert_int_equal(held[k], k >= 40);
    for (int i = 0; i < 80; i++) assert_int_equal(number_drawn(task, i), i % 40);
    data_close(task);
    write_file(other_path, "{}\n");
    struct Opening bad = {o, 0, false};
    assert_int_equal(run_in_child(open_and_draw, &bad, said, sizeof said), 2);
    assert_non_null(strstr(said, "no line of it can be used"));
}

/* ---- what is wrong with lines ---------------------------------------------------------------- */

static void test_bad_lines(void **state) {
    (void)state;
    static const struct { const char *line; size_t length; const char *says; } cases[] = {
        {"{\"prompt\": ", 0, "is not JSON"},
        {"{\"prompt\": \"a\"} x", 0, "is not JSON"},
        {"[1]", 0, "is not a JSON object"},
        {"7", 0, "is not a JSON object"},
        {"{\"text\": \"a\"}", 0, "has no prompt (a key prompt, input, question, problem or"},
        {"{\"prompt\": 7}", 0, "has a prompt that is neither text nor messages"},
        {"{\"prompt\": \"\"}", 0, "has an empty prompt"},
        {"{\"messages\": []}", 0, "has no messages in its list"},
        {"{\"messages\": [{\"content\": \"a\"}]}", 0, "has a message without a role"},
        {"{\"messages\": [{\"role\": \"user\"}]}", 0, "has a message whose content is not text"},
        {"{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}", 0,
         "has messages of the assistant only"},
        {"{\"prompt\": \"a\", \"completion\": 7}", 0, "has a completion that is neither text"},
        {"{\"prompt\": \"a\0\"}", 15, "holds a zero byte"},
        {"{\"prompt\": \"a\\u0000\"}", 0, "holds the character \\u0000"},
        {"{\"prompt\": \"\xFF\"}", 0, "is not UTF-8"},
        {"{\"prompt\": \"\\ud800\"}", 0, "is not JSON"},
        {"{\"prompt\": \"\xC3\xA9\"}", 0, "has characters for which the model's vocabulary has no"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char file[256] = "{\"prompt\": \"p0\"}\n";
        size_t at = strlen(file);
        size_t n = cases[i].length ? cases[i].length : strlen(cases[i].line);
        memcpy(file + at, cases[i].line, n);
        memcpy(file + at + n, "\n{\"prompt\": \"p1\"}\n", 18);
        write_bytes(data_path, file, at + n + 18);
        struct Opening o = {data_options(), 4, false};
        o.options.reward = "length", o.options.bad_lines = 1;
        int code = run_in_child(open_and_draw, &o, said, sizeof said);
        char expected[256];
        snprintf(expected, sizeof expected, "%s:2 %s", data_path, cases[i].says);
        if (code != 0 || !strstr(said, expected) || !strstr(said, ": passed over\n") ||
            !strstr(said, "[p0][p1][p0][p1]"))
            fail_msg("%s: exit code %d, %s", cases[i].line, code, said);
        o.options.bad_lines = 0;
        assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 2);
        assert_non_null(strstr(said, "more than 0 bad lines; mend the file or raise --bad-lines"));
    }
}

/* Each bad line is counted once, in however many passes it is met; the first five are named. */
static void test_many_bad_lines(void **state) {
    (void)state;
    struct Opening o = {data_options(), 50, false};
    o.options.reward = "length", o.options.bad_lines = 8;
    write_file(data_path, "x\nx\nx\nx\nx\nx\nx\nx\n{\"prompt\": \"p0\"}\n");
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 0);
    assert_non_null(strstr(said, ":5 is not JSON"));
    assert_null(strstr(said, ":6 is not JSON"));
    assert_non_null(strstr(said, "are counted, and no longer named"));
    o.options.bad_lines = 7;
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 2);
    assert_non_null(strstr(said, ":8 is not JSON, and so there are more than 7 bad lines"));
}

/* A line of more than 16 MB is passed over without being kept. */
static void test_huge_line(void **state) {
    (void)state;
    size_t size = (17 << 20) + 64, at = 16;
    char *file = malloc(size);
    struct Opening o = {data_options(), 4, false};
    o.options.reward = "length";
    memset(file, ' ', size);
    memcpy(file, "{\"prompt\": \"p0\"}", 16);
    file[at] = '\n';
    memcpy(file + size - 18, "\n{\"prompt\": \"p1\"}\n", 18);
    write_bytes(data_path, file, size);
    free(file);
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 0);
    assert_non_null(strstr(said, ":2 is longer than 16 MB: passed over"));
    assert_non_null(strstr(said, "[p0][p1][p0][p1]"));
}

/* Longer prompts are named with their tokens, and training does without them. */
static void test_long_prompts(void **state) {
    (void)state;
    struct Opening o = {data_options(), 3, false};
    o.options.max_prompt = 4;
    write_file(data_path, "{\"prompt\": \"1234\", \"answer\": 1}\n"
                          "{\"prompt\": \"12345\", \"answer\": 1}\n"
                          "{\"prompt\": \"123\", \"answer\": 1}\n");
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 0);
    assert_non_null(strstr(said, ":2 has a prompt of 5 tokens, and --max-prompt is 4"));
    assert_non_null(strstr(said, "[1234][123][1234]"));
    o.options.max_prompt = 2;
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 2);
    assert_non_null(strstr(said, "no line of it can be used"));
}

/* A file that is larger than what is looked through at start (64 MB), and than one in which all
   prompts are counted (8 MB): what is wrong with later lines is said when they are met, once. */
static void test_large_file(void **state) {
    (void)state;
    enum { LINES = 66, PAD = 1 << 20 };
    struct Opening o = {data_options(), 3 * (LINES + 1), false};
    char *pad = malloc(PAD + 1);
    memset(pad, 'x', PAD), pad[PAD] = 0;
    FILE *file = fopen(data_path, "wb");
    for (int k = 0; k < LINES; k++)
        fprintf(file, "{\"prompt\": \"p%d\", \"answer\": %d, \"pad\": \"%s\"}\n", k, k, pad);
    fprintf(file, "oops\n{\"prompt\": \"12345\", \"answer\": 1}\n"
            "{\"prompt\": \"p99\", \"answer\": 1}\n");
    assert_int_equal(fclose(file), 0);
    free(pad);
    o.options.max_prompt = 4;
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 0);
    assert_non_null(strstr(said, "64 lines in its first 64 MB"));
    const char *bad = strstr(said, ":67 is not JSON: passed over");
    const char *long_one = strstr(said, ":68 has a prompt of 5 tokens, and --max-prompt is 4");
    assert_true(bad && long_one);
    assert_null(strstr(bad + 1, ":67 is not JSON"));
    assert_null(strstr(long_one + 1, ":68 has a prompt"));
    assert_non_null(strstr(said, "[p65][p99][p0]"));
    assert_non_null(strstr(said, "passed over: 1 bad lines, 1 too long"));
    write_file(data_path, "");
}

/* ---- lengths --------------------------------------------------------------------------------- */

static void test_lengths(void **state) {
    (void)state;
    struct DataOptions o = data_options();
    write_numbered(data_path, 0, 100);   /* prompts p0 to p99 */
    o.max_prompt = o.max_tokens = 0;
    struct Task *task = open_data(&o);
    assert_int_equal(task->max_prompt, 3);        /* known, as the file is small */
    assert_int_equal(task->max_completion, 256);
    data_close(task);
    task = data_open(&o);
    struct Tokenizer *tokenizer = tokenizer_from_alphabet(task->alphabet);
    data_prepare(task, tokenizer, "", 19, 0);   /* rows of 20 tokens: half of them */
    assert_int_equal(task->max_completion, 10);
    data_close(task);
    tokenizer_free(tokenizer);
    o.supervised = true, o.max_tokens = 30;      /* rows of conversations need the whole room */
    write_file(data_path, "{\"text\": \"abc\"}");
    task = open_data(&o);
    assert_int_equal(task->max_prompt, 512);
    assert_int_equal(task->max_completion, 30);
    data_close(task);
}

/* ---- lessons --------------------------------------------------------------------------------- */

/* Lesson 0 as text, `_` below what has no loss and `^` below what has; rows end with |, and the
   end-of-text token is a dot. */
static void show_lesson(char *out, const char *line, struct DataOptions o) {
    struct Lesson lesson = {0};
    write_file(data_path, line);
    struct Task *task = open_data(&o);
    task->teach(task, &lesson, 0, 0);
    char marks[256];
    int n = 0;
    for (int i = 0, row = 0; i < lesson.ids.count; i++) {
        int id = lesson.ids.id[i];
        bool end = id == (int)strlen(data_alphabet);
        out[n] = end ? '.' : data_alphabet[id];
        marks[n++] = lesson.loss.bytes[i] ? '^' : '_';
        if (lesson.end.id[row] != i + 1) continue;
        out[n] = marks[n] = '|';
        n++, row++;
    }
    assert_int_equal(lesson.loss.length, lesson.ids.count);
    out[n] = ' ';
    memcpy(out + n + 1, marks, (size_t)n);
    out[2 * n + 1] = 0;
    lesson_free(&lesson);
    data_close(task);
}

static void test_lessons(void **state) {
    (void)state;
    static const struct { const char *line, *shows; int room; } cases[] = {
        {"{\"prompt\": \"ab\", \"completion\": \"cd\"}", "abcd.| __^^^|", 20},
        {"{\"prompt\": \"ab\", \"response\": \"cd\"}", "abcd.| __^^^|", 20},
        {"{\"prompt\": \"ab\", \"completion\": {\"role\": \"assistant\", \"content\": \"c\"}}",
         "abc.| __^^|", 20},
        {"{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}], \"completion\": [{\"role\": "
         "\"assistant\", \"content\": \"b\"}]}", "ab.| _^^|", 20},
        {"{\"prompt\": \"ab\", \"completion\": \"cdefgh\"}", "abcdef| __^^^^|", 6},   /* cut */
        {"{\"text\": \"abcd\"}", "abcd.| _^^^^|", 20},
        {"{\"text\": \"abcdefghij\"}", "abcd|efgh|ij.| _^^^|_^^^|_^^|", 4},
        {"{\"text\": \"abcdefgh\"}", "abcd|efgh| _^^^|_^^^|", 4},   /* one token teaches nothing */
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
         "\"content\": \"b\"}, {\"role\": \"user\", \"content\": \"c\"}, {\"role\": "
         "\"assistant\", \"content\": \"d\"}]}", "a\n\nb.\n\nc\n\nd.| ___^^_____^^|", 20},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char shows[512];
        struct DataOptions o = data_options();
        o.supervised = true, o.max_tokens = 1, o.max_prompt = cases[i].room - 1;
        show_lesson(shows, cases[i].line, o);
        assert_string_equal(shows, cases[i].shows);
    }
}

/* A row whose prompt fills it teaches nothing and is passed over; so is what is held out. */
static void test_lessons_left_out(void **state) {
    (void)state;
    struct Opening o = {data_options(), 4, true};
    o.options.supervised = true, o.options.max_tokens = 1, o.options.max_prompt = 5;
    write_file(data_path, "{\"prompt\": \"abcdefg\", \"completion\": \"c\"}\n"
                          "{\"prompt\": \"ab\", \"completion\": \"c\"}\n{\"prompt\": \"ab\"}\n");
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 0);
    assert_non_null(strstr(said, ":1 has nothing to learn within 6 tokens"));
    assert_non_null(strstr(said, ":3 has nothing to learn (a prompt with completion"));
    write_file(data_path, "{\"prompt\": \"abcdefg\", \"completion\": \"c\"}\n");
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 2);
    assert_non_null(strstr(said, "no line of it can be learnt from"));
}

/* Without objective ce, lines with completions are for the warm start; others have none. */
/* Lines {"text": "t17"}, of numbers first to first + count - 1. */
static void write_texts(const char *path, int first, int count) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    for (int i = first; i < first + count; i++) fprintf(file, "{\"text\": \"t%d\"}\n", i);
    assert_int_equal(fclose(file), 0);
}

/* Marks the numbers of a lesson's rows. */
static void mark_texts(bool *seen, const struct Lesson *lesson) {
    for (int r = 0, from = 0; r < lesson->end.count; from = lesson->end.id[r++]) {
        int number = 0;
        assert_int_equal(data_alphabet[lesson->ids.id[from]], 't');
        for (int i = from + 1; i + 1 < lesson->end.id[r]; i++)
            number = 10 * number + data_alphabet[lesson->ids.id[i]] - '0';
        assert_in_range(number, 0, 99);
        seen[number] = true;
    }
}

/* Three passes over the file's lessons, and what is held out. */
static void teach_all(bool *taught, bool *held, const struct DataOptions *o) {
    struct Task *task = open_data(o);
    for (int i = 0; i < 300; i++) {
        struct Lesson lesson = {0};
        task->teach(task, &lesson, 0, (uint64_t)i);
        mark_texts(taught, &lesson);
        lesson_free(&lesson);
    }
    assert_non_null(task->held_out_lessons);
    assert_int_equal(task->num_held_out, 0);
    mark_texts(held, task->held_out_lessons);
    data_close(task);
}

/* In a supervised run plain text is held out too: a share of it, or what is in another file.
   Nothing is both. */
static void test_held_out_lessons(void **state) {
    (void)state;
    struct DataOptions o = data_options();
    o.supervised = true, o.eval_share = 0.2, o.eval_prompts = 1000;
    write_texts(data_path, 0, 100);
    bool taught[100] = {0}, held[100] = {0};
    int count = 0;
    teach_all(taught, held, &o);
    for (int i = 0; i < 100; i++) {
        assert_true(taught[i] != held[i]);
        count += held[i];
    }
    assert_in_range(count, 5, 40);   /* of 100 at a share of 0.2 */
    write_texts(other_path, 90, 10);
    o.eval_share = 0, o.eval_path = other_path;
    memset(taught, 0, sizeof taught), memset(held, 0, sizeof held);
    teach_all(taught, held, &o);
    for (int i = 0; i < 100; i++) assert_true(held[i] == (i >= 90) && taught[i] == (i < 90));
}

static void test_warm_start(void **state) {
    (void)state;
    struct DataOptions o = data_options();
    write_numbered(data_path, 0, 5);
    struct Task *task = open_data(&o);
    assert_false(task_demonstrates(task));
    data_close(task);
    write_file(data_path, "{\"prompt\": \"a\", \"answer\": 1}\n"
                          "{\"prompt\": \"b\", \"answer\": 2, \"completion\": \"2\"}\n");
    task = open_data(&o);
    assert_true(task_demonstrates(task));
    struct Lesson lesson = {0};
    for (int i = 0; i < 3; i++) task->teach(task, &lesson, 0, (uint64_t)i);
    assert_int_equal(lesson.end.count, 3);
    assert_int_equal(lesson.ids.count, 9);   /* b, 2 and the end, three times */
    lesson_free(&lesson);
    data_close(task);
}

/* ---- rewards --------------------------------------------------------------------------------- */

/* What judges when nothing is said, by the first answer. */
static void test_auto_reward(void **state) {
    (void)state;
    static const struct { const char *answer, *name; } cases[] = {
        {"7", "number"}, {"\"1/2\"", "number"}, {"\"B\"", "choice"}, {"\"Paris\"", "exact"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[128], wanted[128];
        struct DataOptions o = data_options();
        snprintf(line, sizeof line, "{\"prompt\": \"a\", \"answer\": %s}\n", cases[i].answer);
        write_file(data_path, line);
        struct Task *task = open_data(&o);
        snprintf(wanted, sizeof wanted, "%s, rewarded by %s", data_path, cases[i].name);
        assert_string_equal(task->help, wanted);
        struct Reward reward;
        const struct Example *e = drawn(task, 0);
        struct Completion c = {.example = e, .text = e->answer.bytes,
                               .length = e->answer.length, .ended = true, .tokens = 2};
        task->judge(task, &reward, &c, 1);
        assert_true(reward.value == 1 && reward.right);
        data_close(task);
    }
}

/* ---- files ----------------------------------------------------------------------------------- */

static void test_bad_files(void **state) {
    (void)state;
    static const struct { const char *file; size_t length; const char *says; } cases[] = {
        {"", 0, "is empty"},
        {"\n\n", 0, "no line of it can be used"},
        {"{}\n", 0, "no line of it can be used"},
        {"{\"prompt\": \"a\"}\n", 0, "no line has an answer"},
        {"PAR1\1\2", 0, "is a Parquet file"},
        {"\x1F\x8B\x08", 0, "is compressed"},
        {"[{\"prompt\": \"a\"}]", 0, "is one JSON list"},
        {"version https://git-lfs.github.com/spec/v1\n", 0, "is a Git LFS pointer"},
    };
    struct Opening o = {data_options(), 0, false};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(data_path, cases[i].file);
        int code = run_in_child(open_and_draw, &o, said, sizeof said);
        if (code != 2 || !strstr(said, cases[i].says))
            fail_msg("%s: exit code %d, %s", cases[i].says, code, said);
    }
    o.options.path = "/tmp";
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 2);
    assert_non_null(strstr(said, "is not a plain file"));
    o.options.path = "/tmp/there/is/no.jsonl";
    assert_int_equal(run_in_child(open_and_draw, &o, said, sizeof said), 2);
    assert_non_null(strstr(said, "cannot read --data /tmp/there/is/no.jsonl"));
}

/* The sample that pages show: a line of each kind, of which plain text is no prompt. */
static void test_sample(void **state) {
    (void)state;
    static const char *const answers[] = {"42", "9/2 = 4.5\n#### 4.50", "B", "42", "yes", "4",
                                          "2, 3, 5"};
    struct DataOptions o = data_options();
    o.path = "examples/sample.jsonl", o.max_prompt = 80;
    struct Task *task = open_data(&o);
    for (int i = 0; i < 14; i++)
        assert_string_equal(drawn(task, i)->answer.bytes, answers[i % 7]);
    data_close(task);
    o.supervised = true;
    task = open_data(&o);
    struct Lesson lesson = {0};
    for (int i = 0; i < 3; i++) task->teach(task, &lesson, 0, (uint64_t)i);
    assert_int_equal(lesson.end.count, 3);   /* a completion, a conversation, a text */
    lesson_free(&lesson);
    data_close(task);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),          cmocka_unit_test(test_line_ends),
        cmocka_unit_test(test_byte_order_mark),
        cmocka_unit_test(test_order),         cmocka_unit_test(test_any_number),
        cmocka_unit_test(test_state),         cmocka_unit_test(test_changed_file),
        cmocka_unit_test(test_file_that_grows), cmocka_unit_test(test_held_out),
        cmocka_unit_test(test_held_out_of_old), cmocka_unit_test(test_few_prompts),
        cmocka_unit_test(test_eval_file),     cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_many_bad_lines), cmocka_unit_test(test_huge_line),
        cmocka_unit_test(test_long_prompts),
        cmocka_unit_test(test_large_file),  cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_lessons),       cmocka_unit_test(test_lessons_left_out),
        cmocka_unit_test(test_held_out_lessons),
        cmocka_unit_test(test_warm_start),    cmocka_unit_test(test_auto_reward),
        cmocka_unit_test(test_bad_files),     cmocka_unit_test(test_sample),
    };
    return cmocka_run_group_tests_name("data", tests, make_files, remove_files);
}
