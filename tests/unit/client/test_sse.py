"""Server-sent events out of bytes, cut anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom._sse import Parser, ServerSentEvent


def parsed(*chunks):
    parser = Parser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def data(*texts):
    return [ServerSentEvent("message", text) for text in texts]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", data("a", "b")),
        (b"data: a\r\ndata: b\r\n\r\n", data("a\nb")),
        (b"data: a\rdata: b\r\r", data("a\nb")),
        (b"data:a\n\ndata:  a\n\n", data("a", " a")),
        (b"data: a: b\n\n", data("a: b")),
        (b"\xef\xbb\xbfdata: a\n\n", data("a")),
        (b"data: \xef\xbb\xbfa\n\n", data("\ufeffa")),
        (b": a comment\n\n:\n\ndata: a\n: another\n\n", data("a")),
        (b"data\n\ndata: \n\nevent: lonely\n\ndata: a\n\n", data("a")),
        (b"retry: 5\nfoo: bar\nfoo\ndata: a\n\n", data("a")),
        (b"data: a\n\ndata: cut off\n", data("a")),
        (
            b"id: 1\nevent: x\ndata: a\n\ndata: b\n\nid: 3\0\ndata: c\n\n",
            [
                ServerSentEvent("x", "a", "1"),
                ServerSentEvent("message", "b", "1"),
                ServerSentEvent("message", "c", "1"),
            ],
        ),
        ("data: füchse 🦊\n\n".encode(), data("füchse 🦊")),
        (b"data: \xff\n\n", data("\ufffd")),
        (b"", []),
    ],
)
def test_a_stream_is_read_as_the_standard_has_it(stream, expected):
    assert parsed(stream) == expected
    assert parsed(*(stream[place : place + 1] for place in range(len(stream)))) == expected


LINES = st.lists(
    st.one_of(
        st.just(""),
        st.builds(
            "{}: {}".format, st.sampled_from(["data", "event", "id", "", "other"]), st.text(max_size=8)
        ),
    ).map(lambda line: line.replace("\r", "").replace("\n", "")),
    max_size=12,
)


@given(LINES, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.data())
def test_where_the_bytes_are_cut_makes_no_difference(lines, line_end, with_mark, draw):
    stream = "".join(line + line_end for line in lines).encode("utf-8", "surrogatepass")
    stream = b"\xef\xbb\xbf" * with_mark + stream
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert b"".join(chunks) == stream
    assert parsed(*chunks) == parsed(stream)


@given(st.text(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_text_comes_through_line_by_line(text, line_end):
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    stream = "".join(f"data: {line}{line_end}" for line in lines) + line_end
    assert parsed(stream.encode()) == (data("\n".join(lines)) if "\n".join(lines) else [])
