"""If-Match and If-None-Match (RFC 9110, 13.1) for things that have one strong ETag."""

import re

from service.api.refusals import InvalidCondition

ANY = "*"
NONE = ""
_ETAG = re.compile(r'"([!#-~]{1,200})"')


def etag(value: str) -> str:
    """As a header has it."""
    return f'"{value}"'


def expected(if_match: str | None, if_none_match: str | None) -> str | None:
    """What a change expects to find: an etag, ANY, NONE (it must be new), or None where it takes what comes.

    Raises:
        InvalidCondition: it expects anything else; to take that as no condition could overwrite another's work.
    """
    if if_none_match is not None:
        if if_match is not None or if_none_match.strip() != ANY:
            raise InvalidCondition("send either `If-None-Match: *` or an `If-Match`")
        return NONE
    if if_match is None:
        return None
    if if_match.strip() == ANY:
        return ANY
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        raise InvalidCondition('send one ETag, as it was answered: `If-Match: "…"`, or `If-Match: *`')
    return found[1]
