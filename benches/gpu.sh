#!/usr/bin/env bash
# What needs a GPU and no model file: the cases of tests/cases on a CUDA and a Vulkan device, and the overhead bench on the
# reference's workload (`--gpu`). The machine with the GPU needs neither a Rust toolchain nor a network.
#
#   benches/gpu.sh                  builds on this machine, packs into target/gpu, and prints what to run on the other
#   benches/gpu.sh vulkan           the same without CUDA
#   benches/gpu.sh run              runs there: tests, then the bench, in under 10 minutes
#   benches/gpu.sh run tests        only the tests
#   benches/gpu.sh run bench [...]  only the bench, with these arguments instead of --gpu
#
# CUDA: burn's `cuda` links LLVM, which a build script downloads. Without a network, LINK_CUDA (by default
# ../shared/tools/link-cuda-without-llvm, which is not part of this repository) links a program whose kernels NVRTC compiles.
# Where there is no such tool, plain cargo is tried, and says what it wants.
#
# What `run` finds goes to $OUT (target/gpu/out where that is not set), by card and date: test logs, the figures as JSON Lines
# and as CSV with the header that benches/record wants.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
packed=$root/target/gpu
limit=$((60 * 1024 * 1024)) # what travels to a lent machine may have 64 MiB, its own files with it

say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'gpu.sh: %s\n' "$*" >&2; exit 1; }

# Cargo names executables by a hash: the newest one of a target.
newest() {
    find "${CARGO_TARGET_DIR:-target}/release/deps" -maxdepth 1 -type f -executable -name "$1-*" -printf '%T@ %p\n' | sort -rn | head -n 1 | cut -d' ' -f2-
}

gather() { # NAME
    local file
    file=$(newest "$1")
    [ -n "$file" ] || fail "expected cargo to leave an executable of $1, got none"
    mkdir -p "$packed/programs" && cp "$file" "$packed/programs/$1" || fail "$packed/programs: cannot be written"
}

# The programs share most of what they are: with a window that sees all of them, three take little more room than one and a half.
compress() {
    say "packing"
    tar c -C "$packed/programs" . | xz -T1 --lzma2=preset=6,dict=512MiB >"$packed/programs.tar.xz" ||
        fail "xz: expected it to pack $packed/programs, it failed"
    rm -rf "$packed/programs"
}

build() {
    local features=cuda-nvrtc,vulkan cuda=1 link=${LINK_CUDA:-../shared/tools/link-cuda-without-llvm}
    case "${1:-}" in
        "") ;;
        vulkan) features=vulkan cuda=0 ;;
        *) fail "expected nothing, vulkan or run, got $1" ;;
    esac
    export CARGO_INCREMENTAL=0
    rm -rf "$packed" && mkdir -p "$packed" || fail "target/gpu: cannot be made"
    if [ $cuda = 1 ] && [ ! -x "$link" ]; then
        say "no $link: plain cargo, which downloads LLVM"
        link=""
    fi
    [ $cuda = 1 ] || link=""
    # One set of features, so that burn is built once.
    one() { # --bench|--test NAME
        say "building $2 with $features"
        if [ -n "$link" ]; then
            "$link" "$@" --features "$features"
        else
            cargo rustc --release "$@" --features "$features" -- -C strip=symbols
        fi || fail "$2 could not be built"
        gather "$2"
    }
    one --bench overhead
    one --test on_vulkan
    [ $cuda = 0 ] || one --test on_cuda
    compress

    # A Vulkan loader for a machine that has only a driver.
    (cd "$packed" && apt-get download libvulkan1 >/dev/null 2>&1) || say "no libvulkan1 from apt: the other machine must have a Vulkan loader"
    git rev-parse --short HEAD >"$packed/commit" 2>/dev/null || echo unknown >"$packed/commit"
    echo "$root" >"$packed/root" # where the tests look for tests/golden

    local tree size
    tree=$(git ls-files -co --exclude-standard -z | xargs -0 du -cb 2>/dev/null | tail -n 1 | cut -f1)
    size=$(($(du -sb "$packed" | cut -f1) + ${tree:-0}))
    [ "$size" -lt "$limit" ] || fail "expected files and programs under $limit bytes together, got $size"
    cat <<TEXT
$size bytes of files and programs. On a lent machine (the tool device), from this checkout:

    run {"command": "benches/gpu.sh run", "carry": ["target/gpu"], "timeout_s": 600}

or, for more rounds, two such calls with "benches/gpu.sh run tests" and "benches/gpu.sh run bench --gpu --rounds 5".

On a machine of your own: copy the checkout with target/gpu there, and benches/gpu.sh run.
TEXT
}

unpack() {
    tar xJf "$packed/programs.tar.xz" -C "$work" 2>/dev/null ||
        python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$packed/programs.tar.xz" "$work" ||
        fail "programs.tar.xz: cannot be unpacked"
}

# Seconds until `deadline`, at most $1, at least 1.
left() {
    local rest=$((deadline - SECONDS))
    [ $rest -lt "$1" ] || rest=$1
    [ $rest -ge 1 ] || rest=1
    echo $rest
}

