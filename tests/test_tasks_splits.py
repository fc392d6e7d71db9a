"""Splits are disjoint, stable, and never let a text stand in two sets."""

import pytest

from bayeslora_pyro.tasks import Examples, split, splits


def make_examples(size=200, copies=1, parts=()):
    texts = tuple(f"text {i // copies}" for i in range(size))
    return Examples(
        "made up",
        "classification",
        texts,
        labels=tuple(i % 2 for i in range(size)),
        classes=("a", "b"),
        parts=parts,
    )


def check_disjoint(cut):
    sets = [set(some.texts) for some in (cut.train, cut.tuning, cut.test)]
    for i, first in enumerate(sets):
        for second in sets[i + 1 :]:
            assert not first & second


@pytest.mark.parametrize("copies", [1, 3, 7])
@pytest.mark.parametrize("sizes", [(50, 20, 40), (None, 1, 11), (0, 0, None)])
def test_sets_are_disjoint_and_of_the_size(copies, sizes):
    train, tuning, test = sizes
    cut = split(make_examples(copies=copies), train=train, tuning=tuning, test=test, seed=0)
    check_disjoint(cut)
    assert len(cut.tuning) == tuning
    assert len(cut.test) == (200 if test is None else test)
    if train is not None:
        assert len(cut.train) == train
    elif copies == 1:
        assert len(cut.train) == 200 - tuning - test


def test_planted_fault_duplicates_told_apart_are_caught(monkeypatch):
    count = iter(range(10**6))
    monkeypatch.setattr(splits, "_digest", lambda text: f"{hash((text, next(count))):x}")
    with pytest.raises(AssertionError):
        check_disjoint(split(make_examples(copies=7), train=50, tuning=20, test=40, seed=0))


def test_test_and_tuning_sets_are_the_same_for_every_seed_and_nested_in_size():
    examples = make_examples()
    cuts = [
        split(examples, train=30, tuning=tuning, test=test, seed=seed)
        for seed in range(3)
        for tuning in (10, 20)
        for test in (40, 60)
    ]
    assert len({frozenset(cut.test.texts) for cut in cuts}) == 2
    assert len({frozenset(cut.tuning.texts) for cut in cuts}) == 2
    assert set(cuts[0].test.texts) < set(cuts[-1].test.texts)
    assert set(cuts[0].tuning.texts) < set(cuts[-1].tuning.texts)
    for cut in cuts:
        check_disjoint(cut)


@pytest.mark.parametrize("name", ["tuning", "test"])
def test_the_first_items_of_a_set_are_a_sample_of_it(name):
    examples = make_examples(size=2000)
    by_label = examples.select(sorted(range(2000), key=lambda item: examples.labels[item]))
    small, large = (
        getattr(split(by_label, **{"train": 50, "tuning": 50, "test": 50, name: n}, seed=0), name)
        for n in (100, 400)
    )  # a file often holds one label after another
    assert small.texts == large.texts[:100]
    assert 35 <= sum(small.labels) <= 65
    assert sum(sorted(large.labels)[:100]) == 0  # the planted fault: the order of the file


def test_train_set_follows_the_seed_and_nests():
    examples = make_examples()
    small, again, large, other = (
        set(split(examples, train=n, tuning=20, test=40, seed=s).train.texts)
        for n, s in [(30, 0), (30, 0), (60, 0), (30, 1)]
    )
    assert small == again < large
    assert small != other


def test_test_set_does_not_depend_on_the_order_of_the_file():
    examples = make_examples()
    turned = examples.select(range(len(examples) - 1, -1, -1))
    first, second = (split(some, train=30, tuning=20, test=40, seed=0) for some in (examples, turned))
    assert first.tuning.texts == second.tuning.texts
    assert first.test.texts == second.test.texts
    assert set(first.train.texts) == set(second.train.texts)


def test_test_set_is_pinned():
    # A change of the hash would change every reported figure.
    cut = split(make_examples(), train=3, tuning=2, test=3, seed=0)
    assert cut.test.texts == ("text 118", "text 43", "text 19")
    assert cut.tuning.texts == ("text 35", "text 119")
    assert cut.train.texts == ("text 37", "text 189", "text 190")


def test_labels_stay_with_their_texts():
    cut = split(make_examples(), train=50, tuning=20, test=40, seed=0)
    for some in (cut.train, cut.tuning, cut.test):
        assert [int(text.split()[1]) % 2 for text in some.texts] == list(some.labels)


def test_official_parts_are_kept_apart():
    parts = ("train",) * 150 + ("test",) * 50
    examples = make_examples(parts=parts)
    official = set(examples.texts[150:])
    cut = split(examples, train=None, tuning=30, test=20, seed=0)
    check_disjoint(cut)
    assert set(cut.test.texts) < official
    assert not official & {*cut.train.texts, *cut.tuning.texts}
    assert len(cut.train) == 120
    assert set(split(examples, train=0, tuning=0, test=None, seed=0).test.texts) == official


def test_official_training_items_that_stand_in_the_test_part_are_dropped():
    texts = ("same", "other", "third", "same")
    examples = Examples("x", "text", texts, parts=("train", "train", "train", "test"))
    cut = split(examples, train=None, tuning=0, test=0, seed=0)
    assert cut.train.texts == ("other", "third")


def test_questions_that_differ_in_choices_only_are_different_items():
    examples = Examples(
        "x", "choice", ("why?",) * 3, labels=(0, 0, 0), choices=(("a", "b"), ("a", "c"), ("a", "b"))
    )
    cut = split(examples, train=None, tuning=0, test=1, seed=0)
    assert len({examples.key(i) for i in range(3)}) == 2
    assert not {cut.test.key(0)} & {cut.train.key(i) for i in range(len(cut.train))}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10, 10, 300), r"test=300 items were asked of 'made up', which has 200 .* at most 200"),
        ((10, 180, 40), r"tuning=180 .* at most 160"),
        ((150, 20, 40), r"train=150 .* at most 140"),
        ((-1, 20, 40), r"train=-1 is negative"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    train, tuning, test = sizes
    with pytest.raises(ValueError, match=message):
        split(make_examples(), train=train, tuning=tuning, test=test, seed=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "classification", "labels": (0,), "classes": ("a",)}, "labels has 1 items and texts has 2"),
        (
            {"kind": "classification", "labels": (0, 2), "classes": ("a", "b")},
            r"labels\[1\]=2 is out of range",
        ),
        ({"kind": "regression"}, "targets has 0 items"),
        ({"kind": "choice", "labels": (0, 1)}, "choices has 0 items"),
        ({"kind": "choice", "choices": (("a",), ("a",))}, "labels has 0 items"),
        ({"kind": "text", "parts": ("train",)}, "parts has 1 items"),
    ],
)
def test_examples_check_themselves(fields, message):
    with pytest.raises(ValueError, match=message):
        Examples("bad", texts=("a", "b"), **fields)
