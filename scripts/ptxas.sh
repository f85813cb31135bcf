#!/bin/sh
# ptxas.sh REPORT...: what each kernel asks of the chip, from what the assembler said while the
# plug-in was built (build/cuda/DTYPE/FILE.o.ptxas): registers a thread, bytes of stack (local
# arrays), bytes of spilled registers stored and loaded, bytes of static shared memory. A
# multiprocessor has 65536 registers: 128 a thread leave room for 512 threads, 255 for 256.
#
# Exit code 1 if a kernel spills that is not named below as cold, or if there was no report.
set -eu

# FILE KERNEL WHY: a line for each kernel that may spill, none today; KERNEL is how its name begins,
# without blanks. (The test of this script has a list of its own.)
cold=${PTXAS_COLD-}

awk '
    /Compiling entry function/ {
        split($0, quoted, "\047")
        name = quoted[2]; arch = quoted[4]
        parts = split(FILENAME, path, "/")
        file = path[parts]
        sub(/\.o\.ptxas$/, "", file)
        type = path[parts - 1]
        if (type == "lab") { type = path[parts - 2]; file = "lab/" file }
    }
    /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
    /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
        shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH) + 0 : 0
        printf "%-7s %-5s %4d %6d %7d %6d %7d  %-18s %s\n", arch, type, registers, stack, stores,
            loads, shared, file, name
    }' "$@" | c++filt | sed 's/(.*//; s/ void / /' | sort | awk -v cold="$cold" '
    BEGIN {
        print "arch    type   reg  stack  stores  loads  shared  file               kernel"
        lines = split(cold, line, "\n")
    }
    { print; kernels++; spilled += $5 + $6 > 0; stacks += $4 > 0 }
    $5 + $6 > 0 {
        name = ""
        for (i = 9; i <= NF; i++) name = name $i
        for (i = 1; i <= lines; i++) {
            split(line[i], word, " ")
            if (line[i] != "" && word[1] == $8 && index(name, word[2]) == 1) next
        }
        hot[++hots] = $0
    }
    END {
        for (i = 1; i <= hots; i++) print "SPILLS, and is not cold: " hot[i]
        printf "%d kernels, %d with spills (%d of them hot), %d with a stack\n", kernels, spilled,
            hots, stacks
        exit !kernels || hots
    }'
