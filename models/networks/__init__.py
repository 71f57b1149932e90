"""The methods of the papers, a file each."""

from __future__ import annotations

from models.networks.avg_pooling import AvgPoolingConfig
from models.networks.din import DINConfig, DINLConfig
from models.networks.encode import EncodeConfig
from models.networks.eta import ETAConfig
from models.networks.mimn import MIMNConfig
from models.networks.sdim import SDIMConfig
from models.networks.sdim_expected import ExpectedSDIMConfig
from models.networks.sim import SIMConfig
from models.networks.twin import TWINConfig
from models.networks.ubr4ctr import UBR4CTRConfig

AnyConfig = (
    DINConfig
    | DINLConfig
    | AvgPoolingConfig
    | EncodeConfig
    | ETAConfig
    | SDIMConfig
    | ExpectedSDIMConfig
    | TWINConfig
    | MIMNConfig
    | SIMConfig
    | UBR4CTRConfig
)
"""The configuration of any long-term module; its field ``network`` names it."""
