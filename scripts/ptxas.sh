#!/bin/sh
# ptxas.sh BACKEND.so: what each kernel asks of the chip, by architecture: registers a thread, bytes
# of stack (local arrays and spilled registers: should be 0), bytes of static shared memory.
# Registers: 65536 a multiprocessor; so 128 a thread leave room for 512 threads.
set -eu
library=${1:?usage: ptxas.sh BACKEND.so}
cuobjdump=$(command -v cuobjdump || echo /usr/local/cuda/bin/cuobjdump)
command -v "$cuobjdump" >/dev/null || {
    echo "ptxas.sh: cuobjdump is missing; it comes with the CUDA toolkit" >&2
    exit 1
}
"$cuobjdump" --dump-resource-usage "$library" 2>/dev/null | c++filt | awk '
    /^arch = / { arch = $3 }
    /^ *Function / {
        name = $0
        sub(/^ *Function /, "", name); sub(/:$/, "", name)
        sub(/^void /, "", name); sub(/\(anonymous namespace\)::/, "", name)
        type = name ~ /__nv_bfloat16/ ? "bf16" : name ~ /__half/ ? "fp16" : "fp32"
        sub(/\(.*$/, "", name)
    }
    /REG:/ {
        for (i = 1; i <= NF; i++) { split($i, pair, ":"); use[pair[1]] = pair[2] }
        printf "%-7s %-5s %4d %6d %7d  %s\n", arch, type, use["REG"], use["STACK"], use["SHARED"],
            name
    }' | sort -u | awk 'BEGIN { print "arch    type   reg  stack  shared  kernel" } { print }
        $4 > 0 { stacks++ } { kernels++ }
        END { printf "%d kernels, %d with a stack\n", kernels, stacks; exit !kernels }'
