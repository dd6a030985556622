"""What a fit did besides what it was asked for: the simple rule that it took, and the exits that it left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from eenet.errors import FileFormatError

CERTAIN = 1.64
"""Standard errors by which a simple rule must be ahead: of rules that are as good, one in 20 is taken by chance.

It may be ahead at the budget alone, or in the mean over all budgets, where less is chance. A method that is no simple
rule itself has to show that it is better in that mean: there a rule that is ahead at all is taken.
"""


@dataclass(frozen=True)
class Fallback:
    """The simple rule that was taken in place of the method asked for, and why.

    Accuracies and costs are means over the calibration samples, of what neither rule was fitted to where anything was.

    Parameters
    ----------
    taken : str
        The rule: "Static(1)", "MaxProbability" or "SearchedThresholds".
    reason : {"accuracy", "cost", "fit"}
        The rule is more accurate beyond chance; as accurate for less cost; or the method could not be fitted.
    accuracy, cost : float
        Of the rule.
    asked_accuracy, asked_cost : float
        Of the method asked for; where it could not be fitted, those of the rule.
    standard_error : float
        Of the difference of the accuracies, on the same samples.
    samples : int
        How many there are.
    unit : str
        Of the costs.
    note : str
        What was said of a method that could not be fitted.
    """

    taken: str
    reason: str
    accuracy: float
    cost: float
    asked_accuracy: float
    asked_cost: float
    standard_error: float
    samples: int
    unit: str
    note: str = ""

    def __str__(self) -> str:
        if self.reason == "fit":
            return f"{self.note}: {self.taken} is used instead"
        gained = 100 * (self.accuracy - self.asked_accuracy)
        if self.reason == "cost":
            what = "no less accurate at a lower cost"
        elif self.accuracy - self.asked_accuracy > CERTAIN * self.standard_error:
            what = "more accurate"
        else:
            what = "no less accurate, here and in the mean over all budgets"
        return (
            f"{self.taken} is {what}, and is used instead: {100 * self.accuracy:.2f} % at {self.cost:.4g} {self.unit}, "
            f"where the method asked for has {100 * self.asked_accuracy:.2f} % at {self.asked_cost:.4g} {self.unit} "
            f"({gained:+.2f} points, standard error {100 * self.standard_error:.2f}, on {self.samples} calibration "
            "samples)"
        )


@dataclass(frozen=True)
class Cheaper:
    """The smallest budget whose policy is as accurate as that of a larger one, within a standard error.

    Accuracies and costs are as for `Fallback`.

    Parameters
    ----------
    budget : float
        The smaller budget.
    cost, accuracy : float
        Of its policy.
    given_cost, given_accuracy : float
        Of the policy for the budget that was asked for.
    standard_error : float
        Of the difference of the accuracies, on the same samples.
    unit : str
        Of the costs.
    samples : int
        On how many calibration samples.
    """

    budget: float
    cost: float
    accuracy: float
    given_cost: float
    given_accuracy: float
    standard_error: float
    unit: str
    samples: int

    @property
    def unseen(self) -> float:
        """About the largest loss of accuracy that these samples could not show: two standard errors, or three samples.

        Where none of n samples differs, up to 3 in n may, with 95 %.
        """
        return max(2 * self.standard_error, 3 / self.samples)

    def __str__(self) -> str:
        gained = 100 * (self.accuracy - self.given_accuracy) + 0.0  # no -0.00
        return (
            f"a budget of {self.budget:.4g} {self.unit} loses no accuracy that can be seen: "
            f"{100 * self.accuracy:.2f} % at {self.cost:.4g} {self.unit}, where this budget has "
            f"{100 * self.given_accuracy:.2f} % at {self.given_cost:.4g} {self.unit} ({gained:+.2f} points, standard "
            f"error {100 * self.standard_error:.2f}, out of fold; differences below about {100 * self.unseen:.2g} "
            f"points cannot be seen with {self.samples} samples)"
        )


@dataclass(frozen=True)
class DeadExit:
    """An exit at which no sample should exit, and what would be lost if samples did.

    Parameters
    ----------
    exit_index : int
        The exit, from 0.
    accuracy : float
        Its accuracy.
    common : float or None
        What naming the most common class would have, where that is why it is left out.
    better : float
        The accuracy of the best later exit, or of a mixture of exits at the cost of this one.
    better_exits : tuple of int
        That exit, or the two exits of the mixture.
    samples : int
        On how many calibration samples.
    """

    exit_index: int
    accuracy: float
    common: float | None
    better: float
    better_exits: tuple[int, ...]
    samples: int

    def __str__(self) -> str:
        mine, better = f"{100 * self.accuracy:.1f} %", f"{100 * self.better:.1f} %"
        if self.common is not None:
            return (
                f"exit {self.exit_index} says nothing: it is right on {mine} of {self.samples} calibration samples, "
                f"naming the most common class always would be on {100 * self.common:.1f} %, and exit "
                f"{self.better_exits[0]} is on {better}"
            )
        one, other = self.better_exits
        return (
            f"exit {self.exit_index} does not pay: it is right on {mine} of {self.samples} calibration samples, exits "
            f"{one} and {other} drawn by lot at the same cost on {better}, and its surest samples lose too"
        )


def to_dict(value: Fallback | DeadExit | None) -> dict[str, Any] | None:
    """What JSON can hold."""
    return None if value is None else asdict(value)


def fallback_from(description: Mapping[str, Any] | None) -> Fallback | None:
    """The fallback of what `to_dict` gave."""
    return None if description is None else _made(Fallback, description)


def dead_exit_from(description: Mapping[str, Any]) -> DeadExit:
    """The exit of what `to_dict` gave."""
    made: DeadExit = _made(DeadExit, description)
    return replace(made, better_exits=tuple(made.better_exits))


def _made(kind: Callable[..., Any], description: Mapping[str, Any]) -> Any:
    try:
        return kind(**description)
    except TypeError as error:
        raise FileFormatError(f"a scheduler's file describes no {kind.__name__} ({error}); save it again") from error
