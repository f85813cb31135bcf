#!/bin/sh
# The test of scripts/ptxas.sh and scripts/instructions.sh, on what the assembler says of small
# kernels; and where there are nvcc and cuobjdump, on one that is compiled here. Exit code 1 if
# anything is not as counted by hand.
set -u
cd "$(dirname "$0")/.."
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
wrong=0

# expect CODE "WORDS" COMMAND...: the exit code, and a line of the output with these words, blanks
# pressed together; "" for any.
expect() {
    code=$1 words=$2
    shift 2
    "$@" >"$work/said" 2>&1
    got=$?
    if [ $got = "$code" ] && tr -s ' ' <"$work/said" | grep -qF -- "$words"; then return; fi
    wrong=$((wrong + 1))
    echo "$*: expected exit code $code and \"$words\"; exit code $got and:"
    sed 's/^/    /' "$work/said"
}

# ---- ptxas.sh ----

# report LETTER SPILLED: one kernel, for two architectures; the second spills.
report() {
    for arch in sm_80 sm_90a; do
        spilled=$2
        [ $arch = sm_80 ] && spilled=0
        cat <<END
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4fast${1}IfLi64EEvPT_i' for '$arch'
ptxas info    : Function properties for _Z4fast${1}IfLi64EEvPT_i
    8 bytes stack frame, $spilled bytes spill stores, $((spilled * 2)) bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 512 bytes smem, 376 bytes cmem[0]
END
    done
}
mkdir -p "$work/cuda/bf16/lab"
report A 0 >"$work/cuda/bf16/norm.o.ptxas"
report B 4 >"$work/cuda/bf16/lab/head.o.ptxas"
export PTXAS_COLD=
expect 0 "2 kernels, 0 with spills (0 of them hot), 2 with a stack" \
    sh scripts/ptxas.sh "$work"/cuda/bf16/norm.o.ptxas
expect 0 "sm_80 bf16 48 8 0 0 512 norm " sh scripts/ptxas.sh "$work"/cuda/bf16/norm.o.ptxas
expect 1 "SPILLS, and is not cold: sm_90a bf16 48 8 4 8 512 lab/head " \
    sh scripts/ptxas.sh "$work"/cuda/bf16/*.ptxas "$work"/cuda/bf16/lab/*.ptxas
expect 1 "4 kernels, 1 with spills (1 of them hot)" \
    sh scripts/ptxas.sh "$work"/cuda/bf16/*.ptxas "$work"/cuda/bf16/lab/*.ptxas
kernel=$(echo _Z4fastBIfLi64EEvPT_i | c++filt | sed 's/(.*//; s/^void //; s/ //g')
export PTXAS_COLD="lab/head $kernel runs once"
expect 0 "1 with spills (0 of them hot)" \
    sh scripts/ptxas.sh "$work"/cuda/bf16/*.ptxas "$work"/cuda/bf16/lab/*.ptxas
export PTXAS_COLD="norm $kernel of another file"
expect 1 "(1 of them hot)" sh scripts/ptxas.sh "$work"/cuda/bf16/lab/*.ptxas
unset PTXAS_COLD
: >"$work/cuda/bf16/none.o.ptxas"
expect 1 "0 kernels" sh scripts/ptxas.sh "$work"/cuda/bf16/none.o.ptxas

# ---- instructions.sh ----

# A loop of a loop. The inner one reads 8 bytes of each kind of memory in a turn and has a branch
# inside; the code behind the end is reached by a warp without some of its lanes, and jumps back.
# After the exit the assembler pads with a jump to itself.
cat >"$work/loops.sass" <<'END'
	code for sm_80
		Function : nested
        /*0000*/                   MOV R1, c[0x0][0x28] ;                /* 0x0000000000000000 */
                                                                         /* 0x0000000000000000 */
        /*0010*/                   IMAD.MOV.U32 R5, RZ, RZ, 0x4 ;
        /*0020*/                   LDG.E.64 R2, [R4.64] ;
        /*0030*/                   LDS R6, [R7] ;
        /*0040*/                   LDS R8, [R7+0x4] ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R4, R6, R4 ;
        /*0060*/              @!P1 BRA 0x90 ;
        /*0070*/                   FFMA.FTZ R2, R2, R3, R4 ;
        /*0080*/                   MUFU.EX2 R2, R2 ;
        /*0090*/                   BRA.DIV UR4, 0x120 ;
        /*00a0*/                   SHFL.BFLY PT, R3, R2, 0x1, 0x1f ;
        /*00b0*/                   F2FP.BF16.F32.PACK_AB R2, R2, R3 ;
        /*00c0*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*00d0*/               @P0 BRA 0x20 ;
        /*00e0*/                   BAR.SYNC 0x0 ;
        /*00f0*/               @P2 BRA 0x10 ;
        /*0100*/                   EXIT ;
        /*0110*/                   BRA 0x110;
        /*0120*/                   WARPSYNC.COLLECTIVE R3, 0x130 ;
        /*0130*/                   BRA 0xb0 ;
        /*0140*/                   NOP;
	code for sm_90a
		Function : straight
        /*0000*/                   STL [R1], R2 ;
        /*0010*/                   EXIT ;
