"""What Dagster's Helm chart accepts, and the dagster.yaml that it makes of its values.

Both are written after the chart in github.com/dagster-io/dagster, helm/dagster (Apache-2.0): the
keys after the models of its values.schema.json, the function after its templates
configmap-instance.yaml and helpers/instance/. The schema itself is 100 kB, and refers to another
one, of Kubernetes, on the internet.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Keys, by the key that they are under. Under an empty one, all are allowed: it is a part of
# Kubernetes' own schema, or a map of names.
Keys = Mapping[str, Any]


def keys(names: str, **nested: Keys) -> Keys:
    """Some keys, separated by spaces, and those with keys of their own."""
    return {**{name: {} for name in names.split()}, **nested}


IMAGE = keys("repository tag pullPolicy")
_POD = (
    "env envConfigMaps envSecrets deploymentLabels labels nodeSelector affinity tolerations "
    "podSecurityContext securityContext checkDbReadyInitContainer resources readinessProbe "
    "livenessProbe startupProbe annotations schedulerName logFormat volumeMounts volumes "
    "initContainerResources extraContainers extraPrependedInitContainers"
)
_THREADS = keys("useThreads numWorkers numSubmitWorkers")
_TICKS = keys("purgeAfterDays")

# A deployment of user code; the schema of the chart lets more keys through.
USER_DEPLOYMENT = keys(
    "name dagsterApiGrpcArgs codeServerArgs deploymentNamespace port replicaCount env "
    "envConfigMaps envSecrets annotations nodeSelector affinity tolerations "
    "podSecurityContext securityContext resources livenessProbe readinessProbe startupProbe "
    "labels volumeMounts volumes schedulerName initContainers sidecarContainers deploymentStrategy",
    image=IMAGE,
    includeConfigInLaunchedRuns=keys("enabled"),
)
KEYS: Keys = {
    **keys(
        "generatePostgresqlPasswordSecret generateCeleryConfigSecret imagePullSecrets flower "
        "pythonLogs additionalInstanceConfig rbacEnabled"
    ),
    "global": keys(
        "postgresqlSecretName dagsterHome serviceAccountName celeryConfigSecretName "
        "dagsterInstanceConfigMap postgresqlAuthWifEnabled fullnameOverride nameOverride"
    ),
    "dagsterWebserver": keys(
        f"{_POD} replicaCount nameOverride pathPrefix workspace enableReadOnly dbStatementTimeout "
        "dbPoolRecycle dbPoolMaxOverflow logLevel",
        image=IMAGE,
        service=keys("type port annotations"),
    ),
    "dagsterDaemon": keys(
        f"{_POD} enabled heartbeatTolerance",
        image=IMAGE,
        runCoordinator=keys(
            "enabled type",
            config=keys(
                "customRunCoordinator",
                queuedRunCoordinator=keys(
                    "maxConcurrentRuns tagConcurrencyLimits dequeueIntervalSeconds "
                    "dequeueNumWorkers dequeueUseThreads blockOpConcurrencyLimitedRuns"
                ),
            ),
        ),
        runMonitoring=keys(
            "enabled startTimeoutSeconds cancelTimeoutSeconds maxResumeRunAttempts "
            "pollIntervalSeconds freeSlotsAfterRunEndSeconds"
        ),
        runRetries=keys("enabled maxRetries retryOnAssetOrOpFailure"),
        sensors=_THREADS,
        schedules=_THREADS,
        backfills=_THREADS,
    ),
    # The schema of the subchart has its other keys.
    "dagster-user-deployments": keys(
        "enabled enableSubchart imagePullSecrets deployments rbacEnabled",
        serviceAccount=keys("create name annotations"),
    ),
    "postgresql": keys(
        "enabled postgresqlHost postgresqlUsername postgresqlPassword postgresqlDatabase "
        "postgresqlParams postgresqlScheme",
        image=IMAGE,
        service=keys("port"),
        authProvider=keys("type azureScope awsRegion"),
    ),
    "rabbitmq": keys("enabled image rabbitmq service volumePermissions"),
    "redis": keys(
        "enabled internal usePassword password host port brokerDbNumber backendDbNumber brokerUrl "
        "backendUrl"
    ),
    "ingress": keys(
        "enabled apiVersion labels annotations ingressClassName flower readOnlyDagsterWebserver",
        dagsterWebserver=keys("host path pathType tls precedingPaths succeedingPaths"),
    ),
    "computeLogManager": keys(
        "type",
        config=keys(
            "azureBlobComputeLogManager s3ComputeLogManager customComputeLogManager",
            gcsComputeLogManager=keys(
                "bucket localDir prefix jsonCredentialsEnvvar uploadInterval showUrlOnly"
            ),
        ),
    ),
    "scheduler": keys("type config"),
    "runLauncher": keys(
        "type",
        config=keys(
            "celeryK8sRunLauncher customRunLauncher",
            k8sRunLauncher=keys(
                "imagePullPolicy jobNamespace loadInclusterConfig kubeconfigFile envConfigMaps "
                "envSecrets envVars volumeMounts volumes labels failPodOnRunFailure resources "
                "schedulerName securityContext",
                image=IMAGE,
                runK8sConfig=keys(
                    "containerConfig podSpecConfig podTemplateSpecMetadata jobSpecConfig "
                    "jobMetadata"
                ),
            ),
        ),
    ),
    "busybox": keys("", image=IMAGE),
    "migrate": keys("enabled"),
    "telemetry": keys("enabled"),
    "serviceAccount": keys("create name annotations"),
    "retention": keys("enabled", sensor=_TICKS, schedule=_TICKS, autoMaterialize=_TICKS),
}


def unknown(values: Mapping[str, Any], known: Keys = KEYS, path: str = "") -> Iterator[str]:
    """The keys that the chart does not have."""
    for name, value in values.items():
        if name not in known:
            yield f"{path}{name}"
        elif known[name] and isinstance(value, Mapping):
            yield from unknown(value, known[name], f"{path}{name}.")


def instance(values: Mapping[str, Any]) -> dict[str, Any]:
    """The dagster.yaml that the chart makes of values, in the namespace `dagster`."""
    daemon = values["dagsterDaemon"]
    assert values["scheduler"]["type"] == "DagsterDaemonScheduler"
    assert daemon["runCoordinator"]["type"] == "QueuedRunCoordinator"
    assert daemon["runCoordinator"]["config"] == {"queuedRunCoordinator": {}}
    assert values["computeLogManager"]["type"] == "GCSComputeLogManager"
    logs = values["computeLogManager"]["config"]["gcsComputeLogManager"]
    return {
        "scheduler": {
            "module": "dagster.core.scheduler",
            "class": "DagsterDaemonScheduler",
        },
        "schedule_storage": _storage("schedule_storage", "PostgresScheduleStorage", values),
        "run_storage": _storage("run_storage", "PostgresRunStorage", values),
        "event_log_storage": _storage("event_log", "PostgresEventLogStorage", values),
        "run_launcher": _run_launcher(values),
        "run_coordinator": {
            "module": "dagster.core.run_coordinator",
            "class": "QueuedRunCoordinator",
        },
        "compute_logs": {
            "module": "dagster_gcp.gcs.compute_log_manager",
            "class": "GCSComputeLogManager",
            "config": _snake_case(logs),
        },
        "run_monitoring": _snake_case(daemon["runMonitoring"]),
        "run_retries": _snake_case(daemon["runRetries"]),
        "sensors": _snake_case(daemon["sensors"]),
        "schedules": _snake_case(daemon["schedules"]),
        "backfills": _snake_case(daemon["backfills"]),
        "telemetry": {"enabled": values["telemetry"]["enabled"]},
        "retention": {
            _snake(name): _snake_case(value)
            for name, value in values["retention"].items()
            if name != "enabled"
        },
        **values["additionalInstanceConfig"],
    }


def _storage(module: str, class_name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    postgresql = values["postgresql"]
    assert values["global"]["postgresqlAuthWifEnabled"]
    return {
        "module": f"dagster_postgres.{module}",
        "class": class_name,
        "config": {
            "postgres_db": {
                "username": postgresql["postgresqlUsername"],
                "hostname": postgresql["postgresqlHost"],
                "db_name": postgresql["postgresqlDatabase"],
                "port": postgresql.get("service", {"port": 5432})["port"],
                "params": postgresql["postgresqlParams"],
            },
            "auth_provider": {postgresql["authProvider"]["type"]: {}},
        },
    }


def _run_launcher(values: Mapping[str, Any]) -> dict[str, Any]:
    assert values["runLauncher"]["type"] == "K8sRunLauncher"
    config = values["runLauncher"]["config"]["k8sRunLauncher"]
    name = values["global"]["fullnameOverride"]
    return {
        "module": "dagster_k8s",
        "class": "K8sRunLauncher",
        "config": {
            "load_incluster_config": config["loadInclusterConfig"],
            "job_namespace": "dagster",
            "image_pull_policy": config["imagePullPolicy"],
            "service_account_name": values["global"]["serviceAccountName"],
            "dagster_home": values["global"]["dagsterHome"],
            "instance_config_map": f"{name}-instance",
            "env_config_maps": [each["name"] for each in config["envConfigMaps"]],
            "volume_mounts": config["volumeMounts"],
            "volumes": config["volumes"],
            "resources": config["resources"],
            "security_context": config["securityContext"],
            "run_k8s_config": _snake_case(config["runK8sConfig"]),
        },
    }


def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name)


def _snake_case(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values: the chart's keys are those of dagster.yaml in camel case."""
    return {_snake(name): value for name, value in values.items()}
