"""A project in Google Cloud that behaves as Google does, also where that is inconvenient.

It has the endpoints that `just bootstrap`, `deploy-function`, `deploy-job`, `deploy-dagster` and
`doctor` use. What it does beyond the documentation follows from reports of live projects:
docs/google-cloud.md lists them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from google_stand_ins import DROPPED, Request, Response, Serve

PROJECT = "my-gcp-project"
NUMBER = "1"
REGION = "europe-west4"
SOURCES = "my-gcp-project-function-sources"
HOSTS = (
    "artifactregistry.googleapis.com",
    "cloudbuild.googleapis.com",
    "cloudfunctions.googleapis.com",
    "cloudresourcemanager.googleapis.com",
    "compute.googleapis.com",
    "run.googleapis.com",
    "serviceusage.googleapis.com",
    "storage.googleapis.com",
)


def error(status: int, message: str) -> Response:
    """An error of one of Google's APIs."""
    return Response(status, {"error": {"code": status, "message": message}})


@dataclass
class Fault:
    """What happens to some requests instead of what they ask for.

    Attributes:
        requests: A pattern for the method, the host and the path.
        response: The response, or `DROPPED`.
        times: How many more requests.
        is_done: True if the request is carried out, too: only its response is lost.
    """

    requests: str
    response: Response
    times: int = 1
    is_done: bool = False


@dataclass(frozen=True)
class Rollout:
    """How Google carries out an update of a function.

    Attributes:
        ends: With the new code served, with a failed build, or with code that does not start.
        lag: How many looks at the function still show it as it was before.
        deploying: How many looks then show it in the state DEPLOYING.
        touches_at_once: Whether `updateTime` changes before the lag.
        has_new_build: Whether the same code is built again.
        replaced_by: The bundle of another deployment, which wins.
    """

    ends: Literal["served", "not built", "not started"] = "served"
    lag: int = 0
    deploying: int = 1
    touches_at_once: bool = False
    has_new_build: bool = True
    replaced_by: str | None = None


@dataclass
class Function:
    """A function, as it is and as a look at it shows it.

    Attributes:
        serves: The source that it serves; None if it serves no requests.
        shown: The description in responses.
    """

    serves: str | None = "old.zip"
    shown: dict[str, Any] = field(
        default_factory=lambda: {
            "state": "ACTIVE",
            "updateTime": "2026-01-01T00:00:00Z",
            "buildConfig": {"build": "build-0", "environmentVariables": {"USER_S": "own"}},
            "labels": {"team": "data"},
        }
    )

    def show(self, state: str, *problems: str) -> None:
        """Change the state and the errors."""
        self.shown["state"] = state
        self.shown["stateMessages"] = [
            {"severity": "ERROR", "type": "Build", "message": problem} for problem in problems
        ]


@dataclass
class JobRollout:
    """How Google builds the image of a job, and carries out its update.

    Attributes:
        ends: The status of the build.
        building: How many looks at the build still show it working.
        lag: How many looks at the job still show it as it was before.
        reconciling: How many looks at the job then show that it is being updated.
        problem: Why the job cannot run with the image.
        replaced_by: The bundle of another deployment, which wins.
    """

    ends: Literal["SUCCESS", "FAILURE", "TIMEOUT"] = "SUCCESS"
    building: int = 1
    lag: int = 0
    reconciling: int = 1
    problem: str | None = None
    replaced_by: str | None = None


def first_job() -> dict[str, Any]:
    """A job as Terraform has created it, in the words of the Cloud Run Admin API."""
    container = {
        "image": "us-docker.pkg.dev/cloudrun/container/job:latest",
        "env": [{"name": "MESSAGES_BUCKET", "value": "my-gcp-project-pipes-messages"}],
    }
    return {
        "labels": {"team": "data"},
        "template": {"parallelism": 10, "template": {"containers": [container], "maxRetries": 0}},
        "terminalCondition": {"type": "Ready", "state": "CONDITION_SUCCEEDED"},
        "etag": "0",
    }


