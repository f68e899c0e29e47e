"""The programs that ``throughput.py`` times, ours among them; each runs in a process of its own.

A program is made from a `Workload` and has three methods:

- ``losses()``: both losses (MLM, NSP) of the first batch with the workload's weights and no
  dropout, as a pair of floats; None where the program computes another loss.
- ``start()``: make the network and the optimizer that are timed, and lay out all batches.
- ``step(number)``: train on that batch, to the last weight.

Laying out comes before the clock starts, for all alike.
"""
