/* What tasks need of a tokenizer. */
#ifndef LLMC_ENCODE_H
#define LLMC_ENCODE_H

#include "../io/tokenizer.h"

static inline void ids_add(struct Ids *ids, int id) { ids_append(ids, &id, 1); }

#endif
