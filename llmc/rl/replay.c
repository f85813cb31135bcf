#include "replay.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../io/lines.h"

struct Replay {
    struct Lines lines;
    cJSON *object;      /* the line in hand */
    double *list;       /* numbers of one of its lists */
};

struct Replay *replay_open(const char *path) {
    struct Replay *r = check_alloc(1, sizeof *r, "a replay");
    lines_open(&r->lines, path, "--replay");
    return r;
}

void replay_close(struct Replay *r) {
    if (!r) return;
    lines_close(&r->lines);
    cJSON_Delete(r->object);
    free(r->list);
    free(r);
}

/* Where a wrong line is, for "%s:%ld: ...". */
#define AT(r) (r)->lines.path, (r)->lines.number

/* r->object becomes the next line of step `step`. */
static void next_of_step(struct Replay *r, int64_t step) {
    while (lines_next(&r->lines)) {
        cJSON_Delete(r->object);
        r->object = lines_has_zero(&r->lines) ? NULL : cJSON_Parse(r->lines.text);
        const cJSON *of = cJSON_GetObjectItemCaseSensitive(r->object, "step");
        if (!cJSON_IsNumber(of))
            die_input("%s:%ld: not a JSON object with a number \"step\"", AT(r));
        if (of->valuedouble == (double)step) return;
        if (of->valuedouble > (double)step) break;
    }
    die_input("%s: fewer completions of step %lld than this run has; record with the same --prompts, "
              "--group and --steps, and --rollouts-every 1", r->lines.path, (long long)step);
}

/* A list of the line into r->list [most]; returns its length. What is no number (null stands for one
   that is not finite) becomes NaN. */
static int read_list(struct Replay *r, const char *key, int most) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(r->object, key), *item;
    int n = 0;
    if (!cJSON_IsArray(list)) die_input("%s:%ld: there is no list \"%s\"", AT(r), key);
    cJSON_ArrayForEach(item, list) {
        if (n == most)
            die_input("%s:%ld: \"%s\" has more than %d entries, the longest completion here",
                      AT(r), key, most);
        r->list[n++] = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    }
    return n;
}

static void check_prompt(const struct Replay *r, const char *prompt) {
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(r->object, "prompt");
    if (!cJSON_IsString(text) || strcmp(text->valuestring, prompt) != 0)
        die_input("%s:%ld: the prompt is not \"%s\", which this run has here; replay with the "
                  "--task, --seed, --prompts and --group of the recorded run", AT(r), prompt);
}

/* The line's completion to its place in the rollout. */
static void read_completion(struct Replay *r, int i, const struct RolloutRequest *request, int V,
                            struct Rollout *out) {
    size_t at = (size_t)i * (size_t)request->max_tokens;
    const double *list = r->list;
    int n = read_list(r, "tokens", request->max_tokens);
    for (int k = 0; k < n; k++) {
        if (!(list[k] >= 0 && list[k] < V && list[k] == floor(list[k])))
            die_input("%s:%ld: token %d is not an id in 0..%d", AT(r), k, V - 1);
        out->token[at + (size_t)k] = (int)list[k];
    }
    if (n == 0 || read_list(r, "logp", request->max_tokens) != n)
        die_input("%s:%ld: needs as many \"logp\" as \"tokens\", and one at least", AT(r));
    for (int k = 0; k < n; k++) out->logp[at + (size_t)k] = (float)list[k];
    if (read_list(r, "entropy", request->max_tokens) != n)
        die_input("%s:%ld: needs as many \"entropy\" as \"tokens\"", AT(r));
    for (int k = 0; k < n; k++) out->entropy[at + (size_t)k] = (float)list[k];
    out->start[i + 1] = n;
    out->ended[i] = out->token[at + (size_t)n - 1] == request->end_of_text;
}

void replay_rollout(struct Replay *r, int64_t step, const struct RolloutRequest *request,
                    char (*prompt)[TASK_TEXT], int V, struct Rollout *out) {
    r->list = check_realloc(r->list, (size_t)request->max_tokens, sizeof *r->list, "a replay");
    rollout_clear(out, request);
    for (int i = 0; i < out->count; i++) {
        next_of_step(r, step);
        check_prompt(r, prompt[i / request->group]);
        read_completion(r, i, request, V, out);
    }
    rollout_pack(out, request->max_tokens);
}
