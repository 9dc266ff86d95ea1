"""How many connections MLflow may open, how many PostgreSQL has for it, and what would fit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .database import Server, Wanted, first, rows, second_login
from .errors import Error

# A worker has an engine with a pool of its own for each of these stores, even where they are in one database. The one
# of the jobs is made at the first request to /jobs, also where no job is ever executed.
STORES = ("tracking", "registry", "auth", "jobs")
# The process that starts the workers looks at the databases first, and keeps a connection to each of these.
STARTER = ("tracking", "registry", "auth")
# With job execution: seven consumers of jobs, one of periodic tasks, and the runner that starts them, each of which
# asks for jobs and reads what they are about.
BACKGROUND = 9 * 2
# An upgrade's Job, the programs of a backup and Ansible, at the same time.
JOBS = 5
VARIABLES = {
    "replicas": "mlflow_server_replicas",
    "max_replicas": "mlflow_server_max_replicas",
    "workers": "mlflow_server_workers",
    "pool_size": "mlflow_server_pool_size",
    "max_overflow": "mlflow_server_pool_max_overflow",
}
# Sessions of PostgreSQL's own processes have no database. What kind another role's session is, not everybody may see.
ROOM = """
    SELECT current_setting('max_connections')::int AS maximum,
           current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0) AS reserved,
           (SELECT count(*) FROM pg_stat_activity
            WHERE pid <> pg_backend_pid() AND datid IS NOT NULL AND usename IS NOT NULL
                AND coalesce(backend_type, 'client backend') = 'client backend' AND NOT usename = ANY(%s)) AS used,
           coalesce((SELECT rolconnlimit FROM pg_roles WHERE rolname = %s), -1) AS role_limit"""
LIMITS = "SELECT datname, datconnlimit FROM pg_database WHERE datname = ANY(%s) AND datconnlimit >= 0"


@dataclass(frozen=True)
class Load:
    """The servers: how many, and what each worker may open.

    ``databases`` are the stores' databases, as in STORES. Where ``max_replicas`` are more than ``replicas``, an
    autoscaler starts as many.
    """

    replicas: int
    workers: int
    pool_size: int
    max_overflow: int
    job_execution: bool = False
    databases: tuple[str, ...] = ("", "", "", "")
    max_replicas: int = 0

    def check(self) -> None:
        """Refuse numbers that would not be what MLflow uses.

        :raises Error: naming the variable.
        """
        for name, variable in VARIABLES.items():
            least = 0 if name in ("replicas", "max_replicas") else 1
            if getattr(self, name) < least:
                unset = "; MLflow takes 0 for unset" if name in ("pool_size", "max_overflow") else ""
                raise Error(f"{variable} is {getattr(self, name)}; expected at least {least}{unset}")

    @property
    def most(self) -> int:
        """How many replicas there may be."""
        return max(self.replicas, self.max_replicas)

    @property
    def pods(self) -> int:
        """How many pods there are while a rollout replaces them."""
        return self.most + 1

    def servers(self, database: str | None = None) -> int:
        """The connections of all pods, to one database or to all."""
        place = dict(zip(STORES, self.databases, strict=True))
        engines = sum(database in (None, place[store]) for store in STORES)
        starter = sum(database in (None, place[store]) for store in STARTER)
        background = BACKGROUND if self.job_execution and database in (None, place["jobs"]) else 0
        return self.pods * (self.workers * engines * (self.pool_size + self.max_overflow) + starter + background)

    def total(self, database: str | None = None) -> int:
        """With the Jobs, which may run at the same time."""
        return self.servers(database) + JOBS

    def sum(self) -> str:
        """How the total comes about."""
        background = f" + {BACKGROUND} of job execution" if self.job_execution else ""
        return (
            f"({self.most} replica{'' if self.most == 1 else 's'} + 1 during a rollout) x "
            f"({self.workers} worker{'' if self.workers == 1 else 's'} x {len(STORES)} engines x "
            f"({self.pool_size} pool + {self.max_overflow} overflow) + {len(STARTER)} of the starting process"
            f"{background}) + {JOBS} of Jobs and Ansible = {self.total()}"
        )


@dataclass(frozen=True)
class Room:
    """What PostgreSQL has.

    Attributes:
        maximum: Its max_connections.
        reserved: For superusers, and since PostgreSQL 16 for a predefined role.
        used: By other roles than MLflow's, now.
        role_limit: The CONNECTION LIMIT of the servers' role; negative for none.
        database_limits: Those of the databases.
    """

    maximum: int
    reserved: int
    used: int
    role_limit: int = -1
    database_limits: dict[str, int] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """What MLflow may open."""
        return self.maximum - self.reserved - self.used

    def holds(self, load: Load) -> bool:
        """Whether all that the servers and Jobs may open fits."""
        return (
            load.total() <= self.free
            and not 0 <= self.role_limit < load.servers()
            and not any(0 <= limit < load.total(name) for name, limit in self.database_limits.items())
        )


def refuse(connection, server: Server, wanted: Wanted) -> None:
    """Ask PostgreSQL, which any role may, and refuse servers that it has no room for.

    :raises Error: with the sum, and settings that fit.
    """
    if wanted.load is None:
        return
    role = wanted.runtime.username
    found = first(connection, ROOM, [[role, second_login(role), wanted.migrator.username], role])
    limits = {row["datname"]: row["datconnlimit"] for row in rows(connection, LIMITS, [wanted.databases])}
    told = problem(wanted.load, Room(database_limits=limits, **found), role)
    if told:
        raise Error(f"PostgreSQL {server.label}: {told}")


def problem(load: Load, room: Room, role: str) -> str:
    """What is refused, the sum, and settings that fit; empty where everything fits.

    :param role: the name of the servers' role.
    """
    if room.holds(load):
        return ""
    told, helps = [], []
    if load.total() > room.free:
        told.append(
            f"it has {room.free} connections for MLflow (max_connections {room.maximum} - {room.reserved} reserved - "
            f"{room.used} that others use now)"
        )
        helps.append(f"max_connections {load.total() + room.reserved + room.used}")
    if 0 <= room.role_limit < load.servers():
        told.append(f"role {role} has CONNECTION LIMIT {room.role_limit}")
        helps.append(f"CONNECTION LIMIT {load.servers()} of role {role}")
    for name, limit in room.database_limits.items():
        if 0 <= limit < load.total(name):
            told.append(f"database {name} has CONNECTION LIMIT {limit}")
            helps.append(f"CONNECTION LIMIT {load.total(name)} of database {name}")
    return (
        f"{'; '.join(told)}, and MLflow may open {load.sum()}; expected "
        f"{' or '.join([*settings_that_fit(load, room), ' with '.join(helps)])}; nothing was changed"
    )


def settings_that_fit(load: Load, room: Room) -> list[str]:
    """The largest smaller settings of the servers that fit, each by itself."""

    def fits(**numbers: int) -> str:
        if not room.holds(replace(load, **numbers)):
            return ""
        return " and ".join(f"{VARIABLES[name]} {number}" for name, number in numbers.items())

    # The pool and its overflow together have at least two.
    pools = (
        fits(pool_size=pool, max_overflow=size - pool)
        for size in range(load.pool_size + load.max_overflow - 1, 1, -1)
        for pool in [min(load.pool_size, size - 1)]
    )
    workers = (fits(workers=number) for number in range(load.workers - 1, 0, -1))
    # An autoscaler may be left no room; fewer pods than the least are another setting.
    name, least = ("max_replicas", max(load.replicas, 1)) if load.most > load.replicas else ("replicas", 1)
    replicas = (fits(**{name: number}) for number in range(load.most - 1, least - 1, -1))
    return [found for ways in (pools, workers, replicas) if (found := next(filter(None, ways), ""))]
