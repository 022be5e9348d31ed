"""Compressing the new pages of a migration: one zstd stream with a long memory, or nothing where that takes longer.

Every setting is judged by the time a page takes with it, max(compressing, sending): the two run side by side. Measured on the pages of an
Olio web guest under load (109 MB of distinct pages in three rounds, one core, the fastest of five)::

    each 4 MiB chunk alone, level 1            24.1 MB   505 MB/s
    stream, level 1                            21.7 MB   446 MB/s
    stream, level 3                            10.0 MB   514 MB/s
    stream, level 1, table of 2^18              8.9 MB   589 MB/s
    stream, level 3, long distance              7.7 MB   242 MB/s
    stream, level 1, table of 2^18, long d.     7.4 MB   270 MB/s
    stream, level 9, long distance              6.4 MB   103 MB/s

The levels of zstd keep a table that suits a small window; what pages repeat lies further back. A stream's memory reaches 32 MiB back, over
tasks and rounds: a page that was rewritten in part is found there, without anybody telling which page it was. That is why there is no delta
against the page's earlier version: it made the pages harder to compress.

With 8 MiB of memory a round takes a quarter less CPU time, and a tenth more bytes. But glibc learns from the first block of that size
that is freed to keep such blocks, in each thread's arena: agents grew from 95 to 148 MB over 160 migrations. A block of more than 32 MiB
it never keeps. A fixed limit of 4 MiB kept the agents small, too; the freeze was not shorter with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, cast

import zstandard

from emulab.errors import EmulabError

WINDOW_LOG = 25  # 32 MiB of memory on either side
RAW, MORE, NEW_STREAM = 0, 1, 2  # what a chunk's content is: pages as they are, the stream's next part, the first part of a new stream
_SAMPLE_PAGES = 8
_INCOMPRESSIBLE = 0.97
# Changing the setting starts a new stream, which forgets what the old one knew.
_WORTH_A_CHANGE = 0.8
_LEARN = 0.2


@dataclass(frozen=True)
class Setting:
    """``level`` 0 is none; ``table``: log2 of the places that are remembered, 0 for the level's own. ``speed`` in bytes/s of one core and
    ``gain`` (compressed size over the sample's) are first guesses.
    """

    level: int
    table: int
    long_distance: bool
    speed: float
    gain: float


SETTINGS = (
    Setting(0, table=0, long_distance=False, speed=math.inf, gain=1.0),
    Setting(1, table=18, long_distance=False, speed=345e6, gain=0.36),
    Setting(1, table=18, long_distance=True, speed=180e6, gain=0.31),
    Setting(9, table=0, long_distance=True, speed=63e6, gain=0.27),
)


class Chooser:
    """Which setting moves pages fastest over the link.

    Learns two factors from whatever was used last, how much harder this guest's pages are than those measured and how much slower this
    machine is; how the settings compare with each other stays as it is.
    """

    def __init__(self) -> None:
        self.current = SETTINGS[0]
        self._harder = 1.0
        self._slower = 1.0

    def seconds_per_byte(self, setting: Setting, sample: float, rate: float) -> float:
        """Expected. ``sample``: a few of the pages, compressed size over size; ``rate``: of the link, bytes/s."""
        if setting.level == 0:
            return 1 / rate
        return max(self._slower / setting.speed, min(1.0, sample * setting.gain * self._harder) / rate)

    def choose(self, sample: float, rate: float) -> Setting:
        if sample > _INCOMPRESSIBLE:
            return SETTINGS[0]  # the stream is kept: a later chunk may go on with it

        def expected(setting: Setting) -> float:
            return self.seconds_per_byte(setting, sample, rate)

        best = min(SETTINGS, key=expected)
        if best.level and self.current.level and expected(best) > _WORTH_A_CHANGE * expected(self.current):
            best = self.current
        if best.level:
            self.current = best
        return best

    def learn(self, setting: Setting, sample: float, *, size: int, compressed: int, seconds: float) -> None:
        self._harder += _LEARN * (min(compressed / size / sample / setting.gain, 5.0) - self._harder)
        self._slower += _LEARN * (setting.speed * seconds / size - self._slower)


class Compressor:
    """The sending side. ``rate``: payload bytes/s that the link is believed to carry, asked for each chunk."""

    def __init__(self, rate: Callable[[], float]) -> None:
        self._rate = rate
        self._chooser = Chooser()
        self._sampler = zstandard.ZstdCompressor(level=1)
        self._setting: Setting | None = None
        self._stream: zstandard.ZstdCompressionObj | None = None

    def pack(self, pages: Sequence[bytes]) -> tuple[int, bytes]:
        """(RAW, MORE or NEW_STREAM, content) of one chunk's new pages, in order. Chunks must be unpacked in the order of packing."""
        content = b"".join(pages)
        sample = b"".join(pages[:: max(1, len(pages) // _SAMPLE_PAGES)][:_SAMPLE_PAGES])
        ratio = len(self._sampler.compress(sample)) / len(sample)
        setting = self._chooser.choose(ratio, self._rate())
        if setting.level == 0:
            return RAW, content
        kind = MORE
        if self._stream is None or setting != self._setting:
            kind, self._setting, self._stream = NEW_STREAM, setting, _stream(setting)
        started = time.thread_time()  # the core's, not the clock's: others at work must not make the choice for us
        packed = self._stream.compress(content) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
        seconds = time.thread_time() - started
        if len(content) >= 64 * 4096:
            self._chooser.learn(setting, ratio, size=len(content), compressed=len(packed), seconds=seconds)
        return kind, packed


def _stream(setting: Setting) -> zstandard.ZstdCompressionObj:
    table = {"hash_log": setting.table} if setting.table else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        setting.level, window_log=WINDOW_LOG, enable_ldm=setting.long_distance, write_content_size=False, **table
    )
    return zstandard.ZstdCompressor(compression_params=parameters).compressobj()


class _Feed:
    """What the decompressing stream reads from: the content of the chunk at hand."""

    def __init__(self) -> None:
        self.data = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        part = self.data[:size] if size >= 0 else self.data
        self.data = self.data[len(part) :]
        return bytes(part)


class Decompressor:
    """The receiving side. Never unpacks more than it is asked for."""

    def __init__(self) -> None:
        self._feed = _Feed()
        self._reader: zstandard.ZstdDecompressionReader | None = None

    def unpack(self, kind: int, content: bytes | memoryview, size: int) -> bytes | memoryview:
        """The ``size`` bytes of pages of one chunk. Raises EmulabError for content that is not exactly those."""
        if kind == RAW:
            pages: bytes | memoryview = content
        else:
            pages = self._next(kind, content, size)
        if len(pages) < size:
            raise EmulabError("a page arrived without its content")
        if len(pages) > size or self._feed.data:
            raise EmulabError("a chunk carried pages that nothing refers to")
        return pages

    def _next(self, kind: int, content: bytes | memoryview, size: int) -> bytes:
        if kind == NEW_STREAM:
            decompressor = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG)
            self._reader = decompressor.stream_reader(cast(IO[bytes], self._feed), read_size=1 << 20)
        if kind not in (MORE, NEW_STREAM) or self._reader is None:
            raise EmulabError("a chunk of pages cannot be unpacked: it continues nothing")
        self._feed.data = memoryview(content)
        try:
            return self._reader.read(size) if size else b""
        except zstandard.ZstdError as error:
            raise EmulabError(f"a chunk of pages cannot be unpacked: {error}") from error
