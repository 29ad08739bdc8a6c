"""A free simulation of both markets on this machine: APIs like Vast's and RunPod's whose instances are real sshd boxes.

    world.py      life cycle and bill of the rentals                catalogue.py  the machines of the default world
    rental.py     machine, order, rental
    api.py        common parts of all endpoints: keys, rate limits, injected faults, strict bodies
    vast.py       Vast's REST API
    runpod.py     RunPod's REST v2, its bodies in pods.py, its catalog in stock.py
    box.py        an instance: namespaces, its own root file system, sshd
    network.py    bridge, addresses, cleanup                        ports.py      mapped ports
    faults.py     /_sim: faults of a rental, a price or an endpoint, injected on request or at random

`python -m cluster.sim --help` lists all controls.
"""
