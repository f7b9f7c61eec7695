"""Generator that records its completions, so that a restarted run generates nothing twice."""

import copy
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Self

from ..distributed import run_on_main_and_broadcast
from ..ledger import Ledger
from .protocol import GREEDY, Arrival, Completion, SamplingParams, StreamingGenerator, TextGenerator, Usage, stream

__all__ = ["RecordedGenerator", "read_completion"]

_RECORD = ("key", "name", "completions", "num_tokens")


class RecordedGenerator(StreamingGenerator):
    """Replay recorded completions from a file, and generate only the rest.

    Samples depend only on prompt and seed, so a run that repeats its calls gets the same completions, whether it was
    interrupted or not. Calls without a seed are never replayed. A prompt is written to disk when the
    last of its completions has arrived; a prompt with only some completions is generated again. Refused prompts are
    recorded and not retried unless `retry_refused` is set.

    Args:
        generator (`TextGenerator`):
            Generator.
        ledger ([`Ledger`], *optional*):
            File of completions; its settings name the model. `None` on processes other than the main one.
        name (`str`, *optional*):
            Name that distinguishes generators with the same ledger.
        accelerator (`Accelerator`, *optional*):
            Accelerator of a generator that is shared among processes, all of which then make the same calls.
        retry_refused (`bool`, *optional*, defaults to `False`):
            Whether to retry prompts that are recorded as refused.

    Raises:
        ValueError: If a line of the ledger is not such a record.
    """

    def __init__(
        self,
        generator: TextGenerator,
        ledger: Ledger | None,
        *,
        name: str | None = None,
        accelerator: Any = None,
        retry_refused: bool = False,
    ) -> None:
        self._generator = generator
        self._ledger = ledger
        self._name = name
        self._accelerator = accelerator
        self._facts: dict[str, Any] = {}
        self._known = run_on_main_and_broadcast(accelerator, self._read)
        if retry_refused:
            self._known = {key: found for key, found in self._known.items() if not _is_refused(found)}

    def noting(self, **facts: Any) -> Self:
        """Return a copy of this generator that adds JSON values to each new record.

        Raises:
            ValueError: If a name is that of a field of all records.
        """
        for fact in facts:
            if fact in _RECORD:
                raise ValueError(f"`{fact}` is a field of all records; give the fact another name.")
        noting = copy.copy(self)
        noting._facts = {**self._facts, **facts}
        return noting

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield recorded completions, then the rest as they arrive and are recorded.

        Raises:
            GenerationError: If the generator fails. Prompts with all completions are recorded.
            OSError: If the disk is full.
        """
        # Equal prompts share a record: their samples are numbered consecutively.
        places: defaultdict[str, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            places[prompt].append(index)
        keys = {prompt: self._key(prompt, len(indices), sampling) for prompt, indices in places.items()}
        missing = [index for index, prompt in enumerate(prompts) if keys[prompt] not in self._known]
        for prompt, indices in places.items():
            if keys[prompt] in self._known:
                yield from _distribute(self._known[keys[prompt]], indices)
        if not missing:
            return
        found: dict[int, list[Completion]] = {index: [] for index in missing}
        for number, completions in stream(
            self._generator,
            [prompts[index] for index in missing],
            sampling,
        ):
            index = missing[number]
            found[index] += completions
            indices = places[prompts[index]]
            if all(len(found[place]) == sampling.n for place in indices):
                whole = list(chain.from_iterable(found[place] for place in indices))
                self._keep(keys[prompts[index]], whole)
                yield from _distribute(whole, indices)

    def _read(self) -> dict[str, list[Completion]]:
        assert self._ledger is not None, "the main process needs a ledger"
        known = {}
        for row, where in self._ledger.read():
            try:
                known[row["key"]] = [read_completion(completion) for completion in row["completions"]]
            except (KeyError, TypeError) as error:
                raise ValueError(f"{where} is not a record of a generator; give another output.") from error
        return known

    def _key(self, prompt: str, times: int, sampling: SamplingParams) -> str:
        values = [sampling.n, sampling.temperature, sampling.top_p, sampling.max_new_tokens, list(sampling.stop)]
        text = json.dumps([prompt, times, *values, sampling.seed, *([] if self._name is None else [self._name])])
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]

    def _keep(self, key: str, completions: list[Completion]) -> None:
        """Record all completions of a prompt."""
        tokens = [completion.num_tokens for completion in completions if completion.num_tokens is not None]
        record = {
            **self._facts,
            "key": key,
            "name": self._name,
            "num_tokens": sum(tokens) if len(tokens) == len(completions) else None,
            "completions": [asdict(completion) for completion in completions],
        }
        run_on_main_and_broadcast(self._accelerator, lambda: self._append(record))
        self._known[key] = completions

    def _append(self, record: dict[str, Any]) -> None:
        assert self._ledger is not None, "the main process needs a ledger"
        self._ledger.append([record])


def read_completion(value: Mapping[str, Any]) -> Completion:
    """Return a completion from the plain values of `dataclasses.asdict`.

    Raises:
        TypeError: If fields are unknown or missing.
    """
    usage = value.get("usage")
    return Completion(**{**value, "usage": None if usage is None else Usage(**usage)})


def _is_refused(completions: Sequence[Completion]) -> bool:
    return any(completion.finish_reason == "refused" for completion in completions)


def _distribute(completions: Sequence[Completion], places: Sequence[int]) -> Iterator[Arrival]:
    """Distribute the completions of a prompt among its indices in a call."""
    each = len(completions) // len(places)
    for turn, place in enumerate(places):
        yield place, list(completions[turn * each : (turn + 1) * each])
