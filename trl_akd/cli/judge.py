r"""`trl-akd judge`: train a small model that scores answers on the six-point rubric.

```bash
trl-akd judge train --kind regression --model_name_or_path microsoft/codebert-base \
    --train_file judgements.jsonl --test_size 0.1 --max_length 512 --output_dir outputs/judge
trl-akd judge train --kind generative --model_name_or_path Qwen/Qwen2.5-Coder-0.5B-Instruct \
    --train_file judgements.jsonl --test_size 0.1 --max_length 4096 --output_dir outputs/judge
```
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .command import Action, check_output, start_action
from .errors import run

if TYPE_CHECKING:
    from trl import SFTConfig

    from ..iterkd.judge.config import JudgeModel
    from ..iterkd.judge.training import JudgedAnswer

__all__ = ["ACTIONS", "main", "train"]


def main(argv: list[str] | None = None) -> None:
    """Run the action named first in `argv`, by default the arguments of the process."""
    start_action("judge", ACTIONS, str(__doc__), argv)


def train(config: "JudgeModel", args: "SFTConfig") -> None:
    """Train a judge, save it with its tokenizer, and evaluate it on held-out questions.

    Raises:
        OSError: If there is no such model or file.
        ValueError: If there are too few judgements, or a checkpoint would be replaced or is missing.
    """
    from transformers import set_seed

    from .training import find_checkpoint, train_and_save

    check_output("output_dir", str(args.output_dir), model_name_or_path=config.model_name_or_path)
    checkpoint = find_checkpoint(args)
    judged, held_out = _judgements(config, args.seed)
    set_seed(args.seed)  # before a head is drawn
    trainer, evaluate = _KINDS[config.kind](config, args, judged, held_out)
    train_and_save(trainer, checkpoint, evaluate if held_out else None)


def _judgements(config: "JudgeModel", seed: int) -> tuple[list["JudgedAnswer"], list["JudgedAnswer"]]:
    """Return judgements for training, and judgements of other questions for evaluation."""
    from ..iterkd.judge.training import read_judgements
    from ..text_pairs import hold_out

    judged, refused = read_judgements(_rows(cast(str, config.train_file)))
    if refused:
        counts = ", ".join(f"{count} {reason}" for reason, count in refused.items())
        print(f"{len(judged)} judgements; not readable and left out: {counts}.")
    if config.test_size is None:
        return judged, []
    rows: list[dict[str, Any]] = [{"id": row.instruction, "judged": row} for row in judged]
    train, held_out = hold_out(rows, config.test_size, seed)
    return [row["judged"] for row in train], [row["judged"] for row in held_out]


def _rows(name: str) -> list[dict[str, Any]]:
    from ..ledger import read_json_lines

    path = Path(name).expanduser()
    if path.suffix != ".json":
        return [row for row, _ in read_json_lines(path)]
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {name!r}; check the path.")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error}); correct it, or give a .jsonl file.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name} is not a JSON list of objects; give one, or a .jsonl file.")
    return rows


def _regression(
    config: "JudgeModel", args: "SFTConfig", judged: list["JudgedAnswer"], held_out: list["JudgedAnswer"]
) -> tuple[Any, Callable[[], dict[str, float]]]:
    from transformers import AutoModelForSequenceClassification

    from ..iterkd.judge.rubric import RULES
    from ..iterkd.judge.training import make_regression_trainer

    model, tokenizer = _load(
        config, AutoModelForSequenceClassification, num_labels=len(RULES), ignore_mismatched_sizes=True
    )
    trainer = make_regression_trainer(model, tokenizer, args, judged, held_out)
    return trainer, trainer.evaluate


def _generative(
    config: "JudgeModel", args: "SFTConfig", judged: list["JudgedAnswer"], held_out: list["JudgedAnswer"]
) -> tuple[Any, Callable[[], dict[str, float]]]:
    from transformers import AutoModelForCausalLM

    from ..iterkd.judge.training import judge_held_out, make_generative_trainer

    prompt = config.prompt()
    model, tokenizer = _load(config, AutoModelForCausalLM)
    trainer = make_generative_trainer(model, tokenizer, args, judged, held_out, prompt=prompt)

    def evaluate() -> dict[str, float]:
        found = judge_held_out(trainer, held_out, prompt=prompt, max_new_tokens=config.max_new_tokens)
        return {**trainer.evaluate(), **{f"eval_{name}": value for name, value in found.items()}}

    return trainer, evaluate


def _load(config: "JudgeModel", kind: Any, **settings: Any) -> tuple[Any, Any]:
    from .models import read_model

    source = {"revision": config.model_revision, "trust_remote_code": False}
    tokenizer, _ = read_model("model_name_or_path", str(config.model_name_or_path), source)
    return kind.from_pretrained(config.model_name_or_path, dtype="float32", **source, **settings), tokenizer


def _training_types() -> tuple[type, ...]:
    from ..iterkd.judge.config import JudgeModel, JudgeTrainingConfig

    return JudgeModel, JudgeTrainingConfig


_KINDS: Mapping[str, Callable[..., tuple[Any, Callable[[], dict[str, float]]]]] = {
    "regression": _regression,
    "generative": _generative,
}
ACTIONS: Mapping[str, Action] = {"train": Action(_training_types, train)}

if __name__ == "__main__":
    raise SystemExit(run(main))
