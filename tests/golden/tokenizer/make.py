"""A tiny SentencePiece BPE vocabulary as a GGUF file, and SentencePiece's own encodings of awkward strings.

python3 make.py   (packages sentencepiece, gguf)
"""

import json
import tempfile
from pathlib import Path

import gguf
import sentencepiece as spm

HERE = Path(__file__).parent
TEXT = """The lighthouse had been dark for twenty years when the keeper's daughter came back. She was not alone.
In the morning, fog; in the evening, fog again. "Who's there?" she asked, and nobody answered. 12 345 numbers, 3.14 too.
Das alte Haus am See war leer. L'été revient, naïve et doré. El niño corrió por la mañana.
def main(): print("hello, world")  # comment
""" * 20
with tempfile.TemporaryDirectory() as folder:
    text, prefix = Path(folder) / "text", str(Path(folder) / "m")
    text.write_text(TEXT)
    spm.SentencePieceTrainer.train(input=str(text), model_prefix=prefix, model_type="bpe", vocab_size=500, byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True, minloglevel=2)
    model = spm.SentencePieceProcessor(model_file=prefix + ".model")
count = model.get_piece_size()
kinds = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in range(count)]
writer = gguf.GGUFWriter(HERE / "sentencepiece.gguf", "llama")
writer.add_tokenizer_model("llama")
writer.add_token_list([model.id_to_piece(i) for i in range(count)])
writer.add_token_scores([model.get_score(i) for i in range(count)])
writer.add_token_types(kinds)
writer.add_bos_token_id(model.bos_id())
writer.add_eos_token_id(model.eos_id())
writer.add_unk_token_id(model.unk_id())
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
STRINGS = ["The lighthouse", "hello, world", " leading space", "  two", "a  b   c", "line\nbreak\n\nand more", "tab\there", "été", "naïve café", "日本語 text", "emoji 🦀🔥!", "12 345", "3.14159", "", "x", "The keeper's daughter, who's there?", "def main():\n    print(1)", "ALL CAPS", "mixed🙂words", "trailing "]
cases = [{"text": s, "ids": model.encode(s), "decoded": model.decode(model.encode(s))} for s in STRINGS]
(HERE / "sentencepiece.json").write_text(json.dumps(cases, ensure_ascii=False, indent=0) + "\n")