END
#                 N  all mma sh gl lo fl mu co in mo shf sy br other
sass="sh scripts/instructions.sh"
expect 0 "sm_80 0020-00d0 1 12 1 2 1 0 1 1 1 1 0 1 0 3 0 8 8 nested" $sass "$work/loops.sass"
expect 0 "sm_80 0010-00f0 1 15 1 2 1 0 1 1 1 1 1 1 1 4 0 8 8 nested" $sass -o "$work/loops.sass"
expect 0 "sm_80 0020-00d0 2 6 0.50 1 0.50 0 0.50 " $sass -s 4 "$work/loops.sass"
expect 0 "sm_80 0020-00d0 4 3 0.25 " $sass -e 4 "$work/loops.sass"
expect 1 "no loop" $sass -a sm_90a "$work/loops.sass"
expect 1 "no loop" $sass -k other "$work/loops.sass"
expect 2 "usage" $sass
expect 2 "cannot read" $sass "$work/none"
$sass "$work/loops.sass" >"$work/said"
[ "$(wc -l <"$work/said")" = 2 ] || { wrong=$((wrong + 1)); cat "$work/said"; }

# Compiled here: a multiplication and an addition an element, 16 bytes in, 16 out.
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
export CUOBJDUMP="${CUOBJDUMP:-$(command -v cuobjdump || ls /usr/local/cuda/bin/cuobjdump 2>&1)}"
if [ -n "$nvcc" ] && [ -x "$CUOBJDUMP" ]; then
    cat >"$work/scale.cu" <<'END'
extern "C" __global__ void scale(float4 *y, const float4 *x, float a, float b, int n) {
#pragma unroll 1
    for (int i = threadIdx.x; i < n; i += 128)
        y[i] = make_float4(x[i].x * a + b, x[i].y * a + b, x[i].z * a + b, x[i].w * a + b);
}
END
    "$nvcc" -O3 -arch=sm_80 -cubin -o "$work/scale.cubin" "$work/scale.cu" || exit 1
    $sass -s 4 "$work/scale.cubin" >"$work/said"
    # N, global and float by element: LDG.128 and STG.128 for four, an FFMA for each
    awk 'NR == 2 && $3 == 4 && $7 == 0.5 && $9 == 1 && $18 == 16 { good = 1 }
        END { exit !good || NR != 2 }' "$work/said" || { wrong=$((wrong + 1)); cat "$work/said"; }
else
    echo "machine code: no nvcc and cuobjdump here: only written listings were counted"
fi
[ $wrong = 0 ] && echo "machine code: registers, spills and instructions are counted as by hand"
