"""Plain decoding of a Qwen2 shape with random weights on a GPU, with transformers on PyTorch, for benches/gpu.sh.

    torch_shapes.py [--shape 7b|0.5b|tiny] [--rows N] [--prompt N] [--tokens N] [--rounds N] [--device cuda] [--dtype bfloat16]

Eager mode with a static cache. Every token is drawn after min-p 0.05 at temperature 1 and copied to the host. Prints one JSON
object with the tokens per second of the decode steps alone, per round and as a median.
"""

import argparse
import json
import statistics
import time

import torch
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache

SHAPES = {
    "7b": dict(
        hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
        vocab_size=152064, tie_word_embeddings=False,
    ),
    "0.5b": dict(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    ),
    "tiny": dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, tie_word_embeddings=True,
    ),
}


def draw(logits: torch.Tensor) -> torch.Tensor:
    probabilities = logits.float().softmax(-1)
    threshold = 0.05 * probabilities.max(-1, keepdim=True).values
    return torch.multinomial(probabilities.where(probabilities >= threshold, 0.0), 1)


@torch.inference_mode()
def generate(model, args, wait) -> float:
    cache = StaticCache(config=model.config, max_cache_len=args.prompt + args.tokens)
    tokens = torch.randint(model.config.vocab_size, (args.rows, args.prompt), device=args.device)
    seconds = 0.0
    for step in range(args.tokens):
        if step == 2:  # the prefill and the first step are not timed
            wait()
            started = time.perf_counter()
        begin = 0 if step == 0 else args.prompt + step - 1
        position = torch.arange(begin, begin + tokens.shape[1], device=args.device)
        out = model(
            tokens, past_key_values=cache, use_cache=True, logits_to_keep=1,
            position_ids=position[None].expand(args.rows, -1), cache_position=position,
        )
        tokens = draw(out.logits[:, -1])
        tokens.cpu()  # a serving loop needs them on the host
    wait()
    seconds = time.perf_counter() - started
    return args.rows * (args.tokens - 2) / seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = Qwen2Config(rope_theta=1e6, max_position_embeddings=32768, **SHAPES[args.shape])
    dtype = getattr(torch, args.dtype)
    torch.set_default_dtype(dtype)
    with torch.device(args.device):
        model = Qwen2ForCausalLM(config).to(dtype).eval()
    wait = torch.cuda.synchronize if args.device == "cuda" else (lambda: None)
    speeds = [generate(model, args, wait) for _ in range(args.rounds + 1)][1:]
    print(
        json.dumps(
            dict(
                what="plain decode, PyTorch eager, static cache", shape=args.shape, rows=args.rows, tokens=args.tokens,
                dtype=args.dtype, device=args.device, torch=torch.__version__, transformers=transformers.__version__,
                tokens_per_second=round(statistics.median(speeds), 1), rounds=[round(s, 1) for s in speeds],
            )
        ),
        flush=True,
    )


main()
