"""Components of which a machine has many: elaborated once for Verilog, and instantiated."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import ClockSignal, Elaboratable, Instance, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

__all__ = ["Registry", "Shared"]

_CLOCK, _RESET = "clk", "rst"
_RESET_PORT = re.compile(rf"^  wire width 1 input \d+ +\\{_RESET}\n", re.MULTILINE)


class Shared(Elaboratable):
    """`kind(*parameters)` as a submodule, with the component's attributes.

    With a `Registry` as the platform, equal kinds and parameters become instances of one module; otherwise this is
    the component itself. It may have registers of domain "sync" only, and none with reset: a transformer around
    the instance (ResetInserter) does not reach them.
    """

    def __init__(self, kind: type[wiring.Component], *parameters: Any):
        self.component = kind(*parameters)
        self.key = (kind, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.component, name)

    def elaborate(self, platform: Any) -> Elaboratable | Instance:
        return platform.instance(self) if isinstance(platform, Registry) else self.component


class Registry:
    """Amaranth's platform object for one generated design: RTLIL of the components that it shares.

    `primitives` names, for kinds of component, what takes their place: a component of the same parameters, ports and
    values in every cycle, made of a device's primitives.
    """

    def __init__(self, primitives: Mapping[type, type] | None = None) -> None:
        self.primitives = primitives or {}
        self._modules: dict[tuple, tuple[str, bool]] = {}
        self._numbers = itertools.count()
        self._texts: list[str] = []

    @property
    def source(self) -> str:
        """All modules below the instances."""
        return "".join(self._texts)

    def instance(self, shared: Shared) -> Instance:
        """An instance of the component's module, which is elaborated at its first use."""
        component = shared.component
        if shared.key in self._modules:
            component._MustUse__used = True  # Amaranth warns of components that it has not elaborated.
        else:
            self._modules[shared.key] = self._elaborate(component, *shared.key)
        name, clocked = self._modules[shared.key]
        ports = [("i", _CLOCK, ClockSignal())] if clocked else []
        for path, member, value in component.signature.flatten(component):
            direction = "i" if member.flow == In else "o"
            ports.append((direction, "__".join(map(str, path)), Value.cast(value)))
        return Instance(name, *ports)

    def _elaborate(
        self, component: wiring.Component, kind: type[wiring.Component], parameters: tuple
    ) -> tuple[str, bool]:
        """The module's name, and whether it has a clock."""
        stem = kind.__name__.lower()
        if kind in self.primitives:
            component._MustUse__used = True
            component = self.primitives[kind](*parameters)
        name = f"{stem}_{next(self._numbers)}"
        text = rtlil.convert(component, name=name, platform=self, emit_src=False)
        text = _RESET_PORT.sub("", text, count=1)
        if re.search(rf"\\{_RESET}\s", text):
            raise ValueError(f"{stem} must have registers without reset only to be shared.")
        self._texts.append(text)
        return name, f" \\{_CLOCK}\n" in text
