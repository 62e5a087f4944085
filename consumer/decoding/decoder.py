"""Decodes one frame: check it, decode it, rotate it, letterbox it.

The docstrings number these steps. The order is what makes them safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, Protocol

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from consumer.decoding.headers import Header, Refused, read_header
from consumer.decoding.png import essential
from consumer.types import Letterbox, LetterboxPolicy, Rejected

Image = NDArray[np.uint8]  # (height, width, 3), RGB

# The grey value of the padding, as in Ultralytics' LetterBox.
PADDING = 114

# Exif orientation to the operation that makes the stored image upright.
_UPRIGHT: dict[int, Callable[[Image], Any]] = {
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def configure_opencv() -> None:
    """Configure OpenCV for this process: one thread, no log output.

    These settings are global to the process, so only entry points call this function, never an import.

    The decode pool already has a thread per core. A resize that uses all cores again would only compete with it. What
    OpenCV would print about a damaged image is in the dead letter of the frame.
    """
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class Guards(Protocol):
    """The limits for images. `DecodeConfig` has them, and each decoding process receives them.

    A protocol, so that a decoding process need not import the libraries of the configuration at its start.
    """

    @property
    def strict(self) -> bool: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def max_pixels(self) -> int: ...
    @property
    def max_scans(self) -> int: ...


class Decoder:
    """Decodes encoded images into letterboxed canvases. Threads may call it at the same time for different slots.

    The pixels equal those of Ultralytics' `LetterBox` after `cv2.imdecode(payload, IMREAD_COLOR)`, but in RGB. The Exif
    orientation is applied, so width, height and boxes refer to the upright image.

    Args:
        guards: The limits for images.
        policy: The canvas layout that the detector requires.
    """

    def __init__(self, guards: Guards, policy: LetterboxPolicy) -> None:
        self._guards = guards
        self._policy = policy
        # A camera sends one image size. The cache is bounded, because senders choose the sizes.
        self._fit = lru_cache(maxsize=256)(partial(Letterbox.fit, policy=policy))

    def close(self) -> None:
        """No-op. The process-based decoder overrides this."""

    @property
    def slot_bytes(self) -> int:
        """The size of a slot in bytes, which is that of the largest canvas."""
        return self._policy.slot_bytes

    def decode_into(
        self, payloads: Sequence[bytes], slots: NDArray[np.uint8], places: Sequence[int]
    ) -> Iterator[tuple[int, Letterbox | Rejected]]:
        """Decode several images, each into its row of `slots`.

        Args:
            payloads: The encoded images.
            slots: uint8 (n, slot_bytes), contiguous.
            places: For each payload, the row of `slots` for its canvas.

        Yields:
            (place, outcome) for each payload, as `judge` returns it.
        """
        for payload, place in zip(payloads, places, strict=True):
            yield place, self.judge(payload, slots[place])

    def judge(self, payload: bytes, slot: NDArray[np.uint8]) -> Letterbox | Rejected:
        """Decode one image as `decode` does, and reject the frame for every error except MemoryError.

        Decoding is deterministic, so after a restart the same frame would raise the same error.
        """
        try:
            return self.decode(payload, slot)
        except MemoryError:  # the fault of the machine, not of the frame
            raise
        except Exception as error:  # noqa: BLE001 - decoding is deterministic
            return Rejected("decode", "damaged", f"{type(error).__name__}: {error}")

    def decode(self, payload: bytes, slot: NDArray[np.uint8]) -> Letterbox | Rejected:
        """Decode one image into the first `canvas_height * canvas_width * 3` bytes of `slot`.

        Args:
            payload: The encoded image.
            slot: uint8 (slot_bytes,), contiguous.

        Returns:
            The placement of the image in its canvas, or `Rejected`. After `Rejected`, the content of the slot is
            unspecified.

        Raises:
            ValueError: The slot has another shape or dtype.
            MemoryError: The machine has too little memory. The frame is not at fault.
        """
        if slot.shape != (self.slot_bytes,) or slot.dtype != np.uint8 or not slot.flags.c_contiguous:
            raise ValueError(f"slot: expected contiguous uint8 ({self.slot_bytes},), got {slot.dtype} {slot.shape}")
        try:
            header = self._admit(payload)
            if header.format == "JPEG":
                return self._decode_jpeg(payload, header, slot)
            return self._decode_other(payload, header, slot)
        except Refused as refused:
            return Rejected("decode", refused.reason, refused.detail)

    def _admit(self, payload: bytes) -> Header:
        """Step 1: refuse everything that can be refused before a byte is decoded or allocated."""
        guards = self._guards
        if not payload:
            raise Refused("empty", "the frame has no bytes")
        if len(payload) > guards.max_bytes:
            raise Refused("too_large", f"{len(payload)} bytes; decode.max_bytes is {guards.max_bytes}")
        header = read_header(payload)
        pixels = header.width * header.height
        if pixels > guards.max_pixels:
            raise Refused(
                "too_many_pixels",
                f"the {header.format} header claims {header.width}x{header.height} = {pixels} pixels; "
                f"decode.max_pixels is {guards.max_pixels}",
            )
        if header.scans > guards.max_scans:
            raise Refused(
                "too_many_scans", f"the JPEG has {header.scans} scans; decode.max_scans is {guards.max_scans}"
            )
        return header

    def _decode_jpeg(self, payload: bytes, header: Header, slot: NDArray[np.uint8]) -> Letterbox:
        """Step 2a: decode a JPEG.

        The image is decoded directly into the slot if it is upright, needs no scaling and spans the canvas width.
        """
        stored = header.height, header.width, 3
        upright = (header.width, header.height) if header.orientation < 5 else (header.height, header.width)
        box = self._fit(*upright)
        region = _lay_out(slot, box)
        if header.orientation == 1 and region.shape == stored and region.flags.c_contiguous:
            self._run_libjpeg(payload, header, region)
            return box
        # Compared with decoding, a new allocation for each frame has no measurable cost.
        image: Image = np.empty(stored, np.uint8)
        self._run_libjpeg(payload, header, image)
        turn = _UPRIGHT.get(header.orientation)
        _place(turn(image) if turn else image, region)
        return box

    def _run_libjpeg(self, payload: bytes, header: Header, out: Image) -> None:
        """Run libjpeg-turbo into `out`. Its size comes from the checked header; an image of another size is refused."""
        cmyk = header.components == 4
        buffer = np.empty((header.height, header.width, 4), np.uint8) if cmyk else out
        try:
            decoded = simplejpeg.decode_jpeg(
                payload, "CMYK" if cmyk else "RGB", buffer=buffer, strict=self._guards.strict
            )
        except (ValueError, RuntimeError) as error:
            if "memory" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise Refused("damaged", f"libjpeg, on {header.width}x{header.height} pixels: {error}") from None
        if decoded.shape != buffer.shape:
            raise Refused(
                "bad_header",
                f"libjpeg found {decoded.shape[1]}x{decoded.shape[0]} pixels where {header.width}x{header.height} "
                "were claimed",
            )
        if cmyk:
            _cmyk_to_rgb(buffer, out)

    def _decode_other(self, payload: bytes, header: Header, slot: NDArray[np.uint8]) -> Letterbox:
        """Step 2b: decode a PNG or WebP with OpenCV, which applies the orientation itself."""
        if header.format == "PNG":
            payload = essential(payload, header, self._guards.max_pixels)
        try:
            image: Any = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR_RGB)
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError(error.err) from error
            image = None
        if image is None:
            raise Refused("damaged", f"OpenCV cannot decode this {header.format} of {header.width}x{header.height}")
        box = self._fit(image.shape[1], image.shape[0])
        _place(image, _lay_out(slot, box))
        return box


def _lay_out(slot: NDArray[np.uint8], box: Letterbox) -> Image:
    """Step 3: write the padding of the canvas at the start of the slot. Return the region of the image, unfilled."""
    canvas = slot[: box.canvas_height * box.canvas_width * 3].reshape(box.canvas_height, box.canvas_width, 3)
    bottom, right = box.pad_y + box.scaled_height, box.pad_x + box.scaled_width
    canvas[: box.pad_y] = PADDING
    canvas[bottom:] = PADDING
    canvas[box.pad_y : bottom, : box.pad_x] = PADDING
    canvas[box.pad_y : bottom, right:] = PADDING
    return canvas[box.pad_y : bottom, box.pad_x : right]


def _place(image: Image, region: Image) -> None:
    """Step 4: scale the image into its region. OpenCV can write into strided rows in place if pixels are packed."""
    if image.shape == region.shape:
        region[...] = image
    else:
        cv2.resize(image, (region.shape[1], region.shape[0]), dst=region, interpolation=cv2.INTER_LINEAR)


def _cmyk_to_rgb(cmyk: NDArray[np.uint8], out: Image) -> None:
    """Convert as OpenCV does (`icvCvt_CMYK2BGR_8u_C4C3R`), with the same rounding. No camera writes CMYK."""
    ink, black = cmyk[..., :3].astype(np.uint16), cmyk[..., 3:]
    np.subtract(black, (255 - ink) * black >> 8, out=out, casting="unsafe")
