"""Reader of DistillKit's format, against an encoder written from its description, number by number."""

import math
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests import tiny
from trl_akd import AKDConfig, AKDTrainer
from trl_akd.teachers import DistillKitFormat, DistillKitTeacher, ResidualBin, SparseSignal

VOCABULARY = tiny.VOCABULARY

CONFIGS: dict[str, tuple[dict[str, Any], float]] = {
    "exact": ({"exact_k": 16, "delta_encoding": False}, 1e-6),
    "exact differences": ({"exact_k": 16}, 1e-5),
    "bfloat16": ({"exact_k": 16, "exact_dtype": "bfloat16", "delta_encoding": False}, 0.05),
    "curve": ({"exact_k": 4, "polynomial_terms": [0, 1, 2, "sqrt"], "delta_encoding": False}, 0.5),
    "normalized curve": (
        {"exact_k": 4, "polynomial_terms": [0, 1, "sqrt", "exp"], "normalize_t": True, "delta_encoding": False}, 0.5,
    ),
    "residuals": (
        {"exact_k": 2, "polynomial_terms": [0, 1, "sqrt"], "delta_encoding": False,
         "residual_bins": [{"scale_dtype": "float16", "element_bits": 8, "num_elements": 9},
                           {"scale_dtype": "float32", "element_bits": 3, "num_elements": 5}]}, 0.2,
    ),
    "residuals alone": (
        {"exact_k": 1, "residual_bins": [{"scale_dtype": "float32", "element_bits": 11, "num_elements": 15}]}, 0.1,
    ),
    "one bit": (
        {"exact_k": 4, "polynomial_terms": [0, 1, "sqrt"], "delta_encoding": False,
         "residual_bins": [{"scale_dtype": "float32", "element_bits": 1, "num_elements": 12}]}, 0.5,
    ),
}  # fmt: skip


def as_bytes(value: float, dtype: str) -> tuple[bytes, float]:
    """Return a number in little-endian bytes, and as it is read again."""
    if dtype == "bfloat16":
        data = torch.tensor(value).bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
        return data, float(torch.tensor(value).bfloat16())
    data = struct.pack("<" + {"float16": "e", "float32": "f", "float64": "d"}[dtype], value)
    return data, struct.unpack("<" + {"float16": "e", "float32": "f", "float64": "d"}[dtype], data)[0]


def packed(numbers: list[int], width: int) -> bytes:
    text = "".join(f"{number:0{width}b}" for number in numbers)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[start : start + 8], 2) for start in range(0, len(text), 8))


