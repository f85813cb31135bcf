# Sourced by the experiment scripts. An experiment is a list of runs under one folder; each run is a
# directory of its own that goes on where it stopped, so a script that was interrupted is simply
# started again. Two runs side by side with one thread each use two cores better than one with two.
set -eu
cd "$(dirname "$0")/.."
JOBS=${JOBS:-$(nproc)}
SEEDS=${SEEDS:-1 2 3}
QUEUE=$(mktemp)
trap 'rm -f "$QUEUE"' EXIT

# queue_run SEED NAME OPTION...: one run, in OUT/NAME-sSEED
queue_run() {
    seed=$1 name=$2
    shift 2
    echo "--run $OUT/$name-s$seed --seed $seed $*" >>"$QUEUE"
}

# queue NAME OPTION...: one run per seed
queue() {
    for each in $SEEDS; do queue_run "$each" "$@"; done
}

# Runs all that is queued; a failed run is named, the others go on, and the script fails.
run_queue() {
    make --no-print-directory
    mkdir -p "$OUT"
    begun=$(date +%s)
    xargs -P "$JOBS" -I LINE sh -c './train --resume auto --threads 1 --quiet LINE || {
        echo "failed: ./train LINE" >&2; exit 1; }' <"$QUEUE"
    echo "$(wc -l <"$QUEUE") runs in $(($(date +%s) - begun)) s, $JOBS at a time"
    : >"$QUEUE"
}
