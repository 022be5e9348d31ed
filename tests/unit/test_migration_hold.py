"""What is announced about a moving guest, and which frames are kept for it: bytes alone. Real frames: tests/node."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from emulab.migration.hold import _destination_filter, announcement, parse_mac

MAC = "02:65:6d:12:00:64"


def run_bpf(program: bytes, frame: bytes) -> int:
    """Classic BPF, as much of it as the filter uses (Linux, Documentation/networking/filter.rst)."""
    instructions = list(struct.iter_unpack("HBBI", program))
    accumulator, at = 0, 0
    while True:
        code, jump_true, jump_false, value = instructions[at]
        at += 1
        if code == 0x06:
            return value
        if code in (0x20, 0x28):
            size = 4 if code == 0x20 else 2
            if value + size > len(frame):
                return 0
            accumulator = int.from_bytes(frame[value : value + size], "big")
        elif code == 0x15:
            at += jump_true if accumulator == value else jump_false
        else:
            raise AssertionError(hex(code))


def test_frames_for_the_guest_are_kept_whole():
    assert run_bpf(_destination_filter(parse_mac(MAC)), parse_mac(MAC) + bytes(60)) >= 65536


@given(st.binary(min_size=6, max_size=6))
def test_frames_for_others_are_not(destination):
    if destination != parse_mac(MAC):
        assert run_bpf(_destination_filter(parse_mac(MAC)), destination + bytes(60)) == 0


@given(st.integers(0, 47))
def test_one_bit_off_is_another(bit):
    other = (int.from_bytes(parse_mac(MAC), "big") ^ 1 << bit).to_bytes(6, "big")
    assert run_bpf(_destination_filter(parse_mac(MAC)), other + bytes(60)) == 0


def test_a_source_address_alone_does_not_count():
    assert run_bpf(_destination_filter(parse_mac(MAC)), b"\xff" * 6 + parse_mac(MAC) + bytes(50)) == 0


def test_the_announcement_is_a_gratuitous_arp_request():
    assert announcement(MAC, "198.18.0.100").hex() == (
        "ffffffffffff" "02656d120064" "0806"  # to all, from the guest, ARP
        "0001" "0800" "06" "04" "0001"  # Ethernet, IPv4, request
        "02656d120064" "c6120064"  # the guest has this address
        "000000000000" "c6120064"  # who has it?
    )  # fmt: skip
