"""python -m cluster.sim: simulates both markets on this machine until Ctrl-C. Real boxes need root; --boxes none doesn't."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from cluster.sim import catalogue, faults
from cluster.sim.box import NamespaceBox, NoBox, why_not
from cluster.sim.network import Network
from cluster.sim.runpod import RunPod
from cluster.sim.vast import Vast
from cluster.sim.world import World


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m cluster.sim",
        description=__doc__,
        epilog="Controls:\n" + faults.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--vast", type=int, default=8801, metavar="PORT", help="port of Vast's API (8801); 0: any free one"
    )
    parser.add_argument("--runpod", type=int, default=8802, metavar="PORT", help="port of RunPod's API (8802); 0: any")
    parser.add_argument("--boxes", choices=("namespaces", "none"), default="namespaces",
                        help="none: instances are reported as running, but nothing runs")  # fmt: skip
    parser.add_argument("--image", choices=("here", "bare"), default="here",
                        help="image of the boxes. here: with Ray and this checkout; bare: without, as on the real markets")  # fmt: skip
    parser.add_argument("--network", choices=("flat", "isolated"), default="isolated",
                        help="isolated: boxes reach each other only through mapped ports; flat: by their own addresses")  # fmt: skip
    parser.add_argument(
        "--boot", type=float, default=5.0, metavar="SECONDS", help="time from the order until a box runs (5)"
    )
    parser.add_argument("--faults", type=float, default=0.0, metavar="RATE", help="random faults per minute (0)")
    parser.add_argument("--realistic", action="store_true",
                        help="as at the real markets, some of the cheapest hosts have an old driver, a slow line or no public "
                        "address, and boots take 0.5 to 3 times --boot")  # fmt: skip
    parser.add_argument("--pace", type=float, default=1.0, metavar="N", help="rate limits N times as generous, for clients with SHOESTRING_PACE=N (1)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="random seed of prices, machines and faults (0)")
    parser.add_argument("--state", type=Path, default=Path(tempfile.gettempdir()) / "shoestring-sim", metavar="FOLDER",
                        help="folder for the boxes' disks; leftovers of a dead simulator in it are removed")  # fmt: skip
    parser.add_argument("--share", type=Path, action="append", default=[], metavar="PATH",
                        help="mounted writable in every box at the same path, as a shared file system; repeatable")  # fmt: skip
    parser.add_argument("--runpod-spec", type=Path, metavar="FILE",
                        help="RunPod's OpenAPI description, against which every body and reply is also checked")  # fmt: skip
    return parser.parse_args(argv)


class Server(uvicorn.Server):
    """A server without signal handlers, since this process runs two."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


def listen(addresses: list[str], port: int) -> list[socket.socket]:
    """Returns sockets that listen on the same port on all addresses."""
    sockets = []
    for address in addresses:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((address, port))
        s.listen(2048)  # requests wait from now on, although the server's task hasn't begun
        port = s.getsockname()[1]
        sockets.append(s)
    return sockets


def make_apps(
    world: World, faults_per_minute: float, seed: int, runpod_spec: Path | None = None
) -> tuple[dict[str, Starlette], faults.Controls]:
    """Returns the application of each market, both with the controls, and the controls."""
    apis = {"vast": Vast(world), "runpod": RunPod(world, runpod_spec)}
    controls = faults.Controls(world, apis, faults_per_minute, seed)
    return {market: Starlette(routes=api.routes + controls.routes) for market, api in apis.items()}, controls


async def serve(args: argparse.Namespace) -> None:
    addresses, make_box, network = ["127.0.0.1"], NoBox, None
    if args.boxes == "namespaces":
        network = Network(args.state)
        addresses.append(network.public)  # for the boxes
        state, shared = args.state.resolve(), [path.resolve(strict=True) for path in args.share]
        shutil.rmtree(state / "boxes", ignore_errors=True)
        make_box = lambda: NamespaceBox(network, state, shared, bare=args.image == "bare")  # noqa: E731
    machines = catalogue.machines(args.seed) + (catalogue.bad_machines(args.seed) if args.realistic else [])
    flat = args.network == "flat"
    world = World(machines, make_box, args.boot, args.seed, args.pace, flat, args.realistic)
    apps, controls = make_apps(world, args.faults, args.seed, args.runpod_spec)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    servers, tasks = [], []
    for market, app in apps.items():
        sockets = listen(addresses, getattr(args, market))
        world.urls[market] = (
            f"http://{addresses[-1]}:{sockets[0].getsockname()[1]}"  # the public address if there is one
        )
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, access_log=False)
        servers.append(Server(config))
        tasks.append(asyncio.create_task(servers[-1].serve(sockets=sockets)))
    clock = asyncio.create_task(controls.run(stop))
    print(welcome(world, args), flush=True)
    await asyncio.wait([asyncio.create_task(stop.wait()), clock, *tasks], return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    for server in servers:
        server.should_exit = True
    failures = await asyncio.gather(*tasks, clock, return_exceptions=True)
    for rental in world.alive():
        await world.end(rental, "destroyed", "the simulator ends")
    if network:
        network.close()
    for failure in filter(None, failures):
        raise failure
    bill = world.bill()
    print(f"{len(bill['rentals'])} rentals, ${bill['total_usd']:.4f} in all", flush=True)


def welcome(world: World, args: argparse.Namespace) -> str:
    exports = {f"{m.upper()}_URL": url for m, url in world.urls.items()}
    exports |= {f"{m.upper()}_API_KEY": key for m, key in world.keys.items()}
    exports |= {"SHOESTRING_DOWNLOAD": f"{world.urls['vast']}/_sim/download"}
    exports |= {"SHOESTRING_PACE": f"{args.pace:g}"} if args.pace != 1 else {}
    lines = [f"export {k}={shlex.quote(v)}" for k, v in exports.items()]
    return "\n".join(
        [
            f"Vast and RunPod, simulated: {len(world.machines)} machines, network {args.network}, boxes {args.boxes}.",
            "In another terminal:",
            "",
            *("  " + line for line in lines),
            "  python -m cluster offers --max-price 0.50",
            "  ray up -y cluster/vast.yaml",
            f"  curl -s {world.urls['vast']}/_sim/bill",
            "",
            "Ctrl-C ends every box and prints the bill.  Controls: python -m cluster.sim --help",
        ]
    )


def main(argv: list[str]) -> int:
    args = arguments(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("cluster.sim").setLevel(logging.INFO)
    if args.boxes == "namespaces" and (reason := why_not()):
        print(f"python -m cluster.sim: {reason}", file=sys.stderr)
        return 2
    try:
        asyncio.run(serve(args))
    except (ValueError, OSError, OverflowError) as error:  # OverflowError: a port above 65535
        print(f"python -m cluster.sim: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
