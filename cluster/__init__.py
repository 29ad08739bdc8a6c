"""From one machine to a fleet of rented GPUs: market clients, Ray's node provider, the network between nodes, and cost control.

    market.py    Offer, Order, Rental and the calls of a Market               vast.py  runpod.py     one client each
    client.py    HTTP: pacing, retries, typed replies                         markets.py             names → clients, keys
                 rows.py  a market's rows, malformed ones included    vast_replies.py  runpod_replies.py  their schemas
    ladder.py    which offer to try next: spot, another spot, on demand, another market
                 memory.py  bad machines and markets that are down    gpus.py  names and listed speed    offers.py  offers of all markets
    provider.py  Ray's NodeProvider over all markets       nodes.py  the state of each rental         tags.py  in a rental's label
                 failures.py  why nothing is rented        ending.py  destroying rentals              boots.py  logs of failed boots
                 lost.py  reports lost nodes to Ray        reminder.py  warns of a head left by a failed `ray up`
    bootstrap.py from a short YAML to Ray's                config_schema.py  its keys                 programs.py  that a head requires
                 head.py  this machine as the head         folder.py  ~/.shoestring/NAME, the SSH key
    join.py      how a rental becomes a node: runner.py  SSH to a mapped port   install.sh  Python, Ray, packages
                 driver.py  probe.py  its GPU's driver     watchdog.py  watchdog.sh  ends a rental whose head is gone
    mesh.py      SSH tunnels opened by the head, for nodes without a common network; mesh.sh and portpin.c are the node's side
    ledger.py    every rental and its cost                 accounts.py  its sums    entry.py  one rental    journal.py  its file
                 copies.py  of other machines' ledgers     head_ledger.py  a rented head's    kept.py  a market under ledger and budget
                 budget.py  spending caps                  steward.py  the head's periodic work on ledger and budget
    status.py    what runs: progress.py  each rental's boot, link.py  the network to each node         ssh.py  a shell on a node
                 cost.py  by node, job and stage           sweep.py  rentals left behind
    plan.py      memory, hours and dollars before anything is rented          work.py  lengths.py   the work of a job
                 anatomy.py  footprint.py  bytes on a device                  throughput.py  speed    waste.py  how often to save
                 candidates.py  machines to compare    judge.py  whether a job fits
    check/       an end-to-end check on a real market: steps.py in order, box.py by SSH, jobs.py on Ray
    sim/         a simulator of both markets on this machine

Users run `python -m cluster COMMAND`; `ray up cluster/vast.yaml` imports provider.py.
"""
