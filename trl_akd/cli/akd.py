r"""`trl-akd akd`: distill a teacher into a student.

```bash
trl-akd akd --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml --dry_run
trl-akd akd --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml --learning_rate 2e-5
trl-akd akd --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml \
    --accelerate_config zero3
accelerate launch --config_file recipes/accelerate_configs/zero3.yaml --num_processes 8 \
    -m trl_akd.cli.akd --config recipes/qwen2.5-coder-7b-to-0.5b/akd/config_full.yaml
```
"""

from typing import TYPE_CHECKING

from .errors import run
from .methods import Method, Quickstart

if TYPE_CHECKING:
    from ..akd.akd_config import AKDConfig
    from ..akd.akd_trainer import AKDTrainer

__all__ = ["METHOD", "AKDMethod", "main"]


class AKDMethod(Method):
    """Adaptive knowledge distillation."""

    name = "akd"

    def config_class(self) -> "type[AKDConfig]":
        """Return [`AKDConfig`]."""
        from ..akd.akd_config import AKDConfig

        return AKDConfig

    def trainer_class(self) -> "type[AKDTrainer]":
        """Return [`AKDTrainer`]."""
        from ..akd.akd_trainer import AKDTrainer

        return AKDTrainer

    def quickstart(self) -> Quickstart:
        """Return the example of distillation on generated tasks."""
        from .quickstarts import AKD

        return AKD


METHOD = AKDMethod()
main = METHOD.main

if __name__ == "__main__":
    raise SystemExit(run(main))
