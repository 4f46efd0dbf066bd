"""What deployments know of the functions."""

from deployment.environments import Environment
from deployment.function_checks import FunctionChecks, url_variable
from deployment.project import task_folders
from deployment.target import Target


def _expected_settings(environment: Environment) -> dict[str, str]:
    host = f"{environment['region']}-{environment['project_id']}.cloudfunctions.net"
    urls = {
        url_variable(folder): f"https://{host}/{FUNCTIONS.name(environment, folder)}"
        for folder in task_folders()
    }
    return {**urls, "FUNCTION_AUDIENCE": ""}


FUNCTIONS = Target(
    kind="function",
    api=FunctionChecks.api,
    verb="serves",
    replacement="Answer `yes` to replace it.",
    find_folders=task_folders,
    expected_settings=_expected_settings,
    transient_errors={
        "Unable to retrieve the repository metadata": (
            "Cloud Functions may not use the repository of images yet"
        ),
        r"Access to bucket gcf-v2-sources-\S+ denied": (
            "the build account may not read the sources yet"
        ),
    },
)
