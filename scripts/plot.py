#!/usr/bin/env python3
"""Draws runs as PNGs, from RUN/metrics.jsonl and RUN/attention_entropy.jsonl.

    scripts/plot.py RUN... [--out DIR] [--label NAME]... [--summary] [--smooth STEPS]

Writes one picture per subject (reward, pass_at_k, distinct_correct, entropy, length,
entropy_push, attention_entropy), or with --summary one overview. What a run did not log is left
out.

Runs whose directories differ only in a trailing -sN or -seedN are one group, drawn as the mean of
its runs with a band from the smallest to the largest, over the steps that all of them have.

Needs matplotlib and numpy (requirements-data.txt). Exit codes: 0 drawn, 2 the input is wrong.
"""

import argparse
import json
import math
import os
import re
import sys


def fail(message):
    print(f"plot.py: {message}", file=sys.stderr)
    sys.exit(2)


try:
    import matplotlib
    import numpy as np
except ImportError as error:
    fail(f"{error.name} is missing; install it with: python3 -m pip install matplotlib numpy")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first)
from matplotlib.lines import Line2D  # noqa: E402

# Okabe and Ito's palette: told apart with any colour vision. Its yellow is too pale on white.
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
DASHES = ["-", (0, (5, 1.5)), (0, (1.5, 1.5))]   # past seven groups the colours come again
GREY = "#666666"
WIDTH, DPI = 8.8, 200                            # inches: 880 pixels wide at a README's scale
NOTE = 8.5                                       # font size of captions and notes
MOST_DIRECT_LABELS, WIDEST_DIRECT_LABEL = 8, 1.6   # in number, in inches
CONTROLLED = ["repo_zeta", "clip_high", "entropy_coef"]

STYLE = {
    "font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.labelcolor": "#333333",
    "xtick.color": "#333333", "ytick.color": "#333333", "axes.grid": True, "axes.axisbelow": True,
    "axes.xmargin": 0.015, "grid.color": "#E4E4E4", "grid.linewidth": 0.8, "lines.linewidth": 2,
    "figure.facecolor": "white", "axes.facecolor": "white",
}


# ---- runs and groups ----------------------------------------------------------------------------


def read_rows(path):
    """The objects of a JSON-lines file. A run may be writing: a torn last line is no mistake."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line for line in file.read().split("\n") if line.strip()]
    rows, bad = [], 0
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and number_of(row.get("step")) is not None:
            rows.append(row)
        elif number < len(lines) - 1:
            bad += 1
    if bad:
        print(f"plot.py: {path}: left out {bad} lines that are not a step", file=sys.stderr)
    return rows


def number_of(value):
    """A finite number, or None: null, text, true, not there."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


