#!/bin/sh
# The test of run.sh: small programs print what each cmocka prints, and end in each way. Shows the
# cases that fail; exit code 1 if any does.
set -u
cd "$(dirname "$0")/.."
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cases=0
wrong=0

# program NAME CODE: makes a program that prints standard input and ends with the exit code.
program() {
    cat >"$work/$1.txt"
    printf '#!/bin/sh\ncat %s\nexit %s\n' "$work/$1.txt" "$2" >"$work/$1"
    chmod +x "$work/$1"
}

# expect "LAST LINE" CODE NAME...: run.sh over these programs.
expect() {
    line=$1
    code=$2
    shift 2
    names=$*
    set --
    for each in $names; do set -- "$@" "$work/$each"; done
    sh test/run.sh "$@" >"$work/said" 2>&1
    got=$?
    cases=$((cases + 1))
    [ "$(tail -n 1 "$work/said")" = "$line" ] && [ $got = "$code" ] && return
    wrong=$((wrong + 1))
    echo "run.sh over $names: expected \"$line\", exit code $code; exit code $got and:"
    sed 's/^/    /' "$work/said"
}

# Three tests of which one is skipped and PASSING pass, then the summary; $1 stands before the words
# in its lines: nothing in 1.1.5, the group's name in 1.1.7 and 2.0.
skipping() {
    cat <<END
[==========] ${1}Running 3 test(s).
[ RUN      ] test_a
[       OK ] test_a
[ RUN      ] test_b
[  SKIPPED ] test_b
[ RUN      ] test_c
[       OK ] test_c
[==========] ${1}3 test(s) run.
[  PASSED  ] 2 test(s).
[  SKIPPED ] ${1}1 test(s), listed below:
[  SKIPPED ] test_b

 1 SKIPPED TEST(S)
END
}
failing() {
    cat <<END
[==========] ${1}Running 2 test(s).
[ RUN      ] test_a
[  ERROR   ] --- 0x1 != 0x2
[   LINE   ] --- test/test_base.c:7: error: Failure!
[  FAILED  ] test_a
[ RUN      ] test_b
[       OK ] test_b
[==========] ${1}2 test(s) run.
[  PASSED  ] 1 test(s).
[  FAILED  ] ${1}1 test(s), listed below:
[  FAILED  ] test_a

 1 FAILED TEST(S)
END
}

for version in 5: 7:tests:\  2:test_group:\ ; do
    name=${version%%:*}
    skipping "${version#*:}" | program "skip$name" 0
    failing "${version#*:}" | program "fail$name" 1
    expect "2 passed, 0 failed, 1 skipped" 0 "skip$name"
    expect "1 passed, 1 failed" 1 "fail$name"
done
expect "9 passed, 3 failed, 3 skipped" 1 skip5 skip7 skip2 fail5 fail7 fail2

# Two groups in one program.
{ skipping "one: "; skipping "two: "; } | program groups 0
expect "4 passed, 0 failed, 2 skipped" 0 groups

# A program that stops in the middle of a test: killed, and by exit(0).
skipping "" | head -n 4 | program killed 139
skipping "" | head -n 4 | program stopped 0
expect "1 passed, 1 failed" 1 killed
expect "1 passed, 1 failed" 1 stopped

# All passed, but the sanitizer found a leak at the end; failed tests are not counted once more.
skipping "" | program leak 23
expect "2 passed, 1 failed, 1 skipped" 1 leak
failing "" | program leak_too 23
expect "1 passed, 1 failed" 1 leak_too

# No test ran: a group's set-up failed, or the program prints nothing; and nothing passed.
program setup 1 <<'END'
[==========] tests: Running 3 test(s).
[  ERROR   ] --- No entries for symbol x.
[  FAILED  ] GROUP SETUP
[==========] tests: 0 test(s) run.
[  PASSED  ] 0 test(s).
END
program silent 0 </dev/null
expect "0 passed, 1 failed" 1 setup
expect "0 passed, 1 failed" 1 silent
expect "2 passed, 1 failed, 1 skipped" 1 skip5 silent
program only_skipped 0 <<'END'
[==========] Running 1 test(s).
[ RUN      ] test_a
[  SKIPPED ] test_a
[==========] 1 test(s) run.
END
expect "0 passed, 0 failed, 1 skipped" 1 only_skipped

# Children and libraries print into the log: without an end of line, and words like cmocka's own.
program children 0 <<'END'
OPENMP DISPLAY ENVIRONMENT BEGIN
[==========] tests: Running 2 test(s).
[ RUN      ] test_a
step 1[       OK ] other
[       OK ]
progress 99 %[       OK ] test_a
OMP: Info #1[ RUN      ] test_b
[==========] 9 test(s) run.
[  FAILED  ] nothing at all
[       OK ] test_b
[==========] tests: 2 test(s) run.
END
expect "2 passed, 0 failed" 0 children

# Of more than ten the slowest are named, those that ran longest first; also side by side.
program slow 0 </dev/null
skipping "" >"$work/slow.txt"
sed -i '2i sleep 0.4' "$work/slow"
expect "24 passed, 0 failed, 12 skipped" 0 skip5 skip7 skip2 skip5 skip7 slow skip2 skip5 skip7 \
    skip2 skip5 skip7
cases=$((cases + 1))
if ! grep -q '^the slowest, in seconds: [0-9]*\.[4-9] slow, [0-9.]* skip' "$work/said"; then
    wrong=$((wrong + 1))
    echo "run.sh does not name the slowest:"
    grep slowest "$work/said"
fi

echo "run.sh: $((cases - wrong)) of $cases cases right"
[ $wrong = 0 ]
