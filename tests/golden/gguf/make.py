"""Random blocks of every GGUF type and what the format's own Python package makes of them.

python3 make.py   (packages gguf, numpy, safetensors)
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize
from safetensors.numpy import save_file

rng = np.random.default_rng(0)
# Where the f16 scales of a block are: random bytes there would be NaN or infinite.
SCALES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
out = {}
for kind in [T.F16, T.BF16, *SCALES]:
    numbers, size = GGML_QUANT_SIZES[kind]
    if kind in (T.F16, T.BF16):
        floats = rng.normal(size=64).astype(np.float32)
        raw = floats.astype(np.float16).view(np.uint8) if kind == T.F16 else (floats.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        expected = floats.astype(np.float16).astype(np.float32) if kind == T.F16 else ((floats.view(np.uint32) >> 16) << 16).view(np.float32)
    else:
        blocks = rng.integers(0, 256, size=(5, size), dtype=np.uint8)
        for at in SCALES[kind]:
            scale = rng.normal(size=(5, 1)).astype(np.float16)
            blocks[:, at : at + 2] = scale.view(np.uint8)
        raw = blocks.reshape(-1)
        expected = dequantize(blocks, kind).reshape(-1).astype(np.float32)
    out[f"{kind.name}.raw"], out[f"{kind.name}.f32"] = raw.copy(), np.ascontiguousarray(expected)
save_file(out, Path(__file__).parent / "blocks.safetensors")
