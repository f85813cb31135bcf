/* Learning-rate schedules. */
#ifndef LLMC_SCHEDULE_H
#define LLMC_SCHEDULE_H

#include <stdint.h>

/* Linear from 0 over `warmup` steps, then constant. step counts from 0. */
float schedule_constant(float rate, int64_t step, int64_t warmup);

#endif
