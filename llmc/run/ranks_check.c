/* What all ranks must have alike, compared when they have met. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "../base/check.h"
#include "../base/files.h"
#include "../base/text.h"
#include "../kernels/backends.h"
#include "ranks.h"

/* Every line is a name, a tab and a value. The first two say who it is, and are not compared. */

static void add(struct Text *text, const char *name, const char *value) {
    text_format(text, "%s\t", name);
    for (const char *c = value; *c; c++) text_append(text, *c == '\n' ? " " : c, 1);
    text_append(text, "\n", 1);
}

static uint32_t sum_of_program(void) {
    static char piece[1 << 16];
    uint32_t sum = 0;
    ssize_t n;
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    while (file >= 0 && (n = read(file, piece, sizeof piece)) > 0)
        sum = crc32c(sum, piece, (size_t)n);
    if (file >= 0) close(file);
    return sum;
}

/* Options of one process and not of the run. */
static bool is_own(const char *name) {
    static const char *const own[] = {"device", "quiet", "threads", "config", "help", "gpus",
                                      "ranks"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (strcmp(own[i], name) == 0) return true;
    return false;
}

static void add_options(struct Text *text, const struct Options *options) {
    for (int i = 0; options_row(i); i++) {
        const struct Option *row = options_row(i);
        char name[80], value[OPTION_TEXT];
        if (is_own(row->name)) continue;
        snprintf(name, sizeof name, "--%s", row->name);
        add(text, name, option_value(row, options, value));
    }
}

static void add_model(struct Text *text, const struct Model *model) {
    for (int i = 0; i < model->num_tensors; i++) {
        const struct Tensor *t = &model->tensors[i];
        text_format(text, "tensor %s\t[%d, %d] at %zu\n", t->name, t->shape[0], t->shape[1],
                    t->offset);
    }
}

static void describe(struct Text *text, const struct Ranks *ranks, const struct Options *o,
                     const struct Ops *ops, const struct Model *model) {
    char device[64];
    backend_device_id(ops->name, ranks_device(ranks, o), device);
    add(text, "host", check_host());
    add(text, "device", device);
    text_format(text, "program\t%08x\n", sum_of_program());
    add(text, "backend", ops->name), add(text, "dtype", ops->products);
    if (model) add_model(text, model);
    else add_options(text, o);
}

/* ---- comparing ------------------------------------------------------------------------------- */

static const char *after_line(const char *at) {
    at = strchr(at, '\n');
    return at ? at + 1 : "";
}

/* Line number i; "" past the end. */
static const char *line_at(const char *text, int i) {
    while (i-- > 0) text = after_line(text);
    return text;
}

/* The value of the line at `at`, in one of four static buffers. */
static const char *value_of(const char *at) {
    static char values[4][256];
    static int turn;
    char *out = values[turn++ % 4];
    const char *tab = at + strcspn(at, "\t\n");
    snprintf(out, sizeof values[0], "%.*s", *tab == '\t' ? (int)strcspn(tab + 1, "\n") : 0,
             *tab ? tab + 1 : "");
    return *out ? out : "empty";
}

static bool same_line(const char *a, const char *b) {
    size_t n = strcspn(a, "\n");
    return n == strcspn(b, "\n") && memcmp(a, b, n) == 0;
}

const char *ranks_compare(const char *zero, const char *other, int rank) {
    static char sentence[1024];
    const char *a = line_at(zero, 2), *b = line_at(other, 2), *host = value_of(other);
    while (*a && same_line(a, b)) a = after_line(a), b = after_line(b);
    if (!*a && !*b) return NULL;
    int name = (int)strcspn(a, "\t\n");
    if (strncmp(a, "program", 7) == 0)
        snprintf(sentence, sizeof sentence, "rank %d (%s) runs another program file than rank 0: "
                 "copy one build to all machines", rank, host);
    else if (strncmp(a, "tensor", 6) == 0 || !*a)
        snprintf(sentence, sizeof sentence, "the model differs: %.*s is %s on rank 0 and %s on "
                 "rank %d (%s)", name, a, value_of(a), value_of(b), rank, host);
    else
        snprintf(sentence, sizeof sentence, "%.*s is %s on rank 0 and %s on rank %d (%s): all must "
                 "have the same", name, a, value_of(a), value_of(b), rank, host);
    return sentence;
}

const char *ranks_share(const char *a, const char *b, int rank_a, int rank_b, const char *device) {
    static char sentence[512];
    const char *id = line_at(a, 1);
    if (!same_line(id, line_at(b, 1)) || id[strcspn(id, "\t") + 1] == '\n') return NULL;
    snprintf(sentence, sizeof sentence, "ranks %d and %d on %s share one GPU (%s), and each needs "
             "one of its own: start fewer, or name others with --gpus", rank_a, rank_b,
             value_of(b), device);
    return sentence;
}

void ranks_check(const struct World *world, const struct Ranks *ranks, const struct Options *o,
                 const struct Ops *ops, const struct Model *model) {
    struct Text text = {0};
    struct Gathered all = {0};
    if (world_size(world) == 1) return;
    describe(&text, ranks, o, ops, model);
    world_gather(world, &all, text.bytes, text.length + 1);   /* each with its zero */
    const char *zero = all.bytes;
    for (int r = 1; r < world->size; r++) {
        const char *other = all.bytes + all.start[r], *differs = ranks_compare(zero, other, r);
        for (int q = 0; q < r && !differs; q++)
            differs = ranks_share(all.bytes + all.start[q], other, q, r, ops->device);
        if (differs) die_input("%s", differs);
    }
    gathered_free(&all);
    text_free(&text);
}