class Run:
    """One run's metrics; a segment is a stretch of steps on one task."""

    def __init__(self, path):
        self.path = os.path.normpath(path)
        self.name = os.path.basename(os.path.abspath(path))
        metrics = os.path.join(path, "metrics.jsonl")
        if not os.path.isdir(path):
            fail(f"{path}: there is no such run directory")
        try:
            self.rows = read_rows(metrics)
        except OSError as error:
            fail(f"{metrics}: {error.strerror}; a run writes it from its first step on")
        if not self.rows:
            fail(f"{metrics}: no step in it yet")
        self.find_segments()

    def find_segments(self):
        """Numbers each row's segment, and keeps where the task changes as (step, new task)."""
        self.switches, task, last, segment = [], None, 0.0, 0
        for row in self.rows:
            step, now = float(row["step"]), row.get("task", task)
            if task is not None and now != task:
                segment += 1
                self.switches.append(((last + step) / 2, literal(str(now))))
            row["segment"], task, last = segment, now, step

    def series(self, key):
        """{(segment, step): value}, in order; of a step logged twice the later line."""
        found = {}
        for row in self.rows:
            value = number_of(row.get(key))
            if value is not None:
                found[row["segment"], float(row["step"])] = value
        return dict(sorted(found.items()))

    def attention(self):
        """(steps, entropy [L * H][steps], L, H), or None."""
        path = os.path.join(self.path, "attention_entropy.jsonl")
        try:
            rows = read_rows(path)
        except OSError:
            return None
        table, shape = {}, None
        for row in rows:
            entropy = row.get("entropy")
            size = row.get("layers"), row.get("heads")
            if not (isinstance(entropy, list) and all(type(n) is int and n > 0 for n in size)):
                continue
            if len(entropy) != size[0] * size[1] or size != (shape or size):
                continue
            shape = size
            values = [number_of(value) for value in entropy]
            table[float(row["step"])] = [np.nan if v is None else v for v in values]
        if not table:
            return None
        steps = sorted(table)
        steps = steps[:: 1 + len(steps) // 1000]   # more columns than pixels show nothing more
        return np.array(steps), np.array([table[s] for s in steps]).T, *shape


class Group:
    """Runs that differ in their seed only, with their label and looks."""

    def __init__(self, runs, label, index):
        self.runs, self.label = runs, literal(label)
        self.color = PALETTE[index % len(PALETTE)]
        self.dash = DASHES[index // len(PALETTE) % len(DASHES)]
        self.ink = tuple(0.75 * c for c in matplotlib.colors.to_rgb(self.color))   # for text

    def curve(self, key, window=1):
        """x, mean, low, high (NaN between segments), or None if no run of the group has the key."""
        each = [run.series(key) for run in self.runs]
        each = [series for series in each if series]
        if not each:
            return None
        common = sorted(set.intersection(*(set(series) for series in each)))
        parts = []
        for segment in sorted({s for s, _ in common}):
            steps = [step for s, step in common if s == segment]
            values = np.array([[series[segment, step] for step in steps] for series in each])
            values = np.array([running_mean(row, window) for row in values])
            parts.append(np.vstack([steps, values.mean(0), values.min(0), values.max(0)]))
            parts.append(np.full((4, 1), np.nan))
        return np.hstack(parts[:-1]) if parts else None


def literal(text):
    """Text that matplotlib draws as it is: no formulas, and no name that it hides."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def running_mean(values, window):
    """Centred; at the ends over what is there."""
    window = min(window, len(values))
    kernel = np.ones(window)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def make_groups(paths, labels):
    """Groups in the order of their first run."""
    members = {}
    for path in dict.fromkeys(os.path.normpath(path) for path in paths):
        run = Run(path)
        stem = re.sub(r"[-_](s|seed)[-_]?\d+$", "", os.path.abspath(path))
        members.setdefault(stem, []).append(run)
    names = [os.path.basename(stem) if len(runs) > 1 else runs[0].name
             for stem, runs in members.items()]
    if len(set(names)) < len(names):   # equal names in different places
        names = [os.path.relpath(stem) for stem in members]
    if labels and len(labels) != len(names):
        fail(f"--label was given {len(labels)} times for {len(names)} groups ({', '.join(names)})")
    names = labels or names
    for name, runs in zip(names, members.values()):
        ends = sorted(max(float(row["step"]) for row in run.rows) for run in runs)
        if ends[0] < ends[-1]:
            print(f"plot.py: the runs of {name} end at steps {ends[0]:.0f} to {ends[-1]:.0f}; "
                  "their mean ends with the first", file=sys.stderr)
    if len({len(runs) for runs in members.values()}) > 1:   # else one note says it for all
        names = [name + (f" ({len(runs)} seeds)" if len(runs) > 1 else "")
                 for name, runs in zip(names, members.values())]
    return [Group(runs, name, i) for i, (name, runs) in enumerate(zip(names, members.values()))]


# ---- parts of a picture -------------------------------------------------------------------------


def has(groups, key):
    return any(group.curve(key) is not None for group in groups)


def draw_curves(axes, groups, key, window=1, marked=False):
    """Each group's mean and band; a lone smoothed run shows its single steps faintly."""
    for group in groups:
        curve = group.curve(key, window)
        if curve is None:
            continue
        x, mean, low, high = curve
        if len(group.runs) > 1:
            axes.fill_between(x, low, high, color=group.color, alpha=0.18, linewidth=0)
        elif window > 1:
            raw = group.curve(key)
            axes.plot(raw[0], raw[1], color=group.color, alpha=0.25, linewidth=0.8)
        marker = "o" if marked and np.count_nonzero(np.isfinite(x)) <= 40 else None
        axes.plot(x, mean, color=group.color, linestyle=group.dash, marker=marker, markersize=4)
    mark_switches(axes, groups)


def mark_switches(axes, groups):
    """A line where the task changes, named above it once however many runs change there."""
    switches = {switch for group in groups for run in group.runs for switch in run.switches}
    for step, task in sorted(switches):
        axes.axvline(step, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(task, (step, 1), xycoords=("data", "axes fraction"), xytext=(0, 3),
                      textcoords="offset points", fontsize=NOTE, color=GREY, ha="center")


def fit_unit_range(axes):
    """Shares start at 0, and end at 1 where they come near it, so that pictures compare."""
    low, high = axes.dataLim.intervaly
    if low >= 0 and 0 < high < math.inf:
        axes.set_ylim(0, 1.02 if 0.5 < high <= 1 else 1.06 * high)


def new_figure(height, rows=1, columns=1, **options):
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False,
                                layout="constrained", **options)
    return figure, axes


def text_size(figure, text, size):
    """Width and height in inches."""
    artist = figure.text(0, 0, text, fontsize=size)
    box = artist.get_window_extent()
    artist.remove()
    return box.width / figure.dpi, box.height / figure.dpi


def finish(figure, groups, notes, labelled=None, key=None, window=1):
    """Names the groups at the ends of their lines in `labelled` (or above the picture if there is
    no such panel or too little room), and writes the notes below."""
    if len(groups) == 1:
        notes = [groups[0].label] + notes
    seeds = {len(group.runs) for group in groups}
    if max(seeds) > 1:
        count = f"{max(seeds)}" if len(seeds) == 1 else "the"
        notes = notes + [f"line: mean of {count} seeds, band: smallest to largest"]
    ends = []
    if len(groups) > 1:
        if labelled is not None and len(groups) <= MOST_DIRECT_LABELS \
                and widest_label(figure, groups) <= WIDEST_DIRECT_LABEL:
            ends = [(group, group.curve(key, window)) for group in groups]
            ends = [(group, curve[1][-1]) for group, curve in ends if curve is not None]
        else:
            add_legend(figure, groups)
    margin = widest_label(figure, [group for group, _ in ends])
    right = 1 - (margin + 0.12) / WIDTH if ends else 1
    height = figure.get_figheight()
    bottom = 0.3 / height if notes else 0
    figure.get_layout_engine().set(rect=(0.005, bottom, right - 0.01, 1 - bottom))
    if notes:
        figure.text(0.01, 0.08 / height, ";  ".join(notes), fontsize=NOTE, color=GREY)
    if ends:
        label_ends(figure, labelled, ends)
    return figure


def add_legend(figure, groups):
    """The groups' names above the picture, which grows by their lines."""
    handles = [Line2D([], [], color=g.color, linestyle=g.dash, label=g.label) for g in groups]
    columns = int(WIDTH / (widest_label(figure, groups) + 0.75))
    columns = max(1, min(len(groups), columns))
    figure.legend(handles=handles, loc="outside upper left", frameon=False, borderaxespad=0.2,
                  ncols=columns, handlelength=1.8)
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(groups) // columns))


def widest_label(figure, groups):
    return max((text_size(figure, group.label, 10)[0] for group in groups), default=0)


def label_ends(figure, axes, ends):
    """Labels right of the axes, each as near its line's end as its neighbours allow."""
    figure.draw_without_rendering()   # the layout is known now
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = sorted(((float(to_axes.transform((0, y))[1]), group) for group, y in ends),
                    key=lambda pair: pair[0])
    box = axes.get_window_extent()
    apart = 1.25 * text_size(figure, "Ag", 10)[1] * figure.dpi / box.height
    heights = [y for y, _ in wanted]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + apart)
    heights[-1] = min(heights[-1], 1)
    for i in reversed(range(len(heights) - 1)):
        heights[i] = min(heights[i], heights[i + 1] - apart)
    for y, (_, group) in zip(heights, wanted):
        axes.text(1.012, y, group.label, transform=axes.transAxes, color=group.ink, va="center",
                  in_layout=False)


# ---- the pictures: each gives a figure, or None if nothing was logged for it --------------------


def smoothing_note(window, what):
    return [f"{what}: running mean of {window} steps"] if window > 1 else []


def figure_reward(groups, window):
    if not has(groups, "reward"):
        return None
    figure, axes = new_figure(3.6)
    panel = axes[0, 0]
    panel.set(title="Reward, mean of the rollouts", xlabel="step")
    draw_curves(panel, groups, "reward", window)
    fit_unit_range(panel)
    return finish(figure, groups, smoothing_note(window, "reward"), panel, "reward", window)


def pass_keys(groups):
    """The smallest and the largest k that were evaluated."""
    known = {int(match[1]) for group in groups for run in group.runs for row in run.rows
             for match in [re.fullmatch(r"eval/pass@(\d+)", key) for key in row] if match}
    known = sorted(k for k in known if has(groups, f"eval/pass@{k}"))
    return list(dict.fromkeys([known[0], known[-1]])) if known else []


def figure_pass_at_k(groups, window):
    ks = pass_keys(groups)
    if not ks:
        return None
    figure, axes = new_figure(3.6, 1, len(ks), sharex=True, sharey=True)
    for panel, k in zip(axes[0], ks):
        panel.set(title=f"Held-out pass@{k}", xlabel="step")
        draw_curves(panel, groups, f"eval/pass@{k}", marked=True)
        panel.set_ylim(0, 1.02)
    return finish(figure, groups, [], axes[0, -1], f"eval/pass@{ks[-1]}")


def figure_distinct(groups, window):
    key = "eval/distinct_correct"
    if not has(groups, key):
        return None
    figure, axes = new_figure(3.6)
    panel = axes[0, 0]
    panel.set(title="Distinct correct answers per held-out prompt", xlabel="step")
    draw_curves(panel, groups, key, marked=True)
    fit_unit_range(panel)
    return finish(figure, groups, [], panel, key)


def figure_length(groups, window):
    key = "completions/mean_length"
    if not has(groups, key):
        return None
    figure, axes = new_figure(3.6)
    panel = axes[0, 0]
    panel.set(title="Mean length of completions, tokens", xlabel="step")
    draw_curves(panel, groups, key, window)
    fit_unit_range(panel)
    return finish(figure, groups, smoothing_note(window, "length"), panel, key, window)


def draw_entropy(panel, groups, window):
    """Entropy and, dashed, its target. True if there was a target."""
    draw_curves(panel, groups, "entropy", window)
    targets = [(group, group.curve("entropy_target")) for group in groups]
    targets = [(group, curve) for group, curve in targets if curve is not None]
    for group, (x, mean, _, _) in targets:
        panel.plot(x, mean, color=group.color, linewidth=1.2, linestyle=(0, (5, 3)))
    panel.set(xlabel="step")
    low, high = panel.dataLim.intervaly
    if low >= 0 and 0 < high < math.inf:
        panel.set_ylim(0, 1.06 * high)
    return bool(targets)


def moved(groups, key):
    """Did a controller turn it? One value in all runs is a setting."""
    values = {v for group in groups for run in group.runs for v in run.series(key).values()}
    return len(values) > 1


def draw_controller(panel, groups, key):
    """Every run's own line: a mean over controllers that double and halve would be none of them.
    Logarithmic where the values span more than a factor of 30."""
    runs = [(group, Group([run], "", 0).curve(key)) for group in groups for run in group.runs]
    runs = [(group, curve) for group, curve in runs if curve is not None]
    for group, (x, value, _, _) in runs:
        panel.plot(x, value, color=group.color, linestyle=group.dash, linewidth=1.2, alpha=0.8)
    mark_switches(panel, groups)
    values = np.concatenate([curve[1] for _, curve in runs])
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if len(sizes) == 0 or sizes.max() < 30 * sizes.min():
        return
    if np.nanmin(values) > 0:
        panel.set_yscale("log")
        return
    panel.set_yscale("symlog", linthresh=sizes.min())
    low, high = math.ceil(math.log10(sizes.min())), math.floor(math.log10(sizes.max()))
    powers = [10.0**e for e in range(high, low - 1, -max(1, math.ceil((high - low) / 2)))]
    signs = [sign for sign in (-1, 1) if (sign * values > 0).any()]
    panel.set_yticks([0] + [sign * power for sign in signs for power in powers])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.minorticks_off()
    panel.set_ylim(*[edge * 2 if edge * side > 0 else side * sizes.min()
                     for side, edge in [(-1, np.nanmin(values)), (1, np.nanmax(values))]])


def figure_entropy(groups, window):
    if not has(groups, "entropy"):
        return None
    turned = [key for key in CONTROLLED if moved(groups, key)]
    rows = 1 + len(turned)
    figure, axes = new_figure(3.6 + 1.9 * len(turned), rows, 1, sharex=True,
                              height_ratios=[2] + [1] * len(turned))
    target = draw_entropy(axes[0, 0], groups, window)
    axes[0, 0].set_title("Entropy of the rollouts, nats per token")
    for panel, key in zip(axes[1:, 0], turned):
        draw_controller(panel, groups, key)
        each = ", each seed" if any(len(group.runs) > 1 for group in groups) else ""
        panel.set_title(f"Turned by the controller: {key}{each}")
    for panel in axes[:-1, 0]:
        panel.set_xlabel("")
    axes[-1, 0].set_xlabel("step")
    notes = (["dashed: target"] if target else []) + smoothing_note(window, "entropy")
    return finish(figure, groups, notes, axes[0, 0], "entropy", window)


def push_points(group, key):
    """Predicted and measured push of the steps that logged both. [2][points]"""
    pairs = [(number_of(row.get(key)), number_of(row.get("entropy_push_measured")))
             for run in group.runs for row in run.rows]
    return np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2).T


