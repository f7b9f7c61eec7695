r"""`trl-akd push`: upload a trained student, or generated texts, to the Hub.

```bash
trl-akd push outputs/student --hub_model_id me/student
trl-akd push outputs/student --hub_model_id me/student --private --merge_adapter
trl-akd push outputs/plans --hub_dataset_id me/plans
trl-akd push outputs/evaluation/humaneval/student --hub_dataset_id me/student-humaneval
trl-akd push outputs/teacher-cache --hub_dataset_id me/teacher-cache
```

A student is uploaded with its tokenizer, generation configuration, plan head, model card and recipe, and nothing else.
As datasets, the plans of `trl-akd plans`, the programs of `trl-akd evaluate`, the texts of `trl-akd iterkd` and the
cache of `trl-akd cache` can be uploaded.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .command import Action, start
from .errors import run

if TYPE_CHECKING:
    from ..hub.datasets import DatasetContent
    from ..hub.files import Files

__all__ = ["ACTIONS", "PushConfig", "main", "push_dataset", "push_model"]

logger = logging.getLogger(__name__)


@dataclass
class PushConfig:
    """
    Configuration of `trl-akd push`. The token is that of `HF_TOKEN` or `hf auth login`.

    Args:
        run_dir (`str`, *optional*):
            Folder to upload: the `output_dir` of a training, of `trl-akd plans`, `trl-akd evaluate` or
            `trl-akd cache`. May be given without the flag, as the first argument.
        hub_model_id (`str`, *optional*):
            Name of the model's repository, such as `me/student`. Defaults to the name of the folder, if it has a
            student, in the namespace of the token's user.
        hub_dataset_id (`str`, *optional*):
            Name of the repository of a dataset with the folder's content: plans, programs with their verdicts, the
            ledger of IterKD, or a teacher cache. Defaults to the name of the folder, if it has no student.
        private (`bool`, *optional*):
            Whether a new repository is private. Defaults to the setting of the user or organization.
        merge_adapter (`bool`, *optional*, defaults to `False`):
            Whether to upload a PEFT student as a whole model, with its adapter merged into the base model.
        base_model (`str`, *optional*):
            Name on the Hub of the model that was trained, if it was loaded from a local folder.
        revision (`str`, *optional*):
            Branch to upload to, created unless it exists. Defaults to the main branch.
        commit_message (`str`, *optional*):
            Commit message.
    """

    run_dir: str | None = None
    hub_model_id: str | None = None
    hub_dataset_id: str | None = None
    private: bool | None = field(default=None, metadata={"nargs": "?", "const": True})
    merge_adapter: bool = False
    base_model: str | None = None
    revision: str | None = None
    commit_message: str | None = None

    def __post_init__(self) -> None:
        if self.run_dir is None:
            raise ValueError("`run_dir` is missing; give the folder to upload, as in `trl-akd push outputs/student`.")


def main(argv: list[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process."""
    start("push", ACTIONS, argv)


def _argument_types() -> tuple[type, ...]:
    return (PushConfig,)


def _run(config: PushConfig) -> None:
    folder = Path(config.run_dir or "").expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"`run_dir` is {config.run_dir!r}, but there is no such folder; check the path.")
    name = folder.resolve().name
    model, dataset = config.hub_model_id, config.hub_dataset_id
    if model is None and dataset is None:
        model, dataset = (None, name) if _has_dataset_alone(folder) else (name, None)
    if model is None and (config.merge_adapter or config.base_model):
        raise ValueError("`merge_adapter` and `base_model` are for a student; give `hub_model_id`, or leave them out.")
    options: dict[str, Any] = {
        "private": config.private,
        "revision": config.revision,
        "commit_message": config.commit_message,
    }
    if model is not None:
        pushed = push_model(
            folder,
            model,
            hub_dataset_id=dataset,
            merge_adapter=config.merge_adapter,
            base_model=config.base_model,
            **options,
        )
        print(f"Student uploaded: {pushed.commit_url}")
    if dataset is not None:
        pushed = push_dataset(folder, dataset, **options)
        print(f"Dataset uploaded: {pushed.commit_url}")


