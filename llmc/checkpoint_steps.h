/* The two ends of a save, for checkpoint.c, which writes the files between them. */
#ifndef LLMC_CHECKPOINT_STEPS_H
#define LLMC_CHECKPOINT_STEPS_H

#include <stddef.h>

/* Removes what killed saves left and makes an empty directory for the checkpoint `name`
   ("step_000100"), whose path comes back in `writing`. The run's directory must be there
   (die_machine). */
void steps_begin(const char *run_directory, const char *name, char *writing, size_t capacity);
/* When all files are in it: syncs the directory, gives it its name, moves `latest` to it, and
   removes old checkpoints so that `keep` are left (0 = all). */
void steps_finish(const char *run_directory, const char *name, const char *writing, int keep);

#endif