failed=0
wrong() { say "$*"; failed=1; }

run_tests() { # cuda|vulkan SECONDS
    local log=$OUT/$card-$date-tests-$1.txt status
    [ -e "$work/on_$1" ] || { wrong "on_$1: not packed, nothing was tested"; return; }
    say "tests on $1"
    timeout "$(left "$2")" "$work/on_$1" --test-threads=4 >"$log" 2>&1
    status=$?
    grep -E '^(test result|no .* device)|FAILED|panicked' "$log"
    # A program that found no device ends well, and without the harness's last line.
    [ $status = 0 ] && grep -q '^test result: ok' "$log" || wrong "on_$1: status $status, not all was tested and passed (see $(basename "$log"))"
}

run_bench() { # NAME SECONDS ARGUMENTS
    local name=$1 seconds=$2 status
    shift 2
    local lines=$OUT/$card-$date-$name.jsonl
    say "overhead $*"
    timeout "$(left "$seconds")" "$work/overhead" --json "$@" >"$lines" 2>"$lines.err"
    status=$?
    cat "$lines"
    if [ -s "$lines.err" ]; then tail -n 20 "$lines.err" >&2; fi
    rm -f "$lines.err"
    [ $status = 0 ] || wrong "overhead $*: status $status; what is there is what was done by then"
    python3 - "$lines" "$OUT/$card-$date-$name.csv" "$card" "$date" "$commit" "overhead --json $*" <<'PYTHON'
import csv, json, sys
lines, table, card, date, commit, command = sys.argv[1:]
figures = [json.loads(line) for line in open(lines) if line.startswith("{")]
keys = ["model", "dtype", "device", "config", "rows", "ratio", "q1", "q3", "floor", "floor_flops", "floor_bytes",
        "tokens_per_second_plain", "tokens_per_second_esamp", "updates", "rows_learned", "candidates_per_token"]
with open(table, "w", newline="") as file:
    file.write(f"# machine: {card}\n# date: {date}\n# commit: {commit}\n# command: {command}\n# load: a lent machine, nothing else ran\n")
    rows = csv.DictWriter(file, keys, extrasaction="ignore", lineterminator="\n")
    rows.writeheader()
    rows.writerows(figures)
PYTHON
}

run() {
    local what=${1:-all}
    shift $(( $# > 0 ))
    case $what in all | tests | bench) ;; *) fail "run: expected tests, bench or nothing, got $what" ;; esac
    [ -d "$packed" ] || fail "expected target/gpu, which benches/gpu.sh makes, got none"
    deadline=$((SECONDS + 570))
    OUT=${OUT:-$packed/out}
    mkdir -p "$OUT"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    date=$(date -u +%F)
    commit=$(cat "$packed/commit")
    card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr ' ' '-' | tr -cd 'A-Za-z0-9._-')
    card=${card:-unknown-card}
    { nvidia-smi || echo "no nvidia-smi"; } 2>/dev/null | head -n 15

    # The tests read golden files where they were built.
    local built
    built=$(cat "$packed/root")
    if [ ! -e "$built/tests/golden" ]; then
        mkdir -p "$(dirname "$built")" && ln -sfn "$root" "$built" || wrong "$built: cannot be linked to this checkout, golden tests will fail"
    fi
    # NVRTC compiles the kernels, with the toolkit's headers.
    export CUDA_PATH=${CUDA_PATH:-/usr/local/cuda}
    local nvrtc
    nvrtc=$(find "$CUDA_PATH"/ /usr/lib /opt -name 'libnvrtc.so*' -printf '%h\n' 2>/dev/null | head -n 1)
    [ -n "$nvrtc" ] || say "no libnvrtc.so under $CUDA_PATH, /usr/lib and /opt: CUDA will not start"
    export LD_LIBRARY_PATH=$nvrtc${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    if ! ldconfig -p | grep -q 'libvulkan\.so'; then
        for deb in "$packed"/libvulkan1*.deb; do [ -e "$deb" ] && dpkg -x "$deb" / && ldconfig; done
    fi
    local driver=/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json
    [ ! -e "$driver" ] || export VK_DRIVER_FILES=${VK_DRIVER_FILES:-$driver}

    unpack
    if [ "$what" != bench ]; then
        [ -e "$work/on_cuda" ] && run_tests cuda 150
        run_tests vulkan 100
    fi
    if [ "$what" != tests ]; then
        [ -e "$work/overhead" ] || fail "overhead: not packed"
        if [ $# -gt 0 ]; then
            run_bench overhead 560 "$@"
            exit $failed
        fi
        if [ -e "$work/on_cuda" ]; then
            run_bench overhead 480 --gpu --rounds 3
        fi
        run_bench overhead-vulkan 90 --device vulkan --model 0.5b --groups 8x16 --distiller low-rank --filter min-p --rounds 2 --tokens 64
    fi
    exit $failed
}

if [ "${1:-}" = run ]; then
    shift
    run "$@"
else
    build "$@"
fi
