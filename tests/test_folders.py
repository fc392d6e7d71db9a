"""Saved posteriors: exact on reload, read by PEFT, and refused whole where something is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertForSequenceClassification

from bayeslora_pyro.adapters import PEFT_CONFIG, PEFT_TENSORS
from bayeslora_pyro.folders import CONFIG, TENSORS
from bayeslora_pyro.guides import GUIDES, FlowGuide, MeanFieldGuide
from bayeslora_pyro.models import (
    PRIORS,
    BayesianLora,
    Choice,
    GaussianPrior,
    InducingPrior,
    PointPrior,
    Prior,
    Regression,
)
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.transforms import affine_autoregressive

from .damage import resign
from .small_priors import VARIANTS
from .test_adapters import inputs, two_adapters
from .test_placement import mixed
from .test_posterior import perturbed
from .tiny import tiny_batch, tiny_bert, tiny_llama

FILES = {PEFT_CONFIG, PEFT_TENSORS, CONFIG, TENSORS}


def bare(make: Callable[..., PeftModel] = tiny_bert, **options: Any) -> nn.Module:
    """The base model as it was before PEFT: the same weights, a head of its own."""
    head = make(**options).unload()
    for parameter in head.parameters():
        parameter.requires_grad_(True)
    return head


def posterior_of(prior: Any = "inducing", guide: str = "mean_field", **options: Any) -> Posterior:
    model = BayesianLora(tiny_bert(), prior, num_data=20)
    fitted = perturbed(GUIDES[guide](model, **options))
    return Posterior(model, fitted, history=[{"step": 0.0, "elbo": -1.5}], metadata={"task": "tiny"})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    posterior_of().save(tmp_path / "posterior")
    return tmp_path / "posterior"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_reloads(
    posterior: Posterior, folder: Path, base: nn.Module, batch: Any, **parts: Any
) -> Posterior:
    posterior.save(folder)
    assert set(contents(folder)) == FILES
    before = torch.get_rng_state()
    loaded = Posterior.load(folder, base, **parts)
    assert torch.equal(torch.get_rng_state(), before)
    ours, theirs = (p.log_likelihood([batch], 3, seed=4) for p in (posterior, loaded))
    assert torch.equal(ours, theirs)
    for name, weight in posterior.weights(3, seed=4).items():
        assert torch.equal(weight, loaded.weights(3, seed=4)[name])
    assert loaded.history == posterior.history
    assert loaded.metadata == posterior.metadata
    return loaded


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
def test_reload_is_exact_for_every_prior_and_guide(prior: str, guide: str, tmp_path: Path) -> None:
    assert_reloads(posterior_of(prior, guide), tmp_path / "posterior", bare(), tiny_batch())


PAIRS: dict[str, Callable[[], tuple[Posterior, nn.Module, str]]] = {
    "prior-by-role": lambda: (
        posterior_of({"A": GaussianPrior(0.2, width_scaled=True), "B": PointPrior()}),
        bare(),
        "classification",
    ),
    "prior-by-pattern": lambda: (posterior_of(mixed()), bare(), "classification"),
    "deep-flow": lambda: (posterior_of(guide="flow", depth=2), bare(), "classification"),
    "learned-scale": lambda: (
        posterior_of(InducingPrior(rows=2, cols=3, learn_scale=True, scale=0.7)),
        bare(),
        "classification",
    ),
    "regression": lambda: (numbers(), bare(num_labels=1), "regression"),
    "text": lambda: (decoder("next_token"), bare(tiny_llama), "next_token"),
    "label-tokens": lambda: (decoder(Choice(label_tokens=(4, 9, 11))), bare(tiny_llama), "choice"),
    "options": lambda: (decoder(Choice(length_normalised=True)), bare(tiny_llama), "options"),
    "another-adapter": lambda: (second(), bare(), "classification"),
}


def numbers() -> Posterior:
    model = BayesianLora(tiny_bert(num_labels=1), likelihood=Regression(scale=0.3), num_data=20)
    with torch.no_grad():
        model.likelihood.scale_unconstrained.add_(0.4)
    return Posterior(model, perturbed(MeanFieldGuide(model)))


def decoder(likelihood: Any) -> Posterior:
    model = BayesianLora(tiny_llama(), GaussianPrior(), likelihood, 20)
    return Posterior(model, perturbed(MeanFieldGuide(model)))


def second() -> Posterior:
    model = BayesianLora(two_adapters(), num_data=20, adapter_name="second", seed=3)
    return Posterior(model, perturbed(FlowGuide(model, base="delta", seed=5)))


@pytest.mark.parametrize("prior", VARIANTS)
def test_reload_is_exact_for_variants(prior: str, tmp_path: Path) -> None:
    assert_reloads(posterior_of(VARIANTS[prior]()), tmp_path / "posterior", bare(), tiny_batch())


@pytest.mark.parametrize("case", PAIRS)
def test_reload_is_exact(case: str, tmp_path: Path) -> None:
    posterior, base, kind = PAIRS[case]()
    loaded = assert_reloads(posterior, tmp_path / "posterior", base, tiny_batch(kind))
    assert loaded.model.adapter.adapter_name == posterior.model.adapter.adapter_name
    assert {n: p.requires_grad for n, p in loaded.model.named_parameters()} == {
        n: p.requires_grad for n, p in posterior.model.named_parameters()
    }


def test_planted_fault_another_seed_is_not_equal(saved: Path) -> None:
    loaded = Posterior.load(saved, bare())
    assert not torch.equal(loaded.weights(1, seed=0)["A_2x16"], loaded.weights(1, seed=1)["A_2x16"])
    assert not torch.equal(loaded.weights(1)["A_2x16"], posterior_of("gaussian").weights(1)["A_2x16"])


@pytest.mark.parametrize("name", ["default", "second"])
def test_plain_peft_loads_the_posterior_mean(name: str, tmp_path: Path) -> None:
    posterior, batch = posterior_of() if name == "default" else second(), tiny_batch()
    posterior.save(tmp_path / "posterior")
    loaded = PeftModel.from_pretrained(bare(), str(tmp_path / "posterior")).eval()
    with torch.no_grad():
        logits = loaded(**inputs(batch)).logits
        wanted = posterior.model.run_with(posterior.mean_adapter(), batch).logits
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "make", [posterior_of, second, lambda: decoder("next_token")], ids=["bert", "second", "llama"]
)
def test_draws_are_peft_folders_with_our_logits(make: Callable[[], Posterior], tmp_path: Path) -> None:
    posterior = make()
    llama = posterior.model.adapter.peft_model.peft_config["default"].task_type == "CAUSAL_LM"
    batch = tiny_batch("next_token" if llama else "classification")
    paths = posterior.draws(3, tmp_path / "draws", seed=6)
    assert [path.name for path in paths] == ["draw-000", "draw-001", "draw-002"]
    for draw, path in enumerate(paths):
        assert set(contents(path)) == {PEFT_CONFIG, PEFT_TENSORS}
        loaded = PeftModel.from_pretrained(bare(tiny_llama) if llama else bare(), str(path)).eval()
        weights = {name: weight[0] for name, weight in posterior.weights(1, seed=6, first=draw).items()}
        with torch.no_grad():
            ours, theirs = posterior.model.run_with(weights, batch).logits, loaded(**inputs(batch)).logits
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


def test_fewer_draws_replace_more_and_leave_the_rest(tmp_path: Path) -> None:
    posterior = posterior_of()
    posterior.draws(3, tmp_path / "draws")
    (tmp_path / "draws" / "notes.txt").write_text("mine")
    posterior.draws(1, tmp_path / "draws")
    assert sorted(path.name for path in (tmp_path / "draws").iterdir()) == ["draw-000", "notes.txt"]


def test_half_precision_base_is_the_same_base(tmp_path: Path) -> None:
    posterior_of().save(tmp_path / "posterior")
    for dtype in (torch.bfloat16, torch.float16):
        loaded = Posterior.load(tmp_path / "posterior", bare().to(dtype))
        assert torch.equal(loaded.weights(1)["A_2x16"], posterior_of().weights(1)["A_2x16"])


def test_base_that_the_folder_names_is_loaded(tmp_path: Path) -> None:
    bare(num_labels=5).save_pretrained(tmp_path / "base")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "base")
    options = {"r": 2, "target_modules": ["query"], "task_type": "SEQ_CLS", "init_lora_weights": False}
    peft_model = get_peft_model(base, LoraConfig(**options))
    model = BayesianLora(peft_model.eval(), num_data=9)
    posterior = Posterior(model, MeanFieldGuide(model))
    posterior.save(tmp_path / "posterior")
    batch = tiny_batch(num_labels=5)
    loaded = Posterior.load(tmp_path / "posterior")
    assert torch.equal(loaded.predict([batch], 2).log_probs, posterior.predict([batch], 2).log_probs)


def test_a_folder_that_names_no_base_asks_for_one(saved: Path) -> None:
    config = json.loads((saved / PEFT_CONFIG).read_text()) | {"base_model_name_or_path": None}
    (saved / PEFT_CONFIG).write_text(json.dumps(config))
    resign(saved)
    with pytest.raises(ValueError, match="Give the base model itself, as base_model"):
        Posterior.load(saved)


class HalfPrior(Prior):
    """A prior of the user's own: a Gaussian of scale one half."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = GaussianPrior(0.5)

    def setup(self, stacks: Any, initial: Any, generator: Any) -> None:
        self.inner.setup(stacks, initial, generator)

    def sample_weights(self, stack: Any) -> Tensor:
        return self.inner.sample_weights(stack)

    def initial_latent(self, stack: Any, generator: Any) -> Tensor:
        return self.inner.initial_latent(stack, generator)

    def config(self) -> dict[str, Any]:
        return {}


