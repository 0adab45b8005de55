"""Damaged files of every kind that medseg reads: each is read as a correct file or refused with a message, nothing else.

`kinds` builds an intact file of each kind and reads it, `damage` changes its bytes, and `server` reads every damaged file
in a child process with limits. ``python -m tests.fuzz --variants 10000`` runs as many variants as wanted.
"""
