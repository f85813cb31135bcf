"""What peers.py and peers_cpu.py share: arguments, percentiles, the table and its files.

A row is a dictionary with the columns of build/bench where it has them (op, slot, version, dtype,
shape, warm_p50_ms, ...), so that rows of both can stand in one table. None: not measured.
"""
import csv
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import time


def die(why):
    """Bad input: one line, exit code 2."""
    print(f"{os.path.basename(sys.argv[0])}: {why}", file=sys.stderr)
    sys.exit(2)


def arguments(words, **defaults):
    """NAME=VALUE words, as build/bench takes them, over the defaults, which name all there are."""
    values = dict(defaults)
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in values:
            die(f"{word}: give {' '.join(n + '=' for n in values)}")
        if isinstance(values[name], int):
            if not value.isdigit() or int(value) == 0:
                die(f"{word}: a number above 0 is wanted")
            values[name] = int(value)
        elif value:
            values[name] = value
    return values


def percentile(values, share):
    """Between the two nearest, as in dev/bench: of [1, 3] the median is 2."""
    x = sorted(values)
    at = share * (len(x) - 1)
    below = int(at)
    return x[below] + (at - below) * (x[min(below + 1, len(x) - 1)] - x[below])


def three(values):
    return tuple(percentile(values, share) for share in (0.2, 0.5, 0.8))


def version_of(package):
    """What pip installed, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(packages):
    return {p: version_of(p) for p in packages if version_of(p)}


def commit():
    """Of this repository; empty outside of git."""
    folder = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True,
                              check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def text_of(value):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    if value and abs(value) < 0.01:
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 \
        else f"{value:.1f}"


def print_table(rows, columns):
    """columns: (key, title). Texts to the left, numbers to the right."""
    cells = [[title for _, title in columns]]
    cells += [[text_of(row.get(key)) for key, _ in columns] for row in rows]
    widths = [max(len(line[k]) for line in cells) for k in range(len(columns))]
    left = [any(isinstance(row.get(key), str) for row in rows) for key, _ in columns]
    for line in cells:
        print("  ".join(c.ljust(w) if to_left else c.rjust(w)
                        for c, w, to_left in zip(line, widths, left)).rstrip())
    sys.stdout.flush()


def save(folder, name, rows, about):
    """FOLDER/NAME-DATE-TIME.csv and .json: all rows, and what machine, commit and versions."""
    date = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{name}-{date}")
    rows = [{key: None if value != value else value for key, value in row.items()} for row in rows]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    with open(path + ".csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, keys, restval="")
        writer.writeheader()
        writer.writerows(rows)
    with open(path + ".json", "w", encoding="utf-8") as file:
        json.dump({"date": date, "commit": commit(), "processor": processor(), **about,
                   "rows": rows}, file, indent=1)
    print(f"\n{path}.json and .csv")
