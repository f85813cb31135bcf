#!/usr/bin/env python3
"""The program's parts ("rooms") in layers ("floors"), drawn from the #include lines.

    scripts/architecture.py --check     prints every include that is not allowed; exit code 1 if
                                        there is one (needs nothing but Python)
    scripts/architecture.py [FILE]      draws it too: doc/images/architecture.png (needs matplotlib)

A file may include files of its own room and of every floor below, and no others.
"""
import os
import re
import sys

# From the top floor down. A room is a folder or single files. Rooms on the same floor must not
# include each other.
FLOORS = [
    [("the loop", ["train_gpt2.cu"])],
    [("run/", ["run/"])],
    [("rl/", ["rl/"])],
    [("tasks/", ["tasks/"]), ("checkpoint", ["checkpoint"]),
     ("transformer", ["transformer."])],
    [("model, families/", ["model.", "families/"])],
    [("arena", ["arena."]), ("world", ["world."])],
    [("kernels/", ["kernels/"])],
    [("ops", ["ops."])],
    [("io/", ["io/"])],
    [("base/", ["base/"])],
]
# These files of rl/ are mathematics on flat arrays: they may include only each other and base/.
GROUND = ["rl/objectives.", "rl/surrogates.", "rl/entropy."]


def starts(path, names):
    return path.removeprefix("llmc/").startswith(tuple(names))


def room_of(path):
    for floor, rooms in enumerate(FLOORS):
        for name, names in rooms:
            if starts(path, names):
                return floor, name
    sys.exit(f"architecture.py: {path} is in no room; give it one in FLOORS")


def includes():
    """(file, file included, line) of every #include between files of the tree."""
    files = ["train_gpt2.cu"]
    for folder, _, names in sorted(os.walk("llmc")):
        files += [os.path.join(folder, name) for name in sorted(names)
                  if name.endswith((".c", ".h", ".cu", ".cuh"))]
    for path in files:
        with open(path) as lines:
            for number, line in enumerate(lines, 1):
                found = re.match(r'#include "(.*)"', line)
                if found:
                    where = os.path.join(os.path.dirname(path), found.group(1))
                    yield path, os.path.normpath(where), number


def check(arrows):
    """One line for each include that is not allowed."""
    wrong = []
    for path, target, number in arrows:
        (floor, room), (below, other) = room_of(path), room_of(target)
        if below < floor or (below == floor and room != other):
            wrong.append(f"{path}:{number}: {room} must not know {other} ({target})")
        elif starts(path, GROUND) and not starts(target, GROUND + ["base/"]):
            wrong.append(f"{path}:{number}: stands on the ground and knows {target}")
    return wrong


def draw(arrows, file):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(9, 9))
    place = {}
    for floor, rooms in enumerate(FLOORS):
        for i, (name, _) in enumerate(rooms):
            # Single rooms are shifted left and right by turns, so that an arrow that crosses a
            # floor does not run through its room.
            x = (i + 1) / (len(rooms) + 1) + (0.11 * (-1) ** floor if len(rooms) == 1 else 0)
            place[name] = (x, -floor)
    count = {}
    for path, target, _ in arrows:
        pair = room_of(path), room_of(target)
        if pair[0] != pair[1]:
            count[pair] = count.get(pair, 0) + 1
    for ((floor, room), (below, other)), n in sorted(count.items()):
        up = below <= floor
        axes.annotate("", xy=place[other], xytext=place[room], arrowprops={
            "arrowstyle": "->", "color": "red" if up else "#4477aa", "alpha": 1 if up else 0.55,
            "lw": 0.6 + 0.12 * min(n, 20), "shrinkA": 16, "shrinkB": 16,
            "connectionstyle": f"arc3,rad={0.0 if below - floor == 1 else 0.25}"})
    for name, (x, y) in place.items():
        axes.text(x, y, name, ha="center", va="center", fontsize=11,
                  bbox={"boxstyle": "round,pad=0.5", "fc": "white", "ec": "black"})
    axes.set_xlim(0, 1), axes.set_ylim(-len(FLOORS) + 0.4, 0.6)
    axes.axis("off")
    figure.savefig(file, dpi=90, bbox_inches="tight")


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
    arrows = list(includes())
    wrong = check(arrows)
    print("\n".join(wrong) if wrong else f"architecture: {len(arrows)} includes, none runs upward")
    if "--check" not in sys.argv:
        draw(arrows, sys.argv[1] if len(sys.argv) > 1 else "doc/images/architecture.png")
    sys.exit(1 if wrong else 0)


main()
