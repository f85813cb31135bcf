#!/bin/sh
# Finds what the build needs by compiling, linking and running a probe of each, and installs only
# what a probe did not find (apt-get, as root or through sudo without a password).
#
#   scripts/install_deps.sh [--check | --tests | --fuzz] [--found FILE]
#     --check        what the CPU's tests need too
#     --tests        what all tests need, the simulator's too
#     --fuzz         what `make fuzz` needs; CC is clang
#     --found FILE   write where BLAS was found, as make variables
#   CC=clang         the compiler to probe with (default cc)
#   NO_INSTALL=1     never install: print the command, exit 2
set -u

CC=${CC:-cc}
tests=no
found=
while [ $# -gt 0 ]; do
    case $1 in
    --check) tests=cpu ;;
    --tests) tests=all ;;
    --fuzz) tests=fuzz CC=clang ;;
    --found) found=${2:?--found needs a file}; shift ;;
    *) echo "install_deps.sh: unknown argument $1" >&2; exit 2 ;;
    esac
    shift
done

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
missing=
blas_cflags=
blas_libs=

# probe FLAGS...: does the program on standard input compile, link and exit 0?
probe() {
    cat >"$work/probe.c"
    # CC may hold words ("ccache gcc").
    $CC "$work/probe.c" -o "$work/probe" "$@" >"$work/log" 2>&1 && "$work/probe" >>"$work/log" 2>&1
}

probe_compiler() {
    echo 'int main(void) { return 0; }' | probe
}

probe_make() {
    command -v make >/dev/null
}

probe_openmp() {
    probe -fopenmp <<'END'
#include <omp.h>
int main(void) {
    int n = 0;
#pragma omp parallel reduction(+ : n)
    n++;
    return n == 0 || omp_get_max_threads() < 1;
}
END
}

