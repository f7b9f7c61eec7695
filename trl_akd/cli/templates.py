r"""`trl-akd templates`: compare prompt templates by a model's likelihood of the reference answers.

```bash
trl-akd templates --model_name_or_path Qwen/Qwen2.5-Coder-7B \
    --dataset_name sahil2801/CodeAlpaca-20k --dataset_train_split "train[:200]" \
    --output_file outputs/templates.json
```
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from ..data.templates import get_template
from .command import Action, check_output, start
from .errors import run

__all__ = ["ACTIONS", "TemplatesConfig", "main"]


@dataclass
class TemplatesConfig:
    """
    Configuration of `trl-akd templates`.

    Args:
        model_name_or_path (`str`, *optional*):
            Model that scores the answers, usually the teacher.
        model_revision (`str`, *optional*, defaults to `"main"`):
            Branch, tag or commit of a model on the Hub.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run code in the model's repository, for architectures that transformers does not have. Read
            that code first.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Precision of the model: `"auto"`, `"bfloat16"`, `"float16"` or `"float32"`.
        device_map (`str`, *optional*):
            Placement of the model on devices, such as `"auto"`. By default, it is on one GPU if there is one.
        dataset_name (`str`, *optional*):
            Dataset on the Hub, or path of a .json, .jsonl, .parquet or .csv file or of a saved dataset, with the
            columns `instruction`, `output` and, optionally, `input`.
        dataset_config (`str`, *optional*):
            Configuration of a dataset on the Hub.
        dataset_revision (`str`, *optional*):
            Branch, tag or commit of a dataset on the Hub.
        dataset_train_split (`str`, *optional*, defaults to `"train[:200]"`):
            Rows to score.
        templates (`list[str]`, *optional*):
            Templates to compare, by default `starcoder`, `instruct_eval`, `alpaca` and `alpaca_akd_paper`.
        max_length (`int`, *optional*, defaults to `512`):
            Maximum number of tokens of a row. A row that is longer with one of the templates is left out for all.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of rows per forward pass.
        output_file (`str`, *optional*):
            JSON file of the results, by template and by row.
    """

    model_name_or_path: str | None = None
    model_revision: str = "main"
    trust_remote_code: bool = False
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device_map: str | None = None
    dataset_name: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    dataset_train_split: str = "train[:200]"
    templates: list[str] = field(default_factory=lambda: ["starcoder", "instruct_eval", "alpaca", "alpaca_akd_paper"])
    max_length: int = 512
    batch_size: int = 8
    output_file: str | None = None

    def __post_init__(self) -> None:
        for name in ("model_name_or_path", "dataset_name"):
            if getattr(self, name) is None:
                raise ValueError(f"`{name}` is not set; set it in a recipe (`--config`) or by a flag.")
        for name in self.templates:
            get_template(name)
        if not 2 <= len(set(self.templates)) == len(self.templates):
            raise ValueError(f"`templates` is {self.templates}; give at least two templates, each once.")
        for name, least in (("max_length", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give an integer of at least {least}.")


def main(argv: list[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process."""
    start("templates", ACTIONS, argv)


def _argument_types() -> tuple[type, ...]:
    return (TemplatesConfig,)


def _run(config: TemplatesConfig) -> None:
    from ..data.sources import load
    from ..distributed import default_device
    from ..evaluation.template_scores import score_templates, summarize_templates, template_table
    from ..generation.loading import load_model
    from ..ledger import replace_text
    from .models import read_model

    if config.output_file is not None:
        check_output("output_file", config.output_file, dataset_name=config.dataset_name)
    name = str(config.model_name_or_path)
    source = {"revision": config.model_revision, "trust_remote_code": config.trust_remote_code}
    dataset = load(
        str(config.dataset_name),
        config=config.dataset_config,
        split=config.dataset_train_split,
        revision=config.dataset_revision,
    )
    tokenizer, model_config = read_model("model_name_or_path", name, source)
    if model_config.is_encoder_decoder:
        raise ValueError(f"`model_name_or_path` is {name!r}, an encoder-decoder; give a causal language model.")
    model = load_model(name, source, dtype=config.dtype, device_map=config.device_map)
    if config.device_map is None:
        model = model.to(default_device())
    scores = score_templates(
        model, tokenizer, dataset, config.templates, max_length=config.max_length, batch_size=config.batch_size
    )
    summary = summarize_templates(scores)
    print(f"\n{name}, {summary['rows']} of {len(dataset)} rows\n\n{template_table(summary)}")
    if config.output_file is not None:
        rows = {template: asdict(found) for template, found in scores.items()}
        path = Path(config.output_file).expanduser()
        replace_text(path, json.dumps({"settings": asdict(config), **summary, "by_row": rows}, indent=2) + "\n")
        print(f"\nResults: {path}")


ACTIONS: Mapping[str, Action] = {"": Action(_argument_types, _run, one_process=True)}

if __name__ == "__main__":
    raise SystemExit(run(main))
