"""Stops the process when many frames in a row are rejected.

In that case a misconfigured model or codec is more probable than that many bad frames.
"""

from __future__ import annotations

import structlog

from consumer.errors import RejectRateError
from consumer.observability.rate_limited_log import SparingLog
from consumer.types import Clock, Frame, Outcome, Rejected

_log = structlog.get_logger(__name__)


class RejectionBreaker:
    """Counts consecutive rejections, and logs each of them at a limited rate.

    Args:
        max_consecutive: Number of consecutive rejections that stops the process, see `DeadLetterConfig`. 0: no limit.
        clock: Monotonic seconds, for the rate limit of the log.
    """

    def __init__(self, max_consecutive: int, clock: Clock) -> None:
        self._max_consecutive = max_consecutive
        self._log = SparingLog(_log, clock)
        self._in_a_row = 0

    def judge(self, frame: Frame, outcome: Outcome) -> None:
        """Count an outcome that was written. An outcome other than a rejection resets the count.

        Raises:
            RejectRateError: The number of consecutive rejections has reached the limit.
        """
        if not isinstance(outcome, Rejected):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._log.warning(
            "frame rejected",
            source=frame.source_id,
            frame=frame.frame_id,
            input=f"{frame.receipt.partition}@{frame.receipt.offset}",
            stage=outcome.stage,
            reason=outcome.reason,
            detail=outcome.detail,
        )
        if 0 < self._max_consecutive <= self._in_a_row:
            raise RejectRateError(
                f"{self._in_a_row} frames in a row were rejected, the last for {outcome.reason!r} "
                f"({outcome.detail}); a misconfigured model or codec is likelier than bad frames. Look at "
                "them with 'sluice dlq list'; the limit is dead_letter.max_consecutive"
            )
