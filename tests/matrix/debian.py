"""A small Debian, whose Python and PyTorch (a CPU's) are not this machine's."""

import os
import shutil
import ssl
from pathlib import Path

from command import ROOT, NotRun, run

INSTALL = "apt-get install -y -qq --no-install-recommends python3-torch python3-venv ca-certificates"
NOT_COMPILED = "dpkg-divert --quiet --rename /usr/bin/py3compile; ln -sf /bin/true /usr/bin/py3compile"  # thousands, few used
# Nothing of this machine can be written from within, and the mounts end with the script.
MOUNTED = """
    mount -t proc proc proc
    mkdir -p repository  # not "twinflow", which pytest would take for the package of that name
    mount -o bind,ro "$REPOSITORY" repository
    exec chroot . sh -ec "cd /repository; $SCRIPT"
"""


class Debian:
    """Of a suite such as "trixie", in a folder of some 2 GB; made where it is not there."""

    def __init__(self, suite: str, folder: Path):
        if os.geteuid():
            raise NotRun("needs root")
        if lacking := [name for name in ("debootstrap", "unshare", "chroot") if not shutil.which(name)]:
            raise NotRun(f"needs {', '.join(lacking)}")
        self.folder = folder
        if (finished := folder / "finished").exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        run("debootstrap", "--variant=minbase", suite, folder)
        self.run(f"{NOT_COMPILED}; DEBIAN_FRONTEND=noninteractive {INSTALL}")
        if certificates := ssl.get_default_verify_paths().cafile:  # a company's own, for pip
            shutil.copy(certificates, folder / "certificates")
        finished.touch()

    def run(self, script: str) -> str:
        """The last line of a shell script in it, which starts in this repository, read-only."""
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "REPOSITORY": str(ROOT), "SCRIPT": script}
        environment |= {"PYTHONPYCACHEPREFIX": "/tmp/compiled", "OMP_NUM_THREADS": "1"}
        if (self.folder / "certificates").exists():
            environment |= dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), "/certificates")
        return run("unshare", "--mount", "sh", "-ec", MOUNTED, environment=environment, cwd=self.folder)
