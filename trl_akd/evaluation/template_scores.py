"""Scores of prompt templates: a model's likelihood of the reference answers after each prompt, and its entropy.

A teacher can only pass on what it assigns to the answers of the training data. A template that it does not know makes
the same answers less likely.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.collators import DataCollatorForDistillation
from ..data.schema import detect_format
from ..data.tokenization import tokenize_dataset
from ..heads import evaluating, final_hidden_states, lm_head
from ..losses.reduction import IGNORE_INDEX
from ..metrics.statistics import paired_mean

__all__ = ["TemplateScores", "score_templates", "summarize_templates", "template_table"]

_TOKENS_PER_CHUNK = 512  # whose logits are in memory together


@dataclass(frozen=True, slots=True)
class TemplateScores:
    """Scores of one template, each with one number per row.

    Args:
        log_probs (`list[float]`):
            Mean log-probability of the answer's tokens, in nats.
        entropies (`list[float]`):
            Mean entropy of the model's distribution at these tokens, in nats.
    """

    log_probs: list[float]
    entropies: list[float]


def score_templates(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    templates: Sequence[str],
    *,
    max_length: int | None = None,
    batch_size: int = 8,
) -> dict[str, TemplateScores]:
    """Compute the scores of templates on the same rows.

    The answer includes its EOS token, as in training. Its tokens are the same for all templates.

    Args:
        model (`PreTrainedModel`):
            Causal language model, usually the teacher.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        dataset (`Dataset`):
            Rows with the columns `instruction`, `output` and, optionally, `input`.
        templates (`Sequence[str]`):
            Names of templates in `trl_akd.data.templates.PROMPT_TEMPLATES`.
        max_length (`int`, *optional*):
            Maximum number of tokens of a row. A row that is longer with one of the templates is left out for all.
        batch_size (`int`, *optional*, defaults to `8`):
            Number of rows per forward pass.

    Returns:
        `dict[str, TemplateScores]`: The scores by template.

    Raises:
        ValueError: If rows have other columns, if none has an answer and fits into `max_length`, or if the model's
            logits are not finite.
    """
    if (kind := detect_format(dataset.column_names)) != "alpaca":
        raise ValueError(
            f"the dataset is in the format {kind!r}, to which no prompt template applies; give one with the columns "
            "`instruction` and `output`."
        )
    rows = {
        template: tokenize_dataset(dataset, tokenizer, max_length=None, prompt_template=template)[0]
        for template in templates
    }
    longest = [
        max(map(len, lengths)) for lengths in zip(*(found["input_ids"] for found in rows.values()), strict=True)
    ]
    kept = [index for index, length in enumerate(longest) if max_length is None or length <= max_length]
    if not kept:
        raise ValueError(
            f"no row fits into {max_length} tokens with all templates, the shortest takes {min(longest)}; raise "
            "`max_length`."
        )
    scores = {template: _scores(model, tokenizer, found.select(kept), batch_size) for template, found in rows.items()}
    for template, found in scores.items():
        if not all(map(math.isfinite, found.log_probs)):
            raise ValueError(
                f"the model's logits after the template {template!r} are not finite; load it in another precision, "
                "such as `dtype: float32`, or check its weights."
            )
    return scores


@torch.no_grad()
def _scores(model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, batch_size: int) -> TemplateScores:
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    collate, head = DataCollatorForDistillation(pad), lm_head(model)
    log_probs, entropies = list[float](), list[float]()
    with evaluating(model):
        for start in range(0, len(rows), batch_size):
            batch = collate(rows.select(range(start, min(start + batch_size, len(rows)))).to_list())
            device = head.weight.device  # the model may be on several
            labels = batch.pop("labels")[:, 1:].to(device)
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            hidden = final_hidden_states(model, inputs)[:, :-1].to(device)
            is_target = labels != IGNORE_INDEX
            scored = torch.cat(
                [
                    _score_tokens(head.logits(some).float(), targets)
                    for some, targets in zip(
                        torch.split(hidden[is_target], _TOKENS_PER_CHUNK),
                        torch.split(labels[is_target], _TOKENS_PER_CHUNK),
                        strict=True,
                    )
                ]
            )
            for row in torch.split(scored.cpu().double(), is_target.sum(1).tolist()):
                log_prob, entropy = row.mean(0).tolist()
                log_probs.append(log_prob)
                entropies.append(entropy)
    return TemplateScores(log_probs, entropies)


def _score_tokens(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-probability of each target, and the entropy of the distribution that it is from: `[N, 2]`."""
    log_probs = logits.log_softmax(-1)
    entropies = -(log_probs.exp() * log_probs).nan_to_num(0.0).sum(-1)  # a token that is impossible adds nothing
    return torch.stack([log_probs.gather(-1, targets[:, None])[:, 0], entropies], dim=-1)


def summarize_templates(scores: Mapping[str, TemplateScores]) -> dict[str, Any]:
    """Return the means of each template, the numbers of rows on which it is best, and its differences to the best one.

    Differences in log-probability are paired by row, with a 95 % interval by Student's t. Ties count for all templates
    that share the best value of a row.
    """
    best = max(scores, key=lambda name: fmean(scores[name].log_probs))
    most = [max(values) for values in zip(*(found.log_probs for found in scores.values()), strict=True)]
    least = [min(values) for values in zip(*(found.entropies for found in scores.values()), strict=True)]
    summary: dict[str, Any] = {"rows": len(most), "best": best, "templates": {}}
    for name, found in scores.items():
        summary["templates"][name] = {
            "log_prob": fmean(found.log_probs),
            "entropy": fmean(found.entropies),
            "rows_most_likely": sum(value == top for value, top in zip(found.log_probs, most, strict=True)),
            "rows_least_entropy": sum(value == low for value, low in zip(found.entropies, least, strict=True)),
        }
        if name != best and len(most) > 1:
            compared = paired_mean(found.log_probs, scores[best].log_probs)
            summary["templates"][name]["minus_best"] = [compared.difference, compared.low, compared.high]
    return summary


def template_table(summary: Mapping[str, Any]) -> str:
    """Return a summary as a Markdown table, the most likely template first."""
    lines = [
        f"| template | log-probability, nats per token | minus {summary['best']} [95 % interval] | entropy, nats | "
        "most likely, rows | least entropy, rows |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in sorted(summary["templates"].items(), key=lambda item: -item[1]["log_prob"]):
        difference = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["minus_best"]) if "minus_best" in row else ""
        lines.append(
            f"| {name} | {row['log_prob']:.3f} | {difference} | {row['entropy']:.3f} | {row['rows_most_likely']} | "
            f"{row['rows_least_entropy']} |"
        )
    return "\n".join(lines)
