"""Tiny models with random weights, one GGUF file per architecture.

python3 make.py   (packages gguf, numpy)

Matrices are quantised: Q8_0, or Q4_1 where the name of the file ends in -q4_1. The files named refused-* describe models
that must be refused: one with a recurrent state, one with soft-capped logits, an encoder, and one whose deep state has no
name in llama.cpp's graph.
"""

from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFWriter, TokenType, quantize

HERE = Path(__file__).parent
LAYERS, WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, EXPERTS = 2, 64, 4, 2, 16, 96, 4
MERGES = ["Ġ t", "h e", "i n", "Ġ a", "e r", "o n", "r e", "Ġt he", "Ġ s", "a t", "Ġ c", "l l", "i g", "h t", "ig ht", "o u", "n d", "Ġa nd"]
# Merges that cross the border between two words of some pre-tokenizer, so that another way to split gives other tokens.
MERGES += ["l C", "P S", "' t", "t '", "N '", "0 0", "00 0", "000 0", "1 2", "12 3", "123 4", "] ;", "; Ġ", "Ċ Ċ", "Ġ Ġ", "/ /"]
PIECES = ["▁t", "he", "in", "▁a", "er", "on", "re", "▁the", "▁s", "at", "▁c", "ll", "ig", "ht", "ight", "ou", "nd", "▁and", "00", "▁▁"]


