"""A market wrapper that records every call in the ledger and rents nothing beyond the budget. All renting goes through it."""

from __future__ import annotations

import time

from cluster.market import tags
from cluster.market.base import Market, Offer, Order, Rental, Want
from cluster.money.budget import Budget
from cluster.money.ledger import Ledger


class Kept(Market):
    """unattended_s: seconds without a head after which the watchdog of a worker created here ends it."""

    def __init__(self, market: Market, ledger: Ledger, budget: Budget, unattended_s: float | None = None):
        self.market, self.ledger, self.budget, self.unattended_s = market, ledger, budget, unattended_s
        self.name = market.name

    def offers(self, want: Want) -> list[Offer]:
        return self.market.offers(want)

    def create(self, offer: Offer, order: Order) -> str:
        """Also raises Taken if the budget doesn't allow the offer, since a cheaper one may fit."""
        refuses = lambda usd: self.budget.refuses(self.ledger, usd, time.time())  # noqa: E731
        alone = None if tags.is_head(order.label) else self.unattended_s  # only workers end by losing their head
        return self.ledger.rent(self.market, offer, order, alone, refuses)

    def list(self) -> list[Rental]:
        at = time.time()
        rentals = self.market.list()
        self.ledger.observe(self.name, rentals, at)
        return rentals

    def destroy(self, id: str) -> None:
        self.ledger.destroy(self.market, id)

    def label(self, id: str, label: str) -> None:
        self.market.label(id, label)

    def logs(self, id: str) -> str:
        return self.market.logs(id)
