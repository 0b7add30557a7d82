"""qtk's INT4 quantizers beside GPTQModel, llm-compressor and AutoRound: time, memory and what each loses, in one run.

python bench/compare_quantizers.py MODEL [--only NAMES] [--group-size 64] [--sym|--asym] [--samples 32] [--seq-len 512]
                                   [--autoround-iters 50] [--work DIR] [--json FILE]      (make peers)

All start from the same float model and the same calibration rows, which each peer gets as token ids through its own
API, with its own defaults. What each writes is read back by qtk and held against the float model in float32 by
`qtk bench divergence`, on held-out code and English that nothing was calibrated on. Each runs alone in a process of its
own: seconds are those of the whole process, imports, loading and saving included; peak GB is the largest resident
memory of that process and its children together. The errors are those of the mean, clustered by row.
A peer's Python is the one that QTK_<NAME>_PYTHON names, or .venv-<name>/bin/python. --work keeps every result as
NAME.json, and the same command goes on with those that are missing; compare times of one undisturbed run only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import save_file

from qtk.calibration.options import CalibrationOptions
from qtk.calibration.rows import calibration_rows
from qtk.machine import machine, usable_cores
from qtk.models.registry import spec_from_config
from qtk.models.tokenizer import TextTokenizer

ROOT = Path(__file__).resolve().parents[1]
QTK = {
    "rtn": ["--method", "rtn"],
    "fast": ["--method", "gptq", "--effort", "fast"],
    "default": ["--method", "gptq", "--effort", "default"],
    "best": ["--method", "gptq", "--effort", "best"],
    "awq": ["--method", "awq"],
    "auto": ["--method", "auto"],
}
# The peer and the environment that it is installed in; None is ours. AutoAWQ is archived and runs nowhere here: what it
# does is written down in autoawq_reference.py, so its seconds say nothing.
PEERS = {
    "gptqmodel": "interop",
    "llm-compressor": "llmcompressor",
    "autoround": "autoround",
    "autoawq-reference": None,
}
SHOWN = {name: f"qtk {name}" for name in QTK} | {
    "gptqmodel": "GPTQModel, GPTQ",
    "llm-compressor": "llm-compressor, GPTQ",
    "autoround": "AutoRound",
    "autoawq-reference": "AutoAWQ's search, float32",
}


class Unavailable(Exception):
    """A quantizer that cannot be measured here; the message says why."""


def peer_python(name: str | None) -> str:
    """The Python of another environment; None is this one."""
    if name is None:
        return sys.executable
    variable = f"QTK_{name.upper()}_PYTHON"
    path = Path(os.environ.get(variable) or ROOT / f".venv-{name}" / "bin" / "python")
    if not path.is_file():
        raise Unavailable(f"no environment {name!r}: make peers, or set {variable} to its python")
    return str(path)


def measured(words: list[str], environment: dict[str, str], log: Path, place: Path) -> tuple[float, int]:
    """(seconds, peak resident bytes of the process and all below it). Unavailable with its last words when it fails."""
    with log.open("wb") as output:
        start = time.perf_counter()
        # A session of its own, so that nothing of it outlives a failure or Ctrl-C.
        process = subprocess.Popen(
            words, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=place, start_new_session=True
        )
        try:
            peak = _peak_until_end(process)
        finally:
            _kill_session(process.pid)
            process.wait()
        seconds = time.perf_counter() - start
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        raise Unavailable(f"it ended with code {process.returncode}: {' / '.join(tail)} (all of it: {log})")
    return seconds, peak


def _peak_until_end(process: subprocess.Popen[bytes]) -> int:
    """Looks ten times a second at the memory of the process and of all below it, until it ends."""
    peak, family = 0, psutil.Process(process.pid)
    while True:
        try:
            process.wait(timeout=0.1)
            return peak
        except subprocess.TimeoutExpired:
            resident = 0
            for member in [family, *family.children(recursive=True)]:
                try:
                    resident += member.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            # What the kernel kept of the largest moment between two looks.
            peak = max(peak, resident, _high_water(process.pid))


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _kill_session(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


class Comparison:
    """One comparison: what is the same for all, and where results are kept."""

    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        self.asked, self.work, self.model = asked, work, asked.model.resolve()
        self.threads = asked.threads or usable_cores()
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            # Without it GPTQModel does not start on few cores, nor with fewer than two.
            "GPTQMODEL_CPU_WORKERS": str(max(2, self.threads)),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.rows_file = work / "rows.safetensors"
        self.rows_sha256 = self._export_rows()
        self.settings = {
            "model": str(self.model),
            "group_size": asked.group_size,
            "symmetric": asked.sym,
            "threads": self.threads,
            "calibration_sha256": self.rows_sha256,
            "held_out": {"rows": asked.rows, "seq_len": asked.held_out_seq_len},
        }

    def _export_rows(self) -> str:
        """The rows that `qtk quantize` makes from the same options, for the peers; the digest of their tokens."""
        options = CalibrationOptions(
            calibration=self.asked.calibration,
            samples=self.asked.samples,
            seq_len=self.asked.seq_len,
            seed=self.asked.seed,
        )
        config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        context = spec_from_config(config, str(self.model)).max_positions
        rows = calibration_rows(TextTokenizer(self.model), options, options.row_length(context))
        save_file({"tokens": rows.tokens, "lengths": rows.lengths}, self.rows_file)
        return hashlib.sha256(rows.tokens.numpy().tobytes() + rows.lengths.numpy().tobytes()).hexdigest()

    def result(self, name: str) -> dict[str, Any]:
        """The figures of one quantizer, from the work directory where they stand there already."""
        kept = self.work / f"{name}.json"
        settings = dict(self.settings)
        if name == "autoround":
            settings["autoround_iters"] = self.asked.autoround_iters
        if kept.is_file():
            result: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
            if result["settings"] == settings:
                print(f"{SHOWN[name]}: measured before", file=sys.stderr)
                return result
        out = self.work / name
        for left in (out, out.with_name(f"{name}.partial")):
            shutil.rmtree(left, ignore_errors=True)
        run: Callable[[str, Path], dict[str, Any]] = self._qtk if name in QTK else self._peer
        result = {"quantizer": name, "settings": settings, **run(name, out), **self._divergence(out, name)}
        partial = self.work / f"{name}.json.partial"
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        os.rename(partial, kept)
        if not self.asked.keep:
            shutil.rmtree(out)
        return result

    def _qtk(self, name: str, out: Path) -> dict[str, Any]:
        asked = self.asked
        words = [sys.executable, "-m", "qtk", "-q", "quantize", str(self.model), "-o", str(out), "--json", *QTK[name]]
        words += ["--group-size", str(asked.group_size), "--sym" if asked.sym else "--asym", "--container", "gptq"]
        words += ["--calibration", asked.calibration, "--samples", str(asked.samples), "--seq-len", str(asked.seq_len)]
        words += ["--seed", str(asked.seed), "--threads", str(self.threads)]
        seconds, peak = measured(words, self.environment, self.work / f"{name}.log", self.work)
        report = json.loads((out / "qtk-manifest.json").read_text(encoding="utf-8"))["notes"]["report"]
        return {"seconds": seconds, "peak_bytes": peak, "parts": {"quantize": report["seconds"]}}

    def _peer(self, name: str, out: Path) -> dict[str, Any]:
        python = peer_python(PEERS[name])
        settings = {
            "peer": name,
            "model": str(self.model),
            "out": str(out),
            "rows": str(self.rows_file),
            "report": str(self.work / f"{name}-report.json"),
            "group_size": self.asked.group_size,
            "symmetric": self.asked.sym,
            "threads": self.threads,
            "seed": self.asked.seed,
            "autoround_iters": self.asked.autoround_iters,
        }
        settings_file = self.work / f"{name}-settings.json"
        settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        words = [python, str(ROOT / "bench" / "peer_quantizer.py"), str(settings_file)]
        with tempfile.TemporaryDirectory() as place:  # some leave their logs where they are run
            seconds, peak = measured(words, self.environment, self.work / f"{name}.log", Path(place))
        report = json.loads(Path(str(settings["report"])).read_text(encoding="utf-8"))
        return {
            "seconds": seconds,
            "peak_bytes": peak,
            "parts": report["seconds"],
            "versions": report["versions"],
        }

    def _divergence(self, out: Path, name: str) -> dict[str, Any]:
        words = [sys.executable, "-m", "qtk", "-q", "bench", "divergence", str(out), "--reference", str(self.model)]
        words += ["--rows", str(self.asked.rows), "--seq-len", str(self.asked.held_out_seq_len), "--json"]
        done = subprocess.run([*words, "--threads", str(self.threads)], capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"what it wrote could not be measured: {done.stderr.strip()[-500:]}")
        measured = json.loads(done.stdout)
        return {"texts": measured["texts"], "pooled": measured["pooled"]}


def table(results: list[dict[str, Any]]) -> str:
    """The comparison as a Markdown table; code and English apart, then both together."""
    if not results:
        return "Nothing was measured."
    lines = [
        "| quantizer | s | quantizing alone, s | peak GB | KL, all | KL, code | KL, English | ppl, code | ppl, English "
        "| same top-1, code | same top-1, English |",
        "|---|" + "---:|" * 10,
    ]
    texts = results[0]["texts"]
    reference = " | ".join(f"{text['perplexity_reference']:.3f}" for text in texts)
    lines.append(f"| float model | | | | | | | {reference} | | |")
    for result in results:
        kl = [f"{part['kl']['mean']:.4g} ± {part['kl']['standard_error']:.2g}" for part in _parts(result)]
        perplexity = [f"{text['perplexity']:.3f}" for text in result["texts"]]
        top1 = [f"{100 * text['top1_agreement']['mean']:.1f} %" for text in result["texts"]]
        numbers = [
            f"{result['seconds']:.1f}",
            f"{result['parts']['quantize']:.1f}",
            f"{result['peak_bytes'] / 1e9:.2f}",
        ]
        lines.append(f"| {_shown(result)} | {' | '.join([*numbers, *kl, *perplexity, *top1])} |")
    return "\n".join(lines)


def _parts(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [result["pooled"], *result["texts"]]


def _shown(result: dict[str, Any]) -> str:
    name = SHOWN[result["quantizer"]]
    if "versions" in result and PEERS[result["quantizer"]]:
        name = f"{name} ({next(iter(result['versions'].values()))})"
    iterations = result["settings"].get("autoround_iters")
    return name if iterations is None else f"{name}, {iterations} iterations"


def main() -> None:
    """Runs the quantizers one after the other and prints the table. Exits with 1 when one of them gave no result."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C does, so that no quantizer is left running
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", type=Path, help="float model directory")
    everything = [*QTK, *PEERS]
    parser.add_argument("--only", default=",".join(everything), help=f"names joined by commas: {', '.join(everything)}")
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--sym", action="store_true", default=True, help="symmetric codes (the default)")
    parser.add_argument("--asym", dest="sym", action="store_false")
    parser.add_argument("--calibration", default="python-stdlib", help="as for qtk quantize")
    parser.add_argument("--samples", type=int, default=32, help="calibration rows")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens of a calibration row")
    parser.add_argument("--rows", type=int, default=16, help="held-out rows of each text")
    parser.add_argument("--held-out-seq-len", type=int, default=512, help="tokens of a held-out row")
    parser.add_argument("--autoround-iters", type=int, default=50, help="AutoRound's own default is 200")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="keep results there (default: a temporary directory)")
    parser.add_argument("--keep", action="store_true", help="keep the quantized models in --work as well")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    asked = parser.parse_args()
    names = asked.only.split(",")
    if unknown := set(names) - set(everything):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known are {', '.join(everything)}")
    results, missing = [], []
    with tempfile.TemporaryDirectory() as temporary:
        work = (asked.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        comparison = Comparison(asked, work)
        for name in names:
            try:
                result = comparison.result(name)
            except Unavailable as reason:
                missing.append(f"{SHOWN[name]} was not measured: {reason}")
                print(missing[-1], file=sys.stderr, flush=True)
                continue
            results.append(result)
            kl, seconds = result["pooled"]["kl"]["mean"], result["seconds"]
            print(f"{SHOWN[name]}: {seconds:.1f} s, KL {kl:.4g}", file=sys.stderr, flush=True)
    group = f"group {asked.group_size}, {'symmetric' if asked.sym else 'asymmetric'}"
    print(f"{asked.model.name}, {group}, {asked.samples} x {asked.seq_len} calibration tokens\n")
    print("\n".join([table(results), "", *missing]).rstrip())
    if asked.json:
        figures = {"machine": machine().as_dict(), "results": results, "missing": missing}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
