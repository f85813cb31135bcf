#!/bin/sh
# ptxas.sh REPORT...: what each kernel asks of the chip, from what the assembler said while the
# plug-in was built (build/cuda/DTYPE/FILE.o.ptxas): registers a thread, bytes of stack (local
# arrays), bytes of spilled registers stored and loaded (should be 0), bytes of static shared
# memory. A multiprocessor has 65536 registers: 128 a thread leave room for 512 threads, 255 for
# 256.
set -eu
awk '
    /Compiling entry function/ {
        split($0, quoted, "\047")
        name = quoted[2]; arch = quoted[4]
        split(FILENAME, path, "/"); type = path[length(path) - 1]
    }
    /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
    /Used [0-9]+ registers/ {
        match($0, /Used [0-9]+/); registers = substr($0, RSTART + 5, RLENGTH - 5)
        shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART, RLENGTH) + 0 : 0
        printf "%-7s %-5s %4d %6d %7d %6d %7d  %s\n", arch, type, registers, stack, stores, loads,
            shared, name
    }' "$@" | c++filt | sed 's/(.*//; s/  void /  /' | sort | awk '
    BEGIN { print "arch    type   reg  stack  stores  loads  shared  kernel" } { print }
    { kernels++; spilled += $5 + $6 > 0; stacks += $4 > 0 }
    END {
        printf "%d kernels, %d with spills, %d with a stack\n", kernels, spilled, stacks
        exit !kernels
    }'
