#!/bin/sh
# instructions.sh [-o] [-e N | -s BYTES] [-a ARCH] [-k WORD] FILE: what the loops of a kernel
# execute, counted in its machine code.
#
#   FILE       an object or plug-in with machine code, or text that `cuobjdump -sass` printed
#   -o         loops that contain others too; else only innermost ones
#   -e N       elements that a thread handles in one turn of the loop: counts are divided by it
#   -s BYTES   the size of an element: N is what the loop reads from global memory, over BYTES (1
#              where it reads nothing)
#   -a ARCH    only that architecture, as sm_90a (a file may hold several)
#   -k WORD    only kernels with this in their name, as in: -k forward_kernelILi64E
#
# One line per loop, of the instructions that a thread executes in one turn: all, then by kind:
#   mma      tensor cores (HMMA, HGMMA, ...)
#   shared   LDS, LDSM, STS, ...           global   LDG, STG, LDGSTS, TMA, atomics
#   local    LDL, STL: spilled registers or local arrays; should be 0
#   float    FFMA, FMUL, FADD, FMNMX, comparisons; those of two halves too
#   mufu     exponential, logarithm, reciprocal: a quarter of the others' rate, or less
#   convert  between types                 integer  addresses and predicates, uniform ones too
#   move     MOV, SEL, PRMT, constants     shuffle  between the lanes of a warp
#   sync     barriers and waits            branch   jumps
# and the bytes that a thread reads of global and of shared memory (not by TMA and HGMMA).
#
# A loop is what a jump backwards closes: all code from which the jump is reached without leaving
# through the loop's head. Both sides of a branch in it count. What is never taken in a sound run is
# no part of it: the code for a warp that lost lanes (BRA.DIV) and functions that are called, a
# division's rare case. An unrolled loop has its remainder's loop beside it.
#
# Exit code 1 if there is no loop. CUOBJDUMP=/path/to/cuobjdump where it is not found.
set -eu
nested=0
elements=0
size=0
arch=
word=
usage() {
    echo "usage: instructions.sh [-o] [-e N | -s BYTES] [-a ARCH] [-k WORD] FILE" >&2
    exit 2
}
while getopts oe:s:a:k: option; do
    case $option in
    o) nested=1 ;;
    e) elements=$OPTARG ;;
    s) size=$OPTARG ;;
    a) arch=$OPTARG ;;
    k) word=$OPTARG ;;
    *) usage ;;
    esac
