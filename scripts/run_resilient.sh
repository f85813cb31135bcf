#!/bin/sh
# run_resilient.sh [-n RESTARTS] [-p SECONDS] COMMAND --run DIR ...: runs COMMAND (./train and its
# options, or a launcher around it) with --resume auto, and again when it fails, so that it goes on
# from its last checkpoint.
#
#     scripts/run_resilient.sh ./train --gpus all --model DIR --data FILE --run runs/one
#
# It gives up after RESTARTS (3) in a row between which no checkpoint was saved; SECONDS (10) pass
# before each. It does not restart what ended with 0 (done, or asked to stop), with 2 (wrong input:
# the same again) or by an INT, TERM or HUP. Those sent to this script go on to the program as TERM,
# which saves and ends; the script then ends too. Its exit code is the program's last.
set -u

usage() {
    echo "run_resilient.sh: $1; see the top of the script" >&2
    exit 2
}

restarts=3 pause=10
while getopts n:p: option; do
    case $option in
        n) restarts=$OPTARG ;;
        p) pause=$OPTARG ;;
        *) usage "unknown option" ;;
    esac
done
shift $((OPTIND - 1))
case $restarts$pause in *[!0-9]*) usage "-n and -p are whole numbers" ;; esac

run='' before=''
for word; do
    case $before in --run) run=$word ;; esac
    case $word in
        --run=*) run=${word#--run=} ;;
        --overwrite*) usage "--overwrite would clear what a restart goes on with" ;;
        --resume*) usage "leave --resume out, it is added: --run says which run" ;;
    esac
    before=$word
done
[ -n "$run" ] || usage "name the run's directory with --run, where its checkpoints are found again"

child='' stopped=''
# A program in the background ignores INT, so it is asked by TERM whichever came.
stop() {
    stopped=yes
    [ -n "$child" ] && kill -TERM "$child" 2>/dev/null
}
trap stop INT TERM HUP

# Runs the command to its end, also if a signal comes meanwhile; sets code.
run_once() {
    "$@" --resume auto &
    child=$!
    wait "$child"
    code=$?
    while [ -n "$stopped" ] && kill -0 "$child" 2>/dev/null; do
        wait "$child"
        code=$?
    done
    child=''
}

latest() { cat "$run/checkpoints/latest" 2>/dev/null; }

fruitless=0
while :; do
    saved=$(latest)
    run_once "$@"
    case $code in 0 | 2 | 129 | 130 | 143) exit "$code" ;; esac
    [ -n "$stopped" ] && exit "$code"
    if [ "$(latest)" = "$saved" ]; then fruitless=$((fruitless + 1)); else fruitless=1; fi
    if [ "$fruitless" -gt "$restarts" ]; then
        echo "run_resilient.sh: exit code $code; $restarts restarts in a row saved nothing: that" \
            "was the last" >&2
        exit "$code"
    fi
    now=$(latest)
    echo "run_resilient.sh: exit code $code; restart $fruitless of $restarts in $pause s, from" \
        "${now:-the start}" >&2
    sleep "$pause" &
    wait $!
    [ -n "$stopped" ] && exit "$code"
done