def own_flow(dim: int) -> Any:
    return affine_autoregressive(dim)


def test_parts_of_ones_own_have_to_be_given(tmp_path: Path) -> None:
    model = BayesianLora(tiny_bert(), HalfPrior(), num_data=20)
    posterior = Posterior(model, perturbed(FlowGuide(model, transform=own_flow)))
    posterior.save(tmp_path / "posterior")
    guide = lambda model: FlowGuide(model, transform=own_flow)  # noqa: E731
    with pytest.raises(
        ValueError, match=r"prior of this posterior is 'HalfPrior'.*give it to load as prior="
    ):
        Posterior.load(tmp_path / "posterior", bare())
    with pytest.raises(
        ValueError, match=r"guide of this posterior is 'FlowGuide'.*give it to load as guide="
    ):
        Posterior.load(tmp_path / "posterior", bare(), prior=HalfPrior())
    assert_reloads(posterior, tmp_path / "posterior", bare(), tiny_batch(), prior=HalfPrior(), guide=guide)


def test_others_may_read_what_they_usually_may(saved: Path) -> None:
    (saved.parent / "usual").touch()
    modes = {path.stat().st_mode for path in saved.iterdir()}
    assert modes == {(saved.parent / "usual").stat().st_mode}


def test_nothing_is_pickled(saved: Path) -> None:
    for name, data in contents(saved).items():
        assert Path(name).suffix in (".json", ".safetensors")
        if name.endswith(".json"):
            json.loads(data)
        else:
            header = int.from_bytes(data[:8], "little")
            json.loads(data[8 : 8 + header])


