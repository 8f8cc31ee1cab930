"""Linear models against scikit-learn's (https://scikit-learn.org), and what they promise beyond."""

import pytest
import torch

from sightline.training.linear import balanced, choose_c, fit_softmax, fit_svm, fit_svms


def examples(count=120, width=10, classes=4, *, spread=1.0):
    """Overlapping classes; features of unlike scales and far from zero, as networks' are."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, width, generator=generator)
    noise = torch.randn(count, width, generator=generator) * spread
    features = (centres[labels] + noise + 2) * torch.linspace(0.1, 2, width)
    return features.double(), labels


CASES = {
    "many examples": examples(),
    "more features than examples": examples(40, 60),
    "separable": examples(spread=0.1),
    "a feature that never changes": (torch.cat([examples()[0], torch.ones(120, 1)], dim=1), examples()[1]),
}


@pytest.mark.parametrize("c", [0.01, 10.0])
@pytest.mark.parametrize(("features", "labels"), CASES.values(), ids=CASES.keys())
def test_svm_is_scikit_learns(features, labels, c):
    LinearSVC = pytest.importorskip("sklearn.svm").LinearSVC
    theirs = LinearSVC(C=c, dual=False, tol=1e-9, max_iter=20000).fit(features.numpy(), labels.numpy())
    ours = fit_svm(features, labels, 4, c)
    torch.testing.assert_close(ours.weight, torch.from_numpy(theirs.coef_), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.bias, torch.from_numpy(theirs.intercept_), rtol=1e-3, atol=1e-4)
    decisions = torch.from_numpy(theirs.decision_function(features.numpy()))
    torch.testing.assert_close(ours.scores(features), decisions, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("c", [0.01, 10.0])
@pytest.mark.parametrize(("features", "labels"), CASES.values(), ids=CASES.keys())
def test_softmax_is_scikit_learns(features, labels, c):
    LogisticRegression = pytest.importorskip("sklearn.linear_model").LogisticRegression
    theirs = LogisticRegression(C=c, tol=1e-10, max_iter=20000, solver="newton-cg").fit(
        features.numpy(), labels.numpy()
    )
    ours = fit_softmax(features, labels, 4, c)
    torch.testing.assert_close(ours.weight, torch.from_numpy(theirs.coef_), rtol=1e-3, atol=1e-4)
    bias = torch.from_numpy(theirs.intercept_ - theirs.intercept_.mean())
    torch.testing.assert_close(ours.bias, bias, rtol=1e-3, atol=1e-3)


def test_of_two_classes_scikit_learn_penalises_twice():
    LogisticRegression = pytest.importorskip("sklearn.linear_model").LogisticRegression
    features, labels = examples(classes=2)
    ours = fit_softmax(features, labels, 2, 0.3)
    theirs = LogisticRegression(C=0.6, tol=1e-10, max_iter=20000, solver="newton-cg")
    theirs.fit(features.numpy(), labels.numpy())
    difference = torch.from_numpy(theirs.coef_[0])
    torch.testing.assert_close(ours.weight[1] - ours.weight[0], difference, rtol=1e-3, atol=1e-4)


def test_weights_are_scikit_learns():
    svm, linear_model = pytest.importorskip("sklearn.svm"), pytest.importorskip("sklearn.linear_model")
    features, labels = examples()
    labels = labels.where(labels != 3, 0)  # half of all are of class 0
    weights = balanced(labels, 3)
    theirs = linear_model.LogisticRegression(class_weight="balanced", tol=1e-9, max_iter=5000)
    theirs.fit(features.numpy(), labels.numpy())
    ours = fit_softmax(features, labels, 3, weights=weights)
    torch.testing.assert_close(ours.weight, torch.from_numpy(theirs.coef_), rtol=1e-3, atol=1e-4)
    theirs = svm.LinearSVC(dual=False, tol=1e-9)  # its own class weights do not reach "all the others"
    theirs.fit(features.numpy(), labels.numpy(), sample_weight=weights.numpy())
    ours = fit_svm(features, labels, 3, weights=weights)
    torch.testing.assert_close(ours.weight, torch.from_numpy(theirs.coef_), rtol=1e-3, atol=1e-4)


def test_the_solution_is_the_minimum():
    """The gradient of the objective as it is written in the docstring vanishes, and bias is kept small like weights."""
    features, labels = examples()
    signs = torch.where(torch.nn.functional.one_hot(labels, 4) == 1, 1, -1)
    signs[::5] = 0
    weights = torch.rand(len(labels), dtype=torch.float64) + 0.1
    model = fit_svms(features, signs, 0.5, weights=weights)
    weight, bias = model.weight.clone().requires_grad_(), model.bias.clone().requires_grad_()
    objective = 0.0
    for k in range(4):
        objective = objective + 0.5 * (weight[k] @ weight[k] + bias[k] ** 2)
        for x, sign, importance in zip(features, signs[:, k].tolist(), weights, strict=True):
            if sign:
                objective = objective + 0.5 * importance * torch.relu(1 - sign * (weight[k] @ x + bias[k])) ** 2
    objective.backward()
    assert weight.grad.abs().max() < 1e-4
    assert bias.grad.abs().max() < 1e-4


def test_ignored_examples_are_as_if_not_there():
    features, labels = examples()
    signs = 2 * (labels == 1).long()[:, None] - 1
    signs[60:] = 0
    all_but_half, half = fit_svms(features, signs), fit_svms(features[:60], signs[:60])
    torch.testing.assert_close(all_but_half.weight, half.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fit", [fit_svm, fit_softmax])
def test_deterministic_and_leaves_its_input(fit):
    features, labels = examples()
    before = features.clone()
    one, two = fit(features, labels, 4), fit(features, labels, 4)
    assert torch.equal(one.weight, two.weight)
    assert torch.equal(one.bias, two.bias)
    assert torch.equal(features, before)


@pytest.mark.parametrize("fit", [fit_svm, fit_softmax])
def test_a_class_without_examples_is_never_the_answer(fit):
    features, labels = examples()
    model = fit(features, labels, 6)
    assert model.weight.shape == (6, 10)
    assert model.scores(features).isfinite().all()
    assert (model.scores(features).argmax(1) < 4).all()


def test_features_that_say_nothing():
    labels = torch.arange(12) % 3
    for fit in (fit_svm, fit_softmax):
        model = fit(torch.zeros(12, 5), labels, 3)
        assert not model.weight.any()
        assert model.bias.isfinite().all()


def test_choose_c_takes_the_least_of_the_best():
    features, labels = examples(spread=0.1)
    c, tried = choose_c(fit_softmax, features, labels, 4, candidates=(1.0, 1e-7, 100.0))
    assert tried[1.0] == tried[100.0] == 1.0
    assert tried[c] == 1.0
    assert c == min(candidate for candidate, accuracy in tried.items() if accuracy == 1.0)
    assert list(tried) == [1e-7, 1.0, 100.0]


def test_choose_c_does_not_depend_on_the_features_unit():
    features, labels = examples()
    (c, tried), (large, tried_large) = (choose_c(fit_softmax, features * unit, labels, 4) for unit in (1, 1000))
    assert list(tried.values()) == list(tried_large.values())
    assert large == pytest.approx(c / 1e6, rel=0.01)


def test_choose_c_holds_out_shares_of_every_class():
    seen = []

    def fit(features, labels, num_classes, c):
        seen.append(torch.bincount(labels, minlength=num_classes).tolist())
        return fit_softmax(features, labels, num_classes, c)

    choose_c(fit, *examples(), 4, candidates=(1.0,), folds=3)
    assert seen == [[20, 20, 20, 20]] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 2), torch.tensor([0, 1])), r"features must be \(2, D\).*got \(3, 2\)"),
        ((torch.ones(2, 2), torch.tensor([0, 1]), 2, 0.0), "c must be positive, got 0.0"),
        ((torch.ones(0, 2), torch.zeros(0, dtype=torch.int64)), "at least one"),
    ],
)
def test_mistakes(arguments, message):
    arguments = arguments if len(arguments) > 2 else (*arguments, 2)
    with pytest.raises(ValueError, match=message):
        fit_softmax(*arguments)