def push_model(
    folder: Path,
    repository: str,
    *,
    hub_dataset_id: str | None = None,
    merge_adapter: bool = False,
    base_model: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> Any:
    """Upload the student in a folder with its card, see [`PushConfig`], and return the `CommitInfo`.

    `hub_dataset_id` is the repository of the folder's texts, which is uploaded afterwards; an error names it.

    Raises:
        ValueError: If the folder has no student or no card, there is no adapter to merge, or a file contains a secret.
        OSError: If the adapter's base model cannot be loaded.
        HubError: If the upload fails.
    """
    from ..hub.files import find_adapter_base, is_adapter, is_replaced, student_files, with_adapter_base
    from ..hub.model_card import hub_name
    from ..hub.upload import full_name, repeat_command, upload

    files: Files = student_files(folder)
    if "README.md" not in files:
        raise ValueError(
            f"{str(folder)!r} has no README.md, the model card; training writes it at its end, and "
            "`trainer.create_model_card()` at any time."
        )
    if merge_adapter and not is_adapter(files):
        raise ValueError(f"`merge_adapter` is on, but {str(folder)!r} has a whole model; leave it out.")
    base = base_model or find_adapter_base({**files, **_configs(folder)})
    with TemporaryDirectory(prefix="trl_akd-") as merged:
        if merge_adapter:
            _merge(folder, Path(merged))
            kept = {name: content for name, content in files.items() if not name.startswith("adapter_")}
            files = {**kept, **student_files(Path(merged))}
        elif is_adapter(files) and base is not None and hub_name(base) is None:
            logger.warning(
                "The adapter's base model is the local folder %s, so others cannot load the adapter; upload the whole "
                "model with `merge_adapter`, or name the model on the Hub with `base_model`.",
                base,
            )
        elif is_adapter(files) and base_model is not None:
            files = with_adapter_base(files, base_model)
        sentence = repeat_command(
            folder,
            hub_model_id=repository,
            hub_dataset_id=hub_dataset_id,
            private=private,
            merge_adapter=merge_adapter or None,
            base_model=base_model,
            revision=revision,
            commit_message=commit_message,
        )
        repository = full_name(repository, sentence, token)
        return upload(
            repository,
            {**files, "README.md": _card(folder / "README.md", repository, files, hub_name(base))},
            message=commit_message or "Upload of the student",
            kept=sentence,
            token=token,
            private=private,
            revision=revision,
            replaces=is_replaced,
        )


def push_dataset(
    folder: Path,
    repository: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> Any:
    """Upload the texts or the teacher cache in a folder, see [`PushConfig`], and return the `CommitInfo`.

    Raises:
        ValueError: If the folder has neither, the cache is not complete, or a row contains a secret.
        HubError: If the upload fails.
    """
    from ..hub.datasets import upload_dataset
    from ..hub.upload import full_name, repeat_command, upload

    kept = repeat_command(
        folder, hub_dataset_id=repository, private=private, revision=revision, commit_message=commit_message
    )
    where: dict[str, Any] = {"kept": kept, "private": private, "revision": revision}
    if _kind(folder) == "cache":
        from ..teachers.cache_card import cache_files, is_cache_file

        message = commit_message or "Upload of the teacher cache"
        repository = full_name(repository, kept)
        files = cache_files(folder, repository)
        return upload(repository, files, message=message, repo_type="dataset", replaces=is_cache_file, **where)
    return upload_dataset(repository, _content(folder), message=commit_message, **where)


def _content(folder: Path) -> "DatasetContent":
    kind = _kind(folder)
    if kind is None:
        raise ValueError(
            f"{str(folder)!r} has nothing to upload as a dataset: neither {', nor '.join(_DATASETS.values())}; give "
            "the folder of `trl-akd plans`, `trl-akd evaluate`, `trl-akd iterkd` or `trl-akd cache`."
        )
    if kind == "plans":
        from .plans import plans_content

        return plans_content(folder)
    if kind == "evaluation":
        from ..evaluation.cards import samples_content

        return samples_content(folder)
    from ..iterkd.cycle.ledger import ledger_content

    return ledger_content(folder / "ledger", folder.resolve().name)


_DATASETS: Mapping[str, str] = {
    "plans": "plans.jsonl",
    "evaluation": "samples.jsonl",
    "iterkd": "ledger/items.jsonl",
    "cache": "manifest.json",
}
"""Files by which the datasets in a folder are recognized."""


def _kind(folder: Path) -> str | None:
    return next((kind for kind, file in _DATASETS.items() if (folder / file).is_file()), None)


def _has_dataset_alone(folder: Path) -> bool:
    return _kind(folder) is not None and not any((folder / name).is_file() for name in _CONFIGS)


_CONFIGS = ("config.json", "adapter_config.json")


def _configs(folder: Path) -> dict[str, Path]:
    """Return the configurations as they are in the folder, with local paths."""
    return {name: folder / name for name in _CONFIGS if (folder / name).is_file()}


def _card(file: Path, repository: str, files: "Files", base: str | None) -> bytes:
    """Return the model card for a repository."""
    import json

    from ..hub.files import is_adapter
    from ..hub.model_card import add_base_model, rename
    from ..hub.scores import read_card

    card, config = read_card(file), files.get("config.json", b"{}")
    settings = json.loads(config if isinstance(config, bytes) else config.read_bytes())
    rename(card, repository, adapter=is_adapter(files), encoder_decoder=bool(settings.get("is_encoder_decoder")))
    if base := card.data.get("base_model") or base:
        add_base_model(card, base, adapter=is_adapter(files))
    return f"{str(card).rstrip()}\n".encode()


def _merge(folder: Path, target: Path) -> None:
    """Merge an adapter into its base model, with the plan head if there is one, and save the model."""
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM, PeftConfig

    from ..codeplan.plan_head import find_plan_head, load_plan_head

    kinds = {"SEQ_2_SEQ_LM": AutoPeftModelForSeq2SeqLM}
    task = PeftConfig.from_pretrained(str(folder)).task_type
    model = kinds.get(str(getattr(task, "value", task)), AutoPeftModelForCausalLM).from_pretrained(
        str(folder), dtype="auto", trust_remote_code=False
    )
    if find_plan_head(str(folder)) is not None:
        load_plan_head(model, str(folder))
    model.merge_and_unload().save_pretrained(target)


ACTIONS: Mapping[str, Action] = {"": Action(_argument_types, _run, one_process=True, first="run_dir")}

if __name__ == "__main__":
    raise SystemExit(run(main))
