"""Run by vLLM's Python: the most likely tokens after a prompt, for each checkpoint, as JSON.

owners_vllm.py OUT.json COUNT PROMPT NAME=CHECKPOINT...
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams

    out, count, prompt, *named = sys.argv[1:]
    found = {}
    for name, _, place in (text.partition("=") for text in named):
        model = LLM(place, max_model_len=128, max_num_seqs=1, enforce_eager=True)
        [answer] = model.generate([prompt], SamplingParams(temperature=0, max_tokens=int(count), ignore_eos=True))
        found[name] = {"prompt": list(answer.prompt_token_ids), "tokens": list(answer.outputs[0].token_ids)}
        del model
        gc.collect()
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
