"""Runs of the experiment on IterKD: one per variant and seed."""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from datasets import Dataset
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase, PrinterCallback

from ...data.encoding import encode_completions
from ...execution import CodeExecutor
from ...generation import TransformersGenerator
from ...generation.protocol import Usage, derive_seed
from ...iterkd.cycle.records import Question
from ...iterkd.iterkd_config import IterKDConfig
from ...iterkd.iterkd_trainer import IterKDTrainer
from ...iterkd.judge.rubric import MAX_TOTAL, Judgement, format_judgement
from ..models import llama_config, new_model, pretrain, train_tokenizer
from ..tasks import Task
from ..teacher_data import JUDGE_PROMPT, TEACHING_PROMPTS, code_rows
from .cycles_config import CyclesSettings, Variant
from .cycles_judge import NoisyJudge, auc
from .cycles_teacher import ScriptedTeacher, StudentFaults
from .cycles_world import MAX_NEW_TOKENS, PASSED, CyclesWorld, QuestionPool, outcomes

BATCH_SIZE = 48
MAX_LENGTH = 96
PRETRAINING_ROWS = 16_000
TOKENIZER_TASKS = 4_000
NUM_FAULTS = 1
OLD_SHARE = 0.5


@dataclass(frozen=True)
class TokenCosts:
    """Mean numbers of tokens of a correct answer, a fault, a new question and a judgement, with their requests."""

    answer: float
    fault: float
    question: float
    judgement: float


def measure_costs(tasks: Sequence[Task], tokenizer: PreTrainedTokenizerBase) -> TokenCosts:
    def mean(texts):
        return fmean(len(ids) for ids in tokenizer(list(texts))["input_ids"])

    def asked(name):
        return mean(TEACHING_PROMPTS[name].format(instruction=task.instruction, kind="logical") for task in tasks)

    program = mean(task.solution for task in tasks) + 1
    question = mean(task.instruction for task in tasks) + 1
    judged = mean(JUDGE_PROMPT.format(instruction=task.instruction, answer=task.solution) for task in tasks) + 5
    return TokenCosts(asked("correct") + program, asked("faulty") + program, (asked("new_easy") + asked("new_same")) / 2 + question, judged)


def allot(variant: Variant, settings: CyclesSettings, costs: TokenCosts) -> int:
    has_faults = variant.faults != "none"
    fault = costs.fault if variant.faults in ("taxonomy", "logical") else 0.0
    judgement = costs.judgement if variant.judge is not None else 0.0
    verification = 2 * judgement if has_faults and not variant.keep_unverified else 0.0
    spent = settings.questions * (costs.answer + has_faults * fault + judgement + (0 if variant.tests else verification))
    new = costs.question + costs.answer + fault + verification + judgement
    if variant.questions == "same":
        return 0
    if variant.questions == "blind":
        return int((settings.teacher_tokens - spent) / new)
    later = new + judgement
    return int((settings.teacher_tokens - spent) / (variant.cycles - 1) / later)


class Student(IterKDTrainer):
    """IterKD with a number of epochs that spends a budget of tokens."""

    token_budget = 0
    trained_tokens = 0

    def train_cycle(self, pairs, *, cycle, output_dir):
        answers = [*pairs["completion"]]
        if self.args.contrastive_weight > 0:
            answers += [text for several in pairs["rejected"] for text in several]
        per_epoch = sum(map(len, encode_completions(self._tokenizer, answers)))
        self.args.num_train_epochs = self.token_budget / self.args.cycles / per_epoch
        super().train_cycle(pairs, cycle=cycle, output_dir=output_dir)
        self.trained_tokens += round(per_epoch * self.state.epoch)
        print("cycle", cycle, "pairs", len(pairs), "epochs", self.args.num_train_epochs, "steps", self.state.global_step)


def levels(variant: Variant) -> dict[str, int]:
    if variant.judge is None:
        return {"easy": 1} if variant.execution else {"medium": 1}
    if not variant.execution:
        return {"medium": 2, "hard": 2}
    return {"easy": 1, "hard": 4} if variant.judge == 1.0 else {"easy": 1, "medium": 2, "hard": 2}


def measure(model, tokenizer, world, tasks, executor, *, num_samples, seed):
    generator = TransformersGenerator(model, tokenizer, batch_size=512)
    prompts = [task.prompt for task in tasks]
    sampled = generator.generate(prompts, n=num_samples, temperature=1.0, max_new_tokens=MAX_NEW_TOKENS, seed=seed)
    greedy = generator.generate(prompts, max_new_tokens=MAX_NEW_TOKENS)
    found = outcomes([(task, c.text) for task, several in zip(tasks, sampled, strict=True) for c in several], executor)
    first = outcomes([(task, c.text) for task, [c] in zip(tasks, greedy, strict=True)], executor)
    rare = [bool(world.rare.intersection(task.operations)) for task in tasks]
    errors = Counter(o for o in found if o != PASSED)
    return {
        "pass@1": found.count(PASSED) / len(found),
        "greedy": first.count(PASSED) / len(first),
        "greedy_rare": fmean(o == PASSED for o, r in zip(first, rare) if r),
        "greedy_common": fmean(o == PASSED for o, r in zip(first, rare) if not r),
        "errors": {name: count / len(found) for name, count in errors.most_common()},
    }


