"""`python -m trl_akd`, the same as the command `trl-akd`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
