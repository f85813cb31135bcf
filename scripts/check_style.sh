#!/bin/sh
# check_style.sh: checks every source file and Markdown page of this tree for lines above 100
# columns, files above 700 lines, functions above 80 lines, and names of files that do not exist, in
# pages (`paths`, links) and in comments. Prints FILE:LINE and what is wrong; exit code 1 if it
# found something. Needs awk, find and sort.
#
# Not checked: test/golden/ (data written by programs). Allowed to be wide: tables of pages, whose
# rows cannot be broken, and lines of one word (an address). A name with X, NAME, * or % stands for
# several files and is not looked for; names of other projects' files are listed below (foreign).
set -u
cd "$(dirname "$0")/.."

find Makefile train_gpt2.cu ./*.md .ci llmc test dev doc scripts experiments -type f \
    \( -name '*.[ch]' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' -o -name '*.mk' \
    -o -name '*.sh' -o -name '*.py' -o -name '*.md' -o -name Makefile -o -name run \) |
    sed 's|^\./||' | grep -v '^test/golden/' | sort >"${TMPDIR:-/tmp}/style.$$"
trap 'rm -f "${TMPDIR:-/tmp}/style.$$"' EXIT

# awk first reads the list of all files of the tree (-), then the files to be checked.
find . -name .git -prune -o -name build -prune -o -name runs -prune -o -type f -print |
    sed 's|^\./||' |
    LC_ALL=C awk -v foreign=" llm.c llama2.c policy.c train_gpt2.c core_algos.py IN.cu " '
    function complain(what) { print FILENAME ":" FNR ": " what; wrong++ }

    # True if there is such a path, seen from the root or from the folder of the file that names it.
    function exists(path, folder) {
        sub(/^\.\//, "", path)
        sub(/[:.,]+$/, "", path)
        sub(/\/$/, "", path)
        if (path in file || path in directory) return 1
        folder = FILENAME
        if (!sub(/\/[^\/]*$/, "", folder)) folder = ""
        while (path ~ /^\.\.\//) {
            path = substr(path, 4)
            if (!sub(/\/[^\/]*$/, "", folder)) folder = ""
        }
        path = folder == "" ? path : folder "/" path
        return path in file || path in directory
    }
    # True for X.c, NAME, X_*.c, step_%d, which name no single file, for .o and .so files, which
    # exist only after a build, and for toys, which a page lets its reader write.
    function stands_for_many(path) {
        if (path ~ /\.s?o$|_toy\./) return 1
        return path ~ /[*%<>{}$@]|\.\.\.$|(^|[\/_.])(X|NAME|DIR|FILE|DTYPE)([\/_.]|$)/
    }

    # Every word of a comment, a string or a page that begins with one of our folders.
    function look_for_paths(line, path) {
        while (match(line, before folder "/[A-Za-z0-9_./*%<{$@-]*")) {
            path = substr(line, RSTART, RLENGTH)
            line = substr(line, RSTART + RLENGTH)
            sub(/^[^a-z]/, "", path)
            if (!stands_for_many(path) && !exists(path)) complain("there is no " path)
        }
    }
    # Names of files without a folder (`objectives.c`): a file of that name must be somewhere.
    function look_for_names(line, word) {
        while (match(line, before "[A-Za-z0-9_]+[.](c|cu|cuh|md|sh|py|mk)" behind)) {
            word = substr(line, RSTART, RLENGTH)
            line = substr(line, RSTART + RLENGTH - 1)
            gsub(/^[^A-Za-z0-9_]+|[^A-Za-z0-9_]+$/, "", word)
            if (!stands_for_many(word) && !(word in base) && !index(foreign, " " word " "))
                complain("there is no file called " word)
        }
    }
    function look_for_links(line, path) {
        while (match(line, /\]\([^)]*\)/)) {
            path = substr(line, RSTART + 2, RLENGTH - 3)
            line = substr(line, RSTART + RLENGTH)
            sub(/#.*/, "", path)
            if (path == "" || path ~ /^[a-z]+:/) continue
            if (!exists(path)) complain("the link leads nowhere: " path)
        }
    }

    BEGIN {
        folder = "(llmc|test|dev|doc|scripts|experiments)"
        before = "(^|[^]A-Za-z0-9_./)}$*%<>-])"
        behind = "([^A-Za-z0-9_./*(=-]|[.,:]?$|[.] )"
    }
    FILENAME == "-" {
        file[$0]; path = $0; n = split($0, part, "/"); base[part[n]]
        while (sub(/\/[^\/]*$/, "", path)) directory[path]
        next
    }
    FNR == 1 { start = 0; page = FILENAME ~ /\.md$/; code = FILENAME ~ /\.([ch]|cc|cu|cuh)$/ }
    FNR == 701 { complain("more than 700 lines") }
    {
        columns = $0
        gsub(/[\200-\277]/, "", columns)
        if (length(columns) > 100 && !(page && /^ *\|/) && $0 !~ /^[^ ]+$/)
            complain(length(columns) " columns")
        look_for_paths($0)
        if (page) look_for_links($0)
        if (page || /\/\*|^ *\*|^   [^;{}]*$|\/\/|^ *#[^i]/) look_for_names($0)
    }
    # A function: from the line that begins with its type to the brace in the first column.
    code && /^[A-Za-z_]/ && !/[;:]$/ { if (!start) start = FNR }
    code && /;$/ && !/^ / { start = 0 }
    code && /^}/ {
        if (start && /^} *(\/\*.*)?$/ && FNR - start + 1 > 80)
            complain("a function of " FNR - start + 1 " lines")
        start = 0
    }
    code && /^$/ && start && FNR == start + 1 { start = 0 }
    END { if (wrong) print wrong " things to mend (scripts/check_style.sh)"; exit wrong > 0 }' \
        - $(cat "${TMPDIR:-/tmp}/style.$$")
