/* run/options: the line, config files, and that help, parser and saved file agree. */
#include "test.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include "../llmc/run/choose.h"
#include "../llmc/run/options.h"
#include "child.h"

static char output[1 << 15];
static char folder[] = "/tmp/test_options_XXXXXX";
static char config_path[64];

static int make_folder(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(config_path, sizeof config_path, "%s/config.json", folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    remove(config_path);
    return remove(folder);
}

static void write_config(const char *text, size_t length) {
    FILE *file = fopen(config_path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, length, file), length);
    assert_int_equal(fclose(file), 0);
}

/* Splits `line` at spaces (an argument @ is the config file) and parses it. */
static void parse_line(struct Options *options, const char *line) {
    char copy[2048], *argv[64] = {"train"};
    int argc = 1;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        argv[argc++] = strcmp(word, "@") == 0 ? config_path : word;
    options_parse(options, argc, argv);
}

static void parses(void *line) {
    struct Options options;
    parse_line(&options, line);
}

static int code_of(const char *line) {
    return run_in_child(parses, (void *)line, output, sizeof output);
}

/* ---- the line -------------------------------------------------------------------------------- */

static void test_defaults(void **state) {
    (void)state;
    struct Options o;
    memset(&o, 0xEE, sizeof o);
    parse_line(&o, "");
    assert_string_equal(o.task, "countdown");
    assert_string_equal(o.model, "tiny");
    assert_string_equal(o.objective, "grpo");
    assert_string_equal(o.entropy_control, "");
    assert_string_equal(choose_scale(&o), "tiny");   /* as the help says */
    strcpy(o.data, "lines.jsonl");
    assert_string_equal(choose_scale(&o), "tiny");
    strcpy(o.model, "some/directory");
    assert_string_equal(choose_scale(&o), "llm");
    strcpy(o.scale, "tiny");
    assert_string_equal(choose_scale(&o), "tiny");
    parse_line(&o, "--model some/directory");
    assert_string_equal(choose_scale(&o), "tiny");   /* a model of a built-in task */
    parse_line(&o, "");
    assert_string_equal(o.backend, "auto");
    assert_string_equal(o.run, "");
    assert_true(isnan(o.clip_low) && isnan(o.clip_high) && isnan(o.kl_coef));
    assert_int_equal(o.steps, 600);
    assert_int_equal(o.warm_start, 300);
    assert_int_equal(o.warm_batch, 256);
    assert_int_equal(o.prompts, 32);
    assert_int_equal(o.group, 16);
    assert_int_equal(o.minibatches, 4);
    assert_int_equal(o.epochs, 1);
    assert_int_equal(o.eval_every, 50);
    assert_int_equal(o.keep, 2);
    assert_int_equal(o.seed, 1);
    assert_int_equal(o.threads, 0);
    assert_true(o.lr == 1e-4 && o.warm_lr == 1e-3 && o.beta1 == 0.9 && o.beta2 == 0.95);
    assert_true(o.temperature == 1 && o.grad_clip == 1 && o.weight_decay == 0);
    assert_false(o.overwrite || o.quiet || o.help || o.dry_run || o.untied || o.eval_only);
    assert_false(options_given(&o, "steps"));
}

static void test_line(void **state) {
    (void)state;
    struct Options o;
    parse_line(&o, "--steps 7 --lr=3e-5 --task split --overwrite --quiet true --untied=true "
                   "--dry-run false --seed 9007199254740991 --run= --backend cpu --steps 9");
    assert_int_equal(o.steps, 9);
    assert_true(o.lr == 3e-5);
    assert_string_equal(o.task, "split");
    assert_true(o.overwrite && o.quiet && o.untied && !o.dry_run);
    assert_int_equal(o.seed, 9007199254740991);
    assert_string_equal(o.backend, "cpu");
    assert_true(options_given(&o, "steps") && options_given(&o, "dry-run"));
    assert_true(options_given(&o, "run"));
    assert_false(options_given(&o, "prompts") || options_given(&o, "no-such-option"));
}

