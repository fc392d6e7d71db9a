"""Folders that are not what was saved: refused with a reason, and the base model left as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from bayeslora_pyro.adapters import PEFT_CONFIG, PEFT_TENSORS
from bayeslora_pyro.folders import CONFIG, TENSORS
from bayeslora_pyro.posterior import Posterior

from .damage import resign
from .test_folders import bare, contents, posterior_of
from .tiny import tiny_bert, tiny_llama


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("original") / "posterior"
    posterior_of().save(folder)
    return contents(folder)


@pytest.fixture
def saved(original: dict[str, bytes], tmp_path: Path) -> Path:
    for name, data in original.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def tree(base: nn.Module) -> Any:
    """All of a base model that loading could leave changed."""
    modules = [(name, id(part), sorted(map(str, vars(part)))) for name, part in base.named_modules()]
    return modules, [(name, id(p), p.requires_grad) for name, p in base.named_parameters()]


def assert_refused(folder: Path, base: nn.Module, error: type[Exception], message: str) -> None:
    before, files, values = tree(base), contents(folder), {n: v.clone() for n, v in base.state_dict().items()}
    with pytest.raises(error, match=message):
        Posterior.load(folder, base)
    assert tree(base) == before
    assert all(torch.equal(value, values[name]) for name, value in base.state_dict().items())
    assert contents(folder) == files


@pytest.mark.parametrize("name", [TENSORS, PEFT_TENSORS])
def test_truncated_or_flipped_tensors_are_refused(name: str, saved: Path) -> None:
    whole = (saved / name).read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), b"", whole + b"\0"):
        (saved / name).write_bytes(data)
        assert_refused(saved, bare(), ValueError, f"{name} is not the file that was saved: restore it")


@pytest.mark.parametrize("name", [TENSORS, PEFT_TENSORS, PEFT_CONFIG])
def test_a_missing_file_is_named(name: str, saved: Path) -> None:
    (saved / name).unlink()
    assert_refused(saved, bare(), FileNotFoundError, f"{name} is missing: restore it from a copy")


def test_a_folder_without_posterior_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"holds no posterior: it has no {CONFIG}"):
            Posterior.load(folder, bare())


GARBAGE = {
    "empty": b"",
    "no-json": b"posterior",
    "half": b'{"format": 1, "model": {',
    "binary": bytes(range(256)),
    "list": b"[1, 2, 3]",
    "deep": b"[" * 100_000,
    "number": b"1",
    "no-fields": b'{"format": 1}',
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused(data: bytes, saved: Path) -> None:
    (saved / CONFIG).write_bytes(data)
    assert_refused(saved, bare(), ValueError, f"{CONFIG} is damaged .*: restore it from a copy, or fit again")


Change = Callable[[dict[str, Any]], Any]

HOSTILE: dict[str, tuple[Change, str]] = {
    "later-format": (
        lambda r: r.update(format=4),
        "has format 4, and this version reads 3: update bayeslora-pyro",
    ),
    "odd-format": (lambda r: r.update(format="1"), "damaged .at 'format'"),
    "true-format": (lambda r: r.update(format=None), "damaged .at 'format'"),
    "list-for-model": (lambda r: r.update(model=[]), "damaged .at 'model'"),
    "text-for-number": (lambda r: r["model"].update(num_data="20"), "damaged .at 'model.num_data'"),
    "no-data": (lambda r: r["model"].update(num_data=0), "num_data should be the number of training items"),
    "path-in-digests": (lambda r: r["sha256"].update({"../../../dev/zero": "0"}), ""),
    "no-digests": (lambda r: r.update(sha256={}), "damaged .at 'sha256.posterior.safetensors'"),
    "unknown-guide": (
        lambda r: r["guide"].update(type="os.system"),
        "guide of this posterior is 'os.system'",
    ),
    "list-as-type": (lambda r: r["guide"].update(type=["flow"]), "which is not one of the library's"),
    "other-guide": (lambda r: r["guide"].update(type="delta"), "damaged, or does not fit"),
    "other-guide-that-fits": (
        lambda r: r.update(guide={"type": "delta", "config": {}}),
        "does not belong to this model and guide: 'guide.A_2x16.log_scale' is in only one",
    ),
    "other-prior": (
        lambda r: r["model"]["priors"].update(AB={"type": "point", "config": {}}),
        "in only one of the two",
    ),
    "no-priors": (lambda r: r["model"].update(priors={}), "prior should have an entry for each of the roles"),
    "other-sizes": (
        lambda r: r["model"]["priors"]["AB"]["config"].update(rows=4),
        "has shape|is .4, 4.|there, and",
    ),
    "odd-argument": (
        lambda r: r["model"]["priors"]["AB"]["config"].update(__class__="x"),
        "damaged, or does not fit what it is loaded with",
    ),
    "text-as-size": (
        lambda r: r["model"]["priors"]["AB"]["config"].update(rows="9"),
        "damaged, or does not fit what it is loaded with",
    ),
    "adapter-with-a-dot": (lambda r: r["model"].update(adapter_name="a.b"), "damaged, or does not fit"),
    "base-without-shape": (
        lambda r: r["base"]["layers"].update({n: 3 for n in r["base"]["layers"]}),
        "does not fit",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_json_is_refused(case: str, saved: Path) -> None:
    change, message = HOSTILE[case]
    record = json.loads((saved / CONFIG).read_text())
    change(record)
    (saved / CONFIG).write_text(json.dumps(record))
    resign(saved)
    if message:
        assert_refused(saved, bare(), ValueError, message)
    else:  # what nobody reads harms nobody
        Posterior.load(saved, bare())


PEFT_CHANGES: dict[str, tuple[bytes | Change, str]] = {
    "garbage": (b"{", f"{PEFT_CONFIG} is damaged: restore it"),
    "unknown-type": (lambda c: c.update(peft_type="MAGIC"), f"{PEFT_CONFIG} is damaged"),
    "other-rank": (lambda c: c.update(r=3), "damaged, or does not fit what it is loaded with"),
    "other-targets": (lambda c: c.update(target_modules=["key"]), "damaged, or does not fit|does not belong"),
}


@pytest.mark.parametrize("case", PEFT_CHANGES)
@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_changed_peft_configuration_is_refused(case: str, saved: Path) -> None:
    change, message = PEFT_CHANGES[case]
    if callable(change):
        config = json.loads((saved / PEFT_CONFIG).read_text())
        change(config)
        (saved / PEFT_CONFIG).write_text(json.dumps(config))
    else:
        (saved / PEFT_CONFIG).write_bytes(change)
    assert_refused(saved, bare(), ValueError, f"{PEFT_CONFIG} is not the file that was saved: restore it")
    resign(saved)
    assert_refused(saved, bare(), ValueError, message)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r["model"].update(num_data=21),
        lambda r: r["history"][0].update(elbo=-1.4),
        lambda r: r["guide"]["config"].update(scale=0.02),
        lambda r: r["sha256"].update({PEFT_CONFIG: "0" * 64}),
    ],
)
def test_a_changed_number_of_the_record_is_refused(change: Change, saved: Path) -> None:
    record = json.loads((saved / CONFIG).read_text())
    change(record)
    (saved / CONFIG).write_text(json.dumps(record))
    assert_refused(saved, bare(), ValueError, f"{CONFIG} is not the file that was saved|{PEFT_CONFIG} is not")


def test_the_layout_of_the_record_does_not_matter(saved: Path) -> None:
    record = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(dict(reversed(record.items())), indent=4))
    assert Posterior.load(saved, bare()).history == posterior_of().history


def test_a_folder_of_format_1_is_read(saved: Path) -> None:
    record = json.loads((saved / CONFIG).read_text()) | {"format": 1}
    for name in (CONFIG, PEFT_CONFIG):
        del record["sha256"][name]
    (saved / CONFIG).write_text(json.dumps(record))
    assert torch.equal(
        Posterior.load(saved, bare()).weights(1)["A_2x16"], posterior_of().weights(1)["A_2x16"]
    )


BASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "other-weights": (
        lambda: bare(seed=1),
        r"is not the one that the posterior was fitted on: its layer .* is another",
    ),
    "other-width": (lambda: bare(hidden=32), "is another"),
    "fewer-layers": (lambda: with_layers(1), r"layer 'bert.encoder.layer.1.* is missing"),
    "other-family": (lambda: bare(tiny_llama), "is missing"),
    "slightly-tuned": (lambda: nudged(bare()), "is another"),
}


def with_layers(count: int) -> nn.Module:
    """The base model with fewer or more layers, and the same weights in those that both have."""
    base, shared = bare(num_layers=count), bare().state_dict()
    known = base.state_dict()
    base.load_state_dict({name: value for name, value in shared.items() if name in known}, strict=False)
    return base


def nudged(base: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in base.parameters():
            parameter *= 1.02
    return base


@pytest.mark.parametrize("case", BASES)
def test_another_base_model_is_refused(case: str, saved: Path) -> None:
    make, message = BASES[case]
    assert_refused(saved, make(), ValueError, message)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_base_model_with_more_layers_is_refused(saved: Path) -> None:
    assert_refused(saved, with_layers(3), ValueError, "does not belong to this model and guide|does not fit")


def test_a_base_model_with_lora_is_refused(saved: Path) -> None:
    injected = tiny_bert().get_base_model()  # the layers stay in it
    for base in (tiny_bert(), injected):
        assert_refused(
            saved, base, ValueError, "already carries LoRA layers.*as it was before get_peft_model"
        )


def test_a_refused_base_model_can_be_used_again(saved: Path, recwarn: pytest.WarningsRecorder) -> None:
    base, whole = bare(), json.loads((saved / CONFIG).read_text())
    broken = whole | {"guide": {"type": "delta", "config": {}}}
    (saved / CONFIG).write_text(json.dumps(broken))
    resign(saved)
    assert_refused(saved, base, ValueError, "in only one of the two")
    (saved / CONFIG).write_text(json.dumps(whole))
    assert torch.equal(Posterior.load(saved, base).weights(1)["A_2x16"], posterior_of().weights(1)["A_2x16"])
    fresh = get_peft_model(bare(), LoraConfig(target_modules=["query"]))
    assert isinstance(fresh, PeftModel)
