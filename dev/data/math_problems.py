#!/usr/bin/env python3
"""The MATH dataset's format to ours: problems whose answer is boxed.

    python3 dev/data/math_problems.py MATH/train --out math.jsonl
    python3 dev/data/math_problems.py examples/math_format.jsonl

In, files of JSON lines, or a folder with a .json file per problem: `problem`, `solution` with the
answer in \\boxed{...}, and, if they are there, `level`, `type` or `subject`. Out: `prompt`;
`answer`, what the last \\boxed holds; `level`, `subject`; `source`, file and line. With
--supervised also `completion`, the solution, for --objective ce. --level 1,2 takes only these.

Needs Python alone. - is standard input or output. (A file math.py here would hide Python's own.)
"""
import argparse
import re

import lines


def boxed(solution):
    """What the last \\boxed or \\fbox holds: to the brace that closes it, or, where it has none
    (\\boxed 7), to the next space, dollar or end of sentence. None without one."""
    found = list(re.finditer(r"\\(?:boxed|fbox)(?![A-Za-z])\s*", solution))
    if not found:
        return None
    start = found[-1].end()
    if solution[start:start + 1] != "{":
        bare = re.match(r"[^\s$]+", solution[start:])
        return bare.group().rstrip(".,;") or None if bare else None
    depth = at = 0
    for at in re.finditer(r"\\.|[{}]", solution[start:], re.DOTALL):   # \{ and \} do not count
        depth += {"{": 1, "}": -1}.get(at.group(), 0)
        if depth == 0:
            return solution[start + 1:start + at.start()].strip(" \n$") or None
    return None


def convert(where, value, supervised, levels):
    """Our object, the reason why there is none, or None: not asked for."""
    problem, solution = value.get("problem"), value.get("solution")
    if not isinstance(problem, str) or not problem.strip():
        return "no problem"
    if not isinstance(solution, str):
        return "no solution"
    digits = re.search(r"\d+", str(value.get("level", "")))
    level = int(digits.group()) if digits else None
    if levels and level not in levels:
        return None
    answer = boxed(solution)
    if answer is None:
        return "no whole \\boxed{...} in the solution"
    ours = {"prompt": problem.strip(), "answer": answer}
    if level is not None:
        ours["level"] = level
    subject = value.get("type", value.get("subject"))
    if subject is not None:
        ours["subject"] = subject
    ours["source"] = where
    if supervised:
        ours["completion"] = solution.strip()
    return ours


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", help="files of JSON lines, or folders of problems")
    parser.add_argument("--out", default="-", help="the file to write (standard output)")
    parser.add_argument("--supervised", action="store_true", help="also the solution")
    parser.add_argument("--level", default="", help="only these levels, such as 1,2")
    arguments = parser.parse_args()
    if not re.fullmatch(r"(\d+(,\d+)*)?", arguments.level):
        lines.die(f"--level {arguments.level}: not numbers with commas between them")
    levels = {int(level) for level in arguments.level.split(",") if level}
    skipped = lines.Skipped()

    def converted():
        for where, value in lines.read_objects(arguments.files, skipped):
            ours = convert(where, value, arguments.supervised, levels)
            if isinstance(ours, str):
                skipped.add(where, ours)
            elif ours:
                yield ours
    lines.report(arguments.out, lines.write_objects(arguments.out, converted()), skipped)


if __name__ == "__main__":
    main()
