"""The peer of ``lifelong bench train``: FuxiCTR's own long-sequence models in its own loop.

``python -I fuxictr_peer.py DIRECTORY THREADS [PACKAGES]`` runs by itself, since FuxiCTR needs
numpy < 2: nothing of this project is imported, and PACKAGES, a folder, goes before what is
installed. It says ``{"ready": true}``, then answers every line of standard input, a `Request`, with
one line of JSON: samples a second.

Nothing of FuxiCTR is rebuilt here. Models, data loader, optimizer and training loop are those of
the published package (`model_zoo.LongCTR`). Its default configurations hold, except that embedding
and tower have the sizes of ours, and that an item has one feature, its id, and a user none: more
of them would cost it more, because it concatenates them.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

D: Final = 32
HIDDEN: Final = (64, 32)

DIN: Final[dict[str, Any]] = {
    "attention_hidden_units": [64],
    "attention_hidden_activations": "Dice",
}
SEARCH: Final[dict[str, Any]] = {"attention_dim": 64, "num_heads": 2, "short_seq_len": 50}

MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "DIN": ("DIN", DIN),
    "DIN-L": ("DIN", DIN),
    "SIM soft": ("SIM", {**SEARCH, "topk": 50}),
    "ETA": ("ETA", {**SEARCH, "topk": 50, "hash_bits": 32}),
    "SDIM": ("SDIM", {**SEARCH, "num_hashes": 2, "hash_bits": 4}),
    "TWIN": ("TWIN", {**SEARCH, "topk": 50}),
}
"""Class and configuration of each; DIN and DIN-L differ in the length they are given."""

WORKERS: Final = 1
"""Processes of the data loader, its default: more of them slow training down on two cores."""


class Request(NamedTuple):
    """One measurement."""

    model: str
    """A key of `MODELS`."""
    length: int
    """Newest behaviors that a sample sees."""
    batch: int
    warm_up: int
    """Batches that do not count."""
    loading: bool
    """Whether loading the data counts, as it does for whoever trains, or only the steps."""


class Peer:
    """The models on one data set, each built when it is first asked for."""

    def __init__(self, directory: Path) -> None:
        """The directory has the tables that `lifelong.bench.train` writes."""
        from fuxictr.features import FeatureMap  # type: ignore[import-not-found]

        self._directory = directory
        self._models: dict[str, Any] = {}
        self._loaded: dict[tuple[int, int], list[Any]] = {}
        self._features = FeatureMap(directory.name, str(directory))
        self._features.load(str(directory / "feature_map.json"), {"embedding_dim": D})

    def measure(self, request: Request) -> float:
        """Samples a second over one epoch."""
        model = self._model(request.model)
        if request.loading:
            batches = self._loader(request)
        else:
            key = request.length, request.batch
            if key not in self._loaded:
                self._loaded[key] = list(self._loader(request))
            batches = self._loaded[key]
        timed = TimedBatches(batches)
        model.fit(timed, epochs=1)
        return request.batch * timed.per_second(request.warm_up)

    def _loader(self, request: Request) -> Any:
        from model_zoo.LongCTR.longctr_dataloader import (  # type: ignore[import-not-found]
            LongCTRDataLoader,
        )

        return LongCTRDataLoader(
            self._features,
            str(self._directory / "train.parquet"),
            str(self._directory / "users.parquet"),
            str(self._directory / "items.parquet"),
            batch_size=request.batch,
            shuffle=True,
            num_workers=WORKERS,
            max_len=request.length,
        )

    def _model(self, name: str) -> Any:
        from model_zoo import LongCTR  # type: ignore[import-not-found]

        if name not in self._models:
            kind, own = MODELS[name]
            model = getattr(LongCTR, kind)(
                self._features,
                model_id=name,
                embedding_dim=D,
                dnn_hidden_units=list(HIDDEN),
                dnn_activations="relu",
                optimizer="adam",
                loss="binary_crossentropy",
                learning_rate=1e-3,
                metrics=["AUC"],
                verbose=0,
                model_root=str(self._directory),
                eval_steps=sys.maxsize,  # training alone
                **own,
            )
            # Its `fit` ends by reading back the best checkpoint, so there must be one.
            Path(model.checkpoint).parent.mkdir(exist_ok=True)
            model.save_weights(model.checkpoint)
            self._models[name] = model
        return self._models[name]


class TimedBatches:
    """Batches that remember when each was handed over."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._times: list[float] = []

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]  # a list, or a data loader

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self._times.append(time.perf_counter())
            yield batch

    def per_second(self, warm_up: int) -> float:
        """Batches a second after the first ``warm_up``, the last one left out: as many steps as
        loads.
        """
        return (len(self._times) - 1 - warm_up) / (self._times[-1] - self._times[warm_up])


def main(directory: Path, threads: int, packages: str | None) -> None:
    """Answer requests until standard input ends."""
    if packages is not None:
        sys.path.insert(0, packages)
    # Whatever a library prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    peer = Peer(directory)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        rate = peer.measure(Request(**json.loads(line)))
        print(json.dumps({"samples_per_second": rate}), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if sys.argv[3:] else None)
