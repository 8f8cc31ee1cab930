"""Recurrent cells without weights of their own: plain (tanh), LSTM and GRU.

What a cell adds up comes from matrix products, and a decoder knows best how to do these at once: the words' for all words
of a sentence, the state's together with whatever else reads the state. So a cell is given the products:

    state = cell(from_inputs, from_hidden, state)      # one word further

Products lie gate after gate in torch's order, so that the weights of `torch.nn.RNNCell`, `LSTMCell` and `GRUCell` fit.
All is done in the state's type, float32, under autocast too: a sum over many words loses too much in bfloat16.

Letters: B pictures, S sentences of a picture, H width of the state, G gates of a cell.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from torch import Tensor, nn


class State(NamedTuple):
    """What a recurrent decoder carries from word to word; others may add fields behind these two."""

    hidden: Tensor  # (B, S, H)
    cell: Tensor  # (B, S, H) of an LSTM, (B, S, 0) of cells that have none


S = TypeVar("S", bound=State)


class Cell:
    """The base of all cells.

    Attributes:
        gates: G.
        cells: what `State.cell` holds, as a multiple of H.
    """

    gates: int
    cells = 0

    def __call__(self, from_inputs: Tensor, from_hidden: Tensor, state: S) -> S:
        """One word further.

        Args:
            from_inputs: (..., G * H), the inputs' matrix product, with its bias.
            from_hidden: (..., G * H), that of the hidden state before, with its bias.
            state: before; of the same kind as what is returned.
        """
        raise NotImplementedError

    def start(self, from_inputs: nn.Linear) -> None:
        """Sets the first biases of the inputs' product, where chance is not the best there is."""


class Plain(Cell):
    """h = tanh(x + u) (Elman 1990)."""

    gates = 1

    def __call__(self, from_inputs: Tensor, from_hidden: Tensor, state: S) -> S:
        return state._replace(hidden=(from_inputs + from_hidden).to(state.hidden.dtype).tanh())


class LSTM(Cell):
    """Input, forget, new and output gate (Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""

    gates, cells = 4, 1

    def __call__(self, from_inputs: Tensor, from_hidden: Tensor, state: S) -> S:
        gates = (from_inputs + from_hidden).to(state.cell.dtype).chunk(4, -1)
        cell = gates[1].sigmoid() * state.cell + gates[0].sigmoid() * gates[2].tanh()
        return state._replace(hidden=gates[3].sigmoid() * cell.tanh(), cell=cell)

    def start(self, from_inputs: nn.Linear) -> None:
        """A forget gate that is open at first (Jozefowicz et al. 2015, https://proceedings.mlr.press/v37/jozefowicz15.html)."""
        width = from_inputs.out_features // self.gates
        nn.init.ones_(from_inputs.bias.data[width : 2 * width])


class GRU(Cell):
    """Reset, update and new gate (Cho et al. 2014, https://arxiv.org/abs/1406.1078), the reset behind the product as in cuDNN."""

    gates = 3

    def __call__(self, from_inputs: Tensor, from_hidden: Tensor, state: S) -> S:
        given, kept = (part.to(state.hidden.dtype).chunk(3, -1) for part in (from_inputs, from_hidden))
        reset, update = (given[0] + kept[0]).sigmoid(), (given[1] + kept[1]).sigmoid()
        new = (given[2] + reset * kept[2]).tanh()
        return state._replace(hidden=new + update * (state.hidden - new))


CELLS: dict[str, Cell] = {"rnn": Plain(), "lstm": LSTM(), "gru": GRU()}


def cell_named(name: str) -> Cell:
    """The cell of that name; ValueError when there is none."""
    if name not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {name!r}")
    return CELLS[name]
