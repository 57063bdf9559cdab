#!/usr/bin/env bash
# Runs what needs a GPU but no model file: tests/cases on CUDA and Vulkan devices, the overhead bench
# on the reference implementation's workload (`--gpu`), the operations of a forward pass alone, and plain decoding with
# PyTorch for comparison. It can build on one machine and run on another: the machine with the GPU needs no Rust
# toolchain and no network.
#
#   benches/gpu.sh                  builds, packs into target/gpu, and prints what to run on the machine with the GPU
#   benches/gpu.sh vulkan           the same without CUDA
#   benches/gpu.sh run              runs everything: the tests, the bench, PyTorch, and the bench on the CPU
#   benches/gpu.sh run tests        runs only the tests
#   benches/gpu.sh run bench [...]  runs only the bench, with these arguments instead of --gpu
#   benches/gpu.sh run forward [...] runs only the operations of a forward pass, with these arguments instead of both shapes
#   benches/gpu.sh run torch        runs only plain decoding with PyTorch
#   benches/gpu.sh run cpu          runs only the bench on the CPU
#
# Environment:
#   LINK_CUDA  A program that links without LLVM. burn's `cuda` feature links LLVM, which a build script downloads; set
#              this where the download is not possible. It is called as `$LINK_CUDA --bench|--test NAME --features LIST` in
#              this folder, with the same CARGO_TARGET_DIR, and must write the executable where cargo would. The LLVM
#              symbols are never called, because NVRTC compiles the kernels at run time. Default: cargo.
#   OUT        The folder that `run` writes to (default: target/gpu/out). Files are named by card and date: test logs,
#              and figures as JSON Lines and as CSV with the header that benches/record expects.
#   LIMIT      Time limit of `run` in seconds (default: 570, so that all of it ends within ten minutes). What
#              has not run by then is skipped.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
packed=$root/target/gpu

say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'gpu.sh: %s\n' "$*" >&2; exit 1; }

# The newest executable of a cargo target; cargo adds a hash to the name.
newest() {
    find "${CARGO_TARGET_DIR:-target}/release/deps" -maxdepth 1 -type f -executable -name "$1-*" -printf '%T@ %p\n' | sort -rn | head -n 1 | cut -d' ' -f2-
}

gather() { # NAME
    local file
    file=$(newest "$1")
    [ -n "$file" ] || fail "expected an executable of $1 from cargo, got none"
    mkdir -p "$packed/programs" && cp "$file" "$packed/programs/$1" || fail "$packed/programs: cannot be written"
}

# The programs share most of their code. A window larger than all of them makes three barely larger than one and a half.
compress() {
    say "packing"
    tar c -C "$packed/programs" . | xz -T1 --lzma2=preset=6,dict=512MiB >"$packed/programs.tar.xz" ||
        fail "expected xz to pack $packed/programs, got an error"
    rm -rf "$packed/programs"
}

build() {
    local features=cuda-nvrtc,vulkan cuda=1 link=${LINK_CUDA:-}
    case "${1:-}" in
        "") ;;
        vulkan) features=vulkan cuda=0 ;;
        *) fail "expected nothing, vulkan or run, got $1" ;;
    esac
    export CARGO_INCREMENTAL=0
    rm -rf "$packed" && mkdir -p "$packed" || fail "target/gpu: cannot be created"
    if [ $cuda = 1 ] && [ -n "$link" ] && [ ! -x "$link" ]; then
        fail "LINK_CUDA: expected a program, got $link"
    fi
    [ $cuda = 1 ] || link=""
    # One feature set for all programs, so that burn is built once.
    one() { # --bench|--test NAME
        say "building $2 with $features"
        if [ -n "$link" ]; then
            "$link" "$@" --features "$features"
        else
            cargo rustc --release -p esamp "$@" --features "$features" -- -C strip=symbols
        fi || fail "$2 could not be built"
        gather "$2"
    }
    one --bench overhead
    one --bench forward
    one --test on_vulkan
    [ $cuda = 0 ] || one --test on_cuda
    compress

    # Pack the Vulkan loader and the libraries that NVIDIA's driver links with, for machines that have only a driver.
    (cd "$packed" && apt-get download libvulkan1 libegl1 libglvnd0 libopengl0 libgl1 libglx0 libgles2 >/dev/null 2>&1) ||
        say "no libvulkan1 from apt: the machine with the GPU needs its own Vulkan loader"
    git rev-parse --short HEAD >"$packed/commit" 2>/dev/null || echo unknown >"$packed/commit"

    local tree size
    tree=$(git ls-files -co --exclude-standard -z | xargs -0 du -cb 2>/dev/null | tail -n 1 | cut -f1)
    size=$(($(du -sb "$packed" | cut -f1) + ${tree:-0}))
    cat <<TEXT
$size bytes of files and programs. Copy this checkout, including target/gpu, to a machine with a GPU and run there:

    benches/gpu.sh run
TEXT
}

unpack() {
    tar xJf "$packed/programs.tar.xz" -C "$work" 2>/dev/null ||
        python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$packed/programs.tar.xz" "$work" ||
        fail "programs.tar.xz: cannot be unpacked"
}

