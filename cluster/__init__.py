"""From one machine to a fleet of rented GPUs: markets, the node provider that drives them, the network between, and the money.

    market.py    Offer, Order, Rental and the calls of a Market               vast.py  runpod.py     one client each
    client.py    HTTP: pacing, retries, typed replies                         markets.py             names → clients, keys
                 rows.py  a market's rows, odd ones too    vast_replies.py  runpod_replies.py  their shapes
    ladder.py    which offer next: spot, another spot, on demand, another market
                 memory.py  what went bad or is down    gpus.py  names and listed speed    offers.py  candidates of all markets
    provider.py  Ray's NodeProvider over all of them       nodes.py  what it knows of each rental     tags.py  in a rental's label
                 failures.py  why nothing is rented        ending.py  how rentals end                 boots.py  logs of failed boots
                 lost.py  telling Ray of one that is gone  reminder.py  what a failed `ray up` leaves
    bootstrap.py from a short YAML to Ray's                config_schema.py  its keys                 programs.py  that leading takes
                 head.py  this machine as the head         folder.py  ~/.shoestring/NAME, the SSH key
    join.py      how a rental becomes a node: runner.py  SSH to a mapped port   install.sh  Python, Ray, packages
                 driver.py  probe.py  its GPU's driver     watchdog.py  watchdog.sh  ends a rental whose head is gone
    mesh.py      a network of SSH tunnels that the head dials, for nodes that share none; mesh.sh and portpin.c are its part on a node
    ledger.py    every rental and what it cost             accounts.py  its sums    entry.py  one rental    journal.py  its file
                 copies.py  of other machines, in a store  head_ledger.py  a rented head's    kept.py  a market under ledger and budget
                 budget.py  the caps                       steward.py  what the head does for both every few seconds
    status.py    what runs: progress.py  how far it is, link.py  how it is reached          ssh.py  a shell on it
                 cost.py  by node, job and stage           sweep.py  what was left behind
    plan.py      memory, hours and dollars before anything is rented          work.py  lengths.py   what is to be done
                 anatomy.py  footprint.py  bytes on a device                  throughput.py  speed    waste.py  how often to save
                 candidates.py  where    judge.py  whether it fits
    check/       the whole of it tried once on a real market: steps.py in order, box.py by SSH, jobs.py on Ray
    sim/         both markets on this machine, for nothing

`python -m cluster COMMAND` is what a person types; `ray up cluster/vast.yaml` imports provider.py.
"""
