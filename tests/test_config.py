"""The settings of a fit: checked at once, with the name, the value and the cure."""

import itertools
import math
from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any

import pytest

from bayeslora_pyro.config import FitConfig

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no-steps": ({"num_steps": 0}, "num_steps should be a whole number of at least 1, and is 0"),
    "half-a-step": ({"num_steps": 2.5}, "num_steps should be a whole number of at least 1, and is 2.5"),
    "text": ({"accumulate": "2"}, "accumulate should be a whole number of at least 1, and is '2'"),
    "no-particles": ({"num_particles": -1}, "num_particles should be a whole number"),
    "negative-rate": (
        {"learning_rate": -1e-3},
        "learning_rate should be finite and not be negative, and is -0.001: give a number such as 0.005",
    ),
    "no-rate": (
        {"learning_rate": 0.0},
        "learning_rate should be positive, and is 0: give a number such as 0.005",
    ),
    "rate-nan": (
        {"learning_rate": math.nan},
        "learning_rate should be finite and not be negative, and is nan",
    ),
    "rate-infinite": (
        {"learning_rate": math.inf},
        "learning_rate should be finite and not be negative, and is inf",
    ),
    "flow-rate": ({"flow_learning_rate": math.inf}, "flow_learning_rate should be finite"),
    "norm-nan": ({"max_grad_norm": math.nan}, "max_grad_norm should be positive, or None"),
    "nan": (
        {"head_learning_rate": math.nan},
        "head_learning_rate should be finite and not be negative, and is nan",
    ),
    "infinite": ({"kl_weight": math.inf}, "kl_weight should be finite and not be negative, and is inf"),
    "decay": ({"weight_decay": -0.1}, "weight_decay should be finite and not be negative"),
    "warm-up": ({"kl_warmup": 1.5}, "kl_warmup should be a share of the steps between 0 and 1, and is 1.5"),
    "warm-up-nan": ({"kl_warmup": math.nan}, "kl_warmup should be a share"),
    "norm": ({"max_grad_norm": 0.0}, "max_grad_norm should be positive, or None for no clipping; it is 0.0"),
    "step-warm-up": (
        {"warmup": 1.0},
        "warmup should be a share of the steps, at least 0 and below 1, and is 1.0",
    ),
    "schedule": ({"schedule": "step"}, "schedule should be 'constant', 'linear' or 'cosine', and is 'step'"),
    "no-snapshots": ({"snapshots": 0}, "snapshots should be a whole number of at least 1, and is 0"),
    "snapshots": ({"num_steps": 9, "snapshots": 5}, "snapshots=5 needs num_steps of at least 10"),
    "checkpoints": (
        {"checkpoint_every": -1},
        "checkpoint_every should be a whole number of at least 0, and is -1",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_refused_at_once(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        FitConfig(**options)
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        FitConfig().replace(**options)


def test_a_wrong_name_lists_the_settings() -> None:
    with pytest.raises(
        TypeError, match=r"no setting 'lr'. The settings are num_steps, learning_rate, .*, seed"
    ) as error:
        FitConfig().replace(lr=1e-3, num_steps=3)
    assert all(field.name in str(error.value) for field in fields(FitConfig))


def test_settings_are_values() -> None:
    config = FitConfig(num_steps=10)
    changed = config.replace(seed=3)
    assert (config.seed, changed.seed, changed.num_steps) == (0, 3, 10)
    assert FitConfig(**asdict(changed)) == changed
    with pytest.raises(FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


def test_every_setting_is_explained() -> None:
    assert all(f"\n        {field.name}: " in (FitConfig.__doc__ or "") for field in fields(FitConfig))


def test_kl_weight_grows_to_its_value_and_stays() -> None:
    config = FitConfig(num_steps=10, kl_weight=0.5, kl_warmup=0.4)
    assert [config.kl_weight_at(step) for step in range(6)] == pytest.approx(
        [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    )
    at_once = config.replace(kl_warmup=0.0)
    assert {at_once.kl_weight_at(step) for step in range(10)} == {0.5}
    whole = config.replace(kl_warmup=1.0)
    assert whole.kl_weight_at(9) == 0.5
    assert all(whole.kl_weight_at(step) < whole.kl_weight_at(step + 1) for step in range(9))


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.85355, 0.5, 0.14645])],
)
def test_step_sizes_follow_the_schedule(schedule: Any, factors: list[float]) -> None:
    config = FitConfig(num_steps=4, schedule=schedule)
    found = [config.learning_rate_factor_at(step) for step in range(4)]
    assert found == pytest.approx(factors, abs=1e-5)


def test_step_sizes_warm_up_and_then_follow_the_schedule() -> None:
    config = FitConfig(num_steps=10, warmup=0.4, schedule="linear")
    found = [config.learning_rate_factor_at(step) for step in range(10)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    at_once = config.replace(warmup=0.0, schedule="constant")
    assert {at_once.learning_rate_factor_at(step) for step in range(10)} == {1.0}


@pytest.mark.parametrize("num_steps", [2, 10, 11, 600])
@pytest.mark.parametrize("snapshots", [1, 2, 5])
def test_snapshots_are_spaced_over_the_second_half(num_steps: int, snapshots: int) -> None:
    if 2 * snapshots <= num_steps:
        steps = FitConfig(num_steps=num_steps, snapshots=snapshots).snapshot_steps
        assert (len(set(steps)), steps[-1]) == (snapshots, num_steps)
        assert steps[0] > num_steps / 2
        gaps = {b - a for a, b in itertools.pairwise(steps)}
        assert not gaps or max(gaps) - min(gaps) <= 1
