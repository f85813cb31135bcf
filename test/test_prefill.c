/* Prompts that enter the decode cache: attention of every token against the definition in double,
   and the same bits however the tokens are shared out to steps and rows. As in the sampler, a
   prompt's last token is the first of a tail, so that rows of both kinds are in a step. */
#include "test_ops.h"

enum { LAYERS = 2, LAYER = 1, PROMPTS = 8, MOST = 1024 };

/* Tokens of the prompts. They end at, before and beyond borders of pages and of blocks of rows. */
static const int lengths_full[PROMPTS] = {1, 300, 64, 2, 66, 127, 130, 65};
static const int lengths_brief[PROMPTS] = {66, 1, 5, 130, 2, 17, 1, 3};

struct Token {
    int prompt, position;
};

struct Prompts {
    int NH, NKV, HS, QKV, N, longest;
    int start[PROMPTS + 1];
    float *x;                 /* [N,QKV] */
    struct Token token[MOST]; /* in the order of their rows; no key comes after its queries */
};

static void build(struct Prompts *p, const int *length, int NH, int NKV, int HS) {
    *p = (struct Prompts){.NH = NH, .NKV = NKV, .HS = HS, .QKV = (NH + 2 * NKV) * HS};
    for (int i = 0; i < PROMPTS; i++) {
        p->start[i + 1] = p->start[i] + length[i];
        if (length[i] > p->longest) p->longest = length[i];
        for (int k = 0; k < length[i]; k++) p->token[p->N++] = (struct Token){i, k};
    }
    p->x = new_normal((size_t)p->N * p->QKV, 1, (uint64_t)(NH + HS));
    put_x(p->x, (size_t)p->N * p->QKV); /* rounded, where floatX is narrow */
    release_all();
}

/* How many tokens of the prompt are in its segment: all but the last. */
static int segment(const struct Prompts *p, int i) { return p->start[i + 1] - p->start[i] - 1; }
static int number(const struct Prompts *p, struct Token t) {
    return p->start[t.prompt] + t.position;
}

/* ---- the definition -------------------------------------------------------------------------- */

/* out [HS] of query head h of token n, whose prompt begins with token `first`. */
static void reference_head(double *out, const struct Prompts *p, int first, int n, int h) {
    const int HS = p->HS, key = p->NH + h / (p->NH / p->NKV);
    const float *q = p->x + (size_t)n * p->QKV + h * HS;
    double weight[MOST], most = -INFINITY, sum = 0;
    for (int j = first; j <= n; j++) {
        const float *k = p->x + (size_t)j * p->QKV + key * HS;
        weight[j - first] = 0;
        for (int i = 0; i < HS; i++) weight[j - first] += (double)q[i] * k[i] / sqrt(HS);
        most = fmax(most, weight[j - first]);
    }
    for (int i = 0; i < HS; i++) out[i] = 0;
    for (int j = first; j <= n; j++) sum += exp(weight[j - first] - most);
    for (int j = first; j <= n; j++) {
        const float *v = p->x + (size_t)j * p->QKV + (key + p->NKV) * HS;
        for (int i = 0; i < HS; i++) out[i] += exp(weight[j - first] - most) / sum * v[i];
    }
}

/* Every token by itself, so that a wrong one cannot hide among the others. */
static void check_reference(const struct Prompts *p, const float *out) {
    const size_t C = (size_t)p->NH * p->HS;
    double *want = new_doubles(C);
    for (int i = 0; i < PROMPTS; i++)
        for (int n = p->start[i]; n < p->start[i + 1]; n++) {
            for (int h = 0; h < p->NH; h++)
                reference_head(want + h * p->HS, p, p->start[i], n, h);
            ASSERT_CLOSE("prompt", relative_l2(out + n * C, want, C), bound_of(4));
        }
    free(want);
}

/* ---- steps ----------------------------------------------------------------------------------- */

/* How tokens are shared out to steps; none of it may show. */
struct Plan {
    int items;       /* tokens of a step; 0: any number up to 100 */
    bool holes;      /* every third row is empty, and so is the last */
    bool shifted;    /* qkv begins at an odd address */
    bool recorded;   /* one recording serves all steps; the last one is filled up */
};

