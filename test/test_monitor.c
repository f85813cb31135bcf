/* Monitors against a float64 model: REPO-D's sum, and the measured entropy push on the tokens that
   the rule picks, worked out by hand. */
#include "trainer_rig.h"
#include "../llmc/rl/monitor.h"

/* The rig's sequences as a rollout batch. Lengths with loss: 4 3 4 1 5 1, in all 18. */
static void as_experience(struct Experience *e, struct Rig *rig, int *length, float *entropy) {
    *e = (struct Experience){
        .count = COUNT, .group_size = 2, .start = rig->start, .loss_start = rig->loss_start,
        .token = rig->token, .loss_mask = rig->mask, .logp = rig->old, .entropy = entropy,
        .advantage = rig->advantage, .active = rig->active, .length = length};
    for (int s = 0; s < COUNT; s++) length[s] = rig->loss_start[s + 1] - rig->loss_start[s];
    assert_int_equal(rig->loss_start[COUNT], 18);
}

static void test_repo_d(void **state) {
    (void)state;
    struct Rig rig;
    struct Experience e;
    struct Reference x;
    int length[COUNT];
    float entropy[MAX_LOSS] = {0};
    rig_open(&rig, 11, NULL, NULL);
    as_experience(&e, &rig, length, entropy);
    rig.active[1] = 0;   /* counts as tokens, and its advantage is 0 */
    for (int warm = 0; warm < 2; warm++) {
        double temperature = warm ? .6 : 1, want = 0, size = 0, tokens = 0;
        reference_set(&x, &rig, rig.w, temperature, NULL);
        for (int s = 0; s < COUNT; s++)
            for (int t = rig.loss_start[s]; t < rig.loss_start[s + 1]; t++) {
                double L = x.logp[t] + x.entropy[t], A = s == 1 ? 0 : rig.advantage[s];
                double term = A * (exp(x.logp[t]) * L - (x.r[t] + x.entropy[t] * x.q[t]));
                want += term, size += fabs(A);
            }
        double found = monitor_repo_d(rig.trainer, &e, (float)temperature, &tokens);
        assert_true(tokens == 18);
        assert_true(fabs(want) > .01);
        /* each token's bracket is good to about 1e-6 */
        ASSERT_CLOSE("D", fabs(found - want), 1e-5 * size);
    }
    e.count = 0;
    double tokens = -1;
    assert_true(monitor_repo_d(rig.trainer, &e, 1, &tokens) == 0 && tokens == 0);
    rig_close(&rig);
}

/* The completions that a budget picks: every (18 / budget)-th from the first on, as long as they
   fit, the first always. */
static const struct { int64_t budget; const char *picked; } budgets[] = {
    {18, "012345"}, {100, "012345"}, {17, "01234"}, {11, "012"}, {10, "01"}, {9, "02"},
    {8, "02"}, {7, "0"}, {6, "03"}, {4, "0"}, {1, "0"}, {0, "0"}, {-1, "0"},
};

static void test_entropy_push(void **state) {
    (void)state;
    struct Rig rig;
    struct Experience e;
    struct Reference x;
    int length[COUNT];
    float entropy[MAX_LOSS];
    rig_open(&rig, 11, NULL, NULL);
    as_experience(&e, &rig, length, entropy);
    reference_set(&x, &rig, rig.w, 1, NULL);
    for (int t = 0; t < 18; t++) entropy[t] = (float)(x.entropy[t] - .01 * (t + 1) * (t + 1));
    for (size_t b = 0; b < sizeof budgets / sizeof *budgets; b++) {
        double sum = 0;
        int tokens = 0;
        for (const char *s = budgets[b].picked; *s; s++)
            for (int t = rig.loss_start[*s - '0']; t < rig.loss_start[*s - '0' + 1]; t++)
                sum += .01 * (t + 1) * (t + 1), tokens++;
        double found = monitor_entropy_push(rig.trainer, &e, 1, budgets[b].budget);
        if (!(fabs(found - sum / tokens) <= 2e-5))
            fail_msg("budget %d: %.6f, not %.6f", (int)budgets[b].budget, found, sum / tokens);
    }
    e.count = 0;
    assert_true(isnan(monitor_entropy_push(rig.trainer, &e, 1, 10)));
    rig_close(&rig);
}

/* -1 is 2 %: of 30 times the batch, 540 tokens, 10: every 54th completion, two of four tokens. */
static void test_entropy_push_share(void **state) {
    (void)state;
    enum { TIMES = 30 };
    static int start[COUNT * TIMES + 1], loss_start[COUNT * TIMES + 1], token[64 * TIMES];
    static int length[COUNT * TIMES];
    static unsigned char mask[64 * TIMES], active[COUNT * TIMES];
    static float old[18 * TIMES];
    struct Rig rig;
    struct Reference x;
    rig_open(&rig, 64, NULL, NULL);
    reference_set(&x, &rig, rig.w, 1, NULL);
    int tokens = rig.start[COUNT];
    for (int c = 0; c < TIMES; c++) {
        memcpy(token + c * tokens, rig.token, (size_t)tokens * sizeof(int));
        memcpy(mask + c * tokens, rig.mask, (size_t)tokens);
        for (int s = 0; s < COUNT; s++) {
            int i = c * COUNT + s;
            start[i + 1] = c * tokens + rig.start[s + 1];
            loss_start[i + 1] = 18 * c + rig.loss_start[s + 1];
            length[i] = rig.loss_start[s + 1] - rig.loss_start[s], active[i] = 1;
        }
        for (int t = 0; t < 18; t++) old[18 * c + t] = (float)x.entropy[t] - (float)c;
    }
    struct Experience e = {.count = COUNT * TIMES, .group_size = 2, .start = start,
                           .loss_start = loss_start, .token = token, .loss_mask = mask,
                           .entropy = old, .active = active, .length = length};
    double found = monitor_entropy_push(rig.trainer, &e, 1, -1);
    ASSERT_CLOSE("push of copies 0 and 9", fabs(found - (0 + 9) / 2.), 2e-5);
    rig_close(&rig);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repo_d),
        cmocka_unit_test(test_entropy_push),
        cmocka_unit_test(test_entropy_push_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
