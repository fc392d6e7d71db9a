"""Generation with draws held fixed, against `generate` of plain PEFT models, and a loop over tokens and draws."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from bayeslora_pyro import decoding
from bayeslora_pyro.adapters import tiles
from bayeslora_pyro.generation import Generation, GenerationByDraw, mixture
from bayeslora_pyro.guides import GUIDES, DeltaGuide
from bayeslora_pyro.models import BayesianLora, GaussianPrior
from bayeslora_pyro.posterior import Posterior

from .exact import close, perturb
from .tiny import VOCABULARY, tiny_llama

NEW, DRAWS, PAD, END = 6, 4, 0, 2


def posterior_of(guide: str = "mean_field", dtype: torch.dtype = torch.float64, **options: Any) -> Posterior:
    model = BayesianLora(tiny_llama(dtype=dtype, **options), GaussianPrior(), "next_token", 20).to(
        torch.promote_types(dtype, torch.float32)
    )
    made: Any = GUIDES[guide](model).to(next(model.parameters(), torch.zeros(())).dtype)
    return Posterior(model, perturb(made.double() if dtype is torch.float64 else made, 0.3))


POSTERIORS = {
    "all layers": {},
    "the last of four": {"num_layers": 4, "layers_to_transform": [3]},
    "the last two of four": {"num_layers": 4, "layers_to_transform": [2, 3]},
}


def prompts(seed: int = 0, rows: int = 3, length: int = 5) -> dict[str, Tensor]:
    """Tokens that are padded on the left, the first row without."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    mask = (torch.arange(length) >= torch.arange(rows)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def expected_next(posterior: Posterior, weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """What one draw expects after some tokens, alone in a batch, without padding or cache."""
    with torch.no_grad(), posterior.model.adapter.bind(weights) as peft_model:
        return peft_model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)


def by_hand(
    posterior: Posterior, given: dict[str, Tensor], num_draws: int, seed: int
) -> list[dict[str, Tensor]]:
    """Greedy decoding of the mixture, draw by draw, row by row, token by token."""
    weights, rows = posterior.weights(num_draws, seed), []
    for row, mask in zip(given["input_ids"], given["attention_mask"], strict=True):
        ids, found = (
            row[mask.bool()].tolist(),
            {"tokens": [], "log_probs": [], "entropy": [], "aleatoric": []},
        )
        for _ in range(NEW):
            each = torch.stack(
                [
                    expected_next(posterior, {n: w[s] for n, w in weights.items()}, ids)
                    for s in range(num_draws)
                ]
            )
            mean = each.exp().mean(0)
            token = int(mean.argmax())
            found["tokens"].append(token)
            found["log_probs"].append(each[:, token])
            found["entropy"].append(-(mean * mean.log()).sum())
            found["aleatoric"].append(-(each.exp() * each).sum(-1).mean())
            ids.append(token)
            if token == END:
                break
        rows.append({k: torch.tensor(v) if k == "tokens" else torch.stack(v) for k, v in found.items()})
    return rows


def check(generation: Generation, rows: list[dict[str, Tensor]], tolerance: float) -> None:
    for place, row in enumerate(rows):
        length = len(row["tokens"])
        assert generation.tokens[place, :length].tolist() == row["tokens"].tolist()
        assert generation.mask[place].tolist() == [i < length for i in range(generation.tokens.shape[1])]
        close(generation.log_probs[:, place, :length].mT, row["log_probs"], tolerance)
        for name in ("entropy", "aleatoric"):
            close(getattr(generation, name)[place, :length], row[name], tolerance)
            assert not getattr(generation, name)[place, length:].any()
        close(generation.epistemic[place].sum(), (row["entropy"] - row["aleatoric"]).sum(), tolerance)
        close(generation.log_prob[place], row["log_probs"].exp().mean(1).log().sum(), tolerance)


@pytest.mark.parametrize("case", POSTERIORS)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_mixture_is_decoded_as_by_hand(case: str, rows: int) -> None:
    posterior, given = posterior_of(**POSTERIORS[case]), prompts(rows=rows)
    generation = posterior.generate(given, DRAWS, seed=1, max_new_tokens=NEW)
    assert generation.log_probs.shape == (DRAWS, *generation.tokens.shape)
    assert generation.epistemic.max() > 1e-2
    check(generation, by_hand(posterior, given, DRAWS, 1), 1e-9)
    order = torch.arange(given["input_ids"].shape[1]).expand_as(given["input_ids"])
    right = (order + (1 - given["attention_mask"]).sum(-1, keepdim=True)) % order.shape[1]
    moved = {name: value.gather(-1, right) for name, value in given.items()}  # padded on the right
    assert torch.equal(posterior.generate(moved, DRAWS, seed=1, max_new_tokens=NEW).tokens, generation.tokens)


def test_it_ends_where_the_model_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, given = posterior_of(), prompts(rows=3)
    whole = posterior.generate(given, DRAWS, seed=1, max_new_tokens=NEW)
    end = int(whole.tokens[0, 2])
    base_model = posterior.model.adapter.peft_model.get_base_model()
    monkeypatch.setattr(base_model.generation_config, "eos_token_id", [END, end])
    ended = posterior.generate(given, DRAWS, seed=1, max_new_tokens=NEW)
    first = int((whole.tokens[0] == end).int().argmax())
    assert ended.mask[0].tolist() == [i <= first for i in range(ended.tokens.shape[1])]
    assert (ended.tokens[~ended.mask] == PAD).all()
    for name in ("entropy", "aleatoric", "epistemic"):
        assert not getattr(ended, name)[~ended.mask].any()
        close(getattr(ended, name)[0, : first + 1], getattr(whole, name)[0, : first + 1], 1e-12)
    assert ended.num_tokens[0] == first + 1
    close(ended.sequence_entropy, ended.sequence_aleatoric + ended.sequence_epistemic, 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_mean_writes_what_its_peft_folder_writes(dtype: torch.dtype, tmp_path) -> None:
    posterior, given = posterior_of(dtype=dtype), prompts()
    posterior.save(tmp_path / "run")
    ours = posterior.generate(given, by="mean", max_new_tokens=NEW)
    base_model = tiny_llama(dtype=dtype).unload()
    peft_model = PeftModel.from_pretrained(base_model, tmp_path / "run").to(dtype).eval()
    theirs = peft_model.generate(**given, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD)
    assert ours.tokens.tolist() == theirs[:, 5:].tolist()
    assert not ours.epistemic.any()
    other = posterior.generate(given, 1, seed=3, max_new_tokens=NEW).tokens
    assert other.tolist() != theirs[:, 5:].tolist()  # planted: a draw is not the mean


@pytest.mark.parametrize("case", ["all layers", "the last of four"])
def test_single_and_half_precision(case: str) -> None:
    given = prompts()
    single = posterior_of(dtype=torch.float32, **POSTERIORS[case])
    check(single.generate(given, DRAWS, seed=1, max_new_tokens=NEW), by_hand(single, given, DRAWS, 1), 1e-4)
    half = posterior_of(dtype=torch.bfloat16, **POSTERIORS[case])
    generation = half.generate(given, DRAWS, seed=1, max_new_tokens=NEW)
    first = by_hand(half, given, DRAWS, 1)
    for row, expected in enumerate(first):
        assert abs(float(generation.entropy[row, 0] - expected["entropy"][0])) < 0.05
    assert generation.entropy.dtype == torch.float32
    assert generation.epistemic.max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_is_epistemic_without_variance(dtype: torch.dtype, untouched_rng) -> None:
    model = BayesianLora(tiny_llama(dtype=dtype), GaussianPrior(), "next_token", 20)
    posterior = Posterior(model, DeltaGuide(model))
    together = posterior.generate(prompts(), 5, max_new_tokens=NEW)
    assert together.epistemic.abs().max() == 0
    assert together.log_probs.shape[0] == 5
    apart = posterior.generate(prompts(), 5, by="draw", max_new_tokens=NEW, temperature=1.0)
    assert apart.epistemic.abs().max() == 0
    assert len({tuple(row) for row in apart.tokens[:, 0].tolist()}) > 1


def test_planted_fault_noise_is_epistemic() -> None:
    assert posterior_of().generate(prompts(), 5, max_new_tokens=NEW).epistemic.max() > 1e-2


@pytest.mark.parametrize("case", ["all layers", "the last of four"])
def test_each_draw_writes_what_it_writes_alone(case: str) -> None:
    posterior, given, few = posterior_of(**POSTERIORS[case]), prompts(), 3
    apart = posterior.generate(given, few, seed=1, by="draw", max_new_tokens=NEW)
    assert isinstance(apart, GenerationByDraw)
    weights = posterior.weights(few, seed=1)
    scores = torch.zeros(few, few, 3, dtype=torch.float64)
    for s in range(few):
        with posterior.model.adapter.bind({name: w[s] for name, w in weights.items()}) as peft_model:
            alone = peft_model.generate(**given, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD)[:, 5:]
        assert apart.tokens[s, :, : alone.shape[1]].tolist() == alone.tolist()
        assert (apart.tokens[s, :, alone.shape[1] :] == PAD).all()
        for row in range(3):
            for r in range(few):
                ids = given["input_ids"][row][given["attention_mask"][row].bool()].tolist()
                for token in apart.tokens[s, row][apart.mask[s, row]].tolist():
                    scores[r, s, row] += expected_next(posterior, {n: w[r] for n, w in weights.items()}, ids)[
                        token
                    ]
                    ids.append(token)
    close(apart.log_probs.sum(-1), scores, 1e-9)
    own = torch.stack([scores[s, s] for s in range(few)])
    close(apart.log_prob, own, 1e-9)
    close(apart.mixture_log_prob, scores.exp().mean(0).log(), 1e-9)
    close(apart.entropy, apart.aleatoric + apart.epistemic, 1e-9)
    assert (
        scores.transpose(0, 1) - apart.log_probs.sum(-1)
    ).abs().max() > 1e-2  # planted: writers and readers changed about


def test_planted_faults_of_decoding_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, given = posterior_of(**POSTERIORS["the last two of four"]), prompts()
    rows = by_hand(posterior, given, DRAWS, 1)

    def wrong() -> bool:
        try:
            check(posterior.generate(given, DRAWS, seed=1, max_new_tokens=NEW), rows, 1e-9)
        except AssertionError:
            return True
        return False

    assert not wrong()
    with monkeypatch.context() as patch:  # logits averaged, and not probabilities
        patch.setattr(decoding, "mixture", lambda log_probs: log_probs.mean(0).log_softmax(-1))
        assert wrong()
    with monkeypatch.context() as patch:  # rows of a tile given to other draws
        tiled = tiles._tiled
        patch.setattr(
            tiles,
            "_tiled",
            lambda kwargs, n: {
                k: v[torch.arange(len(v)).unflatten(0, (n, -1)).mT.flatten()]
                if isinstance(v, Tensor) and v.dim() == 2
                else v
                for k, v in tiled(kwargs, n).items()
            },
        )
        assert wrong()
    with monkeypatch.context() as patch:  # padding counted as text
        patch.setattr(
            decoding,
            "encoded",
            lambda given, *_: {**given, "attention_mask": 0 * given["attention_mask"] + 1},
        )
        assert wrong()


def test_sampling_is_by_the_seed(untouched_rng) -> None:
    posterior, given = posterior_of(), prompts()
    one, again, other = (
        posterior.generate(given, DRAWS, seed=seed, max_new_tokens=NEW, temperature=1.0, top_p=0.9).tokens
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert one.tolist() != other.tolist()


def test_sampled_tokens_follow_the_mixture() -> None:
    posterior = posterior_of()
    row = {name: value[:1].repeat(4000, 1) for name, value in prompts().items()}
    weights = posterior.weights(2, seed=1)
    ids = row["input_ids"][0].tolist()
    each = [expected_next(posterior, {n: w[s] for n, w in weights.items()}, ids) for s in range(2)]
    wanted = torch.stack(each).exp().mean(0)
    tokens = posterior.generate(row, 2, seed=1, max_new_tokens=1, temperature=1.0).tokens[:, 0]
    shares = torch.bincount(tokens, minlength=VOCABULARY) / 4000
    error = (wanted * (1 - wanted) / 4000).sqrt()
    assert ((shares - wanted).abs() < 5 * error + 1e-3).all()
    assert not ((shares - each[0].exp()).abs() < 5 * error + 1e-3).all()  # planted: one draw alone


def test_the_model_is_left_as_it_was() -> None:
    posterior = posterior_of(**POSTERIORS["the last of four"])
    peft_model = posterior.model.adapter.peft_model
    before = {name: dict(vars(module)) for name, module in peft_model.named_modules()}
    hooks = {
        name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in peft_model.named_modules()
    }
    posterior.generate(prompts(), DRAWS, max_new_tokens=2)
    assert hooks == {
        n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in peft_model.named_modules()
    }
    for name, module in peft_model.named_modules():
        assert vars(module).keys() == before[name].keys()


def test_mixture_of_equal_draws_is_exact() -> None:
    log_probs = torch.randn(7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    log_probs[3] = -torch.inf
    assert torch.equal(mixture(log_probs.expand(5, -1)), log_probs)
    some = torch.tensor([[0.1, 0.9], [0.5, 0.5]], dtype=torch.float64).log()
    close(mixture(some).exp(), some.exp().mean(0), 1e-12)
