/* Time, for measuring. */
#ifndef LLMC_TIME_H
#define LLMC_TIME_H

/* Seconds of a monotonic clock. */
double seconds(void);

#endif