# The seconds left until `deadline`, between 1 and $1.
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
    [ -e "$work/on_$1" ] || { wrong "on_$1: not packed, so nothing was tested"; return; }
    say "tests on $1"
    timeout "$(left "$2")" "$work/on_$1" --test-threads=4 >"$log" 2>&1
    status=$?
    grep -E '^(test result|no .* device)|FAILED|panicked' "$log"
    [ $status = 0 ] && grep -q '^test result: ok' "$log" || wrong "on_$1: status $status; some tests failed or did not run (see $(basename "$log"))"
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
    [ $status = 0 ] || wrong "overhead $*: status $status; the output holds what finished before that"
    python3 - "$lines" "$OUT/$card-$date-$name.csv" "$card" "$date" "$commit" "overhead --json $*" <<'PYTHON'
import csv, json, sys
lines, table, card, date, commit, command = sys.argv[1:]
figures = [json.loads(line) for line in open(lines) if line.startswith("{")]
keys = ["model", "dtype", "device", "config", "rows", "ratio", "q1", "q3", "floor", "floor_flops", "floor_bytes",
        "tokens_per_second_plain", "tokens_per_second_esamp", "updates", "rows_learned", "candidates_per_token",
        "transfers_per_step", "read_whole"]
with open(table, "w", newline="") as file:
    file.write(f"# machine: {card}\n# date: {date}\n# commit: {commit}\n# command: {command}\n# load: nothing else ran\n")
    rows = csv.DictWriter(file, keys, extrasaction="ignore", lineterminator="\n")
    rows.writeheader()
    rows.writerows(figures)
PYTHON
}

run_forward() { # SECONDS ARGUMENTS
    local seconds=$1
    shift
    say "forward $*"
    timeout "$(left "$seconds")" "$work/forward" "$@" 2>&1 | tee -a "$OUT/$card-$date-forward.txt"
    [ "${PIPESTATUS[0]}" = 0 ] || wrong "forward $*: did not finish"
}

run_torch() { # SHAPE SECONDS
    say "PyTorch, $1"
    timeout "$(left "$2")" python3 benches/compare/torch_shapes.py --shape "$1" 2>"$work/torch.err" |
        tee -a "$OUT/$card-$date-torch.jsonl"
    [ "${PIPESTATUS[0]}" = 0 ] || { tail -n 5 "$work/torch.err" >&2; say "PyTorch, $1: no figure"; }
}

run() {
    local what=${1:-all}
    shift $(( $# > 0 ))
    case $what in
        all | tests | bench | forward | torch | cpu) ;;
        *) fail "run: expected tests, bench, forward, torch, cpu or nothing, got $what" ;;
    esac
    [ -d "$packed" ] || fail "expected target/gpu, which benches/gpu.sh creates, got none"
    deadline=$((SECONDS + ${LIMIT:-570}))
    OUT=${OUT:-$packed/out}
    mkdir -p "$OUT"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    date=$(date -u +%F)
    commit=$(cat "$packed/commit")
    card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1 | tr ' ' '-' | tr -cd 'A-Za-z0-9._-')
    card=${card:-unknown-card}
    { nvidia-smi || echo "no nvidia-smi"; } 2>/dev/null | head -n 15

    # Without this the tests look for golden files at the path of the build machine.
    export ESAMP_GOLDEN=$root/tests/golden
    # NVRTC compiles the kernels and needs the headers of the CUDA toolkit.
    export CUDA_PATH=${CUDA_PATH:-/usr/local/cuda}
    local nvrtc
    nvrtc=$(find "$CUDA_PATH"/ /usr/lib /opt -name 'libnvrtc.so*' -printf '%h\n' 2>/dev/null | head -n 1)
    [ -n "$nvrtc" ] || say "no libnvrtc.so under $CUDA_PATH, /usr/lib and /opt: CUDA will not start"
    export LD_LIBRARY_PATH=$nvrtc${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
    if ! ldconfig -p | grep -q 'libvulkan\.so'; then
        for deb in "$packed"/*.deb; do [ -e "$deb" ] && dpkg -x "$deb" /; done
        ldconfig
    fi
    # Some containers mount the driver's manifest here, where the loader does not look.
    local driver=/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json
    [ ! -e "$driver" ] || export VK_DRIVER_FILES=${VK_DRIVER_FILES:-$driver}

    unpack
    if [ "$what" = bench ] && [ $# -gt 0 ]; then
        run_bench overhead 560 "$@"
        exit $failed
    fi
    if [ "$what" = forward ] && [ $# -gt 0 ]; then
        run_forward 560 "$@"
        exit $failed
    fi
    wanted() { [ "$what" = all ] || [ "$what" = "$1" ]; }
    # The most important runs come first, in case the time runs out.
    if [ -e "$work/on_cuda" ]; then
        ! wanted tests || run_tests cuda 150
        ! wanted bench || run_bench overhead 160 --gpu --rounds 1 --tokens 64
        ! wanted bench || run_bench overhead-whole-logits 40 --gpu --rounds 1 --tokens 32 --whole-logits
        ! wanted forward || run_forward 60 --device cuda --dtype bf16 --model 7b --rows 128
        ! wanted forward || run_forward 30 --device cuda --dtype bf16 --model 0.5b --rows 128
    fi
    if wanted torch; then
        run_torch 7b 60
        run_torch 0.5b 40
    fi
    ! wanted tests || run_tests vulkan 90
    ! wanted cpu || run_bench overhead-cpu 60 --device flex --model 135m --groups 1x1,1x16,4x16 --filter min-p --rounds 3 --tokens 32
    ! wanted bench || run_bench overhead-vulkan 60 --device vulkan --dtype f32 --model 0.5b --groups 8x16 --distiller low-rank --filter min-p --rounds 1 --tokens 32
    exit $failed
}

if [ "${1:-}" = run ]; then
    shift
    run "$@"
else
    build "$@"
fi
