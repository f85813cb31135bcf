#include "options.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"

enum Type { INTEGER, NUMBER, BOOLEAN, TEXT, CONFIG };   /* CONFIG: --config itself, not a field */

struct Option {
    const char *name;
    enum Type type;
    size_t offset;               /* of the field in struct Options */
    double min, max;             /* INTEGER, NUMBER; both ends allowed */
    double number;               /* default; NaN = left to the objective. A BOOLEAN's is false. */
    const char *text;            /* default of TEXT */
    const char *choices;         /* space-separated values a TEXT may have, or NULL: any */
    const char *group, *help;
};

#define FIELD(name) offsetof(struct Options, name)
#define MANY 1e9                          /* a bound that says: as many as you like */
#define EXACT 9007199254740991.0          /* 2^53 - 1: JSON's numbers are exact up to here */

static const char LEARN[] = "What to learn", HOW[] = "How", ENTROPY[] = "Entropy", EVALUATION[] = "Evaluation",
                  RUN[] = "The run", MACHINE[] = "The machine";

#define WHOLE(name, field, min, max, value, group, help) \
    {name, INTEGER, FIELD(field), min, max, value, NULL, NULL, group, help}
#define REAL(name, field, min, max, value, group, help) \
    {name, NUMBER, FIELD(field), min, max, value, NULL, NULL, group, help}
#define FLAG(name, field, group, help) \
    {name, BOOLEAN, FIELD(field), 0, 0, 0, NULL, NULL, group, help}
#define WORD(name, field, value, choices, group, help) \
    {name, TEXT, FIELD(field), 0, 0, 0, value, choices, group, help}

