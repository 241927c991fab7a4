"""A stand-in for an OSCAR v4 cluster that misbehaves as the real one does, and really runs its jobs.

Written from the sources of `grycap/oscar` (4.1.2), `grycap/faas-supervisor` and `grycap/oscar-supervisor`;
each unpleasant behaviour names the file it comes from.

Begin with `cluster`, which is all that is behind HTTP, and `server`, its front door. `invocation` takes
events; `services_api`, `jobs_api` and `cluster_api` answer `/system`, with `logins` before them. `jobs` are
Kubernetes' objects, `pods` and `places` run them. What goes wrong on request is in `faults`; `control` is for
a person with curl.
"""

from bridge.sandbox.oscar.faults import Fault, Faults
from bridge.sandbox.oscar.job import Job
from bridge.sandbox.oscar.ledger import Activity, Ledger
from bridge.sandbox.oscar.server import SandboxOscar
from bridge.sandbox.oscar.services import Service
from bridge.sandbox.oscar.settings import Settings

__all__ = ["Activity", "Fault", "Faults", "Job", "Ledger", "SandboxOscar", "Service", "Settings"]
