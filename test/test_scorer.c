/* Scorers: a program of the user's that gives rewards over pipes. This program is also the scorer:
   run as `test_scorer serve MODE` it answers items, and does what the item's completion says. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../llmc/base/console.h"
#include "../llmc/base/json.h"
#include "../llmc/base/time.h"
#include "../llmc/tasks/scorer.h"
#include "../llmc/tasks/scorer_reply.h"
#include "child.h"
#include "test.h"

/* ---- the scorer ------------------------------------------------------------------------------ */

static void answer(const char *id, const char *reward) {
    printf("{\"id\": %s, \"reward\": %s}\n", id, reward);
    fflush(stdout);
}

/* The first time that it is asked for this path, by whichever process. */
static bool is_first(const char *path) { return mkdir(path, 0700) == 0; }

static void print_much(const char *text, size_t times) {
    while (times-- > 0) fputs(text, stdout);
}

/* What a completion may say: "= REWARD" and things that go wrong before it. */
static void obey(const char *id, const char *word, const char *rest) {
    char long_ago[] = "0";
    if (strcmp(word, "hang") == 0) for (;;) pause();
    if (strcmp(word, "hang-once") == 0 && is_first(rest)) for (;;) pause();
    if (strcmp(word, "die") == 0) exit(3);
    if (strcmp(word, "die-once") == 0 && is_first(rest)) raise(SIGKILL);
    if (strcmp(word, "flood") == 0) for (;;) puts("flood flood flood flood flood flood flood");
    if (strcmp(word, "close") == 0) {
        close(1);
        for (;;) pause();
    }
    if (strcmp(word, "half") == 0) {
        printf("{\"id\": %s, \"rew", id);
        fflush(stdout);
        for (;;) pause();
    }
    if (strcmp(word, "garbage") == 0)
        puts("loading ...\n{\"id\": }\n[1]\n\n{\"reward\": 1}\n\"\\xff\xff\n"
             "{\"id\": -1, \"reward\": 1}");
    if (strcmp(word, "huge") == 0) print_much("{\"id\": 1, 0123456789 ", 200000), puts("");
    if (strcmp(word, "unknown") == 0) answer("123456789", "1"), answer(long_ago, "1");
    if (strcmp(word, "twice") == 0) answer(id, rest);
    if (strcmp(word, "more") == 0) {
        printf("{\"id\": %s, \"continue\": \"so \\u00e4 %s\", \"role\": \"tool\"}\n", id, rest);
        fflush(stdout);
        return;
    }
    if (strcmp(word, "wrong-once") == 0 && is_first(rest)) answer(id, "\"much\"");
    else if (strcmp(word, "=") == 0 || strcmp(word, "twice") == 0) answer(id, rest);
    else answer(id, "0.5");
}

/* The value of a text member on the line. */
static void get_member(char *out, size_t capacity, const char *line, const char *key) {
    const char *at = strstr(line, key);
    size_t n = 0;
    out[0] = 0;
    if (!at) return;
    for (at += strlen(key); *at && *at != '"' && n + 1 < capacity; at++) {
        if (*at == '\\') at++;
        out[n++] = *at;
    }
    out[n] = 0;
}

static void handle(const char *line) {
    char id[32], text[256], *space;
    if (sscanf(line, "{\"id\": %30[0-9]", id) != 1) exit(9);
    get_member(text, sizeof text, line, "\"completion\": \"");
    space = strchr(text, ' ');
    if (space) *space++ = 0;
    obey(id, text, space ? space : "0");
}

/* Reads until nothing has come for a moment, and answers the last first. */
static void serve_backwards(void) {
    static char *lines[1000];
    size_t capacity = 0;
    int n = 0;
    for (;;) {
        lines[n] = NULL, capacity = 0;
        if (getline(&lines[n], &capacity, stdin) < 0) exit(0);
        fd_set set;
        FD_ZERO(&set);
        FD_SET(0, &set);
        n++;
        if (select(1, &set, NULL, NULL, &(struct timeval){0, 20000}) > 0) continue;
        while (n > 0) handle(lines[--n]), free(lines[n]);
    }
}

