/* --score FILE: per-token log-probability and exact entropy of given token ids, as a service to
   other programs. One JSON object per line in, one per line out, in order:

       {"tokens": [15, 3, 8]}   ->   {"tokens": 3, "logp": [-1.2, -0.3], "entropy": [2.1, 1.9]}

   The first token is context only. A line that cannot be scored ends the program (exit 2) with its
   number, after the lines before it were written. */
#include <cjson/cJSON.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../base/check.h"
#include "../io/lines.h"
#include "session.h"

/* Reads the ids of one line into token; returns how many. A line without them ends the program. */
static int read_tokens(const struct Session *s, const char *line, const char *path, long number,
                       int *token) {
    const struct ModelConfig *c = &s->model->config;
    cJSON *object = cJSON_ParseWithOpts(line, NULL, 1);
    const cJSON *list = cJSON_GetObjectItemCaseSensitive(object, "tokens"), *item;
    int n = 0;
    if (!cJSON_IsArray(list))
        die_input("%s:%ld: not a JSON object with a list \"tokens\"", path, number);
    cJSON_ArrayForEach(item, list) {
        if (n > c->max_T)
            die_input("%s:%ld: more than %d tokens, the model's context + 1", path, number,
                      c->max_T + 1);
        double id = cJSON_IsNumber(item) ? item->valuedouble : -1;
        if (!(id >= 0 && id < c->V && id == floor(id)))
            die_input("%s:%ld: token %d is not an id in 0..%d", path, number, n, c->V - 1);
        token[n++] = (int)id;
    }
    if (n < 2) die_input("%s:%ld: needs at least 2 tokens, has %d", path, number, n);
    cJSON_Delete(object);
    return n;
}

static void write_scores(struct Jsonl *out, int tokens, const struct HeadStats *stats) {
    jsonl_begin(out);
    jsonl_integer(out, "tokens", tokens);
    jsonl_numbers(out, "logp", stats->logp, tokens - 1);
    jsonl_numbers(out, "entropy", stats->entropy, tokens - 1);
    jsonl_end(out);
}

static bool are_finite(const float *x, int n) {
    for (int i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

void session_score(struct Session *s) {
    const char *path = s->options.score;
    size_t room = (size_t)s->model->config.max_T + 1;
    int *token = check_alloc(room, sizeof *token, "tokens to score");
    unsigned char *mask = check_alloc(room, 1, "tokens to score");
    struct HeadStats stats = {.logp = check_alloc(room, sizeof(float), "scores"),
                              .entropy = check_alloc(room, sizeof(float), "scores")};
    struct Lines in;
    lines_open(&in, path, "--score");
    struct Jsonl out = {.stream = stdout, .path = "standard output"};   /* others may share it */
    memset(mask + 1, 1, room - 1);
    while (lines_next(&in)) {
        if (lines_has_zero(&in)) die_input("%s:%ld: holds a zero byte", path, in.number);
        if (in.text[strspn(in.text, " \t\r\n")] == 0) continue;
        int n = read_tokens(s, in.text, path, in.number, token), pick = 0;
        int start[2] = {0, n}, loss_start[2] = {0, n - 1};
        struct TrainingSet one = {.count = 1, .start = start, .token = token, .loss_mask = mask,
                                  .loss_start = loss_start};
        trainer_score(s->trainer, trainer_weights(s->trainer), &one, &pick, 1,
                      (float)s->options.temperature, &stats);
        write_scores(&out, n, &stats);
        if (!are_finite(stats.logp, n - 1) || !are_finite(stats.entropy, n - 1))
            die_machine("%s:%ld: its scores are not finite (null), so the weights are worth "
                        "nothing at this --dtype", path, in.number);
    }
    jsonl_close(&out);
    lines_close(&in);
    free(token), free(mask), free(stats.logp), free(stats.entropy);
}
