"""Size of a cache of the teacher's signal, and whether it saves time."""

from dataclasses import dataclass

from ..teachers.sparse_codec import SparseCodec
from .duration import Duration
from .tracing import ModelTrace

__all__ = ["CacheSize", "cache_sizes"]

_TOP_K = (128, 50)


@dataclass(frozen=True)
class CacheSize:
    """Size of a cache.

    Args:
        kind (`str`):
            Content of the cache.
        bytes_per_token (`int`):
            Bytes per target token.
        size (`int`):
            Bytes of all target tokens and the LM head.
        saved (`float`):
            Seconds that it saves over the whole run, after one pass of the teacher over the data.
    """

    kind: str
    bytes_per_token: int
    size: int
    saved: float

    def __str__(self) -> str:
        """Return size and saved time as text."""
        verb = "saves" if self.saved >= 0.0 else "costs"
        return (
            f"{self.kind}: {self.size / 1e9:,.1f} GB ({self.bytes_per_token:,} bytes per target token); {verb} "
            f"{abs(self.saved) / 3600:.2f} hours of the run, and the memory of the teacher"
        )


def cache_sizes(
    teacher: ModelTrace, duration: Duration, *, target_tokens: int, steps: int, epochs: float
) -> list[CacheSize]:
    """Return the sizes of caches of the teacher's hidden states and of its most likely tokens.

    Args:
        teacher (`ModelTrace`):
            Size of the teacher.
        duration (`Duration`):
            Duration of a step with the teacher.
        target_tokens (`int`):
            Number of target tokens of the dataset.
        steps (`int`):
            Number of optimizer steps.
        epochs (`float`):
            Number of epochs. Making the cache costs one of them.
    """
    vocabulary, hidden = teacher.head
    head = 2 * vocabulary * hidden
    saved = steps * duration.parts.get("teacher's forward", 0.0) * (1.0 - 1.0 / epochs)
    kinds = [("hidden states in bfloat16", 2 * hidden, head), ("hidden states in int8", hidden + 4, head)]
    kinds += [
        (f"{k} most likely tokens", SparseCodec(vocabulary, k).bytes_per_token, 0) for k in _TOP_K if k <= vocabulary
    ]
    return [CacheSize(kind, each, each * target_tokens + fixed, saved) for kind, each, fixed in kinds]
