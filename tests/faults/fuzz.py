"""Mutations in number, for docs/reliability.md: `python tests/faults/fuzz.py FOLDER [TARGET ...] --cases N --by seeds|hypothesis|atheris`.

FOLDER is where the workshop is made, or was. seeds: numbered mutations. hypothesis and atheris draw the mutators' choices themselves:
atheris follows the branches of qtk that a case reaches. Prints a line for each target, then the faults.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from faults.mutations import BYTES, TARGETS, Tally, answer_of, mutate, run_cases  # noqa: E402
from support.confined import limited_fork  # noqa: E402


def by_seeds(name: str, root: Path, seed: int, cases: int) -> Tally:
    return run_cases(name, root, seed, 0, cases)


def by_hypothesis(name: str, root: Path, seed: int, cases: int) -> Tally:
    """Hypothesis chooses, and shrinks what it finds."""
    import hypothesis
    from hypothesis import strategies

    target = TARGETS[name]
    whole = (root / target.file).read_bytes()
    expected = answer_of(target, root)

    def work() -> int:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases, deadline=None, database=None, derandomize=False, suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(strategies.randoms(use_true_random=False))
        def try_one(chooser: random.Random) -> None:
            (root / target.file).write_bytes(mutate(target, whole, chooser))
            _count(root, answer_of(target, root), expected)

        (root / "counts").write_text("")
        try_one()
        return 0

    return _collected(name, root, whole, target.file, work, cases)


def by_atheris(name: str, root: Path, seed: int, cases: int) -> Tally:
    """Atheris chooses, by which branches of qtk's modules its last choices reached."""
    target = TARGETS[name]
    whole = (root / target.file).read_bytes()
    expected = answer_of(target, root)

    def work() -> int:
        import atheris

        for module in [module for key, module in sys.modules.items() if key.startswith("qtk.")]:
            for key, value in list(vars(module).items()):
                if (
                    callable(value)
                    and getattr(value, "__module__", "") == module.__name__
                    and hasattr(value, "__code__")
                ):
                    setattr(module, key, atheris.instrument_func(value))

        class Choices(random.Random):
            def __init__(self, data: bytes) -> None:
                super().__init__(0)
                self.left = atheris.FuzzedDataProvider(data)

            def getrandbits(self, count: int) -> int:
                return int(self.left.ConsumeIntInRange(0, (1 << min(count, 62)) - 1))

            def random(self) -> float:
                return self.getrandbits(53) / (1 << 53)

        def try_one(data: bytes) -> None:
            chooser = Choices(data) if data else random.Random(0)
            (root / target.file).write_bytes(mutate(target, whole, chooser))
            _count(root, answer_of(target, root), expected)

        (root / "counts").write_text("")
        atheris.Setup(
            [sys.argv[0], f"-runs={cases}", f"-seed={seed}", "-max_len=256", "-rss_limit_mb=0", "-verbosity=0"], try_one
        )
        atheris.Fuzz()
        return 0

    return _collected(name, root, whole, target.file, work, cases)


def _count(root: Path, answer: tuple[str, str], expected: tuple[str, str]) -> None:
    outcome = (
        answer[0]
        if answer[0] != "read"
        else "read as the whole file"
        if answer == expected
        else "read as something else"
    )
    with (root / "counts").open("a") as stream:
        stream.write(json.dumps([outcome, answer[1] if outcome == "fault" else ""]) + "\n")


def _collected(name: str, root: Path, whole: bytes, file: str, work, cases: int) -> Tally:
    tally = Tally()
    code, _, _ = limited_fork(work, seconds=1200, more_bytes=2 * BYTES)
    for line in (root / "counts").read_text().splitlines():
        outcome, said = json.loads(line)
        tally.counts[outcome] += 1
        tally.faults += [f"{name}: {said}"] if said else []
    if code:
        (root / "found").mkdir(exist_ok=True)
        kept = root / "found" / f"{name}-{os.getpid()}"
        kept.write_bytes((root / file).read_bytes())
        tally.faults.append(f"{name}: the process ended with {code}; what it read last is {kept}")
    (root / file).write_bytes(whole)
    return tally


BY = {"seeds": by_seeds, "hypothesis": by_hypothesis, "atheris": by_atheris}


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("folder", type=Path)
    words.add_argument("--cases", type=int, default=1000)
    words.add_argument("--seed", type=int, default=2)
    words.add_argument("--by", choices=BY, default="seeds")
    words.add_argument("targets", nargs="*")
    given = words.parse_args()
    total = Tally()
    for name in given.targets or TARGETS:
        began = time.monotonic()
        tally = BY[given.by](name, given.folder.resolve(), given.seed, given.cases)
        total.add(tally)
        print(f"{name}: {dict(tally.counts)}, {len(tally.faults)} faults, {time.monotonic() - began:.0f} s", flush=True)
        for fault in dict.fromkeys(tally.faults[:5]):
            print(f"  {fault}", flush=True)
    print(
        f"{given.by}: {sum(total.counts.values())} cases {dict(total.counts)}, {len(total.faults)} faults", flush=True
    )
    return bool(total.faults)


if __name__ == "__main__":
    sys.exit(main())
