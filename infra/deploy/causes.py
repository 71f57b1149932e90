"""Alerts on causes: what is broken, or soon will be, whether an objective is missed yet or not.

Figures of settings are their defaults; whoever has set others sets them here, too.
"""

from __future__ import annotations

from typing import Final

from infra.deploy.alerts import Alert, Case
from infra.deploy.objectives import RANKINGS
from infra.metrics import OTHER_BUNDLE
from infra.settings import WorkerSettings
from infra.store import LOW

WORKER_JOB: Final = "lifelong-worker"
SCORER_JOB: Final = "lifelong-scorer"
"""Names of the jobs that Prometheus scrapes."""

HELD_S: Final = WorkerSettings().held_max_s

CERTIFICATE_S: Final = 7 * 86_400
"""Time before the end of a certificate at which it should have been renewed: what renews by itself
does so at two thirds of its life."""

CLIENTS: Final = (
    "malformed|unknown_model|content_type|body_too_large|slow_body|unknown_items"
    "|unauthenticated|forbidden|rate"
)
"""Reasons for which a request is turned away that are its sender's."""

MISCALIBRATED: Final = 2
"""Times by which CTRs are too high or too low from which on it is an alert."""

ENOUGH_OUTCOMES: Final = 200
"""Positive outcomes, those that came and those that were predicted together, from which on chance
does not make CTRs seem as wrong as that."""


def predicted_over_observed(by: str, within: str = "") -> str:
    """How many outcomes were to be positive for each that was, over hours: they come late."""
    return (
        f"sum by ({by}) (rate(lifelong_scorer_outcomes_predicted_total{within}[6h]))"
        f" / sum by ({by}) (rate(lifelong_scorer_outcomes_positive_total{within}[6h]))"
    )


CALIBRATION: Final = "lifelong:calibration:ratio_rate6h"
CALIBRATION_ERROR: Final = "lifelong:calibration_error:ratio_rate6h"

SHARES: Final = {
    "lifelong:lag:sum": "sum(max by (topic, partition) (lifelong_worker_consumer_lag))",
    "lifelong:strangers:ratio_rate1h": (
        'sum(rate(lifelong_scorer_history_total{kind="none"}[1h]))'
        " / sum(rate(lifelong_scorer_history_total[1h]))"
    ),
    "lifelong:unknown_items:ratio_rate1h": (
        "sum(rate(lifelong_scorer_unknown_items_total[1h]))"
        " / sum(rate(lifelong_scorer_candidates_sum[1h]))"
    ),
    "lifelong:dead_letters:ratio_rate10m": (
        "sum by (reason) (rate(lifelong_worker_rejects_total[10m]))"
        " / on () group_left () sum(rate(lifelong_worker_events_total[10m]))"
    ),
    "lifelong:refused:ratio_rate5m": (
        f'sum by (reason) (rate(lifelong_scorer_rejected_total{{reason!~"{CLIENTS}"}}[5m]))'
        f" / on () group_left () sum(rate(lifelong_scorer_requests_total{{{RANKINGS}}}[5m]))"
    ),
    "lifelong:degraded:ratio_rate5m": (
        "sum(rate(lifelong_scorer_degraded_total[5m]))"
        " / sum(rate(lifelong_scorer_history_total[5m]))"
    ),
    CALIBRATION: predicted_over_observed("version"),
    # As `models.measures.predictions` has it: the mean distance of bins, by outcomes in them.
    CALIBRATION_ERROR: (
        "sum by (version) (abs("
        "sum by (version, bin) (rate(lifelong_scorer_outcomes_predicted_total[6h]))"
        " - sum by (version, bin) (rate(lifelong_scorer_outcomes_positive_total[6h]))))"
        " / sum by (version) (rate(lifelong_scorer_outcomes_total[6h]))"
    ),
}
"""Recorded shares, by name."""

