#!/usr/bin/env python3
"""Opens new volumes to the users that pods run as.

kube-controller-manager's hostpath provisioner makes a volume's directory for root alone, and kubelet changes no owner
of such a volume (fsGroup is not for hostPath). Other local provisioners make theirs open to everybody; the directory
above, which only root may enter, is what protects the volumes on the machine.
"""

import contextlib
import sys
import time
from pathlib import Path

PROVISIONED = 0o750


def main() -> None:
    """Look every half second: a pod needs longer than that from the volume to its first process."""
    directory = Path(sys.argv[1])
    while True:
        for volume in directory.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if volume.stat().st_mode & 0o777 == PROVISIONED:
                    volume.chmod(0o777)
        time.sleep(0.5)


if __name__ == "__main__":
    main()
