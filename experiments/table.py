#!/usr/bin/env python3
"""Tables of the experiments, from their metrics.jsonl, as Markdown. Standard library only.

    table.py compare    FOLDER          final values per objective
    table.py sequential FOLDER STEPS    the second task, from its switch on
    table.py precision  FOLDER          float32 against rounded log-probabilities
    table.py adapo      FOLDER          clipped tokens against updates per rollout
    table.py dynamics   FOLDER          predicted against measured entropy push

Runs are FOLDER/NAME-sSEED; a cell is the mean over seeds and (smallest .. largest)."""
import glob
import json
import math
import os
import re
import statistics
import sys


def read_run(path):
    lines = []
    with open(os.path.join(path, "metrics.jsonl")) as log:
        for line in log:
            try:
                lines.append(json.loads(line))
            except ValueError:
                pass  # a torn last line of a run in progress
    return lines


def read_groups(folder):
    """{name: {seed: lines}} in order of first appearance on disk."""
    groups = {}
    for path in sorted(glob.glob(os.path.join(folder, "*-s*")), key=os.path.getctime):
        match = re.fullmatch(r"(.+)-s(\d+)", os.path.basename(path))
        if match and os.path.exists(os.path.join(path, "metrics.jsonl")):
            groups.setdefault(match[1], {})[int(match[2])] = read_run(path)
    if not groups:
        sys.exit(f"table.py: no runs NAME-sSEED in {folder}")
    return groups


def steps(lines):
    return [line for line in lines if "loss" in line]


def last_mean(lines, key, n=50):
    values = [line[key] for line in steps(lines)[-n:] if line.get(key) is not None]
    return statistics.fmean(values) if values else math.nan


def first(lines, key):
    return next((line[key] for line in lines if line.get(key) is not None), math.nan)


def evaluation(lines, key, step=None, task=None):
    """The key of the evaluation at `step` (None: the last) of `task` (None: any)."""
    found = [line for line in lines if key in line and (task is None or line["task"] == task)]
    if step is not None:
        found = [line for line in found if line["step"] == step]
    return found[-1][key] if found else math.nan


def cell(values, digits=2):
    values = [v for v in values if not math.isnan(v)]
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def table(columns, rows):
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def compare(folder):
    rows = []
    for name, seeds in read_groups(folder).items():
        runs = list(seeds.values())
        rows.append([
            name, str(len(runs)),
            cell([first(r, "entropy") for r in runs]),
            cell([last_mean(r, "entropy") for r in runs], 3),
            cell([last_mean(r, "entropy") / first(r, "entropy") for r in runs]),
            cell([last_mean(r, "entropy") / last_mean(r, "entropy_target") for r in runs]),
            cell([last_mean(r, "reward") for r in runs], 3),
            cell([evaluation(r, "eval/pass@1") for r in runs], 3),
            cell([evaluation(r, "eval/pass@64") for r in runs], 3),
            cell([evaluation(r, "eval/distinct_correct") for r in runs]),
            cell([100 * last_mean(r, "clip_ratio/high_mean") for r in runs]),
        ])
    table(["objective", "seeds", "entropy at start", "entropy, last 50 steps", "H/H0", "H/H*",
           "reward, last 50", "pass@1", "pass@64", "distinct correct", "clipped high %"], rows)


def sequential(folder, length):
    length = int(length)
    for key in ("eval/pass@1", "eval/pass@64"):
        rows = []
        for name, seeds in read_groups(folder).items():
            if name == "warm":
                continue
            runs = list(seeds.values())
            begin = 0 if name.startswith("control") else length
            marks = [begin, begin + 50, begin + 100, begin + length]
            rows.append([name] + [
                cell([evaluation(r, key, m, "countdown_sorted") for r in runs], 3) for m in marks
            ] + [cell([evaluation(r, key, begin, "countdown") for r in runs], 3),
                 cell([evaluation(r, key, begin + length, "countdown") for r in runs], 3)])
        print(key.removeprefix("eval/") + "\n")
        table(["", "B at the switch", "B +50", "B +100", f"B +{length}", "A at the switch",
               "A after B"], rows)


def precision(folder):
    rows = []
    for name, seeds in read_groups(folder).items():
        runs = list(seeds.values())
        rows.append([
            name,
            cell([last_mean(r, "entropy") for r in runs], 3),
            cell([last_mean(r, "ratio_mean", 10**9) for r in runs], 5),
            cell([100 * last_mean(r, "clip_ratio/low_mean", 10**9) for r in runs], 3),
            cell([100 * last_mean(r, "clip_ratio/high_mean", 10**9) for r in runs], 3),
            cell([evaluation(r, "eval/pass@1") for r in runs], 3),
            cell([evaluation(r, "eval/pass@64") for r in runs], 3),
            cell([evaluation(r, "eval/distinct_correct") for r in runs]),
        ])
    table(["", "entropy, last 50 steps", "mean ratio", "clipped low %", "clipped high %", "pass@1",
           "pass@64", "distinct correct"], rows)


def adapo(folder):
    rows = []
    for name, seeds in read_groups(folder).items():
        runs = list(seeds.values())
        rows.append([
            name,
            cell([last_mean(r, "entropy") / last_mean(r, "entropy_target") for r in runs]),
            cell([last_mean(r, "clip_high") for r in runs]),
            cell([100 * last_mean(r, "clip_ratio/low_mean") for r in runs]),
            cell([100 * last_mean(r, "clip_ratio/high_mean") for r in runs]),
            cell([evaluation(r, "eval/pass@1") for r in runs], 3),
            cell([evaluation(r, "eval/pass@64") for r in runs], 3),
        ])
    table(["updates per rollout", "H/H*, last 50 steps", "clip_high", "clipped low %",
           "clipped high %", "pass@1", "pass@64"], rows)


def fit(x, y):
    """Pearson correlation and least-squares slope of y on x."""
    if len(x) < 3:
        return math.nan, math.nan
    mx, my = statistics.fmean(x), statistics.fmean(y)
    sxy = sum((a - mx) * (b - my) for a, b in zip(x, y))
    sxx = sum((a - mx) ** 2 for a in x)
    syy = sum((b - my) ** 2 for b in y)
    return (sxy / math.sqrt(sxx * syy), sxy / sxx) if sxx * syy > 0 else (math.nan, math.nan)


def dynamics(folder):
    rows = []
    for name, seeds in read_groups(folder).items():
        columns = {"entropy_push_raw": [], "entropy_push_effective": []}
        slopes, means = [], []
        for lines in seeds.values():
            used = [line for line in steps(lines)
                    if None not in (line.get("entropy_push_measured"),
                                    line.get("entropy_push_effective"))]
            measured = [line["entropy_push_measured"] for line in used]
            for key, correlations in columns.items():
                r, slope = fit([line[key] for line in used], measured)
                correlations.append(r)
            slopes.append(slope)
            means.append(statistics.fmean(measured) if measured else math.nan)
        rows.append([name, cell(columns["entropy_push_raw"]),
                     cell(columns["entropy_push_effective"]), cell(slopes),
                     cell(means, 5), cell([last_mean(r, "entropy") for r in seeds.values()], 3)])
    table(["setting", "correlation, raw A", "correlation, effective A", "slope (effective)",
           "mean measured push", "entropy at the end"], rows)


COMMANDS = {"compare": compare, "sequential": sequential, "precision": precision, "adapo": adapo,
            "dynamics": dynamics}

if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    COMMANDS[sys.argv[1]](*sys.argv[2:])
