"""JSON in and JSON lines out, for the converters beside this file.

A converter names what it leaves out on stderr and goes on; what it cannot read ends it with exit
code 2, a disk that is full with 1. Its output gets its name when it is whole.
"""
import json
import os
import sys

SHOWN = 5  # of the lines left out, this many are shown; the rest are only counted


def program():
    return os.path.basename(sys.argv[0])


def die(text, code=2):
    print(f"{program()}: {text}", file=sys.stderr)
    sys.exit(code)


def files_of(path):
    """The file itself; of a folder, every .json and .jsonl file below it, in order of name."""
    if not os.path.isdir(path):
        return [path]
    found = [os.path.join(folder, name) for folder, _, names in os.walk(path)
             for name in names if name.endswith((".json", ".jsonl"))]
    if not found:
        die(f"{path}: no .json or .jsonl file is below it")
    return sorted(found)


class Skipped:
    """What was left out."""

    def __init__(self):
        self.count = 0

    def add(self, where, why):
        self.count += 1
        if self.count <= SHOWN:
            print(f"{program()}: {where}: left out: {why}", file=sys.stderr)


def read_objects(paths, skipped):
    """Yields (where, object) for each line of each file that is a JSON object. A .json file is
    one object, however many lines it has; - is standard input."""
    for path in [file for given in paths for file in files_of(given)]:
        try:
            with (sys.stdin if path == "-" else open(path, encoding="utf-8")) as file:
                whole = path.endswith(".json")
                for number, text in enumerate([file.read()] if whole else file, 1):
                    where = path if whole else f"{path}:{number}"
                    if not text.strip():
                        continue
                    try:
                        value = json.loads(text)
                    except ValueError as error:
                        skipped.add(where, f"not JSON: {error}")
                        continue
                    if isinstance(value, dict):
                        yield where, value
                    else:
                        skipped.add(where, "not a JSON object")
        except UnicodeDecodeError as error:
            die(f"{path}: not UTF-8: {error}")
        except OSError as error:
            die(f"{path}: {error.strerror}")


def write_objects(path, objects):
    """Writes one object a line to path (- is standard output) and returns how many."""
    writing = f"{path}.writing{os.getpid()}"
    count = 0
    try:
        out = sys.stdout if path == "-" else open(writing, "w", encoding="utf-8")
        for value in objects:
            out.write(json.dumps(value, ensure_ascii=False) + "\n")
            count += 1
        out.flush()
        if path != "-":
            out.close()
            os.replace(writing, path)
    except OSError as error:
        wrong = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
        die(f"{path}: {error.strerror}", code=2 if isinstance(error, wrong) else 1)
    finally:
        if path != "-" and os.path.exists(writing):
            os.remove(writing)
    return count


def report(path, count, skipped):
    """The last line on stderr. Nothing at all is an error: a wrong file, most likely."""
    left_out = f", {skipped.count} left out" if skipped.count else ""
    print(f"{program()}: {count} lines in {path}{left_out}", file=sys.stderr)
    if count == 0:
        sys.exit(2)
