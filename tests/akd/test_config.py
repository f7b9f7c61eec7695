import dataclasses
import inspect
import pickle
import re
from copy import copy, deepcopy

import pytest

from trl_akd import AKDConfig
from trl_akd.akd.gkd import GKDConfig


def make(**settings):
    return AKDConfig(output_dir="unused", use_cpu=True, report_to="none", **settings)


def test_defaults_follow_the_paper():
    config = make()
    assert (config.learning_rate, config.per_device_train_batch_size, config.max_length) == (1e-5, 8, 512)
    assert (config.beta_strategy, config.beta_initial_values) == ("akd", [0.1, 0.6])
    assert (config.beta_learning_rate, config.beta_regularization, config.beta_regularizer) == (0.01, 0.5, "eq13")
    assert (config.lmbda, config.seq_kd, config.kd_temperature, config.ce_weight) == (0.0, False, 1.0, 0.0)


def test_bf16_is_off_by_default_without_support():
    assert AKDConfig(output_dir="unused").bf16 is False


def test_docstring_lists_the_fields_that_are_added_or_changed():
    inherited = {field.name: field for field in dataclasses.fields(GKDConfig)}
    fields = {field.name: field for field in dataclasses.fields(AKDConfig)}
    own = {name for name in AKDConfig.__annotations__ if name in fields}
    documented = dict(re.findall(r"^ {4}(\w+) \((.+)\):$", inspect.getdoc(AKDConfig) or "", re.M))
    assert set(documented) == own
    for name in own:
        field = fields[name]
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        stated = re.search("defaults to `(.+)`", documented[name])
        assert (eval(stated[1]) if stated else None) == default, name
        if name in inherited and name != "bf16":  # None means something else here
            assert default != inherited[name].default, f"{name} need not be overridden"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "kll"}, "`divergence`: 'kll' is not a divergence; choose one of 'akd'"),
        ({"divergence": None}, "`divergence`: None is not"),
        ({"divergence_kwargs": {"beta": 0.5}}, "'akd' takes β from `beta` and `beta_strategy`"),
        ({"divergence": "jsd", "beta": 0.5}, "`beta` is 0.5, which has no effect with divergence='jsd'; use"),
        ({"divergence": "jsd", "beta_strategy": "m1"}, "`beta_strategy` is 'm1', which has no effect with"),
        ({"divergence": "jsd", "divergence_kwargs": {"alpha": 0.5}}, "has no knob 'alpha'; it takes 'beta'"),
        ({"divergence": "jsd", "divergence_kwargs": {"beta": 2}}, r"beta is 2; give a number in \[0, 1\]"),
        ({"divergence": "skew_kl", "divergence_kwargs": 0.1}, "`divergence_kwargs` is 0.1; give a dictionary"),
        ({"divergence": "jsd", "divergence_kwargs": {"temperature": 2.0}}, "has no knob 'temperature'"),
        ({"beta": 0.5}, "`beta` is 0.5, which has no effect with beta_strategy='akd'"),
        ({"beta": 0.5}, "divergence='jsd', divergence_kwargs={'beta': 0.5}"),
        ({"beta_strategy": "fixed"}, "`beta` is not set"),
        *(
            ({**strategy, name: value}, f"`{name}` is .*, which has no effect with beta_strategy=")
            for strategy in (
                {"beta_strategy": "linear", "beta_initial_values": [0, 1]},
                {"beta_strategy": "random_epoch", "beta_initial_values": [0.2, 0.7]},
                {"beta_strategy": "fixed", "beta": 0.5},
            )
            for name, value in (
                ("beta_learning_rate", 0.5),
                ("beta_regularization", 3.0),
                ("beta_regularizer", "alg1"),
            )
        ),
        (
            {"beta_strategy": "fixed", "beta": 0.5, "beta_initial_values": [0.5]},
            "`beta_initial_values` is .*, which has no effect with beta_strategy='fixed'",
        ),
        ({"beta_strategy": "fixed", "beta": 1.5}, r"`beta` is 1.5; .*\[0, 1\]"),
        ({"beta_strategy": "fixed", "beta": -0.1}, "`beta` is -0.1"),
        ({"beta_strategy": "m3"}, "`beta_strategy` is 'm3'"),
        ({"beta_initial_values": [2.0]}, "`beta_initial_values` contains 2.0"),
        ({"beta_regularizer": "eq15"}, "`beta_regularizer` is 'eq15'"),
        ({"beta_learning_rate": -1.0}, "`beta_learning_rate` is -1.0"),
        ({"beta_regularization": -1.0}, "`beta_regularization` is -1.0"),
        ({"lmbda": 1.5}, "`lmbda` is 1.5"),
        ({"kd_temperature": 0.0}, "`kd_temperature` is 0.0"),
        ({"temperature": 0.0, "lmbda": 1.0}, "`temperature` is 0.0"),
        ({"ce_weight": -1.0}, "`ce_weight` is -1.0"),
        ({"ce_weight": None}, "`ce_weight` is None; give a finite number"),
        ({"adam_beta1": "0.9"}, "`adam_beta1` is '0.9'; give a number of at least 0 and below 1"),
        ({"ce_weight": float("inf")}, "`ce_weight` is inf; give a finite number"),
        ({"kd_temperature": "1.0"}, "`kd_temperature` is '1.0'; give a finite number"),
        ({"kd_temperature": float("inf")}, "`kd_temperature` is inf; give a finite number"),
        ({"lmbda": None}, "`lmbda` is None; give a finite number"),
        ({"lmbda": True}, "`lmbda` is True; give a finite number"),
        ({"beta_strategy": "fixed", "beta": "0.5"}, "`beta` is '0.5'; give a finite number"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0; give an integer of at least 1[.]"),
        ({"max_new_tokens": None}, "`max_new_tokens` is None; give an integer"),
        ({"max_length": "512"}, "`max_length` is '512'; give an integer of at least 1 or None"),
        ({"max_length": 1.5}, "`max_length` is 1.5; give an integer"),
        ({"loss_chunk_size": 64.0}, "`loss_chunk_size` is 64.0; give an integer"),
        ({"pad_to_multiple_of": -8}, "`pad_to_multiple_of` is -8; give an integer"),
        ({"seq_kd": "false"}, "`seq_kd` is 'false'; give True or False"),
        ({"packing": 1}, "`packing` is 1; give True or False"),
        ({"prompt_template": ["alpaca"]}, r"`prompt_template` is \['alpaca'\]; choose"),
        ({"beta_initial_values": 0.3}, "`beta_initial_values` is 0.3; give a list"),
        ({"loss_chunk_size": 0}, "`loss_chunk_size` is 0"),
        ({"normalization": "batch"}, "`normalization` is 'batch'"),
        ({"prompt_template": "alpacca"}, "alpaca"),
        ({"packing": True, "lmbda": 0.5}, "`packing` is on together with `lmbda`"),
        ({"packing": True, "seq_kd": True}, "`packing` is on together with"),
        ({"padding_free": True, "lmbda": 1.0}, "`padding_free` is on together with `lmbda`"),
        ({"padding_free": True, "seq_kd": True}, "`padding_free` is on together with"),
        ({"eval_packing": True, "lmbda": 1.0}, "`eval_packing` is on together with `lmbda`"),
        ({"log_completions": True}, "`log_completions` is on, but no text is generated"),
        ({"log_completions": True, "lmbda": 1.0, "num_completions_to_print": 0}, "`num_completions_to_print` is 0"),
        ({"num_completions_to_print": 3}, "`num_completions_to_print` is 3, which has no effect while"),
        ({"log_unique_prompts": True}, "`log_unique_prompts` is True, which has no effect while"),
        ({"eval_packing": True}, "`eval_packing` is on, but training pads"),
        ({"loss_type": "dft"}, "`loss_type` is 'dft'"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is 0.1"),
        ({"truncation_mode": "keep_end"}, "`truncation_mode` is 'keep_end'"),
        ({"completion_only_loss": False}, "`completion_only_loss` is False"),
    ],
)
def test_bad_values_are_named_with_a_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_replace_keeps_a_learned_beta_unset():
    assert dataclasses.replace(make(), learning_rate=1e-3).beta is None


