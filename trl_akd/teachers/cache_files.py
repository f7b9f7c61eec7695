"""Files of a teacher cache: a manifest, the LM head, and shards of signals that are found by the tokens of a row.

A row's signal depends on its tokens alone, so its key is a digest of them. Shuffling, epochs, packing and batch sizes
do not change it, and equal rows are stored once. Only the positions of targets are stored.

Every file is written under another name, flushed and renamed, so that a shard exists completely or not at all.
"""

import errno
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..hub.download import download_dataset
from ..hub.model_card import hub_name
from ..hub.upload import HubError
from ..ledger import replace_text
from ..losses.lm_head import LMHead

__all__ = [
    "HEAD",
    "MANIFEST",
    "SHARDS",
    "CacheDtype",
    "CacheKind",
    "CachedRow",
    "Manifest",
    "ShardReader",
    "find_cache",
    "is_whole",
    "manifest_text",
    "read_head",
    "read_manifest",
    "row_key",
    "shard_path",
    "write_head",
    "write_manifest",
    "write_shard",
]

CacheKind = Literal["hidden", "sparse"]
CacheDtype = Literal["auto", "bfloat16", "float16", "float32", "int8"]

MANIFEST = "manifest.json"
HEAD = "head.safetensors"
SHARDS = "shard-*.safetensors"
FORMAT = 1
AGAIN = "run the same `trl-akd cache` command again, which writes what is missing"
_KEY_BYTES = 16
_NOT_IN_IDENTITY = ("data", "measured", "published")
_DTYPES = {"hidden": ("int8", "float16", "bfloat16", "float32", "float64"), "sparse": ("packed",)}
_WIDTH = {"hidden": "hidden_size", "sparse": "top_k"}


class CachedRow(NamedTuple):
    """Tokens of a row `[T]`, int32, and whether the next token of each position is a target `[T]`, bool."""

    tokens: NDArray[np.int32]
    is_target: NDArray[np.bool_]

    @classmethod
    def from_labels(
        cls, tokens: Sequence[int] | NDArray[Any], labels: Sequence[int] | NDArray[Any], ignore_index: int = -100
    ) -> Self:
        """Return a row from labels that are aligned with its tokens."""
        is_target = np.zeros(len(tokens), dtype=bool)
        is_target[:-1] = np.asarray(labels)[1:] != ignore_index
        return cls(np.asarray(tokens, dtype=np.int32), is_target)


@dataclass(frozen=True)
class Manifest:
    """Description of a teacher cache.

    Args:
        kind (`str`):
            `"hidden"`, final hidden states and the LM head, or `"sparse"`, the most probable tokens and the tail.
        dtype (`str`):
            Dtype of the hidden states, `"int8"` with one scale per token, or `"packed"` for sparse signals.
        top_k (`int`, *optional*):
            Number of most probable tokens per signal, if they are stored.
        temperature (`float`):
            Temperature of their log-probabilities. Hidden states allow any.
        vocabulary_size (`int`):
            Number of leading token ids that student and teacher share.
        hidden_size (`int`, *optional*):
            Number of elements of a hidden state.
        teacher (`str`), teacher_revision (`str`, *optional*), teacher_weights (`str`, *optional*):
            The teacher's name, its revision on the Hub, and the digest of its local files.
        tokenizer (`str`):
            Digest of the student's tokenizer.
        data (`dict`):
            Settings that determine the rows, such as `max_length`, for error messages.
        rows (`int`), tokens (`int`), rows_digest (`str`):
            Number of distinct rows and of stored positions, and a digest of both.
        shards (`int`):
            Number of shards.
        measured (`dict`, *optional*):
            Divergences of a sample with the teacher and with the cache. Present once all files are written.
        published (`str`, *optional*):
            Identity that the shards repeat, if the teacher's name was shortened for publication.

    Raises:
        ValueError: If a field has an impossible value.
    """

    kind: CacheKind
    dtype: str
    top_k: int | None
    temperature: float
    vocabulary_size: int
    hidden_size: int | None
    teacher: str
    teacher_revision: str | None
    teacher_weights: str | None
    tokenizer: str
    rows: int
    tokens: int
    rows_digest: str
    shards: int
    data: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] | None = None
    published: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(CacheKind) or self.dtype not in _DTYPES[self.kind]:
            raise ValueError(f"kind {self.kind!r} and dtype {self.dtype!r} are unknown")
        numbers = ["vocabulary_size", "rows", "tokens", "shards", _WIDTH[self.kind]]
        numbers += [] if self.top_k is None else ["top_k"]
        for name in numbers:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}")
        if not isinstance(self.teacher, str) or not isinstance(self.data, dict):
            raise ValueError("the teacher's name or the settings of the data are missing")

    @property
    def identity(self) -> str:
        """Digest of everything that determines the signals, which each shard repeats."""
        if self.published is not None:
            return self.published
        known = {name: value for name, value in asdict(self).items() if name not in _NOT_IN_IDENTITY}
        return blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=_KEY_BYTES).hexdigest()

    def differences(self, other: "Manifest") -> list[str]:
        """Return `name=value, not value` for each field that differs and that both caches must share."""
        return [
            f"{entry.name}={getattr(self, entry.name)!r}, not {getattr(other, entry.name)!r}"
            for entry in fields(self)
            if entry.name not in _NOT_IN_IDENTITY and getattr(self, entry.name) != getattr(other, entry.name)
        ]