def deployed_job() -> dict[str, Any]:
    """A job with code, as `just deploy-job` leaves it."""
    job = first_job()
    job["labels"]["bundle"] = "a" * 63
    [container] = job["template"]["template"]["containers"]
    container["image"] = f"{REGION}-docker.pkg.dev/my-gcp-project/my-data-platform/tasks-job:1"
    return job


@dataclass
class Vm:
    """The VM that runs Dagster, as far as a deployment sees it.

    Attributes:
        image: The image that its metadata names.
        reports: What it reports: its state, and the image.
        ends: The state in which a roll-out ends.
        lag: How many looks still show the image that the metadata named before.
        starting: How many looks then show that it starts the image.
        status: Whether it runs.
        replaced_by: The image of another deployment, which wins.
        items: The other metadata.
        revision: That of the units and settings which it has started with.
        reboots_in: How many looks still show that revision, if the metadata has another one.
    """

    image: str | None = None
    reports: str | None = None
    ends: str = "running"
    lag: int = 0
    starting: int = 1
    status: str = "RUNNING"
    replaced_by: str | None = None
    items: dict[str, str] = field(
        default_factory=lambda: {"user-data": "#cloud-config", "dagster-revision": "r1"}
    )
    revision: str = "r1"
    reboots_in: int = 3
    before: str | None = None
    fingerprint: int = 0
    looks: int = 99  # since the last change


@dataclass
class _Update:
    body: dict[str, Any]
    rollout: Rollout
    looks: int = 0
    failure: str | None = None
    is_done: bool = False


