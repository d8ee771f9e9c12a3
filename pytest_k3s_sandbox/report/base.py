"""What all records share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Seconds = Annotated[float, Field(ge=-1e10, le=1e10)]
"""A time of a run, in seconds: within 300 years of its zero, so that differences and sums are numbers."""

Number = Annotated[float, Field(ge=-1e18, le=1e18)]
"""A number of any unit; squares and sums of such numbers are still numbers."""

Count = Annotated[int, Field(ge=-(2**63), le=2**63)]
"""A whole number: all that a 64-bit program can say."""


class FrozenModel(BaseModel):
    """A model that never changes, with nothing unknown in it and no number that JSON cannot hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


FORMER_KINDS = {"here": "host"}
"""Kinds of sandboxes that had another word in records from before 2026-11-27."""


def _kind(word: object) -> object:
    return FORMER_KINDS.get(word, word) if isinstance(word, str) else word


SandboxKind = Annotated[str, BeforeValidator(_kind)]
"""``gvisor`` or ``host``."""
