"""From one machine to a fleet of rented GPUs: markets, the node provider that drives them, the network between, and the money.

    market.py    Offer, Order, Rental and the five calls of a Market          vast.py  runpod.py     one client each
    client.py    HTTP: pacing, retries, typed replies                         markets.py             names → clients, keys
    ladder.py    which offer next: spot, another spot, on demand, another market
                 memory.py  bad machines, markets that are down          gpus.py  their names and listed speed
    offers.py    priced candidates of all markets
    provider.py  Ray's NodeProvider over all of them     tags.py  its tags in a rental's label     runner.py  SSH to a mapped port
                 nodes.py  what it knows of each rental   join.py  what a node is given             lost.py  telling Ray of one that is gone
    bootstrap.py from a short YAML to Ray's               head.py  this machine as the head         folder.py  ~/.shoestring/NAME, the SSH key
    mesh.py      a network of SSH tunnels that the head dials, for nodes that share none; mesh.sh and portpin.c are its part on a node
    ledger.py    every rental and what it cost           budget.py  the caps      watchdog.sh  ends a rental whose head is gone
                 entry.py  one rental    journal.py  its file    copies.py  in a store    kept.py  a market under both
    steward.py   what the head does for them every few seconds
    cost.py      by node, job and stage      status.py  what runs, link.py  how it is reached      sweep.py  what was left behind
    plan.py      memory, hours and dollars before anything is rented        work.py  lengths.py   what is to be done
                 anatomy.py  footprint.py  bytes on a device                throughput.py  speed    waste.py  how often to save
                 candidates.py  where    judge.py  whether it fits
    check/       the whole of it tried once on a real market: steps.py in order, box.py by SSH, jobs.py on Ray
    sim/         both markets on this machine, for nothing

`python -m cluster COMMAND` is what a person types; `ray up cluster/vast.yaml` imports provider.py.
"""
