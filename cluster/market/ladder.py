"""Which offer to rent next. Ray's autoscaler has no fallback for an unavailable node type, so every node type has a ladder of rungs.

    ladder:                                                             # in node_config of cluster/*.yaml
    - {market: vast, gpus: [RTX 4090], max_usd_per_hour: 0.40}           # spot, 10% above the lowest winning bid
    - {market: vast, gpus: [A100], max_usd_per_hour: 0.90, bid: 1.3}
    - {market: runpod, gpus: [RTX 4090], max_usd_per_hour: 0.60}         # RunPod has no spot

Within a rung, offers are tried in order of price per operation: (bid + disk + traffic) ÷ speed ÷ reliability. Offers that may have
no public address (RunPod's Community cloud) come last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from cluster.market import gpus
from cluster.market.bad_machines import Memory
from cluster.market.base import Market, MarketError, Offer, Order, Refused, Taken, Unreachable, Unsure, Want
from lib.errors import nearest

UNKNOWN = "unexpected_keyword_argument"
"""pydantic's error type for an unknown key."""

AT_MOST = 8
"""Maximum offers tried in one rung: by then the list is outdated, since Vast allows one create every 4.5 s."""


def _names(given: object) -> object:
    """Converts "RTX 4090", "RTX 4090|A100" or "RTX_4090" (as in Vast's command line) to a list of names."""
    given = given.split("|") if isinstance(given, str) else given
    if not isinstance(given, list | tuple):
        return given
    return [n.replace("_", " ").strip() if isinstance(n, str) else n for n in given]


Names = Annotated[tuple[str, ...], BeforeValidator(_names)]


@dataclass(frozen=True)
class Rung:
    """One kind of offer, from one market."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    market: str
    max_usd_per_hour: float
    """For the whole machine, its disk included."""
    gpus: Names = ()
    """Acceptable GPUs (RTX 4090; A100 means all its variants); empty: any. An unknown name that looks misspelt is refused; for a GPU
    too new to be known here, set its speed in `tflops`."""
    count: int = 1
    """GPUs in the machine; 0: a machine without."""
    spot: bool | None = None
    """False: on demand. None: spot if the market has it (RunPod no longer does); set to True or False on construction."""
    bid: float = 1.1
    """Spot: our bid, as a multiple of the lowest that would win now. A higher bid survives longer; it never exceeds max_usd_per_hour."""
    bid_usd_per_hour: float | None = None
    """Spot: a fixed bid for the whole machine instead."""
    gpu_memory_gb: float | None = None
    """Minimum memory of each GPU."""
    cpus: int = 0
    """Minimum virtual cores of the machine."""
    min_cuda: float | None = None
    """Minimum CUDA version that the driver supports, such as 13.0. None: any."""
    min_reliability: float | None = None
    """0 to 1, as the market rates it; RunPod doesn't. None: any."""
    min_download_mbps: float | None = 200.0
    """Minimum Mb/s from the internet; RunPod doesn't report it. At 200, an assumed 10 GB of image and packages (SETUP_GB),
    model and data take 7 minutes. None: any."""
    verified: bool = True
    """False: include hosts that Vast hasn't verified."""
    datacenter: bool = False
    """Only machines in data centres: Vast's certified ones, RunPod's Secure cloud."""
    regions: Names = ()
    """Two-letter country codes; empty: anywhere."""
    network: str | None = None
    """Only machines of this flat network: a cluster_id of Vast, or global on RunPod."""
    image: str | None = None
    """Overrides the node's image, since RunPod's images need a start script that Vast's don't. None: the node's image."""
    upload_gb_per_hour: float = 0.0
    """Expected traffic out of the machine; the charge of Vast's hosts for it counts as part of the price."""
    download_gb_per_hour: float = 2.5
    """Expected traffic into the machine; 2.5 is 10 GB over 4 hours."""
    tflops: dict[str, float] = field(default_factory=dict)
    """GPU → TFLOPS measured on your own job, instead of the published figure (gpus.py)."""

    def __post_init__(self) -> None:
        if self.spot is None:
            object.__setattr__(self, "spot", has_spot(self.market))

    @property
    def kind(self) -> str:
        """Rungs of one kind use the same calls of their market, so they fail together, independently of its other kinds."""
        return f"{self.market} {'spot' if self.spot else 'on demand'}{'' if self.count else ', no GPU'}"

    def want(self, disk_gb: float) -> Want:
        """Returns the requirements for an offer, without the price cap, so that a message can give the price of what was too expensive."""
        return Want(
            gpus=self.gpus,
            count=self.count,
            gpu_memory_gb=self.gpu_memory_gb,
            cpus=self.cpus,
            spot=bool(self.spot),  # set on construction
            disk_gb=disk_gb,
            min_cuda=self.min_cuda,
            min_reliability=self.min_reliability,
            min_download_mbps=self.min_download_mbps,
            verified=self.verified,
            datacenter=self.datacenter,
            regions=self.regions,
            network=self.network,
        )

    def price(self, offer: Offer) -> float | None:
        """Returns the $/h we would pay for the machine without its disk: our bid, or its price. None: above the cap."""
        cap = self.max_usd_per_hour - offer.disk_usd_per_hour
        if not self.spot:
            ours = offer.usd_per_hour
        elif self.bid_usd_per_hour is not None:
            ours = self.bid_usd_per_hour
        else:
            ours = min(offer.usd_per_hour * self.bid, cap)
        return ours if offer.usd_per_hour <= ours <= cap else None

    def __str__(self) -> str:
        what = " or ".join(self.gpus) or ("any GPU" if self.count else "no GPU")
        return f"{self.market} {'spot' if self.spot else 'on demand'}, {self.count} × {what}"


