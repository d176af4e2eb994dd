"""What `main.py` opens once and hands down to the routes."""

from __future__ import annotations

from dataclasses import dataclass

from common.clock import Clock
from common.config import Settings
from common.health import HealthStore
from common.ledger.batches import BatchesLedger
from common.ledger.database import Database
from common.ledger.files import FilesLedger
from common.metrics import GatewayMetrics
from common.queue import Queue
from common.store import Store
from common.stream import StreamStore
from common.tokens import TokenCounter
from gateway.admission import Admission
from gateway.auth import Auth
from gateway.batches.runner import Runner
from gateway.estimates import Estimates
from gateway.hub import Hub
from gateway.journal import Journal
from gateway.listing import Listing
from gateway.pressure import Pressure
from gateway.prices import Prices
from gateway.withdrawal import Withdrawals


@dataclass(frozen=True, slots=True)
class Parts:
    """The opened parts of one gateway process."""

    settings: Settings
    clock: Clock
    store: Store
    queue: Queue
    streams: StreamStore
    health: HealthStore
    hub: Hub
    auth: Auth
    admission: Admission
    metrics: GatewayMetrics
    pressure: Pressure
    withdrawals: Withdrawals
    estimates: Estimates
    journal: Journal
    listing: Listing
    prices: Prices
    tokens: TokenCounter
    database: Database
    files: FilesLedger
    batches: BatchesLedger
    runner: Runner