static int serve(const char *mode, const char *argument) {
    __lsan_disable();   /* it ends in any way, and must end at once */
    char *line = NULL;
    size_t capacity = 0;
    if (strcmp(mode, "deaf") == 0) for (;;) pause();
    if (strcmp(mode, "exit") == 0) {
        fputs("no module named judge\n", stderr);
        return 4;
    }
    if (strcmp(mode, "exit-once") == 0 && is_first(argument)) return 1;
    if (strcmp(mode, "backwards") == 0) setvbuf(stdin, NULL, _IONBF, 0), serve_backwards();
    if (strcmp(mode, "stubborn") == 0) signal(SIGTERM, SIG_IGN), signal(SIGHUP, SIG_IGN);
    if (strcmp(mode, "loud") == 0)
        for (int i = 0; i < 30000; i++) fprintf(stderr, "a line of standard error, number %d\n", i);
    if (strcmp(mode, "family") == 0) {   /* with a child of its own, whose number it writes */
        FILE *file = fopen(argument, "a");
        pid_t child = fork();
        if (child == 0) for (;;) pause();
        fprintf(file, "%d %d\n", (int)getpid(), (int)child);
        fclose(file);
    }
    while (getline(&line, &capacity, stdin) >= 0) {
        handle(line);
        if (strcmp(mode, "single") == 0) return 0;
        if (strcmp(mode, "slow") == 0) usleep(20000);
    }
    if (strcmp(mode, "stubborn") == 0) for (;;) pause();
    return 0;
}

/* ---- the rig --------------------------------------------------------------------------------- */

static char place[64], command[4600];
static bool stop_now;
static bool stops(void) { return stop_now; }

static const char *serving(const char *mode, const char *argument) {
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = 0;
    snprintf(command, sizeof command, "exec '%s' serve %s '%s'", self, mode, argument);
    return command;
}

static struct Scorer *open_scorer(const char *line, int workers, double timeout) {
    struct ScorerOptions options = {line, workers, timeout, 1, stops};
    stop_now = false;
    return scorer_open(&options);
}

static const struct Example plain = {.prompt = {"p", 1, 0}};

/* Opens it and has it tried, as the program does. */
static struct Scorer *open_tried(const char *mode, int workers, double timeout) {
    struct Scorer *s = open_scorer(serving(mode, ""), workers, timeout);
    scorer_try(s, &plain);
    return s;
}

static void score(struct Scorer *s, float *reward, const char *const *text, int count) {
    struct Completion *completion = calloc((size_t)count, sizeof *completion);
    for (int i = 0; i < count; i++)
        completion[i] = (struct Completion){.example = &plain, .text = text[i],
                                            .length = strlen(text[i]), .ended = true, .tokens = 3};
    scorer_score(s, reward, completion, count);
    free(completion);
}

/* Rewards as expected; NaN where there is to be none. */
static void assert_scores(struct Scorer *s, const char *const *text, const float *expected,
                          int count) {
    float *reward = calloc((size_t)count, sizeof *reward);
    score(s, reward, text, count);
    for (int i = 0; i < count; i++) {
        bool same = isnan(expected[i]) ? isnan(reward[i]) : reward[i] == expected[i];
        if (!same) fail_msg("item %d, \"%s\": %g, not %g", i, text[i], reward[i], expected[i]);
    }
    free(reward);
}

/* Number `count` of items "= i", with rewards i. */
static void assert_counts_up(struct Scorer *s, int count) {
    char (*word)[16] = calloc((size_t)count, sizeof *word);
    const char **text = calloc((size_t)count, sizeof *text);
    float *expected = calloc((size_t)count, sizeof *expected);
    for (int i = 0; i < count; i++) {
        snprintf(word[i], sizeof word[i], "= %d", i);
        text[i] = word[i], expected[i] = (float)i;
    }
    assert_scores(s, text, expected, count);
    free(word), free(text), free(expected);
}

static int open_descriptors(void) {
    DIR *all = opendir("/proc/self/fd");
    int n = 0;
    while (readdir(all)) n++;
    closedir(all);
    return n;
}

static bool is_alive(pid_t pid) {
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file) return false;
    int fields = fscanf(file, "%*d (%*[^)]) %c", &state);
    fclose(file);
    return fields == 1 && state != 'Z' && state != 'X';
}

static void assert_gone_soon(pid_t pid) {
    for (int i = 0; i < 300 && is_alive(pid); i++) usleep(10000);
    if (is_alive(pid)) fail_msg("process %d still runs", (int)pid);
}

