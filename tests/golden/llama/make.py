"""Tiny random models of the Llama family as Hugging Face folders, with what PyTorch's transformers computes for them.

python3 make.py [NAME...]   (packages torch, transformers, safetensors; without a name, all models)
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
BASE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=96, max_position_embeddings=128, attn_implementation="eager")
SMALL = BASE | dict(num_hidden_layers=1, head_dim=16, num_attention_heads=2, num_key_value_heads=1)
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**BASE, tie_word_embeddings=False), [20, 7], 2, torch.float32),
    "llama3": (LlamaForCausalLM, LlamaConfig(**BASE, tie_word_embeddings=True, rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)), [40, 25], [2, 5], torch.float32),
    "linear_rope": (LlamaForCausalLM, LlamaConfig(**BASE, tie_word_embeddings=False, rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0)), [20, 7], 2, torch.float32),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**BASE, tie_word_embeddings=True), [20, 7], [2, 3], torch.float32),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**BASE, head_dim=16, tie_word_embeddings=False), [20, 7], 2, torch.float32),
    "sharded_bf16": (LlamaForCausalLM, LlamaConfig(**BASE, tie_word_embeddings=False), [20, 7], 2, torch.bfloat16),
    # Prompts longer than the original context, in which YaRN's three ranges of frequencies all occur.
    "yarn": (Qwen2ForCausalLM, Qwen2Config(**SMALL, tie_word_embeddings=True, rope_parameters=dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=64)), [72, 7], 2, torch.bfloat16),
    "yarn_options": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=False, rope_parameters=dict(rope_type="yarn", rope_theta=1000.0, factor=8.0, original_max_position_embeddings=64, beta_fast=6.0, beta_slow=0.5, mscale=1.5, mscale_all_dim=0.5, truncate=False)), [72, 7], 2, torch.bfloat16),
    # Ends at the last position at which dynamic NTK changes nothing.
    "dynamic": (LlamaForCausalLM, LlamaConfig(**SMALL | dict(max_position_embeddings=40), tie_word_embeddings=False, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)), [32, 7], 2, torch.bfloat16),
}
for seed, (name, (cls, config, lengths, eos, dtype)) in enumerate(MODELS.items()):
    if sys.argv[1:] and name not in sys.argv[1:]:
        continue
    torch.manual_seed(seed)
    model = cls(config)
    for parameter_name, parameter in model.named_parameters():
        with torch.no_grad():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            elif "embed" in parameter_name or "lm_head" in parameter_name:
                parameter.normal_(0, 0.7)
            else:
                parameter.normal_(0, 0.3)
    model.generation_config = GenerationConfig(eos_token_id=eos)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, max_shard_size="20KB" if name == "sharded_bf16" else "5GB")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    expected = {}
    for prompt, length in enumerate(lengths):
        ids = torch.randint(6, 96, (1, length))
        with torch.no_grad():
            states = {}
            hooks = [
                model.model.layers[0].register_forward_hook(lambda m, a, o: states.update(block0=o[0] if isinstance(o, tuple) else o)),
                model.model.norm.register_forward_hook(lambda m, a, o: states.update(head=o)),
            ]
            logits = model(ids, use_cache=False).logits[0]
            [hook.remove() for hook in hooks]
            greedy, now = [], ids
            for _ in range(8):
                greedy.append(model(now, use_cache=False).logits[0, -1].argmax())
                now = torch.cat([now, greedy[-1].reshape(1, 1)], 1)
        expected |= {f"prompt{prompt}_ids": ids[0], f"logits{prompt}": logits, f"block0_{prompt}": states["block0"].reshape(length, 32).clone(), f"head_input_{prompt}": states["head"].reshape(length, 32).clone(), f"greedy{prompt}": torch.stack(greedy)}
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    print(name, "logits std", float(logits.std()), sorted(p.name for p in folder.iterdir()))
if not sys.argv[1:]:
    (HERE / "VERSIONS.json").write_text(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__}) + "\n")
