"""Upload of a trainer's student, its tokenizer, its card and its recipe, without the rest of the output folder."""

import shutil
from pathlib import Path
from typing import Any

from ..hub.files import Files, is_replaced, student_files
from ..hub.upload import hub_api, repeat_command, upload

__all__ = ["upload_student"]

_STAGING = ".upload"
_BESIDE = ("README.md", "recipe.yaml", "beta.svg")


def upload_student(
    trainer: Any,
    *,
    commit_message: str | None,
    blocking: bool,
    token: str | None,
    revision: str | None,
    private: bool | None,
    **card: Any,
) -> Any:
    """Upload a trainer's student in one commit. All processes must call it.

    Transformers would upload the whole output folder, including a run's ledger, the students of other cycles, and the
    training arguments. Here the student is first saved to a separate folder.

    Args:
        trainer (`AKDTrainer`):
            The trainer.
        commit_message (`str`, *optional*), blocking (`bool`), token (`str`, *optional*), revision (`str`, *optional*),
        private (`bool`, *optional*):
            As in [`transformers.Trainer.push_to_hub`].
        **card:
            Arguments of the trainer's `create_model_card`.

    Returns:
        `CommitInfo` or a future of one, on the main process.
    """
    args = trainer.args
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    token = args.hub_token if token is None else token
    private = args.hub_private_repo if private is None else private
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token, private=private)
    output_dir = Path(args.output_dir)
    folder = output_dir / _STAGING
    if trainer.is_world_process_zero():
        shutil.rmtree(folder, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(folder), _internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    trainer.create_model_card(**card)
    trainer._finish_current_push()

    def run() -> Any:
        try:
            return upload(
                trainer.hub_model_id,
                _files(folder, output_dir),
                message=commit_message or "Upload of the student",
                kept=repeat_command(output_dir, "hub_model_id", trainer.hub_model_id),
                token=token,
                private=private,
                revision=args.hub_revision if revision is None else revision,
                replaces=is_replaced,
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run() if blocking else hub_api().run_as_future(run)


def _files(folder: Path, output_dir: Path) -> Files:
    beside = {name: output_dir / name for name in _BESIDE if (output_dir / name).is_file()}
    return {**student_files(folder), **beside}
