"""Both markets on this machine, for nothing: Vast- and RunPod-shaped APIs whose instances are real sshd boxes.

    world.py      the life of the rentals, and their bill           catalogue.py  the machines of the default world
    rental.py     machine, order, rental
    api.py        what every endpoint shares: keys, rate limits, injected faults, strict bodies
    vast.py       Vast's REST API
    runpod.py     RunPod's REST v2, its bodies in pods.py, its catalog in stock.py
    box.py        an instance: namespaces, a root file system of its own, sshd
    network.py    bridge, addresses, clearing up                    ports.py      mapped ports
    faults.py     /_sim: what can be done to a rental, a price or an endpoint, by hand or at random

`python -m cluster.sim --help` lists all controls.
"""
