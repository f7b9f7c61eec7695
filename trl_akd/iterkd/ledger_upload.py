"""The ledger of a run as a dataset on the Hub."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd
from transformers.utils import hub

__all__ = ["upload_ledger"]

_CARD = """---
configs:
{configs}---

# Ledger of an IterKD run

What teacher, judge and student were asked and wrote (`completions`), how programs ran (`verdicts`), and the questions,
pairs, feedback and reports of the cycles (`items`). The student: [{student}](https://huggingface.co/{student}).
The texts are the models'; their licences apply.
"""


def upload_ledger(folder: Path, student: str, *, token: str | None, private: bool) -> str:
    """Upload the lines of a ledger in one commit, without the settings beside them, which name local paths.

    Args:
        folder (`Path`):
            The ledger's folder.
        student (`str`):
            The student's repository; the dataset's is named after it.
        token (`str`, *optional*):
            Token with write permission.
        private (`bool`):
            Whether the dataset is private, where it is new.

    Returns:
        `str`: Name of the dataset.
    """
    name = f"{student}-ledger"
    files = sorted(file for file in folder.glob("*.jsonl") if file.stat().st_size)
    configs = "".join(f"- config_name: {file.stem}\n  data_files: {file.name}\n" for file in files)
    card = CommitOperationAdd("README.md", _CARD.format(configs=configs, student=student).encode())
    api = hub.hf_api()
    api.create_repo(name, repo_type="dataset", private=private, exist_ok=True, token=token)
    api.create_commit(
        repo_id=name,
        repo_type="dataset",
        operations=[card, *(CommitOperationAdd(file.name, file) for file in files)],
        commit_message="Ledger",
        token=token,
    )
    return name