/* The whole line of the message, so that it is known to be clear. */
static void test_line_errors(void **state) {
    (void)state;
    static const struct { const char *line, *message; } cases[] = {
        {"--stps 3", "unknown option --stps; did you mean --steps? (--help lists all)"},
        {"--eval_every 3", "unknown option --eval_every; did you mean --eval-every? (--help lists "
                           "all)"},
        {"--learning-rate 3", "unknown option --learning-rate; here it is --lr (--help lists all)"},
        {"--num_generations=3", "unknown option --num_generations; here it is --group (--help "
                                "lists all)"},
        {"--step=3", "unknown option --step; did you mean --steps? (--help lists all)"},
        /* the beginning of a name; names like no other; verl's, which have dots */
        {"--temp 1", "unknown option --temp; did you mean --temperature? (--help lists all)"},
        {"--use-vllm", "unknown option --use-vllm (--help lists all)"},
        {"--verbose", "unknown option --verbose (--help lists all)"},
        {"--actor_rollout_ref.rollout.n=8", "unknown option --actor_rollout_ref.rollout.n; here "
                                            "it is --group (--help lists all)"},
        {"--steps", "--steps needs a value"},
        {"--steps --quiet", "--steps needs a value"},
        {"--config", "--config needs a value"},
        {"--steps 3x", "--steps wants a whole number, not \"3x\""},
        {"--steps=", "--steps wants a whole number, not \"\""},
        {"--steps 1.5", "--steps wants a whole number, not 1.5"},
        {"--steps -1", "--steps -1 is out of range: it goes from 0 to 1000000000"},
        {"--seed 9007199254740993", "--seed 9007199254740992 is out of range: it goes from 0 to "
                                    "9007199254740991"},
        {"--lr nan", "--lr wants a number, not \"nan\""},
        {"--lr inf", "--lr wants a number, not \"inf\""},
        {"--lr 0x1p-3", "--lr wants a number, not \"0x1p-3\""},
        {"--lr 1e999", "--lr inf is out of range: it goes from 0 to 1"},
        {"--lr 2", "--lr 2 is out of range: it goes from 0 to 1"},
        {"--group 0", "--group 0 is out of range: it goes from 1 to 65536"},
        {"--backend cud",
         "--backend cud is unknown; choose from: auto cpu cuda sim sim-asan sim-race"},
        {"--backend=", "--backend  is unknown; choose from: auto cpu cuda sim sim-asan sim-race"},
        {"--overwrite=maybe", "--overwrite is true or false, not \"maybe\""},
        {"--overwrite maybe", "unexpected \"maybe\": options begin with -- (see --help)"},
        {"steps 3", "unexpected \"steps\": options begin with -- (see --help)"},
        {"-h", "unexpected \"-h\": options begin with -- (see --help)"},
        {"--", "unexpected \"--\": options begin with -- (see --help)"},
        {"--config /no/such/file", "/no/such/file: cannot be read: No such file or directory"},
        {"--config /", "/: cannot be read: Is a directory"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char expected[256];
        snprintf(expected, sizeof expected, "train: error: %s\n", cases[i].message);
        assert_int_equal(code_of(cases[i].line), 2);
        assert_string_equal(output, expected);
    }
    char line[OPTION_TEXT + 16] = "--task ";
    memset(line + 7, 'x', OPTION_TEXT);
    line[7 + OPTION_TEXT] = 0;
    assert_int_equal(code_of(line), 2);
    assert_string_equal(output, "train: error: --task is too long: at most 1023 bytes\n");
    line[6 + OPTION_TEXT] = 0;
    assert_int_equal(code_of(line), 0);
}

/* ---- config files ---------------------------------------------------------------------------- */

static void test_config(void **state) {
    (void)state;
    static const char text[] = "{\"steps\": 5, \"lr\": 0.5, \"task\": \"split\", \"quiet\": true,\n"
                               " \"clip-low\": null, \"prompts\": null, \"kl-coef\": 0} \n";
    write_config(text, sizeof text - 1);
    struct Options o;
    parse_line(&o, "--prompts 3 --task reverse --config @ --lr 0.25");
    assert_int_equal(o.steps, 5);
    assert_true(o.lr == 0.25);              /* later on the line */
    assert_string_equal(o.task, "split");   /* earlier on the line */
    assert_true(o.quiet && isnan(o.clip_low) && o.kl_coef == 0);
    assert_int_equal(o.prompts, 32);        /* null: the default again */
    assert_true(options_given(&o, "steps") && options_given(&o, "kl-coef"));
    assert_false(options_given(&o, "clip-low") || options_given(&o, "prompts"));
}

static void test_config_errors(void **state) {
    (void)state;
    static const struct { const char *text, *message; } cases[] = {
        {"", "is not JSON, at byte 0; the file may be cut short"},
        {"{\"steps\": 5", "is not JSON, at byte 11; the file may be cut short"},
        {"{\"steps\": 5} x", "is not JSON, at byte 13; the file may be cut short"},
        {"{\"steps\": NaN}", "is not JSON, at byte 10; the file may be cut short"},
        {"[1]", "is not one JSON object"},
        {"3", "is not one JSON object"},
        {"{\"stps\": 5}", "unknown option --stps; did you mean --steps? (--help lists all)"},
        {"{\"\": 5}", "unknown option -- (--help lists all)"},
        {"{\"max_steps\": 5}", "unknown option --max_steps; here it is --steps (--help lists all)"},
        {"{\"config\": \"x\"}", "a config file cannot name another one"},
        {"{\"steps\": 5, \"steps\": 5}", "--steps is there twice"},
        {"{\"steps\": \"5\"}", "--steps wants a whole number"},
        {"{\"steps\": 5.5}", "--steps wants a whole number, not 5.5"},
        {"{\"steps\": [5]}", "--steps wants a whole number"},
        {"{\"lr\": true}", "--lr wants a number"},
        {"{\"lr\": 1e999}", "--lr inf is out of range: it goes from 0 to 1"},
        {"{\"quiet\": 1}", "--quiet wants true or false"},
        {"{\"task\": 1}", "--task wants a string"},
        {"{\"backend\": \"gpu\"}",
         "--backend gpu is unknown; choose from: auto cpu cuda sim sim-asan sim-race"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char expected[256];
        write_config(cases[i].text, strlen(cases[i].text));
        snprintf(expected, sizeof expected, "train: error: %s: %s\n", config_path,
                 cases[i].message);
        assert_int_equal(code_of("--config @"), 2);
        assert_string_equal(output, expected);
    }
    write_config("{}\0", 3);
    assert_int_equal(code_of("--config @"), 2);
    char deep[5000];
    memset(deep, '[', sizeof deep);
    write_config(deep, sizeof deep);
    assert_int_equal(code_of("--config @"), 2);
}

/* Any bytes: accepted, or one line and exit code 2. */
static void test_config_of_damaged_bytes(void **state) {
    (void)state;
    struct Options o;
    static char text[1 << 14], damaged[1 << 14];
    parse_line(&o, "");
    options_save(&o, config_path);
    FILE *file = fopen(config_path, "rb");
    size_t length = fread(text, 1, sizeof text, file);
    fclose(file);
    struct Rng rng;
    rng_open(&rng, 1, RNG_TEST, 0);
    for (int i = 0; i < 200; i++) {
        memcpy(damaged, text, length);
        for (int j = 0; j < 1 + i % 3; j++)
            damaged[rng_below(&rng, (uint32_t)length)] = (char)rng_next(&rng);
        write_config(damaged, i % 7 ? length : rng_below(&rng, (uint32_t)length));
        int code = code_of("--config @");
        assert_true(code == 0 || code == 2);
        if (code) assert_ptr_equal(strchr(output, '\n'), output + strlen(output) - 1);
    }
}

/* Everything that is saved is read back the same. */
static void test_save_and_read(void **state) {
    (void)state;
    static const char *const lines[] = {
        "",
        "--task split --model /a/\"b\\c --layers 3 --lr 0.1 --warm-lr 1e-7 --clip-high 0.28 "
        "--kl-coef 0.001 --overwrite --seed 9007199254740991 --threads 2 --repo-d-signed "
        "--temperature 0.3333333333333333 --score \xff\xfe --backend cpu --dry-run",
    };
    for (int i = 0; i < 2; i++) {
        struct Options written, read;
        parse_line(&written, lines[i]);
        options_save(&written, config_path);
        parse_line(&read, "--config @");
        /* what to do once, and where, is not part of the recipe */
        assert_false(read.overwrite || read.dry_run);
        assert_string_equal(read.score, "");
        read.overwrite = written.overwrite, read.dry_run = written.dry_run;
        memcpy(read.score, written.score, sizeof read.score);
        assert_memory_equal(&written, &read, offsetof(struct Options, given));
        /* what the objective decides stays undecided */
        assert_int_equal(options_given(&read, "kl-coef"), i == 1);
        assert_false(options_given(&read, "clip-low"));
    }
}

/* ---- help ------------------------------------------------------------------------------------ */

/* Options that a saved config leaves out. */
static bool is_once(const char *name) {
    static const char *const once[] = {"help",  "config",    "run",   "resume", "overwrite",
                                       "quiet", "eval-only", "score", "dry-run",
                                       "tokenize", "detokenize", "device-memory",
                                       "gpus", "ranks", "device", "comm", "comm-timeout",
                                       "comm-port", "dump-hidden"};
    for (size_t i = 0; i < sizeof once / sizeof *once; i++)
        if (strcmp(name, once[i]) == 0) return true;
    return false;
}

/* Every option of the help is an option of the parser and of the saved file, and no others are. */
static void test_help_agrees(void **state) {
    (void)state;
    struct Options o;
    parse_line(&o, "");
    options_save(&o, config_path);
    FILE *file = fopen(config_path, "rb");
    static char text[1 << 14], help[1 << 15];
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    cJSON *saved = cJSON_Parse(text);
    assert_non_null(saved);

    assert_int_equal(code_of("--help"), 0);
    strcpy(help, output);
    int count = 0;
    for (char *at = help; (at = strstr(at, "\n  --")); count++) {
        at += 5;
        char name[64], line[80];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at, " \n"), at);
        snprintf(line, sizeof line, "--%s", name);
        if (is_once(name)) count--;
        else assert_non_null(cJSON_GetObjectItemCaseSensitive(saved, name));
        int code = code_of(line);   /* a flag is complete; the others miss their value */
        assert_true(code == 0 || (code == 2 && strstr(output, "needs a value")));
    }
    assert_int_equal(count, cJSON_GetArraySize(saved));
    cJSON_Delete(saved);
    static const char *const lines[] = {
        "(0 to 1000000000; default 600)", "(auto cpu cuda sim sim-asan sim-race; default auto)",
        "(default countdown)",
        "default the objective's)", "(0 to 9007199254740991; default 1)",
        "(0 to 1; default 0.0001)", "empty = llm with --data",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++)
        assert_non_null(strstr(help, lines[i]));
    for (char *line = strtok(help, "\n"); line; line = strtok(NULL, "\n"))
        assert_in_range(strlen(line), 0, 100);
}

