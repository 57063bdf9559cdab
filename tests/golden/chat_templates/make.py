"""Renders expressions and templates as transformers does, into cases.json.

    pip install transformers jinja2
    python tests/golden/chat_templates/make.py

Every case is a template, the conversation is CONVERSATION, and the text is null where transformers raises an error.
"""

import json
import pathlib

from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello <b>world</b> & 'é'\n"},
    {"role": "assistant", "content": "42"},
]


def render(source):
    try:
        texts, _ = render_jinja_template(
            [CONVERSATION],
            chat_template=source,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        )
        return texts[0]
    except Exception as error:
        return None


cases = [{"template": line, "text": render(line)} for line in (HERE / "expressions.txt").read_text().split("\n") if line]
for path in sorted(HERE.glob("*.jinja")):
    source = path.read_text()
    cases.append({"file": path.name, "text": render(source)})
(HERE / "cases.json").write_text(json.dumps(cases, indent=0, ensure_ascii=False) + "\n")