# The OpenMP flavour of OpenBLAS (openblas_get_parallel() is 2): the pthread flavour would run its
# own threads inside each of ours. Plain -lopenblas may be either, so the folder goes first.
probe_openblas() {
    for library in /usr/lib/*/openblas-openmp; do
        triplet=${library#/usr/lib/}
        try_openblas "-I/usr/include/${triplet%/*}/openblas-openmp" \
            "-L$library -Wl,-rpath,$library -lopenblas" && return
    done
    try_openblas "-I/usr/include/openblas" "-lopenblaso" || try_openblas "" "-lopenblas"
}

try_openblas() {
    blas_cflags=$1
    blas_libs=$2
    # The flags are words on purpose.
    probe $blas_cflags -fopenmp $blas_libs <<'END'
#include <cblas.h>
int main(void) {
    float x[2] = {3, 4};
    return !(openblas_get_parallel() == 2 && cblas_sdot(2, x, 1, x, 1) == 25);
}
END
}

probe_cjson() {
    probe -lcjson <<'END'
#include <cjson/cJSON.h>
int main(void) { return cJSON_CreateNull() == 0; }
END
}

probe_pcre2() {
    probe -lpcre2-8 <<'END'
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
int main(void) {
    int error;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR) "\\p{L}+", PCRE2_ZERO_TERMINATED,
                                     PCRE2_UTF | PCRE2_UCP, &error, &at, 0);
    pcre2_match_data *data = code ? pcre2_match_data_create(1, 0) : 0;
    return !data || pcre2_match(code, (PCRE2_SPTR) "1x", 2, 0, 0, data, 0) < 1;
}
END
}

probe_utf8proc() {
    probe -lutf8proc <<'END'
#include <utf8proc.h>
int main(void) { return utf8proc_category('a') != UTF8PROC_CATEGORY_LL; }
END
}

probe_cmocka() {
    probe -lcmocka <<'END'
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
static void test(void **state) { (void)state; assert_true(1); }
int main(void) {
    const struct CMUnitTest all[] = {cmocka_unit_test(test)};
    return cmocka_run_group_tests(all, 0, 0);
}
END
}

# The CUDA simulator's builds: clang++ for the race checker, g++ with AddressSanitizer.
probe_clangxx() {
    echo 'int main() { return 0; }' >"$work/probe.cc"
    clang++ -std=c++17 "$work/probe.cc" -o "$work/probe" >"$work/log" 2>&1
}

probe_gxx() {
    echo 'int main() { return 0; }' >"$work/probe.cc"
    g++ -std=c++17 -fsanitize=address,undefined "$work/probe.cc" -o "$work/probe" >"$work/log" 2>&1
}

# libFuzzer and the sanitizers' libraries, which distributions pack apart from clang.
probe_fuzzer() {
    probe -fsanitize=fuzzer,address,undefined <<'END'
#include <stddef.h>
#include <unistd.h>
int LLVMFuzzerTestOneInput(const unsigned char *data, size_t size) {
    (void)data, (void)size;
    _exit(0);
}
END
}

# need PACKAGE WHY PROBE: notes the package unless the probe succeeds.
need() {
    $3 && return
    echo "missing: $2 (Debian package $1)" >&2
    case " $missing " in *" $1 "*) ;; *) missing="$missing $1" ;; esac
}

# Without a compiler no library can be probed, so it is looked for (and installed) first.
look_for_tools() {
    case $CC in
    *clang*) need clang "the compiler $CC" probe_compiler ;;
    *) need build-essential "the compiler $CC" probe_compiler ;;
    esac
    need make "make" probe_make
}

look_for_libraries() {
    case $CC in
    *clang*) need libomp-dev "OpenMP for $CC" probe_openmp ;;
    *) need build-essential "OpenMP for $CC" probe_openmp ;;
    esac
    need libopenblas-openmp-dev "OpenBLAS, OpenMP flavour: matrix products" probe_openblas
    need libcjson-dev "cJSON: options, checkpoints" probe_cjson
    need libpcre2-dev "PCRE2: the patterns of tokenizers and rewards" probe_pcre2
    need libutf8proc-dev "utf8proc: Unicode normal forms, for tokenizers" probe_utf8proc
    [ $tests = no ] && return
    if [ $tests = fuzz ]; then
        need libclang-rt-dev "libFuzzer of clang" probe_fuzzer
        return
    fi
    need libcmocka-dev "cmocka: the tests" probe_cmocka
    [ $tests = cpu ] && return
    need build-essential "g++ with AddressSanitizer: CUDA kernels in the simulator" probe_gxx
    need clang "clang++: CUDA kernels in the simulator" probe_clangxx
}

# Installs $missing, or prints the command and exits 2.
install_missing() {
    as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo -n"
    if [ "${NO_INSTALL:-}" = 1 ] || ! command -v apt-get >/dev/null ||
        { [ -n "$as_root" ] && ! sudo -n true 2>/dev/null; }; then
        echo "install with:  sudo apt-get update && sudo apt-get install -y$missing" >&2
        command -v apt-get >/dev/null ||
            echo "(or what your system calls these packages; it has no apt-get)" >&2
        exit 2
    fi
    echo "installing with apt-get:$missing" >&2
    $as_root apt-get update -qq >&2
    $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing >&2 && return
    echo "apt-get could not install them; by hand:" \
        "sudo apt-get update && sudo apt-get install -y$missing" >&2
    exit 2
}

for look in look_for_tools look_for_libraries; do
    missing=
    $look
    [ -z "$missing" ] && continue
    install_missing
    missing=
    $look
    if [ -n "$missing" ]; then
        echo "still missing after the installation; the last probe said:" >&2
        cat "$work/log" >&2
        exit 1
    fi
done

if [ -n "$found" ]; then
    mkdir -p "$(dirname "$found")"
    printf 'BLAS_CFLAGS := %s\nBLAS_LIBS := %s\n' "$blas_cflags" "$blas_libs" >"$found"
fi
