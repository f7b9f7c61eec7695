"""Two processes generate the same as one, each gets all completions, and training continues."""

import json
from pathlib import Path

import pytest

from tests import tiny
from tests.generation.worker import cases
from tests.invariant.launch import launch
from trl_akd.generation import TransformersGenerator

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "backend",
    ["ddp", pytest.param("zero2", marks=pytest.mark.slow), pytest.param("zero3", marks=pytest.mark.slow)],
)
def test_two_processes(tmp_path: Path, backend: str) -> None:
    tiny.model().save_pretrained(tmp_path / "model")
    launch(tmp_path, backend, "tests.generation.worker", str(tmp_path))
    expected = cases(TransformersGenerator(tiny.model(), tiny.tokenizer(), batch_size=2))
    for rank in range(2):
        record = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert record["world_size"] == 2
        assert record["training"] is True
        assert record["sharded"] is (backend == "zero3")
        assert record["errors"] == ["accepted", "RefusedRequest: refused on 1", "RefusedRequest: refused on 0"]
        assert record["losses"][0] == pytest.approx(record["losses"][1])
        assert record["cases"].keys() == expected.keys()
        for name, outputs in expected.items():
            found = [completion for completions in record["cases"][name] for completion in completions]
            alone = [completion for completions in outputs for completion in completions]
            assert [len(completions) for completions in record["cases"][name]] == list(map(len, outputs))
            for one, other in zip(found, alone, strict=True):
                assert one == {**other, "mean_logprob": pytest.approx(other["mean_logprob"], abs=1e-4)}
