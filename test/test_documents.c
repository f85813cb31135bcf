/* The pages against the program: every option that a page names is in the option table, and the
   keys that doc/formats.md lists are those that the program writes, no more and no fewer. Run from
   the root of the tree, as the other tests that read files of it. */
#include "program_rig.h"
#include "../llmc/run/options.h"

#define SMALL "--quiet --warm-start 2 --warm-batch 16 --prompts 4 --group 4 --eval-prompts 4 " \
              "--eval-samples 4 --rollouts-every 1 "

static char *read_page(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is missing; run this from the root of the tree", path);
    char *text = calloc(1, 1 << 17);
    size_t n = fread(text, 1, (1 << 17) - 1, file);
    assert_true(feof(file) && n > 0);
    fclose(file);
    return text;
}

/* ---- options --------------------------------------------------------------------------------- */

static bool is_option(const char *name, size_t length) {
    /* Options of programs beside ./train that pages name. */
    static const char *const others[] = {"check", "summary", "logdir", "help", "config",
                                         /* torchrun's, srun's and mpirun's */
                                         "no-python", "nnodes", "nproc-per-node", "rdzv-backend",
                                         "rdzv-endpoint", "nodes", "ntasks-per-node", "map-by"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strlen(others[i]) == length && strncmp(others[i], name, length) == 0) return true;
    for (int i = 0; options_row(i); i++) {
        const char *row = options_row(i)->name;
        if (strlen(row) == length && strncmp(row, name, length) == 0) return true;
    }
    return false;
}

static void test_options_of_the_pages(void **state) {
    (void)state;
    static const char *const pages[] = {"README.md", "CONTRIBUTING.md", "doc/tour.md",
                                        "doc/glossary.md", "doc/formats.md", "doc/objectives.md",
                                        "doc/entropy.md", "doc/head.md", "doc/benchmarks.md",
                                        "doc/cuda.md", "doc/cudasim.md", "doc/data.md",
                                        "doc/memory.md", "doc/scaling.md"};
    int wrong = 0, seen = 0;
    for (size_t i = 0; i < sizeof pages / sizeof *pages; i++) {
        char *page = read_page(pages[i]);
        for (char *at = page; (at = strstr(at, "--")) != NULL; at += 2) {
            size_t length = strspn(at + 2, "abcdefghijklmnopqrstuvwxyz0123456789-");
            bool begins = at == page || strchr(" \n`(", at[-1]);
            if (!begins || !(at[2] >= 'a' && at[2] <= 'z')) continue;
            seen++;
            if (is_option(at + 2, length)) continue;
            print_error("%s: there is no option --%.*s\n", pages[i], (int)length, at + 2);
            wrong++;
        }
        free(page);
    }
    assert_true(seen > 50);
    assert_int_equal(wrong, 0);
}

/* ---- keys ------------------------------------------------------------------------------------ */

struct Keys {
    int count;
    char key[160][64];
};

static void add_key(struct Keys *keys, const char *key) {
    for (int i = 0; i < keys->count; i++)
        if (strcmp(keys->key[i], key) == 0) return;
    assert_true(keys->count < 160 && strlen(key) < sizeof keys->key[0]);
    strcpy(keys->key[keys->count++], key);
}

/* A documented key may end with *: any key that begins like it. */
static bool matches(const char *documented, const char *key) {
    size_t length = strlen(documented);
    if (documented[length - 1] == '*') return strncmp(documented, key, length - 1) == 0;
    return strcmp(documented, key) == 0;
}

/* The names in backquotes of a table row's first cell. One that begins with / or @ replaces the end
   of the name before, from that sign on: `eval/pass@1`, `@4`. */
static void add_row(struct Keys *keys, const char *row) {
    const char *end = strchr(row + 1, '|'), *at = row;
    char last[64] = "";
    while ((at = strchr(at, '`')) != NULL && at < end) {
        const char *close = strchr(++at, '`');
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)(close - at), at);
        if (*name == '/' || *name == '@') {
            char *from = strrchr(last, *name);
            assert_non_null(from);
            snprintf(from, sizeof last - (size_t)(from - last), "%s", name);
        } else {
            snprintf(last, sizeof last, "%s", name);
        }
        add_key(keys, last);
        at = close + 1;
    }
}

/* The keys in the tables of a section of doc/formats.md. */
static void read_section(struct Keys *keys, const char *heading) {
    char *page = read_page("doc/formats.md"), *rest = strstr(page, heading), *line;
    keys->count = 0;
    if (!rest) fail_msg("doc/formats.md has no section %s", heading);
    strsep(&rest, "\n");
    while ((line = strsep(&rest, "\n")) && *line != '#')
        if (strncmp(line, "| `", 3) == 0) add_row(keys, line);
    free(page);
    assert_true(keys->count > 0);
}

