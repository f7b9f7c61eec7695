"""The collator of CodePLAN: masks, weights, draws and alternation of tasks."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tests import tiny
from trl_akd import DataCollatorForCodePLAN
from trl_akd.codeplan.collator import draw, select_task
from trl_akd.codeplan.encoding import ProblemEncoder, Task
from trl_akd.data.encoding import encode_completions

TOKENIZER = tiny.tokenizer()
EOS = TOKENIZER.eos_token
ROWS = [
    {"problem": "Add a and b.", "solution": "a + b", "plan": "1. Take a.\n2. Add b."},
    {"problem": "One.", "solution": "def one():\n    return 1", "plan": "1. Return 1."},
    {"problem": "Rest.", "solution": "x" * 40, "plan": "1. Rest."},
]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(str.strip)
PROBLEMS = st.lists(
    st.fixed_dictionaries(
        {
            "problem": TEXT,
            "solutions": st.lists(TEXT, min_size=1, max_size=3),
            "plans": st.lists(TEXT, min_size=1, max_size=3),
        }
    ),
    min_size=1,
    max_size=4,
)


def decoded(batch: dict[str, torch.Tensor], row: int) -> tuple[str, str]:
    """Texts of the masked and of the learned part of a row."""
    tokens = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    labels = batch["labels"][row][batch["attention_mask"][row].bool()]
    return TOKENIZER.decode(tokens[labels == -100]), TOKENIZER.decode(tokens[labels != -100])


def loss(batch: dict[str, torch.Tensor], per_token: torch.Tensor) -> float:
    return (batch["token_weights"] * per_token).sum().item()


def loss_by_hand(
    batch: dict[str, torch.Tensor], per_token: torch.Tensor, plan_weight: float, normalization: str = "sequence"
) -> float:
    means = []
    for task in (0, 1):
        rows = [
            per_token[row][batch["labels"][row] != -100].double()
            for row in range(len(per_token))
            if batch["task_ids"][row] == task
        ]
        means.append(
            torch.cat(rows).mean() if normalization == "token" else torch.stack([row.mean() for row in rows]).mean()
        )
    return ((1 - plan_weight) * means[0] + plan_weight * means[1]).item()


def test_both_tasks_of_every_problem() -> None:
    batch = DataCollatorForCodePLAN(TOKENIZER)(ROWS)
    assert {key: value.dtype for key, value in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.int64,
        "token_weights": torch.float32,
        "task_ids": torch.int64,
    }
    assert batch["task_ids"].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["token_weights"].shape == batch["labels"].shape == batch["input_ids"].shape
    assert decoded(batch, 0) == ("[GEN_CODE]\nQUESTION:\nAdd a and b.\n\nANSWER:\n", f"a + b{EOS}")
    assert decoded(batch, 4) == ("[GEN_PLAN]\nQUESTION:\nOne.\n\nLet's think step by step:\n", f"1. Return 1.{EOS}")
    assert (batch["token_weights"] > 0).equal(batch["labels"] != -100)
    assert (batch["input_ids"][batch["attention_mask"] == 0] == TOKENIZER.pad_token_id).all()


@settings(max_examples=60)
@given(PROBLEMS, st.floats(0, 1), st.sampled_from(["sequence", "token"]), st.integers(0, 5))
def test_loss_equals_that_of_the_paper_for_any_lengths(
    rows: list[dict[str, Any]], plan_weight: float, normalization: str, epoch: int
) -> None:
    collate = DataCollatorForCodePLAN(TOKENIZER, plan_weight, normalization=normalization, max_length=None)
    collate.set_epoch(epoch)
    batch = collate(rows)
    per_token = torch.rand(batch["labels"].shape, generator=torch.Generator().manual_seed(0))
    assert loss(batch, per_token) == pytest.approx(
        loss_by_hand(batch, per_token, plan_weight, normalization), rel=1e-5, abs=1e-7
    )
    for row in range(len(batch["input_ids"])):
        prompt, answer = decoded(batch, row)
        source = rows[row % len(rows)]
        task = Task(int(batch["task_ids"][row]))
        assert source["problem"] in prompt
        assert answer.removesuffix(EOS) in source["solutions" if task is Task.CODE else "plans"]


@pytest.mark.parametrize("plan_weight", [0.0, 0.3, 1.0])
def test_alternation(plan_weight: float) -> None:
    collate = DataCollatorForCodePLAN(TOKENIZER, plan_weight, "alternate")
    batches = [collate(ROWS) for _ in range(4)]
    assert [batch["task_ids"].unique().tolist() for batch in batches] == [[0], [1], [0], [1]]
    assert batches[0]["token_weights"].sum().item() == pytest.approx(2 * (1 - plan_weight))
    assert batches[1]["token_weights"].sum().item() == pytest.approx(2 * plan_weight)


@pytest.mark.parametrize("plan_weight", [0.25, 0.5])
def test_alternation_equals_weighting_in_expectation(plan_weight: float) -> None:
    """The mean over a code batch and a plan batch of the same problems equals a batch of both tasks."""
    weighted, alternate = (DataCollatorForCodePLAN(TOKENIZER, plan_weight, name) for name in ("weighted", "alternate"))
    both, turns = weighted(ROWS), [alternate(ROWS), alternate(ROWS)]

    def per_token(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return (batch["input_ids"] % 7 + 1).float()

    mean = sum(loss(batch, per_token(batch)) for batch in turns) / 2
    assert mean == pytest.approx(loss(both, per_token(both)), rel=1e-6)


def test_selected_task_equals_a_separate_batch() -> None:
    both = DataCollatorForCodePLAN(TOKENIZER, 0.3)(ROWS)
    alternate = DataCollatorForCodePLAN(TOKENIZER, 0.3, "alternate")
    for task in (Task.CODE, Task.PLAN):
        alone, taken = alternate(ROWS), select_task(both, task, 2.0)
        assert alone.keys() == taken.keys()
        for key in alone:
            assert torch.equal(alone[key], taken[key]), key
    rounded = DataCollatorForCodePLAN(TOKENIZER, pad_to_multiple_of=16)(ROWS)
    assert select_task(rounded, Task.PLAN, 1.0, multiple=16)["input_ids"].shape[1] == 96


# Draws


def drawing(**options: Any) -> list[tuple[int, int]]:
    """Numbers of the solution and the plan that 300 problems with four of each draw."""
    collate = DataCollatorForCodePLAN(TOKENIZER, **options)
    rows = [{"index": index, "problem": "p", "solutions": list("abcd"), "plans": list("efgh")} for index in range(300)]
    answers = [decoded(batch, row)[1][0] for batch in [collate(rows)] for row in range(600)]
    return [("abcd".index(answers[row]), "efgh".index(answers[300 + row])) for row in range(300)]


def test_solution_and_plan_are_drawn_independently() -> None:
    counts = torch.zeros(4, 4)
    for solution, plan in drawing():
        counts[solution, plan] += 1
    expected = 300 / 16
    assert ((counts - expected) ** 2 / expected).sum() < 37.7, "chi-squared of 15 degrees, 0.1 %"


def test_draws_are_a_function_of_seed_epoch_and_problem() -> None:
    assert drawing() == drawing()
    assert drawing(seed=1) != drawing()
    collate = DataCollatorForCodePLAN(TOKENIZER)
    rows = [{"problem": f"{n}", "solutions": list("abcdefgh"), "plans": list("abcdefgh")} for n in range(8)]
    together = collate(rows)
    for number, row in enumerate(rows):
        alone = collate([row])
        assert decoded(alone, 0) == decoded(together, number)
        assert decoded(alone, 1) == decoded(together, len(rows) + number)
    collate.set_epoch(1)
    later = collate(rows)
    assert [decoded(later, row) for row in range(16)] != [decoded(together, row) for row in range(16)]
    collate.set_epoch(0)
    assert torch.equal(collate(rows)["input_ids"], together["input_ids"])


def test_draws_are_fair() -> None:
    draws = [draw(range(5), "seed", key) for key in range(5000)]
    assert all(900 < draws.count(option) < 1100 for option in range(5))


def test_persistent_workers_receive_the_epoch() -> None:
    rows = [{"problem": f"{n}", "solutions": list("abcdefgh"), "plans": list("abcdefgh")} for n in range(4)]
    collate = DataCollatorForCodePLAN(TOKENIZER)
    loader = torch.utils.data.DataLoader(
        rows, batch_size=4, collate_fn=collate, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    for epoch in (0, 1, 2):
        collate.set_epoch(epoch)
        [batch] = list(loader)
        assert torch.equal(batch["input_ids"], collate(rows)["input_ids"])


# Lengths


@pytest.mark.parametrize("max_length", [64, 80, 90])
def test_solutions_are_truncated_and_prompts_are_not(max_length: int) -> None:
    row = {"problem": "p", "solution": "x" * 200, "plan": "1."}
    batch = DataCollatorForCodePLAN(TOKENIZER, max_length=max_length)([row])
    prompt, answer = decoded(batch, 0)
    assert prompt == "[GEN_CODE]\nQUESTION:\np\n\nANSWER:\n"
    assert len(prompt) + len(answer) == max_length
    assert EOS not in answer
    assert batch["token_weights"][0].sum().item() == pytest.approx(0.5)


def test_plans_that_are_too_long_are_not_drawn() -> None:
    collate = DataCollatorForCodePLAN(TOKENIZER, max_length=64)
    row = {"problem": "p", "solution": "x", "plans": ["1. " + "long " * 30, "1. Do."]}
    for epoch in range(8):
        collate.set_epoch(epoch)
        assert decoded(collate([row]), 1)[1] == f"1. Do.{EOS}"
    with pytest.raises(ValueError, match=r"The shortest plan of row 0 has \d+ tokens.*max_length=64.*never truncated"):
        collate([{**row, "plans": row["plans"][:1]}])


def test_prompts_that_are_too_long() -> None:
    with pytest.raises(ValueError, match=r"A prompt of row 1 has \d+ tokens, which max_length=96 does not allow"):
        DataCollatorForCodePLAN(TOKENIZER, max_length=96)([ROWS[0], {**ROWS[1], "problem": "p" * 90}])


def test_separate_limit_for_answers() -> None:
    batch = DataCollatorForCodePLAN(TOKENIZER, max_target_length=21)([{**ROWS[2], "plan": "1. " + "y" * 17}])
    assert (batch["labels"] != -100).sum(1).tolist() == [21, 21]


def test_widths_are_rounded_up() -> None:
    batch = DataCollatorForCodePLAN(TOKENIZER, pad_to_multiple_of=32)(ROWS)
    assert batch["input_ids"].shape[1] % 32 == 0


def test_a_tokenizer_without_a_pad_token_pads_with_eos() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = None
    batch = DataCollatorForCodePLAN(tokenizer)(ROWS)
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
    assert (batch["labels"] == tokenizer.eos_token_id).sum() == 6


# Encoder-decoders and the third task


def test_encoder_input_is_the_prompt() -> None:
    from tests.codeplan.world import roberta_tokenizer

    tokenizer = roberta_tokenizer()
    batch = DataCollatorForCodePLAN(tokenizer, is_encoder_decoder=True)(ROWS)
    assert batch["labels"].shape == batch["token_weights"].shape
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True).endswith("ANSWER:\n")
    ends = batch["attention_mask"].sum(1) - 1
    assert batch["input_ids"][:, 0].eq(tokenizer.bos_token_id).all()
    assert batch["input_ids"].gather(1, ends[:, None]).eq(tokenizer.eos_token_id).all(), "as in pre-training"
    assert tokenizer.decode(batch["labels"][0][batch["labels"][0] != -100]) == "a + b</s>"
    with pytest.raises(ValueError, match="A prompt of row 0"):
        DataCollatorForCodePLAN(tokenizer, is_encoder_decoder=True, max_length=20)(ROWS)


def test_programs_that_follow_a_plan() -> None:
    batch = DataCollatorForCodePLAN(TOKENIZER, 0.3, guided_weight=0.4)(ROWS[:1])
    assert batch["task_ids"].tolist() == [0, 1, 2]
    assert batch["token_weights"].sum(1).tolist() == pytest.approx([0.7, 0.3, 0.4])
    prompt, answer = decoded(batch, 2)
    assert prompt.endswith("Let's think step by step:\n1. Take a.\n2. Add b.\n\nANSWER:\n")
    assert answer == f"a + b{EOS}"
    collate = DataCollatorForCodePLAN(TOKENIZER, 0.3, "alternate", guided_weight=0.4)
    turns = [collate(ROWS) for _ in range(3)]
    assert [batch["token_weights"].sum().item() for batch in turns] == pytest.approx([2.1, 0.9, 1.2])


PAIRED = {
    "problem": "p",
    "solutions": ["a", "b", "c"],
    "plans": ["1. A0.", "1. B.", "1. A1.", "1. ?."],
    "plan_solutions": [0, 1, 0, None],
}


def guided_pairs(row: dict[str, Any], epochs: int = 60, tokenized: bool = False) -> set[tuple[str, str]]:
    """Plan and solution of the guided example, over many epochs."""
    collate = DataCollatorForCodePLAN(TOKENIZER, guided_weight=1.0)
    found = set()
    for epoch in range(epochs):
        collate.set_epoch(epoch)
        batch = collate([ProblemEncoder(TOKENIZER, guided=True)(row, 0) if tokenized else row])
        prompt, answer = decoded(batch, 2)
        found.add((prompt.split("step by step:\n")[1].split("\n")[0], answer.removesuffix(EOS)))
    return found


@pytest.mark.parametrize("tokenized", [False, True])
def test_guided_example_has_the_solution_of_its_plan(tokenized: bool) -> None:
    known = {("1. A0.", "a"), ("1. B.", "b"), ("1. A1.", "a")}
    found = guided_pairs(PAIRED, tokenized=tokenized)
    assert {pair for pair in found if pair[0] != "1. ?."} == known
    assert {solution for plan, solution in found if plan == "1. ?."} == {"a", "b", "c"}, "unknown: any of them"


def test_dropped_texts_do_not_change_the_pairs() -> None:
    row = {
        "problem": "p",
        "solutions": ["a", " ", "c", "d"],
        "plans": ["", "1. C.", "1. " + "long " * 300, "1. D.", "1. Blank."],
        "plan_solutions": [0, 2, 0, 3, 1],
    }
    found = guided_pairs(row)
    assert {pair for pair in found if pair[0] != "1. Blank."} == {("1. C.", "c"), ("1. D.", "d")}
    assert {solution for plan, solution in found if plan == "1. Blank."} <= {"a", "c", "d"}


def test_without_pairs_plan_and_solution_are_drawn_independently() -> None:
    row = {name: value for name, value in PAIRED.items() if name != "plan_solutions"}
    assert len(guided_pairs(row, epochs=200)) == 12


def test_pairs_do_not_change_other_draws() -> None:
    plain = {name: value for name, value in PAIRED.items() if name != "plan_solutions"}
    collate = DataCollatorForCodePLAN(TOKENIZER, guided_weight=1.0)
    for epoch in range(8):
        collate.set_epoch(epoch)
        with_pairs, without = collate([PAIRED]), collate([plain])
        for row in (0, 1):
            assert decoded(with_pairs, row) == decoded(without, row)


def test_rows_tokenized_by_an_earlier_version() -> None:
    encoded = ProblemEncoder(TOKENIZER, guided=True)(PAIRED, 0)
    del encoded["plan_solutions"]
    assert DataCollatorForCodePLAN(TOKENIZER, guided_weight=1.0)([encoded])["task_ids"].tolist() == [0, 1, 2]


def test_text_row_with_a_column_of_tokenized_rows() -> None:
    """Only all of them together make a tokenized row."""
    batch = DataCollatorForCodePLAN(TOKENIZER)([{**ROWS[0], "code_prompt": "def add(a, b):"}])
    assert decoded(batch, 0)[1] == f"a + b{EOS}"


@pytest.mark.parametrize("workers", [0, 1])
def test_alternation_in_a_worker_of_a_data_loader(workers: int) -> None:
    collate = DataCollatorForCodePLAN(TOKENIZER, schedule="alternate")
    batches = DataLoader(ROWS, batch_size=1, collate_fn=collate, num_workers=workers)
    if workers == 0:
        assert [batch["task_ids"].tolist() for batch in batches] == [[0], [1], [0]]
        return
    with pytest.raises(ValueError, match=r"set num_workers=0, or schedule='weighted' and call `alternate_tasks`"):
        next(iter(batches))


# Bad input


@pytest.mark.parametrize(
    "columns",
    [
        {"solution": "a", "plan": "1."},
        {"solution": ["a"], "plans": ["1."]},
        {"solutions": ["a"], "plans": '["1."]'},
        {"solution": "", "solutions": ["a"], "plan": None, "plans": ["1."]},
        {"solution": "a", "solutions": [], "plan": "1.", "plans": " "},
        {"solution": "a", "solutions": ["a"], "plan": "1.", "plans": ["1.", ""]},
        {"solutions": "a", "plans": "1."},
    ],
)
def test_singular_and_plural_columns(columns: dict[str, Any]) -> None:
    encoded = ProblemEncoder(TOKENIZER)({"problem": "p", **columns}, 0)
    assert [encoded["solutions"], encoded["plans"]] == [encode_completions(TOKENIZER, [text]) for text in ("a", "1.")]


def test_a_singular_among_several() -> None:
    row = {"problem": "p", "solution": "b", "solutions": ["a", "b"], "plans": "42"}
    encoded = ProblemEncoder(TOKENIZER)(row, 0)
    assert [encoded["solutions"], encoded["plans"]] == [
        encode_completions(TOKENIZER, texts) for texts in (["a", "b"], ["42"])
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": ""}, r"Row 0 has no plan that is not empty; generate one"),
        ({"plan": None}, r"Row 0 has no plan"),
        ({"plan": None, "plans": []}, r"Row 0 has no plan"),
        ({"solution": None, "solutions": ["", " \n"]}, r"Row 0 has no solution that is not empty; add one or drop"),
        ({"problem": " "}, r"The problem of row 0 is empty"),
        ({"problem": None}, r"Column 'problem' of row 0 holds NoneType"),
        ({"solution": ["x", 3]}, r"Column 'solution' of row 0 holds int, not text"),
        ({"plan": 5}, r"Column 'plan' of row 0 is 5, of type int"),
        ({"plan": 1.5}, r"Column 'plan' of row 0 is 1.5, of type float"),
        ({"plan": False}, r"Column 'plan' of row 0 is False, of type bool"),
        ({"plan": {"steps": ["1. Do."]}}, r"Column 'plan' of row 0 is {'steps': \['1. Do.'\]}, of type dict"),
        ({"plan": None, "plans": 7}, r"Column 'plans' of row 0 is 7, of type int"),
        ({"plans": ["1. Do."]}, r"Row 0 has both 'plan' and 'plans', with different texts; remove"),
        ({"solutions": ["b + a"]}, r"Row 0 has both 'solution' and 'solutions', with different texts"),
        ({"plan": None, "plans": '{"1": "Do."}'}, r"Column 'plans' of row 0 is {'1': 'Do.'}, of type dict"),
        ({"plan": [["1. Do."]]}, r"Column 'plan' of row 0 holds list, not text"),
        ({"solution": 5}, r"Column 'solution' of row 0 is 5, of type int"),
        ({"plan": "1. \ud83d"}, r"Column 'plan' of row 0 contains a lone surrogate"),
        ({"solution": "\udc00"}, r"Column 'solution' of row 0 contains a lone surrogate"),
        ({"problem": "a\ud83d"}, r"Column 'problem' of row 0 contains a lone surrogate"),
        (
            {"plan_solutions": [0, 0]},
            r"Column 'plan_solutions' of row 0 is \[0, 0\]; give a list with an entry for each of the 1",
        ),
        ({"plan_solutions": 0}, r"Column 'plan_solutions' of row 0 is 0; give a list"),
        ({"plan_solutions": [1]}, r"Column 'plan_solutions' of row 0 holds 1; give indices of the row's 1 solutions"),
        ({"plan_solutions": ["0"]}, r"Column 'plan_solutions' of row 0 holds '0'; give indices"),
        ({"plan_solutions": [True]}, r"Column 'plan_solutions' of row 0 holds True; give indices"),
    ],
)
def test_bad_rows(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataCollatorForCodePLAN(TOKENIZER)([{**ROWS[0], **change}])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan_weight": 1.5}, r"`plan_weight` is 1.5; .* must be in \[0, 1\]"),
        ({"plan_weight": -0.1}, "`plan_weight` is -0.1"),
        ({"plan_weight": float("nan")}, "`plan_weight` is nan"),
        ({"guided_weight": -1.0}, "`guided_weight` is -1.0"),
        ({"guided_weight": float("nan")}, "`guided_weight` is nan"),
        ({"guided_weight": float("inf")}, "`guided_weight` is inf"),
        ({"schedule": "mixed"}, "`schedule` is 'mixed'; choose 'weighted' or 'alternate'"),
        ({"normalization": "none"}, "`normalization` is 'none'"),
        ({"max_length": 1}, "`max_length` is 1"),
        ({"max_target_length": 0}, "`max_target_length` is 0"),
    ],
)
def test_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataCollatorForCodePLAN(TOKENIZER, **options)


def test_tokenized_rows_give_the_same_batch() -> None:
    encode = ProblemEncoder(TOKENIZER)
    collate = DataCollatorForCodePLAN(TOKENIZER)
    raw, tokenized = collate(ROWS), collate([encode(row, index) for index, row in enumerate(ROWS)])
    assert all(torch.equal(raw[key], tokenized[key]) for key in raw)
