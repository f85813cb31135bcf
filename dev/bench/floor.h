/* Floors on the CPU, for operations (measure.c) and for whole steps (whole.c): the bare matrix
   products of the same shapes at the best threading, or the bytes that must be read over the read
   bandwidth. Ours and the floor take turns, so that a disturbance by other processes hits both. */
#ifndef BENCH_FLOOR_H
#define BENCH_FLOOR_H

#include "bench.h"

double floor_products(const struct Products *p);   /* seconds */
double floor_flop_rate(void);                      /* per second, of one product; measured now */
double floor_byte_rate(void);                      /* of reading 512 MB with all threads */

/* Seconds: of ours the 20th percentile, the median, the 80th; medians of the floor and of the
   ratios of the two. */
struct Alternation { double ours[3], floor, ratio; };
/* Both take turns, `repeats` (at most 64) times or so many seconds, at least 3 times, after a turn
   of each that does not count. */
struct Alternation floor_compare(void (*ours)(void *), double (*floor_seconds)(void *),
                                 void *context, int repeats, double most_seconds);

#endif
