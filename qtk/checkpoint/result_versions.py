"""The number of each stage's results: what tells a run whether an output made by an earlier qtk is what today's would make.

Raise a stage's number in the change that makes it give other results from the same inputs and options: other weights, another
graph, another way to measure. Then `qtk run` does that stage again after an upgrade, and only that stage and what follows
from it. tests/recipes/test_result_versions.py holds stored results of each stage and fails where they change without it.
"""

RESULT_VERSIONS = {
    "sources": 1,
    "finetune": 1,
    "merge": 1,
    "quantize": 4,
    "build": 1,
    "sample": 1,
    "latency": 2,
    "divergence": 2,
    "accuracy": 1,
    "report": 1,
}
