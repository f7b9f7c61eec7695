"""Code of the helper process, which imports no other part of `trl_akd`, and of the programs that it forks.

    caller ── exec ── fork server ── fork ── helper ── fork ── program

At level `bwrap`, and on systems without descriptors of processes (macOS), each helper is started by exec. Start
reading at `helper`, then `supervisor`, then `program`.
"""
