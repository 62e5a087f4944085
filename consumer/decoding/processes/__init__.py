"""Decoding in processes of their own: outside the interpreter's lock, and killable.

`pool` is the program's side and hands frames out; `process` is one decoding process as the program sees it, `child`
what runs in it; `memory` is what they share, `protocol` what they say. Nothing is imported here: a decoding process
starts in a quarter of the time without what only the program's side needs.
"""
