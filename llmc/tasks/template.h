/* Prompts as the model wants to see them.

   A prompt template is a text with {placeholders}, the keys of a data file's line (nested by dots);
   {{ and }} are braces.

   A chat form puts the turns of a conversation between a model's special tokens. Two are built in,
   equal to what transformers' apply_chat_template makes of these models' own templates:

       chatml  <|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n
       llama3  <|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n3+4?<|eot_id|>
               <|start_header_id|>assistant<|end_header_id|>\n\n     (no newline before it)

   Ids are made here once; special tokens that are written in a turn's text are text. */
#ifndef LLMC_TEMPLATE_H
#define LLMC_TEMPLATE_H

#include "../io/ends.h"
#include "encode.h"
#include "record.h"

struct Template;
/* Reads the file; die_input if it cannot be read, is larger than 1 MB, is no UTF-8 text, or has a
   brace without its other one. The file's last newline is not part of it. */
struct Template *template_open(const char *path);
/* The same of a text [length] in memory: NULL, and in *problem what belongs behind the file's name
   in a message (static storage). */
struct Template *template_parse(const char *text, size_t length, const char **problem);
void template_close(struct Template *form);
/* Appends the template with the line's values. NULL, or the name of a placeholder that the line
   does not have. */
const char *template_fill(struct Text *out, const struct Template *form,
                          const struct Record *record);

struct Chat;
/* word: auto, chatml, llama3 or none; auto: the form whose special tokens the tokenizer has.
   system: what a conversation without a system turn begins with; "auto": the default of the model's
   own template in `directory` ("": there is no directory), if it has one. NULL and one sentence in
   *problem (static storage) if the tokenizer lacks the form's tokens. chat_close frees; the
   tokenizer must outlive it. */
struct Chat *chat_open(const char *word, const char *system, const struct Tokenizer *tokenizer,
                       const char *directory, const char **problem);
void chat_close(struct Chat *chat);
/* chatml, llama3 or none; and the default system prompt, or "". */
const char *chat_name(const struct Chat *chat);
const char *chat_system(const struct Chat *chat);
/* Adds the token that ends a turn; none has none. */
void chat_add_ends(const struct Chat *chat, struct Ends *ends);

/* Appends the conversation's ids, and its text with special tokens spelled out, up to where the
   assistant's next turn begins. NULL, or what is wrong (static storage). Without a chat form: the
   turns' contents with an empty line between, begin-of-text where the tokenizer adds it. */
const char *chat_prompt(struct Ids *ids, struct Text *text, const struct Chat *chat,
                        const struct Turns *turns);
/* Appends `content` as the assistant's turn behind such a prompt, with the token that ends it. */
const char *chat_reply(struct Ids *ids, const struct Chat *chat, const char *content,
                       size_t length);
/* Appends what stands between a turn that the model has ended and its next one: `content` as a turn
   of `role` and the header of the assistant's; without a chat form the content alone. Special
   tokens that are written in it are text. */
const char *chat_answer(struct Ids *ids, const struct Chat *chat, const char *role,
                        const char *content, size_t length);
/* Appends a whole conversation: loss gets a byte for each id, 1 for those of the assistant's
   contents and the tokens that end them. */
const char *chat_lesson(struct Ids *ids, struct Text *loss, const struct Chat *chat,
                        const struct Turns *turns);
/* Appends plain text with begin- and end-of-text. */
const char *chat_document(struct Ids *ids, const struct Chat *chat, const char *text,
                          size_t length);

#endif
