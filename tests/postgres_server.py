"""A real PostgreSQL server in a folder of its own, from Debian's package `postgresql`."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import psycopg
from psycopg import sql

from tests.ports import find_free_ports

SERVER_USER = "postgres"
PROGRAMS = ("initdb", "pg_ctl")


def find_binaries() -> Path | None:
    """The folder of initdb and pg_ctl; None if PostgreSQL is not installed. Debian keeps it out of PATH."""
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    folders += [Path(path).parent for path in [shutil.which("initdb")] if path]
    return next((folder for folder in folders if all((folder / name).is_file() for name in PROGRAMS)), None)


def why_not() -> str | None:
    """Why no server can run here; None if one can."""
    if find_binaries() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if os.getuid() == 0 and SERVER_USER not in {entry.pw_name for entry in pwd.getpwall()}:
        return f"PostgreSQL does not run as root, and there is no user {SERVER_USER}"
    return None


class PostgresServer:
    """A server that trusts every connection. It is not made to survive a crash of the machine."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        """`address` is that of this machine in the network whose hosts may connect."""
        self._address = address
        binaries = find_binaries()
        assert binaries is not None, why_not()
        self._binaries = binaries
        # The server's user may not look into the folders of pytest.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._user = SERVER_USER if os.getuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
        [self._port] = find_free_ports(1, address)

    def create(self, *databases: str) -> None:
        """Create the server's files, start it and create the databases."""
        self._run("initdb", "-D", str(self.folder / "data"), "-A", "trust", "-U", SERVER_USER, "--no-sync")
        with (self.folder / "data" / "pg_hba.conf").open("a") as file:
            file.write("host all all samenet trust\n")
        self.start()
        with psycopg.connect(self.uri("postgres"), autocommit=True) as connection:
            for database in databases:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        options = f"-p {self._port} -c listen_addresses={self._address} -c unix_socket_directories= -c fsync=off"
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"
        )

    def stop(self) -> None:
        """Stop the server at once; clients lose their connections."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        """Stop the server if it runs, and remove its files."""
        if (self.folder / "data" / "postmaster.pid").is_file():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def uri(self, database: str) -> str:
        """The URI of a database for SQLAlchemy."""
        return f"postgresql://{SERVER_USER}@{self._address}:{self._port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        subprocess.run(command, user=self._user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, timeout=120)
