"""Uses a running server through the official Python package of OpenAI.

    python openai_client.py http://127.0.0.1:8000 MODEL

Needs the package `openai`. Ends with an error at the first answer that is not as expected.
"""

import sys

import openai


def main(address: str, model: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

    models = [found.id for found in client.models.list()]
    assert models == [model], models
    assert client.models.retrieve(model).id == model

    # Completions, whole and streamed, with one seed.
    ask = dict(model=model, prompt="Once upon a time", max_tokens=16, n=2, seed=7, stop=["\n\n"])
    whole = client.completions.create(**ask)
    assert [choice.index for choice in whole.choices] == [0, 1], whole
    assert all(choice.finish_reason in ("stop", "length") for choice in whole.choices), whole
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    texts = ["", ""]
    for chunk in client.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices], (texts, whole)
    print("completions:", texts)

    several = client.completions.create(**{**ask, "prompt": ["Once upon a time", "In the beginning"]})
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3], several
    assert [choice.text for choice in several.choices[:2]] == texts, (several, texts)

    log_probs = client.completions.create(**{**ask, "n": 1}, logprobs=0).choices[0].logprobs
    assert len(log_probs.tokens) == len(log_probs.token_logprobs) > 0, log_probs
    shown = client.completions.create(**{**ask, "n": 1, "stop": None}, logprobs=2).choices[0]
    for at, token in enumerate(shown.logprobs.tokens):
        best = shown.logprobs.top_logprobs[at]
        assert 1 <= len(best) <= 3 and best[token] == shown.logprobs.token_logprobs[at], shown
        if not token.startswith("bytes:"):
            offset = shown.logprobs.text_offset[at]
            assert shown.text[offset : offset + len(token)] == token, (shown, at)

    # A chat with eight completions, streamed, and ESamp's own settings.
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}]
    chat = dict(model=model, messages=messages, max_completion_tokens=12, temperature=1, logprobs=True, top_logprobs=2)
    whole = client.chat.completions.create(**chat)
    message = whole.choices[0].message
    assert message.role == "assistant" and message.content is not None, whole
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens, whole
    assert all(len(token.top_logprobs) == 2 for token in whole.choices[0].logprobs.content), whole
    # The bytes of the tokens are those of the text, in which characters are spread over several tokens.
    spread = [{"role": "user", "content": "Repeat exactly: 🦀 灯台 🦞 é"}]
    said = client.chat.completions.create(**{**chat, "messages": spread, "max_completion_tokens": 24, "temperature": 0})
    tokens = said.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace") == said.choices[0].message.content, said
    print("bytes:", [token.token for token in tokens])
    texts, ends, usage, known = {}, {}, None, set()
    own = {"esamp": {"beta": 0.5, "reweighter": "extrapolate", "group": "colours"}}
    options = {"include_usage": True}
    with client.chat.completions.create(**chat, n=8, stream=True, stream_options=options, extra_body=own) as stream:
        for chunk in stream:
            assert usage is None and "usage" in chunk.model_fields_set, "the last chunk alone has numbers"
            usage = chunk.usage
            known.add(chunk.esamp["group"]["known"])
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                if choice.finish_reason:
                    assert choice.index not in ends, "a completion ends once"
                    ends[choice.index] = choice.finish_reason
    assert sorted(ends) == list(range(8)), ends
    assert 8 <= usage.completion_tokens <= 96, usage
    assert known == {False}, "a new group"
    again = client.chat.completions.create(**chat, extra_body=own)
    assert again.esamp["group"] == {"id": "colours", "known": True}, again
    print("chat:", texts)

    # A stream that is left early.
    stream = client.chat.completions.create(**chat, stream=True)
    next(iter(stream))
    stream.close()

    # Errors.
    def refused(kind: type, param: str, **fields: object) -> None:
        try:
            client.chat.completions.create(**{**chat, **fields})
        except kind as error:
            assert error.param == param and param in error.message, error
            print("refused:", error.message)
        else:
            raise AssertionError(f"{fields}: expected {kind.__name__}, got an answer")

    refused(openai.NotFoundError, "model", model="gpt-4")
    refused(openai.BadRequestError, "temperature", temperature=3)
    refused(openai.BadRequestError, "top_logprobs", top_logprobs=21)
    refused(openai.BadRequestError, "response_format", response_format={"type": "json_object"})
    refused(openai.BadRequestError, "messages", messages=[{"role": "user", "content": "word " * 40_000}])
    refused(openai.BadRequestError, "esamp.beta", extra_body={"esamp": {"beta": -1}})
    print("openai", openai.__version__, "ok")


if __name__ == "__main__":
    main(*sys.argv[1:])
