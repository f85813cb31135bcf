/* TensorBoard event files out: RUN/events.out.tfevents.TIME.policy, one record per number, so that
   `tensorboard --logdir runs` shows runs while they grow. Scalars are written; nothing is read.

   A file is a row of TFRecords (uint64 length, masked CRC of it, data, masked CRC of it; little
   endian), each holding one Event of TensorFlow's event.proto. */
#ifndef LLMC_TENSORBOARD_H
#define LLMC_TENSORBOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct TensorBoard {
    FILE *stream;
    char path[4096];
};

/* A new file in `directory`, whose name sorts after those there: TensorBoard reads them in that
   order. first_step is the first step that will be logged; what earlier files hold from there on is
   not shown any more (a START event), so a resumed run shows no step twice. die_input if the
   directory cannot be written. */
void tensorboard_open(struct TensorBoard *board, const char *directory, int64_t first_step);
/* One number, kept as float32. NaN means not measured: nothing is written. tag: ASCII, with `/`
   between group and name; past TENSORBOARD_MAX_TAG bytes it is cut. */
#define TENSORBOARD_MAX_TAG 256
void tensorboard_scalar(struct TensorBoard *board, int64_t step, const char *tag, double value);
/* Hands what was logged to the kernel; once per step. Like tensorboard_scalar and
   tensorboard_close it ends in die_machine if the disk refuses. */
void tensorboard_flush(struct TensorBoard *board);
/* Does the file still have its name, or was it removed or replaced since it was opened? */
bool tensorboard_is_there(const struct TensorBoard *board);
void tensorboard_close(struct TensorBoard *board);

/* Removes the event files of this program in `directory`, for a run that starts anew there. */
void tensorboard_remove_all(const char *directory);

#endif
