#include "replay.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "../base/check.h"
#include "../io/lines.h"

struct Replay {
    struct Lines lines;
    cJSON *object;      /* the line in hand */
    double *list;       /* numbers of one of its lists */
    struct Text problem;
    bool ended, machine;   /* what kind of problem */
    long steps;         /* given so far */
};

struct Replay *replay_open(const char *path) {
    struct Replay *r = check_alloc(1, sizeof *r, "a replay");
    struct stat status;
    lines_open(&r->lines, path, "--replay");
    if (fstat(fileno(r->lines.stream), &status) == 0 && S_ISDIR(status.st_mode)) {
        errno = EISDIR;   /* the first read would fail with it, but only after the warm start */
        lines_fail(&r->lines);
    }
    return r;
}

void replay_close(struct Replay *r) {
    if (!r) return;
    lines_close(&r->lines);
    cJSON_Delete(r->object);
    text_free(&r->problem);
    free(r->list);
    free(r);
}

const char *replay_problem(const struct Replay *r) {
    return r && r->problem.length > 0 ? r->problem.bytes : NULL;
}

bool replay_ended(const struct Replay *r) { return r->ended; }

_Noreturn void replay_fail(const struct Replay *r) {
    if (r->machine) die_machine("%s", r->problem.bytes);
    die_input("%s", r->problem.bytes);
}

/* ---- what is wrong --------------------------------------------------------------------------- */

/* Notes a problem. The expression's value is false, for the caller to return. */
#define PROBLEM(r, ...) (text_clear(&(r)->problem), text_format(&(r)->problem, __VA_ARGS__), false)
/* File and line number, the arguments of "%s:%ld: ...". */
#define AT(r) (r)->lines.path, (r)->lines.number

static bool reading_failed(struct Replay *r) {
    int error = errno ? errno : EIO;
    r->machine = is_machine_error(error);
    return PROBLEM(r, "cannot read --replay %s: %s", r->lines.path, strerror(error));
}

/* Notes that the file ended before all completions of `step` were read. */
static bool file_is_over(struct Replay *r, int64_t step) {
    r->ended = r->steps > 0;
    if (r->ended)
        return PROBLEM(r, "%s ends before step %lld is whole", r->lines.path, (long long)step);
    return PROBLEM(r, "%s: there is no whole step %lld in it; record with --rollouts-every 1 and "
                   "the same --prompts and --group", r->lines.path, (long long)step);
}

/* ---- lines ----------------------------------------------------------------------------------- */

/* Reads on to the next line of step `step` and parses it into r->object. Returns false, with the
   problem noted, if there is none. */
static bool next_of_step(struct Replay *r, int64_t step) {
    for (int got; (got = lines_try(&r->lines)) != 0;) {
        if (got < 0) return reading_failed(r);
        cJSON_Delete(r->object);
        r->object = lines_has_zero(&r->lines) ? NULL
                                              : cJSON_ParseWithOpts(r->lines.text, NULL, true);
        const cJSON *of = cJSON_GetObjectItemCaseSensitive(r->object, "step");
        bool torn = !r->object && r->lines.text[r->lines.length - 1] != '\n';
        if (torn) break;   /* an incomplete last line, of a writer that was killed: not counted */
        if (!cJSON_IsNumber(of))
            return PROBLEM(r, "%s:%ld: not a JSON object with a number \"step\"", AT(r));
        if (of->valuedouble == (double)step) return true;
        if (of->valuedouble > (double)step)
            return PROBLEM(r, "%s:%ld: fewer completions of step %lld than this run has; record "
                           "with --rollouts-every 1 and the same --prompts and --group", AT(r),
                           (long long)step);
    }
    return file_is_over(r, step);
}

/* Reads the list `key` of the line into r->list [most]. Returns its length, or -1 with the problem
   noted. Entries that are not numbers become NaN; null stands for a number that is not finite. */
static int read_list(struct Replay *r, const char *key, int most) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(r->object, key), *item;
    int n = 0;
    if (!cJSON_IsArray(list)) {
        (void)PROBLEM(r, "%s:%ld: there is no list \"%s\"", AT(r), key);
        return -1;
    }
    cJSON_ArrayForEach(item, list) {
        if (n == most) {
            (void)PROBLEM(r, "%s:%ld: \"%s\" has more than %d entries, the longest completion here",
                          AT(r), key, most);
            return -1;
        }
        r->list[n++] = cJSON_IsNumber(item) ? item->valuedouble : NAN;
    }
    return n;
}

static bool check_prompt(struct Replay *r, const struct Text *prompt) {
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(r->object, "prompt");
    if (cJSON_IsString(text) && strcmp(text->valuestring, prompt->bytes) == 0) return true;
    return PROBLEM(r, "%s:%ld: the prompt is not \"%s\", which this run has here; replay with the "
                   "--task, --seed, --prompts and --group of the recorded run", AT(r),
                   quote(prompt->bytes));
}