_UP: Final = f'up{{job="{WORKER_JOB}",instance="w1"}}'
_SCORER_UP: Final = f'up{{job="{SCORER_JOB}",instance="s1"}}'
_STARTED: Final = "process_start_time_seconds"
_ALL: Final = f'{_STARTED}{{job=~"lifelong-.*"}}'
STARTS: Final = (
    f"(sum by (job, instance) (changes({_ALL}[15m]))"
    f" + count by (job, instance) (count_over_time({_ALL}[15m]))"
    f" - count by (job, instance) ({_ALL})) / count by (job, instance) ({_ALL})"
)
"""How often the processes of an instance were started within a quarter of an hour. One alone starts
its series again, each of several has a series of its own (pid); at the mean of them, since an
instance of several that is started once starts all of them."""

_ONE: Final = {"instance": "w1"}
_RISING: Final = "{share} > 0.1 and {share} > 2 * ({share} offset 1d)"


def _process(pid: int) -> str:
    """When a process of a scorer of several was started."""
    return f'{_STARTED}{{job="{SCORER_JOB}",instance="s1",pid="{pid}"}}'


def _rising(share: str) -> str:
    return _RISING.format(share=share)


CAUSES: Final = (
    Alert(
        "LifelongNoWorker",
        f'(count(up{{job="{WORKER_JOB}"}} == 1) or vector(0)) == 0',
        "not-live",
        "page",
        "No worker answers Prometheus: events wait in Kafka, and interests grow old.",
        ("Overview", "Processes up"),
        "Start workers; what they end with is the last line of their log.",
        Case({_UP: "1x5 0x10"}, "10m"),
        Case({_UP: "0x5 1x10"}, "10m"),
        "2m",
    ),
    Alert(
        "LifelongNoScorer",
        f'(count(up{{job="{SCORER_JOB}"}} == 1) or vector(0)) == 0',
        "not-live",
        "page",
        "No scorer answers Prometheus: nobody gets rankings.",
        ("Overview", "Processes up"),
        "Start scorers; what they end with is the last line of their log.",
        Case({_SCORER_UP: "1x5 0x10"}, "10m"),
        Case({_SCORER_UP: "0x5 1x10"}, "10m"),
        "2m",
    ),
    Alert(
        "LifelongProcessDown",
        f'up{{job=~"{WORKER_JOB}|{SCORER_JOB}"}} == 0',
        "not-live",
        "ticket",
        "A worker or a scorer does not answer Prometheus; others do its work.",
        ("Overview", "Processes up"),
        "Look at the log of that instance.",
        Case({_UP: "0x20", _SCORER_UP: "1x20"}, "15m", {"job": WORKER_JOB, **_ONE}),
        Case({_UP: "0x5 1x20", _SCORER_UP: "1x20"}, "15m"),
        "5m",
    ),
    Alert(
        "LifelongWorkerNotLive",
        "lifelong_worker_live == 0",
        "not-live",
        "page",
        "Nothing moves in a worker: its partitions wait until it is started again.",
        ("Stream", "Workers live and ready"),
        "Start it again, unless what supervises it has done so by now.",
        Case({'lifelong_worker_live{instance="w1"}': "0x10"}, "8m", _ONE),
        Case({'lifelong_worker_live{instance="w1"}': "0 1x10"}, "8m"),
        "2m",
    ),
    Alert(
        "LifelongWorkerNotReady",
        "lifelong_worker_ready == 0",
        "not-ready",
        "page",
        "A worker takes no events, or some part of it stands still.",
        ("Stream", "Workers live and ready"),
        "Ask the worker why: curl HOST:9101/health/ready.",
        Case({'lifelong_worker_ready{instance="w1"}': "0x10"}, "8m", _ONE),
        Case({'lifelong_worker_ready{instance="w1"}': "0x3 1x10"}, "8m"),
        "5m",
    ),
    Alert(
        "LifelongScorerNotReady",
        "lifelong_scorer_ready == 0",
        "not-ready",
        "page",
        "A scorer, or one of its processes, takes no requests.",
        ("Scorer", "Scorers ready"),
        "Ask the scorer why: curl HOST:8080/v2/health/ready.",
        Case({'lifelong_scorer_ready{instance="s1"}': "0x10"}, "8m", {"instance": "s1"}),
        Case({'lifelong_scorer_ready{instance="s1"}': "0x3 1x10"}, "8m"),
        "5m",
    ),
    Alert(
        "LifelongCrashLoop",
        f"{STARTS} > 2",
        "crash-loop",
        "page",
        "Processes were started three times or more, at the mean, within a quarter of an hour.",
        ("Overview", "Starts"),
        "Read the last lines of its log before each start.",
        Case(
            {f'{_STARTED}{{job="{WORKER_JOB}",instance="w1"}}': "0x4 200x2 400x2 600x2 800x10"},
            "12m",
            {"job": WORKER_JOB, **_ONE},
        ),
        Case(
            {
                f'{_STARTED}{{job="{WORKER_JOB}",instance="w1"}}': "0x4 200x20",
                **{_process(pid): "0x4 stale" for pid in (1, 2, 3)},
                **{_process(pid): "_x5 300x20" for pid in (4, 5, 6)},
            },
            "12m",
        ),
    ),
    Alert(
        "LifelongLagGrows",
        "lifelong:lag:sum > 10000 and deriv(lifelong:lag:sum[15m]) > 0",
        "lag-grows",
        "ticket",
        "More events come than workers store: rankings fall behind.",
        ("Stream", "Lag by partition"),
        "See what limits the workers: the store, their processors, or a partition that waits.",
        Case(
            {'lifelong_worker_consumer_lag{topic="behaviors",partition="0"}': "20000+1000x60"},
            "40m",
        ),
        Case(
            {'lifelong_worker_consumer_lag{topic="behaviors",partition="0"}': "90000-1000x60"},
            "40m",
        ),
        "15m",
    ),
    Alert(
        "LifelongEventsBehind",
        "max by (topic, partition) (lifelong_worker_behind_seconds) > 60",
        "lag-grows",
        "page",
        "Events of a partition have waited for more than a minute: rankings do not count them.",
        ("Stream", "Behind by partition"),
        "See whether one partition waits, or all of them do.",
        Case(
            {'lifelong_worker_behind_seconds{topic="behaviors",partition="3"}': "0+60x20"},
            "15m",
            {"topic": "behaviors", "partition": "3"},
        ),
        Case(
            {'lifelong_worker_behind_seconds{topic="behaviors",partition="3"}': "90x3 2x20"}, "15m"
        ),
        "5m",
    ),
    Alert(
        "LifelongWorkerStuck",
        "sum by (instance) (lifelong_worker_consumer_lag) - sum by (instance)"
        " (lifelong_worker_held_events) > 0"
        " and on (instance) rate(lifelong_worker_batches_total[5m]) == 0",
        "lag-grows",
        "page",
        "A worker has events that it could store, and has stored nothing for five minutes.",
        ("Stream", "Transactions"),
        "Ask the worker why: curl HOST:9101/health/ready.",
        Case(
            {
                'lifelong_worker_consumer_lag{instance="w1",partition="0"}': "50x20",
                'lifelong_worker_held_events{instance="w1",partition="0"}': "0x20",
                'lifelong_worker_batches_total{instance="w1"}': "7x20",
            },
            "15m",
            _ONE,
        ),
        Case(
            {
                'lifelong_worker_consumer_lag{instance="w1",partition="0"}': "50x20",
                'lifelong_worker_held_events{instance="w1",partition="0"}': "50x20",
                'lifelong_worker_batches_total{instance="w1"}': "7x20",
            },
            "15m",
        ),
        "5m",
    ),
    Alert(
        "LifelongPartitionHeld",
        f"max by (topic, partition) (lifelong_worker_held_seconds) > {HELD_S:g}",
        "partition-held",
        "page",
        "A producer's transaction is open and keeps everything behind it from being read.",
        ("Stream", "Held by open transactions"),
        "Find the producer and end it, or abort its transaction.",
        Case(
            {'lifelong_worker_held_seconds{topic="behaviors",partition="1"}': "0+60x10"},
            "5m",
            {"topic": "behaviors", "partition": "1"},
        ),
        Case({'lifelong_worker_held_seconds{topic="behaviors",partition="1"}': "0 60 0x10"}, "5m"),
    ),
    Alert(
        "LifelongPartitionUnreadable",
        "lifelong_worker_unreadable_partitions > 0",
        "partition-unreadable",
        "page",
        "A partition cannot be read: a damaged batch, or a broker that refuses; the others go on.",
        ("Stream", "Unreadable partitions"),
        "Ask the worker which offset it is: curl HOST:9101/health/ready.",
        Case({'lifelong_worker_unreadable_partitions{instance="w1"}': "1x10"}, "8m", _ONE),
        Case({'lifelong_worker_unreadable_partitions{instance="w1"}': "1x2 0x10"}, "8m"),
        "2m",
    ),
    Alert(
        "LifelongBrokersSilent",
        "time() - lifelong_worker_logs_asked_timestamp_seconds > 120"
        " and lifelong_worker_logs_asked_timestamp_seconds > 0",
        "brokers-silent",
        "page",
        "For two minutes no broker has told how far the logs go: lag and losses are not known.",
        ("Stream", "Brokers last told"),
        "See whether Kafka is up: lifelong check.",
        Case({'lifelong_worker_logs_asked_timestamp_seconds{instance="w1"}': "60x10"}, "5m", _ONE),
        Case({'lifelong_worker_logs_asked_timestamp_seconds{instance="w1"}': "0+60x10"}, "5m"),
    ),
    Alert(
        "LifelongDeadLetters",
        "lifelong:dead_letters:ratio_rate10m > 0.01",
        "dead-letters",
        "ticket",
        "More than 1 % of the events are refused, for one reason: those behaviors count nowhere.",
        ("Stream", "Dead letters by reason"),
        "Look at the dead-letter topic, and find which producer changed its format.",
        Case(
            {
                'lifelong_worker_rejects_total{reason="not_json"}': "0+5x60",
                'lifelong_worker_events_total{outcome="applied"}': "0+100x60",
            },
            "30m",
            {"reason": "not_json"},
        ),
        Case(
            {
                'lifelong_worker_rejects_total{reason="not_json"}': "0+5x60",
                'lifelong_worker_events_total{outcome="applied"}': "0+1000x60",
            },
            "30m",
        ),
        "10m",
    ),
    Alert(
        "LifelongEventsLost",
        "sum by (cause) (increase(lifelong_worker_lost_events_total[15m])) > 0",
        "events-lost",
        "page",
        "Events are gone from Kafka that nobody had read; none may be lost.",
        ("Stream", "Lost events"),
        "Read which partitions and offsets the log names.",
        Case(
            {'lifelong_worker_lost_events_total{cause="retention"}': "0x5 12x10"},
            "10m",
            {"cause": "retention"},
        ),
        Case({'lifelong_worker_lost_events_total{cause="retention"}': "12x20"}, "10m"),
    ),
    Alert(
        "LifelongLogCut",
        "sum(increase(lifelong_worker_log_cuts_total[15m])) > 0",
        "events-lost",
        "ticket",
        "A log ends below what the store was fed: Kafka has lost records, which the store keeps.",
        ("Stream", "Lost events"),
        "Look at the brokers: an unclean election, a lost disk.",
        Case({"lifelong_worker_log_cuts_total": "0x5 1x10"}, "10m"),
        Case({"lifelong_worker_log_cuts_total": "1x20"}, "10m"),
    ),
    Alert(
        "LifelongStoreErrors",
        "sum by (error, code) (rate(lifelong_worker_store_errors_total[5m])) > 0.1",
        "store-errors",
        "page",
        "Operations of the store fail: events wait in Kafka until they succeed.",
        ("Store", "Errors by class and code"),
        "Read the error in the log, and ask: lifelong check.",
        Case(
            {'lifelong_worker_store_errors_total{error="StoreUnavailable",code="9"}': "0+12x20"},
            "15m",
            {"error": "StoreUnavailable", "code": "9"},
        ),
        Case(
            {'lifelong_worker_store_errors_total{error="StoreUnavailable",code="9"}': "0+1x20"},
            "15m",
        ),
        "5m",
    ),
    Alert(
        "LifelongStoreNearlyFull",
        f"max(lifelong_worker_store_used_ratio) > {LOW:g}",
        "store-full",
        "ticket",
        f"The store has used more than {LOW:.0%} of its room.",
        ("Store", "Room used"),
        "Give it more room, or set store.ttl_s.",
        Case({"lifelong_worker_store_used_ratio": "0.85x20"}, "15m"),
        Case({"lifelong_worker_store_used_ratio": "0.79x20"}, "15m"),
        "10m",
    ),
    Alert(
        "LifelongStoreFull",
        "max(lifelong_worker_store_used_ratio) > 0.95"
        ' or sum(rate(lifelong_worker_store_errors_total{error="StoreFull"}[5m])) > 0',
        "store-full",
        "page",
        "The store takes no more writes, or soon will not: events wait in Kafka.",
        ("Store", "Room used"),
        "Give it more room now: max_size of store.url, the disk, the namespace.",
        Case({"lifelong_worker_store_used_ratio": "0.97x20"}, "10m"),
        Case(
            {
                "lifelong_worker_store_used_ratio": "0.94x20",
                'lifelong_worker_store_errors_total{error="StoreFull"}': "5x20",
            },
            "10m",
        ),
        "1m",
    ),
    Alert(
        "LifelongReaderSlots",
        f"max(lifelong_worker_store_reader_ratio) > {LOW:g}",
        "reader-slots",
        "ticket",
        "LMDB's slots for readers are nearly all taken; at the end no more process can read.",
        ("Store", "Slots for readers"),
        "See which processes have the store open, and stop those that should not.",
        Case({"lifelong_worker_store_reader_ratio": "0.9x20"}, "10m"),
        Case({"lifelong_worker_store_reader_ratio": "0.2x20"}, "10m"),
        "5m",
    ),
    Alert(
        "LifelongStoreDamage",
        "sum by (kind) (increase(lifelong_worker_store_damage_total[15m])) > 0"
        " or sum by (kind) (increase(lifelong_scorer_store_damage_total[15m])) > 0",
        "store-damage",
        "ticket",
        "Stored records were found damaged; what they held is lost, the rest goes on.",
        ("Store", "Damaged records"),
        "Look at the disk; many are a reason to restore.",
        Case(
            {'lifelong_worker_store_damage_total{kind="segment"}': "0x5 1x10"},
            "10m",
            {"kind": "segment"},
        ),
        Case({'lifelong_worker_store_damage_total{kind="segment"}': "1x20"}, "10m"),
    ),
    Alert(
        "LifelongStoreEmpty",
        "max by (instance) (lifelong_scorer_store_empty) == 1",
        "store-empty",
        "page",
        "The store has no users: everybody is scored as a stranger. It may be the wrong one.",
        ("Scorer", "What was known of users"),
        "Compare store.url and store.id of scorers and workers.",
        Case({'lifelong_scorer_store_empty{instance="s1"}': "1x20"}, "15m", {"instance": "s1"}),
        Case({'lifelong_scorer_store_empty{instance="s1"}': "1x5 0x20"}, "15m"),
        "10m",
    ),
    Alert(
        "LifelongDueOldest",
        "max(lifelong_worker_due_oldest_seconds) > 60",
        "interests-late",
        "ticket",
        "A user has waited for a minute to be reclustered; requests extract what is not there.",
        ("Extraction", "Longest due"),
        "Add workers, or raise worker.recluster_threads.",
        Case({"lifelong_worker_due_oldest_seconds": "0+60x20"}, "15m"),
        Case({"lifelong_worker_due_oldest_seconds": "90x3 2x20"}, "15m"),
        "5m",
    ),
    Alert(
        "LifelongReclusterFails",
        'sum(rate(lifelong_worker_reclusters_total{outcome="failed"}[10m]))'
        " > 0.01 * sum(rate(lifelong_worker_reclusters_total[10m]))",
        "interests-late",
        "ticket",
        "More than 1 % of the users cannot be reclustered; their interests stay as they are.",
        ("Extraction", "Reclustered by outcome"),
        "Read the reason in the worker's log: user not reclustered.",
        Case(
            {
                'lifelong_worker_reclusters_total{outcome="failed"}': "0+5x60",
                'lifelong_worker_reclusters_total{outcome="stored"}': "0+100x60",
            },
            "30m",
        ),
        Case({'lifelong_worker_reclusters_total{outcome="stored"}': "0+100x60"}, "30m"),
        "10m",
    ),
    Alert(
        "LifelongRenewalStands",
        "max(lifelong_worker_renewal_partitions) > 0",
        "bundles-differ",
        "ticket",
        "Twelve hours after a bundle was exchanged there are users who were not looked at yet.",
        ("Extraction", "Partitions to renew"),
        "Raise worker.renew_per_s, or add workers.",
        Case({"lifelong_worker_renewal_partitions": "3x60"}, "750m", step="15m"),
        Case({"lifelong_worker_renewal_partitions": "3x40 0x20"}, "750m", step="15m"),
        "12h",
    ),
    Alert(
        "LifelongReloadFailed",
        "max by (job, instance) (lifelong_scorer_bundle_pending == 1"
        " or lifelong_worker_bundle_pending == 1)",
        "reload-failed",
        "ticket",
        "Another bundle has been at bundle.path for a while, and the one in service stays.",
        ("Overview", "Bundles that wait"),
        "Read why in the log of that instance: bundle not exchanged.",
        Case(
            {'lifelong_scorer_bundle_pending{instance="s1"}': "0x3 1x20"}, "20m", {"instance": "s1"}
        ),
        Case({'lifelong_scorer_bundle_pending{instance="s1"}': "0x3 1x5 0x20"}, "20m"),
        "10m",
    ),
    Alert(
        "LifelongCertificateExpires",
        "min by (instance) (lifelong_scorer_certificate_expiry_timestamp_seconds) - time()"
        f" < {CERTIFICATE_S} and min by (instance)"
        " (lifelong_scorer_certificate_expiry_timestamp_seconds) > 0",
        "certificate-expires",
        "ticket",
        "A scorer's certificate expires within a week; then clients do not talk to it any more.",
        ("Scorer", "Days until the certificate expires"),
        "Renew it, or see why what was renewed is not in service.",
        Case(
            {'lifelong_scorer_certificate_expiry_timestamp_seconds{instance="s1"}': "500000x90"},
            "80m",
            {"instance": "s1"},
        ),
        Case(
            {
                'lifelong_scorer_certificate_expiry_timestamp_seconds{instance="s1"}': "9000000x90",
                'lifelong_scorer_certificate_expiry_timestamp_seconds{instance="s2"}': "0x90",
            },
            "80m",
        ),
        "1h",
    ),
    Alert(
        "LifelongBundlesDiffer",
        "count(count by (version) (lifelong_worker_bundle_info == 1"
        " or lifelong_scorer_bundle_info == 1)) > 1",
        "bundles-differ",
        "ticket",
        "Workers and scorers have had different bundles for an hour.",
        ("Overview", "Bundles in service"),
        "End the rollout, or silence this for as long as two bundles are meant to serve.",
        Case(
            {
                'lifelong_worker_bundle_info{version="b",instance="w1"}': "1x90",
                'lifelong_scorer_bundle_info{version="a",instance="s1"}': "1x90",
            },
            "80m",
        ),
        Case(
            {
                'lifelong_worker_bundle_info{version="a",instance="w1"}': "1x5 0x90",
                'lifelong_worker_bundle_info{version="b",instance="w1"}': "0x5 1x90",
                'lifelong_scorer_bundle_info{version="b",instance="s1"}': "1x90",
            },
            "80m",
        ),
        "1h",
    ),
    Alert(
        "LifelongStrangersRise",
        _rising("lifelong:strangers:ratio_rate1h"),
        "strangers-rise",
        "ticket",
        "Twice as many rankings as a day ago are of users of whom nothing is stored.",
        ("Model quality", "Strangers"),
        "See whether users' ids changed, or the store lost or forgot users.",
        Case(
            {
                'lifelong_scorer_history_total{kind="none"}': "0+5x96 480+60x16",
                'lifelong_scorer_history_total{kind="interests"}': "0+95x96 9120+40x16",
            },
            "1620m",
            step="15m",
        ),
        Case(
            {
                'lifelong_scorer_history_total{kind="none"}': "0+40x112",
                'lifelong_scorer_history_total{kind="interests"}': "0+60x112",
            },
            "1620m",
            step="15m",
        ),
        "30m",
    ),
    Alert(
        "LifelongUnknownItemsRise",
        _rising("lifelong:unknown_items:ratio_rate1h"),
        "unknown-items-rise",
        "ticket",
        "Twice as many candidates as a day ago are unknown to the bundle.",
        ("Model quality", "Unknown items"),
        "Train and export a bundle with the present catalog; or see whether ids changed.",
        Case(
            {
                "lifelong_scorer_unknown_items_total": "0+5x96 480+60x16",
                "lifelong_scorer_candidates_sum": "0+100x112",
            },
            "1620m",
            step="15m",
        ),
        Case(
            {
                "lifelong_scorer_unknown_items_total": "0+5x112",
                "lifelong_scorer_candidates_sum": "0+100x112",
            },
            "1620m",
            step="15m",
        ),
        "30m",
    ),
    Alert(
        "LifelongDegraded",
        "lifelong:degraded:ratio_rate5m > 0.01",
        "degraded",
        "page",
        "Rankings are made without the users' history, since the store does not answer scorers.",
        ("Scorer", "Degraded rankings"),
        "See whether the store is up: lifelong check.",
        Case(
            {
                "lifelong_scorer_degraded_total": "0+5x20",
                'lifelong_scorer_history_total{kind="none"}': "0+100x20",
            },
            "12m",
        ),
        Case(
            {
                "lifelong_scorer_degraded_total": "7x20",
                'lifelong_scorer_history_total{kind="none"}': "0+100x20",
            },
            "12m",
        ),
        "2m",
    ),
    Alert(
        "LifelongRefusals",
        "lifelong:refused:ratio_rate5m > 0.01",
        "refusals",
        "page",
        "More than 1 % of the rankings are refused since they would be late, or cannot be made.",
        ("Scorer", "Refusals by reason"),
        "Add scorers, or find who sends more.",
        Case(
            {
                'lifelong_scorer_rejected_total{reason="overload"}': "0+5x20",
                'lifelong_scorer_requests_total{route="/v1/rank",status="200"}': "0+100x20",
            },
            "12m",
            {"reason": "overload"},
        ),
        Case(
            {
                'lifelong_scorer_rejected_total{reason="malformed"}': "0+50x20",
                'lifelong_scorer_requests_total{route="/v1/rank",status="200"}': "0+100x20",
            },
            "12m",
        ),
        "5m",
    ),
    Alert(
        "LifelongNewerBehaviors",
        "sum(rate(lifelong_scorer_newer_behaviors_sum[30m]))"
        " / sum(rate(lifelong_scorer_newer_behaviors_count[30m])) > 128",
        "interests-late",
        "ticket",
        "A ranking meets more than 128 behaviors, at the mean, that no interest covers yet.",
        ("Model quality", "Newer behaviors a ranking"),
        "See how long users wait to be reclustered.",
        Case(
            {
                "lifelong_scorer_newer_behaviors_sum": "0+20000x60",
                "lifelong_scorer_newer_behaviors_count": "0+100x60",
            },
            "50m",
        ),
        Case(
            {
                "lifelong_scorer_newer_behaviors_sum": "0+3000x60",
                "lifelong_scorer_newer_behaviors_count": "0+100x60",
            },
            "50m",
        ),
        "15m",
    ),
    Alert(
        "LifelongMiscalibrated",
        f"({CALIBRATION} > {MISCALIBRATED} or {CALIBRATION} < {1 / MISCALIBRATED:g})"
        " and on (version) sum by (version)"
        " (increase(lifelong_scorer_outcomes_predicted_total[6h])"
        f" + increase(lifelong_scorer_outcomes_positive_total[6h])) > {ENOUGH_OUTCOMES}"
        # With a bundle that is in service no longer it is over, whatever the last hours were like.
        " and on (version)"
        f' (lifelong_scorer_bundle_info == 1 or {CALIBRATION}{{version="{OTHER_BUNDLE}"}})',
        "miscalibrated",
        "ticket",
        "CTRs are twice as high, or half as high, as what becomes of the items that are shown.",
        ("Model quality", "Predicted / observed"),
        "See whether a new bundle is in service, and whether clients tell all outcomes.",
        Case(
            {
                'lifelong_scorer_outcomes_predicted_total{version="a",bin="0.05"}': "0+30x36",
                'lifelong_scorer_outcomes_positive_total{version="a",bin="0.05"}': "0+10x36",
                'lifelong_scorer_bundle_info{version="a"}': "1x36",
            },
            "480m",
            {"version": "a"},
            step="15m",
        ),
        Case(
            {
                # a: nearly well; b: in service no longer; other: too few to say so.
                'lifelong_scorer_outcomes_predicted_total{version="a",bin="0.05"}': "0+30x36",
                'lifelong_scorer_outcomes_positive_total{version="a",bin="0.05"}': "0+20x36",
                'lifelong_scorer_outcomes_predicted_total{version="b",bin="0.05"}': "0+30x36",
                'lifelong_scorer_outcomes_positive_total{version="b",bin="0.05"}': "0+10x36",
                'lifelong_scorer_outcomes_predicted_total{version="other",bin="1"}': "0+3x36",
                'lifelong_scorer_outcomes_positive_total{version="other",bin="1"}': "0+1x36",
                'lifelong_scorer_bundle_info{version="a"}': "1x36",
                'lifelong_scorer_bundle_info{version="b"}': "0x36",
            },
            "480m",
            step="15m",
        ),
        "30m",
    ),
    Alert(
        "LifelongSearchMisses",
        'sum(rate(lifelong_scorer_sampled_ratio_sum{measure="hit_rate"}[1h]))'
        ' / sum(rate(lifelong_scorer_sampled_ratio_count{measure="hit_rate"}[1h])) < 0.999',
        "search-misses",
        "ticket",
        "TWIN's search does not find the behaviors that it should: a fault, scores are exact.",
        ("Model quality", "TWIN's hit rate"),
        "Go back to the bundle before, and report it.",
        Case(
            {
                'lifelong_scorer_sampled_ratio_sum{measure="hit_rate"}': "0+90x90",
                'lifelong_scorer_sampled_ratio_count{measure="hit_rate"}': "0+100x90",
            },
            "80m",
        ),
        Case(
            {
                'lifelong_scorer_sampled_ratio_sum{measure="hit_rate"}': "0+100x90",
                'lifelong_scorer_sampled_ratio_count{measure="hit_rate"}': "0+100x90",
            },
            "80m",
        ),
        "15m",
    ),
)
