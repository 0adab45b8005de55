"""Killed processes and full disks: after either, nothing is torn, and the next start gives the results of an undisturbed run.

`jobs` lists the commands with their inputs, `processes` runs a command in a forked process and ends it, `whole` looks at the files,
and `trials` disturbs one run and checks what follows. ``python -m tests.faults --kills 200 --disks 20`` runs the full campaign.
"""
