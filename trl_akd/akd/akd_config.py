"""Configuration of adaptive knowledge distillation."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import MISSING, Field, dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar, Literal, Self, get_args

from transformers.utils import is_torch_bf16_gpu_available

from ..beta import AdaptiveBeta, BetaRegularizer, BetaStrategy
from ..data.templates import PROMPT_TEMPLATES
from ..generation.json_client import check_url
from ..generation.loading import DEFAULT_API_KEY_ENV, check_server_fields, path_in_repository, source_arguments
from ..losses import KnobSchedule, PolicyGradient, divergences
from ..losses.reduction import Normalization
from .checkpoint import load_state
from .gkd import GKDConfig

PromptTemplateName = Literal[
    "alpaca",
    "alpaca_akd_paper",
    "starcoder",
    "instruct_eval",
    "codeplan_code",
    "codeplan_plan",
    "codeplan_guided",
    "comment",
]


@dataclass
class AKDConfig(GKDConfig):
    r"""
    Configuration of [`AKDTrainer`].

    Only fields that are new, or whose defaults differ from [`trl.experimental.gkd.GKDConfig`], are listed; all others
    (`seq_kd`, `temperature`, `max_new_tokens`, `teacher_model_name_or_path`, `teacher_model_init_kwargs`, and those of
    [`trl.SFTConfig`]) keep their meaning.

    Args:
        divergence (`str`, *optional*, defaults to `"akd"`):
            Divergence between teacher and student per token, a name in [`trl_akd.losses.divergences`]: `"akd"` (the
            paper's mix of forward and reverse KL, to which the `beta` options belong), `"forward_kl"` (or `"kl"`),
            `"reverse_kl"` (`"rkl"`), `"minillm"` (MiniLLM's policy gradient, which needs `lmbda=1` and
            `temperature=1`), `"jsd"`, `"skew_kl"` (`"skl"`), `"skew_reverse_kl"` (`"srkl"`), `"akl"`, `"todi"`,
            `"eopd"`, `"abkd"`, `"taid"`, `"adaptive_alpha"`, or one registered with
            [`trl_akd.losses.divergences.register`].
        divergence_kwargs (`dict[str, Any]`, *optional*):
            Arguments of the divergence, such as `{"beta": 0.5}` of `"jsd"` or `{"alpha": 0.1}` of `"skew_kl"`, and
            settings of its schedule, such as `{"t_start": 0.4}` of `"taid"`, or of its policy gradient, such as
            `{"teacher_mix": 0.2}` of `"minillm"`. `"akd"` takes none here.
        beta_strategy (`str`, *optional*, defaults to `"akd"`):
            How `divergence="akd"` mixes forward KL (β = 0) and reverse KL (β = 1): `"akd"` (learned, and redrawn at
            each epoch), `"m1"`, `"m2"` (the paper's ablations), `"random_epoch"` (drawn, never learned), `"linear"`
            (from the first to the second of two `beta_initial_values` over all training steps) or `"fixed"`.
        beta (`float`, *optional*):
            The constant mix of `beta_strategy="fixed"`, in [0, 1]. Unlike GKD's, it mixes the two divergences
            linearly: 0 is plain KD, 1 is reverse KD. Must be left out with every other strategy.
        beta_initial_values (`list[float]`, *optional*, defaults to `[0.1, 0.6]`):
            Values from which the initial β is drawn (paper, Algorithm 1); with `beta_strategy="linear"`, its first and
            last value.
        beta_learning_rate (`float`, *optional*, defaults to `0.01`):
            Learning rate of the AdamW optimizer of β (paper, section 4.2), to which no scheduler applies.
        beta_regularization (`float`, *optional*, defaults to `0.5`):
            Strength λ of the regularizer on β, in nats (paper, Algorithm 1).
        beta_regularizer (`str`, *optional*, defaults to `"eq13"`):
            Form of the regularizer: `"eq13"`, `"alg1"` or `"eq16"`. The paper gives all three, and they differ.
        kd_temperature (`float`, *optional*, defaults to `1.0`):
            Temperature of both distributions inside the divergence. (`temperature` is the sampling temperature.)
        normalization (`str`, *optional*, defaults to `"sequence"`):
            `"sequence"`: mean over a sample's target tokens, then over the samples of the global batch (the paper).
            `"token"`: mean over all target tokens of the global batch.
        ce_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the cross-entropy on the data's tokens, or on the teacher's with `seq_kd`, that is added to the
            divergence. It does not apply to text sampled from the student. The paper uses none.
        prompt_template (`str`, *optional*, defaults to `"alpaca"`):
            Template for rows with the columns `instruction`, `input` and `output`: `"alpaca"`, `"alpaca_akd_paper"`,
            `"starcoder"` or `"instruct_eval"`.
        loss_chunk_size (`int`, *optional*):
            Number of tokens per chunk of the fused loss. By default derived from the vocabulary size.
        teacher_model_revision (`str`, *optional*, defaults to `"main"`):
            Revision of the teacher on the Hub: a branch, a tag or a commit. A `revision` in
            `teacher_model_init_kwargs` takes precedence.
        teacher_device (`str`, *optional*):
            Device of the teacher, such as `"cpu"`. Defaults to the student's.
        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether the student generates text with vLLM, which needs TRL 1.11 or later.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`):
            `"colocate"` (vLLM runs in the training processes and shares their GPUs) or `"server"` (a server on other
            GPUs, started with `vllm serve`).
        vllm_model_impl (`str`, *optional*, defaults to `"vllm"`):
            Implementation of the model in vLLM: `"vllm"`, `"transformers"` or `"auto"`. Of a colocated vLLM.
        vllm_enable_sleep_mode (`bool`, *optional*, defaults to `False`):
            Whether a colocated vLLM releases its GPU memory while the student is trained.
        vllm_server_base_url (`str`, *optional*):
            URL of the server, such as `"http://localhost:8000"`, in place of `vllm_server_host` and
            `vllm_server_port`.
        vllm_server_host (`str`, *optional*, defaults to `"0.0.0.0"`):
            Host of the server.
        vllm_server_port (`int`, *optional*, defaults to `8000`):
            Port of the server.
        vllm_server_timeout (`float`, *optional*, defaults to `240.0`):
            Number of seconds to wait for the server to be up.
        vllm_group_port (`int`, *optional*, defaults to `51216`):
            Port through which weights are sent to the server.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            Fraction of the GPU memory that a colocated vLLM reserves.
        vllm_max_model_length (`int`, *optional*):
            Maximum number of tokens of a prompt and its completion in vLLM. Defaults to that of the model.
        vllm_tensor_parallel_size (`int`, *optional*, defaults to `1`):
            Number of GPUs that share each layer of a colocated vLLM.
        teacher_cache (`str`, *optional*):
            Folder of a cache that `trl-akd cache` wrote, or its name on the Hub, from which the teacher's signals are
            read. No teacher is loaded; a `teacher_model_name_or_path` is only compared with the cache's.
        teacher_cache_revision (`str`, *optional*):
            Branch, tag or commit of a cache on the Hub.
        teacher_tail_samples (`int`, *optional*):
            Number of tokens per position whose probabilities are computed from the hidden states of `teacher_cache`,
            besides its `cache_top_k` most probable ones: a faster loss, whose value and gradient are unbiased
            estimates. Each step samples other tokens. For `divergence` `"akd"`, `"forward_kl"` and
            `"reverse_kl"`. By default all tokens, which is exact, as are evaluations in any case.
        teacher_base_url (`str`, *optional*):
            Address of a vLLM server that scores the texts, such as `http://localhost:8000/v1`, in place of a teacher
            in this process. `teacher_model_name_or_path` is then the model's name on the server. The divergence is a
            lower bound, see [`~trl_akd.teachers.ServedTeacher`].
        teacher_top_k (`int`, *optional*, defaults to `64`):
            Number of most probable tokens whose log-probabilities the server returns for each token of a text. The
            server must allow it (`--max-logprobs`, 20 by default).
        teacher_api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable with the server's API key.
        teacher_concurrency (`int`, *optional*, defaults to `8`):
            Maximum number of concurrent requests of each process to the server.
        teacher_request_timeout (`float`, *optional*, defaults to `120.0`):
            Timeout of a request in seconds, until the whole response has arrived.
        teacher_max_retries (`int`, *optional*, defaults to `10`):
            Maximum number of retries of a failed request, with exponential backoff.
        teacher_max_requests (`int`, *optional*):
            Maximum number of requests to the server, over all processes and all starts with the same `output_dir`.
        teacher_max_tokens (`int`, *optional*):
            Maximum number of tokens that the server scores, over all processes and all starts with the same
            `output_dir`.
        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to log prompts and completions of generated text every `logging_steps` steps: printed if `rich` is
            installed, saved as Parquet in the folder `completions`, and reported to `wandb`, `trackio` and
            `tensorboard` if in use.
        num_completions_to_print (`int`, *optional*):
            Number of completions to print, drawn at random. Defaults to all completions of the step.
        log_unique_prompts (`bool`, *optional*, defaults to `False`):
            Whether to report each prompt only once.
        hub_strategy (`str`, *optional*, defaults to `"end"`):
            When to upload to the Hub with `push_to_hub`. The default uploads the trained student once. `"every_save"`
            uploads the student of each checkpoint as well, and `"checkpoint"` and `"all_checkpoints"` also the last
            one or all of the checkpoints, with optimizer states.
        bf16 (`bool`, *optional*):
            Whether to use mixed precision in bfloat16. Defaults to `True` on a GPU that supports it; TRL's default
            fails without one.
        logging_nan_inf_filter (`bool`, *optional*, defaults to `False`):
            Whether to leave losses that are not finite out of the logs, for which the host waits for the end of every
            backward pass. Here, such a loss ends the training in any case.
        lmbda (`float`, *optional*, defaults to `0.0`):
            Fraction of batches on text sampled from the student. The paper uses none.
        learning_rate (`float`, *optional*, defaults to `1e-5`):
            Initial learning rate of the student (paper, section 4.2).
        num_train_epochs (`float`, *optional*, defaults to `10.0`):
            Number of epochs. The paper does not state it; its training time divided by its time per epoch gives ten.
        max_length (`int` or `None`, *optional*, defaults to `512`):
            Maximum number of tokens of a row (paper, section 4.2). A prompt is never cut; a row whose prompt leaves no
            room for an answer is dropped and counted.
    """

    _VALID_DICT_FIELDS = [*GKDConfig._VALID_DICT_FIELDS, "divergence_kwargs"]  # noqa: RUF012
    _may_generate: ClassVar[bool] = True

    divergence: str = "akd"
    divergence_kwargs: dict[str, Any] | str | None = None
    beta_strategy: BetaStrategy = "akd"
    beta: float | None = None  # GKD's 0.5 would be a silent no-op when β is learned
    beta_initial_values: list[float] = field(default_factory=lambda: [0.1, 0.6])
    beta_learning_rate: float = 0.01
    beta_regularization: float = 0.5
    beta_regularizer: BetaRegularizer = "eq13"
    kd_temperature: float = 1.0
    normalization: Normalization = "sequence"
    ce_weight: float = 0.0
    prompt_template: PromptTemplateName = "alpaca"
    loss_chunk_size: int | None = None
    teacher_model_revision: str = "main"
    teacher_device: str | None = None
    use_vllm: bool = False
    vllm_mode: str = "colocate"
    vllm_model_impl: str = "vllm"
    vllm_enable_sleep_mode: bool = False
    vllm_server_base_url: str | None = None
    vllm_server_host: str = "0.0.0.0"
    vllm_server_port: int = 8000
    vllm_server_timeout: float = 240.0
    vllm_group_port: int = 51216
    vllm_gpu_memory_utilization: float = 0.3
    vllm_max_model_length: int | None = None
    vllm_tensor_parallel_size: int = 1
    teacher_cache: str | None = None
    teacher_cache_revision: str | None = None
    teacher_tail_samples: int | None = None
    teacher_base_url: str | None = None
    teacher_top_k: int = 64
    teacher_api_key_env: str = DEFAULT_API_KEY_ENV
    teacher_concurrency: int = 8
    teacher_request_timeout: float = 120.0
    teacher_max_retries: int = 10
    teacher_max_requests: int | None = None
    teacher_max_tokens: int | None = None
    log_completions: bool = False
    num_completions_to_print: int | None = None
    log_unique_prompts: bool = False
    lmbda: float = 0.0
    learning_rate: float = 1e-5
    num_train_epochs: float = 10.0
    hub_strategy: str = "end"
    bf16: bool | None = None
    logging_nan_inf_filter: bool = False
    max_length: int | None = 512

    def __post_init__(self) -> None:
        inherited: Any = self
        if inherited.loss_type is None:  # the default of TRL before 1.15
            inherited.loss_type = "nll"
        self._check_types()
        self._check_beta()
        self._check_data()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and is_torch_bf16_gpu_available()
        given_beta, self.beta = self.beta, 0.0  # GKD's own check compares it with numbers
        super().__post_init__()
        self._check_ranges()
        self._check_served_teacher()
        self._check_divergence()  # its arguments may have been text, which TRL reads
        self._check_vllm()
        self._check_generation()
        self._check_count("pad_to_multiple_of", optional=True)  # which TRL reads from text
        self.beta = given_beta
        self.make_beta()

    @property
    def generates(self) -> bool:
        """Whether any of the training text is generated."""
        return self.lmbda > 0.0 or self.seq_kd

    @property
    def prompts_suffice(self) -> bool:
        """Whether all of the training text is generated, so that rows need only a prompt."""
        return self.lmbda == 1.0 or self.seq_kd

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse a subclass with a property under its old name, which is never read."""
        super().__init_subclass__(**options)
        if "asks_teacher" in vars(cls):
            raise TypeError(
                f"{cls.__name__} defines `asks_teacher`, which is never read; define `uses_teacher`, its new name."
            )

    @property
    def uses_teacher(self) -> bool:
        """Whether the objective uses a teacher."""
        return True

    @property
    def teacher_source(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that determine which files of the teacher are read, such as `revision`."""
        return source_arguments(
            self.teacher_model_init_kwargs,
            revision=self.teacher_model_revision,
            trust_remote_code=self.trust_remote_code,
        )

    @property
    def teacher_path(self) -> str | None:
        """`teacher_model_name_or_path`, with the teacher's subfolder if it is in one."""
        name = self.teacher_model_name_or_path
        return None if name is None else path_in_repository(name, self.teacher_source)

    @property
    def uses_beta(self) -> bool:
        """Whether the divergence mixes forward and reverse KL by β."""
        return self.divergence == "akd"

    @property
    def _has_policy_gradient(self) -> bool:
        return divergences.get(self.divergence).policy_gradient is not None

    @property
    def divergence_settings(self) -> dict[str, Any]:
        """`divergence_kwargs` as a dictionary."""
        return self.divergence_kwargs if isinstance(self.divergence_kwargs, dict) else {}

    @property
    def divergence_knobs(self) -> dict[str, Any]:
        """Arguments of the divergence, without those of its schedule or policy gradient."""
        return divergences.get(self.divergence).split(self.divergence_settings)[0]

    def make_schedule(self, beta: AdaptiveBeta) -> KnobSchedule | None:
        """Return the schedule of the knob that changes during training: `beta`, one of the rule's own, or `None`."""
        if self.uses_beta:
            return beta
        rule = divergences.get(self.divergence)
        return None if rule.schedule is None else rule.schedule(**rule.split(self.divergence_settings)[1])

    def make_policy_gradient(self) -> PolicyGradient | None:
        """Return the settings of the divergence's part of whole completions, or `None` if it has none."""
        rule = divergences.get(self.divergence)
        if rule.policy_gradient is None:
            return None
        return rule.policy_gradient(**rule.split(self.divergence_settings)[1])

    def make_beta(self) -> AdaptiveBeta:
        """Return the mixing coefficient β described by this configuration."""
        try:
            return AdaptiveBeta(
                strategy=self.beta_strategy,
                initial_values=self.beta_initial_values if self.beta is None else (self.beta,),
                learning_rate=self.beta_learning_rate,
                regularization=self.beta_regularization,
                regularizer=self.beta_regularizer,
                seed=self.seed,
            )
        except ValueError as error:
            raise ValueError(str(error).replace("`", "`beta_", 1)) from None

    def check_checkpoint(self, checkpoint: str) -> None:
        """Raise a ValueError with the reason if a run cannot resume from a checkpoint folder."""
        beta = self.make_beta()
        load_state(checkpoint, beta, self.make_schedule(beta), self.loss_settings)

    @property
    def loss_settings(self) -> dict[str, Any]:
        """Settings of the divergence that a resumed run must share with its checkpoint."""
        return {"divergence": self.divergence, "divergence_kwargs": self.divergence_settings}

    def _check_types(self) -> None:
        for name in (*_NUMBERS, "beta_initial_values", "beta_learning_rate", "beta_regularization"):
            setattr(self, name, _plain(getattr(self, name)))
        try:
            self.divergence = divergences.get(self.divergence).name
        except ValueError as error:
            raise ValueError(f"`divergence`: {error}") from None
        for name in _NUMBERS:
            value = getattr(self, name)
            if not (_is_finite(value) or (name == "beta" and value is None)):
                raise ValueError(f"`{name}` is {value!r}; give a finite number.")
        for name in (
            "max_length",
            "loss_chunk_size",
            "teacher_tail_samples",
            "num_completions_to_print",
            *_LIMITS_OF_SERVERS,
        ):
            self._check_count(name, optional=True)
        for name in ("max_new_tokens", "teacher_top_k", "teacher_concurrency"):
            self._check_count(name, optional=False)
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; give True or False.")

    def _check_count(self, name: str, *, optional: bool) -> None:
        value = getattr(self, name)
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not (is_count or (optional and value is None)):
            remedy = " or None" if optional else ""
            raise ValueError(f"`{name}` is {value!r}; give an integer of at least 1{remedy}.")

    def _check_ranges(self) -> None:
        """Refuse inherited numbers that transformers would only refuse once the models are loaded."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (_is_finite(value) and value >= least):
                raise ValueError(f"`{name}` is {value!r}; give a number of at least {least}.")
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            if not (_is_finite(value) and 0.0 <= value < 1.0):
                raise ValueError(f"`{name}` is {value!r}; give a number of at least 0 and below 1.")

    def _check_divergence(self) -> None:
        knobs = self.divergence_kwargs
        if not (knobs is None or isinstance(knobs, dict)):
            raise ValueError(f"`divergence_kwargs` is {knobs!r}; give a dictionary, such as {{'beta': 0.5}}.")
        if knobs:
            knobs = self.divergence_kwargs = {name: _plain(value) for name, value in knobs.items()}
        if self.uses_beta:
            if knobs:
                raise ValueError(
                    f"`divergence_kwargs` is {knobs}, but 'akd' takes β from `beta` and `beta_strategy`; leave it "
                    "out, or choose another `divergence`."
                )
            return
        try:
            divergences.get(self.divergence).check_settings(knobs or {})
        except ValueError as error:
            name, value = ("divergence_kwargs", knobs) if knobs else ("divergence", self.divergence)
            raise ValueError(f"`{name}` is {value!r}: {error}") from error
        if self._has_policy_gradient:
            self._check_policy_gradient()

    def _check_policy_gradient(self) -> None:
        """Refuse settings with which the text does not come from the distributions in the loss."""
        if not self._may_generate:
            raise ValueError(
                f"`divergence` is {self.divergence!r}, whose gradient needs text sampled from the student, but this "
                "method trains on given text; choose another `divergence`, such as 'reverse_kl'."
            )
        needed = {"lmbda": 1.0, "temperature": 1.0, "seq_kd": False, "kd_temperature": 1.0, "ce_weight": 0.0}
        wrong = {name: value for name, value in needed.items() if getattr(self, name) != value}
        if wrong:
            found = " and ".join(f"`{name}` is {getattr(self, name)}" for name in wrong)
            raise ValueError(
                f"`divergence` is {self.divergence!r} but {found}; its gradient is that of text sampled from the "
                "student, at the temperature of the loss and with no other term, so set "
                f"{' and '.join(f'{name}={value}' for name, value in wrong.items())}."
            )

    def _check_vllm(self) -> None:
        if not self.use_vllm:
            names = [entry.name for entry in fields(self) if entry.name.startswith("vllm_")]
            self._check_without_effect(names, "while `use_vllm` is off; turn that on")
            return
        if self.lmbda == 0.0:
            remedy = "set lmbda above 0, or leave it out" if self._may_generate else "leave it out"
            raise ValueError(f"`use_vllm` is on, but the student generates no text; {remedy}.")
        policy_gradient = self.make_policy_gradient()
        if policy_gradient is not None and policy_gradient.teacher_mix > 0.0:
            raise ValueError(
                f"`use_vllm` is on, but divergence={self.divergence!r} samples from a mixture of student and teacher "
                f"(teacher_mix={policy_gradient.teacher_mix}), which vLLM cannot; set use_vllm=False, or "
                "divergence_kwargs={'teacher_mix': 0}."
            )
        for name, choices in _VLLM_CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; choose {' or '.join(map(repr, choices))}.")
        others = _OF_VLLM_SERVERS if self.vllm_mode == "colocate" else _OF_COLOCATED_VLLM
        self._check_without_effect(others, f"with vllm_mode={self.vllm_mode!r}; choose the other mode")
        if self.vllm_server_base_url is not None:
            self._check_without_effect(
                ("vllm_server_host", "vllm_server_port"), "with `vllm_server_base_url`; put it into the URL"
            )
            if not re.match(r"https?://[^/]", str(self.vllm_server_base_url)):
                raise ValueError(
                    f"`vllm_server_base_url` is {self.vllm_server_base_url!r}; give a URL such as "
                    "'http://localhost:8000'."
                )
        self._check_count("vllm_tensor_parallel_size", optional=False)
        self._check_count("vllm_max_model_length", optional=True)
        for name in ("vllm_server_port", "vllm_group_port"):
            self._check_count(name, optional=False)
            if getattr(self, name) > 65535:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give a port of at most 65535.")
        share, timeout = self.vllm_gpu_memory_utilization, self.vllm_server_timeout
        if not (_is_finite(share) and 0.0 < share <= 1.0):
            raise ValueError(f"`vllm_gpu_memory_utilization` is {share!r}; give a fraction above 0 and at most 1.")
        if not (_is_finite(timeout) and timeout >= 0.0):
            raise ValueError(f"`vllm_server_timeout` is {timeout!r}; give a number of seconds of at least 0.")

    def _check_beta(self) -> None:
        if not self.uses_beta:
            self._check_without_effect(_OF_BETA, f"with divergence={self.divergence!r}; use `divergence_kwargs`")
        if self.beta is None and self.beta_strategy == "fixed":
            raise ValueError("`beta_strategy` is 'fixed' but `beta` is not set; give a `beta` in [0, 1].")
        if self.beta is not None and self.beta_strategy != "fixed":
            raise ValueError(
                f"`beta` is {self.beta}, which has no effect with beta_strategy={self.beta_strategy!r}; set "
                "beta_strategy='fixed' to hold it constant, or `beta_initial_values` to choose where it starts. GKD's "
                f"objective with this `beta` is divergence='jsd', divergence_kwargs={{'beta': {self.beta}}}."
            )
        unused = [name for name in _OF_BETA[2:] if name not in options_of_beta(self.beta_strategy)]
        self._check_without_effect(
            unused, f"with beta_strategy={self.beta_strategy!r}; choose a strategy that uses it"
        )
        if self.beta_regularizer == "eq16":
            self._check_without_effect(
                ("beta_regularization",), "with beta_regularizer='eq16', which is zero; choose 'eq13' or 'alg1'"
            )
        if self.beta_regularization == 0.0:
            self._check_without_effect(("beta_regularizer",), "with beta_regularization=0; raise that")
        if self.beta is not None and not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"`beta` is {self.beta}; it mixes two divergences and must lie in [0, 1].")
        if not 0.0 <= self.lmbda <= 1.0:
            raise ValueError(f"`lmbda` is {self.lmbda}; it is a fraction of batches and must lie in [0, 1].")
        if not self.kd_temperature > 0.0:
            raise ValueError(f"`kd_temperature` is {self.kd_temperature}; it divides the logits and must be above 0.")
        if self.generates and not self.temperature > 0.0:
            raise ValueError(f"`temperature` is {self.temperature}; text is sampled with it, so it must be above 0.")
        if not self.ce_weight >= 0.0:
            raise ValueError(f"`ce_weight` is {self.ce_weight}; it weighs a loss and must be at least 0.")
        if self.normalization not in get_args(Normalization):
            raise ValueError(f"`normalization` is {self.normalization!r}; choose 'sequence' or 'token'.")

    def _check_served_teacher(self) -> None:
        check_server_fields(self, "teacher_base_url", _OF_SERVERS, "teacher's ")
        if self.teacher_base_url is None:
            return
        if self.teacher_model_name_or_path is None:
            raise ValueError(
                f"`teacher_base_url` is {self.teacher_base_url!r} and `teacher_model_name_or_path` is not set; give "
                "the model's name on the server."
            )
        check_url(str(self.teacher_base_url), "`teacher_base_url`", "`teacher_api_key_env`")
        timeout, retries = self.teacher_request_timeout, self.teacher_max_retries
        if not (_is_finite(timeout) and timeout > 0.0):
            raise ValueError(f"`teacher_request_timeout` is {timeout!r}; give a number of seconds above 0.")
        if not (isinstance(retries, int) and not isinstance(retries, bool) and retries >= 0):
            raise ValueError(f"`teacher_max_retries` is {retries!r}; give an integer of at least 0.")
        for name, neutral, reason in _WITHOUT_SERVERS:
            if getattr(self, name) not in (None, neutral, {}):
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but `teacher_base_url` is set, and a server {reason}; "
                    f"leave out one of them."
                )
        if self._has_policy_gradient:
            raise ValueError(
                f"`divergence` is {self.divergence!r}, which needs the teacher's probability of every token, but "
                "`teacher_base_url` is set, and a server returns only the largest; choose another `divergence`, such "
                "as 'reverse_kl', or load the teacher here."
            )

    def _check_generation(self) -> None:
        """Refuse `seq_kd` if the student generates all text, and warn of a temperature if there is none."""
        if self.lmbda == 1.0:
            self._check_without_effect(
                ("seq_kd", "ce_weight"), "with lmbda=1, where the student generates all text; lower that"
            )
        if not self.generates and self.temperature != AKDConfig.temperature:
            warnings.warn(
                f"`temperature` is {self.temperature}, which has no effect, as it is the temperature of generated "
                "text, and none is generated; for the temperature of the divergence, set `kd_temperature`.",
                stacklevel=4,
            )

    def _check_data(self) -> None:
        if self.prompt_template not in tuple(PROMPT_TEMPLATES):
            raise ValueError(
                f"`prompt_template` is {self.prompt_template!r}; choose one of "
                f"{', '.join(map(repr, PROMPT_TEMPLATES))}."
            )
        for name in ("packing", "eval_packing", "padding_free"):
            if getattr(self, name) and self.generates:
                raise ValueError(
                    f"`{name}` is on together with `lmbda` above 0 or `seq_kd`, but prompts and generated text come "
                    f"in padded batches; set {name}=False, or train on the data alone with lmbda=0 and seq_kd=False."
                )
        if self.teacher_cache is not None:
            self._check_teacher_cache()
        else:
            self._check_without_effect(
                ("teacher_cache_revision", "teacher_tail_samples"), "without `teacher_cache`; set that"
            )
        if self.eval_packing and not (self.packing or self.padding_free):
            raise ValueError(
                "`eval_packing` is on, but training pads its batches, and one collator serves both; set packing=True "
                "or padding_free=True, or leave `eval_packing` out."
            )
        if self.log_completions and not self.generates:
            raise ValueError(
                "`log_completions` is on, but no text is generated; set lmbda above 0 or seq_kd=True, or leave it out."
            )
        if not self.log_completions:
            self._check_without_effect(
                ("num_completions_to_print", "log_unique_prompts"), "while `log_completions` is off; turn that on"
            )
        for name, accepted, remedy in _INHERITED_WITHOUT_EFFECT:
            if getattr(self, name) not in accepted:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}, which AKD does not support; {remedy}.")

    def _check_teacher_cache(self) -> None:
        """Refuse generated text, for which a cache has no signals, and options of a teacher in memory."""
        if self._has_policy_gradient:
            raise ValueError(
                f"`teacher_cache` is set and `divergence` is {self.divergence!r}, which trains on generated text, for "
                "which a cache has no signals; choose another `divergence`, such as 'reverse_kl', or leave "
                "`teacher_cache` out."
            )
        for name in ("lmbda", "seq_kd"):
            if getattr(self, name):
                raise ValueError(
                    f"`teacher_cache` is set and `{name}` is {getattr(self, name)}, but a cache has no signals for "
                    "generated text; train on the data alone with lmbda=0 and seq_kd=False, or leave `teacher_cache` "
                    "out."
                )
        if self.teacher_tail_samples is not None and divergences.get(self.divergence).reverse_share is None:
            raise ValueError(
                f"`teacher_tail_samples` is {self.teacher_tail_samples} and `divergence` is {self.divergence!r}, but "
                "only mixes of forward and reverse KL are estimated from a sample of tokens; choose 'akd', "
                "'forward_kl' or 'reverse_kl', or leave `teacher_tail_samples` out."
            )
        for name in ("teacher_device", "teacher_base_url"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r} and `teacher_cache` is set, which needs no teacher; leave "
                    "one of them out."
                )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle, such as in a checkpoint's `training_args.bin`, without tokens of the Hub."""
        state = {**self.__dict__, "hub_token": None}
        for name in ("model_init_kwargs", "teacher_model_init_kwargs"):
            if isinstance(state[name], Mapping):
                state[name] = {key: value for key, value in state[name].items() if key != "token"}
        return state

    def __copy__(self) -> Self:
        return self._with_state(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._with_state(deepcopy(self.__dict__, memo))

    def _with_state(self, state: Mapping[str, Any]) -> Self:
        """Return a copy with a state, which unlike a pickled one has the tokens of the Hub."""
        made = object.__new__(type(self))
        made.__dict__.update(state)
        return made

    def _check_no_teacher_options(self, reason: str) -> None:
        """Refuse options of the teacher and the divergence if the objective uses no teacher."""
        self._check_without_effect(_OF_TEACHERS, reason)

    def _check_without_effect(self, names: Iterable[str], reason: str) -> None:
        """Refuse options that differ from their defaults; `reason` says when they have an effect."""
        defaults = {entry.name: _default(entry) for entry in fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, which has no effect {reason}, or leave it out."
                )


def options_of_beta(strategy: str) -> tuple[str, ...]:
    """Return the fields that determine β with a strategy."""
    of_strategy = {"fixed": ("beta",), "random_epoch": ("beta_initial_values",), "linear": ("beta_initial_values",)}
    return of_strategy.get(strategy, _OF_BETA[2:])


def _default(entry: Field[Any]) -> Any:
    factory = entry.default_factory
    return entry.default if factory is MISSING else factory()


def _plain(value: Any) -> Any:
    """Convert numbers of NumPy, torch and `fractions` to Python numbers, which checkpoints and JSON can hold."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    return float(value) if isinstance(value, Real) and not isinstance(value, int) else value


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


_SWITCHES = (
    "seq_kd",
    "disable_dropout",
    "packing",
    "padding_free",
    "log_completions",
    "log_unique_prompts",
    "use_vllm",
    "vllm_enable_sleep_mode",
)

_VLLM_CHOICES = {"vllm_mode": ("colocate", "server"), "vllm_model_impl": ("vllm", "transformers", "auto")}

_OF_VLLM_SERVERS = (
    "vllm_server_base_url",
    "vllm_server_host",
    "vllm_server_port",
    "vllm_server_timeout",
    "vllm_group_port",
)

_OF_COLOCATED_VLLM = (
    "vllm_model_impl",
    "vllm_enable_sleep_mode",
    "vllm_gpu_memory_utilization",
    "vllm_tensor_parallel_size",
)

_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "adam_epsilon": 0,
}

_NUMBERS = ("beta", "lmbda", "temperature", "kd_temperature", "ce_weight")

_LIMITS_OF_SERVERS = ("teacher_max_requests", "teacher_max_tokens")

_OF_SERVERS = (
    "teacher_top_k",
    "teacher_api_key_env",
    "teacher_concurrency",
    "teacher_request_timeout",
    "teacher_max_retries",
    *_LIMITS_OF_SERVERS,
)

_WITHOUT_SERVERS: tuple[tuple[str, Any, str], ...] = (
    ("teacher_device", None, "chooses its own device"),
    ("teacher_model_init_kwargs", None, "loads the model itself"),
    ("seq_kd", False, "scores texts here and generates none"),
    ("kd_temperature", 1.0, "returns log-probabilities at temperature 1, whose tail cannot be softened"),
)

_OF_BETA = (
    "beta",
    "beta_strategy",
    "beta_initial_values",
    "beta_learning_rate",
    "beta_regularization",
    "beta_regularizer",
)

_OF_TEACHERS = (
    "teacher_base_url",
    "teacher_cache",
    "teacher_cache_revision",
    "teacher_tail_samples",
    "teacher_model_name_or_path",
    "teacher_model_init_kwargs",
    "teacher_model_revision",
    "teacher_device",
    "divergence",
    "divergence_kwargs",
    *_OF_BETA,
    "kd_temperature",
    "ce_weight",
)

_INHERITED_WITHOUT_EFFECT: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("loss_type", ("nll",), "its loss is the divergence; leave `loss_type` out"),
    ("label_smoothing_factor", (0.0,), "the teacher's distribution takes its place; leave it out"),
    ("completion_only_loss", (None, True), "the loss covers completions only; leave it out"),
    ("assistant_only_loss", (False,), "the last assistant turn is the completion; leave it out"),
    ("truncation_mode", ("keep_start",), "prompts are never cut and completions lose their end; leave it out"),
    ("packing_strategy", ("bfd",), "other strategies cut samples; leave it at 'bfd'"),
    ("chat_template_path", (None,), "set the chat template on the tokenizer instead"),
)