def describe_push(x, y):
    """Correlation and slope in words, and the fitted (slope, intercept) or None."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"{len(x)} points, no fit", None
    slope, intercept = np.polyfit(x, y, 1)
    r = np.corrcoef(x, y)[0, 1]
    return f"r {r:.2f}, slope {slope:#.3g}, {len(x)} points", (slope, intercept)


def draw_push(panel, groups, key, named):
    drawn = [(group, *push_points(group, key)) for group in groups]
    drawn = [(group, x, y) for group, x, y in drawn if len(x)]
    panel.axhline(0, color=GREY, linewidth=0.8)
    panel.axvline(0, color=GREY, linewidth=0.8)
    points = np.hstack([np.vstack([x, y]) for _, x, y in drawn] or [np.empty((2, 0))])
    colors = np.repeat([group.color for group, _, _ in drawn], [len(x) for _, x, _ in drawn])
    # In a shuffled order (always the same), or the last group would hide the others.
    order = np.random.default_rng(0).permutation(points.shape[1])
    panel.scatter(*points[:, order], s=9, c=list(colors[order]), alpha=0.4, linewidths=0)
    for i, (group, x, y) in enumerate(drawn):
        text, fit = describe_push(x, y)
        if fit:
            ends = np.array([x.min(), x.max()])
            panel.plot(ends, fit[0] * ends + fit[1], color=group.color, linestyle=group.dash)
        text = f"{group.label}: {text}" if named else text
        panel.annotate(text, (0, 1), xycoords="axes fraction", fontsize=9, color=group.ink,
                       xytext=(0, 4 + 13 * (len(drawn) - 1 - i)), textcoords="offset points")
    panel.locator_params(nbins=6)
    panel.ticklabel_format(style="sci", scilimits=(-3, 4), useMathText=True)
    return len(drawn)


def figure_entropy_push(groups, window):
    kinds = [("entropy_push_raw", "Predicted from the advantages"),
             ("entropy_push_effective", "Predicted after control and clip")]
    kinds = [kind for kind in kinds if any(push_points(g, kind[0]).shape[1] for g in groups)]
    if not kinds:
        return None
    figure, axes = new_figure(4.2 + 0.18 * len(groups), 1, len(kinds), sharey=True)
    named = len(groups) == 1 or widest_label(figure, groups) <= WIDEST_DIRECT_LABEL
    for panel, (key, title) in zip(axes[0], kinds):
        lines = draw_push(panel, groups, key, named)
        panel.set_title(title, pad=6 + 13 * lines)
        panel.set_xlabel("predicted change, per unit of logit step")
    axes[0, 0].set_ylabel("measured change of entropy, nats")
    if not named:
        add_legend(figure, groups)
    figure.get_layout_engine().set(rect=(0.005, 0.06, 0.985, 0.93), wspace=0.05)
    figure.text(0.01, 0.02, "each point: one step", fontsize=NOTE, color=GREY)
    return figure


def draw_attention(panel, attention):
    """A row per head, layers from the top; the step's colour reaches half way to its neighbours."""
    steps, entropy, layers, heads = attention
    middle = (steps[1:] + steps[:-1]) / 2
    reach = (steps[1] - steps[0]) / 2 if len(steps) > 1 else 0.5
    last = (steps[-1] - steps[-2]) / 2 if len(steps) > 1 else 0.5
    edges = np.concatenate([[steps[0] - reach], middle, [steps[-1] + last]])
    image = panel.pcolormesh(edges, np.arange(layers * heads + 1), entropy, vmin=0, vmax=1,
                             cmap="cividis", rasterized=True)
    panel.grid(False)
    panel.invert_yaxis()
    if heads > 1:
        for layer in range(1, layers):
            panel.axhline(layer * heads, color="white", linewidth=1)
    shown = range(0, layers, 1 + layers // 13)
    panel.set_yticks([(layer + 0.5) * heads for layer in shown],
                     [f"layer {layer}" for layer in shown])
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel("step")
    return image


def figure_attention(groups, window):
    # Heads of different seeds are different heads, and have no mean: the first run stands for all.
    found = [(group, run, run.attention()) for group in groups for run in group.runs[:1]]
    found = [entry for entry in found if entry[2] is not None]
    if not found:
        return None
    columns = min(len(found), 3)
    rows = -(-len(found) // columns)
    figure, axes = new_figure(0.6 + 2.8 * rows, rows, columns)
    for panel, (group, run, attention) in zip(axes.flat, found):
        image = draw_attention(panel, attention)
        title = literal(run.name) if len(group.runs) > 1 else group.label
        most = (70, 34, 20)[columns - 1]
        panel.set_title(title if len(title) <= most else "…" + title[-most:], fontsize=10)
        mark_switches(panel, [group])
    for panel in axes.flat[len(found):]:
        panel.remove()
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.015, aspect=20 * rows)
    bar.set_label("attention entropy of each head\n0: one position, 1: all alike")
    bar.outline.set_visible(False)
    return figure


def figure_summary(groups, window):
    """Reward and entropy of the rollouts, pass@1 and pass@64 (or distinct answers) held out."""
    ks = pass_keys(groups)
    panels = [("reward", "Reward")] if has(groups, "reward") else []
    panels += [("entropy", "Entropy, nats per token")] if has(groups, "entropy") else []
    panels += [(f"eval/pass@{k}", f"Held-out pass@{k}") for k in ks]
    if len(ks) < 2 and has(groups, "eval/distinct_correct"):
        panels.append(("eval/distinct_correct", "Distinct correct answers, held out"))
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // 2)
    figure, axes = new_figure(0.5 + 2.5 * rows, rows, columns, sharex=True)
    target = False
    for panel, (key, title) in zip(axes.flat, panels):
        if key == "entropy":
            target = draw_entropy(panel, groups, window)
        else:
            draw_curves(panel, groups, key, window if key == "reward" else 1,
                        marked=key.startswith("eval/"))
            fit_unit_range(panel)
        if key.startswith("eval/pass@"):
            panel.set_ylim(0, 1.02)
        panel.set(title=title, xlabel="step")
        panel.tick_params(labelbottom=True)   # sharing would keep only the last row's
    for panel in axes.flat[len(panels):]:
        panel.remove()
    notes = (["dashed: target"] if target else []) \
        + smoothing_note(window, "reward and entropy")
    return finish(figure, groups, notes)


FIGURES = [("reward", figure_reward), ("pass_at_k", figure_pass_at_k),
           ("distinct_correct", figure_distinct), ("entropy", figure_entropy),
           ("length", figure_length), ("entropy_push", figure_entropy_push),
           ("attention_entropy", figure_attention)]


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Draws runs as PNGs; runs that differ only in a trailing -sN or -seedN are one "
                    "group, drawn as mean and range.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run directory")
    parser.add_argument("--out", metavar="DIR",
                        help="where the pictures go (default RUN/plots, or plots for several runs)")
    parser.add_argument("--label", metavar="NAME", action="append",
                        help="name of a group; once per group, in their order")
    parser.add_argument("--summary", action="store_true", help="one overview picture instead")
    parser.add_argument("--smooth", metavar="STEPS", type=int, default=0,
                        help="running mean of reward and entropy over so many steps (default: "
                             "a fortieth of the run; 1: off)")
    arguments = parser.parse_args()
    if arguments.smooth < 0:
        parser.error("--smooth must be at least 1")
    return arguments