def row_key(tokens: NDArray[np.int32]) -> bytes:
    """Return the key of a row: a digest of its tokens."""
    return blake2b(tokens.astype("<i4").tobytes(), digest_size=_KEY_BYTES).digest()


def shard_path(folder: Path, manifest: Manifest, number: int) -> Path:
    """Return the path of a shard."""
    return folder / f"shard-{number:05d}-of-{manifest.shards:05d}.safetensors"


def find_cache(name: str | Path, revision: str | None = None, *, manifest_alone: bool = False) -> Path:
    """Return the folder of a cache, after downloading it if it is on the Hub.

    Args:
        name (`str` or `Path`):
            Folder, or name of a dataset on the Hub, which is a name with one slash that is no folder.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        manifest_alone (`bool`, *optional*, defaults to `False`):
            Whether to download the manifest alone.

    Raises:
        ValueError: If a revision of a folder is given, or the dataset is not a complete cache.
        HubError: If the cache cannot be downloaded.
    """
    folder, repository = Path(name).expanduser(), str(name)
    if folder.exists() or repository.count("/") != 1 or hub_name(repository) is None:
        if revision is not None:
            raise ValueError(
                f"`teacher_cache_revision` is {revision!r}, but `teacher_cache` is the folder {repository!r}; leave "
                "the revision out."
            )
        return folder
    try:
        found = download_dataset(repository, revision, [MANIFEST] if manifest_alone else [MANIFEST, HEAD, SHARDS])
    except HubError as error:
        raise HubError(f"`teacher_cache` is {repository!r}, which is not a folder. {error}") from error
    if not (found / MANIFEST).is_file():
        raise ValueError(
            f"`teacher_cache` is {repository!r}, a dataset on the Hub without {MANIFEST}: it is not a teacher cache, "
            "or its upload was interrupted; check the name, or repeat `trl-akd push`."
        )
    return found


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a cache, complete or not.

    Raises:
        ValueError: If the folder is not a teacher cache, or its manifest is damaged or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        state = "has no manifest.json" if folder.is_dir() else "is not a folder"
        raise ValueError(
            f"`teacher_cache` is {str(folder)!r}, which {state}; give the folder of a cache, or create it by "
            f"`trl-akd cache --config RECIPE --output_dir {folder}`."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found.pop("format")
        manifest = Manifest(**found) if version == FORMAT else None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it and {AGAIN}.") from error
    if manifest is None:
        raise ValueError(f"{path} has format {version}, but this version reads {FORMAT}; create the cache again.")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a cache."""
    replace_text(folder / MANIFEST, manifest_text(manifest))


def manifest_text(manifest: Manifest) -> str:
    """Return the content of a manifest's file."""
    known = {name: value for name, value in asdict(manifest).items() if name != "published" or value is not None}
    return json.dumps({"format": FORMAT, **known}, indent=2) + "\n"


def write_head(folder: Path, head: LMHead) -> None:
    """Write the teacher's LM head."""
    facts = {"logit_scale": repr(head.logit_scale)} | ({} if head.softcap is None else {"softcap": repr(head.softcap)})
    tensors = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
    _save(folder / HEAD, tensors, facts)


def read_head(folder: Path) -> LMHead:
    """Read the teacher's LM head.

    Raises:
        ValueError: If its file is missing or damaged.
    """
    with _open(folder / HEAD) as file:
        facts = file.metadata() or {}
        names = set(file.keys())
        return LMHead(
            file.get_tensor("weight"),
            file.get_tensor("bias") if "bias" in names else None,
            float(facts["logit_scale"]),
            float(facts["softcap"]) if "softcap" in facts else None,
        )


def write_shard(
    folder: Path, manifest: Manifest, number: int, rows: Sequence[CachedRow], stored: Mapping[str, Tensor]
) -> None:
    """Write a shard.

    Args:
        folder (`Path`), manifest (`Manifest`), number (`int`):
            Cache, and the shard's number.
        rows (`Sequence[CachedRow]`):
            Rows of the shard.
        stored (`Mapping[str, torch.Tensor]`):
            Encoded signals, the targets of the first row first.

    Raises:
        OSError: If the file cannot be written, for example because the disk is full.
    """
    spans = [_spans(row.is_target) for row in rows]
    tokens = np.cumsum([0, *(int(row.is_target.sum()) for row in rows)])
    index = {
        "keys": np.frombuffer(b"".join(row_key(row.tokens) for row in rows), dtype=np.uint8).reshape(-1, _KEY_BYTES),
        "token_offsets": tokens,
        "span_offsets": np.cumsum([0, *map(len, spans)]),
        "spans": np.concatenate(spans).astype(np.int32),
    }
    assert all(len(tensor) == tokens[-1] for tensor in stored.values())
    tensors = {**{name: torch.from_numpy(array.copy()) for name, array in index.items()}, **stored}
    _save(shard_path(folder, manifest, number), tensors, {"identity": manifest.identity})


def is_whole(folder: Path, manifest: Manifest, number: int) -> bool:
    """Return whether a shard is written completely, for this manifest."""
    try:
        with safe_open(shard_path(folder, manifest, number), framework="pt") as file:
            return bool((file.metadata() or {}).get("identity") == manifest.identity)
    except (OSError, SafetensorError):
        return False


class ShardReader:
    """Rows of all shards of a cache. Signals are read from memory-mapped files.

    Args:
        folder (`Path`):
            Folder of the cache.
        manifest (`Manifest`):
            Its manifest.

    Raises:
        ValueError: If a shard is missing, damaged or of another cache.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._files = [_open(shard_path(folder, manifest, number)) for number in range(manifest.shards)]
        for number, file in enumerate(self._files):
            if (file.metadata() or {}).get("identity") != manifest.identity:
                raise ValueError(
                    f"{shard_path(folder, manifest, number)} belongs to another cache than {folder / MANIFEST}; "
                    f"delete it and {AGAIN}."
                )
        index: dict[str, list[NDArray[Any]]] = {"keys": [], "tokens": [], "spans": [], "shard": []}
        all_spans, spans_before = [], 0
        for number, file in enumerate(self._files):
            keys, tokens, ends, spans = (
                file.get_tensor(name).numpy() for name in ("keys", "token_offsets", "span_offsets", "spans")
            )
            index["keys"].append(np.ascontiguousarray(keys).view(f"S{_KEY_BYTES}")[:, 0])
            index["tokens"].append(np.stack([tokens[:-1], tokens[1:]], axis=1))
            index["spans"].append(np.stack([ends[:-1], ends[1:]], axis=1) + spans_before)
            index["shard"].append(np.full(len(keys), number))
            all_spans.append(spans)
            spans_before += len(spans)
        keys = np.concatenate(index["keys"])
        order = np.argsort(keys)
        self._keys = keys[order]
        self._tokens, self._row_spans, self._shards = (
            np.concatenate(index[name])[order] for name in ("tokens", "spans", "shard")
        )
        self._spans = np.concatenate(all_spans)
        if len(self._keys) != manifest.rows:
            raise ValueError(f"{folder} has {len(self._keys):,} rows, but its manifest {manifest.rows:,}; {AGAIN}.")

    def find(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Return the number of the row with each key, or -1 if there is none."""
        wanted = np.array(keys, dtype=f"S{_KEY_BYTES}")
        numbers = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[numbers] == wanted, numbers, -1)

    def positions(self, row: int) -> NDArray[np.int64]:
        """Return the positions of a row whose signals are stored."""
        start, stop = self._row_spans[row]
        return np.concatenate([np.arange(*span) for span in self._spans[start:stop]])

    def is_stored(self, rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether there is a signal for each position of rows, one row after another.

        Args:
            rows (`NDArray[np.int64]`):
                Results of [`find`]. A row that was not found has no signals.
            lengths (`NDArray[np.int64]`):
                Number of tokens of each row.
        """
        starts, is_found = np.cumsum(lengths) - lengths, rows >= 0
        first, stop = self._row_spans[rows[is_found]].T
        counts = stop - first
        spans = self._spans[np.arange(counts.sum()) + np.repeat(stop - np.cumsum(counts), counts)]
        spans = spans + np.repeat(starts[is_found], counts)[:, None]
        steps = np.zeros(int(lengths.sum()) + 1, dtype=np.int8)
        steps[spans[:, 0]], steps[spans[:, 1]] = 1, -1
        return np.cumsum(steps, dtype=np.int8)[:-1].astype(bool)

    def read(self, rows: Iterable[int], names: Sequence[str]) -> dict[str, Tensor]:
        """Return the stored tensors of rows, one after another."""
        parts = {name: [self._files[0].get_slice(name)[:0]] for name in names}
        for row in rows:
            file, (start, stop) = self._files[self._shards[row]], self._tokens[row]
            for name in names:
                parts[name].append(file.get_slice(name)[int(start) : int(stop)])
        return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _spans(is_target: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first position of each run of targets, and the one after its last, `[runs, 2]`."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_target, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; copy the whole cache, or {AGAIN}.") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); {AGAIN}.") from error


def _save(path: Path, tensors: Mapping[str, Tensor], facts: dict[str, str]) -> None:
    scratch = path.with_name(f"{path.name}.tmp")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch, facts)
        with open(scratch, "rb") as file:
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        scratch.unlink(missing_ok=True)
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        number = error.errno if isinstance(error, OSError) else errno.EIO
        raise OSError(
            number,
            f"{path} cannot be written ({reason}); free some space or choose another `output_dir`, and run the same "
            "command again (finished shards are kept)",
        ) from error
