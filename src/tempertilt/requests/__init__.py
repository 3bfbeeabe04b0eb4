"""The ledger of removal requests: who asked for what and when, and the part of the adapter that each request has."""

from tempertilt.requests.faults import Fault as Fault
from tempertilt.requests.ledger import Ledger as Ledger
from tempertilt.requests.signing import Author as Author
from tempertilt.requests.state import ActivePart as ActivePart
from tempertilt.requests.state import Details as Details
from tempertilt.requests.state import RequestState as RequestState
