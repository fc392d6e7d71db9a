"""From a posterior to ArviZ and its file, on a small stand-in whose every number is known."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from bayeslora_pyro.diagnostics import arrays, load_arviz, save_arviz, to_arviz
from bayeslora_pyro.diagnostics.arrays import datasets
from bayeslora_pyro.diagnostics.forest import short_names
from bayeslora_pyro.diagnostics.naming import name_dims

from .fakes import FakePosterior, V, items, values


class TestContainer:
    @pytest.mark.parametrize("grouped", [False, True])
    def test_groups_and_dimensions(self, grouped):
        posterior = FakePosterior(grouped=grouped)
        groups = datasets(to_arviz(posterior, items(), num_draws=4))
        assert set(groups) == {
            "posterior", "prior", "sample_stats", "posterior_predictive", "log_likelihood", "observed_data",
            "constant_data",
        }  # fmt: skip
        draws = groups["posterior"]
        assert draws["A_2x6.V"].dims == ("chain", "draw", "adapter", "inducing_row", "inducing_col")
        assert list(draws["adapter"].values) == list(posterior.stacks[0].adapters)
        assert draws["A_2x6.W"].dims[2:] == ("adapter", "rank", "in_feature")
        if grouped:
            assert draws["B_4x2.W"].dims[2:] == ("adapter@B_4x2", "out_feature@B_4x2", "rank")
            assert list(draws["adapter@B_4x2"].values) == [V.format(i) for i in range(3)]
        else:
            assert draws["B_6x2.W"].dims[2:] == ("adapter", "out_feature", "rank")
        assert set(groups["prior"].data_vars) == set(draws.data_vars)
        assert groups["log_likelihood"]["y"].dims == ("chain", "draw", "item")
        assert groups["posterior_predictive"]["log_probs"].dims == ("chain", "draw", "item", "label")
        assert groups["observed_data"]["y"].dims == ("item",)
        assert groups["constant_data"]["kl_W"].dims == ("chain", "step")

    def test_draws_are_those_of_the_posterior(self):
        posterior = FakePosterior()
        container = to_arviz(posterior, items(), num_draws=4, seed=7)
        for name, draws in posterior.sample(4, 7).items():
            assert np.array_equal(values(container, "posterior", name)[0], draws.numpy())
        prediction = posterior.predict(items(), 4, 7)
        assert np.array_equal(values(container, "observed_data", "y"), prediction.labels.numpy())
        expected = prediction.log_probs[:, torch.arange(12), prediction.labels]
        assert np.allclose(values(container, "log_likelihood", "y")[0], expected, atol=1e-6)

    def test_densities_add_up(self):
        posterior = FakePosterior()
        stats = datasets(to_arviz(posterior, items(), num_draws=4, seed=7))["sample_stats"]
        log_prior, log_guide = posterior.log_weights(4, 7)
        assert np.allclose(stats["log_prior"][0], log_prior)
        assert np.allclose(stats["log_guide"][0], log_guide)
        assert np.allclose(stats["lp"], stats["log_prior"] + stats["log_likelihood_sum"])

    def test_log_joint_of_the_training_data(self):
        posterior, training = FakePosterior(), items(seed=3)
        container = to_arviz(posterior, items(30), fitted_to=training, num_draws=4)
        alone = to_arviz(posterior, training, num_draws=4)
        assert np.allclose(values(container, "sample_stats", "lp"), values(alone, "sample_stats", "lp"))
        assert container.attrs["lp_data"] == "fitted_to"
        assert alone.attrs["lp_data"] == "batches"
        with pytest.raises(ValueError, match="fitted_to yields 10 items, but the posterior was fitted to 12"):
            to_arviz(posterior, fitted_to=training[:2], num_draws=4)
        with pytest.raises(ValueError, match="fitted_to should have labels"):
            to_arviz(posterior, fitted_to=items(labelled=False), num_draws=4)

    def test_sampled_answers_follow_the_probabilities(self):
        container = to_arviz(FakePosterior(), items(400), num_draws=50)
        probs = np.exp(values(container, "posterior_predictive", "log_probs"))
        answers = values(container, "posterior_predictive", "y")
        for label in range(3):
            assert (answers == label).mean() == pytest.approx(probs[..., label].mean(), abs=0.01)

    def test_what_is_not_known_is_left_out(self):
        groups = datasets(to_arviz(FakePosterior(), num_draws=4))
        assert set(groups) == {"posterior", "prior", "sample_stats", "constant_data"}
        assert "lp" not in groups["sample_stats"]
        groups = datasets(to_arviz(FakePosterior(), items(labelled=False), num_draws=4))
        assert "posterior_predictive" in groups
        assert "observed_data" not in groups
        kept = datasets(to_arviz(FakePosterior(), num_draws=4, sites=()))["posterior"]
        assert list(kept.data_vars) == ["update_norm", "update_rank"]

    def test_chains_are_fits(self):
        several = [FakePosterior(guide_mean=0.1, num_steps=5), FakePosterior(guide_mean=0.4, num_steps=8)]
        container = to_arviz(several, iter(items()), num_draws=4, seed=7)
        for chain, posterior in enumerate(several):
            expected = posterior.sample(4, 7 + chain)["A_2x6.V"].numpy()
            assert np.array_equal(values(container, "posterior", "A_2x6.V")[chain], expected)
        elbo = values(container, "constant_data", "elbo")
        assert elbo.shape == (2, 8)
        assert np.isnan(elbo[0, 5:]).all()
        assert np.isfinite(elbo[1]).all()

    def test_names_of_classes(self):
        named = FakePosterior(extra={"label_names": ["a", "b", "c"]})
        assert list(datasets(to_arviz(named, items(), num_draws=4))["posterior_predictive"]["label"]) == [
            *"abc"
        ]
        container = to_arviz(named, items(), num_draws=4, label_names=["x", "y", "z"])
        assert list(datasets(container)["posterior_predictive"]["label"]) == ["x", "y", "z"]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: to_arviz([]), "empty sequence"),
            (lambda: to_arviz([FakePosterior(2), FakePosterior(3)]), r"posterior\[1\] has other stacks"),
            (lambda: to_arviz(FakePosterior(), sites=["W"], num_draws=4), r"sites names \['W'\]"),
            (
                lambda: to_arviz(FakePosterior(), items(), num_draws=4, label_names=["a"]),
                "1 names.*3 classes",
            ),
            (lambda: name_dims({"A.V": ("adapter",)}, {"A.V": (2, 3)}, {"A": ("x", "y")}), "site_dims"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_global_state_is_left_alone(self):
        state = torch.get_rng_state(), np.random.get_state()[1].tolist()
        to_arviz(FakePosterior(), items(), num_draws=4)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert np.random.get_state()[1].tolist() == state[1]


class TestUpdateNorm:
    @pytest.mark.parametrize("grouped", [False, True])
    def test_dense_product(self, grouped):
        posterior = FakePosterior(grouped=grouped)
        draws = posterior.sample(4, 0)
        found = datasets(to_arviz(posterior, num_draws=4))["posterior"]["update_norm"]
        for module in posterior.stacks[0].adapters:
            factors = {
                stack.role: draws[f"{stack.name}.W"][:, stack.adapters.index(module)].double()
                for stack in posterior.stacks
                if module in stack.adapters
            }
            expected = (factors["B"] @ factors["A"]).flatten(1).norm(dim=1)
            assert np.allclose(found.sel(adapter=module)[0], expected)
            planted = factors["B"].flatten(1).norm(dim=1) * factors["A"].flatten(1).norm(dim=1)
            assert not np.allclose(found.sel(adapter=module)[0], planted)

    def test_one_factor_alone_has_none(self):
        class OnlyA(FakePosterior):
            @property
            def stacks(self):
                return super().stacks[:1]

        assert "update_norm" not in datasets(to_arviz(OnlyA(), num_draws=4))["posterior"]


class TestFile:
    def test_round_trip(self, tmp_path):
        container = to_arviz(FakePosterior(grouped=True), items(), num_draws=4)
        path = save_arviz(container, tmp_path / "deep" / "draws.nc")
        reloaded = load_arviz(path)
        assert dict(reloaded.attrs) == dict(container.attrs)
        for name, group in datasets(container).items():
            assert group.equals(datasets(reloaded)[name])
        save_arviz(reloaded, path)
        assert [each.name for each in path.parent.iterdir()] == ["draws.nc"]

    def test_failed_write_leaves_the_old_file(self, tmp_path):
        path = save_arviz(to_arviz(FakePosterior(), num_draws=4), tmp_path / "draws.nc")
        before = path.read_bytes()
        broken = to_arviz(FakePosterior(), num_draws=4)
        broken.attrs["impossible"] = object()
        with pytest.raises(TypeError):
            save_arviz(broken, path)
        assert path.read_bytes() == before
        assert [each.name for each in tmp_path.iterdir()] == ["draws.nc"]

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="save_arviz and report write one"):
            load_arviz(tmp_path / "none.nc")

    def test_import_is_quiet_and_late(self, tmp_path):
        code = (
            "import runpy, sys; arrays = runpy.run_path(sys.argv[1]); assert 'arviz' not in sys.modules; "
            "arrays['arviz'](); assert 'torch' not in sys.modules"
        )
        # An empty cache makes ArviZ 0.23 believe that it has not made its announcement today.
        command = [sys.executable, "-W", "error", "-c", code, arrays.__file__]
        subprocess.run(command, check=True, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        (
            ["m.layer.0.attention.query", "m.layer.1.attention.value"],
            [("query", "layer 0"), ("value", "layer 1")],
        ),
        (["model.layers.11.q_proj"], [("q_proj", "layer 11")]),
        (["lm_head"], [("lm_head", "lm_head")]),
        (["a.layers.0.fc", "b.layers.0.fc"], [("adapter", "a.layers.0.fc"), ("adapter", "b.layers.0.fc")]),
    ],
)
def test_short_names(modules, names):
    assert short_names(modules) == names
