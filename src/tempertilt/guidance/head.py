"""The guidance head: one log-odds of retain against forget for every next token, low-rank and vocabulary-sparse.

    u_t = A h_t,   c_t = pooled u,   l_t(v) = b_v . act(... act(c_t)) + a_v

`A (r, d)` reads the hidden state, `B (K, r)` has one row for each of the K tokens that occur as a target in training.
Every other token has log-odds 0 by construction: the head is neutral on what it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tempertilt.errors import AdapterError, ConfigError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
}
LARGE_STATE = 1e6  # no hidden state of a model has values as large
LARGE_LOG_ODDS = 1e30  # of which no scale makes an infinite number


class GuidanceHead(nn.Module):
    """Log-odds of retain for the next token, from pooled projected hidden states. Weights are float32.

    Args:
        hidden_size: `d`, the size of the base model's last hidden state.
        rank: `r`.
        token_ids: `(K,)` distinct ids of the tokens that have a row in `B`; stored in ascending order.
        activation: after each hidden layer; "identity" gives the bilinear head of the paper.
        num_hidden_layers: 1 is `B act(A c)`; each further one adds an `r x r` layer and the activation.
        bias: whether each row has a number `a_v` of its own beside it; the paper's head has none.

    Raises:
        ConfigError: an option is out of range, `token_ids` is empty or has a repeated or negative id.
    """

    token_ids: Tensor

    def __init__(
        self,
        hidden_size: int,
        rank: int,
        token_ids: Sequence[int] | Tensor,
        activation: str = "identity",
        num_hidden_layers: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        check_head_options(rank, activation, num_hidden_layers)
        ids = torch.as_tensor(token_ids, dtype=torch.long).unique(sorted=True)
        if not len(ids) or len(ids) != len(token_ids) or int(ids[0]) < 0:
            raise ConfigError(
                f"token_ids must be distinct non-negative ids, at least one; got {len(token_ids)} of which {len(ids)} differ"
            )
        self.hidden_size, self.rank, self.activation, self.num_hidden_layers = (
            hidden_size,
            rank,
            activation,
            num_hidden_layers,
        )
        self.register_buffer("token_ids", ids)
        self.A = nn.Parameter(torch.empty(rank, hidden_size, dtype=torch.float32))
        self.hidden = nn.ParameterList(
            [nn.Parameter(torch.empty(rank, rank, dtype=torch.float32)) for _ in range(num_hidden_layers - 1)]
        )
        self.B = nn.Parameter(torch.empty(len(ids), rank, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(len(ids), dtype=torch.float32)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """`A` and the hidden layers normal with variance 1/fan-in, `B` zero: a new head tilts nothing."""
        with torch.no_grad():
            self.A.normal_(std=1 / math.sqrt(self.hidden_size), generator=generator)
            for weight in self.hidden:
                weight.normal_(std=1 / math.sqrt(self.rank), generator=generator)
            self.B.zero_()
            if self.bias is not None:
                self.bias.zero_()

    @property
    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def project(self, hidden_states: Tensor) -> Tensor:
        """`u = A h`: `(..., d)` of any float type to `(..., r)` float32."""
        return F.linear(hidden_states.float(), self.A.float())

    def features(self, pooled: Tensor) -> Tensor:
        """What the rows of `B` read: `(..., r)` pooled projections through activation and hidden layers, `(..., r)`."""
        act = ACTIVATIONS[self.activation]
        x = act(pooled)
        for weight in self.hidden:
            x = act(F.linear(x, weight.float()))
        return x

    def forward(self, pooled: Tensor) -> Tensor:
        """Log-odds (nats) of every token in `token_ids`: `(..., r)` pooled projections to `(..., K)`."""
        return F.linear(self.features(pooled), self.B.float(), None if self.bias is None else self.bias.float())

    def score(self, pooled: Tensor, rows: Tensor) -> Tensor:
        """Log-odds (nats) of one token per position: `(N, r)` and rows of `B` `(N,)` (-1 = no row) to `(N,)`."""
        chosen = rows.clamp(min=0)
        log_odds = (self.features(pooled) * F.embedding(chosen, self.B.float())).sum(-1)
        return (log_odds if self.bias is None else log_odds + self.bias.float()[chosen]) * (rows >= 0)

    def rows_of(self, tokens: Tensor) -> Tensor:
        """Rows of `B` for token ids of any shape; -1 for tokens that have none."""
        where = torch.searchsorted(self.token_ids, tokens).clamp(max=len(self.token_ids) - 1)
        return torch.where(self.token_ids[where] == tokens, where, -1)

    def dense(self, log_odds: Tensor, vocab_size: int) -> Tensor:
        """Spread `(..., K)` over the whole vocabulary, `(..., V)`: 0 for tokens without a row."""
        out = log_odds.new_zeros(*log_odds.shape[:-1], vocab_size)
        return out.index_copy(-1, self.token_ids, log_odds)

    def tensors(self) -> dict[str, Tensor]:
        """What an adapter stores, on CPU: `token_ids (K,)` int32, `A (r, d)`, `hidden.i (r, r)`, `B (K, r)`, `bias (K,)` if any.

        The paper's head, without a bias, is stored in float32. Of a head with a bias, `B` is int8 with a `scale (K,)` for each
        row; `A`, scale and bias are float16.
        """
        stored = {"token_ids": self.token_ids.to("cpu", torch.int32), "A": self.A, "B": self.B}
        if self.bias is not None:
            scale = (self.B.detach().abs().amax(1) / 127).clamp(min=1e-7).half()
            rows = (self.B / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
            stored |= {"A": self.A.half(), "B": rows, "scale": scale, "bias": self.bias.half()}
        stored |= {f"hidden.{i}": weight for i, weight in enumerate(self.hidden)}
        return {name: tensor.detach().to("cpu").contiguous() for name, tensor in stored.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], activation: str) -> GuidanceHead:
        """The head that `tensors()` describes.

        Raises:
            AdapterError: a tensor is missing, does not fit, or holds values that give log-odds which are no finite numbers.
        """
        missing = [name for name in ("token_ids", "A", "B", *(["scale"] if "bias" in tensors else [])) if name not in tensors]
        if missing:
            raise AdapterError(
                f"the adapter lacks the tensors {', '.join(missing)}; it has {', '.join(sorted(tensors)) or 'none'}"
            )
        _check_token_ids(tensors["token_ids"])
        if tensors["A"].ndim != 2 or not tensors["A"].numel():
            raise AdapterError(f"adapter tensor 'A' is {tuple(tensors['A'].shape)}; must be (rank, hidden size)")
        rank, hidden_size = tensors["A"].shape
        count = sum(name.startswith("hidden.") for name in tensors)
        head = cls(hidden_size, rank, tensors["token_ids"].long(), activation, 1 + count, "bias" in tensors)
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                if name not in tensors or tensors[name].shape != parameter.shape:
                    shape = tuple(tensors[name].shape) if name in tensors else "absent"
                    raise AdapterError(f"adapter tensor {name!r} is {shape}; must be {tuple(parameter.shape)}")
                parameter.copy_(tensors[name])
            if head.bias is not None:
                if tensors["scale"].shape != head.bias.shape:
                    raise AdapterError(
                        f"adapter tensor 'scale' is {tuple(tensors['scale'].shape)}; must be {tuple(head.bias.shape)}"
                    )
                head.B.mul_(tensors["scale"].float()[:, None])
            head._check_finite()
        return head

    def _check_finite(self) -> None:
        """Raise `AdapterError` if states of a usual size may give log-odds that are no finite numbers."""
        largest = self.A.abs() @ self.A.new_full((self.hidden_size,), LARGE_STATE)
        for weight in self.hidden:
            largest = weight.abs() @ largest
        largest = self.B.abs() @ largest + (0 if self.bias is None else self.bias.abs())
        if not bool((largest < LARGE_LOG_ODDS).all()):
            broken = [name for name, weight in self.named_parameters() if not bool(weight.isfinite().all())]
            what = "values that are not finite numbers" if broken else "values so large that log-odds may be infinite"
            raise AdapterError(
                f"the adapter's tensors {', '.join(broken or ('A', 'B'))} hold {what}; get it again from its maker"
            )


def _check_token_ids(token_ids: Tensor) -> None:
    """Raise `AdapterError` unless ids are whole numbers in ascending order, as the rows of `B` are."""
    if token_ids.dtype not in (torch.int32, torch.int64) or token_ids.ndim != 1 or not bool((token_ids.diff() > 0).all()):
        shape = f"{token_ids.dtype} {tuple(token_ids.shape)}"
        raise AdapterError(f"adapter tensor 'token_ids' is {shape}; must be whole numbers in ascending order, none twice")


def check_head_options(rank: int, activation: str, num_hidden_layers: int) -> None:
    """Raise `ConfigError` for a rank or layer count below 1 or an unknown activation."""
    if rank < 1:
        raise ConfigError(f"rank is {rank}; must be a whole number >= 1 (the paper uses 20 and 50)")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"activation is {activation!r}; must be one of {', '.join(ACTIVATIONS)}")
    if num_hidden_layers < 1:
        raise ConfigError(f"num_hidden_layers is {num_hidden_layers}; must be a whole number >= 1")
