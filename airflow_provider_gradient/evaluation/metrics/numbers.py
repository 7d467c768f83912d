"""Whether a number is close enough to the right one.

Numbers are read as people write them:

- digits of any script; a minus sign, ASCII's or Unicode's, in front of them or of their currency sign;
- in groups of three by spaces, apostrophes, commas or points (``1 234``, ``1'234``, ``1,234,567``,
  ``1.234.567``), commas also in India's way (``12,34,567``);
- a decimal point or a decimal comma: where both marks occur, the last one (``1,234.5``, ``1.234,5``); where
  one occurs once, that one (``7,5``), unless three digits stand behind it and one to three in front, the
  first of them no zero. ``1,234`` and ``1.234`` may be either; the setting ``decimal`` says which it is;
- an exponent (``1.5e3``, ``1.5 x 10^3``), a fraction (``3/4``, ``1 3/4``, ``½``), and the English words
  thousand, million, billion and trillion behind the digits;
- of a percent sign, or the word, the setting ``percent`` says whether it divides by a hundred.

Currencies and units are not compared, and parentheses are no minus sign.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import ClassVar, Literal

from pydantic import Field

from airflow_provider_gradient.evaluation.metrics.base import Example, MeanMetric
from airflow_provider_gradient.evaluation.report import EvaluationError

Mark = Literal[".", ","]
Percent = Literal["unit", "fraction"]

_FORMS = str.maketrans("\u2212\uff0d\uff0b\uff0e\uff0c\uff05\u066a\u066c\u2019\u2044", "--+.,%%''/")
_MAGNITUDES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_NUMBER = re.compile(
    r"""
    (?=[-+\u2013.\d])
    (?:(?<![\w.)\]%]) (?P<sign>[-+\u2013]) [$£¥\u20a0-\u20c0]?)?
    (?:
        (?<![\d/.,]) (?:(?P<whole>\d+)[ ])? (?P<above>\d+)[ ]?/[ ]?(?P<below>\d+) (?![/.,]?\d)
    |
        (?P<digits>
            (?<![\d.,]) (?!0)\d{1,3} (?:(?:[ \u00a0\u2009\u202f]\d{3})+ | (?:'\d{3})+) (?!\d)
                (?:[.,\u066b]\d+ (?![.,]?\d))?
        |   \d+ (?:[.,\u066b]\d+)*
        |   (?<![\d.,]) \.\d+
        )
        (?:
            e(?P<exponent>[-+]?\d+)
        |   \s? (?:[x\u00d7*\u00b7\u22c5]|\\times) \s?10\s?
            (?: (?:\^|\*\*)\s?\{?(?P<power>[-+]?\d+)\}? | (?P<super>[⁻⁺]?[⁰¹²³⁴-⁹]+) )
        )?
    )
    (?:\s?(?P<magnitude>thousand|million|billion|trillion)s?\b)?
    (?P<percent>\s?%|\s(?:percent|per\ cent)\b)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")


def last_number(text: str, *, decimal: Mark = ".", percent: Percent = "unit") -> float | None:
    """The last number in ``text``, or ``None`` where there is none, or none that a float can hold.

    :param decimal: the mark that is the decimal one where a number's form does not tell.
    :param percent: whether a percent sign is a ``unit``, such that 50% is 50, or a ``fraction``, 0.5.
    """
    text = _VULGAR.sub(_told_apart, text)
    last = None
    for last in _NUMBER.finditer(text.translate(_FORMS)):  # noqa: B007
        pass
    return None if last is None else _value(last, decimal=decimal, percent=percent)


def _told_apart(vulgar: re.Match[str]) -> str:
    """``½`` as ``1/2``, which is another number than the one in front of it."""
    space = " " if vulgar.string[: vulgar.start()][-1:].isdecimal() else ""
    return space + unicodedata.normalize("NFKC", vulgar[0])


def _value(found: re.Match[str], *, decimal: Mark, percent: Percent) -> float | None:
    try:
        if found["digits"] is None:
            value = int(found["whole"] or 0) + int(found["above"]) / int(found["below"])
        else:
            power = found["exponent"] or found["power"] or (found["super"] or "0").translate(_SUPERSCRIPTS)
            value = float(f"{_plain(found['digits'], decimal)}e{power}")
    except (ArithmeticError, ValueError):  # a fraction with nothing below, or more digits than Python reads
        return None
    value *= _MAGNITUDES.get((found["magnitude"] or "").lower(), 1.0)
    if found["percent"] and percent == "fraction":
        value /= 100
    value = -value if found["sign"] in ("-", "\u2013") else value
    return value if math.isfinite(value) else None


def _plain(digits: str, decimal: Mark) -> str:
    """Digits with marks among them as Python writes the number."""
    digits, is_grouped = re.subn(r"[^\d.,\u066b]", "", digits)
    while marks := re.findall(r"[.,\u066b]", digits):
        whole, _, part = digits.rpartition(marks[-1])
        if len(marks) == 1:
            is_either = len(part) == 3 and 1 <= len(whole) <= 3 and whole[0] != "0" and not is_grouped
            if not is_either or marks[0] in (decimal, "\u066b"):
                return f"{whole}.{part}"
            return whole + part
        if len(set(marks)) == 1:
            return digits.replace(marks[0], "") if _are_groups(digits, marks[0]) else part
        if marks[-1] not in marks[:-1] and _are_groups(whole, marks[0]):
            return f"{whole.replace(marks[0], '')}.{part}"
        digits = digits[digits.index(marks[0]) + 1 :]  # several numbers, of which the last counts
    return digits


def _are_groups(digits: str, mark: str) -> bool:
    pattern = r"[^\D0]\d{0,2}(?:,\d{3})+|[^\D0]\d?(?:,\d{2})+,\d{3}"
    return re.fullmatch(pattern, digits.replace(mark, ",")) is not None


class NumericCloseness(MeanMetric):
    """1 if the last number in the output is close to the reference, else 0; see :mod:`.numbers` for what is
    read as a number.

    Close is what numpy's ``isclose`` has for it: ``|output - reference| <= absolute + relative *
    |reference|``. Of several references any may be met. The reference is a number, or a text of which the
    last number counts.

    :ivar absolute: 0 or more.
    :ivar relative: 0 or more, as a share of the reference; by default only rounding errors are borne.
    :ivar decimal: whether ``1.234`` (``"."``, the default) or ``1,234`` (``","``) has a fraction, where a
        number's form does not tell.
    :ivar percent: ``unit``, the default, reads 50% as 50; ``fraction`` as 0.5.
    """

    is_rate: ClassVar[bool] = True
    metric: Literal["numeric_closeness"] = "numeric_closeness"
    absolute: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    relative: float = Field(default=1e-9, ge=0, allow_inf_nan=False)
    decimal: Mark = "."
    percent: Percent = "unit"

    def score(self, example: Example) -> float:
        """0 or 1."""
        wanted = [self._wanted(form) for form in example.forms]
        given = last_number(example.text, decimal=self.decimal, percent=self.percent)
        return float(
            given is not None
            and any(abs(given - number) <= self.absolute + self.relative * abs(number) for number in wanted)
        )

    def _wanted(self, reference: str | float) -> float:
        if isinstance(reference, int | float):
            return float(reference)
        number = last_number(reference, decimal=self.decimal, percent=self.percent)
        if number is None:
            raise EvaluationError(f"{self.name}: the reference {reference!r} holds no number")
        return number
