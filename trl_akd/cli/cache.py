r"""`trl-akd cache`: run a teacher once over a dataset, and train from its stored signals.

```bash
trl-akd cache --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml \
    --output_dir outputs/teacher-cache
trl-akd cache --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml \
    --output_dir outputs/sparse-cache --cache_kind sparse --cache_top_k 64
trl-akd cache --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml \
    --output_dir outputs/teacher-cache --accelerate_config zero3
trl-akd cache inspect outputs/teacher-cache
trl-akd push outputs/teacher-cache --hub_dataset_id me/teacher-cache
```

The fields are those of the training recipe, which names the data, the student and the teacher. For a recipe of
`trl-akd codeplan`, give `--method codeplan`. An interrupted command continues when it is started again. Training reads
the cache if its recipe has `teacher_cache: FOLDER`, or `teacher_cache: me/teacher-cache` for one on the Hub.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from .command import Action, start
from .errors import run, user_errors
from .launching import check_processes
from .methods import load_method

if TYPE_CHECKING:
    from ..teachers.cache_files import Manifest

__all__ = ["ACTIONS", "CacheArguments", "InspectConfig", "create", "describe", "inspect", "main"]


@dataclass
class CacheArguments:
    """
    Arguments of `trl-akd cache` about the stored signals.

    Args:
        method (`str`, *optional*, defaults to `"akd"`):
            Training method of the recipe, as a flag: `"akd"` or `"codeplan"`.
        cache_kind (`str`, *optional*, defaults to `"hidden"`):
            Stored signal: `"hidden"`, the final hidden states and once the LM head, which give every divergence as
            from the teacher itself, or `"sparse"`, the most probable tokens and the total of all others, which is
            smaller and gives lower bounds.
        cache_dtype (`str`, *optional*, defaults to `"auto"`):
            Dtype of hidden states: `"auto"` (that of the teacher), `"bfloat16"`, `"float16"`, `"float32"` or
            `"int8"` with a scale per token.
        cache_top_k (`int`, *optional*):
            Number of most probable tokens per signal. By default 128 for sparse signals, and none for hidden states,
            with which they allow a faster loss (`teacher_tail_samples`), at `kd_temperature`.
        cache_shard_mb (`int`, *optional*, defaults to `256`):
            Maximum size of a file in MB. An interruption loses at most one per process.
    """

    method: Literal["akd", "codeplan"] = "akd"
    cache_kind: Literal["hidden", "sparse"] = "hidden"
    cache_dtype: Literal["auto", "bfloat16", "float16", "float32", "int8"] = "auto"
    cache_top_k: int | None = None
    cache_shard_mb: int = 256

    def __post_init__(self) -> None:
        for name in ("cache_top_k", "cache_shard_mb"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` is {value}; give at least 1.")
        if self.cache_kind == "sparse" and self.cache_dtype != "auto":
            raise ValueError(
                f"`cache_dtype` is {self.cache_dtype!r}, which has no effect with cache_kind='sparse'; leave it out."
            )


@dataclass
class InspectConfig:
    """
    Configuration of `trl-akd cache inspect`.

    Args:
        cache_dir (`str`, *optional*):
            Folder of the cache, or its name on the Hub. May be given without the flag, as the first argument.
        revision (`str`, *optional*):
            Branch, tag or commit of a cache on the Hub.
    """

    cache_dir: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if self.cache_dir is None:
            raise ValueError(
                "`cache_dir` is missing; give the folder of a cache, as in `trl-akd cache inspect outputs/cache`."
            )


def main(argv: list[str] | None = None) -> None:
    """Run the command with `argv`, by default the arguments of the process."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["inspect"]:
        start("cache", ACTIONS, arguments[1:], name="inspect")
        return
    with user_errors():
        types = partial(_argument_types, _find_method(arguments))
    start("cache", {"": Action(types, create)}, arguments)


def create(cache: CacheArguments, script_args: Any, training_args: Any, model_args: Any, *_: Any) -> None:
    """Create a cache, or continue its creation, and print what it holds.

    Raises:
        ValueError: If an argument is wrong, or the folder has another cache.
        OSError: If a file cannot be written; finished shards are kept.
    """
    from ..akd.cache_creation import check_folder, create_cache
    from .training import make_trainer

    check_processes(use_cpu=training_args.use_cpu, deepspeed=training_args.deepspeed is not None)
    if script_args.dry_run:
        raise ValueError("`dry_run` is on, which `trl-akd cache` does not have; leave it out.")
    if training_args.generates:
        raise ValueError(
            f"`lmbda` is {training_args.lmbda} and `seq_kd` is {training_args.seq_kd}, but a cache has signals for "
            "the data alone, not for generated text; set lmbda=0 and seq_kd=False."
        )
    check_folder(Path(training_args.output_dir).expanduser())
    # where the recipe already names the cache
    training_args.teacher_cache = training_args.teacher_cache_revision = None
    training_args.push_to_hub = False  # the trainer would create the student's repository
    trainer = make_trainer(load_method(cache.method), script_args, training_args, model_args)
    source = {"method": cache.method, "dataset_name": script_args.dataset_name}
    manifest = create_cache(
        trainer,
        training_args.output_dir,
        kind=cache.cache_kind,
        dtype=cache.cache_dtype,
        top_k=cache.cache_top_k,
        shard_mb=cache.cache_shard_mb,
        data={**source, "dataset_revision": script_args.dataset_revision},
    )
    if trainer.is_world_process_zero():
        print(describe(manifest, Path(training_args.output_dir)))


def inspect(config: InspectConfig) -> None:
    """Print what a cache holds, its size and its measured error.

    Raises:
        ValueError: If the folder is not a teacher cache, or a file of it is missing or damaged.
        HubError: If the cache is on the Hub and cannot be downloaded.
    """
    from ..teachers import CachedTeacher

    teacher = CachedTeacher(str(config.cache_dir), config.revision)
    print(describe(teacher.manifest, teacher.folder))


def describe(manifest: "Manifest", folder: Path) -> str:
    """Return what a cache holds, its size and its measured error, one fact per line."""
    from ..teachers.cache_card import describe_cache

    facts = describe_cache(manifest, folder)
    if manifest.measured is None:
        facts["measured"] = "not yet; run the same `trl-akd cache` command again"
    lines = (f"  {name:10}  {value}" for name, value in facts.items())
    return "\n".join([f"Teacher cache {folder}", *lines])


def _find_method(arguments: Sequence[str]) -> str:
    """Return the value of the flag `--method`, on which the fields of the recipe depend."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", default="akd")
    method = str(parser.parse_known_args(arguments)[0].method)
    if method == "iterkd":
        raise ValueError(
            "`--method` is 'iterkd', whose cycles train on new answers, for which no cache has signals; train with "
            "the teacher in memory."
        )
    return method if method in get_args(get_type_hints(CacheArguments)["method"]) else "akd"


def _argument_types(method: str = "akd") -> tuple[type, ...]:
    return CacheArguments, *load_method(method).argument_types()


ACTIONS: Mapping[str, Action] = {
    "": Action(_argument_types, create),
    "inspect": Action(lambda: (InspectConfig,), inspect, one_process=True, first="cache_dir"),
}

if __name__ == "__main__":
    raise SystemExit(run(main))
