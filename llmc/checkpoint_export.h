/* What the checkpoints of a run look like to other programs: like the directory that the run began
   from. Its files beside the weights are kept byte for byte, and each tensor's element type, so the
   source may vanish once it was read. A run that began from random weights has none of these: its
   checkpoints get the family's config.json, the tokenizer's files, and float32. */
#ifndef LLMC_CHECKPOINT_EXPORT_H
#define LLMC_CHECKPOINT_EXPORT_H

#include <stdbool.h>
#include "base/text.h"
#include "io/assets.h"
#include "io/ends.h"
#include "io/safetensors.h"
#include "io/tokenizer.h"
#include "model.h"

/* Zero-initialised: random weights, float32, one file. */
struct Export {
    struct Assets assets;
    enum SafetensorsType *types;   /* [num_tensors] in files; NULL: float32 */
    bool retyped;                  /* config.json is to name types[0], and not what the source's
                                      names */
    size_t shard_bytes;            /* the most in one file; 0: no limit */
};

/* Reads from a directory what its checkpoints keep; "" = random weights. dtype: "auto" (each tensor
   as in the directory; float64 becomes float32), "fp32", "bf16" or "fp16". die_input for what
   cannot be read. Owned by the caller; export_close. */
void export_open(struct Export *export, const char *directory, const struct Model *model,
                 const char *dtype, size_t shard_bytes);
void export_close(struct Export *export);
enum SafetensorsType export_type(const struct Export *export, int tensor);
/* Does every tensor's type in files hold each number that the backend computes with? */
bool export_is_exact(const struct Export *export, const struct Model *model);
/* Appends config.json: the source's bytes but for the element type and the tie, where those are
   others now; or the family's own. */
void export_config(struct Text *out, const struct Export *export, const struct ModelConfig *config,
                   int end_of_text);
/* Bytes of a size such as 500MB or 5GB (powers of ten, as in save_pretrained); 0: it is none. */
size_t export_shard_bytes(const char *text);

/* Adds the tokens that end a text by config.json's and generation_config.json's eos_token_id, a
   number or a list; those that are not below V are left out. Returns NULL or one sentence saying
   what is wrong, with the file's name (static storage). */
const char *checkpoint_ends(const char *directory, int V, struct Ends *ends);
/* The end of text, where the tokenizer's files name none, becomes the first one that those name;
   NULL, or what is wrong (static storage). */
const char *checkpoint_end_of_text(struct Tokenizer *tokenizer, const char *directory);

#endif
