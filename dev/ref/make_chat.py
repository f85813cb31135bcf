"""Writes the golden vectors of chat forms: test/golden/chat.

Three directories, each with a small tokenizer of its own (byte-level BPE trained on a few lines,
with the special tokens of a chat form) and a chat template in Jinja, as models on the hub have:

    chatml    a default system prompt, in tokenizer_config.json         as SmolLM2 and Qwen2.5 do
    plain     no default, the template in chat_template.jinja           as Qwen3 does
    llama3    begin-of-text by template and by post-processor, contents trimmed

cases.jsonl beside each: conversations, and what transformers' apply_chat_template makes of them
(text and ids, up to where the assistant's turn begins).

    pip install -r dev/ref/requirements.txt
    python dev/ref/make_chat.py
"""
import json
import os

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

GOLDEN = os.path.join(os.path.dirname(__file__), "..", "..", "test", "golden", "chat")

LINES = ["system", "user", "assistant", "You are a small model of a test.", "What is 3 plus 4?",
         "The answer is seven, and so it is 7.", "\n\n", "user\n", "assistant\n", "\n"]

CHATML = (
    "{%- if tools %}{{- '<|im_start|>system\\n' }}{{- 'Tools.' }}{{- '<|im_end|>\\n' }}"
    "{%- endif %}{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\nYou are a small model.\\nBe brief.<|im_end|>\\n' }}{%- endif -%}"
    "{%- for m in messages -%}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}")
PLAIN = (
    "{%- if messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{%- if not (loop.first and m.role == 'system') %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}")
LLAMA3 = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content'] | trim + "
    "'<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}")

FORMS = {
    "chatml": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", None, CHATML),
    "plain": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>", None, PLAIN),
    "llama3": (["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>", "<|begin_of_text|>", LLAMA3),
}


def turn(role, content):
    return {"role": role, "content": content}


CASES = [
    [turn("user", "What is 3 plus 4?")],
    [turn("system", "Be brief."), turn("user", "Hi")],
    [turn("user", "Hi"), turn("assistant", "Hello."), turn("user", "3+4?")],
    [turn("system", "a"), turn("user", "b"), turn("assistant", "c"), turn("user", "d"),
     turn("assistant", "e"), turn("user", "f")],
    [turn("user", "  white space \n around it\n\n")],
    [turn("user", "\n\nnewlines first")],
    [turn("user", "")],
    [turn("system", ""), turn("user", "x")],
    [turn("user", "caf\u00e9 \u4f60\u597d \U0001f600 \u0301")],
    [turn("user", "one"), turn("user", "two")],
    [turn("tool", "{\"a\": 1}"), turn("user", "so?")],
    [turn("user", "\u00a0\u3000wide\u2003 space\u2028")],
    [turn("user", "\x1c\x1fseparators\x85"), turn("assistant", "\u200bno space\u180e")],
    [turn("user", " \u1680 \u202f\u205f ")],
    [turn("user", "braces {{ x }} {% y %} and 'quotes' \"here\" \\n")],
]


def make_tokenizer(specials, begin):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + 60 + len(specials), special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(LINES * 8, trainer)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))])
    return tokenizer


def write(name, specials, end, begin, template):
    directory = os.path.join(GOLDEN, name)
    os.makedirs(directory, exist_ok=True)
    raw = make_tokenizer(specials, begin)
    raw.save(os.path.join(directory, "tokenizer.json"), pretty=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, bos_token=begin,
                                   chat_template=template)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": begin}
    if name == "plain":
        with open(os.path.join(directory, "chat_template.jinja"), "w") as file:
            file.write(template)
    else:
        config["chat_template"] = template
    with open(os.path.join(directory, "tokenizer_config.json"), "w") as file:
        json.dump(config, file, indent=1)
    with open(os.path.join(directory, "cases.jsonl"), "w") as file:
        for messages in CASES:
            arguments = dict(conversation=messages, add_generation_prompt=True)
            text = fast.apply_chat_template(tokenize=False, **arguments)
            ids = fast.apply_chat_template(tokenize=True, return_dict=False, **arguments)
            line = {"messages": messages, "text": text, "ids": list(ids)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for form, parts in FORMS.items():
        write(form, *parts)