def test_a_posterior_is_replaced_and_what_is_beside_it_stays(saved: Path) -> None:
    (saved / "report.html").write_text("mine")
    (saved / "figures").mkdir()
    (saved / "figures" / "one.svg").write_text("mine too")
    posterior_of("gaussian").save(saved)
    assert set(contents(saved)) == FILES | {"report.html", "figures/one.svg"}
    assert isinstance(Posterior.load(saved, bare()).model.prior_of(posterior_of().stacks[0]), GaussianPrior)
    assert [path.name for path in saved.parent.iterdir()] == ["posterior"]


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for write in (posterior_of().save, lambda folder: posterior_of().draws(1, folder)):
        for path in (foreign, tmp_path / "file"):
            with pytest.raises(ValueError, match="exists and holds something else: choose a new folder"):
                write(path)
        (tmp_path / "empty").mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / "empty")
        with pytest.raises(ValueError, match="is the working directory"):
            write(Path())
    assert contents(tmp_path) == {"thesis/chapter.tex": b"years of work", "file": b"a file"}


@pytest.mark.parametrize(
    "where",
    [
        "folders.write_folder",
        "folders.write_tensors",
        "folders.describe_guide",
        "folders.describe_base",
        "replacing.flush",
        "replacing._move_in",
    ],
)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_amid_saving_leaves_the_old_folder_whole(
    where: str, error: type[BaseException], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved.parent)

    def fail(*args: Any) -> None:
        raise error("amid")

    monkeypatch.setattr(f"bayeslora_pyro.{where}", fail)
    with pytest.raises(error, match="amid"):
        posterior_of("gaussian").save(saved)
    with pytest.raises(error, match="amid"):
        posterior_of("gaussian").save(saved.parent / "new")
    assert contents(saved.parent) == before
    assert list(saved.parent.iterdir()) == [saved]
