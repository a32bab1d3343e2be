"""Where a text says a learned token, as a word of its own. No torch: requests are checked with it."""

import re
from collections.abc import Iterable


def is_said(token: str, text: str) -> bool:
    """Whether a prompt's plain text holds the token as a word of its own; upper and lower case are the same to CLIP."""
    return pattern([token]).search(text) is not None


def pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Any of the tokens where no letter or digit goes on on either side; the longest first."""
    any_of = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.compile(rf"(?<![^\W_])({any_of})(?![^\W_])" if any_of else r"(?!)()", re.IGNORECASE)
