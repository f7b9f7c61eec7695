"""Train a tiny pair once, and record everything that must not depend on the split of the work.

Run by `launch.run`: `python -m tests.invariant.worker SETTINGS.json`.
"""

import atexit
import gc
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests import tiny
from tests.akd import vllm_double
from tests.codeplan import world
from tests.iterkd import world as pairs_world
from trl_akd import AKDConfig, AKDTrainer, CodePLANConfig, CodePLANTrainer, IterKDConfig
from trl_akd.akd.cache_creation import create_cache
from trl_akd.iterkd.pair_trainer import PairTrainer

METHODS = {
    "akd": (AKDConfig, AKDTrainer, tiny.rows),
    "codeplan": (CodePLANConfig, CodePLANTrainer, world.problems),
    "iterkd": (IterKDConfig, PairTrainer, pairs_world.pairs),
}


SERVERS = ExitStack()
atexit.register(SERVERS.close)  # while their threads run


class History(TrainerCallback):
    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and {"loss", "eval_loss", "eval_pass@1"} & set(logs):
            self.logs.append({"step": state.global_step, **logs})


def main() -> AKDTrainer:
    settings = json.loads(Path(sys.argv[1]).read_text())
    history = History()
    make_config, make_trainer, make_rows = METHODS[settings.pop("method", "akd")]
    rows = settings.pop("rows", 11)  # the last batch is not full, however it is split
    resume = settings.pop("resume", None)
    results = Path(settings.pop("results"))
    student = settings.pop("student")
    lora = settings.pop("lora", False)
    benchmark = settings.pop("benchmark", None)
    write_cache = settings.pop("write_cache", None)
    cycles, load = settings.pop("cycles", None), settings.pop("load", None)
    vllm = settings.pop("vllm", None)
    if vllm is not None:
        settings |= _vllm_double(vllm, student)

    def make(**changes: Any) -> AKDTrainer:
        args = make_config(
            use_cpu=True,
            report_to="none",
            logging_steps=1,
            learning_rate=1e-2,
            max_grad_norm=1e9,
            seed=3,  # draws a smaller β for the first epoch than for the second
            # SGD keeps a tiny difference in gradients tiny in parameters.
            **{"max_length": 64, "optim": "sgd", "lr_scheduler_type": "constant", **settings, **changes},
        )
        return make_trainer(
            model=student,
            args=args,
            train_dataset=make_rows(rows),
            eval_dataset=make_rows(5, seed=1),
            peft_config=_lora() if lora else None,
            callbacks=[history],
        )

    if write_cache is None:
        trainer = make()
    else:
        tail_samples = write_cache.pop("tail_samples", None)
        create_cache(make(), **write_cache)
        trainer = make(teacher_cache=write_cache["folder"], teacher_tail_samples=tail_samples)
    if benchmark is not None:
        trainer.add_callback(_judge(trainer, benchmark))
    written = []
    if load is not None:
        trainer.load_student(load)
    if cycles is None:
        trainer.train(resume_from_checkpoint=resume)
    else:
        written = _train_cycles(trainer, cycles, results, resume)
    trainer.evaluate()
    trainer.save_model(str(results / "model"))
    plans = _write_plans(trainer) if isinstance(trainer, CodePLANTrainer) else None
    if trainer.accelerator.is_main_process:
        record = {
            "world_size": trainer.accelerator.num_processes,
            "distributed_type": trainer.accelerator.distributed_type.value,
            "logs": history.logs,
            "beta": trainer.adaptive_beta.value,
            "sharded": _is_sharded(trainer),
            "plans": plans,
            "written": written,
            "tensors": _tensors(),
        }
        (results / "record.json").write_text(json.dumps(record))
    return trainer


def _judge(trainer: AKDTrainer, benchmark: str) -> TrainerCallback:
    from trl_akd.evaluation.callback import PassAtKCallback

    return PassAtKCallback(
        trainer,
        benchmark,
        prompt_style="completion",
        num_samples=2,
        temperature=1.0,
        max_new_tokens=8,
        batch_size=3,
        allow_code_execution=True,
    )


def _vllm_double(mode: str, student: str) -> dict[str, Any]:
    """Put the double in the place of vLLM, and return the settings to use it with."""
    vllm_double.install(pytest.MonkeyPatch())
    if mode == "colocate":
        return {"use_vllm": True}
    is_main = os.environ.get("RANK", "0") == "0"  # the only process that connects to the server
    url = SERVERS.enter_context(vllm_double.serving(student))[0] if is_main else "http://localhost:1"
    return {"use_vllm": True, "vllm_mode": mode, "vllm_server_base_url": url}


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def _write_plans(trainer: CodePLANTrainer) -> list[str]:
    """Generate plans by the plan head of the trained student, inside its engine."""
    from trl_akd.codeplan.plan_head import PlanHeadGenerator
    from trl_akd.generation import TransformersGenerator

    generator: Any = TransformersGenerator(
        trainer.model_wrapped, trainer.processing_class, accelerator=trainer.accelerator
    )
    if trainer.args.plan_head == "separate":
        generator = PlanHeadGenerator(generator, trainer.model)
    prompts = ["[GEN_PLAN]\nsum of x", "[GEN_PLAN]\n(y)", "[GEN_PLAN]\n0"]
    return [completion.text for [completion] in generator.generate(prompts, max_new_tokens=8)]


def _train_cycles(trainer: PairTrainer, cycles: list[int], results: Path, resume: str | None) -> list[str]:
    """Train on other pairs in each cycle, save the student after each, and generate text before and after."""
    written = []

    def write() -> None:
        completions = trainer.student_generator().generate(["def f", "x +", "for"], max_new_tokens=8)
        written.append(" | ".join(completion.text for [completion] in completions))

    write()
    for cycle in cycles:
        pairs = pairs_world.pairs(8 + 4 * cycle, seed=cycle)
        trainer.train_on(pairs, cycle, results / f"cycle-{cycle}", resume_from_checkpoint=resume)
        write()
        trainer.save_model(str(results / f"student-{cycle}"))
        trainer.accelerator.wait_for_everyone()
    return written


def _tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def _is_sharded(trainer: AKDTrainer) -> bool:
    """Return whether every tensor of student and teacher is sharded between two steps."""
    parameters = [*trainer.model.parameters(), *getattr(trainer.teacher, "model", trainer.model).parameters()]
    return all(hasattr(parameter, "ds_tensor") and parameter.numel() == 0 for parameter in parameters)


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer = main()  # alive, with its engine, until the process ends, as in most scripts