def choose_window(groups, asked):
    """An odd number of steps, so that the mean is centred."""
    longest = max(len(run.series("entropy")) for group in groups for run in group.runs)
    window = asked or longest // 40
    return max(1, window - (window % 2 == 0))


def main():
    arguments = parse_arguments()
    groups = make_groups(arguments.runs, arguments.label)
    window = choose_window(groups, arguments.smooth)
    plt.rcParams.update(STYLE)
    if any(run.switches for group in groups for run in group.runs):
        plt.rcParams["axes.titlepad"] = 20   # room for the tasks' names
    out = arguments.out or ("plots" if len(arguments.runs) > 1
                            else os.path.join(arguments.runs[0], "plots"))
    wanted = [("summary", figure_summary)] if arguments.summary else FIGURES
    written = []
    for name, draw in wanted:
        figure = draw(groups, window)
        if figure is None:
            continue
        path = os.path.join(out, name + ".png")
        try:
            os.makedirs(out, exist_ok=True)
            figure.savefig(path, dpi=DPI, metadata={"Software": None})
        except OSError as error:
            fail(f"cannot write {path}: {error.strerror}; choose another place with --out")
        plt.close(figure)
        written.append(path)
    if not written:
        fail("nothing to draw: the runs logged none of the metrics")
    print("\n".join(written))


if __name__ == "__main__":
    main()
