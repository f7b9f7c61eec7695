"""Upload of a trainer's student, its tokenizer, its card and its recipe, without the rest of the output folder."""

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from ..hub.files import Files, is_replaced, publishable, student_files
from ..hub.upload import HubError, hub_api, repeat_command, upload

__all__ = ["upload_checkpoint", "upload_student"]

logger = logging.getLogger(__name__)

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
    revision = args.hub_revision if revision is None else revision
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
                kept=repeat_command(output_dir, hub_model_id=trainer.hub_model_id, private=private, revision=revision),
                token=token,
                private=private,
                revision=revision,
                replaces=is_replaced,
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run() if blocking else hub_api().run_as_future(run)


def upload_checkpoint(trainer: Any, checkpoint: Path) -> None:
    """Upload the student of a checkpoint in the background, and the checkpoint itself if `hub_strategy` says so.

    Does nothing during another upload, unless `hub_always_push` is on.
    """
    args, running = trainer.args, trainer.push_in_progress
    if not args.hub_always_push and running is not None and not running.is_done():
        return
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    name, message = trainer.hub_model_id, f"Training in progress, step {trainer.state.global_step}"
    output_dir = Path(args.output_dir)
    where = {"token": args.hub_token, "revision": args.hub_revision}
    kept = repeat_command(output_dir, hub_model_id=name, private=args.hub_private_repo, revision=args.hub_revision)
    staging = output_dir / f"{_STAGING}-{checkpoint.name}"  # as the checkpoint may be deleted soon
    try:
        files = _copied(_files(checkpoint, output_dir), staging)
    except ValueError as error:  # such as weights in shards, which only the end of training gathers
        logger.warning("The checkpoint was not uploaded: %s", error)
        return

    def run() -> Any:
        try:
            return upload(name, files, message=message, kept=kept, replaces=is_replaced, **where)
        except (HubError, ValueError) as error:  # which nobody else sees
            logger.warning("The checkpoint was not uploaded: %s", error)
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    api = hub_api()
    jobs = [api.run_as_future(run)]
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        place = "last-checkpoint" if args.hub_strategy == HubStrategy.CHECKPOINT else checkpoint.name
        jobs.append(
            api.upload_folder(
                repo_id=name,
                folder_path=checkpoint,
                path_in_repo=place,
                commit_message=f"{message}, checkpoint",
                run_as_future=True,
                **where,
            )
        )
    if running is None or running.is_done():
        trainer.push_in_progress = PushInProgress(jobs)
    else:
        running.jobs.extend(jobs)


def _copied(files: Files, folder: Path) -> Files:
    """Return the files with copies in a folder in place of paths."""
    for name, content in files.items():
        if isinstance(content, Path):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(content, folder / name)
    return {name: folder / name if isinstance(content, Path) else content for name, content in files.items()}


def _files(folder: Path, output_dir: Path) -> Files:
    beside = {name: publishable(output_dir / name) for name in _BESIDE if (output_dir / name).is_file()}
    return {**student_files(folder), **beside}