@pytest.mark.parametrize("given", [{"beta": 0.2}, '{"beta": 0.2}'])  # the latter from a command line
def test_arguments_of_a_divergence(given):
    config = make(divergence="jsd", divergence_kwargs=given)
    assert config.divergence_knobs == {"beta": 0.2}
    assert make().divergence_knobs == make(divergence="skew_kl").divergence_knobs == {}


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_fixed_beta(value):
    assert make(beta_strategy="fixed", beta=value).make_beta().value == value


@pytest.mark.parametrize("duplicate", [copy, deepcopy, dataclasses.replace])
def test_copies_keep_tokens_of_the_hub(duplicate):
    config = make(hub_token="hf_a", teacher_model_init_kwargs={"token": "hf_b", "dtype": "float32"})
    copied = duplicate(config)
    assert type(copied) is AKDConfig and copied is not config
    assert copied.hub_token == "hf_a" and copied.teacher_model_init_kwargs["token"] == "hf_b"
    copied.learning_rate = 1.0
    assert config.learning_rate == 1e-5


def test_pickled_configurations_have_no_tokens_of_the_hub():
    kwargs = {"token": "hf_b", "dtype": "float32"}
    config = make(hub_token="hf_a", model_init_kwargs=kwargs, teacher_model_init_kwargs=kwargs)
    restored = pickle.loads(pickle.dumps(config))
    assert restored.hub_token is None
    assert restored.model_init_kwargs == restored.teacher_model_init_kwargs == {"dtype": "float32"}
    assert config.model_init_kwargs == kwargs
