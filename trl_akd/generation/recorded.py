"""A generator whose completions are kept, so that nothing is generated twice however often a run begins again."""

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
    """Answer from a file what was asked before, and ask the generator for the rest alone.

    Samples of a prompt depend on prompt and seed alone, so a run that repeats its calls gets the same completions,
    whether it was interrupted or not. Calls need a seed, or nothing of theirs is recognised. A prompt is on disk as
    soon as the generator hands over the last of its completions; one of which only some had come is asked for anew.
    Refused prompts are kept as such and not asked again unless `retry_refused` is set.

    Args:
        generator (`TextGenerator`):
            Who is asked.
        ledger ([`Ledger`], *optional*):
            Where completions are kept; its settings name the model. `None` on processes other than the main one.
        name (`str`, *optional*):
            Tells generators apart that share a ledger.
        accelerator (`Accelerator`, *optional*):
            That of a generator that shares its work over several processes, all of which then make the same calls.
        retry_refused (`bool`, *optional*, defaults to `False`):
            Ask again for the prompts that the ledger has as refused.

    Raises:
        ValueError: If a line of the ledger is no such record.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> class Clock:
    ...     calls = 0
    ...     def generate(self, prompts, **settings):
    ...         self.calls += 1
    ...         return [[Completion(f"{prompt} {self.calls}", -1.0, "stop", 2)] for prompt in prompts]
    >>> with TemporaryDirectory() as folder, Ledger(Path(folder) / "calls.jsonl", {"model": "clock"}) as ledger:
    ...     recorded = RecordedGenerator(Clock(), ledger)
    ...     _ = recorded.generate(["tick"], seed=0)
    ...     [[[tick]], [[tock]]] = recorded.generate(["tick"], seed=0), recorded.generate(["tock"], seed=0)
    >>> tick.text, tock.text
    ('tick 1', 'tock 2')

    ```
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
        """Return this generator, but with JSON values to be written beside each of its new records.

        Raises:
            ValueError: If a record has a field of its own by that name.
        """
        for fact in facts:
            if fact in _RECORD:
                raise ValueError(f"`{fact}` is a field of every record; give the fact another name.")
        noting = copy.copy(self)
        noting._facts = {**self._facts, **facts}
        return noting

    def stream(self, prompts: list[str], sampling: SamplingParams = GREEDY) -> Iterator[Arrival]:
        """Yield what is known, then the rest as it comes and is written down.

        Raises:
            GenerationError: If the generator fails. Prompts of which it had all completions are kept.
            OSError: If the disk is full.
        """
        # A prompt that is given twice is asked, and kept, as a whole: its samples are numbered through.
        places: defaultdict[str, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            places[prompt].append(index)
        keys = {prompt: self._key(prompt, len(indices), sampling) for prompt, indices in places.items()}
        missing = [index for index, prompt in enumerate(prompts) if keys[prompt] not in self._known]
        for prompt, indices in places.items():
            if keys[prompt] in self._known:
                yield from _dealt(self._known[keys[prompt]], indices)
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
                yield from _dealt(whole, indices)

    def _read(self) -> dict[str, list[Completion]]:
        assert self._ledger is not None, "the main process needs a ledger"
        known = {}
        for row, where in self._ledger.read():
            try:
                known[row["key"]] = [read_completion(completion) for completion in row["completions"]]
            except (KeyError, TypeError) as error:
                raise ValueError(f"{where} is no record of a generator; give another output.") from error
        return known

    def _key(self, prompt: str, times: int, sampling: SamplingParams) -> str:
        values = [sampling.n, sampling.temperature, sampling.top_p, sampling.max_new_tokens, list(sampling.stop)]
        text = json.dumps([prompt, times, *values, sampling.seed, *([] if self._name is None else [self._name])])
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]

    def _keep(self, key: str, completions: list[Completion]) -> None:
        """Write down, then remember, all completions of a prompt."""
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
    """Return what `dataclasses.asdict` made plain values of.

    Raises:
        TypeError: If it has fields that a completion has not, or lacks some.
    """
    usage = value.get("usage")
    return Completion(**{**value, "usage": None if usage is None else Usage(**usage)})


def _is_refused(completions: Sequence[Completion]) -> bool:
    return any(completion.finish_reason == "refused" for completion in completions)


def _dealt(completions: Sequence[Completion], places: Sequence[int]) -> Iterator[Arrival]:
    """Deal the completions of a prompt out to the places that it has in a call."""
    each = len(completions) // len(places)
    for turn, place in enumerate(places):
        yield place, list(completions[turn * each : (turn + 1) * each])
