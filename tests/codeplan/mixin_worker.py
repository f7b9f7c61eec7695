"""Train with `CodePLANMixin` on each process and write losses and weights to files: `mixin_worker.py FOLDER`."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tests import tiny
from tests.codeplan import world
from trl_akd import CodePLANMixin, DataCollatorForCodePLAN
from trl_akd.codeplan.plan_head import add_plan_head, gathered_plan_head


class PlanTrainer(CodePLANMixin, Trainer):
    pass


def main(folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    args = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", max_steps=4, logging_steps=1, learning_rate=1e-2, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=1e9, save_strategy="no", seed=3, bf16=False, **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder / "student", dtype=torch.float32)
    add_plan_head(model)
    rows = world.problems(11)  # the last batch is not full, however it is split
    trainer = PlanTrainer(
        model,
        args,
        data_collator=DataCollatorForCodePLAN(tiny.tokenizer(), plan_weight=0.3, max_length=256),
        train_dataset=rows,
        eval_dataset=world.problems(5, seed=1),
    )
    trainer.train()
    evaluated = trainer.evaluate()["eval_loss"]
    head = gathered_plan_head(trainer.model)
    if trainer.is_world_process_zero():
        save_file(head, folder / "head.safetensors")
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        record = {"world_size": args.world_size, "losses": losses, "eval_loss": evaluated}
        (folder / "losses.json").write_text(json.dumps(record))
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
