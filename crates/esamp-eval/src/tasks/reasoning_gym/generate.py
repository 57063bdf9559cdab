"""Writes problems.json: the problems of the task reasoning-gym, generated with the package of that name.

    python3 -m venv venv && venv/bin/pip install reasoning-gym==0.1.25
    venv/bin/python crates/esamp-eval/src/tasks/reasoning_gym/generate.py
    venv/bin/python crates/esamp-eval/src/tasks/reasoning_gym/generate.py --check [--records run.jsonl]

With --check nothing is written. The file must be what the package generates now, and the package's own scorers must tell
its answers from wrong ones. --records also reads a file written by the program `evaluate` and lets the package score every
answer that the task's checker found there; both must agree.
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
# Problems per generator.
COUNT = 40
# Maximum number of draws per generator. Draw i has the seed SEED + i.
DRAWS = 4000
FILE = Path(__file__).with_name("problems.json")

NOTICE = (
    "Questions and answers were generated with reasoning-gym (https://github.com/open-thought/reasoning-gym), "
    "copyright its authors, under the Apache License, Version 2.0 (LICENSE-APACHE in the root of this repository), by "
    "generate.py in the same folder, which documents its changes."
)

# Nearly the easiest settings of the generators; a model of 135M parameters is still wrong most of the time.
SETTINGS = {
    "chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "lcm": {"min_numbers": 2, "max_numbers": 2, "min_value": 2, "max_value": 12},
    "aiw": {"task_type_weights": [0.5, 0.5, 0.0], "max_entities": 6},
    "family_relationships": {"min_family_size": 3, "max_family_size": 5},
}


def question_of(generator, entry):
    """The question, without the request to answer in one word, because the task asks for an explanation."""
    question = entry["question"].strip()
    if generator == "family_relationships":
        question = question[: question.rindex("?") + 1]
    return question


def is_sound(generator, entry):
    """Whether the answer is right and is not a number from the question, which a model could just repeat."""
    question, answer = entry["question"], entry["answer"]
    if generator == "family_relationships":
        # For these, version 0.1.25 gives the relationship the wrong way round, of the second person to the first.
        return not answer.endswith("-in-law") and answer not in ("niece", "nephew")
    if generator == "aiw":
        # One template asks for the sisters of a person it has not mentioned.
        asked = re.search(r"How many sisters does (\S+)'s brother have", question)
        if asked and not question.startswith(asked[1] + " "):
            return False
    # Negative numbers are too hard for a model this small: none of 48 completions of an earlier development half was right.
    return not answer.startswith("-") and answer not in re.findall(r"\d+", question)


def kind_of(generator, entry):
    """What must differ between any two problems, so that the halves are independent. Different names are not enough."""
    if generator == "lcm":
        return tuple(sorted(entry["metadata"]["numbers"]))
    if generator == "aiw":
        return re.sub(r"\b[A-Z][a-z]+('s)?\b", "", entry["question"].replace("How many", "").replace("They", ""))
    return question_of(generator, entry)


def entries():
    """Yields each generator, its dataset, and the first COUNT entries that are sound and of different kinds."""
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
    """The text of problems.json, with one problem per line for readable diffs."""
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
    """Checks that the scorers accept the right answer and no other answer in the set."""
    for generator, dataset, chosen in entries():
        answers = {entry["answer"] for entry in chosen}
        for entry in chosen:
            for answer in answers | {"", entry["answer"] + "1"}:
                score = dataset.score_answer(answer, entry)
                if (score == 1.0) != (answer == entry["answer"]):
                    sys.exit(f"{generator}: {answer!r} scores {score} where {entry['answer']!r} is right")


def check_records(path):
    """Checks that the checker in Rust and the package agree about every answer in a record file."""
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
    print(f"{path}: {answers} completions, {right} of them right, in agreement with the package")


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
    print(f"{FILE}: {len(SETTINGS) * COUNT} problems, up to date and scored correctly")


if __name__ == "__main__":
    main()