def encode(ids: list[int], log_probs: list[float], config: dict[str, Any]) -> tuple[bytes, bytes]:
    """Compress the descending log-probabilities of a position."""
    values = list(log_probs)
    if config.get("delta_encoding", True):
        values = [values[0], *(right - left for left, right in pairwise(values))]
    exact, others = values[: config["exact_k"]], values[config["exact_k"] :]
    found = b"".join(as_bytes(value, config.get("exact_dtype", "float32"))[0] for value in exact)
    if terms := config.get("polynomial_terms"):
        points = [
            number / (len(others) - 1) if config.get("normalize_t") else float(number) for number in range(len(others))
        ]
        matrix = [
            [{"sqrt": math.sqrt, "exp": math.exp}[term](point) if isinstance(term, str) else point**term
             for term in terms] for point in points
        ]  # fmt: skip
        solved = np.linalg.lstsq(np.array(matrix), np.array(others), rcond=None)[0]
        stored = [as_bytes(value, "float32") for value in solved]
        found += b"".join(data for data, _ in stored)
        others = [
            value - sum(term * coefficient for term, (_, coefficient) in zip(row, stored, strict=True))
            for value, row in zip(others, matrix, strict=True)
        ]
    for each in config.get("residual_bins", ()):
        own, others = others[: each["num_elements"]], others[each["num_elements"] :]
        bits = each["element_bits"]
        low, high = (0, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        data, scale = as_bytes(max(map(abs, own)) / (1 if bits == 1 else 2 ** (bits - 1)) or 1.0, each["scale_dtype"])
        found += data + packed([min(max(round(value / scale), low), high) - low for value in own], bits)
    return found, packed(ids, math.ceil(math.log2(config["d"])))


def row(tokens: list[int], logits: torch.Tensor, config: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a dataset, without the position of the last token, as vLLM returns no distribution for it."""
    log_probs, ids = logits[:-1].log_softmax(-1).topk(config["k"])
    found = [encode(*pair, config) for pair in zip(ids.tolist(), log_probs.tolist(), strict=True)]
    return {
        "input_ids": tokens,
        "compressed_logprobs": [list(data) for data, _ in found],
        "bytepacked_indices": [list(data) for _, data in found],
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_signals_are_those_that_were_compressed(name):
    settings, tolerance = CONFIGS[name]
    config = {"d": VOCABULARY, "k": 16, **settings}
    torch.manual_seed(0)
    texts = [[5, 6, 7, 8], [9, 10, 11], [5, 6]]
    logits = [3 * torch.randn(len(text), VOCABULARY) for text in texts]
    rows = [row(text, own, config) for text, own in zip(texts, logits, strict=True)]
    teacher = DistillKitTeacher(Dataset.from_list([rows[0], *rows]), DistillKitFormat.from_config(config))
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    teacher.forward({"input_ids": torch.tensor([[9, 10, 11, 0], texts[0]]), "attention_mask": mask})
    found = teacher.signal(None)
    for place, own in ((0, logits[1]), (1, logits[0])):
        expected = SparseSignal.from_logits(own[:-1], 16)
        signal = found[place, : len(own) - 1]
        dense = torch.full((len(own) - 1, VOCABULARY), -torch.inf).scatter(-1, signal.ids, signal.log_probs)
        assert set(map(frozenset, signal.ids.tolist())) == set(map(frozenset, expected.ids.tolist()))
        torch.testing.assert_close(dense.gather(-1, expected.ids), expected.log_probs, atol=tolerance, rtol=0)
        mass = signal.log_probs.exp().sum(-1) + signal.tail_log_prob.exp()
        torch.testing.assert_close(mass, torch.ones_like(mass), atol=1e-5, rtol=0)
        assert found.log_probs[place, len(own) - 1 :].isnan().all()
    with pytest.raises(RuntimeError, match="before `forward`"):
        teacher.signal(None)


def test_ids_use_as_few_bits_as_the_vocabulary_needs():
    for d, bits in ((2, 1), (50_257, 16), (65_536, 16), (151_936, 18)):
        config = {"d": d, "k": 2, "exact_k": 2}
        tokens = {"input_ids": [0, 1], **{name: [] for name in ("compressed_logprobs", "bytepacked_indices")}}
        data = [encode([d - 1, d // 2 - 1], [-0.5, -1.5], config)]
        tokens["compressed_logprobs"], tokens["bytepacked_indices"] = ([list(part)] for part in data[0])
        made = DistillKitFormat.from_config(config)
        assert made.widths == (8, -(-2 * bits // 8))
        teacher = DistillKitTeacher(Dataset.from_list([tokens]), made)
        teacher.forward({"input_ids": torch.tensor([[0, 1]])})
        assert teacher.signal(None).ids[0, 0].tolist() == [d - 1, d // 2 - 1]


def test_probabilities_above_one_and_unknown_tokens():
    config = {"d": 8, "k": 3, "exact_k": 3, "delta_encoding": False}
    data = [encode([1, 7, 2], values, config) for values in ([-0.2, -0.3, -9.0], [-1.0, -2.0, -math.inf])]
    tokens = {"input_ids": [3, 4, 5]} | {
        name: [list(each[part]) for each in data]
        for part, name in enumerate(("compressed_logprobs", "bytepacked_indices"))
    }
    teacher = DistillKitTeacher(Dataset.from_list([tokens]), DistillKitFormat.from_config(config), vocabulary_size=7)
    teacher.forward({"input_ids": torch.tensor([[3, 4, 5]])})
    signal = teacher.signal(None)[0, :2]
    assert signal.ids.tolist() == [[1, 2, -1], [1, -1, -1]]
    assert signal.log_probs[0, :2].tolist() == pytest.approx([-0.2, -9.0])
    assert signal.tail_log_prob.exp().tolist() == pytest.approx([1 - math.exp(-0.2) - math.exp(-9), 1 - math.exp(-1)])
    teacher = DistillKitTeacher(Dataset.from_list([tokens]), DistillKitFormat.from_config(config))
    teacher.forward({"input_ids": torch.tensor([[3, 4, 5]])})
    signal = teacher.signal(None)[0, :2]
    assert signal.tail_log_prob[0].exp() == pytest.approx(1e-6, rel=0.1)
    assert signal.log_probs[0, 0] - signal.log_probs[0, 1] == pytest.approx(0.1, abs=1e-6)


def test_training(tmp_path):
    """As from the same signals of a teacher in memory."""

    class TopK:
        def __init__(self, model):
            self.model = model

        def forward(self, inputs):
            with torch.no_grad():
                self.found = SparseSignal.from_logits(self.model(**inputs).logits, 16)

        def signal(self, student):
            return self.found

    config = {"d": VOCABULARY, "k": 16, "exact_k": 16, "delta_encoding": False}
    model = tiny.model("qwen2", seed=3)
    texts = [list(range(start, start + 12)) for start in range(5, 60, 9)]
    with torch.no_grad():
        rows = Dataset.from_list([row(text, model(torch.tensor([text])).logits[0], config) for text in texts])
    losses = []
    for teacher in (DistillKitTeacher(rows, DistillKitFormat.from_config(config)), TopK(model)):
        args = AKDConfig(str(tmp_path), max_length=64, **tiny.SHORT_RUN)
        data = rows.select_columns("input_ids").map(lambda each: {"labels": each["input_ids"]})
        made = AKDTrainer(tiny.model(), teacher, args, train_dataset=data, processing_class=tiny.tokenizer())
        made.train()
        losses.append([log["loss"] for log in made.state.log_history if "loss" in log])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][0] > 0


GOOD = {"d": 8, "k": 2, "exact_k": 2}
ROWS = {"input_ids": [[1, 2]], "compressed_logprobs": [[[0] * 8]], "bytepacked_indices": [[[0]]]}


@pytest.mark.parametrize(
    ("config", "rows", "tokens", "complaint"),
    [
        ({**GOOD, "exact_k": 3}, ROWS, [1, 2], "`k` is 2, `exact_k` 3 and `d` 8; give 0 <= exact_k <= k <= d"),
        ({**GOOD, "exact_dtype": "int8"}, ROWS, [1, 2], "'int8' is not a dtype of DistillKit; choose from float16"),
        ({**GOOD, "polynomial_terms": ["log"]}, ROWS, [1, 2], "`polynomial_terms` has 'log'; give integers"),
        (
            {**GOOD, "residual_bins": [vars(ResidualBin("float32", 4, 1))]},
            ROWS,
            [1, 2],
            "more elements than k - exact",
        ),
        ({"k": 128, "exact_k": 32, "vocab_size": 9}, ROWS, [1, 2], "'vocab_size', which DistillKit's current format"),
        ({"k": 2, "exact_k": 2}, ROWS, [1, 2], "the configuration is not DistillKit's .*'d'"),
        ({**GOOD, "k": 3}, ROWS, [1, 2], "has 8 bytes of log-probabilities and 1 of ids, but .* needs 8 and 2; give"),
        (GOOD, {"input_ids": [[1, 2]], "top_values": [[1.0]]}, [1, 2], "no column 'compressed_logprobs', 'bytepacked"),
        (GOOD, ROWS, [1, 2, 3], "no row with the 3 tokens of a row of the batch; train on its own `input_ids`"),
    ],
)
def test_what_cannot_be_read(config, rows, tokens, complaint):
    with pytest.raises(ValueError, match=complaint):
        DistillKitTeacher(Dataset.from_dict(rows), DistillKitFormat.from_config(config)).forward(
            {"input_ids": torch.tensor([tokens])}
        )
