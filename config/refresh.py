"""When and how the node has its models learn on from the hospital's own pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from apscheduler.triggers.cron import CronTrigger  # type: ignore[import-untyped]
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from config.base import Frozen

FIELDS = 5
"""Of a line of crontab(5): minute, hour, day of month, month, day of week."""


def _schedule(text: str) -> str:
    """A line of crontab(5), or nothing. Days of the week by name: their numbers mean different days."""
    parts = text.split()
    if not parts:
        return ""
    if len(parts) != FIELDS or any(letter.isdigit() for letter in parts[-1]):
        raise ValueError(
            'write minute, hour, day, month and day of the week, such as "0 2 1 * *" for two in the night of'
            ' every first, or "0 2 * * sat"; days of the week by name'
        )
    CronTrigger.from_crontab(text)
    return " ".join(parts)


Schedule = Annotated[str, AfterValidator(_schedule)]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]


class RefreshSettings(Frozen):
    """Lets the active models learn on from the hospital's own pairs at set times, in a process of low
    priority. Needs the extra `train`. Off while schedule is empty."""

    schedule: Schedule = ""
    """When to start, as minute, hour, day, month, day of the week in this machine's time: "0 2 1 * *" is two
    in the night of every first. Empty: never."""
    cases: Literal[""] | Folder = ""
    """Folder that `s2node train prepare` wrote, whose pictures somebody has looked at."""
    checkpoints: Literal[""] | Folder = ""
    """Folder in which the checkpoints of the active models lie; those of earlier refreshes are found by
    themselves. An S²LDM whose checkpoint is nowhere goes on from the weights in its graphs."""
    phases: tuple[Literal["arterial", "venous"], ...] = Field(default=("arterial", "venous"), min_length=1)
    """Phases whose active models are refreshed, one after another."""
    minutes: float = Field(default=60.0, gt=0, le=10_080)
    """Minutes of training a phase."""
    rate: float = Field(default=0.1, gt=0, le=10)
    """Share of the learning rates that the model was trained with."""
    device: Literal["cpu", "gpu"] = "cpu"
    """"cpu" leaves a GPU to the worker; "gpu" shares it."""
    threads: int = Field(default=1, ge=0, le=1024)
    """CPU threads for measuring the models; 0 takes every core. Training keeps to the model's own number."""
    activate: bool = False
    """Uses an accepted model from the next job on, if at least one organ was judged. Off: it waits for
    `s2node models activate`."""

    @model_validator(mode="after")
    def _has_cases_where_it_is_on(self) -> RefreshSettings:
        if self.schedule and not self.cases:
            cure = "name the folder that `s2node train prepare` wrote, or leave schedule empty"
            raise PydanticCustomError("impossible_value", "{cure}", {"key": "cases", "cure": cure})
        return self
