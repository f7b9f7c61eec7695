"""Code of the helper process, which imports no other part of `trl_akd`, and of the programs that it forks.

    caller ── exec ── helper ── fork ── program

Start reading at `helper`, then `supervisor`, then `program`.
"""
