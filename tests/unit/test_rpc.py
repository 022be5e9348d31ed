"""The agent channel: messages keep their borders, and nothing that is not one of ours gets through."""

from __future__ import annotations

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulab.agent.rpc import MAX_MESSAGE, Client, RemoteError, decode, encode, error_to_message
from emulab.errors import AgentError, UsageError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.dictionaries(st.text(), VALUES, max_size=5)


class Dribble:
    """A byte stream that hands out a few bytes at a time, as sockets do."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._data, self._sizes, self._turn = io.BytesIO(data), sizes, 0

    def read(self, size: int, /) -> bytes:
        self._turn += 1
        return self._data.read(min(size, self._sizes[self._turn % len(self._sizes)]))

    def write(self, data: bytes, /) -> None:
        raise AssertionError

    def close(self) -> None:
        pass


class Answering:
    """The agent's end of a channel, with its answers prepared."""

    def __init__(self, *answers: dict) -> None:
        self.asked = bytearray()
        self._answers = io.BytesIO(b"".join(encode(answer) for answer in answers))
        self.closed = False

    def read(self, size: int, /) -> bytes:
        return self._answers.read(size)

    def write(self, data: bytes, /) -> None:
        self.asked += data

    def close(self) -> None:
        self.closed = True


@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_messages_arrive_as_sent_however_the_bytes_are_split(messages, sizes):
    stream = Dribble(b"".join(encode(message) for message in messages), sizes)
    assert [decode(stream) for _ in messages] == messages
    assert decode(stream) is None


@given(MESSAGES, st.data())
def test_a_message_cut_off_anywhere_is_the_end_of_the_stream(message, data):
    whole = encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert decode(io.BytesIO(whole[:cut])) is None


@given(st.binary(min_size=1, max_size=64))
def test_a_body_that_is_not_a_json_object_is_refused(body):
    try:
        ours = isinstance(json.loads(body), dict)
    except ValueError:
        ours = False
    if not ours:
        with pytest.raises(AgentError, match="out of step"):
            decode(io.BytesIO(struct.pack(">I", len(body)) + body))


def test_an_oversized_message_is_refused_before_it_is_read():
    stream = io.BytesIO(struct.pack(">I", MAX_MESSAGE + 1) + b"x" * 100)
    with pytest.raises(AgentError, match="out of step"):
        decode(stream)
    assert stream.tell() == 4


def test_an_oversized_message_is_not_sent():
    with pytest.raises(AgentError, match="too large"):
        encode({"text": "x" * MAX_MESSAGE})


def test_a_call_sends_its_method_and_returns_the_result():
    stream = Answering({"id": 1, "result": [1, 2]})
    assert Client("host1", stream).call("vm.list", deep=True) == [1, 2]
    assert decode(io.BytesIO(bytes(stream.asked))) == {"id": 1, "method": "vm.list", "params": {"deep": True}}


def test_events_come_before_the_result_in_their_order():
    stream = Answering({"id": 1, "event": {"n": 1}}, {"id": 1, "event": {"n": 2}}, {"id": 1, "result": None})
    events: list[dict] = []
    assert Client("host1", stream).call("vm.migrate", on_event=events.append) is None
    assert events == [{"n": 1}, {"n": 2}]


def test_an_event_that_looks_like_a_result_is_told_apart_by_its_envelope():
    stream = Answering({"id": 1, "event": {"result": "not yet", "kind": "event"}}, {"id": 1, "result": "done"})
    assert Client("host1", stream).call("x") == "done"


def test_an_error_crosses_the_channel_with_kind_hint_and_details():
    error = UsageError("no such guest", hint="emulab vm list")
    error.details = {"logs": {"dump.log": "text"}}
    stream = Answering({"id": 1, "error": error_to_message(error)})
    with pytest.raises(RemoteError, match="host3: no such guest") as caught:
        Client("host3", stream).call("vm.stop")
    assert (caught.value.kind, caught.value.hint, caught.value.node) == ("UsageError", "emulab vm list", "host3")
    assert caught.value.details == {"logs": {"dump.log": "text"}}


def test_an_error_that_is_not_ours_names_its_class():
    assert error_to_message(KeyError("name")) == {"kind": "KeyError", "message": "KeyError: 'name'", "hint": "", "details": None}


def test_the_end_of_the_channel_during_a_call_is_an_error_that_names_the_node():
    with pytest.raises(AgentError, match=r"host2.*closed during vm\.start"):
        Client("host2", Answering()).call("vm.start")
