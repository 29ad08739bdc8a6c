"""Renders rows into tokens as a stage's trainer will, and compares the result with the rows before any training.

sequences.py    a row's renderings and tokens, as TRL's trainers make them
losses.py       the text of a row that is missing from its rendering
counts.py       counts over many rows: tokens learnt, examples cut, dropped or incomplete
verdict.py      which counts stop a job
shown.py        a row as the model sees it, for the plan
sample.py       on the driver: renders a sample of the rows, in a process without torch (python -m lib.rendering)
whole.py        on the workers: renders every row, and adds the ends of turns to the exported model's generation config
"""
