#!/bin/sh
# run.sh [-j N] COMMAND...: runs each cmocka program, N at a time (1), shows the output of those
# that fail, says which ten of many took longest, and ends with the line "N passed, N failed" over
# all their tests (", N skipped" may follow). A command with arguments is one word:
# "build/test/test_head sim bf16". Exit code 1 if anything failed or nothing passed.
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
# Its log, beside the program. (A slash in another word is a version, "sim/head_naive".)
log_of() {
    words_of "$1" |
        sed 's/ $//; s/\(.*\) \([^ ]*\/test_.*\)/\2 \1/; s/ \([^ /]*\)\// \1./g
            s/[ *,=]\{1,\}/./g; s/\.$//; s/$/.log/'
}

if [ "$1" = --one ]; then
    log=$(log_of "$2")
    begun=$(date +%s%N)
    env $2 >"$log" 2>&1
    echo $? $((($(date +%s%N) - begun) / 1000000)) >"$log.status"
    exit 0
fi
jobs=1
if [ "$1" = -j ]; then
    jobs=$2
    shift 2
fi
printf '%s\0' "$@" | xargs -0 -P "$jobs" -n 1 sh "$0" --one

# The numbers of a log: passed, failed, skipped. A test is what a line "[ RUN      ] NAME" begins;
# its verdict is the next "[       OK ]", "[  SKIPPED ]", "[  FAILED  ]" or "[  ERROR   ]" with that
# NAME at the end of the line; without one it failed. Every cmocka since 1.1.5 prints these. Its
# summary is not read: it repeats names, and its words differ from version to version. What a child
# process or a library prints in between, also without an end of line before cmocka's next word,
# does not disturb.
numbers() {
    awk '
        # The name behind the mark, if the line ends in one.
        function verdict(mark) {
            if (!match($0, "\\[ *" mark " *\\] [A-Za-z0-9_]+$")) return 0
            word = substr($0, RSTART)
            sub(/^.*\] /, "", word)
            return 1
        }
        verdict("RUN") { if (open != "") failed++; open = word; next }
        open == "" { next }
        verdict("OK") && word == open { passed++; open = ""; next }
        verdict("SKIPPED") && word == open { skipped++; open = ""; next }
        (verdict("FAILED") || verdict("ERROR")) && word == open { failed++; open = "" }
        END { print passed + 0, failed + (open != ""), skipped + 0 }' "$1"
}

passed=0
failed=0
skipped=0
times=
for command in "$@"; do
    log=$(log_of "$command")
    read -r status milliseconds <"$log.status"
    read -r good bad skip <<END
$(numbers "$log")
END
    if [ "$bad" = 0 ] && { [ "$status" != 0 ] || [ $((good + skip)) = 0 ]; }; then bad=1; fi
    passed=$((passed + good))
    failed=$((failed + bad))
    skipped=$((skipped + skip))
    name=$(words_of "$command" | sed 's/[^ ]*\///; s/ $//')
    if [ "$bad" = 0 ]; then
        printf '%-40s %3d passed\n' "$name" "$good"
    else
        cat "$log"
        printf '%-40s %3d passed, %d failed, exit code %d\n' "$name" "$good" "$bad" "$status"
    fi
    times="$times$milliseconds $name
"
done
if [ $# -gt 10 ]; then
    printf '%s' "$times" | sort -rn | head -n 10 | awk '
        BEGIN { printf "the slowest, in seconds:" }
        { printf "%s %.1f", (NR > 1 ? "," : ""), $1 / 1000; $1 = ""; printf "%s", $0 }
        END { print "" }'
fi
more=
[ $skipped = 0 ] || more=", $skipped skipped"
echo "$passed passed, $failed failed$more"
[ $failed = 0 ] && [ $passed -gt 0 ]
