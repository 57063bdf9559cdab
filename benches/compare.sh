# !/usr/bin/env bash Compares plain greedy decoding of SmolLM2-135M-Instruct in f32 on the CPU: esamp, PyTorch
# (transformers' Llama with its cache) and candle (candle-transformers' Llama with its cache), with the same weights,
# prompt and lengths, interleaved.
#
#     benches/compare.sh [--rows 1,16,64] [--rounds N] [--tokens N]
#
# Installs PyTorch (from PyPI, 2.5 GB) and candle (from crates.io) under target/compare and writes nowhere else.
# Needs a Rust toolchain, Python 3 with venv, and 4 GB of memory.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$PWD/target/compare
mkdir -p "$folder"

echo "== esamp" >&2
cargo bench -p esamp --bench decode --no-run --message-format=json |
    python3 -c '
import json, sys
lines = (json.loads(line) for line in sys.stdin)
print([line["executable"] for line in lines if line.get("executable")][-1])' > "$folder/esamp"
esamp=$(cat "$folder/esamp")
gguf=$("$esamp" --print-model)

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
    "torch=$python benches/compare/torch_llama.py serve $folder/model" \
    "candle=$folder/candle/release/compare-candle $folder/model"
