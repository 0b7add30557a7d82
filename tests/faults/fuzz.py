"""Mutations in number, for docs/reliability.md: `python tests/faults/fuzz.py FOLDER [TARGET ...] --cases N --by seeds|hypothesis|atheris`.

FOLDER is where the workshop is made, unless it is there. seeds: numbered mutations. hypothesis and atheris draw the mutators' choices
themselves: atheris follows the branches of qtk that a case reaches. Prints a line for each target, then the faults.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process would wait for the threads of this one
sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from faults.mutations import BYTES, TARGETS, Tally, how_it_ended, judge_of, judged_fork, mutate, run_cases  # noqa: E402

Take = Callable[[bytes], None]


def by_seeds(name: str, root: Path, seed: int, cases: int) -> Tally:
    return run_cases(name, root, seed, 0, cases)


def by_hypothesis(name: str, root: Path, seed: int, cases: int) -> Tally:
    """Hypothesis chooses."""
    import hypothesis
    from hypothesis import strategies

    def draw(take: Take, mutated: Callable[[random.Random], bytes]) -> None:
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=cases, deadline=None, database=None, derandomize=False, suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )  # fmt: skip
        @hypothesis.given(strategies.randoms(use_true_random=False))
        def try_one(chooser: random.Random) -> None:
            take(mutated(chooser))

        try_one()

    return _drawn(name, root, draw)


def by_atheris(name: str, root: Path, seed: int, cases: int) -> Tally:
    """Atheris chooses, by which branches of qtk's modules its last choices reached."""

    def draw(take: Take, mutated: Callable[[random.Random], bytes]) -> None:
        import atheris

        _instrument(atheris)

        class Choices(random.Random):
            def __init__(self, data: bytes) -> None:
                super().__init__(0)
                self.left = atheris.FuzzedDataProvider(data)

            def getrandbits(self, count: int) -> int:
                return int(self.left.ConsumeIntInRange(0, (1 << min(count, 62)) - 1))

            def random(self) -> float:
                return self.getrandbits(53) / (1 << 53)

        def try_one(data: bytes) -> None:
            take(mutated(Choices(data) if data else random.Random(0)))

        words = [f"-runs={cases}", f"-seed={seed}", "-max_len=256", "-rss_limit_mb=0", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *words], try_one)
        atheris.Fuzz()

    return _drawn(name, root, draw)


def _instrument(atheris: ModuleType) -> None:
    for module in [module for key, module in sys.modules.items() if key.startswith("qtk.")]:
        for key, value in list(vars(module).items()):
            own = callable(value) and getattr(value, "__module__", "") == module.__name__
            if own and hasattr(value, "__code__"):
                setattr(module, key, atheris.instrument_func(value))


def _drawn(name: str, root: Path, draw: Callable[[Take, Callable[[random.Random], bytes]], None]) -> Tally:
    """Reads what `draw` draws, in a process of its own."""
    judge, tally = judge_of(name, root), Tally()
    whole = (root / judge.target.file).read_bytes()

    def work() -> int:
        judged = judge.watching()
        draw(lambda content: judged(content, name), lambda chooser: mutate(judge.target, whole, chooser))
        return 0

    code, tally.most = judged_fork(judge, work, 3600, 2 * BYTES)
    tally.take(name, judge.log)
    if code:
        kept = root / "found" / f"{name}-{os.getpid()}"
        kept.parent.mkdir(exist_ok=True)
        shutil.copy(root / judge.target.file, kept)
        tally.faults.append(f"{name}: {how_it_ended(code)}; what it read last is {kept}")
    (root / judge.target.file).write_bytes(whole)
    return tally


def _make_workshop(folder: Path) -> None:
    if (folder / "m").exists():
        return
    with tempfile.TemporaryDirectory() as beside:
        words = ("-q", "-p", "no:cacheprovider", "-k", "few and recipe", "--basetemp", f"{beside}/t")
        test = Path(__file__).with_name("test_mutations.py")
        subprocess.run([sys.executable, "-m", "pytest", test, *words], check=True, stdout=subprocess.DEVNULL)
        shutil.copytree(f"{beside}/t/workshop0", folder)


BY = {"seeds": by_seeds, "hypothesis": by_hypothesis, "atheris": by_atheris}


def main() -> int:
    words = argparse.ArgumentParser()
    words.add_argument("folder", type=Path)
    words.add_argument("--cases", type=int, default=1000)
    words.add_argument("--seed", type=int, default=2)
    words.add_argument("--by", choices=BY, default="seeds")
    words.add_argument("targets", nargs="*")
    given = words.parse_args()
    folder, total = given.folder.resolve(), Tally()
    _make_workshop(folder)
    for name in given.targets or TARGETS:
        began = time.monotonic()
        tally = BY[given.by](name, folder, given.seed, given.cases)
        total.add(tally)
        took = time.monotonic() - began
        counts = f"{sum(tally.counts.values())} cases {dict(tally.counts)}, {len(tally.faults)} faults"
        print(f"{name}: {counts}, {tally.measured()}, {took:.0f} s in all", flush=True)
        for fault in dict.fromkeys(tally.faults[:5]):
            print(f"  {fault}", flush=True)
    counts = f"{sum(total.counts.values())} cases {dict(total.counts)}, {len(total.faults)} faults"
    print(f"{given.by}: {counts}, {total.measured()}", flush=True)
    return bool(total.faults)


if __name__ == "__main__":
    sys.exit(main())
