"""SDIM: sampling-based deep interest modeling (Cao et al., CIKM 2022).

A candidate's interest is the sum of the behaviors that share its hash signature (Eqs. 9-12):
random hyperplanes put similar vectors into one bucket more often than others, as target attention
gives them more weight. A user's buckets do not depend on the candidate, so that a service stores
them and adds a new behavior to one bucket a group; what it computes online does not depend on L.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from infra.arrays import F32, I64, Bools
from infra.compiling import fast_kernel, on_threads
from infra.errors import TrainingError
from models.bundle import SDIMOffline, StateTensor, TableEntry
from models.data.schema import Inputs
from models.modules.layers import EPSILON
from models.modules.long_term import LongTerm, LongTermConfig, Served, State
from models.modules.pooling import LINE
from models.modules.sequence import BehaviorSequence, Target

VECTOR_LEVELS: Final = 127.0
"""Steps from 0 to the greatest component of a vector that is hashed."""
HASH_LEVELS: Final = 16.0
"""Steps in one standard deviation of a hash function's components, which end at four of them.
Products are integers up to 127 * 64: sums of 2,000 of them are exact in float32, in any order."""
MOST_TAU: Final = 16
"""Widest signature: it has 2^tau buckets."""


class SDIMConfig(LongTermConfig, frozen=True, tag="sdim"):
    """Configuration of SDIM; letters are the paper's."""

    m: int = 48
    """Hash functions (section 6.3.1)."""
    tau: int = 3
    """Hash functions that make one signature, so that there are m / tau of them (section 6.3.2);
    0: none, which puts all behaviors into one bucket."""
    normalization: Literal["l2", "mean"] = "l2"
    """Scale of a bucket's sum; "l2": Eq. 9; "mean": by its number of behaviors (footnote 2)."""

    def build(self, d: int, inputs: Inputs) -> SDIM:
        """The module of SDIM.

        Raises:
            TrainingError: m is no multiple of tau, or tau is out of range.
        """
        if not 0 <= self.tau <= MOST_TAU:
            raise TrainingError(f"tau of sdim must be 0 to {MOST_TAU}, not {self.tau}")
        if self.m < 1 or self.m % max(self.tau, 1):
            raise TrainingError(
                f"m of sdim must be a positive multiple of tau = {self.tau}, not {self.m}"
            )
        return SDIM(self, d, inputs)


