/* --tokenize FILE and --detokenize FILE: what the tokenizer of --model DIR makes of texts, one JSON
   object a line in, one a line out on stdout, in order:

       {"text": "Hi there"}   ->   {"ids": [17250, 612]}
       {"ids": [17250, 612]}  ->   {"text": "Hi there"}

   Ids are those of the tokenizers library's encode(text): special tokens that the text writes
   become their ids, and what the post-processor adds is there; "add_special_tokens": false on a
   line leaves that out. Text has the special tokens; "skip_special_tokens": true leaves
   those out, and what is no UTF-8 is U+FFFD. A line that has neither is named on stderr and
   counted, and its answer is null. */
#ifndef LLMC_TOKENIZE_H
#define LLMC_TOKENIZE_H

#include "options.h"

/* Ends the program: with 0, also where lines were bad. */
_Noreturn void tokenize_and_exit(const struct Options *options);

#endif
