#!/usr/bin/env python3
"""GSM8K's format to ours: word problems whose answer is a number.

    python3 dev/data/gsm8k.py train.jsonl --out gsm8k.jsonl
    python3 dev/data/gsm8k.py examples/gsm8k_format.jsonl

In, a JSON object a line: `question`, and `answer`: the reasoning, with the calculator's work in
double angle brackets, and behind #### the number. Out: `prompt`; `answer`, the number without
thousands' commas; `source`, file and line. With --supervised also `completion`, the reasoning
without the brackets and with its last line #### NUMBER, for --objective ce.

Needs Python alone. - is standard input or output.
"""
import argparse
import re

import lines


def number_of(answer):
    """What stands behind the last ####; None without it."""
    if "####" not in answer:
        return None
    return answer.rsplit("####", 1)[1].strip().replace(",", "").lstrip("$") or None


def convert(where, value, supervised):
    """Our object, or the reason why there is none."""
    question, answer = value.get("question"), value.get("answer")
    if not isinstance(question, str) or not question.strip():
        return "no question"
    if not isinstance(answer, str):
        return "no answer"
    number = number_of(answer)
    if number is None:
        return "nothing behind #### in the answer"
    ours = {"prompt": question.strip(), "answer": number, "source": where}
    if supervised:
        reasoning = re.sub(r"<<[^<>]*>>", "", answer.rsplit("####", 1)[0]).strip()
        ours["completion"] = f"{reasoning}\n#### {number}"
    return ours


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", help="files of JSON lines, or folders of them")
    parser.add_argument("--out", default="-", help="the file to write (standard output)")
    parser.add_argument("--supervised", action="store_true", help="also the reasoning")
    arguments = parser.parse_args()
    skipped = lines.Skipped()

    def converted():
        for where, value in lines.read_objects(arguments.files, skipped):
            ours = convert(where, value, arguments.supervised)
            if isinstance(ours, str):
                skipped.add(where, ours)
            else:
                yield ours
    lines.report(arguments.out, lines.write_objects(arguments.out, converted()), skipped)


if __name__ == "__main__":
    main()
