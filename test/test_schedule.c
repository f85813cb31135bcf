/* Learning-rate schedules at steps worked by hand: rate .5, warm-up 2, 10 steps in all. */
#include "test.h"
#include "../llmc/rl/schedule.h"

static const struct {
    const char *shape;
    double min_ratio;
    int64_t step;
    double rate;
} cases[] = {
    {"constant", 0, 0, 0}, {"constant", 0, 1, .25}, {"constant", 0, 2, .5}, {"constant", 0, 9, .5},
    {"constant", 0, 50, .5},
    /* eight steps down: 1/8 of .5 each */
    {"linear", 0, 0, 0}, {"linear", 0, 1, .25}, {"linear", 0, 2, .5}, {"linear", 0, 3, .4375},
    {"linear", 0, 6, .25}, {"linear", 0, 9, .0625}, {"linear", 0, 10, 0}, {"linear", 0, 50, 0},
    /* to a fifth: .1 + .4 (1 - x) */
    {"linear", .2, 2, .5}, {"linear", .2, 6, .3}, {"linear", .2, 9, .15}, {"linear", .2, 10, .1},
    /* (1 + cos(pi x)) / 2 at x = 1/4, 1/2, 3/4: (1 + sqrt(1/2)) / 2, 1/2, (1 - sqrt(1/2)) / 2 */
    {"cosine", 0, 1, .25}, {"cosine", 0, 2, .5}, {"cosine", 0, 4, .42677669529663687},
    {"cosine", 0, 6, .25}, {"cosine", 0, 8, .073223304703363118}, {"cosine", 0, 10, 0},
    {"cosine", .2, 4, .4414213562373095}, {"cosine", .2, 6, .3}, {"cosine", .2, 10, .1},
};

static void test_by_hand(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct Schedule s = {cases[i].shape, .5f, cases[i].min_ratio, 2, 10};
        double rate = schedule_rate(&s, cases[i].step);
        if (!(fabs(rate - cases[i].rate) <= 1e-7))   /* float32's rounding of numbers up to 1 */
            fail_msg("%s to %g at step %lld: %.9g, not %.9g", cases[i].shape, cases[i].min_ratio,
                     (long long)cases[i].step, rate, cases[i].rate);
    }
}

/* Extreme cases: no warm-up, no steps, a warm-up longer than the run. */
static void test_edges(void **state) {
    (void)state;
    assert_true(schedule_rate(&(struct Schedule){"linear", 1, 0, 0, 4}, 0) == 1);
    assert_true(schedule_rate(&(struct Schedule){"cosine", 1, .5, 0, 0}, 0) == .5f);
    assert_true(schedule_rate(&(struct Schedule){"linear", 1, 0, 8, 4}, 2) == .25f);
    assert_true(isnan(schedule_rate(&(struct Schedule){"step", 1, 0, 0, 4}, 2)));
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_by_hand),
                                       cmocka_unit_test(test_edges)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
