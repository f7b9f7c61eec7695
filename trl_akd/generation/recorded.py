"""A generator whose completions are kept, so that nothing is generated twice however often a run begins again."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from ..ledger import Ledger
from .protocol import Completion, GenerationError, TextGenerator

__all__ = ["RecordedGenerator"]


class RecordedGenerator:
    """Answer from a file what was asked before, and ask the generator for the rest alone.

    Samples of a prompt depend on prompt and seed alone, so a run that repeats its calls gets the same completions,
    whether it was interrupted or not. Calls need a seed, or nothing of theirs is recognised.

    Args:
        generator (`TextGenerator`):
            Who is asked.
        ledger ([`Ledger`]):
            Where completions are kept; its settings name the model.

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

    def __init__(self, generator: TextGenerator, ledger: Ledger) -> None:
        self._generator = generator
        self._ledger = ledger
        self._known: dict[str, list[Completion]] = {}
        for row, where in ledger.read():
            try:
                self._known[row["key"]] = [Completion(**completion) for completion in row["completions"]]
            except (KeyError, TypeError) as error:
                raise ValueError(f"{where} is no record of a generator; give another output.") from error

    def generate(
        self,
        prompts: list[str],
        *,
        n: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> list[list[Completion]]:
        """Continue each prompt `n` times, as `TextGenerator.generate` says.

        Raises:
            GenerationError: If the generator fails. Prompts of which it had all completions are kept.
            OSError: If the disk is full.
        """
        asked = Counter(prompts)
        settings = [n, temperature, top_p, max_new_tokens, list(stop), seed]
        keys = {prompt: _key(prompt, times, settings) for prompt, times in asked.items()}
        # A prompt that is given twice is asked, and kept, as a whole: its samples are numbered through.
        missing = [prompt for prompt in prompts if keys[prompt] not in self._known]
        if missing:
            try:
                found = self._generator.generate(
                    missing,
                    n=n,
                    temperature=temperature,
                    top_p=top_p,
                    max_new_tokens=max_new_tokens,
                    stop=stop,
                    seed=seed,
                )
            except GenerationError as error:
                self._keep(keys, asked, n, zip(missing, error.completions, strict=False))
                raise
            self._keep(keys, asked, n, zip(missing, found, strict=True))
        rest = {prompt: iter(self._known[key]) for prompt, key in keys.items()}
        return [[next(rest[prompt]) for _ in range(n)] for prompt in prompts]

    def _keep(
        self, keys: dict[str, str], asked: Counter[str], n: int, found: Iterable[tuple[str, list[Completion]]]
    ) -> None:
        """Write down, then remember, the completions of each prompt that has all of them."""
        by_prompt: dict[str, list[Completion]] = {}
        for prompt, completions in found:
            by_prompt.setdefault(prompt, []).extend(completions)
        whole = {keys[prompt]: several for prompt, several in by_prompt.items() if len(several) == n * asked[prompt]}
        self._ledger.append(
            [
                {"key": key, "completions": [asdict(completion) for completion in completions]}
                for key, completions in whole.items()
            ]
        )
        self._known |= whole


def _key(prompt: str, times: int, settings: Sequence[object]) -> str:
    text = json.dumps([prompt, times, *settings])
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]
