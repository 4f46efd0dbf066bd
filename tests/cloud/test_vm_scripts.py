"""The VM's scripts follow the metadata: they run here, with a stand-in for the metadata server.

`docker` and `systemctl` are stand-ins, too, which record what they are asked for.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import TEMPLATE, start
from google_stand_ins import Request, Response, handler, serving

SCRIPTS = TEMPLATE / "template" / "infra" / "vm"
ATTRIBUTES = "/computeMetadata/v1/instance/attributes/"
STATE = "/computeMetadata/v1/instance/guest-attributes/dagster/state"

START_ALL = "systemctl start --no-block dagster-code-location dagster-web dagster-daemon"
SECRETS = {
    "TOKEN": b"https://example.com/?a=b%20c\n",
    "ODD": rb"""a\new 'quote' "and" $HOME \c""",
    "KEY": b"-----BEGIN\npassword\n",
}
# Records the command, and fails if there is a file with the name of its first word.
PROGRAM = """#!/bin/sh
case "$*" in
    "image inspect"*) [ -e "$FOLDER/found-image" ]; exit ;;
    *liveness-check) [ ! -e "$FOLDER/failing-daemon" ]; exit ;;
esac
echo "$(basename "$0") $*" >>"$FOLDER/commands"
[ ! -e "$FOLDER/failing-$1" ]
"""
# Only the web server is a stand-in.
CURL = """#!/bin/sh
case "$*" in
    *:3000/*) [ ! -e "$FOLDER/failing-web" ] ;;
    *) exec "$CURL" "$@" ;;
esac
"""


@dataclass
class Machine:
    """A VM, as its scripts see it.

    Attributes:
        folder: What the stand-ins record, and which of them fail.
        attributes: The metadata.
        states: What the VM has reported.
    """

    folder: Path
    attributes: dict[str, str] = field(default_factory=lambda: {"dagster-revision": "r1"})
    states: list[str] = field(default_factory=list)
    port: int = 0

    def serve(self, request: Request) -> Response:
        """Respond as the metadata server, or as Secret Manager."""
        if ":access" in request.path:
            assert request.bearer == "a-token"
            name = request.path.split("/")[-3]
            if name not in SECRETS:
                return Response(403)
            payload = {"payload": {"data": base64.b64encode(SECRETS[name]).decode()}}
            return Response(200, json.dumps(payload, indent=2).encode())
        assert request.headers["metadata-flavor"] == "Google"
        path = request.path.partition("?")[0]
        if (request.method, path) == ("PUT", STATE):
            state, _, revision = request.content.decode().rpartition(" ")
            assert revision == "r1"
            self.states.append(state)
            return Response(200)
        if path == ATTRIBUTES:
            time.sleep(0.1)  # the timeout of a wait for a change
            return Response(200, self.attributes)
        if path.endswith("/token"):
            return Response(200, {"access_token": "a-token", "expires_in": 3600})
        name = path.removeprefix(ATTRIBUTES)
        if name not in self.attributes:
            return Response(404)
        return Response(200, self.attributes[name].encode())

    def recorded(self) -> list[str]:
        """What docker and systemctl were asked for."""
        file = self.folder / "commands"
        return file.read_text().splitlines() if file.exists() else []

    def commands(self) -> list[str]:
        """What docker and systemctl were asked for, but for what shows their state."""
        state = r"-check\b|^systemctl status"
        return [line for line in self.recorded() if not re.search(state, line)]

    def environment(self, healthy_within: int = 0) -> dict[str, str]:
        """The environment of a script, which waits that many seconds for what it starts."""
        return {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "FOLDER": str(self.folder),
            "CURL": shutil.which("curl") or "curl",
            "GCE_METADATA_HOST": f"127.0.0.1:{self.port}",
            "STATE": str(self.folder / "state"),
            "HEALTHY_WITHIN": str(healthy_within),
            "SECRET_MANAGER": f"http://127.0.0.1:{self.port}",
        }

    @contextmanager
    def rolling_out(self, healthy_within: int = 0) -> Iterator["subprocess.Popen[str]"]:
        """Run rollout.sh during the block, and kill it with all that it runs."""
        command = ("sh", str(SCRIPTS / "rollout.sh"), "r1")
        environment = self.environment(healthy_within)
        with start(*command, cwd=self.folder, env=environment) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):  # it has ended
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    programs = {"docker": PROGRAM, "systemctl": PROGRAM, "update_engine_client": PROGRAM}
    for name, text in {**programs, "curl": CURL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with serving(handler(machine.serve)) as machine.port:
        yield machine


def until(holds: Callable[[], bool]) -> None:
    """Wait for something to happen."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        time.sleep(0.05)


def test_without_an_image_the_vm_waits(machine: Machine) -> None:
    with machine.rolling_out() as process:
        time.sleep(1)

        assert process.poll() is None
        assert machine.commands() == []
        assert machine.states == []


def test_a_new_image_replaces_the_one_that_runs(machine: Machine) -> None:
    machine.attributes["dagster-image"] = "image@1"
    with machine.rolling_out():
        until(lambda: "running image@1" in machine.states)
        machine.attributes["dagster-image"] = "image@2"
        until(lambda: "running image@2" in machine.states)

    assert machine.states[0] == "starting image@1"
    commands = machine.commands()
    assert commands[commands.index("docker pull --quiet image@2") :] == [
        "docker pull --quiet image@2",
        "systemctl stop dagster-daemon",
        "systemctl stop dagster-web dagster-code-location",
        "systemctl start --no-block dagster-code-location",
        "docker exec code-location dagster-daemon wipe",
        "systemctl start --no-block dagster-web dagster-daemon",
        "docker image prune --all --force",
    ]
    state = (machine.folder / "state" / "image").read_text()
    assert re.fullmatch(r"IMAGE=image@2\nCODE_LOCATION_MEMORY=-?\d+k\n", state)


def test_an_image_that_cannot_be_pulled_replaces_nothing_and_is_tried_again(
    machine: Machine,
) -> None:
    machine.attributes["dagster-image"] = "image@1"
    (machine.folder / "failing-pull").touch()
    with machine.rolling_out():
        until(lambda: machine.states.count("failed image@1") > 1)
        assert not any(line.startswith("systemctl") for line in machine.commands())
        (machine.folder / "failing-pull").unlink()
        until(lambda: "running image@1" in machine.states)


@pytest.mark.parametrize("part", ["exec", "web", "daemon"])
def test_an_image_that_does_not_run_is_reported(machine: Machine, part: str) -> None:
    machine.attributes["dagster-image"] = "image@1"
    (machine.folder / f"failing-{part}").touch()
    with machine.rolling_out():
        until(lambda: "failed image@1" in machine.states)
        assert "running image@1" not in machine.states
        assert any("systemctl status" in line for line in machine.recorded())
        (machine.folder / f"failing-{part}").unlink()
        until(lambda: machine.states[-1] == "running image@1")


def test_what_runs_goes_on_if_the_script_starts_again(machine: Machine) -> None:
    machine.attributes["dagster-image"] = "image@1"
    with machine.rolling_out():
        until(lambda: "running image@1" in machine.states)
    before = machine.commands()

    with machine.rolling_out():
        until(lambda: len(machine.commands()) > len(before))
        machine.states.clear()
        until(lambda: "running image@1" in machine.states)

    assert machine.commands() == [*before, START_ALL]


def test_a_roll_out_that_was_interrupted_is_ended(machine: Machine) -> None:
    machine.attributes["dagster-image"] = "image@1"
    (machine.folder / "failing-exec").touch()  # the code location does not serve yet
    with machine.rolling_out(healthy_within=60):
        until(lambda: "systemctl start --no-block dagster-code-location" in machine.commands())
    before = machine.commands()
    assert machine.states == ["starting image@1"]

    (machine.folder / "failing-exec").unlink()
    with machine.rolling_out():
        until(lambda: "running image@1" in machine.states)

    assert machine.commands() == [*before, START_ALL]


def test_an_image_that_is_on_the_vm_starts_without_the_registry(machine: Machine) -> None:
    machine.attributes["dagster-image"] = "image@1"
    (machine.folder / "failing-pull").touch()
    (machine.folder / "found-image").touch()
    with machine.rolling_out():
        until(lambda: "running image@1" in machine.states)

    assert not any("docker pull" in line for line in machine.commands())


def test_older_images_that_cannot_be_deleted_stop_nothing(machine: Machine) -> None:
    machine.attributes["dagster-image"] = "image@1"
    (machine.folder / "failing-image").touch()
    with machine.rolling_out():
        until(lambda: machine.states.count("running image@1") > 1)

    assert machine.commands().count("systemctl stop dagster-daemon") == 1


def test_changed_units_and_settings_reboot_the_vm(machine: Machine) -> None:
    with machine.rolling_out() as process:
        until(lambda: process.poll() is None)
        time.sleep(0.5)
        machine.attributes["dagster-revision"] = "r2"
        assert process.wait(20) == 0

    assert machine.commands() == ["systemctl reboot"]


def test_settings_that_changed_while_the_vm_started_reboot_it_again(machine: Machine) -> None:
    machine.attributes["dagster-revision"] = "r2"  # after cloud-init had read r1
    with machine.rolling_out() as process:
        assert process.wait(20) == 0

    assert machine.commands() == ["systemctl reboot"]


@pytest.mark.parametrize(
    ("status", "stopped"),
    [
        ("CURRENT_OP=UPDATE_STATUS_UPDATED_NEED_REBOOT", ["stop dagster-daemon", "reboot"]),
        ("CURRENT_OP=UPDATE_STATUS_IDLE", []),
    ],
)
def test_the_vm_reboots_if_an_update_waits_for_it(
    machine: Machine, status: str, stopped: list[str]
) -> None:
    (machine.folder / "update_engine_client").write_text(f"#!/bin/sh\necho {status} >&2\n")
    with start(
        *("sh", str(SCRIPTS / "reboot.sh")), cwd=machine.folder, env=machine.environment()
    ) as process:
        assert process.wait(20) == 0

    assert machine.commands() == [f"systemctl {each}" for each in stopped]


def test_runs_of_an_earlier_code_location_are_failed_when_the_new_one_serves(
    machine: Machine,
) -> None:
    (machine.folder / "docker").write_text(
        """#!/bin/sh
echo "$*" >>"$FOLDER/commands"
case "$*" in
    inspect*) echo 2026-01-31T12:00:00.123456789Z ;;
    *grpc-health-check*) [ -e "$FOLDER/serving" ] ;;
esac
"""
    )
    script = str(SCRIPTS / "interrupted_runs.sh")
    with start("sh", script, cwd=machine.folder, env=machine.environment()) as process:
        until((machine.folder / "commands").exists)
        time.sleep(3)
        assert process.poll() is None
        assert "inspect" not in (machine.folder / "commands").read_text()
        (machine.folder / "serving").touch()
        assert process.wait(20) == 0

    assert (machine.folder / "commands").read_text().splitlines()[-1] == (
        "exec code-location python production/fail_interrupted_runs.py "
        "2026-01-31T12:00:00.123456789Z"
    )


def write_secrets(machine: Machine, *names: str) -> tuple[int, str, str]:
    """Run secrets.sh: its status, what it prints, and what it writes."""
    command = ("sh", str(SCRIPTS / "secrets.sh"), "p", *names)
    with start(*command, cwd=machine.folder, env=machine.environment()) as process:
        printed, _ = process.communicate(timeout=20)
    secrets = machine.folder / "state" / "secrets"
    assert secrets.stat().st_mode & 0o077 == 0
    return process.returncode, printed, secrets.read_text()


@pytest.mark.parametrize(
    ("names", "written"),
    [
        ([], ""),
        (["TOKEN"], "TOKEN=https://example.com/?a=b%20c\n"),
        (["ODD"], """ODD=a\\new 'quote' "and" $HOME \\c\n"""),
    ],
)
def test_secrets_are_written_to_memory_for_root_only(
    machine: Machine, names: list[str], written: str
) -> None:
    assert write_secrets(machine, *names) == (0, "", written)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("OTHERS", "Could not read the secret OTHERS."),
        ("KEY", "The secret KEY has more than one line."),
    ],
)
def test_a_secret_that_cannot_be_used_is_an_error_that_does_not_show_it(
    machine: Machine, name: str, says: str
) -> None:
    status, printed, written = write_secrets(machine, name)

    assert (status, written) == (1, "")
    assert says in printed
    assert "password" not in printed
