"""What is normal of each metric, and what to do when it is not. Its help says what it means."""

from __future__ import annotations

from typing import Final, NamedTuple


class Advice(NamedTuple):
    """Of one metric."""

    normal: str
    action: str


_BUNDLES: Final = "[bundles differ](runbooks/bundles-differ.md)"
_RELOAD: Final = "[not exchanged](runbooks/reload-failed.md)"
_LAG: Final = "[events wait](runbooks/lag-grows.md)"
_HELD: Final = "[held](runbooks/partition-held.md)"
_STORE: Final = "[store errors](runbooks/store-errors.md)"
_FULL: Final = "[store full](runbooks/store-full.md)"
_DAMAGE: Final = "[damage](runbooks/store-damage.md)"
_OLD: Final = "[interests grow old](runbooks/interests-late.md)"
_LIVE: Final = "[not live](runbooks/not-live.md)"
_READY: Final = "[not ready](runbooks/not-ready.md)"
_LOST: Final = "[events lost](runbooks/events-lost.md)"
_SLOW: Final = "[slow rankings](runbooks/rankings-slow.md)"
_REFUSED: Final = "[refusals](runbooks/refusals.md)"
_TRACES: Final = "[traces](operations.md#traces)"
_CALIBRATION: Final = "[miscalibrated](runbooks/miscalibrated.md)"
_QUALITY: Final = "[quality](operations.md#how-well-requests-see-their-users)"

