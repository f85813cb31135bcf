#!/bin/sh
# gpu_check.sh [BACKEND]: everything there is to know about this tree on a machine with a GPU, in
# one call of under nine minutes, what is worth most first: builds, runs every test of the kernels
# on the device in each element type, trains the built-in task on the GPU beside the CPU, checks and
# times what ships and the laboratory's versions (doc/lab.md), others' kernels where they are
# installed (dev/bench/peers.py), small tests under compute-sanitizer; prints a short table last.
# Exit code 1 if a test failed or a version is wrong.
#
# Needs the CUDA toolkit and the project's libraries (packages carried in .deps/ are unpacked for
# this run, nothing is installed); works without .git. Table and logs: build/gpu_check/, or OUT=DIR
# (without blanks). BACKEND sim runs most of the same steps on the simulator: that checks this
# script, not a GPU.
set -u
cd "$(dirname "$0")/.."
backend=${1:-cuda}
logs=${OUT:-build/gpu_check}
unset OUT
table=$logs/table
mkdir -p $logs build/gpu_check
: >$table
: >$logs/bench.log
begun=$(date +%s)
failed=0
jobs=$(nproc)
export OMP_WAIT_POLICY=passive

# Debian packages that were carried along, on a machine that can fetch nothing.
if ls .deps/*.deb >/dev/null 2>&1; then
    unpacked=$(mktemp -d)
    for f in .deps/*.deb; do dpkg -x "$f" "$unpacked"; done
    libraries=$unpacked/usr/lib/$(uname -m)-linux-gnu
    export CPATH=$unpacked/usr/include:$unpacked/usr/include/$(uname -m)-linux-gnu/openblas-openmp
    export LIBRARY_PATH=$libraries:$libraries/openblas-openmp
    LD_LIBRARY_PATH=$libraries:$libraries/openblas-openmp${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    export LD_LIBRARY_PATH
fi

elapsed() { echo $(($(date +%s) - begun)); }
row() { printf '%-34s %s\n' "$1" "$2" | tee -a $table; }
# most SECONDS: so many, or what is left of the nine minutes.
most() {
    rest=$((535 - $(elapsed)))
    [ $rest -lt 1 ] && rest=1
    [ $rest -lt "$1" ] && echo $rest || echo "$1"
}
# left SECONDS NAME: is there so much of the nine minutes left? Else the step is named as left out.
left() {
    [ $(($(elapsed) + $1)) -le 530 ] && return 0
    row "$2" "left out: $(elapsed) s used"
    return 1
}

# ---- build ----
commit=$(git rev-parse --short HEAD 2>/dev/null || echo "(no git)")
row "date, commit" "$(date -u +%Y-%m-%dT%H:%MZ) $commit"
if [ "$backend" = cuda ]; then
    card=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1)
    row "GPU" "$(echo "$card" | head -n 1)"
    nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
    plugin="-f llmc/kernels/cuda.mk NVCC=$nvcc LAB_DTYPES=bf16 cuda lab"
    row "toolkit" "$($nvcc --version | sed -n 's/^Cuda compilation tools, //p')"
else
    plugin="-f test/cudasim/backend.mk build/backend_$backend.so build/lab_$backend.so"
fi
# On the simulator whole rollouts and programs take minutes: make sim has its share of them.
kernel_tests="test_ops_basics test_ops_dense test_ops_variants test_attention test_head \
    test_decode_ops test_adamw"
kernel_tests="$kernel_tests test_contract test_matmul_choices"
[ "$backend" = cuda ] && kernel_tests="$kernel_tests test_sampler"
programs=""
for t in $kernel_tests test_comm test_model test_backends; do
    programs="$programs build/test/$t"
done
if ! NO_INSTALL=1 sh scripts/install_deps.sh >$logs/build.log 2>&1; then
    cat $logs/build.log
    row "libraries" "MISSING, see above"
    exit 1
fi
if ! make -j"$jobs" $plugin >>$logs/build.log 2>&1 ||
    ! make -j"$jobs" train $programs build/bench >>$logs/build.log 2>&1; then
    tail -n 30 $logs/build.log
    row "build" "FAILED, see $logs/build.log"
    exit 1
fi
row "build" "$(elapsed) s"

# ---- tests ----
# run_test NAME DTYPE: one program on the device; counts by its own lines.
run_test() {
    log=$logs/$1.$2.log
    left 5 "$1 $2" || return
    timeout "$(most 120)" build/test/"$1" "$backend" "$2" >"$log" 2>&1
    status=$?
    good=$(grep -c '^\[ *OK *\]' "$log")
    if [ $status = 0 ] && [ "$good" -gt 0 ]; then
        printf '%s: %d passed\n' "$1 $2" "$good"
    else
        failed=$((failed + 1))
        printf '%s: FAILED (exit %d, %d passed)\n' "$1 $2" $status "$good"
        grep -E 'ERROR|error|FAILED' "$log" | head -n 8
    fi
    total=$((total + good))
}
# kernels DTYPE: every test of the kernels.
kernels() {
    total=0 before=$failed
    for t in $kernel_tests; do run_test "$t" "$1"; done
    row "tests on the device, $1" "$total passed, $((failed - before)) programs failed"
}
# The program on the device: it and the CPU's draw the same tokens.
whole() {
    total=0 before=$failed
    run_test test_model fp32
    run_test test_comm fp32
    [ "$backend" = cuda ] && run_test test_backends '*'
    row "model, communication, program" "$total passed, $((failed - before)) programs failed"
}

# ---- the built-in task ----
# train_row NAME OPTIONS...: the last evaluation and the speed of a short run.
train_row() {
    name=$1
    shift
    left 20 "train $name" || return
    steps=100 warm=300 evaluated="--eval-prompts 50 --eval-samples 16"
    if [ "$backend" != cuda ]; then
        steps=2 warm=3 evaluated="--eval-prompts 3 --eval-samples 4"
        set -- "$@" --prompts 2 --group 4 --warm-batch 16
    fi
    run=build/gpu_check/run-$name
    if timeout "$(most 100)" ./train "$@" --quiet --overwrite --run "$run" --warm-start $warm \
        --steps $steps --eval-every $steps $evaluated --save-every 0 \
        >$logs/train-"$name".log 2>&1; then
        speed=$(sed -n 's/.*"perf\/gen_tok_s": \([^,}]*\).*/\1/p' "$run"/metrics.jsonl | tail -n 1)
        step=$(sed -n 's/.*"step_time": \([^,}]*\).*/\1/p' "$run"/metrics.jsonl | tail -n 1)
        pass=$(sed -n 's/.*"eval\/pass@1": \([^,}]*\).*/\1/p' "$run"/metrics.jsonl | tail -n 1)
        difference=$(sed -n 's/.*logp_difference\/max": \([^,}]*\).*/\1/p' "$run"/metrics.jsonl |
            tail -n 1)
        row "train $name" \
            "$speed tokens/s sampled, $step s a step, pass@1 $pass, |dlogp| $difference"
    else
        failed=$((failed + 1))
        tail -n 5 $logs/train-"$name".log
        row "train $name" "FAILED"
    fi
}

