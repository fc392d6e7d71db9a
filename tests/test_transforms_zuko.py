"""Zuko's flows: the same numbers as Zuko's own, and a word on what is missing where it is not installed."""

import sys
from functools import partial

import pytest
import torch
import zuko

from bayeslora_pyro.transforms import from_zuko, zuko_maf, zuko_naf, zuko_nsf

from .exact import perturb
from .flows import DIM, FACTORS, ROWS, check_log_det, stack, value


@pytest.mark.parametrize("factory", [zuko_maf, zuko_naf, zuko_nsf])
def test_maps_and_scores_as_zuko_does(factory):
    flow = perturb(factory(DIM).double())
    x = value(7, DIM)
    y, ladj = flow.lazy().call_and_ladj(x)
    torch.testing.assert_close(flow(x), y, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), ladj, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["BPF", "GF", "RealNVP", "SOSPF"])
def test_any_other_flow_may_be_passed(kind):
    stacked = stack(partial(from_zuko, getattr(zuko.flows, kind), transforms=1))
    check_log_det(stacked, value(FACTORS, ROWS, DIM))


@pytest.mark.parametrize("factory", [zuko_maf, zuko_naf, zuko_nsf])
def test_the_missing_extra_is_named(factory, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(
        ImportError, match=rf"{factory.__name__} needs Zuko.*pip install 'bayeslora-pyro\[zuko\]'"
    ):
        factory(DIM)