def has_spot(market: str) -> bool:
    from cluster.market.registry import MARKETS

    return market not in MARKETS or MARKETS[market].has_spot


class NothingLeft(MarketError):
    """No rung could be rented; the message gives the reason for each."""


def parse(rows: list[dict]) -> tuple[Rung, ...]:
    """Parses `ladder` of a node_config. Raises ValueError that names the key, and the nearest keys if it is unknown."""
    from cluster.market.registry import MARKETS

    if not isinstance(rows, list) or not rows:
        raise ValueError(
            "ladder: must be a list of rungs, such as {market: vast, gpus: [RTX 4090], max_usd_per_hour: 0.40}"
        )
    rungs = []
    for i, row in enumerate(rows):
        try:
            rung = TypeAdapter(Rung).validate_python(row)
        except ValidationError as e:
            first = min(e.errors(include_url=False), key=lambda problem: problem["type"] != UNKNOWN)
            name = ".".join(map(str, first["loc"]))
            if first["type"] == UNKNOWN:
                raise ValueError(
                    f"ladder[{i}].{name} is not a key.{nearest(name, [f.name for f in fields(Rung)])}"
                ) from None
            if not name:
                raise ValueError(f"ladder[{i}]: must be keys and values, is {row!r}") from None
            raise ValueError(f"ladder[{i}].{name}: {first['msg']}") from None
        if rung.market not in MARKETS:
            known = nearest(rung.market, MARKETS) or f" There are: {', '.join(MARKETS)}."
            raise ValueError(f"ladder[{i}].market: there is no {rung.market}.{known}")
        _check(i, rung)
        rungs.append(rung)
    return tuple(rungs)


def _check(i: int, rung: Rung) -> None:
    for key in ("max_usd_per_hour", "bid_usd_per_hour"):
        if (value := getattr(rung, key)) is not None and value <= 0:
            raise ValueError(f"ladder[{i}].{key}: must be above 0, is {value}")
    if rung.spot and not has_spot(rung.market):
        raise ValueError(
            f"ladder[{i}].spot: {rung.market} has no spot offers (any more). Remove the key: on demand is its default"
        )
    for name in rung.gpus:
        if not any(gpus.fits(known, name) for known in rung.tflops) and (hint := gpus.mistaken(name)):
            raise ValueError(
                f"ladder[{i}].gpus: {name} isn't a known GPU.{hint} If it is a new one, set its speed: tflops: {{{name}: 100}}"
            )
    if rung.bid < 1:
        raise ValueError(f"ladder[{i}].bid: is a multiple of the lowest winning bid, so at least 1, but is {rung.bid}")
    if rung.count < 0:
        raise ValueError(f"ladder[{i}].count: must be 0 or more, is {rung.count}")
    if not rung.spot and rung.bid_usd_per_hour is not None:
        raise ValueError(
            f"ladder[{i}].bid_usd_per_hour: there is no bid on demand (spot: false). Remove one of the two"
        )
    for name in rung.tflops:
        if rung.tflops[name] <= 0:
            raise ValueError(f"ladder[{i}].tflops.{name}: must be above 0, is {rung.tflops[name]}")


def effective(rung: Rung, offer: Offer) -> float | None:
    """Returns $ per reliable hour: (our price + disk + expected traffic) ÷ reliability. None: above the cap."""
    ours = rung.price(offer)
    if ours is None:
        return None
    traffic = rung.upload_gb_per_hour * offer.upload_usd_per_gb + rung.download_gb_per_hour * offer.download_usd_per_gb
    return (ours + offer.disk_usd_per_hour + traffic) / max(offer.reliability, 0.01)


