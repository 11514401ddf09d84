"""Which class a torch convolution or pooling takes when it is converted, and which it takes back.

A converted layer is the same object with another `__class__`: parameters, buffers, hooks and user
attributes live in `__dict__` and are never copied, so optimizers, tied weights and DDP keep what
they hold. Three kinds of class occur:

- torch.nn.Conv2d itself becomes fastconv.nn.Conv2d;
- a user's subclass without a forward of its own gets a class below both, the user's first, so that
  its methods keep precedence and isinstance holds for both;
- torch.nn.utils.parametrize gives each parametrized layer a class of its own that carries the
  properties. Copies made by deepcopy share it, hence it is rebuilt rather than edited.
"""

from __future__ import annotations

import copyreg
import types

from torch import nn
from torch.nn.utils import parametrize

from fastconv import nn as ours_nn
from fastconv.nn.conv import ConvNd
from fastconv.nn.pool import PoolNd

OURS = (ConvNd, PoolNd)
_POOLINGS = ("MaxPool", "AvgPool", "LPPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "MaxUnpool")
CONVOLUTION_OF = {getattr(nn, f"Conv{r}d"): getattr(ours_nn, f"Conv{r}d") for r in (1, 2, 3)}
POOLING_OF = {
    getattr(nn, f"{kind}{rank}d"): getattr(ours_nn, f"{kind}{rank}d")
    for kind in _POOLINGS
    for rank in (1, 2, 3)
}
FASTCONV_OF = {**CONVOLUTION_OF, **POOLING_OF}
TORCH_OF = {ours: torchs for torchs, ours in FASTCONV_OF.items()}

# On a class made here: the class it was made from.
ORIGINAL = "_fastconv_original_class"


def torch_layer_of(cls: type) -> type | None:
    """The torch.nn convolution or pooling that `cls` is or derives from; None if there is none."""
    return next((torchs for torchs in FASTCONV_OF if issubclass(cls, torchs)), None)


def is_parametrized_class(cls: type) -> bool:
    """Whether parametrize made this class for one layer (it leaves no mark but these)."""
    return (
        cls.__name__.startswith("Parametrized")
        and cls.__name__.removeprefix("Parametrized") == cls.__bases__[0].__name__
        and "__getstate__" in cls.__dict__
    )


def converted_class(module: nn.Module) -> type:
    """The class that makes `module`, a torch layer or a plain subclass of one, ours."""
    cls = type(module)
    if parametrize.is_parametrized(module) and is_parametrized_class(cls):
        return _rebuild_parametrized(cls, _converted_static(cls.__bases__[0]), original=cls)
    return _converted_static(cls)


def original_class(module: nn.Module) -> type | None:
    """The class a converted module had; None if something else has since subclassed ours."""
    cls = type(module)
    if not (parametrize.is_parametrized(module) and is_parametrized_class(cls)):
        return _original_static(cls)
    base = _original_static(cls.__bases__[0])
    if base is None:
        return None
    original = cls.__dict__.get(ORIGINAL)
    # Parametrizations may have come or gone since; then the old class no longer fits.
    if original is not None and _parametrized_names(original) == _parametrized_names(cls):
        return original
    return _rebuild_parametrized(cls, base)


def converted_subclass(user: type) -> type:
    """The class below a user's subclass of a torch layer and our layer of the same kind."""
    for cls in user.__subclasses__():
        if cls.__dict__.get(ORIGINAL) is user and issubclass(cls, OURS):
            return cls
    body = {
        "__module__": user.__module__,
        "__qualname__": user.__qualname__,
        "__doc__": user.__doc__,
        "__reduce_ex__": _reduce_converted_subclass,
        ORIGINAL: user,
    }
    ours = FASTCONV_OF[torch_layer_of(user)]
    return types.new_class(user.__name__, (user, ours), exec_body=lambda ns: ns.update(body))


def _converted_static(cls: type) -> type:
    return FASTCONV_OF.get(cls) or converted_subclass(cls)


def _original_static(cls: type) -> type | None:
    return TORCH_OF.get(cls) or cls.__dict__.get(ORIGINAL)


def _parametrized_names(cls: type) -> set[str]:
    return {name for name, value in cls.__dict__.items() if isinstance(value, property)}


def _class_body(cls: type) -> dict:
    """What was put into the class, without what type() and copyreg add by themselves."""
    added = ("__dict__", "__weakref__", "__slotnames__", ORIGINAL)
    return {name: value for name, value in cls.__dict__.items() if name not in added}


def _rebuild_parametrized(cls: type, base: type, original: type | None = None) -> type:
    # parametrize finds the class to return to as __bases__[0]; so it must stay the only base.
    body = _class_body(cls)
    if original is not None:
        body[ORIGINAL] = original
    return types.new_class(cls.__name__, (base,), exec_body=lambda ns: ns.update(body))


def _reduce_converted_subclass(self, protocol: int):
    # Pickle refers to classes by name, and the name leads to the user's class, not to this one.
    user = next(c.__dict__[ORIGINAL] for c in type(self).__mro__ if ORIGINAL in c.__dict__)
    reduced = super(converted_subclass(user), self).__reduce_ex__(max(protocol, 2))
    if reduced[0] is copyreg.__newobj__ and reduced[1] == (type(self),):
        return (_new_converted_subclass, (user,), *reduced[2:])
    return reduced  # the user's own __reduce__


def _new_converted_subclass(user: type) -> nn.Module:
    cls = converted_subclass(user)
    return cls.__new__(cls)
