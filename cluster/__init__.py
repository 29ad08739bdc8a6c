"""From one machine to a fleet of rented GPUs: market clients, Ray's node provider, the network between nodes, and cost control.

    market/      what is for rent: a client for each market (vast, runpod over http), their offers, and the ladder that picks the next one
    money/       the ledger of every rental and its cost, copies of other machines' ledgers, spending caps
    node/        from a rental to a node of Ray: configuration, SSH, set-up, mesh of tunnels, watchdog, and destroying it
    estimate/    memory, hours and dollars of a job on a machine, before anything is rented
    check/       an end-to-end check on a real market
    sim/         a simulator of both markets on this machine

    provider.py  Ray's NodeProvider over all markets
    head.py      this machine as the head
    offers.py  plan.py  status.py  cost.py  ssh.py  sweep.py     commands

Users run `python -m cluster COMMAND`; `ray up cluster/vast.yaml` imports provider.py.
"""