def speed(rung: Rung, offer: Offer) -> float | None:
    """Returns the TFLOPS of the whole machine, measured or published; for a machine without GPUs, its cores. None: unknown."""
    if not offer.count:
        return offer.cpus or None
    measured = [v for name, v in rung.tflops.items() if gpus.fits(name, offer.gpu)]
    one = measured[0] if measured else gpus.speed(offer.gpu)
    return one and one * offer.count


def usd_per_eflop(rung: Rung, offer: Offer) -> float | None:
    """Returns $ per 10^18 operations at the rated speed. None: above the cap, or the GPU's speed is unknown."""
    usd, tflops = effective(rung, offer), speed(rung, offer)
    return None if usd is None or tflops is None else usd / (tflops * 3600 / 1e6)


def ranked(rung: Rung, offers: Sequence[Offer]) -> list[Offer]:
    """Returns the offers within the cap, those with a certain public address first, then by price per operation; GPUs of unknown
    speed come last, by price."""

    def key(priced: tuple[Offer, float]) -> tuple[bool, bool, float]:
        offer, usd = priced
        work = usd_per_eflop(rung, offer)
        return (not offer.public_ip, work is None, usd if work is None else work)

    within = [(o, usd) for o in offers if (usd := effective(rung, o)) is not None]
    return [o for o, _ in sorted(within, key=key)]


def climb(
    rungs: Sequence[Rung],
    markets: Mapping[str, Market],
    order: Order,
    memory: Memory,
    rent: Callable[[Market, Offer, Order], str] = lambda market, offer, order: market.create(offer, order),
) -> tuple[Offer, str]:
    """Rents the first offer that can be had and returns it with the rental's id.

    order: its bid and image are set by the rung. rent: creates the rental and returns its id, such as Ledger.rent. If a market call
    fails, rungs of that kind (Rung.kind) are skipped for a while; all rungs of the market only if it is unreachable, since one
    call's failure says nothing about another. Raises NothingLeft, and Unsure as soon as a create got no conclusive answer, since
    trying another offer could rent twice.
    """
    why = []
    for i, rung in enumerate(rungs):
        try:
            return _rent(rung, markets[rung.market], order, memory, rent)
        except Unsure as e:
            memory.down(rung.kind, str(e))
            raise
        except NothingLeft as e:
            why.append(f"rung {i + 1}, {rung}: {e}")
        except Refused as e:
            why.append(f"rung {i + 1}, {rung}: refused: {e}")
        except MarketError as e:
            memory.down(rung.market if isinstance(e, Unreachable) else rung.kind, str(e))
            why.append(f"rung {i + 1}, {rung}: no answer: {e}")
    raise NothingLeft("Nothing to rent.\n" + "\n".join(f"  {w}" for w in why))


def _rent(
    rung: Rung, market: Market, order: Order, memory: Memory, rent: Callable[[Market, Offer, Order], str]
) -> tuple[Offer, str]:
    down = memory.is_down(rung.market) or memory.is_down(rung.kind)
    if down:
        raise NothingLeft(f"not tried again yet, {down}")
    offers = market.offers(rung.want(order.disk_gb))
    if not offers:
        raise NothingLeft("none is offered")
    bad = {o.machine: known for o in offers if (known := memory.is_bad(rung.market, o.machine))}
    good = [o for o in offers if o.machine not in bad]
    if not good:
        raise NothingLeft(f"only bad machines are offered: {'; '.join(f'{m}: {known}' for m, known in bad.items())}")
    candidates = ranked(rung, good)
    if not candidates:
        least = min(o.usd_per_hour + o.disk_usd_per_hour for o in good)
        if rung.bid_usd_per_hour is not None and rung.bid_usd_per_hour < min(o.usd_per_hour for o in good):
            limit = f"bid_usd_per_hour is {rung.bid_usd_per_hour:g}"
        else:
            limit = f"max_usd_per_hour is {rung.max_usd_per_hour:g}"
        raise NothingLeft(f"the cheapest of {len(good)} costs ${least:.3f}/h with its disk, {limit}")
    for offer in candidates[:AT_MOST]:
        bid = rung.price(offer) if rung.spot else None
        try:
            wanted = replace(order, bid_usd_per_hour=bid, image=rung.image or order.image)
            return offer, rent(market, offer, wanted)
        except Taken as e:
            last = e
    tried = min(len(candidates), AT_MOST)
    raise NothingLeft(f"none of {tried} could be had, of {len(candidates)} within the price; the last: {last}")
