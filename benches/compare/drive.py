"""Runs the same generations in several programs, interleaved, and prints their speeds side by side.

    drive.py [--rows 1,16,64] [--rounds N] [--tokens N] [--record FILE] NAME=COMMAND ...

Each program prints `ready` and then answers each line `ROWS PROMPT_IDS NEW_TOKENS` with `SECONDS TOKENS`. The programs take
turns, one generation each, in an order that reverses every round; a waiting program uses no CPU. The first program is the
one that the others are compared with, and the last column says which of them decoded the same tokens.
"""

import argparse
import shlex
import statistics
import subprocess
import sys

PROMPT = [504, 33059, 761, 719, 3605, 327, 7522, 929, 645]  # "The lighthouse had been dark for twenty years when"


class Program:
    def __init__(self, name: str, command: str):
        self.name = name
        self.process = subprocess.Popen(
            shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        if (line := self.process.stdout.readline()) != "ready\n":
            sys.exit(f"{name}: expected ready, got {line!r}")

    def ask(self, rows: int, new_tokens: int) -> tuple[float, str]:
        prompt = ",".join(map(str, PROMPT))
        self.process.stdin.write(f"{rows} {prompt} {new_tokens}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if len(words := line.split()) != 2:
            sys.exit(f"{self.name}: expected SECONDS TOKENS, got {line!r}")
        return float(words[0]), words[1]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return values[0], values[0], values[0]
    q1, q2, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return q1, q2, q3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("programs", nargs="+", metavar="NAME=COMMAND")
    args = parser.parse_args()
    programs = [Program(*each.split("=", 1)) for each in args.programs]

    ours, *others = programs
    print(f"{'rows':>4}", *(f"{program.name + ' tok/s':>18}" for program in programs), end="")
    print("".join(f"  {f'{ours.name} / {other.name} [quartiles]':<34}" for other in others), " same tokens as", ours.name)
    for rows in map(int, args.rows.split(",")):
        seconds = {program.name: [] for program in programs}
        tokens = {}
        for round in range(args.rounds + 1):
            for program in programs if round % 2 == 0 else reversed(programs):
                took, tokens[program.name] = program.ask(rows, args.tokens)
                if round > 0:  # the first round warms up
                    seconds[program.name].append(took)
        decoded = rows * (args.tokens - 2)
        line = f"{rows:>4}"
        for program in programs:
            line += f" {decoded / statistics.median(seconds[program.name]):>18.1f}"
        for other in others:
            q1, q2, q3 = quartiles([b / a for a, b in zip(seconds[ours.name], seconds[other.name])])
            line += f"  {f'{q2:.3f} [{q1:.3f}, {q3:.3f}]':<34}"
        same = [other.name for other in others if tokens[other.name] == tokens[ours.name]]
        print(line, "", ", ".join(same) or "none", flush=True)


if __name__ == "__main__":
    main()