/* ---- other trainers' names ------------------------------------------------------------------- */

/* Every --word of an answer is an option, and no name that is answered is one: it would never be
   asked for. */
static void test_synonyms(void **state) {
    (void)state;
    struct Options o;
    parse_line(&o, "");
    int answers = 0;
    for (int i = 0; options_synonym(i); i++) {
        const struct OptionSynonym *s = options_synonym(i);
        char line[80], said[64];
        for (const char *at = s->ours; (at = strstr(at, "--")) != NULL; answers++) {
            char name[64];
            at += 2;
            snprintf(name, sizeof name, "%.*s", (int)strspn(at, "abcdefghijklmnopqrstuvwxyz0123-"),
                     at);
            bool there = false;
            for (int j = 0; options_row(j); j++) there |= strcmp(options_row(j)->name, name) == 0;
            if (!there) fail_msg("--%s is answered with --%s, which is no option", s->theirs, name);
        }
        snprintf(line, sizeof line, "--%s 3", s->theirs);
        snprintf(said, sizeof said, "unknown option --%s; here it is", s->theirs);
        assert_int_equal(code_of(line), 2);
        if (!strstr(output, said) || !strstr(output, s->ours)) fail_msg("%s: %s", line, output);
    }
    assert_true(answers >= 50);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_line),
        cmocka_unit_test(test_line_errors),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_config_errors),
        cmocka_unit_test(test_config_of_damaged_bytes),
        cmocka_unit_test(test_save_and_read),
        cmocka_unit_test(test_help_agrees),
        cmocka_unit_test(test_synonyms),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
