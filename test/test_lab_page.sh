#!/bin/sh
# Does "How to add a version" of doc/lab.md do what it says? Follows it in a copy of the tree, with
# the page's own code: the toy agrees with the reference, and one that is broken is named, exit
# code 1. Needs build/bench and build/lab_sim.so (objects are reused, so that only what the page
# changes is compiled).
set -u
cd "$(dirname "$0")/.."
copy=build/lab-page
rm -rf $copy
mkdir -p $copy/build
trap 'rm -rf "$OLDPWD/$copy" "$copy"' EXIT
cp -al llmc dev test Makefile $copy/
cp -al build/sim build/cu2cpp build/bench build/lab_sim.so $copy/build/
cd $copy || exit 1
page=../../doc/lab.md
wrong=0

# The blocks of code in the page's list, without their indentation: the file, then the row.
awk '/^## How to add/ { here = 1 } here && /^   ```$/ { on = 0 } on { print substr($0, 4) > file }
    here && /^   ```cuda/ { on = 1; file = "block" ++n }' $page
mv block1 dev/cuda/adamw_toy.cu
awk 'FNR == NR { row = row $0 "\n"; next } { print }
    /^#define VERSIONS/ { printf "%s", row }' block2 dev/cuda/adamw.cu >list &&
    rm dev/cuda/adamw.cu && mv list dev/cuda/adamw.cu

# try EXIT_CODE: builds and checks; the toy must be in the table.
try() {
    make -s -j"$(nproc)" -f test/cudasim/backend.mk build/lab_sim.so >log 2>&1 ||
        { cat log; exit 1; }
    build/bench OP=adamw BACKEND=sim DTYPE=bf16 TIME=none OUT=out >log 2>&1
    status=$?
    if [ $status != "$1" ] || ! grep -q "^adamw_toy .*$2" log; then
        echo "exit code $status, not $1, or no line with \"adamw_toy\" and \"$2\":"
        cat log
        wrong=$((wrong + 1))
    fi
}
try 0 yes
sed 's/size_t i = 0/size_t i = 1/' dev/cuda/adamw_toy.cu >broken && rm dev/cuda/adamw_toy.cu &&
    mv broken dev/cuda/adamw_toy.cu
try 1 NO
grep -q "^WRONG  adamw_toy (sim, bf16), sum_of_squares of " log || {
    echo "no line says what is wrong:"
    cat log
    wrong=$((wrong + 1))
}

[ $wrong = 0 ] && echo "lab: the page's version is added by a file and a row, and checked"
