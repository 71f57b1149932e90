"""How good CTRs are on requests, the two rules a model must beat, and bundles evaluated plainly.

`score_stored` and `evaluate_offline` state serving's arithmetic a second time, in plain numpy and
onnxruntime and without `scorer`, so that the service can be held against them. No torch here: the
demo evaluates too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from infra.arrays import F32, I32, I64, U64, Array
from infra.errors import BundleCorrupt, BundleIncompatible, BundleMissing, one_line
from models.bundle import (
    FORMAT,
    GOLDEN,
    GOLDEN_TOLERANCE,
    MANIFEST,
    SCORER,
    Bundle,
    GoldenRequest,
    Manifest,
    make_session,
)
from models.data.interactions import Interactions
from models.data.live import LiveSplit
from models.data.requests import Requests, Sequences
from models.data.splits import Split
from models.features import EMPTY_HISTORY, History, cross_features, user_features
from models.measures import predictions as metrics
from models.reference.kmeans import cluster

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Quality:
    """How well scores rank each request's positive."""

    auc: float
    """Over all (request, candidate) pairs pooled: chance that a positive outranks a negative."""
    gauc: float
    """The same within each request, averaged over requests."""
    hit10: float
    """Share of requests whose positive is among the first ten; ties count at their expectation."""

    def named(self, suffix: str) -> dict[str, float]:
        """The measures as a flat dict: {"auc_<suffix>": ...}."""
        return {f"{name}_{suffix}": value for name, value in asdict(self).items()}


def ranking_quality(scores: npt.NDArray[np.floating], positive: int = 0) -> Quality:
    """Quality of scores [R, B] where candidate ``positive`` of each request is the positive one.

    >>> ranking_quality(np.array([[0.9, 0.1, 0.2], [0.5, 0.5, 0.1]])).gauc
    0.875
    """
    labels = np.zeros(scores.shape, bool)
    labels[:, positive] = True
    requests = np.repeat(np.arange(len(scores)), scores.shape[1])
    return Quality(
        auc=metrics.auc(scores, labels),
        gauc=metrics.gauc(scores, labels, requests),
        hit10=metrics.hit_rate(scores, labels, k=10),
    )


@dataclass(frozen=True)
class Measures:
    """What CTRs are worth on the requests of a protocol; not a number where it does not apply."""

    auc: float
    """Over all (request, candidate) pairs pooled."""
    gauc: float
    """Within each user, weighted by impressions."""
    log_loss: float
    """Nats."""
    calibration_error: float
    """Expected distance of predicted and observed CTR."""
    calibration_ratio: float
    """Predicted over observed positives."""
    hit10: float
    """Share of positives among the first ten; needs more than ten candidates a request."""

    def named(self) -> dict[str, float]:
        """The measures that apply, by name."""
        return {name: value for name, value in asdict(self).items() if not np.isnan(value)}


def measure(ctrs: F32, requests: Requests, users: I32) -> Measures:
    """Measures of CTRs f32[R, B] on requests of users i32[R]."""
    labels, weights = requests.labels, requests.weights
    owner = np.broadcast_to(users[:, None], labels.shape)
    places = ctrs.shape[1] > 10
    return Measures(
        auc=metrics.auc(ctrs, labels, weights),
        gauc=metrics.gauc(ctrs, labels, owner, weights),
        log_loss=metrics.log_loss(ctrs, labels, weights),
        calibration_error=metrics.calibration_error(ctrs, labels, weights),
        calibration_ratio=metrics.calibration_ratio(ctrs, labels, weights),
        hit10=metrics.hit_rate(ctrs, labels, 10, weights) if places else metrics.NAN,
    )


