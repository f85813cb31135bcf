#include "schedule.h"

#include <time.h>

float schedule_constant(float rate, int64_t step, int64_t warmup) {
    return step < warmup ? rate * (float)((double)step / (double)warmup) : rate;
}

double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
