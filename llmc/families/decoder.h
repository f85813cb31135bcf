/* What the files of Llama, Mistral, Qwen2 and Qwen3 share: their tensors have the same names, and
   their config.json the same keys. RMSNorm, rotary position, grouped key-value heads, SwiGLU. A
   family says how it differs; this file knows none by name. */
#ifndef LLMC_FAMILIES_DECODER_H
#define LLMC_FAMILIES_DECODER_H

#include "family.h"

/* The table: for a model of any of these families, by ModelConfig's `optional`. */
enum { DECODER_ROWS = 21 };
extern const struct TensorRow decoder_rows[DECODER_ROWS];
/* Older files also hold the rotation's frequencies, which are not weights. */
extern const char *const decoder_ignored[];

/* What absent keys mean to transformers, which differs between families. */
struct DecoderDefaults {
    int NKV;   /* num_key_value_heads: SAME_AS_HEADS, or 0: the key is required */
    int HS;    /* head_dim; 0: hidden_size / num_attention_heads */
};
enum { SAME_AS_HEADS = -1 };

/* Fills config, but for family, Vp and `optional`, from the keys that these families share, and
   refuses what none of them runs exactly. Returns NULL or one sentence saying what is wrong. */
const char *decoder_read_config(struct ModelConfig *config, const struct cJSON *json,
                                const struct DecoderDefaults *defaults);
/* true or false; `missing` where the key is absent or null. */
const char *decoder_read_bool(bool *out, const struct cJSON *json, const char *key, bool missing);
/* A sentence if a layer attends through a sliding window that its context does not fit into.
   everywhere: in all layers, whatever use_sliding_window says (Mistral). */
const char *decoder_check_window(const struct ModelConfig *config, const struct cJSON *json,
                                 bool everywhere);
/* The shared keys; in the spelling of transformers 4, which 5 and vLLM read too. */
void decoder_write_config(struct cJSON *json, const struct ModelConfig *config,
                          const char *architecture, int end_of_text);
const char *decoder_problem(const struct ModelConfig *config);
/* The small size that every family has, for tests and trials: 3 layers of 64 channels. */
void decoder_tiny(struct ModelConfig *config);

/* Rotary position (rotary.c). Reads rope_theta with rope_scaling, or rope_parameters. */
const char *rotary_read(struct Rope *rope, const struct cJSON *json, int max_T);
void rotary_write(struct cJSON *json, const struct Rope *rope);
const char *rotary_problem(const struct ModelConfig *config);
/* out [HS/2] */
void rotary_frequencies(float *out, const struct ModelConfig *config);

#endif