def make_start(settings, seed, folder):
    world = CyclesWorld(seed, settings.num_rare, settings.rare_share)
    tokenizer = train_tokenizer(r["prompt"] + r["completion"] for r in code_rows(world.sample(TOKENIZER_TASKS, split="train", stream="tokenizer")))
    model = new_model(llama_config(tokenizer, MAX_LENGTH, hidden_size=settings.hidden_size, layers=2, heads=2), seed=seed)
    rows = list(code_rows(world.sample_pretraining(min(PRETRAINING_ROWS, settings.start_steps * BATCH_SIZE))))
    with tempfile.TemporaryDirectory() as scratch:
        pretrain(model, tokenizer, rows, output_dir=scratch, max_steps=settings.start_steps, batch_size=BATCH_SIZE, seed=seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def run(settings, variant, seed, start, num_tasks=200, num_samples=10, new=None):
    began = time.process_time()
    world = CyclesWorld(seed, settings.num_rare, settings.rare_share)
    held_out = world.sample(num_tasks, split="held_out", stream="held_out")
    seeds = world.sample(settings.questions, split="train", stream="questions")
    pool = QuestionPool(world)
    pool.add(seeds)
    tokenizer = AutoTokenizer.from_pretrained(start)
    model = LlamaForCausalLM.from_pretrained(start)
    costs = measure_costs(seeds, tokenizer)
    new = allot(variant, settings, costs) if new is None else new
    shares = levels(variant)
    requested = {f"new_{level}": round(new * shares.get(level, 0) / sum(shares.values())) for level in ("easy", "medium", "hard")}
    print(costs, new, requested)
    spent = Usage()
    with tempfile.TemporaryDirectory() as scratch, CodeExecutor(workers=1, allow_code_execution=True, timeout=1.0) as executor:
        prompts = Path(scratch) / "prompts.yaml"
        prompts.write_text(yaml.safe_dump(dict(TEACHING_PROMPTS)))
        args = IterKDConfig(
            str(Path(scratch) / "out"),
            cycles=variant.cycles,
            faults_per_question=0 if variant.faults == "none" else NUM_FAULTS,
            fault_kinds=["logical"] if variant.faults in ("own", "logical") else ["syntax", "logical", "type", "name", "timeout"],
            own_faults=variant.faults == "own",
            contrastive_weight=0.0 if variant.faults == "none" else variant.contrastive_weight,
            keep_unverified=variant.keep_unverified,
            questions_per_cycle=max(2 * new, settings.questions) if variant.questions == "same" else 2 * new or 1,
            old_share=1.0 if variant.questions == "same" else OLD_SHARE,
            **(requested if variant.questions in ("derived", "rare") else {"new_easy": 0, "new_medium": 0, "new_hard": 0}),
            prompts_file=str(prompts),
            prompt_template="comment",
            min_question_chars=10,
            novelty_threshold=0.95,
            overlap_words=20,
            objective="ce",
            max_length=MAX_LENGTH,
            answer_max_new_tokens=MAX_NEW_TOKENS,
            per_device_train_batch_size=BATCH_SIZE // (1 if variant.faults == "none" else 1 + NUM_FAULTS),
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            gradient_checkpointing=False,
            logging_steps=10_000,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            seed=seed,
        )
        rows = [{"id": task.task_id, "instruction": task.instruction, **({"tests": task.tests} if variant.tests else {})} for task in seeds]
        teacher = ScriptedTeacher(pool, tokenizer, error_rate=settings.teacher_error, only_rare=variant.questions == "rare", seed=seed)
        if variant.questions == "blind":
            rng = random.Random(f"{seed} blind")
            asked = [TEACHING_PROMPTS[rng.choice(["new_easy", "new_same"])].format(instruction=rng.choice(seeds).instruction) for _ in range(new)]
            made = teacher.generate(asked)
            spent += sum((c.usage for [c] in made), Usage())
            known = {row["instruction"] for row in rows}
            for number, [c] in enumerate(made):
                if c.text not in known:
                    known.add(c.text)
                    rows.append({"id": f"new/{number}", "instruction": c.text})
        judge = None if variant.judge is None else NoisyJudge(pool, executor, tokenizer, auc=variant.judge, seed=seed)
        trainer = Student(
            model, None, args, Dataset.from_list(rows), processing_class=tokenizer,
            text_teacher=teacher, judge=judge, executor=executor if variant.execution else None,
            held_out=[Question(task.task_id, task.instruction, task.tests) for task in held_out] , generation_batch_size=256,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.token_budget = settings.trained_tokens
        if variant.faults == "own":
            teacher._student_faults = StudentFaults(lambda: trainer.student_generator(512), executor, seed)
        before = time.process_time()
        trainer.train()
        print("train", time.process_time() - before)
        import json
        usage = json.loads((Path(args.output_dir) / "usage.json").read_text())
        for report in trainer.reports:
            print(report.questions, "pairs", report.pairs, dict(report.faults), "without", report.without_fault, "dropped", dict(report.dropped), {k: round(v, 3) for k, v in report.feedback.items()}, "held", round(report.held_out.get("pass@1", -1), 3), "new", dict(report.new))
        measures = measure(trainer.model, tokenizer, world, held_out, executor, num_samples=num_samples, seed=derive_seed(seed, "samples"))
    if judge:
        right = [t for ok, t in judge.outcomes if ok]; wrong = [t for ok, t in judge.outcomes if not ok]
        print("judge AUC", auc(right, wrong), "tokens", judge.tokens)
    print("usage", usage["teacher"], spent.tokens, "trained", trainer.trained_tokens, "cpu", time.process_time() - began)
    return measures
