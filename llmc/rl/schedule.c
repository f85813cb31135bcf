#include "schedule.h"

#include <math.h>
#include <string.h>

/* How far the rate still is above its floor, as a share of rate minus floor, when the share x of
   the steps after the warm-up is done. */
static double left_linear(double x) { return 1 - x; }
static double left_cosine(double x) { return (1 + cos(M_PI * x)) / 2; }

static const struct { const char *name; double (*left)(double); } shapes[] = {
    {"constant", NULL}, {"linear", left_linear}, {"cosine", left_cosine}};

float schedule_rate(const struct Schedule *s, int64_t step) {
    if (step < s->warmup) return s->rate * (float)((double)step / (double)s->warmup);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        if (strcmp(s->shape, shapes[i].name) != 0) continue;
        if (!shapes[i].left) return s->rate;
        double gone = (double)(step - s->warmup) / (double)(s->steps - s->warmup);
        double left = step < s->steps ? shapes[i].left(gone) : 0;
        return (float)(s->rate * (s->min_ratio + (1 - s->min_ratio) * left));
    }
    return NAN;
}
