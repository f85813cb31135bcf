/* Learning-rate schedules: a rise over the warm-up, then a fall to the end of the run. */
#ifndef LLMC_SCHEDULE_H
#define LLMC_SCHEDULE_H

#include <stdint.h>

/* The rate rises linearly from 0 at step 0 to `rate` at step `warmup`, and goes from there to
   min_ratio * rate at step `steps`, the first that is not made: "constant" stays, "linear" falls
   along a line, "cosine" along half a wave (1608.03983, without restarts). So the last step made
   still has a rate above its floor, and more steps stretch the whole fall. */
struct Schedule {
    const char *shape;
    float rate;
    double min_ratio;
    int64_t warmup, steps;
};
/* step counts from 0. NaN: unknown shape. */
float schedule_rate(const struct Schedule *schedule, int64_t step);

#endif