static const struct Option table[] = {
    WORD("task", task, "countdown", NULL, LEARN, "built-in task"),
    WORD("tasks", tasks, "", NULL, LEARN,
         "one after another, with steps: countdown:300,countdown_sorted:300"),
    WORD("model", model, "tiny", NULL, LEARN, "named size, or a Hugging Face directory"),
    WHOLE("layers", layers, 0, 1000, 0, LEARN, "layers; 0 = the model's"),
    WHOLE("channels", channels, 0, 65536, 0, LEARN, "width of the hidden state; 0 = the model's"),
    WHOLE("heads", heads, 0, 1024, 0, LEARN, "attention heads; 0 = the model's"),
    WHOLE("context", context, 0, 1048576, 0, LEARN, "positions; 0 = the model's"),
    FLAG("untied", untied, LEARN, "the head has a weight of its own, not the embedding's"),

    WORD("objective", objective, "grpo", NULL, HOW, "preset: a row of llmc/rl/objectives.c"),
    WORD("advantage", advantage, "", NULL, HOW, "replaces the objective's"),
    WORD("ratio", ratio, "", NULL, HOW, "replaces the objective's"),
    WORD("surrogate", surrogate, "", NULL, HOW, "replaces the objective's"),
    WORD("aggregation", aggregation, "", NULL, HOW, "replaces the objective's"),
    WORD("overlong", overlong, "", NULL, HOW, "replaces the objective's"),
    WORD("kl", kl, "", NULL, HOW, "estimator; replaces the objective's"),
    REAL("kl-coef", kl_coef, 0, 1000, NAN, HOW, "weight of the KL to the initial model; 0 = off"),
    WORD("group-filter", filter, "", "off on", HOW, "drop groups of equal rewards and refill"),
    WHOLE("filter-rounds", filter_rounds, 1, 1000, 8, HOW, "the most rounds of generation for it"),
    REAL("dual-clip", dual_clip, 0, 1000, NAN, HOW, "bound on the ratio where A < 0; 0 = off"),
    REAL("clip-low", clip_low, 0, 1, NAN, HOW, "the ratio's lower bound is 1 - this"),
    REAL("clip-high", clip_high, 0, 1000, NAN, HOW, "the ratio's upper bound is 1 + this"),
    WHOLE("steps", steps, 0, MANY, 600, HOW, "RL steps"),
    WHOLE("warm-start", warm_start, 0, MANY, 300, HOW, "supervised steps before them"),
    WHOLE("warm-batch", warm_batch, 1, 65536, 256, HOW, "demonstrations per supervised step"),
    REAL("warm-lr", warm_lr, 0, 1, 1e-3, HOW, "learning rate of the supervised steps"),
    WHOLE("prompts", prompts, 1, 65536, 32, HOW, "prompts per RL step"),
    WHOLE("group", group, 1, 65536, 16, HOW, "completions per prompt"),
    WHOLE("minibatches", minibatches, 1, 65536, 4, HOW, "updates per epoch of a rollout"),
    WHOLE("epochs", epochs, 1, 1000, 1, HOW, "times each rollout is used"),
    REAL("lr", lr, 0, 1, 1e-4, HOW, "learning rate of the RL steps"),
    WHOLE("lr-warmup", lr_warmup, 0, MANY, 0, HOW, "steps over which it rises from 0"),
    REAL("weight-decay", weight_decay, 0, 100, 0, HOW, "AdamW's"),
    REAL("grad-clip", grad_clip, 0, MANY, 1, HOW, "largest gradient norm; 0 = no limit"),
    REAL("beta1", beta1, 0, 0.999999, 0.9, HOW, "AdamW's"),
    REAL("beta2", beta2, 0, 0.999999, 0.95, HOW, "AdamW's"),
    REAL("temperature", temperature, 0.01, 100, 1, HOW, "of sampling and of the objective"),
    WHOLE("max-tokens", max_tokens, 0, 1048576, 0, HOW, "longest completion; 0 = the task's"),
    WORD("old-logp", old_logp, "auto", "auto sampled scored", HOW,
         "the ratio's denominator: as sampled, or scored; auto = scored below fp32"),

    WORD("entropy-control", entropy_control, "", NULL, ENTROPY, "replaces the objective's"),
    WORD("scale", scale, "", "tiny llm", ENTROPY,
         "values for small vocabularies, or the papers'; empty = by the task"),
    WORD("controller", controller, "", "double pi", ENTROPY, "what turns the knob"),
    REAL("entropy-target", entropy_target, 0, 100, NAN, ENTROPY, "in nats"),
    REAL("entropy-target-ratio", entropy_target_ratio, 0, 10, NAN, ENTROPY,
         "the target as a share of the first rollout's entropy"),
    REAL("zeta-start", zeta_start, -1000, 1000, NAN, ENTROPY, "REPO's variable at the start"),
    REAL("zeta-min", zeta_min, 0, 1000, NAN, ENTROPY, "its smallest size"),
    REAL("zeta-max", zeta_max, 0, 1000, NAN, ENTROPY, "its largest size"),
    REAL("clip-high-min", clip_high_min, 0, 1000, NAN, ENTROPY, "ADAPO's lower bound"),
    REAL("clip-high-max", clip_high_max, 0, 1000, NAN, ENTROPY, "ADAPO's upper bound"),
    REAL("clip-high-step", clip_high_step, 1, 1000, NAN, ENTROPY, "ADAPO's factor per rollout"),
    REAL("entropy-coef", entropy_coef, -1000, 1000, NAN, ENTROPY, "weight of the entropy bonus"),
    FLAG("repo-d-signed", repo_d_signed, ENTROPY, "REPO-D by the signed change, as in the paper"),
    WORD("logp-dtype", logp_dtype, "fp32", "fp32 bf16 fp16", ENTROPY,
         "rounds log-probabilities before the ratio: the precision study"),
    WHOLE("entropy-push-tokens", entropy_push_tokens, -1, MANY, -1, ENTROPY,
          "tokens whose change of entropy is measured; -1 = 2 % of them, 0 = none"),
    WHOLE("attention-entropy-every", attention_entropy_every, 0, MANY, 1, ENTROPY,
          "steps between measurements of attention entropy; 0 = none"),

    WHOLE("eval-every", eval_every, 0, MANY, 50, EVALUATION,
          "RL steps between evaluations, one before and one after included; 0 = none"),
    WHOLE("eval-prompts", eval_prompts, 1, 1000000, 200, EVALUATION, "held-out prompts"),
    WHOLE("eval-samples", eval_samples, 1, 65536, 64, EVALUATION, "completions of each"),
    FLAG("eval-only", eval_only, EVALUATION, "evaluate and stop"),
    WORD("score", score, "", NULL, EVALUATION,
         "score the prompts and completions of a JSON lines file, and stop"),

    WORD("run", run, "", NULL, RUN, "directory of the run; empty = runs/NAME-TIME"),
    FLAG("overwrite", overwrite, RUN, "the run's directory may hold an older run, which is lost"),
    WORD("resume", resume, "", NULL, RUN, "go on: auto (what --run holds) or a run's directory"),
    WHOLE("save-every", save_every, 0, MANY, 100, RUN,
          "RL steps between checkpoints; 0 = only the last"),
    WHOLE("keep", keep, 0, MANY, 2, RUN, "checkpoints to keep; 0 = all"),
    WHOLE("rollouts-every", rollouts_every, 0, MANY, 10, RUN,
          "RL steps between those whose completions go to rollouts.jsonl; 0 = none"),
    WORD("replay", replay, "", NULL, RUN,
         "take completions from this rollouts.jsonl instead of sampling"),
    {"config", CONFIG, 0, 0, 0, 0, NULL, NULL, RUN,
     "options from a JSON file; what follows on the line replaces them"},
    FLAG("dry-run", dry_run, RUN, "print the plan and stop"),
    FLAG("quiet", quiet, RUN, "print errors only"),
    FLAG("help", help, RUN, "print this and stop"),

    WORD("backend", backend, "auto", "auto cpu cuda sim sim-asan sim-race", MACHINE,
         "what computes; auto = cuda where there is a GPU, else cpu"),
    WORD("dtype", dtype, "auto", "auto bf16 fp16 fp32", MACHINE,
         "of weights and activations; auto = bf16 on a GPU, fp32 on the CPU"),
    WORD("recompute", recompute, "none", "none mlp layer", MACHINE,
         "what backward computes again instead of keeping it in memory"),
    WHOLE("seed", seed, 0, EXACT, 1, MACHINE, "of every random draw"),
    WHOLE("threads", threads, 0, 1024, 0, MACHINE, "0 = one per processor"),
    WHOLE("decode-rows", decode_rows, 0, 65536, 0, MACHINE,
          "completions decoded side by side; 0 = the program chooses"),
    WHOLE("micro-tokens", micro_tokens, 0, MANY, 0, MACHINE,
          "tokens per forward and backward pass; 0 = the program chooses"),
};

