"""What a network sees, declared by name and bound to the tables of a data set.

A schema names features; `Inputs` are the same features as tables of rows, ready to be embedded.
Row 0 of every table stands for "unknown" and for padding. No network is wired to one data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec
import numpy as np

from infra.arrays import I64
from infra.errors import TrainingError, hint
from models.features import AGE_BUCKETS, DWELL_BUCKETS, Rates, feature_names

if TYPE_CHECKING:
    from models.data.interactions import Attribute, Interactions


BehaviorFeature = Literal["action", "dwell", "age"]

USER_ID: Final = "id"
"""The name that stands for the user's own id among the user attributes."""

AUTO: Final = "auto"


class Schema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inputs of a network, by the names that the data set gives them.

    "auto" asks the data; `Schema.resolved` has the answer, and whoever makes a network asks it.
    """

    user: tuple[str, ...] = ()
    """User attributes; "id" is the user's own id."""
    item: tuple[str, ...] = ()
    """Item attributes beside the id; an attribute may have several values (genres)."""
    category: str = ""
    """The item attribute that SIM (hard) and UBR4CTR search by; its first value counts."""
    behavior: tuple[BehaviorFeature, ...] | Literal["auto"] = AUTO
    """What is known of a behavior beside its item: TWIN's cross features (TWIN, section 3.3).
    "auto": its action, where the data tell actions apart."""
    positive: tuple[str, ...] | Literal["auto"] = AUTO
    """Actions that are positive: items and users have the share of them, smoothed, as a feature
    (`models.features.Rates`). "auto": with the protocol "rated" those that are labels 1, else none.
    """

    def resolved(self, interactions: Interactions, threshold: float | None = None) -> Schema:
        """The schema as a data set has it, with no "auto" left.

        Args:
            threshold: the label of a behavior is 1 if its value is this or more; None: labels are
                made otherwise.

        Raises:
            TrainingError: the data have no action that is named as positive, or no other.
        """
        told_apart = _actions_that_occur(interactions)
        behavior, positive = self.behavior, self.positive
        if behavior == AUTO:
            behavior = ("action",) if len(told_apart) > 1 else ()
        if positive == AUTO:
            positive = _liked(interactions, told_apart, threshold)
        else:
            _check_positive(positive, told_apart)
        return msgspec.structs.replace(self, behavior=behavior, positive=positive)

    @property
    def behaviors(self) -> tuple[BehaviorFeature, ...]:
        """The behavior features; none as long as the data were not asked."""
        return () if isinstance(self.behavior, str) else self.behavior


def _actions_that_occur(interactions: Interactions) -> dict[str, int]:
    """The rows of the actions that some behavior has, by name, in the order of their rows."""
    if interactions.actions is None:
        return {}
    counts = np.bincount(interactions.actions, minlength=len(interactions.action_names))
    names = enumerate(interactions.action_names)
    return {name: row for row, name in names if row and counts[row]}


def _liked(
    interactions: Interactions, actions: Mapping[str, int], threshold: float | None
) -> tuple[str, ...]:
    """The actions whose behaviors all have label 1, where others have label 0."""
    if threshold is None or interactions.values is None or interactions.actions is None:
        return ()
    known = ~np.isnan(interactions.values)
    values, of = interactions.values[known], interactions.actions[known]
    lowest = np.full(len(interactions.action_names), np.inf)
    np.minimum.at(lowest, of, values)
    liked = [name for name, row in actions.items() if threshold <= lowest[row] < np.inf]
    return tuple(liked) if len(liked) < len(actions) else ()


def _check_positive(positive: Sequence[str], actions: Mapping[str, int]) -> None:
    for name in positive:
        if name not in actions:
            raise TrainingError(
                f"schema.positive names the action {name!r}, which the data do not have;"
                f" {hint(name, actions)}"
            )
    if positive and len(set(positive)) == len(actions):
        raise TrainingError(
            "schema.positive names every action that the data have, so that all rates would be 1;"
            " name fewer, or set it to []"
        )


