r"""`trl-akd codeplan`: train a student on solutions and plans.

```bash
trl-akd codeplan --config recipes/codegen-350m-mono/codeplan/config_apps.yaml --dry_run
trl-akd codeplan --config recipes/codegen-350m-mono/codeplan/config_apps.yaml --plan_weight 0.3
trl-akd codeplan --config recipes/codegen-350m-mono/codeplan/config_apps.yaml \
    --accelerate_config zero2
accelerate launch --config_file recipes/accelerate_configs/zero2.yaml --num_processes 8 \
    -m trl_akd.cli.codeplan --config recipes/codegen-350m-mono/codeplan/config_apps.yaml
```

`trl-akd plans` writes the rows, `{problem, solution, plan}` or with several solutions and plans each.
"""

from typing import TYPE_CHECKING

from .errors import run
from .methods import Method, Quickstart

if TYPE_CHECKING:
    from ..codeplan.codeplan_config import CodePLANConfig
    from ..codeplan.codeplan_trainer import CodePLANTrainer

__all__ = ["METHOD", "CodePLANMethod", "main"]


class CodePLANMethod(Method):
    """CodePLAN: solutions and plans in one multi-task loss."""

    name = "codeplan"

    def config_class(self) -> "type[CodePLANConfig]":
        """Return [`CodePLANConfig`]."""
        from ..codeplan.codeplan_config import CodePLANConfig

        return CodePLANConfig

    def trainer_class(self) -> "type[CodePLANTrainer]":
        """Return [`CodePLANTrainer`]."""
        from ..codeplan.codeplan_trainer import CodePLANTrainer

        return CodePLANTrainer

    def base_model(self, student: str, revision: str) -> tuple[str, str]:
        """Return the student or, if it is an adapter, the adapter's base."""
        from ..generation.loading import find_base_model

        source = {"revision": revision}
        name, source = find_base_model(student, source) or (student, source)
        return name, source["revision"]

    def quickstart(self) -> Quickstart:
        """Return the example of writing, learning and sampling plans on generated tasks."""
        from .quickstarts import CODEPLAN

        return CODEPLAN


METHOD = CodePLANMethod()
main = METHOD.main

if __name__ == "__main__":
    raise SystemExit(run(main))
