"""Who of a group reads which partition: as Faust decides it, of partitions that there are.

Faust lets members keep what they had, by number. A topic that was deleted and created again with
fewer partitions left them the rest of the old ones: whoever kept one was never ready, and had less
room for those that there are.
"""

from __future__ import annotations

from typing import Any

from faust.assignor import PartitionAssignor


class Assignor(PartitionAssignor):
    """Faust's assignor, told what the topics are by now."""

    _cluster: Any = None

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        self._cluster = cluster
        return super()._perform_assignment(cluster, member_metadata)

    def _get_client_metadata(self, metadata: Any) -> Any:  # type: ignore[override]
        """What a member says of itself, without partitions that there are no more."""
        member = super()._get_client_metadata(metadata)
        for had in (member.assignment.actives, member.assignment.standbys):
            for topic, partitions in had.items():
                there = self._cluster.partitions_for_topic(topic) or set()
                had[topic] = [partition for partition in partitions if partition in there]
        return member