/* A backend's memory for steps of up to R rows. */
struct Place {
    struct KvCache cache;
    struct DecodeRows rows;
    int R, *fields;   /* [4,R] */
    floatX *qkv, *out;
    void *workspace;
};

/* Every page is NaN, and so are those that nobody has. Pages are scattered. */
static struct Place new_place(const struct Prompts *p, int R, bool shifted) {
    const int width = kv_pages(p->longest), entries = PROMPTS * (width + 1);
    int pages = entries + 2, *table = malloc((size_t)entries * sizeof *table);
    while (pages % 7 == 0) pages++;
    for (int n = 0; n < entries; n++) table[n] = (7 * n + 3) % pages;
    struct OpsShape shape = {.N = 1, .C = p->NH * p->HS, .F = 1, .NH = p->NH, .NKV = p->NKV,
                             .HS = p->HS, .V = 1, .Vp = 1, .max_T = 1, .R = R,
                             .max_length = (width + 1) * KV_PAGE};
    struct Place at = {.R = R, .fields = malloc(4 * (size_t)R * sizeof(int))};
    int *placed = put_ints(table, (size_t)entries), *fields = new_poison(4 * (size_t)R * 4);
    at.cache = (struct KvCache){
        new_x((size_t)LAYERS * pages * 2 * p->NKV * KV_PAGE * p->HS), placed,
        placed + PROMPTS * width, {p->NH, p->NKV, p->HS}, LAYERS, pages, PROMPTS, width,
        PROMPTS, 1};
    at.rows = (struct DecodeRows){.position = fields, .prompt_slot = fields + R,
                                  .prompt_length = fields + 2 * R, .tail_slot = fields + 3 * R};
    at.qkv = ops_at(ops, new_x((size_t)R * p->QKV + 1), shifted);
    at.out = new_x((size_t)R * p->NH * p->HS);
    at.workspace = new_workspace_of("attention", &shape);
    free(table);
    return at;
}

static int row_of(int item, bool holes) { return holes ? item + item / 2 : item; }

/* Rows of tokens [0, items), as the backend shall see them. An empty row's fields are nonsense. */
static void put_step(struct Place *at, const struct Prompts *p, const struct Token *token,
                     int items, bool holes) {
    const int R = at->R;
    float *x = malloc((size_t)R * p->QKV * sizeof *x);
    bool tails_only = true;
    for (int i = 0; i < 4 * R; i++) at->fields[i] = i < R ? -1 - i : 12345678;
    for (int i = 0; i < R * p->QKV; i++) x[i] = NAN;
    for (int i = 0; i < items; i++) {
        int r = row_of(i, holes), slot = (token[i].prompt + 3) % PROMPTS;
        at->fields[r] = token[i].position;
        at->fields[R + r] = slot, at->fields[3 * R + r] = PROMPTS - 1 - slot;
        at->fields[2 * R + r] = segment(p, token[i].prompt);
        if (token[i].position < segment(p, token[i].prompt)) tails_only = false;
        memcpy(x + (size_t)r * p->QKV, p->x + (size_t)number(p, token[i]) * p->QKV,
               (size_t)p->QKV * sizeof *x);
    }
    int before = num_allocated;
    ops->upload(at->rows.position, at->fields, 4 * (size_t)R * sizeof(int));
    ops->copy(at->qkv, put_x(x, (size_t)R * p->QKV), (size_t)R * p->QKV * ops->element_size);
    while (num_allocated > before) ops->free(allocated[--num_allocated]);
    at->rows.tails_only = tails_only;
    free(x);
}

/* Runs a step and moves its results to out, which is by token of the prompts. */
static void run_step(float *out, struct Place *at, const struct Prompts *p,
                     const struct Token *token, int items, const struct Plan *plan, int rows) {
    const size_t C = (size_t)p->NH * p->HS;
    int before = num_allocated;
    put_step(at, p, token, items, plan->holes);
    if (plan->recorded) at->rows.tails_only = false; /* one recording for all */
    if (!plan->recorded || ops->graph_begin(&at->qkv, sizeof at->qkv)) {
        ops->attention_decode(at->out, at->qkv, &at->cache, &at->rows, LAYER, rows, at->workspace);
        if (plan->recorded) ops->graph_end();
    }
    float *host = get_x(at->out, (size_t)at->R * C);
    for (int i = 0; i < items; i++)
        memcpy(out + number(p, token[i]) * C, host + row_of(i, plan->holes) * C, C * sizeof *out);
    free(host);
    while (num_allocated > before) ops->free(allocated[--num_allocated]);
}

