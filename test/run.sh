#!/bin/sh
# run.sh PROGRAM...: runs each cmocka program, shows the output of those that fail, and ends with
# the line "N passed, N failed" over all their tests. Exit code 1 if anything failed or nothing ran.
#
# A program that stops in the middle, exits non-zero though its tests passed (a sanitizer does), or
# runs no test at all counts as one more failure.
set -u
# Waiting threads sleep: the machine may be shared, and then spinning is many times slower.
export OMP_WAIT_POLICY=passive
passed=0
failed=0

# count PATTERN LOG: lines that begin so
count() { grep -c "^\[ *$1 *\]" "$2"; }

for program in "$@"; do
    log=$program.log
    "$program" >"$log" 2>&1
    status=$?
    begun=$(count RUN "$log")
    good=$(count OK "$log")
    bad=$((begun - good - $(count SKIPPED "$log")))
    if [ $bad = 0 ] && { [ $status != 0 ] || [ "$begun" = 0 ]; }; then bad=1; fi
    passed=$((passed + good))
    failed=$((failed + bad))
    if [ $bad = 0 ]; then
        printf '%-24s %3d passed\n' "$(basename "$program")" "$good"
    else
        cat "$log"
        printf '%-24s %3d passed, %d failed, exit code %d\n' \
            "$(basename "$program")" "$good" $bad $status
    fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