class SDIM(LongTerm):
    """Interests sampled by hash collisions; letters: G = m / tau groups."""

    hashes: Tensor
    """f32[d, m], normal (Eq. 5), in steps of 1 / `HASH_LEVELS`. Never trained."""

    def __init__(self, config: SDIMConfig, d: int, inputs: Inputs) -> None:
        super().__init__(d, inputs)
        self.config = config
        self.groups = config.m // config.tau if config.tau else 1
        self.buckets = 1 << config.tau
        hashes = torch.randn(d, self.groups * config.tau) * HASH_LEVELS
        self.register_buffer("hashes", hashes.round().clamp(-4 * HASH_LEVELS, 4 * HASH_LEVELS))

    def signatures(self, embeddings: Tensor) -> Tensor:
        """Buckets of vectors: i64[..., G] of f32[..., d] (Eq. 7, tau codes to a number).

        The sign of a product near 0 depends on the order of its additions, which differs between
        runtimes, and even between shapes; and one code that flips takes a candidate away from all
        behaviors of its kind. So vectors and hash functions are rounded to small integers, whose
        products sum up exactly: an exported graph gives the signatures of training, and a
        candidate those of the same item in the sequence, wherever they are computed.
        """
        vectors = embeddings.detach()
        if not self.config.tau:
            return vectors.new_zeros(*vectors.shape[:-1], 1, dtype=torch.int64)
        greatest = vectors.abs().amax(-1, keepdim=True).clamp(min=EPSILON)
        rounded = (vectors / greatest * VECTOR_LEVELS).round()
        codes = rounded @ self.hashes >= 0
        codes = codes.reshape(*codes.shape[:-1], self.groups, self.config.tau)
        places: Tensor = 1 << torch.arange(self.config.tau, device=codes.device)
        return (codes * places).sum(-1)

    def collide(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """Interests by Eq. 12 as it stands: each candidate sums the behaviors that collide with it.

        Equal to the two stages but for rounding. It costs B * L * G * d, three times theirs for one
        candidate already, so training takes the two stages.
        """
        values = sequence.embeddings
        interest = values.new_zeros(*target.embeddings.shape)
        for collisions in self._collisions(sequence, target):
            sums = collisions @ values
            interest = interest + sums / self._divisor(sums, collisions.sum(-1)).unsqueeze(-1)
        return interest / self.groups

    def summarize(self, sequence: BehaviorSequence) -> State:
        """Sums [R, G * 2^tau, d] by bucket, not normalized, so that behaviors can be added."""
        first = torch.arange(self.groups, device=sequence.rows.device) * self.buckets
        bins = self.signatures(sequence.table) + first
        size = self.groups * self.buckets
        filled = pool_buckets(sequence, sequence.table, sequence.rows, bins, size)
        for name, table in sequence.feature_tables.items():
            filled = filled + pool_buckets(sequence, table, sequence.features[name], bins, size)
        state = {"buckets": filled}
        if self.config.normalization == "mean":
            one = sequence.table.new_ones(1, 1)
            rows = torch.zeros_like(sequence.rows)
            state["bucket_sizes"] = pool_buckets(sequence, one, rows, bins, size).squeeze(-1)
        return state

    def find(self, state: State, target: Target) -> Tensor:
        """The mean of what each candidate finds: its bucket in every group."""
        buckets = state["buckets"]
        divisor = self._divisor(buckets, state.get("bucket_sizes")) * self.groups
        signatures = self.signatures(target.embeddings)
        chosen = functional.one_hot(signatures, self.buckets).to(buckets.dtype).flatten(-2)
        # Dividing the few that are chosen is cheaper than dividing the buckets.
        return chosen / divisor.unsqueeze(-2) @ buckets

    def served(self, *, half: bool, feature_tables: Mapping[str, Tensor]) -> Served:
        """States are the buckets with their sizes; a candidate's signatures lie in an item table,
        so that a request hashes nothing and reads the buckets without a graph.
        """
        config = self.config
        offline = SDIMOffline(m=config.m, tau=config.tau, normalization=config.normalization)
        return Served(
            offline=offline,
            tables={"signatures": TableEntry(offline.signature, offline.groups)},
            stored={
                "buckets": StateTensor("float16" if half else "float32", (offline.buckets, self.d)),
                "sizes": StateTensor("uint32", (offline.buckets,)),
            },
            finished=self.d,
            summed=config.L,
        )

    def summarize_stored(self, sequence: BehaviorSequence, *, half: bool) -> State:
        """Newer behaviors are added to the buckets that were stored."""
        newer = sequence.newer
        if newer is None or not half:
            return self.summarize(sequence)
        stored, added = (
            self.summarize(sequence.where(~newer)),
            self.summarize(sequence.where(newer)),
        )
        stored["buckets"] = stored["buckets"].half().float()
        return {name: tensor + added[name] for name, tensor in stored.items()}

    def per_item(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Signatures (Eq. 7), "signatures" [n, G]."""
        return {"signatures": self.signatures(embeddings)}

    def weights(self, sequence: BehaviorSequence, target: Target) -> Tensor:
        """Behaviors' coefficients in the interest, divided by their sum.

        A collision counts by its bucket's normalization. A candidate that collides with nothing,
        whose interest is zero, counts all behaviors alike.
        """
        mask = sequence.mask.to(sequence.table.dtype).unsqueeze(1)
        values = sequence.embeddings
        weights = values.new_zeros(*target.embeddings.shape[:2], values.shape[1])
        for collisions in self._collisions(sequence, target):
            divisor = self._divisor(collisions @ values, collisions.sum(-1))
            weights = weights + collisions / divisor.unsqueeze(-1)
        total = weights.sum(-1, keepdim=True)
        weights = torch.where(total > 0, weights, mask)
        return weights / weights.sum(-1, keepdim=True).clamp(min=EPSILON)

    def _collisions(self, sequence: BehaviorSequence, target: Target) -> Iterator[Tensor]:
        """Collisions f32[R, B, L], one a group: 1 for the candidate's own signature (Eq. 11)."""
        mask = sequence.mask.unsqueeze(1)
        candidates = self.signatures(target.embeddings)
        for index, group in enumerate(self.signatures(sequence.table).unbind(-1)):
            behaviors = group[sequence.rows].unsqueeze(1)
            same = (behaviors == candidates[..., index].unsqueeze(-1)) & mask
            yield same.to(sequence.table.dtype)

    def _divisor(self, sums: Tensor, sizes: Tensor | None) -> Tensor:
        """What sums [..., d] of ``sizes`` [...] behaviors each are divided by; [...]."""
        if sizes is None or self.config.normalization == "l2":
            norms: Tensor = torch.linalg.vector_norm(sums, dim=-1)
            return norms.clamp(min=EPSILON)
        return sizes.clamp(min=1.0)


def pool_buckets(
    sequence: BehaviorSequence, table: Tensor, rows: Tensor, bins: Tensor, size: int
) -> Tensor:
    """Sum a table's rows over behaviors, each into one bin a group.

    Args:
        sequence: says which behavior is of which item, and which is padding.
        table: f32[T, d].
        rows: i64[R, L], a row of the table for each behavior.
        bins: i64[n + 1, G] in [0, size), an item's bin in each group.
        size: bins of all groups together.

    Returns:
        f32[R, size, d]. Gradients reach the table.
    """
    if table.device.type == "cpu" and table.dtype == torch.float32:
        filled: Tensor = _PoolBuckets.apply(table, rows, sequence.rows, sequence.mask, bins, size)
        return filled
    values = functional.embedding(rows, table) * sequence.mask.unsqueeze(-1)
    pooled = values.new_zeros(len(rows), size, table.shape[1])
    for group in bins.unbind(-1):
        index = group[sequence.rows].unsqueeze(-1).expand_as(values)
        pooled = pooled.scatter_add(1, index, values)
    return pooled


class _PoolBuckets(torch.autograd.Function):
    """`pool_buckets` on a processor: a row is read once for all groups, no bin is written out."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        rows: Tensor,
        items: Tensor,
        mask: Tensor,
        bins: Tensor,
        size: int,
    ) -> Tensor:
        out = np.zeros((len(rows), size, table.shape[1]), np.float32)
        arrays: tuple[Any, ...] = (_array(rows), _array(items), _array(mask), out)
        tables = _array(table), _array(bins)
        on_threads(
            lambda begin, end: _fill(*tables, *(array[begin:end] for array in arrays)),
            len(rows),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(table, rows, items, mask, bins)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        table, *parts = ctx.saved_tensors
        rows, items, mask, bins = (_array(part) for part in parts)
        upstream = _array(gradients[0])
        to_table = torch.zeros_like(table)
        gradient = to_table.numpy()
        on_threads(
            lambda begin, end: _fill_back(
                upstream, bins, rows, items, mask, begin * LINE, end * LINE, gradient
            ),
            -(-table.shape[1] // LINE),
            torch.get_num_threads(),
        )
        return to_table, None, None, None, None, None


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


@fast_kernel
def _fill(table: F32, bins: I64, rows: I64, items: I64, mask: Bools, out: F32) -> None:
    for r in range(len(rows)):
        for i in range(rows.shape[1]):
            if mask[r, i]:
                value, own = table[rows[r, i]], bins[items[r, i]]
                for g in range(len(own)):
                    into = out[r, own[g]]
                    for j in range(len(value)):
                        into[j] += value[j]


@fast_kernel
def _fill_back(
    upstream: F32,
    bins: I64,
    rows: I64,
    items: I64,
    mask: Bools,
    begin: int,
    end: int,
    gradient: F32,
) -> None:
    """Columns [begin, end) of the gradient: each thread owns some, so that none waits."""
    end = min(end, gradient.shape[1])
    for r in range(len(rows)):
        for i in range(rows.shape[1]):
            if mask[r, i]:
                into, own = gradient[rows[r, i], begin:end], bins[items[r, i]]
                for g in range(len(own)):
                    out = upstream[r, own[g], begin:end]
                    for j in range(len(into)):
                        into[j] += out[j]