/* The keys of every line of a file in the test's directory. */
static void add_file(struct Keys *keys, const char *name) {
    size_t size;
    char *text = read_file(name, &size), *rest = text, *line;
    bool lines = strstr(name, ".jsonl") != NULL;
    while ((line = lines ? strsep(&rest, "\n") : strsep(&rest, "")) && *line) {
        cJSON *object = cJSON_Parse(line), *item;
        assert_non_null(object);
        cJSON_ArrayForEach(item, object) add_key(keys, item->string);
        cJSON_Delete(object);
    }
    free(text);
}

/* Compares both ways. elsewhere: documented keys that these runs cannot write. */
static void compare(const char *heading, const struct Keys *written, const char *elsewhere) {
    static struct Keys documented;
    int wrong = 0;
    read_section(&documented, heading);
    for (int i = 0; i < written->count; i++) {
        int k = 0;
        while (k < documented.count && !matches(documented.key[k], written->key[i])) k++;
        if (k < documented.count) continue;
        print_error("doc/formats.md, %s: %s is written and not there\n", heading, written->key[i]);
        wrong++;
    }
    for (int k = 0; k < documented.count; k++) {
        char word[80];
        int i = 0;
        snprintf(word, sizeof word, " %s ", documented.key[k]);
        while (i < written->count && !matches(documented.key[k], written->key[i])) i++;
        if (i < written->count || strstr(elsewhere, word)) continue;
        print_error("doc/formats.md, %s: %s is never written\n", heading, documented.key[k]);
        wrong++;
    }
    assert_int_equal(wrong, 0);
}

static void test_keys_of_the_files(void **state) {
    (void)state;
    static struct Keys metrics, others;
    /* Together these write every key that the CPU's float32 and complete rewards can write. */
    static const char *const runs[] = {
        "--objective repo_d --kl-coef 0.1 --tasks countdown:2,countdown_sorted:2",
        "--steps 2 --objective adapo --eval-samples 64",
        "--steps 2 --objective dapo --entropy-control adaptive_bonus",
        "--steps 1 --task calculator"};
    for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) {
        char name[64];
        RUN_OK("$T " SMALL "%s --run keys-%zu", runs[i], i);
        snprintf(name, sizeof name, "keys-%zu/metrics.jsonl", i);
        add_file(&metrics, name);
    }
    RUN_OK("seq 9 | sed 's/.*/{\"text\": \"&+&\"}/' >learn.jsonl; $T " SMALL
           "--data learn.jsonl --warm-start 0 --objective ce --steps 1 --run keys-learn");
    add_file(&metrics, "keys-learn/metrics.jsonl");
    compare("## metrics.jsonl", &metrics, " loss_scale loss_scale_overflows completions/unscored "
            "eval/unscored perf/peak_host_mem_gb scorer/unscored scorer/failed scorer/restarts "
            "scorer/bad_lines ranks comm/calls comm/bytes timing/comm timing/comm_exposed "
            "perf/slowest_rank ");
    add_file(&others, "keys-1/warm_start.jsonl");
    compare("## warm_start.jsonl", &others, "");
    others.count = 0;
    add_file(&others, "keys-1/checkpoints/step_000002/trainer_state.json");
    RUN_OK("echo '{\"prompt\": \"1+1=\", \"answer\": 2}' > sum.jsonl; $T " SMALL
           "--data sum.jsonl --warm-start 0 --steps 1 --run keys-data");
    add_file(&others, "keys-data/checkpoints/step_000001/trainer_state.json");
    compare("### trainer_state.json", &others, "");
}

/* A section that shows a line instead of a table: each key of the file is in it, in quotes. */
static void test_keys_of_the_examples(void **state) {
    (void)state;
    static const struct { const char *heading, *file; } shown[] = {
        {"## attention_entropy.jsonl", "shown/attention_entropy.jsonl"},
        {"## rollouts.jsonl", "shown/rollouts.jsonl"}};
    RUN_OK("$T " SMALL "--steps 2 --run shown");
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        static struct Keys keys;
        char *page = read_page("doc/formats.md"), *section = strstr(page, shown[i].heading);
        assert_non_null(section);
        *strstr(section + 2, "\n## ") = 0;
        keys.count = 0;
        add_file(&keys, shown[i].file);
        for (int k = 0; k < keys.count; k++) {
            char quoted[80];
            snprintf(quoted, sizeof quoted, "\"%s\":", keys.key[k]);
            if (!strstr(section, quoted)) fail_msg("%s lacks %s", shown[i].heading, quoted);
        }
        free(page);
    }
}

int main(void) {
    always = "--backend cpu";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options_of_the_pages),
        cmocka_unit_test(test_keys_of_the_files),
        cmocka_unit_test(test_keys_of_the_examples),
    };
    return cmocka_run_group_tests(tests, make_place, remove_place);
}
