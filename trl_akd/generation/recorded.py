"""Generator that records its completions, so that a restarted run generates nothing twice."""

import copy
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any, Self

from ..distributed import run_on_main_and_broadcast
from ..ledger import Ledger, read_json_line
from .protocol import GREEDY, Arrival, Completion, SamplingParams, StreamingGenerator, TextGenerator, Usage, stream

__all__ = ["CompletionStore", "RecordedGenerator", "read_completion"]

_RECORD = ("key", "name", "completions", "num_tokens")


class CompletionStore:
    """Recorded completions in a ledger, which generators and processes share.

    The ledger is read once. The main process keeps the positions of the records, and reads a record when it is needed.

    Args:
        ledger ([`Ledger`], *optional*):
            File of completions. `None` on processes other than the main one.
        accelerator (`Accelerator`, *optional*):
            Accelerator of the processes, all of which then make the same calls.

    Raises:
        ValueError: If a line of the ledger is not a record of a generator.
    """

    def __init__(self, ledger: Ledger | None, accelerator: Any = None) -> None:
        self._ledger = ledger
        self._accelerator = accelerator
        self._positions: dict[str, int] = {}
        self._refused: set[str] = set()
        run_on_main_and_broadcast(accelerator, self._locate)

    @property
    def refused(self) -> frozenset[str]:
        """Keys of the records of refused prompts, on the main process."""
        return frozenset(self._refused)

    def find(self, keys: Collection[str]) -> dict[str, list[Completion]]:
        """Return the recorded completions of those keys of the main process that have any."""
        return run_on_main_and_broadcast(self._accelerator, lambda: self._read(keys))

    def add(self, key: str, completions: Sequence[Completion], facts: Mapping[str, Any]) -> None:
        """Record the completions of a key, with further facts."""
        record = {**facts, "completions": [asdict(completion) for completion in completions]}
        run_on_main_and_broadcast(self._accelerator, lambda: self._append(key, completions, record))

    def _locate(self) -> None:
        assert self._ledger is not None, "the main process needs a ledger"
        for row, where, position in self._ledger.locate():
            try:
                self._note(row["key"], _completions(row), position)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{where} is not a record of a generator; give another output.") from error

    def _read(self, keys: Collection[str]) -> dict[str, list[Completion]]:
        assert self._ledger is not None, "the main process needs a ledger"
        with open(self._ledger.path, "rb") as file:
            return {
                key: _completions(read_json_line(file, self._positions[key])) for key in keys if key in self._positions
            }

    def _append(self, key: str, completions: Sequence[Completion], record: Mapping[str, Any]) -> None:
        assert self._ledger is not None, "the main process needs a ledger"
        [position] = self._ledger.append([record])
        self._note(key, completions, position)

    def _note(self, key: str, completions: Sequence[Completion], position: int) -> None:
        self._positions[key] = position
        self._refused.discard(key)
        if any(completion.finish_reason == "refused" for completion in completions):
            self._refused.add(key)


class RecordedGenerator(StreamingGenerator):
    """Replay recorded completions from a file, and generate only the rest.

    Samples depend only on prompt and seed, so a run that repeats its calls gets the same completions, whether it was
    interrupted or not. Calls without a seed are never replayed. A prompt is written to disk when the
    last of its completions has arrived; a prompt with only some completions is generated again. Refused prompts are
    recorded and not retried unless `retry_refused` is set.

    Args:
        generator (`TextGenerator`):
            Generator.
        ledger ([`Ledger`] or [`CompletionStore`], *optional*):
            File of completions; its settings name the model. `None` on processes other than the main one. Generators
            that share a store do not read the file again.
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
        ledger: Ledger | CompletionStore | None,
        *,
        name: str | None = None,
        accelerator: Any = None,
        retry_refused: bool = False,
    ) -> None:
        self._generator = generator
        self._store = ledger if isinstance(ledger, CompletionStore) else CompletionStore(ledger, accelerator)
        self._name = name
        self._facts: dict[str, Any] = {}
        self._retried = set(self._store.refused) if retry_refused else set()

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
        known = self._store.find([key for key in keys.values() if key not in self._retried])
        missing = [index for index, prompt in enumerate(prompts) if keys[prompt] not in known]
        for prompt, indices in places.items():
            if keys[prompt] in known:
                yield from _distribute(known[keys[prompt]], indices)
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

    def _key(self, prompt: str, times: int, sampling: SamplingParams) -> str:
        values = [sampling.n, sampling.temperature, sampling.top_p, sampling.max_new_tokens, list(sampling.stop)]
        text = json.dumps([prompt, times, *values, sampling.seed, *([] if self._name is None else [self._name])])
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]

    def _keep(self, key: str, completions: list[Completion]) -> None:
        """Record all completions of a prompt."""
        tokens = [completion.num_tokens for completion in completions if completion.num_tokens is not None]
        facts = {
            **self._facts,
            "key": key,
            "name": self._name,
            "num_tokens": sum(tokens) if len(tokens) == len(completions) else None,
        }
        self._store.add(key, completions, facts)
        self._retried.discard(key)


def read_completion(value: Mapping[str, Any]) -> Completion:
    """Return a completion from the plain values of `dataclasses.asdict`.

    Raises:
        TypeError: If fields are unknown or missing.
    """
    usage = value.get("usage")
    return Completion(**{**value, "usage": None if usage is None else Usage(**usage)})


def _completions(row: Mapping[str, Any]) -> list[Completion]:
    return [read_completion(completion) for completion in row["completions"]]


def _distribute(completions: Sequence[Completion], places: Sequence[int]) -> Iterator[Arrival]:
    """Distribute the completions of a prompt among its indices in a call."""
    each = len(completions) // len(places)
    for turn, place in enumerate(places):
        yield place, list(completions[turn * each : (turn + 1) * each])