def byte_letters():
    """The letters that stand for the 256 bytes in byte-level vocabularies: printable ones for themselves."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) if byte in kept else chr(256 + others.index(byte)) for byte in range(256)]


def byte_level(writer, pre):
    tokens = byte_letters() + [merge.replace(" ", "") for merge in MERGES]
    types = [TokenType.NORMAL] * len(tokens)
    for text in ["<|begin|>", "<|im_start|>", "<|im_end|>"]:
        tokens.append(text)
        types.append(TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(len(tokens) - 3)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(pre == "llama-bpe")
    return tokens, types


def sentence_piece(writer, prefix):
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.BYTE] * 256
    pieces = PIECES + ["▁", *"etaoinshrdlucmfwypvbgkqjxzTACS.,'!?0123456789"]
    tokens += pieces
    types += [TokenType.NORMAL] * len(pieces)
    writer.add_tokenizer_model("llama")
    writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(pieces))])
    writer.add_add_space_prefix(prefix)
    writer.add_add_bos_token(True)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return tokens, types


class Model:
    def __init__(self, name, architecture, vocabulary, kind=T.Q8_0):
        self.writer, self.kind = GGUFWriter(HERE / f"{name}.gguf", architecture), kind
        self.rng = np.random.default_rng(len(name))
        tokens, types = vocabulary(self.writer)
        self.vocab = len(tokens)
        self.writer.add_token_list(tokens)
        self.writer.add_token_types(types)
        self.writer.add_context_length(512)
        self.writer.add_embedding_length(WIDTH)
        self.writer.add_block_count(LAYERS)
        self.writer.add_head_count(HEADS)
        self.writer.add_head_count_kv(KV_HEADS)
        self.writer.add_layer_norm_rms_eps(1e-6)

    def attention(self, head=HEAD):
        self.writer.add_feed_forward_length(HIDDEN)
        self.writer.add_key_length(head)
        self.writer.add_value_length(head)
        self.writer.add_rope_dimension_count(head)
        self.writer.add_rope_freq_base(10_000.0)

    def matrix(self, name, *shape, scale=1.0):
        values = self.rng.normal(size=shape, scale=scale / shape[-1] ** 0.5).astype(np.float32)
        self.writer.add_tensor(name, quantize(values, self.kind), raw_dtype=self.kind)

    def vector(self, name, *shape, mean=0.0, scale=0.1):
        self.writer.add_tensor(name, self.rng.normal(size=shape, loc=mean, scale=scale).astype(np.float32))

    def ends(self, tied):
        # Logits of a size that a language model has, so that tolerances mean the same.
        self.matrix("token_embd.weight", self.vocab, WIDTH, scale=8.0)
        self.vector("output_norm.weight", WIDTH, mean=1.0)
        if not tied:
            self.matrix("output.weight", self.vocab, WIDTH, scale=4.0)

    def qkv(self, block, bias=False, norm=False, fused=False):
        parts = [("attn_q", HEADS * HEAD), ("attn_k", KV_HEADS * HEAD), ("attn_v", KV_HEADS * HEAD)]
        if fused:
            parts = [("attn_qkv", (HEADS + 2 * KV_HEADS) * HEAD)]
        for part, rows in parts:
            self.matrix(f"blk.{block}.{part}.weight", rows, WIDTH)
            if bias:
                self.vector(f"blk.{block}.{part}.bias", rows)
        self.matrix(f"blk.{block}.attn_output.weight", WIDTH, HEADS * HEAD)
        if norm:
            for part in ["attn_q_norm", "attn_k_norm"]:
                self.vector(f"blk.{block}.{part}.weight", HEAD, mean=1.0)

    def norms(self, block, *names):
        for name in names:
            self.vector(f"blk.{block}.{name}.weight", WIDTH, mean=1.0)

    def mlp(self, block, fused=False):
        for part in [] if fused else ["ffn_gate"]:
            self.matrix(f"blk.{block}.{part}.weight", HIDDEN, WIDTH)
        self.matrix(f"blk.{block}.ffn_up.weight", 2 * HIDDEN if fused else HIDDEN, WIDTH)
        self.matrix(f"blk.{block}.ffn_down.weight", WIDTH, HIDDEN)

    def experts(self, block, hidden, bias=False):
        # The router stays exact, as in real files. A choice that rounding could change would hide other faults.
        self.vector(f"blk.{block}.ffn_gate_inp.weight", EXPERTS, WIDTH, scale=1.0)
        for part, rows, columns in [("ffn_gate_exps", hidden, WIDTH), ("ffn_up_exps", hidden, WIDTH), ("ffn_down_exps", WIDTH, hidden)]:
            self.matrix(f"blk.{block}.{part}.weight", EXPERTS, rows, columns)
            if bias:
                self.vector(f"blk.{block}.{part}.bias", EXPERTS, rows)
        if bias:
            self.vector(f"blk.{block}.ffn_gate_inp.bias", EXPERTS)

    def write(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def dense(name, architecture, vocabulary, tied, kind=T.Q8_0, bias=False, norm=False, fused=False):
    model = Model(name, architecture, vocabulary, kind)
    model.attention()
    model.ends(tied)
    for block in range(LAYERS):
        model.norms(block, "attn_norm", "ffn_norm")
        model.qkv(block, bias, norm, fused)
        model.mlp(block, fused)
    model.write()


def granite():
    model = Model("granite", "granite", lambda writer: byte_level(writer, "gpt-2"))
    model.attention()
    model.writer.add_logit_scale(4.0)
    model.ends(tied=False)
    for block in range(LAYERS):
        model.norms(block, "attn_norm", "ffn_norm")
        model.qkv(block)
        model.mlp(block)
    model.write()


def plamo3():
    model = Model("refused-no-result-norm", "plamo3", lambda writer: byte_level(writer, "gpt-2"))
    model.attention()
    model.ends(tied=True)
    for block in range(LAYERS):
        model.norms(block, "attn_norm", "ffn_norm")
        model.qkv(block, norm=True, fused=True)
        model.mlp(block, fused=True)
        for part in ["post_attention_norm", "post_ffw_norm"]:
            model.vector(f"blk.{block}.{part}", WIDTH, mean=1.0)
    model.write()


def gemma3(name, soft_cap=None):
    model = Model(name, "gemma3", lambda writer: sentence_piece(writer, False))
    model.attention()
    model.writer.add_sliding_window(8)
    if soft_cap:
        model.writer.add_final_logit_softcapping(soft_cap)
    model.ends(tied=True)
    for block in range(LAYERS):
        model.norms(block, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
        model.qkv(block, norm=True)
        model.mlp(block)
    model.write()


def mixture(name, pre, mlp_norm, norm=False, bias=False, sinks=False, sliding_window=None):
    """A mixture of experts."""
    model = Model(name, name, lambda writer: byte_level(writer, pre))
    model.attention()
    model.writer.add_expert_count(EXPERTS)
    model.writer.add_expert_used_count(2)
    model.writer.add_expert_feed_forward_length(32)
    if sliding_window:
        model.writer.add_sliding_window(sliding_window)
    model.ends(tied=False)
    for block in range(LAYERS):
        model.norms(block, "attn_norm", mlp_norm)
        model.qkv(block, bias, norm)
        if sinks:
            model.vector(f"blk.{block}.attn_output.bias", WIDTH)
            model.vector(f"blk.{block}.attn_sinks.weight", HEADS, scale=1.0)
        model.experts(block, 32, bias)
    model.write()


def mamba():
    model = Model("refused-mamba", "mamba", lambda writer: byte_level(writer, "gpt-2"))
    inner, state, convolution, rank = 2 * WIDTH, 4, 4, 4
    model.writer.add_ssm_conv_kernel(convolution)
    model.writer.add_ssm_inner_size(inner)
    model.writer.add_ssm_state_size(state)
    model.writer.add_ssm_time_step_rank(rank)
    model.writer.add_feed_forward_length(0)
    model.ends(tied=True)
    for block in range(LAYERS):
        model.norms(block, "attn_norm")
        model.matrix(f"blk.{block}.ssm_in.weight", 2 * inner, WIDTH)
        model.vector(f"blk.{block}.ssm_conv1d.weight", inner, convolution)
        model.vector(f"blk.{block}.ssm_conv1d.bias", inner)
        model.matrix(f"blk.{block}.ssm_x.weight", rank + 2 * state, inner)
        model.vector(f"blk.{block}.ssm_dt.weight", inner, rank)
        model.vector(f"blk.{block}.ssm_dt.bias", inner)
        model.vector(f"blk.{block}.ssm_a", inner, state, mean=-1.0)
        model.vector(f"blk.{block}.ssm_d", inner, mean=1.0)
        model.matrix(f"blk.{block}.ssm_out.weight", WIDTH, inner)
    model.write()


def bert():
    model = Model("refused-bert", "bert", lambda writer: byte_level(writer, "gpt-2"))
    model.writer.add_feed_forward_length(HIDDEN)
    model.writer.add_layer_norm_eps(1e-6)
    model.writer.add_causal_attention(False)
    model.writer.add_token_type_count(2)
    model.vector("token_types.weight", 2, WIDTH)
    model.matrix("token_embd.weight", model.vocab, WIDTH)
    model.matrix("position_embd.weight", 512, WIDTH)
    model.vector("token_embd_norm.weight", WIDTH, mean=1.0)
    model.vector("token_embd_norm.bias", WIDTH)
    for block in range(LAYERS):
        for part in ["attn_q", "attn_k", "attn_v", "attn_output"]:
            rows = WIDTH if part in ("attn_q", "attn_output") else KV_HEADS * HEAD
            model.matrix(f"blk.{block}.{part}.weight", rows, WIDTH)
            model.vector(f"blk.{block}.{part}.bias", rows)
        for part, rows, columns in [("ffn_up", HIDDEN, WIDTH), ("ffn_down", WIDTH, HIDDEN)]:
            model.matrix(f"blk.{block}.{part}.weight", rows, columns)
            model.vector(f"blk.{block}.{part}.bias", rows)
        for part in ["attn_output_norm", "layer_output_norm"]:
            model.vector(f"blk.{block}.{part}.weight", WIDTH, mean=1.0)
            model.vector(f"blk.{block}.{part}.bias", WIDTH)
    model.write()


dense("llama", "llama", lambda writer: byte_level(writer, "llama-bpe"), tied=False)
dense("llama-q4_1", "llama", lambda writer: sentence_piece(writer, True), tied=True, kind=T.Q4_1)
dense("qwen2", "qwen2", lambda writer: byte_level(writer, "qwen2"), tied=True, bias=True)
dense("qwen3", "qwen3", lambda writer: byte_level(writer, "qwen2"), tied=True, norm=True)
dense("phi3", "phi3", lambda writer: sentence_piece(writer, True), tied=False, fused=True)
gemma3("gemma3")
gemma3("refused-soft-cap", soft_cap=30.0)
mixture("qwen3moe", "qwen2", "ffn_norm", norm=True)
mixture("gpt-oss", "gpt-4o", "post_attention_norm", bias=True, sinks=True, sliding_window=8)
granite()
plamo3()
mamba()
bert()
