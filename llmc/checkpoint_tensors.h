/* Tensors to and from a checkpoint's files: for checkpoint.c and checkpoint_export.c. Loading is in
   checkpoint.h. */
#ifndef LLMC_CHECKPOINT_TENSORS_H
#define LLMC_CHECKPOINT_TENSORS_H

#include "base/checksums.h"
#include "checkpoint_export.h"
#include "model.h"

/* model.safetensors or its shards, of the types that `export` says (NULL: float32). */
void weights_save(const struct Model *model, const struct Weights *weights,
                  const struct Export *export, const char *directory, struct Checksums *sums);
/* optimizer.safetensors: the moments; and what is lost in the file of the weights: the float32
   weights that a narrower type was rounded from, and where neither has them, those that the backend
   computes with. */
void optimizer_save(const struct Model *model, const struct Weights *weights,
                    const struct OptimizerState *optimizer, const struct Export *export,
                    const char *directory, struct Checksums *sums);

/* What the other ranks do while rank 0 is in optimizer_save: they give their shares. */
void optimizer_attend(const struct Model *model, const struct OptimizerState *optimizer);

/* The element types [num_tensors] that a directory's weights have; die_input as when loading. */
void tensors_types(const char *directory, const struct Model *model, enum SafetensorsType *types);
/* Ends the program (die_input) if a directory's weights cannot be read: that is what is wrong with
   it, whatever else it lacks. Only headers are read. Nothing is said if there are no weights. */
void tensors_refuse_unreadable(const char *directory);
/* True if a directory of a tied model has a head that differs from the embedding. */
bool tensors_have_own_head(const char *directory, const struct Family *family);

#endif
