"""The guidance head against a direct evaluation in numpy, its gradients against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tempertilt.errors import AdapterError, ConfigError
from tempertilt.guidance.head import ACTIVATIONS, GuidanceHead


def _erf_gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


NUMPY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "gelu": _erf_gelu,
    "silu": lambda x: x / (1 + np.exp(-x)),
}
IDS = [5, 2, 9, 40]


def random_head(activation: str, layers: int, seed: int = 0) -> GuidanceHead:
    head = GuidanceHead(8, 3, IDS, activation, layers)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    return head


def direct(head: GuidanceHead, context: np.ndarray) -> np.ndarray:
    """l = B act(W_k ... act(W_1 act(A c))), written out, float64."""
    act = NUMPY[head.activation]
    x = act(head.A.detach().double().numpy() @ context)
    for weight in head.hidden:
        x = act(weight.detach().double().numpy() @ x)
    return head.B.detach().double().numpy() @ x


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_log_odds(activation: str, layers: int) -> None:
    head = random_head(activation, layers)
    contexts = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1))
    out = head(head.project(contexts)).detach()
    assert head.token_ids.tolist() == sorted(IDS)
    for b in range(4):
        for t in range(6):
            np.testing.assert_allclose(out[b, t].numpy(), direct(head, contexts[b, t].double().numpy()), rtol=2e-4, atol=2e-5)
    flat = contexts.reshape(-1, 8)
    tokens = torch.tensor([2, 9, 7, 40] * 6)  # 7 has no row
    scored = head.score(head.project(flat), head.rows_of(tokens)).detach()
    for i, token in enumerate(tokens.tolist()):
        expected = 0.0 if token == 7 else float(out.reshape(-1, 4)[i, sorted(IDS).index(token)])
        assert float(scored[i]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("activation", "layers"), [("identity", 1), ("tanh", 2), ("silu", 3), ("gelu", 2)])
def test_gradients_agree_with_finite_differences(activation: str, layers: int) -> None:
    head = random_head(activation, layers).double()
    head.project = lambda h: h @ head.A.T  # type: ignore[method-assign]  # in float64
    contexts = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rows = torch.tensor([0, 1, 3, 3, 2])

    @torch.no_grad()
    def loss() -> torch.Tensor:
        x = ACTIVATIONS[activation](contexts @ head.A.T)
        for weight in head.hidden:
            x = ACTIVATIONS[activation](x @ weight.T)
        return torch.nn.functional.softplus(-(x * head.B[rows]).sum(-1)).mean()

    through_head = torch.nn.functional.softplus(-head.float().score((contexts @ head.A.double().T).float(), rows)).mean()
    through_head.backward()
    gradients = [parameter.grad.double() for parameter in head.parameters()]  # type: ignore[union-attr]
    head.double()
    for parameter, gradient in zip(head.parameters(), gradients):
        flat = parameter.data.reshape(-1)
        for i in range(0, flat.numel(), 5):
            old = float(flat[i])
            flat[i] = old + 1e-6
            up = float(loss())
            flat[i] = old - 1e-6
            down = float(loss())
            flat[i] = old
            assert float(gradient.reshape(-1)[i]) == pytest.approx((up - down) / 2e-6, rel=1e-3, abs=1e-5)


def test_only_rows_of_seen_tokens_get_a_gradient() -> None:
    head = random_head("identity", 1)
    head.score(torch.randn(3, 3), head.rows_of(torch.tensor([9, 9, 7]))).sum().backward()
    moved = head.B.grad.abs().sum(1) > 0  # type: ignore[union-attr]
    assert moved.tolist() == [False, False, True, False]


def test_a_new_head_tilts_nothing_and_depends_on_its_seed_only() -> None:
    heads = [GuidanceHead(8, 3, IDS) for _ in range(3)]
    for head, seed in zip(heads, (1, 1, 2)):
        head.reset_parameters(torch.Generator().manual_seed(seed))
    assert not heads[0](torch.randn(5, 3)).any()
    assert torch.equal(heads[0].A, heads[1].A) and not torch.equal(heads[0].A, heads[2].A)
    assert heads[0].num_parameters == 3 * 8 + 4 * 3


def test_dense_is_neutral_on_unseen_tokens() -> None:
    head = random_head("relu", 2)
    sparse = head(torch.randn(2, 3))
    dense = head.dense(sparse, 50)
    assert torch.equal(dense[:, sorted(IDS)], sparse)
    unseen = [token for token in range(50) if token not in IDS]
    assert not dense[:, unseen].any()


@pytest.mark.parametrize("layers", [1, 3])
def test_tensors_round_trip(layers: int) -> None:
    head = random_head("silu", layers)
    again = GuidanceHead.from_tensors(head.tensors(), "silu")
    u = torch.randn(7, 3)
    assert torch.equal(head(u), again(u)) and torch.equal(head.A, again.A)


def test_tensors_that_do_not_fit_are_refused() -> None:
    tensors = random_head("relu", 2).tensors()
    with pytest.raises(AdapterError, match="lacks the tensors B"):
        GuidanceHead.from_tensors({name: t for name, t in tensors.items() if name != "B"}, "relu")
    with pytest.raises(AdapterError, match=r"'B' is \(3, 3\); must be \(4, 3\)"):
        GuidanceHead.from_tensors(tensors | {"B": tensors["B"][:3]}, "relu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"activation": "cube"}, "'cube'; must be one of identity"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"token_ids": []}, "at least one"),
        ({"token_ids": [3, 3]}, "distinct"),
        ({"token_ids": [-1, 3]}, "non-negative"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GuidanceHead(**{"hidden_size": 8, "rank": 3, "token_ids": IDS, **options})  # type: ignore[arg-type]


def test_weights_are_float32_whatever_the_default() -> None:
    """An engine builds its model under its own default type."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        head = GuidanceHead(8, 2, [0, 3], num_hidden_layers=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}


def test_a_head_with_a_bias_is_stored_in_few_bits_and_read_back_as_stored() -> None:
    torch.manual_seed(0)
    head = GuidanceHead(16, 5, range(40), "identity", 1, True)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
        head.B[3] = 0.0
    stored = head.tensors()
    assert stored["B"].dtype == torch.int8
    again = GuidanceHead.from_tensors(stored, "identity")
    error = (again.B - head.B).abs().amax(1)
    assert bool((error <= head.B.abs().amax(1) / 127 * 0.51 + 1e-6).all()) and not again.B[3].any()
    twice = GuidanceHead.from_tensors(again.tensors(), "identity")
    torch.testing.assert_close(twice.B, again.B, atol=2e-3, rtol=2e-3)
    with pytest.raises(AdapterError, match="lacks the tensors scale"):
        GuidanceHead.from_tensors({name: t for name, t in stored.items() if name != "scale"}, "identity")
    with pytest.raises(AdapterError, match=r"'scale' is \(3,\)"):
        GuidanceHead.from_tensors(stored | {"scale": torch.ones(3)}, "identity")
