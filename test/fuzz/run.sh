#!/bin/sh
# run.sh NAME SECONDS: one fuzzer, begun from test/fuzz/corpus/NAME. What it finds goes to
# build/fuzz/found/NAME and is read again the next time; the committed files stay as they are. Ends
# with one line and the exit code of the fuzzer; an input that broke the reader is named above it.
set -u
cd "$(dirname "$0")/../.."
name=$1 seconds=$2
found=build/fuzz/found/$name
log=build/fuzz/$name.log
mkdir -p "$found"
dictionary=
[ -f "test/fuzz/$name.dict" ] && dictionary=-dict=test/fuzz/$name.dict
# Time limits are generous: the machine may be shared. rss_limit finds files of a few bytes that
# make a reader take much memory.
OMP_NUM_THREADS=1 build/fuzz/fuzz_$name -max_total_time="$seconds" -max_len=4096 -timeout=30 \
    -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="build/fuzz/$name-" $dictionary \
    "$found" "test/fuzz/corpus/$name" >"$log" 2>&1
code=$?
[ $code = 0 ] || tail -n 40 "$log"
runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
echo "fuzz_$name: ${runs:-?} inputs in $seconds s, exit code $code"
exit $code