@dataclass
class Cloud:
    """The project.

    Attributes:
        functions: The functions by name.
        jobs: The Cloud Run jobs by name.
        job_rollout: How the next update of a job is carried out.
        vms: The VMs by name.
        sources: The name of the bucket for sources.
        objects: The contents of that bucket, by name.
        buckets: The responses for buckets, by name. Others do not exist.
        enabled: The APIs that are on.
        identities: The services whose accounts exist.
        denied: The permissions that the caller lacks.
        description: The response with the project.
        regions: The regions where functions can run.
        job_regions: The regions where jobs can run.
        rollout: How the next update is carried out.
        operations_are_readable: Whether the caller may read operations.
        faults: What happens to some requests instead of what they ask for.
        requests: All requests.
    """

    functions: dict[str, Function] = field(default_factory=lambda: {"my-data-platform": Function()})
    jobs: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {"my-data-platform": first_job()}
    )
    job_rollout: JobRollout = field(default_factory=JobRollout)
    vms: dict[str, Vm] = field(default_factory=lambda: {"my-data-platform-dagster": Vm()})
    sources: str = SOURCES
    objects: dict[str, bytes] = field(default_factory=dict)
    buckets: dict[str, Response] = field(default_factory=dict)
    enabled: set[str] = field(default_factory=set)
    identities: set[str] = field(default_factory=set)
    denied: tuple[str, ...] = ()
    description: Response = field(
        default_factory=lambda: Response(200, {"projectNumber": NUMBER, "lifecycleState": "ACTIVE"})
    )
    regions: tuple[str, ...] = (REGION, "us-east1")
    job_regions: tuple[str, ...] = (REGION, "us-east1")
    rollout: Rollout = Rollout()
    operations_are_readable: bool = False
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    _updates: dict[str, _Update] = field(default_factory=dict)
    _operations: dict[str, int] = field(default_factory=dict)  # how many looks until done
    _builds: int = 0
    _image_builds: list[dict[str, Any]] = field(default_factory=list)

    def hosts(self) -> dict[str, Serve]:
        """The servers of the project, by host."""
        return dict.fromkeys(HOSTS, self.serve)

    def serve(self, request: Request) -> Response:
        """Respond as Google would."""
        self.requests.append(request)
        return self.faulted(request) or self._handle(request)

    def faulted(self, request: Request) -> Response | None:
        """The response to a request that meets a fault."""
        target = f"{request.method} {request.host}{request.path}"
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.requests, target):
                fault.times -= 1
                if fault.is_done:
                    self._handle(request)
                return fault.response
        return None

    def updates(self) -> list[Request]:
        """The requests that update a function."""
        return [
            request
            for request in self.requests
            if request.method == "PATCH" and request.host.startswith("cloudfunctions")
        ]

    def settle(self) -> None:
        """Let all updates end."""
        for name, update in self._updates.items():
            while not update.is_done:
                self._look(name)

    def _handle(self, request: Request) -> Response:
        path = unquote(urlsplit(request.path).path)
        for pattern, handle in _ENDPOINTS:
            if found := re.fullmatch(pattern, f"{request.method} {request.host}{path}"):
                return handle(self, request, *found.groups())
        return error(404, f"nothing at {request.host}{path}")

    # cloudresourcemanager.googleapis.com

    def describe_project(self, request: Request) -> Response:
        """Describe the project."""
        return self.description

    def test_permissions(self, request: Request) -> Response:
        """Name the permissions that the caller has."""
        permissions = request.body["permissions"]
        return Response(200, {"permissions": [p for p in permissions if p not in self.denied]})

    def test_permissions_on_bucket(self, request: Request) -> Response:
        """Name the permissions that the caller has on a bucket."""
        permissions = request.queries["permissions"]
        return Response(200, {"permissions": [p for p in permissions if p not in self.denied]})

    # serviceusage.googleapis.com

    def list_services(self, request: Request) -> Response:
        """Say which APIs are on."""
        names = [name.rpartition("/")[2] for name in request.queries["names"]]
        states = {name: "ENABLED" if name in self.enabled else "DISABLED" for name in names}
        services = [{"config": {"name": name}, "state": states[name]} for name in names]
        return Response(200, {"services": services})

    def enable(self, request: Request) -> Response:
        """Enable APIs, by an operation."""
        self.enabled |= set(request.body["serviceIds"])
        self._operations["enable"] = 1
        return Response(200, {"name": "operations/enable", "done": False})

    def create_identity(self, request: Request, service: str) -> Response:
        """Create the account of a service."""
        if service not in self.enabled:
            return error(403, f"{service} is not enabled.")
        self.identities.add(service)
        return Response(200, {"name": "operations/finished.DONE_OPERATION", "done": True})

    def describe_service_operation(self, request: Request, name: str) -> Response:
        """Describe an operation of Service Usage."""
        self._operations[name] -= 1
        return Response(200, {"name": f"operations/{name}", "done": self._operations[name] < 0})

    # storage.googleapis.com

    def describe_bucket(self, request: Request, name: str) -> Response:
        """Describe a bucket."""
        return self.buckets.get(name, error(404, "The specified bucket does not exist."))

    def upload(self, request: Request, bucket: str) -> Response:
        """Store an object, unless it exists."""
        name = request.query["name"]
        if bucket != self.sources:
            return error(404, "The specified bucket does not exist.")
        if request.query.get("ifGenerationMatch") == "0" and name in self.objects:
            return error(412, "At least one of the pre-conditions you specified did not hold.")
        self.objects[name] = request.content
        return Response(200, {"name": name})

    # cloudbuild.googleapis.com

    def create_build(self, request: Request, region: str) -> Response:
        """Start to build an image from an object in the bucket for sources."""
        source = request.body["source"]["storageSource"]
        if source["bucket"] != self.sources or source["object"] not in self.objects:
            return error(400, f"Source {source} does not exist.")
        number = len(self._image_builds)
        build = {
            **request.body,
            "id": f"build-{number}",
            "name": f"projects/{NUMBER}/locations/{region}/builds/build-{number}",
            "status": "QUEUED",
            "logUrl": f"https://console.cloud.google.com/cloud-build/builds/build-{number}",
            "looks": 0,
        }
        self._image_builds.append(build)
        return Response(200, {"name": f"operations/{number}", "metadata": {"build": build}})

    def describe_build(self, request: Request, number: str) -> Response:
        """Describe a build."""
        build = self._image_builds[int(number)]
        build["looks"] += 1
        build["status"] = "WORKING"
        if build["looks"] > self.job_rollout.building:
            build["status"] = self.job_rollout.ends
            digest = f"sha256:{int(number):064}"
            build["results"] = {"images": [{"name": build["images"][0], "digest": digest}]}
            if self.job_rollout.ends != "SUCCESS":
                build["failureInfo"] = {"detail": "The command pip returned a non-zero code: 1."}
        return Response(200, build)

    # artifactregistry.googleapis.com

    def describe_tag(self, request: Request, package: str, tag: str) -> Response:
        """Name the version of a package that has a tag."""
        for build in self._image_builds:
            if build["status"] == "SUCCESS" and build["images"][0].endswith(f"/{package}:{tag}"):
                [image] = build["results"]["images"]
                return Response(200, {"version": f"packages/{package}/versions/{image['digest']}"})
        return error(404, "Requested entity was not found.")

    def image_builds(self) -> list[Request]:
        """The requests that build an image."""
        return [
            request
            for request in self.requests
            if request.host.startswith("cloudbuild") and request.method == "POST"
        ]

    # compute.googleapis.com

    def describe_vm(self, request: Request, name: str) -> Response:
        """Describe a VM."""
        if name not in self.vms:
            return error(404, f"The resource 'instances/{name}' was not found")
        vm = self.vms[name]
        image = vm.image
        if vm.looks < vm.lag:
            vm.looks += 1
            image = vm.before
        named = {"dagster-image": image} if image else {}
        items = [{"key": key, "value": value} for key, value in {**vm.items, **named}.items()]
        metadata = {"fingerprint": str(vm.fingerprint), "items": items}
        return Response(200, {"name": name, "status": vm.status, "metadata": metadata})

    def set_metadata(self, request: Request, name: str) -> Response:
        """Replace the metadata of a VM, unless it was changed since it was read."""
        vm = self.vms[name]
        if request.body["fingerprint"] != str(vm.fingerprint):
            return error(412, "Supplied fingerprint does not match current metadata fingerprint.")
        vm.items = {item["key"]: item["value"] for item in request.body["items"]}
        vm.fingerprint, vm.looks = vm.fingerprint + 1, 0
        vm.before, vm.image = vm.image, vm.replaced_by or vm.items["dagster-image"]
        del vm.items["dagster-image"]
        return Response(200, {"name": "operation-1"})

    def describe_guest_attributes(self, request: Request, name: str) -> Response:
        """Say what a VM has reported. It follows its metadata with each look."""
        vm = self.vms[name]
        if vm.revision != vm.items["dagster-revision"]:
            vm.reboots_in -= 1
            if vm.reboots_in <= 0:
                vm.revision, vm.reports = vm.items["dagster-revision"], None
        if vm.image and vm.image not in (vm.reports or "") and vm.looks >= vm.lag:
            vm.reports = f"starting {vm.image}"
        elif (vm.reports or "").startswith("starting"):
            vm.starting -= 1
            if vm.starting <= 0:
                vm.reports = f"{vm.ends} {vm.image}"
        if vm.reports is None:
            return error(
                404, "The resource 'dagster/state' of type 'Guest Attribute' was not found."
            )
        item = {"namespace": "dagster", "key": "state", "value": f"{vm.reports} {vm.revision}"}
        return Response(200, {"queryPath": "dagster/state", "queryValue": {"items": [item]}})

    # run.googleapis.com

    def list_job_regions(self, request: Request) -> Response:
        """List the regions where jobs can run."""
        return Response(200, {"locations": [{"locationId": name} for name in self.job_regions]})

    def describe_job(self, request: Request, name: str) -> Response:
        """Describe a job."""
        if name not in self.jobs:
            return error(404, f"Resource '{name}' of kind 'JOB' does not exist.")
        job = self.jobs[name]
        if job.get("lag", 0) > 0:
            job["lag"] -= 1
            return Response(200, job["before"])
        if job.get("looks", 0) > 0:
            job["looks"] -= 1
        elif job.pop("reconciling", False):
            problem = self.job_rollout.problem
            job["terminalCondition"] = {
                "type": "Ready",
                "state": "CONDITION_FAILED" if problem else "CONDITION_SUCCEEDED",
                "message": problem or "",
            }
            if self.job_rollout.replaced_by:
                job["labels"]["bundle"] = self.job_rollout.replaced_by
        return Response(200, job)

    def replace_job(self, request: Request, name: str) -> Response:
        """Replace a job, unless it was changed since its description was read."""
        if request.body["etag"] != self.jobs[name]["etag"]:
            return error(409, "Conflict for resource: version was specified but does not match.")
        self.jobs[name] = {
            **request.body,
            "etag": str(int(request.body["etag"]) + 1),
            "before": self.jobs[name],
            "lag": self.job_rollout.lag,
            "looks": self.job_rollout.reconciling,
            "reconciling": True,
            "terminalCondition": {"type": "Ready", "state": "CONDITION_RECONCILING"},
        }
        return Response(200, {"name": f"operations/{name}"})

    # cloudfunctions.googleapis.com

    def list_regions(self, request: Request) -> Response:
        """List the regions where functions can run."""
        return Response(200, {"locations": [{"locationId": name} for name in self.regions]})

    def list_functions(self, request: Request) -> Response:
        """List the functions."""
        return Response(200, {"functions": [each.shown for each in self.functions.values()]})

    def describe_function(self, request: Request, name: str) -> Response:
        """Describe a function."""
        if name not in self.functions:
            return error(404, f"Resource {name} was not found")
        self._look(name)
        return Response(200, self.functions[name].shown)

    def update_function(self, request: Request, name: str) -> Response:
        """Start to update a function."""
        if name not in self.functions:
            return error(404, f"Resource {name} was not found")
        if name in self._updates and not self._updates[name].is_done:
            return error(409, "unable to queue the operation")
        source = request.body["buildConfig"]["source"]["storageSource"]["object"]
        if source not in self.objects:
            return error(400, f"Source {source} does not exist.")
        self._updates[name] = _Update(request.body, self.rollout)
        if self.rollout.touches_at_once:
            self.functions[name].shown["updateTime"] = "2026-01-02T00:00:00Z"
        return Response(200, {"name": _operation(name)})

    def describe_operation(self, request: Request, name: str) -> Response:
        """Describe the operation of an update."""
        if not self.operations_are_readable:
            return error(403, "Permission 'cloudfunctions.operations.get' denied on resource")
        self._look(name)
        update = self._updates[name]
        failure = {"error": {"message": update.failure}} if update.failure else {}
        done = {"done": True} if update.is_done else {}  # Google leaves out what is false
        return Response(200, {"name": _operation(name), **done, **failure})

    def _look(self, name: str) -> None:
        """Each look at a function is a step of its update."""
        update = self._updates.get(name)
        if update is None or update.is_done:
            return
        update.looks += 1
        function, rollout = self.functions[name], update.rollout
        if update.looks <= rollout.lag:
            return
        function.shown["updateTime"] = "2026-01-02T00:00:00Z"
        if update.looks <= rollout.lag + rollout.deploying:
            function.shown["state"] = "DEPLOYING"  # the old errors are still there
            return
        update.is_done = True
        match rollout.ends:
            case "served":
                self._deploy(function, update)
            case "not built":
                update.failure = "Build failed: no matching distribution."
                function.show("ACTIVE" if function.serves else "FAILED", update.failure)
            case "not started":
                update.failure = "The container failed to listen on the port."
                function.serves = None
                function.show("FAILED", update.failure)

    def _deploy(self, function: Function, update: _Update) -> None:
        source = update.body["buildConfig"]["source"]["storageSource"]["object"]
        function.serves = source
        function.show("ACTIVE")
        function.shown["labels"] = {**update.body["labels"]}
        function.shown["buildConfig"]["environmentVariables"] = {
            **update.body["buildConfig"]["environmentVariables"]
        }
        if update.rollout.has_new_build:
            self._builds += 1
            function.shown["buildConfig"]["build"] = f"build-{self._builds}"
        if update.rollout.replaced_by:
            function.serves = f"{update.rollout.replaced_by}.zip"
            function.shown["labels"]["bundle"] = update.rollout.replaced_by


