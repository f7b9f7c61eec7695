"""The complete method on real data with a tiny student: plans, training, plan sampling, hidden tests."""

import json
from pathlib import Path

import pytest
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests import tiny
from tests.codeplan.scripted import Scripted, apps_problems, data, mbpp_problems
from trl_akd.cli.plans import read_rows
from trl_akd.codeplan.codeplan_config import CodePLANConfig
from trl_akd.codeplan.codeplan_trainer import CodePLANTrainer
from trl_akd.codeplan.plan_curve import pass_at_k_by_plans
from trl_akd.codeplan.plan_generation import PlanGenerator
from trl_akd.codeplan.plan_head import PlanHeadGenerator, load_plan_head
from trl_akd.codeplan.plan_sampling import PlanSampler
from trl_akd.execution import CodeExecutor
from trl_akd.generation import TransformersGenerator

PLAN = "1. Read the input.\n2. Compute the answer.\n3. Print it."


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["apps", "mbpp"])
def test_complete_method(tmp_path: Path, benchmark: str):
    apps = benchmark == "apps"
    rows = read_rows(data("apps/train")) if apps else read_rows(data("mbpp/mbpp.jsonl"), split="train[600:610]")
    teacher = Scripted(lambda prompt, number, seed: PLAN)
    rows = PlanGenerator(teacher, tmp_path / "answers.jsonl", max_solutions=2, progress=False).run(rows)
    (tmp_path / "plans.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    trainer = CodePLANTrainer(
        tiny.model(max_position_embeddings=16_384),
        args=CodePLANConfig(
            str(tmp_path / "student"),
            max_steps=2,
            per_device_train_batch_size=2,
            max_length=4096,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            report_to="none",
        ),
        train_dataset=load_dataset("json", data_files=str(tmp_path / "plans.jsonl"), split="train"),
        processing_class=tiny.tokenizer(),
    )
    trainer.train()
    trainer.save_model()

    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    load_plan_head(student, str(tmp_path / "student"))
    writer = TransformersGenerator(student, AutoTokenizer.from_pretrained(tmp_path / "student"), batch_size=8)
    problems = apps_problems() if apps else mbpp_problems(10, 15)
    with CodeExecutor(2, allow_code_execution=True) as executor:
        results = PlanSampler(
            writer,
            executor,
            num_plans=3,
            num_programs=2,
            plan_generator=PlanHeadGenerator(writer, student),
            smaller_num_plans=[0, 1],
            max_plan_tokens=16,
            max_new_tokens=16,
            progress=False,
        ).run(problems)
    curve = pass_at_k_by_plans(results, k=[1, 2])
    assert list(curve) == [0, 1, 3] and all(0 <= point["pass@1"].value <= 1 for point in curve.values())
    assert [result.id for result in results] == [row["id"] for row in problems]
