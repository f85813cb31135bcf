/* Which model a session has, and with which tokenizer. */
#include "choose.h"

#include <string.h>
#include "../base/check.h"
#include "../base/files.h"

bool choose_shape_only(const struct Options *o, const char *checkpoint) {
    if (o->device_memory > 0 && !o->dry_run)
        die_input("--device-memory is a plan for another machine: give it with --dry-run");
    return o->device_memory > 0 && checkpoint[0] && !o->data[0];
}

/* With --resume they are those that the run began with, also where it is only evaluated. */
static void refuse_shape_options(const struct Options *o, const struct Place *place) {
    static const char *const names[] = {"layers", "channels", "heads", "context", "untied"};
    for (size_t i = 0; i < sizeof names / sizeof *names && !o->resume[0]; i++)
        if (options_given(o, names[i]))
            die_input("--%s is for random weights; those in %s have their own shape", names[i],
                      place->checkpoint);
}

/* Ends the program: `checkpoint` is what --model says, or was found in a run a moment ago. */
static _Noreturn void die_no_model(const struct Options *o, const char *checkpoint) {
    if (strcmp(checkpoint, o->model) == 0)
        die_input("--model %s: neither a known size (%s) nor a directory", o->model,
                  model_config_names());
    die_input("%s: the run has removed this checkpoint meanwhile (its --keep); start again",
              checkpoint);
}

/* The tokenizer of the checkpoint's directory, and with it how many words the model has. */
static struct Tokenizer *read_tokenizer(const struct Options *o, const char *checkpoint,
                                        struct ModelConfig *config) {
    struct Tokenizer *tokenizer = NULL;
    const char *problem = tokenizer_load(&tokenizer, checkpoint);
    if (!problem && tokenizer_vocab_size(tokenizer) > config->V)
        problem = "the tokenizer has more tokens than config.json's vocab_size";
    if (!problem) problem = checkpoint_end_of_text(tokenizer, checkpoint);
    if (problem && !o->score[0]) die_input("%s: %s", checkpoint, problem);
    /* What cannot be decoded is never sampled; --score without a tokenizer takes all words. */
    if (!problem) config->V = tokenizer_vocab_size(tokenizer);
    return tokenizer;
}

struct ModelConfig choose_model(const struct Options *o, const struct Place *place,
                                const struct Task *task, int longest, const struct Ops *ops,
                                struct Tokenizer **tokenizer) {
    struct ModelConfig config = {0};
    const char *checkpoint = place->checkpoint, *problem;
    if (checkpoint[0]) {
        problem = checkpoint_config(checkpoint, &config);
        if (problem && !path_exists(checkpoint)) die_no_model(o, checkpoint);
        if (problem) die_input("%s/config.json: %s", checkpoint, problem);
        if (task) *tokenizer = read_tokenizer(o, checkpoint, &config);
        refuse_shape_options(o, place);
    } else {
        model_config_named(&config, o->model);
        *tokenizer = tokenizer_from_alphabet(task->alphabet);
        choose_shape(&config, o);
        if (!o->context && config.max_T < longest) config.max_T = longest;
        config.V = config.V_saved = tokenizer_vocab_size(*tokenizer);
    }
    int multiple = ops->vocabulary_multiple;
    config.Vp = (config.V_saved + multiple - 1) / multiple * multiple;
    problem = model_config_problem(&config);
    if (problem) die_input("the model cannot be built: %s", problem);
    return config;
}

struct Ends choose_ends(const struct Options *o, const struct Place *place,
                        const struct Tokenizer *tokenizer, int V) {
    struct Ends ends = {.count = 0};
    if (tokenizer) ends_add(&ends, tokenizer_role(tokenizer, TOKENIZER_ENDS_TEXT));
    if (!place->checkpoint[0] || o->score[0]) return ends;
    const char *problem = checkpoint_ends(place->checkpoint, V, &ends);
    if (problem) die_input("%s/%s", place->checkpoint, problem);
    return ends;
}
