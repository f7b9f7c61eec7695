"""Upload of a student, its tokenizer and its card to the Hub, without the rest of the output folder."""

import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import hub

__all__ = ["upload_student"]

_STAGING = ".upload"


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
    training arguments with the Hub token. Here the student is first saved to a separate folder.

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
    shutil.copy(output_dir / "README.md", folder)
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
    trainer._finish_current_push()
    try:
        done = hub.hf_api().upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=folder,
            commit_message=commit_message,
            token=token,
            run_as_future=not blocking,
            revision=args.hub_revision if revision is None else revision,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if blocking:
        shutil.rmtree(folder)
    else:
        done.add_done_callback(lambda _: shutil.rmtree(folder, ignore_errors=True))
    return done
