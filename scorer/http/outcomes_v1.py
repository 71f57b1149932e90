"""``POST /v1/outcomes``: what became of items that were shown, counted for the metrics.

Nothing is kept of a request: a client sends back the CTRs that it was answered, so that any process
of any scorer can count them, whichever ranked.
"""

from __future__ import annotations

import msgspec
import numpy as np

from infra.metrics import CTR_BIN_LABELS, CTR_BINS, OTHER_BUNDLE, ScorerMetrics
from scorer.limits import decode_json
from scorer.messages import OutcomesAnswer, OutcomesRequest


class OutcomesV1:
    """Counts outcomes: the body of a request becomes that of its answer."""

    def __init__(self, metrics: ScorerMetrics) -> None:
        self._metrics = metrics
        self._decoder = msgspec.json.Decoder(OutcomesRequest)
        self._encoder = msgspec.json.Encoder()

    def answer(self, body: bytes) -> bytes:
        """Count what a body tells.

        Raises:
            RequestError: the body is malformed or exceeds a limit; names the field.
        """
        told = decode_json(self._decoder, body)
        # Labels must be few, whatever clients send.
        version = OTHER_BUNDLE
        if told.version is not None and told.version in self._metrics.versions:
            version = told.version
        ctrs = np.array([one.ctr for one in told.outcomes])
        positive = np.array([one.positive for one in told.outcomes], np.float64)
        bins = np.searchsorted(CTR_BINS, ctrs)
        for counter, amounts in (
            (self._metrics.outcomes, None),
            (self._metrics.outcomes_positive, positive),
            (self._metrics.outcomes_predicted, ctrs),
        ):
            sums = np.bincount(bins, amounts, len(CTR_BINS)).tolist()
            for label, amount in zip(CTR_BIN_LABELS, sums, strict=True):
                if amount:
                    counter.labels(version, label).inc(amount)
        return self._encoder.encode(OutcomesAnswer(len(told.outcomes), version))
