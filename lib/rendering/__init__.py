"""Rows as a stage's trainer will turn them into tokens, compared with the rows before anything is trained on.

sequences.py    a row's renderings and tokens, as TRL's trainers make them
losses.py       which text of a row is not in its rendering
counts.py       what is learnt, cut, dropped, left out of many rows, and what of it stops a job
sample.py       on the driver: a sample of the rows, by a process that has a tokenizer and no torch (python -m lib.rendering)
whole.py        on the workers: every row, and the end of a turn in the exported model's generation config
"""
