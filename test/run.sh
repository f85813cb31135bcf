#!/bin/sh
# run.sh [-j N] COMMAND...: runs each cmocka program, N at a time (1), shows the output of those that
# fail, and ends with the line "N passed, N failed" over all their tests. A command with arguments is
# one word: "build/test/test_head sim bf16". Exit code 1 if anything failed or nothing ran.
#
# A program that stops in the middle, exits non-zero though its tests passed (a sanitizer does), or
# runs no test at all counts as one more failure.
set -uf
# Waiting threads sleep: the machine may be shared, and then spinning is many times slower.
export OMP_WAIT_POLICY=passive

# What a command is called: its own words, without the settings in front.
words_of() {
    for word in $1; do
        case $word in
        env | LD_PRELOAD=* | ASAN_OPTIONS=*) ;;
        CUDASIM=*) printf '%s ' "${word#CUDASIM=}" ;;
        *) printf '%s ' "$word" ;;
        esac
    done
}
# Its log, beside the program.
log_of() {
    words_of "$1" | sed 's/ $//; s/\(.*\) \([^ ]*\/.*\)/\2 \1/; s/[ *,=]\{1,\}/./g; s/\.$//; s/$/.log/'
}

if [ "$1" = --one ]; then
    log=$(log_of "$2")
    env $2 >"$log" 2>&1
    echo $? >"$log.status"
    exit 0
fi
jobs=1
if [ "$1" = -j ]; then
    jobs=$2
    shift 2
fi
printf '%s\0' "$@" | xargs -0 -P "$jobs" -n 1 sh "$0" --one

# count PATTERN LOG: lines that begin so, before the summary, which repeats some
count() {
    awk -v word="$1" '/^\[=+\] [0-9]+ test\(s\) run/ { exit }
        $0 ~ "^\\[ *" word " *\\]" { n++ } END { print n + 0 }' "$2"
}

passed=0
failed=0
for command in "$@"; do
    log=$(log_of "$command")
    status=$(cat "$log.status")
    begun=$(count RUN "$log")
    good=$(count OK "$log")
    bad=$((begun - good - $(count SKIPPED "$log")))
    if [ $bad = 0 ] && { [ "$status" != 0 ] || [ "$begun" = 0 ]; }; then bad=1; fi
    passed=$((passed + good))
    failed=$((failed + bad))
    name=$(words_of "$command" | sed 's/[^ ]*\///; s/ $//')
    if [ $bad = 0 ]; then
        printf '%-40s %3d passed\n' "$name" "$good"
    else
        cat "$log"
        printf '%-40s %3d passed, %d failed, exit code %d\n' "$name" "$good" $bad "$status"
    fi
done
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