def _operation(function: str) -> str:
    """The name of the operation that updates a function."""
    return f"projects/{PROJECT}/locations/{REGION}/operations/{function}"


_PARENT = r"cloudfunctions.googleapis.com/v2/projects/[\w-]+/locations"
_MANAGER = r"cloudresourcemanager.googleapis.com/v1/projects/[\w-]+"
_BUILDS = r"cloudbuild.googleapis.com/v1/projects/[\w-]+"
_JOBS = r"run.googleapis.com/v2/projects/[\w-]+/locations/[\w-]+/jobs"
_VMS = r"compute.googleapis.com/compute/v1/projects/[\w-]+/zones/[\w-]+/instances"
_USAGE = r"serviceusage.googleapis.com/v1(?:beta1)?"
_ENDPOINTS: list[tuple[str, Callable[..., Response]]] = [
    (rf"GET {_MANAGER}", Cloud.describe_project),
    (rf"POST {_MANAGER}:testIamPermissions", Cloud.test_permissions),
    (rf"GET {_USAGE}/projects/[\w-]+/services:batchGet", Cloud.list_services),
    (rf"POST {_USAGE}/projects/[\w-]+/services:batchEnable", Cloud.enable),
    (
        rf"POST {_USAGE}/projects/[\w-]+/services/([\w.]+):generateServiceIdentity",
        Cloud.create_identity,
    ),
    (rf"GET {_USAGE}/operations/([\w.]+)", Cloud.describe_service_operation),
    (r"GET storage.googleapis.com/storage/v1/b/([\w.-]+)", Cloud.describe_bucket),
    (r"POST storage.googleapis.com/upload/storage/v1/b/([\w.-]+)/o", Cloud.upload),
    (
        r"GET artifactregistry.googleapis.com/v1/projects/[\w-]+/locations/[\w-]+"
        r"/repositories/[\w-]+/packages/([\w-]+)/tags/(\w+)",
        Cloud.describe_tag,
    ),
    (rf"POST {_BUILDS}/locations/([\w-]+)/builds", Cloud.create_build),
    (rf"GET {_BUILDS}/locations/[\w-]+/builds/build-(\d+)", Cloud.describe_build),
    (rf"GET {_VMS}/([\w-]+)", Cloud.describe_vm),
    (rf"POST {_VMS}/([\w-]+)/setMetadata", Cloud.set_metadata),
    (rf"GET {_VMS}/([\w-]+)/getGuestAttributes", Cloud.describe_guest_attributes),
    (r"GET run.googleapis.com/v1/projects/[\w-]+/locations", Cloud.list_job_regions),
    (rf"POST {_JOBS}/[\w-]+:testIamPermissions", Cloud.test_permissions),
    (
        r"GET storage.googleapis.com/storage/v1/b/[\w.-]+/iam/testPermissions",
        Cloud.test_permissions_on_bucket,
    ),
    (rf"GET {_JOBS}/([\w-]+)", Cloud.describe_job),
    (rf"PATCH {_JOBS}/([\w-]+)", Cloud.replace_job),
    (rf"GET {_PARENT}", Cloud.list_regions),
    (rf"GET {_PARENT}/[\w-]+/functions", Cloud.list_functions),
    (rf"GET {_PARENT}/[\w-]+/functions/([\w-]+)", Cloud.describe_function),
    (rf"PATCH {_PARENT}/[\w-]+/functions/([\w-]+)", Cloud.update_function),
    (rf"GET {_PARENT}/[\w-]+/operations/([\w-]+)", Cloud.describe_operation),
]

__all__ = [
    "DROPPED",
    "Cloud",
    "Fault",
    "Function",
    "JobRollout",
    "Rollout",
    "Vm",
    "deployed_job",
    "error",
    "first_job",
]
