"""What a fused layer that trains keeps of its input where another fused layer made it.

In a chain, the x of a layer is the z of the one before, and that one keeps the y that its z comes
from:

    x = act((y - mean) rstd weight + bias)

So x need not be kept beside y: its layer keeps this recipe and makes x anew, in the same pass over
the same values and so with the same bits, when its backward pass asks for it. One tensor per layer
stays where separate layers keep two storages (the convolution's input, the normalisation's) and
name three (and the activation's result).

A layer's node in the graph knows y weakly: the node lives as long as anyone holds z, y only until
the backward pass has been through it. Autograd itself puts the made x back where x was in the
graph, since it does so with whatever the hooks of a saved tensor return.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from fastconv.ops.fused_run import Ending
from fastconv.ops.norm_run import norm_pass


def _version(t: Tensor | None) -> int | None:
    return None if t is None or t.is_inference() else t._version


class Recipe(NamedTuple):
    """x, as it was made. gamma and beta share the parameters' memory, and `versions` are theirs at
    that time."""

    y: Tensor
    mean: Tensor
    rstd: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    versions: tuple[int | None, int | None]
    end: Ending
    passes: str | None  # who made x (norm_run.py)

    @property
    def current(self) -> bool:
        return (_version(self.gamma), _version(self.beta)) == self.versions

    def make(self) -> Tensor:
        if not self.current:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an"
                " inplace operation: the weight or the bias of a batch normalisation whose result"
                f" is to be computed again is at version {_version(self.gamma)} or"
                f" {_version(self.beta)}; expected version {self.versions[0]} and"
                f" {self.versions[1]} instead."
            )
        with torch.no_grad():
            fprop = norm_pass("norm_act_fprop", self.passes)
            return fprop(self.y, self.mean, self.rstd, self.gamma, self.beta, None, *self.end)


class Origin:
    """Of a z without residual, on its node: all of the recipe, but y weakly."""

    __slots__ = ("_address", "_rest", "_y")

    def __init__(
        self,
        z: Tensor,
        y: Tensor,
        mean: Tensor,
        rstd: Tensor,
        gamma: Tensor | None,
        beta: Tensor | None,
        end: Ending,
        passes: str | None,
    ) -> None:
        self._y = TensorWeakRef(y)
        self._rest = (mean, rstd, gamma, beta, (_version(gamma), _version(beta)), end, passes)
        self._address = z.data_ptr()

    def recipe(self, z: Tensor) -> Recipe | None:
        """None where z has been written to since, y is kept by no one, or the parameters moved."""
        if z._version != 0 or z.data_ptr() != self._address:  # an exchanged `.data` has no version
            return None
        y = self._y()
        if y is None:
            return None
        recipe = Recipe(y, *self._rest)
        return recipe if recipe.current else None


def keep_recipe(node: Any, x: Tensor, at: int) -> None:
    """Lets the graph's `node` keep the recipe of x instead of x, its saved tensor number `at`.

    Does nothing where x has none, and where hooks of the user have already packed it: those win.
    """
    origin = getattr(x.grad_fn, "fastconv_origin", None)
    if origin is None or x.output_nr != 0:
        return
    recipe = origin.recipe(x)
    if recipe is None:
        return
    # One pair of hooks is all that a saved tensor takes.
    with suppress(RuntimeError):
        node._raw_saved_tensors[at].register_hooks(lambda _: recipe, Recipe.make)