def measure_slices(
    ctrs: F32, requests: Requests, split: Split | LiveSplit, parts: int = 5
) -> dict[str, list[metrics.Slice]]:
    """Measures by what may matter to a request, each cut into about even parts.

    Args:
        ctrs: f32[R, B].
        requests: a part of ``split``.
        split: where they come from, papers' protocols and the live one alike.
        parts: slices of each value, at most.

    Returns:
        "history": behaviors that the request sees; "popularity": of the item that was chosen (of
        the only candidate where there is one), per million in the training part; "staleness":
        behaviors since the last clustering.
    """
    interactions = split.interactions
    rows = np.arange(len(interactions.item_ids), dtype=np.int32)
    popularity = interactions.popularity(rows, split.n_training)[requests.candidates]
    if popularity.shape[1] > 1:  # a list stays whole, or its positive would have nothing to beat
        chosen = requests.labels * requests.weights
        popularity = (popularity * chosen).sum(1, keepdims=True) / chosen.sum(1, keepdims=True)
    values: dict[str, Array] = {
        "history": split.history(requests),
        "popularity": popularity[:, 0],
        "staleness": requests.cut - requests.as_of,
    }
    users = split.users(requests)
    return {
        name: metrics.slices(
            ctrs,
            requests.labels,
            value,
            metrics.edges_of(value, parts),
            users,
            requests.weights,
        )
        for name, value in values.items()
    }


def popularity_scores(interactions: Interactions, sequences: Sequences, requests: Requests) -> F32:
    """f32[R, B]: popularity up to the request's own moment, which is fresher than a bundle's."""
    position = sequences.position[requests.cut][:, None]
    return interactions.popularity(requests.candidates, position)


def repeat_counts(sequences: Sequences, requests: Requests) -> F32:
    """f32[R, B]: how often the user had bought each candidate, over their whole past."""
    counts = np.zeros(requests.candidates.shape, np.float32)
    for r, cut in enumerate(requests.cut):
        past = sequences.items[sequences.start[cut] : cut]
        counts[r] = (requests.candidates[r][:, None] == past).sum(1)
    return counts


def baseline_qualities(
    interactions: Interactions, sequences: Sequences, requests: Requests
) -> dict[str, float]:
    """Popularity; bought before, most often first; and the latter with ties by popularity."""
    popularity = popularity_scores(interactions, sequences, requests).astype(np.float64)
    repeats = repeat_counts(sequences, requests).astype(np.float64)
    return {
        **ranking_quality(popularity).named("popularity"),
        **ranking_quality(repeats).named("repeat"),
        **ranking_quality(repeats + popularity / 1e7).named("repeat_popularity"),
    }


@dataclass(frozen=True)
class StoredUser:
    """What is stored of a user: an interest state, and the behaviors newer than it."""

    interests: F32
    """f32[K, d]."""
    sizes: npt.NDArray[np.unsignedinteger]
    """Unsigned [K]: behaviors of each cluster; 0: empty."""
    recent: U64
    """u64[<= M]: item keys of the newest behaviors that the state covers, newest last."""
    history: History
    """Over the last L behaviors that the state covers."""
    newer: U64
    """u64: item keys of the behaviors newer than the state, oldest first."""
    newer_times: I64
    """i64, ms since epoch: their event times."""
    count: int
    """Behaviors of the user ever applied, the newer ones included."""
    last_time_ms: int
    """Event time of the newest behavior, ms since epoch."""


def score_stored(
    bundle: Bundle,
    session: onnxruntime.InferenceSession,
    user: StoredUser | None,
    candidates: U64,
    now_ms: int,
) -> F32:
    """CTRs f32[B] of candidates (item keys u64[B]) for a stored user, or (None) for a stranger."""
    rows = bundle.rows(candidates)
    M, d = bundle.manifest.M, bundle.manifest.d
    if user is None:
        interests, mask = np.zeros((1, d), np.float32), np.zeros(1, np.float32)
        recent, recent_mask = interests, mask
        history, features = EMPTY_HISTORY, user_features(0, 0, now_ms)
    else:
        newer = bundle.embeddings[bundle.rows(user.newer)]
        interests = np.concatenate([user.interests, newer])
        mask = np.concatenate([user.sizes, np.ones(len(newer))]).astype(np.float32)
        keys = np.concatenate([user.recent, user.newer])[-M:]
        recent = bundle.embeddings[bundle.rows(keys)]
        recent_mask = np.ones(len(keys), np.float32)
        if not len(keys):
            recent, recent_mask = np.zeros((1, d), np.float32), np.zeros(1, np.float32)
        history = add_to_history(user.history, user.newer, user.newer_times)
        features = user_features(user.count, user.last_time_ms, now_ms)
    feed = {
        "interests": interests.astype(np.float32),
        "interest_mask": mask,
        "recent": recent,
        "recent_mask": recent_mask,
        "user": features,
        "candidates": bundle.embeddings[rows],
        "cross": cross_features(candidates, bundle.popularity[rows], history, now_ms),
    }
    (ctrs,) = session.run(None, feed)
    return np.asarray(ctrs, np.float32)