# ---- benchmarks: what ships and the ladders, checked and timed; others' kernels ----
# bench SECONDS OPS: a table that is cut off keeps what was measured.
bench() {
    left 20 "benchmarks $2" || return
    echo "---- $2" >>$logs/bench.log
    timeout -k 5 "$(most "$1")" build/bench OP="$2" BACKEND="$backend" DTYPE=bf16 TIME=lab \
        OUT=$logs >>$logs/bench.log 2>&1
    case $? in
    0) row "benchmarks $2" "all versions agree" ;;
    *)
        if grep -q '^WRONG' $logs/bench.log || ! grep -q '^stopped' $logs/bench.log; then
            failed=$((failed + 1))
            row "benchmarks $2" "FAILED, see $logs/bench.log"
        else
            row "benchmarks $2" "not finished in time"
        fi
        ;;
    esac
}
peers() { # SECONDS OP SHAPES
    python=$(command -v python3) && "$python" -c 'import torch' 2>/dev/null || {
        row "peers $2" "not run: no Python with PyTorch"
        return
    }
    left 30 "peers $2" || return
    echo "---- peers, $2" >>$logs/bench.log
    timeout "$(most "$1")" "$python" dev/bench/peers.py OP="$2" SHAPES="$3" PEER_SECONDS=30 \
        OUT=$logs >>$logs/bench.log 2>&1
    case $? in
    0) row "peers $2" "see $logs/bench.log" ;;
    *) row "peers $2" "not whole, see $logs/bench.log" ;;
    esac
}

# ---- the order: what is worth most comes first -----
kernels bf16
train_row "$backend-bf16" --backend "$backend" --dtype bf16
bench 110 head
bench 60 step,generate
kernels fp32
whole
bench 110 decode,attention,matmul
if [ "$backend" = cuda ]; then peers 70 head 2; fi
bench 40 sample,norm,adamw
kernels fp16
train_row cpu --backend cpu
for dtype in fp32 fp16; do
    train_row "$backend-$dtype" --backend "$backend" --dtype $dtype
done
if [ "$backend" = cuda ]; then peers 40 attention 1; fi

# ---- compute-sanitizer, on small shapes ----
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
sanitize() { # TOOL PROGRAM DTYPE PATTERN
    left 20 "$1 $2 $3" || return
    log=$logs/sanitizer.$1.$2.$3.log
    timeout "$(most 60)" "$sanitizer" --tool "$1" --error-exitcode 9 \
        build/test/"$2" "$backend" "$3" "$4" small >"$log" 2>&1
    status=$?
    case $status in
    0) grep -q '^\[ *OK *\]' "$log" && result=clean || result="no test ran" ;;
    124) result="not finished in time" ;;
    *) result="FAILED (exit $status)" failed=$((failed + 1)) ;;
    esac
    row "$1 $2 $3" "$result"
}
if [ "$backend" = cuda ] && [ -n "$sanitizer" ]; then
    for tool in memcheck racecheck; do
        sanitize $tool test_ops_dense bf16 '*norm*'
        sanitize $tool test_attention bf16 '*training'
        sanitize $tool test_attention bf16 '*decode'
        sanitize $tool test_decode_ops bf16 '*bits*'
        sanitize $tool test_head bf16 '*zero*'
    done
else
    why=simulator
    [ "$backend" = cuda ] && why="not installed"
    row "compute-sanitizer" "not run: $why"
fi

echo
echo "==== $backend, $(elapsed) s ===="
cat $table
echo
cat $logs/bench.log 2>/dev/null
[ $failed = 0 ] || echo "$failed programs FAILED; logs in $logs"
[ $failed = 0 ]