/* Tokens [from, from + count) of the line, drawn by the model: only the last may end a text. */
static bool read_tokens(struct Replay *r, int *token, int from, int count,
                        const struct Ends *ends, int V, bool drawn) {
    for (int k = from; k < from + count; k++) {
        double id = r->list[k];
        if (!(id >= 0 && id < V && id == floor(id)))
            return PROBLEM(r, "%s:%ld: token %d is not an id in 0..%d", AT(r), k, V - 1);
        token[k] = (int)id;
        if (drawn && k < from + count - 1 && ends_has(ends, token[k]))
            return PROBLEM(r, "%s:%ld: token %d is the end of text, and more follow", AT(r), k);
    }
    return true;
}

/* The turns of a conversation, where the line has them: the environment's into *exchange, which is
   empty. Else all n tokens were drawn. */
static bool read_turns(struct Replay *r, struct Exchange *exchange, int *token, int n,
                       const struct Ends *ends, int V) {
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(r->object, "turns"), *item;
    int at = 0;
    bool drawn = true;
    if (!cJSON_IsArray(list)) return read_tokens(r, token, 0, n, ends, V, true);
    cJSON_ArrayForEach(item, list) {
        const cJSON *role = cJSON_GetObjectItemCaseSensitive(item, "role");
        const cJSON *content = cJSON_GetObjectItemCaseSensitive(item, "content");
        const cJSON *tokens = cJSON_GetObjectItemCaseSensitive(item, "tokens");
        double count = cJSON_IsNumber(tokens) ? tokens->valuedouble : -1;
        if (!(count >= drawn && count <= n - at) || count != floor(count) ||
            !cJSON_IsString(role) || !cJSON_IsString(content) ||
            (strcmp(role->valuestring, "assistant") == 0) != drawn)
            return PROBLEM(r, "%s:%ld: \"turns\" does not say by whom the %d tokens are", AT(r),
                           n);
        if (!read_tokens(r, token, at, (int)count, ends, V, drawn)) return false;
        if (!drawn)
            exchange_add(exchange, role->valuestring, content->valuestring,
                         strlen(content->valuestring), at, at + (int)count);
        at += (int)count;
        drawn = !drawn;
    }
    return (at == n && !drawn) ||
           PROBLEM(r, "%s:%ld: \"turns\" does not say by whom the %d tokens are", AT(r), n);
}

/* A list with a number for each token that was drawn; 0 for those of an environment. */
static bool read_numbers(struct Replay *r, const char *key, float *out, int n, int most,
                         const struct Exchange *exchange) {
    int found = read_list(r, key, most), drawn = n - exchange_tokens(exchange), next = 0;
    if (found < 0) return false;
    if (found != drawn)
        return PROBLEM(r, "%s:%ld: %d \"tokens\" and %d \"%s\": needs as many", AT(r), drawn,
                       found, key);
    for (int k = 0, text = 0; k < n; k++) {
        const int *at = exchange->at.id + 2 * text;
        bool said = text < exchange->said.role.count && k >= at[0] && k < at[1];
        out[k] = said ? 0 : (float)r->list[next++];
        while (text < exchange->said.role.count && k + 1 >= exchange->at.id[2 * text + 1]) text++;
    }
    return true;
}

/* Reads the line's completion into place i of the rollout. One that its environment's text had no
   room in is marked as not ended, though its last token ends a turn. */
static bool read_completion(struct Replay *r, int i, const struct RolloutRequest *request, int V,
                            struct Rollout *out) {
    int most = request->max_tokens;
    size_t at = (size_t)i * (size_t)most;
    struct Exchange *exchange = &out->exchange[i];
    int n = read_list(r, "tokens", most);
    if (n < 0) return false;
    if (n == 0) return PROBLEM(r, "%s:%ld: there are no \"tokens\"", AT(r));
    if (!read_turns(r, exchange, out->token + at, n, &request->ends, V)) return false;
    if (!read_numbers(r, "logp", out->logp + at, n, most, exchange)) return false;
    if (!read_numbers(r, "entropy", out->entropy + at, n, most, exchange)) return false;
    out->start[i + 1] = n;
    out->ended[i] = ends_has(&request->ends, out->token[at + (size_t)n - 1]);
    if (cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(r->object, "ended")) &&
        cJSON_GetObjectItemCaseSensitive(r->object, "turns"))
        out->ended[i] = 0;
    return true;
}

bool replay_rollout(struct Replay *r, int64_t step, const struct RolloutRequest *request,
                    const struct Example *example, int V, struct Rollout *out) {
    if (replay_problem(r)) return false;
    r->list = check_realloc(r->list, (size_t)request->max_tokens, sizeof *r->list, "a replay");
    rollout_clear(out, request);
    for (int i = 0; i < out->count; i++) {
        if (!next_of_step(r, step)) return false;
        if (!check_prompt(r, &example[i / request->group].prompt)) return false;
        if (!read_completion(r, i, request, V, out)) return false;
    }
    rollout_pack(out, request->max_tokens);
    r->steps++;
    return true;
}