ADVICE: Final = {
    "lifelong_worker_events": Advice(
        "nearly all applied; replayed rises after restarts, duplicate where producers repeat, "
        "covered beside a [backfill](history.md)",
        f"applied falls while producers send: {_LAG}",
    ),
    "lifelong_worker_rejects": Advice("0, or few", "[dead letters](runbooks/dead-letters.md)"),
    "lifelong_worker_ignored": Advice(
        "what of a topic is no behavior", "[formats](formats/README.md#what-is-no-behavior)"
    ),
    "lifelong_worker_registry_requests": Advice(
        "one a schema, found",
        "failed rises, or unknown: [registry](formats/README.md#a-schema-registry)",
    ),
    "lifelong_worker_batches": Advice("rises while events come", _LAG),
    "lifelong_worker_batch_seconds": Advice("as long as appends, and a little", _LAG),
    "lifelong_worker_group_events": Advice(
        "small under a light load, thousands under a heavy one", "at its largest for long: " + _LAG
    ),
    "lifelong_worker_stored_seconds": Advice(
        "99 % within 1 s", "[late events](runbooks/events-late.md)"
    ),
    "lifelong_worker_waiting_bytes": Advice(
        "far below worker.group_bytes", f"at the limit the store is what limits: {_LAG}"
    ),
    "lifelong_worker_append_seconds": Advice("as `lifelong bench store` measures", _STORE),
    "lifelong_worker_store_errors": Advice("0", _STORE),
    "lifelong_worker_store_used_ratio": Advice("below 0.8", _FULL),
    "lifelong_worker_store_reader_ratio": Advice(
        "below 0.8; a slot for each thread that reads", "[slots](runbooks/reader-slots.md)"
    ),
    "lifelong_worker_store_damage": Advice("0", _DAMAGE),
    "lifelong_worker_store_retries": Advice("0", _STORE),
    "lifelong_worker_reclusters": Advice(
        "nearly all stored; stale and gone are no faults", f"failed rises: {_OLD}"
    ),
    "lifelong_worker_recluster_seconds": Advice(
        "as `lifelong bench extract` measures", "the processors are busy with something else"
    ),
    "lifelong_worker_freshness_seconds": Advice("99 % within 5 s", _OLD),
    "lifelong_worker_due_users": Advice("near 0; high after a new bundle", _OLD),
    "lifelong_worker_due_oldest_seconds": Advice("below 5", _OLD),
    "lifelong_worker_renewal_users": Advice("rises after a new bundle, and once a day", _BUNDLES),
    "lifelong_worker_renewal_partitions": Advice("0 within hours of a new bundle", _BUNDLES),
    "lifelong_worker_expired_users": Advice(
        "0 without store.ttl_s", "more than expected: store.ttl_s is short"
    ),
    "lifelong_worker_live": Advice("1", _LIVE),
    "lifelong_worker_ready": Advice("1", _READY),
    "lifelong_worker_consumer_lag": Advice("what comes within a second", _LAG),
    "lifelong_worker_log_end_offset": Advice(
        "rises as producers send", "stands still: producers do not send"
    ),
    "lifelong_worker_behind_seconds": Advice("a few seconds at most", _LAG),
    "lifelong_worker_partitions": Advice(
        "the topics', summed over the group", f"fewer: a worker is away, {_LIVE}"
    ),
    "lifelong_worker_held_events": Advice("0, or what a transaction holds for a moment", _HELD),
    "lifelong_worker_held_seconds": Advice("below a producer's transaction timeout", _HELD),
    "lifelong_worker_unreadable_partitions": Advice(
        "0", "[unreadable](runbooks/partition-unreadable.md)"
    ),
    "lifelong_worker_lost_events": Advice("0", _LOST),
    "lifelong_worker_log_cuts": Advice("0", _LOST),
    "lifelong_worker_logs_asked_timestamp_seconds": Advice(
        "some seconds ago", "[brokers are silent](runbooks/brokers-silent.md)"
    ),
    "lifelong_worker_consumer_failures": Advice(
        "0", "the log says why; no answers: [brokers are silent](runbooks/brokers-silent.md)"
    ),
    "lifelong_worker_last_batch_timestamp_seconds": Advice("a moment ago, while events come", _LAG),
    "lifelong_worker_bundle_info": Advice("one version, that of the scorers", _BUNDLES),
    "lifelong_worker_bundle_since_timestamp_seconds": Advice("of the last rollout", _BUNDLES),
    "lifelong_worker_bundle_reloads": Advice("reloaded rises by 1 a new bundle", _RELOAD),
    "lifelong_worker_bundle_pending": Advice("0; 1 for a minute of an exchange", _RELOAD),
    "lifelong_worker_spans": Advice("none dropped", _TRACES),
    "lifelong_scorer_requests": Advice(
        "99.9 % of the rankings without 5xx", "[failing](runbooks/rankings-fail.md)"
    ),
    "lifelong_scorer_request_seconds": Advice("half within 10 ms, 99 % within 50 ms", _SLOW),
    "lifelong_scorer_candidates": Advice("what clients are known to send", _SLOW),
    "lifelong_scorer_stage_seconds": Advice("as `lifelong bench score` measures", _SLOW),
    "lifelong_scorer_queue_seconds": Advice("half within the time of a ranking", _REFUSED),
    "lifelong_scorer_deadline_misses": Advice("0", f"{_REFUSED}, or the store: {_SLOW}"),
    "lifelong_scorer_rejected": Advice("0 of the reasons that are ours", _REFUSED),
    "lifelong_scorer_history": Advice(
        "mostly interests", f"sequence: {_OLD}; none: [strangers](runbooks/strangers-rise.md)"
    ),
    "lifelong_scorer_store_damage": Advice("0", _DAMAGE),
    "lifelong_scorer_degraded": Advice("0", "[degraded](runbooks/degraded.md)"),
    "lifelong_scorer_newer_behaviors": Advice("below 64 at the mean", _OLD),
    "lifelong_scorer_unknown_items": Advice(
        "a small share of the candidates", "[unknown](runbooks/unknown-items-rise.md)"
    ),
    "lifelong_scorer_samples": Advice("mostly measured", _QUALITY),
    "lifelong_scorer_sample_seconds": Advice("milliseconds", _QUALITY),
    "lifelong_scorer_sampled_ratio": Advice(
        "hit_rate 1", f"[misses](runbooks/search-misses.md), {_QUALITY}"
    ),
    "lifelong_scorer_sampled_nats": Advice("what `lifelong evaluate` printed", _QUALITY),
    "lifelong_scorer_outcomes": Advice(
        "rises as items are shown, where clients tell outcomes; hardly any of other bundles",
        "other rises: clients tell no version, or tell the scorers of another bundle",
    ),
    "lifelong_scorer_outcomes_positive": Advice(
        "within a tenth of what was predicted, over a day", _CALIBRATION
    ),
    "lifelong_scorer_outcomes_predicted": Advice("as many as were positive", _CALIBRATION),
    "lifelong_scorer_inflight": Advice("few a process", _REFUSED),
    "lifelong_scorer_ready": Advice("1", _READY),
    "lifelong_scorer_last_ranking_timestamp_seconds": Advice(
        "seconds ago, where there is traffic", _READY
    ),
    "lifelong_scorer_store_answers": Advice("1", "[degraded](runbooks/degraded.md)"),
    "lifelong_scorer_store_empty": Advice("0", "[no users](runbooks/store-empty.md)"),
    "lifelong_scorer_certificate_expiry_timestamp_seconds": Advice(
        "weeks ahead; 0 without TLS", "[certificate expires](runbooks/certificate-expires.md)"
    ),
    "lifelong_scorer_spans": Advice("none dropped", _TRACES),
    "lifelong_scorer_bundle_info": Advice("one version, that of the workers", _BUNDLES),
    "lifelong_scorer_bundle_since_timestamp_seconds": Advice("of the last rollout", _BUNDLES),
    "lifelong_scorer_bundle_reloads": Advice(
        "reloaded rises by 1 a new bundle and process", _RELOAD
    ),
    "lifelong_scorer_bundle_pending": Advice("0; 1 for a minute of an exchange", _RELOAD),
}
"""By the metric's name, without the endings of its series."""