/* The processes that `serve family FILE` noted in the file. */
static int read_family(const char *path, pid_t pid[8]) {
    FILE *file = fopen(path, "r");
    int n = 0;
    while (file && n < 8 && fscanf(file, "%d", &pid[n]) == 1) n++;
    if (file) fclose(file);
    return n;
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* The same rewards from any number of processes, in any order of answers. */
static void test_order_and_number_do_not_matter(void **state) {
    (void)state;
    static const char *const modes[] = {"plain", "backwards", "single"};
    for (int m = 0; m < 3; m++) {
        for (int workers = 1; workers <= 3; workers++) {
            struct Scorer *s = open_tried(modes[m], workers, 5);
            assert_counts_up(s, m == 2 ? 10 : 100);
            struct ScorerCounts counts = scorer_counts(s);
            assert_int_equal(counts.items, m == 2 ? 10 : 100);
            assert_int_equal(counts.unscored, 0);
            assert_int_equal(counts.bad_lines, 0);
            if (m < 2) assert_int_equal(counts.restarts, 0);
            scorer_close(s);
        }
    }
}

/* One bad item among good ones: only it is lost, whatever it does. */
static void test_bad_items(void **state) {
    (void)state;
    static const struct { const char *text; int restarts, bad_lines; } cases[] = {
        {"hang", 2, 0},          {"die", 2, 0},     {"flood", 2, -1},   {"close", 2, 0},
        {"half", 2, 0},          {"= \"x\"", 0, 2}, {"= NaN", 0, 2},    {"= Infinity", 0, 2},
        {"= -Infinity", 0, 2},   {"= 1e999", 0, 2}, {"= 1e39", 0, 2},   {"= [1]", 0, 2},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        const char *text[9];
        float expected[9];
        struct Scorer *s = open_tried("plain", c % 2 + 1, 0.3);
        for (int i = 0; i < 9; i++) text[i] = "= 0.25", expected[i] = 0.25f;
        text[3] = cases[c].text, expected[3] = NAN;
        double begin = seconds();
        assert_scores(s, text, expected, 9);
        struct ScorerCounts counts = scorer_counts(s);
        if (counts.restarts < cases[c].restarts - 1 || (!cases[c].restarts && counts.restarts))
            fail_msg("%s: %d restarts", cases[c].text, (int)counts.restarts);
        if (cases[c].bad_lines >= 0) assert_int_equal(counts.bad_lines, cases[c].bad_lines);
        assert_int_equal(counts.unscored, 1);
        assert_int_equal(counts.failed, 1);
        if (seconds() - begin > 8) fail_msg("%s: %g s", cases[c].text, seconds() - begin);
        assert_counts_up(s, 20);   /* and it goes on */
        scorer_close(s);
    }
}

/* What only goes wrong once, or beside a right answer, costs no reward. */
static void test_faults_that_cost_nothing(void **state) {
    (void)state;
    char once[3][128];
    static const char *const words[] = {"hang-once", "die-once", "wrong-once"};
    for (int i = 0; i < 3; i++) snprintf(once[i], sizeof once[i], "%s %s/%d", words[i], place, i);
    const char *text[] = {"= 1", once[0], "garbage", once[1], "huge", "twice 0.75", "unknown",
                          once[2], "= null", "= true", "= false", "= -3.5e-2"};
    float expected[] = {1, 0.5f, 0.5f, 0.5f, 0.5f, 0.75f, 0.5f, 0.5f, NAN, 1, 0, -3.5e-2f};
    struct Scorer *s = open_tried("plain", 2, 0.5);
    assert_scores(s, text, expected, 12);
    struct ScorerCounts counts = scorer_counts(s);
    assert_int_equal(counts.unscored, 1);   /* null */
    assert_int_equal(counts.failed, 0);
    assert_true(counts.restarts >= 1 && counts.restarts <= 2);
    assert_true(counts.bad_lines >= 7 + 1 + 1 + 2 + 1);   /* more where an item was asked again */
    assert_counts_up(s, 20);
    scorer_close(s);
}

/* Texts of all kinds arrive whole; a line that does not fit into a pipe does too. */
static void test_requests(void **state) {
    (void)state;
    char path[128], line[256], *big = malloc(300001);
    snprintf(path, sizeof path, "%s/requests", place);
    snprintf(line, sizeof line, "tee %s | sed -u 's/,.*/, \"reward\": 2}/'", path);
    memset(big, 'x', 300000), big[300000] = 0;
    struct Example example = {
        .prompt = {"a\n\"b\"\t\\", 7, 0}, .answer = {"4\xff", 2, 0},
        .metadata = {"{\"n\":\r[1,\n2], \"s\": \"\x01 \\\" \"}", 27, 0}};
    struct Completion completion[] = {
        {.example = &example, .text = "\xe4\xbd\xa0\xf0\x9f\x98\x80 \xc3\x28", .length = 10,
         .ended = true},
        {.example = &plain, .text = "zero \0 byte", .length = 11},
        {.example = &plain, .text = big, .length = 300000, .ended = true}};
    float reward[3];
    struct Scorer *s = open_scorer(line, 1, 5);
    scorer_score(s, reward, completion, 3);
    for (int i = 0; i < 3; i++) assert_float_equal(reward[i], 2, 0);
    scorer_close(s);
    FILE *file = fopen(path, "r");
    char *text = NULL;
    size_t capacity = 0;
    static const char *const first[] = {
        "{\"id\": 0, \"prompt\": \"a\\n\\\"b\\\"\\u0009\\\\\", \"completion\": "
        "\"\xe4\xbd\xa0\xf0\x9f\x98\x80 \\ufffd(\", \"ended\": true, \"answer\": \"4\\ufffd\", "
        "\"metadata\": "
        "{\"n\": [1, 2], \"s\": \"\\u0001 \\\" \"}}\n",
        "{\"id\": 1, \"prompt\": \"p\", \"completion\": \"zero \\u0000 byte\", \"ended\": false, "
        "\"answer\": null, "
        "\"metadata\": {}}\n"};
    for (int i = 0; i < 2; i++) {
        assert_true(getline(&text, &capacity, file) > 0);
        assert_string_equal(text, first[i]);
    }
    assert_true(getline(&text, &capacity, file) > 300000);
    fclose(file), free(text), free(big);
}

/* An environment's items, one by one, while others are asked and answered: each gets its answer,
   whatever its process goes through. */
static void test_conversations(void **state) {
    (void)state;
    static const char *const text[] = {"more 1", "= 2", "die-once", "more 4", "hang", "garbage",
                                       "more 7", "die", "twice 3", "more 10", "= -1", "more 12"};
    enum { ITEMS = sizeof text / sizeof *text, ROUNDS = 30 };
    static struct { bool there, goes_on; float score; char says[32]; } got[ITEMS * ROUNDS];
    struct Scorer *s = open_tried("good", 3, 0.5);
    int there = 0;
    scorer_begin(s);
    for (int i = 0; i < ITEMS * ROUNDS; i++) {
        char copy[128];   /* what is asked need not stay */
        bool hard = i >= ITEMS && (i % ITEMS == 4 || i % ITEMS == 7);   /* once is enough */
        snprintf(copy, sizeof copy, "%s", hard ? "= 9" : text[i % ITEMS]);
        if (i % ITEMS == 2) snprintf(copy, sizeof copy, "die-once %s/died", place);
        struct Turn turn = {"assistant", copy, strlen(copy)};
        struct Completion c = {.example = &plain, .text = copy, .length = strlen(copy),
                               .ended = true, .turn = &turn, .num_turns = 1};
        scorer_ask(s, &c, i);
        struct Answer a;
        bool last = i == ITEMS * ROUNDS - 1;
        while (scorer_answer(s, &a, last)) {
            assert_false(got[a.number].there);
            got[a.number].there = true, there++;
            got[a.number].goes_on = a.goes_on, got[a.number].score = a.score;
            if (!a.goes_on) assert_true(a.judged);
            if (a.goes_on) assert_string_equal(a.role, "tool");
            if (a.goes_on) assert_int_equal(strlen(a.text), a.length);
            snprintf(got[a.number].says, sizeof got->says, "%s", a.goes_on ? a.text : "");
        }
    }
    assert_int_equal(there, ITEMS * ROUNDS);
    for (int i = 0; i < ITEMS * ROUNDS; i++) {
        static const float reward[ITEMS] = {0, 2, 0.5f, 0, NAN, 0.5f, 0, NAN, 3, 0, -1, 0};
        int k = i % ITEMS;
        float wanted = i >= ITEMS && (k == 4 || k == 7) ? 9 : reward[k];
        char says[32] = "";
        if (k % 3 == 0 || k == 11) snprintf(says, sizeof says, "so \xc3\xa4%s", text[k] + 4);
        assert_int_equal(got[i].goes_on, says[0] != 0);
        assert_string_equal(got[i].says, says);
        if (!got[i].goes_on) assert_true(isnan(wanted) ? isnan(got[i].score)
                                                       : got[i].score == wanted);
    }
    assert_int_equal(scorer_counts(s).failed, 2);
    assert_int_equal(scorer_counts(s).items, ITEMS * ROUNDS);

    /* rewards after it: those that are judged are not asked for, and a text is no reward */
    struct Completion c[] = {{.example = &plain, .text = "= 5", .length = 3},
                             {.example = &plain, .text = "= 6", .length = 3, .judged = true,
                              .score = 0.25f},
                             {.example = &plain, .text = "more", .length = 4, .final = true}};
    float score[3];
    scorer_score(s, score, c, 3);
    assert_true(score[0] == 5 && score[1] == 0.25f && isnan(score[2]));
    assert_int_equal(scorer_counts(s).items, ITEMS * ROUNDS + 2);
    assert_int_equal(scorer_counts(s).failed, 3);
    scorer_close(s);
}

/* What a line says of several turns. */
static void test_requests_of_turns(void **state) {
    (void)state;
    char path[128], line[256], *text = NULL;
    size_t capacity = 0;
    snprintf(path, sizeof path, "%s/turns", place);
    snprintf(line, sizeof line, "tee %s | sed -u 's/,.*/, \"reward\": 2}/'", path);
    struct Turn turn[] = {{"assistant", "a\n\"", 3}, {"tool", "\xff", 1}, {"assistant", "", 0}};
    struct Completion c = {.example = &plain, .text = "a\n\"\xff", .length = 4, .turn = turn,
                           .num_turns = 3, .final = true};
    float reward;
    struct Scorer *s = open_scorer(line, 1, 5);
    scorer_score(s, &reward, &c, 1);
    scorer_close(s);
    FILE *file = fopen(path, "r");
    assert_true(getline(&text, &capacity, file) > 0);
    assert_string_equal(text,
        "{\"id\": 0, \"prompt\": \"p\", \"completion\": \"a\\n\\\"\\ufffd\", \"ended\": false, "
        "\"answer\": null, \"metadata\": {}, \"turn\": 1, \"turns\": "
        "[{\"role\": \"assistant\", \"content\": \"a\\n\\\"\"}, {\"role\": \"tool\", "
        "\"content\": \"\\ufffd\"}, {\"role\": \"assistant\", \"content\": \"\"}], "
        "\"final\": true}\n");
    fclose(file), free(text);
}

/* A scorer that is of no use does not hold a batch for long, and a later batch less so. */
static void test_hopeless(void **state) {
    (void)state;
    static const char *const modes[] = {"deaf", "exit"};
    const char *text[64];
    float expected[64];
    for (int i = 0; i < 64; i++) text[i] = "= 1", expected[i] = NAN;
    for (int m = 0; m < 2; m++) {
        struct Scorer *s = open_scorer(serving(modes[m], ""), 4, 0.1);
        double begin = seconds();
        assert_scores(s, text, expected, 64);
        double first = seconds() - begin;
        struct ScorerCounts counts = scorer_counts(s);
        assert_int_equal(counts.failed, 64);
        assert_true(counts.restarts <= 2 * 4 + 8);
        assert_scores(s, text, expected, 64);
        double second = seconds() - begin - first;
        if (first > 12 || second > 8) fail_msg("%s: %g s, %g s", modes[m], first, second);
        scorer_close(s);
    }
}

static void try_at_start(void *line) {
    console_open(false);
    struct Scorer *s = open_scorer(line, 2, 0.2);
    scorer_try(s, &plain);
    scorer_close(s);
}

/* Commands that cannot work are one line and exit code 2 at start; slow ones are a warning. */
static void test_start(void **state) {
    (void)state;
    char once[128], output[8192], name[128];
    snprintf(once, sizeof once, "%s/started", place);
    snprintf(name, sizeof name, "%s/not-executable", place);
    fclose(fopen(name, "w"));
    static const struct { const char *line, *mode; int code; const char *says; } cases[] = {
        {"/no/such/program", NULL, 2, "is not found (exit code 127)"},
        {"exec /no/such/program 2>/dev/null", NULL, 2, "is not found (exit code 127)"},
        {"NAME", NULL, 2, "may not be run (exit code 126)"},
        {"unbalanced '", NULL, 2, "ends (exit code 2) before it answers a first item"},
        {NULL, "exit", 2, "exit code 4) before it answers a first item, an example with an empty "
                          "completion; it said last: no module named judge"},
        {"kill -9 $$", NULL, 2, "ends (signal 9 (Killed))"},
        {NULL, "exit-once", 0, "2 processes: first answers after"},
        {NULL, "plain", 0, "2 processes: first answers after"},
        {NULL, "deaf", 0, "warning: the scorer gave no valid answer to a first item in"},
        {"while :; do echo x; done", NULL, 0, "gave no valid answer to a first item"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *line = cases[i].line;
        if (!line) line = serving(cases[i].mode, once);
        else if (strcmp(line, "NAME") == 0) line = name;
        double begin = seconds();
        int code = run_in_child(try_at_start, (void *)line, output, sizeof output);
        if (code != cases[i].code || !strstr(output, cases[i].says))
            fail_msg("%s: exit code %d: %s", line, code, output);
        if (seconds() - begin > 8) fail_msg("%s: %g s", line, seconds() - begin);
        char *error = strstr(output, "train: error");
        if (code == 2) assert_true(error && strchr(error, '\n') == output + strlen(output) - 1);
    }
}

/* What is shown of standard error is bounded, and what is not is counted. */
static void show_errors(void *line) {
    console_open(false);
    struct Scorer *s = open_scorer(line, 1, 5);
    scorer_try(s, &plain);
    assert_counts_up(s, 10);
    usleep(1100000);   /* time for another line */
    const char *const text[] = {"die"};
    assert_scores(s, text, (const float[]){NAN}, 1);
    scorer_close(s);
}
static void test_standard_error(void **state) {
    (void)state;
    char output[1 << 16];
    int code = run_in_child(show_errors, (void *)serving("loud", ""), output, sizeof output);
    if (code != 0) fail_msg("exit code %d: %s", code, output);
    assert_non_null(strstr(output, "scorer 1: a line of standard error, number 0\n"));
    assert_non_null(strstr(output, "scorer 1: a line of standard error, number 19\n"));
    assert_null(strstr(output, "number 20\n"));
    assert_non_null(strstr(output, " more lines were not shown)\n"));
    assert_true(strlen(output) < 4000);
}

/* Asked to stop, a batch gets a moment and is then given up, and the scorer ends. */
static void test_stop(void **state) {
    (void)state;
    const char *text[] = {"= 1", "hang", "= 1"};
    float reward[3];
    struct Scorer *s = open_tried("plain", 1, 1000);
    stop_now = true;
    double begin = seconds();
    score(s, reward, text, 3);
    assert_true(scorer_interrupted(s));
    scorer_close(s);
    if (seconds() - begin > 4) fail_msg("%g s", seconds() - begin);
    s = open_tried("plain", 1, 1000);   /* what is ready soon is taken */
    stop_now = true;
    assert_counts_up(s, 50);
    assert_false(scorer_interrupted(s));
    scorer_close(s);
    stop_now = false;
}

/* Nothing is left behind: no process, none that waits to be waited for, no descriptor. */
static void test_nothing_is_left(void **state) {
    (void)state;
    char path[128];
    pid_t pid[8];
    int before = open_descriptors();
    snprintf(path, sizeof path, "%s/family", place);
    for (int round = 0; round < 2; round++) {
        const char *text[] = {"= 1", "die", "= 1", "close", "flood"};
        float expected[] = {1, NAN, 1, NAN, NAN};
        struct Scorer *s = open_scorer(serving(round ? "stubborn" : "family", path), 2, 0.3);
        scorer_try(s, &plain);
        assert_scores(s, text, expected, 5);
        double begin = seconds();
        scorer_close(s);
        if (seconds() - begin > 2.5) fail_msg("the end took %g s", seconds() - begin);
    }
    int n = read_family(path, pid);
    assert_true(n >= 4);
    for (int i = 0; i < n; i++) assert_gone_soon(pid[i]);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(open_descriptors(), before);
}

/* What a process has open is its pipes only. */
static void test_descriptors_of_a_process(void **state) {
    (void)state;
    int leak = open("/dev/null", O_RDONLY);   /* as fopen does: without O_CLOEXEC */
    struct Scorer *s = open_scorer(
        "while read -r line; do n=$(echo /proc/$$/fd/* | wc -w); "
        "echo \"$line\" | sed \"s/,.*/, \\\"reward\\\": $n}/\"; done", 1, 5);
    const char *text[] = {"", ""};
    float reward[2];
    score(s, reward, text, 2);
    if (reward[0] > 5) fail_msg("%g descriptors", reward[0]);   /* 0 1 2, and those of $() */
    close(leak);
    scorer_close(s);
}

/* A program that uses a scorer, in a process of its own; it waits in an item that hangs. */
static pid_t start_victim(const char *path, void (*dies)(void)) {
    const char *line = serving("family", path);
    pid_t victim = fork();
    if (victim != 0) return victim;
    float reward[2];
    for (int i = 0; i < 3; i++)   /* whoever runs the tests may ignore them (nohup, a shell's &) */
        signal((const int[]){SIGTERM, SIGINT, SIGHUP}[i], SIG_DFL);
    struct Scorer *s = open_scorer(line, 1, 1000);
    scorer_try(s, &plain);
    if (dies) dies();
    score(s, reward, (const char *const[]){"= 1", "hang"}, 2);
    _exit(0);
}
static void die_of_it(void) { exit(1); }

/* However the program ends, its scorers end, and what they started. */
static void test_program_that_ends(void **state) {
    (void)state;
    static const int signals[] = {SIGKILL, SIGTERM, SIGINT, SIGHUP, 0};
    for (int i = 0; i < 5; i++) {
        char path[128];
        pid_t pid[8];
        int n = 0;
        snprintf(path, sizeof path, "%s/victim-%d", place, i);
        pid_t victim = start_victim(path, signals[i] ? NULL : die_of_it);
        for (int k = 0; k < 500 && (n = read_family(path, pid)) < 2; k++) usleep(10000);
        assert_int_equal(n, 2);
        if (signals[i]) usleep(50000), kill(victim, signals[i]);
        waitpid(victim, NULL, 0);
        for (int k = 0; k < n; k++) assert_gone_soon(pid[k]);
    }
}

/* The program's own handling of SIGPIPE sees nothing of a scorer that closes its input. */
static volatile sig_atomic_t pipes_broken;
static void count_broken(int number) { (void)number, pipes_broken++; }
static void test_no_sigpipe(void **state) {
    (void)state;
    signal(SIGPIPE, count_broken);
    struct Scorer *s = open_scorer("exec <&-; sleep 100", 1, 0.2);
    const char *text[] = {"= 1", "= 1"};
    assert_scores(s, text, (const float[]){NAN, NAN}, 2);
    scorer_close(s);
    assert_int_equal(pipes_broken, 0);
    signal(SIGPIPE, SIG_DFL);
}

/* Lines as a scorer may write them. */
static void test_replies(void **state) {
    (void)state;
    static const struct { const char *line; enum ReplyKind kind; double id, reward; } cases[] = {
        {"{\"id\": 7, \"reward\": 0.5}", REPLY_REWARD, 7, 0.5},
        {" {\"reward\":-1,\"more\":{\"id\":3},\"id\":\"12\"}\r", REPLY_REWARD, 12, -1},
        {"{\"id\": 7, \"reward\": null}", REPLY_NONE, 7, NAN},
        {"{\"id\": 7, \"reward\": true}", REPLY_REWARD, 7, 1},
        {"{\"id\": 7, \"reward\": 3.4028235e38}", REPLY_REWARD, 7, 3.4028234663852886e38},
        {"{\"id\": 7, \"reward\": 3.5e38}", REPLY_NO_REWARD, 7, NAN},
        {"{\"id\": 7, \"reward\": NaN}", REPLY_NO_REWARD, 7, NAN},
        {"{\"id\": 7, \"s\": \"\\\" NaN\", \"reward\": -Infinity}", REPLY_NO_REWARD, 7, NAN},
        {"{\"id\": 7, \"s\": \"NaN\", \"reward\": 1}", REPLY_REWARD, 7, 1},
        {"{\"id\": 7}", REPLY_NO_REWARD, 7, NAN},
        {"{\"id\": 7, \"continue\": \"\"}", REPLY_CONTINUE, 7, NAN},
        {"{\"id\": 7, \"continue\": \"x\", \"role\": \"tool\"}", REPLY_CONTINUE, 7, NAN},
        {"{\"id\": 7, \"continue\": \"x\", \"reward\": null}", REPLY_CONTINUE, 7, NAN},
        {"{\"id\": 7, \"continue\": \"x\", \"reward\": 1}", REPLY_REWARD, 7, 1},
        {"{\"id\": 7, \"continue\": null, \"reward\": null}", REPLY_NONE, 7, NAN},
        {"{\"id\": 7, \"continue\": 7}", REPLY_NO_REWARD, 7, NAN},
        {"{\"id\": 7, \"continue\": \"x\", \"role\": \"system\"}", REPLY_NO_REWARD, 7, NAN},
        {"{\"id\": 7, \"continue\": \"x\", \"role\": 1}", REPLY_NO_REWARD, 7, NAN},
        {"{\"continue\": \"x\"}", REPLY_NO_ID, -1, NAN},
        {"{\"id\": 7, \"reward\": \"1\"}", REPLY_NO_REWARD, 7, NAN},
        {"{\"id\": 7.5, \"reward\": 1}", REPLY_NO_ID, -1, NAN},
        {"{\"id\": 1e300, \"reward\": 1}", REPLY_NO_ID, -1, NAN},
        {"{\"id\": NaN, \"reward\": 1}", REPLY_NO_ID, -1, NAN},
        {"{\"id\": -1, \"reward\": 1}", REPLY_NO_ID, -1, NAN},
        {"{\"id\": \"\", \"reward\": 1}", REPLY_NO_ID, -1, NAN},
        {"{\"id\": \"0x10\", \"reward\": 1}", REPLY_NO_ID, -1, NAN},
        {"{\"id\": null, \"reward\": 1}", REPLY_NO_ID, -1, NAN},
        {"{\"reward\": 1}", REPLY_NO_ID, -1, NAN},
        {"{}", REPLY_NO_ID, -1, NAN},
        {"{\"id\": 7, \"reward\": 1} {}", REPLY_NOT_JSON, -1, NAN},
        {"{\"id\": 7, \"reward\": 1", REPLY_NOT_JSON, -1, NAN},
        {"[{\"id\": 7, \"reward\": 1}]", REPLY_NOT_JSON, -1, NAN},
        {"7", REPLY_NOT_JSON, -1, NAN}, {"", REPLY_NOT_JSON, -1, NAN},
        {"{", REPLY_NOT_JSON, -1, NAN}, {"\xff\xfe}", REPLY_NOT_JSON, -1, NAN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Reply reply = scorer_reply(cases[i].line, strlen(cases[i].line));
        bool same = isnan(cases[i].reward) ? isnan(reply.reward)
                                           : reply.reward == (float)cases[i].reward;
        if (reply.kind != cases[i].kind || (double)reply.id != cases[i].id || !same)
            fail_msg("%s: kind %d, id %lld, reward %g", cases[i].line, (int)reply.kind,
                     (long long)reply.id, reply.reward);
    }
    assert_int_equal(scorer_reply("{\"id\": 7, \0\"reward\": 1}", 23).kind, REPLY_NOT_JSON);
}

static int make_place(void **state) {
    (void)state;
    json_memory(malloc);
    console_open(true);
    snprintf(place, sizeof place, "/tmp/policy-scorer-XXXXXX");
    return mkdtemp(place) ? 0 : -1;
}

static int remove_place(void **state) {
    (void)state;
    char line[128];
    snprintf(line, sizeof line, "rm -rf %s", place);
    return system(line);
}

int main(int argc, char **argv) {
    if (argc > 2 && strcmp(argv[1], "serve") == 0) return serve(argv[2], argc > 3 ? argv[3] : "");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_number_do_not_matter),
        cmocka_unit_test(test_bad_items),
        cmocka_unit_test(test_faults_that_cost_nothing),
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_conversations),
        cmocka_unit_test(test_requests_of_turns),
        cmocka_unit_test(test_hopeless),
        cmocka_unit_test(test_start),
        cmocka_unit_test(test_standard_error),
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_nothing_is_left),
        cmocka_unit_test(test_descriptors_of_a_process),
        cmocka_unit_test(test_program_that_ends),
        cmocka_unit_test(test_no_sigpipe),
        cmocka_unit_test(test_replies),
    };
    return cmocka_run_group_tests(tests, make_place, remove_place);
}
