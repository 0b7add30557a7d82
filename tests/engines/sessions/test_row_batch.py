"""Rows that join and leave a running batch: each gets what it gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.executors import TO_THE_END, open_on_processor

from qtk.engines.build import build_engine
from qtk.engines.options import BuildOptions
from qtk.engines.sessions.row_batch import RowBatch
from qtk.engines.sessions.session import DecoderSession

both_graphs = pytest.mark.parametrize("rewrite", [True, False], ids=["rewritten", "portable"])


@pytest.fixture(scope="module")
def engine(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four rows at once, in float32."""
    out = tmp_path_factory.mktemp("rows") / "engine"
    build_engine(tiny(), out, BuildOptions(accuracy_level=0, max_input_len=96, max_output_len=64, max_batch_size=4))
    return out


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, 320, length).tolist()


def alone(session: DecoderSession, ids: list[int], count: int) -> list[int]:
    return session.generate([ids], count, TO_THE_END).tokens[0]


class Driven:
    """A batch whose rows always take the most likely token."""

    def __init__(self, session: DecoderSession) -> None:
        self.batch = RowBatch(session)
        self.tokens: dict[int, list[int]] = {}

    def join(self, key: int, ids: list[int], *, apart: bool = False, between: bool = False) -> None:
        """Runs a prompt; between: the other rows decode after each of its chunks."""
        self.batch.join(key, apart=apart)
        for piece in self.batch.prefill(key, ids):
            last = int(piece.logits[-1].argmax())
            if between:
                self.step()
        self.tokens[key] = [last]

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for keys, logits in self.batch.decode({key: row[-1] for key, row in self.tokens.items()}):
                for key, line in zip(keys, logits.argmax(axis=-1).tolist(), strict=True):
                    self.tokens[key].append(line)

    def leave(self, key: int) -> list[int]:
        self.batch.leave(key)
        return self.tokens.pop(key)


@both_graphs
def test_rows_that_come_and_go_get_what_they_get_alone(engine: Path, rewrite: bool) -> None:
    """Prompts of several chunks, rows that leave from the front, the middle and the back, and a cache that grows."""
    settings = {"chunk": 16, "cache_steps": (8, 24), "rewrite": rewrite}
    prompts = {1: prompt(5, 1), 2: prompt(40, 2), 3: prompt(33, 3), 4: prompt(16, 4), 5: prompt(61, 5), 6: prompt(9, 6)}
    with open_on_processor(engine, 1, **settings) as session:
        expected = {key: alone(session, ids, 60) for key, ids in prompts.items()}
        driven = Driven(session)
        driven.join(1, prompts[1])
        driven.step(3)
        driven.join(2, prompts[2], between=True)
        driven.join(3, prompts[3], apart=True, between=True)
        driven.join(4, prompts[4])
        driven.step(5)
        done = {1: driven.leave(1)}
        driven.join(5, prompts[5], between=True)
        driven.step(4)
        done[4] = driven.leave(4)
        driven.join(6, prompts[6])
        driven.step(2)
        for key in (3, 2, 6, 5):
            driven.step()
            done[key] = driven.leave(key)
        assert len(driven.batch) == 0
        for key, tokens in done.items():
            assert tokens == expected[key][: len(tokens)], key
            assert len(tokens) > 2
        # The next call of the session begins anew.
        assert alone(session, prompts[2], 60) == expected[2]


@both_graphs
def test_a_row_apart_gets_the_very_logits_that_it_gets_alone(engine: Path, rewrite: bool) -> None:
    def logits(session: DecoderSession, others: list[list[int]]) -> list[np.ndarray]:
        driven, found = Driven(session), []
        for key, ids in enumerate(others):
            driven.join(key, ids)
        driven.batch.join(9, apart=True)
        [piece] = driven.batch.prefill(9, prompt(12, 9))
        found.append(piece.logits[-1].copy())
        token = int(found[-1].argmax())
        for _ in range(6):
            last = {key: row[-1] for key, row in driven.tokens.items()}
            for keys, lines in driven.batch.decode({**last, 9: token}):
                if keys == [9]:
                    found.append(lines[0].copy())
            token = int(found[-1].argmax())
        return found

    with open_on_processor(engine, 1, rewrite=rewrite) as session:
        by_itself = logits(session, [])
        with_others = logits(session, [prompt(30, 1), prompt(7, 2)])
    assert len(by_itself) == 7
    for one, other in zip(by_itself, with_others, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_row_leaves_while_the_prompt_of_another_is_running(engine: Path) -> None:
    with open_on_processor(engine, 1, chunk=16) as session:
        expected = {key: alone(session, prompt(20 + key, key), 12) for key in (1, 2, 3)}
        driven = Driven(session)
        driven.join(1, prompt(21, 1))
        driven.join(2, prompt(22, 2))
        driven.batch.join(3)
        pieces = driven.batch.prefill(3, prompt(23, 3))
        next(pieces)
        driven.step(2)
        assert driven.leave(1) == expected[1][:3]
        driven.step(2)
        driven.tokens[3] = [int(next(pieces).logits[-1].argmax())]
        driven.step(3)
        assert driven.leave(2) == expected[2][:8]
        assert driven.leave(3) == expected[3][:4]


def test_every_position_of_a_prompt_can_be_scored(engine: Path) -> None:
    with open_on_processor(engine, 1, chunk=16) as session:
        ids = prompt(40, 4)
        expected = session.logits([ids])[0]
        batch = RowBatch(session)
        batch.join(0)
        found = [piece.logits.copy() for piece in batch.prefill(0, ids, every_position=True)]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=3e-4, rtol=1e-3)