done
shift $((OPTIND - 1))
[ $# = 1 ] || usage
[ -r "$1" ] || { echo "instructions.sh: cannot read $1" >&2; exit 2; }

listing() {
    if head -c 4 "$1" | grep -q 'ELF'; then
        tool=${CUOBJDUMP:-$(command -v cuobjdump || ls /usr/local/cuda/bin/cuobjdump 2>/dev/null ||
            true)}
        if [ -z "$tool" ]; then
            echo "instructions.sh: no cuobjdump here: it comes with the CUDA toolkit" >&2
            exit 2
        fi
        "$tool" -sass "$1"
    else
        cat "$1"
    fi
}
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
listing "$1" >"$work/listing"

awk -v nested="$nested" -v elements="$elements" -v size="$size" -v arch="$arch" -v word="$word" '
function among(names, word) { return index(" " names " ", " " word " ") > 0 }
function kind(op,   base, plain) {
    base = op
    sub(/\..*/, "", base)
    plain = base               # without the U of what is the same for the whole warp
    sub(/^U/, "", plain)
    if (base ~ /MMA$/) return "mma"
    if (among("LDS LDSM STS STSM ATOMS", base)) return "shared"
    if (base ~ /^(UTMA|UBLK)/ || among("LDG STG LDGSTS LD ST ATOM ATOMG RED REDG CCTL", base))
        return "global"
    if (among("LDL STL", base)) return "local"
    if (base == "MUFU") return "mufu"
    if (among("F2F F2FP F2I F2IP I2F I2FP I2IP FRND", base)) return "convert"
    if (among("SHFL REDUX VOTE VOTEU MATCH", base)) return "shuffle"
    if (among(SYNC, base) || base ~ /^(UCGABAR|ACQ)/) return "sync"
    if (among("BRA BRX JMP JMX CALL RET EXIT BPT KILL", base)) return "branch"
    if (op ~ /^IMAD\.MOV/ || among(MOVE, plain) || among(MOVE, base)) return "move"
    if (among(FLOAT, plain) || among(HALVES, base)) return "float"
    if (among(INTEGER, plain) || among(INTEGER, base)) return "integer"
    return "other"
}
# Bytes that a thread moves with this instruction.
function width(op) {
    if (op ~ /^LDSM/) return op ~ /\.4/ ? 16 : op ~ /\.2/ ? 8 : 4
    return op ~ /\.128/ ? 16 : op ~ /\.64/ ? 8 : op ~ /\.(U|S)?16/ ? 2 : op ~ /\.(U|S)8/ ? 1 : 4
}
function hex(text,   i, value) {
    value = 0
    text = tolower(text)
    for (i = 1; i <= length(text); i++)
        value = value * 16 + index("0123456789abcdef", substr(text, i, 1)) - 1
    return value
}
# Where control goes from instruction i (of 1..n).
function successors(i,   op, last) {
    op = opcode[i]
    last = predicate[i] == "" && jumps[i] == 1
    if (op ~ /^BRA\.(DIV|CONV)/) { flow(i, i + 1); return }
    if (op ~ /^(BRA|JMP)/) {
        if (target[i] in line_of) flow(i, line_of[target[i]])
        if (!last) flow(i, i + 1)
        return
    }
    if (op ~ /^BSYNC/ && (target[i] in line_of)) { flow(i, line_of[target[i]]); return }
    if (op ~ /^(EXIT|RET|BRX|JMX|KILL)/) {
        if (predicate[i] != "") flow(i, i + 1)
        return
    }
    flow(i, i + 1)
}
function flow(i, j) {
    if (j > n) return
    out[i, ++outs[i]] = j
}
# Depth-first from the entry; an edge to an instruction above it on the path closes a loop. (Loops
# that a compiler makes have one head; one with two would be listed from each.)
function walk(   top, i, j) {
    delete state; delete seen
    top = 1
    stack[1] = 1; at[1] = 0; state[1] = 1
    while (top > 0) {
        i = stack[top]
        if (at[top] < outs[i]) {
            j = out[i, ++at[top]]
            into[j, ++ins[j]] = i
            if (state[j] == 1) back[++backs] = i SUBSEP j
            else if (!state[j]) { stack[++top] = j; at[top] = 0; state[j] = 1 }
        } else { state[i] = 2; top-- }
    }
}
# The members of the loop of head h closed from i, into body[h, .].
function gather(i, h,   top, j, k) {
    if (!((h, h) in body)) { heads[++loops] = h; body[h, h] = 1 }
    if ((h, i) in body) return
    top = 1
    stack[1] = i; body[h, i] = 1
    while (top > 0) {
        j = stack[top--]
        for (k = 1; k <= ins[j]; k++)
            if (!((h, into[j, k]) in body)) { body[h, into[j, k]] = 1; stack[++top] = into[j, k] }
    }
}
function report(h,   i, total, per, last, count, from_global, from_shared, k, row) {
    for (i = 1; i <= n; i++) if ((h, i) in body) {
        total++; count[kind(opcode[i])]++; last = i
        if (opcode[i] ~ /^(LDG|LDGSTS|LD)(\.|$)/) from_global += width(opcode[i])
        if (opcode[i] ~ /^(LDS|LDSM)(\.|$)/) from_shared += width(opcode[i])
        if (kind(opcode[i]) == "other") unknown[opcode[i]]++
    }
    per = elements > 0 ? elements : size > 0 && from_global > 0 ? from_global / size : 1
    row = sprintf("%-7s %5s-%-5s %4s %7s", machine, address[h], address[last], per,
        decimal(total / per))
    for (k = 1; k <= kinds; k++) row = row sprintf(" %7s", decimal(count[names[k]] / per))
    print row sprintf(" %6d %6d  %s", from_global, from_shared, kernel)
    printed++
}
function decimal(x) { return x == int(x) ? sprintf("%d", x) : sprintf("%.2f", x) }
function finish(   i, k, h, inner) {
    if (!n) return
    for (i = 1; i <= n; i++) successors(i)
    walk()
    for (k = 1; k <= backs; k++) { split(back[k], ends, SUBSEP); gather(ends[1], ends[2]) }
    for (k = 1; k <= loops; k++) {
        inner = 1
        for (h = 1; h <= loops; h++)
            if (h != k && (heads[k], heads[h]) in body) inner = 0
        if (inner || nested) report(heads[k])
    }
    forget()
}
function forget() {
    n = backs = loops = 0
    delete opcode; delete predicate; delete jumps; delete target; delete address; delete line_of
    delete out; delete outs; delete into; delete ins; delete back; delete heads; delete body
    delete region
}
BEGIN {
    SYNC = "BAR DEPBAR LDGDEPBAR SYNCS WARPSYNC WARPGROUP MEMBAR FENCE BSSY BSYNC BREAK ERRBAR " \
        "ARRIVES NANOSLEEP YIELD ELECT ENDCOLLECTIVE"
    MOVE = "MOV MOVM SEL FSEL PRMT LDC CS2R S2R S2UR R2UR P2R R2P UP2UR UR2UP LEPC"
    FLOAT = "FFMA FMUL FADD FMNMX FMNMX3 FSETP FSET FCHK FSWZADD FFMA2 FMUL2 FADD2"
    HALVES = "HFMA2 HADD2 HMUL2 HMNMX2 HSETP2 HSET2 DFMA DMUL DADD DSETP"
    INTEGER = "IMAD IADD IADD3 LEA LOP3 PLOP3 SHF SHL SHR ISETP IMNMX IABS POPC FLO BREV BMSK " \
        "SGXT VIADD VIMNMX VIMNMX3 VIADDMNMX IDP IMUL"
    KINDS = "mma shared global local float mufu convert integer move shuffle sync branch other"
    row = sprintf("%-7s %-11s %4s %7s", "arch", "from-to", "N", "all")
    kinds = split(KINDS, names, " ")
    for (k = 1; k <= kinds; k++) row = row sprintf(" %7s", names[k])
    print row sprintf(" %6s %6s  %s", "gbytes", "sbytes", "kernel")
}
/^[\t ]*code for sm_/ { finish(); machine = $NF }
/^[\t ]*Function :/ {
    finish()
    kernel = $NF
    wanted = (arch == "" || machine == arch) && (word == "" || index(kernel, word))
}
# "/*0270*/  @!P0 BRA 0x2a0 ;  /* encoding */"; a line that has only the encoding is skipped.
wanted && /^[\t ]+\/\*[0-9a-f]+\*\/[\t ]+[^\t ]/ {
    text = $0
    sub(/^[\t ]+\/\*/, "", text)
    where = substr(text, 1, index(text, "*/") - 1)
    text = substr(text, index(text, "*/") + 2)
    sub(/;.*/, "", text)
    count = split(text, words, " ")
    if (!count) next
    first = words[1] ~ /^@/ ? 2 : 1
    if (words[first] == "NOP") next
    n++
    opcode[n] = words[first]
    predicate[n] = first == 2 ? words[1] : ""
    address[n] = where
    line_of[hex(where)] = n
    jumps[n] = count - first       # operands
    if (match(text, /0x[0-9a-f]+[\t ]*$/) && opcode[n] ~ /^(BRA|JMP|BSSY)/) {
        to = substr(text, RSTART + 2)
        sub(/[\t ]*$/, "", to)
        target[n] = hex(to)
    }
    # A region that lanes leave together ends where its BSSY says.
    if (opcode[n] ~ /^BSSY/) { region[words[first + 1]] = target[n] }
    if (opcode[n] ~ /^BSYNC/) target[n] = region[words[first + 1] ","]
}
END {
    finish()
    for (op in unknown) print "of unknown kind: " op | "cat >&2"
    exit !printed
}' "$work/listing" >"$work/loops" || { echo "instructions.sh: no loop in $1" >&2; exit 1; }
$(command -v c++filt || echo cat) <"$work/loops" | sed 's/ void / /; s/(.*//'
