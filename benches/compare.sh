#!/usr/bin/env bash
# Compares plain greedy decoding of SmolLM2-135M-Instruct on the CPU, with the same prompt and lengths, interleaved:
# esamp and llama.cpp with the quantised weights of the same GGUF file, and PyTorch (transformers' Llama with its cache) and
# candle (candle-transformers' Llama with its cache) with the same weights in f32. `esamp-low-rank` is esamp again, sampling
# with min-p .05 and steered by a distiller that learns from every row.
#
#     benches/compare.sh [--rows 1,4,16,64] [--rounds N] [--tokens N]
#
# LLAMA_CPP_CPU: the CPU that llama.cpp is compiled for, as in rustc's target-cpu [default: icelake-server if this CPU
# has AVX-512 with VNNI, otherwise none, which means AVX2]. esamp needs no such setting: it selects its instructions at
# run time.
#
# Installs PyTorch (from PyPI, 2.5 GB) and candle (from crates.io) under target/compare and writes nowhere else.
# Needs a Rust toolchain, cmake, clang, Python 3 with venv, and 4 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/target/compare
mkdir -p "$folder"

last_executable='
import json, sys
lines = (json.loads(line) for line in sys.stdin)
print([line["executable"] for line in lines if line.get("executable")][-1])'

echo "== esamp" >&2
cargo bench -p esamp --bench decode --no-run --message-format=json |
    python3 -c "$last_executable" > "$folder/esamp"
esamp=$(cat "$folder/esamp")
gguf=$("$esamp" --print-model)

echo "== llama.cpp" >&2
default_cpu=$(grep -q avx512_vnni /proc/cpuinfo && echo icelake-server || true)
cpu=${LLAMA_CPP_CPU-$default_cpu}
RUSTFLAGS=${cpu:+-C target-cpu=$cpu} CARGO_TARGET_DIR=$folder/llama-cpp \
    cargo bench -p esamp-llama-cpp --bench decode --no-run --message-format=json |
    python3 -c "$last_executable" > "$folder/llama"
llama=$(cat "$folder/llama")

echo "== PyTorch" >&2
if ! [ -e "$folder/venv/installed" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet torch transformers accelerate gguf safetensors
    touch "$folder/venv/installed"
fi
python=$folder/venv/bin/python
if ! [ -e "$folder/model/model.safetensors" ]; then
    mkdir -p "$folder/model"
    "$python" benches/compare/torch_llama.py export "$gguf" "$folder/model"
fi

echo "== candle" >&2
CARGO_TARGET_DIR=$folder/candle cargo build --release --quiet --manifest-path benches/compare/candle/Cargo.toml

echo "== $(date -u +%F), $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(nproc) cores, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)" >&2
python3 benches/compare/drive.py "$@" \
    "esamp=$esamp --serve" \
    "esamp-low-rank=$esamp --serve --learn" \
    "llama.cpp=$llama" \
    "llama.cpp-separate=$llama --separate-buffers" \
    "torch=$python benches/compare/torch_llama.py serve $folder/model" \
    "candle=$folder/candle/release/compare-candle $folder/model"
