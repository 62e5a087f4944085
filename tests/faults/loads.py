"""What feeders send beside small frames of equal shares: real sizes, uneven shares, and records that are refused."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import images
from consumer.messages import encode_envelope
from feeders import BAD_EVERY, Record, SteeredFeeder, bad_picture, noise, small_picture

_DAY_MS = 86_400_000


@cache
def _photo(width: int, height: int) -> bytes:
    return images.jpeg(width, height)


class LargeFrames(SteeredFeeder):
    """Good frames of 1 to 3 MB, and bad ones that are small."""

    SHAPES = ((760, 570), (768, 576), (784, 588), (800, 600), (1280, 960))  # 1 MB, and 3 MB

    def record(self, number: int) -> Record:
        if number % 10 == 9:
            return Record(self.source(number), bad_picture(number))
        return Record(self.source(number), noise(*self.SHAPES[number % len(self.SHAPES)]))


class MediumFrames(SteeredFeeder):
    """Good frames of 107 kB; two of three come from one camera."""

    def record(self, number: int) -> Record:
        source = "cam-7" if number % 3 else self.source(number // 3)
        value = bad_picture(number) if number % BAD_EVERY == BAD_EVERY - 1 else noise(240, 180 + number % 8)
        return Record(source, value)


class Backlog(SteeredFeeder):
    """A burst is of one camera in partition 0, and of many in the other partitions, with frames of 200 kB.

    A few small frames of others lie in partition 0, and overtake its backlog. Large ones of the other partitions are in
    the same batches.
    """

    BYTES = 200_000
    _PARTITIONS = 4
    _RARE_EVERY = 8

    def record(self, number: int) -> Record:
        if not self._hold.is_set():
            return super().record(number)
        value = small_picture(number)
        turn, partition = divmod(number, self._PARTITIONS)
        if partition == 0 and turn % self._RARE_EVERY == 0:
            return Record(f"cam-rare-{number}", value, partition=0)
        source = f"cam-{partition}-{turn % 9}" if partition else "cam-busy"
        return Record(source, value.ljust(self.BYTES, b"-"), partition=partition)  # what follows a picture is ignored


class Envelopes(SteeredFeeder):
    """Bursts are of pictures in envelopes of 500 kB, whose payloads are copies: a frame takes twice that."""

    BYTES = 500_000

    def record(self, number: int) -> Record:
        if not self._hold.is_set():
            return super().record(number)
        source = self.source(number)
        picture = small_picture(number).ljust(self.BYTES, b"-")  # what follows a picture is ignored
        return Record(source, encode_envelope(picture, source_id=source))


class LargeLetters(SteeredFeeder):
    """Bursts have a bad frame of `BAD_BYTES` among ten good ones."""

    BAD_BYTES = 1_200_000
    bad_every = 11

    def record(self, number: int) -> Record:
        if self._hold.is_set() and number % self.bad_every == self.bad_every - 1:
            return Record(self.source(number), bad_picture(number, self.BAD_BYTES))
        return super().record(number)


class BadFrames(LargeLetters):
    """Bursts are of bad frames of 300 kB alone."""

    BAD_BYTES = 300_000
    bad_every = 1


class LettersToCut(SteeredFeeder):
    """Now and then a bad frame of 400 kB."""

    def record(self, number: int) -> Record:
        if number % 20 == 19:
            return Record(self.source(number), bad_picture(number, 400_000))
        return super().record(number)


class FromTheFuture(SteeredFeeder):
    """The clock of one camera is three hours ahead, and its frames may be bad."""

    def record(self, number: int) -> Record:
        if number % 25 != 24:
            return super().record(number)
        return Record("cam-ahead", bad_picture(number), int(time.time() * 1000) + 3 * 3_600_000)


class FromLastWeek(SteeredFeeder):
    """Every frame is eight days old, as those of a consumer that has a long way to catch up."""

    def record(self, number: int) -> Record:
        return replace(super().record(number), timestamp_ms=int(time.time() * 1000) - 8 * _DAY_MS)


class WithoutKeys(SteeredFeeder):
    """Some records have no key, good ones and bad ones."""

    def record(self, number: int) -> Record:
        plain = super().record(number)
        if number % 10 == 3:
            return replace(plain, key=None)
        return Record(None, bad_picture(number)) if number % 10 == 5 else plain


class LongNames(SteeredFeeder):
    """Some frames have names of a kilobyte, and a result of theirs is larger than the others by as much."""

    NAME = "\N{CAMERA}" * 256  # characters of four bytes, as many as a name may have

    def record(self, number: int) -> Record:
        plain = super().record(number)
        return replace(plain, headers=(("frame-id", self.NAME),)) if number % 10 == 3 else plain


class Photos(SteeredFeeder):
    """Good frames of 640x480, whose decoding takes milliseconds, and some of 1920x1080, which takes memory, too."""

    def record(self, number: int) -> Record:
        if number % BAD_EVERY == BAD_EVERY - 1:
            return Record(self.source(number), bad_picture(number))
        width, height = (1920, 1080) if number % 5 == 0 else (640, 480)
        return Record(self.source(number), _photo(width, height + number % 8))
