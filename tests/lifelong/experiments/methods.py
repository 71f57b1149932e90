"""The methods of ENCODE's Table 2, as a table would name them."""

from __future__ import annotations

from typing import Final

from models.networks import AnyConfig
from models.networks.avg_pooling import AvgPoolingConfig
from models.networks.din import DINConfig, DINLConfig
from models.networks.encode import EncodeConfig
from models.networks.eta import ETAConfig
from models.networks.sdim import SDIMConfig
from models.networks.sim import SIMConfig
from models.networks.twin import TWINConfig
from models.networks.ubr4ctr import UBR4CTRConfig

METHODS: Final[dict[str, AnyConfig]] = {
    "DIN": DINConfig(),
    "AvgPooling": AvgPoolingConfig(),
    "DIN-L": DINLConfig(),
    "SIM hard": SIMConfig(search="hard", k=5),
    "SIM soft": SIMConfig(k=5),
    "UBR4CTR": UBR4CTRConfig(k=5),
    "ETA": ETAConfig(k=5),
    "TWIN": TWINConfig(k=5),
    "SDIM": SDIMConfig(),
    "ENCODE": EncodeConfig(K=5),
}
