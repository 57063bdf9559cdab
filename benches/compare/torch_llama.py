"""Plain greedy decoding with transformers' Llama on PyTorch, f32 on the CPU, for benches/compare.sh.

`torch_llama.py export GGUF FOLDER` writes the model's weights in f32 as FOLDER/model.safetensors.
`torch_llama.py serve FOLDER` prints `ready` and then answers each line `ROWS PROMPT_IDS NEW_TOKENS` (ids separated by commas)
with `SECONDS TOKENS`: the time of the decode steps alone, and the new tokens of the first row.
"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DynamicCache


def export(gguf: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # `save_pretrained` refuses models loaded from quantised files, although the weights are plain f32 here.
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    del weights["lm_head.weight"]  # tied to the embedding
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, default=str))


@torch.inference_mode()
def generate(model, rows: int, prompt: list[int], new_tokens: int) -> tuple[float, list[int]]:
    cache = DynamicCache(config=model.config)
    inputs = torch.tensor([prompt] * rows)
    logits = model(inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    tokens, seconds = [], 0.0
    for step in range(new_tokens):
        started = time.perf_counter()
        if step > 0:
            last = torch.full((rows, 1), tokens[-1])
            logits = model(last, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens.append(int(logits[:, -1].argmax(-1)[0]))
        if step > 1:
            seconds += time.perf_counter() - started
    return seconds, tokens


def serve(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", file=sys.stderr)
    print("ready", flush=True)
    for line in sys.stdin:
        rows, prompt, new_tokens = line.split()
        prompt = [int(token) for token in prompt.split(",")]
        seconds, tokens = generate(model, int(rows), prompt, int(new_tokens))
        print(seconds, ",".join(map(str, tokens)), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["export", gguf, folder]:
            export(Path(gguf), Path(folder))
        case ["serve", folder]:
            serve(Path(folder))
        case other:
            sys.exit(f"expected `export GGUF FOLDER` or `serve FOLDER`, got {other}")
