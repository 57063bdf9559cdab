"""Writes problems.json: problems of the package reasoning-gym, which the task of that name asks.

    python3 -m venv venv && venv/bin/pip install reasoning-gym==0.1.25
    venv/bin/python crates/esamp-eval/src/tasks/reasoning_gym/generate.py
    venv/bin/python crates/esamp-eval/src/tasks/reasoning_gym/generate.py --check [--records run.jsonl]

With --check nothing is written: the file has to be what the package generates now, and the package's own scorers have to
tell its answers from wrong ones. --records also reads a file that the example `evaluate` has written, and has the package
score every answer that the task's checker found there: both have to say the same.
"""

import argparse
import json
import re
import sys
from importlib.metadata import metadata
from pathlib import Path

import reasoning_gym

VERSION = "0.1.25"
SEED = 260424927
# Problems of each generator.
COUNT = 40
# The most draws for them. Every draw has a seed of its own, SEED + draw.
DRAWS = 4000
FILE = Path(__file__).with_name("problems.json")

NOTICE = (
    "Questions and answers were generated with reasoning-gym (https://github.com/open-thought/reasoning-gym), "
    "copyright its authors, under the Apache License, Version 2.0 (LICENSE-APACHE in the root of this repository), by "
    "generate.py beside this file, which names what it changes."
)

# As easy as the generators can be made where a model of 135M parameters is wrong most of the time.
SETTINGS = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "lcm": {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 12},
    "aiw": {"task_type_weights": [0.5, 0.5, 0.0], "max_entities": 6},
    "family_relationships": {"min_family_size": 3, "max_family_size": 5},
}


def question_of(generator, entry):
    """The question. What is left out: that the answer should be one word, since an explanation is asked for."""
    question = entry["question"].strip()
    if generator == "family_relationships":
        question = question[: question.rindex("?") + 1]
    return question


def is_sound(generator, entry):
    """Whether the answer is right, and cannot be given by repeating a number of the question."""
    question, answer = entry["question"], entry["answer"]
    if generator == "family_relationships":
        # Of these, version 0.1.25 gives the relationship of the second person to the first.
        return not answer.endswith("-in-law") and answer not in ("niece", "nephew")
    if generator == "aiw":
        # One template asks for the sisters of somebody whom it has not mentioned.
        asked = re.search(r"How many sisters does (\S+)'s brother have", question)
        if asked and not question.startswith(asked[1] + " "):
            return False
    # Negative numbers are beyond a model that small: none of 48 completions of an earlier development half was right.
    return not answer.startswith("-") and answer not in re.findall(r"\d+", question)


def kind_of(generator, entry):
    """What two problems must not have in common, or one half would know the other: names alone are no difference."""
    if generator == "lcm":
        return tuple(sorted(entry["metadata"]["numbers"]))
    if generator == "aiw":
        return re.sub(r"\b[A-Z][a-z]+('s)?\b", "", entry["question"].replace("How many", "").replace("They", ""))
    return question_of(generator, entry)


def entries():
    """Generator, dataset, and its first COUNT entries that are sound and of different kinds."""
    for generator, settings in SETTINGS.items():
        dataset = reasoning_gym.create_dataset(generator, seed=SEED, size=DRAWS, **settings)
        kinds, chosen = set(), []
        for entry in dataset:
            kind = kind_of(generator, entry)
            if is_sound(generator, entry) and kind not in kinds:
                kinds.add(kind)
                chosen.append(entry)
            if len(chosen) == COUNT:
                break
        if len(chosen) < COUNT:
            sys.exit(f"{generator}: expected {COUNT} problems in {DRAWS} draws, got {len(chosen)}")
        yield generator, dataset, chosen


def generate():
    """The text of problems.json: a problem a line, so that a difference can be read."""
    about = metadata("reasoning-gym")
    if about["Version"] != VERSION:
        sys.exit(f"reasoning-gym: expected version {VERSION}, got {about['Version']}")
    head = {
        "package": "reasoning-gym",
        "version": VERSION,
        "license": about["License-Expression"],
        "notice": NOTICE,
        "seed": SEED,
        "settings": SETTINGS,
    }
    lines = [
        json.dumps({"generator": generator, "question": question_of(generator, entry), "answer": entry["answer"]})
        for generator, _, chosen in entries()
        for entry in chosen
    ]
    head = json.dumps(head, indent=2).removesuffix("\n}")
    return head + ',\n  "problems": [\n    ' + ",\n    ".join(lines) + "\n  ]\n}\n"


def check_scorers():
    """The scorers take the answer, and nothing else that is an answer in the set."""
    for generator, dataset, chosen in entries():
        answers = {entry["answer"] for entry in chosen}
        for entry in chosen:
            for answer in answers | {"", entry["answer"] + "1"}:
                score = dataset.score_answer(answer, entry)
                if (score == 1.0) != (answer == entry["answer"]):
                    sys.exit(f"{generator}: {answer!r} scores {score} where {entry['answer']!r} is right")


def check_records(path):
    """The checker in Rust and the package agree about every answer in a file of records."""
    known = {
        question_of(generator, entry): (dataset, entry) for generator, dataset, chosen in entries() for entry in chosen
    }
    answers = right = 0
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record["type"] != "problem" or record["task"] != "reasoning-gym":
            continue
        dataset, entry = known[record["prompt"].rpartition("\n")[0]]
        for completion in record["completions"]:
            score = dataset.score_answer(completion["answer"], entry)
            if (score == 1.0) != completion["correct"]:
                sys.exit(f"{completion['answer']!r} scores {score}, and the record says {completion['correct']}")
            answers += 1
            right += completion["correct"]
    print(f"{path}: {answers} completions, {right} of them right, as the package says")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--records", type=Path)
    args = parser.parse_args()
    text = generate()
    if not args.check:
        FILE.write_text(text)
        return
    if FILE.read_text() != text:
        sys.exit(f"{FILE}: not what {VERSION} generates")
    check_scorers()
    if args.records:
        check_records(args.records)
    print(f"{FILE}: {len(SETTINGS) * COUNT} problems, as generated and as scored by the package")


if __name__ == "__main__":
    main()