@dataclass(frozen=True)
class Inputs:
    """A schema bound to a data set: tables of rows and their heights."""

    schema: Schema
    n_items: int
    """Items of the vocabulary, the unknown one (row 0) not counted."""
    n_users: int
    items: Mapping[str, I64]
    """Item attributes by name, i64[n + 1, w]: rows of the values, 0 for none."""
    users: Mapping[str, I64]
    """User attributes by name, i64[U, w]: rows of the values, 0 for none."""
    heights: Mapping[str, int]
    """Rows of each embedding table, by "user.<name>", "item.<name>" and "behavior.<name>"."""
    actions: tuple[str, ...] = ()
    """Names of the data's actions, in the order of their rows from 1; none where they have none."""
    rates: Rates | None = None
    """What makes the rates of items and users; None: the schema names no positive action."""
    untaught: tuple[int, ...] = ()
    """Rows of the actions that no behavior has which is learned from."""

    @property
    def user_features(self) -> tuple[str, ...]:
        """Columns of the user's features."""
        return feature_names(self.rates)[0]

    @property
    def cross_features(self) -> tuple[str, ...]:
        """Columns of a pair's features."""
        return feature_names(self.rates)[1]

    @property
    def categories(self) -> I64:
        """i64[n + 1]: each item's category, 0 for none."""
        name = self.schema.category
        if not name:
            return np.zeros(self.n_items + 1, np.int64)
        return np.ascontiguousarray(self.items[name][:, 0])

    @classmethod
    def of(
        cls, interactions: Interactions, schema: Schema, n_training: int | None = None
    ) -> Inputs:
        """Bind a schema to a data set.

        Args:
            schema: resolved, or without "auto" that would need to know labels.
            n_training: behaviors, the first ones, that are learned from; None: all.

        Raises:
            TrainingError: the data lack a feature that the schema names.
        """
        schema = schema.resolved(interactions)
        n_items, n_users = len(interactions.item_ids) - 1, len(interactions.user_ids)
        heights: dict[str, int] = {}
        items: dict[str, I64] = {}
        for name in dict.fromkeys((*schema.item, *filter(None, [schema.category]))):
            attribute = _attribute("item", name, interactions.item_attributes)
            items[name] = attribute.rows.astype(np.int64)
            heights[f"item.{name}"] = len(attribute.values)
        users: dict[str, I64] = {}
        for name in schema.user:
            if name == USER_ID:
                users[name] = np.arange(1, n_users + 1, dtype=np.int64)[:, None]
                heights[f"user.{name}"] = n_users + 1
                continue
            attribute = _attribute("user", name, interactions.user_attributes)
            users[name] = attribute.rows.astype(np.int64)
            heights[f"user.{name}"] = len(attribute.values)
        for feature in schema.behaviors:
            heights[f"behavior.{feature}"] = _behavior_height(feature, interactions)
        actions = tuple(interactions.action_names[1:])
        rates = _rates(interactions, schema, n_training)
        untaught = _untaught(interactions, n_training)
        return cls(schema, n_items, n_users, items, users, heights, actions, rates, untaught)


def _untaught(interactions: Interactions, n_training: int | None) -> tuple[int, ...]:
    if interactions.actions is None:
        return ()
    learned = interactions.actions[:n_training]
    counts = np.bincount(learned, minlength=len(interactions.action_names))
    return tuple(np.flatnonzero(counts == 0).tolist())


def _rates(interactions: Interactions, schema: Schema, n_training: int | None) -> Rates | None:
    """Rates with the share of positive behaviors among those that are learned from."""
    if not schema.positive or isinstance(schema.positive, str) or interactions.actions is None:
        return None
    rates = Rates(positive=schema.positive, base=0.0)
    positive, counted = rates.kinds(interactions.action_names)
    learned = interactions.actions[:n_training]
    share = positive[learned].sum() / max(counted[learned].sum(), 1)
    return msgspec.structs.replace(rates, base=round(float(share), 6))


def _attribute(kind: str, name: str, attributes: Mapping[str, Attribute]) -> Attribute:
    if name not in attributes:
        known = ", ".join(attributes) or "none"
        raise TrainingError(
            f"schema.{kind} names {name!r}, which the data do not have; they have: {known}"
        )
    return attributes[name]


def _behavior_height(feature: BehaviorFeature, interactions: Interactions) -> int:
    if feature == "age":
        return AGE_BUCKETS
    if feature == "dwell" and interactions.dwell_s is not None:
        return DWELL_BUCKETS
    if feature == "action" and interactions.actions is not None:
        return len(interactions.action_names)
    raise TrainingError(
        f"schema.behavior names {feature!r}, which the data do not have; leave it out"
    )
