#!/bin/sh
# The test of llmc/base/finite.h: with flags under which isnan() is a constant nothing compiles, and
# the message says why; with others everything does. Exit code 1 if not so.
set -u
cd "$(dirname "$0")/.."
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
wrong=0

# An object of each kind that the Makefile has: library, driver, test, benchmark.
build() {
    rm -rf "$work/build"
    for object in llmc/base/rng.o train_gpt2.o test/test_base.o dev/bench/case.o; do
        MAKEFLAGS='' make BUILD="$work/build" CFLAGS="$1" "$work/build/$object" >"$work/log" 2>&1
        status=$?
        if [ "$2" = builds ] && [ $status = 0 ]; then continue; fi
        if [ "$2" = refused ] && [ $status != 0 ] && grep -q "every NaN guard" "$work/log"; then
            continue
        fi
        wrong=$((wrong + 1))
        echo "CFLAGS=\"$1\": $object should be $2; make's exit code is $status:"
        tail -n 5 "$work/log"
    done
}
for flags in -Ofast "-O2 -ffast-math" "-O3 -ffinite-math-only"; do build "$flags" refused; done
build "-O1 -fno-finite-math-only" builds

[ $wrong = 0 ] && echo "flags: those that turn the NaN guards off are refused"