static int rows_of(int items, bool holes) { return holes ? row_of(items, true) + 1 : items; }

/* All tokens, from a cache full of NaN. */
static float *run_plan(const struct Prompts *p, const struct Plan *plan) {
    const int most = plan->items ? plan->items : 100;
    struct Place at = new_place(p, rows_of(most, plan->holes), plan->shifted);
    float *out = calloc((size_t)p->N * p->NH * p->HS, sizeof *out);
    struct Rng rng;
    rng_open(&rng, 5, RNG_TEST, 0);
    for (int first = 0, items; first < p->N; first += items) {
        items = plan->items ? plan->items : 1 + (int)rng_below(&rng, 100);
        if (items > p->N - first) items = p->N - first;
        run_step(out, &at, p, p->token + first, items, plan,
                 plan->recorded ? at.R : rows_of(items, plan->holes));
    }
    free(at.fields);
    release_all();
    return out;
}

/* ---- the tests ------------------------------------------------------------------------------- */

/* Prompts take turns, a token each, so that runs are short. Keys stay before their queries. */
static void interleave(struct Prompts *p) {
    p->N = 0;
    for (int k = 0; k < p->longest; k++)
        for (int i = 0; i < PROMPTS; i++)
            if (k <= segment(p, i)) p->token[p->N++] = (struct Token){i, k};
}

/* Any order: of one step, where all keys are stored before any is read. */
static void shuffle(struct Prompts *p) {
    int order[MOST];
    struct Token copy[MOST];
    struct Rng rng;
    for (int i = 0; i < p->N; i++) order[i] = i;
    rng_open(&rng, 1, RNG_TEST, 99);
    rng_shuffle(&rng, order, p->N);
    memcpy(copy, p->token, sizeof copy);
    for (int i = 0; i < p->N; i++) p->token[i] = copy[order[i]];
}

static void same_bits(const struct Prompts *p, const float *want, const struct Plan *plan) {
    float *out = run_plan(p, plan);
    assert_memory_equal(want, out, (size_t)p->N * p->NH * p->HS * sizeof *want);
    free(out);
}

static void check_prompts(const int *length, int NH, int NKV, int HS) {
    struct Prompts p;
    build(&p, length, NH, NKV, HS);
    const struct Plan plans[] = {{0, false, false, false}, {40, true, false, false},
                                 {67, false, true, true}, {130, false, false, true}};
    const struct Plan whole = {p.N, false, false, false}, gaps = {p.N, true, true, false};
    const struct Plan alone = {1, false, false, false};
    float *out = run_plan(&p, &whole);
    check_reference(&p, out);
    for (int i = 0; i < 4; i++) same_bits(&p, out, &plans[i]);
    if (is_cpu() || (length == lengths_brief && !is_slow())) same_bits(&p, out, &alone);
    interleave(&p);
    same_bits(&p, out, &plans[1]);
    shuffle(&p);
    same_bits(&p, out, &gaps);
    free(out), free(p.x);
}

/* Groups of 1 to 5 heads; vectors that are aligned and not; every instance of the kernel. */
static void test_prompts_small(void **state) {
    (void)state;
    static const int heads[][3] = {{4, 2, 3},  {3, 1, 32}, {5, 1, 21},  {4, 4, 33},
                                   {2, 1, 80}, {6, 2, 95}, {3, 3, 128}, {2, 1, 127}};
    for (int i = 0; i < (is_slow() ? 4 : 8); i++)
        check_prompts(lengths_brief, heads[i][0], heads[i][1], heads[i][2]);
}

static void test_prompts(void **state) {
    (void)state;
    check_prompts(is_slow() ? lengths_brief : lengths_full, 2, 1, 64);
    if (is_cpu()) check_prompts(lengths_full, 3, 3, 20);
}

int main(int argc, char **argv) {
    open_backend(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prompts_small),
        cmocka_unit_test(test_prompts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
