"""values.yaml has only what the chart knows, and the settings of dagster.yaml."""

from collections.abc import Iterator
from typing import Any

from chart import USER_DEPLOYMENT, instance, unknown

# What differs: in the values, storage has no password, and pods have their own folder for files.
PLACES = {"storage", "schedule_storage", "run_storage", "event_log_storage"}
ADDED = {
    "compute_logs.config.local_dir",
    "run_monitoring.max_resume_run_attempts",
    "run_monitoring.poll_interval_seconds",
    "scheduler.module",
    "scheduler.class",
    "run_coordinator.module",
    "run_coordinator.class",
}


def leaves(values: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def test_the_chart_knows_all_values(values: dict[str, Any]) -> None:
    [deployment] = values["dagster-user-deployments"]["deployments"]

    assert list(unknown(values)) == []
    assert list(unknown(deployment, USER_DEPLOYMENT)) == []


def test_an_unknown_value_is_found(values: dict[str, Any]) -> None:
    values["dagsterDaemon"]["runMonitoring"]["maxResumes"] = 3

    assert list(unknown(values)) == ["dagsterDaemon.runMonitoring.maxResumes"]


def test_the_settings_are_those_of_dagster_yaml(
    values: dict[str, Any], dagster_yaml: dict[str, Any]
) -> None:
    values["postgresql"] |= {"postgresqlHost": "any", "postgresqlUsername": "any"}
    made = dict(leaves(instance(values)))
    written = dict(leaves(dagster_yaml))

    def compared(settings: dict[str, Any]) -> dict[str, Any]:
        left_out = (*PLACES, "run_launcher")
        return {name: value for name, value in settings.items() if not name.startswith(left_out)}

    assert {name: made[name] for name in made if name in ADDED}.keys() == ADDED
    assert {name: each for name, each in compared(made).items() if name not in ADDED} == compared(
        written
    )


def test_pods_have_no_rights_and_limits(values: dict[str, Any]) -> None:
    [deployment] = values["dagster-user-deployments"]["deployments"]
    runs = values["runLauncher"]["config"]["k8sRunLauncher"]
    [migrate] = deployment["initContainers"]
    services = (values["dagsterWebserver"], values["dagsterDaemon"], deployment)
    for container in (*services, runs, migrate):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"].keys() == {"cpu", "memory"}
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
    pods = [each["podSecurityContext"] for each in services]
    for pod in (*pods, runs["runK8sConfig"]["podSpecConfig"]["securityContext"]):
        assert pod["runAsNonRoot"]
        assert pod["runAsUser"] == 65532
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}


def test_there_is_no_password_and_no_service_of_the_chart_s_own(values: dict[str, Any]) -> None:
    assert values["global"]["postgresqlAuthWifEnabled"]
    assert "postgresqlPassword" not in values["postgresql"]
    assert not any(values[name]["enabled"] for name in ("postgresql", "rabbitmq", "redis"))
