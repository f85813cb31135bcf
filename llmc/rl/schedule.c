#include "schedule.h"

float schedule_constant(float rate, int64_t step, int64_t warmup) {
    return step < warmup ? rate * (float)((double)step / (double)warmup) : rate;
}
