"""A number and where it comes from."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Kind(StrEnum):
    """How a figure is known, from the best to the weakest."""

    MEASURED = "measured"
    DATASHEET = "datasheet"
    PUBLISHED = "published"
    DERIVED = "derived"
    ASSUMED = "assumed"


_NEEDED = {
    Kind.MEASURED: "source",
    Kind.DATASHEET: "source",
    Kind.PUBLISHED: "source",
    Kind.DERIVED: "how",
    Kind.ASSUMED: "why",
}


class Sourced(BaseModel):
    """A statement with its kind and its ground.

    Attributes:
        kind: How it is known. ``measured``, ``datasheet`` and ``published`` need ``source``, ``derived`` needs ``how``,
            ``assumed`` needs ``why``.
        source: A key of the ``sources`` of the same file.
        how: The calculation.
        why: The reason of an assumption.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    source: str | None = None
    how: str | None = None
    why: str | None = None

    @model_validator(mode="after")
    def _has_ground(self) -> Self:
        needed = _NEEDED[self.kind]
        if not getattr(self, needed):
            raise ValueError(f"A figure of kind '{self.kind}' needs '{needed}'")
        return self


class Quantity(Sourced):
    """A number with its kind and ground; its unit is the end of the key that holds it."""

    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    def __float__(self) -> float:
        return self.value


def kinds_of(quantities: Iterable[Sourced | None]) -> tuple[Kind, ...]:
    """The kinds that occur, from the best known to the weakest; what is None is passed over."""
    found = {quantity.kind for quantity in quantities if quantity is not None}
    return tuple(kind for kind in Kind if kind in found)
