/* Learning-rate schedules: the rate rises over the warm-up steps, then stays or falls until the end
   of the run. */
#ifndef LLMC_SCHEDULE_H
#define LLMC_SCHEDULE_H

#include <stdint.h>

/* The rate rises linearly from 0 at step 0 to `rate` at step `warmup`. From there "constant" keeps
   it, "linear" lowers it on a straight line and "cosine" on half a cosine wave (1608.03983, without
   restarts), both to min_ratio * rate at step `steps`. Steps are numbered from 0, so `steps` is the
   first that is not made, and the last step's rate is still above that floor. A run that is
   resumed with more --steps goes on with the rates of the longer schedule. */
struct Schedule {
    const char *shape;
    float rate;
    double min_ratio;
    int64_t warmup, steps;
};
/* The rate of step `step`, counted from 0. NaN for an unknown shape. */
float schedule_rate(const struct Schedule *schedule, int64_t step);

#endif
