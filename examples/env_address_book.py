#!/usr/bin/env python3
"""An environment of several turns: an address book that a chat model changes by calls.

    ./train --model DIR --data examples/address_book.jsonl --max-turns 6 \\
        --scorer 'python3 examples/env_address_book.py'

The book is in the prompt's metadata, hidden from the model. A turn may hold one call:

    find(NAME)   add(NAME, NUMBER)   change(NAME, NUMBER)   delete(NAME)   done()

It is answered as a turn of the role "tool". The reward is 1 if the book at the end is the wanted
one: what was asked for is done, and nothing else is changed. The book follows from what was said so
far, so no state is kept between two lines, and any process can answer any of them.
"""
import json
import re
import sys

CALL = re.compile(r"\b(find|add|change|delete|done)\(\s*(?:([A-Za-z]+)\s*(?:,\s*([0-9]+)\s*)?)?\)")


def call(book, text):
    """Carries out the first call in the text; what is answered, or None: the model is done."""
    found = CALL.search(text)
    if not found:
        return "error: no call found; use find, add, change, delete or done"
    function, name, number = found.groups()
    if function == "done":
        return None
    if name is None or (number is None) == (function in ("add", "change")):
        return f"error: wrong arguments of {function}"
    if function == "add":
        if name in book:
            return f"error: {name} is in the book already"
    elif name not in book:
        return f"error: {name} is not in the book"
    if function == "find":
        return book[name]
    if function == "delete":
        del book[name]
    else:
        book[name] = number
    return "ok"


def reply(item):
    metadata = item["metadata"]
    book, answer = dict(metadata["book"]), None
    for turn in item.get("turns", [{"role": "assistant", "content": item["completion"]}]):
        if turn["role"] == "assistant":
            answer = call(book, turn["content"])
    if answer is not None and not item.get("final", True):
        return {"continue": answer, "role": "tool"}
    return {"reward": float(item["ended"] and book == metadata["wanted"])}


for line in sys.stdin:
    item = json.loads(line)
    print(json.dumps({"id": item["id"], **reply(item)}), flush=True)