enum { NUM_OPTIONS = sizeof table / sizeof *table };
_Static_assert(NUM_OPTIONS <= OPTION_LIMIT, "raise OPTION_LIMIT in options.h");

/* ---- names ----------------------------------------------------------------------------------- */

/* Row called `name` (without dashes in front), or -1. */
static int find(const char *name) {
    for (int i = 0; i < NUM_OPTIONS; i++)
        if (strcmp(table[i].name, name) == 0) return i;
    return -1;
}

/* Levenshtein distance, of the first 63 characters. */
static int edit_distance(const char *a, const char *b) {
    int row[64], columns = (int)strnlen(b, 63), rows = (int)strnlen(a, 63);
    for (int j = 0; j <= columns; j++) row[j] = j;
    for (int i = 1; i <= rows; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= columns; j++) {
            int best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[columns];
}

static const char *nearest_name(const char *name) {
    int best = 0;
    for (int i = 1; i < NUM_OPTIONS; i++)
        if (edit_distance(name, table[i].name) < edit_distance(name, table[best].name)) best = i;
    return table[best].name;
}

/* Is `value` one of the space-separated `choices`? */
static bool is_choice(const char *value, const char *choices) {
    size_t length = strlen(value);
    for (const char *c = choices; *c;) {
        size_t n = strcspn(c, " ");
        if (n == length && memcmp(c, value, n) == 0) return true;
        c += n + (c[n] == ' ');
    }
    return false;
}

/* ---- values ---------------------------------------------------------------------------------- */

static void set_number(struct Options *options, const struct Option *o, double value) {
    char *field = (char *)options + o->offset;
    if (o->type == INTEGER) *(int64_t *)field = (int64_t)value;
    else *(double *)field = value;
}

static double get_number(const struct Options *options, const struct Option *o) {
    const char *field = (const char *)options + o->offset;
    return o->type == INTEGER ? (double)*(const int64_t *)field : *(const double *)field;
}

static bool *boolean_field(struct Options *options, const struct Option *o) {
    return (bool *)((char *)options + o->offset);
}

static char *text_field(struct Options *options, const struct Option *o) {
    return (char *)options + o->offset;
}

static void set_default(struct Options *options, const struct Option *o) {
    if (o->type == INTEGER || o->type == NUMBER) set_number(options, o, o->number);
    if (o->type == BOOLEAN) *boolean_field(options, o) = false;
    if (o->type == TEXT) strcpy(text_field(options, o), o->text);
}

/* The value's checks, wherever it came from; `source` begins the message: "" or "FILE: ". */
static void check_number(const struct Option *o, double value, const char *source) {
    if (o->type == INTEGER && value != trunc(value))
        die_input("%s--%s wants a whole number, not %g", source, o->name, value);
    if (!(value >= o->min && value <= o->max))
        die_input("%s--%s %.16g is out of range: it goes from %.16g to %.16g", source, o->name,
                  value, o->min, o->max);
}

static void check_text(const struct Option *o, const char *value, const char *source) {
    if (strlen(value) >= OPTION_TEXT)
        die_input("%s--%s is too long: at most %d bytes", source, o->name, OPTION_TEXT - 1);
    bool is_default = strcmp(value, o->text) == 0;   /* may be empty: left to the objective */
    if (o->choices && !is_default && !is_choice(value, o->choices))
        die_input("%s--%s %s is unknown; choose from: %s", source, o->name, value, o->choices);
}

/* Reads a number as the whole of `text`; hexadecimal, "inf" and "nan" are not numbers here. */
static bool read_number(const char *text, double *value) {
    if (!*text || text[strspn(text, "+-.0123456789eE")]) return false;
    char *end;
    *value = strtod(text, &end);
    return *end == 0;
}

static void set_from_line(struct Options *options, const struct Option *o, const char *text) {
    double number = 0;
    switch (o->type) {
    case INTEGER:
    case NUMBER:
        if (!read_number(text, &number))
            die_input("--%s wants a %snumber, not \"%s\"", o->name,
                      o->type == INTEGER ? "whole " : "", text);
        check_number(o, number, "");
        set_number(options, o, number);
        break;
    case BOOLEAN:
        if (!is_choice(text, "true false"))
            die_input("--%s is true or false, not \"%s\"", o->name, text);
        *boolean_field(options, o) = *text == 't';
        break;
    case TEXT:
        check_text(o, text, "");
        strcpy(text_field(options, o), text);
        break;
    case CONFIG: break;
    }
}

/* Does the field hold the table's default? */
static bool is_default(const struct Options *options, const struct Option *o) {
    const char *field = (const char *)options + o->offset;
    double number;
    switch (o->type) {
    case INTEGER:
    case NUMBER:
        number = get_number(options, o);
        return number == o->number || (isnan(number) && isnan(o->number));
    case BOOLEAN: return !*(const bool *)field;
    case TEXT: return strcmp(field, o->text) == 0;
    case CONFIG: break;
    }
    return true;
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void set_from_json(struct Options *options, const struct Option *o, const cJSON *item,
                          const char *source) {
    static const char *const wanted[] = {"a whole number", "a number", "true or false", "a string"};
    bool fits = o->type == BOOLEAN ? cJSON_IsBool(item)
                : o->type == TEXT ? cJSON_IsString(item) : cJSON_IsNumber(item);
    if (!fits) die_input("%s--%s wants %s", source, o->name, wanted[o->type]);
    if (o->type == BOOLEAN) {
        *boolean_field(options, o) = cJSON_IsTrue(item);
    } else if (o->type == TEXT) {
        check_text(o, item->valuestring, source);
        strcpy(text_field(options, o), item->valuestring);
    } else {
        check_number(o, item->valuedouble, source);
        set_number(options, o, item->valuedouble);
    }
}

/* The whole file as text (malloc), or die_input. */
static char *read_text(const char *path) {
    enum { LIMIT = 1 << 20 };
    FILE *file = fopen(path, "rb");
    if (!file) die_input("cannot read --config %s: %s", path, strerror(errno));
    char *text = check_alloc(LIMIT + 1, 1, "the --config file");
    size_t length = fread(text, 1, LIMIT + 1, file);
    if (ferror(file)) die_input("cannot read --config %s: %s", path, strerror(errno));
    fclose(file);
    if (length > LIMIT) die_input("--config %s is larger than 1 MB: not an options file", path);
    text[length] = 0;
    if (strlen(text) != length) die_input("--config %s holds a zero byte: not JSON", path);
    return text;
}

static void set_from_config(struct Options *options, const char *path) {
    char source[OPTION_TEXT], *text = read_text(path);
    check_path(source, sizeof source, "%s: ", path);
    const char *stopped = text;
    cJSON *root = cJSON_ParseWithOpts(text, &stopped, true);
    if (!root) die_input("%snot JSON, at byte %td", source, stopped - text);
    if (!cJSON_IsObject(root)) die_input("%swants a JSON object of options", source);
    bool seen[OPTION_LIMIT] = {false};
    for (const cJSON *item = root->child; item; item = item->next) {
        int row = find(item->string);
        if (row >= 0 && table[row].type == CONFIG)
            die_input("%sa config file cannot name another one", source);
        if (row < 0)
            die_input("%sunknown option \"%s\"; did you mean \"%s\"?", source, item->string,
                      nearest_name(item->string));
        if (seen[row]) die_input("%s--%s is there twice", source, item->string);
        seen[row] = true;
        if (cJSON_IsNull(item)) set_default(options, &table[row]);
        else set_from_json(options, &table[row], item, source);
        /* a saved config holds every option; those at their default were not chosen */
        options->given[row] = !is_default(options, &table[row]);
    }
    cJSON_Delete(root);
    free(text);
}

/* A number as digits that come back exactly (cJSON's own would lose the last bit); NaN as null. */
static void add_number(cJSON *root, const char *name, double value) {
    char digits[32] = "null";
    if (!isnan(value)) snprintf(digits, sizeof digits, "%.17g", value);
    cJSON_AddRawToObject(root, name, digits);
}

static void add_json(cJSON *root, const struct Options *options, const struct Option *o) {
    const char *field = (const char *)options + o->offset;
    switch (o->type) {
    case INTEGER:
    case NUMBER: add_number(root, o->name, get_number(options, o)); break;
    case BOOLEAN: cJSON_AddBoolToObject(root, o->name, *(const bool *)field); break;
    case TEXT: cJSON_AddStringToObject(root, o->name, field); break;
    case CONFIG: break;
    }
}

/* Where a run is and what to do with it once is not part of its recipe: a saved config that held
   --overwrite or --resume would act on the old run when it is used for a new one. */
static bool is_saved(const struct Option *o) {
    static const size_t once[] = {FIELD(run),     FIELD(resume), FIELD(overwrite), FIELD(dry_run),
                                  FIELD(quiet),   FIELD(help),   FIELD(eval_only), FIELD(score)};
    for (size_t i = 0; i < sizeof once / sizeof *once; i++)
        if (o->offset == once[i] && o->type != CONFIG) return false;
    return true;
}

void options_save(const struct Options *options, const char *path) {
    cJSON *root = cJSON_CreateObject();
    for (int i = 0; i < NUM_OPTIONS; i++)
        if (is_saved(&table[i])) add_json(root, options, &table[i]);
    char *text = cJSON_Print(root);
    if (!text) die_machine("out of memory: the options as JSON");
    struct AtomicFile file;
    atomic_open(&file, path);
    atomic_write(&file, text, strlen(text));
    atomic_write(&file, "\n", 1);
    atomic_commit(&file);
    free(text);
    cJSON_Delete(root);
}

/* ---- the line -------------------------------------------------------------------------------- */

/* Handles argv[i], and argv[i + 1] where that is its value; returns how many were used. */
static int parse_one(struct Options *options, char **argv, int i) {
    const char *argument = argv[i], *next = argv[i + 1];
    if (strncmp(argument, "--", 2) != 0 || !argument[2])
        die_input("unexpected \"%s\": options begin with -- (see --help)", argument);
    char name[64];
    const char *equals = strchr(argument, '=');
    int length = equals ? (int)(equals - argument) - 2 : (int)strlen(argument) - 2;
    snprintf(name, sizeof name, "%.*s", length, argument + 2);
    int row = find(name);
    if (row < 0)
        die_input("unknown option --%s; did you mean --%s? (--help lists all)", name,
                  nearest_name(name));
    const struct Option *o = &table[row];
    const char *value = equals ? equals + 1 : next;
    int used = equals ? 1 : 2;
    if (o->type == BOOLEAN && !equals && !(next && is_choice(next, "true false"))) {
        value = "true";
        used = 1;
    }
    if (!value || (!equals && strncmp(value, "--", 2) == 0))
        die_input("--%s needs a value", o->name);
    if (o->type == CONFIG) set_from_config(options, value);
    else set_from_line(options, o, value);
    options->given[row] = true;
    return used;
}

void options_parse(struct Options *options, int argc, char **argv) {
    memset(options, 0, sizeof *options);
    for (int i = 0; i < NUM_OPTIONS; i++) set_default(options, &table[i]);
    for (int i = 1; i < argc;) {
        i += parse_one(options, argv, i);
        if (options->help) {
            options_help(stdout);
            exit(0);
        }
    }
}

bool options_given(const struct Options *options, const char *name) {
    int row = find(name);
    return row >= 0 && options->given[row];
}

/* ---- help ------------------------------------------------------------------------------------ */

/* "0 to 65536; default 32", as fits the type. */
static void describe_values(const struct Option *o, char *out, size_t capacity) {
    if (o->type == BOOLEAN) snprintf(out, capacity, "default false");
    else if (o->type == CONFIG) snprintf(out, capacity, "default none");
    else if (o->type == TEXT)
        snprintf(out, capacity, "%s%sdefault %s", o->choices ? o->choices : "",
                 o->choices ? "; " : "", *o->text ? o->text : "empty");
    else if (isnan(o->number))
        snprintf(out, capacity, "%.16g to %.16g; default the objective's", o->min, o->max);
    else
        snprintf(out, capacity, "%.16g to %.16g; default %.16g", o->min, o->max, o->number);
}

void options_help(FILE *out) {
    static const char *const kinds[] = {"N", "X", "", "WORD", "FILE.json"};
    fputs("train: reinforcement learning of a language model\n\n"
          "  ./train                                     the built-in task, minutes on a CPU\n"
          "  ./train --objective repo --run runs/repo    another objective\n"
          "  ./train --resume runs/repo                  goes on where that run stopped\n"
          "  ./train --resume runs/repo --eval-only      measures it\n"
          "  ./train --config runs/repo/config.json --seed 2 --run runs/again\n",
          out);
    const char *group = NULL, *newline = "\n                           ";
    for (int i = 0; i < NUM_OPTIONS; i++) {
        const struct Option *o = &table[i];
        if (o->group != group) fprintf(out, "\n%s\n", group = o->group);
        char left[48], values[128];
        snprintf(left, sizeof left, "--%s %s", o->name, kinds[o->type]);
        describe_values(o, values, sizeof values);
        bool fits = 25 + strlen(o->help) + 3 + strlen(values) <= 100;
        fprintf(out, "  %-22s %s%s(%s)\n", left, o->help, fits ? " " : newline, values);
    }
    fputs("\n--name=value and --name value are the same; --flag is --flag true.\n", out);
}