def add_to_history(history: History, item_keys: U64, times_ms: I64) -> History:
    """A history with further behaviors counted in; a repeated item keeps its later time."""
    if not len(item_keys):
        return history
    keys = np.concatenate([history.item_keys, item_keys])
    counts = np.concatenate([history.counts.astype(np.int64), np.ones(len(item_keys), np.int64)])
    last = np.concatenate([history.last.astype(np.int64), times_ms // 1000])
    distinct, place = np.unique(keys, return_inverse=True)
    total = np.zeros(len(distinct), np.uint32)
    np.add.at(total, place, counts.astype(np.uint32))
    latest = np.zeros(len(distinct), np.uint32)
    np.maximum.at(latest, place, last.astype(np.uint32))
    return History(distinct, total, latest)


def extract_plainly(
    bundle: Bundle, item_keys: U64, times_ms: I64, count: int | None = None
) -> StoredUser:
    """A user's state by a cold clustering of their exact sequence (oldest first), nothing newer.

    Args:
        count: behaviors ever applied, where ``item_keys`` is not all of them.
    """
    manifest = bundle.manifest
    kept = item_keys[-manifest.L :]
    history = add_to_history(EMPTY_HISTORY, kept, times_ms[-manifest.L :])
    interests = np.zeros((manifest.K, manifest.d), np.float32)
    sizes = np.zeros(manifest.K, np.uint32)
    rows, first, counts = np.unique(bundle.rows(kept), return_index=True, return_counts=True)
    order = np.argsort(first)
    rows, weights = rows[order], counts[order].astype(np.float32)
    projected = bundle.projected[rows]
    labels, centers = cluster(projected, weights, manifest.K, manifest.T)
    for k in range(len(centers)):
        inside = labels == k
        if inside.any():
            interests[k] = pool(
                bundle.embeddings[rows[inside]],
                projected[inside],
                centers[k],
                weights[inside],
                manifest.scale,
            )
            sizes[k] = int(weights[inside].sum())
    return StoredUser(
        interests=interests,
        sizes=sizes,
        recent=kept[-manifest.M :],
        history=history,
        newer=np.empty(0, np.uint64),
        newer_times=np.empty(0, np.int64),
        count=len(item_keys) if count is None else count,
        last_time_ms=int(times_ms[-1]) if len(times_ms) else 0,
    )


def pool(embeddings: F32, projected: F32, center: F32, counts: F32, scale: float) -> F32:
    """ENCODE, Eq. 8 for one cluster: embeddings [n, d], projected [n, m], center [m] -> [d]."""
    norms = np.linalg.norm(projected, axis=1) * np.linalg.norm(center)
    scores = projected @ center / np.maximum(norms, 1e-12) * scale
    weights = counts * np.exp(scores - scores.max())
    pooled: F32 = ((weights / weights.sum()) @ embeddings).astype(np.float32)
    return pooled


@dataclass(frozen=True)
class OfflineRequest:
    """One request to evaluate; its first candidate is the positive."""

    user: StoredUser | None
    """None: a stranger."""
    candidates: U64
    """u64[B]: item keys."""
    now_ms: int
    """Time of the request, ms since epoch."""


@dataclass(frozen=True)
class OfflineEvaluation:
    """What a bundle gives on stored states."""

    ctrs: list[F32]
    """f32[B] per request."""
    quality: Quality


def evaluate_offline(bundle: Bundle, requests: Iterable[OfflineRequest]) -> OfflineEvaluation:
    """Score requests (all of as many candidates) with a bundle, and measure the ranking."""
    ctrs = list(score_requests(bundle, requests))
    return OfflineEvaluation(ctrs, ranking_quality(np.stack(ctrs)))


def score_requests(bundle: Bundle, requests: Iterable[OfflineRequest]) -> Iterator[F32]:
    """CTRs f32[B] of each request by a bundle's own graphs."""
    session = bundle.scorer_session()
    for request in requests:
        yield score_stored(bundle, session, request.user, request.candidates, request.now_ms)


def sequence_requests(
    bundle: Bundle,
    sequences: Sequences,
    requests: Requests,
    item_keys: U64,
) -> Iterable[OfflineRequest]:
    """Requests with states extracted plainly as of each request's clustering.

    Args:
        item_keys: u64[n + 1], keys of the interactions' items (`Interactions.item_ids`).
    """
    now = sequences.times[requests.cut] if requests.times is None else requests.times
    for cut, as_of, candidates, now_s in zip(
        requests.cut, requests.as_of, requests.candidates, now, strict=True
    ):
        start = int(sequences.start[cut])
        keys = item_keys[sequences.items[start:cut]]
        times_ms = sequences.times[start:cut] * 1000
        covered = int(as_of) - start
        user = None
        if len(keys):
            state = extract_plainly(bundle, keys[:covered], times_ms[:covered])
            user = StoredUser(
                interests=state.interests,
                sizes=state.sizes,
                recent=state.recent,
                history=state.history,
                newer=keys[covered:],
                newer_times=times_ms[covered:],
                count=len(keys),
                last_time_ms=int(times_ms[-1]),
            )
        yield OfflineRequest(user, item_keys[candidates], int(now_s) * 1000)


@dataclass(frozen=True)
class GoldenChecks:
    """A bundle of any method whose files are whole, and whose graph does as it did."""

    requests: int
    """Golden requests repeated."""
    max_difference: float
    """Largest difference from their CTRs."""


def repeat_golden(path: Path) -> tuple[Manifest, GoldenChecks]:
    """Check a bundle's files by their sha256 and repeat its golden requests; of any method.

    Raises:
        BundleMissing: there is no bundle at ``path``.
        BundleCorrupt: a file is absent, altered or unreadable.
        BundleIncompatible: the format is another one, the graph does not run, or it differs by
            more than GOLDEN_TOLERANCE.
    """
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
        files = {name: (path / name).read_bytes() for name in manifest.files}
        golden = msgspec.msgpack.decode(files[GOLDEN], type=list[GoldenRequest])
        model = files[SCORER]
    except FileNotFoundError as error:
        name = Path(error.filename).name
        kind = BundleMissing if name == MANIFEST else BundleCorrupt
        raise kind(f"{path / name} is absent; export or copy the bundle again") from error
    except OSError as error:
        raise BundleMissing(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, KeyError) as error:
        raise BundleCorrupt(f"{path} is no bundle: {one_line(error)}; export again") from error
    if manifest.format != FORMAT:
        raise BundleIncompatible(
            f"{path / MANIFEST} has format {manifest.format}, this version reads {FORMAT}; "
            "export the bundle again"
        )
    for name, entry in manifest.files.items():
        if hashlib.sha256(files[name]).hexdigest() != entry.sha256:
            raise BundleCorrupt(
                f"{path / name} does not match its sha256 in {MANIFEST}; "
                "export or copy the bundle again"
            )
    return manifest, GoldenChecks(len(golden), _golden_difference(path / SCORER, model, golden))


def _golden_difference(path: Path, model: bytes, golden: list[GoldenRequest]) -> float:
    worst = 0.0
    try:
        session = make_session(model)
        # A method that reads nothing of an input leaves it out of its graph.
        inputs = {node.name for node in session.get_inputs()}
        for request in golden:
            feed = {name: values for name, values in request.feed().items() if name in inputs}
            (ctr,) = session.run(None, feed)
            # NumPy's maximum, unlike max, does not lose a NaN on the way.
            difference = np.abs(ctr - request.ctr.array()).max(initial=0.0)
            worst = float(np.maximum(worst, difference))
    except Exception as error:  # onnxruntime raises its own and plain exceptions alike
        raise BundleIncompatible(
            f"{path} cannot be run: {one_line(error, 200)}; export the bundle again"
        ) from error
    if not worst <= GOLDEN_TOLERANCE:
        raise BundleIncompatible(
            f"{path} differs by {worst:.2g} from {GOLDEN}; export the bundle again"
        )
    return worst
